"""From the rows of queue statements to clusters: one description, and per proc only what differs.

A description is made by sections. Each is made once with marks for the numbers; it is made again for every proc only
when it used a variable that differs, or must know the number. So a million procs that differ by `$(Process)` in names
alone cost as much as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from pilotq.condor import attributes, needs, payload, transfers
from pilotq.condor.expressions import quote
from pilotq.condor.job import Job, Parts
from pilotq.condor.jobad import DEFAULTS
from pilotq.condor.jobfile import job_file
from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.macro_functions import NeedsProc
from pilotq.condor.queue import Rows
from pilotq.core.tasks import POLICY_ATTRIBUTES
from pilotq.deltas import HOLES, TEXT_MAX, Blocks, Form
from pilotq.model import CLUSTER_MARK, PROC_MARK, ClusterBody, Description, Resources, Submission

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
    needs.on_needs,
    needs.on_limits,
    attributes.on_policies,
    needs.on_matching,
    attributes.on_identity,
    attributes.on_plain,
    attributes.on_forced,
)
#: Those that ask the user's side; the others need not be made for each proc while answers are missing.
_ASKING = frozenset({transfers.on_place, transfers.on_files, transfers.on_streams})
#: Those that give what the master looks at by cluster.
_DECIDING = frozenset({needs.on_needs, attributes.on_policies, attributes.on_identity})
#: What the master looks at by cluster: where procs differ in it, the cluster has what is enough for all of them.
_OF_CLUSTER = frozenset({"needs", "priority", "policies", "hold_reason", "lease_s"})
#: Those that take values of rows as they are, when these have nothing in them that means something to them.
_FILLABLE = frozenset({payload.on_arguments, payload.on_environment, transfers.on_streams})
_PLAIN = re.compile(rf"[\w.:@%+,~/#-]{{1,{TEXT_MAX}}}").fullmatch
#: So that nothing filled in becomes too long for an argument.
_FORM_LONGEST = 3000
#: Sections remembered for each set of variables they used, and forms of deltas.
_MADE_MAX = 1000
#: Procs that differ.
DELTAS_MAX = 2_000_000

_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode
_NO_CHANGE = Form.whole(_encode({}))


def _pack(value: Any, pack: Callable[[Any], _T]) -> _T:
    """Raises: SubmitError for text that is not UTF-8, as no message could carry it."""
    try:
        return pack(value)
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
        #: Of none as long as no proc is different.
        self.deltas = Blocks()
        #: Of `_OF_CLUSTER`: what is enough for all procs.
        self.fields: dict[str, Any] = {}
        #: Policies that are not the same for all: each proc has its own in its ad.
        self.own_policies: set[str] = set()
        for section in base:
            self.fields |= _of_cluster(section)

    def meet(self, section: Parts, job: Job) -> None:
        """One more proc is to be of this cluster.

        Raises: SubmitError when it cannot be.
        """
        for name, value in _of_cluster(section).items():
            known = self.fields.get(name, _default(name))
            if value == known:
                continue
            if name == "hold_reason":
                raise SubmitError("hold differs between the jobs of a queue statement: use a queue statement for each")
            if name == "policies":
                self.own_policies |= {key for key in {**known, **value} if known.get(key) != value.get(key)}
                self.fields[name] = {**known, **value}
            elif name == "needs":
                job.warn("request_* differs between the jobs of a cluster: each gets a slot for the largest request")
                self.fields[name] = Resources(*map(max, _amounts(known), _amounts(value)))
            else:
                if name == "priority":
                    job.warn("priority differs between the jobs of a cluster: pilotq orders them by the highest")
                self.fields[name] = max(known, value)

    def add(self, form: Form, texts: Sequence[str] = (), count: int = 1) -> None:
        """Procs that are alike."""
        deltas = self.deltas
        if deltas.count or form.packed != _NO_CHANGE.packed:
            if self.count + count > DELTAS_MAX:
                raise SubmitError(f"more than {DELTAS_MAX} jobs that are not alike in one cluster")
            if deltas.count < self.count:
                deltas.add(_NO_CHANGE, count=self.count - deltas.count)
            deltas.add(form, texts, count)
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
            if SECTIONS[index] in _DECIDING:
                cluster.meet(section, self.job)
            if index not in varying:
                _add_changes(common, cluster.base, index, section, cluster.forced)
        if varying:
            self._add_each(cluster, run, parts, varying, common)
        else:
            cluster.add(Form.whole(_pack(common, _encode)) if common else _NO_CHANGE, count=rows.total)

    def _add_each(
        self, cluster: _Cluster, run: _Run, parts: list[Parts], varying: set[int], common: dict[str, Any]
    ) -> None:
        """Procs that differ in some sections."""

        def delta(sections: Iterable[tuple[int, Parts]]) -> dict[str, Any]:
            changes = dict(common)
            if "ad" in common:
                changes["ad"] = dict(common["ad"])
            for index, section in sections:
                if SECTIONS[index] in _DECIDING:
                    cluster.meet(section, self.job)
                _add_changes(changes, cluster.base, index, section, cluster.forced)
            return changes

        forms = run.forms(varying)
        all_varying, others = sorted(varying), sorted(varying - forms.keys())
        asking = [index for index in all_varying if SECTIONS[index] in _ASKING]
        known: dict[tuple[Parts, ...], Form] = {}
        wants = self.job.side.wants
        for place in range(run.rows.total):
            run.go(place)
            if wants:
                # All is planned again once they are answered; now only what else is to be asked counts.
                run.make(asking)
                continue
            is_plain = bool(forms) and run.is_plain()
            indexes = others if is_plain else all_varying
            made = run.make(indexes) if indexes else []
            if wants:
                continue
            if not is_plain:
                cluster.add(Form.whole(_pack(delta(made), _encode)))
                continue
            key = tuple([section for _, section in made])
            form = known.get(key)
            if form is None:
                if len(known) >= _MADE_MAX:
                    known.clear()
                form = known[key] = _pack(delta([*forms.items(), *made]), Form.of)
            cluster.add(form, run.texts)

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
        #: Columns of variables that are parts of paths in forms.
        self.in_paths: list[int] = []
        #: Where a form sends standard output and error; equal paths are not what two that differ by marks are.
        self.streams = ("", "")
        #: The present proc: its place in the run, its row, the values there, and its number among those of the row.
        self.place, self.row, self.step = 0, -1, 0
        self.texts: Sequence[str] = ()
        self._columns = {name: column for column, name in enumerate(rows.names)}
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

    def go(self, place: int) -> None:
        """To the proc at this place of the run."""
        row, self.step = divmod(place, self.rows.count)
        if row != self.row:
            self.row = row
            self.texts = self.rows.values(self.rows.rows[row])
        self.place = place

    def _bind(self, numbered: bool) -> None:
        """Let variables stand for the present proc."""
        proc = self.first + self.place
        index = str(self.rows.numbers[self.row])
        numbers = {"node": "", "item": "", "step": str(self.step), "row": index, "itemindex": index, **self.marks}
        if numbered:
            numbers |= dict.fromkeys([name for name, mark in self.marks.items() if mark == PROC_MARK], str(proc))
        self.job.macros.numbers = numbers
        self.job.macros.variables = dict(zip(self.rows.names, self.texts, strict=True))
        self.job.proc = proc

    def _value(self, name: str) -> str:
        """What a variable that differs between procs is for the present one."""
        column = self._columns.get(name)
        if column is not None:
            return self.texts[column]
        if name == "step":
            return str(self.step)
        return "" if name == "item" else str(self.rows.numbers[self.row])

    def begin(self) -> tuple[list[Parts], set[int]]:
        """The sections of the first proc, and which of them differ between procs."""
        varying: set[int] = set()
        parts: list[Parts] = []
        self.go(0)
        self._bind(False)
        for index, section in enumerate(SECTIONS):
            try:
                made = self._make(section)
            except NeedsProc:
                self.numbered.add(index)
                self._bind(True)
                made = self._make(section)
                self._bind(False)
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
        if len(names) > len(HOLES):
            return forms
        self._bind(False)
        self.job.macros.variables = dict(zip(names, HOLES, strict=False))
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
                    self.in_paths = [self._columns[name] for name in touched]
                    self.streams = parts.body.get("stdout", ""), parts.body.get("stderr", "")
        return forms

    def is_plain(self) -> bool:
        """May the forms be filled in with the values of the present row?"""
        texts = self.texts
        for text in texts:
            if not _PLAIN(text):
                return False
        for column in self.in_paths:
            if "/" in texts[column]:
                return False
        out, err = self.streams
        return out == err or _filled(out, texts) != _filled(err, texts)

    def make(self, indexes: list[int]) -> list[tuple[int, Parts]]:
        """Some sections of the present proc."""
        found: list[tuple[int, Parts]] = []
        for index in indexes:
            section = SECTIONS[index]
            if index in self.numbered:
                self._bind(True)
                parts = self._make(section)
            else:
                parts = self._make_once(section)
            found.append((index, parts))
        return found

    def _make_once(self, section: Section) -> Parts:
        """A section that was made before with the same values of all variables it used is not made again."""
        known = self._made.setdefault(section, {})
        for names, sections in known.items():
            parts = sections.get(tuple([self._value(name) for name in names]))
            if parts is not None:
                return parts
        self._bind(False)
        parts = self._make(section)
        names = tuple(sorted(self.job.macros.touched & self.differing))
        sections = known.setdefault(names, {})
        if len(sections) >= _MADE_MAX:
            sections.clear()
        sections[tuple([self._value(name) for name in names])] = parts
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
            if name in _OF_CLUSTER:
                continue
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


def _filled(text: str, texts: Sequence[str]) -> str:
    for hole, value in zip(HOLES, texts, strict=False):
        text = text.replace(hole, value)
    return text


def _of_cluster(parts: Parts) -> dict[str, Any]:
    """Those fields of a section, also where they are not given in it but may be in that of another proc."""
    given = {name: fields[name] for fields in (parts.description, parts.body) for name in _OF_CLUSTER if name in fields}
    return {**{name: _default(name) for name in parts.decides}, **given}


def _amounts(needs: Resources) -> tuple[Any, ...]:
    return tuple(getattr(needs, name) for name in Resources.__struct_fields__)


def _new_cluster(base: list[Parts], parts: list[Parts]) -> str:
    """Why the jobs cannot be in the cluster of the ones before; ""."""
    for old, new in zip(base, parts, strict=True):
        if old.ad.get("Cmd") != new.ad.get("Cmd"):
            return "executable"
        if old.ad.get("JobUniverse") != new.ad.get("JobUniverse"):
            return "universe"
        if old.body.get("hold_reason") != new.body.get("hold_reason"):
            return "hold"
    return ""


def _submission(cluster: _Cluster, job: Job) -> Submission:
    description: dict[str, Any] = {}
    body: dict[str, Any] = {"owner": job.side.request.user, "submitted_at": job.now}
    ad: dict[str, str] = {}
    for parts in cluster.base:
        description |= parts.description
        body |= parts.body
        ad |= parts.ad
    for name, value in cluster.fields.items():
        (description if name in Description.__struct_fields__ else body)[name] = value
    for keyword in cluster.own_policies:
        attribute = POLICY_ATTRIBUTES[keyword]
        ad.setdefault(attribute, "undefined")
        body["policies"] = {**body["policies"], keyword: attribute}
    attributes = {**DEFAULTS, **ad, **_identity(job)}
    description["job_ad"] = job_file(attributes)
    submission = Submission(
        ClusterBody(**body, ad=ad), Description(**description), cluster.count, cluster.deltas.packed()
    )
    _pack((submission.body, submission.description), _encode)
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
