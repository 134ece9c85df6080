"""`bench`: how many tasks a second master and foremen pass on, with workers that start no process."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pilotq import proc, units
from pilotq.cli.context import SHIMS, is_on_network, make_directories, read_settings
from pilotq.cli.pool import Interrupted, Pool, interruptible
from pilotq.cli.processes import command
from pilotq.cli.temporary import find_local_directory, keep_logs, of_its_own
from pilotq.errors import InternalError, UnavailableError, UserError

if TYPE_CHECKING:
    from pilotq.roles.simulated import Plan, Report

#: What is run when nothing else is said.
TASKS = 200_000
#: Workers of one simulating process; each needs two descriptors, some more are for everything else.
WORKERS_EACH = 5000
DESCRIPTORS_EACH, DESCRIPTORS_MORE = 2, 200
#: So long without any news something is wrong, besides the time the tasks take.
SILENT_S = 120.0
#: With `--fill` there are tasks for so long after the slots should have been filled.
FILL_S = 120.0
#: Whose CPU is told.
ROLES = ("master", "foreman", "simulator")
#: What takes everything down.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: More than any worker has.
_TOO_MANY_CPUS = 1_000_000


def main(options: argparse.Namespace) -> int:
    _complete(options)
    _raise_limit(options.workers)
    parent = _find_parent(options.dir)
    with interruptible(*SIGNALS):
        home = tempfile.mkdtemp(prefix="pilotq-bench-", dir=parent)
        try:
            found = _run_in(home, options)
        except Interrupted as interrupt:
            return interrupt.exit_code
        except UnavailableError as error:
            raise UnavailableError(str(error), f"the logs are in {keep_logs(home)}", exit_code=1) from None
        finally:
            shutil.rmtree(home, ignore_errors=True)
    print(json.dumps(found) if options.json else _describe(found))
    return 0


def _run_in(home: str, options: argparse.Namespace) -> dict[str, Any]:
    overrides = {**options.overrides, **of_its_own(home, options.foremen), "foreman.count": str(options.foremen)}
    settings = read_settings(overrides)
    make_directories(settings)
    pool = Pool(settings, overrides, os.environ, dies_with_us=True, has_worker=False)
    try:
        return Bench(pool, options).run()
    except Interrupted:
        _say("stopping")
        raise
    finally:
        # It ends soon anyway: nothing may keep it from taking down what it started.
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        pool.stop_all()


def simulated(options: argparse.Namespace) -> int:
    from pilotq.roles.simulated import main as serve

    return serve()


def _complete(options: argparse.Namespace) -> None:
    """Fill in what was not said.

    Raises: UserError.
    """
    slots = options.workers * options.slots
    if options.fill and not options.task_s:
        raise UserError("--fill needs tasks that last", "give --task-s, as in `pilotq bench --fill --task-s 600`")
    if options.tasks is None:
        ended = slots * (FILL_S + options.watch) / options.task_s if options.fill else 0
        options.tasks = slots + int(ended) if options.fill else TASKS
    if options.fill and options.tasks < slots:
        raise UserError(f"{options.tasks} tasks cannot fill {slots} slots", "leave --tasks out, or ask for more")
    if options.ahead is None:
        options.ahead = _find_ahead(options.slots, options.task_s)


def _find_ahead(slots: int, task_s: float) -> int:
    """How many tasks of this length a real worker takes beyond its slots."""
    from pilotq.core.worker import AHEAD_MAX, AHEAD_S, SHORT_TASK_S

    return min(AHEAD_MAX, 1 + round(slots * AHEAD_S / max(task_s, 1e-3))) if task_s < SHORT_TASK_S else 0


def _find_parent(path: str | None) -> str:
    """The directory for the temporary home.

    Raises: UserError.
    """
    if path is None:
        return find_local_directory()
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--dir {path}: no directory that can be written to", "make it, or name another")
    if is_on_network(path):
        raise UserError(f"--dir {path} is on a network file system", "the queue needs a local disk")
    return os.path.abspath(path)


def _raise_limit(workers: int) -> None:
    """Let everything that we start open as many files as we may.

    Raises: UserError when that is too few.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        needed = DESCRIPTORS_EACH * min(workers, WORKERS_EACH) + DESCRIPTORS_MORE
        if needed > most:
            raise UserError(f"{workers} workers need {needed} open files, {most} are allowed", "raise `ulimit -Hn`")


