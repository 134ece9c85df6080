"""The slots of a worker: which attempt starts when, and what follows it there.

A slot is the room that an attempt holds. While tasks are short, attempts with the same needs are given to the keeper
ahead and follow each other in a slot without asking the worker. When another slot is free and nothing else waits, what
follows somewhere is taken back, so that nothing stays behind a long task. Behind one that failed the slot waits for the
worker's word.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from pilotq import wire
from pilotq.core.turn import Now
from pilotq.model import Ended, Outcome, Resources

#: A task that does not fit lets smaller ones pass for this long; then they wait until it does.
PASSED_S = 30.0
#: So much work, and so many attempts, may follow in a slot.
FOLLOW_S = 0.25
FOLLOWERS_MAX = 200
#: What counts as the time of a task when nothing is known, at most.
LONG_TASK_S = 10.0
#: So many quick failures in a row, and the node may be a black hole.
ROW_MAX = 3
#: A slot whose attempt runs for longer than this gets no more to follow.
STUCK_S = 0.2


@dataclass(eq=False, slots=True)
class Slot:
    """Room, the attempt that has it, and those that follow."""

    needs: Resources
    line: deque[Attempt] = field(default_factory=deque)
    #: Boot clock: when its attempt changed last.
    moved_at: float = 0.0
    #: May get more to follow, as it moved.
    is_open: bool = False
    #: Those of the line that the keeper was asked to give back.
    asked: set[wire.Token] = field(default_factory=set)

    def takes_more(self, most: int) -> bool:
        """May one more follow? Not one that may be gone before it is heard of: the keeper would not know it."""
        if not self.line or len(self.line) > most or self.line[0].suspended:
            return False
        last = self.line[-1]
        return last.phase != "ending" and last.token not in self.asked


@dataclass(eq=False, slots=True)
class Attempt:
    """An attempt that a worker holds."""

    token: wire.Token
    delta: bytes
    needs: Resources
    #: "staging", "waiting" (for room), "next" (follows another in its slot), "starting", "running" or "ending".
    phase: str = "staging"
    #: Its place among those that wait, and since when it has its files (boot clock).
    number: int = 0
    waiting_since: float = 0.0
    slot: Slot | None = None
    #: The master asked to end it: no result is wanted.
    killed: bool = False
    #: The master wants it stopped.
    suspended: bool = False

    @property
    def is_here_only(self) -> bool:
        """No keeper knows it."""
        return self.phase in ("staging", "waiting")


class Row:
    """Quick failures since the last task that ended well and began after them.

    When the row is long nothing begins until the master has judged all of it: so a node that turned bad fails at most
    `ROW_MAX` - 1 tasks, and one in each slot, before the master decides, however late it hears of them.
    """

    def __init__(self) -> None:
        self.length = 0
        #: When the one of them that began last did.
        self._began_at = 0.0
        #: Those whose result was not acknowledged.
        self._unjudged: set[wire.Token] = set()

    @property
    def must_wait(self) -> bool:
        """Is the master to judge before anything else begins?"""
        return self.length >= ROW_MAX and bool(self._unjudged)

    def note(self, token: wire.Token, end: Ended, began_at: float) -> None:
        """An attempt ended. Those of other keepers may be told late: they say nothing about what began after them."""
        if end.is_quick_failure:
            self.length += 1
            self._began_at = max(self._began_at, began_at)
            self._unjudged.add(token)
        elif end.outcome == Outcome.OK and began_at > self._began_at:
            self.length = 0
            self._unjudged.clear()

    def judged(self, token: wire.Token) -> None:
        self._unjudged.discard(token)


class Slots:
    """Room, attempts that wait for it, and attempts that have it."""

    def __init__(self, capacity: Resources, single_task: bool, now: Now) -> None:
        #: Of open slots.
        self.capacity = capacity
        self.used = [0, 0, 0, 0]
        #: Since when each open core that holds nothing is idle, in order.
        self.idle_since = [now.boot] * capacity.cpus
        self.waiting = 0
        #: Of the tasks that ended last.
        self.mean_task_s = 1e9
        self._single_task = single_task
        self._queues: dict[Resources, OrderedDict[wire.Token, Attempt]] = {}
        self._number = 0
        self._open: deque[Slot] = deque()
        #: Slots in which something follows; first those that did not move for longest.
        self._followed: OrderedDict[Slot, None] = OrderedDict()

    def check(self, attempts: list[Attempt]) -> None:
        """Raises: AssertionError when what is used does not add up."""
        slots = {id(a.slot): a.slot for a in attempts if a.slot}.values()
        assert sum(slot.needs.cpus for slot in slots) == self.used[0], self.used
        assert sum(len(slot.line) for slot in slots) == sum(1 for a in attempts if a.slot)
        assert sum(len(queue) for queue in self._queues.values()) == self.waiting
        assert [a.phase for a in attempts].count("waiting") == self.waiting
        assert all(len(slot.line) > 1 for slot in self._followed)

    # ---- wait

    def wait(self, attempt: Attempt, now: Now) -> None:
        """It has its files; one that was taken back waits where it was."""
        was_here = attempt.number
        if not was_here:
            self._number += 1
            attempt.number, attempt.waiting_since = self._number, now.boot
        attempt.phase = "waiting"
        queue = self._queues.setdefault(attempt.needs, OrderedDict())
        queue[attempt.token] = attempt
        if was_here:
            queue.move_to_end(attempt.token, last=False)
        self.waiting += 1

    def _stop_waiting(self, attempt: Attempt) -> None:
        queue = self._queues[attempt.needs]
        del queue[attempt.token]
        if not queue:
            del self._queues[attempt.needs]
        self.waiting -= 1

    # ---- start

    def too_large(self) -> list[Attempt]:
        """What can never start here, as slots closed."""
        large = [queue for needs, queue in self._queues.items() if needs.cpus > self.capacity.cpus]
        return [attempt for queue in large for attempt in queue.values()]

    def fill(self, now: Now) -> Iterator[tuple[Attempt, Attempt | None]]:
        """Attempts to be given to a keeper now, each with the one it follows."""
        passed: set[Resources] = set()
        while len(passed) < len(self._queues):
            firsts = [next(iter(queue.values())) for needs, queue in self._queues.items() if needs not in passed]
            attempt = min(firsts, key=_number)
            slot = self._new_slot(attempt.needs) if self._fits(attempt.needs) else self._open_slot(attempt.needs, now)
            if slot is None:
                if now.boot - attempt.waiting_since > PASSED_S:
                    return
                passed.add(attempt.needs)
                continue
            self._stop_waiting(attempt)
            before = slot.line[-1] if slot.line else None
            attempt.slot, attempt.phase = slot, "next" if before else "starting"
            slot.line.append(attempt)
            if before is None:
                self._moved(slot, now)
            else:
                self._followed[slot] = None
            yield attempt, before

    def _fits(self, needs: Resources) -> bool:
        capacity, used = self.capacity, self.used
        return (
            used[0] + needs.cpus <= capacity.cpus
            and (not needs.memory_bytes or used[1] + needs.memory_bytes <= capacity.memory_bytes)
            and (not needs.disk_bytes or used[2] + needs.disk_bytes <= capacity.disk_bytes)
            and used[3] + needs.gpus <= capacity.gpus
        )

    def _take(self, needs: Resources, sign: int) -> None:
        used = self.used
        used[0] += sign * needs.cpus
        used[1] += sign * needs.memory_bytes
        used[2] += sign * needs.disk_bytes
        used[3] += sign * needs.gpus

    def _new_slot(self, needs: Resources) -> Slot:
        self._take(needs, 1)
        del self.idle_since[len(self.idle_since) - min(needs.cpus, len(self.idle_since)) :]
        return Slot(needs)

    def _open_slot(self, needs: Resources, now: Now) -> Slot | None:
        """Where one more attempt may follow: each of the slots that moved in turn."""
        most = 0 if self._single_task else int(min(FOLLOWERS_MAX, FOLLOW_S / max(self.mean_task_s, 1e-3)))
        for _ in range(len(self._open)):
            slot = self._open.popleft()
            if slot.takes_more(most) and now.boot - slot.moved_at < STUCK_S:
                self._open.append(slot)
                if slot.needs == needs:
                    return slot
            else:
                slot.is_open = False
        return None

    def _moved(self, slot: Slot, now: Now) -> None:
        slot.moved_at = now.boot
        if not slot.is_open:
            slot.is_open = True
            self._open.append(slot)
        if slot in self._followed:
            self._followed.move_to_end(slot)

    # ---- end

    def leave(self, attempt: Attempt, now: Now) -> bool:
        """It waits no more and holds no room; True when its slot is free now."""
        slot = attempt.slot
        if slot is None:
            if attempt.phase == "waiting":
                self._stop_waiting(attempt)
            return False
        attempt.slot = None
        was_first = slot.line[0] is attempt
        slot.line.remove(attempt)
        slot.asked.discard(attempt.token)
        if len(slot.line) <= 1:
            self._followed.pop(slot, None)
        if not slot.line:
            self._take(slot.needs, -1)
            if self._single_task:
                self.close(slot.needs.cpus)
            else:
                self.idle_since += [now.boot] * slot.needs.cpus
            return True
        if was_first:
            self._moved(slot, now)
        return False

    def to_take_back(self) -> list[Attempt]:
        """When room is free and nothing waits: half of what follows where it followed for longest."""
        if not self._followed or self.waiting:
            return []
        for slot in self._followed:
            if not slot.asked and self._fits(slot.needs):
                followers = list(slot.line)[1:]
                return followers[len(followers) // 2 :]
        return []

    def ask(self, attempts: list[Attempt]) -> list[Attempt]:
        """Those of them that follow in a slot; they are to be taken back."""
        asked = [attempt for attempt in attempts if attempt.phase == "next"]
        for attempt in asked:
            if attempt.slot is not None:
                attempt.slot.asked.add(attempt.token)
        return asked

    def note_task_s(self, wall_s: float) -> None:
        """A task took so long."""
        self.mean_task_s = 0.8 * min(self.mean_task_s, LONG_TASK_S) + 0.2 * wall_s

    # ---- close

    def close(self, cpus: int) -> None:
        self.capacity = msgspec.structs.replace(self.capacity, cpus=max(0, self.capacity.cpus - cpus))

    def close_idle(self, timeout_s: float, now: Now) -> None:
        late = 0
        while late < len(self.idle_since) and now.boot - self.idle_since[late] >= timeout_s:
            late += 1
        if late:
            del self.idle_since[:late]
            self.close(late)


def _number(attempt: Attempt) -> int:
    return attempt.number
