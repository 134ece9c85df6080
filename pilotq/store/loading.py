"""Reading the whole queue at a restart. A damaged block costs its tasks, or at worst its cluster, never the rest."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from pilotq.model import Edit, State
from pilotq.store import DRAIN, ENDED_KEYS_MAX, Final, LiveCluster, Loaded, checksum, is_sound, outbox
from pilotq.store.blocks import LEFT, SPAN, Ledger, LeftTwiceError, procs_of, read_body
from pilotq.store.scanning import DamageError, Scan, flipped, lenient

#: Notes of one life of a master; far more than it can write, so numbers are never used twice.
_NOTES_PER_EPOCH = 1 << 40
#: What a damaged cluster may not have more of, to be believed that it has so many.
_COUNT_MAX = 10_000_000
#: What `quick_check` says of single rows: those are looked at one by one.
_OF_ROWS = ("NULL value in", "non-unique entry", "row ", "NUMERIC value in", "TEXT value in", "non-")


def load(db: sqlite3.Connection) -> tuple[Loaded, Ledger]:
    """Read everything that is live, checking each row; and where it lies."""
    had_gc = gc.isenabled()
    gc.disable()
    try:
        is_open = db.in_transaction
        if not is_open:
            lenient(db).execute("begin")
        try:
            loading = Loading(db)
            return loading.load(), loading.ledger
        finally:
            if not is_open:
                db.execute("rollback")
    finally:
        if had_gc:
            gc.enable()


class _Head(NamedTuple):
    """The columns of a block that its first checksum is over."""

    n: int
    cluster: int
    first: int
    last: int
    size: int
    procs: bytes
    state: int
    #: Only in history.
    failed: int = 0
    at: float = 0.0


class _Block(NamedTuple):
    """A block of `task` of a live cluster."""

    n: int
    procs: Sequence[int]
    state: int
    #: None: damaged.
    body: bytes | None


class Loading:
    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.ledger = Ledger()
        self.clusters: dict[int, LiveCluster] = {}
        self.damage: list[str] = []
        #: Last block of the history that is of no live cluster for sure.
        self.since = 0
        #: Highest block of the history that a live cluster knows of.
        self.newest = 0
        #: Clusters with a block of which not even the tasks are known.
        self.lost: set[int] = set()
        #: Clusters of which something else is not known, and what to tell.
        self.unsure: dict[int, str] = {}

    def load(self) -> Loaded:
        meta = dict(self.db.execute("select name, value from meta"))
        numbers = meta.get("epoch", ""), meta.get("cluster", "0")
        if "queue" not in meta or not all(isinstance(text, str) and text.isdecimal() for text in numbers):
            raise DamageError("the table meta is damaged")
        epoch, given = map(int, numbers)
        (self.since,) = self.db.execute("select ifnull(max(n), 0) from history").fetchone()
        self.ledger.last_left = self.since
        self._clusters()
        # A cluster knows how far the history went when it came.
        self.ledger.last_left = max(self.ledger.last_left, self.newest)
        self._edits()
        self._history()
        self._tasks()
        finals = self._notes()
        for number in self.lost:
            self._hold(number, f"rows of cluster {number} are damaged in the store")
        for number, sentence in self.unsure.items():
            self._hold(number, sentence)
        (last,) = self.db.execute("select ifnull(max(cluster), 0) from cluster").fetchone()
        return Loaded(
            uuid=meta["queue"],
            epoch=epoch,
            next_cluster=max(last, given) + 1,
            next_note=epoch * _NOTES_PER_EPOCH + 1,
            clusters=list(self.clusters.values()),
            finals=finals,
            ended_keys=self.db.execute(
                "select owner, key, cluster from cluster where live = 0 and key <> '' order by cluster desc limit ?",
                (ENDED_KEYS_MAX,),
            ).fetchall(),
            drains=[name.removeprefix(DRAIN) for name in meta if isinstance(name, str) and name.startswith(DRAIN)],
            damage=self.damage,
        )

    def _clusters(self) -> None:
        scan = Scan(
            self.db,
            "cluster indexed by cluster_live",
            "cluster",
            "cluster, owner, key, count, priority, submitted_at, state, since, body, crc",
            "live = 1",
        )
        for *columns, crc in scan:
            row = columns if checksum(columns) == crc else self._mended_cluster(columns, crc)
            if row is None:
                continue
            number, owner, key, count, priority, submitted_at, state, since, body = row
            self.since, self.newest = min(self.since, since), max(self.newest, since)
            self.clusters[number] = LiveCluster(number, owner, key, count, priority, submitted_at, State(state), body)
        self.damage += [
            f"cluster {number} cannot be read in the store; its tasks are not served" for (number,) in scan.lost
        ]
        with_deltas = self.db.execute(
            "select cluster from cluster c where live = 1"
            " and exists (select 1 from delta d where d.cluster = c.cluster and d.first = 0)"
        )
        for (number,) in with_deltas:
            if number in self.clusters:
                self.clusters[number].has_deltas = True

    def _edits(self) -> None:
        scan = Scan(self.db, "edit", "n", "n, cluster, first, last, name, value, since, crc")
        for _, number, *columns, crc in scan:
            if checksum((number, *columns)) == crc:
                if number in self.clusters:
                    self.clusters[number].edits.append(Edit(*columns[:4]))
            elif number in self.clusters:
                self.unsure[number] = f"what was changed in cluster {number} is damaged in the store"
            else:
                self.damage.append("what was changed in a cluster that is not in the queue is damaged in the store")
        if scan.lost:
            self.damage.append(f"{len(scan.lost)} changes of clusters cannot be read in the store")

    def _mended_cluster(self, columns: list[Any], crc: int) -> list[Any] | None:
        """The row of a damaged cluster, as it was written or to be held; None when it cannot even be held."""
        number = columns[0]
        row = next((row for row in flipped(columns) if checksum(row) == crc), None)
        if row is not None:
            self.damage.append(f"the row of cluster {number} is damaged in the store, but known")
            return row
        _, owner, key, count, priority, submitted_at, state, since, _ = columns
        whole = [owner, key, count, priority, state, since]
        is_sane = [type(value) for value in whole] == [str, str, int, int, int, int] and isinstance(submitted_at, float)
        if not is_sane or not 0 < count <= _COUNT_MAX or state not in (State.IDLE, State.HELD):
            self.damage.append(f"cluster {number} is damaged in the store; its tasks are not served")
            return None
        self.unsure[number] = f"cluster {number} is damaged in the store"
        return [*columns[:7], self.since, b""]

    # ---- blocks

    def _history(self) -> None:
        # Not by the index of clusters: what it had lost would run again. Numbers without a gap say that all are there.
        scan = Scan(
            self.db,
            "history",
            "n",
            "n, cluster, first, last, count, procs, state, failed, at, crc",
            f"n > {self.since}",
        )
        missing = set(range(self.since + 1, self.ledger.last_left + 1)) if self.clusters else set()
        for *columns, crc in scan:
            head = _Head(*columns) if checksum(columns) == crc else self._mended(columns, crc, "history")
            if head is None:
                continue
            missing.discard(head.n)
            self._leave(head)
        if missing:
            self._find_missing(missing)

    def _leave(self, head: _Head) -> None:
        if head.cluster not in self.clusters:
            return
        cluster, procs = self.clusters[head.cluster], procs_of(head.first, head.last, head.procs)
        try:
            self.ledger.leave(head.cluster, procs)
        except LeftTwiceError:
            self.lost.add(head.cluster)
            return
        cluster.left.extend(procs)
        cluster.left_states += bytes((head.state,)) * len(procs)
        cluster.failed += head.failed

    def _find_missing(self, missing: set[int]) -> None:
        """Rows of the history that cannot be read: the index tells whose they are, or all who may be meant are held."""
        rows = self.db.execute("select n, cluster, first, last, count from history indexed by history_cluster")
        for n, number, first, last, count in rows.fetchall():
            if n not in missing:
                continue
            missing.discard(n)
            if number not in self.clusters:
                continue
            if count == last - first + 1:
                self.damage.append(f"the history of tasks {number}.{first} to {last} cannot be read in the store")
                self._leave(_Head(n, number, first, last, count, b"", State.DONE))
            else:
                self.lost.add(number)
        if missing:
            self.damage.append(f"{len(missing)} rows of the history are missing in the store")
            sentence = "rows of the history are missing in the store, and it may have ended"
            self.unsure.update({number: f"{sentence} (cluster {number})" for number in self.clusters})

    def _tasks(self) -> None:
        self._check_pages("task")
        found: dict[int, list[_Block]] = {}
        scan = Scan(
            self.db,
            "task",
            "cluster, span, n",
            "n, cluster, first, last, count, procs, state, crc, span, body, body_crc",
        )
        for *columns, crc, span, body, body_crc in scan:
            is_good = checksum(columns) == crc
            head = _Head(*columns) if is_good else self._mended(columns, crc, "task")
            if head is None:
                continue
            self.ledger.last_n = max(self.ledger.last_n, head.n)
            is_good = is_good and span == head.first - head.first % SPAN
            good = body if is_good and is_sound(body, body_crc) else None
            procs = procs_of(head.first, head.last, head.procs)
            found.setdefault(head.cluster, []).append(_Block(head.n, procs, head.state, good))
        for number, _, n in scan.lost:
            self.ledger.last_n = max(self.ledger.last_n, n)
            self._lose(number, "task")
        for number, blocks in found.items():
            if number in self.clusters:
                self._settle(self.clusters[number], blocks)
            else:
                self.damage.append(f"tasks in the store belong to cluster {number}, which is not in the queue")

    def _check_pages(self, table: str) -> None:
        """Rows that a damaged page hides would be taken for tasks that were never touched.

        Raises: sqlite3.DatabaseError.
        """
        for (sentence,) in self.db.execute(f"pragma quick_check({table})"):
            if sentence != "ok" and not sentence.startswith(_OF_ROWS):
                raise DamageError(sentence.splitlines()[-1])

    def _settle(self, cluster: LiveCluster, blocks: list[_Block]) -> None:
        """Blocks of a cluster in their order: what counts for which task."""
        number, ledger = cluster.cluster, self.ledger
        for block in sorted(blocks, key=attrgetter("n")):
            staying = block.procs
            if cluster.left:
                where = ledger.where(number)
                staying = [proc for proc in staying if proc >= len(where) or where[proc] != LEFT]
            if staying:
                ledger.put(block.n, number, staying)
        where = ledger.where(number)
        for n, procs, state, body in blocks:
            own = [place for place, proc in enumerate(procs) if where[proc] == n]
            if body is None:
                for proc in [procs[place] for place in own]:
                    cluster.damaged[proc] = f"the row of task {number}.{proc} is damaged in the store"
                continue
            attempts, facts = read_body(body, len(procs))
            cluster.states += bytes((state,)) * len(own)
            if len(own) == len(procs):
                cluster.procs.extend(procs)
                cluster.attempts.extend(attempts)
                cluster.facts += facts
                continue
            cluster.procs.extend([procs[place] for place in own])
            cluster.attempts.extend([attempts[place] for place in own])
            cluster.facts += [facts[place] for place in own]

    def _notes(self) -> list[Final]:
        """Those of the outbox that end tasks. Who waits for one that is not among them will be held.

        Bodies are for the scribe, which says when it cannot write one.
        """
        finals: list[Final] = []
        for block in outbox.read(self.db):
            if block.heads is None:
                whose = f"of cluster {block.cluster} " if block.cluster != outbox.UNREAD else ""
                self.damage.append(f"notes {whose}for the scribe, from {block.n} on, are damaged in the store")
                continue
            self.ledger.notes.add(block.n, [head.n for head in block.heads])
            finals += [
                Final(head.n, block.cluster, head.proc, head.count, head.attempt) for head in block.heads if head.final
            ]
        self.damage += [
            f"which notes of {block} and later are written is damaged in the store; one may be written twice"
            for block in outbox.damaged_marks(self.db)
        ]
        return finals

    # ---- damage

    def _mended(self, columns: list[Any], crc: int, table: str) -> _Head | None:
        """The head of a damaged block as it was written; None when that is not known, and the block left out."""
        found = next((head for head in flipped(columns) if checksum(head) == crc), None)
        if found is not None:
            head = _Head(*found)
            if table == "history":
                self.damage.append(
                    f"the history of tasks {head.cluster}.{head.first} to {head.last} is damaged in the store"
                )
            return head
        if table == "task":
            self._lose(columns[1], table)
        return None

    def _lose(self, number: Any, table: str) -> None:
        """A row of this cluster, as it says, is left out."""
        if number in self.clusters:
            self.lost.add(number)
        else:
            self.damage.append(f"a row in {table} of the store names cluster {number}, which is not in the queue")

    def _hold(self, number: int, sentence: str) -> None:
        """Nothing of a cluster but what is known to have left can be believed."""
        cluster = self.clusters[number]
        for column in (cluster.procs, cluster.states, cluster.attempts, cluster.facts):
            del column[:]
        cluster.damaged = dict.fromkeys(set(range(cluster.count)).difference(cluster.left), sentence)
