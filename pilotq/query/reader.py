"""From the store's tables to runs of tasks, in one snapshot, streaming.

A *run* is consecutive procs of a cluster in the same state. Tasks that were never touched have no row: a run of a
million of them is one object. A task with a row is a run of its own, its facts unpacked only when looked at.

Order: a Reader is one thread's and one request's; all it says is of one moment of the queue.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import msgspec

from pilotq.condor.jobad import Common, Job, Template, body_of
from pilotq.errors import UnavailableError
from pilotq.model import State

_COMMONS_MAX = 20_000
_STATES = {int(state): state for state in State}
_TASKS = "select cluster, proc, state, attempt, facts from task"
#: Columns before the body, so that it is not read.
_CLUSTER = (
    "cluster, owner, count, submitted_at, state, exists(select 1 from delta where delta.cluster = cluster.cluster)"
)


@dataclass(eq=False, slots=True)
class Cluster:
    """A cluster's row."""

    id: int
    owner: str
    count: int
    #: Of its procs without a row.
    state: State
    template: Template
    has_deltas: bool
    #: First proc and deltas of the block read last.
    block: tuple[int, list[bytes]] = (0, [])


@dataclass(frozen=True, slots=True)
class Run:
    cluster: Cluster
    first: int
    count: int
    state: State
    attempt: int = 0
    #: Packed; only when count is 1.
    facts: bytes = b""


