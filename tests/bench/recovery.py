"""Recovery: how soon a master that was killed answers and dispatches again, with a million tasks in its queue.

A pool with one worker. Its master is killed, and its queue filled by a process that is killed as well: with one
description, or with a part of the tasks in rows of their own, half of those in clusters of their own. From the start of
the next master: until the first answer of `condor_q -totals`; until the worker, which waited, starts a task; and the
memory of master, query and scribe at most.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import machine
from figures import US, Goal, Rounds, Sample, new_parser
from pool import ROOT, Pool, new_directory  # noqa: F401 - its import makes pilotq importable

from pilotq.core.records import ClusterAdded, Record, TaskRows
from pilotq.model import ClusterBody, Description, Facts, Resources, State
from pilotq.store.sqlite import SqliteStore

ANSWER, DISPATCH, MEMORY = Goal(5.0, least=False), Goal(8.0, least=False), Goal(1.5, least=False)
AT_ONCE = 500
LONG_AGO = 1.7e9
FEW, MANY = Resources(1), Resources(100_000)


def fill_and_die(database: Path, tasks: int, rows: int, argv: list[str]) -> None:
    """In a process of its own: a queue in which one more task, with this command, fits a worker."""
    child = os.fork()
    if child:
        if os.WTERMSIG(os.waitpid(child, 0)[1]) != signal.SIGKILL:
            raise RuntimeError("the queue was not filled")
        return
    try:
        store = SqliteStore()
        store.open(database)
        number = store.load().next_cluster
        alone = rows // 2
        store.commit([cluster(number, tasks - alone, MANY), cluster(number + 1, 1, FEW, argv)])
        for first in range(0, rows - alone, AT_ONCE):
            store.commit([some_rows(number, range(first, min(first + AT_ONCE, rows - alone)))])
        for first in range(0, alone, AT_ONCE):
            records: list[Record] = []
            for one in range(number + 2 + first, number + 2 + min(first + AT_ONCE, alone)):
                records += [cluster(one, 1, MANY), some_rows(one, range(1))]
            store.commit(records)
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


def cluster(number: int, count: int, needs: Resources, argv: list[str] | None = None) -> ClusterAdded:
    from msgspec.msgpack import encode

    ad = {"Cmd": '"/home/site/agent.startup"', "Arguments": f'"--site example --queue long --id {number}"'}
    body = ClusterBody(owner="site", iwd="/home/site", ad=ad, submitted_at=LONG_AGO)
    description = Description(argv=argv or ["condor_exec.exe", "--site", "example"], needs=needs)
    return ClusterAdded(number, "site", "", count, 0, LONG_AGO, encode(body), encode(description), [], [])


def some_rows(number: int, procs: range) -> TaskRows:
    """Held and running ones, each with facts that no other has."""
    facts = [
        Facts(
            entered_at=LONG_AGO + number + proc,
            first_started_at=LONG_AGO,
            last_started_at=LONG_AGO + proc,
            starts=1,
            host=f"node{number}-{proc}.example.org",
            worker=f"node{number}-{proc}#1",
        )
        for proc in procs
    ]
    states = [int(State.RUNNING if (number + proc) % 2 else State.HELD) for proc in procs]
    return TaskRows(number, list(procs), states, [1 + proc % 3 for proc in procs], facts)


def wait_until(what: str, check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.01)


def answers(pool: Pool) -> bool:
    """Does condor_q say that there are tasks?"""
    try:
        return re.search(r"Total for query: [1-9]", pool.condor("condor_q", "-totals")) is not None
    except RuntimeError:
        return False


def ours(options: argparse.Namespace, rows: int) -> Sample:
    with Pool(1, scratch=options.scratch) as pool:
        mark = pool.cwd / "started"
        pid = pool.status()["master"]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until("the master to be gone", lambda: machine.is_gone(pid))
        fill_and_die(pool.home / "queue.db", options.tasks, rows, ["/bin/touch", str(mark)])
        start = time.monotonic()
        with (pool.base / "master.log").open("wb") as log:
            argv = [str(ROOT / "bin/pilotq"), "master"]
            master = subprocess.Popen(argv, env=pool.environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until("an answer", lambda: answers(pool))
            answer_s = time.monotonic() - start
            wait_until("a task to start", mark.exists)
            dispatch_s = time.monotonic() - start
            status = pool.status()
            live = sum(status["tasks"][state] for state in ("idle", "running", "held"))
            if live < options.tasks:
                raise RuntimeError(f"only {live} tasks are in the queue")
            pids = [status["master"]["pid"], *machine.children(status["master"]["pid"])]
            return {
                "answer_s": answer_s,
                "dispatch_s": dispatch_s,
                "gib": sum(map(machine.most_memory, pids)) / (1 << 30),
            }
        finally:
            master.kill()
            master.wait()


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="in the queue (%(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="of them with a row of their own (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks, options.rows = 1, min(options.tasks, 200_000), min(options.rows, 20_000)
    kinds = {f"{US}, one description": 0, f"{US}, {options.rows:,} rows of their own": options.rows}
    rounds = Rounds(0, {"tasks": options.tasks})
    rounds.run(options.rounds, {name: functools.partial(ours, options, rows) for name, rows in kinds.items()})
    for name, rows in kinds.items():
        rounds.show("first answer after a kill", "answer_s", "s", who=name, goal=ANSWER, rows=rows)
        rounds.show("first task dispatched after a kill", "dispatch_s", "s", who=name, goal=DISPATCH, rows=rows)
        rounds.show("memory of the head after a kill", "gib", "GiB", who=name, goal=MEMORY, rows=rows)


if __name__ == "__main__":
    main()
