"""A store on a full disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_data import cluster, rows, seen, started, tasks

from pilotq.model import State
from pilotq.store import StoreFull
from pilotq.store.sqlite import SqliteStore


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
