"""The master's decisions, with real worker cores at the other end."""

from __future__ import annotations

import pytest

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.master import Limits
from pilotq.core.queue import ABORTED, EVICTED, EXECUTING, HELD, RELEASED, SUBMITTED, TERMINATED
from pilotq.model import STDOUT, HoldCode, Outcome, OutputFile, Resources, State
from tests.core.world import Node, World


def test_a_task_runs_and_is_done_once() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    assert world.state(cluster) == State.RUNNING
    node.end()
    world.deliver()
    assert [row[:4] for row in world.disk.history] == [(cluster, 0, State.DONE, 1)]
    assert not node.core.results, "the master acknowledged"
    assert node.discarded == node.launched
    assert not world.master.queue.clusters


def test_nothing_is_acknowledged_before_it_is_recorded() -> None:
    world = World()
    node = Node(world, "n1")
    world.submit()
    token = node.running[0]
    node.end()
    peer, message = node.outbox.popleft()
    turn = world.master.handle(t.FromPeer(t.Route(peer, b""), "worker", "site", message), world.now)
    acks = [a for a in turn.actions if isinstance(a, t.Send) and isinstance(a.message, wire.Ack)]
    assert acks[0].message.tokens == [token]  # type: ignore[union-attr]
    assert turn.records, "the acknowledgement is in the same turn as the record, so after its commit"


def test_events_of_a_normal_task() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(log=True)
    node.end()
    world.deliver()
    assert world.state(cluster) == State.STAGING_OUT
    assert world.disk.events(cluster, 0) == [SUBMITTED, EXECUTING, TERMINATED]
    world.write_notes()
    assert world.state(cluster) == State.DONE
    assert len(world.disk.history) == 1


def test_a_result_sent_twice_counts_once() -> None:
    world = World()
    node = Node(world, "n1")
    world.submit()
    node.end()
    peer, message = node.outbox.popleft()
    for _ in range(2):
        world.do(t.FromPeer(t.Route(peer, b""), "worker", "site", message))
    assert len(world.disk.history) == 1


def test_a_slot_is_never_given_twice() -> None:
    world = World()
    nodes = [Node(world, f"n{i}", slots=2) for i in range(2)]
    world.submit(10)
    assert [len(node.running) for node in nodes] == [2, 2]
    nodes[0].end()
    world.deliver()
    assert [len(node.running) for node in nodes] == [2, 2]


def test_two_cores_need_two_cores() -> None:
    world = World()
    node = Node(world, "n1", slots=3)
    world.submit(3, needs=Resources(2))
    assert len(node.running) == 1
    world.submit(1, needs=Resources(1))
    assert len(node.running) == 2


def test_a_large_task_held_ahead_lets_small_ones_pass() -> None:
    world = World()
    node = Node(world, "n1", slots=3, ahead=4)
    world.submit(2, needs=Resources(2))
    small = world.submit(2, needs=Resources(1))
    assert sorted(token.cluster for token in node.running) == [1, small]
    world.pass_time(40)
    node.end(wire.Token(small, 0, 1))
    world.deliver()
    assert [token.cluster for token in node.running] == [1], "now the small one waits"
    node.end()
    world.deliver()
    assert sorted(token.cluster for token in node.running) == [1, small]


def test_higher_priority_goes_first() -> None:
    world = World()
    world.submit(1)
    urgent = world.submit(1, priority=5)
    node = Node(world, "n1")
    assert node.running[0].cluster == urgent


def test_contact_lost_is_not_death() -> None:
    world = World(Limits(lease_s=150))
    node = Node(world, "n1")
    cluster = world.submit()
    node.cut = True
    world.pass_time(90)
    assert world.state(cluster) == State.RUNNING
    node.cut = False
    world.pass_time(40)
    assert world.state(cluster) == State.RUNNING
    assert len(node.launched) == 1
    node.end()
    world.deliver()
    assert len(world.disk.history) == 1


def test_the_worker_gives_up_before_the_master() -> None:
    world = World(Limits(lease_s=100))
    node = Node(world, "n1")
    cluster = world.submit()
    node.cut = True
    world.pass_time(101)
    assert not node.running, "the lease is over on the worker"
    assert world.state(cluster) == State.RUNNING, "but not yet on the master"
    world.pass_time(60)
    assert world.state(cluster) == State.IDLE
    other = Node(world, "n2")
    assert other.running == [wire.Token(cluster, 0, 2)]


