"""Flipped bits and cut files: whatever is damaged is held or told, what is whole is served, nothing is lost unsaid.

Each test takes some of the places, or all of them with PILOTQ_ALL_POINTS=1 (`tests/crash` does).
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from store_data import cluster, left, note, rows, started, tasks

from pilotq.core.records import Edited, Note, NotesAdded, NotesDone, Record
from pilotq.errors import UnavailableError
from pilotq.model import Edit, State
from pilotq.mover.inventory import kept_files
from pilotq.mover.small import SmallFiles
from pilotq.roles.restart import restore
from pilotq.store import Loaded, StoreBroken
from pilotq.store.checking import check
from pilotq.store.sqlite import SqliteStore

ALL = os.environ.get("PILOTQ_ALL_POINTS") == "1"
#: Everything but the last transaction, and that.
BEFORE: list[list[Record]] = [
    [cluster(1, 400, deltas=[b"delta %d" % proc for proc in range(400)]), cluster(2, 5), cluster(3)],
    *[[rows(1, list(range(first, first + 3)), State.RUNNING, host=f"n{first}")] for first in range(0, 60, 3)],
    [rows(2, [1], State.HELD, reason="the reason"), left(1, [0, 4]), left(1, [7])],
    [Edited(2, [Edit(0, 4, "Wanted", '"this"'), Edit(1, 2, "JobPrio", "7"), Edit(0, 0, "A", "B + 1")])],
    [rows(2, [3], State.STAGING_OUT), note(1, 2, 3, final=True)],
    [NotesAdded([Note(n, 1, 1, n, 1, 1700000100.5, attempt=1) for n in range(2, 9)])],
    [NotesDone([3, 5])],
]
LAST: list[Record] = [rows(1, list(range(60, 90)), State.RUNNING), left(1, [1, 2]), rows(2, [0], State.ASSIGNED)]
Known = dict[tuple[int, int], tuple[int, int]]


def some(places: Sequence[int], count: int, seed: int) -> Sequence[int]:
    """A few of many places, the same each time; all when all are wanted."""
    if ALL or len(places) <= count:
        return places
    return sorted(random.Random(seed).sample(places, count))


class Files(NamedTuple):
    """A store as a kill leaves it: database, log, index of the log."""

    main: bytes
    log: bytes
    index: bytes

    def write(self, folder: Path, log: bytes | None = None, has_index: bool = True) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / "queue.db"
        path.write_bytes(self.main)
        log = self.log if log is None else log
        # What is not written are zeros as well, and costs no time.
        (folder / "queue.db-wal").write_bytes(log.rstrip(b"\0"))
        os.truncate(folder / "queue.db-wal", len(log))
        if has_index:
            (folder / "queue.db-shm").write_bytes(self.index)
        return path


class Killed(NamedTuple):
    files: Files
    #: Where the last transaction begins and ends in the log; what was known before and after it.
    start: int
    end: int
    before: Known
    after: Known


def known(path: Path) -> Known:
    store = started(path)
    try:
        return tasks(store.load())
    finally:
        store.close()


def end_of(log: bytes) -> int:
    """Where its last frame ends."""
    return 32 + -(-(len(log.rstrip(b"\0")) - 32) // 4120) * 4120


@pytest.fixture(scope="module", params=["as it grew", "written out"])
def killed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Killed:
    """A master writes its log out to its full size: zeros follow the last frame."""
    path = tmp_path_factory.mktemp("killed") / "queue.db"
    store = started(path)
    if request.param == "written out":
        store.write_out_log()
    for records in BEFORE:
        store.commit(records)
    log = path.with_name("queue.db-wal")
    start = end_of(log.read_bytes())
    before = tasks(store.load())
    store.commit(LAST)
    after = tasks(store.load())
    files = Files(path.read_bytes(), log.read_bytes(), path.with_name("queue.db-shm").read_bytes())
    store.close()
    end = end_of(files.log)
    assert before != after and end > start
    assert (len(files.log) > end) == (request.param == "written out")
    return Killed(files, start, end, before, after)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: what is tried here is not the disk."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else tmp_path
    found = base / f"pilotq-damage-{os.getpid()}"
    yield found
    shutil.rmtree(found, ignore_errors=True)


def is_told(loaded: Loaded) -> bool:
    return bool(loaded.damage or any(live.damaged for live in loaded.clusters))


def damaged(loaded: Loaded) -> set[tuple[int, int]]:
    return {(live.cluster, proc) for live in loaded.clusters for proc in live.damaged}


# ---- the last transaction


def test_every_flipped_bit_of_the_log_is_turned_back_or_told(killed: Killed, folder: Path) -> None:
    """None costs a transaction: the bit is found by the checksum, or else the row's own says which task is held."""
    last = range(8 * killed.start, 8 * killed.end)
    found: Counter[str] = Counter()
    for place in [*some(range(8 * 32), 10, 1), *some(last, 30, 2)]:
        log = bytearray(killed.files.log)
        log[place // 8] ^= 1 << place % 8
        for has_index in (True, False):
            path = killed.files.write(folder, bytes(log), has_index)
            findings = check(path).findings
            assert findings, f"bit {place}"
            store = SqliteStore(1 << 20)
            store.open(path)
            try:
                loaded = store.load()
            except StoreBroken:
                # Which of some bits it was cannot be told, and a page that leads to rows is damaged.
                found["refused"] += 1
                continue
            finally:
                store.close()
            assert is_told(loaded)
            there = tasks(loaded)
            if there == killed.after and not damaged(loaded):
                found["turned back"] += 1
            else:
                held = damaged(loaded)
                assert there == {task: value for task, value in killed.after.items() if task not in held}
                found["held"] += 1
    assert found["turned back"] > 0.85 * found.total()
    assert found["refused"] < 0.02 * found.total()


def test_a_log_that_is_cut_in_its_last_transaction(killed: Killed, folder: Path) -> None:
    """After a kill the index knows that it was whole. After a power cut nobody does: then it was not acknowledged."""
    sizes = range(killed.start, killed.end)
    frames = [size + more for size in range(killed.start, killed.end, 4120) for more in (0, 1, 23, 24, 25)]
    for size in sorted({*some(sizes, 10, 3), *some(frames, 10, 8)} & set(sizes)):
        log = killed.files.log[:size]
        if len(killed.files.log) > killed.end:
            # It is not shorter for it, and its end may have been zeros.
            log = log.ljust(len(killed.files.log), b"\0")
            if log == killed.files.log:
                continue
        path = killed.files.write(folder, log, has_index=False)
        assert known(path) == killed.before
        path = killed.files.write(folder, log)
        assert "pages that were committed are missing" in check(path).findings[0].what
        for _ in range(2):
            with pytest.raises(StoreBroken, match="committed are missing") as error:
                started(path)
        path.with_name("queue.db-shm").unlink()
        assert "queue.db-shm" in error.value.hint
        assert known(path) == killed.before


# ---- the database


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Known]:
    path = tmp_path_factory.mktemp("whole") / "queue.db"
    started(path, *BEFORE, LAST).close()
    return path.read_bytes(), known(path)


