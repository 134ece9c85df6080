"""From the rows of queue statements to clusters: one description, and per proc only what differs.

A description is made by sections. Each is made once with marks for the numbers; it is made again for every proc only
when it used a variable that differs, or must know the number. So a million procs that differ by `$(Process)` in names
alone cost as much as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from pilotq.condor import attributes, payload, transfers
from pilotq.condor.job import Job, Parts
from pilotq.condor.jobfile import job_file
from pilotq.condor.lexer import SubmitError
from pilotq.condor.macro_functions import NeedsProc
from pilotq.condor.queue import Rows
from pilotq.model import CLUSTER_MARK, PROC_MARK, ClusterBody, Description, Submission

Section = Callable[[Job, Parts], None]

#: In the order in which what is wrong is reported; of equal attributes the last section's counts.
SECTIONS: tuple[Section, ...] = (
    attributes.on_universe,
    transfers.on_place,
    transfers.on_files,
    payload.on_arguments,
    payload.on_environment,
    payload.on_commands,
    transfers.on_streams,
    transfers.on_outputs,
    attributes.on_needs,
    attributes.on_limits,
    attributes.on_policies,
    attributes.on_matching,
    attributes.on_identity,
    attributes.on_plain,
    attributes.on_forced,
)
#: Those that ask the user's side; the others need not be made for each proc while answers are missing.
_ASKING = frozenset({transfers.on_place, transfers.on_files, transfers.on_streams})
#: What the master looks at by cluster, with the keyword that sets it: such fields cannot differ between procs.
_OF_CLUSTER = {
    "needs": "request_cpus, request_memory, request_disk or request_gpus",
    "priority": "priority",
    "policies": "a periodic_*, on_exit_* or leave_in_queue expression",
    "hold_reason": "hold",
    "lease_s": "job_lease_duration",
}
#: Procs that differ.
DELTAS_MAX = 2_000_000

_pack = msgspec.msgpack.Encoder().encode
_NO_CHANGE = _pack({})


class _Cluster:
    """One cluster while it grows."""

    def __init__(self, base: list[Parts]) -> None:
        self.base = base
        self.forced = frozenset(base[-1].ad)
        self.count = 0
        #: Packed, one per proc; shorter than `count` when the procs before had none that differ.
        self.deltas: list[bytes] = []

    def add(self, count: int, delta: bytes) -> None:
        """Procs that are alike."""
        if self.deltas or delta != _NO_CHANGE:
            if self.count + count > DELTAS_MAX:
                raise SubmitError(f"more than {DELTAS_MAX} jobs that are not alike in one cluster")
            self.deltas += [_NO_CHANGE] * (self.count - len(self.deltas))
            self.deltas += [delta] * count
        self.count += count


class Procs:
    """Collects the clusters of one submission."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.clusters: list[_Cluster] = []

    def add(self, rows: Rows) -> None:
        """Plan the procs of a queue statement.

        Raises: SubmitError.
        """
        if not rows.total:
            return
        cluster = self.clusters[-1] if self.clusters else None
        run = _Run(self.job, rows, cluster.count if cluster else 0)
        parts, varying = run.begin()
        if cluster is not None and (reason := _new_cluster(cluster.base, parts)):
            if reason != "executable":
                self.job.warn(f"{reason} is not that of the queue statement before: the jobs are numbered from 0 again")
            cluster = None
            run = _Run(self.job, rows, 0)
            parts, varying = run.begin()
        if cluster is None:
            cluster = _Cluster(parts)
            self.clusters.append(cluster)
        common: dict[str, Any] = {}
        for index, section in enumerate(parts):
            if index not in varying:
                _add_changes(common, cluster.base, index, section, cluster.forced)
        if not varying:
            cluster.add(rows.total, _pack(common))
            return
        for changed in run.each(varying):
            delta = dict(common)
            if "ad" in delta:
                delta["ad"] = dict(delta["ad"])
            for index, section in changed:
                _refuse_differences(parts[index], section)
                _add_changes(delta, cluster.base, index, section, cluster.forced)
            cluster.add(1, _pack(delta))

    def submissions(self) -> list[Submission]:
        return [_submission(cluster, self.job) for cluster in self.clusters]


