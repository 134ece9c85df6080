"""Reading a table to its end although single rows of it cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

#: Bits of a number that are tried in search of one that is wrong.
_BITS = 48


class DamageError(sqlite3.DatabaseError):
    """Found by us; to be told like what SQLite finds."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    sqlite_errorname = "SQLITE_CORRUPT"


def lenient(db: sqlite3.Connection) -> sqlite3.Connection:
    """Text that is no UTF-8 is damage that a checksum will tell, not an error."""
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    return db


class Scan:
    """The rows of a table in the order of its key; what SQLite cannot decode is passed over.

    Raises: sqlite3.DatabaseError when not even the keys can be read: then it is not single rows that are damaged.
    """

    def __init__(self, db: sqlite3.Connection, table: str, key: str, columns: str, where: str = "1") -> None:
        """`key` and `columns` are names with commas between them; the key is unique."""
        self._db = db
        self._size = key.count(",") + 1
        marks = ", ".join("?" * self._size)
        rest = f"from {table} where {where} and ({key}) > ({marks}) order by {key}"
        self._rows = f"select {key}, {columns} {rest}"
        self._next = f"select {key} {rest} limit 1"
        #: Keys of the rows that were passed over.
        self.lost: list[tuple[Any, ...]] = []

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Rows without what only orders them."""
        size = self._size
        last: tuple[Any, ...] = (-(1 << 63),) * size
        #: Of the row that comes next.
        failure: sqlite3.DatabaseError | None = None
        while True:
            try:
                for row in self._db.execute(self._rows, last):
                    if failure is not None:
                        break
                    last = row[:size]
                    yield row[size:]
                if failure is None:
                    return
            except sqlite3.DatabaseError as error:
                failure = error
            else:
                # Not found by its key: rows are not where they belong.
                raise failure
            found = self._db.execute(self._next, last).fetchone()
            if found is None or not all(isinstance(part, int) for part in found):
                raise failure
            # Rows are read ahead: the error may be of the one after it.
            row = self._alone(last)
            last = tuple(found)
            if row is None:
                self.lost.append(last)
                failure = None
            else:
                yield row[size:]

    def _alone(self, last: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The row after this key, when it can be read."""
        try:
            row: tuple[Any, ...] | None = self._db.execute(f"{self._rows} limit 1", last).fetchone()
        except sqlite3.DatabaseError:
            return None
        return row


def flipped(columns: Sequence[Any]) -> Iterator[list[Any]]:
    """The same with one bit of one number the other way round, for all numbers but the first, which names the row."""
    for place, value in enumerate(columns):
        if place and isinstance(value, int):
            for bit in range(_BITS):
                yield [*columns[:place], value ^ 1 << bit, *columns[place + 1 :]]
