"""The store on disk: kills, damage, full disks, second masters."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_data import cluster, damage, left, mixed, note, rows, started, tasks

from pilotq.core.records import ClusterLeft, NotesDone, Record
from pilotq.errors import UserError
from pilotq.model import State
from pilotq.store import StoreBroken, StoreDamaged, StoreFull
from pilotq.store.loading import load
from pilotq.store.place import filesystem, require_local
from pilotq.store.sqlite import SqliteStore

#: Each commit with what must be found after it.
SCENARIO: list[list[Record]] = [
    [cluster(1, 200, key="k", deltas=[b"x" * 40] * 200, digests=["aa"])],
    [rows(1, list(range(150)), State.ASSIGNED), note(1, 1)],
    [rows(1, list(range(150)), State.RUNNING)],
    [left(1, list(range(100))), *(note(n, 1, n) for n in range(2, 102))],
    [NotesDone(list(range(1, 50))), cluster(2, 1, digests=["bb"])],
    [rows(2, [0], State.ASSIGNED), rows(1, list(range(100, 150)), State.IDLE)],
    [left(2, [0]), ClusterLeft(2), NotesDone(list(range(50, 102)))],
    [cluster(3, 9000), mixed(3, [*range(0, 9000, 3), 1, 4099])],
    [rows(3, [8997, 3, 6], State.HELD), left(3, [4095, 9, 1, 4098]), left(1, [120, 110])],
]


def seen(db: sqlite3.Connection) -> list[object]:
    """Everything in a store but the number of its starts."""
    tables = ("cluster", "delta", "file", "task", "history", "outbox", "outbox_done")
    return [db.execute(f"select * from {table}").fetchall() for table in tables]


def look(path: Path) -> list[object]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return seen(db)
    finally:
        db.close()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    """What the store holds after none, one, two ... commits of the scenario."""
    path = tmp_path_factory.mktemp("states") / "queue.db"
    store = started(path)
    found = [look(path)]
    for records in SCENARIO:
        store.commit(records)
        found.append(look(path))
    store.close()
    return found


def run_and_die(path: Path, commit: int, steps: int) -> int:
    """Run the scenario in a child that kills itself after so many steps of SQLite's machine in one of its commits.

    Returns: commits that were acknowledged; more than `commit` when it did not take that many steps.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        store = started(path)
        for index, records in enumerate(SCENARIO[: commit + 1]):
            if index == commit:
                store._open_db.set_progress_handler(lambda: os.kill(os.getpid(), signal.SIGKILL), steps)
            store.commit(records)
            os.write(writer, b".")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        acknowledged = len(pipe.read())
    os.waitpid(child, 0)
    return acknowledged


@pytest.mark.parametrize("commit", range(len(SCENARIO)))
def test_a_kill_within_a_commit_keeps_what_was_acknowledged_and_nothing_of_the_rest(
    tmp_path: Path, states: list[list[object]], commit: int
) -> None:
    steps = 1
    while True:
        path = tmp_path / str(steps) / "queue.db"
        acknowledged = run_and_die(path, commit, steps)
        store = started(path)
        # A kill between the sync and the acknowledgement leaves one commit more.
        assert seen(store._open_db) in states[acknowledged : acknowledged + 2]
        store.close()
        if acknowledged > commit:
            break
        assert acknowledged == commit
        steps = steps * 2 + 1
    assert steps > 30


def test_a_kill_right_after_each_acknowledgement_loses_nothing(tmp_path: Path, states: list[list[object]]) -> None:
    for count in range(1, len(SCENARIO) + 1):
        path = tmp_path / str(count) / "queue.db"
        child = os.fork()
        if child == 0:
            started(path, *SCENARIO[:count])
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        store = started(path)
        assert seen(store._open_db) == states[count]
        store.close()


def test_a_failed_commit_leaves_nothing_behind(tmp_path: Path) -> None:
    store = started(tmp_path / "queue.db", [cluster(1, 2)])
    with pytest.raises(TypeError):
        store.commit([rows(1, [0], State.ASSIGNED), ClusterLeft(1), NotesDone(None)])  # type: ignore[arg-type]
    assert tasks(store.load()) == {}
    store.commit([rows(1, [0], State.ASSIGNED)])
    store.close()


