"""Who writes what when: lanes of items, served by a few threads.

All that goes to one user log is one lane, and is written in order by one thread at a time. So a file system that does
not answer holds up its own lanes only; when it holds up threads, more are started.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto

import msgspec

THREADS = 8
THREADS_MAX = 64
#: A thread that is busy with one batch for longer does not count as one.
STUCK_S = 5.0
#: Items taken in before the first of them are written.
ITEMS_MAX = 20_000
RETRY_S = 1.0
RETRY_S_MAX = 60.0


class Item(msgspec.Struct, frozen=True, gc=False):
    """A note, or a part of one: for `count` procs of a cluster from `proc` on, which have the same log."""

    n: int
    cluster: int
    proc: int
    count: int
    #: Where the note is in the outbox.
    block: int


class _State(Enum):
    READY = auto()
    BUSY = auto()
    #: After something that may pass by itself.
    ASLEEP = auto()
    #: After something that will not: until something new comes, `wake`, or its user mended it and said nothing.
    BLOCKED = auto()


class Lane:
    """Items in the order they must be written."""

    __slots__ = ("busy_since", "delay_s", "failing_since", "is_stuck", "items", "key", "state", "wake_at")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: deque[Item] = deque()
        self.state = _State.READY
        self.busy_since = 0.0
        self.is_stuck = False
        self.delay_s = 0.0
        #: Monotonic: when one that was put aside is tried again.
        self.wake_at = 0.0
        #: Monotonic; None: it is well.
        self.failing_since: float | None = None


class Lanes:
    """All lanes that have items, shared by the threads."""

    def __init__(self, on_room: Callable[[], None]) -> None:
        #: `on_room` is called when there is room for more items again.
        self._on_room = on_room
        self._condition = threading.Condition()
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._asleep: list[tuple[float, str]] = []
        self._busy: set[Lane] = set()
        #: Items in lanes that move; those of others wait without limit, for they would keep everybody out.
        self._moving = 0
        self._idle = 0
        self._was_full = False

    def __len__(self) -> int:
        with self._condition:
            return sum(len(lane.items) for lane in self._lanes.values())

    @property
    def has_room(self) -> bool:
        with self._condition:
            self._was_full = self._moving >= ITEMS_MAX
            return not self._was_full

    def add(self, key: str, items: Sequence[Item]) -> None:
        with self._condition:
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = Lane(key)
                lane.items.extend(items)
                self._make_ready(lane)
                return
            lane.items.extend(items)
            if lane.state is _State.BLOCKED:
                self._make_ready(lane)
            elif lane.state is not _State.ASLEEP and not lane.is_stuck:
                self._moving += len(items)

    def wake(self, key: str) -> None:
        """Try a lane again now."""
        with self._condition:
            lane = self._lanes.get(key)
            if lane is not None and lane.state in (_State.BLOCKED, _State.ASLEEP):
                self._make_ready(lane)

    def take(self, limit: int) -> tuple[Lane, list[Item]] | None:
        """Wait for a lane with work: it, and the items at its front to write now. None: this thread is not needed."""
        with self._condition:
            self._idle += 1
            try:
                while not self._ready:
                    if self._idle > THREADS:
                        return None
                    self._condition.wait(self._until_wake())
                    self._wake_sleepers()
            finally:
                self._idle -= 1
            lane = self._ready.popleft()
            lane.state = _State.BUSY
            lane.busy_since = time.monotonic()
            self._busy.add(lane)
            batch: list[Item] = []
            for item in lane.items:
                if batch and limit < item.count:
                    break
                batch.append(item)
                limit -= item.count
            return lane, batch

    def finish(
        self, lane: Lane, taken: int, rest: list[Item], *, again: bool | None = None, is_well: bool = True
    ) -> list[Item]:
        """Give a lane back: of the items taken, `rest` stays.

        `again`: None at once, True soon, False when woken or after a while; then all items of the lane are returned.
        `is_well`: False keeps the time since when the lane has been failing.
        """
        with self._condition:
            self._busy.discard(lane)
            if lane.is_stuck:
                lane.is_stuck = False
            else:
                self._moving -= len(lane.items)
            for _ in range(taken):
                lane.items.popleft()
            lane.items.extendleft(reversed(rest))
            if again is None:
                if is_well:
                    lane.failing_since, lane.delay_s = None, 0.0
                if lane.items:
                    self._make_ready(lane)
                else:
                    del self._lanes[lane.key]
            else:
                self._put_aside(lane, again)
            if self._was_full and self._moving < ITEMS_MAX // 2:
                self._was_full = False
                self._on_room()
            return [] if again is None else list(lane.items)

    def _put_aside(self, lane: Lane, again: bool) -> None:
        now = time.monotonic()
        if lane.failing_since is None:
            lane.failing_since = now
        lane.state = _State.ASLEEP if again else _State.BLOCKED
        lane.delay_s = min(max(RETRY_S, 2 * lane.delay_s), RETRY_S_MAX) if again else RETRY_S_MAX
        lane.wake_at = now + lane.delay_s
        heapq.heappush(self._asleep, (lane.wake_at, lane.key))
        self._condition.notify()

    def watch(self) -> tuple[bool, list[str]]:
        """True when another thread would help; and the lanes whose writing does not come to an end, told once."""
        now, stuck = time.monotonic(), []
        with self._condition:
            for lane in self._busy:
                if not lane.is_stuck and now - lane.busy_since > STUCK_S:
                    lane.is_stuck = True
                    self._moving -= len(lane.items)
                    stuck.append(lane.key)
            is_short = bool(self._ready) and self._idle == 0 and any(lane.is_stuck for lane in self._busy)
            if stuck and self._was_full:
                self._on_room()
        return is_short, stuck

    def _make_ready(self, lane: Lane) -> None:
        lane.state = _State.READY
        self._moving += len(lane.items)
        self._ready.append(lane)
        self._condition.notify()

    def _until_wake(self) -> float | None:
        return max(0.0, self._asleep[0][0] - time.monotonic()) if self._asleep else None

    def _wake_sleepers(self) -> None:
        now = time.monotonic()
        while self._asleep and self._asleep[0][0] <= now:
            _, key = heapq.heappop(self._asleep)
            lane = self._lanes.get(key)
            if lane is not None and lane.state in (_State.ASLEEP, _State.BLOCKED) and lane.wake_at <= now:
                self._make_ready(lane)
