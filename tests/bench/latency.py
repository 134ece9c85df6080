"""Row 3: latency on an idle pool, from the submission over the API until a waiting client sees the committed end.

Beside Work Queue and the other peers, one /bin/true at a time. Ours is durable: accepted and ended on disk.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from typing import Any

from contestants import PYTHON_PEERS, WORK_QUEUE, cache_directory, run_peer
from figures import US, Goal, Rounds, Sample, is_wanted, new_parser, percentile
from pool import Pool, new_directory
from waiting import Waiter

TEXT = "executable = /bin/true\ntransfer_executable = false\noutput = out\nerror = err\nqueue\n"
WARM_UP = 30


def summary(spent_ms: list[float]) -> Sample:
    """Percentiles of one round."""
    return {name: percentile(spent_ms, share) for name, share in (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))}


def ours(options: argparse.Namespace) -> Sample:
    """One client in this process, with a connection that it keeps."""
    with Pool(options.slots, scratch=options.scratch, workdir=options.workdir) as pool:
        return measure(pool, options.count)


def measure(pool: Pool, count: int) -> Sample:
    """On a pool that has nothing to do, or only what cannot run."""
    submission = pool.submission(TEXT)
    door, waiter = pool.door(), Waiter(pool)
    spent: list[float] = []
    for number in range(WARM_UP + count):
        start = time.perf_counter()
        waiter.wait(submission.send(door))
        if number >= WARM_UP:
            spent.append(1e3 * (time.perf_counter() - start))
    door.close()
    return summary(spent)


def peer(options: argparse.Namespace, name: str) -> Sample:
    """In its own way of giving one task and waiting for it."""
    where = new_directory(options.workdir or options.scratch, name)
    try:
        words: list[Any] = ["latency", "--tasks", options.count, "--slots", options.slots, "--scratch", where]
        return summary(run_peer(name, cache_directory(options.cache), *words)["ms"])
    finally:
        shutil.rmtree(where, ignore_errors=True)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=500, help="tasks, one after the other (%(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="of the idle pool (%(default)s)")
    parser.add_argument("--workdir", metavar="DIR", help="where sandboxes lie (where the queue lies)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.count = 1, min(options.count, 50)
    rounds = Rounds(3, {"count": options.count, "slots": options.slots, "foremen": 1, "queued": 0})
    contestants = {US: functools.partial(ours, options)}
    for name in (WORK_QUEUE, *PYTHON_PEERS):
        if is_wanted(options, name):
            contestants[name] = functools.partial(peer, options, name)
    rounds.run(options.rounds, contestants)
    for name in contestants:
        for metric in ("p50", "p90", "p99"):
            rounds.show(f"latency {metric}", metric, "ms", who=name)
    rounds.ratio("latency p50", "p50", WORK_QUEUE, goal=Goal(1.0, least=False))
    rounds.ratio("latency p99", "p99", WORK_QUEUE, goal=Goal(1.2, least=False))


if __name__ == "__main__":
    main()
