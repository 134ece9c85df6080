"""What a reader of the store finds: clusters, runs of tasks, blocks; and the bodies it keeps."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from pilotq.condor.jobad import Common, Template
from pilotq.core.tasks import NO_FACTS
from pilotq.deltas import Block as Deltas
from pilotq.model import Edit, Facts, Resources, State
from pilotq.store.blocks import LEFT, paint, procs_of

COMMONS_MAX = 20_000


class _States(dict[int, State]):
    def __missing__(self, value: object) -> State:
        """Damaged: it waits for a person."""
        return State.HELD


STATES = _States({int(state): state for state in State})


@dataclass(eq=False, slots=True)
class Cluster:
    """A cluster's row."""

    id: int
    owner: str
    count: int
    #: Of its procs without a row.
    state: State
    template: Template
    in_blocks: bool
    #: Somebody changed something.
    is_edited: bool
    #: With the last block of the history before each; None: not read yet.
    edits: list[tuple[Edit, int]] | None = None
    #: By the edits that count.
    edited: dict[tuple[Edit, ...], Template] = field(default_factory=dict)
    #: First proc and deltas of the block read last.
    block: tuple[int, Deltas | None] = (0, None)
    #: Of a task without an own need; None: not read yet.
    needs: Resources | None = None

    @property
    def has_deltas(self) -> bool:
        """May its tasks differ in any attribute?"""
        return self.in_blocks or self.is_edited


@dataclass(frozen=True, slots=True)
class Run:
    cluster: Cluster
    first: int
    count: int
    state: State
    attempt: int = 0
    #: Of each of them.
    facts: Facts = NO_FACTS
    #: Block of the history it is in; 0: it is in the queue.
    left: int = 0


class TaskBlock(NamedTuple):
    """Columns of a row of `task` or `history`."""

    n: int
    cluster: int
    first: int
    last: int
    size: int
    packed: bytes
    state: int

    @property
    def procs(self) -> Sequence[int]:
        return procs_of(self.first, self.last, self.packed)


class Commons:
    """Prepared bodies of the clusters asked for last; shared by all threads. A cluster's body never changes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, float], Common] = OrderedDict()

    def find(self, key: tuple[int, float]) -> Common | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: tuple[int, float], common: Common) -> None:
        with self._lock:
            self._kept[key] = common
            while len(self._kept) > COMMONS_MAX:
                self._kept.popitem(last=False)


def states_of(tasks: list[TaskBlock], left: list[TaskBlock]) -> bytes:
    """By proc: code of its state; NONE; LEFT. It ends with the highest proc that was touched."""
    states = array("b")
    for block in tasks:
        paint(states, block.procs, block.state)
    for block in left:
        paint(states, block.procs, LEFT)
    return states.tobytes()


def alike(cluster: Cluster, first: int, end: int, state: State, details: dict[int, tuple[int, Facts]]) -> Iterator[Run]:
    """Runs of tasks of one block that have attempt and facts in common."""
    start, attempt, facts = first, *details[first]
    for proc in range(first + 1, end):
        own = details[proc]
        if own[0] != attempt or own[1] is not facts:
            yield Run(cluster, start, proc - start, state, attempt, facts)
            start, attempt, facts = proc, *own
    yield Run(cluster, start, end - start, state, attempt, facts)
