"""Runs seeds, in one process or in several, and counts what happened in them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from typing import NamedTuple

from tests.sim.plan import new_plan
from tests.sim.planted import BUGS
from tests.sim.planting import Planted, planted
from tests.sim.shrink import shrink, story
from tests.sim.world import World, play

#: Seeds that one process takes at a time.
CHUNK = 10
#: For the story of a planted bug.
SHRINK_S = 2.5


class Found(NamedTuple):
    """What some seeds led to."""

    steps: int
    counts: Counter[str]
    #: (seed, how it failed).
    failures: list[tuple[int, str]]


def run_seeds(seeds: range) -> Found:
    """All of these."""
    steps, counts, failures = 0, Counter[str](), []
    for seed in seeds:
        world, failure = play(new_plan(seed))
        steps += world.time.steps
        counts.update(_counts(world))
        if failure:
            failures.append((seed, failure))
    return Found(steps, counts, failures)


def _counts(world: World) -> Counter[str]:
    """So that one sees that something happened."""
    return Counter(
        {
            "runs": 1,
            "faults": sum(1 for item in world.plan.items if item.kind not in ("submit", "again", "wait")),
            "tasks ended": len(world.disk.history),
            "payloads": len(world.ledger.payloads),
            "starts of masters": world.disk.epoch,
            "starts of workers": sum(node.starts for node in world.nodes),
            "sessions": world.net.serial,
        }
    )


def hunt(base: int, *, seconds: float = float("inf"), steps: int = 1 << 62, processes: int = 1) -> Iterator[Found]:
    """Seeds from `base` on until the time is over or so many steps were made: the sums so far, now and then."""
    deadline, total, counts = time.monotonic() + seconds, 0, Counter[str]()
    failures: list[tuple[int, str]] = []

    def chunks() -> Iterator[range]:
        first = base
        while time.monotonic() < deadline and total < steps:
            yield range(first, first + CHUNK)
            first += CHUNK

    def take(found: Found) -> Found:
        nonlocal total
        total += found.steps
        counts.update(found.counts)
        failures.extend(found.failures)
        return Found(total, counts, failures)

    if processes == 1:
        for chunk in chunks():
            yield take(run_seeds(chunk))
        return
    with get_context("fork").Pool(processes) as pool:
        todo = chunks()
        waiting = [pool.apply_async(run_seeds, (chunk,)) for chunk, _ in zip(todo, range(2 * processes), strict=False)]
        while waiting:
            yield take(waiting.pop(0).get())
            more = next(todo, None)
            if more is not None:
                waiting.append(pool.apply_async(run_seeds, (more,)))


class Caught(NamedTuple):
    """How a planted bug was found."""

    bug: str
    text: str
    #: "": not found in time.
    failure: str
    seconds: float
    runs: int
    seed: int
    #: Events of the plan, and of what is left of it.
    items: int
    shrunk: int


def catch(bug: Planted, base: int, seconds: float) -> Caught:
    """Search until the bug shows, for so many seconds of CPU; then make the story short."""
    began = time.process_time()
    seed = base
    with planted(bug):
        while time.process_time() - began < seconds:
            plan = new_plan(seed)
            _, failure = play(plan)
            if failure:
                took = time.process_time() - began
                smaller, failure = shrink(plan, failure, SHRINK_S)
                items = (len(plan.items), len(smaller.items))
                return Caught(bug.name, bug.text, failure, took, seed - base + 1, seed, *items)
            seed += 1
    return Caught(bug.name, bug.text, "", time.process_time() - began, seed - base, 0, 0, 0)


def _catch_number(number: int, base: int, seconds: float) -> Caught:
    return catch(BUGS[number], base, seconds)


def catch_all(base: int, seconds: float, processes: int, only: str = "") -> Iterator[Caught]:
    """Every planted bug, or those whose name begins so."""
    numbers = [number for number, bug in enumerate(BUGS) if bug.name.startswith(only)]
    with get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        jobs = [pool.apply_async(_catch_number, (number, base, seconds)) for number in numbers]
        for job in jobs:
            yield job.get()


def explain(seed: int, bug: str = "") -> str:
    """The story of a seed, shrunk when it fails."""
    wrong = next((one for one in BUGS if one.name == bug), Planted("", "", ()))
    with planted(wrong):
        plan = new_plan(seed)
        _, failure = play(plan)
        if failure:
            plan, failure = shrink(plan, failure)
        return story(plan)


def cores() -> int:
    return len(os.sched_getaffinity(0))
