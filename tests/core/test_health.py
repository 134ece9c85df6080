"""Black holes and poison: one bad node must not eat the queue, one bad task must not take its neighbours along."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from pilotq import wire
from pilotq.core.health import PAUSE_S, Health
from pilotq.core.master import Limits
from pilotq.core.peers import Peers
from pilotq.core.tasks import Cluster
from pilotq.core.turn import FromPeer, Now, Route, WorkerVerb
from pilotq.model import QUICK_S, Ended, HoldCode, Outcome, Resources, State, Usage
from tests.core.world import Node, World


def run_round(world: World, bad: set[str], seconds: float = 1.0) -> None:
    """Each running task ends: on bad nodes at once and with a failure."""
    for node in list(world.workers.values()):
        for token in list(node.running):
            if node.name in bad:
                node.task_s = 0.01
                node.end(token, Outcome.EXIT, 127)
            else:
                node.task_s = seconds
                node.end(token)
    world.deliver()


def fast_failing(world: World, node: Node, rounds: int = 50) -> None:
    """It fails whatever it is given, as fast as it is given something."""
    for _ in range(rounds):
        if not node.running:
            return
        node.task_s = 0.01
        node.end(None, Outcome.EXIT, 127)
        world.deliver()


def steps_of(world: World, host: str) -> list[str]:
    return [text for _, text in world.master.health.nodes[host].steps]


def test_a_black_hole_among_twenty_nodes_touches_eight_tasks_of_ten_thousand() -> None:
    world = World()
    nodes = [Node(world, f"n{index}", slots=4) for index in range(20)]
    hole = nodes[7]
    world.submit(10_000)
    fast_failing(world, hole)
    started = world.now.boot
    assert world.master.health.nodes["n7"].suspended
    for _ in range(10):
        run_round(world, {"n7"})
        world.pass_time(1)
        fast_failing(world, hole)
    assert world.now.boot - started > 10
    assert len(hole.begun) <= 8
    assert all(not world.master.health.nodes.get(node.name) for node in nodes if node is not hole)
    assert world.master.queue.done > 500


def test_it_is_tried_again_with_pauses_that_double_and_taken_back_after_repair() -> None:
    world = World()
    good, hole = Node(world, "good"), Node(world, "hole")
    world.submit(500)
    fast_failing(world, hole)
    tries = []
    for _ in range(200):
        before = len(hole.begun)
        world.pass_time(1)
        good.end()
        world.deliver()
        if len(hole.begun) > before:
            tries.append(world.now.boot)
            assert len(hole.running) == 1
            fast_failing(world, hole, 1)
    gaps = [round(later - sooner) for sooner, later in itertools.pairwise(tries)]
    assert [round(gap / 10) for gap in gaps[:3]] == [2, 4, 8], gaps
    while not hole.running:
        world.pass_time(5)
        good.end()
        world.deliver()
    hole.end()
    world.deliver()
    assert hole.running, "well again, it gets the next one at once"
    assert not world.master.health.nodes["hole"].suspended
    assert "well again" in steps_of(world, "hole")[-1]


def test_a_long_task_that_goes_on_running_makes_a_node_well() -> None:
    world = World()
    Node(world, "good")
    hole = Node(world, "hole", slots=2)
    world.submit(50)
    fast_failing(world, hole)
    world.pass_time(PAUSE_S + 2)
    assert len(hole.running) == 1, "one try at a time"
    world.pass_time(2 * QUICK_S + 2)
    assert len(hole.running) == 2


def test_tasks_that_fail_everywhere_suspend_no_node() -> None:
    world = World()
    names = {f"n{index}" for index in range(4)}
    for name in names:
        Node(world, name, slots=2)
    cluster = world.submit(400)
    for _ in range(60):
        run_round(world, names)
    assert world.master.queue.failed == 400, world.master.queue.clusters[cluster].counts
    assert not any(node.suspended for node in world.master.health.nodes.values())


def test_single_tasks_that_fail_everywhere_suspend_no_node() -> None:
    world = World()
    names = {f"n{index}" for index in range(4)}
    for name in names:
        Node(world, name)
    for _ in range(40):
        world.submit(1)
    for _ in range(15):
        run_round(world, names)
    assert world.master.queue.failed == 40
    assert not any(node.suspended for node in world.master.health.nodes.values())


def test_the_only_node_is_never_suspended() -> None:
    world = World()
    node = Node(world, "n1")
    world.submit(30)
    fast_failing(world, node)
    assert world.master.queue.failed == 30


def test_tasks_held_ahead_by_a_black_hole_go_elsewhere() -> None:
    world = World()
    hole, good = Node(world, "hole", slots=1, ahead=16), Node(world, "good", slots=1)
    cluster = world.submit(15)
    assert len(hole.core.attempts) > 10
    fast_failing(world, hole, 3)
    assert not hole.core.attempts, "called back"
    assert world.master.queue.clusters[cluster].counts[State.IDLE] == 11
    for _ in range(12):
        good.end()
        world.deliver()
    assert world.master.queue.done == 12
    assert len(hole.begun) == 3


def test_a_retry_avoids_the_node_where_the_task_failed() -> None:
    world = World(evaluate=lambda expr, cluster, proc, facts, now: facts.outcome == Outcome.OK)
    first, second = Node(world, "n1"), Node(world, "n2", slots=1)
    blocker = world.submit(1, needs=Resources(1))
    cluster = world.submit(1, policies={"on_exit_remove": "ok"})
    (failed,) = [node for node in (first, second) if wire.Token(cluster, 0, 1) in node.running]
    (other,) = {first, second} - {failed}
    failed.end(wire.Token(cluster, 0, 1), Outcome.EXIT, 1)
    world.deliver()
    world.pass_time(6)
    assert not failed.running, "it waits for another node"
    other.end(wire.Token(blocker, 0, 1))
    world.deliver()
    assert other.running == [wire.Token(cluster, 0, 2)]


def test_a_retry_does_not_wait_for_ever_for_another_node() -> None:
    world = World(evaluate=lambda expr, cluster, proc, facts, now: facts.outcome == Outcome.OK)
    first, second = Node(world, "n1"), Node(world, "n2")
    world.submit(1)
    cluster = world.submit(1, policies={"on_exit_remove": "ok"})
    (failed,) = [node for node in (first, second) if wire.Token(cluster, 0, 1) in node.running]
    failed.end(wire.Token(cluster, 0, 1), Outcome.EXIT, 1)
    world.pass_time(40)
    assert failed.running == [wire.Token(cluster, 0, 2)]


def test_poison_is_held_and_its_neighbours_are_not_charged() -> None:
    """A task that kills its worker, among nine on three nodes that are started again each time."""
    world = World(Limits(max_losses=5))
    for index in range(3):
        Node(world, f"n{index}", slots=4)
    cluster = world.submit(9)
    poison, losses = 4, 0
    while world.state(cluster, poison) != State.HELD:
        while world.state(cluster, poison) != State.RUNNING:
            world.pass_time(5)
        (node,) = [one for one in world.workers.values() if any(token.proc == poison for token in one.running)]
        losses += 1
        assert losses < 12
        world.do(WorkerVerb(900 + losses, node.core.name, "forget"))
        del world.workers[node.name]
        world.deliver()
        Node(world, node.name, slots=4)
        world.pass_time(5)
    facts = world.master.queue.clusters[cluster].facts
    assert facts[poison].hold_code == HoldCode.LOST
    assert facts[poison].losses >= 5
    others = Counter(facts[proc].losses for proc in range(9) if proc != poison)
    assert others[0] >= 7 and max(others) <= 2, others
    world.pass_time(130)
    assert all(world.state(cluster, proc) == State.RUNNING for proc in range(9) if proc != poison)


def test_losses_on_one_node_only_suspend_it() -> None:
    world = World(Limits(max_losses=2))
    Node(world, "good", slots=1)
    cluster = world.submit(8)
    for index in range(3):
        node = Node(world, "bad", slots=1)
        assert node.running
        world.do(WorkerVerb(900 + index, "bad", "forget"))
        del world.workers["bad"]
        world.deliver()
    again = Node(world, "bad", slots=1)
    assert not again.running
    assert world.master.health.nodes["bad"].suspended
    assert world.master.queue.clusters[cluster].counts[State.HELD] == 0


def test_what_failed_elsewhere_later_clears_a_node() -> None:
    peers = Peers()
    for name in ("a", "b"):
        peers.know(name, name, 0.0, 100.0)
    peers.workers["b"].route = object()  # type: ignore[assignment] # only looked at for None
    health, cluster, now = Health(peers), Cluster(1, "alice", 100, Resources()), Now(0.0, 0.0)
    end = Ended(Outcome.EXIT, 1, usage=Usage(wall_s=0.1))
    for proc in range(3):
        health.on_end("a", cluster, proc, end, now)
    assert health.nodes["a"].suspended
    for proc in range(3, 6):
        health.on_end("b", cluster, proc, end, now)
    assert not health.nodes["a"].suspended and not health.nodes["b"].suspended
    assert health.well_again == ["a"]


def called_back_unheard(world: World, hole: Node, cluster: int) -> list[wire.Token]:
    """The node is suspended while nothing passes to it; what it holds still."""
    fast_failing(world, hole, 2)
    hole.cut = True
    failed = Ended(Outcome.EXIT, 127, usage=Usage(wall_s=0.01))
    world.do(FromPeer(Route(hole.peer, b""), "worker", "site", wire.Result([hole.running[0]], [failed])))
    assert world.master.health.is_suspended("hole")
    return list(hole.core.attempts)[1:]


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_called_back_is_not_started_elsewhere_before_it_has_ended(restarts: bool) -> None:
    """Its worker may have started it by then; and a restart of the master does not forget that it was told."""
    world = World()
    hole, good = Node(world, "hole", slots=1, ahead=4), Node(world, "good", slots=1, ahead=0)
    cluster = world.submit(8)
    kept = called_back_unheard(world, hole, cluster)
    assert len(kept) >= 3
    if restarts:
        world.restart_master()
    world.pass_time(20)
    for _ in range(12):
        for token in list(good.running):
            good.end(token)
        world.deliver()
    assert not {(token.cluster, token.proc) for token in good.begun} & {(token.cluster, token.proc) for token in kept}
    hole.cut = False
    world.pass_time(60)
    for _ in range(20):
        run_round(world, set())
        world.pass_time(1)
    assert world.master.queue.clusters == {}
    assert {wire.Token(cluster, token.proc, 2) for token in kept} <= {*good.begun, *hole.begun}


def test_what_ended_while_it_was_called_back_is_not_run_again() -> None:
    world = World()
    hole, good = Node(world, "hole", slots=1, ahead=4), Node(world, "good", slots=1, ahead=0)
    cluster = world.submit(8)
    token = called_back_unheard(world, hole, cluster)[0]
    result = wire.Result([token], [Ended(Outcome.OK, usage=Usage(wall_s=1.0))])
    world.do(FromPeer(Route(hole.peer, b""), "worker", "site", result))
    assert world.state(cluster, token.proc) == State.DONE
    for _ in range(8):
        run_round(world, set())
    assert wire.Token(cluster, token.proc, 2) not in good.begun
