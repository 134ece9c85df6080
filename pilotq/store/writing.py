"""From the records of a commit to rows: all of them first, then one statement a table."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from pilotq.core.records import (
    ClusterAdded,
    ClusterLeft,
    DrainWanted,
    Edited,
    Note,
    NotesAdded,
    NotesDone,
    Record,
    TaskRows,
    TasksLeft,
)
from pilotq.deltas import DELTA_BLOCK
from pilotq.model import Outcome, State
from pilotq.store import DRAIN, checksum, outbox
from pilotq.store.blocks import Block, Ledger, blocks, pack_body, pack_procs

_pack = msgspec.msgpack.Encoder().encode
_crc32 = zlib.crc32
_OK, _DONE = int(Outcome.OK), int(State.DONE)


class Rows:
    """What one commit changes in each table.

    Raises: LeftTwiceError.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._clusters: list[tuple[Any, ...]] = []
        self._files: list[tuple[int, str]] = []
        self._edits: list[tuple[Any, ...]] = []
        self._deltas: list[Iterator[tuple[int, int, bytes, int]]] = []
        #: By number. A block that counts for nothing at the end of the commit is not written at all.
        self._tasks: dict[int, tuple[Any, ...]] = {}
        #: Cluster, span and number -> for how many tasks it counts now.
        self._alive: dict[tuple[int, int, int], int] = {}
        self._emptied: list[tuple[int, int, int]] = []
        self._history: list[tuple[Any, ...]] = []
        self._left: list[tuple[int]] = []
        self._notes: list[tuple[Any, ...]] = []
        self._written: list[tuple[int, int, int]] = []
        self._done: list[tuple[int]] = []
        self._drains: list[tuple[str]] = []
        self._drained: list[tuple[str]] = []

    def take(self, record: Record) -> None:
        match record:
            case TaskRows():
                self._put(record)
            case TasksLeft():
                self._leave(record)
            case ClusterAdded():
                self._add_cluster(record)
            case ClusterLeft():
                self._left.append((record.cluster,))
                self._ledger.forget(record.cluster)
            case Edited():
                self._edit(record)
            case NotesAdded():
                self._add_notes(record.notes)
            case NotesDone():
                self._end_notes(record.ns)
            case DrainWanted():
                (self._drains if record.on else self._drained).append((DRAIN + record.worker,))

    def write(self, db: sqlite3.Connection) -> None:
        """In the transaction that is open."""
        alive = [(count, *key) for key, count in self._alive.items()]
        statements: tuple[tuple[str, Collection[Any]], ...] = (
            ("insert into cluster values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)", self._clusters),
            ("insert or ignore into file values (?, ?)", self._files),
            ("insert into task values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._tasks.values()),
            ("update task set alive = ? where cluster = ? and span = ? and n = ?", alive),
            ("delete from task where cluster = ? and span = ? and n = ?", self._emptied),
            ("insert into history values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._history),
            ("update cluster set live = 0 where cluster = ?", self._left),
            ("delete from file where cluster = ?", self._left),
            ("insert into outbox values (?, ?, ?, ?, ?, ?)", self._notes),
            ("insert into outbox_done values (?, ?, ?)", self._written),
            ("delete from outbox where n = ?", self._done),
            ("delete from outbox_done where block = ?", self._done),
            ("insert or ignore into meta values (?, '')", self._drains),
            ("delete from meta where name = ?", self._drained),
        )
        for statement, rows in statements:
            if rows:
                db.executemany(statement, rows)
        for edit in self._edits:
            # What it covers, unless a task may have left with that.
            db.execute(
                "delete from edit where cluster = ? and first >= ? and last <= ? and lower(name) = lower(?)"
                " and since = ?",
                (*edit[:4], edit[5]),
            )
            db.execute("insert into edit values (null, ?, ?, ?, ?, ?, ?, ?)", edit)
        for rows_of_cluster in self._deltas:
            db.executemany("insert into delta values (?, ?, ?, ?)", rows_of_cluster)

    # ---- tasks

    def _put(self, record: TaskRows) -> None:
        ledger, cluster = self._ledger, record.cluster
        for block in blocks(record):
            n = ledger.last_n = ledger.last_n + 1
            self._shrink(cluster, block.span, ledger.put(n, cluster, block.procs))
            self._tasks[n] = (*_row(block, _head(n, cluster, block), len(block.procs)), block.span)

    def _leave(self, record: TasksLeft) -> None:
        ledger, cluster, at = self._ledger, record.cluster, float(record.at)
        for block in blocks(record):
            n = ledger.last_left = ledger.last_left + 1
            self._shrink(cluster, block.span, ledger.leave(cluster, block.procs))
            failed = 0
            if block.state == _DONE:
                failed = len(block.facts) - [facts.outcome for facts in block.facts].count(_OK)
            self._history.append(_row(block, (*_head(n, cluster, block), failed, at)))

    def _shrink(self, cluster: int, span: int, alive: dict[int, int]) -> None:
        """Blocks that count for fewer tasks than before: they are in the same span as what counts now."""
        for n, count in alive.items():
            key = cluster, span, n
            if count:
                self._alive[key] = count
                continue
            self._alive.pop(key, None)
            if self._tasks.pop(n, None) is None:
                self._emptied.append(key)

    # ---- the rest

    def _add_cluster(self, new: ClusterAdded) -> None:
        row = (
            new.cluster,
            new.owner,
            new.key,
            new.count,
            new.priority,
            float(new.submitted_at),
            int(new.state),
            self._ledger.last_left,
            new.body,
        )
        self._clusters.append((*row, checksum(row), new.description, _crc32(new.description)))
        self._files += [(new.cluster, digest) for digest in new.digests]
        if new.deltas:
            self._deltas.append(_delta_blocks(new.cluster, new.deltas))

    def _edit(self, record: Edited) -> None:
        for edit in record.edits:
            row = (record.cluster, *edit, self._ledger.last_left)
            self._edits.append((*row, checksum(row)))

    def _add_notes(self, notes: list[Note]) -> None:
        for some in outbox.blocks(notes):
            self._notes.append(outbox.row(some))
            self._ledger.notes.add(some[0].n, [note.n for note in some])

    def _end_notes(self, ns: list[int]) -> None:
        staying, going = self._ledger.notes.done(ns)
        self._written += [(*note, checksum(note)) for note in staying]
        self._done += [(n,) for n in going]


def _head(n: int, cluster: int, block: Block) -> tuple[Any, ...]:
    procs = block.procs
    return n, cluster, block.first, block.last, len(procs), pack_procs(procs), block.state


def _row(block: Block, head: tuple[Any, ...], *alive: int) -> tuple[Any, ...]:
    body = pack_body(block)
    # As `checksum`, without its call and copy: this is the hot line of the store.
    return *head, _crc32(_pack(head)), *alive, body, _crc32(body)


def _delta_blocks(cluster: int, deltas: list[bytes]) -> Iterator[tuple[int, int, bytes, int]]:
    for number, block in enumerate(deltas):
        yield cluster, number * DELTA_BLOCK, block, _crc32(block)