def test_a_task_cannot_leave_twice(tmp_path: Path) -> None:
    store = started(tmp_path / "queue.db", [cluster(1, 2)], [left(1, [0])])
    with pytest.raises(StoreBroken):
        store.commit([left(1, [0])])
    with pytest.raises(StoreBroken):
        store.commit([left(1, [1])])
    again = started(tmp_path / "queue.db")
    with pytest.raises(StoreBroken):
        again.commit([rows(1, [1, 0], State.IDLE)])
    assert tasks(started(tmp_path / "queue.db").load()) == {(1, 0): (State.DONE, -1)}


def test_a_million_tasks_are_one_row(tmp_path: Path) -> None:
    store = started(tmp_path / "queue.db", [cluster(1, 1_000_000)])
    (loaded,) = store.load().clusters
    assert loaded.count == 1_000_000 and not loaded.procs
    store.close()
    assert (tmp_path / "queue.db").stat().st_size < 200_000


# ---- damage


def block_of(path: Path, table: str, proc: int) -> int:
    """Number of the one block that names a task."""
    db = sqlite3.connect(path)
    ((n,),) = db.execute(f"select n from {table} where ? between first and last", (proc,))
    db.close()
    return int(n)


def test_a_damaged_task_is_told_and_the_rest_serves(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    commits = [[cluster(1, 9), rows(1, [0, 1], State.RUNNING), rows(1, [2], State.RUNNING)], [left(1, [0])]]
    started(path, *commits).close()
    damage(path, f"update task set body = x'00' where n = {block_of(path, 'task', 1)}")
    store = started(path)
    (loaded,) = store.load().clusters
    assert list(loaded.procs) == [2]
    assert loaded.damaged == {1: "the row of task 1.1 is damaged in the store"}
    # What is written anew is whole again.
    store.commit([rows(1, [1], State.IDLE, attempt=30_000)])
    store.close()
    assert tasks(started(path).load()) == {(1, 0): (7, -1), (1, 1): (1, 30_000), (1, 2): (State.RUNNING, 1)}


@pytest.mark.parametrize("change", ["first = 6", "last = 70", "count = 11", "state = 7", "cluster = 5", "span = 4096"])
def test_tasks_whose_number_or_state_is_damaged_are_still_known(tmp_path: Path, change: str) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1, 99), rows(1, [0], State.RUNNING), rows(1, [4, 5, 6], State.RUNNING)]).close()
    n = block_of(path, "task", 5)
    damage(path, f"update task set {change} where n = {n}")
    (loaded,) = started(path).load().clusters
    assert list(loaded.procs) == [0]
    assert list(loaded.damaged) == [4, 5, 6]


def test_an_older_block_does_not_speak_for_the_tasks_of_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1, 9), rows(1, [0, 1, 2], State.RUNNING)], [rows(1, [1], State.IDLE)]).close()
    damage(path, "update task set body = x'00' where first = 1")
    (loaded,) = started(path).load().clusters
    assert list(loaded.procs) == [0, 2]
    assert list(loaded.damaged) == [1]


@pytest.mark.parametrize("table", ["task", "history"])
def test_a_cluster_is_held_when_it_is_not_known_whose_block_is_damaged(tmp_path: Path, table: str) -> None:
    path = tmp_path / "queue.db"
    first = [cluster(1, 9), cluster(2, 2), rows(1, [0], State.RUNNING), rows(1, [1, 3, 5], State.RUNNING)]
    started(path, first, [left(1, [2]), left(1, [8, 6]), rows(2, [0], State.RUNNING)]).close()
    damage(path, f"update {table} set procs = x'010000000400000005000000' where length(procs)")
    one, two = started(path).load().clusters
    assert not one.procs and not one.states and not one.facts
    gone = {2, 6, 8} if table == "task" else {2}
    assert set(one.damaged) == set(range(9)) - gone and set(one.left) == gone
    assert list(two.procs) == [0] and not two.damaged


