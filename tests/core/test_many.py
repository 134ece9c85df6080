"""The short ways for many tasks do what the long way does; trouble of a node is not a task's."""

from __future__ import annotations

import errno

import pytest

from pilotq.core import worker_turn as w
from pilotq.core.queue import ABORTED, HELD, NOTE_PROCS_MAX
from pilotq.core.records import Note
from pilotq.model import Outcome, State
from tests.core.world import Node, World


def covered(world: World, event: int) -> list[int]:
    """Procs of the notes of an event, in order."""
    notes: list[Note] = [note for note in world.disk.outbox.values() if note.event == event]
    assert all(0 < note.count <= NOTE_PROCS_MAX for note in notes)
    return [proc for note in notes for proc in range(note.proc, note.proc + note.count)]


def test_a_large_cluster_is_removed_with_what_runs_of_it() -> None:
    world, count = World(), 3 * NOTE_PROCS_MAX + 7
    node = Node(world, "n1", slots=2)
    cluster = world.submit(count, log=True)
    assert [token.proc for token in node.running] == [0, 1]
    world.act("hold", (cluster, 9000))
    results = world.act("cancel", (cluster, -1))
    assert sorted(results) == [(cluster, proc, "ok") for proc in range(count)]
    assert sorted(covered(world, ABORTED)) == list(range(count))
    assert {row[2] for row in world.disk.history} == {State.CANCELLED} and len(world.disk.history) == count
    assert {row[4].reason for row in world.disk.history} == {"via cancel"}
    assert not world.disk.rows and cluster not in world.master.queue.clusters
    assert world.master.queue.cancelled == count
    assert not node.running
    world.restart_master()
    assert not world.master.queue.clusters


def test_what_stays_in_the_queue_is_not_removed_the_short_way() -> None:
    world = World()
    cluster = world.submit(3, policies={"leave_in_queue": "true"})
    assert world.act("cancel", (cluster, -1)) == [(cluster, proc, "ok") for proc in range(3)]
    assert [world.state(cluster, proc) for proc in range(3)] == [State.CANCELLED] * 3
    assert cluster in world.master.queue.clusters
    assert world.act("cancel", (cluster, 1)) == [(cluster, 1, "already")]


def test_a_large_cluster_is_submitted_held() -> None:
    world, count = World(), NOTE_PROCS_MAX + 3
    cluster = world.submit(count, log=True, hold_reason="submitted on hold")
    assert covered(world, HELD) == list(range(count))
    assert len(world.disk.rows) == count
    assert {row[0] for row in world.disk.rows.values()} == {State.HELD}
    assert world.act("release", (cluster, 2)) == [(cluster, 2, "ok")]
    world.restart_master()
    assert world.state(cluster, 2) == State.IDLE


@pytest.mark.parametrize("outcome", [Outcome.DISK, Outcome.REJECTED])
def test_a_node_that_cannot_start_a_task_gets_no_more_for_a_while(outcome: Outcome) -> None:
    world = World()
    first = Node(world, "n1")
    cluster = world.submit()
    first.end(outcome=outcome, code=errno.ENOSPC)
    world.deliver()
    assert world.state(cluster) == State.IDLE and len(first.launched) == 1
    second = Node(world, "n2")
    assert len(second.launched) == 1, "another node takes it"
    world.submit()
    world.pass_time(5)
    assert len(first.launched) == 1
    world.pass_time(15)
    assert len(first.launched) == 2


def test_a_file_that_a_node_has_no_space_for_is_no_reason_to_hold_its_task() -> None:
    world = World()
    node = Node(world, "n1")
    node.holds_files = True
    cluster = world.submit()
    (token,) = node.core.attempts
    node.do(w.FilesReady([token], "no space", may_pass=True))
    world.deliver()
    assert world.state(cluster) == State.IDLE and not node.core.attempts and node.discarded == [token]
    assert "worker refuses tasks" in world.said
    world.pass_time(15)
    (again,) = node.core.attempts
    assert again.attempt == token.attempt + 1
    node.do(w.FilesReady([again], "it is not kept any more"))
    world.deliver()
    assert world.state(cluster) == State.HELD
