"""What the kernel tells of processes and of this machine, read from /proc."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """CPU time in seconds: of a process, and of its children that were waited for."""

    own_s: float
    children_s: float


def read(path: str) -> str:
    """A file of /proc; empty when it is gone."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """From the state on, which is number 0; empty when the process is gone."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def cpu(pid: int) -> Cpu:
    """Source: proc(5), /proc/pid/stat."""
    words = _stat(pid)
    if len(words) < 15:
        return Cpu(0.0, 0.0)
    return Cpu((int(words[11]) + int(words[12])) * _TICK_S, (int(words[13]) + int(words[14])) * _TICK_S)


def is_gone(pid: int) -> bool:
    """Ended with all of its threads, so that its files are closed; whether its parent knows or not."""
    words = _stat(pid)
    if not words:
        return True
    with contextlib.suppress(OSError):
        return words[0] in "ZX" and len(os.listdir(f"/proc/{pid}/task")) == 1
    return True


def children(pid: int) -> list[int]:
    """Of all threads of a process."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    for thread in threads:
        found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for child in children(pid):
        found += family(child)
    return found


def memory_bytes(pid: int) -> dict[str, int]:
    """Resident, proportional and private memory of a process; empty when it is gone.

    Source: proc(5), /proc/pid/smaps_rollup.
    """
    sums = {name: 1024 * int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", read(f"/proc/{pid}/smaps_rollup"))}
    if not sums:
        return {}
    private = sums.get("Private_Clean", 0) + sums.get("Private_Dirty", 0)
    return {"rss": sums.get("Rss", 0), "pss": sums.get("Pss", 0), "private": private}


def most_memory(pid: int) -> int:
    """The most that a process has had resident, bytes.

    Source: proc(5), /proc/pid/status.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB", read(f"/proc/{pid}/status"), re.M)
    return 1024 * int(found[1]) if found else 0


def private_bytes(pids: Iterable[int]) -> int:
    """Private memory of several processes."""
    return sum(memory_bytes(pid).get("private", 0) for pid in pids)


def count_named(parents: Iterable[int], name: str) -> int:
    """Children of these processes that run a program of this name.

    Cost: one read a parent and one a child.
    """
    wanted = name + "\n"
    return sum(read(f"/proc/{pid}/comm") == wanted for parent in parents for pid in children(parent))


def file_system(path: str | os.PathLike[str]) -> str:
    """Type of the file system that holds a path."""
    real = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in read("/proc/self/mounts").splitlines():
        _, point, found, *_ = line.split()
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, found
    return kind


def facts() -> dict[str, Any]:
    """Of the machine, without its name."""
    model = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal: +(\d+)", read("/proc/meminfo"))
    system = re.search(r'PRETTY_NAME="(.*)"', read("/etc/os-release"))
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1) if memory else 0,
        "virtual": "hypervisor" in read("/proc/cpuinfo"),
        "kernel": platform.release().partition("-")[0],
        "system": system[1] if system else platform.system(),
        "python": platform.python_version(),
        "compiler": _first_line(["gcc", "--version"]),
        "pid_max": int(read("/proc/sys/kernel/pid_max") or 0),
    }


def _first_line(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0]
