"""What the state and the facts of a task make of the attributes of its job ad; the rules are a table.

Source: HTCondor manual, job ClassAd attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from pilotq.condor.expressions import quote, unparse
from pilotq.model import CONDOR_STATUS, HoldCode, Outcome, State

if TYPE_CHECKING:
    from pilotq.condor.jobad import Job, Template

#: What makes an attribute's text of a job; None: nothing to say.
Rule = Callable[["Job"], "str | None"]

_STARTED = frozenset({State.RUNNING, State.SUSPENDED, State.STAGING_OUT})
_EXITED = frozenset({State.STAGING_OUT, State.DONE, State.CANCELLED, State.HELD, State.IDLE})
_STATUS = {state: str(status) for state, status in CONDOR_STATUS.items()}
_GRID_STATUS = {1: "IDLE", 2: "RUNNING", 3: "REMOVED", 4: "COMPLETED", 5: "HELD", 6: "COMPLETED", 7: "SUSPENDED"}


def _real(value: float) -> str:
    return unparse(float(value))


def _moment(value: float) -> str | None:
    return str(int(value)) if value else None


def _kib(size_bytes: int) -> str | None:
    return str((size_bytes + 1023) >> 10) if size_bytes else None


def _global_id(job: Job) -> str:
    return f'"{job.site}#{job.template.cluster}.{job.proc}#{job.template.queued_at}"'


def _exit(job: Job, wanted: str) -> str | None:
    """ExitCode or ExitSignal or ExitStatus of the last attempt, once it ended by itself."""
    facts = job.facts
    is_over = job.state in _EXITED or facts.ended_at >= facts.last_started_at > 0
    if not is_over or facts.outcome not in (Outcome.OK, Outcome.EXIT, Outcome.SIGNAL):
        return None
    by_signal = facts.outcome == Outcome.SIGNAL
    if wanted == "ExitBySignal":
        return "true" if by_signal else "false"
    if wanted == "ExitStatus" or (wanted == "ExitSignal") == by_signal:
        return str(facts.code)
    return None


def _host(job: Job, present: bool) -> str | None:
    if not job.facts.host or (job.state in _STARTED) != present:
        return None
    return f'"slot1@{job.facts.host}"'


def _mib(size_bytes: int) -> str | None:
    return str((size_bytes + (1 << 20) - 1) >> 20) if size_bytes else None


def _held(job: Job, wanted: str) -> str | None:
    if job.state != State.HELD:
        return None
    reason, code = job.facts.reason, job.facts.hold_code
    if not reason and not code:
        reason, code = job.template.common.hold_reason, HoldCode.SUBMITTED_HELD
    if wanted == "reason":
        return quote(reason or "Unspecified")
    if wanted == "subcode" and code == HoldCode.SUBMITTED_HELD:
        return None
    return str(code if wanted == "code" else job.facts.hold_subcode)


def _last_held(job: Job, value: int) -> str | None:
    released = job.state != State.HELD and job.facts.hold_code
    return str(value) if released else None


def _grid(job: Job, text: str) -> str | None:
    return text if job.template.common.texts["jobuniverse"][1] == "9" else None


def _grid_status(job: Job) -> str | None:
    """Also of what a job router would take to a grid: to computing elements a job without one was never taken."""
    texts = job.template.common.texts
    if texts["jobuniverse"][1] != "9" and texts.get("wantjobrouter", ("", ""))[1].lower() != "true":
        return None
    return f'"{_GRID_STATUS[CONDOR_STATUS[job.state]]}"'


def _transferred(job: Job, size_bytes: int) -> str | None:
    return _real(size_bytes) if job.attempt else None


#: Attribute -> what the state and the facts of a task make of it; None: the template's, or undefined.
RULES: dict[str, Rule] = {
    "ClusterId": lambda job: str(job.template.cluster),
    "ProcId": lambda job: str(job.proc),
    "GlobalJobId": _global_id,
    "Owner": lambda job: job.template.owner,
    "User": lambda job: f'{job.template.owner[:-1]}@{job.site}"',
    "QDate": lambda job: job.template.queued_at,
    "TotalSubmitProcs": lambda job: str(job.template.count),
    "ServerTime": lambda job: str(int(job.now)),
    "JobStatus": lambda job: _STATUS[job.state],
    "EnteredCurrentStatus": lambda job: str(int(job.entered_at)),
    "JobStartDate": lambda job: _moment(job.facts.first_started_at),
    "JobCurrentStartDate": lambda job: _moment(job.facts.last_started_at),
    "JobCurrentStartExecutingDate": lambda job: _moment(job.facts.last_started_at),
    "ShadowBday": lambda job: _moment(job.facts.last_started_at),
    "NumJobStarts": lambda job: str(job.facts.starts),
    "NumShadowStarts": lambda job: str(job.facts.starts) if job.facts.starts else None,
    "JobRunCount": lambda job: str(job.facts.starts) if job.facts.starts else None,
    "RemoteHost": lambda job: _host(job, True),
    "LastRemoteHost": lambda job: _host(job, False),
    "CurrentHosts": lambda job: "1" if job.state in _STARTED else "0",
    "RemoteWallClockTime": lambda job: _real(job.facts.wall_s),
    "CommittedTime": lambda job: str(int(job.facts.wall_s)),
    "CommittedSlotTime": lambda job: str(int(job.facts.wall_s)),
    "CumulativeSlotTime": lambda job: str(int(job.facts.wall_s)),
    "CumulativeRemoteUserCpu": lambda job: _real(job.facts.usage.user_s),
    "CumulativeRemoteSysCpu": lambda job: _real(job.facts.usage.system_s),
    "LastRunWallClockTime": lambda job: _real(job.facts.usage.wall_s) if job.facts.usage.wall_s else None,
    "RemoteUserCpu": lambda job: _real(job.facts.usage.user_s),
    "RemoteSysCpu": lambda job: _real(job.facts.usage.system_s),
    "ImageSize": lambda job: _kib(job.facts.usage.memory_bytes),
    "ResidentSetSize": lambda job: _kib(job.facts.usage.memory_bytes),
    "MemoryUsage": lambda job: _mib(job.facts.usage.memory_bytes),
    "DiskUsage": lambda job: _kib(job.facts.usage.disk_bytes),
    "BytesSent": lambda job: _transferred(job, job.facts.sent_bytes),
    "BytesRecvd": lambda job: _transferred(job, job.facts.received_bytes),
    "CompletionDate": lambda job: _moment(job.facts.ended_at or job.entered_at) if job.state == State.DONE else None,
    "NumJobCompletions": lambda job: str(job.facts.completions or int(job.state == State.DONE)),
    "ExitBySignal": lambda job: _exit(job, "ExitBySignal") or "false",
    "ExitCode": lambda job: _exit(job, "ExitCode"),
    "ExitSignal": lambda job: _exit(job, "ExitSignal"),
    "ExitStatus": lambda job: _exit(job, "ExitStatus"),
    "TotalSuspensions": lambda job: str(job.facts.suspensions),
    "LastSuspensionTime": lambda job: str(int(job.entered_at)) if job.state == State.SUSPENDED else "0",
    "HoldReason": lambda job: _held(job, "reason"),
    "HoldReasonCode": lambda job: _held(job, "code"),
    "HoldReasonSubCode": lambda job: _held(job, "subcode"),
    "LastHoldReasonCode": lambda job: _last_held(job, job.facts.hold_code),
    "LastHoldReasonSubCode": lambda job: _last_held(job, job.facts.hold_subcode),
    "NumHolds": lambda job: str(job.facts.holds) if job.facts.holds else None,
    "NumSystemHolds": lambda job: str(job.facts.holds if job.facts.hold_code not in (0, HoldCode.USER) else 0),
    "ReleaseReason": lambda job: quote(job.facts.release_reason) if job.facts.release_reason else None,
    "RemoveReason": lambda job: quote(job.facts.reason) if job.state == State.CANCELLED and job.facts.reason else None,
    "GridJobStatus": _grid_status,
    "GridJobId": lambda job: _grid(job, f'"pilotq {job.site} {job.template.cluster}.{job.proc}"'),
}
_BY_PROC = frozenset({"procid", "globaljobid", "gridjobid"})
_BY_STATE = frozenset(
    {"clusterid", "owner", "user", "qdate", "totalsubmitprocs"}
    | {"servertime", "currenttime", "jobstatus", "currenthosts"}
)
#: The same by name in lower case.
LOOKUP = {name.lower(): rule for name, rule in RULES.items()}


class Scope(IntEnum):
    """How far one value of an attribute reaches."""

    #: All tasks of a cluster that are in the same state.
    STATE = 0
    #: All tasks of a cluster that were never touched: it comes from the facts.
    UNSTARTED = 1
    #: One task.
    PROC = 2


def scope(name: str, template: Template, has_deltas: bool) -> Scope:
    """The scope of an attribute, named in lower case, among the tasks of a cluster."""
    if name in _BY_STATE:
        return Scope.STATE
    if name in LOOKUP:
        return Scope.PROC if name in _BY_PROC else Scope.UNSTARTED
    return Scope.PROC if has_deltas or name in template.common.marked else Scope.STATE
