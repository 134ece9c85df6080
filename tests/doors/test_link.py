"""Sockets: who is let in, and that nobody is when the authenticator is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from pilotq import keys, wire
from pilotq.errors import InternalError, PeerError, UserError
from pilotq.link import Dialer, Listener, new_socket, prove_closed, serving


class Server:
    """A listener with its authenticator, and what came to it."""

    def __init__(self, home: Path) -> None:
        self.context: Any = zmq.Context()
        self.pair = keys.make_keys(home)
        self.token = keys.read_token(home / "worker.token", "worker")
        self.gate = keys.Authenticator(self.context)
        self.gate.allow(keys.authorized(home).items())
        self.failures: list[Exception] = []
        self.got: list[tuple[bytes, keys.Key, list[bytes]]] = []
        self.lost: list[bytes] = []
        self.came = asyncio.Event()
        self.listener = Listener(self.context, self.pair, self.gate, self._on_batch, self.lost.append)
        self.port = self.listener.bind("127.0.0.1", 0)
        self.dialers: list[Dialer] = []
        self.stack = contextlib.ExitStack()

    def start(self) -> None:
        self.stack.enter_context(serving(self.gate, self.failures.append))
        self.listener.start()

    def _on_batch(self, peer: bytes, key: keys.Key, parts: list[bytes]) -> None:
        self.got.append((peer, key, parts))
        self.came.set()

    def dial(self, token: keys.Token, on_batch: Callable[[list[bytes]], None], on_lost: Callable[[], None]) -> Dialer:
        dialer = Dialer(self.context, f"tcp://127.0.0.1:{self.port}", self.pair.public, token, on_batch, on_lost)
        dialer.start()
        self.dialers.append(dialer)
        return dialer

    def close(self) -> None:
        for dialer in self.dialers:
            dialer.close()
        self.listener.close()
        self.stack.close()
        self.gate.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    found = Server(tmp_path)
    yield found
    found.close()


def stranger(server: Server) -> keys.Token:
    pair = keys.new_pair()
    return keys.Token("worker", "site", pair.public, pair.secret, server.token.master, server.token.foreman)


async def test_a_batch_there_and_back(server: Server) -> None:
    server.start()
    back: list[list[bytes]] = []
    answered = asyncio.Event()

    def on_batch(parts: list[bytes]) -> None:
        back.append(parts)
        answered.set()

    dialer = server.dial(server.token, on_batch, lambda: None)
    dialer.send(b"", b"one")
    dialer.send(b"s", b"two")
    dialer.flush()
    await asyncio.wait_for(server.came.wait(), 5)
    peer, key, parts = server.got[0]
    assert key == keys.Key("worker", "site"), "role and name come from the key"
    assert parts == [b"", b"one", b"s", b"two"]
    server.listener.send(peer, b"", b"answer")
    server.listener.flush()
    await asyncio.wait_for(answered.wait(), 5)
    assert back == [[b"", b"answer"]]


async def test_a_strange_key_gets_nothing(server: Server) -> None:
    server.start()
    refused = asyncio.Event()
    dialer = server.dial(stranger(server), lambda parts: None, refused.set)
    dialer.send(b"", b"let me in")
    dialer.flush()
    await asyncio.wait_for(refused.wait(), 5)
    assert not server.got
    assert server.gate.refused


async def test_no_key_gets_nothing(server: Server) -> None:
    server.start()
    socket = new_socket(server.context, zmq.DEALER)
    try:
        socket.connect(f"tcp://127.0.0.1:{server.port}")
        socket.send_multipart(next(wire.join([b"", b"let me in"])))
        await server.listener.prove_closed()
        assert not server.got
    finally:
        socket.close()


async def test_raw_bytes_get_nothing_and_disturb_nobody(server: Server) -> None:
    server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
    dialer = server.dial(server.token, lambda parts: None, lambda: None)
    dialer.send(b"", b"hello")
    dialer.flush()
    await asyncio.wait_for(server.came.wait(), 5)
    assert [parts for _, _, parts in server.got] == [[b"", b"hello"]]
    writer.close()


async def test_nobody_gets_in_when_the_authenticator_is_gone(server: Server) -> None:
    server.start()
    server.stack.close()
    lost = asyncio.Event()
    known = server.dial(server.token, lambda parts: None, lost.set)
    known.send(b"", b"I have a key of yours")
    known.flush()
    unknown = server.dial(stranger(server), lambda parts: None, lost.set)
    unknown.send(b"", b"I have none")
    unknown.flush()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.came.wait(), 1.0)
    assert not server.got


async def test_the_self_test_refuses_an_open_port(server: Server) -> None:
    server.gate.close()
    open_socket = new_socket(server.context, zmq.ROUTER)
    try:
        open_socket.bind("tcp://127.0.0.1:*")
        endpoint = open_socket.getsockopt_string(zmq.LAST_ENDPOINT)
        with pytest.raises(InternalError, match="does not refuse"):
            await prove_closed(server.context, endpoint, server.pair.public, timeout_s=1.0)
    finally:
        open_socket.close()


async def test_the_self_test_knocks_where_the_server_listens(server: Server) -> None:
    server.start()
    other = Listener(server.context, server.pair, server.gate, server._on_batch, server.lost.append)
    try:
        other.bind("127.0.0.2", 0)
        other.start()
        await other.prove_closed()
    finally:
        other.close()


async def test_an_occupied_port_is_one_clear_line(server: Server) -> None:
    other = Listener(server.context, server.pair, server.gate, server._on_batch, server.lost.append)
    try:
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            other.bind("127.0.0.1", server.port)
    finally:
        other.close()


async def test_a_peer_that_is_gone_is_told(server: Server) -> None:
    server.start()
    dialer = server.dial(server.token, lambda parts: None, lambda: None)
    dialer.send(b"", b"hello")
    dialer.flush()
    await asyncio.wait_for(server.came.wait(), 5)
    peer = server.got[0][0]
    dialer.close()
    for _ in range(500):
        server.listener.send(peer, b"", b"are you there?")
        server.listener.flush()
        if server.lost:
            break
        await asyncio.sleep(0.01)
    assert server.lost == [peer]


def test_tokens_are_private_and_for_their_role(tmp_path: Path) -> None:
    keys.make_keys(tmp_path)
    path = tmp_path / "worker.token"
    assert path.stat().st_mode & 0o777 == 0o600
    token = keys.read_token(path, "worker")
    assert token.secret not in repr(token)
    with pytest.raises(UserError, match="token for a worker"):
        keys.read_token(path, "foreman")
    path.chmod(0o644)
    with pytest.raises(UserError, match="read by others"):
        keys.read_token(path, "worker")
    with pytest.raises(UserError, match="no worker token"):
        keys.read_token(tmp_path / "missing", "worker")
    path.chmod(0o600)
    path.write_text("rubbish")
    with pytest.raises(UserError, match="is not a token"):
        keys.read_token(path, "worker")


def test_a_large_batch_is_several_messages_in_order() -> None:
    payloads = [
        bytes([number % 256]) * size for number, size in enumerate([10, wire.BATCH_BYTES_MAX, 600_000, 600_000])
    ]
    payloads += [b"small"] * (wire.BATCH_PARTS_MAX + 3)
    parts = [part for payload in payloads for part in (b"s", payload)]
    messages = list(wire.join(parts))
    assert len(messages) > 3
    assert all(sum(map(len, frames)) <= wire.PAYLOAD_BYTES_MAX for frames in messages)
    assert [part for frames in messages for part in wire.split(frames)] == parts
    assert len(list(wire.join(parts[:2]))) == 1


LARGE = bytes(wire.FRAME_BYTES_MIN)


def test_a_large_payload_is_a_frame_of_its_own() -> None:
    (frames,) = wire.join([b"s", LARGE, b"", b"small", b"t", LARGE + b"x"])
    assert [len(frame) for frame in frames[1:]] == [len(LARGE), len(LARGE) + 1] and len(frames[0]) < 30
    assert frames[1] is LARGE, "nobody copies it"
    assert wire.split(frames) == [b"s", LARGE, b"", b"small", b"t", LARGE + b"x"]


@pytest.mark.parametrize(
    ("parts", "large"),
    [([b"", None], 0), ([b"", None], 2), ([None, b"x"], 1), ([b"", b"x"], 1), ([b"", None, b"", None], 1)],
)
def test_frames_that_do_not_fit_their_batch(parts: list[bytes | None], large: int) -> None:
    with pytest.raises(PeerError):
        wire.split([msgspec.msgpack.encode(parts), *[LARGE] * large])


async def test_large_payloads_are_passed_on_as_they_came(server: Server) -> None:
    """From a dialer to the listener and back, between small ones; then what no batch names, and too much of it."""
    server.start()
    back: list[Any] = []
    answered = asyncio.Event()

    def on_batch(parts: list[Any]) -> None:
        back.extend(parts)
        answered.set()

    dialer = server.dial(server.token, on_batch, lambda: None)
    sent = [b"s", b"small", b"", os.urandom(300_000), b"t", os.urandom(wire.FRAME_BYTES_MIN), b"", b"last"]
    for frames in ([b"\x92\xc4\x00\xc0", LARGE, LARGE], [b"\x92\xc4\x00\xc0", *[LARGE] * 70]):
        dialer.socket.send_multipart(frames)
    dialer.send(*sent)
    dialer.flush()
    await asyncio.wait_for(server.came.wait(), 5)
    ((peer, _, parts),) = server.got
    assert parts == sent
    server.listener.send(peer, *parts)
    server.listener.flush()
    await asyncio.wait_for(answered.wait(), 5)
    assert back == sent


async def test_a_message_of_too_many_frames_is_passed_over_to_its_end(server: Server) -> None:
    """Nothing in it is taken for a message of its own, however long it is."""
    server.start()
    dialer = server.dial(server.token, lambda parts: None, lambda: None)
    ((batch,),) = wire.join([b"", b"I am a frame in the middle"])
    for count in (wire.FRAMES_MAX, wire.FRAMES_MAX + 1, 3 * wire.FRAMES_MAX, 10_000):
        dialer.socket.send_multipart([batch] * count)
    most = [b"", LARGE] * (wire.FRAMES_MAX - 1)
    dialer.send(*most)
    dialer.flush()
    await asyncio.wait_for(server.came.wait(), 5)
    assert [parts for _, _, parts in server.got] == [most], "in one message, which is the largest there is"
    assert not server.lost, "it may say what it likes"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x91\xc4\x01x",
        b"\x92\x01\x02",
        b"\xdd\xff\xff\xff\xff",
        b"\x92\xc4\x00\xc6\x00\x50\x00\x00" + bytes(5 << 20),
    ],
)
async def test_rubbish_of_a_known_peer_is_dropped(server: Server, message: bytes) -> None:
    with pytest.raises(PeerError):
        wire.split([message])
    server.start()
    dialer = server.dial(server.token, lambda parts: None, lambda: None)
    if len(message) < wire.PAYLOAD_BYTES_MAX:
        dialer.socket.send(message)
    dialer.socket.send_multipart([b"\x90", b"two frames"])
    dialer.send(b"", b"hello")
    dialer.flush()
    await asyncio.wait_for(server.came.wait(), 5)
    assert [parts for _, _, parts in server.got] == [[b"", b"hello"]]
