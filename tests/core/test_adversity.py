"""Races and lies that once cost a task, a second copy of it, or a daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotq import keys, wire
from pilotq.core import foreman as f
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.master import Limits
from pilotq.core.turn import Now, Route
from pilotq.errors import PeerError
from pilotq.model import Ended, Outcome, OutputFile, Resources, State
from pilotq.mover import BlobStore
from pilotq.roles.collecting import Collector
from pilotq.roles.files import CachingRelay
from tests.core.world import Node, World


def final_note(world: World) -> int:
    return next(n for n, note in world.disk.outbox.items() if note.final)


@pytest.mark.parametrize(
    "message",
    [
        wire.Started([wire.Token(1, 0, 0)]),
        wire.Refuse([wire.Token(1, -1, 1)], "x"),
        wire.Result([wire.Token(0, 0, 1)], [Ended(Outcome.OK)]),
        wire.Result([wire.Token(1, 0, 1)], [Ended(Outcome.OK, outputs=[OutputFile("a", 2**63, 0o600)])]),
    ],
)
def test_numbers_that_cannot_be_are_no_message(message: wire.Message) -> None:
    with pytest.raises(PeerError, match="not a message"):
        wire.unpack(wire.pack(message))


@pytest.mark.parametrize("proc", [1, 10**6])
def test_tokens_of_others_change_nothing(proc: int) -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(2)
    token = wire.Token(cluster, proc, 7)
    for message in (
        wire.Started([token]),
        wire.Refuse([token], "x"),
        wire.Killed([token]),
        wire.Result([token], [Ended(Outcome.OK)]),
    ):
        world.do(t.FromPeer(t.Route(node.peer, b""), "worker", "site", message))
    assert world.state(cluster, 0) == State.RUNNING
    assert world.state(cluster, 1) == State.IDLE


@pytest.mark.parametrize("hellos", [2, 3, 7])
def test_hellos_on_their_way_start_a_task_once(hellos: int) -> None:
    world = World()
    node = Node(world, "n1", slots=2)
    world.restart_master()
    for _ in range(hellos):
        node.do(w.FromMaster(node.core.session.link, wire.AskInventory()))
    world.submit()
    world.pass_time(20)
    assert len(node.launched) == 1
    assert world.master.peers.workers[node.core.name].ask <= 2, "one question, not one for each hello"


def test_a_worker_that_left_does_not_come_back_by_an_old_hello() -> None:
    """A foreman that stood still may deliver one."""
    world = World()
    node, other = Node(world, "n1"), Node(world, "n2")
    node.do(w.LinkLost(node.core.session.link))
    world.now = Now(world.now.boot + 1, world.now.wall + 1)
    node.do(w.Tick())
    hello = next(message for _, message in node.outbox if isinstance(message, wire.Hello))
    world.pass_time(1)
    node.do(w.Drain("drained"))
    world.deliver()
    world.do(t.FromPeer(Route(b"frozen", b"session"), "foreman", "site", hello))
    assert list(world.master.peers.workers) == ["n2"]
    cluster = world.submit(2)
    world.pass_time(1)
    other.end()
    world.deliver()
    assert other.running == [wire.Token(cluster, 1, 1)]


def test_a_question_that_was_lost_is_asked_again() -> None:
    world = World()
    node = Node(world, "n1")
    worker = world.master.peers.workers[node.core.name]
    worker.asked, worker.ask, worker.asked_at = True, 1, world.now.boot
    cluster = world.submit()
    assert not node.running, "it gets nothing before it has answered"
    world.pass_time(20)
    assert [token.cluster for token in node.running] == [cluster]


def test_hold_and_release_wait_for_the_first_copy_to_end() -> None:
    world = World(Limits(lease_s=100))
    node = Node(world, "n1")
    cluster = world.submit()
    node.cut = True
    world.act("hold", (cluster, 0))
    other = Node(world, "n2")
    world.act("release", (cluster, 0))
    assert node.running
    assert not other.running
    world.restart_master()
    assert not other.running
    world.pass_time(200)
    assert not node.running, "its lease is over"
    assert other.running


def test_release_after_a_restart_does_not_run_a_finished_task_again() -> None:
    world = World()
    node = Node(world, "n1")
    cluster = world.submit(log=True)
    node.end()
    world.deliver()
    world.do(t.Undelivered(final_note(world), 13, "no permission"))
    assert world.state(cluster) == State.HELD
    world.restart_master()
    world.act("release", (cluster, 0))
    world.pass_time(10)
    assert len(node.launched) == 1
    world.write_notes()
    assert len(world.disk.history) == 1


def test_periodic_release_tries_the_outputs_again() -> None:
    world = World(Limits(policy_interval_s=5.0))
    node = Node(world, "n1")
    cluster = world.submit(log=True, policies={"periodic_release": "true"})
    node.end()
    world.deliver()
    note = final_note(world)
    world.do(t.Undelivered(note, 13, "no permission"))
    world.pass_time(6)
    assert world.state(cluster) == State.STAGING_OUT
    assert world.retried == [note]


def test_a_start_between_hello_and_welcome_is_told() -> None:
    world = World()
    node = Node(world, "n1")
    node.holds_launches = True
    cluster = world.submit()
    node.do(w.LinkLost(node.core.session.link))
    world.now = Now(world.now.boot + 1, world.now.wall + 1)
    node.do(w.Tick())
    assert any(isinstance(message, wire.Hello) for _, message in node.outbox)
    node.do(w.FromKeepers(started=[node.launched[0]]))
    world.now = Now(world.now.boot + 0.05, world.now.wall + 0.05)
    node.do(w.Tick())
    world.pass_time(2)
    assert world.state(cluster) == State.RUNNING


def test_many_attempts() -> None:
    world = World()
    cluster = world.submit(policies={"on_exit_remove": "false"})
    world.master.queue.clusters[cluster].attempts[0] = 65_534
    node = Node(world, "n1")
    for _ in range(3):
        node.end(outcome=Outcome.EXIT, code=1)
        world.deliver()
    assert node.running == [wire.Token(cluster, 0, 65_538)]


def test_a_note_of_a_cluster_that_cannot_be_served() -> None:
    world = World()
    world.master.queue.finals[5] = wire.Token(77, 0, 1)
    world.do(t.Undelivered(5, 13, "no permission"))
    assert not world.master.queue.stuck


def test_nothing_is_kept_of_connections_that_are_gone() -> None:
    world = World()
    node = Node(world, "n1")
    for _ in range(10):
        world.submit()
        node.end()
        world.deliver()
        node.do(w.LinkLost(node.core.session.link))
        world.pass_time(20)
    assert len(world.master.peers.told) <= 1


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


def test_a_result_that_was_not_told_yet_when_its_end_is_asked_for_is_never_told() -> None:
    """Its outputs are gone: told after all, the task would be held for want of them."""
    world = World()
    node = Node(world, "n1")
    world.submit()
    token = node.running.pop()
    ended = w.FromKeepers(ended=[(token, Ended(Outcome.OK, outputs=big()))])
    node.do(ended, w.FromMaster(node.core.session.link, wire.Kill([token])))
    said = [message for _, message in node.outbox]
    assert any(isinstance(message, wire.Killed) for message in said)
    assert not any(isinstance(message, wire.Result) for message in said)


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


def test_a_worker_that_refuses_what_it_started_loses_it() -> None:
    world = World()
    node, other = Node(world, "n1"), Node(world, "n2")
    cluster = world.submit()
    world.do(t.FromPeer(Route(node.peer, b""), "worker", "site", wire.Refuse([node.running[0]], "no space")))
    world.deliver()
    assert other.running == [wire.Token(cluster, 0, 2)]
    world.master.check()


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


# ---- foreman, files


def foreman() -> tuple[f.ForemanCore, Now]:
    now = Now(1.0, 1.0)
    return f.ForemanCore("f", 1, "test", now), now


def test_a_foreman_survives_rubbish() -> None:
    core, now = foreman()
    turn = core.handle(f.FromBelow(b"s", [b"", b"\x91\xa3Get\xff", b"\xff"]), now)
    assert b"s" in core.sessions
    assert turn.actions[-1] == f.Up([b"s", b"", b"s", b"\xff"]), "what is no request for a file is passed on unopened"


def test_a_description_told_again_is_passed_on_again() -> None:
    core, now = foreman()
    core.handle(f.FromBelow(b"s", [wire.pack(wire.Beat(1, wire.Offer(Resources(1)), 0, 0))]), now)
    describe, assign = wire.pack(wire.Describe(1, b"x")), wire.pack(wire.Assign(1, [0], [1]))
    for _ in range(2):
        turn = core.handle(f.FromAbove([b"", describe, b"s", assign]), now)
        assert turn.actions == [f.Down(b"s", [b"", describe, b"", assign])]


def test_a_batch_of_the_master_becomes_one_message_a_worker() -> None:
    core, now = foreman()
    for session in (b"a", b"b"):
        core.handle(f.FromBelow(session, [wire.pack(wire.Killed([]))]), now)
    turn = core.handle(f.FromAbove([b"a", b"1", b"b", b"2", b"gone", b"3", b"a", b"4"]), now)
    gone = f.Up([b"", wire.pack(wire.Gone([b"gone"]))])
    assert turn.actions == [f.Down(b"a", [b"", b"1", b"", b"4"]), f.Down(b"b", [b"", b"2"]), gone]


def test_heartbeats_travel_together_and_never_overtake() -> None:
    core, now = foreman()
    core.handle(f.Tick(), now)
    beat, started = wire.pack(wire.Beat(1, wire.Offer(Resources(1)), 0, 0)), wire.pack(wire.Started([]))
    assert core.handle(f.FromBelow(b"a", [beat]), now).actions == []
    due = core.next_wakeup()
    assert due == now.boot + f.BEATS_WAIT_S
    later = Now(now.boot + f.BEATS_WAIT_S / 2, now.wall)
    assert core.handle(f.FromBelow(b"b", [beat]), later).actions == []
    assert core.next_wakeup() == due, "the first one decides"
    turn = core.handle(f.Tick(), Now(due, now.wall))
    assert turn.actions == [f.Up([b"a", beat, b"b", beat])]
    core.handle(f.FromBelow(b"a", [beat]), now)
    turn = core.handle(f.FromBelow(b"b", [started]), now)
    assert turn.actions == [f.Up([b"a", beat, b"b", started])], "anything else takes them along at once"


def test_files_are_asked_for_by_digest_only(tmp_path: Path) -> None:
    answers: list[Any] = []
    relay = CachingRelay(tmp_path, lambda message: None, lambda session, message: answers.append(message))
    relay.on_get(b"s", wire.Get("../../etc/passwd", 0))
    assert [answer.size for answer in answers] == [-1]


def test_offsets_beyond_any_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    (tmp_path / "x").write_text("hi")
    digest, _ = store.keep(tmp_path / "x")
    assert store.read(digest, 2**63, 10) == (-1, b"")


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    keys.authorize(tmp_path, "worker", "site", "abc")
    (tmp_path / "keys/authorized/worker/x.pub").write_bytes(b"\xff\xfe")
    assert keys.authorized(tmp_path) == {"abc": ("worker", "site")}


async def test_a_result_told_again_while_its_outputs_are_synced(tmp_path: Path) -> None:
    done: list[Any] = []
    ready = asyncio.Event()

    def on_done(*what: Any) -> None:
        done.append(what)
        ready.set()

    collector = Collector(tmp_path, lambda route, message: None, on_done)
    token, route = wire.Token(1, 0, 1), t.Route(b"p", b"")
    outputs = [OutputFile("big", 5, 0o600)]
    collector.begin(route, token, outputs)
    collector.on_data(route, wire.Data(token, "big", 0, b"hello"))
    collector.begin(route, token, outputs)
    await asyncio.wait_for(ready.wait(), 5)
    assert done == [(token, "", False)]
    assert (tmp_path / "1.0.1/0").read_bytes() == b"hello"
