"""Files of a running DAG: lock, journal, the log of its nodes, `.dagman.out`, rescue, metrics."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from pilotq.dag.machine import Event, Machine
from pilotq.dag.records import read_journal, read_log, rescue_name, write_journal, write_rescue
from pilotq.errors import UserError
from pilotq.scribe.outputs import sync_folder_of

_IN_MODIFY, _IN_FLAGS = 0x2, os.O_NONBLOCK | os.O_CLOEXEC
RESCUES_MAX = 100
#: How long the runner of a SUBDAG waits for its predecessor, which ends with the runner of the outer DAG.
LOCK_S = 10.0


class Lock:
    """At most one runner works on a DAG. The file stays after a kill: then the next one goes on from the journal."""

    def __init__(self, path: str, wait_s: float) -> None:
        """Raises: UserError."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    pid = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
                    raise UserError(f"{path}: another runner works on this DAG (pid {pid})", exit_code=1) from None
            time.sleep(0.05)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        os.unlink(self.path)
        os.close(self._descriptor)


def holder(path: str) -> str:
    """Process that holds this lock; "": nobody."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "?"
    finally:
        os.close(descriptor)


class Journal:
    """Events of the machine, each on the disk before anything is done because of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        data = Path(path).read_bytes()
        self.records: list[Event]
        self.records, size = read_journal(data)
        if size < len(data):
            os.ftruncate(self._descriptor, size)

    def restart(self, header: Event) -> None:
        os.ftruncate(self._descriptor, 0)
        self.records = []
        self.append([header])
        sync_folder_of(os.path.abspath(self.path))

    def append(self, records: list[Event]) -> None:
        data = write_journal(records)
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fdatasync(self._descriptor)

    def remove(self) -> None:
        os.unlink(self.path)


class NodesLog:
    """The log that the events of all jobs of a DAG go to; `descriptor` is readable when it grew."""

    def __init__(self, path: str, offset: int) -> None:
        self.path, self.offset = path, offset
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = libc.inotify_init1(_IN_FLAGS)
        libc.inotify_add_watch(self.descriptor, os.fsencode(path), _IN_MODIFY)

    def read(self) -> list[Event]:
        try:
            os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            pass
        data = bytearray()
        while part := os.pread(self._file, 1 << 20, self.offset + len(data)):
            data += part
        events, size = read_log(bytes(data))
        self.offset += size
        return events


class Out:
    """`.dagman.out`."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115

    def say(self, *lines: str) -> None:
        now = time.strftime("%m/%d/%y %H:%M:%S ")
        self._file.writelines(f"{now}{line}\n" for line in lines)

    def flush(self) -> None:
        self._file.flush()


def last_rescue(file: str) -> int:
    """Number of the newest rescue file; 0: there is none."""
    return next((n for n in range(RESCUES_MAX, 0, -1) if os.path.exists(rescue_name(file, n))), 0)


def save_rescue(machine: Machine, file: str) -> str:
    """Write a rescue file; its name."""
    path = rescue_name(file, min(last_rescue(file) + 1, RESCUES_MAX))
    text = write_rescue(machine, file, time.strftime("%m/%d/%Y %H:%M:%S", time.gmtime()))
    with open(f"{path}.tmp", "w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(f"{path}.tmp", path)
    sync_folder_of(os.path.abspath(path))
    return path


def save_metrics(machine: Machine, file: str, started_at: float, rescue: int, version: str) -> None:
    runs = [run for run in machine.nodes if not run.node.is_final]
    inner = [run for run in runs if run.node.is_subdag]

    def count(some: list[Any], name: str) -> int:
        return sum(1 for run in some if run.state.name == name)

    outer = [run for run in runs if not run.node.is_subdag]
    ended_at = time.time()
    found = {
        "client": "condor_dagman",
        "version": version,
        "type": "metrics",
        "start_time": round(started_at, 3),
        "end_time": round(ended_at, 3),
        "duration": round(ended_at - started_at, 3),
        "exitcode": machine.exit_code,
        "dagman_id": "",
        "parent_dagman_id": "",
        "rescue_dag_number": rescue,
        "jobs": len(outer),
        "jobs_failed": count(outer, "FAILED"),
        "jobs_succeeded": count(outer, "DONE"),
        "dag_jobs": len(inner),
        "dag_jobs_failed": count(inner, "FAILED"),
        "dag_jobs_succeeded": count(inner, "DONE"),
        "total_jobs": len(runs),
        "total_jobs_run": count(runs, "FAILED") + count(runs, "DONE"),
        "DagStatus": int(machine.ending),
    }
    with open(f"{file}.metrics", "w", encoding="utf-8") as out:
        json.dump(found, out, indent=4)
        out.write("\n")