class Cell(NamedTuple):
    """Where a row lies."""

    start: int
    end: int


def cells(data: bytes, table: str, path: Path) -> list[Cell]:
    """All rows of a table that fits on one page. Source: SQLite file format, 1.6."""
    db = sqlite3.connect(path)
    ((root,),) = db.execute("select rootpage from sqlite_schema where name = ?", (table,))
    db.close()
    base = 4096 * (root - 1)
    assert data[base] in (10, 13), "a leaf"
    count = int.from_bytes(data[base + 3 : base + 5], "big")
    starts = sorted(int.from_bytes(data[base + 8 + 2 * n : base + 10 + 2 * n], "big") for n in range(count))
    return [Cell(base + start, base + end) for start, end in zip(starts, [*starts[1:], 4096], strict=True)]


@pytest.mark.parametrize(
    ("table", "least"),
    [
        ("task", 0.96),
        ("history", 0.97),
        ("cluster", 0.9),
        ("outbox", 0.9),
        # A fifth of so short a row says where its key is.
        ("outbox_done", 0.7),
        ("delta", 0.9),
        ("edit", 0.9),
    ],
)
def test_every_flipped_bit_of_a_row_costs_its_tasks_at_most(
    whole: tuple[bytes, Known], folder: Path, table: str, least: float
) -> None:
    data, right = whole
    folder.mkdir()
    path = folder / "queue.db"
    path.write_bytes(data)
    found: Counter[str] = Counter()
    bits = [bit for start, end in cells(data, table, path) for bit in range(8 * start, 8 * end)]
    for place in some(bits, 150, 4):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        shutil.rmtree(folder)
        folder.mkdir()
        path.write_bytes(flipped)
        findings = check(path).findings
        store = SqliteStore(1 << 20)
        try:
            store.open(path)
            loaded = store.load()
            queue = restore(loaded, store, 1700000200.0)
        except StoreBroken:
            assert findings
            found["refused"] += 1
            continue
        finally:
            store.close()
        held, there = damaged(loaded), tasks(loaded)
        if (held or there != right) or loaded.damage:
            assert findings, f"bit {place}"
        if table in ("outbox", "outbox_done", "delta"):
            assert findings, f"bit {place}"
        # What is not held is as it was; and what is held says why.
        assert {task: value for task, value in right.items() if task not in held and task in there} == {
            task: value for task, value in there.items() if task not in held
        }
        gone = {task for task in right if task not in there and task not in held}
        assert not gone or loaded.damage
        for number, proc in held:
            assert queue.clusters[number].state(proc) == State.HELD
            assert "damaged in the store" in queue.clusters[number].facts[proc].reason or "missing" in (
                queue.clusters[number].facts[proc].reason
            )
        queue.check()
        found["served"] += 1
    assert found["served"] >= least * found.total(), found


