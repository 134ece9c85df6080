"""From a failing seed to a short story: items are left out as long as the same invariant still breaks."""

from __future__ import annotations

import dataclasses
import time

from tests.sim.plan import Item, Plan
from tests.sim.world import play

#: Sentences of the end of the story that are printed.
STORY_LINES = 40
#: With how many different delays a smaller plan is tried.
NOISES = 3


def shrink(plan: Plan, failure: str, budget_s: float = 20.0) -> tuple[Plan, str]:
    """Delta debugging over the items, then over the rest of the world; the smaller plan and how it fails.

    `budget_s` is of CPU, so that a busy machine makes no difference.
    """
    deadline = time.process_time() + budget_s
    invariant = failure.partition(":")[0]

    def fails(candidate: Plan) -> tuple[Plan, str]:
        """It, or the same with other delays."""
        for more in range(NOISES):
            if time.process_time() > deadline:
                break
            tried = dataclasses.replace(candidate, noise=plan.noise + more)
            _, found = play(tried)
            if found.partition(":")[0] == invariant:
                return tried, found
        return candidate, ""

    for smaller in (_without_items, _simpler):
        plan, failure = smaller(plan, failure, fails)
    return plan, failure


def _without_items(plan: Plan, failure: str, fails: object) -> tuple[Plan, str]:
    assert callable(fails)
    items, size = plan.items, max(1, len(plan.items) // 2)
    while True:
        at, shorter = 0, False
        while at < len(items):
            candidate = dataclasses.replace(plan, items=items[:at] + items[at + size :])
            candidate, found = fails(candidate)
            if found:
                plan, items, failure, shorter = candidate, candidate.items, found, True
            else:
                at += size
        plan = dataclasses.replace(plan, items=items)
        if size > 1:
            size //= 2
        elif not shorter:
            return plan, failure


def _simpler(plan: Plan, failure: str, fails: object) -> tuple[Plan, str]:
    """Fewer nodes, no foremen, even clocks, smaller clusters, an earlier end: whatever still fails."""
    assert callable(fails)
    candidates = [
        lambda p: dataclasses.replace(p, foremen=0),
        lambda p: dataclasses.replace(p, foremen=min(p.foremen, 1)),
        lambda p: dataclasses.replace(p, head_rate=1.0, nodes=[n._replace(rate=1.0) for n in p.nodes]),
        lambda p: dataclasses.replace(p, nodes=[n._replace(options={}) for n in p.nodes]),
        _submissions(cpus=1),
        lambda p: dataclasses.replace(p, nodes=[n._replace(slots=1) for n in p.nodes]) if _is_narrow(p) else p,
        lambda p: dataclasses.replace(p, latency_s=0.002, commit_s=0.005),
        lambda p: dataclasses.replace(p, horizon_s=max([item.at for item in p.items], default=0.0) + 1.0),
        *(_submissions(count=1), _submissions(outputs=""), _submissions(has_log=False)),
        *(_submissions(policy=""), _submissions(ignores_term=False)),
    ]
    for change in candidates:
        candidate = change(plan)
        candidate, found = fails(candidate) if candidate != plan else (plan, "")
        if found:
            plan, failure = candidate, found
    return plan, failure


def _is_narrow(plan: Plan) -> bool:
    """Every task needs one core."""
    return all(item.args[0].cpus == 1 for item in plan.items if item.kind == "submit")


def _submissions(**change: object) -> object:
    def changed(item: Item) -> Item:
        return item._replace(args=(item.args[0]._replace(**change),)) if item.kind == "submit" else item

    return lambda plan: dataclasses.replace(plan, items=[changed(item) for item in plan.items])


def story(plan: Plan, lines: int = STORY_LINES) -> str:
    """The plan, and what happened last before it failed."""
    world, failure = play(plan, trace=True)
    told = [f"{t:10.4f}  {text}" for t, text in world.time.trace or []]
    cut = [f"  ... {len(told) - lines} lines before"] if len(told) > lines else []
    head = [str(plan), *(str(item) for item in plan.items)]
    return "\n".join([*head, "what happened:", *cut, *told[-lines:], failure or "nothing fails"])
