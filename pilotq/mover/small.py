"""Small kept files of the head, together in one database: many are made durable by one sync."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from pilotq.errors import UnavailableError

_SCHEMA = """
create table if not exists small (digest blob primary key, kept_at integer not null, data blob not null) strict;
"""
_PUT = "insert into small values (?, ?, ?) on conflict (digest) do update set kept_at = excluded.kept_at"
#: Files that one statement reads.
_READ_AT_ONCE = 100
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
            for pragma in ("page_size=8192", "journal_mode=wal", "synchronous=full", f"journal_size_limit={64 << 20}"):
                db.execute(f"pragma {pragma}")
            db.execute(_SCHEMA)
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

    def put(self, files: Iterable[bytes]) -> list[str]:
        """Keep files; their digests, when all are on disk.

        Raises: UnavailableError when the disk does not take them.
        """
        now = int(time.time())
        rows = [(hashlib.sha256(data).digest(), now, data) for data in files]
        try:
            with self._writer.transaction() as db:
                db.executemany(_PUT, rows)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
                raise KeptFilesBroken(
                    f"{self._path} cannot be used: {error}", "see that its disk is in order, and start again"
                ) from None
            raise UnavailableError(f"files cannot be kept in {self._path}: {error}", "free space") from None
        return [digest.hex() for digest, _, _ in rows]

    def get(self, digests: list[str]) -> dict[str, bytes]:
        """Those of these files that are here, by digest.

        Raises: UnavailableError when that cannot be said now.
        """
        found: dict[str, bytes] = {}
        if not self._is_there:
            return found
        try:
            with self._reader.open() as db:
                for start in range(0, len(digests), _READ_AT_ONCE):
                    some = [bytes.fromhex(digest) for digest in digests[start : start + _READ_AT_ONCE]]
                    query = f"select digest, data from small where digest in ({', '.join('?' * len(some))})"
                    found.update((digest.hex(), data) for digest, data in db.execute(query, some))
        except sqlite3.Error as error:
            raise UnavailableError(f"{self._path} cannot be read: {error}") from None
        return found

    @property
    def _is_there(self) -> bool:
        """Something was kept once."""
        return self._reader.is_open or self._path.exists()

    def sweep(self, in_use: Container[str], older_than_s: float) -> int:
        """Remove what nobody needs any more; how many.

        Raises: UnavailableError when it cannot be done now.
        """
        if not self._is_there:
            return 0
        limit = int(time.time() - older_than_s)
        try:
            with self._reader.open() as db:
                old = db.execute("select digest from small where kept_at < ?", (limit,)).fetchall()
            gone = [(digest, limit) for (digest,) in old if digest.hex() not in in_use]
            for start in range(0, len(gone), _SWEPT_AT_ONCE):
                with self._writer.transaction() as db:
                    # Unless it was kept again meanwhile.
                    some = gone[start : start + _SWEPT_AT_ONCE]
                    db.executemany("delete from small where digest = ? and kept_at < ?", some)
        except sqlite3.Error as error:
            raise UnavailableError(f"{self._path} cannot be swept: {error}") from None
        return len(gone)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
