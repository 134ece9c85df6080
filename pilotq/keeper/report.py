"""What a keeper tells its worker, and when."""

from __future__ import annotations

from collections import OrderedDict

from pilotq.keeper import talk
from pilotq.wire import Token

#: A start is told after this, unless the attempt ended before.
STARTED_S = 0.02
#: While other work waits here, ends wait as well, so that they come in batches: so long, and so many.
ENDED_S = 0.05
_ENDS_MAX = 100


class Report:
    """Starts of what runs for a while; ends at once, or in batches while the slots have work without the worker and
    nothing fails."""

    def __init__(self, pipe: talk.Pipe[talk.Order]) -> None:
        self._pipe = pipe
        #: When the start, or the first of the ends, must be told.
        self._starts: OrderedDict[Token, tuple[float, int]] = OrderedDict()
        self._ends: list[talk.Exited] = []
        self._ends_at = 0.0

    def started(self, token: Token, pid: int, now: float) -> None:
        self._starts[token] = (now + STARTED_S, pid)

    def ended(self, exited: talk.Exited, now: float) -> None:
        self._starts.pop(exited.token, None)
        if not self._ends:
            self._ends_at = now + ENDED_S
        self._ends.append(exited)

    def tell_ends(self) -> None:
        """All of them now."""
        for exited in self._ends:
            self._pipe.put(exited)
        self._ends.clear()

    def due_at(self, otherwise: float) -> float:
        """When `tell` has something to do."""
        if self._ends:
            otherwise = min(otherwise, self._ends_at)
        if self._starts:
            otherwise = min(otherwise, next(iter(self._starts.values()))[0])
        return otherwise

    def tell(self, now: float, is_busy: bool) -> None:
        """Say what is due; all ends when nothing waits to be started."""
        if self._ends and (not is_busy or now >= self._ends_at or len(self._ends) >= _ENDS_MAX):
            self.tell_ends()
        while self._starts:
            token, (at, pid) = next(iter(self._starts.items()))
            if at > now:
                return
            del self._starts[token]
            self._pipe.put(talk.Launched(token, pid))
