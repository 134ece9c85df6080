"""Clusters and their procs in columns: where a million tasks live.

A task is a byte of state and four bytes of attempt number. `Facts` exist only for tasks that were assigned, held or
edited. Ready procs are found by a pointer that moves once over the cluster, and a heap of those that came back.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from heapq import heappop, heappush

from pilotq.errors import InternalError
from pilotq.model import ON_WORKER, TRANSITIONS, Edit, Ended, Facts, Resources, State, add_edit

_STATES = len(State) + 1
#: Tasks that came back and are not for this worker: so many are looked at.
_PASSED_MAX = 100
#: Submit keyword of a policy -> attribute; and the other way round, in lower case.
POLICY_ATTRIBUTES = {
    "periodic_hold": "PeriodicHold",
    "periodic_remove": "PeriodicRemove",
    "periodic_release": "PeriodicRelease",
    "on_exit_hold": "OnExitHold",
    "on_exit_remove": "OnExitRemove",
    "leave_in_queue": "LeaveJobInQueue",
    "periodic_hold_reason": "PeriodicHoldReason",
    "periodic_hold_subcode": "PeriodicHoldSubCode",
    "on_exit_hold_reason": "OnExitHoldReason",
    "on_exit_hold_subcode": "OnExitHoldSubCode",
}
POLICY_KEYWORDS = {attribute.lower(): keyword for keyword, attribute in POLICY_ATTRIBUTES.items()}
#: Of a task that was never touched.
NO_FACTS = Facts()
#: By the byte of a state: itself, and the bytes of the states that may follow it.
_STATE_OF: tuple[State, ...] = (State.IDLE, *State)
_MAY_FOLLOW = [frozenset(int(new) for new in TRANSITIONS.get(old, ())) for old in _STATE_OF]


def completed(old: Facts, end: Ended, wall: float, *, was_started: bool) -> Facts:
    """The facts of a task whose payload ended by itself; its start may not have been told before."""
    usage = end.usage
    began = old.last_started_at if was_started else max(wall - usage.wall_s, old.entered_at)
    # By position, in the order of `Facts`: this is the hot line of the master.
    return Facts(
        wall,
        old.first_started_at or began,
        began,
        wall,
        old.starts if was_started else old.starts + 1,
        old.losses,
        old.holds,
        old.host,
        old.worker,
        old.wall_s + usage.wall_s,
        usage,
        int(end.outcome),
        end.code,
        end.reason,
        old.hold_code,
        old.hold_subcode,
        old.release_reason,
        old.sent_bytes + sum([output.size_bytes for output in end.outputs]) if end.outputs else old.sent_bytes,
        old.received_bytes,
        old.lost_on,
        old.suspensions,
        old.completions + 1,
    )


class Cluster:
    """Tasks submitted together."""

    __slots__ = (
        "_fresh",
        "_returned",
        "attempts",
        "counts",
        "edits",
        "facts",
        "failed",
        "fenced",
        "has_deltas",
        "has_log",
        "id",
        "left",
        "needs",
        "owner",
        "policies",
        "priorities",
        "priority",
        "states",
        "submitted_at",
    )

    def __init__(
        self,
        cluster: int,
        owner: str,
        count: int,
        needs: Resources,
        *,
        priority: int = 0,
        submitted_at: float = 0.0,
        has_log: bool = False,
        has_deltas: bool = False,
        policies: dict[str, str] | None = None,
        state: State = State.IDLE,
    ) -> None:
        self.id = cluster
        self.owner = owner
        self.needs = needs
        self.priority = priority
        self.submitted_at = submitted_at
        self.has_log = has_log
        self.has_deltas = has_deltas
        self.policies = policies or {}
        self.states = bytearray([state]) * count
        #: Number of the latest attempt of each proc; 0: none yet.
        self.attempts = array("I", bytes(4 * count))
        #: Tasks by state; index: State.
        self.counts = [0] * _STATES
        self.counts[state] = count
        #: What changed in tasks that have a row.
        self.facts: dict[int, Facts] = {}
        #: Tasks that left the queue, and those of them (or staging out) whose outcome was not OK.
        self.left = 0
        self.failed = 0
        #: Idle tasks whose last attempt was told to end and may still run: not to be started before it has.
        self.fenced: set[int] = set()
        #: What was changed since the submission, in order.
        self.edits: list[Edit] = []
        #: Of tasks with another priority than the cluster's.
        self.priorities: dict[int, int] = {}
        self._fresh = 0
        self._returned: list[int] = []

    def __len__(self) -> int:
        return len(self.states)

    def has(self, proc: int) -> bool:
        return 0 <= proc < len(self.states)

    def state(self, proc: int) -> State:
        return _STATE_OF[self.states[proc]]

    def facts_of(self, proc: int) -> Facts:
        return self.facts.get(proc, NO_FACTS)

    def move(self, proc: int, state: State) -> None:
        """Change the state of a task.

        Raises: InternalError when the table of transitions does not have it.
        """
        old = self.states[proc]
        if old == state:
            return
        if state.value not in _MAY_FOLLOW[old]:
            raise InternalError(f"task {self.id}.{proc} cannot go from {State(old).name} to {state.name}")
        self.put(proc, state)
        if state == State.IDLE:
            self.came_back(proc)

    def came_back(self, proc: int) -> None:
        """An idle task is to be found again before those that were never taken."""
        heappush(self._returned, proc)

    def put(self, proc: int, state: State) -> None:
        """Set a state without the rules: what the store knows at a restart."""
        self.counts[self.states[proc]] -= 1
        self.counts[state] += 1
        self.states[proc] = state

    def put_all(self, procs: list[int], state: State) -> None:
        """The same for many; those that follow each other in one step."""
        states, counts, count = self.states, self.counts, len(procs)
        first = procs[0]
        if procs[-1] - first + 1 == count and procs == list(range(first, first + count)):
            for old in set(states[first : first + count]):
                counts[old] -= states.count(old, first, first + count)
            states[first : first + count] = bytes((state,)) * count
        else:
            for proc in procs:
                counts[states[proc]] -= 1
                states[proc] = state
        counts[state] += count

    def untouched(self, procs: list[int]) -> list[int]:
        """Those that wait and have no row: nothing ever happened to them."""
        states, facts = self.states, self.facts
        return [proc for proc in procs if states[proc] == State.IDLE and proc not in facts]

    # ---- edits

    def edit(self, change: Edit) -> None:
        """Change an attribute of some tasks; what the queue itself knows of it as well."""
        add_edit(self.edits, change)
        name = change.name.lower()
        if name in POLICY_KEYWORDS:
            # Without a value it is one for some tasks alone.
            self.policies = {POLICY_KEYWORDS[name]: "", **self.policies}
        elif name == "jobprio":
            self._prioritize(change.first, change.last, int(change.value))

    def edited(self, name: str, proc: int) -> str | None:
        """The value of an attribute, in lower case, that was changed."""
        for change in reversed(self.edits):
            if change.first <= proc <= change.last and change.name.lower() == name:
                return change.value
        return None

    def policy(self, keyword: str, proc: int) -> str:
        """The expression of a policy for a task; ""."""
        text = self.edited(POLICY_ATTRIBUTES[keyword].lower(), proc) if self.edits else None
        return self.policies.get(keyword, "") if text is None else text

    def priority_of(self, proc: int) -> int:
        return self.priorities.get(proc, self.priority)

    @property
    def top_priority(self) -> int:
        """Of the idle tasks, the highest."""
        if not self.priorities:
            return self.priority
        own = [priority for proc, priority in self.priorities.items() if self.states[proc] == State.IDLE]
        return max([*own, self.priority] if self.idle > len(own) else own, default=self.priority)

    def _prioritize(self, first: int, last: int, priority: int) -> None:
        if first > 0 or last < len(self.states) - 1:
            self.priorities.update(dict.fromkeys(range(first, last + 1), priority))
            return
        self.priority, before = priority, self.priorities
        self.priorities = {}
        for proc in before:
            if self.states[proc] == State.IDLE:
                self.came_back(proc)

    # ---- idle tasks

    @property
    def is_over(self) -> bool:
        """Nothing of it will run unless somebody does something."""
        counts = self.counts
        return counts[State.DONE] + counts[State.CANCELLED] + counts[State.HELD] == len(self.states)

    @property
    def idle(self) -> int:
        return self.counts[State.IDLE]

    def take(self, limit: int, admits: Callable[[int], bool]) -> list[int]:
        """Up to `limit` idle procs, those that came back first, then in order. They must be moved by the caller.

        Of those that came back, `admits` says which may go there. All have the same priority, the highest.
        """
        if not self.priorities:
            return self._take(limit, admits)
        top = self.top_priority
        own = [proc for proc in sorted(self.priorities) if self.priorities[proc] == top]
        ready = [proc for proc in own if self.states[proc] == State.IDLE and proc not in self.fenced]
        procs = [proc for proc in ready if admits(proc)][:limit]
        return procs if top > self.priority else procs + self._take(limit - len(procs), admits)

    def _take(self, limit: int, admits: Callable[[int], bool]) -> list[int]:
        """Of those without a priority of their own."""
        states = self.states
        procs, passed = self._take_returned(limit, admits) if self._returned else ([], [])
        wanted = limit - len(procs)
        end = self._fresh + wanted
        if (
            not (procs or passed or self.fenced or self.priorities)
            and states.count(State.IDLE, self._fresh, end) == wanted
        ):
            first, self._fresh = self._fresh, end
            return list(range(first, end))
        taken = {*procs, *passed}
        while len(procs) < limit:
            proc = states.find(State.IDLE, self._fresh)
            if proc < 0:
                self._fresh = len(states)
                break
            self._fresh = proc + 1
            if proc not in taken and proc not in self.fenced and proc not in self.priorities:
                procs.append(proc)
        return procs

    def _take_returned(self, limit: int, admits: Callable[[int], bool]) -> tuple[list[int], list[int]]:
        """Those that are taken, and those that wait for another worker."""
        procs: list[int] = []
        passed: list[int] = []
        while self._returned and len(procs) < limit and len(passed) < _PASSED_MAX:
            proc = heappop(self._returned)
            if proc in self.priorities:
                continue
            if self.states[proc] == State.IDLE and proc not in procs[-1:] and proc not in self.fenced:
                (procs if admits(proc) else passed).append(proc)
        for proc in passed:
            heappush(self._returned, proc)
        return procs, passed

    def fence(self, proc: int) -> None:
        self.fenced.add(proc)

    def live_procs(self) -> list[int]:
        """Procs still in the queue."""
        left = (State.DONE, State.CANCELLED)
        return [proc for proc, state in enumerate(self.states) if state not in left or proc in self.facts]

    def columns(self, procs: list[int]) -> tuple[list[int], list[int], list[int], list[Facts]]:
        """Procs, states, attempts and facts of these tasks."""
        states, attempts, facts = self.states, self.attempts, self.facts
        return (
            procs,
            [states[proc] for proc in procs],
            [attempts[proc] for proc in procs],
            [facts.get(proc, NO_FACTS) for proc in procs],
        )

    def check(self) -> None:
        """Raises: InternalError when something does not add up."""
        for state in State:
            if self.states.count(state) != self.counts[state]:
                raise InternalError(f"cluster {self.id}: wrong count of {state.name}")
        ended = self.counts[State.DONE] + self.counts[State.CANCELLED]
        if self.left > ended:
            raise InternalError(f"cluster {self.id}: {self.left} left, {ended} ended")
        for proc, value in enumerate(self.states):
            if value in ON_WORKER and not self.attempts[proc]:
                raise InternalError(f"task {self.id}.{proc} is on a worker without an attempt")


class Ready:
    """Clusters with idle tasks, by what they need; within a need by priority, then age."""

    def __init__(self) -> None:
        self._heaps: dict[Resources, list[tuple[int, int]]] = {}
        self._queued: dict[int, tuple[int, int]] = {}

    def add(self, cluster: Cluster) -> None:
        key = (-cluster.top_priority, cluster.id)
        if self._queued.get(cluster.id) == key:
            return
        self._queued[cluster.id] = key
        heappush(self._heaps.setdefault(cluster.needs, []), key)

    def remove(self, cluster: Cluster) -> None:
        """Let others of its need come first, until it is added again."""
        del self._queued[cluster.id]

    def needs(self, clusters: dict[int, Cluster]) -> list[Resources]:
        """The distinct needs of idle tasks, that of the first task in the queue first."""
        heads = []
        for needs in list(self._heaps):
            head = self.first(needs, clusters)
            if head is not None:
                heads.append(((-head.top_priority, head.id), needs))
        return [needs for _, needs in sorted(heads, key=lambda item: item[0])]

    def first(self, needs: Resources, clusters: dict[int, Cluster]) -> Cluster | None:
        """The cluster whose task of this need is next."""
        heap = self._heaps.get(needs)
        while heap:
            key = heap[0]
            cluster = clusters.get(key[1])
            is_next = cluster is not None and cluster.idle and self._queued.get(key[1]) == key
            if cluster is not None and is_next and key[0] == -cluster.top_priority:
                return cluster
            heappop(heap)
            if self._queued.get(key[1]) == key:
                del self._queued[key[1]]
            if cluster is not None and is_next:
                # Those with the priority it had are taken.
                self.add(cluster)
                heap = self._heaps[needs]
        self._heaps.pop(needs, None)
        return None
