"""Hellos, holds and results that cross each other on their way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.master import Limits
from pilotq.core.turn import Route
from pilotq.model import Ended, Outcome, OutputFile, State
from tests.core.world import Node, World


def hello_of(node: Node, generation: int, **more: Any) -> wire.Hello:
    core = node.core
    return wire.Hello(wire.PROTOCOL, core.name, generation, node.name, 1, "test", core.offer(), [], [], [], **more)


def test_an_old_hello_takes_nothing_away() -> None:
    """Its session died and so did the newer one, for the master; the worker runs what it got by the newer."""
    world = World()
    node = Node(world, "n1")
    node.do(w.LinkLost(node.core.session.link))
    world.pass_time(1)
    cluster = world.submit()
    world.do(t.PeerLost(node.peer))
    world.do(t.FromPeer(Route(b"old", b"session"), "foreman", "site", hello_of(node, 1)))
    assert world.state(cluster) == State.RUNNING
    assert list(world.master.queue.clusters[cluster].attempts) == [1]


def test_what_a_hello_lacks_counts_when_it_was_asked_for() -> None:
    """A frozen foreman may deliver an old one to a new master, which has seen no newer."""
    world = World()
    node, other = Node(world, "n1"), Node(world, "n2")
    world.submit(2)
    world.restart_master()
    world.do(t.FromPeer(Route(b"old", b"session"), "foreman", "site", hello_of(node, 1)))
    world.pass_time(20)
    other.end()
    world.deliver()
    assert (len(node.running), len(other.running)) == (1, 0)
    world.restart_master()
    node.running.clear()
    node.core.attempts.clear()
    node.core.slots.used[0] = node.core.checksum = 0
    world.pass_time(20)
    assert other.running == [wire.Token(1, 0, 2)] or node.running == [wire.Token(1, 0, 2)]


def test_a_release_after_a_restart_ends_the_copy_that_still_runs() -> None:
    world = World()
    node = Node(world, "n1", slots=2)
    cluster = world.submit()
    node.cut = True
    world.act("hold", (cluster, 0))
    world.restart_master()
    world.act("release", (cluster, 0))
    node.cut = False
    world.pass_time(20)
    assert node.running == [wire.Token(cluster, 0, 2)]
    worker = world.master.peers.workers["n1"]
    assert (worker.used[0], worker.count) == (1, 1)


def big(name: str = "big") -> list[OutputFile]:
    return [OutputFile(name, 1 << 20, 0o600)]


def test_a_result_that_meets_a_hold_and_a_release_is_not_wanted() -> None:
    """The worker was told to forget it: its outputs could not be had any more, and the task would be held again."""
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    token = node.running[0]
    node.cut = True
    world.act("hold", (cluster, 0))
    world.act("release", (cluster, 0))
    node.cut = False
    node.end(outputs=big())
    world.pass_time(5)
    assert not world.collects
    assert token in node.discarded
    assert node.running == [wire.Token(cluster, 0, 2)]


def test_a_hold_while_outputs_come() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    token = node.running[0]
    node.end(outputs=big())
    world.deliver()
    assert [collect.token for collect in world.collects] == [token]
    world.act("hold", (cluster, 0))
    assert token in node.discarded, "it is not wanted any more, and its worker knows"
    world.act("release", (cluster, 0))
    world.do(t.Collected(token))
    world.deliver()
    assert node.running == [wire.Token(cluster, 0, 2)]
    node.end()
    world.deliver()
    assert world.state(cluster) == State.DONE


def test_a_late_result_is_not_run_again_while_its_outputs_come() -> None:
    world = World(Limits(lease_s=100))
    node, other = Node(world, "n1"), Node(world, "n2")
    cluster = world.submit()
    node.cut = True
    node.end(outputs=big())
    other.do(w.Terminate())
    world.pass_time(200)
    assert world.state(cluster) == State.IDLE
    node.cut = False
    world.pass_time(30)
    assert world.collects and not node.running, "its worker has the result"
    world.do(t.Collected(wire.Token(cluster, 0, 1)))
    world.write_notes()
    assert world.state(cluster) == State.DONE


def test_a_result_told_twice_is_judged_once() -> None:
    """The first one made the task run again: the second must not end that."""
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(policies={"on_exit_remove": "false"})
    first = node.running[0]
    node.end(outcome=Outcome.EXIT, code=1)
    world.deliver()
    result = wire.Result([first], [Ended(Outcome.EXIT, 1)])
    world.do(t.FromPeer(Route(node.peer, b""), "worker", "site", result))
    world.pass_time(5)
    assert node.running == [wire.Token(cluster, 0, 2)]
    assert world.state(cluster) == State.RUNNING


def test_nobody_speaks_for_the_attempt_of_another_worker() -> None:
    world = World()
    node, liar = Node(world, "n1"), Node(world, "n2")
    cluster = world.submit()
    token = node.running[0]
    world.do(t.FromPeer(Route(liar.peer, b""), "worker", "site", wire.Result([token], [Ended(Outcome.OK)])))
    assert world.state(cluster) == State.RUNNING
    liar.do(w.LinkLost(liar.core.session.link))
    hello = msgspec.structs.replace(hello_of(liar, 9), live=[token], unacked=[])
    world.do(t.FromPeer(Route(b"new", b""), "worker", "site", hello))
    assert world.master.peers.workers["n1"].tasks == [(cluster, 0)]
    node.end()
    world.deliver()
    assert world.state(cluster) == State.DONE


def test_the_end_of_an_old_attempt_does_not_free_the_task_of_a_newer_one() -> None:
    """An operator said that n1 is gone, and was wrong; n2's copy was told to end, and has not yet."""
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    node.cut = True
    other = Node(world, "n2")
    world.do(t.WorkerVerb(1, "n1", "forget"))
    world.deliver()
    assert other.running == [wire.Token(cluster, 0, 2)]
    other.cut = True
    world.act("hold", (cluster, 0))
    world.act("release", (cluster, 0))
    node.cut = False
    world.pass_time(25)
    assert not node.running
    other.cut = False
    world.pass_time(25)
    assert other.running + node.running == [wire.Token(cluster, 0, 3)]


