"""What the ledger keeps account of: submissions, payloads, and workers as the master saw them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pilotq import wire
from pilotq.core.turn import Route
from pilotq.model import ENDING, Outcome


class Spec(NamedTuple):
    """A cluster as its client wants it."""

    number: int
    count: int
    cpus: int
    task_s: float
    has_log: bool
    #: "": none; "small": they come with the result; "big": they are pulled.
    outputs: str
    #: "": none; "again": until it exits with 0; "leave".
    policy: str
    ignores_term: bool


@dataclass(eq=False)
class Payload:
    """One start of a task on a node."""

    token: wire.Token
    spec: Spec
    worker: str
    node: Any
    #: When its worker wanted it to start, for which it must have had a lease.
    launched_at: float
    started_at: float
    ends_at: float
    outcome: Outcome
    code: int
    #: Somebody ended it, so that it is reported like this.
    is_ended: bool = False
    wanted_end: Outcome = Outcome.CANCELLED
    over_at: float = float("inf")
    #: Since when it stands still.
    stopped_at: float = float("inf")

    @property
    def is_stopped(self) -> bool:
        return self.stopped_at < float("inf")

    @property
    def is_running(self) -> bool:
        return self.over_at == float("inf")

    @property
    def is_complete(self) -> bool:
        """It ended by itself, in a way that ends its task."""
        return not self.is_running and not self.is_ended and self.outcome in ENDING


@dataclass
class Seen:
    """What the master heard of a worker and told it."""

    offer: wire.Offer | None = None
    generation: int = -1
    route: Route | None = None
    #: Attempts it was given and has not reported on.
    open: set[wire.Token] = field(default_factory=set)
    #: When it said hello or sent a heartbeat last; the last one that was answered, so that it counts for its lease.
    heard_at: float = 0.0
    contact_at: float = 0.0
