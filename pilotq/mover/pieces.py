"""A file on its way, piece by piece, and what all parts of the mover need."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pilotq import wire
from pilotq.errors import PeerError

#: Requests for pieces that a consumer has under way at once.
WINDOW = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def checked(digest: str) -> str:
    """Raises: PeerError when it is not a sha256 in hexadecimal: it becomes a path."""
    if not is_digest(digest):
        raise PeerError("not a digest")
    return digest


def sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def piece(path: Path, offset: int, length: int) -> tuple[int, bytes]:
    """Size of a file and a piece of it; (-1, nothing) when it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1, b""
    try:
        return os.fstat(descriptor).st_size, os.pread(descriptor, max(0, length), max(0, offset))
    except (OSError, OverflowError):
        return -1, b""
    finally:
        os.close(descriptor)


class Pieces:
    """Which pieces of a file are asked for, and which are there."""

    def __init__(self, size: int) -> None:
        #: -1 until the first piece tells.
        self.size = size
        self.asked: set[int] = set()
        self._there = 0
        self._next = 0
        self._again: list[int] = []

    def next(self) -> int | None:
        """The offset to ask for next."""
        if self._again:
            offset = self._again.pop()
        elif self._next < max(self.size, 1):
            offset = self._next
            self._next += wire.CHUNK_BYTES
        else:
            return None
        self.asked.add(offset)
        return offset

    def length(self, offset: int) -> int:
        """Bytes of a piece."""
        return min(wire.CHUNK_BYTES, self.size - offset)

    def arrived(self, offset: int) -> None:
        self.asked.remove(offset)
        self._there += 1

    @property
    def is_whole(self) -> bool:
        return self.size >= 0 and self._there * wire.CHUNK_BYTES >= max(self.size, 1)

    def restart(self) -> None:
        """Nothing that was asked for will come."""
        self._again += sorted(self.asked, reverse=True)
        self.asked.clear()


def ask(all_pieces: Iterable[tuple[Any, Pieces]], window: int) -> Iterator[tuple[Any, int]]:
    """Name and offset of what to ask for, oldest first, so that a window is under way."""
    named = list(all_pieces)
    room = window - sum(len(pieces.asked) for _, pieces in named)
    for name, pieces in named:
        while room > 0 and (offset := pieces.next()) is not None:
            room -= 1
            yield name, offset
