"""ZeroMQ sockets in the event loop: batches of (session, payload) pairs, CURVE on all of them.

A socket is drained when its descriptor says so, and looked at again after every send: the descriptor of a ZeroMQ
socket is edge-triggered. What one turn sends to one peer leaves as one message (`wire.join`), of one frame but for
large payloads: every frame costs both sides far more than a few bytes in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
from collections.abc import Callable, Iterator
from typing import Any

import zmq
import zmq.utils.monitor

from pilotq import keys, wire
from pilotq.errors import InternalError, PeerError, UserError
from pilotq.wire import Buffer

Socket = Any
#: Messages read in a row before others get a turn.
READ_MAX = 200
#: Multipart messages that may wait for one peer; credits keep the real number far below.
QUEUE_MAX = 50_000
#: How soon ZeroMQ itself connects again: at first, and at last.
RECONNECT_MS = 200, 2_000
# Plain numbers: pyzmq converts enums anew each time.
_EVENTS, _POLLIN, _NOBLOCK, _SNDMORE = (int(one) for one in (zmq.EVENTS, zmq.POLLIN, zmq.NOBLOCK, zmq.SNDMORE))


def _whole(frame: Buffer) -> Any:
    """What came as a whole frame is passed on as that."""
    whole: Any = frame.obj if isinstance(frame, memoryview) else None
    return whole if isinstance(whole, zmq.Frame) and len(whole) == len(frame) else frame


def new_socket(context: Any, kind: int) -> Socket:
    """A socket with the options that all of ours share."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = QUEUE_MAX
    socket.maxmsgsize = wire.PAYLOAD_BYTES_MAX + 1024
    socket.handshake_ivl = 5_000
    # Only to free the descriptor of a peer that vanished; who is alive is told by our own heartbeats.
    socket.heartbeat_ivl, socket.heartbeat_timeout = 60_000, 120_000
    socket.tcp_keepalive = 1
    socket.ipv6 = False
    return socket


