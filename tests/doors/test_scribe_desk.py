"""Failures, retries and stuck file systems: what the scribe tells, and whom it makes wait."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scribe_data import House, Office, pack

from pilotq.core.records import Note, NotesAdded
from pilotq.model import PROC_MARK, STDOUT, OutputFile
from pilotq.scribe import desk as desk_module
from pilotq.scribe import lanes as lanes_module
from pilotq.scribe.lanes import THREADS, Item, Lanes


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def out(data: bytes = b"x") -> list[OutputFile]:
    return [OutputFile(STDOUT, len(data), 0o644, data)]


def events(path: Path) -> list[str]:
    """Number and task of every event in a log."""
    lines = path.read_text().split("\n")
    assert lines[-1] == "" and lines[-2] == "..."
    return [line[:17] for previous, line in zip(["...", *lines], lines, strict=False) if previous == "..." and line]


def test_everything_in_the_outbox_is_written_and_told(house: House) -> None:
    first = house.cluster(100, log=f"{house.user}/log", stdout=f"{house.user}/o.{PROC_MARK}")
    second = house.cluster(10, log=f"{house.user}/log.{PROC_MARK}")
    third = house.cluster(5, stdout=f"{house.user}/p.{PROC_MARK}")
    house.note(first, 0, 0, count=100)
    house.note(second, 0, 0, count=10)
    for proc in range(100):
        house.note(first, proc, outputs=out())
    for proc in range(5):
        house.note(third, proc, -1, outputs=out())
    office = Office(house)
    office.desk.wake()
    office.wait(done=107)
    assert sorted(office.done) == list(range(1, 108)) and not office.failed
    assert events(house.user / "log") == [
        f"{event:03d} (001.{proc:03d}.000)" for event in (0, 5) for proc in range(100)
    ]
    assert all(events(house.user / f"log.{proc}") == [f"000 (002.{proc:03d}.000)"] for proc in range(10))


def handed(n: int, cluster: int, data: bytes) -> Note:
    return Note(n, -1, cluster, 0, 1, 1.0, outputs=out(data), attempt=1, final=True)


def test_a_note_that_comes_by_hand_is_written_once_before_or_after_its_commit(house: House) -> None:
    clusters = [house.cluster(stdout=f"{house.user}/{name}") for name in "abcd"]
    office = Office(house)
    office.desk.take([handed(1, clusters[0], b"by hand")])
    office.wait(done=1)
    assert (house.user / "a").read_bytes() == b"by hand", "nothing of it is in the outbox"
    for number in clusters:
        house.note(number, 0, -1, outputs=out())
    office.desk.take([handed(3, clusters[2], b"by hand")])
    office.desk.wake()
    office.desk.take([handed(4, clusters[3], b"too late")])
    office.wait(done=4)
    assert sorted(office.done) == [1, 2, 3, 4]
    assert [(house.user / name).read_bytes() for name in "abcd"] == [b"by hand", b"x", b"by hand", b"x"]


def test_a_note_that_came_by_hand_and_failed_is_read_for_the_retry(house: House) -> None:
    number = house.cluster(stdout=f"{house.user}/no/out")
    office = Office(house)
    office.desk.take([handed(1, number, b"by hand")])
    office.wait(failed=1)
    house.note(number, 0, -1, outputs=out())
    (house.user / "no").mkdir()
    office.desk.retry([1])
    office.wait(done=1)
    assert (house.user / "no" / "out").read_bytes() == b"x"


def test_a_failed_output_waits_for_a_retry(house: House) -> None:
    number = house.cluster(2, log=f"{house.user}/log", stdout=f"{house.user}/no/{PROC_MARK}")
    office = Office(house)
    house.note(number, 0, outputs=out())
    house.note(number, 1, 1)
    office.desk.wake()
    office.wait(done=1, failed=1)
    (failure,) = office.failed
    assert (failure.n, failure.errno, failure.what) == (1, errno.ENOENT, "output")
    assert failure.reason == f"cannot write standard output {house.user}/no/0: No such file or directory (errno 2)"
    assert events(house.user / "log") == ["001 (001.001.000)"]

    office.desk.retry([1])
    office.wait(failed=2)
    (house.user / "no").mkdir()
    office.desk.retry([1, 99])
    office.wait(done=2)
    assert office.done == [2, 1] and len(office.failed) == 2
    assert events(house.user / "log") == ["001 (001.001.000)", "005 (001.000.000)"]
    assert (house.user / "no" / "0").read_bytes() == b"x"


def test_no_event_overtakes_one_whose_log_could_not_be_written(house: House) -> None:
    number = house.cluster(2, log=f"{house.user}/no/log")
    other = house.cluster(1, log=f"{house.user}/log")
    office = Office(house)
    house.note(number, 0, 0, count=2)
    office.desk.wake()
    office.wait(failed=1)
    house.note(number, 0, 1)
    house.note(number, 0, 5)
    house.note(other, 0, 5)
    office.desk.wake()
    office.wait(done=1, failed=3)
    assert office.done == [4]
    assert {(failure.n, failure.what) for failure in office.failed} == {(1, "log"), (2, "log"), (3, "log")}
    (house.user / "no").mkdir()
    office.desk.retry([3])
    office.wait(done=4)
    assert events(house.user / "no" / "log") == [
        "000 (001.000.000)",
        "000 (001.001.000)",
        "001 (001.000.000)",
        "005 (001.000.000)",
    ]


def test_a_log_that_was_mended_is_written_though_nobody_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task of it has ended: nothing is held that somebody could release."""
    monkeypatch.setattr(lanes_module, "RETRY_S_MAX", 0.2)
    number = house.cluster(2, log=f"{house.user}/no/log")
    office = Office(house)
    house.note(number, 0, 0, count=2)
    house.note(number, 0, 1)
    office.desk.wake()
    office.wait(failed=2)
    time.sleep(0.5)
    (house.user / "no").mkdir()
    office.wait(done=2)
    assert len(office.failed) == 2, "told once each"
    assert len(events(house.user / "no" / "log")) == 3


