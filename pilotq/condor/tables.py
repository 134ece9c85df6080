"""The tables of condor_q, condor_history and condor_status, and their totals lines.

The layout is an interface: clients read columns by position and by word.
Source: HTCondor manual, condor_q; the widths are in the reference pages of the project.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilotq.condor import expressions
from pilotq.condor.expressions import Ad, literal
from pilotq.condor.formats import Local, date, days

HEADINGS = {
    "nobatch": f" ID      {'OWNER':<14} {'SUBMITTED':>11} {'RUN_TIME':>12} ST PRI SIZE CMD\n",
    "run": f" ID      {'OWNER':<14} {'SUBMITTED':>11} {'RUN_TIME':>12} HOST(S)\n",
    "hold": f" ID      {'OWNER':<14} {'HELD_SINCE':>11} {'CODE/SUB':<8} HOLD_REASON\n",
    "idle": f" ID      {'OWNER':<14} {'UNIVERSE':<8} {'CPUS':>4} {'MEMORY':>8} {'STARTS':>6} LAST_HOST\n",
    "history": f" ID      {'OWNER':<14} {'SUBMITTED':>11} {'RUN_TIME':>12} ST {'COMPLETED':>11} CMD\n",
}
_COMMAND = ["jobdescription", "cmd", "arguments", "args"]
_RUN_TIME = ["jobstatus", "shadowbday", "lastrunwallclocktime", "remotewallclocktime"]
#: Attributes (lower case) the rows of a table show besides the id.
NAMES = {
    "nobatch": ["owner", "qdate", *_RUN_TIME, "jobprio", "memoryusage", "imagesize", *_COMMAND],
    "run": ["owner", "qdate", *_RUN_TIME, "remotehost"],
    "hold": ["owner", "enteredcurrentstatus", "holdreasoncode", "holdreasonsubcode", "holdreason"],
    "idle": ["owner", "jobuniverse", "requestcpus", "requestmemory", "numjobstarts", "lastremotehost"],
    "history": ["owner", "qdate", *_RUN_TIME, "completiondate", *_COMMAND],
}
LETTERS = {1: "I", 2: "R", 3: "X", 4: "C", 5: "H", 6: ">", 7: "S"}
#: JobStatus -> the word of the totals line it counts for. Outputs on their way home are still work in progress.
WORDS = {4: "completed", 3: "removed", 1: "idle", 2: "running", 6: "running", 5: "held", 7: "suspended"}
_UNIVERSES = {5: "vanilla", 7: "scheduler", 9: "grid", 10: "java", 11: "parallel", 12: "local", 13: "vm"}
_ONE_LINE = str.maketrans({"\n": " ", "\r": " ", "\t": " "})


def value(ad: Ad, name: str, now: float = 0) -> Any:
    """The value of an attribute (lower case), evaluated when it must be."""
    text = ad.get(name)
    if text is None:
        return None
    found = literal(text)
    return expressions.compiled(name).evaluate(ad, now) if found is None else found


def number(ad: Ad, name: str, now: float = 0) -> float:
    found = value(ad, name, now)
    return found if isinstance(found, (int, float)) and found is not expressions.UNDEFINED else 0


def word(ad: Ad, name: str, now: float = 0) -> str:
    found = value(ad, name, now)
    return found if isinstance(found, str) else ""


def job_name(cluster: int, proc: int) -> str:
    """The ID column."""
    return f"{cluster:4d}.{proc:<3d}"


def heading(schedd: str, address: str, now: float, local: Local) -> str:
    """The lines before a condor_q table. `address` is host:port."""
    when = local(now)
    day = f"{when.tm_mon:02d}/{when.tm_mday:02d}/{when.tm_year % 100:02d}"
    return f"\n\n-- Schedd: {schedd} : <{address}?... @ {day} {when.tm_hour:02d}:{when.tm_min:02d}:{when.tm_sec:02d}\n"


def totals(label: str, counts: Mapping[int, int]) -> str:
    """One totals line from counts by JobStatus, without its end."""
    by_word = Counter(dict.fromkeys(WORDS.values(), 0))
    for status, count in counts.items():
        by_word[WORDS[status]] += count
    parts = ", ".join([f"{count} {word}" for word, count in by_word.items()])
    return f"Total for {label}: {sum(counts.values())} jobs; {parts}"


# ---- rows of condor_q and condor_history -------------------------------------------------------------------------


def command(ad: Ad, whole_path: bool = False) -> str:
    description = word(ad, "jobdescription")
    if description:
        return f"({description})".translate(_ONE_LINE)
    path = word(ad, "cmd")
    arguments = word(ad, "arguments") or word(ad, "args")
    shown = path if whole_path else path.rpartition("/")[2]
    return (f"{shown} {arguments}" if arguments else shown).translate(_ONE_LINE)


def run_time(ad: Ad, now: float, cumulative: bool = False) -> float:
    """Seconds of the run under way, or of the last one; with `cumulative` of all."""
    before = number(ad, "remotewallclocktime") if cumulative else 0.0
    if number(ad, "jobstatus") in (2, 6, 7):
        started_at = number(ad, "shadowbday")
        return before + (now - started_at if started_at else 0)
    return before if cumulative else number(ad, "lastrunwallclocktime")


def row(table: str, ad: Ad, now: float, local: Local, cumulative: bool = False) -> str:
    """What follows the id and a blank on a task's line."""
    owner = f"{word(ad, 'owner'):<14}"
    if table == "hold":
        code = f"{int(number(ad, 'holdreasoncode'))}/{int(number(ad, 'holdreasonsubcode'))}"
        reason = word(ad, "holdreason").translate(_ONE_LINE)
        return f"{owner} {date(number(ad, 'enteredcurrentstatus'), local):>11} {code:<8} {reason}\n"
    if table == "idle":
        universe = _UNIVERSES.get(int(number(ad, "jobuniverse")), "?")
        cpus, memory = int(number(ad, "requestcpus", now)), int(number(ad, "requestmemory", now))
        starts = int(number(ad, "numjobstarts"))
        return f"{owner} {universe:<8} {cpus:>4} {memory:>8} {starts:>6} {word(ad, 'lastremotehost')}\n"
    submitted = f"{owner} {date(number(ad, 'qdate'), local):>11}"
    status = int(number(ad, "jobstatus"))
    if table == "history":
        completed = value(ad, "completiondate")
        ended = f"{date(completed, local):>11}" if isinstance(completed, int) and completed > 0 else f"{'???':>11}"
        wall = days(number(ad, "remotewallclocktime"))
        return f"{submitted} {wall:>12} {LETTERS[status]:<2} {ended} {command(ad, whole_path=True)}\n"
    submitted += f" {days(run_time(ad, now, cumulative)):>12}"
    if table == "run":
        return f"{submitted} {word(ad, 'remotehost') or '[' + '?' * 16 + ']'}\n"
    memory = value(ad, "memoryusage")
    size = memory if isinstance(memory, (int, float)) and memory > 0 else number(ad, "imagesize") / 1024
    priority = int(number(ad, "jobprio"))
    return f"{submitted} {LETTERS[status]:<2} {priority:<3d} {size:>4.1f} {command(ad)}\n"


