"""Row 6: memory of the master for each task in its queue, of three kinds; and of ten million tasks.

Private memory of the master's process after the submission less that before it, divided by the tasks. Beside it, Work
Queue's manager (its queue lives in the application, and nowhere else).
"""

from __future__ import annotations

import argparse
import functools
import time

import machine
from contestants import WORK_QUEUE, cache_directory, run_peer
from figures import US, Goal, Rounds, Sample, is_wanted, new_parser
from pool import Pool

COMMON = "executable = /bin/true\ntransfer_executable = false\nrequest_cpus = 100000\n"
OWN = 'arguments = "work $(item)"\nenvironment = "ITEM=$(item) PART=$(Process)"\ntransfer_input_files = in.$(file)\n'
#: What tells one task from another.
KINDS = {
    "one description": COMMON,
    "one description, log": COMMON + "log = tasks.log\n",
    "own arguments, environment and files": COMMON + OWN,
}
GOALS = {"one description": Goal(40, least=False), "own arguments, environment and files": Goal(400, least=False)}
FILES = 10
SETTLE_S = 30.0


def settled(pid: int) -> int:
    """Private memory once it has stopped changing."""
    end = time.monotonic() + SETTLE_S
    before = -1
    while time.monotonic() < end:
        now = machine.private_bytes([pid])
        if abs(now - before) < 64 << 10:
            return now
        before = now
        time.sleep(0.5)
    return before


def ours(options: argparse.Namespace, kind: str, tasks: int) -> Sample:
    """A pool of its own for each submission."""
    with Pool(1, scratch=options.scratch) as pool:
        pool.submit(COMMON + "queue\n")
        pid = pool.processes()["master"][0]
        before = settled(pid)
        if "$(item)" in KINDS[kind]:
            for number in range(FILES):
                (pool.cwd / f"in.{number}").write_text(f"{number}\n")
            rows = (f"name-of-item-{n:09d} {n % FILES}\n" for n in range(tasks))
            (pool.cwd / "items").write_text("".join(rows))
            pool.submit(KINDS[kind] + "queue item, file from items\n")
        else:
            pool.submit(f"{KINDS[kind]}queue {tasks}\n")
        after = settled(pid)
        rss = machine.memory_bytes(pid).get("rss", 0)
        idle = pool.status()["tasks"]["idle"]
        disk = sum(path.stat().st_size for path in pool.home.glob("queue.db*"))
    if idle != tasks + 1:
        raise RuntimeError(f"{idle - 1} tasks are queued instead of {tasks}")
    return {
        "bytes": (after - before) / tasks,
        "master_gib": rss / (1 << 30),
        "also": {"bytes on disk a task": disk / tasks, "master before, MiB": before / (1 << 20)},
    }


def work_queue(options: argparse.Namespace) -> Sample:
    found = run_peer(WORK_QUEUE, cache_directory(options.cache), "queued", "--tasks", options.tasks)
    return {"bytes": found["bytes_per_task"]}


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of each kind (%(default)s)")
    parser.add_argument("--many", type=int, default=10_000_000, help="with one description (%(default)s; 0: not)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks, options.many = 1, min(options.tasks, 100_000), 0
    rounds = Rounds(6, {"tasks": options.tasks})
    contestants = {f"{US}, {kind}": functools.partial(ours, options, kind, options.tasks) for kind in KINDS}
    if is_wanted(options, WORK_QUEUE):
        contestants[WORK_QUEUE] = functools.partial(work_queue, options)
    rounds.run(options.rounds, contestants)
    for kind in KINDS:
        rounds.show("bytes a queued task", "bytes", "B", who=f"{US}, {kind}", goal=GOALS.get(kind))
    if WORK_QUEUE in contestants:
        rounds.show("bytes a queued task", "bytes", "B", who=WORK_QUEUE)
    if options.many:
        many = Rounds(6, {"tasks": options.many})
        many.run(1, {US: functools.partial(ours, options, "one description", options.many)})
        many.show("master with ten million tasks", "master_gib", "GiB", goal=Goal(2, least=False))


if __name__ == "__main__":
    main()
