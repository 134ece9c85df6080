"""What master and scribe say to each other: length-prefixed msgpack over the scribe's standard input and output."""

from __future__ import annotations

import msgspec

from pilotq.core.records import Note
from pilotq.errors import InternalError

#: Bytes before each message: its length, big endian.
PREFIX_BYTES = 4
MESSAGE_BYTES_MAX = 64 << 20


class Wake(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the scribe: notes up to this number are committed."""

    n: int


class Hand(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the scribe: notes without an event, which need not be read; their commit may be on its way."""

    notes: list[Note]


class Retry(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the scribe: try these again, which had failed."""

    ns: list[int]


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the scribe: these are written. May be said twice, and of notes that are gone."""

    ns: list[int]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the scribe: this cannot be written until somebody changes something; it waits for `Retry`."""

    n: int
    errno: int
    #: A sentence with the path in it.
    reason: str
    #: "output", "error", "log", "note", or the name of an output file.
    what: str


ToScribe = Wake | Hand | Retry
FromScribe = Done | Failed

_encoder = msgspec.msgpack.Encoder()
_to_scribe = msgspec.msgpack.Decoder(ToScribe)
_from_scribe = msgspec.msgpack.Decoder(FromScribe)


def pack(message: ToScribe | FromScribe) -> bytes:
    data = _encoder.encode(message)
    return len(data).to_bytes(PREFIX_BYTES, "big") + data


def unpack_to_scribe(data: bytes) -> ToScribe:
    message: ToScribe = _to_scribe.decode(data)
    return message


def unpack_from_scribe(data: bytes) -> FromScribe:
    message: FromScribe = _from_scribe.decode(data)
    return message


def split(buffer: bytearray) -> list[bytes]:
    """Take all whole messages off the front of a buffer.

    Raises: InternalError when one is too long: the two do not understand each other.
    """
    found = []
    while len(buffer) >= PREFIX_BYTES:
        size = int.from_bytes(buffer[:PREFIX_BYTES], "big")
        if size > MESSAGE_BYTES_MAX:
            raise InternalError(f"a message of {size} bytes between master and scribe")
        end = PREFIX_BYTES + size
        if len(buffer) < end:
            break
        found.append(bytes(buffer[PREFIX_BYTES:end]))
        del buffer[:end]
    return found
