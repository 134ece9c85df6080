"""A file on its way, piece by piece, and what all parts of the mover need."""

from __future__ import annotations

import os
import re
from pathlib import Path

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
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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

    def arrived(self) -> None:
        self._there += 1

    @property
    def is_whole(self) -> bool:
        return self.size >= 0 and self._there * wire.CHUNK_BYTES >= max(self.size, 1)

    def restart(self) -> None:
        """Nothing that was asked for will come."""
        self._again += sorted(self.asked, reverse=True)
        self.asked.clear()


class Window:
    """The pieces of many files, asked for so that so many are under way; the oldest file first."""

    def __init__(self, pieces_max: int = WINDOW) -> None:
        #: Files that are not whole, by name.
        self.files: dict[str, Pieces] = {}
        self._pieces_max = pieces_max
        self._under_way = 0

    def ask(self) -> list[tuple[str, int]]:
        """Name and offset of what to ask for now. Cost: as many files are looked at as pieces may be under way."""
        found: list[tuple[str, int]] = []
        for name, pieces in self.files.items():
            while self._under_way < self._pieces_max and (offset := pieces.next()) is not None:
                self._under_way += 1
                found.append((name, offset))
            if self._under_way >= self._pieces_max:
                break
        return found

    def answered(self, name: str, offset: int) -> Pieces | None:
        """A piece came: of which file; None when it was not asked for."""
        pieces = self.files.get(name)
        if pieces is None or offset not in pieces.asked:
            return None
        pieces.asked.remove(offset)
        self._under_way -= 1
        return pieces

    def drop(self, name: str) -> None:
        """It is whole, or will not come."""
        self._under_way -= len(self.files.pop(name).asked)

    def restart(self) -> None:
        """Nothing that was asked for will come."""
        for pieces in self.files.values():
            pieces.restart()
        self._under_way = 0
