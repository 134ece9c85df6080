"""From a query and a snapshot to text, piece by piece: condor_q, condor_history, condor_status.

What is the same for all tasks of a run is worked out once for the run: counting a hundred thousand idle tasks, or
printing an attribute of each that they have in common, evaluates one expression.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain

from pilotq.condor import expressions, poolads, tables
from pilotq.condor.analysis import analysis
from pilotq.condor.formats import Local
from pilotq.condor.jobad import Job
from pilotq.condor.jobrules import Scope, scope
from pilotq.condor.options import Query
from pilotq.condor.poolads import HeadFacts
from pilotq.condor.tables import Batch
from pilotq.core.tasks import NO_FACTS
from pilotq.model import CONDOR_STATUS, State
from pilotq.query.adlists import AdList, printed
from pilotq.query.reader import Reader
from pilotq.query.rows import Cluster, Run

#: Lines made at once of a run whose lines are all alike.
_LINES = 4096


class Question:
    """One query on one snapshot.

    Units: now in seconds since 1970.
    """

    def __init__(
        self, query: Query, reader: Reader, head: HeadFacts, *, now: float, local: Local, user: str = ""
    ) -> None:
        self.query = query
        self.reader = reader
        self.head = head
        self.now = now
        self.local = local
        self.user = user
        is_mine_only = query.is_mine_only and not query.ids
        self.owners = set(query.owners or ([user] if is_mine_only else ()))
        self.constraint = expressions.compiled(query.constraint) if query.constraint else None
        self._common: dict[tuple[int, tuple[str, ...]], bool] = {}
        self._needs = self._needed()

    def answer(self) -> Iterator[str]:
        """What goes to stdout. Raises: UserError, UnavailableError."""
        if self.query.tool == "condor_status":
            yield from self._status()
        elif self.query.output == "mask":
            yield from self._mask()
        elif self.query.totals_only and self.query.output != "totals":
            yield from printed([tables.summary(self._summed(self.counts()), self.now)], self.query.output)
        elif self.query.output in ("long", "json", "jsonl", "xml"):
            yield from self._ads()
        elif self.query.output == "history":
            yield tables.HEADINGS["history"]
            for run, job in self.matching():
                yield self._line(run.cluster.id, run.first, tables.row("history", job, self.now, self.local))
        elif self.query.output == "analyze":
            yield from self._analyze()
        else:
            yield from self._table()

    # ---- which tasks

    def _needed(self) -> tuple[str, ...] | None:
        """All attributes asked for or shown; None: any may be."""
        shown = {"mask": self.query.mask.names, "totals": set(), "batch": {"jobbatchname"}}.get(self.query.output)
        if shown is None:
            return None
        return tuple(shown.union(self.constraint.names if self.constraint else ()))

    def _is_bare(self, cluster: Cluster) -> bool:
        """True when no facts of its tasks are needed."""
        if self._needs is None:
            return False
        job = Job(cluster.template, 0, cluster.state, 0, NO_FACTS, self.now, self.head.schedd_name)
        scopes = self._scopes(cluster, self._needs, job)
        return scopes <= {Scope.STATE} if cluster.has_deltas else Scope.UNSTARTED not in scopes

    def candidates(self) -> Iterator[Run]:
        """Runs by ids, owner and what the constraint says of ids; nothing else is checked yet."""
        if self.query.tool == "condor_history":
            yield from self._ended()
            return
        ids, owners = self._ids(), self.owners
        if ids is None:
            procs = {proc for _, proc in expressions.id_bounds(self.query.constraint)}
            proc = procs.pop() if len(procs) == 1 else None
            for run in self.reader.queue(self._is_bare):
                if owners and run.cluster.owner not in owners:
                    continue
                if proc is None:
                    yield run
                elif run.first <= proc < run.first + run.count:
                    yield replace(run, first=proc, count=1)
            return
        wanted: dict[int, set[int | None]] = {}
        for number, proc in ids:
            wanted.setdefault(number, set()).add(proc)
        for cluster in self.reader.clusters(wanted):
            if owners and cluster.owner not in owners:
                continue
            procs, bare = wanted[cluster.id], self._is_bare(cluster)
            for proc in [None] if None in procs else sorted(found for found in procs if found is not None):
                yield from self.reader.runs(cluster, proc, bare)

    def _ended(self) -> Iterator[Run]:
        query, ids = self.query, self._ids()
        since = expressions.compiled(query.since) if query.since else None
        is_counted = since is not None or query.scan_limit is not None
        # What is looked at is counted, also what is of no use.
        runs = self.reader.history(None if is_counted else ids, query.forwards)
        wanted = None if ids is None or not is_counted else set(ids)
        for number, run in enumerate(runs):
            if number == query.scan_limit:
                return
            if since is not None and expressions.is_true(since.evaluate(self.job(run, run.first), self.now)):
                return
            names = {(run.cluster.id, run.first), (run.cluster.id, None)}
            if (wanted is None or wanted & names) and (not self.owners or run.cluster.owner in self.owners):
                yield run

    def _ids(self) -> list[tuple[int, int | None]] | None:
        """None: any."""
        if self.query.ids:
            return self.query.ids
        found = []
        for cluster, proc in expressions.id_bounds(self.query.constraint):
            if cluster is None:
                return None
            found.append((cluster, proc))
        return found

    def matching(self) -> Iterator[tuple[Run, Job]]:
        """Runs all of whose tasks match, each with its first task's ad."""
        left = self.query.limit
        for run, job in self._unlimited():
            if left is None:
                yield run, job
            elif left > 0:
                yield (run if run.count <= left else replace(run, count=left)), job
                left -= run.count
            else:
                return

    def _unlimited(self) -> Iterator[tuple[Run, Job]]:
        names = self.constraint.names if self.constraint else ()
        for run in self.candidates():
            job = self.job(run, run.first)
            if run.count == 1 or self.is_common(run, names, job):
                if self.is_match(job):
                    yield run, job
                continue
            for first, count in stretches(self._truths(run, job), run.first):
                yield replace(run, first=first, count=count), self.job(run, first)

    def _truths(self, run: Run, job: Job) -> Iterator[bool]:
        """Whether each proc of a run matches; `job` is the first."""
        procs = range(run.first, run.first + run.count)
        differing = self._differing(run, job)
        if self.constraint is None or differing is None:
            return (self.is_match(self.job(run, proc)) for proc in procs)
        return map(expressions.is_true, self.constraint.each(job, differing, procs, self.now))

    def _differing(self, run: Run, job: Job) -> dict[str, Callable[[int], expressions.Value]] | None:
        """What the constraint needs that is not the same for all procs of a run; None: each has to be looked at."""
        template = run.cluster.template
        if self.constraint is None or run.cluster.has_deltas:
            return None
        found: dict[str, Callable[[int], expressions.Value]] = {}
        for name in expressions.closure(self.constraint.names, job.get):
            if name in template.common.marked or scope(name, template, has_deltas=False) == Scope.PROC:
                value = job.find_by_proc(name)
                if value is None:
                    return None
                found[name] = value
        return found

    def job(self, run: Run, proc: int) -> Job:
        return self.reader.job(run, proc, self.now, self.head.schedd_name)

    def is_match(self, job: Job) -> bool:
        return self.constraint is None or expressions.is_true(self.constraint.evaluate(job, self.now))

    def is_common(self, run: Run, names: tuple[str, ...], job: Job) -> bool:
        """True when these attributes, and what they refer to, are the same for all procs of a run."""
        if run.facts is not NO_FACTS:
            return self._scope(run.cluster, names, job) < Scope.PROC
        key = (run.cluster.id, names)
        found = self._common.get(key)
        if found is None:
            found = self._common[key] = self._scope(run.cluster, names, job) < Scope.PROC
        return found

    def _scope(self, cluster: Cluster, names: Iterable[str], job: Job) -> Scope:
        return max(self._scopes(cluster, names, job), default=Scope.STATE)

    def _scopes(self, cluster: Cluster, names: Iterable[str], job: Job) -> set[Scope]:
        needed = expressions.closure(names, job.get)
        return {scope(name, cluster.template, cluster.has_deltas) for name in needed}

    # ---- counts

    def counts(self) -> Counter[State]:
        """Matching tasks by state, without looking at each where that can be."""
        if self.query.limit is None and not any(proc is not None for _, proc in self._ids() or ()):
            found = self._counted()
            if found is not None:
                return found
        found = Counter()
        for run, _ in self.matching():
            found[run.state] += run.count
        return found

    def _counted(self) -> Counter[State] | None:
        """None when the constraint needs more than cluster and state."""
        ids = self._ids()
        if ids is None and self.constraint is None:
            by_owner = self.reader.totals()
            wanted_owners = self.owners or set(by_owner)
            return sum([by_owner.get(owner, Counter()) for owner in wanted_owners], Counter())
        wanted = None if ids is None else [number for number, _ in ids]
        owners = self.owners
        found: Counter[State] = Counter()
        by_cluster = self.reader.counts(wanted)
        for cluster in self.reader.clusters(wanted):
            if owners and cluster.owner not in owners:
                continue
            for state, count in by_cluster.get(cluster.id, Counter()).items():
                if self.constraint is not None:
                    job = Job(cluster.template, 0, state, 0, NO_FACTS, self.now, self.head.schedd_name)
                    if self._scope(cluster, self.constraint.names, job) > Scope.STATE:
                        return None
                    if not self.is_match(job):
                        continue
                found[state] += count
        return found

    # ---- what is printed

    def _mask(self) -> Iterator[str]:
        mask = self.query.mask
        names = tuple(mask.names)
        widths = None
        if mask.headings:
            widths = [len(heading) for heading in mask.heading_fields()]
            for fields, _ in self._fields(names):
                widths = [max(width, len(field)) for width, field in zip(widths, fields, strict=True)]
            yield mask.row(mask.heading_fields(), widths)
        for fields, count in self._fields(names):
            line = mask.row(fields, widths)
            for done in range(0, count, _LINES):
                yield line * min(count - done, _LINES)

    def _fields(self, names: tuple[str, ...]) -> Iterator[tuple[list[str], int]]:
        """Fields of each line, and how many lines in a row have the same."""
        mask = self.query.mask
        for run, job in self.matching():
            if run.count == 1 or self.is_common(run, names, job):
                yield mask.fields(job, self.now, self.local), run.count
                continue
            for proc in range(run.first, run.first + run.count):
                yield mask.fields(self.job(run, proc), self.now, self.local), 1

    def _ads(self) -> Iterator[str]:
        ads = (
            self.job(run, proc).attributes(self.query.attributes)
            for run, _ in self.matching()
            for proc in range(run.first, run.first + run.count)
        )
        yield from printed(ads, self.query.output, always=self.query.tool == "condor_history")

    def _line(self, cluster: int, proc: int, rest: str) -> str:
        return tables.cut(f"{tables.job_name(cluster, proc)} {rest}", self.query.width)

    def _table(self) -> Iterator[str]:
        query = self.query
        if query.is_global and not self.reader.totals():
            yield "All queues are empty\n"
            return
        yield tables.heading(self.head.schedd_name, self.head.address, self.now, self.local)
        counts: Counter[State] = Counter()
        if query.output == "totals":
            counts = self.counts()
        elif query.output == "batch":
            batches = self._batches(counts)
            yield tables.batch_table(batches, self.local)
        else:
            yield tables.HEADINGS[query.output]
            yield from self._rows(counts)
        if query.output != "run":
            yield "\n" + self._totals(counts) + ("" if query.output == "totals" else "\n")

    def _rows(self, counts: Counter[State]) -> Iterator[str]:
        table = self.query.output
        names = tuple(tables.NAMES[table])
        for run, job in self.matching():
            counts[run.state] += run.count
            common = run.count == 1 or self.is_common(run, names, job)
            rest = tables.row(table, job, self.now, self.local, self.query.cumulative)
            lines = []
            for proc in range(run.first, run.first + run.count):
                if not common and proc != run.first:
                    rest = tables.row(table, self.job(run, proc), self.now, self.local, self.query.cumulative)
                lines.append(self._line(run.cluster.id, proc, rest))
                if len(lines) == _LINES:
                    yield "".join(lines)
                    lines.clear()
            yield "".join(lines)

    def _batches(self, counts: Counter[State]) -> list[Batch]:
        batches: dict[tuple[str, str], Batch] = {}
        clusters: set[int] = set()
        for run, job in self.matching():
            cluster = run.cluster
            name = tables.word(job, "jobbatchname") or f"ID: {cluster.id}"
            batch = batches.get((cluster.owner, name))
            if batch is None:
                batch = Batch(cluster.owner, name, cluster.template.submitted_at, first=(cluster.id, run.first))
                batches[cluster.owner, name] = batch
            if cluster.id not in clusters:
                clusters.add(cluster.id)
                batch.total += cluster.count
            batch.counts[CONDOR_STATUS[run.state]] += run.count
            batch.last = (cluster.id, run.first + run.count - 1)
            counts[run.state] += run.count
        return list(batches.values())

    def _summed(self, counts: Counter[State]) -> dict[str, Counter[int]]:
        """Of the query, of everybody and of the user, by what these are called in the summary ad."""
        by_owner = self.reader.totals()
        found = {"": counts, "Allusers": sum(by_owner.values(), Counter())}
        if self.user:
            found["My"] = by_owner.get(self.user, Counter())
        return {name: by_status(one) for name, one in found.items()}

    def _totals(self, counts: Counter[State]) -> str:
        found = self._summed(counts)
        if self.query.old_summary:
            return tables.totals("", found[""]) + "\n"
        lines = [tables.totals("query", found[""]) + " \n"]
        if "My" in found:
            lines.append(tables.totals(self.user, found["My"]) + " \n")
        lines.append(tables.totals("all users", found["Allusers"]) + "\n")
        return "".join(lines)

    def _analyze(self) -> Iterator[str]:
        yield tables.heading(self.head.schedd_name, self.head.address, self.now, self.local)
        for run, _ in self.matching():
            for proc in range(run.first, run.first + run.count):
                needs = self.reader.needs(run.cluster, proc)
                yield analysis(self.job(run, proc), needs, self.head)

    # ---- condor_status

    def _status(self) -> Iterator[str]:
        yield from AdList(self.query, self._pool_ads(), now=self.now, local=self.local).answer()

    def _pool_ads(self) -> list[poolads.PoolAd]:
        head, kind = self.head, self.query.kind
        ads: list[poolads.PoolAd] = []
        by_owner = {} if kind == "machines" else self.reader.totals()
        everybody = sum(by_owner.values(), Counter())
        if kind in ("schedd", "any"):
            ads.append(poolads.schedd_ad(head.schedd_name, head.address, len(by_owner), everybody, self.now))
        if kind in ("submitters", "any"):
            for owner, counts in sorted(by_owner.items()):
                ads.append(poolads.submitter_ad(owner, head.schedd_name, head.address, counts, self.now))
        if kind in ("master", "collector", "negotiator", "any"):
            ads += poolads.daemon_ads(kind, head, everybody, self.now)
        if kind in ("machines", "any"):
            slots = poolads.machine_ads(head.workers, self.now)
            ads += poolads.compact_ads(slots) if self.query.output == "compact" else slots
        return ads


def stretches(truths: Iterable[bool], first: int) -> Iterator[tuple[int, int]]:
    """(number, count) of each stretch of trues; the first of all has number `first`."""
    start = -1
    for number, truth in enumerate(chain(truths, (False,)), first):
        if truth and start < 0:
            start = number
        elif not truth and start >= 0:
            yield start, number - start
            start = -1


def by_status(counts: Counter[State]) -> Counter[int]:
    found: Counter[int] = Counter()
    for state, count in counts.items():
        found[CONDOR_STATUS[state]] += count
    return found
