"""Row 9: does a long queue slow anything down?

Rate of real tasks, dispatch ceiling and latency with 10^3, 10^5 and 10^6 other tasks in the queue, which ask for more
than any worker has; each as a ratio to that with 10^3 in the same round. At the largest: condor_q with totals, of one
task, and with a constraint; and the rate while condor_q is asked all the time. Work Queue and Ray with as many tasks
behind as they bear, for the plots.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import ceiling
import latency
import rate
from bulk import Lag
from contestants import WORK_QUEUE, cache_directory, run_peer
from figures import US, Goal, Rounds, Sample, is_wanted, new_parser
from pool import Pool, new_directory

WITHIN = Goal(0.9)
#: Peers, with the longest queue they are asked to bear, and the tasks they are given then.
PEERS = {WORK_QUEUE: (10_000, 200), "ray": (10_000, 1_000)}
#: condor_q by what is asked, with the milliseconds that were promised.
QUESTIONS = {
    "condor_q -totals": (["-totals"], 30.0),
    "condor_q of one task": (["1.0"], 30.0),
    "condor_q -constraint": (["-constraint", "ProcId % 1000 == 7", "-af", "ClusterId"], 2000.0),
}
#: Runs with and without condor_q take turns so often.
TURNS = 3
FILLER = "executable = /bin/true\ntransfer_executable = false\nrequest_cpus = 100000\nqueue {}\n"


def one_latency(options: argparse.Namespace, queued: int) -> Sample:
    with Pool(2, scratch=options.scratch) as pool:
        pool.submit(FILLER.format(queued))
        return latency.measure(pool, options.count)


def one_peer(options: argparse.Namespace, name: str, queued: int) -> Sample:
    """Rate and latency with so many behind."""
    cache, tasks = cache_directory(options.cache), PEERS[name][1]
    where = new_directory(options.scratch, name)
    try:
        words = ["--slots", 2, "--scratch", where, "--queued", queued]
        found = run_peer(name, cache, "rate", "--tasks", tasks, *words)
        spent = run_peer(name, cache, "latency", "--tasks", 20, *words)["ms"]
        return {"tasks_per_s": found["tasks_per_s"], "p50": statistics.median(spent)}
    finally:
        shutil.rmtree(where, ignore_errors=True)


def asked(options: argparse.Namespace, queued: int) -> Sample:
    """The questions, and what they do to others; beside them the empty interpreter is not taken off."""
    found: dict[str, Any] = {}
    with Pool(2, scratch=options.scratch) as pool:
        pool.submit(FILLER.format(queued))
        with Lag(pool) as lag:
            for name, (words, _) in QUESTIONS.items():
                spent = []
                for _ in range(options.asks):
                    start = time.perf_counter()
                    pool.condor("condor_q", *words)
                    spent.append(1e3 * (time.perf_counter() - start))
                found[name] = statistics.median(spent)
        found["lag_ms"] = max(lag.spent_ms)
        run_rate(pool, options.disturbed)
        alone, disturbed = [], []
        for _ in range(TURNS):
            alone.append(run_rate(pool, options.disturbed))
            disturbed.append(while_asked(pool, lambda: run_rate(pool, options.disturbed)))
        found["undisturbed"] = statistics.median(disturbed) / statistics.median(alone)
        found["also"] = {"alone, tasks/s": statistics.median(alone)}
    return found


def run_rate(pool: Pool, tasks: int) -> float:
    start = time.perf_counter()
    pool.run_all(f"executable = /bin/true\ntransfer_executable = false\nqueue {tasks}\n", tasks)
    return tasks / (time.perf_counter() - start)


def while_asked(pool: Pool, work: Callable[[], float]) -> float:
    """What the work gives while condor_q -totals is asked once a second, as impatient people do."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(1.0):
            pool.condor("condor_q", "-totals")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        return work()
    finally:
        stop.set()
        thread.join()


