"""Attempts that follow each other in a slot, and what becomes of them when something else happens."""

from __future__ import annotations

from typing import Any

import pytest

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.worker_slots import ROW_MAX
from pilotq.model import STDOUT, Ended, Outcome, OutputFile, Resources, State, Usage
from tests.core.world import Node, World


def short_tasks(count: int, slots: int = 2, **options: Any) -> tuple[World, Node, int]:
    """A worker that has learnt that tasks are short, and a cluster on it."""
    world = World()
    node = Node(world, "n", slots, **options)
    node.task_s = 0.002
    first = world.submit(50)
    while node.running:
        node.end()
        world.deliver()
    assert world.state(first, 49) == State.DONE
    return world, node, world.submit(count)


def procs(tokens: list[wire.Token]) -> list[int]:
    return sorted(token.proc for token in tokens)


def finish(world: World, node: Node) -> None:
    while node.running:
        node.end()
        world.deliver()


def test_short_tasks_follow_each_other() -> None:
    world, node, cluster = short_tasks(60)
    assert len(node.running) == 2
    assert len(node.followers) == 58
    depths = [len(node.line_behind(first)) for first in node.running]
    assert max(depths) - min(depths) <= 1, "each slot in turn"
    node.end()
    world.deliver()
    assert len(node.running) == 2, "the next began before the worker heard of it"
    finish(world, node)
    assert all(world.state(cluster, proc) == State.DONE for proc in range(60))


def test_long_tasks_do_not() -> None:
    world = World()
    node = Node(world, "n", 2, ahead=10)
    world.submit(10)
    finish(world, node)
    world.submit(10)
    assert len(node.running) == 2
    assert not node.followers


def test_a_slot_for_one_task_only() -> None:
    world = World()
    node = Node(world, "n", 2, single_task=True)
    node.task_s = 0.001
    world.submit(10)
    while node.running:
        assert not node.followers
        node.end()
        world.deliver()
    assert node.left


def test_nothing_stays_behind_a_long_task() -> None:
    world, node, cluster = short_tasks(41)
    long = node.running[0]
    behind = node.line_behind(long)
    assert len(behind) > 10
    while len(node.running) > 1:
        node.end(next(token for token in node.running if token != long))
        world.deliver()
    assert node.running == [long]
    assert not node.followers
    assert sum(world.state(cluster, proc) == State.DONE for proc in range(41)) == 40
    assert sorted(set(node.launched)) == sorted(node.launched), "each was started once"


def test_kill_one_that_follows() -> None:
    world, node, cluster = short_tasks(20)
    victim = node.line_behind(node.running[0])[0]
    world.act("cancel", (cluster, victim.proc))
    assert world.state(cluster, victim.proc) == State.CANCELLED
    assert victim not in node.followers
    finish(world, node)
    assert sum(world.state(cluster, proc) == State.DONE for proc in range(20)) == 19


def test_a_node_that_turns_bad_amid_short_tasks_fails_few() -> None:
    """Behind the first failure in a slot nothing begins; what waits there goes back to the master."""
    world, node, cluster = short_tasks(3000)
    Node(world, "other", 2)
    for _ in range(50):
        node.end()
        world.deliver()
    assert len(node.followers) > 50
    for _ in range(50):
        if node.running:
            node.end(None, Outcome.EXIT, 127)
            world.deliver()
    assert not node.core.attempts
    assert world.master.health.nodes["n"].suspended
    assert world.master.queue.clusters[cluster].failed <= 5


def test_a_worker_whose_master_is_late_fails_no_more() -> None:
    """Nothing begins until the master has judged the failures; what it assigned meanwhile waits."""
    world, node, cluster = short_tasks(3000)
    assert len(node.core.attempts) > 50
    while node.running:
        node.end(None, Outcome.EXIT, 127)
    failed = len(node.core.results)
    assert failed == ROW_MAX - 1 + node.slots
    world.pass_time(1)
    assert world.master.queue.failed == failed
    assert len(node.running) == node.slots, "it is the only node: the master lets it go on"
    finish(world, node)
    assert all(world.state(cluster, proc) == State.DONE for proc in range(3000))


