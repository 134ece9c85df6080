"""How notes lie in the outbox: those of a cluster that came in one commit are a block.

The heads of a block say of each note what it is for, so that nobody reads the outputs of a note before they are to be
written. A block goes when all of its notes are written; until then those of them that are stand in `outbox_done`.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from pilotq.core.records import Note
from pilotq.model import Facts, OutputFile
from pilotq.store import checksum, is_sound
from pilotq.store.scanning import Scan, flipped

#: Notes of one block, and about so many bytes of their outputs: who wants one of them reads them all.
NOTES_MAX = 500
_BYTES_MAX = 1 << 20
#: In place of the cluster of a block that cannot be read.
UNREAD = 0


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a note is for, without what is in it."""

    n: int
    event: int
    proc: int
    count: int
    attempt: int
    final: bool


class Block(NamedTuple):
    """Notes of a cluster that are not written. `heads` is None when they cannot be read."""

    n: int
    cluster: int
    heads: list[Head] | None


_pack = msgspec.msgpack.Encoder().encode
_unpack_heads = msgspec.msgpack.Decoder(list[Head]).decode
_unpack_body = msgspec.msgpack.Decoder(list[tuple[float, Facts, list[OutputFile]]]).decode


def blocks(notes: list[Note]) -> Iterator[list[Note]]:
    """Notes of one cluster in parts that are a row each."""
    start = size = 0
    for at, note in enumerate(notes):
        more = sum([len(output.data or b"") for output in note.outputs])
        if at - start == NOTES_MAX or (size and size + more > _BYTES_MAX):
            yield notes[start:at]
            start, size = at, 0
        size += more
    yield notes[start:]


def block_of(notes: list[Note]) -> Block:
    """Notes that will be a row, as they are read from it."""
    heads = [Head(note.n, note.event, note.proc, note.count, note.attempt, note.final) for note in notes]
    return Block(notes[0].n, notes[0].cluster, heads)


def row(notes: list[Note]) -> tuple[Any, ...]:
    """A block as a row of the table."""
    heads = [(note.n, note.event, note.proc, note.count, note.attempt, note.final) for note in notes]
    head = (notes[0].n, notes[0].cluster, _pack(heads))
    body = _pack([(note.at, note.facts, note.outputs) for note in notes])
    return *head, checksum(head), body, zlib.crc32(body)


def read(db: sqlite3.Connection, after: int = -1, limit: int = -1) -> list[Block]:
    """Blocks after this one, in order, with what is not written of them."""
    scan = Scan(db, "outbox", "n", "n, cluster, heads, crc", f"n > {after}")
    found = list(islice(scan, limit if limit >= 0 else None))
    lost = [Block(n, UNREAD, None) for (n,) in scan.lost]
    if not found:
        return lost
    done = _written(db, found[0][0], found[-1][0])
    return sorted([*lost, *[_block(row, done) for row in found]])


def _block(row: tuple[Any, ...], done: set[int]) -> Block:
    n, number, packed, crc = row
    if checksum(row[:-1]) != crc:
        mended = next((columns for columns in flipped(row[:-1]) if checksum(columns) == crc), row)
        return Block(n, mended[1], None)
    heads = _unpack_heads(packed)
    return Block(n, number, [head for head in heads if head.n not in done] if done else heads)


def _written(db: sqlite3.Connection, first: int, last: int) -> set[int]:
    """Notes of these blocks that are written. One that is not known to be is written again."""
    found: set[int] = set()
    for block, n, crc in Scan(db, "outbox_done", "block, n", "block, n, crc", f"block between {first} and {last}"):
        row = [block, n]
        if checksum(row) != crc:
            row = next((columns for columns in flipped(row) if checksum(columns) == crc), row)
        found.add(row[1])
    return found


def damaged_marks(db: sqlite3.Connection) -> list[int]:
    """Blocks of which it is not known for sure which notes are written."""
    scan = Scan(db, "outbox_done", "block, n", "block, n, crc")
    damaged = [block for block, n, crc in scan if checksum((block, n)) != crc]
    return damaged + [block for block, _ in scan.lost]


def notes(db: sqlite3.Connection, wanted: list[int]) -> dict[int, Note | None]:
    """All notes of these blocks by number; a damaged block is None under its own."""
    found: dict[int, Note | None] = {}
    some = f"n in ({', '.join(map(str, wanted))})"
    scan = Scan(db, "outbox", "n", "n, cluster, heads, crc, body, body_crc", some)
    for n, number, heads, crc, body, body_crc in scan:
        if checksum((n, number, heads)) != crc or not is_sound(body, body_crc):
            found[n] = None
            continue
        for head, (at, facts, outputs) in zip(_unpack_heads(heads), _unpack_body(body), strict=True):
            found[head.n] = Note(
                head.n, head.event, number, head.proc, head.count, at, facts, outputs, head.attempt, head.final
            )
    return found | dict.fromkeys([n for (n,) in scan.lost])


class Waiting:
    """The writer's memory of the outbox: the notes that are not written, and their blocks."""

    def __init__(self) -> None:
        self._block_of: dict[int, int] = {}
        #: How many of each block.
        self._left: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def add(self, block: int, ns: list[int]) -> None:
        self._block_of.update(dict.fromkeys(ns, block))
        self._left[block] = len(ns)

    def done(self, ns: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """These are written: those whose block stays, as (block, note), and the blocks that go."""
        touched: dict[int, list[int]] = {}
        for n in ns:
            block = self._block_of.pop(n, None)
            if block is not None:
                touched.setdefault(block, []).append(n)
        staying: list[tuple[int, int]] = []
        going: list[int] = []
        for block, own in touched.items():
            self._left[block] -= len(own)
            if self._left[block]:
                staying += [(block, n) for n in own]
            else:
                del self._left[block]
                going.append(block)
        return staying, going
