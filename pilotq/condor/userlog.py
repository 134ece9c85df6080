"""The user log: one event of a job as text, as current HTCondor writes it by default.

What it writes, HTCondor's own reader gives back byte for byte; the tests hold it to that.
Source: HTCondor manual, job event log codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pilotq.model import Facts, Outcome, Resources, Usage
from pilotq.units import printable

SUBMITTED = 0
EXECUTING = 1
EVICTED = 4
TERMINATED = 5
IMAGE_SIZE = 6
ABORTED = 9
SUSPENDED = 10
UNSUSPENDED = 11
HELD = 12
RELEASED = 13
DISCONNECTED = 22
RECONNECTED = 23
RECONNECT_FAILED = 24

#: Events that the log of a DAG has: what its runner must know. Source: HTCondor manual, DAGManNodesMask.
IN_NODES_LOG = frozenset({0, 1, 4, 5, 9, 10, 11, 12, 13, 24})

_REASON_CHARS_MAX = 4000
#: Header of the table of resources, and columns: usage, request, allocated.
_TABLE_HEAD = "Partitionable Resources"
_TABLE_WIDTHS = (8, 8, 9)
_TABLE_TITLES = ("Usage", "Request", "Allocated")


def format_event(
    event: int,
    cluster: int,
    proc: int,
    at: float,
    facts: Facts,
    host: str = "",
    *,
    address: str,
    local: Callable[[float], str],
    needs: Resources | None = None,
) -> str:
    """One event of one job, its closing line included.

    `host`: node of the attempt, that of the facts when empty. `address`: host:port of the master. `local` writes a
    moment as `YYYY-MM-DD HH:MM:SS`. With `needs`, the end of a job has the table of resources.
    Raises: KeyError for an event it does not know.
    """
    head = f"{event:03d} ({cluster:03d}.{proc:03d}.000) {local(at)} "
    slot = f"slot1@{host or facts.host or 'unknown'}"
    return f"{head}{_BODIES[event](facts, slot, address, needs)}...\n"


def line_of(text: str) -> str:
    """A reason on one line; readers go by lines."""
    return printable(" ".join(text.split()))[:_REASON_CHARS_MAX]


def node_of(slot: str) -> str:
    return f"<{slot.partition('@')[2]}>"


def times_of(user_s: float, system_s: float) -> str:
    def shown(seconds: float) -> str:
        whole = int(seconds)
        return f"{whole // 86400} {whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"

    return f"Usr {shown(user_s)}, Sys {shown(system_s)}"


def _usages(usage: Usage, *kinds: str) -> str:
    remote, local = times_of(usage.user_s, usage.system_s), times_of(0, 0)
    return "".join([f"\t\t{remote}  -  {kind} Remote Usage\n\t\t{local}  -  {kind} Local Usage\n" for kind in kinds])


def _bytes(facts: Facts, *kinds: str) -> str:
    return "".join(
        [
            f"\t{facts.sent_bytes}  -  {kind} Bytes Sent By Job\n"
            f"\t{facts.received_bytes}  -  {kind} Bytes Received By Job\n"
            for kind in kinds
        ]
    )


def _submitted(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    return f"Job submitted from host: <{address}>\n"


def _executing(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    return f"Job executing on host: {node_of(slot)}\n\tSlotName: {slot}\n"


def _evicted(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    reason = line_of(facts.reason)
    why = f"\tReason: {reason}\n" if reason else ""
    return f"Job was evicted.\n\t(0) CPU times\n{_usages(facts.usage, 'Run')}{_bytes(facts, 'Run')}{why}"


def _terminated(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    if facts.outcome in (Outcome.OK, Outcome.EXIT):
        how = f"\t(1) Normal termination (return value {facts.code})\n"
    else:
        number = facts.code if facts.outcome == Outcome.SIGNAL else 9
        how = f"\t(0) Abnormal termination (signal {number})\n\t(0) No core file\n"
    table = "" if needs is None else _resources(facts.usage, needs)
    return f"Job terminated.\n{how}{_usages(facts.usage, 'Run', 'Total')}{_bytes(facts, 'Run', 'Total')}{table}"


def _image_size(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    kib = kib_of(facts.usage.memory_bytes)
    memory = f"\t{mib_of(facts.usage.memory_bytes)}  -  MemoryUsage of job (MB)\n"
    return f"Image size of job updated: {kib}\n{memory}\t{kib}  -  ResidentSetSize of job (KB)\n"


def _aborted(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    reason = line_of(facts.reason)
    return f"Job was aborted.\n\t{reason}\n" if reason else "Job was aborted.\n"


def _suspended(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    return "Job was suspended.\n\tNumber of processes actually suspended: 1\n"


def _unsuspended(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    return "Job was unsuspended.\n"


def _held(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    reason = line_of(facts.reason) or "Reason unspecified"
    return f"Job was held.\n\t{reason}\n\tCode {facts.hold_code} Subcode {facts.hold_subcode}\n"


def _released(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    reason = line_of(facts.release_reason)
    return f"Job was released.\n\t{reason}\n" if reason else "Job was released.\n"


def _disconnected(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    reason = line_of(facts.reason) or "Contact was lost"
    trying = f"    Trying to reconnect to {slot} {node_of(slot)}\n"
    return f"Job disconnected, attempting to reconnect\n    {reason}\n{trying}"


def _reconnected(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    node = node_of(slot)
    return f"Job reconnected to {slot}\n    startd address: {node}\n    starter address: {node}\n"


def _reconnect_failed(facts: Facts, slot: str, address: str, needs: Resources | None) -> str:
    reason = line_of(facts.reason) or "The lease is over"
    return f"Job reconnection failed\n    {reason}\n    Can not reconnect to {slot}, rescheduling job\n"


#: Event -> what follows the date.
_BODIES: dict[int, Callable[[Facts, str, str, Resources | None], str]] = {
    SUBMITTED: _submitted,
    EXECUTING: _executing,
    EVICTED: _evicted,
    TERMINATED: _terminated,
    IMAGE_SIZE: _image_size,
    ABORTED: _aborted,
    SUSPENDED: _suspended,
    UNSUSPENDED: _unsuspended,
    HELD: _held,
    RELEASED: _released,
    DISCONNECTED: _disconnected,
    RECONNECTED: _reconnected,
    RECONNECT_FAILED: _reconnect_failed,
}


# ---- the table of resources --------------------------------------------------------------------------------------


def kib_of(size_bytes: int) -> int:
    return (size_bytes + 1023) >> 10


def mib_of(size_bytes: int) -> int:
    return (size_bytes + (1 << 20) - 1) >> 20


def _resources(usage: Usage, needs: Resources) -> str:
    """Usage, request and allocation of each resource, in alphabetical order. A slot is as large as was asked for."""
    cpus_used = (usage.user_s + usage.system_s) / usage.wall_s if usage.wall_s > 0 else None
    disk, memory = kib_of(needs.disk_bytes) or None, mib_of(needs.memory_bytes) or None
    rows: list[tuple[str, tuple[float | None, ...]]] = [
        ("Cpus", (cpus_used, needs.cpus, needs.cpus)),
        ("Disk (KB)", (kib_of(usage.disk_bytes), disk, disk)),
        ("Memory (MB)", (mib_of(usage.memory_bytes), memory, memory)),
    ]
    if needs.gpus:
        rows.insert(2, ("GPUs", (None, needs.gpus, needs.gpus)))
    columns = [_column([cells[index] for _, cells in rows], _TABLE_WIDTHS[index]) for index in range(3)]
    titles = [title.rjust(len(column[0])) for title, column in zip(_TABLE_TITLES, columns, strict=True)]
    lines = [f"\t{_TABLE_HEAD} : {' '.join(titles)} \n"]
    for index, (name, _) in enumerate(rows):
        cells = " ".join([column[index] for column in columns])
        lines.append(f"\t   {name:<{len(_TABLE_HEAD) - 2}}: {cells} \n")
    return "".join(lines)


def _column(values: list[float | None], width: int) -> list[str]:
    """Cells of one width; where one has a fraction, whole numbers line up with it."""
    rounded = [None if value is None else round(value, 2) for value in values]
    fractions = any(value is not None and not math.isclose(value, round(value)) for value in rounded)
    cells = []
    for value in rounded:
        if value is None:
            cells.append("")
        elif math.isclose(value, round(value)):
            cells.append(f"{round(value)}{'   ' if fractions else ''}")
        else:
            cells.append(f"{value:.2f}")
    width = max(width, *[len(cell) for cell in cells])
    return [cell.rjust(width) for cell in cells]
