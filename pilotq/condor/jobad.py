"""The job ad of a task: attribute -> expression text in old ClassAd syntax.

What never changes is in the cluster's body and prepared once (`Template`); what changes is a table of rules over the
task's state and facts (`RULES`). A `Job` computes an attribute when it is asked for, so that a query that wants two
attributes of a hundred thousand tasks pays for two.

Source: HTCondor manual, job ClassAd attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import lru_cache
from typing import Any

import msgspec

from pilotq import __version__
from pilotq.condor.expressions import Value, literal, printable, quote
from pilotq.condor.jobrules import LOOKUP, RULES, Rule
from pilotq.core.tasks import POLICY_ATTRIBUTES
from pilotq.model import CLUSTER_MARK, PROC_MARK, ClusterBody, Facts, State, fill

#: What clients read that ask for HTCondor's version, and how a client of ours knows it has pilotq before it.
CONDOR_VERSION = f"$CondorVersion: 24.0.0 2024-10-31 BuildID: pilotq-{__version__} $"
CONDOR_PLATFORM = "$CondorPlatform: X86_64-pilotq $"

#: Of every job, unless its cluster says otherwise.
DEFAULTS = {
    "MyType": '"Job"',
    "TargetType": '"Machine"',
    "JobUniverse": "5",
    "CondorVersion": quote(CONDOR_VERSION),
    "CondorPlatform": quote(CONDOR_PLATFORM),
    "MinHosts": "1",
    "MaxHosts": "1",
    "NumCkpts": "0",
    "NumRestarts": "0",
    "TotalSuspensions": "0",
    "LastSuspensionTime": "0",
    "CommittedSuspensionTime": "0",
    "CumulativeSuspensionTime": "0",
    "ExitStatus": "0",
    "ImageSize": "0",
    "DiskUsage": "0",
    "In": '"/dev/null"',
    "Out": '"/dev/null"',
    "Err": '"/dev/null"',
    "LeaveJobInQueue": "false",
}
#: Field of a body -> attribute, for strings; and all fields that attributes are made of.
_QUOTED = {"log": "UserLog", "batch_name": "JobBatchName", "iwd": "Iwd"}
_FIELDS = ("ad", "policies", "priority", "hold_reason", *_QUOTED)

_decode_body = msgspec.msgpack.Decoder(ClusterBody)


def body_of(packed: bytes, delta: bytes = b"") -> ClusterBody:
    """A packed body, with a packed delta merged into it; marks are left in."""
    body = _decode_body.decode(packed)
    if not delta:
        return body
    changes: dict[str, Any] = {
        name: value for name, value in msgspec.msgpack.decode(delta).items() if name in ClusterBody.__struct_fields__
    }
    if "ad" in changes:
        changes["ad"] = {**body.ad, **changes["ad"]}
    return msgspec.structs.replace(body, **changes)


class Common:
    """What the ads of a cluster (or of one job with a delta) have in common: the part made from the body."""

    def __init__(self, body: ClusterBody, cluster: int) -> None:
        self.cluster = cluster
        self.hold_reason = body.hold_reason
        self.batch_name = body.batch_name
        self.iwd = body.iwd
        #: name in lower case -> (name as written, text).
        self.texts = {name.lower(): _shared(name, text) for name, text in DEFAULTS.items()}
        #: Names of attributes that differ by proc.
        self.marked: frozenset[str] = frozenset()
        self._order: list[tuple[str, str, Rule | None]] = []
        self._set(_attributes({name: getattr(body, name) for name in _FIELDS}))

    def _set(self, attributes: dict[str, str]) -> None:
        marked = set(self.marked)
        for name, text in attributes.items():
            lower = _lowered(name)
            written = self.texts[lower][0] if lower in self.texts else name
            filled = text.replace(CLUSTER_MARK, str(self.cluster))
            self.texts[lower] = _shared(written, filled)
            (marked.add if PROC_MARK in filled else marked.discard)(lower)
        self.marked = frozenset(marked)
        self._order = []

    @property
    def order(self) -> list[tuple[str, str, Rule | None]]:
        """All attributes in the order they are printed: lower case, as written, rule."""
        if not self._order:
            self._order = _ordered(tuple([entry[0] for entry in self.texts.values()]))
        return self._order

    def with_edits(self, changes: Mapping[str, str]) -> Common:
        """That of tasks of which these attributes were changed."""
        made = copy(self)
        made.texts = dict(self.texts)
        made._set(dict(changes))
        return made

    def with_delta(self, packed: bytes) -> Common:
        """That of one proc."""
        changes: dict[str, Any] = msgspec.msgpack.decode(packed)
        known = {name: changes[name] for name in _FIELDS if name in changes}
        if not known:
            return self
        made = copy(self)
        made.texts = dict(self.texts)
        made._set(_attributes(known))
        made.hold_reason = known.get("hold_reason", self.hold_reason)
        return made


#: Most clusters of a submitter differ in few attributes; the others are kept once.
_SHARED_MAX = 50_000
_kept: dict[tuple[str, str], tuple[str, str]] = {}


@lru_cache(4096)
def _lowered(name: str) -> str:
    return name.lower()


def _shared(name: str, text: str) -> tuple[str, str]:
    if len(_kept) >= _SHARED_MAX:
        _kept.clear()
    entry = (name, text)
    return _kept.setdefault(entry, entry)


@lru_cache(256)
def _ordered(names: tuple[str, ...]) -> list[tuple[str, str, Rule | None]]:
    written = {name.lower(): name for name in (*RULES, *names)}
    return [(name, written[name], LOOKUP.get(name)) for name in sorted(written)]


class Template:
    """A cluster as its jobs see it; what takes its body is made when first needed.

    Units: submitted_at in seconds since 1970.
    """

    __slots__ = ("_common", "_load", "cluster", "count", "owner", "queued_at", "submitted_at")
    cluster: int
    count: int
    #: As expression texts.
    owner: str
    queued_at: str
    submitted_at: float

    def __init__(self, body: ClusterBody, cluster: int, count: int) -> None:
        self._fill(cluster, count, body.owner, body.submitted_at)
        self._load: Callable[[], Common] = lambda: Common(body, cluster)

    def _fill(self, cluster: int, count: int, owner: str, submitted_at: float) -> None:
        self.cluster = cluster
        self.count = count
        self.submitted_at = submitted_at
        self.queued_at = str(int(submitted_at))
        self.owner = quote(owner)
        self._common: Common | None = None

    @classmethod
    def deferred(
        cls, cluster: int, count: int, owner: str, submitted_at: float, load: Callable[[], Common]
    ) -> Template:
        """One from columns, `load` gives the rest."""
        made = cls.__new__(cls)
        made._fill(cluster, count, owner, submitted_at)
        made._load = load
        return made

    @property
    def common(self) -> Common:
        if self._common is None:
            self._common = self._load()
        return self._common

    def with_edits(self, changes: Mapping[str, str]) -> Template:
        """That of tasks of which these attributes were changed."""
        made = copy(self)
        made._common = self.common.with_edits(changes)
        return made

    def with_delta(self, packed: bytes) -> Template:
        """That of one proc."""
        made = copy(self)
        made._common = self.common.with_delta(packed)
        return made


def _attributes(fields: Mapping[str, Any]) -> dict[str, str]:
    """What fields of a body, or of a delta, say as attributes."""
    found: dict[str, str] = {}
    for keyword, text in fields.get("policies", {}).items():
        found[POLICY_ATTRIBUTES.get(keyword, keyword)] = text
    for name, attribute in _QUOTED.items():
        if fields.get(name):
            found[attribute] = quote(fields[name])
    if "priority" in fields:
        found["JobPrio"] = str(fields["priority"])
    found.update(fields.get("ad", {}))
    return found


class Job:
    """One task as an ad (`expressions.Ad`).

    Units: now in seconds since 1970. `site` is the head's host name.
    """

    __slots__ = ("attempt", "facts", "now", "proc", "site", "state", "template")
    template: Template
    proc: int
    state: State
    attempt: int
    facts: Facts
    now: float
    site: str

    def __init__(
        self, template: Template, proc: int, state: State, attempt: int, facts: Facts, now: float, site: str
    ) -> None:
        self.template = template
        self.proc = proc
        self.state = state
        self.attempt = attempt
        self.facts = facts
        self.now = now
        self.site = site

    @property
    def entered_at(self) -> float:
        return self.facts.entered_at or self.template.submitted_at

    def get(self, name: str) -> str | None:
        """Expression text of an attribute, named in lower case."""
        rule = LOOKUP.get(name)
        if rule is not None:
            text = rule(self)
            if text is not None:
                return text
        common = self.template.common
        entry = common.texts.get(name)
        if entry is None:
            return None
        return entry[1].replace(PROC_MARK, str(self.proc)) if name in common.marked else entry[1]

    def find_by_proc(self, name: str) -> Callable[[int], Value] | None:
        """What makes the value of an attribute, named in lower case, of a proc; None: only its text tells."""
        if name == "procid":
            return int
        entry = self.template.common.texts.get(name)
        if name in LOOKUP or entry is None:
            return None
        value = literal(entry[1])
        if isinstance(value, str):
            pattern = printable(value)
            return lambda proc: pattern.replace(PROC_MARK, str(proc))
        return int if entry[1] == PROC_MARK else None

    def attributes(self, only: Iterable[str] = ()) -> dict[str, str]:
        """The whole ad, or `only` these attributes of it, sorted by name without regard to case."""
        wanted = {name.lower() for name in only}
        common = self.template.common
        found: dict[str, str] = {}
        for name, written, rule in common.order:
            if wanted and name not in wanted:
                continue
            text = rule(self) if rule is not None else None
            if text is None:
                entry = common.texts.get(name)
                if entry is None:
                    continue
                text = entry[1].replace(PROC_MARK, str(self.proc)) if name in common.marked else entry[1]
            found[written] = text
        return found


def job_ad(
    body: ClusterBody,
    cluster: int,
    proc: int,
    state: State,
    attempt: int,
    facts: Facts,
    now: float,
    site: str,
    count: int = 1,
) -> dict[str, str]:
    """The ad of one task, whose body has its delta merged in already; marks may be left in it.

    Units: now in seconds since 1970; `count` is the number of procs of the cluster.
    """
    filled: ClusterBody = msgspec.convert(fill(msgspec.to_builtins(body), cluster, proc), ClusterBody)
    return Job(Template(filled, cluster, count), proc, state, attempt, facts, now, site).attributes()
