"""What a job needs of a worker, its limits, and what it asks of the machine.

Each function is a section of the description of a job (`procs.SECTIONS`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from pilotq.condor.expressions import evaluate, quote
from pilotq.condor.job import Job, Parts
from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.macro_functions import calculate
from pilotq.condor.transfers import needs_paths, should_transfer
from pilotq.errors import UserError
from pilotq.model import Resources
from pilotq.units import parse_duration

SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([KMGTP])B?)?", re.IGNORECASE)
POWERS = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_WORD = re.compile(r"[a-z_]\w*", re.ASCII)
_STRING = re.compile(r'"(?:\\"|[^"])*"')
_AMOUNT_MAX = 1 << 40
#: Source: signal(7).
_SIGNALS = {
    "SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGABRT": 6, "SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12,
    "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15, "SIGCONT": 18, "SIGSTOP": 19, "SIGTSTP": 20, "SIGXCPU": 24,
}  # fmt: skip
_SIGNAL_NAMES = {number: name for name, number in _SIGNALS.items()}


# ---- resources -------------------------------------------------------------------------------------------------

#: Keyword -> attribute, and bytes of its unit; 1: a number of things.
_REQUESTS = {
    "request_cpus": ("RequestCpus", 1),
    "request_memory": ("RequestMemory", 1 << 20),
    "request_disk": ("RequestDisk", 1 << 10),
    "request_gpus": ("RequestGPUs", 1),
}
_NOT_CUSTOM = frozenset([*_REQUESTS, "request_walltime"])


def _request(job: Job, keyword: str) -> str:
    """What is asked for, as the text of its attribute; "": nothing, not even "undefined"."""
    attribute, unit = _REQUESTS[keyword]
    text = job.known(keyword, attribute.lower())
    size = SIZE.fullmatch(text) if unit > 1 else None
    if size is None:
        return job.expression(attribute, text) if text else ""
    number = float(size[1]) * (1 << POWERS[size[2].upper()]) / unit if size[2] else float(size[1])
    if number > _AMOUNT_MAX:
        raise SubmitError(f"{keyword} is too large: {shown(text)}")
    return str(math.ceil(number))


def _customs(job: Job) -> Iterator[tuple[str, str]]:
    """Custom resources as the submitter spells them, and how much is asked for."""
    for key, entry in job.macros.table.items():
        if key.startswith("request_") and key not in _NOT_CUSTOM:
            name = entry.key[len("request_") :]
            text = job.get(key)
            if text:
                yield name, job.expression(f"Request{name}", text)


def on_needs(job: Job, parts: Parts) -> None:
    """request_cpus, request_memory (MB), request_disk (KB), request_gpus, and others that are only kept."""
    ad = parts.ad
    asked = {keyword: _request(job, keyword) for keyword in _REQUESTS}
    ad |= {_REQUESTS[keyword][0]: text for keyword, text in asked.items() if text and text.lower() != "undefined"}
    for name, text in _customs(job):
        ad[f"Request{name}"] = text
        if text != "0":
            job.warn(f"request_{name.lower()} is kept, but workers offer no such resource: it is not used for matching")
    known = {**ad, **{key[3:]: job.get(key) or "undefined" for key in job.macros.table if key.startswith("my.")}}
    amounts = {keyword: _amount(job, keyword, text, known) for keyword, text in asked.items()}
    cpus, memory, disk, gpus = (None if amount is None else int(amount) for amount in amounts.values())
    default = job.site.needs
    needs = Resources(
        cpus=max(default.cpus if cpus is None else cpus, 1),
        memory_bytes=default.memory_bytes if memory is None else memory << 20,
        disk_bytes=default.disk_bytes if disk is None else disk << 10,
        gpus=default.gpus if gpus is None else gpus,
        on_head=job.is_on_head,
    )
    parts.description["needs"] = needs
    if memory:
        parts.description["memory_limit_bytes"] = memory << 20
    if disk:
        parts.description["disk_limit_bytes"] = disk << 10
    if not asked["request_cpus"]:
        ad["RequestCpus"] = str(needs.cpus)
    if not asked["request_memory"]:
        ad["RequestMemory"] = (
            str(-(-needs.memory_bytes >> 20))
            if needs.memory_bytes
            else "ifthenelse(MemoryUsage =!= undefined,MemoryUsage,( ImageSize + 1023 ) / 1024)"
        )
    if not asked["request_disk"]:
        ad["RequestDisk"] = str(-(-needs.disk_bytes >> 10)) if needs.disk_bytes else "DiskUsage"


def _amount(job: Job, keyword: str, text: str, known: dict[str, str]) -> float | None:
    """How much an expression comes to before the job ever ran, rounded up; None: it says nothing yet."""
    if not text or text.lower() == "undefined":
        return None
    number = calculate(text)
    if number is None:
        value = evaluate(text, known, job.now)
        number = value if isinstance(value, int | float) else None
        if number is None:
            job.warn(f"{keyword} has no number before the job ran: it is kept, but the default is used")
            return None
    if number > _AMOUNT_MAX:
        raise SubmitError(f"{keyword} is too large: {shown(text)}")
    return max(math.ceil(number), 0)


# ---- requirements and rank -------------------------------------------------------------------------------------


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
    mentioned = frozenset(_WORD.findall(_STRING.sub("", wanted.lower())))
    clauses += _clauses(job, mentioned)
    parts.ad["Requirements"] = " && ".join(clauses)


#: Words that make a clause needless.
_OPSYS = frozenset(["opsys", "opsysver", "opsysandver", "opsysmajorver", "opsysname", "opsysshortname"])
_GPU_KINDS = ("require_gpus", "gpus_minimum_memory", "gpus_minimum_capability", "gpus_maximum_capability")


def _clauses(job: Job, mentioned: frozenset[str]) -> Iterator[str]:
    """What every job asks for, unless it speaks of it by itself."""
    if "arch" not in mentioned:
        yield f"(TARGET.Arch == {quote(job.site.arch)})"
    if mentioned.isdisjoint(_OPSYS):
        yield f"(TARGET.OpSys == {quote(job.site.opsys)})"
    asked = {keyword: _request(job, keyword).lower() for keyword in _REQUESTS}
    if asked["request_disk"] != "0":
        yield f"(TARGET.Disk >= {'DiskUsage' if asked['request_disk'] == 'undefined' else 'RequestDisk'})"
    if asked["request_memory"] not in ("0", "1", "undefined"):
        yield "(TARGET.Memory >= RequestMemory)"
    cpus = asked["request_cpus"]
    number = calculate(cpus) if cpus.replace(".", "").isdigit() else None
    if "cpus" not in mentioned and cpus not in ("", "undefined") and (number is None or number > 1):
        yield "(TARGET.Cpus >= RequestCpus)"
    if "gpus" not in mentioned and asked["request_gpus"] not in ("", "0", "undefined"):
        if any(job.get(keyword) for keyword in (*_GPU_KINDS, "gpus_minimum_runtime")):
            yield "(countMatches(MY.RequireGPUs,TARGET.AvailableGPUs) >= RequestGPUs)"
        else:
            yield "(TARGET.GPUs >= RequestGPUs)"
    for name, text in _customs(job):
        if text != "0" and name.lower() not in mentioned:
            yield f"(TARGET.{name} >= Request{name})"
    if not job.is_on_head and not job.is_grid and "hasfiletransfer" not in mentioned:
        yield from _shares(job, "filesystemdomain" in mentioned)


def _shares(job: Job, is_domain_mentioned: bool) -> Iterator[str]:
    """How the files of the job and the machine come together."""
    should = should_transfer(job)
    moves = "TARGET.HasFileTransfer"
    if needs_paths(job):
        moves += ' && versioncmp(split(TARGET.CondorVersion)[1],"8.9.7") >= 0'
    shares = "TARGET.FileSystemDomain == MY.FileSystemDomain"
    if should is True or (should is None and is_domain_mentioned):
        yield f"({moves})"
    elif not is_domain_mentioned:
        yield f"({shares})" if should is False else f"(({shares}) || ({moves}))"


# ---- limits ----------------------------------------------------------------------------------------------------


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
    removal = _signal(job, parts, "remove_kill_sig", "RemoveKillSig")
    _signal(job, parts, "hold_kill_sig", "HoldKillSig")
    if number:
        parts.description["kill_signal"] = number
    if removal:
        parts.description["remove_signal"] = removal
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
