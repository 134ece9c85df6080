"""The universe of a job, its policies, and what is said of it in its ad.

Each function is a section of the description of a job (`procs.SECTIONS`).
"""

from __future__ import annotations

import math
import re

from pilotq.condor.expressions import quote
from pilotq.condor.job import Job, Parts, Universe
from pilotq.condor.keywords import NOT_YET, NOTHING, PLAIN, REFUSED, Kind
from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.macro_functions import calculate
from pilotq.condor.needs import POWERS, SIZE
from pilotq.core.tasks import POLICY_ATTRIBUTES

_NOTIFICATIONS = {"never": 0, "always": 1, "complete": 2, "error": 3}
_LEASE_S_MIN = 20
_POLICIES = frozenset(
    ["periodic_hold", "periodic_remove", "periodic_release", "on_exit_hold", "on_exit_remove", "leave_in_queue"]
)
#: Policies that say what happens without them.
_IDLE_POLICIES = {"on_exit_remove": ("true", "1"), "*": ("false", "0")}


def on_universe(job: Job, parts: Parts) -> None:
    """Refuses what cannot be done, and says what is not done yet."""
    parts.ad["JobUniverse"] = str(int(job.universe))
    if (job.integer("machine_count", "node_count", "nodecount") or 1) > 1:
        raise SubmitError("machine_count above 1 is not supported by pilotq: a job runs on one machine")
    if job.is_grid:
        resource = job.get("grid_resource", "gridresource")
        if not resource:
            raise SubmitError("grid_resource attribute not defined for grid universe job")
        parts.ad["GridResource"] = quote(resource)
    for key in job.macros.table:
        if key in REFUSED and job.get(key).lower() not in NOTHING:
            raise SubmitError(f"{key} is not supported by pilotq yet")
        if key in NOT_YET and job.get(key).lower() not in NOTHING:
            job.warn(f"{key} is kept, but pilotq does not act on it yet: {NOT_YET[key]}")


# ---- policies --------------------------------------------------------------------------------------------------


def on_policies(job: Job, parts: Parts) -> None:
    """periodic_*, on_exit_*, leave_in_queue, and retries, which are a policy at exit."""
    parts.decides = ("policies",)
    texts: dict[str, str] = {}
    for keyword, attribute in POLICY_ATTRIBUTES.items():
        text = job.get(keyword, attribute.lower())
        if text:
            texts[keyword] = job.expression(attribute, text)
    _retries(job, parts, texts)
    policies: dict[str, str] = {}
    for keyword, text in texts.items():
        parts.ad[POLICY_ATTRIBUTES[keyword]] = text
        if text.lower() not in _IDLE_POLICIES.get(keyword, _IDLE_POLICIES["*"]):
            policies[keyword] = text
    for keyword in [*policies]:
        # What is said about a hold, where there is none.
        if keyword not in _POLICIES and keyword.rpartition("_")[0] not in policies:
            del policies[keyword]
    if policies:
        parts.body["policies"] = policies


def _retries(job: Job, parts: Parts, texts: dict[str, str]) -> None:
    limit = job.integer("max_retries", "jobmaxretries")
    until = job.get("retry_until")
    success = job.integer("success_exit_code", "jobsuccessexitcode")
    if success is not None:
        parts.ad["JobSuccessExitCode"] = str(success)
    if limit is None and success is None and not until:
        return
    parts.ad["JobMaxRetries"] = str(2 if limit is None else limit)
    good = "ExitCode =?= " + ("0" if success is None else "JobSuccessExitCode")
    expression = f"NumJobCompletions > JobMaxRetries || {good}"
    if until:
        number = calculate(until)
        until = job.expression("OnExitRemove", until)
        expression += f" || {until}" if number is None else f" || ExitCode =?= {int(number)}"
    if "on_exit_remove" in texts:
        expression += f" || {texts['on_exit_remove']}"
    texts["on_exit_remove"] = job.expression("OnExitRemove", expression)
    texts.setdefault("on_exit_hold", "false")


# ---- the ad ----------------------------------------------------------------------------------------------------


def on_identity(job: Job, parts: Parts) -> None:
    """Priority, name of the batch, hold, lease, notification."""
    parts.decides = ("priority", "hold_reason", "lease_s")
    priority = job.integer("priority", "prio", "jobprio")
    if priority:
        parts.body["priority"] = priority
    parts.ad["JobPrio"] = str(priority or 0)
    name = job.options.batch_name or job.get("batch_name", "jobbatchname")
    if name:
        name = name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name
        parts.body["batch_name"] = name
        parts.ad["JobBatchName"] = quote(name)
    if job.flag(False, "hold"):
        parts.body["hold_reason"] = "submitted on hold at user's request"
    word = job.known("notification").lower() or "never"
    if word not in _NOTIFICATIONS:
        raise SubmitError("Notification must be 'Never', 'Always', 'Complete', or 'Error'")
    if word != "never":
        job.warn("notification is kept, but no mail is sent yet")
    parts.ad["JobNotification"] = str(_NOTIFICATIONS[word])
    _lease(job, parts)
    _accounting(job, parts)
    parts.ad["FileSystemDomain"] = quote(job.site.host)
    parts.ad["JobSubmitMethod"] = "0"
    if job.options.file not in ("", "-"):
        parts.ad["JobSubmitFile"] = quote(job.options.file)


