"""The same kills for others: what is lost, reported twice, or run twice, beside pilotq.

Every contestant gets the same tasks, each of which writes a line at its start and its end, on two workers of two slots.
In one run workers are killed again and again; in another the process that holds the queue is killed once, half way, and
started again where its manual tells how. Prints a line of JSON a run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pool import ROOT, StormPool  # first: it makes the other modules findable

sys.path.insert(0, str(ROOT / "tests/bench"))

from contestants import cache_directory, python_of, version_of  # isort: skip
from parts import free_ports, wait_for  # isort: skip

PEERS = Path(__file__).resolve().parent / "peers"
COMMAND = "echo start {n} >> {ledger}; sleep 0.2; echo end {n} >> {ledger}"
WORKERS, SLOTS = 2, 2
#: A worker is killed so often, so many seconds apart.
KILLS, KILL_S = 8, 4.0
#: Without a sign of life for so long nothing more is expected; the longest heartbeat among them is 120 s.
QUIET_S = 180.0
#: Longest run.
LONG_S = 600.0


class Contest:
    """One contestant under one kind of kill."""

    name = ""

    def __init__(self, base: Path, tasks: int, cache: Path) -> None:
        self.base, self.tasks, self.cache = base, tasks, cache
        self.ledger = base / "ledger"
        self.ledger.touch()
        self.reports: list[tuple[int, str]] = []
        self.started: list[subprocess.Popen[Any]] = []
        self.app: subprocess.Popen[str] | None = None
        self._said = (base / "said").open("wb")

    def commands(self) -> str:
        return "".join(COMMAND.format(n=n, ledger=self.ledger) + "\n" for n in range(self.tasks))

    def spawn(self, argv: list[Any], **more: Any) -> subprocess.Popen[Any]:
        """In a process group of its own, so that all of it can be ended."""
        process = subprocess.Popen(
            list(map(str, argv)), cwd=self.base, stderr=self._said, start_new_session=True, **more
        )
        self.started.append(process)
        return process

    def run_app(self, argv: list[Any]) -> None:
        """Give it the commands, read what is reported to it."""
        self.app = self.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._feed, args=(self.app,), daemon=True).start()
        threading.Thread(target=self._read, args=(self.app,), daemon=True).start()

    def _feed(self, app: subprocess.Popen[str]) -> None:
        assert app.stdin is not None
        with contextlib.suppress(OSError):
            app.stdin.write(self.commands())
            app.stdin.close()

    def _read(self, app: subprocess.Popen[str]) -> None:
        assert app.stdout is not None
        for line in app.stdout:
            number, _, how = line.strip().partition(" ")
            if number.isdigit():
                self.reports.append((int(number), how))

    def ended(self) -> int:
        return len(set(re.findall(r"^end (\d+)$", self.ledger.read_text(), re.M)))

    def is_over(self) -> bool:
        return self.app is not None and self.app.poll() is not None

    # What each contestant says of itself.

    def up(self) -> None: ...

    def kill_worker(self, choose: random.Random) -> bool:
        """False when it has no worker that could be killed alone."""
        return False

    def kill_head(self) -> None:
        """Kill what holds the queue, and start it again."""

    def version(self) -> str:
        return version_of(self.name, self.cache)

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kill_tree(pid: int) -> None:
    """A worker and what it has started, as when its node goes."""
    for child in children(pid):
        kill_tree(child)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def find(base: Path, what: str) -> list[int]:
    """Processes below this directory whose command line names something."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and what in command(int(entry)):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd").startswith(str(base)):
                    found.append(int(entry))
    return found


