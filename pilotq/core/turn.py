"""What goes into a core and what comes out: `Now`, `Turn`, and the master's events and actions.

A core is `handle(event, now) -> Turn`. The shell commits the records of a turn first, in one transaction, and performs
its actions only then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from pilotq import wire
from pilotq.core.records import Note, Record
from pilotq.core.tasks import Cluster
from pilotq.model import Facts, OutputFile, Resources


class Now(NamedTuple):
    """One reading of both clocks."""

    #: CLOCK_BOOTTIME, seconds: leases and wake-ups.
    boot: float
    #: Seconds since 1970: records and expressions.
    wall: float


@dataclass
class Turn:
    """What one event led to."""

    records: list[Record] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    #: Actions that need not wait for the commit of the records: whose effects may happen again, and tell nobody.
    at_once: list[Any] = field(default_factory=list)
    #: Nobody waits for its commit, which may be that of a later turn.
    may_wait: bool = False


class Route(NamedTuple):
    """The way to a worker: the peer of our socket, and the session a foreman gave it (empty: the peer itself)."""

    peer: bytes
    session: bytes


class Core(Protocol):
    """The deciding part of a role: it reacts to any number of events, then settles what follows from them all."""

    def react(self, event: Any, now: Now) -> None:
        """Take one event in; never raises on what a peer or user sent."""

    def settle(self, now: Now) -> Turn:
        """What is to be remembered and done now."""

    def next_wakeup(self) -> float | None:
        """Boot time of the next `Tick`."""

    def handle(self, event: Any, now: Now) -> Turn:
        """React to one event and settle."""
        self.react(event, now)
        return self.settle(now)


class Event(msgspec.Struct, frozen=True):
    """Something that happened."""


class Action(msgspec.Struct, frozen=True):
    """Something to be done."""


# ---- events of the master ----------------------------------------------------------------------------------------


class FromPeer(Event, frozen=True):
    """A message; role and name come from the key of the connection alone."""

    route: Route
    role: str
    name: str
    message: wire.Message


class PeerLost(Event, frozen=True):
    """The socket cannot reach this peer any more. It says nothing about tasks."""

    peer: bytes


class NewCluster(msgspec.Struct, frozen=True):
    """A cluster as admitted: what the core needs to know of it, and the packed rest."""

    owner: str
    count: int
    needs: Resources
    priority: int
    has_log: bool
    body: bytes
    description: bytes
    #: Empty, or in blocks (`pilotq.deltas`).
    deltas: list[bytes]
    digests: list[str]
    #: Policy expressions by name.
    policies: dict[str, str]
    hold_reason: str
    submitted_at: float


class Submit(Event, frozen=True):
    """Wants `Answer` with the list of cluster ids."""

    reply: int
    key: str
    clusters: list[NewCluster]
    #: What the store has of this key, when the queue may have forgotten it.
    known: list[int] = []


class Act(Event, frozen=True):
    """Something people want of tasks; wants `Answer` with a list of (cluster, proc, result)."""

    reply: int
    #: See `acts.Acts`.
    verb: str
    #: (cluster, proc); proc -1: all its live procs. An empty list: all live tasks.
    selection: list[tuple[int, int]]
    reason: str
    #: Of "hold".
    subcode: int = 0
    #: Of "edit", which is done to all of the selection or to none: attribute -> expression; `adjust`: JobPrio grows by
    #: that.
    edits: dict[str, str] = {}
    adjust: bool = False


class Wait(Event, frozen=True):
    """Wants `Answer` with the `Cluster` when it is over, or with None when it is not in the queue."""

    reply: int
    cluster: int


class Delivered(Event, frozen=True):
    """The scribe has written these notes."""

    ns: list[int]


class Undelivered(Event, frozen=True):
    """The scribe cannot write a note until somebody changes something."""

    n: int
    errno: int
    reason: str


class Collected(Event, frozen=True):
    """The outputs of an attempt are in the spool, synced; or cannot be had (`reason`), for now (`retry`) or ever."""

    token: wire.Token
    reason: str = ""
    retry: bool = False


class SetDrain(Event, frozen=True):
    on: bool


class WorkerVerb(Event, frozen=True):
    """An operator's "drain" or "forget" for a worker; wants `Answer` with True or False (unknown)."""

    reply: int
    worker: str
    verb: str


class SetKeys(Event, frozen=True):
    """Who may come in, and nobody else: whoever came with another key is not reached and not heard any more."""

    #: Public key, name, and end (wall clock; 0: none) of those of workers; foremen let these in.
    workers: list[tuple[str, str, float]]
    #: Names of those of foremen.
    foremen: list[str]
    #: Public key of the pair that foremen serve with.
    serve: str = ""


class Tick(Event, frozen=True):
    """The time `next_wakeup` named has come."""


# ---- actions of the master ---------------------------------------------------------------------------------------


class Send(Action, frozen=True):
    route: Route
    message: wire.Message


class SendAssign(Action, frozen=True):
    """`wire.Assign`; the shell adds the deltas from the store."""

    route: Route
    cluster: int
    procs: list[int]
    attempts: list[int]
    has_deltas: bool


class SendDescription(Action, frozen=True):
    """`wire.Describe`; the shell adds the body from the store."""

    peer: bytes
    cluster: int


class Answer(Action, frozen=True):
    reply: int
    value: Any


class Collect(Action, frozen=True):
    """Pull the outputs that were not inline into the spool, then `Collected`."""

    route: Route
    token: wire.Token
    outputs: list[OutputFile]


class Discard(Action, frozen=True):
    """Remove what was pulled of these attempts, if anything was."""

    tokens: list[wire.Token]


class WakeScribe(Action, frozen=True):
    """Notes up to this number are committed."""

    n: int


class HandNotes(Action, frozen=True):
    """Outputs of one cluster that the scribe may bring home while the notes of them are committed."""

    notes: list[Note]


def may_wait(action: Any) -> bool:
    """Does nobody wait for this?"""
    if isinstance(action, Send):
        return isinstance(action.message, wire.Ack | wire.Forget)
    return isinstance(action, Discard | ClusterGone | WakeScribe)


class RetryNotes(Action, frozen=True):
    ns: list[int]


class ClusterGone(Action, frozen=True):
    """Nothing of this cluster is needed any more: caches may drop it."""

    cluster: int


class Tell(Action, frozen=True):
    """For the log of the daemon: one constant sentence and its facts."""

    text: str
    facts: dict[str, Any] = {}


class Stop(Action, frozen=True):
    reason: str


class Evaluator(Protocol):
    """Evaluates expressions of policies. Undefined, errors, and what is no number and no text are None."""

    def __call__(
        self, expr: str, cluster: Cluster, proc: int, facts: Facts, now: float
    ) -> bool | float | str | None: ...
