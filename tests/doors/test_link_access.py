"""Who comes in, over real sockets: mechanism x key x server, role x message, and what ends an open connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.utils.monitor

from pilotq import access, keys, wire
from pilotq.access import Role
from pilotq.core import turn as t
from pilotq.core.master import Limits, MasterCore
from pilotq.link import Dialer, Listener, new_socket, serving
from pilotq.model import Resources

SERVERS = ("master", "foreman")
#: Kind of key -> whether the master, and a foreman, let it in.
KEYS = {
    "worker": (True, True),
    "foreman": (True, False),
    "submit": (True, False),
    "admin": (True, False),
    "read": (True, False),
    "unknown": (False, False),
    "revoked": (False, False),
    "expired": (False, False),
}
MECHANISMS = ("CURVE", "CURVE with another server key", "PLAIN", "NULL")
#: A loaded machine is slow; a server without an authenticator refuses nobody, it only does not answer.
KNOCK_S, SILENCE_S = 30.0, 2.0


class Door:
    """A listener as master or foremen have it."""

    def __init__(self, home: Path, server: str) -> None:
        self.home, self.context = home, zmq.Context()
        keys.make_keys(home)
        for name in KEYS:
            if name in set(Role):
                keys.new_token(home, name, "test")
        keys.new_token(home, "worker", "revoked")
        keys.new_token(home, "worker", "expired", time.time() - 1)
        self.tokens = {
            name: keys.read_token(keys.token_path(home, name, "test"), name) for name in KEYS if name in set(Role)
        }
        for name in ("revoked", "expired"):
            self.tokens[name] = keys.read_token(keys.token_path(home, "worker", name), "worker")
        keys.revoke(home, "worker", "revoked")
        pair = keys.new_pair()
        self.tokens["unknown"] = keys.Token("worker", "test", pair.public, pair.secret, "", "")
        self.server, self.pair = server, keys.server_pair(home, server)
        self.gate = keys.Authenticator(self.context)
        self.failures: list[Exception] = []
        self.got: list[tuple[bytes, keys.Key, list[bytes]]] = []
        self.lost: list[bytes] = []
        self.came = asyncio.Event()
        self.listener = Listener(self.context, self.pair, self.gate, self._on_batch, self.lost.append)
        self.port = self.listener.bind("127.0.0.1", 0)
        self.serving = serving(self.gate, self.failures.append)
        self.serving.__enter__()
        self.listener.start()
        self.look()

    def look(self) -> None:
        """As the master does; a foreman is told of workers only."""
        known = keys.authorized(self.home)
        only = (Role.WORKER,) if self.server == "foreman" else tuple(Role)
        self.gate.allow((public, key) for public, key in known.items() if key.role in only)

    def _on_batch(self, peer: bytes, key: keys.Key, parts: list[bytes]) -> None:
        self.got.append((peer, key, parts))
        self.came.set()

    def dial(self, name: str) -> tuple[Dialer, asyncio.Event]:
        lost = asyncio.Event()
        endpoint = f"tcp://127.0.0.1:{self.port}"
        dialer = Dialer(self.context, endpoint, self.pair.public, self.tokens[name], lambda parts: None, lost.set)
        dialer.start()
        return dialer, lost

    async def knock(self, mechanism: str, name: str, expected: bool = False) -> bool:
        """Connect and send something; did it come through? Waits for what is expected, or for the refusal."""
        before, token = len(self.got), self.tokens[name]
        socket: Any = new_socket(self.context, zmq.DEALER)
        if mechanism.startswith("CURVE"):
            wrong = mechanism != "CURVE"
            socket.curve_serverkey = (keys.new_pair().public if wrong else self.pair.public).encode()
            socket.curve_publickey, socket.curve_secretkey = token.public.encode(), token.secret.encode()
        elif mechanism == "PLAIN":
            socket.plain_username, socket.plain_password = token.public.encode(), b"x"
        monitor = socket.get_monitor_socket()
        self.came.clear()
        try:
            socket.connect(f"tcp://127.0.0.1:{self.port}")
            with contextlib.suppress(zmq.Again):
                # One that was refused already has nobody to send to.
                socket.send_multipart(next(wire.join([b"", b"hello"])), zmq.DONTWAIT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.came.wait() if expected else _refusal(monitor), KNOCK_S)
            return len(self.got) > before
        finally:
            socket.disable_monitor()
            monitor.close()
            socket.close()

    def close(self) -> None:
        self.listener.close()
        self.serving.__exit__(None, None, None)
        self.context.destroy(linger=0)


async def _refusal(monitor: Any) -> None:
    bad = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
    while True:
        if monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            if zmq.utils.monitor.recv_monitor_message(monitor)["event"] & bad:
                return
        else:
            await asyncio.sleep(0.002)


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path, "master")
    yield door
    door.close()


@pytest.mark.parametrize("server", SERVERS)
async def test_every_mechanism_with_every_key_at_every_socket(tmp_path: Path, server: str) -> None:
    door = Door(tmp_path, server)
    try:
        for mechanism in MECHANISMS:
            for name, welcome in KEYS.items():
                may = mechanism == "CURVE" and welcome[SERVERS.index(server)]
                assert await door.knock(mechanism, name, may) is may, f"{mechanism}, key {name}"
        assert {key.role for _, key, _ in door.got} == {
            name for name, may in KEYS.items() if may[SERVERS.index(server)]
        }
    finally:
        door.close()


# ---- role x message ----------------------------------------------------------------------------------------------

TOKEN = wire.Token(1, 0, 1)
OFFER = wire.Offer(Resources(1))
MESSAGES: list[wire.Message] = [
    wire.Hello(wire.PROTOCOL, "w", 1, "h", 1, "v", OFFER, [], [], []),
    wire.Beat(1, OFFER, 0, 0),
    wire.Started([TOKEN]),
    wire.Result([], []),
    wire.Refuse([TOKEN], "full"),
    wire.Killed([TOKEN]),
    wire.Goodbye("x"),
    wire.Data(TOKEN, "x", 0, b""),
    wire.Get("0" * 64, 0),
    wire.Chunk("0" * 64, 0, 1, b"x"),
    wire.Welcome(1.0, 1.0, 1, []),
    wire.Reject("no", 1.0),
    wire.Describe(1, b""),
    wire.Assign(1, [0], [1]),
    wire.Renew(1),
    wire.Ack([TOKEN]),
    wire.Kill([TOKEN]),
    wire.Suspend([TOKEN], True),
    wire.Flow(0, b"x", 0),
    wire.AskInventory(),
    wire.Pull(TOKEN, "x", 0),
    wire.DrainPlease(),
    wire.Leave(),
    wire.ForemanHello(wire.PROTOCOL, "f", 1, "v"),
    wire.ForemanBeat(1, 0, False),
    wire.ForemanWelcome([], 1.0),
    wire.ForemanRenew(1),
    wire.Gone([]),
    wire.Forget(1),
]


def test_there_is_a_message_of_every_type() -> None:
    assert {type(message) for message in MESSAGES} == set(wire.Message.__args__)
    assert set(access.MESSAGES) < set(wire.Message.__args__)


def is_refused(core: MasterCore, event: t.FromPeer) -> bool:
    turn = core.handle(event, t.Now(1.0, 1.0))
    return any(isinstance(action, t.Tell) and "not allowed" in action.text for action in turn.actions)


@pytest.mark.parametrize("role", list(Role))
async def test_every_role_with_every_message(master: Door, role: str) -> None:
    """Sent over CURVE with a key of the role, and what the master's core makes of what came through."""
    core = MasterCore(Limits(), lambda *_: None, t.Now(1.0, 1.0))
    known = keys.authorized(master.home)
    workers = [(public, key.name, 0.0) for public, key in known.items() if key.role == Role.WORKER]
    core.handle(t.SetKeys(workers, ["test"]), t.Now(1.0, 1.0))
    dialer, _ = master.dial(role)
    for message in MESSAGES:
        master.came.clear()
        dialer.send(b"", wire.pack(message))
        dialer.flush()
        await asyncio.wait_for(master.came.wait(), KNOCK_S)
        peer, key, parts = master.got[-1]
        event = t.FromPeer(t.Route(peer, b""), key.role, key.name, wire.unpack(parts[1]))
        may = role in access.MESSAGES.get(type(message), ())
        assert is_refused(core, event) is not may, f"{role}: {type(message).__name__}"
        if role == Role.WORKER:
            claimed = t.FromPeer(t.Route(peer, b"12345test"), key.role, key.name, event.message)
            assert is_refused(core, claimed), "a worker has no sessions to speak for"
    dialer.close()


