"""What the runner reads and writes as text: events of the user log, the journal, rescue files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from pilotq.dag.machine import REMOVED, Event, Machine, State
from pilotq.dag.model import Dag

_HEAD = re.compile(rb"(\d{3}) \((-?\d+)\.(-?\d+)\.-?\d+\)")
_NORMAL = re.compile(rb"\(1\) Normal termination \(return value (-?\d+)\)")
_ABNORMAL = re.compile(rb"\(0\) Abnormal termination \(signal (\d+)\)")
_END = b"\n...\n"
#: Events of the user log that say where a proc is. Source: HTCondor manual, job event log codes.
_PLACES = {b"001": "executing", b"004": "idle", b"012": "held", b"013": "idle"}


def read_log(data: bytes) -> tuple[list[Event], int]:
    """Events of whole records, and how many bytes these are."""
    end = data.rfind(_END)
    if end < 0:
        return [], 0
    found: list[Event] = []
    for record in data[:end].split(_END):
        head = _HEAD.match(record)
        if head is None:
            continue
        number, cluster, proc = head[1], int(head[2]), int(head[3])
        if number in _PLACES:
            found.append((_PLACES[number], cluster, proc))
        elif number == b"005":
            normal = _NORMAL.search(record)
            abnormal = _ABNORMAL.search(record)
            found.append(("ended", cluster, proc, int(normal[1]) if normal else -int(abnormal[1] if abnormal else 9)))
        elif number == b"009":
            found.append(("ended", cluster, proc, REMOVED))
    return found, end + len(_END)


# ---- the journal -------------------------------------------------------------------------------------------------


def write_journal(records: Iterable[Event]) -> bytes:
    return b"".join([json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records])


def read_journal(data: bytes) -> tuple[list[Event], int]:
    """Records of whole lines, and how many bytes these are: a crash may have cut the last line short."""
    end = data.rfind(b"\n") + 1
    return [tuple(json.loads(line)) for line in data[:end].splitlines()], end


# ---- rescue ------------------------------------------------------------------------------------------------------


def rescue_name(file: str, number: int) -> str:
    return f"{file}.rescue{number:03d}"


def write_rescue(machine: Machine, file: str, created: str) -> str:
    """A rescue file: what is done, to be read together with the DAG. `created`: the moment, as it is shown."""
    runs = [run for run in machine.nodes if not run.node.is_final]
    failed = [run.node.name for run in runs if run.state == State.FAILED]
    done = [run.node.name for run in runs if run.state == State.DONE]
    lines = [
        "# Rescue DAG file, created after running",
        f"#   the {file} DAG file",
        f"# Created {created} UTC",
        "# Rescue DAG version: 2.0.1 (partial)",
        "#",
        f"# Total number of Nodes: {len(machine.runs)}",
        f"# Nodes premarked DONE: {len(done)}",
        f"# Nodes that failed: {len(failed)}",
        f"#   {','.join([*failed, '<ENDLIST>'])}",
        "",
        *[f"DONE {name}" for name in done],
    ]
    for run in runs:
        if run.node.retries and run.state != State.DONE:
            unless = "" if run.node.unless_exit is None else f" UNLESS-EXIT {run.node.unless_exit}"
            lines += ["", f"RETRY {run.node.name} {run.node.retries}{unless}"]
    return "\n".join(lines) + "\n"


def read_rescue(dag: Dag, text: str) -> None:
    """Mark the nodes done that a rescue file says are."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0].upper() == "DONE" and words[1] in dag.nodes:
            dag.nodes[words[1]].is_done = True


# ---- what people and programs look at ----------------------------------------------------------------------------


def summary(machine: Machine) -> str:
    """The table of `.dagman.out`."""
    s = State
    columns = [
        machine.done,
        machine.count(s.PRE),
        machine.count(s.SUBMITTING, s.QUEUED),
        machine.count(s.POST),
        machine.count(s.PRE_READY, s.READY, s.POST_READY),
        machine.count(s.WAITING),
        machine.failed,
        machine.count(s.FUTILE),
    ]
    return " ".join(f"{count:>8}" for count in columns)


SUMMARY_HEAD = (
    "  Done     Pre   Queued    Post   Ready   Un-Ready   Failed   Futile",
    "   ===     ===      ===     ===     ===        ===      ===      ===",
)