def test_a_note_that_failed_in_part_is_finished_by_a_retry(house: House) -> None:
    (house.user / "1").mkdir()
    number = house.cluster(3, log=f"{house.user}/{PROC_MARK}/log")
    house.note(number, 0, 0, count=3)
    office = Office(house)
    office.desk.wake()
    office.wait(failed=1)
    (house.user / "0").mkdir()
    (house.user / "2").mkdir()
    office.desk.retry([1])
    office.wait(done=1)
    assert [events(house.user / f"{proc}/log") for proc in range(3)] == [
        [f"000 (001.00{proc}.000)"] for proc in range(3)
    ]


def test_damage_in_the_store_is_a_failure_of_that_note(house: House) -> None:
    number = house.cluster(2, log=f"{house.user}/log")
    damaged = house.cluster(1, log=f"{house.user}/log2")
    house.note(number, 0)
    house.note(number, 1)
    house.note(damaged, 0)
    house.store._open_db.execute("update outbox set heads = x'90' where n = 1")
    house.store._open_db.execute("update cluster set body = x'80' where cluster = 2")
    office = Office(house)
    office.desk.wake()
    office.wait(done=1, failed=2)
    assert office.done == [2]
    assert {(failure.n, failure.what) for failure in office.failed} == {(1, "note"), (3, "note")}


def test_a_delta_without_its_block_is_a_failure_of_that_note(house: House) -> None:
    number = house.cluster(2, [pack({})] * 2, log=f"{house.user}/log")
    house.note(number, 0)
    house.store._open_db.execute("update delta set deltas = x'00'")
    office = Office(house)
    office.desk.wake()
    office.wait(failed=1)
    assert "damaged" in office.failed[0].reason


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("where", ["log", "stdout"])
def test_a_full_disk_is_waited_for_and_nothing_is_written_in_part(
    house: House, small_disk: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(lanes_module, "RETRY_S", 0.05)
    paths = {"log": f"{house.user}/log", "stdout": f"{house.user}/o.{PROC_MARK}"}
    paths[where] = f"{small_disk}/{os.path.basename(paths[where])}"
    number = house.cluster(40, **paths)
    (small_disk / "log").write_bytes(b"")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(230 << 10))
    for proc in range(40):
        house.note(number, proc, outputs=out(bytes(3000)))
    house.note(house.cluster(1, log=f"{house.user}/other"))
    office = Office(house, patience_s=0.3)
    office.desk.wake()
    office.wait(failed=1)
    assert {failure.errno for failure in office.failed} == {errno.ENOSPC}
    if where == "log":
        # It goes on trying by itself.
        assert (small_disk / "log").stat().st_size % 4096 == 0
        filler.unlink()
        office.wait(done=41)
        assert len(events(small_disk / "log")) == 40
    else:
        office.wait(failed=2)
        filler.unlink()
        office.desk.retry([failure.n for failure in office.failed])
        deadline = time.monotonic() + 20
        while len(set(office.done)) < 41 and time.monotonic() < deadline:
            office.desk.retry(list(range(1, 41)))
            office.wait(done=min(len(office.done) + 1, 41))
        assert {path.stat().st_size for path in small_disk.glob("o.*")} == {3000}
        assert len(set(events(house.user / "log"))) == len(events(house.user / "log")) == 40


def test_a_task_without_a_log_that_must_wait_holds_up_no_other(
    house: House, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "RETRY_S", 0.05)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(256 << 10))
    deltas = [pack({"stdout": f"{small_disk if proc == 0 else house.user}/o.{proc}"}) for proc in range(40)]
    number = house.cluster(40, deltas)
    for proc in range(40):
        house.note(number, proc, -1, outputs=out(bytes(3000)))
    office = Office(house)
    office.desk.wake()
    office.wait(done=39)
    assert 1 not in office.done and not office.failed
    filler.unlink()
    office.wait(done=40)
    assert (small_disk / "o.0").stat().st_size == 3000


