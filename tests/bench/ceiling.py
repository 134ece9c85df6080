"""Row 2: the dispatch ceiling, with simulated workers that start no process.

`pilotq bench` starts a master and two foremen and passes 200,000 tasks, durable, to simulated workers. Beside it, what
peers do with a Python function that does nothing (they start no process either, and keep nothing on disk).
"""

from __future__ import annotations

import argparse
import functools
import shutil
from typing import Any

from contestants import cache_directory, run_json, run_peer
from figures import US, Goal, Rounds, Sample, is_wanted, new_parser
from pool import ROOT, new_directory
from pools import clean_environ

PEERS = ("executorlib", "ray", "dask", "parsl")


def bench(options: argparse.Namespace, *words: Any, timeout_s: float = 1800) -> dict[str, Any]:
    """What `pilotq bench` found."""
    where = ["--dir", options.scratch] if options.scratch else []
    argv = [ROOT / "bin/pilotq", "bench", "--json", *words, *where]
    return run_json(argv, "pilotq bench", environ=clean_environ(), timeout_s=timeout_s)


def ours(options: argparse.Namespace, *, queued: int = 0) -> Sample:
    """`queued` other tasks wait meanwhile that fit nowhere."""
    words = ["--tasks", options.tasks, "--foremen", options.foremen]
    words += ["--workers", options.workers, "--slots", options.slots]
    found = bench(options, *words, *(["--queued", queued] if queued else []))
    spent = {role: found[f"{role}_cpu_us_per_task"] for role in ("master", "foreman", "simulator")}
    also = {name: found[name] for name in ("commits", "messages_per_task", "longest_turn_ms") if found.get(name)}
    return {"tasks_per_s": found["tasks_per_s"], "master_us": spent["master"], "cpu_us": spent, "also": also}


def peer(options: argparse.Namespace, name: str) -> Sample:
    where = new_directory(options.scratch, name)
    try:
        words = ["dispatch", "--tasks", options.peer_tasks, "--slots", 8, "--scratch", where]
        return run_peer(name, cache_directory(options.cache), *words)
    finally:
        shutil.rmtree(where, ignore_errors=True)


def add_options(parser: argparse.ArgumentParser, prefix: str = "--") -> None:
    """The simulated pool."""
    parser.add_argument(f"{prefix}foremen", type=int, default=2, help="(%(default)s)")
    parser.add_argument(f"{prefix}workers", type=int, default=50, help="simulated workers (%(default)s)")
    parser.add_argument(f"{prefix}slots", type=int, default=8, help="of each worker (%(default)s)")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=200_000, help="in one submission (%(default)s)")
    parser.add_argument("--peer-tasks", type=int, default=5_000, help="for peers (%(default)s)")
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks, options.peer_tasks = 1, min(options.tasks, 20_000), 1_000
    settings = {name: getattr(options, name) for name in ("tasks", "foremen", "workers", "slots")}
    rounds = Rounds(2, settings)
    contestants = {US: functools.partial(ours, options)}
    for name in PEERS:
        if is_wanted(options, name):
            contestants[name] = functools.partial(peer, options, name)
    rounds.run(options.rounds, contestants)
    rounds.show("dispatch", "tasks_per_s", "tasks/s", goal=Goal(60_000))
    rounds.show("master CPU a task", "master_us", "us", goal=Goal(12, least=False))
    for name in contestants:
        if name != US:
            rounds.show("dispatch", "tasks_per_s", "tasks/s", who=name, tasks=options.peer_tasks, workers=8, slots=1)
            rounds.ratio("dispatch", "tasks_per_s", name)


if __name__ == "__main__":
    main()