class WorkQueue(Contest):
    name = "workqueue"

    def up(self) -> None:
        program = self.cache / "storm-workqueue"
        flags = ["-std=gnu11", "-O2", "-I/usr/include/cctools"]
        libraries = ["-lwork_queue", "-ldttools", "-lz", "-lm", "-lpthread", "-ldl"]
        subprocess.run(["gcc", *flags, "-o", program, PEERS / "storm_workqueue.c", *libraries], check=True)
        self.run_app([program])
        wait_for("its port", lambda: self.reports or self._port)

    _port = 0
    _workers: list[subprocess.Popen[Any]]

    def _read(self, app: subprocess.Popen[str]) -> None:
        assert app.stdout is not None
        self._port = int(app.stdout.readline())
        self._workers = [self._worker() for _ in range(WORKERS)]
        super()._read(app)

    def _worker(self) -> subprocess.Popen[Any]:
        where = tempfile.mkdtemp(dir=self.base)
        argv = ["work_queue_worker", "--cores", SLOTS, "--memory", 1000, "--disk", 1000, "--workdir", where]
        return self.spawn([*argv, "-t", 3600, "127.0.0.1", self._port], stdout=subprocess.DEVNULL)

    def kill_worker(self, choose: random.Random) -> bool:
        index = choose.randrange(WORKERS)
        kill_tree(self._workers[index].pid)
        self._workers[index] = self._worker()
        return True

    def kill_head(self) -> None:
        """Its queue is in the application."""
        assert self.app is not None
        self.app.kill()


