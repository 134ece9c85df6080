"""The log beside the database, looked at before SQLite reads it.

SQLite takes a log up to the first frame whose checksum is wrong, and forgets the rest without a word: right for what a
crash cut short, wrong for a flipped bit in what was acknowledged. Here a flipped bit is found by the checksum and
turned back; and what the index of the log (`-shm`) knows to have been committed must still be there.

Source: SQLite file format, chapter 4, and the WAL-index format.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

_IS_BIG = sys.byteorder == "big"
_PAGE = 4096
#: How a log of ours begins: a number that tells the byte order of checksums, the version, and the size of a page.
_KNOWN = struct.pack(">3I", 0x377F0682 | _IS_BIG, 3007000, _PAGE)
_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MASK = 0xFFFFFFFF
#: Bytes of one copy of the head of the index.
_INDEX = 48


class Log(NamedTuple):
    """What is known of a log."""

    #: Frames that SQLite will take.
    taken: int
    #: Frames that had been committed, as its index says.
    committed: int
    #: What makes SQLite take them all: offset of a byte, and what it must be.
    flips: list[tuple[int, int]]
    #: The head of its index, as it was.
    head: bytes

    @property
    def lost(self) -> int:
        """Frames that were committed and cannot be had any more."""
        return max(0, self.committed - self.taken)


def look(database: Path) -> Log:
    """Look at the log of a database that nobody has open. If something is lost, `remember` it.

    Raises: sqlite3.Error; OSError.
    """
    path, index = (database.with_name(database.name + end) for end in ("-wal", "-shm"))
    data = path.read_bytes() if path.is_file() else b""
    before = index.read_bytes()[: 2 * _INDEX] if index.is_file() else b""
    committed, taken, flips = _committed(before, data), 0, list[tuple[int, int]]()
    if len(data) > _HEADER.size:
        taken = _taken(database, index, data)
        reading = _Reading(data)
        if reading.frames > taken or committed > taken:
            taken, flips = max(taken, reading.read()), reading.flips
    return Log(taken, committed, flips, before)


def remember(database: Path, log: Log) -> None:
    """SQLite has made its index match what it takes: let it tell again what had been committed."""
    with database.with_name(database.name + "-shm").open("r+b") as file:
        file.write(log.head)


def _taken(database: Path, index: Path, data: bytes) -> int:
    """Frames that SQLite takes."""
    address = f"file:{quote(str(database.absolute()))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as db:
        db.execute("begin")
        db.execute("pragma schema_version").fetchone()
        return _committed(index.read_bytes()[: 2 * _INDEX], data)


def mend(database: Path, flips: list[tuple[int, int]]) -> None:
    """Turn bits back, durably; before SQLite opens the database."""
    descriptor = os.open(database.with_name(database.name + "-wal"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset, byte in flips:
            os.pwrite(descriptor, bytes((byte,)), offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _committed(index: bytes, log: bytes) -> int:
    """Frames that were committed, as the index has it; 0 when it is not about this log."""
    # Two copies, which differ while it is being changed; byte 12 says that it was made at all.
    if len(index) < 2 * _INDEX or index[:_INDEX] != index[_INDEX:] or not index[12]:
        return 0
    if len(log) >= _HEADER.size and _distance(index[32:40], log[16:24]) > 1:
        return 0
    return int.from_bytes(index[16:20], sys.byteorder)


class _Reading:
    """One pass over a log, in which single wrong bits are turned back.

    Two chains of checksums run through it: as the frames were written, and as they will be when one of them holds a
    wrong bit that cannot be told from another. Such a bit stays, and the checksum of its row will tell.
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)
        self.flips: list[tuple[int, int]] = []
        self._size = _FRAME.size + _PAGE
        self._salts = b""
        self._read_header()
        #: Frames of this log, by their salts: others are of an earlier one.
        self.frames = 0
        for offset in self._offsets():
            if _distance(self._data[offset + 8 : offset + 16], self._salts) > 1:
                break
            self.frames += 1

    def _offsets(self) -> Iterator[int]:
        return iter(range(_HEADER.size, len(self._data) - self._size + 1, self._size))

    def _read_header(self) -> None:
        """Most of it is known from elsewhere."""
        self._write(0, _KNOWN)
        salts = self._data[_HEADER.size + 8 : _HEADER.size + 16]
        if _distance(salts, self._data[16:24]) == 1:
            self._write(16, salts)
        self._salts = bytes(self._data[16:24])
        sums, stored = self._sum(0, (0, 0)), self._stored(24)
        if sums == stored:
            return
        if self._leads_on(0, sums):
            self._write(24, struct.pack(">2I", *sums))
            return
        places = self._search(0, sums, stored)
        if len(places) == 1:
            self._turn(places[0])

    def read(self) -> int:
        """How many frames there are up to the last commit that can be had, after `flips`."""
        taken = 0
        before = after = self._stored(24)
        for number, offset in enumerate(self._offsets(), 1):
            if number > self.frames:
                break
            self._write(offset + 8, self._salts)
            is_same = before == after
            found = self._mended(offset, before)
            if found is None:
                break
            before = found
            after = self._sum(offset, after)
            if not is_same or after != before:
                self._write(offset + 16, struct.pack(">2I", *after))
            if self._data[offset + 4 : offset + 8] != bytes(4):
                taken = number
        return taken

    def _mended(self, offset: int, seed: tuple[int, int]) -> tuple[int, int] | None:
        """The checksums that a frame was written with; None when more than a bit of it is wrong."""
        sums, stored = self._sum(offset, seed), self._stored(offset + 16)
        if sums == stored:
            return sums
        if _distance(struct.pack(">2I", *sums), struct.pack(">2I", *stored)) == 1 and self._leads_on(offset, sums):
            self._write(offset + 16, struct.pack(">2I", *sums))
            return sums
        places = self._search(offset, sums, stored)
        if len(places) == 1:
            self._turn(places[0])
        return stored if places else None

    def _leads_on(self, offset: int, sums: tuple[int, int]) -> bool:
        """Are these the checksums before the next frame; or is there none?"""
        following = offset + self._size if offset else _HEADER.size
        if following + self._size > len(self._data) or self._data[following + 8 : following + 16] != self._salts:
            return True
        return self._sum(following, sums) == self._stored(following + 16)

    def _search(self, offset: int, sums: tuple[int, int], stored: tuple[int, int]) -> list[tuple[int, int]]:
        """Byte and mask of each single bit that explains these checksums."""
        places, words = self._places(offset), self._words(offset)
        unknown = range(len(words)) if offset else (3,)
        missing = (stored[0] - sums[0] & _MASK, stored[1] - sums[1] & _MASK)
        found = []
        effects = ((1, 1), (0, 1))
        for pair in range(len(words) // 2 - 1, -1, -1):
            for index, (one, two) in zip((2 * pair, 2 * pair + 1), effects, strict=True):
                for bit in range(32) if index in unknown else ():
                    change = -(1 << bit) if words[index] >> bit & 1 else 1 << bit
                    if (change * one & _MASK, change * two & _MASK) == missing:
                        byte = 3 - bit // 8 if _IS_BIG else bit // 8
                        found.append((places[index] + byte, 1 << bit % 8))
            effects = (_step(effects[0]), _step(effects[1]))
        return found

    def _places(self, offset: int) -> list[int]:
        """Where each word lies that the checksums of the header, or of a frame, are over."""
        if not offset:
            return list(range(0, 24, 4))
        return [offset, offset + 4, *range(offset + _FRAME.size, offset + self._size, 4)]

    def _words(self, offset: int) -> array[int]:
        if offset:
            page = self._data[offset + _FRAME.size : offset + self._size]
            words = array("I", bytes(self._data[offset : offset + 8] + page))
        else:
            words = array("I", bytes(self._data[:24]))
        return words

    def _sum(self, offset: int, seed: tuple[int, int]) -> tuple[int, int]:
        one, two = seed
        words = self._words(offset)
        for left, right in zip(words[::2], words[1::2], strict=True):
            one = one + left + two & _MASK
            two = two + right + one & _MASK
        return one, two

    def _stored(self, offset: int) -> tuple[int, int]:
        first, second = struct.unpack_from(">2I", self._data, offset)
        return first, second

    def _turn(self, place: tuple[int, int]) -> None:
        offset, mask = place
        self._write(offset, bytes((self._data[offset] ^ mask,)))

    def _write(self, offset: int, right: bytes | bytearray) -> None:
        for place, byte in enumerate(right, offset):
            if self._data[place] != byte:
                self._data[place] = byte
                self.flips.append((place, byte))


def _step(effect: tuple[int, int]) -> tuple[int, int]:
    """What a change of the checksums comes to two words later."""
    one = effect[0] + effect[1] & _MASK
    return one, effect[1] + one & _MASK


def _distance(left: bytes | bytearray, right: bytes | bytearray) -> int:
    """Bits in which they differ."""
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).bit_count()
