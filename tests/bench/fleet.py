"""Row 8: ten thousand simulated workers with 100,000 slots behind 12 foremen: time to fill them, CPU at steady state.

`pilotq bench --fill` queues the tasks first; the clock runs from the start of the workers, so their joining is in it.
"""

from __future__ import annotations

import argparse
import functools

from ceiling import bench
from figures import US, Goal, Rounds, Sample, new_parser

#: Of 100,000 slots.
FILLED_S, MASTER_SHARE = 20.0, 0.5


def fill(options: argparse.Namespace) -> Sample:
    words = ["--fill", "--workers", options.workers, "--slots", options.slots, "--foremen", options.foremen]
    found = bench(options, *words, "--task-s", options.task_s, "--watch", options.watch)
    shares = {role: found[f"{role}_cpu_share"] for role in ("master", "foreman", "simulator")}
    also = {name: found[name] for name in ("joined_s", "ended_per_s", "longest_turn_ms") if found.get(name)}
    return {"filled_s": found["filled_s"], "master": shares["master"], "cores used": shares, "also": also}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--workers", type=int, default=10_000, help="simulated (%(default)s)")
    parser.add_argument("--slots", type=int, default=10, help="of each worker (%(default)s)")
    parser.add_argument("--foremen", type=int, default=12, help="(%(default)s)")
    parser.add_argument("--task-s", type=float, default=600, help="length of a task (%(default)s)")
    parser.add_argument("--watch", type=float, default=60, help="seconds of steady state (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.workers, options.foremen, options.watch = 1, min(options.workers, 300), 2, 5
    settings = {name: getattr(options, name) for name in ("workers", "slots", "foremen", "task_s")}
    rounds = Rounds(8, settings)
    rounds.run(options.rounds, {US: functools.partial(fill, options)})
    rounds.show("all slots filled", "filled_s", "s", goal=Goal(FILLED_S, least=False))
    rounds.show("master at steady state", "master", "cores", goal=Goal(MASTER_SHARE, least=False))


if __name__ == "__main__":
    main()