def test_master_restart_takes_running_tasks_back() -> None:
    world = World()
    node = Node(world, "n1", slots=3)
    cluster = world.submit(4)
    before = list(node.running)
    world.restart_master()
    world.pass_time(20)
    assert node.launched == before, "nothing was started again"
    assert world.master.queue.clusters[cluster].counts[State.RUNNING] == 3
    for token in before:
        node.end(token)
    world.deliver()
    assert len(node.running) == 1


def test_results_wait_for_the_master() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    node.cut = True
    node.end()
    world.restart_master()
    world.pass_time(5)
    assert world.state(cluster) == State.RUNNING
    node.cut = False
    world.pass_time(30)
    assert world.state(cluster) == State.DONE
    assert len(world.disk.history) == 1
    assert len(node.launched) == 1


def test_a_worker_started_again_frees_what_its_predecessor_had() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    name = node.core.name
    del world.workers["n1"]
    again = Node(world, "n1b", predecessors=[name])
    assert again.running == [wire.Token(cluster, 0, 2)]
    assert world.master.queue.clusters[cluster].facts_of(0).losses == 1


def test_goodbye_requeues_at_once() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    node.do(w.Terminate())
    world.deliver()
    assert node.left == "stopped"
    assert world.state(cluster) == State.IDLE


def test_lost_too_often_is_held() -> None:
    world = World(Limits(max_losses=3))
    cluster = world.submit(log=True)
    for index in range(3):
        node = Node(world, f"n{index}")
        assert node.running
        world.do(t.WorkerVerb(900 + index, node.core.name, "forget"))
        del world.workers[node.name]
    assert world.state(cluster) == State.HELD
    assert world.master.queue.clusters[cluster].facts_of(0).hold_code == HoldCode.LOST
    assert world.disk.events(cluster, 0)[-2:] == [EVICTED, HELD]


def test_cancel_of_a_running_task() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(2, log=True)
    assert world.act("cancel", (cluster, 0)) == [(cluster, 0, "ok")]
    assert world.disk.history[0][2] == State.CANCELLED
    assert ABORTED in world.disk.events(cluster, 0)
    assert node.running == [wire.Token(cluster, 1, 1)], "its slot is free again"


def test_cancel_and_completion_race_first_commit_wins() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(log=True)
    node.end()
    world.act("cancel", (cluster, 0))
    world.write_notes()
    assert len(world.disk.history) == 1
    assert world.disk.history[0][2] == State.CANCELLED
    assert not node.core.results


def test_hold_and_release_restarts() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(log=True)
    assert world.act("hold", (cluster, 0)) == [(cluster, 0, "ok")]
    assert world.act("hold", (cluster, 0)) == [(cluster, 0, "already")]
    assert not node.running
    assert world.act("release", (cluster, 0)) == [(cluster, 0, "ok")]
    assert world.act("release", (cluster, 0)) == [(cluster, 0, "bad_state")]
    assert node.running == [wire.Token(cluster, 0, 2)]
    assert world.disk.events(cluster, 0) == [SUBMITTED, EXECUTING, EVICTED, HELD, RELEASED, EXECUTING]


def test_cancel_a_large_cluster_in_pieces() -> None:
    world = World()
    cluster = world.submit(12_000)
    results = world.act("cancel", (cluster, -1))
    assert len(results) == 12_000
    assert not world.master.queue.clusters


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.TIMEOUT, HoldCode.DURATION),
        (Outcome.MEMORY, HoldCode.RESOURCES),
        (Outcome.STAGE_IN, HoldCode.CANNOT_START),
        (Outcome.STAGE_OUT, HoldCode.OUTPUT_FILE),
    ],
)
def test_what_only_a_person_can_mend_is_held(outcome: Outcome, code: HoldCode) -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    node.end(outcome=outcome, code=2)
    world.deliver()
    assert world.state(cluster) == State.HELD
    assert world.master.queue.clusters[cluster].facts_of(0).hold_code == code


def test_outputs_of_a_task_without_a_log_are_handed_over_before_the_commit() -> None:
    world = World()
    node = Node(world, "n1")
    silent, logged = world.submit(), world.submit(log=True)
    assert not world.may_wait, "somebody waits for his cluster's id"
    out = [OutputFile(STDOUT, 2, 0o644, b"hi")]
    node.end(outputs=out)
    world.deliver()
    assert [(note.cluster, note.event, note.outputs) for note in world.handed] == [(silent, -1, out)]
    node.end(outputs=out)
    world.deliver()
    assert len(world.handed) == 1, f"the event of {logged} must be on disk before it is in a log"
    assert not world.may_wait
    world.write_notes()
    assert world.state(silent) == world.state(logged) == State.DONE


