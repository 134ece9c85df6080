"""From the rows of queue statements to clusters: one description, and per proc only what differs.

A description is made by sections. Each is made once with marks for the numbers; it is made again for every proc only
when it used a variable that differs, or must know the number. So a million procs that differ by `$(Process)` in names
alone cost as much as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from pilotq.condor import attributes, payload, transfers
from pilotq.condor.expressions import quote
from pilotq.condor.job import Job, Parts
from pilotq.condor.jobad import DEFAULTS
from pilotq.condor.jobfile import job_file
from pilotq.condor.lexer import SubmitError, shown
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
#: Those that give what the master looks at by cluster.
_DECIDING = frozenset({attributes.on_needs, attributes.on_policies, attributes.on_identity})
#: What the master looks at by cluster, with the keyword that sets it: such fields cannot differ between procs.
_OF_CLUSTER = {
    "needs": "request_cpus, request_memory, request_disk or request_gpus",
    "priority": "priority",
    "policies": "a periodic_*, on_exit_* or leave_in_queue expression",
    "hold_reason": "hold",
    "lease_s": "job_lease_duration",
}
#: Those that take values of rows as they are, when these have nothing in them that means something to them.
_FILLABLE = frozenset({payload.on_arguments, payload.on_environment, transfers.on_streams})
_PLAIN = re.compile(r"[\w.:@%+,~/#-]{1,200}")
_ROW_MARKS = ["\x00" + letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
#: So that nothing filled in becomes too long for an argument.
_FORM_LONGEST = 3000
#: Sections remembered for each set of variables they used.
_MADE_MAX = 1000
#: Procs that differ.
DELTAS_MAX = 2_000_000

_encode = msgspec.msgpack.Encoder().encode
_NO_CHANGE = _encode({})


def _pack(value: Any) -> bytes:
    """Raises: SubmitError for text that is not UTF-8, as no message could carry it."""
    try:
        return _encode(value)
    except UnicodeEncodeError as error:
        raise SubmitError(
            f"names and values that are not UTF-8 are not supported by pilotq: {shown(error.object)}"
        ) from None


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
        forms = run.forms(varying)
        form: dict[str, Any] = {}
        for index, section in forms.items():
            _add_changes(form, cluster.base, index, section, cluster.forced)
        others = varying - forms.keys()
        for place in range(rows.total):
            values = run.plain_values(place, forms)
            made = run.make(place, others if values else varying)
            if self.job.side.wants:
                # All is planned again once they are answered; now only what else is to be asked counts.
                continue
            delta = {**common, **_filled(form, values)} if values else dict(common)
            if "ad" in common:
                delta["ad"] = common["ad"] | delta["ad"]
            for index, section in made:
                if SECTIONS[index] in _DECIDING:
                    _refuse_differences(parts[index], section)
                _add_changes(delta, cluster.base, index, section, cluster.forced)
            cluster.add(1, _pack(delta))

    def submissions(self) -> list[Submission]:
        return [_submission(cluster, self.job) for cluster in self.clusters]


class _Run:
    """The procs of one queue statement, one after the other."""

    def __init__(self, job: Job, rows: Rows, first: int) -> None:
        job.begin()
        self.job = job
        self.rows = rows
        self.first = first
        #: Variables besides the number of the proc that differ between procs.
        self.differing: set[str] = set()
        self.marks = self._marks()
        #: Sections that must know the number.
        self.numbered: set[int] = set()
        #: Variables that are parts of paths in forms.
        self.in_paths: set[str] = set()
        #: Where a form sends standard output and error; equal paths are not what two that differ by marks are.
        self.streams = ("", "")
        #: By section, names of the variables it used, and their values.
        self._made: dict[Section, dict[tuple[str, ...], dict[tuple[str | None, ...], Parts]]] = {}

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
        self._bind(0, False)
        for index, section in enumerate(SECTIONS):
            try:
                made = self._make(section)
            except NeedsProc:
                self.numbered.add(index)
                self._bind(0, True)
                made = self._make(section)
                self._bind(0, False)
            if index in self.numbered or self.job.macros.touched & self.differing:
                varying.add(index)
            parts.append(made)
        return parts, varying if self.rows.total > 1 else set()

    def forms(self, varying: set[int]) -> dict[int, Parts]:
        """Sections to be filled in for each row instead of made: with marks for the row's variables.

        They are only those that take a value as it is, as long as it is plain.
        """
        names = self.rows.names
        forms: dict[int, Parts] = {}
        if len(names) > len(_ROW_MARKS):
            return forms
        self._bind(0, False)
        self.job.macros.variables = dict(zip(names, _ROW_MARKS, strict=False))
        for index in varying - self.numbered:
            if SECTIONS[index] not in _FILLABLE:
                continue
            try:
                parts = self._make(SECTIONS[index])
            except (NeedsProc, SubmitError):
                continue
            touched = self.job.macros.touched & self.differing
            if touched <= set(names) and len(str(parts)) < _FORM_LONGEST:
                forms[index] = parts
                if SECTIONS[index] is transfers.on_streams:
                    self.in_paths = touched
                    self.streams = parts.body.get("stdout", ""), parts.body.get("stderr", "")
        return forms

    def plain_values(self, place: int, forms: dict[int, Parts]) -> list[tuple[str, str]]:
        """Marks of the row's variables and their values; none when forms cannot be filled with them."""
        if not forms:
            return []
        values = []
        pairs = self.rows.values(self.rows.rows[place // self.rows.count][1])
        for mark, (name, value) in zip(_ROW_MARKS, pairs, strict=False):
            if not _PLAIN.fullmatch(value) or (name in self.in_paths and "/" in value):
                return []
            values.append((mark, value))
        out, err = self.streams
        if out != err and _filled(out, values) == _filled(err, values):
            return []
        return values

    def make(self, place: int, indexes: set[int]) -> list[tuple[int, Parts]]:
        """Some sections of the proc at this place."""
        found: list[tuple[int, Parts]] = []
        for numbered in (False, True):
            todo = [index for index in indexes if (index in self.numbered) is numbered]
            if self.job.side.wants:
                todo = [index for index in todo if SECTIONS[index] in _ASKING]
            if todo:
                self._bind(place, numbered)
                make = self._make if numbered else self._make_once
                found += [(index, make(SECTIONS[index])) for index in sorted(todo)]
        return found

    def _make_once(self, section: Section) -> Parts:
        """A section that was made before with the same values of all variables it used is not made again."""
        macros = self.job.macros
        known = self._made.setdefault(section, {})
        for names, sections in known.items():
            parts = sections.get(tuple([macros.value(name) for name in names]))
            if parts is not None:
                return parts
        parts = self._make(section)
        names = tuple(sorted(macros.touched & self.differing))
        sections = known.setdefault(names, {})
        if len(sections) >= _MADE_MAX:
            sections.clear()
        sections[tuple([macros.value(name) for name in names])] = parts
        return parts

    def _make(self, section: Section) -> Parts:
        self.job.macros.begin()
        parts = Parts()
        section(self.job, parts)
        return parts


# ---- what differs ------------------------------------------------------------------------------------------------

_FIELDS = {field.name: field for struct in (Description, ClusterBody) for field in msgspec.structs.fields(struct)}


def _default(name: str) -> Any:
    field = _FIELDS[name]
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


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


def _filled(value: Any, values: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        if "\x00" in value:
            for mark, text in values:
                value = value.replace(mark, text)
        return value
    if isinstance(value, dict):
        return {_filled(name, values): _filled(item, values) for name, item in value.items()}
    return [_filled(item, values) for item in value] if isinstance(value, list) else value


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
    attributes = {**DEFAULTS, **ad, **_identity(job)}
    description["job_ad"] = job_file(attributes)
    submission = Submission(ClusterBody(**body, ad=ad), Description(**description), cluster.count, cluster.deltas)
    _pack((submission.body, submission.description))
    return submission


def _identity(job: Job) -> dict[str, str]:
    """What tells one job from all others; the head's view has its own rules for these."""
    owner, site, moment = job.side.request.user, job.site.schedd_name, int(job.now)
    return {
        "ClusterId": CLUSTER_MARK,
        "ProcId": PROC_MARK,
        "Owner": quote(owner),
        "User": quote(f"{owner}@{site}"),
        "QDate": str(moment),
        "GlobalJobId": quote(f"{site}#{CLUSTER_MARK}.{PROC_MARK}#{moment}"),
    }
