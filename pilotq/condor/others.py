"""Command lines and texts of condor_drain, vacate, reschedule, ping, who and userprio; and of names without a meaning.

Source: HTCondor manual, the pages of these commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pilotq.condor import expressions
from pilotq.condor.jobad import CONDOR_VERSION
from pilotq.condor.options import Table, find_option, job_id, version
from pilotq.condor.request import Reply, Request
from pilotq.errors import UserError
from pilotq.model import STDERR, STDOUT

_DAEMONS = "its daemons are started and stopped with `pilotq up`, `pilotq down` and by the units of systemd"
_POOL = "there is one master and no collector of ads"
_KEYS = "who may come in is up to `pilotq token`"
_SHELL = "nobody can enter a running job"
#: Commands of HTCondor that cannot mean anything here, and why.
ABSENT: dict[str, str] = {
    **dict.fromkeys(["condor_on", "condor_off", "condor_restart", "condor_master", "condor_set_shutdown"], _DAEMONS),
    "condor_reconfig": "a running master reads no settings; `pilotq config` shows those it has",
    **dict.fromkeys(["condor_advertise", "condor_update_machine_ad", "condor_stats", "condor_findhost"], _POOL),
    **dict.fromkeys(["condor_store_cred", "condor_token_create", "condor_token_fetch", "condor_token_list"], _KEYS),
    **dict.fromkeys(["condor_ssh_to_job", "condor_chirp", "condor_cod"], _SHELL),
    "condor_fetchlog": "its logs are files of the head, `pilotq logs` shows them",
    "condor_checkpoint": "it takes no checkpoints: a job that is evicted starts anew",
    "condor_now": "it does not take slots from running jobs for others",
    "condor_router_q": "it routes no jobs",
    "condor_qusers": "it keeps no accounts of users",
}
_MACHINES: Table = {
    "graceful": (1, 0),
    "quick": (1, 0),
    "fast": (1, 0),
    "resume-on-completion": (3, 0),
    "exit-on-completion": (2, 0),
    "restart-on-completion": (3, 0),
    "reason": (3, 1),
    "cancel": (1, 0),
    "request-id": (3, 1),
    "check": (2, 1),
    "start": (2, 1),
    "constraint": (4, 1),
    "name": (1, 1),
    "pool": (1, 1),
    "addr": (2, 1),
    "all": (2, 0),
    "debug": (1, 0),
    "verbose": (4, 0),
    "version": (1, 0),
    "help": (1, 0),
}


@dataclass
class Machines:
    """What condor_drain or condor_vacate wants of which machines."""

    tool: str
    names: list[str] = field(default_factory=list)
    everywhere: bool = False
    #: Running jobs are ended: "": no; else the verb of `core.acts`.
    ends: str = ""


def machines(request: Request) -> Machines | Reply:
    """The machines of a command line, or the reply when there is nothing to be done."""
    found, words = Machines(request.tool), list(request.argv)
    usage = f"Usage: {request.tool} [-graceful | -fast] [-all | machine...]"
    if request.tool == "condor_vacate":
        found.ends = "vacate"
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            found.names.append(word)
            continue
        option = find_option(_MACHINES, word.removeprefix("-").removeprefix("-"))
        if option is None or (option in ("constraint", "check", "start")):
            return Reply(err=f"ERROR: Unrecognized option: {word}\n{usage}\n", exit=1)
        if option in ("version", "help"):
            return version() if option == "version" else Reply(out=usage + "\n")
        if _MACHINES[option][1] and not words:
            return Reply(err=f"ERROR: {word} requires another argument\n{usage}\n", exit=1)
        argument = words.pop(0) if _MACHINES[option][1] else ""
        if option == "cancel":
            text = "a drain that has begun is not undone; start another worker on that machine"
            return Reply(err=f"{request.tool}: {text}\n", exit=1)
        if option in ("fast", "quick"):
            found.ends = "vacate_fast" if option == "fast" else "vacate"
        elif option == "name":
            found.names.append(argument)
        found.everywhere |= option == "all"
    if request.tool == "condor_drain" and not (found.names or found.everywhere):
        return Reply(err=f"ERROR: No target machine specified\n{usage}\n", exit=1)
    return found


def told(asked: Machines, name: str, address: str) -> str:
    """What is said of one machine that was told."""
    if asked.tool == "condor_vacate":
        command = "Vacate-All-Claims-Fast" if asked.ends == "vacate_fast" else "Vacate-All-Claims"
        return f'Sent "{command}" command to startd {name}\n'
    only = "This only affects the single startd; any other startds running on the same host will not be drained."
    return f"Sent request to drain the startd <{address}> with {name}. {only}\n"


def on_machine(host: str) -> str:
    """The constraint for jobs that run on a machine."""
    return f"RemoteHost == {expressions.quote(f'slot1@{host}')} && (JobStatus == 2 || JobStatus == 7)"


def reschedule(request: Request) -> Reply:
    """Matching happens all the time; there is nothing to be hastened."""
    return Reply(out='Sent "Reschedule" command to local schedd\n')


_LEVELS = frozenset(
    {"ALL", "READ", "WRITE", "ADMINISTRATOR", "CONFIG", "DAEMON", "NEGOTIATOR", "OWNER", "ADVERTISE_SCHEDD"}
)


def ping(request: Request, schedd: str) -> Reply:
    """Who got so far may do what he asks for: the socket, or the key, said who he is."""
    words, levels, is_quiet, is_verbose, kind = list(request.argv), list[str](), False, False, "schedd"
    while words:
        word = words.pop(0)
        lower = word.lower().lstrip("-")
        if not word.startswith("-"):
            levels.append(word.upper())
        elif lower in ("name", "pool", "address", "addr", "type", "config"):
            if not words:
                return Reply(err=f"ERROR: {word} requires another argument\n", exit=1)
            argument = words.pop(0)
            kind = argument.lower() if lower == "type" else kind
        elif lower in ("quiet", "verbose", "table", "debug"):
            is_quiet |= lower == "quiet"
            is_verbose |= lower == "verbose"
        elif lower in ("version", "help"):
            return version() if lower == "version" else Reply(out="Usage: condor_ping [-quiet | -verbose] LEVEL...\n")
        else:
            return Reply(err=f"ERROR: Unknown option {word}\n", exit=1)
    unknown = [level for level in levels if level not in _LEVELS and not level.isdigit()]
    if unknown:
        return Reply(err=f"ERROR: Could not understand command or authorization level '{unknown[0]}'\n", exit=1)
    reply, user = Reply(), f"{request.user}@{schedd}"
    for level in [] if is_quiet else levels or ["WRITE"]:
        if is_verbose:
            reply.out += _verbose_ping(level, user)
        else:
            using = "(no encryption, no integrity, and FS)"
            reply.out += f"{level} command using {using} succeeded as {user} to {kind} {schedd}.\n"
    return reply


def _verbose_ping(level: str, user: str) -> str:
    lines = {
        "Destination": "local schedd",
        "Remote Version": CONDOR_VERSION,
        "Local  Version": CONDOR_VERSION,
        "Instruction": level,
        "Encryption": "none",
        "Integrity": "none",
        "Authenticated using": "FS",
        "All authentication methods": "FS",
        "Remote Mapping": user,
        "Authorized": "TRUE",
    }
    return "".join(f"{name + ':':<28} {value}\n" for name, value in lines.items()) + "\n"


#: -format pairs of a row of condor_who.
_WHO = [("%-14s ", "Owner"), ("   1 ", "ALWAYS"), ("%4d.", "ClusterId"), ("%-5d ", "ProcId")]
_WHO += [("%12T", "time() - JobCurrentStartDate"), (" %s\\n", "Cmd")]
WHO_HEADING = "\nOWNER          SLOT    JOB          RUNTIME PROGRAM\n"


def who(request: Request, host: str) -> Request:
    """The condor_q that gives the rows of condor_who: what runs on this machine.

    Raises: UserError.
    """
    for word in request.argv:
        if word.lower().lstrip("-") not in ("wide", "all", "daemons", "diagnostic", "verbose", "quick"):
            raise UserError(f"unrecognized argument {word}", "it takes none but -wide")
    formats = [word for pair in _WHO for word in ("-format", *pair)]
    return replace(request, tool="condor_q", argv=["-constraint", on_machine(host), *formats])


def userprio(request: Request, in_use: Mapping[str, int], schedd: str, moment: str) -> Reply:
    """Everybody has the same priority: who came first, goes first."""
    plain = ("all", "allusers", "usage", "quotas", "most", "activefrom", "priority", "flat", "grouporder", "legacy")
    words: Sequence[str] = request.argv
    for word in words:
        lower = word.lower().lstrip("-")
        if lower in ("version", "help"):
            return version() if lower == "version" else Reply(out="Usage: condor_userprio [-all]\n")
        if word.startswith("-") and not any(name.startswith(lower) for name in plain) and lower not in ("name", "pool"):
            raise UserError(f"{word}: jobs start in the order of their priority and age, whoever owns them")
    rule = "-" * 26 + " " + " ".join(["-" * width for width in (12, 9, 6)]) + "\n"
    out = f"Last Priority Update: {moment}\n{'':26} {'Effective':>12} {'Priority':>9} {'Res':>6}\n"
    out += f"{'User Name':<26} {'Priority':>12} {'Factor':>9} {'In Use':>6}\n{rule}"
    for owner, count in sorted(in_use.items()):
        out += f"{owner + '@' + schedd:<26} {500:>12.2f} {1000:>9.2f} {count:>6}\n"
    return Reply(out=f"{out}{rule}{f'Number of users: {len(in_use)}':<26} {'':>12} {'':>9} {sum(in_use.values()):>6}\n")


@dataclass
class Tail:
    """What condor_tail wants to see."""

    cluster: int
    proc: int
    names: list[str]
    size: int


_TAIL: Table = {
    "maxbytes": (1, 1),
    "no-stdout": (4, 0),
    "stderr": (2, 0),
    "name": (2, 1),
    "pool": (1, 1),
    "debug": (1, 0),
    "auto-retry": (2, 0),
    "version": (1, 0),
    "help": (1, 0),
}
_TAIL_BYTES, _TAIL_BYTES_MAX = 1024, 256 << 10


def tail(request: Request) -> Tail | Reply:
    """The command line of condor_tail."""
    usage = "Usage: condor_tail [-maxbytes N] [-stderr] [-no-stdout] JOB [FILE]...\n"
    words, names, jobs, size = list(request.argv), [STDOUT], list[str](), _TAIL_BYTES
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            jobs.append(word)
            continue
        option = find_option(_TAIL, word.removeprefix("-").removeprefix("-"))
        if option is None:
            follows = word in ("-f", "-follow")
            text = f"{word} is not supported by pilotq, call it again" if follows else f"unrecognized argument {word}"
            return Reply(err=f"condor_tail: {text}\n{usage}", exit=1)
        if option in ("version", "help"):
            return version() if option == "version" else Reply(out=usage)
        if _TAIL[option][1] and not words:
            return Reply(err=f"condor_tail: {word} requires another argument\n{usage}", exit=1)
        argument = words.pop(0) if _TAIL[option][1] else ""
        if option == "maxbytes":
            if not argument.isascii() or not argument.isdigit():
                return Reply(err=f"condor_tail: {word} requires a number, not {argument}\n", exit=1)
            size = min(int(argument), _TAIL_BYTES_MAX)
        elif option == "stderr":
            names.append(STDERR)
        elif option == "no-stdout":
            names.remove(STDOUT)
    found = job_id(jobs[0]) if jobs else None
    if found is None:
        return Reply(err=usage, exit=1)
    return Tail(found[0], found[1] or 0, jobs[1:] or names, size)
