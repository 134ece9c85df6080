"""What the master remembers: the `Store` protocol, and what it gives back at a restart.

A store is used from one thread. `commit` writes all records of a turn in one transaction; when it returns they are on
disk. Everything that is read is checked against the checksum it was written with.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pilotq.core.records import Record
from pilotq.errors import UnavailableError
from pilotq.model import Edit, Facts, State

#: Keys of ended clusters that a restart brings back: far more than are submitted while a client still asks.
ENDED_KEYS_MAX = 10_000
#: In the table `meta`, before the name of a worker that is to leave.
DRAIN = "drain "

_pack = msgspec.msgpack.Encoder().encode


class StoreFull(UnavailableError):  # noqa: N818
    """The disk is full. Nothing of the transaction was kept; it may be tried again unchanged."""


class StoreBroken(UnavailableError):  # noqa: N818
    """What is on disk is not known any more: the process must end, and read the truth at its next start."""

    exit_code = 70


class StoreDamaged(UnavailableError):  # noqa: N818
    """One thing that was read is not what was written."""

    transient = False


class Final(msgspec.Struct, frozen=True, gc=False):
    """A note that ends tasks and is not written yet."""

    n: int
    cluster: int
    proc: int
    count: int
    attempt: int


class LiveCluster(msgspec.Struct, gc=False):
    """A cluster with tasks in the queue. Procs without a row of their own are in state `state`, attempt 0."""

    cluster: int
    owner: str
    key: str
    count: int
    priority: int
    submitted_at: float
    state: State
    #: Packed `ClusterBody`.
    body: bytes
    has_deltas: bool = False
    #: Tasks with a row, in columns: proc, `State`, latest attempt, `Facts`.
    procs: array[int] = msgspec.field(default_factory=lambda: array("I"))
    states: bytearray = msgspec.field(default_factory=bytearray)
    attempts: array[int] = msgspec.field(default_factory=lambda: array("I"))
    facts: list[Facts] = msgspec.field(default_factory=list)
    #: Tasks in the history: proc and `State`; how many of them are done with an outcome that is not OK.
    left: array[int] = msgspec.field(default_factory=lambda: array("I"))
    left_states: bytearray = msgspec.field(default_factory=bytearray)
    failed: int = 0
    #: In order.
    edits: list[Edit] = []
    #: Procs whose row is damaged, and what to tell. They are in no column; nothing else is known of them.
    damaged: dict[int, str] = {}


class Loaded(msgspec.Struct, gc=False):
    """All a restart needs, without descriptions and deltas."""

    #: Of the queue, made with the store.
    uuid: str
    #: Counts the starts of a master on this store; committed before `load` returns.
    epoch: int
    next_cluster: int
    next_note: int
    #: By id.
    clusters: list[LiveCluster]
    finals: list[Final]
    #: (owner, key, cluster) of clusters that left lately, `ENDED_KEYS_MAX` at most: their client may not have had its
    #: answer. `find_key` knows the others.
    ended_keys: list[tuple[str, str, int]]
    #: Names of workers that an operator wants to leave.
    drains: list[str]
    #: Sentences about damage that belongs to no known task.
    damage: list[str]


class Store(Protocol):
    """The durable queue, used from one thread.

    Raises: StoreFull or StoreBroken from `commit`; StoreDamaged from what reads one thing; KeyError for an unknown
    cluster.
    """

    @property
    def backlog(self) -> int:
        """Committed notes that are not known to be written. May be read from any thread."""

    def open(self, path: Path) -> None:
        """Take possession; one process at a time.

        Raises: UserError when the place or the version will not do.
        """

    def load(self) -> Loaded: ...

    def commit(self, records: list[Record]) -> None:
        """Write all records, in order, in one transaction."""

    def find_key(self, owner: str, key: str) -> list[int]:
        """The clusters that were ever submitted with this key, in their order; none: it is new."""

    def description(self, cluster: int) -> bytes: ...

    def body(self, cluster: int) -> bytes: ...

    def deltas(self, cluster: int, procs: list[int]) -> list[bytes]:
        """One packed delta per proc; empty when the cluster has none."""

    def digests_in_use(self) -> set[str]:
        """Kept files that live clusters need."""

    @property
    def has_ballast(self) -> bool:
        """False: the disk is, or lately was, full; nothing that can be refused should be accepted."""

    def release_ballast(self) -> bool:
        """Free the space kept for this moment; False when it is used up."""

    def restore_ballast(self) -> bool:
        """Take it again, once there is room enough; True when it is there."""

    def close(self) -> None: ...


def checksum(values: Iterable[Any]) -> int:
    """What the crc columns of the store hold: over the row's other values, packed in column order."""
    return zlib.crc32(_pack(tuple(values)))


def is_sound(data: Any, crc: int) -> bool:
    """Is a description, a body, or a block of deltas as it was written? Damaged it may be of any type."""
    return isinstance(data, bytes) and zlib.crc32(data) == crc
