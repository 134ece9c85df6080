"""Events and actions of the worker's core."""

from __future__ import annotations

from collections.abc import Sequence

from pilotq import wire
from pilotq.core.turn import Action, Event
from pilotq.model import Ended, Outcome, Resources


class FromMaster(Event, frozen=True):
    """A message; `link` is the number of the connection it came by."""

    link: int
    message: wire.Message


class LinkLost(Event, frozen=True):
    """The connection broke."""

    link: int


class FromKeepers(Event, frozen=True):
    """What keepers said: of ended attempts nothing runs any more; returned ones were not started."""

    started: Sequence[wire.Token] = ()
    #: With the moment it began, on a clock of the keepers.
    ended: Sequence[tuple[wire.Token, Ended, float]] = ()
    returned: Sequence[wire.Token] = ()


class FilesReady(Event, frozen=True):
    """The files of attempts are in the cache; or cannot be had (`reason`), for now (`may_pass`) or ever."""

    tokens: list[wire.Token]
    reason: str = ""
    may_pass: bool = False


class Drain(Event, frozen=True):
    """Leave when what runs has ended."""

    reason: str


class Terminate(Event, frozen=True):
    """Leave now: what runs is evicted."""


class Tick(Event, frozen=True):
    """The time `next_wakeup` named has come."""


class Connect(Action, frozen=True):
    """Open connection number `link` to the next master or foreman of the list, closing the one before."""

    link: int


class Say(Action, frozen=True):
    """Send a message on the present connection."""

    message: wire.Message


class Stage(Action, frozen=True):
    """Bring the files of attempts of one cluster into the cache, then `FilesReady`."""

    tokens: list[wire.Token]
    body: bytes
    deltas: list[bytes]
    #: Small files that came with them, by digest.
    inline: dict[str, memoryview] = {}  # noqa: RUF012 never changed


class Launch(Action, frozen=True):
    """Give an attempt to a keeper, to start now or when the one before it in its slot is over."""

    token: wire.Token
    body: bytes
    delta: bytes
    needs: Resources
    after: wire.Token | None


class TakeBack(Action, frozen=True):
    """Take an attempt back from its keeper when it still waits there."""

    token: wire.Token


class GoOn(Action, frozen=True):
    """What follows an attempt that failed may begin."""

    token: wire.Token


class End(Action, frozen=True):
    """End an attempt in its keeper with this outcome."""

    token: wire.Token
    outcome: Outcome
    #: At once.
    fast: bool = False
    #: By the signal for a removal.
    removed: bool = False


class Suspend(Action, frozen=True):
    """Stop all processes of an attempt, or let them go on."""

    token: wire.Token
    on: bool


class Discard(Action, frozen=True):
    """Nothing of these attempts is wanted any more: remove what is left of their sandboxes."""

    tokens: list[wire.Token]


class Serve(Action, frozen=True):
    """Answer `Pull` from the sandbox."""

    message: wire.Pull


class Describe(Action, frozen=True):
    """Small files came with a description: put them into the cache."""

    inline: dict[str, bytes]


class FileArrived(Action, frozen=True):
    """A piece of a kept file came."""

    message: wire.Chunk


class Known(Action, frozen=True):
    """The master knows this worker, and was told of its predecessors."""


class Leave(Action, frozen=True):
    """End the process."""

    reason: str