def test_any_flipped_bit_of_the_database_is_told_when_it_matters(whole: tuple[bytes, Known], folder: Path) -> None:
    data, right = whole
    places, told = some(range(8 * len(data)), 300, 5), 0
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / "queue.db"
        path.write_bytes(flipped)
        findings: list[object] = []
        try:
            findings += check(path).findings
        except Exception as error:
            assert type(error).__name__ == "UserError", "of another version, it seems"
            findings = [error]
        store = SqliteStore(1 << 20)
        try:
            store.open(path)
            loaded = store.load()
        except Exception as error:
            assert type(error).__name__ in ("StoreBroken", "UserError") and findings, f"bit {place}"
            told += 1
            continue
        finally:
            store.close()
        hurt = is_told(loaded)
        told += hurt
        assert findings or (tasks(loaded) == right and not hurt), f"bit {place}"
    assert told > len(places) // 50


@pytest.mark.parametrize("name", ["queue.db"])
def test_a_database_that_is_cut_off_is_told(whole: tuple[bytes, Known], folder: Path, name: str) -> None:
    data, right = whole
    for size in some(range(1, len(data)), 60, 6):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / name
        path.write_bytes(data[:size])
        findings = check(path).findings
        store = SqliteStore(1 << 20)
        try:
            store.open(path)
            loaded = store.load()
        except StoreBroken:
            assert findings
            continue
        finally:
            store.close()
        if not findings:
            assert not data[size:].strip(b"\0"), "nothing was cut off but zeros"
            assert tasks(loaded) == right and not is_told(loaded)
        assert tasks(loaded) == right or is_told(loaded), size


# ---- kept files


def test_a_flipped_bit_of_packed_files_is_told_when_it_matters(folder: Path) -> None:
    """With the digest of the file it costs; the others of its pack are as they were."""
    folder.mkdir()
    path = folder / "small.db"
    files = [b"file %d " % number * 300 for number in range(90)]
    small = SmallFiles(path)
    digests = small.put(files)
    small.close()
    data = path.read_bytes()
    right = dict(zip(digests, files, strict=True))
    assert not any(kept.fault for kept in kept_files(folder))
    told: Counter[str] = Counter()
    for place in some(range(8 * len(data)), 200, 7):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        faults = {kept.digest for kept in kept_files(folder) if kept.fault}
        sound = {kept.digest for kept in kept_files(folder) if not kept.fault}
        small = SmallFiles(path)
        try:
            found = {digest: bytes(content) for digest, content in small.get(digests).items()}
        except UnavailableError:
            assert faults, f"bit {place}"
            told["refused"] += 1
            continue
        finally:
            small.close()
        wrong = {digest for digest in digests if found.get(digest) != right[digest]}
        assert not wrong & sound and (faults or not wrong), f"bit {place}"
        told["one" if len(faults) == 1 else "several" if faults else "none"] += 1
    assert told["one"] > 0.9 * (told.total() - told["none"]), told