def test_notes_of_one_cluster_without_a_log_are_told_together(house: House) -> None:
    number = house.cluster(400, stdout=f"{house.user}/o.{PROC_MARK}")
    for proc in range(400):
        house.note(number, proc, -1, outputs=out())
    office = Office(house)
    office.desk.wake()
    office.wait(done=400)
    assert office.told < 40


def test_one_that_fails_among_notes_that_came_together_fails_alone_and_others_are_not_written_again(
    house: House,
) -> None:
    deltas = [pack({"stdout": f"{house.user}/{'no/' if proc == 2 else ''}o.{proc}"}) for proc in range(5)]
    number = house.cluster(5, deltas)
    notes = [Note(1 + p, -1, number, p, 1, 1.0, outputs=out(b""), attempt=1, final=True) for p in range(5)]
    house.store.commit([NotesAdded(notes)])
    office = Office(house)
    office.desk.wake()
    office.wait(done=4, failed=1)
    assert sorted(office.done) == [1, 2, 4, 5] and office.failed[0].n == 3
    house.done(office.done)
    for path in house.user.iterdir():
        path.unlink()
    (house.user / "no").mkdir()
    again = Office(house)
    again.desk.wake()
    again.wait(done=1)
    assert again.done == [3] and os.listdir(house.user) == ["no"] and os.listdir(house.user / "no") == ["o.2"]


# ---- lanes


def test_a_stuck_lane_holds_up_nobody_else() -> None:
    lanes = Lanes(lambda: None)
    for number in range(THREADS):
        lanes.add(f"stuck {number}", [Item(number, 1, 0, 1, number)])
    held = [lanes.take(10) for _ in range(THREADS)]
    lanes.add("well", [Item(100, 1, 0, 1, 100)])
    for work in held:
        assert work is not None
        work[0].busy_since -= lanes_module.STUCK_S + 1
    is_short, stuck = lanes.watch()
    assert is_short and sorted(stuck) == sorted(f"stuck {number}" for number in range(THREADS))
    assert lanes.watch() == (True, [])
    work = lanes.take(10)
    assert work is not None and work[0].key == "well"
    assert lanes.watch() == (False, [])


def test_items_of_one_lane_are_given_to_one_thread_at_a_time_in_order() -> None:
    lanes = Lanes(lambda: None)
    items = [Item(n, 1, 0, 1, n) for n in range(5)]
    lanes.add("a", items[:3])
    work = lanes.take(2)
    assert work is not None
    lane, batch = work
    assert batch == items[:2]
    lanes.add("a", items[3:])
    lanes.add("b", [Item(9, 1, 0, 1, 9)])
    other = lanes.take(2)
    assert other is not None and other[0].key == "b"
    lanes.finish(lane, 2, [items[1]])
    again = lanes.take(10)
    assert again is not None and again[1] == items[1:]


def test_too_many_items_are_not_taken_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "ITEMS_MAX", 10)
    told = threading.Event()
    lanes = Lanes(told.set)
    lanes.add("a", [Item(n, 1, 0, 1, n) for n in range(10)])
    assert not lanes.has_room
    work = lanes.take(8)
    assert work is not None
    lanes.finish(work[0], 8, [])
    assert told.is_set() and lanes.has_room


def test_lanes_that_do_not_move_take_nobodys_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "ITEMS_MAX", 10)
    lanes = Lanes(lambda: None)
    lanes.add("blocked", [Item(n, 1, 0, 1, n) for n in range(10)])
    work = lanes.take(1)
    assert work is not None
    left = lanes.finish(work[0], 1, work[1], again=False)
    assert len(left) == len(lanes) == 10 and lanes.has_room
    lanes.wake("blocked")
    assert not lanes.has_room


def test_more_threads_are_started_for_those_that_hang_and_leave_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "STUCK_S", 0.0)
    office = Office(house)
    hang = threading.Event()
    original = office.desk._writer._text

    def text(note: object, first: int, count: int) -> bytes:
        if note.cluster <= THREADS:  # type: ignore[attr-defined]
            hang.wait()
        return original(note, first, count)  # type: ignore[arg-type]

    monkeypatch.setattr(office.desk._writer, "_text", text)
    for number in range(1, THREADS + 2):
        house.note(house.cluster(log=f"{house.user}/{number}"))
    office.desk.wake()
    deadline = time.monotonic() + 20
    while not office.done and time.monotonic() < deadline:
        office.desk.watch()
        time.sleep(0.01)
    assert office.done == [THREADS + 1]
    hang.set()
    office.wait(done=THREADS + 1)
    assert desk_module.THREADS_MAX >= office.desk._threads >= THREADS
