"""Who somebody is comes from the key alone: nothing said in a message changes it."""

from __future__ import annotations

from typing import Any

import pytest

from pilotq import wire
from pilotq.core import foreman as f
from pilotq.core import turn as t
from pilotq.core.health import NODES_MAX
from pilotq.core.turn import Now, Route
from pilotq.model import Ended, Outcome, Resources, State, Usage
from tests.core.world import Node, World

OFFER = wire.Offer(Resources(4, 1 << 30, 1 << 30))


def hello(name: str, *live: wire.Token, **more: Any) -> wire.Hello:
    fields: dict[str, Any] = {"host": "h", "pid": 1, "version": "v", "started": [], "unacked": [], **more}
    return wire.Hello(wire.PROTOCOL, name, 1, offer=OFFER, live=list(live), **fields)


class Head(World):
    """A world with keys of two sites, in which strangers can speak."""

    def __init__(self) -> None:
        super().__init__()
        self.set_keys("site", "cern")
        self.sent: list[tuple[Route, wire.Message]] = []

    def set_keys(self, *names: str) -> None:
        self.do(t.SetKeys([(name * 8, name, 0.0) for name in names], ["relay"]))

    def _perform(self, action: Any) -> None:
        if isinstance(action, t.Send):
            self.sent.append((action.route, action.message))
        super()._perform(action)

    def say(self, key: str, message: wire.Message, role: str = "worker", session: bytes = b"") -> list[wire.Message]:
        """Something from a connection of this key; what went back to it."""
        route = Route(f"{role}/{key}".encode(), session)
        self.sent.clear()
        self.do(t.FromPeer(route, role, key, message))
        return [sent for to, sent in self.sent if to == route]


@pytest.fixture
def head() -> Head:
    found = Head()
    Node(found, "node", slots=2)
    return found


def test_two_keys_with_one_name_are_two_workers(head: Head) -> None:
    cluster = head.submit(2)
    mine = [wire.Token(cluster, proc, 1) for proc in range(2)]
    (welcome, *_) = head.say("cern", hello("node", *mine, started=mine))
    assert isinstance(welcome, wire.Welcome) and welcome.kill == mine, "they were given to another key"
    assert set(head.master.peers.workers) == {"node", "node@cern"}
    assert len(head.master.peers.workers["node"].tasks) == 2
    assert not head.master.peers.workers["node"].asked


@pytest.mark.parametrize("name", ["node@site", "@", "", "a\nb", "\x1b[31m", "x" * 201, "a\u202eb"])
def test_what_is_no_name_is_refused(head: Head, name: str) -> None:
    assert [type(one) for one in head.say("cern", hello(name))] == [wire.Reject]
    assert [type(one) for one in head.say("cern", hello("w", host=name))] == [wire.Reject]


def test_a_result_of_another_key_is_not_believed(head: Head) -> None:
    cluster = head.submit(1)
    head.say("cern", hello("thief"))
    token = wire.Token(cluster, 0, 1)
    acked = head.say("cern", wire.Result([token], [Ended(Outcome.OK)]))
    assert wire.Ack([token]) in acked, "it may forget what is of no use"
    assert head.state(cluster) in (State.ASSIGNED, State.RUNNING)
    for message in (wire.Killed([token]), wire.Refuse([token], "full"), wire.Started([token]), wire.Goodbye("x")):
        head.say("cern", message)
    assert head.state(cluster) in (State.ASSIGNED, State.RUNNING)
    assert head.master.peers.workers["node"].tasks == [(cluster, 0)]


def test_who_makes_up_a_host_spoils_none_of_another_key(head: Head) -> None:
    """What fails on a node suspends it: nobody else's."""
    head.say("cern", hello("liar", host="node"))
    head.submit(50)
    liar = head.master.peers.workers["liar@cern"]
    assert liar.tasks
    for _ in range(5):
        tokens = [wire.Token(cluster, proc, liar.number((cluster, proc))) for cluster, proc in liar.tasks]
        head.say("cern", wire.Result(tokens, [Ended(Outcome.EXIT, 127, usage=Usage(wall_s=0.01)) for _ in tokens]))
    health = head.master.health
    assert health.is_suspended("node@cern") and not health.is_suspended("node")
    assert health.room(head.master.peers.workers["node"], head.now.boot) is None
    for number in range(NODES_MAX + 10):
        health.on_bad(f"n{number}@cern", head.master.queue.clusters[1], 0, "lost", head.now)
    assert len(health.nodes) == NODES_MAX


def test_nobody_can_bury_the_worker_of_another_key(head: Head) -> None:
    cluster = head.submit(1)
    head.say("cern", hello("other", predecessors=["node", "node@site"]))
    assert head.master.peers.workers["node"].tasks == [(cluster, 0)]
    head.say("site", hello("heir", predecessors=["node"]))
    assert "node" not in head.master.peers.workers, "its own key may"