class Simulators:
    """The processes that hold the workers; they end when this one does."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._children: list[subprocess.Popen[bytes]] = []
        self._reports: dict[int, Report] = {}
        self._parts: dict[int, bytes] = {}

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def start(self, plan: Plan) -> None:
        import msgspec

        from pilotq.roles.simulated import Report

        with open(f"{self._pool.settings.state_dir}/logs/simulated.log", "ab") as log:
            child = subprocess.Popen(
                command(["simulated"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._pool.environ,
                start_new_session=True,
            )
        self._children.append(child)
        assert child.stdin is not None
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        self._reports[child.stdout.fileno()] = Report()
        self._parts[child.stdout.fileno()] = b""
        child.stdin.write(msgspec.json.encode(plan) + b"\n")
        child.stdin.flush()

    def sum(self, name: str) -> int:
        return sum(getattr(report, name) for report in self._reports.values())

    def latest(self, name: str) -> float:
        return max(float(getattr(report, name)) for report in self._reports.values())

    def wait(self, name: str, count: int, silent_s: float) -> None:
        """Read reports until they have counted so many.

        Raises: UnavailableError when a process ended, or the count does not grow for so long.
        """
        last, end = -1, 0.0
        while (now := self.sum(name)) < count:
            if now > last:
                last, end = now, time.monotonic() + silent_s
            elif time.monotonic() > end:
                raise UnavailableError(f"{name}: {now} of {count}, and no more came for {silent_s:.0f} s")
            self._read_for(1.0)

    def watch(self, seconds: float) -> None:
        """Read reports for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read_for(min(left, 1.0))

    def _read_for(self, seconds: float) -> None:
        """Take what is there, or comes in this time."""
        for descriptor in select.select(list(self._reports), [], [], seconds)[0]:
            self._read(descriptor)
        self._pool.check_children()

    def _read(self, descriptor: int) -> None:
        import msgspec

        from pilotq.roles.simulated import Report

        data = os.read(descriptor, 1 << 16)
        if not data:
            raise UnavailableError("a process of simulated workers ended")
        *lines, self._parts[descriptor] = (self._parts[descriptor] + data).split(b"\n")
        if lines:
            self._reports[descriptor] = report = msgspec.json.decode(lines[-1], type=Report)
            if report.error:
                raise UnavailableError(report.error)

    def __enter__(self) -> Simulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for child in self._children:
            try:
                child.wait(5.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Bench:
    """One call of `pilotq bench`."""

    def __init__(self, pool: Pool, options: argparse.Namespace) -> None:
        self.pool, self.options = pool, options
        self.client = pool.client

    def run(self) -> dict[str, Any]:
        options, slots = self.options, self.options.workers * self.options.slots
        found: dict[str, Any] = {
            "tasks": options.tasks,
            "workers": options.workers,
            "slots": slots,
            "foremen": options.foremen,
            "queued": options.queued,
            "task_s": options.task_s,
        }
        self.pool.start_missing()
        if options.queued:
            self._submit(options.queued, cpus=_TOO_MANY_CPUS)
        with Simulators(self.pool) as simulators:
            found |= self._fill(simulators) if options.fill else self._dispatch(simulators)
        return found

    def _dispatch(self, simulators: Simulators) -> dict[str, Any]:
        """All tasks, from the submission until the last result is committed."""
        options = self.options
        began = time.monotonic()
        self._start(simulators)
        simulators.wait("joined", options.workers, SILENT_S)
        joined_s = simulators.latest("joined_at") - began
        _say(f"{units.format_count(options.workers, 'worker')} joined; submitting {options.tasks:,} tasks")
        before, messages, spent = self._status(), simulators.sum("messages"), self._cpu(simulators)
        began = time.monotonic()
        cluster = self._submit(options.tasks)
        simulators.wait("acked", options.tasks, SILENT_S + options.task_s)
        cpu = self._cpu(simulators)
        messages = simulators.sum("messages") - messages
        seconds = simulators.latest("acked_at") - began
        after = self._status()
        done = [one for one in self.client.get(f"/v1/clusters?ids={cluster}") if one["done"] == options.tasks]
        if not done:
            raise InternalError(f"not every task of cluster {cluster} is done though its result was acknowledged")
        return {
            "joined_s": round(joined_s, 3),
            "seconds": round(seconds, 4),
            "tasks_per_s": round(options.tasks / seconds, 1),
            **{f"{role}_cpu_us_per_task": round(1e6 * (cpu[role] - spent[role]) / options.tasks, 3) for role in cpu},
            "commits": after["commits"] - before["commits"],
            "messages_per_task": round(messages / options.tasks, 4),
            **after["loop"],
        }

    def _fill(self, simulators: Simulators) -> dict[str, Any]:
        """All slots, from the start of the workers with the tasks already queued; then a look at what goes on."""
        options, slots = self.options, self.options.workers * self.options.slots
        self._submit(options.tasks)
        self._status()
        began, before = time.monotonic(), self._cpu(simulators)
        self._start(simulators)
        simulators.wait("filled", slots, SILENT_S)
        filled_s = simulators.latest("filled_at") - began
        joined_s = simulators.latest("joined_at") - began
        _say(f"{slots:,} slots filled after {filled_s:.1f} s; watching for {options.watch:.0f} s")
        loop = self._status()["loop"]
        acked, spent, began = simulators.sum("acked"), self._cpu(simulators), time.monotonic()
        simulators.watch(options.watch)
        seconds, cpu = time.monotonic() - began, self._cpu(simulators)
        acked = simulators.sum("acked") - acked
        return {
            "joined_s": round(joined_s, 3),
            "filled_s": round(filled_s, 3),
            **{f"{role}_filled_cpu_s": round(spent[role] - before[role], 3) for role in spent},
            **{f"filled_{name}": value for name, value in loop.items()},
            "watch_s": round(seconds, 3),
            "ended_per_s": round(acked / seconds, 1),
            **{f"{role}_cpu_share": round((cpu[role] - spent[role]) / seconds, 4) for role in cpu},
            **self._status()["loop"],
        }

    def _start(self, simulators: Simulators) -> None:
        from pilotq.roles.simulated import Plan

        options, settings = self.options, self.pool.settings
        processes = -(-options.workers // WORKERS_EACH)
        share, more = divmod(options.workers, processes)
        for index in range(processes):
            plan = Plan(
                token=settings.worker_token,
                endpoints=[f"tcp://{endpoint}" for endpoint in settings.endpoints()],
                is_direct=not options.foremen,
                workers=share + (index < more),
                slots=options.slots,
                ahead=options.ahead,
                task_s=options.task_s,
                spread=options.fill,
            )
            simulators.start(plan)

    def _submit(self, count: int, cpus: int = 1) -> int:
        """Queue tasks as a user would; their cluster."""
        text = f"executable = /bin/true\ntransfer_executable = false\nrequest_cpus = {cpus}\nqueue {count}\n"
        environ = {**self.pool.environ, "PATH": f"{SHIMS}:{os.environ.get('PATH', os.defpath)}"}
        shim = [f"{SHIMS}/condor_submit", "-terse", "-"]
        done = subprocess.run(shim, env=environ, input=text, capture_output=True, check=False, text=True)
        if done.returncode:
            raise UnavailableError(f"condor_submit failed: {done.stderr.strip()}")
        return int(done.stdout.partition(".")[0])

    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/v1/status")
        self._pids = {"master": [found["master"]["pid"]], "foreman": [one["pid"] for one in found["foremen"]]}
        return found

    def _cpu(self, simulators: Simulators) -> dict[str, float]:
        """Seconds of CPU so far, by role."""
        pids = {**self._pids, "simulator": simulators.pids}
        return {role: sum(map(proc.cpu_s, ones)) for role, ones in pids.items()}


def _describe(found: dict[str, Any]) -> str:
    """What a person wants to read of it."""
    if "filled_s" in found:
        lines = [
            f"{found['slots']:,} slots of {units.format_count(found['workers'], 'worker')} filled in "
            f"{found['filled_s']:.1f} s (the last worker joined after {found['joined_s']:.1f} s)",
            f"then {found['ended_per_s']:.0f} tasks ended a second, and of a core "
            + ", ".join(f"{role} used {100 * found[f'{role}_cpu_share']:.1f} %" for role in ROLES),
        ]
    else:
        lines = [
            f"{units.format_count(found['tasks'], 'task')} in {found['seconds']:.2f} s: "
            f"{found['tasks_per_s']:,.0f} tasks/s, {found['commits']} commits",
            "CPU a task: " + ", ".join(f"{role} {found[f'{role}_cpu_us_per_task']:.1f} us" for role in ROLES),
        ]
    lines.append(f"the master's loop: longest turn {found['longest_turn_ms']} ms, lag {found['lag_ms']} ms")
    return "\n".join(lines)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"pilotq: {text}", file=sys.stderr, flush=True)
