"""What a keeper does besides answering: timers, and chores in small steps."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator

from pilotq.keeper.attempt import Attempt

#: Something long (copying, collecting, removing) that yields now and then, so that nothing waits for it.
Chore = Generator[None, None, None]
#: Chores get so much of one turn of the loop.
_TURN_S = 0.005
log = logging.getLogger(__name__)


class Agenda:
    """Timers and chores; those that name an attempt are void when it is over.

    A chore that raises is a bug: `on_failure` gets its attempt, the others go on.
    """

    def __init__(self, on_failure: Callable[[Attempt, Exception], None]) -> None:
        self._on_failure = on_failure
        self._chores: deque[tuple[Chore, Attempt | None]] = deque()
        self._timers: list[tuple[float, int, Attempt | None, Callable[[], None]]] = []
        #: Timers that were not void when they were last looked through.
        self._useful = 0
        self._numbers = itertools.count()

    def at(self, pause_s: float, attempt: Attempt | None, what: Callable[[], None]) -> None:
        """Do something later."""
        if len(self._timers) > 64 and len(self._timers) > 2 * self._useful:
            self._timers = [timer for timer in self._timers if not (timer[2] and timer[2].over)]
            self._useful = len(self._timers)
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (time.monotonic() + pause_s, next(self._numbers), attempt, what))

    def chore(self, chore: Chore, attempt: Attempt | None) -> None:
        """Begin it at once; what is not done in one step waits for its turns."""
        if not self._step(chore, attempt):
            self._chores.append((chore, attempt))

    def later(self, chore: Chore) -> None:
        """Begin it in the next turn; it belongs to no attempt."""
        self._chores.append((chore, None))

    def finish(self) -> None:
        """Do now what is left of chores that belong to no attempt."""
        chores, self._chores = self._chores, deque()
        for chore, attempt in chores:
            while attempt is None and not self._step(chore, None):
                pass

    def pause_s(self, until: float) -> float:
        """How long the loop may sleep: to the next thing to do, `until` at most."""
        if self._chores:
            return 0.0
        if self._timers:
            until = min(until, self._timers[0][0])
        return max(0.0, until - time.monotonic())

    def turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, attempt, what = heapq.heappop(self._timers)
            if attempt is None or not attempt.over:
                what()
        while self._chores and time.monotonic() < now + _TURN_S:
            chore, attempt = self._chores.popleft()
            if not self._step(chore, attempt):
                self._chores.append((chore, attempt))

    def _step(self, chore: Chore, attempt: Attempt | None) -> bool:
        """True when it is done."""
        try:
            next(chore)
        except StopIteration:
            return True
        except Exception as error:
            log.exception("a chore failed", extra={"attempt": attempt.name if attempt else ""})
            if attempt:
                self._on_failure(attempt, error)
            return True
        return False
