"""What all programs that drive a peer share: their options, their clock, what they print."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

WARM_UP = 50
#: Runs so many tasks to their end; a float it gives is the moment of that, earlier than that of its return.
Work = Callable[[int], Any]


def read_options(description: str | None, *modes: str) -> argparse.Namespace:
    """The same command line for all."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("mode", choices=modes, help="what to measure")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--queued", type=int, default=0, help="other tasks that wait meanwhile and fit nowhere")
    parser.add_argument("--scratch", help="a directory for what the peer writes")
    parser.add_argument("--program", help="a compiled program to run it with")
    return parser.parse_args()


def true() -> None:
    """The task of all peers whose tasks are Python functions."""
    subprocess.run(["/bin/true"], check=True)


def nothing() -> None:
    """A task that starts no process."""


def cpu_s() -> float:
    """CPU time of this process with all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def children(pid: int) -> list[int]:
    """Of all threads of a process."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (thread / "children").read_text("ascii").split())
    return found


def tell(found: Mapping[str, Any]) -> None:
    """The one line that is read."""
    print(json.dumps(found), flush=True)


def ended(said: Any) -> float:
    return said if isinstance(said, float) else time.perf_counter()


def measure_rate(tasks: int, work: Work) -> None:
    """Of all tasks given at once."""
    work(WARM_UP)
    busy, start = cpu_s(), time.perf_counter()
    seconds = ended(work(tasks)) - start
    spent = {"client": 1e6 * (cpu_s() - busy) / tasks}
    tell({"tasks": tasks, "seconds": seconds, "tasks_per_s": tasks / seconds, "cpu_us": spent})


def measure_latency(tasks: int, work: Work) -> None:
    """Of one task at a time."""
    work(WARM_UP)
    found = []
    for _ in range(tasks):
        start = time.perf_counter()
        found.append(1e3 * (ended(work(1)) - start))
    tell({"ms": found})


def measure(options: argparse.Namespace, work: Work) -> None:
    """What the command line asks for."""
    {"rate": measure_rate, "dispatch": measure_rate, "latency": measure_latency}[options.mode](options.tasks, work)


def results(futures: Iterable[Any]) -> None:
    """Wait for all; an error of a task is one of ours."""
    for future in futures:
        future.result()
