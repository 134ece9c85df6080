"""Looking through a whole store for damage, whether a master works with it or not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from pilotq.core.records import Note
from pilotq.deltas import Block
from pilotq.errors import UserError
from pilotq.model import FileRef
from pilotq.store import LiveCluster, checksum, is_sound, outbox, wal
from pilotq.store.blocks import SPAN, procs_of, read_body
from pilotq.store.loading import Loading
from pilotq.store.place import Lock
from pilotq.store.scanning import Scan, lenient
from pilotq.store.sqlite import DAMAGE_ADVICE, SCHEMA_VERSION, check_schema

#: Sentences of SQLite that are told at most.
_SENTENCES_MAX = 100
_DECODABLE = (msgspec.MsgspecError, ValueError, TypeError, IndexError)


class Finding(msgspec.Struct, frozen=True, omit_defaults=False):
    """One thing that is not as it was written."""

    what: str
    #: Whom it concerns; 0: nobody in particular.
    cluster: int = 0
    #: As "3-5,9"; "": all of the cluster.
    procs: str = ""


class Wanted(msgspec.Struct, frozen=True):
    """A kept file that tasks in the queue need."""

    cluster: int
    digest: str


class Report(msgspec.Struct):
    """What is in a store."""

    findings: list[Finding] = []
    queue: str = ""
    #: In the queue.
    clusters: int = 0
    tasks: int = 0
    #: In the history.
    ended: int = 0
    #: For the scribe.
    notes: int = 0
    pages: int = 0
    free_pages: int = 0
    page_bytes: int = 0
    files: list[Wanted] = []
    #: Notes whose outputs wait in the spool: name of the file there, size, cluster.
    spooled: list[tuple[str, int, int]] = []


def must_exist(path: Path) -> None:
    """Raises: UserError when there is no store."""
    if not path.is_file():
        raise UserError(f"there is no queue at {path}", "see that PILOTQ_HOME is right; a master makes it at its start")


def read_only(path: Path) -> sqlite3.Connection:
    """A connection for looking, beside a master or without one.

    Raises: sqlite3.Error.
    """
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=10)
    return lenient(db)


def check(path: Path) -> Report:
    """Everything that can be found out about the store at this path, of one moment.

    Raises: UserError when there is none, or one of another version.
    """
    checking = _Checking()
    must_exist(path)
    with _log_looked_at(path, checking):
        try:
            with contextlib.closing(read_only(path)) as db:
                db.execute("begin")
                (version,) = db.execute("pragma user_version").fetchone()
                if version not in (0, SCHEMA_VERSION):
                    raise UserError(
                        f"{path} has format {version}, ours is {SCHEMA_VERSION}", "use the pilotq that wrote it"
                    )
                checking.look(db)
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            checking.found(f"{path.name} cannot be read to its end ({error}); {DAMAGE_ADVICE}")
    return checking.report


@contextlib.contextmanager
def _log_looked_at(path: Path, checking: _Checking) -> Iterator[None]:
    """The log is looked at while no master works with it, which would know better."""
    try:
        lock = Lock(path.with_name("lock"), "master")
    except (UserError, OSError):
        yield
        return
    try:
        log = wal.look(path)
        if log.flips:
            checking.found(f"bits in the log of {path.name} are wrong; the master turns them back at its next start")
        if log.lost:
            checking.found(f"{log.lost} pages that were committed are missing in the log of {path.name}")
        yield
        if log.lost:
            wal.remember(path, log)
    except (OSError, sqlite3.Error) as error:
        checking.found(f"the log of {path.name} cannot be read ({error})")
        yield
    finally:
        lock.release()


class _Checking:
    def __init__(self) -> None:
        self.report = Report()

    def found(self, what: str, cluster: int = 0, procs: Iterable[int] = ()) -> None:
        finding = Finding(what, cluster, ranges(procs))
        if finding not in self.report.findings:
            self.report.findings.append(finding)

    def look(self, db: sqlite3.Connection) -> None:
        report = self.report
        report.pages, report.free_pages, report.page_bytes = (
            db.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        try:
            check_schema(db)
        except sqlite3.Error as error:
            self.found(f"{error}; {DAMAGE_ADVICE}")
            return
        for (sentence,) in db.execute(f"pragma integrity_check({_SENTENCES_MAX})"):
            # Some versions say so of sound tables without a rowid; checksums know better.
            if sentence != "ok" and not sentence.startswith("NULL value in "):
                self.found(f"SQLite says: {sentence.splitlines()[-1]}")
        # Each by itself: where one cannot be read to its end the others are told all the same.
        for part in (
            self._clusters,
            self._deltas,
            self._edits,
            self._tasks,
            self._history,
            self._notes,
            self._queue,
            self._files,
        ):
            try:
                part(db)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                self.found(f"a table cannot be read to its end ({error}); {DAMAGE_ADVICE}")

    def _queue(self, db: sqlite3.Connection) -> None:
        """As a master will see it at its next start."""
        loaded = Loading(db).load()
        self.report.queue = loaded.uuid
        self.report.clusters = len(loaded.clusters)
        self.report.tasks = sum(live.count - len(live.left) for live in loaded.clusters)
        for sentence in loaded.damage:
            self.found(sentence)
        for live in loaded.clusters:
            self._damaged(live)

    def _damaged(self, live: LiveCluster) -> None:
        by_sentence: dict[str, list[int]] = {}
        for proc, sentence in live.damaged.items():
            # Said of each task by itself, it is told of all together.
            text = sentence.replace(f"task {live.cluster}.{proc} ", "tasks ")
            by_sentence.setdefault(text, []).append(proc)
        for sentence, procs in by_sentence.items():
            self.found(sentence, live.cluster, procs)

    def _clusters(self, db: sqlite3.Connection) -> None:
        columns = (
            "cluster, owner, key, count, priority, submitted_at, state, since, body, crc, description, description_crc"
        )
        scan = Scan(db, "cluster not indexed", "cluster", f"{columns}, live")
        for *row, crc, description, description_crc, live in scan:
            number = row[0]
            if checksum(row) != crc:
                self.found("the row of a cluster is damaged", number)
            if not is_sound(description, description_crc):
                self.found("the description of a cluster is damaged", number)
            if live not in (0, 1):
                self.found("whether a cluster is in the queue is damaged", number)
        self._lost(scan, "cluster")

    def _edits(self, db: sqlite3.Connection) -> None:
        scan = Scan(db, "edit", "n", "n, cluster, first, last, name, value, since, crc")
        for _, number, *columns, crc in scan:
            if checksum((number, *columns)) != crc:
                self.found("what was changed in the ads of tasks is damaged", number if isinstance(number, int) else 0)
        self._lost(scan, "edit")

    def _deltas(self, db: sqlite3.Connection) -> None:
        scan = Scan(db, "delta", "cluster, first", "cluster, first, deltas, crc")
        for number, first, deltas, crc in scan:
            if not is_sound(deltas, crc):
                self.found("what tells tasks apart is damaged, from the first of these on", number, [first])
        self._lost(scan, "delta")

    def _blocks(self, scan: Scan, table: str) -> Iterator[tuple[list[Any], Any]]:
        """Columns of blocks that are as they were written, and the last of the row."""
        for *columns, crc, body, body_crc, last in scan:
            number, first, end, count, procs = columns[1:6]
            if checksum(columns) != crc:
                self.found(f"a block of the table {table} is damaged", number if isinstance(number, int) else 0)
                continue
            try:
                if not is_sound(body, body_crc):
                    raise ValueError
                read_body(body, count)
            except _DECODABLE:
                self.found(f"attempts and facts of tasks are damaged in {table}", number, procs_of(first, end, procs))
                continue
            yield columns, last
        self._lost(scan, table)

    def _tasks(self, db: sqlite3.Connection) -> None:
        columns = "n, cluster, first, last, count, procs, state, crc, body, body_crc, span"
        for row, span in self._blocks(Scan(db, "task", "cluster, span, n", columns), "task"):
            if span != row[2] - row[2] % SPAN:
                self.found("a block of the table task is in a wrong place", row[1], procs_of(row[2], row[3], row[5]))

    def _history(self, db: sqlite3.Connection) -> None:
        columns = "n, cluster, first, last, count, procs, state, failed, at, crc, body, body_crc, 0"
        last = 0
        for row, _ in self._blocks(Scan(db, "history not indexed", "n", columns), "history"):
            if row[0] != last + 1:
                self.found(f"rows {last + 1} to {row[0] - 1} of the history are damaged or missing")
            last = row[0]
            self.report.ended += row[4]

    def _notes(self, db: sqlite3.Connection) -> None:
        for block in outbox.read(db):
            if block.heads is None:
                # To be told with the queue.
                continue
            self.report.notes += len(block.heads)
            notes = outbox.notes(db, [block.n])
            if notes.get(block.n, 0) is None:
                tasks = [proc for head in block.heads for proc in range(head.proc, head.proc + head.count)]
                self.found("notes for the scribe are damaged", block.cluster, tasks)
                continue
            for head in block.heads:
                self._spooled(notes[head.n])

    def _spooled(self, note: Note | None) -> None:
        for index, output in enumerate(note.outputs if note else ()):
            if note and output.data is None and output.size_bytes:
                name = f"{note.cluster}.{note.proc}.{note.attempt}/{index}"
                self.report.spooled.append((name, output.size_bytes, note.cluster))

    def _files(self, db: sqlite3.Connection) -> None:
        """Kept files in their table, and in the descriptions that need them."""
        kept: dict[int, set[str]] = {}
        for number, digest in db.execute("select cluster, digest from file"):
            kept.setdefault(number, set()).add(digest)
        rows = db.execute("select cluster, description, description_crc from cluster where live = 1")
        for number, description, crc in rows:
            if not is_sound(description, crc):
                continue
            wanted = {file.digest for file in msgspec.msgpack.decode(description, type=_Files).files}
            deltas = db.execute("select deltas, crc from delta where cluster = ?", (number,))
            for packed, delta_crc in deltas:
                if is_sound(packed, delta_crc) and b"files" in packed:
                    for delta in Block(packed):
                        wanted.update(file.digest for file in msgspec.msgpack.decode(delta, type=_Files).files)
            if wanted - kept.get(number, set()):
                self.found("a file of the cluster is not in the table of kept files, and may be removed", number)
            self.report.files += [Wanted(number, digest) for digest in sorted(wanted)]

    def _lost(self, scan: Scan, table: str) -> None:
        for key in scan.lost:
            concerns = key[0] if table in ("cluster", "delta", "task") else 0
            self.found(f"a row of the table {table} cannot be read", int(concerns))


class _Files(msgspec.Struct):
    """The part of a description, or of a delta, that names files."""

    files: list[FileRef] = []


def ranges(procs: Iterable[int]) -> str:
    """Numbers as a person writes them: "0-4,9"."""
    parts: list[list[int]] = []
    for proc in sorted(procs):
        if parts and proc == parts[-1][1] + 1:
            parts[-1][1] = proc
        else:
            parts.append([proc, proc])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
