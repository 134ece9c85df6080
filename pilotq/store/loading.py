"""Reading the whole queue at a restart. A damaged block costs its tasks, or at worst its cluster, never the rest."""

from __future__ import annotations

import gc
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from pilotq.model import State
from pilotq.store import ENDED_KEYS_MAX, Final, LiveCluster, Loaded, checksum, outbox
from pilotq.store.blocks import LEFT, SPAN, Ledger, LeftTwiceError, procs_of, read_body

#: Notes of one life of a master; far more than it can write, so numbers are never used twice.
_NOTES_PER_EPOCH = 1 << 40
#: Bits of a number that are tried in search of one that is wrong.
_BITS = 48


def load(db: sqlite3.Connection) -> tuple[Loaded, Ledger]:
    """Read everything that is live, checking each row; and where it lies."""
    had_gc = gc.isenabled()
    gc.disable()
    try:
        db.execute("begin")
        try:
            loading = _Loading(db)
            return loading.load(), loading.ledger
        finally:
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


class _Loading:
    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.ledger = Ledger()
        self.clusters: dict[int, LiveCluster] = {}
        self.damage: list[str] = []
        #: Last block of the history that is of no live cluster for sure.
        self.since = 0
        #: Clusters with a block of which not even the tasks are known.
        self.lost: set[int] = set()

    def load(self) -> Loaded:
        meta = dict(self.db.execute("select name, value from meta"))
        (self.since,) = self.db.execute("select ifnull(max(n), 0) from history").fetchone()
        self.ledger.last_left = self.since
        self._clusters()
        self._history()
        self._tasks()
        finals = self._notes()
        for number in self.lost:
            self._hold(number)
        (last,) = self.db.execute("select ifnull(max(cluster), 0) from cluster").fetchone()
        epoch = int(meta["epoch"])
        return Loaded(
            uuid=meta["queue"],
            epoch=epoch,
            next_cluster=last + 1,
            next_note=epoch * _NOTES_PER_EPOCH + 1,
            clusters=list(self.clusters.values()),
            finals=finals,
            ended_keys=self.db.execute(
                "select owner, key, cluster from cluster where live = 0 and key <> '' order by cluster desc limit ?",
                (ENDED_KEYS_MAX,),
            ).fetchall(),
            damage=self.damage,
        )

    def _clusters(self) -> None:
        rows = self.db.execute(
            "select cluster, owner, key, count, priority, submitted_at, state, since, body, crc from cluster"
            " where live = 1 order by cluster"
        )
        for *row, crc in rows:
            if checksum(row) != crc:
                self.damage.append(f"cluster {row[0]} is damaged in the store; its tasks are not served")
                continue
            number, owner, key, count, priority, submitted_at, state, since, body = row
            self.since = min(self.since, since)
            self.clusters[number] = LiveCluster(number, owner, key, count, priority, submitted_at, State(state), body)
        with_deltas = self.db.execute(
            "select cluster from cluster c where live = 1"
            " and exists (select 1 from delta d where d.cluster = c.cluster and d.first = 0)"
        )
        for (number,) in with_deltas:
            if number in self.clusters:
                self.clusters[number].has_deltas = True

    # ---- blocks

    def _history(self) -> None:
        # Not by the index of clusters: what it had lost would run again. Numbers without a gap say that all are there.
        rows = self.db.execute(
            "select n, cluster, first, last, count, procs, state, failed, at, crc from history where n > ? order by n",
            (self.since,),
        )
        due = self.ledger.last_left - self.since
        for *columns, crc in rows:
            due -= 1
            head = _Head(*columns) if checksum(columns) == crc else self._mended(columns, crc, "history")
            if head is None or head.cluster not in self.clusters:
                continue
            cluster, procs = self.clusters[head.cluster], procs_of(head.first, head.last, head.procs)
            try:
                self.ledger.leave(head.cluster, procs)
            except LeftTwiceError:
                self.lost.add(head.cluster)
                continue
            cluster.left.extend(procs)
            cluster.left_states += bytes((head.state,)) * len(procs)
            cluster.failed += head.failed
        if due:
            self.damage.append(f"{due} rows of the history are missing in the store; what ended may run again")

    def _tasks(self) -> None:
        found: dict[int, list[_Block]] = {}
        rows = self.db.execute(
            "select n, cluster, first, last, count, procs, state, crc, span, body, body_crc from task"
            " order by cluster, span, n"
        )
        for *columns, crc, span, body, body_crc in rows:
            self.ledger.last_n = max(self.ledger.last_n, columns[0])
            is_good = checksum(columns) == crc
            head = _Head(*columns) if is_good else self._mended(columns, crc, "task")
            if head is None:
                continue
            is_good = is_good and span == head.first - head.first % SPAN
            good = body if is_good and zlib.crc32(body) == body_crc else None
            procs = procs_of(head.first, head.last, head.procs)
            found.setdefault(head.cluster, []).append(_Block(head.n, procs, head.state, good))
        for number, blocks in found.items():
            if number in self.clusters:
                self._settle(self.clusters[number], blocks)
            else:
                self.damage.append(f"tasks in the store belong to cluster {number}, which is not in the queue")

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
        """Those of the outbox that end tasks."""
        finals: list[Final] = []
        for block in outbox.read(self.db):
            if block.heads is None:
                self.damage.append(f"notes for the user of cluster {block.cluster} are damaged in the store")
                if block.cluster in self.clusters:
                    self.lost.add(block.cluster)
                continue
            self.ledger.notes.add(block.n, [head.n for head in block.heads])
            finals += [
                Final(head.n, block.cluster, head.proc, head.count, head.attempt) for head in block.heads if head.final
            ]
        return finals

    # ---- damage

    def _mended(self, columns: list[Any], crc: int, table: str) -> _Head | None:
        """The head of a damaged block as it was written; None when that is not known, and the block left out."""
        found = next((head for head in _flipped(columns) if checksum(head) == crc), None)
        if found is not None:
            head = _Head(*found)
            if table == "history":
                self.damage.append(
                    f"the history of tasks {head.cluster}.{head.first} to {head.last} is damaged in the store"
                )
            return head
        number = columns[1]
        if number in self.clusters:
            self.lost.add(number)
        else:
            self.damage.append(f"a row in {table} of the store names cluster {number}, which is not in the queue")
        return None

    def _hold(self, number: int) -> None:
        """Nothing of a cluster but what is known to have left can be believed."""
        cluster = self.clusters[number]
        for column in (cluster.procs, cluster.states, cluster.attempts, cluster.facts):
            del column[:]
        sentence = f"rows of cluster {number} are damaged in the store"
        cluster.damaged = dict.fromkeys(set(range(cluster.count)).difference(cluster.left), sentence)


def _flipped(columns: list[Any]) -> Iterator[list[Any]]:
    """The same with one bit of one number the other way round, for all but the number of the block."""
    for place, value in enumerate(columns):
        if place and isinstance(value, int):
            for bit in range(_BITS):
                yield [*columns[:place], value ^ 1 << bit, *columns[place + 1 :]]
