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
from pilotq.model import Description, Ended, Outcome, OutputFile, Resources, State
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


def test_a_way_that_breaks_all_the_time_does_not_put_off_the_next_one() -> None:
    """Whose key is refused is told so with every knock of its socket."""
    world = World()
    node = Node(world, "node")
    node.cut = True
    link = node.core.session.link
    for _ in range(60):
        world.now = Now(world.now.boot + 0.2, world.now.wall + 0.2)
        node.do(w.LinkLost(node.core.session.link))
        world.tick()
    assert node.core.session.link > link + 2


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


def test_requests_for_files_do_not_pile_up_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotq.roles.files.WAITING_MAX", 5)
    answers: list[Any] = []
    relay = CachingRelay(tmp_path, lambda message: None, lambda session, message: answers.append(message))
    for number in range(7):
        relay.on_get(b"s", wire.Get(f"{number:064x}", 0))
    assert [answer.size for answer in answers] == [wire.NOT_NOW] * 2
    relay.on_chunk(wire.Chunk(f"{0:064x}", 0, wire.NOT_KEPT, b""))
    relay.on_get(b"s", wire.Get(f"{8:064x}", 0))
    assert [answer.size for answer in answers] == [wire.NOT_NOW] * 2 + [wire.NOT_KEPT]


def test_offsets_beyond_any_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    (tmp_path / "x").write_text("hi")
    digest, _ = store.keep(tmp_path / "x")
    assert store.read(digest, 2**63, 10) == (-1, b"")


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    keys.authorize(tmp_path, "worker", "site", "k" * 40)
    (tmp_path / "keys/authorized/worker/x.pub").write_bytes(b"\xff\xfe")
    (tmp_path / "keys/authorized/worker/y.pub").write_text("l" * 40 + " some day\n")
    (tmp_path / "keys/authorized/worker/z.pub").write_text("short\n")
    assert keys.authorized(tmp_path) == {"k" * 40: keys.Key("worker", "site")}


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


@pytest.mark.parametrize("timers_first", [True, False])
def test_what_lay_unread_until_the_lease_was_over_is_not_started(timers_first: bool) -> None:
    """Whoever stood still for so long must think that somebody else has it now."""
    world = World(Limits(lease_s=100))
    node = Node(world, "n1")
    body = msgspec.msgpack.encode(Description(["/bin/true"]))
    link = node.core.session.link
    world.now = Now(world.now.boot + 200, world.now.wall + 200)
    if timers_first:
        node.do(w.Tick())
    node.do(w.FromMaster(link, wire.Describe(7, body)), w.FromMaster(link, wire.Assign(7, [0], [1])))
    assert not node.launched
    assert not node.core.attempts
    world.pass_time(20)
    cluster = world.submit()
    assert [token.cluster for token in node.launched] == [cluster], "it has a lease again"


def test_a_lease_that_was_over_and_begins_again_ends_again() -> None:
    world = World(Limits(lease_s=100))
    node = Node(world, "n1")
    world.now = Now(world.now.boot + 105, world.now.wall + 105)
    node.do(w.Tick())
    world.deliver()
    world.submit()
    assert node.running
    node.cut = True
    world.pass_time(120)
    assert not node.running, "no contact for a whole lease"


# ---- found by fuzzing


def test_a_worker_that_refuses_what_runs_keeps_it_until_its_inventory_says_otherwise() -> None:
    world = World()
    Node(world, "node")
    cluster = world.submit(1)
    token = wire.Token(cluster, 0, 1)
    assert world.state(cluster) == State.RUNNING
    world.do(t.FromPeer(Route(b"node/1", b""), "worker", "site", wire.Refuse([token], "full")))
    assert world.state(cluster) == State.RUNNING
    assert world.master.peers.workers["node"].tasks == [(cluster, 0)], "lost by nobody"


def test_a_worker_does_not_take_what_another_runs() -> None:
    world = World()
    Node(world, "node")
    cluster = world.submit(1)
    token, offer = wire.Token(cluster, 0, 1), wire.Offer(Resources(1))
    hello = wire.Hello(wire.PROTOCOL, "other", 1, "h", 1, "v", offer, [token], [token], [])
    world.do(t.FromPeer(Route(b"other", b""), "worker", "site", hello))
    assert world.master.peers.workers["node"].tasks == [(cluster, 0)]
    assert list(world.master.peers.workers["other"].ending) == [token], "it was told to end its copy"
    world.master.check()


def test_a_late_result_is_collected_from_a_worker_that_runs_the_task_again() -> None:
    world = World()
    node = Node(world, "node")
    cluster = world.submit(1)
    first = wire.Token(cluster, 0, 1)
    route = Route(node.peer, b"")
    world.do(t.FromPeer(route, "worker", "site", wire.Result([first], [Ended(Outcome.EVICTED)])))
    late = Ended(Outcome.OK, outputs=[OutputFile("big", 1 << 20, 0o644)])
    for _ in range(2):
        world.do(t.FromPeer(route, "worker", "site", wire.Result([first], [late])))
        world.pass_time(15)
    world.do(t.Collected(first, "", False))
    world.deliver()
    assert world.state(cluster) == State.STAGING_OUT, "its end is written now"
    world.master.check()


def test_descriptions_and_assignments_that_cannot_be_read() -> None:
    world = World()
    node = Node(world, "node")
    for body in (b"", b"\x81\xa4argv\x01", b"\x81\xa4argv\x91\xa2\xff\xfe", b"\x81\xff"):
        node.do(w.FromMaster(node.core.session.link, wire.Describe(99, body)))
        node.do(w.FromMaster(node.core.session.link, wire.Assign(99, [0], [1])))
    node.do(w.FromMaster(node.core.session.link, wire.Assign(99, [0, 1], [1])))
    node.do(w.FromMaster(node.core.session.link, wire.Assign(99, [0, 1], [1, 1], [b""])))
    assert not node.core.attempts


def test_text_that_is_not_utf8_is_no_message() -> None:
    for payload in (b"\x92\xa7Goodbye\xa2\xff\xfe", b"\x92\xa2\xff\xfe\x01"):
        with pytest.raises(PeerError):
            wire.unpack(payload)
    core, now = foreman()
    core.handle(f.FromBelow(b"s", [b"\x94\xa3Get\xa2\xff\xfe\x00\x01"]), now)
    core.handle(f.FromAbove([b"", b"\x92\xa7Goodbye\xa2\xff\xfe", b"s", b"\x94\xa6Assign\xa1\xff\x90\x90"]), now)
