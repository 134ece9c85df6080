"""Coming back: thousands of workers whose foreman or master dies.

Simulated workers (`pilotq.roles.simulated`) with a task in every slot, each a CURVE connection of its own that watches
its connection and backs off as a real one. A foreman is killed, and its workers go to another; the master is killed and
started again, with workers connected to it directly, or through foremen. How long until all of them are welcome again,
how late the master's loop came to what was due meanwhile, and how many tasks were not taken back.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType

import machine
import msgspec
from figures import US, Goal, Rounds, Sample, new_parser
from pool import ROOT, Pool

from pilotq.roles.simulated import Plan, Report

MOVED, BACK, LAG = Goal(30.0, least=False), Goal(60.0, least=False), Goal(250.0, least=False)
#: A worker takes four descriptors, its monitor included, and more while it tries to connect.
EACH = 1000
AWAY_S = 2.0


class Fleet:
    """The processes that hold the workers, and what they tell."""

    def __init__(self, pool: Pool, workers: int, is_direct: bool) -> None:
        self.workers = workers
        ports = [pool.environ["WQ_MASTER"]]
        if not is_direct:
            first = int(pool.environ["WQ_MASTER_BASEPORT"])
            ports = [f"127.0.0.1:{first + index}" for index in range(pool.foremen)]
        self._reports: list[Report] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for first in range(0, workers, EACH):
            plan = Plan(
                token=str(pool.home / "worker.token"),
                endpoints=[f"tcp://{port}" for port in ports],
                is_direct=is_direct,
                workers=min(EACH, workers - first),
                slots=1,
                ahead=0,
                task_s=3600.0,
                spread=False,
                comes_back=True,
            )
            self._start(pool, plan)

    def _start(self, pool: Pool, plan: Plan) -> None:
        argv = [str(ROOT / "bin/pilotq"), "simulated"]
        with (pool.base / "fleet.log").open("ab") as log:
            process = subprocess.Popen(
                argv, env=pool.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd="/"
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        process.stdin.flush()
        self._processes.append(process)
        self._reports.append(Report())
        threading.Thread(target=self._listen, args=(len(self._reports) - 1,), daemon=True).start()

    def _listen(self, index: int) -> None:
        stream = self._processes[index].stdout
        assert stream is not None
        for line in stream:
            self._reports[index] = msgspec.json.decode(line, type=Report)

    def sum(self, name: str) -> int:
        for report in self._reports:
            if report.error:
                raise RuntimeError(report.error)
        return sum(getattr(report, name) for report in self._reports)

    def wait(self, name: str, check: Callable[[int], bool], timeout_s: float = 100.0) -> None:
        end = time.monotonic() + timeout_s
        while not check(self.sum(name)):
            if time.monotonic() > end:
                raise RuntimeError(f"after {timeout_s:.0f} s {name} is {self.sum(name)} of {self.workers}")
            time.sleep(0.02)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def filled(pool: Pool, fleet: Fleet) -> int:
    """All are welcome, and each has a task; their cluster."""
    fleet.wait("joined", lambda count: count == fleet.workers)
    text = "executable = /bin/true\ntransfer_executable = false\n"
    cluster = pool.submit(f"{text}queue {fleet.workers}\n")
    fleet.wait("filled", lambda count: count >= fleet.workers - 1)
    return cluster


def lose_foreman(options: argparse.Namespace) -> Sample:
    """All are at one foreman, which dies; the other one is there."""
    with Pool(1, foremen=2, scratch=options.scratch) as pool:
        first, second = sorted(pool.status()["foremen"], key=lambda foreman: foreman["name"])
        os.kill(second["pid"], signal.SIGKILL)
        with Fleet(pool, options.moving, False) as fleet:
            cluster = filled(pool, fleet)
            with (pool.base / "foreman.log").open("wb") as log:
                argv = [str(ROOT / "bin/pilotq"), "foreman", "--set", "foreman.index=1"]
                other = subprocess.Popen(argv, env=pool.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                end = time.monotonic() + 30
                while len({foreman["pid"] for foreman in pool.status()["foremen"]} - {second["pid"]}) < 2:
                    if time.monotonic() > end:
                        raise RuntimeError("the other foreman did not come")
                    time.sleep(0.2)
                before, start = fleet.sum("lost"), time.monotonic()
                os.kill(first["pid"], signal.SIGKILL)
                fleet.wait("lost", lambda lost: lost >= before + fleet.workers)
                fleet.wait("joined", lambda joined: joined == fleet.workers)
                moved_s = time.monotonic() - start
                lag = pool.status()["loop"]["lag_ms"]
                return {"moved_s": moved_s, "again": started_again(pool, cluster), "lag_ms": lag}
            finally:
                other.kill()
                other.wait()


def lose_master(options: argparse.Namespace, is_direct: bool) -> Sample:
    foremen = 1 if is_direct else options.foremen
    with Pool(1, foremen=foremen, scratch=options.scratch) as pool, Fleet(pool, options.workers, is_direct) as fleet:
        cluster = filled(pool, fleet)
        before = fleet.sum("lost")
        os.kill(pool.status()["master"]["pid"], signal.SIGKILL)
        time.sleep(AWAY_S)
        start = time.monotonic()
        with (pool.base / "master.log").open("wb") as log:
            argv = [str(ROOT / "bin/pilotq"), "master"]
            master = subprocess.Popen(argv, env=pool.environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            fleet.wait("lost", lambda lost: lost >= before + fleet.workers)
            fleet.wait("joined", lambda joined: joined == fleet.workers)
            seconds = time.monotonic() - start
            loop = pool.status()["loop"]
            lag = loop["lag_ms"]
            cpu = machine.cpu(master.pid).own_s
            again = started_again(pool, cluster)
            return {"back_s": seconds, "lag_ms": lag, "again": again, "also": {"CPU of the master, s": cpu, **loop}}
        finally:
            master.kill()
            master.wait()


def started_again(pool: Pool, cluster: int) -> int:
    """Tasks that have had more than one attempt."""
    said = pool.condor("condor_q", str(cluster), "-constraint", "NumJobStarts > 1", "-af", "ProcId")
    return len(said.split())


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--moving", type=int, default=5_000, help="workers that lose their foreman (%(default)s)")
    parser.add_argument("--workers", type=int, default=10_000, help="that lose the master (%(default)s)")
    parser.add_argument("--foremen", type=int, default=4, help="between (%(default)s)")
    parser.add_argument("--only", choices=["foreman", "direct", "through"], help="one of the three")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.moving, options.workers = 1, 200, 200
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    works = {
        "foreman": functools.partial(lose_foreman, options),
        "direct": functools.partial(lose_master, options, True),
        "through": functools.partial(lose_master, options, False),
    }
    for what, work in works.items():
        if options.only not in (None, what):
            continue
        rounds = Rounds(0, {"workers": options.moving if what == "foreman" else options.workers, "what": what})
        rounds.run(options.rounds, {US: work})
        if what == "foreman":
            rounds.show("all are welcome again after a foreman died", "moved_s", "s", goal=MOVED)
        else:
            rounds.show("all are welcome again after the master died", "back_s", "s", goal=BACK)
        rounds.show("lag of the master's loop meanwhile", "lag_ms", "ms", goal=LAG)
        rounds.show("tasks that were started again", "again", "tasks", goal=Goal(0, least=False))


if __name__ == "__main__":
    main()
