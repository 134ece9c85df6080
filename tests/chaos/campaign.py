"""One storm from its beginning to its verdict."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pool import StormPool  # first: it makes the other modules findable

from ledgers import Verdict, compare, leftovers  # isort: skip
from load import Client  # isort: skip
from network import Network, why_not  # isort: skip
from parts import wait_for  # isort: skip
from storm import WEIGHTS, Storm  # isort: skip

PROGRESS_S = 15.0


@dataclass
class Plan:
    """How large a storm is."""

    tasks: int = 5_000
    kills: int = 60
    seconds: float = 150.0
    seed: int = 1
    workers: int = 4
    foremen: int = 2
    slots: int = 6
    batch: int = 100
    ahead: int = 600
    #: Tasks take 0.1 s to 0.1 s times this.
    spread: int = 9
    #: Patience for the end, when the storm is over.
    calm_s: float = 150.0


def run(plan: Plan, base: Path, say: Callable[[str], None]) -> tuple[Verdict, dict[str, Any]]:
    """Blow, wait until everything is done, compare."""
    reason = why_not()
    if reason:
        say(f"no cuts of the network, no nodes of their own: {reason}")
    names = ["master", *(f"foreman{n}" for n in range(plan.foremen)), *(f"worker{n}" for n in range(plan.workers))]
    network = None if reason else Network(names)
    pool = None
    try:
        pool = StormPool(base, plan.workers, plan.foremen, plan.slots, network)
        pool.up()
        return _blow(plan, pool, say)
    finally:
        if pool is not None:
            pool.close()
        if network is not None:
            network.close()


def _blow(plan: Plan, pool: StormPool, say: Callable[[str], None]) -> tuple[Verdict, dict[str, Any]]:
    client = Client(pool, plan.tasks, plan.batch, plan.ahead, plan.seed, plan.spread)
    storm = Storm(pool, plan.seed)
    share = sum(weight for what, weight in WEIGHTS.items() if what.startswith("kill")) / sum(WEIGHTS.values())
    interval_s = plan.seconds * share / plan.kills
    began = time.monotonic()
    client.start()
    told_at = 0.0
    while time.monotonic() - began < plan.seconds or storm.kills < plan.kills:
        storm.step()
        pause_end = time.monotonic() + interval_s
        while time.monotonic() < pause_end:
            storm.settle()
            time.sleep(0.05)
        if time.monotonic() - told_at > PROGRESS_S:
            told_at = time.monotonic()
            say(f"{client.accepted} tasks accepted, {client.ended()} ended, {storm.kills} kills")
        if client.accepted >= plan.tasks and client.ended() >= plan.tasks and storm.kills >= plan.kills:
            break
    storm.settle(end=True)
    say(f"the storm is over after {time.monotonic() - began:.0f} s")
    client.join(plan.calm_s)
    client.enough.set()
    _wait_until_all_is_over(pool, plan.calm_s)
    seconds = time.monotonic() - began
    verdict = compare(pool, client, storm)
    pool.start_due(all_of_them=True)
    for name in reversed(pool.names):
        if name in pool.processes:
            pool.end(name)
    leftovers(pool, verdict)
    facts = {
        "seed": plan.seed,
        "seconds": round(seconds),
        "tasks": client.accepted,
        "deeds": dict(storm.counts),
        "kills": storm.kills,
        "killed condor_submit": client.ledger.killed_shims,
        "refused": len(client.ledger.refused),
        "started again": verdict.again,
        "nodes": "network namespaces" if pool.network else "loopback",
    }
    return verdict, facts


def _wait_until_all_is_over(pool: StormPool, timeout_s: float) -> None:
    def is_over() -> bool:
        pool.start_due()
        status = pool.status_or_none()
        if not status or status["scribe"]["backlog"]:
            return False
        return not any(status["tasks"][state] for state in ("idle", "running", "suspended"))

    wait_for("all tasks to end", is_over, timeout_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/chaos/run", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200_000, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=1_000, help="at least so many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3_400, help="over which they are spread (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="(by the clock)")
    parser.add_argument("--keep", action="store_true", help="leave the directory")
    options = parser.parse_args()
    plan = Plan(options.tasks, options.kills, options.seconds, options.seed)
    if options.tasks > 10_000:
        plan.workers, plan.slots, plan.ahead, plan.batch, plan.calm_s = 6, 12, 4_000, 1_000, 900.0
    base = Path(tempfile.mkdtemp(prefix="pilotq-storm-"))
    try:
        verdict, facts = run(plan, base, lambda text: print(f"storm: {text}", file=sys.stderr))
    finally:
        if not options.keep:
            shutil.rmtree(base, ignore_errors=True)
    print(json.dumps({**facts, "faults": verdict.faults}))
    for name, found in vars(verdict).items():
        if isinstance(found, list):
            for fault in found[:10]:
                print(f"{name}: {fault}", file=sys.stderr)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
