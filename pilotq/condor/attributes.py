"""What a job needs, its limits, policies, and what is said of it in its ad.

Each function is a section of the description of a job (`procs.SECTIONS`).
"""

from __future__ import annotations

import math
import re

from pilotq.condor.expressions import quote
from pilotq.condor.job import Job, Parts
from pilotq.condor.keywords import NOT_YET, NOTHING, PLAIN, REFUSED, Kind
from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.macro_functions import calculate
from pilotq.condor.transfers import should_transfer
from pilotq.core.tasks import POLICY_ATTRIBUTES
from pilotq.errors import UserError
from pilotq.model import Resources
from pilotq.units import parse_duration

_UNIVERSES = {"vanilla": 5, "5": 5, "grid": 9, "9": 9}
_OTHER_UNIVERSES = frozenset(["container", "docker", "java", "local", "parallel", "scheduler", "vm"])
_OTHER_NUMBERS = frozenset(["7", "8", "10", "11", "12", "13"])
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([KMGTP])B?)?", re.IGNORECASE)
_WORD = re.compile(r"[a-z_]\w*", re.ASCII)
_AMOUNT_MAX = 1 << 40
_POWERS = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
#: Source: signal(7).
_SIGNALS = {
    "SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGABRT": 6, "SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12,
    "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15, "SIGCONT": 18, "SIGSTOP": 19, "SIGTSTP": 20, "SIGXCPU": 24,
}  # fmt: skip
_SIGNAL_NAMES = {number: name for name, number in _SIGNALS.items()}
_NOTIFICATIONS = {"never": 0, "always": 1, "complete": 2, "error": 3}
_LEASE_S_MIN = 20
#: Policies that say what happens without them.
_IDLE_POLICIES = {"on_exit_remove": ("true", "1"), "*": ("false", "0")}


def on_universe(job: Job, parts: Parts) -> None:
    """vanilla, or grid that is run as if it were vanilla; refuses what cannot be done."""
    name = job.known("universe", "jobuniverse").lower() or "vanilla"
    number = _UNIVERSES.get(name)
    if number is None:
        if name in ("standard", "1"):
            raise SubmitError("'Standard' is not a supported universe.")
        if name in _OTHER_UNIVERSES | _OTHER_NUMBERS:
            raise SubmitError(f"the universe {name} is not supported by pilotq yet: use vanilla")
        raise SubmitError(f"I don't know about the '{shown(name)}' universe.")
    parts.ad["JobUniverse"] = str(number)
    if number == 9:
        resource = job.get("grid_resource", "gridresource")
        if not resource:
            raise SubmitError("grid_resource attribute not defined for grid universe job")
        parts.ad["GridResource"] = quote(resource)
    for key in job.macros.table:
        if key in REFUSED and job.get(key).lower() not in NOTHING:
            raise SubmitError(f"{key} is not supported by pilotq yet")
        if key in NOT_YET and job.get(key).lower() not in NOTHING:
            job.warn(f"{key} is kept, but pilotq does not act on it yet: {NOT_YET[key]}")


# ---- resources and limits --------------------------------------------------------------------------------------


def _amount(job: Job, parts: Parts, keyword: str, attribute: str, unit: int) -> int | None:
    """Bytes (or a number, when unit is 1) of a request, rounded up to its unit; None when that is not known."""
    text = job.known(keyword, attribute.lower())
    if not text or text.lower() == "undefined":
        return None
    size = _SIZE.fullmatch(text) if unit > 1 else None
    number = float(size[1]) * (1 << _POWERS[size[2].upper()]) / unit if size and size[2] else calculate(text)
    if number is None:
        parts.ad[attribute] = job.expression(attribute, text)
        job.warn(f"{keyword} is not a number: it is kept, but the default is used")
        return None
    if number > _AMOUNT_MAX:
        raise SubmitError(f"{keyword} is too large: {shown(text)}")
    whole = max(math.ceil(number), 0)
    parts.ad[attribute] = str(whole)
    return whole * unit


