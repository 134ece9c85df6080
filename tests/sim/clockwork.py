"""Virtual time: a heap of what comes next, clocks of hosts, and the loop of `pilotq.daemon` without asyncio."""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from pilotq import daemon
from pilotq.core.turn import Core, Now, Turn

#: From an event to the turn that takes it; what comes in between is taken in the same turn.
TURN_S = 0.0002
#: A run that takes more than this goes round in circles.
EVENTS_MAX = 200_000
_MASK = (1 << 64) - 1


class Died(Exception):
    """A process was killed between two effects."""


class Violation(Exception):
    """An invariant is broken."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


def number_of(text: str) -> int:
    """The same in every process."""
    return zlib.crc32(text.encode())


class Time:
    """What is due when, in order; and numbers that look random but depend only on the seed and what they are for."""

    def __init__(self, seed: int) -> None:
        self.t = 0.0
        self.steps = 0
        self._left = EVENTS_MAX
        self._seed = seed
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        #: Sentences about what happened; None: nobody wants them.
        self.trace: list[tuple[float, str]] | None = None

    def at(self, t: float, do: Callable[..., None], *args: Any) -> None:
        heappush(self._heap, (t, next(self._numbers), do, args))

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        heappush(self._heap, (self.t + seconds, next(self._numbers), do, args))

    def noise(self, *what: int) -> float:
        """From 0 to 1, the same for the same numbers."""
        return ((hash((self._seed, *what)) * 0x9E3779B97F4A7C15) & _MASK) / (1 << 64)

    def step(self) -> None:
        """A core is given an event."""
        self.steps += 1
        if self.steps > EVENTS_MAX:
            raise Violation("I13", f"after {EVENTS_MAX} steps it goes on as ever")

    def tell(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append((self.t, text))

    def run(self, until: float, is_over: Callable[[], bool] | None = None) -> None:
        """Let everything happen until then, or until it is over."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.t, _, do, args = heappop(heap)
            self._left -= 1
            if not self._left:
                raise Violation("I13", f"after {EVENTS_MAX} events it goes on as ever")
            try:
                do(*args)
            except Died:
                pass
            if is_over is not None and is_over():
                return
        self.t = max(self.t, until)


class Clock:
    """The clocks of a host: boot time with an origin and a rate of its own, wall time that may jump."""

    def __init__(self, origin: float, rate: float) -> None:
        self.origin, self.rate, self.wall_offset = origin, rate, 1_700_000_000.0

    def read(self, t: float) -> Now:
        return Now(self.origin + t * self.rate, self.wall_offset + t)

    def when(self, boot: float) -> float:
        """World time at which the boot clock shows this, rounded up as a loop's timer is."""
        return (boot - self.origin) / self.rate + 0.0005


class Daemon:
    """A process with a core. It may die before any effect, or be stopped for a while."""

    #: What happens while `committing` is on is reacted to, but not settled.
    def __init__(self, time: Time, clock: Clock, name: str) -> None:
        self.time, self.clock, self.name = time, clock, name
        self.core: Core
        self.is_dead = False
        self.paused_until = 0.0
        #: Effects until it dies; negative: it does not.
        self.fuse = -1
        self._inbox: deque[Any] = deque()
        self._is_settled = True
        self.committing = False
        #: What nobody waits for, until the next commit or this moment.
        self._later = Turn()
        self._later_at: float | None = None
        self._due = float("inf")
        self._turns = 0

    # ---- the loop

    def put(self, event: Any) -> None:
        if not self.is_dead:
            self._inbox.append(event)
            self._come_back(self.time.t + TURN_S)

    def _come_back(self, t: float) -> None:
        t = max(t, self.paused_until)
        if t < self._due:
            self._due = t
            self.time.at(t, self._turn, t)

    def _turn(self, due: float) -> None:
        if self.is_dead or due != self._due:
            return
        self._due = float("inf")
        if self.time.t < self.paused_until:
            self._come_back(self.paused_until)
            return
        now, inbox, react = self.clock.read(self.time.t), self._inbox, self.react
        while inbox:
            self._is_settled = False
            self.time.step()
            react(inbox.popleft(), now)
        self._pump(now)

    def _pump(self, now: Now) -> None:
        if self.committing:
            return
        wakeup = self.core.next_wakeup()
        if wakeup is not None and wakeup <= now.boot:
            self._is_settled = False
            self.time.step()
            self.core.react(self.new_tick(), now)
        if not self._is_settled:
            self._is_settled = True
            self._settle(now)
        turn = self._later
        if turn.may_wait and turn.records and self._later_at is None:
            self._later_at = self.time.t + daemon.LATER_S
        if self._later_at is None or not turn.may_wait or self.time.t >= self._later_at:
            self._later, self._later_at = Turn(), None
            self.take_turn(turn.records, turn.actions)
        if not self.committing:
            self._come_back_in_time()

    def _settle(self, now: Now) -> None:
        turn = self.core.settle(now)
        self._turns += 1
        if self._turns % 16 == 0:
            self.core.check()
        self.on_settled(turn)
        for action in turn.at_once:
            self.effect()
            self.perform(action)
        self._later = turn if self._later_at is None else daemon._joined(self._later, turn)

    def _come_back_in_time(self) -> None:
        wakeup = self.core.next_wakeup()
        if wakeup is not None and wakeup != float("inf"):
            self._come_back(max(self.clock.when(wakeup), self.time.t + TURN_S))
        if self._later_at is not None:
            self._come_back(self._later_at)

    def react(self, event: Any, now: Now) -> None:
        self.core.react(event, now)

    def resume(self) -> None:
        """A commit is over."""
        self.committing = False
        self._pump(self.clock.read(self.time.t))

    def new_tick(self) -> Any: ...

    def on_settled(self, turn: Turn) -> None:
        """The core has decided this."""

    def take_turn(self, records: list[Any], actions: list[Any]) -> None:
        for action in actions:
            self.effect()
            self.perform(action)
        self.flush()

    def perform(self, action: Any) -> None: ...

    def flush(self) -> None: ...

    # ---- faults

    def effect(self) -> None:
        """Something is about to be done that others can see."""
        if self.is_dead:
            raise Died
        if self.fuse >= 0:
            self.fuse -= 1
            if self.fuse < 0:
                self.time.tell(f"{self.name} dies between two effects")
                self.die(False)
                raise Died

    def die(self, is_silent: bool) -> None:
        """`is_silent`: its host died with it, nobody is told that connections are gone."""
        self.is_dead = True
        self._inbox.clear()

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, self.time.t + seconds)
