"""Reading the whole queue at a restart. One damaged row costs one task, never the rest."""

from __future__ import annotations

import gc
import sqlite3
import zlib
from typing import Any

import msgspec

from pilotq.model import ENDED, Facts, Outcome, State
from pilotq.store import Final, LiveCluster, Loaded, checksum

_pack = msgspec.msgpack.Encoder().encode
_unpack_facts = msgspec.msgpack.Decoder(Facts).decode
_crc32 = zlib.crc32
#: Notes of one life of a master; far more than it can write, so numbers are never used twice.
_NOTES_PER_EPOCH = 1 << 40

#: Of a row of `task` or `history`: cluster, proc, state, attempt, facts, crc.
_TaskRow = tuple[int, int, int, int, bytes, int]


def load(db: sqlite3.Connection) -> Loaded:
    """Read everything that is live, checking each row."""
    had_gc = gc.isenabled()
    gc.disable()
    try:
        db.execute("begin")
        try:
            return _Loading(db).load()
        finally:
            db.execute("rollback")
    finally:
        if had_gc:
            gc.enable()


class _Loading:
    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.clusters: dict[int, LiveCluster] = {}
        self.damage: list[str] = []
        #: Damaged rows and the table they are from.
        self.suspects: list[tuple[str, _TaskRow]] = []

    def load(self) -> Loaded:
        meta = dict(self.db.execute("select name, value from meta"))
        self._clusters()
        self._tasks()
        self._history()
        for table, row in self.suspects:
            self._suspect(table, row)
        (last,) = self.db.execute("select ifnull(max(cluster), 0) from cluster").fetchone()
        epoch = int(meta["epoch"])
        return Loaded(
            uuid=meta["queue"],
            epoch=epoch,
            next_cluster=last + 1,
            next_note=epoch * _NOTES_PER_EPOCH + 1,
            clusters=list(self.clusters.values()),
            finals=[
                Final(*row)
                for row in self.db.execute(
                    "select n, cluster, proc, count, attempt from outbox where final = 1 order by n"
                )
            ],
            damage=self.damage,
        )

    def _clusters(self) -> None:
        rows = self.db.execute(
            "select cluster, owner, key, count, priority, submitted_at, state, body, crc from cluster"
            " where live = 1 order by cluster"
        )
        for *row, crc in rows:
            if checksum(row) != crc:
                self.damage.append(f"cluster {row[0]} is damaged in the store; its tasks are not served")
                continue
            number, owner, key, count, priority, submitted_at, state, body = row
            self.clusters[number] = LiveCluster(number, owner, key, count, priority, submitted_at, State(state), body)
        with_deltas = self.db.execute(
            "select cluster from cluster c where live = 1"
            " and exists (select 1 from delta d where d.cluster = c.cluster and d.first = 0)"
        )
        for (number,) in with_deltas:
            if number in self.clusters:
                self.clusters[number].has_deltas = True

    def _tasks(self) -> None:
        known, pack = self.clusters, _pack
        for row in self.db.execute("select cluster, proc, state, attempt, facts, crc from task"):
            number, proc, state, attempt, facts, crc = row
            cluster = known.get(number)
            if cluster is None or _crc32(pack(row[:5])) != crc:
                self.suspects.append(("task", row))
                continue
            cluster.procs.append(proc)
            cluster.states.append(state)
            cluster.attempts.append(attempt)
            cluster.facts.append(facts)

    def _history(self) -> None:
        known, pack = self.clusters, _pack
        rows = self.db.execute(
            "select h.cluster, h.proc, h.state, h.attempt, h.facts, h.crc from cluster c"
            " cross join history h on h.cluster = c.cluster where c.live = 1"
        )
        for row in rows:
            number, proc, state, _attempt, facts, crc = row
            cluster = known.get(number)
            if cluster is None:
                continue
            if _crc32(pack(row[:5])) != crc:
                self.suspects.append(("history", row))
                continue
            cluster.left.append(proc)
            cluster.left_states.append(state)
            if state == State.DONE and _unpack_facts(facts).outcome != Outcome.OK:
                cluster.failed += 1

    def _suspect(self, table: str, row: _TaskRow) -> None:
        """Find out which task a damaged row belongs to."""
        number, proc, state = row[:3]
        cluster = self.clusters.get(number)
        if cluster is None:
            self.damage.append(f"a row in {table} of the store names task {number}.{proc}, which is in no live cluster")
            return
        seen = set(cluster.procs) | set(cluster.left) | set(cluster.damaged)
        # The number itself may be what is wrong: then exactly one missing task makes the checksum right.
        true = next((p for p in range(cluster.count) if p not in seen and _fits(row, p)), -1)
        if true >= 0:
            proc = true
        elif proc in seen or not 0 <= proc < cluster.count:
            proc = -1
        if proc < 0:
            self.damage.append(f"a row in {table} of the store belongs to an unknown task of cluster {number}")
        elif table == "history":
            # It ended, whatever else is wrong with what we know of it, and must not run again.
            cluster.left.append(proc)
            cluster.left_states.append(state if state in ENDED else State.DONE)
            self.damage.append(f"the history of task {number}.{proc} is damaged in the store")
        else:
            cluster.damaged[proc] = f"the row of task {number}.{proc} is damaged in the store"


def _fits(row: _TaskRow, proc: int) -> bool:
    number, _proc, state, attempt, facts, crc = row
    values: tuple[Any, ...] = (number, proc, state, attempt, facts)
    return checksum(values) == crc