@pytest.mark.parametrize("suspended_first", [True, False])
def test_good_ends_that_are_told_late_do_not_excuse_a_node(suspended_first: bool) -> None:
    """They began before it turned bad, in a slot of another keeper."""
    world, node, cluster = short_tasks(3000)
    Node(world, "other", 2)
    late, other = node.running
    told_late = node.over(late)
    for _ in range(ROW_MAX if suspended_first else ROW_MAX - 1):
        node.end(other, Outcome.EXIT, 127)
        world.deliver()
        other = next((token for token in node.running if token != late), other)
    assert ("n" in world.master.health.nodes) and world.master.health.nodes["n"].suspended is suspended_first
    node.tell_end(*told_late)
    world.deliver()
    for _ in range(10):
        if node.running:
            node.end(None, Outcome.EXIT, 127)
            world.deliver()
    assert world.master.health.nodes["n"].suspended
    assert world.master.queue.clusters[cluster].failed <= ROW_MAX - 1 + node.slots


def test_one_failure_now_and_then_leaves_the_lines_long() -> None:
    world, node, _ = short_tasks(2000)
    turns = longest = 0
    while node.running:
        turns += 1
        node.end(None, Outcome.OK if turns % 20 else Outcome.EXIT, int(not turns % 20))
        world.deliver()
        if turns > 500:
            longest = max(longest, len(node.followers))
    assert world.master.queue.failed == 100
    assert longest > 10
    assert node.returns < 20, "only the last ones, when a slot was free"
    assert sorted(set(node.begun)) == sorted(node.begun), "each was started once"


def test_drain_gives_back_what_follows() -> None:
    world, node, cluster = short_tasks(20)
    running = list(node.running)
    node.do(w.Drain("drained"))
    assert not node.followers
    assert node.running == running
    world.deliver()
    assert procs(list(node.core.attempts)) == procs(running)
    idle = [proc for proc in range(20) if world.state(cluster, proc) == State.IDLE]
    assert len(idle) == 18
    finish(world, node)
    assert node.left == "drained"


def test_drain_that_comes_too_late_for_some() -> None:
    """The keeper started one before it heard that it was to be given back."""
    world, node, cluster = short_tasks(6, slots=1)
    node.holds_orders = True
    second = node.line_behind(node.running[0])[0]
    node.do(w.Drain("drained"))
    node.end()
    assert node.running == [second]
    node.holds_orders = False
    node.obey()
    world.deliver()
    assert world.state(cluster, second.proc) == State.RUNNING
    assert len(node.core.attempts) == 1
    finish(world, node)
    assert sum(world.state(cluster, proc) == State.DONE for proc in range(6)) == 2
    assert node.left


def test_stop_evicts_what_runs_only() -> None:
    world, node, cluster = short_tasks(20)
    node.do(w.Terminate())
    world.deliver()
    assert node.left
    assert all(world.state(cluster, proc) == State.IDLE for proc in range(20))
    evicted = [end.outcome for end in node.core.results.values()]
    assert not evicted, "all results were acknowledged"


def test_the_lease_is_over() -> None:
    world, node, cluster = short_tasks(20)
    node.cut = True
    world.pass_time(3000)
    assert not node.running
    assert not node.followers
    node.cut = False
    world.pass_time(30)
    finish(world, node)
    assert all(world.state(cluster, proc) == State.DONE for proc in range(20))


def test_nothing_follows_one_that_is_being_ended() -> None:
    """The keeper may have forgotten it when the order comes, and would start the next at once."""
    world, node, cluster = short_tasks(1, slots=1)
    node.holds_orders = True
    world.act("cancel", (cluster, node.running[0].proc))
    assert node.core.attempts, "it is being ended"
    world.submit(5)
    node.holds_orders = False
    node.obey()
    world.deliver()
    finish(world, node)
    assert not node.core.attempts


def test_larger_needs_are_not_passed_for_ever() -> None:
    world, node, _ = short_tasks(1)
    large = world.submit(1, needs=Resources(2))
    world.submit(10_000)
    for _ in range(4000):
        if world.state(large) == State.DONE:
            return
        node.end()
        world.pass_time(0.05)
    raise AssertionError("small tasks kept a large one waiting")


def test_a_result_of_many_outputs_is_split() -> None:
    world, node, _ = short_tasks(40)
    node.cut = True
    ends = [(token, outcome(30_000), 1.0) for token in [*node.running, *node.followers]]
    node.running.clear()
    turn = node.core.handle(w.FromKeepers(ended=ends), world.now)
    said = [a.message for a in turn.actions if isinstance(a, w.Say) and isinstance(a.message, wire.Result)]
    assert sum(len(message.tokens) for message in said) == 40
    sizes = [len(wire.pack(message)) for message in said]
    assert max(sizes) < 300_000
    assert len(said) == 5


def outcome(size: int) -> Ended:
    return Ended(Outcome.OK, usage=Usage(wall_s=0.01), outputs=[OutputFile(STDOUT, size, 0o644, b"x" * size)])
