"""Row 7: from an idle pool to 1,000 and to 10,000 really running processes on this machine, and back.

12 foremen, a few workers with all slots between them, one submission of `sleep 120`. What runs is counted as children
of the keepers; at the end they are looked at one by one. Beside it the machine's own limit: a C program that starts as
many from two processes; and what Work Queue and HyperQueue do for 1,000.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from collections.abc import Callable

import machine
from contestants import WORK_QUEUE, cache_directory, run_limit, run_peer
from figures import US, Goal, Rounds, Sample, is_wanted, new_parser
from pool import Pool, new_directory

TEXT = "executable = /bin/sleep\narguments = 120\ntransfer_executable = false\n"
LOOK_S = 0.02
#: More is never started here, whatever is asked for.
TASKS_MAX = 10_000
LIMIT = "posix_spawn in C"
SMALL, SMALL_S, LARGE, LARGE_S, GONE_S, SLOT_KIB = 1_000, 0.8, 10_000, 8.0, 5.0, 20.0


def wait_until(check: Callable[[], bool], timeout_s: float) -> bool:
    """Look until it is true, or for so long."""
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_S)
    return True


def ramp(pool: Pool, tasks: int) -> Sample:
    """Up, a look at what it costs, and down."""
    processes = pool.processes()
    keepers = processes["keeper"]
    ours = [*processes["worker"], *keepers]
    before, cpu = machine.private_bytes(ours), pool.cpu()

    def running() -> int:
        return sum(len(machine.children(pid)) for pid in keepers)

    start = time.perf_counter()
    cluster = pool.submit(f"{TEXT}queue {tasks}\n")
    if not wait_until(lambda: running() >= tasks, 100):
        raise RuntimeError(f"only {running()} of {tasks} tasks came to run")
    up_s = time.perf_counter() - start
    really = machine.count_named(keepers, "sleep")
    spent = {role: 1e6 * (value - cpu[role]) / tasks for role, value in pool.cpu().items()}
    kib = (machine.private_bytes(ours) - before) / 1024 / tasks
    start = time.perf_counter()
    pool.condor("condor_rm", str(cluster))
    if not wait_until(lambda: not running(), 100):
        raise RuntimeError(f"{running()} tasks are still there after condor_rm")
    gone_s = time.perf_counter() - start
    pool.wait_ended(cluster, 100)
    known_s = time.perf_counter() - start
    if really != tasks:
        raise RuntimeError(f"{really} processes are sleep, not {tasks}")
    also = {"condor_rm until all is known to the master, s": known_s}
    return {"up_s": up_s, "per_s": tasks / up_s, "gone_s": gone_s, "slot_kib": kib, "cpu_us": spent, "also": also}


def ours(options: argparse.Namespace, tasks: int) -> Sample:
    """On a pool of its own, with as many slots as tasks."""
    cores = tasks // options.workers
    settings = {"PILOTQ_WORKER_KEEPERS": str(options.keepers)}
    lies = {"scratch": options.scratch, "workdir": options.workdir}
    with Pool(cores, foremen=options.foremen, settings=settings, **lies) as pool:
        pool.start_workers(options.workers - 1, cores)
        warm = pool.submit(f"executable = /bin/true\ntransfer_executable = false\nqueue {options.workers}\n")
        pool.wait_ended(warm)
        time.sleep(1.0)
        return ramp(pool, cores * options.workers)


def limit(options: argparse.Namespace, tasks: int) -> Sample:
    found = run_limit("hold", cache_directory(options.cache), tasks)
    return {"up_s": found["seconds"], "per_s": found["tasks_per_s"], "gone_s": found["gone_s"]}


def peer(options: argparse.Namespace, name: str, tasks: int) -> Sample:
    where = new_directory(options.scratch, name)
    try:
        words = ["ramp", "--tasks", tasks, "--slots", tasks, "--scratch", where]
        found = run_peer(name, cache_directory(options.cache), *words, timeout_s=100)
        return {"up_s": found["seconds"], "per_s": tasks / found["seconds"]}
    finally:
        shutil.rmtree(where, ignore_errors=True)


def measure(options: argparse.Namespace, tasks: int) -> None:
    """One size."""
    settings = {"tasks": tasks, "foremen": options.foremen, "workers": options.workers, "keepers": options.keepers}
    rounds = Rounds(7, settings)
    contestants = {US: functools.partial(ours, options, tasks), LIMIT: functools.partial(limit, options, tasks)}
    if tasks <= SMALL:
        for name in (WORK_QUEUE, "hyperqueue"):
            if is_wanted(options, name):
                contestants[name] = functools.partial(peer, options, name, tasks)
    rounds.run(options.rounds, contestants)
    goal = {SMALL: Goal(SMALL_S, least=False), LARGE: Goal(LARGE_S, least=False)}.get(tasks)
    for name in contestants:
        rounds.show(f"to {tasks:,} running", "up_s", "s", who=name, goal=goal if name == US else None)
    rounds.ratio(f"to {tasks:,} running", "per_s", LIMIT)
    gone = Goal(GONE_S, least=False) if tasks == LARGE else None
    rounds.show(f"{tasks:,} cancelled and gone", "gone_s", "s", goal=gone)
    rounds.show(f"memory of the workers a slot, {tasks:,} tasks", "slot_kib", "KiB", goal=Goal(SLOT_KIB, least=False))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--sizes", default=f"{SMALL},{LARGE}", help="numbers of tasks (%(default)s)")
    parser.add_argument("--foremen", type=int, default=12, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="that share the slots (%(default)s)")
    parser.add_argument("--keepers", type=int, default=2, help="of each worker (%(default)s)")
    parser.add_argument("--workdir", metavar="DIR", help="where sandboxes lie (where the queue lies)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sizes, options.foremen = 1, "200", min(options.foremen, 4)
    for tasks in map(int, options.sizes.split(",")):
        if not 0 < tasks <= TASKS_MAX or tasks % options.workers:
            parser.error(f"a size is at most {TASKS_MAX}, and a multiple of the workers")
        measure(options, tasks)


if __name__ == "__main__":
    main()
