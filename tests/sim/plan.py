"""From one integer: a world, and a list of what clients want and what goes wrong in it.

Every item stands for itself, so a failure can be shrunk by leaving items out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.sim.things import Spec


class Item(NamedTuple):
    """One thing that a client wants or that goes wrong."""

    at: float
    kind: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:8.2f}  {self.kind} {' '.join(map(str, self.args))}"


class NodePlan(NamedTuple):
    """An execute node."""

    slots: int
    rate: float
    options: dict[str, Any]


@dataclass
class Plan:
    """All that a run depends on."""

    seed: int
    nodes: list[NodePlan]
    foremen: int
    head_rate: float
    lease_s: float
    beat_s: float
    latency_s: float
    commit_s: float
    horizon_s: float
    #: Varies what is left to chance: delays, outcomes.
    noise: int
    items: list[Item] = field(default_factory=list)

    def __str__(self) -> str:
        nodes = ", ".join(f"n{i}: {n.slots} slots {n.options or ''}".strip() for i, n in enumerate(self.nodes))
        return f"seed {self.seed}: {nodes}; {self.foremen} foremen, lease {self.lease_s:g} s, beat {self.beat_s:g} s"


#: What may go wrong, and how often compared to the others. A plan has some of these kinds only.
FAULTS: dict[str, int] = {
    "kill_master": 6,
    "kill_master_at": 6,
    "kill_foreman": 4,
    "kill_worker": 5,
    "reboot": 2,
    "kill_keeper": 2,
    "kill_scribe": 3,
    "pause_master": 2,
    "pause_foreman": 3,
    "hang_foreman": 3,
    "pause_worker": 3,
    "pause_node": 1,
    "pause_given": 3,
    "cut": 6,
    "cut_one_way": 4,
    "flap": 5,
    "reset": 6,
    "doubles": 2,
    "disk_breaks": 3,
    "disk_full": 1,
    "wall_jump": 2,
    "log_broken": 2,
    "stage_fails": 2,
    "black_hole": 8,
    "resume": 1,
    "lie": 4,
    "drain_worker": 2,
    "terminate": 2,
    "drain_foreman": 1,
    "drain_master": 1,
    "forget": 2,
    "drain_by_name": 2,
}
CLIENTS: dict[str, int] = {
    "submit": 8,
    "again": 2,
    "cancel": 3,
    "hold": 2,
    "release": 2,
    "wait": 1,
    "hold_and_release": 2,
}


def new_plan(seed: int) -> Plan:
    """What this seed stands for."""
    choose = random.Random(seed)
    rates = [1.0] if choose.random() < 0.3 else [0.99, 1.0, 1.01]
    nodes = []
    for _ in range(choose.choice([1, 2, 2, 3, 4])):
        options: dict[str, Any] = {}
        if choose.random() < 0.15:
            options["single_task"] = True
        if choose.random() < 0.15:
            options["idle_timeout_s"] = choose.choice([5.0, 30.0])
        if choose.random() < 0.3:
            options["may_go_straight"] = True
        nodes.append(NodePlan(choose.choice([1, 1, 2, 4]), choose.choice(rates), options))
    plan = Plan(
        seed=seed,
        nodes=nodes,
        foremen=choose.choice([0, 0, 1, 2, 3]),
        head_rate=choose.choice(rates),
        lease_s=choose.choice([20.0, 40.0, 60.0, 120.0]),
        beat_s=choose.choice([2.0, 5.0]),
        latency_s=choose.choice([0.0003, 0.002, 0.02, 0.2]),
        commit_s=choose.choice([0.0005, 0.005, 0.05]),
        horizon_s=choose.choice([60.0, 150.0, 300.0]),
        noise=seed,
    )
    _fill(plan, choose)
    _add_pauses(plan, random.Random(f"pauses {seed}"))
    return plan


def _add_pauses(plan: Plan, choose: random.Random) -> None:
    """In some plans clients also suspend, continue and vacate what they submitted."""
    if choose.random() < 0.6:
        return
    submissions = sum(item.kind == "submit" for item in plan.items)
    for _ in range(choose.randint(1, 12)):
        kind = choose.choice(["suspend", "suspend", "suspend_and_continue", "continue", "vacate"])
        at, number, proc = (
            choose.uniform(1.0, plan.horizon_s),
            choose.randrange(submissions),
            choose.choice([-1, -1, 0]),
        )
        plan.items.append(Item(at, kind, (number, proc, round(choose.random(), 3))))
        if choose.random() < 0.5:
            # Nothing reaches the nodes while it is taken back.
            away = round(choose.uniform(0.5, 20.0), 3)
            ways = [(end, f"n{n}") for n in range(len(plan.nodes)) for end in _heads(plan)]
            plan.items += [Item(at + 0.3, "cut", (*way, away)) for way in ways]
            plan.items.append(Item(at + 0.3 + away / 2, choose.choice(["continue", "suspend"]), (number, proc, 0.0)))
    plan.items.sort(key=lambda item: item.at)


def _heads(plan: Plan) -> list[str]:
    """What nodes connect to."""
    return ["head", *(f"f{n}" for n in range(plan.foremen))]


def _fill(plan: Plan, choose: random.Random) -> None:
    #: A node that keeps its cores open.
    largest = max(
        [node.slots for node in plan.nodes if not node.options.keys() & {"single_task", "idle_timeout_s"}], default=1
    )
    weights = {kind: weight for kind, weight in FAULTS.items() if choose.random() < 0.35}
    if "lie" in weights and choose.random() < 0.4:
        del weights["lie"]
    items = plan.items
    durations = choose.choice(
        [(0.002, 0.02), (0.04, 1.0), (1.0, 5.0), (5.0, 30.0), (20.0, 90.0), (0.002, 1.0, 5.0, 60.0)]
    )
    submissions = 0
    bursts = [choose.uniform(0.0, plan.horizon_s) for _ in range(choose.randint(1, 4))]

    def moment() -> float:
        """Half of what happens, happens close together."""
        if choose.random() < 0.5:
            return min(plan.horizon_s, choose.choice(bursts) + choose.choice([0.05, 0.5, 5.0]) * choose.random())
        return choose.uniform(0.0, plan.horizon_s)

    for at in sorted([0.5, *(moment() for _ in range(choose.randint(6, 24)))]):
        kind = choose.choices(list(CLIENTS), list(CLIENTS.values()))[0] if submissions else "submit"
        if kind == "submit":
            items.append(Item(at, kind, (_spec(submissions, choose, durations, largest),)))
            submissions += 1
        else:
            proc = choose.choice([-1, 0, 0, 1, 2])
            items.append(Item(at, kind, (choose.randrange(submissions), proc, round(choose.random(), 3))))
    if weights:
        for at in sorted(moment() for _ in range(choose.randint(1, 30))):
            kind = choose.choices(list(weights), list(weights.values()))[0]
            items.append(Item(at, kind, _args(kind, plan, choose)))
    items.sort(key=lambda item: item.at)


def _spec(number: int, choose: random.Random, durations: tuple[float, ...], largest: int) -> Spec:
    return Spec(
        number=number,
        count=choose.choice([1, 1, 2, 3, 5, 12]),
        cpus=2 if choose.random() < 0.1 and largest > 1 else 1,
        task_s=choose.choice(durations),
        has_log=choose.random() < 0.4,
        outputs=choose.choice(["", "", "", "", "small", "big", "big"]),
        policy=choose.choice(["again", "again", "periodic"]) if choose.random() < 0.3 else "",
        ignores_term=choose.random() < 0.2,
    )


def _args(kind: str, plan: Plan, choose: random.Random) -> tuple[Any, ...]:
    node, foreman = choose.randrange(len(plan.nodes)), choose.randrange(max(1, plan.foremen))
    #: Mostly short, now and then longer than a lease.
    seconds = round(choose.choice([0.5, 5.0, 5.0, 20.0, plan.lease_s, 2 * plan.lease_s]) * choose.random(), 3)
    fuse = choose.choice([0, 1, 2, 3, 5, 10, 30])
    away = round(choose.choice([0.2, 2.0, 2.0, 20.0, plan.lease_s * 1.5]) * choose.random(), 3)
    is_silent = choose.random() < 0.3
    ends = ["head", *(f"n{i}" for i in range(len(plan.nodes))), *(f"f{i}" for i in range(plan.foremen))]
    if kind in ("kill_master", "kill_scribe"):
        return (fuse, away if kind == "kill_master" else 0.0)
    if kind == "kill_foreman":
        return (foreman, fuse, away, is_silent)
    if kind == "kill_worker":
        return (node, fuse, away)
    if kind in ("reboot", "drain_worker", "terminate"):
        return (node, away)
    if kind in ("kill_keeper", "forget", "drain_by_name", "resume"):
        return (node,)
    if kind == "drain_foreman":
        return (foreman, away)
    if kind in ("pause_worker", "pause_node", "stage_fails"):
        return (node, seconds)
    if kind == "pause_given":
        return (node, round(plan.lease_s * choose.uniform(1.0, 1.2) + choose.uniform(0.0, 60.0), 3))
    if kind == "black_hole":
        # Often the same one.
        return (node if choose.random() < 0.3 else 0, round(choose.uniform(5.0, 60.0), 3))
    if kind == "pause_foreman":
        return (foreman, seconds)
    if kind in ("cut", "cut_one_way"):
        return (*choose.sample(ends, 2), seconds)
    if kind == "kill_master_at":
        return (choose.choice(["ack", "assign", "answer"]), away)
    if kind == "hang_foreman":
        return (foreman, node, round(choose.uniform(5.0, 40.0), 3))
    if kind == "flap":
        first, gap = round(choose.uniform(2.0, 14.0), 3), round(choose.uniform(0.2, 2.0), 3)
        return (*choose.choice([choose.sample(ends, 2), ["head", f"n{node}"]]), first, gap, plan.lease_s * 1.5)
    if kind == "reset":
        return (round(choose.random(), 3),)
    if kind == "disk_breaks":
        return (choose.choice(["lost", "kept"]), away)
    if kind == "wall_jump":
        return (choose.choice(["head", f"n{node}"]), choose.choice([-1e8, -600.0, 60.0, 3600.0, 1e8]))
    if kind == "log_broken":
        return (choose.randrange(4), seconds)
    if kind == "lie":
        return (node, choose.randrange(10), round(choose.random(), 3))
    return (seconds,)
