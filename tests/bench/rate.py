"""Row 1: real /bin/true tasks a second, end to end through a foreman, beside peers and the limits of the machine.

All tasks come in one submission with the condor_submit command; the clock runs from before it until the last completion
is committed. Every task has its scratch directory and its output files. CPU per task is told by role.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from pathlib import Path
from typing import Any

import machine
from contestants import PYTHON_PEERS, WORK_QUEUE, cache_directory, run_limit, run_peer
from figures import US, Goal, Rounds, Sample, is_wanted, new_parser
from pool import Pool, cpu_per_task, new_directory

WARM_UP = 50
#: What a task asks for beside its executable.
DESCRIPTIONS = {
    "outputs": "transfer_executable = false\noutput = out.$(Process)\nerror = err.$(Process)\n",
    "bare": "transfer_executable = false\n",
    "copied": "output = out.$(Process)\nerror = err.$(Process)\n",
}
#: Size of the job's ad that a keeper writes for such a task; the machine's ad has a quarter of it.
AD_BYTES = 1200
SPAWN, FILES, DELIVERED = "posix_spawn in C", "C with the same files", "C with files and delivery"
GOALS = {
    SPAWN: Goal(0.60),
    FILES: Goal(0.9),
    DELIVERED: Goal(0.9),
    "executorlib": Goal(1.1),
    WORK_QUEUE: Goal(2),
    "dask": Goal(2),
    "ray": Goal(2),
}
#: Peers that get fewer tasks, which does them no harm: their rates do not grow with the number.
SIDE = ("hyperqueue", "parsl", "dask", "ray", WORK_QUEUE)
#: The same pool with tasks of which nobody asked for the output.
BARE = "pilotq, no outputs asked for"


def ours(options: argparse.Namespace, slots: int, *, queued: int = 0, description: str = "") -> Sample:
    """One submission on a new pool; `queued` other tasks wait behind it that fit on no worker."""
    text = "executable = /bin/true\n" + DESCRIPTIONS[description or options.description]
    with Pool(slots, scratch=options.scratch, workdir=options.workdir) as pool:
        pool.run_all(f"{text}queue {WARM_UP}\n", WARM_UP)
        if queued:
            pool.submit(f"executable = /bin/true\nrequest_cpus = 100000\nqueue {queued}\n")
        before, start = pool.cpu(), time.perf_counter()
        found = pool.wait_ended(pool.submit(f"{text}queue {options.tasks}\n"))
        seconds = time.perf_counter() - start
        while pool.status()["scribe"]["backlog"]:
            time.sleep(0.05)
        delivered_s = time.perf_counter() - start
        spent = cpu_per_task(before, pool.cpu(), options.tasks)
        pool.must_be_done(found, options.tasks)
    return {
        "tasks_per_s": options.tasks / seconds,
        "cpu_us": spent,
        "also": {"outputs delivered after s": delivered_s, "done after s": seconds},
    }


def limit(options: argparse.Namespace, slots: int, kind: str) -> Sample:
    """C, with scratch directories on the same file system as ours."""
    cache = cache_directory(options.cache)
    if kind == SPAWN:
        return run_limit("spawn", cache, options.tasks, slots)
    where = new_directory(options.workdir or options.scratch, "limit")
    target = new_directory(options.scratch, "target")
    try:
        words: list[Any] = [options.tasks, slots, where, AD_BYTES, int(options.description == "copied")]
        return run_limit("spawn", cache, *words, *([target] if kind == DELIVERED else []))
    finally:
        shutil.rmtree(where, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)


def peer(options: argparse.Namespace, slots: int, name: str) -> Sample:
    """On as many tasks as we, in its own way of giving them."""
    tasks = min(options.tasks, options.side_tasks) if name in SIDE else options.tasks
    where = new_directory(options.workdir or options.scratch, name)
    try:
        words = ["rate", "--tasks", tasks, "--slots", slots, "--scratch", where]
        found = run_peer(name, cache_directory(options.cache), *words)
    finally:
        shutil.rmtree(where, ignore_errors=True)
    return found


def measure(options: argparse.Namespace, slots: int) -> None:
    """All contestants with so many slots."""
    lies = machine.file_system(options.workdir or options.scratch or "/tmp")
    settings = {"tasks": options.tasks, "slots": slots, "foremen": 1, "description": options.description}
    rounds = Rounds(1, {**settings, "sandboxes on": lies, "queue on": machine.file_system(options.scratch or "/tmp")})
    contestants = {US: functools.partial(ours, options, slots)}
    if options.description != "bare":
        contestants[BARE] = functools.partial(ours, options, slots, description="bare")
    for kind in (SPAWN, FILES, DELIVERED):
        contestants[kind] = functools.partial(limit, options, slots, kind)
    for name in (*PYTHON_PEERS, WORK_QUEUE):
        if is_wanted(options, name):
            contestants[name] = functools.partial(peer, options, slots, name)
    rounds.run(options.rounds, contestants)
    for name in contestants:
        tasks = {"tasks": min(options.tasks, options.side_tasks)} if name in SIDE else {}
        rounds.show("rate", "tasks_per_s", "tasks/s", who=name, **tasks)
    for us in (US, BARE):
        for name in contestants if us in contestants else ():
            if name not in (US, BARE):
                # The 0.9 is asked of the program that does the same work with files.
                same = name != (FILES if us == US else DELIVERED)
                rounds.ratio("rate", "tasks_per_s", name, of=us, goal=GOALS.get(name) if same else None)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=20_000, help="in one submission (%(default)s)")
    parser.add_argument("--side-tasks", type=int, default=2_000, help=f"for {', '.join(SIDE)} (%(default)s)")
    parser.add_argument("--slots", default="2,8", help="numbers of slots (%(default)s)")
    parser.add_argument("--workdir", metavar="DIR", help="where sandboxes lie, as /dev/shm (where the queue lies)")
    parser.add_argument("--description", choices=DESCRIPTIONS, default="outputs", help="of a task (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks, options.side_tasks = 1, min(options.tasks, 600), 300
        options.slots = options.slots.partition(",")[0]
    for slots in map(int, options.slots.split(",")):
        if options.workdir and not Path(options.workdir).is_dir():
            parser.error(f"{options.workdir} is not there")
        measure(options, slots)


if __name__ == "__main__":
    main()
