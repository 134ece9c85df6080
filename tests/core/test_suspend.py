"""Suspend, continue, vacate: what the queue says and what the worker does are the same in the end, whatever is lost."""

from __future__ import annotations

import pytest

from pilotq import wire
from pilotq.core.queue import EVICTED, SUSPENDED, UNSUSPENDED
from pilotq.model import Outcome, State
from tests.core.world import Node, World


def running(slots: int = 1, **more: object) -> tuple[World, Node, int]:
    """A worker whose slots all run tasks of one cluster."""
    world = World()
    node = Node(world, "node", slots)
    cluster = world.submit(slots, log=True, **more)
    assert len(node.running) == slots
    return world, node, cluster


def test_suspend_and_continue() -> None:
    world, node, cluster = running()
    token = node.running[0]
    assert world.act("suspend", (cluster, 0)) == [(cluster, 0, "ok")]
    assert (node.suspended, world.state(cluster)) == ({token}, State.SUSPENDED)
    assert world.act("suspend", (cluster, 0)) == [(cluster, 0, "already")]
    world.pass_time(100)
    assert (node.suspended, world.state(cluster)) == ({token}, State.SUSPENDED)
    assert world.act("continue", (cluster, 0)) == [(cluster, 0, "ok")]
    assert (node.suspended, world.state(cluster)) == (set(), State.RUNNING)
    assert world.act("continue", (cluster, 0)) == [(cluster, 0, "already")]
    assert [event for event in world.disk.events(cluster, 0) if event in (SUSPENDED, UNSUSPENDED)] == [10, 11]
    assert world.disk.rows[cluster, 0][2].suspensions == 1
    node.end()
    world.deliver()
    world.write_notes()
    assert world.state(cluster) == State.DONE


@pytest.mark.parametrize("verb", ["suspend", "continue", "vacate", "vacate_fast", "drop"])
def test_what_is_not_running(verb: str) -> None:
    world = World()
    cluster = world.submit(2)
    world.act("hold", (cluster, 1))
    assert world.act(verb, (cluster, -1), (9, 0)) == [
        (9, 0, "not_found"),
        (cluster, 0, "bad_state"),
        (cluster, 1, "bad_state"),
    ]


def test_one_that_was_given_and_not_started_is_not_running() -> None:
    world = World()
    node = Node(world, "node")
    node.holds_files = True
    cluster = world.submit()
    assert world.state(cluster) == State.ASSIGNED
    assert world.act("suspend", (cluster, 0)) == world.act("vacate", (cluster, 0)) == [(cluster, 0, "bad_state")]


@pytest.mark.parametrize("on", [True, False])
def test_what_is_said_while_there_is_no_way_to_the_worker_is_set_right(on: bool) -> None:
    world, node, cluster = running()
    if not on:
        world.act("suspend", (cluster, 0))
    node.cut = True
    world.act("suspend" if on else "continue", (cluster, 0))
    assert bool(node.suspended) != on
    node.cut = False
    # No connection broke: it is its checksum that tells.
    world.pass_time(40)
    assert bool(node.suspended) == on


@pytest.mark.parametrize("on", [True, False])
def test_a_restart_of_the_master(on: bool) -> None:
    world, node, cluster = running(2)
    world.act("suspend", (cluster, 0))
    node.cut = True
    if not on:
        world.act("continue", (cluster, 0))
    world.restart_master()
    node.cut = False
    world.pass_time(40)
    assert world.state(cluster, 0) == (State.SUSPENDED if on else State.RUNNING)
    assert node.suspended == ({wire.Token(cluster, 0, 1)} if on else set())
    assert world.state(cluster, 1) == State.RUNNING


def test_a_suspended_task_can_be_removed_held_and_ends() -> None:
    world, node, cluster = running(3)
    world.act("suspend", (cluster, -1))
    assert len(node.suspended) == 3
    world.act("cancel", (cluster, 0))
    world.act("hold", (cluster, 1))
    node.end(wire.Token(cluster, 2, 1), Outcome.SIGNAL, 9)
    world.deliver()
    world.write_notes()
    assert [world.state(cluster, proc) for proc in range(3)] == [State.CANCELLED, State.HELD, State.DONE]
    assert not node.running
    world.pass_time(30)
    assert world.act("release", (cluster, 1)) == [(cluster, 1, "ok")]
    assert (node.running, node.suspended) == ([wire.Token(cluster, 1, 2)], set())


def test_what_follows_a_suspended_task_in_its_slot_goes_elsewhere() -> None:
    world = World()
    node = Node(world, "node", 2, ahead=4)
    cluster = world.submit(6)
    for _ in range(4):
        node.task_s = 0.001
        node.end()
        world.deliver()
    assert len(node.running) == 2
    more = world.submit(8)
    first = node.running[0]
    world.act("suspend", (first.cluster, first.proc))
    world.pass_time(1)
    assert first not in node.followers.values()
    ended = 0
    while len(node.running) > 1:
        node.end(next(token for token in node.running if token != first))
        world.deliver()
        ended += 1
    assert world.master.queue.clusters.get(more) is None and ended >= 8
    assert world.state(cluster, first.proc) == State.SUSPENDED


@pytest.mark.parametrize("verb", ["vacate", "vacate_fast"])
def test_a_vacated_task_starts_again_when_nothing_of_it_runs(verb: str) -> None:
    world, node, cluster = running()
    node.holds_orders = True
    assert world.act(verb, (cluster, 0)) == [(cluster, 0, "ok")]
    assert (world.state(cluster), world.disk.events(cluster, 0)[-1]) == (State.IDLE, EVICTED)
    assert world.act(verb, (cluster, 0)) == [(cluster, 0, "bad_state")]
    other = Node(world, "other")
    world.pass_time(5)
    assert not other.running
    node.holds_orders = False
    node.obey()
    world.deliver()
    assert (node.running + other.running, node.fast_ends) == ([wire.Token(cluster, 0, 2)], verb == "vacate_fast")


def test_a_suspended_task_can_be_vacated() -> None:
    world, node, cluster = running()
    world.act("suspend", (cluster, 0))
    world.act("vacate", (cluster, 0))
    world.pass_time(2)
    assert (node.running, node.suspended, world.state(cluster)) == ([wire.Token(cluster, 0, 2)], set(), State.RUNNING)


def test_a_removed_task_that_is_kept_is_dropped_by_force() -> None:
    world = World()
    cluster = world.submit(2, policies={"leave_in_queue": "true"})
    world.act("cancel", (cluster, -1))
    assert world.state(cluster, 1) == State.CANCELLED
    assert world.act("cancel", (cluster, 0)) == [(cluster, 0, "already")]
    assert world.act("drop", (cluster, 0)) == [(cluster, 0, "ok")]
    assert world.act("drop", (cluster, 0)) == [(cluster, 0, "not_found")]
    world.act("drop", (cluster, -1))
    assert cluster not in world.master.queue.clusters
    assert [row[1:3] for row in world.disk.history] == [(0, State.CANCELLED), (1, State.CANCELLED)]
