"""The tables of condor_status, and their totals; nothing at all where there are no ads.

Source: HTCondor manual, condor_status; the widths are in the reference pages of the project.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pilotq.condor.expressions import Ad
from pilotq.condor.formats import days
from pilotq.condor.tables import number, word


class Column(NamedTuple):
    title: str
    #: Least width; negative: to the left.
    width: int
    #: Ad and moment -> what is shown.
    shown: Callable[[Ad, float], str]


def _word(name: str) -> Callable[[Ad, float], str]:
    return lambda ad, now: word(ad, name)


def _whole(name: str) -> Callable[[Ad, float], str]:
    return lambda ad, now: str(int(number(ad, name, now)))


def _real(name: str, digits: int) -> Callable[[Ad, float], str]:
    return lambda ad, now: f"{number(ad, name, now):.{digits}f}"


def _since(name: str) -> Callable[[Ad, float], str]:
    return lambda ad, now: days(now - number(ad, name)) if number(ad, name) else days(0)


_NAME = Column("Name", -4, _word("name"))
_MACHINE = Column("Machine", -7, _word("machine"))
_SYSTEM = [Column("OpSys", -10, _word("opsys")), Column("Arch", -6, _word("arch"))]
_LOAD = Column("LoadAv", 6, _real("loadavg", 3))
_TABLES = {
    "machines": [
        _NAME,
        *_SYSTEM,
        Column("State", -9, _word("state")),
        Column("Activity", -8, _word("activity")),
        _LOAD,
        Column("Mem", 6, _whole("memory")),
        Column("ActvtyTime", 12, _since("enteredcurrentactivity")),
    ],
    "slots-run": [
        _NAME,
        *_SYSTEM,
        _LOAD,
        Column("RemoteUser", -20, _word("remoteuser")),
        Column("ClientMachine", -16, _word("clientmachine")),
    ],
    "slots-state": [
        _NAME,
        Column("Cpu", 3, _whole("cpus")),
        Column("Mem", 5, _whole("memory")),
        _LOAD,
        Column("KbdIdle", 12, lambda ad, now: days(number(ad, "keyboardidle"))),
        Column("State", -9, _word("state")),
        Column("StateTime", 12, _since("enteredcurrentstate")),
        Column("Activ", -5, lambda ad, now: word(ad, "activity")[:5]),
        Column("ActvtyTime", 12, _since("enteredcurrentactivity")),
    ],
    "slots-server": [
        _NAME,
        *_SYSTEM,
        _LOAD,
        Column("Memory", 8, _whole("memory")),
        Column("Disk", 11, _whole("disk")),
        Column("Mips", 9, _whole("mips")),
        Column("KFlops", 11, _whole("kflops")),
    ],
    "schedd": [
        _NAME,
        _MACHINE,
        Column("RunningJobs", 11, _whole("totalrunningjobs")),
        Column("IdleJobs", 10, _whole("totalidlejobs")),
        Column("HeldJobs", 10, _whole("totalheldjobs")),
    ],
    "submitters": [
        _NAME,
        _MACHINE,
        Column("RunningJobs", 11, _whole("runningjobs")),
        Column("IdleJobs", 10, _whole("idlejobs")),
        Column("HeldJobs", 10, _whole("heldjobs")),
    ],
    "master": [
        _NAME,
        Column("Version", -10, lambda ad, now: word(ad, "condorversion").partition(": ")[2].partition(" ")[0]),
        Column("Uptime", 12, _since("daemonstarttime")),
    ],
    "collector": [
        _NAME,
        _MACHINE,
        Column("RunningJobs", 11, _whole("runningjobs")),
        Column("IdleJobs", 10, _whole("idlejobs")),
        Column("HostsTotal", 10, _whole("hoststotal")),
    ],
    "negotiator": [_NAME],
    "any": [
        Column("MyType", -18, _word("mytype")),
        Column("TargetType", -18, lambda ad, now: word(ad, "targettype") or "None"),
        _NAME,
    ],
    "compact": [
        Column("Machine", -7, _word("machine")),
        Column("Platform", -8, lambda ad, now: f"{_short(word(ad, 'arch'))}/{word(ad, 'opsys').title()}"),
        Column("Slots", 5, _whole("slots")),
        Column("Cpus", 4, _whole("totalcpus")),
        Column("Gpus", 4, lambda ad, now: str(int(number(ad, "totalgpus")) or "")),
        Column("TotalGb", 8, lambda ad, now: f"{number(ad, 'totalmemory') / 1024:.2f}"),
        Column("FreCpu", 6, _whole("freecpus")),
        Column("FreeGb", 8, lambda ad, now: f"{number(ad, 'freememory') / 1024:.2f}"),
        Column("CpuLoad", 7, lambda ad, now: f"{number(ad, 'loadavg'):.2f}"),
        Column("ST", -2, lambda ad, now: word(ad, "st")),
        Column("Jobs/Min", 8, lambda ad, now: "0.00"),
        Column("MaxSlotGb", 9, lambda ad, now: f"{number(ad, 'memory') / 1024:.2f}"),
    ],
}


def _short(arch: str) -> str:
    return "x64" if arch == "X86_64" else arch


def status_table(table: str, ads: Sequence[Ad], now: float, totals_only: bool) -> str:
    """One of the tables, and the totals that go with it."""
    if not ads:
        return ""
    text = "" if totals_only else _rows(_TABLES[table], ads, now)
    if table in ("schedd", "submitters"):
        return text + _job_totals(ads, "total" if table == "schedd" else "")
    if table in ("machines", "compact") or table.startswith("slots"):
        return text + _slot_totals(ads)
    return text


def _rows(columns: list[Column], ads: Sequence[Ad], now: float) -> str:
    cells = [[column.shown(ad, now) for column in columns] for ad in ads]
    lines = [[column.title for column in columns], *cells]
    widths = [
        max([abs(column.width), *map(len, shown)])
        for column, shown in zip(columns, zip(*lines, strict=True), strict=True)
    ]

    def line(shown: list[str]) -> str:
        parts = [
            cell.ljust(width) if column.width < 0 else cell.rjust(width)
            for cell, width, column in zip(shown, widths, columns, strict=True)
        ]
        return " ".join(parts).rstrip() + "\n"

    return line(lines[0]) + "\n" + "".join([line(shown) for shown in cells])


def _slot_totals(ads: Sequence[Ad]) -> str:
    kinds: dict[str, Counter[str]] = {}
    for ad in ads:
        # An ad of the compact table stands for several slots.
        states = Counter(
            {state: int(number(ad, f"slots{state.lower()}")) for state in ("Claimed", "Unclaimed", "Drained")}
        )
        if not states.total():
            states = Counter([word(ad, "state")])
        kinds.setdefault(f"{word(ad, 'arch')}/{word(ad, 'opsys')}", Counter()).update(states)
    columns = ["Total", "Owner", "Claimed", "Unclaimed", "Matched", "Preempting", "Drain", "Backfill", "BkIdle"]
    widths = [6, 5, 7, 9, 7, 10, 6, 8, 6]
    key_width = max(14, *[len(kind) for kind in kinds])

    def line(key: str, cells: list[Any]) -> str:
        joined = " ".join([f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)])
        return f"{key:>{key_width}} {joined}\n"

    def counted(kind: str, states: Mapping[str, int]) -> str:
        known = [states.get(name, 0) for name in ("Owner", "Claimed", "Unclaimed", "Matched", "Preempting", "Drained")]
        return line(kind, [sum(states.values()), *known, states.get("Backfill", 0), 0])

    lines = ["\n", line("", columns), "\n", *[counted(kind, states) for kind, states in kinds.items()]]
    return "".join([*lines, "\n", counted("Total", sum(kinds.values(), Counter()))])


def _job_totals(ads: Sequence[Ad], prefix: str) -> str:
    names = ("RunningJobs", "IdleJobs", "HeldJobs")
    sums = [sum([int(number(ad, f"{prefix}{name}".lower())) for ad in ads]) for name in names]
    key_width = 14 if prefix else max(14, *[len(word(ad, "name")) for ad in ads])
    titles = " ".join([f"{prefix.title() + name:>18}" for name in names])
    lines = [f"\n{'':>{key_width}} {titles}\n\n{'':>{key_width}}\n"]
    lines.append(f"{'Total':>{key_width}} {' '.join([f'{count:>18}' for count in sums])}\n")
    return "".join(lines)
