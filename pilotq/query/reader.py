"""From the store's tables to runs of tasks, in one snapshot, streaming.

A *run* is consecutive procs of a cluster in the same state. Tasks that were never touched are in no block: a run of a
million of them is one object. The others are in runs of those that have attempt and facts in common.

Order: a Reader is one thread's and one request's; all it says is of one moment of the queue.
"""

from __future__ import annotations

import heapq
import re
import sqlite3
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from pilotq.condor.jobad import Common, Job, Template, body_of
from pilotq.deltas import Block
from pilotq.errors import UnavailableError
from pilotq.model import ClusterBody, Edit, Facts, Resources, State
from pilotq.query.rows import COMMONS_MAX, STATES, Cluster, Commons, Run, TaskBlock, alike, states_of
from pilotq.store import checksum, is_sound
from pilotq.store.blocks import LEFT, NONE, SPAN, paint, read_body
from pilotq.store.scanning import lenient

_DAMAGED = Facts(reason="its record in the store is damaged")
#: Neighbours that are alike.
_ALIKE = re.compile(rb"(.)\1*", re.DOTALL)
#: Columns before the body, so that it is not read.
_CLUSTER = (
    "cluster, owner, count, submitted_at, state, exists(select 1 from delta where delta.cluster = cluster.cluster),"
    " exists(select 1 from edit where edit.cluster = cluster.cluster)"
)


class _Needs(msgspec.Struct):
    """The part of a description, or of a delta, that is asked for."""

    needs: Resources | None = None


_unpack_needs = msgspec.msgpack.Decoder(_Needs).decode


_COLUMNS = "b.n, b.cluster, b.first, b.last, b.count, b.procs, b.state"


