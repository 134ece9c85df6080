"""What people change of tasks in the queue: attributes, priorities, policies; of single ones, and of ranges."""

from __future__ import annotations

from typing import Any

import pytest

from pilotq.core import turn as t
from pilotq.core.tasks import Cluster
from pilotq.model import Edit, Resources, State, add_edit
from tests.core.world import Node, World


def edit(world: World, *selection: tuple[int, int], adjust: bool = False, **edits: str) -> Any:
    world.do(t.Act(99, "edit", list(selection), "", edits=edits, adjust=adjust))
    world.deliver()
    return world.answers[99]


def test_a_later_edit_goes_before_an_earlier_one_and_neighbours_are_one() -> None:
    edits: list[Edit] = []
    for proc in range(5):
        add_edit(edits, Edit(proc, proc, "A", "1"))
        add_edit(edits, Edit(proc, proc, "B", "2"))
    assert edits == [Edit(0, 4, "A", "1"), Edit(0, 4, "B", "2")]
    add_edit(edits, Edit(2, 3, "a", "3"))
    assert edits[-1] == Edit(2, 3, "a", "3") and len(edits) == 3
    add_edit(edits, Edit(0, 9, "A", "4"))
    assert edits == [Edit(0, 4, "B", "2"), Edit(0, 9, "A", "4")]
    # It follows one that something else came after.
    add_edit(edits, Edit(5, 5, "B", "9"))
    add_edit(edits, Edit(6, 6, "B", "2"))
    assert len(edits) == 4


def test_all_or_nothing() -> None:
    world = World()
    cluster = world.submit(3)
    assert edit(world, (cluster, 0), (cluster, 7), A="1") == [(cluster, 0, "ok"), (cluster, 7, "not_found")]
    assert edit(world, (cluster, 0), (cluster + 1, -1), A="1")[1] == (cluster + 1, -1, "not_found")
    assert world.master.queue.clusters[cluster].edits == []
    assert edit(world, (cluster, -1), A="1", B="2") == [(cluster, proc, "ok") for proc in range(3)]
    assert world.master.queue.clusters[cluster].edits == [Edit(0, 2, "A", "1"), Edit(0, 2, "B", "2")]
    # A trial.
    assert edit(world, (cluster, 2)) == [(cluster, 2, "ok")]
    assert len(world.master.queue.clusters[cluster].edits) == 2


def order(world: World, count: int) -> list[tuple[int, int]]:
    """Tasks in the order in which they start, one at a time."""
    node = Node(world, "node")
    for _ in range(count - 1):
        node.end()
        world.deliver()
    return [(token.cluster, token.proc) for token in node.begun]


def test_priorities_of_clusters_and_of_tasks() -> None:
    world = World()
    first, second = world.submit(4), world.submit(4)
    edit(world, (second, 1), (second, 3), JobPrio="5")
    edit(world, (first, 3), JobPrio="9")
    edit(world, (first, 0), JobPrio="-1")
    assert order(world, 8) == [
        (first, 3),
        (second, 1),
        (second, 3),
        (first, 1),
        (first, 2),
        (second, 0),
        (second, 2),
        (first, 0),
    ]


def test_a_priority_for_all_ends_those_of_single_tasks() -> None:
    world = World()
    first, second = world.submit(3), world.submit(2)
    edit(world, (first, 1), JobPrio="-5")
    edit(world, (second, -1), JobPrio="1")
    edit(world, (first, -1), JobPrio="2")
    assert order(world, 5) == [(first, 1), (first, 0), (first, 2), (second, 0), (second, 1)]


def test_adjusting() -> None:
    world = World()
    cluster = world.submit(4, priority=10)
    edit(world, (cluster, 2), JobPrio="3")
    edit(world, (cluster, -1), JobPrio="-4", adjust=True)
    found = world.master.queue.clusters[cluster]
    assert [found.priority_of(proc) for proc in range(4)] == [6, 6, -1, 6]
    edit(world, (cluster, 0), (cluster, 1), JobPrio="1", adjust=True)
    assert [found.priority_of(proc) for proc in range(4)] == [7, 7, -1, 6]
    assert [found.edited("jobprio", proc) for proc in range(4)] == ["7", "7", "-1", "6"]


def test_a_task_that_comes_back_keeps_its_priority() -> None:
    world = World()
    cluster = world.submit(3)
    edit(world, (cluster, 2), JobPrio="1")
    node = Node(world, "node")
    assert node.running[0].proc == 2
    world.act("hold", (cluster, 2))
    world.act("release", (cluster, 2))
    world.act("vacate", (cluster, -1))
    world.pass_time(3)
    assert node.running[0].proc == 2


def test_policies() -> None:
    world = World()
    cluster = world.submit(3)
    edit(world, (cluster, 1), PeriodicHold="true")
    edit(world, (cluster, 2), LeaveJobInQueue="true")
    world.pass_time(61)
    assert [world.state(cluster, proc) for proc in range(3)] == [State.IDLE, State.HELD, State.IDLE]
    world.act("cancel", (cluster, -1))
    live = world.master.queue.clusters[cluster]
    assert [proc for proc in range(3) if proc in live.facts] == [2]
    edit(world, (cluster, 2), LeaveJobInQueue="false")
    world.pass_time(61)
    assert cluster not in world.master.queue.clusters


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_taking_in_any_portion(limit: int) -> None:
    cluster = Cluster(1, "alice", 50, Resources())
    for proc, priority in ((7, 3), (8, 3), (20, -1), (49, 3)):
        cluster.edit(Edit(proc, proc, "JobPrio", str(priority)))
    taken = []
    while True:
        some = cluster.take(limit, lambda proc: True)
        if not some:
            break
        assert len(some) <= limit
        assert len({cluster.priority_of(proc) for proc in some}) == 1
        cluster.put_all(some, State.ASSIGNED)
        taken += some
    assert taken == [7, 8, 49, *(proc for proc in range(50) if proc not in (7, 8, 20, 49)), 20]
