"""What the scribe is about to append to which log, so that each event is there exactly once after any crash.

Before an append its data, and the inode and size of the log, are committed here. After a restart the log is compared:
what is not there is written, what is there in part is finished, what is there is left alone.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pilotq.store import outbox

_SCHEMA = """
create table if not exists entry (
    n integer not null,
    proc integer not null,
    path text not null,
    device integer not null,
    inode integer not null,
    size integer not null,
    data blob not null,
    written integer not null,
    primary key (n, proc)
) without rowid;
"""


class Entry(NamedTuple):
    """One item's text on its way to a log."""

    n: int
    proc: int
    path: str
    device: int
    inode: int
    #: Of the log, just before; counting what earlier entries of the same write add.
    size: int
    data: bytes


#: What names an entry: note and first proc, this inverted when it is for the log of a DAG.
Key = tuple[int, int]


class _Batch:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.written: list[Key] = []
        self.gone: list[tuple[int]] = []
        self.is_committed = False
        self.error: OSError | None = None


class Journal:
    """Used by all threads; commits of several at a time become one."""

    def __init__(self, path: Path, queue: Path) -> None:
        #: `queue`: the store whose outbox says which notes still matter.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.executescript(_SCHEMA)
        self._queue = queue
        self._joining = threading.Lock()
        self._committing = threading.Lock()
        self._batch = _Batch()
        self._size = 0

    def load(self) -> tuple[set[Key], dict[str, list[Entry]]]:
        """What was written, and what may have been, by log, in order: of notes that are still in the outbox."""
        self.clean()
        rows = self._db.execute(
            "select n, proc, path, device, inode, size, data, written from entry order by n, proc"
        ).fetchall()
        self._size = len(rows)
        doubts: dict[str, list[Entry]] = {}
        for row in rows:
            if not row[-1]:
                doubts.setdefault(row[2], []).append(Entry(*row[:-1]))
        return {(row[0], row[1]) for row in rows if row[-1]}, doubts

    def intend(self, entries: Iterable[Entry]) -> None:
        """Returns when these are on disk.

        Raises: OSError ENOSPC when they cannot be; it may be tried again.
        """
        with self._joining:
            batch = self._batch
            batch.entries.extend(entries)
        # The first to come here commits for all who joined until then.
        with self._committing:
            if not batch.is_committed:
                with self._joining:
                    self._batch = _Batch()
                self._commit(batch)
        if batch.error is not None:
            raise batch.error

    def settle(self, keys: Iterable[Key]) -> None:
        """These are in their logs. Remembered with the next commit; until then a restart compares again."""
        with self._joining:
            self._batch.written.extend(keys)

    def flush(self) -> None:
        self.intend(())

    def _commit(self, batch: _Batch) -> None:
        batch.is_committed = True
        db = self._db
        try:
            db.execute("begin immediate")
            db.executemany("update entry set written = 1 where n = ? and proc = ?", batch.written)
            db.executemany("replace into entry values (?, ?, ?, ?, ?, ?, ?, 0)", batch.entries)
            db.executemany("delete from entry where n = ?", batch.gone)
            db.execute("commit")
            self._size += len(batch.entries)
        except sqlite3.OperationalError as error:
            if db.in_transaction:
                db.execute("rollback")
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            self.settle(batch.written)
            batch.error = OSError(errno.ENOSPC, "no space for the scribe's journal")

    @property
    def is_long(self) -> bool:
        return self._size > 5000

    def clean(self) -> None:
        """Forget the entries of notes that are not in the outbox any more."""
        with self._committing:
            known = {n for (n,) in self._db.execute("select distinct n from entry")}
            if not known:
                return
            queue = sqlite3.connect(f"file:{self._queue}?mode=ro", uri=True, timeout=10)
            try:
                waiting = {head.n for block in outbox.read(queue) for head in block.heads or ()}
            finally:
                queue.close()
            batch = _Batch()
            batch.gone = [(n,) for n in known - waiting]
            self._commit(batch)
            (self._size,) = self._db.execute("select count(*) from entry").fetchone()

    def close(self) -> None:
        self._db.close()
