"""The tables of condor_q, condor_history and condor_status, and their totals lines.

The layout is an interface: clients read columns by position and by word.
Source: HTCondor manual, condor_q; the widths are in the reference pages of the project.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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
    return found if isinstance(found, (int, float)) and found is not expressions.UNDEFINED and found - found == 0 else 0


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


def by_word(counts: Mapping[int, int]) -> dict[str, int]:
    """Counts by JobStatus, by the words of the totals line, in its order."""
    found = dict.fromkeys(WORDS.values(), 0)
    for status, count in counts.items():
        if status in WORDS:
            found[WORDS[status]] += count
    return found


def totals(label: str, counts: Mapping[int, int]) -> str:
    """One totals line from counts by JobStatus, without its end; without a label as old versions had it."""
    parts = ", ".join([f"{count} {word}" for word, count in by_word(counts).items()])
    return f"{f'Total for {label}: ' if label else ''}{sum(counts.values())} jobs; {parts}"


def summary(counts: Mapping[str, Mapping[int, int]], now: float) -> dict[str, str]:
    """The totals as an ad; `counts` by JobStatus, by what comes before the names of their attributes."""
    found = {"MyType": '"Summary"', "ServerTime": str(int(now))}
    for prefix, by_status in counts.items():
        found[f"{prefix}Jobs"] = str(sum(by_status.values()))
        for word, count in by_word(by_status).items():
            found[f"{prefix}{word.title()}"] = str(count)
            if word != "suspended":
                found[f"{prefix}Scheduler{word.title()}"] = "0"
        found[f"{prefix}SchedulerJobs"] = "0"
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


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
        return f"{submitted} {wall:>12} {LETTERS.get(status, '?'):<2} {ended} {command(ad, whole_path=True)}\n"
    submitted += f" {days(run_time(ad, now, cumulative)):>12}"
    if table == "run":
        return f"{submitted} {word(ad, 'remotehost') or '[' + '?' * 16 + ']'}\n"
    memory = value(ad, "memoryusage")
    size = memory if isinstance(memory, (int, float)) and memory > 0 else number(ad, "imagesize") / 1024
    priority = int(number(ad, "jobprio"))
    return f"{submitted} {LETTERS.get(status, '?'):<2} {priority:<3d} {size:>4.1f} {command(ad)}\n"


def cut(line: str, width: int) -> str:
    """A table line, for a terminal."""
    return line if not width or len(line) <= width + 1 else line[:width].rstrip() + "\n"


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