def _lease(job: Job, parts: Parts) -> None:
    text = job.known("job_lease_duration", "jobleaseduration")
    number = calculate(text) if text else None
    if text and number is None:
        parts.ad["JobLeaseDuration"] = job.expression("JobLeaseDuration", text)
        job.warn("job_lease_duration is not a number: it is kept, but the default is used")
    elif number is not None:
        if number < _LEASE_S_MIN:
            job.warn(f"job_lease_duration is less than {_LEASE_S_MIN} s: {_LEASE_S_MIN} s are used")
        parts.body["lease_s"] = float(max(number, _LEASE_S_MIN))
        plain = text.isdigit() or number < _LEASE_S_MIN
        parts.ad["JobLeaseDuration"] = str(int(parts.body["lease_s"])) if plain else text
    elif job.universe == Universe.VANILLA:
        parts.ad["JobLeaseDuration"] = "2400"


def _accounting(job: Job, parts: Parts) -> None:
    """The group a job is counted for; a nice one is counted apart."""
    is_nice = job.flag(False, "nice_user", "niceuser")
    group = job.get("accounting_group", "acctgroup") or ("nice-user" if is_nice else "")
    user = job.get("accounting_group_user", "acctgroupuser")
    if is_nice:
        parts.ad["MaxJobRetirementTime"] = "0"
    if not group and not user:
        return
    user = user or job.side.request.user
    if group:
        parts.ad["AcctGroup"] = quote(group)
    parts.ad["AcctGroupUser"] = quote(user)
    parts.ad["AccountingGroup"] = quote(f"{group}.{user}" if group else user)


def on_plain(job: Job, parts: Parts) -> None:
    """Keywords that are an attribute and nothing else, or nearly so."""
    for key in list(job.macros.table):
        if key not in PLAIN:
            continue
        text = job.get(key)
        if text:
            attribute, kind = PLAIN[key]
            parts.ad[attribute] = _plain(job, key, attribute, kind, text)
    if job.universe != Universe.VANILLA and not job.get("kill_sig", "killsig"):
        parts.ad["KillSig"] = '"SIGTERM"'
    if (job.get("request_gpus", "requestgpus") or "0") != "0":
        _kind_of_gpus(job, parts)


#: Keyword -> the attribute of a GPU and how it must compare to that of the job.
_GPU_LIMITS = {
    "gpus_minimum_capability": ("Capability >= GPUsMinCapability", "GPUsMinCapability"),
    "gpus_maximum_capability": ("Capability <= GPUsMaxCapability", "GPUsMaxCapability"),
    "gpus_minimum_memory": ("GlobalMemoryMb >= GPUsMinMemory", "GPUsMinMemory"),
    "gpus_minimum_runtime": ("MaxSupportedVersion >= GPUsMinRuntime", "GPUsMinRuntime"),
}


def _kind_of_gpus(job: Job, parts: Parts) -> None:
    """RequireGPUs: what the job says itself, and what its limits come to."""
    clauses = [text for text in [job.get("require_gpus", "requiregpus")] if text]
    for keyword, (clause, attribute) in _GPU_LIMITS.items():
        text = job.get(keyword, attribute.lower())
        if not text:
            continue
        size, version = SIZE.fullmatch(text), re.fullmatch(r"([0-9]+)\.([0-9]+)", text)
        if keyword == "gpus_minimum_memory" and size and size[2]:
            text = str(math.ceil(float(size[1]) * (1 << POWERS[size[2].upper()]) / (1 << 20)))
        elif keyword == "gpus_minimum_runtime" and version:
            text = str(1000 * int(version[1]) + 10 * int(version[2]))
        parts.ad[attribute] = job.expression(attribute, text)
        clauses.append(clause)
    if clauses:
        parts.ad["RequireGPUs"] = job.expression("RequireGPUs", " && ".join(clauses))


def _plain(job: Job, key: str, attribute: str, kind: Kind, text: str) -> str:
    if kind is Kind.EXPRESSION:
        return job.expression(attribute, text)
    if kind is Kind.BOOLEAN:
        return "true" if job.flag(False, key) else "false"
    if kind is Kind.INTEGER:
        return str(job.integer(key))
    if kind is Kind.KIBIBYTES:
        size = SIZE.fullmatch(text)
        if size is None:
            raise SubmitError(f"'{shown(text)}' is not valid for {key}")
        return str(math.ceil(float(size[1]) * (1 << POWERS[(size[2] or "K").upper()]) / 1024))
    if kind is Kind.NAMES:
        text = ",".join(sorted(filter(None, re.split(r"[\s,]+", text.lower()))))
    return quote(text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text)


def on_forced(job: Job, parts: Parts) -> None:
    """Attributes given as `+Name` or `MY.Name`; they go before all others."""
    for key, entry in list(job.macros.table.items()):
        if key.startswith("my."):
            attribute = entry.key[3:]
            text = job.macros.expand(entry.value).strip()
            parts.ad[attribute] = job.expression(attribute, text) if text else "undefined"