def on_needs(job: Job, parts: Parts) -> None:
    """request_cpus, request_memory (MB), request_disk (KB), request_gpus, and others that are only kept."""
    default = job.site.needs
    cpus = _amount(job, parts, "request_cpus", "RequestCpus", 1)
    memory = _amount(job, parts, "request_memory", "RequestMemory", 1 << 20)
    disk = _amount(job, parts, "request_disk", "RequestDisk", 1 << 10)
    gpus = _amount(job, parts, "request_gpus", "RequestGPUs", 1)
    needs = Resources(
        cpus=max(default.cpus if cpus is None else cpus, 1),
        memory_bytes=default.memory_bytes if memory is None else memory,
        disk_bytes=default.disk_bytes if disk is None else disk,
        gpus=default.gpus if gpus is None else gpus,
    )
    parts.description["needs"] = needs
    if memory:
        parts.description["memory_limit_bytes"] = memory
    if disk:
        parts.description["disk_limit_bytes"] = disk
    ad = parts.ad
    ad.setdefault("RequestCpus", str(needs.cpus))
    ad.setdefault(
        "RequestMemory",
        str(-(-needs.memory_bytes >> 20))
        if needs.memory_bytes
        else "ifthenelse(MemoryUsage =!= undefined,MemoryUsage,( ImageSize + 1023 ) / 1024)",
    )
    ad.setdefault("RequestDisk", str(-(-needs.disk_bytes >> 10)) if needs.disk_bytes else "DiskUsage")
    for key in list(job.macros.table):
        if key.startswith("request_") and key not in _REQUESTS:
            text = job.get(key)
            if text:
                attribute = "Request" + job.macros.table[key].key[len("request_") :]
                ad[attribute] = job.expression(attribute, text)
                job.warn(f"{key} is kept, but it is not used for matching yet")


_REQUESTS = frozenset({"request_cpus", "request_memory", "request_disk", "request_gpus", "request_walltime"})


def on_limits(job: Job, parts: Parts) -> None:
    """Wall time, the signal that ends a job and how long it has to obey."""
    limits = [limit for limit in (_seconds(job, *names) for names in _WALL_TIMES) if limit]
    text = job.known("request_walltime")
    if text:
        try:
            limits.append(parse_duration(text))
        except UserError as error:
            raise SubmitError(f"request_walltime: {error.line()}") from None
        parts.ad["RequestWalltime"] = str(int(limits[-1]))
    wall_time_s = min(limits) if limits else job.site.wall_time_s
    if wall_time_s:
        parts.description["wall_time_s"] = float(wall_time_s)
    number = _signal(job, parts, "kill_sig", "KillSig")
    _signal(job, parts, "remove_kill_sig", "RemoveKillSig")
    _signal(job, parts, "hold_kill_sig", "HoldKillSig")
    if number:
        parts.description["kill_signal"] = number
    grace = [_seconds(job, 1, name) for name in ("kill_sig_timeout", "job_max_vacate_time")]
    if any(grace):
        parts.description["kill_grace_s"] = min(float(seconds) for seconds in grace if seconds)


#: Seconds of one unit, and the names of a limit in that unit.
_WALL_TIMES: list[tuple[int, str, str]] = [
    (1, "allowed_job_duration", "allowedjobduration"),
    (1, "allowed_execute_duration", "allowedexecuteduration"),
    (60, "my.maxwalltime", ""),
    (1, "my.jobmaxruntime", ""),
    (1, "my.maxruntime", ""),
]


def _seconds(job: Job, unit: int, *names: str) -> float:
    """0: not given, or not a number."""
    text = job.known(*names)
    number = calculate(text.strip('"')) if text else None
    if text and number is None:
        job.warn(f"{names[0].removeprefix('my.')} is not a number: it is kept, but not acted on yet")
    return max(number or 0, 0) * unit


def _signal(job: Job, parts: Parts, keyword: str, attribute: str) -> int | None:
    text = job.known(keyword, attribute.lower()).upper()
    if not text:
        return None
    number = int(text) if text.isascii() and text.isdigit() else _SIGNALS.get("SIG" + text.removeprefix("SIG"), 0)
    if not 0 < number < 65:
        raise SubmitError(f"invalid signal {shown(text)}")
    parts.ad[attribute] = quote(_SIGNAL_NAMES.get(number, str(number)))
    return number


# ---- policies --------------------------------------------------------------------------------------------------