def test_ended_tasks_with_a_damaged_row_do_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1, 9)], [left(1, [0]), left(1, [2, 1])]).close()
    damage(path, "update history set state = 5 where first = 1")
    loaded = started(path).load()
    assert tasks(loaded) == {(1, 0): (State.DONE, -1), (1, 1): (State.DONE, -1), (1, 2): (State.DONE, -1)}
    assert loaded.damage == ["the history of tasks 1.1 to 2 is damaged in the store"]


def test_a_damaged_cluster_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1, 2), cluster(2), rows(1, [0], State.RUNNING)], [left(1, [0])]).close()
    damage(path, "update cluster set body = x'00' where cluster = 1")
    store = started(path)
    loaded = store.load()
    assert [live.cluster for live in loaded.clusters] == [1, 2]
    assert loaded.clusters[0].damaged == {1: "cluster 1 is damaged in the store"}
    assert not loaded.clusters[1].damaged
    assert loaded.next_cluster == 3
    with pytest.raises(StoreDamaged):
        store.body(1)
    assert store.description(1)
    store.close()


def test_a_cluster_with_one_wrong_number_is_known_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1), cluster(2), rows(1, [0], State.RUNNING)]).close()
    damage(path, "update cluster set count = 3 where cluster = 1")
    loaded = started(path).load()
    assert [(live.cluster, live.count, live.damaged) for live in loaded.clusters] == [(1, 1, {}), (2, 1, {})]
    assert loaded.damage == ["the row of cluster 1 is damaged in the store, but known"]


@pytest.mark.parametrize(
    ("statement", "ask"),
    [
        ("update cluster set description = x'00'", "description"),
        ("update delta set deltas = x'91c40161'", "deltas"),
    ],
)
def test_damage_is_found_when_it_is_read(tmp_path: Path, statement: str, ask: str) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1, 1, deltas=[b"x"])]).close()
    damage(path, statement)
    store = started(path)
    with pytest.raises(StoreDamaged):
        store.deltas(1, [0]) if ask == "deltas" else store.description(1)
    store.close()


def test_no_flipped_bit_is_taken_for_a_task(tmp_path: Path) -> None:
    path, copy = tmp_path / "queue.db", tmp_path / "copy.db"
    some = [rows(1, list(range(first, first + 3)), State.RUNNING) for first in range(0, 300, 3)]
    started(path, [cluster(1, 400), *some], [left(1, [proc, proc + 4]) for proc in range(0, 290, 6)]).close()
    whole = path.read_bytes()
    right = tasks(load(sqlite3.connect(path, isolation_level=None))[0])
    chance, told = random.Random(1), 0
    for _ in range(400):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        copy.write_bytes(data)
        db = sqlite3.connect(copy, isolation_level=None)
        try:
            loaded, _ = load(db)
        except (sqlite3.Error, KeyError, ValueError, TypeError):
            told += 1
            continue
        finally:
            db.close()
        hurt = loaded.damage or any(live.damaged for live in loaded.clusters)
        assert tasks(loaded) == right or hurt
        told += bool(hurt)
    assert told > 50


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_database_that_was_cut_off_is_said_to_be_damaged(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "queue.db"
    started(path, [cluster(1, 5000), rows(1, list(range(5000)), State.RUNNING)]).close()
    os.truncate(path, int(path.stat().st_size * keep) // 4096 * 4096)
    with pytest.raises(StoreBroken, match="damaged") as error:
        started(path).load()
    assert "backup" in error.value.line()


def test_a_torn_last_transaction_is_dropped_whole(tmp_path: Path) -> None:
    path, copy = tmp_path / "queue.db", tmp_path / "copy" / "queue.db"
    store = started(path, [cluster(1, 99)], [rows(1, [1], State.RUNNING)])
    before = (tmp_path / "queue.db-wal").stat().st_size
    store.commit([rows(1, list(range(2, 90)), State.RUNNING)])
    after = (tmp_path / "queue.db-wal").stat().st_size
    for size in (before + 1, (before + after) // 2, after - 1):
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        shutil.copy(path, copy)
        (copy.parent / "queue.db-wal").write_bytes((tmp_path / "queue.db-wal").read_bytes()[:size])
        again = started(copy)
        assert tasks(again.load()) == {(1, 1): (State.RUNNING, 1)}
        again.close()
    store.close()


# ---- where it lies, and who else is there


def test_a_second_master_gets_one_clear_line(tmp_path: Path) -> None:
    store = started(tmp_path / "queue.db")
    with pytest.raises(UserError, match=f"another master \\(process {os.getpid()}\\)"):
        started(tmp_path / "queue.db")
    store.close()
    started(tmp_path / "queue.db").close()


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = started(tmp_path / "state" / "queue.db", [cluster(1)])
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    names = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "state").iterdir()}
    assert names == dict.fromkeys(["queue.db", "queue.db-wal", "queue.db-shm", "lock", "ballast"], 0)
    store.close()


def test_a_store_of_the_past_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    started(path).close()
    db = sqlite3.connect(path)
    db.execute("pragma user_version = 1")
    db.close()
    with pytest.raises(UserError, match="older pilotq"):
        started(path)


def test_a_store_of_the_future_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    started(path).close()
    db = sqlite3.connect(path)
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(UserError, match="newer pilotq"):
        started(path)


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"precious words of somebody else" * 100)
    with pytest.raises(StoreBroken):
        started(path)
    assert path.read_bytes().startswith(b"precious")


MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 27 0:40 / /home rw,relatime shared:1 master:2 - nfs4 server:/home rw
31 30 0:41 / /home/al\\040ice rw - ext4 /dev/vdb rw
32 27 0:42 / /scratch rw - ext4 /dev/vdc rw
33 32 0:43 / /scratch rw - lustre fs rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp", "ext4"),
        ("/home/bob/.pilotq", "nfs4"),
        ("/home/al ice/.pilotq", "ext4"),
        ("/homestead", "ext4"),
        ("/scratch/x", "lustre"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_last_and_deepest_mount(path: str, kind: str) -> None:
    assert filesystem(path, MOUNTS) == kind


def test_a_network_file_system_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    require_local(Path("/"))
    monkeypatch.setattr("pilotq.store.place.filesystem", lambda path: filesystem("/home/bob", MOUNTS))
    with pytest.raises(UserError, match="nfs4") as error:
        require_local(Path("/home/bob"))
    assert "state_dir" in error.value.line()


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_a_full_disk_costs_nothing_and_the_ballast_carries_on(small_disk: Path) -> None:
    path = small_disk / "queue.db"
    store = started(path, [cluster(1, 1000)], ballast_bytes=1 << 20)
    assert store.has_ballast
    filler = fill(small_disk)
    before, count = seen(store._open_db), 0
    with pytest.raises(StoreFull):
        for count in range(100):
            before = seen(store._open_db)
            store.commit([rows(1, list(range(1000)), State.RUNNING, attempt=count)])
    assert seen(store._open_db) == before
    assert store.release_ballast() and not store.has_ballast
    store.commit([rows(1, list(range(1000)), State.RUNNING, attempt=count)])
    assert not store.restore_ballast()
    # Nothing that was not committed is remembered: the block before it is gone, and only that.
    assert store._open_db.execute("select count(*), sum(alive) from task").fetchone() == (1, 1000)

    store.close()
    store = SqliteStore(1 << 20)
    store.open(path)
    assert tasks(store.load())[1, 999] == (State.RUNNING, count)
    assert not store.has_ballast
    filler.unlink()
    assert store.restore_ballast() and store.has_ballast
    store.close()


def test_a_store_opens_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "queue.db"
    started(path, [cluster(1)]).close()
    fill(small_disk)
    store = SqliteStore(1 << 20)
    store.open(path)
    assert [live.cluster for live in store.load().clusters] == [1]
    assert not store.has_ballast
    store.close()
