"""The store in memory: what tests and trials use instead of a disk.

It forgets everything with the object; `close` and `open` again are a restart of the master.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

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
from pilotq.deltas import find_delta
from pilotq.model import Edit, Facts, Outcome, State, add_edit
from pilotq.store import ENDED_KEYS_MAX, Final, LiveCluster, Loaded, StoreFull


class Row(NamedTuple):
    """A task in the store."""

    state: int
    attempt: int
    facts: Facts


class MemoryStore:
    """See `pilotq.store.Store`."""

    def __init__(self) -> None:
        self.clusters: dict[int, ClusterAdded] = {}
        self.live: set[int] = set()
        self.edits: dict[int, list[Edit]] = {}
        self.tasks: dict[tuple[int, int], Row] = {}
        #: In the order they left.
        self.history: dict[tuple[int, int], Row] = {}
        self.outbox: dict[int, Note] = {}
        self.drains: dict[str, None] = {}
        self.epoch = 0
        #: True: the disk is full until the ballast is released.
        self.is_full = False
        self._has_ballast = True

    def open(self, path: Path) -> None:
        self.epoch += 1

    def close(self) -> None:
        pass

    def commit(self, records: list[Record]) -> None:
        if self.is_full and self._has_ballast:
            raise StoreFull("no space is left for the store in memory")
        for record in records:
            match record:
                case ClusterAdded():
                    self.clusters[record.cluster] = record
                    self.live.add(record.cluster)
                case Edited():
                    for edit in record.edits:
                        add_edit(self.edits.setdefault(record.cluster, []), edit)
                case TaskRows():
                    self.tasks.update(_rows(record))
                case TasksLeft():
                    for task, row in _rows(record).items():
                        self.tasks.pop(task, None)
                        assert task not in self.history, f"{task} left the queue twice"
                        self.history[task] = row
                case ClusterLeft():
                    self.live.discard(record.cluster)
                case NotesAdded():
                    self.outbox.update((note.n, note) for note in record.notes)
                case NotesDone():
                    for n in record.ns:
                        self.outbox.pop(n, None)
                case DrainWanted(name, on):
                    self.drains.pop(name, None)
                    self.drains.update({name: None} if on else {})

    def load(self) -> Loaded:
        live = {number: _live(self.clusters[number]) for number in sorted(self.live)}
        for number, cluster in live.items():
            cluster.edits = list(self.edits.get(number, ()))
        for (number, proc), row in sorted(self.tasks.items()):
            cluster = live[number]
            cluster.procs.append(proc)
            cluster.states.append(row.state)
            cluster.attempts.append(row.attempt)
            cluster.facts.append(row.facts)
        for (number, proc), row in sorted(self.history.items()):
            if number in live:
                live[number].left.append(proc)
                live[number].left_states.append(row.state)
                if row.state == State.DONE and row.facts.outcome != Outcome.OK:
                    live[number].failed += 1
        return Loaded(
            uuid="memory",
            epoch=self.epoch,
            next_cluster=max(self.clusters, default=0) + 1,
            next_note=(self.epoch << 40) + 1,
            clusters=list(live.values()),
            finals=[
                Final(n, note.cluster, note.proc, note.count, note.attempt)
                for n, note in sorted(self.outbox.items())
                if note.final
            ],
            ended_keys=[
                (added.owner, added.key, number)
                for number, added in sorted(self.clusters.items())
                if added.key and number not in self.live
            ][-ENDED_KEYS_MAX:],
            drains=list(self.drains),
            damage=[],
        )

    def find_key(self, owner: str, key: str) -> list[int]:
        named = [(added.key.rpartition("/")[0], added) for added in self.clusters.values()]
        return sorted(added.cluster for name, added in named if (added.owner, name) == (owner, key))

    def description(self, cluster: int) -> bytes:
        return self.clusters[cluster].description

    def body(self, cluster: int) -> bytes:
        return self.clusters[cluster].body

    def deltas(self, cluster: int, procs: list[int]) -> list[bytes]:
        deltas = self.clusters[cluster].deltas if cluster in self.clusters else []
        return [find_delta(deltas, proc) for proc in procs] if deltas else []

    def digests_in_use(self) -> set[str]:
        return {digest for number in self.live for digest in self.clusters[number].digests}

    @property
    def backlog(self) -> int:
        return len(self.outbox)

    @property
    def has_ballast(self) -> bool:
        return self._has_ballast

    def release_ballast(self) -> bool:
        had, self._has_ballast = self._has_ballast, False
        return had

    def restore_ballast(self) -> bool:
        self._has_ballast = self._has_ballast or not self.is_full
        return self._has_ballast


def _rows(record: TaskRows | TasksLeft) -> dict[tuple[int, int], Row]:
    columns = zip(record.procs, record.states, record.attempts, record.facts, strict=True)
    return {(record.cluster, proc): Row(state, attempt, facts) for proc, state, attempt, facts in columns}


def _live(added: ClusterAdded) -> LiveCluster:
    return LiveCluster(
        added.cluster,
        added.owner,
        added.key,
        added.count,
        added.priority,
        added.submitted_at,
        added.state,
        added.body,
        has_deltas=bool(added.deltas),
    )