def cut(line: str, width: int) -> str:
    """A table line, for a terminal."""
    return line if not width or len(line) <= width + 1 else line[:width].rstrip() + "\n"


def analysis(ad: Ad, workers: int, free: int) -> str:
    """What condor_q -analyze says of one task. `workers` are connected, `free` slots of theirs idle."""
    status = int(number(ad, "jobstatus"))
    title = f"{int(number(ad, 'clusterid')):03d}.{int(number(ad, 'procid')):03d}"
    if status == 5:
        reason = word(ad, "holdreason").translate(_ONE_LINE)
        return f"\n{title}:  Job is held.\n\nHold reason: {reason}\n\n"
    if status == 1:
        return f"\n{title}:  Job is idle.\n\n{workers} workers are connected, {free} of their slots are free.\n\n"
    shown = {2: "running", 3: "removed", 4: "completed", 6: "running (its outputs are written)", 7: "suspended"}
    return f"\n{title}:  Job is {shown[status]}.\n\n"


# ---- the batch table ---------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """One line of it: the clusters of an owner with one batch name, or one cluster."""

    owner: str
    name: str
    submitted_at: float
    #: Procs submitted, and in the queue by JobStatus.
    total: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)

    def ids(self) -> str:
        first, last = f"{self.first[0]}.{self.first[1]}", f"{self.last[0]}.{self.last[1]}"
        if first == last:
            return first
        return f"{first}-{self.last[1]}" if self.first[0] == self.last[0] else f"{first} ... {last}"