class Commons:
    """Prepared bodies of the clusters asked for last; shared by all threads. A cluster's body never changes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, float], Common] = OrderedDict()

    def find(self, key: tuple[int, float]) -> Common | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: tuple[int, float], common: Common) -> None:
        with self._lock:
            self._kept[key] = common
            while len(self._kept) > _COMMONS_MAX:
                self._kept.popitem(last=False)


class Reader:
    """One snapshot of the queue.

    Raises: UnavailableError, here and from every method, when the store cannot be read.
    """

    def __init__(self, path: str, commons: Commons) -> None:
        self._commons = commons
        try:
            self._db = sqlite3.connect(
                f"file:{quote(str(Path(path).absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=5
            )
            self._db.execute("begin")
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        self._db.close()

    def _rows(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    # ---- clusters

    def clusters(self, ids: Iterable[int] | None = None, ended: bool = False) -> Iterator[Cluster]:
        """Clusters by id; None: all that have tasks in the queue. Those without any only when `ended`."""
        if ids is None:
            yield from map(self._cluster, self._rows(f"select {_CLUSTER} from cluster where live = 1 order by cluster"))
            return
        live = "" if ended else "and live = 1"
        for number in sorted(set(ids)):
            yield from map(
                self._cluster, self._rows(f"select {_CLUSTER} from cluster where cluster = ? {live}", number)
            )

    def _cluster(self, row: tuple[Any, ...]) -> Cluster:
        number, owner, count, submitted_at, state, has_deltas = row
        template = Template.deferred(number, count, owner, submitted_at, lambda: self._common(number, submitted_at))
        return Cluster(number, owner, count, _STATES[state], template, bool(has_deltas))

    def _common(self, number: int, submitted_at: float) -> Common:
        key = (number, submitted_at)
        found = self._commons.find(key)
        if found is None:
            (packed,) = next(self._rows("select body from cluster where cluster = ?", number))
            found = Common(body_of(packed), number)
            self._commons.keep(key, found)
        return found

    def job(self, run: Run, proc: int, now: float, site: str) -> Job:
        """One task of a run as an ad."""
        cluster = run.cluster
        template = cluster.template
        if cluster.has_deltas:
            delta = self._delta(cluster, proc)
            if delta:
                template = template.with_delta(delta)
        return Job(template, proc, run.state, run.attempt, run.facts, now, site)

    def _delta(self, cluster: Cluster, proc: int) -> bytes:
        first, deltas = cluster.block
        if not first <= proc < first + len(deltas):
            sql = "select first, deltas from delta where cluster = ? and first <= ? order by first desc limit 1"
            for first, packed in self._rows(sql, cluster.id, proc):
                deltas = msgspec.msgpack.decode(packed, type=list[bytes])
                cluster.block = (first, deltas)
        index = proc - first
        return deltas[index] if 0 <= index < len(deltas) else b""

    # ---- the queue

    def queue(self, is_bare: Callable[[Cluster], bool]) -> Iterator[Run]:
        """Everything in the queue, by cluster and proc; `is_bare` as for `runs`, asked for each cluster."""
        left = "select c.cluster, h.proc, 0, 0, null from cluster c cross join history h on h.cluster = c.cluster"
        rows = self._rows(f"{_TASKS} union all {left} where c.live = 1 order by 1, 2")
        groups = groupby(rows, itemgetter(0))
        number, group = next(groups, (0, iter(())))
        for cluster in self.clusters():
            while 0 < number < cluster.id:
                number, group = next(groups, (0, iter(())))
            own = group if number == cluster.id else iter(())
            yield from _merged(cluster, own) if is_bare(cluster) else _single(cluster, own)

    def runs(self, cluster: Cluster, proc: int | None = None, bare: bool = False) -> Iterator[Run]:
        """What a live cluster has in the queue, by proc; `proc`: only that one.

        `bare`: without attempts and facts, and so with as few runs as there can be.
        """
        if proc is not None:
            yield from self._run(cluster, proc)
            return
        left = "select cluster, proc, 0, 0, null from history where cluster = ?"
        rows = self._rows(f"{_TASKS} where cluster = ? union all {left} order by 2", cluster.id, cluster.id)
        yield from _merged(cluster, rows) if bare else _single(cluster, rows)

    def _run(self, cluster: Cluster, proc: int) -> Iterator[Run]:
        sql = "select state, attempt, facts from task where cluster = ? and proc = ?"
        for state, attempt, facts in self._rows(sql, cluster.id, proc):
            yield Run(cluster, proc, 1, _STATES[state], attempt, facts)
            return
        if proc < cluster.count and not any(
            self._rows("select 1 from history where cluster = ? and proc = ?", cluster.id, proc)
        ):
            yield Run(cluster, proc, 1, cluster.state)

    def counts(self, ids: Iterable[int] | None = None) -> dict[int, Counter[State]]:
        """Tasks in the queue by cluster and state, from columns alone."""
        if ids is None:
            where, values = "cluster in (select cluster from cluster where live = 1)", []
        else:
            values = sorted(set(ids))
            where = f"cluster in ({','.join('?' * len(values))})"
        found: dict[int, Counter[State]] = {}
        unstarted: dict[int, list[int]] = {}
        live = f"select cluster, count, state from cluster where live = 1 and {where} order by cluster"
        for number, count, state in self._rows(live, *values):
            found[number] = Counter()
            unstarted[number] = [count, state]
        for number, count in self._rows(f"select cluster, count(*) from history where {where} group by 1", *values):
            if number in unstarted:
                unstarted[number][0] -= count
        rows = self._rows(f"select cluster, state, count(*) from task where {where} group by 1, 2", *values)
        for number, state, count in rows:
            if number in found:
                found[number][_STATES[state]] += count
                unstarted[number][0] -= count
        for number, (left, state) in unstarted.items():
            if left > 0:
                found[number][_STATES[state]] += left
        return found

    def totals(self) -> dict[str, Counter[State]]:
        """Tasks in the queue by owner and state."""
        found: dict[str, Counter[State]] = {}
        for owner, state, count in self._rows(
            "select owner, state, sum(count) from cluster where live = 1 group by 1, 2"
        ):
            found.setdefault(owner, Counter())[_STATES[state]] = count
        joined = "from cluster c cross join task t on t.cluster = c.cluster where c.live = 1"
        rows = self._rows(f"select c.owner, c.state, t.state, count(*) {joined} group by 1, 2, 3")
        for owner, untouched, state, count in rows:
            found[owner][_STATES[untouched]] -= count
            found[owner][_STATES[state]] += count
        joined = "from cluster c cross join history h on h.cluster = c.cluster where c.live = 1"
        for owner, untouched, count in self._rows(f"select c.owner, c.state, count(*) {joined} group by 1, 2"):
            found[owner][_STATES[untouched]] -= count
        return {owner: +counts for owner, counts in found.items()}

    # ---- history

    def history(self, ids: Iterable[tuple[int, int | None]] | None = None, forwards: bool = False) -> Iterator[Run]:
        """Ended tasks in the order they left the queue, the last first unless `forwards`; `ids`: only these."""
        wanted: dict[int, list[int | None]] = {}
        for number, proc in ids or ():
            wanted.setdefault(number, []).append(proc)
        where, values = [], []
        for number, procs in wanted.items():
            values.append(number)
            if None in procs:
                where.append("cluster = ?")
            else:
                where.append(f"(cluster = ? and proc in ({','.join('?' * len(procs))}))")
                values += [proc for proc in procs if proc is not None]
        condition = f"where {' or '.join(where)}" if ids is not None else ""
        if ids is not None and not where:
            return
        order = "asc" if forwards else "desc"
        sql = f"select cluster, proc, state, attempt, facts from history {condition} order by n {order}"
        clusters: dict[int, Cluster] = {}
        for number, proc, state, attempt, facts in self._rows(sql, *values):
            if number not in clusters:
                if len(clusters) > _COMMONS_MAX:
                    clusters.clear()
                clusters.update({found.id: found for found in self.clusters([number], ended=True)})
            if number in clusters:
                yield Run(clusters[number], proc, 1, _STATES[state], attempt, facts)


def _single(cluster: Cluster, rows: Iterable[tuple[Any, ...]]) -> Iterator[Run]:
    """Runs from all rows of a cluster by proc; state 0: left the queue."""
    next_proc = 0
    for _, proc, state, attempt, facts in rows:
        if proc > next_proc:
            yield Run(cluster, next_proc, proc - next_proc, cluster.state)
        if state:
            yield Run(cluster, proc, 1, _STATES[state], attempt, facts)
        next_proc = proc + 1
    if next_proc < cluster.count:
        yield Run(cluster, next_proc, cluster.count - next_proc, cluster.state)


def _merged(cluster: Cluster, rows: Iterable[tuple[Any, ...]]) -> Iterator[Run]:
    """The same, neighbours in the same state put together."""
    untouched = int(cluster.state)
    first, current, next_proc = 0, untouched, 0
    for _, proc, state, _, _ in rows:
        if proc > next_proc and current != untouched:
            if current:
                yield Run(cluster, first, next_proc - first, _STATES[current])
            first, current = next_proc, untouched
        if state != current:
            if current and proc > first:
                yield Run(cluster, first, proc - first, _STATES[current])
            first, current = proc, state
        next_proc = proc + 1
    if next_proc < cluster.count and current != untouched:
        if current:
            yield Run(cluster, first, next_proc - first, _STATES[current])
        first, current = next_proc, untouched
    if current and cluster.count > first:
        yield Run(cluster, first, cluster.count - first, _STATES[current])


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(f"the queue cannot be read ({error})", "see `pilotq status` and the master's log")
