"""Processes that we started: told apart by pid and start time, begun detached, ended by pidfd."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pilotq.proc import start_ticks

_PR_SET_PDEATHSIG = 1


class Process(NamedTuple):
    """One process of a role, as it described itself in its record."""

    role: str
    name: str
    pid: int
    #: Start time in clock ticks since boot; with the pid it names a process for good.
    started: int
    #: Where it listens; 0: nowhere.
    port: int = 0

    def is_alive(self) -> bool:
        return self.pid > 0 and start_ticks(self.pid) == self.started

    def __str__(self) -> str:
        return f"{self.name or self.role} (pid {self.pid})"


def read_json(path: str) -> dict[str, Any]:
    """The object in a file; empty when it is not there or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """Replace a file in one step."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(temporary, path)


def to_process(record: Mapping[str, Any]) -> Process:
    def number(name: str) -> int:
        value = record.get(name)
        return value if isinstance(value, int) else 0

    name = str(record.get("name") or record.get("role") or "")
    role = str(record.get("role") or name.partition("-")[0])
    return Process(role, name, number("pid"), number("started"), number("port"))


def read_records(state_dir: str) -> list[Process]:
    """The processes of this state directory, alive or not, in the order of their start.

    They left a record in `run`, or `up` wrote down in pool.json that it started them.
    """
    try:
        names = sorted(os.listdir(f"{state_dir}/run"))
    except OSError:
        names = []
    records = [*read_json(f"{state_dir}/pool.json").get("started", [])]
    records += [read_json(f"{state_dir}/run/{name}") for name in names if name.endswith(".json")]
    found = {one.pid: one for one in map(to_process, records) if one.pid}
    return sorted(found.values(), key=lambda one: one.started)


def start_detached(
    words: Sequence[str],
    log: str,
    environ: Mapping[str, str] | None = None,
    *,
    dies_with_us: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `pilotq WORDS` in a session of its own, with its output at the end of a log file.

    With `dies_with_us` the kernel sends it SIGTERM when this process is gone.
    """
    libc = ctypes.CDLL(None) if dies_with_us else None
    parent = os.getpid()

    def before() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    with open(log, "ab") as output:
        return subprocess.Popen(
            command(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environ,
            start_new_session=True,
            preexec_fn=before if dies_with_us else None,  # noqa: PLW1509 (no threads here)
        )


def command(words: Sequence[str]) -> list[str]:
    """The argv that runs `pilotq WORDS` as this process runs."""
    isolated = ["-I"] if sys.flags.isolated else []
    return [sys.executable, *isolated, "-X", "utf8", "-m", "pilotq", *words]


def stop(processes: Iterable[Process], grace_s: float, *, polite: bool = True) -> list[Process]:
    """SIGTERM, and SIGKILL for those that are still there after the grace; returns these.

    A process that is not the one that was recorded is left alone.
    """
    with contextlib.ExitStack() as stack:
        waiting: dict[int, Process] = {}
        for process in processes:
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(process.pid)
                stack.callback(os.close, descriptor)
                if process.is_alive():
                    waiting[descriptor] = process
        if polite:
            _signal(waiting, signal.SIGTERM)
            _wait(waiting, grace_s)
        killed = list(waiting.values())
        _signal(waiting, signal.SIGKILL)
        _wait(waiting, 10.0)
        return killed


def _signal(waiting: Mapping[int, Process], number: signal.Signals) -> None:
    for descriptor in waiting:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def _wait(waiting: dict[int, Process], timeout_s: float) -> None:
    """Take out those that end in time."""
    end = time.monotonic() + timeout_s
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting and (left := end - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            del waiting[descriptor]


def last_line(log: str) -> str:
    """The last line of a log file that says something."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
