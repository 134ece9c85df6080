"""The protocol of a store, the same on disk and in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from store_data import cluster, left, note, pack, rows, tasks

from pilotq.core.records import ClusterLeft, DrainWanted, Note, NotesAdded, NotesDone
from pilotq.model import ClusterBody, Outcome, State
from pilotq.roles.restart import restore
from pilotq.store import Final, Store
from pilotq.store.memory import MemoryStore
from pilotq.store.sqlite import SqliteStore

Restart = Callable[[], Store]


@pytest.fixture(params=["sqlite", "memory"])
def restart(request: pytest.FixtureRequest, tmp_path: Path) -> Restart:
    """Each call ends the running store, if there is one, and starts it again on the same data."""
    store: Store = SqliteStore(1 << 20) if request.param == "sqlite" else MemoryStore()
    request.addfinalizer(store.close)

    def again() -> Store:
        store.close()
        store.open(tmp_path / "state" / "queue.db")
        return store

    return again


def test_an_empty_store_has_an_identity_and_counts_its_starts(restart: Restart) -> None:
    first, second = restart().load(), restart().load()
    assert first.uuid == second.uuid and first.uuid
    assert (first.epoch, second.epoch) == (1, 2)
    assert (first.next_cluster, first.clusters, first.finals, first.damage) == (1, [], [], [])
    assert second.next_note > first.next_note


def test_a_restart_finds_what_was_committed(restart: Restart) -> None:
    body = pack(ClusterBody(owner="alice", iwd="/data/ü b", log="/data/log"))
    store = restart()
    store.commit([cluster(1, 10, priority=5, body=body, key="k/0"), cluster(2, 3, state=State.HELD, deltas=[b"d"] * 3)])
    store.commit([rows(1, [3, 1, 4], State.ASSIGNED, host="n1"), rows(2, [0], State.HELD)])
    store.commit([rows(1, [1], State.RUNNING, attempt=2, starts=1)])
    store.commit([left(1, [3]), left(1, [5], State.CANCELLED), left(1, [6], outcome=Outcome.EXIT)])

    loaded = restart().load()

    assert loaded.next_cluster == 3
    one, two = loaded.clusters
    assert (one.cluster, one.owner, one.key, one.count, one.priority) == (1, "alice", "k/0", 10, 5)
    assert (one.submitted_at, one.state, one.body, one.has_deltas) == (1700000000.25, State.IDLE, body, False)
    assert (two.state, two.has_deltas) == (State.HELD, True)
    assert tasks(loaded) == {
        (1, 1): (State.RUNNING, 2),
        (1, 4): (State.ASSIGNED, 1),
        (1, 3): (State.DONE, -1),
        (1, 5): (State.CANCELLED, -1),
        (1, 6): (State.DONE, -1),
        (2, 0): (State.HELD, 1),
    }
    assert one.failed == 1
    facts = dict(zip(one.procs, one.facts, strict=True))
    assert facts[1].starts == 1
    assert loaded.damage == [] and not one.damaged


@pytest.mark.parametrize("size", [1, 9, 10, 11, 99, 100, 101, 111, 1234])
def test_every_number_of_rows_is_written_whole(restart: Restart, size: int) -> None:
    procs = list(range(size))
    store = restart()
    store.commit([cluster(1, size + 1), rows(1, procs, State.ASSIGNED)])
    store.commit([rows(1, procs, State.RUNNING)])
    assert tasks(store.load()) == {(1, proc): (State.RUNNING, 1) for proc in procs}
    store.commit([left(1, procs)])
    assert tasks(store.load()) == {(1, proc): (State.DONE, -1) for proc in procs}


def test_a_cluster_that_left_is_not_loaded_but_can_be_asked_for(restart: Restart) -> None:
    store = restart()
    store.commit([cluster(1, 1, description=b"words", digests=["aa", "bb"]), cluster(2, 1, digests=["bb"])])
    assert store.digests_in_use() == {"aa", "bb"}
    store.commit([left(1, [0]), ClusterLeft(1)])
    store = restart()
    assert [live.cluster for live in store.load().clusters] == [2]
    assert store.load().next_cluster == 3
    assert store.digests_in_use() == {"bb"}
    assert store.description(1) == b"words"
    assert msgspec.msgpack.decode(store.body(1), type=ClusterBody).owner == "alice"
    for ask in (store.description, store.body):
        with pytest.raises(KeyError):
            ask(3)


def test_deltas_come_in_the_order_asked_for(restart: Restart) -> None:
    store = restart()
    store.commit([cluster(1, 2500, deltas=[b"%d" % proc for proc in range(2500)]), cluster(2, 5)])
    assert store.deltas(1, [0, 2499, 999, 1000, 1]) == [b"0", b"2499", b"999", b"1000", b"1"]
    assert store.deltas(2, [0, 1]) == []
    assert store.deltas(7, [0]) == []


def test_a_submission_is_known_by_its_key_after_a_restart(restart: Restart) -> None:
    """Also when all of it is over: its client may not have had its answer."""
    store = restart()
    store.commit([cluster(1, 1, key="a"), cluster(2, 1, key="b/0"), cluster(3, 1, key="b/1"), cluster(4, 1, key="")])
    store.commit([cluster(5, 1, key="b0"), cluster(6, 1, key="a", owner="bob")])
    store.commit([left(1, [0]), ClusterLeft(1), left(2, [0]), ClusterLeft(2), left(4, [0]), ClusterLeft(4)])
    store = restart()
    assert dict(restore(store.load(), store, 1.0).keys) == {
        ("alice", "a"): [1],
        ("alice", "b"): [2, 3],
        ("alice", "b0"): [5],
        ("bob", "a"): [6],
    }


def test_any_key_can_be_looked_up(restart: Restart) -> None:
    store = restart()
    ours = [cluster(1, key="b/0"), cluster(2, key="b/1"), cluster(3, key="b0/0"), cluster(4, key="a/0")]
    store.commit([*ours, cluster(5, key="b/0", owner="bob"), cluster(6), cluster(7, key="b/c/0")])
    store.commit([left(1, [0]), ClusterLeft(1)])
    store = restart()
    assert store.find_key("alice", "b") == [1, 2]
    assert store.find_key("bob", "b") == [5]
    assert store.find_key("alice", "b/c") == [7]
    assert restore(store.load(), store, 1.0).keys["alice", "b/c"] == [7]
    assert store.find_key("alice", "c") == store.find_key("carol", "b") == []


def test_drains_are_remembered_until_their_worker_is_gone(restart: Restart) -> None:
    store = restart()
    store.commit([DrainWanted("n1#1 é", True), DrainWanted("n2#2", True)])
    store.commit([DrainWanted("n2#2", False), DrainWanted("n1#1 é", True), DrainWanted("n3#3", False)])
    assert restart().load().drains == ["n1#1 é"]


def test_notes_wait_until_they_are_done(restart: Restart) -> None:
    store = restart()
    store.commit([cluster(1, 5), note(1, 1), note(2, 1, 2, final=True), note(3, 1, 3, final=True)])
    assert store.load().finals == [Final(2, 1, 2, 1, 1), Final(3, 1, 3, 1, 1)]
    assert store.backlog == 3, "the events of a log count as well"
    store.commit([NotesDone([2, 77])])
    assert store.backlog == 2
    store = restart()
    assert store.load().finals == [Final(3, 1, 3, 1, 1)]
    assert store.backlog == 2


def test_notes_that_came_together_are_done_one_by_one(restart: Restart) -> None:
    store = restart()
    notes = [Note(n, -1, 1, n, 1, 1.0, attempt=1, final=True) for n in range(1, 6)]
    store.commit([cluster(1, 9), NotesAdded(notes)])
    store.commit([NotesDone([2, 5])])
    for done, left_over in (([], [1, 3, 4]), ([3, 1, 2], [4]), ([4], [])):
        store = restart()
        store.commit([NotesDone(done)])
        assert [final.n for final in store.load().finals] == left_over
