"""Row 4: what a submission costs its user, and how many single tasks a second 100 submitters get accepted.

The wall time of condor_submit stands beside an empty run of the same interpreter. The parallel submitters are 100
connections of one process, which send what condor_submit sends; each answer comes after the commit.
"""

from __future__ import annotations

import argparse
import functools
import selectors
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

from dialog import Door, Submission, accepted, request
from figures import US, Goal, Rounds, Sample, new_parser
from pool import Pool, cpu_per_task
from pools import SHIMS

#: Waits in the queue for ever, so that nothing else runs meanwhile.
WAITING = "executable = /bin/true\ntransfer_executable = false\nrequest_cpus = 100000\nqueue\n"
KEPT, FRESH = f"{US}, kept connections", f"{US}, a connection each"
_HEAD_END = b"\r\n\r\n"


def wall_ms(argv: list[str], pool: Pool) -> float:
    start = time.perf_counter()
    subprocess.run(
        argv, env=pool.environ, cwd=pool.cwd, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    return 1e3 * (time.perf_counter() - start)


def shim(pool: Pool, count: int) -> Sample:
    """One at a time, the two in turns."""
    python = shutil.which("python3", path=pool.environ["PATH"])
    assert python is not None
    pool.write(WAITING)
    empty, submit = [], []
    for _ in range(count):
        empty.append(wall_ms([python, "-I", "-S", "-c", "pass"], pool))
        submit.append(wall_ms([str(SHIMS / "condor_submit"), "task.sub"], pool))
    base, whole = statistics.median(empty), statistics.median(submit)
    return {"empty_ms": base, "submit_ms": whole, "over_ms": whole - base}


class Submitter:
    """One of many: sends a request, reads its answer, sends the next."""

    def __init__(self, home: str, submission: Submission, next_body: Callable[[], bytes | None], *, kept: bool) -> None:
        self._home, self._submission, self._next_body, self._kept = home, submission, next_body, kept
        self._door: Door | None = None
        self._data = b""
        self._started = 0.0
        self.spent_ms: list[float] = []

    def begin(self, selector: selectors.BaseSelector) -> bool:
        """Send the next request; false when there is none."""
        body = self._next_body()
        if body is None:
            return False
        self._started = time.perf_counter()
        if self._door is None:
            self._door = Door(self._home)
            selector.register(self._door.socket, selectors.EVENT_READ, self)
        self._data = b""
        self._door.socket.sendall(request("POST", "/condor", body))
        return True

    def on_data(self, selector: selectors.BaseSelector) -> bool:
        """Read; true when the answer is complete and good."""
        assert self._door is not None
        data = self._door.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the master closed a connection")
        self._data += data
        head, found, body = self._data.partition(_HEAD_END)
        if not found:
            return False
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < length:
            return False
        accepted(body)
        self.spent_ms.append(1e3 * (time.perf_counter() - self._started))
        if not self._kept:
            self.close(selector)
        return True

    def close(self, selector: selectors.BaseSelector) -> None:
        if self._door is not None:
            selector.unregister(self._door.socket)
            self._door.close()
            self._door = None


def parallel(pool: Pool, tasks: int, submitters: int, *, kept: bool) -> Sample:
    """So many tasks from so many submitters at the same time."""
    submission = pool.submission(WAITING)
    door = pool.door()
    submission.send(door)
    door.close()
    bodies = [submission.body() for _ in range(tasks)]
    before, commits = pool.cpu(), pool.status()["commits"]

    def next_body() -> bytes | None:
        return bodies.pop() if bodies else None

    crowd = [Submitter(str(pool.home), submission, next_body, kept=kept) for _ in range(submitters)]
    with selectors.DefaultSelector() as selector:
        start = time.perf_counter()
        busy = sum(one.begin(selector) for one in crowd)
        while busy:
            for key, _ in selector.select():
                one: Submitter = key.data
                if one.on_data(selector) and not one.begin(selector):
                    busy -= 1
        seconds = time.perf_counter() - start
        for one in crowd:
            one.close(selector)
    spent = sorted(ms for one in crowd for ms in one.spent_ms)
    counted: dict[str, Any] = {"commits a task": (pool.status()["commits"] - commits) / tasks}
    counted["answer ms, median"] = statistics.median(spent)
    return {"tasks_per_s": tasks / seconds, "cpu_us": cpu_per_task(before, pool.cpu(), tasks), "also": counted}


def on_pool(options: argparse.Namespace, measure: Callable[[Pool], Sample]) -> Sample:
    with Pool(1, scratch=options.scratch) as pool:
        return measure(pool)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=50, help="runs of condor_submit (%(default)s)")
    parser.add_argument("--tasks", type=int, default=5_000, help="of the parallel submitters (%(default)s)")
    parser.add_argument("--submitters", type=int, default=100, help="at the same time (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.count, options.tasks = 1, 10, min(options.tasks, 500)
    rounds = Rounds(4, {"count": options.count, "tasks": options.tasks, "submitters": options.submitters})
    kept = functools.partial(parallel, tasks=options.tasks, submitters=options.submitters, kept=True)
    fresh = functools.partial(parallel, tasks=options.tasks, submitters=options.submitters, kept=False)
    contestants = {
        US: functools.partial(on_pool, options, functools.partial(shim, count=options.count)),
        KEPT: functools.partial(on_pool, options, kept),
        FRESH: functools.partial(on_pool, options, fresh),
    }
    rounds.run(options.rounds, contestants)
    rounds.show("empty interpreter", "empty_ms", "ms", who=US)
    rounds.show("condor_submit", "submit_ms", "ms", who=US)
    rounds.show("condor_submit beyond an empty interpreter", "over_ms", "ms", goal=Goal(10, least=False))
    rounds.show("accepted single tasks", "tasks_per_s", "tasks/s", who=KEPT, goal=Goal(2000))
    rounds.show("accepted single tasks", "tasks_per_s", "tasks/s", who=FRESH)


if __name__ == "__main__":
    main()
