"""What worker and keeper say to each other over their socket pair: 4 bytes of length, then one msgpack array."""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from pilotq.model import Ended, Outcome
from pilotq.wire import Token

_LENGTH = struct.Struct("<I")
_ROOM = bytes(_LENGTH.size)
#: Bytes taken from the socket at once, about what it holds.
_CHUNK = 1 << 18
#: A description, a delta, small files: far below this. Who says more is not to be believed.
MESSAGE_BYTES_MAX = 64 << 20


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# ---- worker to keeper ------------------------------------------------------------------------------------------


class Launch(_Message, frozen=True):
    """Run this attempt."""

    token: Token
    #: Packed `Description`, and packed map of what differs for this proc (may be empty).
    description: bytes
    delta: bytes
    #: Directory to be made; its parent exists.
    sandbox: str
    #: Directory of kept files, by digest.
    cache: str
    #: Added to the environment of the description.
    env: dict[str, str]
    #: Content of _CONDOR_MACHINE_AD.
    machine_ad: str
    #: Start when that attempt is over; at once when it is not here (any more).
    after: Token | None = None
    #: Files that are not in the cache, by digest.
    inline: dict[str, Any] = {}


class End(_Message, frozen=True):
    """End it: its signal, the grace, SIGKILL. Of no effect on an attempt whose processes have ended."""

    token: Token
    outcome: Outcome
    #: None: the grace of its description.
    grace_s: float | None
    #: By the signal for a removal.
    removed: bool = False


class Suspend(_Message, frozen=True):
    """Stop all its processes, or let them go on."""

    token: Token
    on: bool


class Return(_Message, frozen=True):
    """Give it back (`Returned`) when it still waits for the one before it; else of no effect."""

    token: Token


class GoOn(_Message, frozen=True):
    """What waits for this one, which failed, may begin."""

    token: Token


class Discard(_Message, frozen=True):
    """Remove the sandbox; as soon as it ended when it has not."""

    token: Token
    sandbox: str


# ---- keeper to worker ------------------------------------------------------------------------------------------


class Ready(_Message, frozen=True):
    """I can be told what to do."""


class Launched(_Message, frozen=True):
    """The payload runs. Of one that ends soon only `Exited` is said."""

    token: Token
    pid: int


class Exited(_Message, frozen=True):
    """It ended; no process of it is left."""

    token: Token
    ended: Ended
    #: Its sandbox has outputs that must be pulled, and stays until `Discard`; else it is gone.
    kept: bool = False
    #: CLOCK_MONOTONIC: when its payload was started, or failed to.
    began_at: float = 0.0


class Returned(_Message, frozen=True):
    """It was not started and never will be: as if it had not come."""

    token: Token


Order = Launch | End | Suspend | Return | GoOn | Discard
Event = Ready | Launched | Exited | Returned
orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)

T = TypeVar("T")


class Pipe(Generic[T]):
    """Messages over a non-blocking stream socket. Order: `put` any number, then `flush`."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()
        #: What came is in front of `_filled`.
        self._in = bytearray(_CHUNK)
        self._filled = 0
        #: What is to be sent begins at `_sent`.
        self._out = bytearray()
        self._sent = 0

    def put(self, message: Any) -> None:
        out = self._out
        if self._sent > _CHUNK:
            del out[: self._sent]
            self._sent = 0
        at = len(out)
        out += _ROOM
        self._encoder.encode_into(message, out, at + _LENGTH.size)
        _LENGTH.pack_into(out, at, len(out) - at - _LENGTH.size)

    def flush(self) -> bool:
        """Send what the socket takes; True when nothing is left to be sent.

        Raises: OSError when the other side is gone.
        """
        out = self._out
        with memoryview(out) as view:
            while self._sent < len(out):
                try:
                    self._sent += self.sock.send(view[self._sent :])
                except BlockingIOError:
                    return False
        self._sent = 0
        out.clear()
        return True

    def get(self) -> list[T] | None:
        """All complete messages that came; None when the other side is gone, or says something too long."""
        buffer = self._in
        try:
            with memoryview(buffer) as view:
                count = self.sock.recv_into(view[self._filled :])
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not count:
            return None
        found: list[T] = []
        at, filled, end = 0, self._filled + count, 0
        with memoryview(buffer) as view:
            while filled - at >= _LENGTH.size:
                size = _LENGTH.unpack_from(view, at)[0]
                if size > MESSAGE_BYTES_MAX:
                    return None
                end = at + _LENGTH.size + size
                if end > filled:
                    break
                found.append(self._decoder.decode(view[at + _LENGTH.size : end]))
                at = end
            if at:
                view[: filled - at] = view[at:filled]
        self._filled = filled - at
        if end - at > len(buffer):
            buffer += bytes(end - at - len(buffer))
        return found