class _Link:
    """What a listening and a calling socket share."""

    def __init__(self, context: Any, kind: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.socket = new_socket(context, kind)
        self.closed: bool = False
        self._reading = False
        #: In the middle of a message of which nothing is wanted.
        self._skipping = False

    def start(self) -> None:
        self.loop.add_reader(self.socket.getsockopt(zmq.FD), self._readable)
        self._readable()

    def _has_more(self) -> bool:
        return not self.closed and bool(self.socket.get(_EVENTS) & _POLLIN)

    def _readable(self) -> None:
        for _ in range(READ_MAX):
            if not self._has_more():
                return
            try:
                self._skip() if self._skipping else self._read()
            except Exception:
                # The descriptor will not tell of what is left: come back for it.
                self._look_again()
                raise
        self._look_again()

    def _send(self, frames: list[Buffer]) -> None:
        """Raises: zmq.ZMQError when it cannot be sent now."""
        send, last = self.socket.send, len(frames) - 1
        for n, frame in enumerate(frames):
            more = _SNDMORE if n < last else 0
            send(_whole(frame), _NOBLOCK | more, copy=len(frame) < wire.FRAME_BYTES_MIN)

    def _rest(self, frame: Any) -> list[Buffer]:
        """What follows a frame that came, itself first; nothing of it is copied.

        Raises: PeerError when it is more than anybody sends.
        """
        frames, size = [frame.buffer], 0
        while frame.more:
            if size > wire.PAYLOAD_BYTES_MAX or len(frames) == wire.FRAMES_MAX:
                self._skipping = True
                break
            frame = self.socket.recv(_NOBLOCK, copy=False)
            size += len(frame.buffer)
            frames.append(frame.buffer)
        if self._skipping or size > wire.PAYLOAD_BYTES_MAX:
            raise PeerError("a message that is too large")
        return frames

    def _skip(self) -> None:
        """Take in some more of a message that is too large."""
        for _ in range(wire.FRAMES_MAX):
            if not self.socket.recv(_NOBLOCK, copy=False).more:
                self._skipping = False
                return

    def _look_again(self) -> None:
        if not self._reading and self._has_more():
            self._reading = True
            self.loop.call_soon(self._again)

    def _again(self) -> None:
        self._reading = False
        self._readable()

    def _read(self) -> None:
        raise InternalError("a link that reads nothing")

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with contextlib.suppress(ValueError, OSError):
                self.loop.remove_reader(self.socket.getsockopt(zmq.FD))
            self.socket.close()


class Listener(_Link):
    """A CURVE server: the master's or a foreman's side.

    `on_batch(peer, key, parts)` gets what came: role and name of the connection's key, then session and payload in
    turn. `on_lost(peer)` tells that a peer cannot be sent to any more. What comes with a key that is not allowed any
    more ends its connection and is not heard.
    """

    def __init__(
        self,
        context: Any,
        pair: keys.KeyPair,
        gate: keys.Authenticator,
        on_batch: Callable[[bytes, keys.Key, wire.Parts], None],
        on_lost: Callable[[bytes], None],
    ) -> None:
        super().__init__(context, zmq.ROUTER)
        self._context, self._gate, self._on_batch, self._on_lost = context, gate, on_batch, on_lost
        self._out: dict[bytes, wire.Parts] = {}
        #: Of the keys it serves with.
        self.public = pair.public
        socket = self.socket
        socket.curve_server = 1
        socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
        socket.zap_domain = keys.DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.router_mandatory = 1
        socket.backlog = 1024

    def bind(self, address: str, port: int) -> int:
        """Listen; the port (port 0: a free one).

        Raises: UserError when the port is taken or the address is not of this host.
        """
        try:
            self.socket.bind(f"tcp://{address}:{port or '*'}")
        except zmq.ZMQError as error:
            ports = "WQ_MASTER for a master, WQ_MASTER_BASEPORT for foremen"
            hint = f"something else listens there; stop it or choose another port ({ports})"
            if error.errno != zmq.EADDRINUSE:
                hint = f"choose an address of this host (master.bind, foreman.bind) and a port above 1023 ({ports})"
            # The text of the error itself says the address once more.
            raise UserError(f"cannot listen on {address}:{port}: {zmq.strerror(error.errno or 0)}", hint) from None
        endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return int(endpoint.rsplit(":", 1)[1])

    @property
    def endpoint(self) -> str:
        """Where this host reaches it."""
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT).replace("//0.0.0.0:", "//127.0.0.1:")  # type: ignore[no-any-return]

    async def prove_closed(self) -> None:
        """Knock as a stranger, see the function of this name."""
        await prove_closed(self._context, self.endpoint, self.public)

    async def change_keys(self, pair: keys.KeyPair) -> None:
        """Serve with another pair from now on, at the same port; every connection ends, and may come back.

        Raises: InternalError when the port cannot be had again, or is open to strangers.
        """
        endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.socket.unbind(endpoint)
        self.socket.curve_publickey, self.socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
        self.public = pair.public
        for _ in range(500):
            with contextlib.suppress(zmq.ZMQError):
                self.socket.bind(endpoint)
                await self.prove_closed()
                return
            # The port is let go of by another thread.
            await asyncio.sleep(0.01)
        raise InternalError(f"{endpoint} cannot be bound again", "start this process again")

    def send(self, peer: bytes, *parts: Buffer) -> None:
        """Queue payloads, each after its session, until `flush`; a peer's id may have more behind it."""
        waiting = self._out.get(peer)
        if waiting is None:
            waiting = self._out[peer] = []
        waiting += parts

    @property
    def has_waiting(self) -> bool:
        return bool(self._out)

    def flush(self) -> None:
        if not self._out or self.closed:
            return
        out, self._out = self._out, {}
        for peer, parts in out.items():
            try:
                for frames in wire.join(parts):
                    self.socket.send(peer[: wire.PEER_BYTES], _NOBLOCK | _SNDMORE)
                    self._send(frames)
            except zmq.ZMQError:
                # Not connected any more, or so far behind that it broke its credit: its session is over.
                self._on_lost(peer)
        self._look_again()

    def _read(self) -> None:
        recv = self.socket.recv
        peer = recv(_NOBLOCK)
        frame = recv(_NOBLOCK, copy=False)
        try:
            frames = self._rest(frame)
            key = self._gate.allowed.get(str(frame.get("User-Id")))
            if key is None or len(peer) != wire.PEER_BYTES:
                # Revoked or expired; or with an id of its own choice.
                _cut(frame)
                self._on_lost(peer)
                return
            parts = wire.split(frames)
        except (zmq.ZMQError, PeerError):
            return
        self._on_batch(peer, key, parts)


def _cut(frame: Any) -> None:
    """End the connection that a frame came by."""
    with contextlib.suppress(zmq.ZMQError, OSError, ValueError), _connection(frame) as connection:
        # The number may stand for another one by now; what is cut for nothing comes back by itself.
        if connection.getpeername()[0] == frame.get("Peer-Address"):
            connection.shutdown(sockets.SHUT_RDWR)


