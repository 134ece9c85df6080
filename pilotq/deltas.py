"""What differs between the procs of a cluster: for each one a packed map, its *delta*, kept in blocks.

A million deltas differ by little more than the words of their items. So a block holds *forms*, packed maps with holes
in their texts, and for each proc the number of its form and the texts for the holes. They are put in when somebody asks
for the delta; the master does just before the task is sent.

A packed block is an array of two: the packed forms, and a row for each proc: number of its form, texts.
A packed form is an array of pieces: bytes of the delta as they are; or an array that makes up one text, of texts and of
positions in the row.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

#: Procs whose deltas are in one block.
DELTA_BLOCK = 1000
#: In a value a form is made of: stand for the texts it is filled in with, in their order.
HOLES = tuple(f"\x00{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
#: Longest text for a hole.
TEXT_MAX = 200

_HOLE = re.compile("\x00([A-Z])")
_HOLE_PACKED = re.compile(b"\x00[A-Z]")
_Pieces = list[bytes | list[str | int]]

_encode = msgspec.msgpack.Encoder().encode
_decode_form = msgspec.msgpack.Decoder(_Pieces).decode
_decode_block = msgspec.msgpack.Decoder(tuple[list[bytes], list[tuple[str | int, ...]]]).decode
#: As many characters as may be put into a hole, of the longest kind.
_LONGEST = "\U0001f6b0" * TEXT_MAX


class Form:
    """What the deltas of many procs have in common; made of a map with marks (`HOLES`) in it."""

    __slots__ = ("holes", "packed")

    def __init__(self, packed: bytes, holes: tuple[int, ...] = ()) -> None:
        self.packed = packed
        #: Which of the texts of a row it takes, in this order.
        self.holes = holes

    @staticmethod
    def of(delta: dict[str, Any]) -> Form:
        """Raises: UnicodeEncodeError."""
        holes: dict[int, int] = {}
        pieces: _Pieces = []
        _take_apart(delta, holes, pieces)
        return Form(_encode(pieces), tuple(holes))

    @staticmethod
    def whole(delta: bytes) -> Form:
        """A delta without holes, packed."""
        return Form(_encode([delta]))


def _take_apart(value: Any, holes: dict[int, int], pieces: _Pieces) -> None:
    packed = _encode(value)
    if _HOLE_PACKED.search(packed) is None:
        _add_fixed(packed, pieces)
    elif isinstance(value, dict):
        _add_fixed(_head(len(value), 0x80, 0xDE), pieces)
        for name, item in value.items():
            _take_apart(name, holes, pieces)
            _take_apart(item, holes, pieces)
    elif isinstance(value, list):
        _add_fixed(_head(len(value), 0x90, 0xDC), pieces)
        for item in value:
            _take_apart(item, holes, pieces)
    elif isinstance(value, str):
        # Texts, and letters of marks in between. Position 0 of a row is the form's number.
        parts: list[str | int] = [*_HOLE.split(value)]
        for at in range(1, len(parts), 2):
            number = ord(str(parts[at])) - ord("A")
            parts[at] = 1 + holes.setdefault(number, len(holes))
        pieces.append([part for part in parts if part != ""])
    else:
        _add_fixed(packed, pieces)


def _add_fixed(packed: bytes, pieces: _Pieces) -> None:
    last = pieces[-1] if pieces else None
    if isinstance(last, bytes):
        pieces[-1] = last + packed
    else:
        pieces.append(packed)


def _head(count: int, short: int, long: int) -> bytes:
    """Of a map or an array. Source: the MessagePack specification."""
    return bytes([short | count]) if count < 16 else struct.pack(">BI", long + 1, count)


class Blocks:
    """Packs the deltas of a cluster, one proc after the other."""

    def __init__(self) -> None:
        self.count = 0
        self._full: list[bytes] = []
        self._forms: dict[bytes, int] = {}
        self._rows: list[list[int | str]] = []

    def add(self, form: Form, texts: Sequence[str] = (), count: int = 1) -> None:
        """So many procs that are alike; `texts` by the place of their marks in `HOLES`."""
        self.count += count
        while count:
            some = min(count, DELTA_BLOCK - len(self._rows))
            number = self._forms.setdefault(form.packed, len(self._forms))
            row: list[int | str] = [number, *[texts[hole] for hole in form.holes]]
            self._rows += [row] * some
            if len(self._rows) == DELTA_BLOCK:
                self._full.append(_encode((list(self._forms), self._rows)))
                self._forms, self._rows = {}, []
            count -= some

    def packed(self) -> list[bytes]:
        return [*self._full, _encode((list(self._forms), self._rows))] if self._rows else self._full


class Block:
    """A block unpacked: the deltas of some procs.

    Raises: msgspec.MsgspecError for what is none.
    """

    def __init__(self, packed: bytes) -> None:
        forms, self._rows = _decode_block(packed)
        self._forms = [_decode_form(form) for form in forms]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        row: Any = self._rows[index]
        return _fill(self._forms[row[0]], row)

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self._rows)))

    def samples(self) -> Iterator[bytes]:
        """For each form a delta as long as it may become."""
        row = [_LONGEST] * (1 + len(HOLES))
        for form in self._forms:
            yield _fill(form, row)


def _fill(form: _Pieces, row: Sequence[Any]) -> bytes:
    # The master does this for every task it sends, therefore so plainly.
    delta = b""
    for piece in form:
        if isinstance(piece, bytes):
            delta += piece
            continue
        text = ""
        for part in piece:
            text += part if isinstance(part, str) else row[part]
        delta += _encode(text)
    return delta


def each_delta(blocks: list[bytes]) -> Iterator[bytes]:
    """In the order of procs."""
    for packed in blocks:
        yield from Block(packed)


def find_delta(blocks: list[bytes], proc: int) -> bytes:
    """The delta of one proc; empty when the cluster has none."""
    return Block(blocks[proc // DELTA_BLOCK])[proc % DELTA_BLOCK] if blocks else b""