def test_a_restarted_master_still_knows_whose_a_task_is(head: Head) -> None:
    cluster = head.submit(1)
    head.restart_master()
    head.set_keys("site", "cern")
    token = wire.Token(cluster, 0, 1)
    (welcome, *_) = head.say("cern", hello("node", token))
    assert isinstance(welcome, wire.Welcome) and welcome.kill == [token]
    assert head.state(cluster) != State.IDLE


def test_a_foreman_speaks_for_workers_with_allowed_keys_only(head: Head) -> None:
    cluster = head.submit(1)
    head.say("relay", wire.ForemanHello(wire.PROTOCOL, "f:1", 1, "v"), role="foreman")
    for key in ("ghost", "", "site\xff"):
        assert not head.say("relay", hello("w"), role="foreman", session=wire.session_of(b"12345", key))
    session = wire.session_of(b"12345", "cern")
    token = wire.Token(cluster, 0, 1)
    answer = head.say("relay", wire.Result([token], [Ended(Outcome.OK)]), role="foreman", session=session)
    assert answer == [wire.AskInventory()], "a worker that it does not have"
    assert isinstance(head.say("relay", hello("node"), role="foreman", session=session)[0], wire.Welcome)
    assert set(head.master.peers.workers) == {"node", "node@cern"}
    assert head.master.peers.workers["node"].tasks == [(cluster, 0)]
    assert not head.say("relay", wire.Result([token], []), role="foreman"), "for itself it has no results"
    assert not head.say("relay", wire.ForemanBeat(1, 1, False), role="foreman", session=session)


def test_a_foreman_is_not_put_out_by_another_that_takes_its_name(head: Head) -> None:
    head.do(t.SetKeys([("s" * 40, "site", 0.0)], ["relay", "other"]))
    for key in ("relay", "other"):
        head.say(key, wire.ForemanHello(wire.PROTOCOL, "f:1", 1, "v"), role="foreman")
    assert sorted(foreman.key for foreman in head.master.peers.foremen.values()) == ["other", "relay"]


def test_who_is_revoked_is_not_reached_any_more_and_keeps_its_lease(head: Head) -> None:
    cluster = head.submit(1)
    head.say("relay", wire.ForemanHello(wire.PROTOCOL, "f:1", 1, "v"), role="foreman")
    head.set_keys("cern")
    head.workers["node"].cut = True  # the socket does not hear it any more
    worker = head.master.peers.workers["node"]
    assert worker.route is None and worker.tasks == [(cluster, 0)]
    head.do(t.SetKeys([], []))
    assert not head.master.peers.foremen
    head.submit(1)
    head.pass_time(head.limits.lease_s * 1.02 + 31)
    assert "node" not in head.master.peers.workers, "nothing renewed its lease"
    assert head.state(cluster) == State.IDLE


def test_keys_end_by_the_clock_of_the_foreman_when_the_master_is_away() -> None:
    now = Now(1.0, 1.0)
    core = f.ForemanCore("f", 1, "test", now)
    welcome = wire.ForemanWelcome([wire.AllowedKey("a" * 40, "a", 10.0), wire.AllowedKey("b" * 40, "b")], 1.0, "pub")
    turn = core.handle(f.FromAbove([b"", wire.pack(welcome)]), now)
    assert f.Allow([("a" * 40, "a"), ("b" * 40, "b")], "pub") in turn.actions
    sessions = [wire.session_of(b"00001", "a"), wire.session_of(b"00002", "b")]
    for session in sessions:
        core.handle(f.FromBelow(session, [b""]), now)
    core.handle(f.AboveReset(), now)
    later = Now(11.0, 1.0)
    assert (core.next_wakeup() or 0) <= later.boot
    turn = core.handle(f.Tick(), later)
    assert f.Allow([("b" * 40, "b")], "pub") in turn.actions
    assert list(core.sessions) == sessions[1:]


def test_only_durations_reach_a_foreman(head: Head) -> None:
    wall = head.now.wall
    head.do(t.SetKeys([("s" * 40, "site", wall + 50), ("t" * 40, "cern", 0.0)], ["relay"]))
    (welcome,) = head.say("relay", wire.ForemanHello(wire.PROTOCOL, "f:1", 1, "v"), role="foreman")
    assert isinstance(welcome, wire.ForemanWelcome)
    assert [(key.name, key.left_s) for key in welcome.keys] == [("site", 50.0), ("cern", -1.0)]


def test_a_session_that_changes_its_name_leaves_nothing_behind(head: Head) -> None:
    for number in range(50):
        head.say("cern", hello(f"w{number}"))
    assert set(head.master.peers.workers) == {"node", "w49@cern"}