class _Run:
    """The procs of one queue statement, one after the other."""

    def __init__(self, job: Job, rows: Rows, first: int) -> None:
        self.job = job
        self.rows = rows
        self.first = first
        #: Variables besides the number of the proc that differ between procs.
        self.differing: set[str] = set()
        self.marks = self._marks()
        #: Sections that must know the number.
        self.numbered: set[int] = set()

    def _marks(self) -> dict[str, str]:
        """What stands for itself in every proc of the run: marks, and what is always 0."""
        rows, plain = self.rows, self.first == 0
        marks = {"cluster": CLUSTER_MARK, "clusterid": CLUSTER_MARK, "process": PROC_MARK, "procid": PROC_MARK}
        if len(rows.rows) == 1 and plain:
            marks["step"] = PROC_MARK
        elif rows.count > 1:
            self.differing.add("step")
        if rows.count == 1 and plain and rows.whole:
            marks["row"] = marks["itemindex"] = PROC_MARK
        elif len(rows.rows) > 1:
            self.differing |= {"row", "itemindex"}
        if len(rows.rows) > 1:
            self.differing |= {*rows.names, "item"}
        return marks

    def _bind(self, place: int, numbered: bool) -> None:
        """Let variables stand for the proc at this place of the run."""
        row, step = divmod(place, self.rows.count)
        index, text = self.rows.rows[row]
        proc = self.first + place
        numbers = {"node": "", "item": "", "step": str(step), "row": str(index), "itemindex": str(index), **self.marks}
        if numbered:
            numbers |= dict.fromkeys([name for name, mark in self.marks.items() if mark == PROC_MARK], str(proc))
        self.job.macros.numbers = numbers
        self.job.macros.variables = dict(self.rows.values(text))
        self.job.proc = proc

    def begin(self) -> tuple[list[Parts], set[int]]:
        """The sections of the first proc, and which of them differ between procs."""
        varying: set[int] = set()
        parts: list[Parts] = []
        for index, section in enumerate(SECTIONS):
            self._bind(0, False)
            try:
                made = self._make(section)
            except NeedsProc:
                self.numbered.add(index)
                self._bind(0, True)
                made = self._make(section)
            if index in self.numbered or self.job.macros.touched & self.differing:
                varying.add(index)
            parts.append(made)
        return parts, varying if self.rows.total > 1 else set()

    def each(self, varying: set[int]) -> Iterator[list[tuple[int, Parts]]]:
        """The sections that differ, proc by proc."""
        by_mark = sorted(varying - self.numbered)
        by_number = sorted(varying & self.numbered)
        for place in range(self.rows.total):
            made: list[tuple[int, Parts]] = []
            for indexes, numbered in ((by_mark, False), (by_number, True)):
                if indexes:
                    self._bind(place, numbered)
                    waiting = bool(self.job.side.wants)
                    made += [(i, self._make(SECTIONS[i])) for i in indexes if not waiting or SECTIONS[i] in _ASKING]
            yield made

    def _make(self, section: Section) -> Parts:
        self.job.macros.begin()
        parts = Parts()
        section(self.job, parts)
        return parts


# ---- what differs ------------------------------------------------------------------------------------------------

_DEFAULTS: dict[str, Any] = {
    **{
        name: value
        for name, value in zip(
            Description.__struct_fields__[-len(Description.__struct_defaults__) :],
            Description.__struct_defaults__,
            strict=True,
        )
    },
    **{
        name: value
        for name, value in zip(
            ClusterBody.__struct_fields__[-len(ClusterBody.__struct_defaults__) :],
            ClusterBody.__struct_defaults__,
            strict=True,
        )
    },
}


def _default(name: str) -> Any:
    value = _DEFAULTS[name]
    return value.factory() if hasattr(value, "factory") else value


def _add_changes(delta: dict[str, Any], base: list[Parts], index: int, section: Parts, forced: frozenset[str]) -> None:
    """Put into a delta what a section gives otherwise than the cluster's."""
    before = base[index]
    for old, new in ((before.description, section.description), (before.body, section.body)):
        if old == new:
            continue
        for name in {**old, **new}:
            value = new[name] if name in new else _default(name)
            if name not in old or old[name] != value:
                delta[name] = value
    if before.ad != section.ad:
        last = index == len(base) - 1
        changes = delta.setdefault("ad", {})
        for name in {**before.ad, **section.ad}:
            text = section.ad.get(name, "undefined")
            if before.ad.get(name) != text and (last or name not in forced):
                changes[name] = text


def _of_cluster(parts: Parts) -> dict[str, Any]:
    return {name: fields[name] for fields in (parts.description, parts.body) for name in _OF_CLUSTER if name in fields}


def _refuse_differences(first: Parts, other: Parts) -> None:
    ours, theirs = _of_cluster(first), _of_cluster(other)
    for name, keyword in _OF_CLUSTER.items():
        if ours.get(name) != theirs.get(name):
            raise SubmitError(
                f"{keyword} differs between the jobs of one queue statement, which is not supported by pilotq yet: "
                "use a queue statement for each value"
            )


def _new_cluster(base: list[Parts], parts: list[Parts]) -> str:
    """Why the jobs cannot be in the cluster of the ones before; ""."""
    if any(old.ad.get("Cmd") != new.ad.get("Cmd") for old, new in zip(base, parts, strict=True)):
        return "executable"
    for old, new in zip(base, parts, strict=True):
        ours, theirs = _of_cluster(old), _of_cluster(new)
        for name, keyword in _OF_CLUSTER.items():
            if ours.get(name) != theirs.get(name):
                return keyword
    return ""


def _submission(cluster: _Cluster, job: Job) -> Submission:
    description: dict[str, Any] = {}
    body: dict[str, Any] = {"owner": job.side.request.user, "submitted_at": job.now}
    ad: dict[str, str] = {}
    for parts in cluster.base:
        description |= parts.description
        body |= parts.body
        ad |= parts.ad
    made = ClusterBody(**body, ad=ad)
    description["job_ad"] = job_file(made, job.site)
    return Submission(made, Description(**description), cluster.count, cluster.deltas)