def test_a_turn_may_wait_when_it_only_acknowledges() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    node.end(outputs=[OutputFile(STDOUT, 2, 0o644, b"hi")])
    world.deliver()
    assert world.may_wait and world.state(cluster) == State.STAGING_OUT
    world.do(t.Wait(7, cluster))
    world.write_notes()
    assert 7 in world.answers and not world.may_wait, "somebody waits for this end"


def test_outputs_are_collected_before_the_end_is_recorded() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit()
    token = node.running[0]
    node.end(outputs=[OutputFile("big", 1 << 30, 0o644)])
    world.deliver()
    assert world.state(cluster) == State.RUNNING
    assert token in node.core.results, "not acknowledged yet"
    world.do(t.Collected(token))
    world.deliver()
    assert world.state(cluster) == State.STAGING_OUT
    assert token not in node.core.results
    world.write_notes()
    assert world.state(cluster) == State.DONE


def test_output_that_cannot_be_written_holds_the_task_until_released() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(log=True)
    node.end()
    world.deliver()
    final = max(world.disk.outbox)
    world.do(t.Undelivered(final, 13, "cannot write /x: Permission denied"))
    assert world.state(cluster) == State.HELD
    world.act("release", (cluster, 0))
    assert world.state(cluster) == State.STAGING_OUT
    assert not node.running, "it is not run again, only written again"
    world.write_notes()
    assert world.state(cluster) == State.DONE


def test_the_same_key_is_the_same_cluster() -> None:
    world = World()
    first = world.submit(key="k")
    assert world.submit(key="k") == first
    assert world.submit(key="k2") != first


def test_a_draining_master_refuses_and_finishes() -> None:
    world = World()
    node = Node(world, "n1")
    world.submit()
    world.do(t.SetDrain(True))
    assert "draining" in world.submit()
    assert not world.stopped
    node.end()
    world.deliver()
    assert world.stopped == "drained"


def test_an_unknown_session_is_asked_and_not_believed() -> None:
    world = World()
    message = wire.Result([wire.Token(99, 0, 1)], [])
    turn = world.master.handle(t.FromPeer(t.Route(b"x", b""), "worker", "site", message), world.now)
    assert [type(action.message) for action in turn.actions] == [wire.AskInventory]
    assert not turn.records


def test_a_worker_key_cannot_speak_for_a_foreman() -> None:
    world = World()
    hello = wire.ForemanHello(wire.PROTOCOL, "f", 1, "v")
    world.do(t.FromPeer(t.Route(b"x", b""), "worker", "site", hello))
    assert not world.master.peers.foremen
    beat = wire.Goodbye("")
    world.do(t.FromPeer(t.Route(b"x", b"somebody"), "worker", "site", beat))
    assert not world.master.peers.workers


def test_drain_of_a_worker() -> None:
    world = World()
    node = Node(world, "n1", slots=2)
    cluster = world.submit(5)
    node.do(w.Drain("the drain file is there"))
    world.deliver()
    assert not node.left
    for _ in range(2):
        node.end()
        world.deliver()
    assert node.left == "the drain file is there"
    assert world.master.queue.clusters[cluster].counts[State.IDLE] == 3
    assert not world.master.peers.workers


def test_single_task_slots_close() -> None:
    world = World()
    node = Node(world, "n1", slots=2, single_task=True)
    world.submit(5)
    node.end()
    world.deliver()
    assert len(node.launched) == 2
    node.end()
    world.deliver()
    assert node.left
    assert len(node.launched) == 2


def test_idle_slots_close_one_by_one() -> None:
    world = World()
    node = Node(world, "n1", slots=2, idle_timeout_s=100.0)
    world.submit()
    world.pass_time(102)
    assert node.core.capacity.cpus == 1
    node.end()
    world.pass_time(102)
    assert node.left == "no slot is open any more"


def test_policies_fire_and_undefined_does_not() -> None:
    world = World()
    undefined = world.submit(policies={"periodic_remove": "nonsense"})
    removed = world.submit(policies={"periodic_remove": "true"})
    held = world.submit(policies={"on_exit_hold": "true"})
    world.pass_time(61)
    assert world.state(undefined) == State.IDLE
    assert world.state(removed) == State.CANCELLED
    node = Node(world, "n1", slots=3)
    for token in list(node.running):
        if token.cluster == held:
            node.end(token, Outcome.EXIT, 3)
    world.deliver()
    assert world.state(held) == State.HELD


def test_leave_in_queue_keeps_a_done_task() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(policies={"leave_in_queue": "true"})
    node.end()
    world.deliver()
    assert world.state(cluster) == State.DONE
    assert not world.disk.history
    assert world.act("cancel", (cluster, 0)) == [(cluster, 0, "ok")]
