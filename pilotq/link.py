"""ZeroMQ sockets in the event loop: batches of (session, payload) pairs, CURVE on all of them.

A socket is drained when its descriptor says so, and looked at again after every send: the descriptor of a ZeroMQ
socket is edge-triggered. Messages of one turn to one peer leave as one multipart message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import zmq
import zmq.utils.monitor

from pilotq import keys, wire
from pilotq.errors import InternalError, UserError

Socket = Any
#: Messages read in a row before others get a turn.
READ_MAX = 200
#: Multipart messages that may wait for one peer; credits keep the real number far below.
QUEUE_MAX = 50_000


def new_socket(context: Any, kind: int) -> Socket:
    """A socket with the options that all of ours share."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = QUEUE_MAX
    socket.maxmsgsize = wire.PAYLOAD_BYTES_MAX + 1024
    socket.handshake_ivl = 5_000
    socket.heartbeat_ivl, socket.heartbeat_timeout = 10_000, 30_000
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

    def start(self) -> None:
        self.loop.add_reader(self.socket.getsockopt(zmq.FD), self._readable)
        self._readable()

    def _readable(self) -> None:
        for _ in range(READ_MAX):
            if self.closed or not self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                return
            try:
                self._read()
            except Exception:
                # The descriptor will not tell of what is left: come back for it.
                self._look_again()
                raise
        self._look_again()

    def _look_again(self) -> None:
        if not self._reading and not self.closed:
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

    `on_batch(peer, user, frames)` gets what came: user is "role:name" of the connection's key, frames alternate session
    and payload. `on_lost(peer)` tells that a peer cannot be sent to any more.
    """

    def __init__(
        self,
        context: Any,
        pair: keys.KeyPair,
        on_batch: Callable[[bytes, str, list[bytes]], None],
        on_lost: Callable[[bytes], None],
    ) -> None:
        super().__init__(context, zmq.ROUTER)
        self._on_batch, self._on_lost = on_batch, on_lost
        self._out: dict[bytes, list[bytes]] = {}
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

    def send(self, peer: bytes, session: bytes, payload: bytes) -> None:
        """Queue a payload until `flush`."""
        waiting = self._out.get(peer)
        if waiting is None:
            waiting = self._out[peer] = []
        waiting += (session, payload)

    def flush(self) -> None:
        if not self._out or self.closed:
            return
        out, self._out = self._out, {}
        for peer, frames in out.items():
            for start in range(0, len(frames), wire.BATCH_FRAMES_MAX):
                try:
                    self.socket.send_multipart([peer, *frames[start : start + wire.BATCH_FRAMES_MAX]], zmq.NOBLOCK)
                except zmq.ZMQError:
                    # Not connected any more, or so far behind that it broke its credit: its session is over.
                    self._on_lost(peer)
                    break
        self._look_again()

    def _read(self) -> None:
        frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        if len(frames) < 3 or len(frames) % 2 == 0 or len(frames) > wire.BATCH_FRAMES_MAX + 1:
            return
        try:
            user = frames[-1].get("User-Id")
        except zmq.ZMQError:
            return
        peer, *rest = [frame.bytes for frame in frames]
        self._on_batch(peer, str(user), rest)


class Dialer(_Link):
    """A CURVE client: a worker's or foreman's side towards the one above.

    `on_batch(frames)` gets what came, `on_lost()` is called when the connection breaks or our key is refused.
    """

    def __init__(
        self,
        context: Any,
        endpoint: str,
        server: str,
        token: keys.Token,
        on_batch: Callable[[list[bytes]], None],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(context, zmq.DEALER)
        self.endpoint = endpoint
        self._on_batch, self._on_lost = on_batch, on_lost
        self._out: list[bytes] = []
        socket = self.socket
        socket.curve_serverkey = server.encode()
        socket.curve_publickey, socket.curve_secretkey = token.public.encode(), token.secret.encode()
        socket.reconnect_ivl, socket.reconnect_ivl_max = 200, 2_000
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        self._monitor: Any = socket.get_monitor_socket(events)
        self.loop.add_reader(self._monitor.getsockopt(zmq.FD), self._watch)
        socket.connect(endpoint)
        # The descriptor tells of changes only after its state was asked for once.
        self._watch()

    def _watch(self) -> None:
        while not self.closed and self._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            zmq.utils.monitor.recv_monitor_message(self._monitor)
            self._on_lost()

    def send(self, session: bytes, payload: bytes) -> None:
        """Queue a payload until `flush`."""
        self._out += (session, payload)

    def flush(self) -> None:
        if not self._out or self.closed:
            return
        out, self._out = self._out, []
        for start in range(0, len(out), wire.BATCH_FRAMES_MAX):
            try:
                self.socket.send_multipart(out[start : start + wire.BATCH_FRAMES_MAX], zmq.NOBLOCK)
            except zmq.ZMQError:
                self._on_lost()
                break
        self._look_again()

    def _read(self) -> None:
        frames = self.socket.recv_multipart(zmq.NOBLOCK)
        if len(frames) % 2 == 0:
            self._on_batch(frames)

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(ValueError, OSError):
                self.loop.remove_reader(self._monitor.getsockopt(zmq.FD))
            self.socket.disable_monitor()
            self._monitor.close()
            super().close()


@contextlib.contextmanager
def serving(authenticator: keys.Authenticator) -> Iterator[keys.Authenticator]:
    """Answer ZAP questions in the running loop; closes the authenticator at the end."""
    loop = asyncio.get_running_loop()
    descriptor = int(authenticator.socket.getsockopt(zmq.FD))
    loop.add_reader(descriptor, authenticator.answer)
    authenticator.answer()
    try:
        yield authenticator
    finally:
        loop.remove_reader(descriptor)
        authenticator.close()


async def prove_closed(context: Any, port: int, server: str, timeout_s: float = 5.0) -> None:
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
            socket.connect(f"tcp://127.0.0.1:{port}")
            event = await _first_event(monitor, timeout_s)
        finally:
            socket.disable_monitor()
            monitor.close()
            socket.close()
        if event is None or event == good:
            what = "with a strange key" if has_key else "without a key"
            raise InternalError(f"port {port} does not refuse a client {what}", "not serving; please report this")


async def _first_event(monitor: Any, timeout_s: float) -> int | None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while asyncio.get_running_loop().time() < deadline:
        if monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            return int(zmq.utils.monitor.recv_monitor_message(monitor)["event"])
        await asyncio.sleep(0.002)
    return None
