"""The store on SQLite: WAL, a sync at every commit, one connection that writes."""

from __future__ import annotations

import os
import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from pilotq.core.records import ClusterAdded, ClusterLeft, NoteAdded, NotesDone, Record, TaskRows, TasksLeft
from pilotq.errors import UserError
from pilotq.store import DELTA_BLOCK, Loaded, StoreBroken, StoreDamaged, StoreFull, checksum
from pilotq.store.loading import load
from pilotq.store.place import BALLAST_BYTES, Ballast, Lock, is_full, require_local

SCHEMA_VERSION = 1
#: Pages (4 KiB) the WAL grows to before it is copied into the database.
_CHECKPOINT_PAGES = 4000
_WAL_BYTES_MAX = 64 << 20

_pack = msgspec.msgpack.Encoder().encode
_unpack_list = msgspec.msgpack.Decoder(list[bytes]).decode
_crc32 = zlib.crc32


def _in_sizes(head: str, row: str, tail: str = "") -> dict[int, str]:
    """A statement for a hundred, for ten and for one row."""
    return {size: head + ", ".join([row] * size) + tail for size in (100, 10, 1)}


_PUT_TASKS = _in_sizes("replace into task values ", "(?, ?, ?, ?, ?, ?)")
_ADD_HISTORY = _in_sizes(
    "insert into history (cluster, proc, state, attempt, facts, crc) values ", "(?, ?, ?, ?, ?, ?)"
)
_ADD_NOTES = _in_sizes("insert into outbox values ", "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
_DROP_NOTES = _in_sizes("delete from outbox where n in (", "?", ")")
_DELETE_TASKS = _in_sizes("delete from task where cluster = ? and proc in (", "?", ")")


class SqliteStore:
    """See `pilotq.store.Store`."""

    def __init__(self, ballast_bytes: int = BALLAST_BYTES) -> None:
        self._ballast_bytes = ballast_bytes
        self._lock: Lock | None = None
        self._ballast: Ballast | None = None
        self._path = Path()
        self._db: sqlite3.Connection | None = None
        #: Take a run of records of one type.
        self._writers: dict[type, Callable[[sqlite3.Connection, list[Any]], None]] = {
            ClusterAdded: _add_clusters,
            TaskRows: _put_tasks,
            TasksLeft: _move_tasks,
            ClusterLeft: _leave_clusters,
            NoteAdded: _add_notes,
            NotesDone: _drop_notes,
        }

    # ---- open and close

    def open(self, path: Path) -> None:
        directory = path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_local(directory)
        self._lock = Lock(directory / "lock", "master")
        try:
            self._path = path
            self._ballast = Ballast(directory, self._ballast_bytes)
            try:
                self._connect()
            except StoreFull:
                if not self._ballast.release():
                    raise
                self._connect()
            self._ballast.restore()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        # The modes of -wal and -shm follow that of the database.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        if self._db is not None:
            self._db.close()
        db = self._db = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            (version,) = db.execute("pragma user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise UserError(
                    f"{self._path} was written by a newer pilotq (its format is {version}, ours {SCHEMA_VERSION})",
                    "start that version, or restore a backup",
                )
            for pragma in (
                "journal_mode=wal",
                "synchronous=full",
                f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
                f"journal_size_limit={_WAL_BYTES_MAX}",
                "cache_size=-65536",
            ):
                db.execute(f"pragma {pragma}")
            schema = "" if version else Path(__file__).with_name("schema.sql").read_text()
            db.executescript(f"begin immediate; {schema} pragma user_version={SCHEMA_VERSION};")
            db.execute("insert or ignore into meta values ('queue', ?)", (uuid.uuid4().hex,))
            db.execute(
                "insert into meta values ('epoch', '1') on conflict do update set value = cast(value as integer) + 1"
            )
            db.execute("commit")
        except sqlite3.Error as error:
            raise self._judge(error) from error

    def close(self) -> None:
        if self._db is not None:
            try:
                self._db.close()
            except sqlite3.Error:
                pass
            self._db = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def load(self) -> Loaded:
        try:
            return load(self._open_db)
        except sqlite3.Error as error:
            raise self._judge(error) from error

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreBroken("the store is not open")
        return self._db

    # ---- writing

    def commit(self, records: list[Record]) -> None:
        if not records:
            return
        db = self._open_db
        try:
            db.execute("begin immediate")
            for kind, run in groupby(records, type):
                self._writers[kind](db, list(run))
            db.execute("commit")
        except sqlite3.Error as error:
            verdict = self._judge(error)
            if isinstance(verdict, StoreFull):
                self._roll_back()
            else:
                self.close()
            raise verdict from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        db = self._open_db
        try:
            if db.in_transaction:
                db.execute("rollback")
        except sqlite3.Error as error:
            self.close()
            raise StoreBroken(f"{self._path} could not be rolled back: {error}") from error

    def _judge(self, error: sqlite3.Error) -> StoreFull | StoreBroken:
        """What an error of SQLite means for us. A failed sync is never "try again": it would report success."""
        code = getattr(error, "sqlite_errorcode", 0)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        # SQLite calls only ENOSPC full; a quota is an I/O error to it.
        may_be_full = code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_CANTOPEN)
        if code == sqlite3.SQLITE_FULL or (may_be_full and is_full(self._path.parent)):
            return StoreFull(f"no space is left for {self._path}", "free some on that file system")
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreBroken(
                f"{self._path} is damaged ({error})",
                "put a backup in its place, or move it away to begin with an empty queue",
            )
        return StoreBroken(
            f"{self._path} cannot be used: {error} ({name})", "see that its disk is in order, and start again"
        )

    # ---- reading

    def description(self, cluster: int) -> bytes:
        data, crc = self._row("select description, description_crc from cluster where cluster = ?", cluster)
        if _crc32(data) != crc:
            raise StoreDamaged(f"the description of cluster {cluster} is damaged in the store")
        return bytes(data)

    def body(self, cluster: int) -> bytes:
        *row, crc = self._row(
            "select cluster, owner, key, count, priority, submitted_at, state, body, crc from cluster"
            " where cluster = ?",
            cluster,
        )
        if checksum(row) != crc:
            raise StoreDamaged(f"cluster {cluster} is damaged in the store")
        return bytes(row[-1])

    def _row(self, query: str, cluster: int) -> tuple[Any, ...]:
        row = self._read(query, (cluster,)).fetchone()
        if row is None:
            raise KeyError(cluster)
        return tuple(row)

    def _read(self, query: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._open_db.execute(query, values)
        except sqlite3.Error as error:
            raise self._judge(error) from error

    def deltas(self, cluster: int, procs: list[int]) -> list[bytes]:
        blocks: dict[int, list[bytes]] = {}
        found = []
        for proc in procs:
            first = proc - proc % DELTA_BLOCK
            block = blocks.get(first)
            if block is None:
                row = self._read(
                    "select deltas, crc from delta where cluster = ? and first = ?", (cluster, first)
                ).fetchone()
                if row is None:
                    return []
                if _crc32(row[0]) != row[1]:
                    raise StoreDamaged(f"the items of tasks {cluster}.{first} and later are damaged in the store")
                block = blocks[first] = _unpack_list(row[0])
            found.append(block[proc - first])
        return found

    def cluster_by_key(self, owner: str, key: str) -> list[int] | None:
        rows = self._read(
            "select cluster from cluster where owner = ? and key <> ''"
            " and (key = ? or (key > ? and key < ?)) order by cluster",
            (owner, key, key + "/", key + "0"),
        ).fetchall()
        return [cluster for (cluster,) in rows] or None

    def digests_in_use(self) -> set[str]:
        return {digest for (digest,) in self._read("select distinct digest from file", ())}

    # ---- ballast

    @property
    def has_ballast(self) -> bool:
        return self._ballast is not None and self._ballast.is_there

    def release_ballast(self) -> bool:
        return self._ballast is not None and self._ballast.release()

    def restore_ballast(self) -> bool:
        return self._ballast is not None and self._ballast.restore()


def _add_clusters(db: sqlite3.Connection, records: list[ClusterAdded]) -> None:
    for new in records:
        row = (
            new.cluster,
            new.owner,
            new.key,
            new.count,
            new.priority,
            float(new.submitted_at),
            int(new.state),
            new.body,
        )
        db.execute(
            "insert into cluster values (?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
            (*row, checksum(row), new.description, _crc32(new.description)),
        )
        db.executemany("insert or ignore into file values (?, ?)", [(new.cluster, digest) for digest in new.digests])
        db.executemany("insert into delta values (?, ?, ?, ?)", _delta_blocks(new.cluster, new.deltas))


def _put_tasks(db: sqlite3.Connection, records: list[TaskRows]) -> None:
    _execute(db, _PUT_TASKS, 6, _task_values(records))


def _move_tasks(db: sqlite3.Connection, records: list[TasksLeft]) -> None:
    for rows in records:
        _execute(db, _DELETE_TASKS, 1, rows.procs, (rows.cluster,))
    _execute(db, _ADD_HISTORY, 6, _task_values(records))


def _leave_clusters(db: sqlite3.Connection, records: list[ClusterLeft]) -> None:
    for left in records:
        db.execute("update cluster set live = 0 where cluster = ?", (left.cluster,))
        db.execute("delete from file where cluster = ?", (left.cluster,))


def _add_notes(db: sqlite3.Connection, records: list[NoteAdded]) -> None:
    values: list[Any] = []
    for added in records:
        note = added.note
        row = (
            note.n,
            note.event,
            note.cluster,
            note.proc,
            note.count,
            float(note.at),
            note.attempt,
            int(note.final),
            _pack(note.facts),
            _pack(note.outputs),
        )
        values += row
        values.append(checksum(row))
    _execute(db, _ADD_NOTES, 11, values)


def _drop_notes(db: sqlite3.Connection, records: list[NotesDone]) -> None:
    for done in records:
        _execute(db, _DROP_NOTES, 1, done.ns)


def _task_values(records: list[TaskRows] | list[TasksLeft]) -> list[Any]:
    """The rows of records for `task` or `history`, one value after the other."""
    values: list[Any] = []
    for rows in records:
        cluster = rows.cluster
        for proc, state, attempt, facts in zip(rows.procs, rows.states, rows.attempts, rows.facts, strict=True):
            row = (cluster, proc, state, attempt, facts)
            values += row
            # As `checksum`, without its call and copy: this is the hot line of the store.
            values.append(_crc32(_pack(row)))
    return values


def _execute(
    db: sqlite3.Connection, statements: dict[int, str], width: int, values: list[Any], head: tuple[Any, ...] = ()
) -> None:
    """Run a statement over many rows, a hundred at a time while there are so many.

    Shape: `values` are the rows' values one after the other, `width` a row; `head` comes first in each statement.
    Cost: half of what `executemany` with single rows takes.
    """
    at, end = 0, len(values)
    for size, statement in statements.items():
        step = size * width
        stop = end - (end - at) % step
        if at < stop:
            db.executemany(statement, [(*head, *values[first : first + step]) for first in range(at, stop, step)])
            at = stop


def _delta_blocks(cluster: int, deltas: list[bytes]) -> Iterable[tuple[int, int, bytes, int]]:
    for first in range(0, len(deltas), DELTA_BLOCK):
        block = _pack(deltas[first : first + DELTA_BLOCK])
        yield cluster, first, block, _crc32(block)
