"""What the master's core wants remembered. The store writes all records of a turn in one transaction, in order."""

from __future__ import annotations

import msgspec

from pilotq.model import Edit, Facts, OutputFile, State


class ClusterAdded(msgspec.Struct, frozen=True):
    """A new cluster with all its procs; unstarted ones have no row of their own."""

    cluster: int
    owner: str
    #: Made by the client; the same key of the same owner is the same cluster. "": none.
    key: str
    count: int
    priority: int
    submitted_at: float
    #: Packed `ClusterBody` and `Description`.
    body: bytes
    description: bytes
    #: Empty, or in blocks (`pilotq.deltas`).
    deltas: list[bytes]
    #: Kept files it needs.
    digests: list[str]
    #: State its procs begin in: IDLE or HELD.
    state: State = State.IDLE


class TaskRows(msgspec.Struct, frozen=True):
    """Insert or replace the rows of live tasks of a cluster."""

    cluster: int
    procs: list[int]
    states: list[int]
    attempts: list[int]
    #: One per proc; what is the same object is stored once.
    facts: list[Facts]


class TasksLeft(msgspec.Struct, frozen=True):
    """These tasks leave the queue: their rows move to the history."""

    cluster: int
    procs: list[int]
    states: list[int]
    attempts: list[int]
    facts: list[Facts]
    at: float


class Edited(msgspec.Struct, frozen=True):
    """Attributes of tasks of a cluster were changed, in this order."""

    cluster: int
    edits: list[Edit]


class ClusterLeft(msgspec.Struct, frozen=True):
    """Its last proc left the queue: not loaded again, its kept files are free."""

    cluster: int


class Note(msgspec.Struct, frozen=True, array_like=True):
    """Something the scribe writes for the user: an event of the user log, and the outputs of an ended attempt."""

    #: Increasing, never reused.
    n: int
    #: HTCondor's number of the user-log event (0 submitted, 1 executing, 5 terminated, ...); -1: none.
    event: int
    cluster: int
    proc: int
    #: The event is written for this many procs from `proc` on.
    count: int
    #: Wall clock.
    at: float
    facts: Facts = Facts()
    outputs: list[OutputFile] = []
    #: Attempt whose outputs they are (names their spool directory).
    attempt: int = 0
    #: True: the core waits for `Delivered` (or `Undelivered`) to end the task.
    final: bool = False


class NotesAdded(msgspec.Struct, frozen=True):
    """Notes of one cluster, in order."""

    notes: list[Note]


class NotesDone(msgspec.Struct, frozen=True):
    """The scribe has written these."""

    ns: list[int]


class DrainWanted(msgspec.Struct, frozen=True):
    """An operator wants this worker to leave; or it is gone, and nobody need remember that."""

    worker: str
    on: bool


Record = ClusterAdded | Edited | TaskRows | TasksLeft | ClusterLeft | NotesAdded | NotesDone | DrainWanted