# ---- the end of open connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_an_open_connection_ends_with_its_key(master: Door, how: str) -> None:
    dialer, lost = master.dial("worker")
    other, other_lost = master.dial("foreman")
    for one in (dialer, other):
        master.came.clear()
        one.send(b"", b"first")
        one.flush()
        await asyncio.wait_for(master.came.wait(), KNOCK_S)
    if how == "revoked":
        keys.revoke(master.home, "worker", "test")
    else:
        keys.authorize(master.home, "worker", "test", master.tokens["worker"].public, time.time() - 1)
    master.look()
    heard = len(master.got)
    dialer.send(b"", b"still here")
    dialer.flush()
    await asyncio.wait_for(lost.wait(), KNOCK_S)
    other.send(b"", b"me too")
    master.came.clear()
    other.flush()
    await asyncio.wait_for(master.came.wait(), KNOCK_S)
    assert [parts[1] for _, _, parts in master.got[heard:]] == [b"me too"]
    assert master.lost and not other_lost.is_set()
    assert not await master.knock("CURVE", "worker"), "it does not come in again"
    dialer.close()
    other.close()


async def test_a_key_made_again_under_the_same_name_does_not_revive_the_old_one(master: Door) -> None:
    dialer, lost = master.dial("worker")
    dialer.send(b"", b"first")
    dialer.flush()
    await asyncio.wait_for(master.came.wait(), KNOCK_S)
    keys.revoke(master.home, "worker", "test")
    keys.new_token(master.home, "worker", "test")
    master.look()
    dialer.send(b"", b"old key, same name")
    dialer.flush()
    await asyncio.wait_for(lost.wait(), KNOCK_S)
    assert len(master.got) == 1
    dialer.close()