def on_policies(job: Job, parts: Parts) -> None:
    """periodic_*, on_exit_*, leave_in_queue, and retries, which are a policy at exit."""
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
    if policies:
        parts.body["policies"] = policies


def _retries(job: Job, parts: Parts, texts: dict[str, str]) -> None:
    limit = job.integer("max_retries", "jobmaxretries")
    until = job.get("retry_until")
    success = job.integer("success_exit_code", "jobsuccessexitcode")
    if success is not None:
        parts.ad["JobSuccessExitCode"] = str(success)
    if limit is None and not until:
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


def on_matching(job: Job, parts: Parts) -> None:
    """requirements and rank: kept for people to see; what pilotq matches by is what a job needs."""
    wanted = job.get("requirements")
    if wanted:
        job.expression("Requirements", wanted)
        if wanted.lower() not in ("true", "1"):
            job.warn(f"requirements are kept, but not used for matching yet: {shown(wanted)}")
    rank = job.get("rank", "preferences")
    if rank and calculate(rank) is None:
        job.warn(f"rank is kept, but not used for matching yet: {shown(rank)}")
    parts.ad["Rank"] = job.expression("Rank", rank) if rank else "0.0"
    clauses = [f"({wanted})"] if wanted else []
    mentioned = frozenset(_WORD.findall(wanted.lower()))
    clauses += [clause for words, clause in _clauses(job) if mentioned.isdisjoint(words)]
    parts.ad["Requirements"] = " && ".join(clauses)


_SHARES = {
    True: "(TARGET.HasFileTransfer)",
    False: "(TARGET.FileSystemDomain == MY.FileSystemDomain)",
    None: "((TARGET.FileSystemDomain == MY.FileSystemDomain) || (TARGET.HasFileTransfer))",
}


def _clauses(job: Job) -> list[tuple[tuple[str, ...], str]]:
    """Words that make a clause needless, and the clause."""
    clauses: list[tuple[tuple[str, ...], str]] = [
        (("arch",), f"(TARGET.Arch == {quote(job.site.arch)})"),
        (("opsys", "opsysver", "opsysandver", "opsysmajorver"), f"(TARGET.OpSys == {quote(job.site.opsys)})"),
        (("requestdisk",), "(TARGET.Disk >= RequestDisk)"),
        (("requestmemory",), "(TARGET.Memory >= RequestMemory)"),
    ]
    if job.get("request_cpus", "requestcpus") not in ("", "0", "1", "undefined"):
        clauses.append((("cpus",), "(TARGET.Cpus >= RequestCpus)"))
    if job.get("request_gpus", "requestgpus") not in ("", "0"):
        clauses.append((("gpus",), "(TARGET.GPUs >= RequestGPUs)"))
    if job.get("universe", "jobuniverse").lower() not in ("grid", "9"):
        clauses.append((("filesystemdomain", "hasfiletransfer"), _SHARES[should_transfer(job)]))
    return clauses


def on_identity(job: Job, parts: Parts) -> None:
    """Priority, name of the batch, hold, lease, notification."""
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
        parts.ad["JobLeaseDuration"] = str(int(parts.body["lease_s"]))
    elif job.get("universe", "jobuniverse").lower() not in ("grid", "9"):
        parts.ad["JobLeaseDuration"] = "2400"


def on_plain(job: Job, parts: Parts) -> None:
    """Keywords that are an attribute and nothing else."""
    for key in list(job.macros.table):
        if key not in PLAIN:
            continue
        text = job.get(key)
        if text:
            attribute, kind = PLAIN[key]
            parts.ad[attribute] = _plain(job, key, attribute, kind, text)


def _plain(job: Job, key: str, attribute: str, kind: Kind, text: str) -> str:
    if kind is Kind.EXPRESSION:
        return job.expression(attribute, text)
    if kind is Kind.BOOLEAN:
        return "true" if job.flag(False, key) else "false"
    if kind is Kind.INTEGER:
        return str(job.integer(key))
    if kind is Kind.KIBIBYTES:
        size = _SIZE.fullmatch(text)
        if size is None:
            raise SubmitError(f"'{shown(text)}' is not valid for {key}")
        return str(math.ceil(float(size[1]) * (1 << _POWERS[(size[2] or "K").upper()]) / 1024))
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
