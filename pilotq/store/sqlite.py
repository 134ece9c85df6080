"""The store on SQLite: WAL, a sync at every commit, one connection that writes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import msgspec

from pilotq.core.records import Record
from pilotq.deltas import DELTA_BLOCK, Block
from pilotq.errors import UserError
from pilotq.store import Loaded, StoreBroken, StoreDamaged, StoreFull, checksum, is_sound, wal
from pilotq.store.blocks import Ledger, LeftTwiceError
from pilotq.store.loading import load
from pilotq.store.place import BALLAST_BYTES, Ballast, Lock, is_full, require_local
from pilotq.store.scanning import DamageError, lenient
from pilotq.store.writing import Rows

SCHEMA_VERSION = 5
SCHEMA = Path(__file__).with_name("schema.sql").read_text()
DAMAGE_ADVICE = (
    "`pilotq store check` says how far; move it away, and put a backup in its place with `pilotq store restore`,"
    " or begin with an empty queue"
)
#: Pages (4 KiB) the WAL grows to before it is copied into the database.
_CHECKPOINT_PAGES = 4000
_WAL_BYTES_MAX = 64 << 20
#: What it is at a checkpoint: 4 KiB and a header of 24 bytes a page.
_WAL_BYTES = 32 + _CHECKPOINT_PAGES * (4096 + 24)

_pack = msgspec.msgpack.Encoder().encode


def check_schema(db: sqlite3.Connection) -> None:
    """Raises: DamageError when tables and indexes are not as we make them: then rows would be read as others."""
    question = "select type, name, sql from sqlite_schema where sql is not null order by name"
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(SCHEMA)
        if lenient(db).execute(question).fetchall() != ours.execute(question).fetchall():
            raise DamageError("its description of the tables is damaged")


def mend_log(path: Path) -> list[str]:
    """Turn wrong bits in the log of a database back, while nobody has it open; what to tell.

    Raises: StoreBroken when something that was committed is missing.
    """
    try:
        log = wal.look(path)
        if log.lost:
            wal.remember(path, log)
            raise StoreBroken(
                f"{log.lost} pages that were committed are missing in the log of {path}",
                f"restore a backup; or, to go on without them, remove {path.name}-shm and start again",
            )
        if log.flips:
            wal.mend(path, log.flips)
            return [f"wrong bits in the log of {path.name} were turned back"]
    except (sqlite3.Error, OSError):
        # Whoever opens it next will be told.
        pass
    return []


class SqliteStore:
    """See `pilotq.store.Store`."""

    def __init__(self, ballast_bytes: int = BALLAST_BYTES) -> None:
        self._ballast_bytes = ballast_bytes
        self._lock: Lock | None = None
        self._ballast: Ballast | None = None
        self._path = Path()
        self._db: sqlite3.Connection | None = None
        #: Made from disk when it is needed and not there.
        self._ledger: Ledger | None = None
        self.backlog = 0
        #: What was found before the first load.
        self._damage: list[str] = []
        #: The disk failed: nothing is asked of the file any more.
        self._is_broken = False

    # ---- open and close

    def open(self, path: Path) -> None:
        directory = path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_local(directory)
        self._lock = Lock(directory / "lock", "master")
        try:
            self._path = path
            self._ballast = Ballast(directory, self._ballast_bytes)
            self._damage = mend_log(path)
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
            if 0 < version < SCHEMA_VERSION:
                raise UserError(
                    f"{self._path} was written by an older pilotq (its format is {version}, ours {SCHEMA_VERSION})",
                    "let that version finish what is in it, or move it away to begin with an empty queue",
                )
            if version > SCHEMA_VERSION:
                raise UserError(
                    f"{self._path} was written by a newer pilotq (its format is {version}, ours {SCHEMA_VERSION})",
                    "start that version, or restore a backup",
                )
            for pragma in (
                "page_size=4096",
                "journal_mode=wal",
                "synchronous=full",
                f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
                f"journal_size_limit={_WAL_BYTES_MAX}",
                "cache_size=-16384",
            ):
                db.execute(f"pragma {pragma}")
            schema = "" if version else SCHEMA
            # A new one has at most a first page.
            if version or self._path.stat().st_size not in (0, 4096):
                check_schema(db)
            db.executescript(f"begin immediate; {schema} pragma user_version={SCHEMA_VERSION};")
            db.execute("insert or ignore into meta values ('queue', ?)", (uuid.uuid4().hex,))
            db.execute(
                "insert into meta values ('epoch', '1') on conflict do update set value = cast(value as integer) + 1"
            )
            db.execute("commit")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._judge(error) from error

    def write_out_log(self) -> None:
        """Give the log of the database its full size.

        A commit that lengthens a file waits for the file system's journal as well, twice as long, until the first
        checkpoint. SQLite takes what follows its last commit for what an earlier round left.
        """
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < 10 * _WAL_BYTES:
            return
        with contextlib.suppress(OSError), open(f"{self._path}-wal", "ab") as log:
            log.write(bytes(max(0, _WAL_BYTES - log.tell())))
            log.flush()
            os.fsync(log.fileno())

    def close(self) -> None:
        if self._db is not None:
            if self._is_broken:
                # The last one to close a database syncs its log; so it stays open until the process is gone.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
            else:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def load(self) -> Loaded:
        try:
            loaded, self._ledger = load(self._open_db)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._judge(error) from error
        loaded.damage += self._damage
        self.backlog = len(self._ledger.notes)
        return loaded

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
        if self._ledger is None:
            self.load()
        assert self._ledger is not None
        try:
            rows = Rows(self._ledger)
            for record in records:
                rows.take(record)
            db.execute("begin immediate")
            rows.write(db)
            db.execute("commit")
            self.backlog = len(self._ledger.notes)
        except sqlite3.Error as error:
            verdict = self._judge(error)
            if isinstance(verdict, StoreFull):
                self._roll_back()
            else:
                self.close()
            raise verdict from error
        except LeftTwiceError as error:
            self.close()
            raise StoreBroken(f"a task would leave {self._path} a second time") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        self._ledger = None
        db = self._open_db
        try:
            if db.in_transaction:
                db.execute("rollback")
        except sqlite3.Error as error:
            self.close()
            raise StoreBroken(f"{self._path} could not be rolled back: {error}") from error

    def _judge(self, error: Exception) -> StoreFull | StoreBroken:
        """What an error of SQLite means for us. A failed sync is never "try again": it would report success."""
        code = getattr(error, "sqlite_errorcode", 0)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        # SQLite calls only ENOSPC full; a quota is an I/O error to it.
        may_be_full = code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_CANTOPEN)
        if code == sqlite3.SQLITE_FULL or (may_be_full and is_full(self._path.parent)):
            return StoreFull(f"no space is left for {self._path}", "free some on that file system")
        # Not even the message of an error can be read when the names in it are damaged.
        is_damage = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if is_damage or isinstance(error, UnicodeDecodeError):
            return StoreBroken(f"{self._path} is damaged ({error})", DAMAGE_ADVICE)
        self._is_broken = True
        return StoreBroken(
            f"{self._path} cannot be used: {error} ({name})", "see that its disk is in order, and start again"
        )

    # ---- reading

    def find_key(self, owner: str, key: str) -> list[int]:
        # From the slash to the character after it: in the index. What is submitted together has ids in its order.
        query = "select key, cluster from cluster where owner = ? and key > ? and key < ? and key <> '' order by 2"
        rows = self._read(query, (owner, f"{key}/", f"{key}0"))
        return [number for name, number in rows if name.rpartition("/")[0] == key]

    def description(self, cluster: int) -> bytes:
        data, crc = self._row("select description, description_crc from cluster where cluster = ?", cluster)
        if not is_sound(data, crc):
            raise StoreDamaged(f"the description of cluster {cluster} is damaged in the store")
        return bytes(data)

    def body(self, cluster: int) -> bytes:
        *row, crc = self._row(
            "select cluster, owner, key, count, priority, submitted_at, state, since, body, crc from cluster"
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
        blocks: dict[int, Block] = {}
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
                if not is_sound(*row):
                    raise StoreDamaged(f"the items of tasks {cluster}.{first} and later are damaged in the store")
                block = blocks[first] = Block(row[0])
            found.append(block[proc - first])
        return found

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