async def test_an_id_of_its_own_choice_is_not_heard(master: Door) -> None:
    socket: Any = new_socket(master.context, zmq.DEALER)
    token = master.tokens["worker"]
    socket.curve_serverkey = master.pair.public.encode()
    socket.curve_publickey, socket.curve_secretkey = token.public.encode(), token.secret.encode()
    socket.routing_id = b"\x01node7#1.abcd"
    socket.connect(f"tcp://127.0.0.1:{master.port}")
    socket.send_multipart(next(wire.join([b"", b"I am node7"])))
    dialer, _ = master.dial("worker")
    for _ in range(500):
        if master.lost:
            break
        await asyncio.sleep(0.01)
    assert master.lost == [b"\x01node7#1.abcd"] and not master.got
    socket.close()
    dialer.close()


async def test_a_server_with_another_key_is_told_to_who_dials(master: Door) -> None:
    master.pair = keys.new_pair()
    dialer, lost = master.dial("worker")
    await asyncio.wait_for(lost.wait(), KNOCK_S)
    dialer.close()


async def test_an_authenticator_that_cannot_answer_says_so(master: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the daemon ends, and its sockets with it; and nobody comes in meanwhile."""
    monkeypatch.setattr("test_link_access.KNOCK_S", SILENCE_S)
    master.gate.allowed = None  # type: ignore[assignment]
    for name in ("worker", "unknown"):
        assert not await master.knock("CURVE", name)
    assert [type(error) for error in master.failures] == [TypeError]
    assert master.gate.socket.closed


async def test_the_server_changes_its_keys_at_the_same_port(master: Door) -> None:
    old, lost = master.dial("worker")
    old.send(b"", b"old")
    old.flush()
    await asyncio.wait_for(master.came.wait(), KNOCK_S)
    before, master.pair = master.pair, keys.new_pair()
    await master.listener.change_keys(master.pair)
    await asyncio.wait_for(lost.wait(), KNOCK_S)
    await master.listener.prove_closed()
    assert await master.knock("CURVE", "worker", True), "the new key"
    master.pair = before
    assert not await master.knock("CURVE", "worker"), "the old key"
    old.close()