class Reader:
    """One snapshot of the queue.

    Raises: UnavailableError, here and from every method, when the store cannot be read.
    """

    def __init__(self, path: str, commons: Commons) -> None:
        self._commons = commons
        #: Tasks that left after this block of the history are shown as if they had not; None: none are.
        self._written: int | None = None
        self._leaving: dict[int, list[Run]] = {}
        try:
            self._db = sqlite3.connect(
                f"file:{quote(str(Path(path).absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=5
            )
            lenient(self._db).execute("begin")
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        self._db.close()

    def show_leaving(self, written: int) -> None:
        """From now on show tasks in the queue until they are written: those in blocks of the history after this one."""
        leaving: dict[int, list[Run]] = {}
        for run in self.history(forwards=True, after=written):
            leaving.setdefault(run.cluster.id, []).append(run)
        for runs in leaving.values():
            runs.sort(key=lambda run: run.first)
        self._written, self._leaving = written, leaving

    def _rows(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    # ---- clusters

    def clusters(self, ids: Iterable[int] | None = None, ended: bool = False) -> Iterator[Cluster]:
        """Clusters by id; None: all that have tasks in the queue. Those without any only when `ended`."""
        if ids is None:
            sql = f"select {_CLUSTER} from cluster where live = 1{self._or_leaving()} order by cluster"
            yield from map(self._cluster, self._rows(sql))
            return
        live = "" if ended else f"and (live = 1{self._or_leaving()})"
        for number in sorted(set(ids)):
            yield from map(
                self._cluster, self._rows(f"select {_CLUSTER} from cluster where cluster = ? {live}", number)
            )

    def _or_leaving(self, column: str = "cluster") -> str:
        return f" or {column} in ({','.join(map(str, self._leaving))})" if self._leaving else ""

    def _cluster(self, row: tuple[Any, ...]) -> Cluster:
        number, owner, count, submitted_at, state, in_blocks, is_edited = row
        template = Template.deferred(number, count, owner, submitted_at, lambda: self._common(number, submitted_at))
        return Cluster(number, owner, count, STATES[state], template, bool(in_blocks), bool(is_edited))

    def _common(self, number: int, submitted_at: float) -> Common:
        key = (number, submitted_at)
        found = self._commons.find(key)
        if found is None:
            (*row, crc) = next(
                self._rows(
                    "select cluster, owner, key, count, priority, submitted_at, state, since, body, crc from cluster"
                    " where cluster = ?",
                    number,
                )
            )
            # One that is damaged is held; it must not keep others from being shown.
            body = body_of(row[-1]) if checksum(row) == crc else ClusterBody(str(row[1]), "/")
            found = Common(body, number)
            self._commons.keep(key, found)
        return found

    def job(self, run: Run, proc: int, now: float, site: str) -> Job:
        """One task of a run as an ad."""
        cluster = run.cluster
        template = cluster.template
        delta = self._delta(cluster, proc) if cluster.in_blocks else b""
        if delta:
            template = template.with_delta(delta)
        if cluster.is_edited:
            edits = tuple(self._edits(cluster, proc, run.left))
            known = None if delta else cluster.edited.get(edits)
            template = known or template.with_edits({edit.name: edit.value for edit in edits})
            if not delta:
                cluster.edited[edits] = template
        return Job(template, proc, run.state, run.attempt, run.facts, now, site)

    def _edits(self, cluster: Cluster, proc: int, left: int) -> Iterator[Edit]:
        if cluster.edits is None:
            sql = "select first, last, name, value, since, crc from edit where cluster = ? order by n"
            rows = [(row[:-1], row[-1]) for row in self._rows(sql, cluster.id)]
            # What is damaged does not count; its tasks are held.
            sound = [columns for columns, crc in rows if checksum((cluster.id, *columns)) == crc]
            cluster.edits = [(Edit(*columns[:4]), columns[4]) for columns in sound]
        for edit, since in cluster.edits:
            if edit.first <= proc <= edit.last and (not left or left > since):
                yield edit

    def needs(self, cluster: Cluster, proc: int) -> Resources:
        """What a task needs of a worker; nothing known when that is damaged."""
        if cluster.needs is None:
            sql = "select description, description_crc from cluster where cluster = ?"
            row = next(self._rows(sql, cluster.id), None)
            common = _unpack_needs(row[0]).needs if row is not None and is_sound(*row) else None
            cluster.needs = common or Resources()
        own = self._delta(cluster, proc) if cluster.in_blocks else b""
        return (_unpack_needs(own).needs if own else None) or cluster.needs

    def _delta(self, cluster: Cluster, proc: int) -> bytes:
        first, block = cluster.block
        if block is None or not first <= proc < first + len(block):
            sql = "select first, deltas, crc from delta where cluster = ? and first <= ? order by first desc limit 1"
            for first, packed, crc in self._rows(sql, cluster.id, proc):
                # Of a damaged one the tasks are held when it is their turn.
                block = Block(packed) if is_sound(packed, crc) else None
                cluster.block = (first, block)
        index = proc - first
        return block[index] if block is not None and 0 <= index < len(block) else b""

    # ---- the queue

    def queue(self, is_bare: Callable[[Cluster], bool]) -> Iterator[Run]:
        """Everything in the queue, by cluster and proc; `is_bare` as for `runs`, asked for each cluster."""
        tasks, left = self._blocks("task"), self._blocks("history")
        for cluster in self.clusters():
            runs = self._bare if is_bare(cluster) else self._full
            yield from self._with_leaving(cluster, runs(cluster, tasks(cluster.id), left(cluster.id)))

    def runs(self, cluster: Cluster, proc: int | None = None, bare: bool = False) -> Iterator[Run]:
        """What a live cluster has in the queue, by proc; `proc`: only that one.

        `bare`: without attempts and facts, and so with as few runs as there can be.
        """
        if proc is not None:
            yield from self._run(cluster, proc)
            yield from [run for run in self._leaving.get(cluster.id, ()) if run.first == proc]
            return
        runs, ids = self._bare if bare else self._full, [cluster.id]
        tasks, left = self._blocks("task", ids), self._blocks("history", ids)
        yield from self._with_leaving(cluster, runs(cluster, tasks(cluster.id), left(cluster.id)))

    def _with_leaving(self, cluster: Cluster, runs: Iterator[Run]) -> Iterator[Run]:
        leaving = self._leaving.get(cluster.id)
        return heapq.merge(runs, leaving, key=attrgetter("first")) if leaving else runs

    def _blocks(self, table: str, ids: Sequence[int] | None = None) -> Callable[[int], list[TaskBlock]]:
        """The blocks of a cluster, asked for by id in order, those that count last; of live clusters, or of these."""
        some = (
            f"(c.live = 1{self._or_leaving('c.cluster')})"
            if ids is None
            else f"c.cluster in ({','.join('?' * len(ids))})"
        )
        rows = self._rows(
            f"select {_COLUMNS} from cluster c cross join {table} b on b.cluster = c.cluster"
            f" where {some} and b.first >= 0 and b.last < c.count and b.state between 1 and 8 order by c.cluster",
            *ids or (),
        )
        groups = groupby(map(TaskBlock._make, rows), attrgetter("cluster"))
        number, group = next(groups, (0, iter(())))

        def of(wanted: int) -> list[TaskBlock]:
            nonlocal number, group
            while 0 < number < wanted:
                number, group = next(groups, (0, iter(())))
            return sorted(group) if number == wanted else []

        return of

    def _details(self, table: str, block: TaskBlock) -> dict[int, tuple[int, Facts]]:
        """By proc, in their order: attempt and facts."""
        try:
            key = (block.n,) if table == "history" else (block.n, block.cluster, block.first - block.first % SPAN)
            some = "" if table == "history" else "and cluster = ? and span = ?"
            body, crc = self._db.execute(f"select body, body_crc from {table} where n = ? {some}", key).fetchone()
        except sqlite3.Error as error:
            raise _unavailable(error) from error
        if zlib.crc32(body) != crc:
            return dict.fromkeys(block.procs, (0, _DAMAGED))
        attempts, facts = read_body(body, block.size)
        return dict(zip(block.procs, zip(attempts, facts, strict=True), strict=True))

    def _run(self, cluster: Cluster, proc: int) -> Iterator[Run]:
        """The one task, if it is in the queue."""
        found: dict[str, TaskBlock | None] = {}
        for table, begin in ("history", "first >="), ("task", "span ="):
            rows = self._rows(
                f"select {_COLUMNS} from {table} b"
                f" where cluster = ? and {begin} ? and first <= ? and last >= ? order by n desc",
                *(cluster.id, proc - proc % SPAN, proc, proc),
            )
            found[table] = next((block for block in map(TaskBlock._make, rows) if proc in block.procs), None)
        block = found["task"]
        if proc >= cluster.count or found["history"] is not None:
            return
        if block is None:
            yield Run(cluster, proc, 1, cluster.state)
            return
        yield Run(cluster, proc, 1, STATES[block.state], *self._details("task", block)[proc])

    def _bare(self, cluster: Cluster, tasks: list[TaskBlock], left: list[TaskBlock]) -> Iterator[Run]:
        if not tasks and not left:
            yield Run(cluster, 0, cluster.count, cluster.state)
            return
        untouched, gone = bytes((cluster.state,)), LEFT % 256
        states = states_of(tasks, left).replace(bytes((NONE,)), untouched)
        if len(states) < cluster.count:
            # It stands for all the rest.
            states += untouched
        for match in _ALIKE.finditer(states):
            first, end = match.span()
            if end == len(states):
                end = cluster.count
            if states[first] != gone:
                yield Run(cluster, first, end - first, STATES[states[first]])

    def _full(self, cluster: Cluster, tasks: list[TaskBlock], left: list[TaskBlock]) -> Iterator[Run]:
        if not tasks:
            yield from self._bare(cluster, tasks, left)
            return
        where = array("q")
        for block in tasks:
            paint(where, block.procs, block.n)
        for block in left:
            paint(where, block.procs, LEFT)
        known = {block.n: block for block in tasks}
        details: dict[int, dict[int, tuple[int, Facts]]] = {}
        first = 0
        for n, group in groupby(where):
            end = first + len(list(group))
            if n == NONE:
                yield Run(cluster, first, end - first, cluster.state)
            elif n != LEFT:
                block = known[n]
                if n not in details:
                    details = {key: found for key, found in details.items() if known[key].last > first}
                    details[n] = self._details("task", block)
                yield from alike(cluster, first, end, STATES[block.state], details[n])
            first = end
        if first < cluster.count:
            yield Run(cluster, first, cluster.count - first, cluster.state)

    # ---- counts

    def counts(self, ids: Iterable[int] | None = None) -> dict[int, Counter[State]]:
        """Tasks in the queue by cluster and state, from columns alone."""
        numbers = None if ids is None else sorted(set(ids))
        some = "" if numbers is None else f"and c.cluster in ({','.join('?' * len(numbers))})"
        found = self._counted("c.cluster", some, numbers or ())
        for number, runs in self._leaving.items():
            if numbers is None or number in numbers:
                found.setdefault(number, Counter()).update([run.state for run in runs])
        return found

    def totals(self) -> dict[str, Counter[State]]:
        """Tasks in the queue by owner and state."""
        found: dict[str, Counter[State]] = self._counted("c.owner")
        for run in chain.from_iterable(self._leaving.values()):
            found.setdefault(run.cluster.owner, Counter())[run.state] += 1
        return found

    def _counted(self, by: str, some: str = "", values: Iterable[int] = ()) -> dict[Any, Counter[State]]:
        found: dict[Any, Counter[State]] = {}
        rows = self._rows(
            f"select {by}, c.state, sum(c.count) from cluster c where c.live = 1 {some} group by 1, 2", *values
        )
        for key, state, count in rows:
            found.setdefault(key, Counter())[STATES[state]] = count
        rows = self._rows(
            # Few blocks of many clusters, or those of few clusters.
            f"select {by}, c.state, b.state, sum(b.alive)"
            f" from {'cluster c cross join task b' if some else 'task b cross join cluster c'} on c.cluster = b.cluster"
            f" where c.live = 1 {some} group by 1, 2, 3",
            *values,
        )
        for key, untouched, state, count in rows:
            found[key][STATES[untouched]] -= count
            found[key][STATES[state]] += count
        rows = self._rows(
            f"select {by}, c.state, sum(b.count) from cluster c cross join history b on b.cluster = c.cluster"
            f" where c.live = 1 {some} group by 1, 2",
            *values,
        )
        for key, untouched, count in rows:
            found[key][STATES[untouched]] -= count
        return {key: +counts for key, counts in found.items()}

    # ---- history

    def history(
        self, ids: Iterable[tuple[int, int | None]] | None = None, forwards: bool = False, after: int = 0
    ) -> Iterator[Run]:
        """Ended tasks in the order they left the queue, the last first unless `forwards`; `ids`: only these.

        `after`: only those in later blocks of the history.
        """
        wanted: dict[int, set[int | None]] = {}
        for number, proc in ids or ():
            wanted.setdefault(number, set()).add(proc)
        condition, values = f"where b.n > {after}", list[int]()
        if self._written is not None:
            condition += f" and b.n <= {self._written}"
        if ids is not None:
            condition += f" and b.cluster in ({','.join('?' * len(wanted))})"
            values = list(wanted)
        procs = {proc for asked in wanted.values() for proc in asked}
        proc = next(iter(procs)) if len(procs) == 1 else None
        if proc is not None:
            # One task, as condor_history is asked most.
            condition += " and b.first between ? and ? and b.last >= ?"
            values += [proc - proc % SPAN, proc, proc]
        order = "asc" if forwards else "desc"
        clusters: dict[int, Cluster] = {}
        for row in self._rows(f"select {_COLUMNS} from history b {condition} order by b.n {order}", *values):
            block = TaskBlock._make(row)
            number = block.cluster
            if number not in clusters:
                if len(clusters) > COMMONS_MAX:
                    clusters.clear()
                clusters.update({found.id: found for found in self.clusters([number], ended=True)})
            if number not in clusters:
                continue
            details, asked = self._details("history", block), wanted.get(number, {None})
            for proc in details if forwards else reversed(details):
                if None in asked or proc in asked:
                    yield Run(clusters[number], proc, 1, STATES[block.state], *details[proc], block.n)

    def ended(self, cluster: Cluster) -> tuple[Counter[State], int]:
        """Tasks of a cluster that left the queue, by state; how many of them are done with another outcome than OK."""
        counts: Counter[State] = Counter()
        failed = 0
        rows = self._rows(
            "select state, sum(count), sum(failed) from history where cluster = ? group by state", cluster.id
        )
        for state, count, bad in rows:
            counts[STATES[state]] += count
            failed += bad
        return counts, failed


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(f"the queue cannot be read ({error})", "see `pilotq status` and the master's log")