def _connection(frame: Any) -> sockets.socket:
    return sockets.socket(fileno=os.dup(int(frame.get("__fd"))))


class Dialer(_Link):
    """A CURVE client: a worker's or foreman's side towards the one above.

    `on_batch(parts)` gets what came, session and payload in turn; `on_lost()` is called when the connection breaks, our
    key is refused, or the server's is not the one we want.
    """

    def __init__(
        self,
        context: Any,
        endpoint: str,
        server: str,
        token: keys.Token,
        on_batch: Callable[[wire.Parts], None],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(context, zmq.DEALER)
        self.endpoint = endpoint
        self._on_batch, self._on_lost = on_batch, on_lost
        self._out: wire.Parts = []
        socket = self.socket
        socket.curve_serverkey = server.encode()
        socket.curve_publickey, socket.curve_secretkey = token.public.encode(), token.secret.encode()
        socket.reconnect_ivl, socket.reconnect_ivl_max = RECONNECT_MS
        refusals = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        # No detail: whoever serves there has another key than we were told.
        refusals |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._monitor: Any = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | refusals)
        self.loop.add_reader(self._monitor.getsockopt(zmq.FD), self._watch)
        socket.connect(endpoint)
        # The descriptor tells of changes only after its state was asked for once.
        self._watch()

    def _watch(self) -> None:
        while not self.closed and self._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            zmq.utils.monitor.recv_monitor_message(self._monitor)
            self._on_lost()

    def send(self, *parts: Buffer) -> None:
        """Queue payloads, each after its session, until `flush`."""
        self._out += parts

    def flush(self) -> None:
        if not self._out or self.closed:
            return
        out, self._out = self._out, []
        try:
            for frames in wire.join(out):
                self._send(frames)
        except zmq.ZMQError:
            self._on_lost()
        self._look_again()

    def _read(self) -> None:
        try:
            parts = wire.split(self._rest(self.socket.recv(_NOBLOCK, copy=False)))
        except PeerError:
            return
        self._on_batch(parts)

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(ValueError, OSError):
                self.loop.remove_reader(self._monitor.getsockopt(zmq.FD))
            self.socket.disable_monitor()
            self._monitor.close()
            super().close()


@contextlib.contextmanager
def serving(gate: keys.Authenticator, on_failure: Callable[[Exception], None]) -> Iterator[keys.Authenticator]:
    """Answer ZAP questions in the running loop; closes the authenticator at the end.

    `on_failure` is told when it cannot answer any more: then all sockets must be closed.
    """
    loop = asyncio.get_running_loop()
    descriptor = int(gate.socket.getsockopt(zmq.FD))

    def answer() -> None:
        try:
            if not gate.socket.closed and gate.answer():
                loop.call_soon(answer)
        except Exception as error:
            loop.remove_reader(descriptor)
            gate.close()
            on_failure(error)

    loop.add_reader(descriptor, answer)
    answer()
    try:
        yield gate
    finally:
        loop.remove_reader(descriptor)
        gate.close()


async def prove_closed(context: Any, endpoint: str, server: str, timeout_s: float = 5.0) -> None:
    """Knock as a stranger: with a key nobody knows, and with none at all.

    Raises: InternalError when either is let in, or when no refusal comes in time.
    """
    stranger = keys.new_pair()
    for has_key in (True, False):
        socket = new_socket(context, zmq.DEALER)
        if has_key:
            socket.curve_serverkey = server.encode()
            socket.curve_publickey, socket.curve_secretkey = stranger.public.encode(), stranger.secret.encode()
        good = zmq.EVENT_HANDSHAKE_SUCCEEDED
        bad = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
        monitor: Any = socket.get_monitor_socket(good | bad | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        try:
            socket.connect(endpoint)
            event = await _first_event(monitor, timeout_s)
        finally:
            socket.disable_monitor()
            monitor.close()
            socket.close()
        if event is None or event == good:
            what = "with a strange key" if has_key else "without a key"
            raise InternalError(f"{endpoint} does not refuse a client {what}", "not serving; please report this")


async def _first_event(monitor: Any, timeout_s: float) -> int | None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while asyncio.get_running_loop().time() < deadline:
        if monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            return int(zmq.utils.monitor.recv_monitor_message(monitor)["event"])
        await asyncio.sleep(0.002)
    return None
