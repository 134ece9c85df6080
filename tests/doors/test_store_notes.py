"""Notes in the outbox on disk: what is left of them, and damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_data import cluster, damage, note, rows, started

from pilotq.core.records import Note, NotesAdded, NotesDone
from pilotq.model import STDOUT, OutputFile, State
from pilotq.roles.restart import restore
from pilotq.store import outbox
from pilotq.store.checking import check
from pilotq.store.outbox import NOTES_MAX


def test_nothing_is_left_of_notes_that_are_written(tmp_path: Path) -> None:
    notes = [Note(n, -1, 1, n, 1, 1.0, attempt=1, final=True) for n in range(1, 2 * NOTES_MAX)]
    store = started(tmp_path / "queue.db", [cluster(1, 5000), NotesAdded(notes)])
    count = "select (select count(*) from outbox), (select count(*) from outbox_done)"
    assert store._open_db.execute(count).fetchone() == (2, 0)
    store.commit([NotesDone([1, 2, NOTES_MAX + 1])])
    assert store._open_db.execute(count).fetchone() == (2, 3)
    store.commit([NotesDone(list(range(3, NOTES_MAX + 1)))])
    assert store._open_db.execute(count).fetchone() == (1, 1)
    store.commit([NotesDone(list(range(NOTES_MAX + 2, 2 * NOTES_MAX)))])
    assert store._open_db.execute(count).fetchone() == (0, 0)


@pytest.mark.parametrize("change", ["heads = x'90'", "heads = 'text'", "cluster = 3", "crc = 5"])
def test_tasks_that_wait_for_damaged_notes_are_held_and_no_others(tmp_path: Path, change: str) -> None:
    path = tmp_path / "queue.db"
    waiting = [rows(1, [0, 1], State.STAGING_OUT), rows(1, [2], State.RUNNING), rows(2, [0], State.STAGING_OUT)]
    notes = [NotesAdded([Note(n, -1, 1, n - 1, 1, 1.0, attempt=1, final=True)]) for n in (1, 2)]
    started(path, [cluster(1, 4), cluster(2), *waiting, *notes, note(3, 2, final=True)]).close()
    damage(path, f"update outbox set {change} where n = 2")
    store = started(path)
    loaded = store.load()
    assert [final.n for final in loaded.finals] == [1, 3] and "notes" in loaded.damage[0]
    queue = restore(loaded, store, 1.0)
    assert [queue.clusters[1].state(proc) for proc in range(4)] == [
        State.STAGING_OUT,
        State.HELD,
        State.RUNNING,
        State.IDLE,
    ]
    assert queue.clusters[2].state(0) == State.STAGING_OUT
    assert "the note about the end of task 1.1 is damaged" in queue.clusters[1].facts[1].reason
    # What is held is written so, and not held again after its release.
    store.commit(queue.flush(1.0))
    queue.release(queue.clusters[1], 1, 2.0, "a person")
    store.commit(queue.flush(2.0))
    again = restore(store.load(), store, 3.0)
    assert again.clusters[1].state(1) == State.IDLE
    store.close()


def test_a_damaged_mark_of_a_written_note_is_mended_or_told(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    notes = NotesAdded([Note(n, -1, 1, n, 1, 1.0, attempt=1, final=True) for n in range(1, 9)])
    started(path, [cluster(1, 9), notes], [NotesDone([2])]).close()
    for change, left_over in (("n = 3", {2}), ("n = 1000", set())):
        damage(path, f"update outbox_done set {change}")
        store = started(path)
        loaded = store.load()
        assert {final.n for final in loaded.finals} == set(range(1, 9)) - left_over
        assert loaded.damage == [
            "which notes of 1 and later are written is damaged in the store; one may be written twice"
        ]
        store.close()


def test_notes_that_sqlite_cannot_read_are_told_one_by_one(tmp_path: Path) -> None:
    """They are not taken for written, and those of other blocks are read."""
    path = tmp_path / "queue.db"
    large = [OutputFile(STDOUT, 100_000, 0o644, b"z" * 100_000)]
    notes = [Note(n, -1, 1, n, 1, 1.0, outputs=large if n == 2 else [], attempt=1, final=True) for n in (1, 2, 3)]
    started(path, [cluster(1, 9)], *[[NotesAdded([note])] for note in notes]).close()
    data = bytearray(path.read_bytes())
    inner = [at for at in range(0, len(data), 4096) if data[at + 4 : at + 4096] == b"z" * 4092]
    # The page that follows it, which there is not.
    data[inner[3] : inner[3] + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(data)
    store = started(path)
    assert [final.n for final in store.load().finals] == [1, 2, 3]
    found = outbox.notes(store._open_db, [1, 2, 3])
    assert {n: note is not None for n, note in found.items()} == {1: True, 2: False, 3: True}
    store.close()
    (finding,) = [finding for finding in check(path).findings if finding.procs]
    assert (finding.what, finding.cluster, finding.procs) == ("notes for the scribe are damaged", 1, "2")
