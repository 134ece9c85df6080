"""Small kept files of the head, together in one database: many are made durable by one sync.

Files that come together are packed into one row, as they will be wanted together.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pilotq.errors import UnavailableError
from pilotq.wire import Buffer

_SCHEMA = (
    "create table if not exists pack (id integer primary key autoincrement, data blob not null) strict",
    "create table if not exists small (digest blob primary key, kept_at integer not null, pack integer not null,"
    " at integer not null, size integer not null) strict, without rowid",
)
_PRAGMAS = ("page_size=32768", "journal_mode=wal", "synchronous=full", f"journal_size_limit={64 << 20}")
#: Files of one pack have so many bytes, unless it is one.
_PACK_BYTES = 128 << 10
#: Packs that were read last stay in memory.
_PACKS = 4
#: Files that one statement finds.
_FOUND_AT_ONCE = 250
#: Rows that a sweep removes in one transaction.
_SWEPT_AT_ONCE = 500


class KeptFilesBroken(UnavailableError):  # noqa: N818
    """The disk did not sync; what it has is not known, and another try would say that all is well: the process ends."""

    exit_code = 70


class _Connection:
    """A connection for one thread at a time; made when it is needed, so that a full disk stops nobody else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        return self._db is not None

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """Raises: sqlite3.Error."""
        with self._lock:
            if self._db is None:
                self._db = self._connect()
            yield self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Raises: sqlite3.Error; then nothing was changed."""
        with self.open() as db:
            db.execute("begin immediate")
            try:
                yield db
                db.execute("commit")
            except BaseException:
                if db.in_transaction:
                    db.execute("rollback")
                raise

    def _connect(self) -> sqlite3.Connection:
        # The modes of -wal and -shm follow that of the database.
        with contextlib.suppress(OSError):
            self._path.touch(0o600)
        db = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            for pragma in _PRAGMAS:
                db.execute(f"pragma {pragma}")
            for statement in _SCHEMA:
                db.execute(statement)
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


class SmallFiles:
    """Used by any thread; who reads does not wait for who writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer, self._reader = _Connection(path), _Connection(path)
        #: Used by who has the reader.
        self._packs: OrderedDict[int, memoryview] = OrderedDict()

    def put(self, files: Iterable[bytes]) -> list[str]:
        """Keep files; their digests, when all are on disk.

        Raises: UnavailableError when the disk does not take them.
        """
        now = int(time.time())
        digests = [(hashlib.sha256(data).digest(), data) for data in files]
        missing = dict(digests)
        try:
            with self._writer.transaction() as db:
                known = [digest for digest, *_ in _find(db, "digest", list(missing))]
                db.executemany("update small set kept_at = ? where digest = ?", [(now, digest) for digest in known])
                for digest in known:
                    del missing[digest]
                for some in _packs(missing):
                    pack = db.execute("insert into pack (data) values (?)", (b"".join(some.values()),)).lastrowid
                    rows, at = [], 0
                    for digest, data in some.items():
                        rows.append((digest, now, pack, at, len(data)))
                        at += len(data)
                    db.executemany("insert into small values (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
                raise KeptFilesBroken(
                    f"{self._path} cannot be used: {error}", "see that its disk is in order, and start again"
                ) from None
            raise UnavailableError(f"files cannot be kept in {self._path}: {error}", "free space") from None
        return [digest.hex() for digest, _ in digests]

    def get(self, digests: Iterable[str]) -> dict[str, Buffer]:
        """Those of these files that are here, by digest.

        Raises: UnavailableError when that cannot be said now.
        """
        found: dict[str, Buffer] = {}
        if not self._is_there:
            return found
        try:
            with self._reader.open() as db:
                wanted = [bytes.fromhex(digest) for digest in digests]
                for digest, pack, at, size in _find(db, "digest, pack, at, size", wanted):
                    data = self._pack(db, pack)[at : at + size]
                    if len(data) == size:  # It may have been swept meanwhile.
                        found[digest.hex()] = data
        except sqlite3.Error as error:
            raise UnavailableError(f"{self._path} cannot be read: {error}") from None
        return found

    def _pack(self, db: sqlite3.Connection, number: int) -> memoryview:
        pack = self._packs.get(number)
        if pack is None:
            row = db.execute("select data from pack where id = ?", (number,)).fetchone()
            if row is None:
                return memoryview(b"")
            if len(self._packs) >= _PACKS:
                self._packs.popitem(last=False)
            pack = self._packs[number] = memoryview(row[0])
        return pack

    @property
    def _is_there(self) -> bool:
        """Something was kept once."""
        return self._reader.is_open or self._path.exists()

    def sweep(self, in_use: Container[str], older_than_s: float) -> int:
        """Remove what nobody needs any more; how many. A pack goes with the last of its files.

        Raises: UnavailableError when it cannot be done now.
        """
        if not self._is_there:
            return 0
        limit = int(time.time() - older_than_s)
        try:
            with self._reader.open() as db:
                old = db.execute("select digest from small where kept_at < ?", (limit,)).fetchall()
            gone = [(digest, limit) for (digest,) in old if digest.hex() not in in_use]
            # Unless it was kept again meanwhile.
            self._delete("delete from small where digest = ? and kept_at < ?", gone)
            if gone:
                with self._reader.open() as db:
                    empty = db.execute("select id from pack where id not in (select pack from small)").fetchall()
                self._delete("delete from pack where id = ?", empty)
        except sqlite3.Error as error:
            raise UnavailableError(f"{self._path} cannot be swept: {error}") from None
        return len(gone)

    def _delete(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        for start in range(0, len(rows), _SWEPT_AT_ONCE):
            with self._writer.transaction() as db:
                db.executemany(statement, rows[start : start + _SWEPT_AT_ONCE])

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _find(db: sqlite3.Connection, columns: str, digests: list[bytes]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(digests), _FOUND_AT_ONCE):
        some = digests[start : start + _FOUND_AT_ONCE]
        yield from db.execute(f"select {columns} from small where digest in ({', '.join('?' * len(some))})", some)


def _packs(files: dict[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    """The same files, in parts that make a pack each."""
    some: dict[bytes, bytes] = {}
    size = 0
    for digest, data in files.items():
        if some and size + len(data) > _PACK_BYTES:
            yield some
            some, size = {}, 0
        some[digest] = data
        size += len(data)
    if some:
        yield some