def batch_table(batches: Iterable[Batch], local: Local) -> str:
    rows = list(batches)
    owner_width = max([len(batch.owner) for batch in rows], default=8)
    name_width = max([10, *[len(batch.name) for batch in rows]])
    held = any(batch.counts[5] for batch in rows)

    def shown(count: int) -> str:
        return f"{count or '_':>6}"

    title = f"{'OWNER':<{owner_width}} {'BATCH_NAME':<{name_width}} {'SUBMITTED':>12}   DONE   RUN    IDLE "
    lines = [f"{title}{'  HOLD  ' if held else ' '}TOTAL JOB_IDS\n"]
    for batch in rows:
        counts = batch.counts
        ended = batch.total - sum(counts.values()) + counts[3] + counts[4]
        numbers = [ended, counts[2] + counts[6], counts[1] + counts[7], *([counts[5]] if held else []), batch.total]
        lines.append(
            f"{batch.owner:<{owner_width}} {batch.name:<{name_width}} {date(batch.submitted_at, local):>12} "
            f"{' '.join([shown(count) for count in numbers])} {batch.ids()}\n"
        )
    return "".join(lines)


# ---- condor_status -----------------------------------------------------------------------------------------------


def machine_table(ads: Sequence[Ad], now: float, totals_only: bool) -> str:
    """Machine ads, sorted by name, and their totals; nothing for none."""
    if not ads:
        return ""
    names = [word(ad, "name") for ad in ads]
    width = max(4, *[len(name) for name in names])
    lines = []
    if not totals_only:
        head = f"{'Name':<{width}} {'OpSys':<10} {'Arch':<6} {'State':<9} {'Activity':<8} {'LoadAv':>6} {'Mem':>6}"
        lines.append(f"{head} {'ActvtyTime':>12}\n\n")
    kinds: dict[str, Counter[str]] = {}
    for name, ad in zip(names, ads, strict=True):
        system, arch, state = word(ad, "opsys"), word(ad, "arch"), word(ad, "state")
        kinds.setdefault(f"{arch}/{system}", Counter())[state] += 1
        if not totals_only:
            since = days(now - number(ad, "enteredcurrentactivity"))
            lines.append(
                f"{name:<{width}} {system:<10} {arch:<6} {state:<9} {word(ad, 'activity'):<8} "
                f"{number(ad, 'loadavg'):>6.3f} {int(number(ad, 'memory')):>6} {since:>12}\n"
            )
    columns = ["Total", "Owner", "Claimed", "Unclaimed", "Matched", "Preempting", "Drain", "Backfill", "BkIdle"]
    widths = [6, 5, 7, 9, 7, 10, 6, 8, 6]
    key_width = max(14, *[len(kind) for kind in kinds])
    kinds["Total"] = sum(kinds.values(), Counter())

    def line(key: str, cells: list[Any]) -> str:
        joined = " ".join([f"{cell:>{cell_width}}" for cell, cell_width in zip(cells, widths, strict=True)])
        return f"{key:>{key_width}} {joined}\n"

    lines.append("\n" + line("", columns) + "\n")
    for kind, states in kinds.items():
        counts = [states.total(), 0, states["Claimed"], states["Unclaimed"], 0, 0, states["Drained"], 0, 0]
        if kind == "Total":
            lines.append("\n")
        lines.append(line(kind, counts))
    return "".join(lines)


def schedd_table(ads: Sequence[Ad], totals_only: bool, prefix: str = "total") -> str:
    """Schedd ads, or with prefix "" submitter ads, and their totals; nothing for none."""
    if not ads:
        return ""
    wanted = [f"{prefix}{name}" for name in ("runningjobs", "idlejobs", "heldjobs")]
    rows = [(word(ad, "name"), word(ad, "machine"), [int(number(ad, name)) for name in wanted]) for ad in ads]
    name_width = max(4, *[len(name) for name, _, _ in rows])
    machine_width = max(7, *[len(machine) for _, machine, _ in rows])
    lines = []
    if not totals_only:
        head = f"{'Name':<{name_width}} {'Machine':<{machine_width}}"
        lines.append(f"{head} {'RunningJobs':>11} {'IdleJobs':>10} {'HeldJobs':>10}\n\n")
        for name, machine, (running, idle, held) in rows:
            lines.append(f"{name:<{name_width}} {machine:<{machine_width}} {running:>11} {idle:>10} {held:>10}\n")
    sums = [sum(column) for column in zip(*[numbers for _, _, numbers in rows], strict=True)]
    key_width = max(14, name_width) if not prefix else 14
    titles = " ".join([f"{prefix.title() + title:>18}" for title in ("RunningJobs", "IdleJobs", "HeldJobs")])
    lines.append(f"\n{'':>{key_width}} {titles}\n\n{'':>{key_width}}\n")
    lines.append(f"{'Total':>{key_width}} {' '.join([f'{count:>18}' for count in sums])}\n")
    return "".join(lines)