def measure(options: argparse.Namespace, what: str, one: Callable[[int], Sample]) -> Rounds:
    """One kind of work with all lengths of the queue."""
    tasks = {"rate": options.tasks, "dispatch": options.simulated, "latency": options.count}[what]
    rounds = Rounds(9, {"what": what, "tasks": tasks})
    lengths = {f"{US}, {queued:,} queued": queued for queued in options.lengths}
    rounds.run(options.rounds, {name: functools.partial(one, queued) for name, queued in lengths.items()})
    return rounds


def compare(rounds: Rounds, name: str, metric: str, unit: str, lengths: list[int], goal: Goal | None) -> None:
    """Absolute values, and ratios to the shortest queue."""
    who = [f"{US}, {queued:,} queued" for queued in lengths]
    for label, queued in zip(who, lengths, strict=True):
        rounds.show(name, metric, unit, who=label, queued=queued)
    for label, queued in zip(who[1:], lengths[1:], strict=True):
        rounds.ratio(name, metric, who[0], of=label, goal=goal, queued=queued)


def peers(options: argparse.Namespace) -> None:
    """For the plots; what takes too long is left out."""
    for name, (most, tasks) in PEERS.items():
        if not is_wanted(options, name):
            continue
        lengths = [queued for queued in (100, 1_000, 10_000) if queued <= most]
        rounds = Rounds(9, {"tasks": tasks, "slots": 2})
        works = {f"{name}, {queued:,} queued": functools.partial(one_peer, options, name, queued) for queued in lengths}
        rounds.run(min(options.rounds, 3), works)
        for label, queued in zip(works, lengths, strict=True):
            rounds.show("rate", "tasks_per_s", "tasks/s", who=label, queued=queued, peer=name)
            rounds.show("latency p50", "p50", "ms", who=label, queued=queued, peer=name)


def read_options() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--lengths", default="1000,100000,1000000", help="of the queue (%(default)s)")
    parser.add_argument("--tasks", type=int, default=10_000, help="real ones (%(default)s)")
    parser.add_argument("--simulated", type=int, default=200_000, help="simulated ones (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="tasks for the latency (%(default)s)")
    parser.add_argument("--asks", type=int, default=5, help="times each condor_q is asked (%(default)s)")
    parser.add_argument("--disturbed", type=int, default=3_000, help="tasks while condor_q is asked (%(default)s)")
    parser.add_argument("--workdir", metavar="DIR", help="where sandboxes lie (where the queue lies)")
    parser.add_argument("--description", choices=rate.DESCRIPTIONS, default="outputs", help="(%(default)s)")
    ceiling.add_options(parser, "--simulated-")
    options = parser.parse_args()
    options.lengths = [int(word) for word in options.lengths.split(",")]
    if options.quick:
        options.rounds, options.lengths = 1, [one for one in options.lengths if one <= 100_000]
        options.tasks, options.simulated, options.count, options.disturbed = 500, 20_000, 30, 500
    return options


def main() -> None:
    options = read_options()
    lengths = options.lengths
    real = measure(options, "rate", lambda queued: rate.ours(options, 2, queued=queued))
    compare(real, "rate", "tasks_per_s", "tasks/s", lengths, WITHIN)
    simulated = argparse.Namespace(**vars(options))
    simulated.tasks, simulated.foremen = options.simulated, options.simulated_foremen
    simulated.workers, simulated.slots = options.simulated_workers, options.simulated_slots
    dispatch = measure(options, "dispatch", lambda queued: ceiling.ours(simulated, queued=queued))
    compare(dispatch, "dispatch", "tasks_per_s", "tasks/s", lengths, WITHIN)
    waits = measure(options, "latency", functools.partial(one_latency, options))
    compare(waits, "latency p50", "p50", "ms", lengths, None)
    rounds = Rounds(9, {"queued": lengths[-1]})
    rounds.run(options.rounds, {US: functools.partial(asked, options, lengths[-1])})
    for name, (_, promised_ms) in QUESTIONS.items():
        rounds.show(name, name, "ms", goal=Goal(promised_ms, least=False))
    rounds.show("longest answer of the loop while condor_q is asked", "lag_ms", "ms", goal=Goal(100, least=False))
    rounds.show("rate while condor_q is asked, of that without", "undisturbed", "ratio", goal=WITHIN)
    if not options.quick:
        peers(options)


if __name__ == "__main__":
    main()