def test_a_drain_is_asked_for_again_after_a_silence() -> None:
    world = World()
    node = Node(world, "n1")
    node.cut = True
    world.do(t.WorkerVerb(1, "n1", "drain"))
    world.pass_time(30)
    assert not node.core.draining
    node.cut = False
    world.pass_time(60)
    assert node.core.draining and node.left


@pytest.mark.parametrize("is_silent_first", [False, True])
def test_a_drain_by_name_survives_a_restart(is_silent_first: bool) -> None:
    world = World(Limits(lease_s=100))
    node = Node(world, "n1")
    node.cut = True
    world.do(t.WorkerVerb(1, "n1", "drain"))
    assert world.answers[1] is True
    world.pass_time(300 if is_silent_first else 1)
    world.restart_master()
    node.cut = False
    world.submit()
    world.pass_time(60)
    assert node.left and not node.launched
    assert not world.disk.drains, "it is gone, and so is the drain"


# ---- foreman, files


def test_a_result_that_was_not_told_yet_when_its_end_is_asked_for_is_never_told() -> None:
    """Its outputs are gone: told after all, the task would be held for want of them."""
    world = World()
    node = Node(world, "n1")
    world.submit()
    token = node.running.pop()
    ended = w.FromKeepers(ended=[(token, Ended(Outcome.OK, outputs=big()), 1.0)])
    node.do(ended, w.FromMaster(node.core.session.link, wire.Kill([token])))
    said = [message for _, message in node.outbox]
    assert any(isinstance(message, wire.Killed) for message in said)
    assert not any(isinstance(message, wire.Result) for message in said)


def test_a_result_that_was_dropped_is_told_again_until_its_worker_forgets_it() -> None:
    """Two copies of it were on their way when the task was held and released: neither is for the next attempt."""
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    token = node.running[0]
    node.cut = True
    world.act("hold", (cluster, 0))
    message = wire.Result([token], [Ended(Outcome.OK, outputs=big())])
    result = t.FromPeer(Route(node.peer, b""), "worker", "site", message)
    world.do(result)
    world.act("release", (cluster, 0))
    other = Node(world, "n2")
    world.do(result)
    assert not world.collects
    assert not other.running, "what is left of the first copy is still to be removed"
    assert world.state(cluster) == State.IDLE


@pytest.mark.parametrize("is_given_out", [False, True])
def test_outputs_that_cannot_be_had_hold_a_task_once(is_given_out: bool) -> None:
    """The result was acknowledged, and came a second time after the release."""
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    token = node.running[0]
    node.end(outputs=big())
    result = next(message for _, message in node.outbox if isinstance(message, wire.Result))
    world.deliver()
    world.do(t.Collected(token, "big is not there"))
    assert world.state(cluster) == State.HELD
    if not is_given_out:
        world.master.peers.workers["n1"].pause_until = float("inf")
    world.act("release", (cluster, 0))
    world.do(t.FromPeer(Route(node.peer, b""), "worker", "site", result))
    for collect in world.collects[1:]:
        world.do(t.Collected(collect.token, "big is not there"))
    world.deliver()
    assert world.state(cluster) == (State.RUNNING if is_given_out else State.IDLE)


def test_an_inventory_takes_back_what_was_lost_and_not_what_was_judged() -> None:
    """The acknowledgement of a result that held its task was lost with the session."""
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    node.end(outcome=Outcome.MEMORY)
    result = node.outbox[-1][1]
    while node.outbox:
        node.outbox.popleft()
    world.do(t.FromPeer(Route(node.peer, b""), "worker", "site", result))
    assert world.state(cluster) == State.HELD
    node.inbox.clear()
    node.do(w.LinkLost(node.core.session.link))
    world.master.peers.workers["n1"].pause_until = world.now.boot + 2
    world.act("release", (cluster, 0))
    world.pass_time(20)
    assert node.running == [wire.Token(cluster, 0, 2)], "its result is not judged again"