class Dask(Contest):
    name = "dask"

    def up(self) -> None:
        self._python = python_of("dask", self.cache)
        self._port = free_ports(1)
        self._scheduler()
        self._workers = [self._worker() for _ in range(WORKERS)]
        self.run_app([self._python, PEERS / "storm_dask.py", f"tcp://127.0.0.1:{self._port}"])

    def _scheduler(self) -> None:
        argv = [self._python, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", self._port]
        self._head = self.spawn([*argv, "--no-dashboard"], stdout=subprocess.DEVNULL)

    def _worker(self) -> subprocess.Popen[Any]:
        argv = [self._python, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{self._port}", "--no-dashboard"]
        argv += ["--nworkers", 1, "--nthreads", SLOTS, "--local-directory", self.base / "dask", "--memory-limit", 0]
        return self.spawn(argv, stdout=subprocess.DEVNULL)

    def kill_worker(self, choose: random.Random) -> bool:
        index = choose.randrange(WORKERS)
        kill_tree(self._workers[index].pid)
        self._workers[index] = self._worker()
        return True

    def kill_head(self) -> None:
        self._head.kill()
        self._head.wait()
        self._scheduler()


class Parsl(Contest):
    name = "parsl"

    def up(self) -> None:
        self._python = python_of("parsl", self.cache)
        path = f"{self._python.parent}:{os.environ['PATH']}"
        self._environ = {**os.environ, "PATH": path}
        self.run_app([self._python, PEERS / "storm_parsl.py", WORKERS, SLOTS])

    def spawn(self, argv: list[Any], **more: Any) -> subprocess.Popen[Any]:
        return super().spawn(argv, env=self._environ, **more)

    def kill_worker(self, choose: random.Random) -> bool:
        """Its executor starts another block when one is gone."""
        pools = [
            pid for pid in find(self.base, "process_worker_pool") if "process_worker_pool" not in command(parent(pid))
        ]
        if pools:
            kill_tree(choose.choice(pools))
        return bool(pools)

    def kill_head(self) -> None:
        """The interchange is started once, by the application."""
        for pid in find(self.base, "interchange"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class HyperQueue(Contest):
    name = "hyperqueue"

    def up(self) -> None:
        python = python_of("hyperqueue", self.cache)
        self.run_app([python, PEERS / "storm_hyperqueue.py", WORKERS * SLOTS, self.base])

    def kill_head(self) -> None:
        """Server, worker and client are one process of its wheel, which has no journal."""
        assert self.app is not None
        self.app.kill()


class Pilotq(Contest):
    name = "pilotq"

    def up(self) -> None:
        self._pool = StormPool(self.base / "pool", WORKERS, 1, SLOTS, None)
        self._pool.up()
        script = self._pool.cwd / "task.sh"
        script.write_text("#!/bin/sh\n" + COMMAND.format(n="$1", ledger=self.ledger) + "\n")
        script.chmod(0o755)
        text = "executable = task.sh\narguments = $(Process)\nlog = log\nqueue {}\n"
        self._cluster = self._pool.submit(text.format(self.tasks))

    def kill_worker(self, choose: random.Random) -> bool:
        name = choose.choice(self._pool.workers)
        kill_tree(self._pool.pid(name))
        self._pool.kill9(name)
        self._pool.start(name)
        return True

    def kill_head(self) -> None:
        self._pool.kill9("master")
        self._pool.start("master")

    def is_over(self) -> bool:
        """What its user reads are the log and the history."""
        log = self._pool.cwd / "log"
        ended = re.findall(r"^005 \(\d+\.(\d+)\.", log.read_text(), re.M) if log.exists() else []
        self.reports = [(int(proc), "0") for proc in ended]
        return len(ended) >= self.tasks

    def version(self) -> str:
        return self._pool.pilotq("--version").stdout.split()[-1]

    def close(self) -> None:
        self._pool.close()


CONTESTANTS: dict[str, type[Contest]] = {one.name: one for one in (Pilotq, WorkQueue, Dask, Parsl, HyperQueue)}


@contextlib.contextmanager
def contest(kind: type[Contest], tasks: int, cache: Path) -> Iterator[Contest]:
    base = Path(tempfile.mkdtemp(prefix="pilotq-contest-"))
    (base / "pool").mkdir()
    one = kind(base, tasks, cache)
    try:
        one.up()
        yield one
    finally:
        one.close()
        shutil.rmtree(base, ignore_errors=True)


def run(kind: type[Contest], what: str, tasks: int, cache: Path) -> dict[str, Any]:
    """Kill workers until the end, or the head once."""
    choose = random.Random(1)
    with contest(kind, tasks, cache) as one:
        kills, killed_at, seen, changed_at = 0, time.monotonic(), 0, time.monotonic()
        began = time.monotonic()
        is_possible = True
        while not one.is_over() and time.monotonic() - changed_at < QUIET_S and time.monotonic() - began < LONG_S:
            time.sleep(0.1)
            now = time.monotonic()
            done = one.ledger.stat().st_size + len(one.reports)
            if done != seen:
                seen, changed_at = done, now
            if what == "workers" and is_possible and kills < KILLS and seen and now - killed_at > KILL_S:
                killed_at = now
                is_possible = one.kill_worker(choose)
                kills += is_possible
            if what == "head" and not kills and one.ended() >= tasks // 2:
                one.kill_head()
                kills = 1
        seconds = time.monotonic() - began
        one.is_over()
        return {
            "contestant": one.name,
            "version": one.version(),
            "killed": what,
            "kills": kills,
            "seconds": round(seconds),
            **count(one, tasks),
        }


def count(one: Contest, tasks: int) -> dict[str, Any]:
    reported = Counter(number for number, how in one.reports if how == "0")
    failed = {number for number, how in one.reports if how != "0"} - set(reported)
    starts = Counter(re.findall(r"^start (\d+)$", one.ledger.read_text(), re.M))
    return {
        "tasks": tasks,
        "lost": tasks - len(reported) - len(failed),
        "reported as failed": len(failed),
        "failures": dict(Counter(how for number, how in one.reports if number in failed)),
        "reported twice": sum(1 for times in reported.values() if times > 1),
        "run again": sum(times - 1 for times in starts.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/chaos/contest.py", description=__doc__)
    parser.add_argument("--tasks", type=int, default=600, help="(%(default)s)")
    parser.add_argument("--only", help="contestants, comma separated")
    parser.add_argument("--cache", help="where peers are installed (~/.cache/pilotq-bench)")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(CONTESTANTS)
    for name in names:
        for what in ("workers", "head"):
            if name == "hyperqueue" and what == "workers":
                continue
            found = run(CONTESTANTS[name], what, options.tasks, cache_directory(options.cache))
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
