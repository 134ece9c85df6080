"""Workers and foremen as the master sees them: routes, what they hold, leases.

A lease belongs to a worker and covers all it holds: it counts from the moment the master last *sent* a renewal, while
the worker counts from when it sent the heartbeat that was answered, which is earlier. So the worker always gives up
first, whatever the network does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from pilotq import wire
from pilotq.access import HEAD
from pilotq.core.records import DrainWanted
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Route
from pilotq.model import Outcome, Resources

Task = tuple[int, int]

#: The master waits this much longer than the lease, for clocks that run apart and for the worker's kill grace.
LEASE_MARGIN = 0.02
LEASE_GRACE_S = 30.0
#: Names remembered of workers that left.
OVER_MAX = 10_000


def lease_end(sent_at: float, lease_s: float) -> float:
    """When a lease whose renewal was sent at `sent_at` is over for the master."""
    return sent_at + lease_s * (1 + LEASE_MARGIN) + LEASE_GRACE_S


class Held(NamedTuple):
    """What a worker holds of one cluster."""

    needs: Resources
    #: proc -> number of the attempt.
    numbers: dict[int, int]


@dataclass
class Worker:
    """A worker that has said hello to this master or, after a restart, one that the store names."""

    #: See `access.worker_name`.
    name: str
    host: str = ""
    pid: int = 0
    version: str = ""
    #: Which control groups hold its tasks, in words.
    containment: str = ""
    #: Name of its token.
    key: str = ""
    #: None: no way to it at the moment.
    route: Route | None = None
    generation: int = 0
    offer: wire.Offer = field(default_factory=lambda: wire.Offer(Resources(0)))
    #: Attempts it holds, as far as the master knows, by cluster.
    held: dict[int, Held] = field(default_factory=dict)
    #: Attempts whose result came, but not all of their outputs yet: number.
    returned: dict[Task, int] = field(default_factory=dict)
    #: Attempts it was told to end, until it says so.
    ending: dict[wire.Token, Resources] = field(default_factory=dict)
    #: Attempts it holds that are to stand still.
    suspended: set[wire.Token] = field(default_factory=set)
    used: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    checksum: int = 0
    #: Boot clock: end of its lease, last word from it, no new tasks before.
    lease_over_at: float = 0.0
    heard_at: float = 0.0
    pause_until: float = 0.0
    #: Since when its checksum has not fitted; when it was last told to take or end something (boot clock).
    mismatch_since: float = float("inf")
    told_at: float = 0.0
    #: True between asking for an inventory and the hello that brings it.
    asked: bool = False
    #: Number of the last inventory asked for, and when (boot clock).
    ask: int = 0
    asked_at: float = 0.0
    drain_wanted: bool = False

    @property
    def node(self) -> str:
        """Its host, as workers of its key know it: who makes up hosts must not speak for those of another key."""
        _, at, key = self.name.rpartition("@")
        return f"{self.host}@{key}" if at else self.host

    def hold(self, cluster: int, procs: list[int], attempts: list[int], needs: Resources) -> None:
        """It was given attempts of a cluster."""
        held = self.held.get(cluster)
        if held is None:
            held = self.held[cluster] = Held(needs, {})
        held.numbers.update(zip(procs, attempts, strict=True))
        if self.returned:
            for proc in procs:
                self.returned.pop((cluster, proc), None)
        self._use(needs, len(procs))
        self.checksum ^= wire.checksum_of_all(cluster, procs, attempts)

    def drop_all(self, cluster: int, procs: list[int], attempts: list[int]) -> None:
        """Forget attempts that it holds."""
        held = self.held[cluster]
        for proc in procs:
            del held.numbers[proc]
        if self.suspended:
            for pair in zip(procs, attempts, strict=True):
                self.suspend(wire.Token(cluster, *pair), False)
        self._use(held.needs, -len(procs))
        self.checksum ^= wire.checksum_of_all(cluster, procs, attempts)
        if not held.numbers:
            del self.held[cluster]

    def drop(self, task: Task) -> int:
        """Forget an attempt; its number, or 0 when it was not held."""
        if task in self.returned:
            return self.returned.pop(task)
        number = self.number(task)
        if number:
            self.drop_all(task[0], [task[1]], [number])
        return number

    def begin_ending(self, task: Task) -> wire.Token | None:
        """Move an attempt to those being ended: it goes on using its slot, if it still has one."""
        if task in self.returned:
            token = wire.Token(*task, self.returned.pop(task))
            self.ending_too(token, Resources(0))
            return token
        held = self.held.get(task[0])
        if held is None or task[1] not in held.numbers:
            return None
        token = wire.Token(task[0], task[1], held.numbers.pop(task[1]))
        if not held.numbers:
            del self.held[task[0]]
        self.suspend(token, False)
        self.ending[token] = held.needs
        return token

    def ending_too(self, token: wire.Token, needs: Resources) -> None:
        """It turns out to hold an attempt that must end."""
        self.ending[token] = needs
        self._use(needs, 1)
        self.checksum ^= wire.checksum(token)

    def ended(self, token: wire.Token) -> bool:
        """An attempt that was to end has; False: there was none."""
        needs = self.ending.pop(token, None)
        if needs is None:
            return False
        self._use(needs, -1)
        self.checksum ^= wire.checksum(token)
        return True

    def suspend(self, token: wire.Token, on: bool) -> None:
        """An attempt that it holds is to stand still, or to go on."""
        if (token in self.suspended) != on:
            (self.suspended.add if on else self.suspended.discard)(token)
            self.checksum ^= wire.suspended_checksum(token)

    def _use(self, needs: Resources, sign: int) -> None:
        used = self.used
        used[0] += sign * needs.cpus
        used[1] += sign * needs.memory_bytes
        used[2] += sign * needs.disk_bytes
        used[3] += sign * needs.gpus

    def number(self, task: Task) -> int:
        """The attempt of a task it holds; 0: none."""
        if task in self.returned:
            return self.returned[task]
        held = self.held.get(task[0])
        return held.numbers.get(task[1], 0) if held is not None else 0

    def runs(self, token: wire.Token) -> bool:
        """Does it hold this attempt, whose result has not come?"""
        held = self.held.get(token.cluster)
        return held is not None and held.numbers.get(token.proc) == token.attempt

    def may_speak_for(self, cluster: Cluster, proc: int) -> bool:
        """False when the present attempt of a task was given to another worker."""
        return cluster.facts_of(proc).worker in ("", self.name)

    def has_lost(self, cluster: Cluster, proc: int) -> bool:
        """Was the last attempt of an idle task given up because nothing was heard of this worker?"""
        facts = cluster.facts_of(proc)
        return facts.outcome == Outcome.LOST and facts.worker == self.name

    @property
    def tasks(self) -> list[Task]:
        """All that is lost when it is."""
        return [*((cluster, proc) for cluster, held in self.held.items() for proc in held.numbers), *self.returned]

    @property
    def is_empty(self) -> bool:
        """Nothing is lost when it is, and nothing of it runs."""
        return not (self.held or self.returned or self.ending)

    @property
    def count(self) -> int:
        return sum(len(held.numbers) for held in self.held.values()) + len(self.ending)

    def room(self, needs: Resources, ahead: int) -> int:
        """How many tasks of this need it takes now, `ahead` of them beyond its capacity."""
        capacity, used = self.offer.capacity, self.used
        if needs.on_head != (self.key == HEAD):
            return 0
        if capacity.cpus < needs.cpus or capacity.gpus < needs.gpus:
            return 0
        fit = (capacity.cpus - used[0]) // max(needs.cpus, 1)
        if needs.memory_bytes:
            if capacity.memory_bytes < needs.memory_bytes:
                return 0
            fit = min(fit, (capacity.memory_bytes - used[1]) // needs.memory_bytes)
        if needs.disk_bytes:
            if capacity.disk_bytes < needs.disk_bytes:
                return 0
            fit = min(fit, (capacity.disk_bytes - used[2]) // needs.disk_bytes)
        if needs.gpus:
            fit = min(fit, (capacity.gpus - used[3]) // needs.gpus)
        return max(0, fit + ahead)

    def takes_tasks(self, boot: float, contact_lost_s: float) -> bool:
        return (
            self.route is not None
            and not self.asked
            and not self.offer.draining
            and not self.drain_wanted
            and boot >= self.pause_until
            and boot - self.heard_at < contact_lost_s
        )


@dataclass
class Foreman:
    """A foreman's session; nothing of it is durable."""

    name: str
    peer: bytes
    #: Name of its token.
    key: str = ""
    pid: int = 0
    version: str = ""
    heard_at: float = 0.0
    workers: int = 0
    draining: bool = False


class Peers:
    """All workers and foremen, and the ways to them."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        #: By peer of the socket, and session there.
        self._routes: dict[bytes, dict[bytes, Worker]] = {}
        self.foremen: dict[bytes, Foreman] = {}
        #: Clusters a peer of the socket has the description of.
        self.told: dict[bytes, set[int]] = {}
        #: Names of workers that are over for good, the latest ones: a hello of theirs was long on its way.
        self.over: OrderedDict[str, None] = OrderedDict()
        #: Names of workers that an operator wants to leave, the latest ones: one that is away is told when it comes.
        self.drains: OrderedDict[str, None] = OrderedDict()
        #: What the store is to remember of these; of this turn.
        self.records: list[DrainWanted] = []
        #: Routes that were asked for an inventory lately, and when (boot clock).
        self.asked_at: dict[Route, float] = {}

    def know(self, name: str, host: str, boot: float, lease_s: float) -> Worker:
        """The worker of this name; a new one counts as just renewed."""
        worker = self.workers.get(name)
        if worker is None:
            worker = self.workers[name] = Worker(name, host, heard_at=boot, lease_over_at=lease_end(boot, lease_s))
            worker.drain_wanted = name in self.drains
        return worker

    def find_at(self, route: Route) -> Worker | None:
        """The worker that is reached this way."""
        sessions = self._routes.get(route.peer)
        return sessions.get(route.session) if sessions is not None else None

    def drain(self, worker: Worker) -> None:
        """It is to leave, whatever happens to it or to the master before."""
        worker.drain_wanted = True
        if worker.name not in self.drains:
            self.drains[worker.name] = None
            self.records.append(DrainWanted(worker.name, on=True))
            if len(self.drains) > OVER_MAX:
                self._end_drain(next(iter(self.drains)))

    def _end_drain(self, name: str) -> None:
        del self.drains[name]
        self.records.append(DrainWanted(name, on=False))

    def connect(self, worker: Worker, route: Route) -> None:
        """From now on the worker is reached this way, and no other."""
        self.disconnect(worker)
        other = self.find_at(route)
        if other is not None:
            other.route = None
            if other.is_empty:
                # A session that says hello under one name after the other must not leave them all here.
                self.workers.pop(other.name, None)
        worker.route = route
        self._routes.setdefault(route.peer, {})[route.session] = worker
        self.asked_at.pop(route, None)

    def disconnect(self, worker: Worker) -> None:
        route = worker.route
        if route is not None:
            sessions = self._routes.get(route.peer, {})
            sessions.pop(route.session, None)
            if not sessions:
                self._routes.pop(route.peer, None)
            worker.route = None
            if not route.session:
                self.told.pop(route.peer, None)

    def lose_peer(self, peer: bytes) -> list[Worker]:
        """The socket's peer is gone: the workers that were reached through it.

        Cost: does not grow with those of other peers, as thousands may lose their way together.
        """
        self.foremen.pop(peer, None)
        self.told.pop(peer, None)
        lost = list(self._routes.get(peer, {}).values())
        for worker in lost:
            self.disconnect(worker)
        return lost

    def remove(self, worker: Worker, *, is_over: bool = False) -> None:
        """`is_over`: no worker of this name will ever be there again."""
        self.disconnect(worker)
        self.workers.pop(worker.name, None)
        if is_over:
            if worker.name in self.drains:
                self._end_drain(worker.name)
            self.over[worker.name] = None
            if len(self.over) > OVER_MAX:
                self.over.popitem(last=False)

    def may_ask(self, route: Route, boot: float, interval_s: float = 2.0) -> bool:
        """True once an interval: a stream of messages of an unknown session is answered only now and then."""
        if boot - self.asked_at.get(route, float("-inf")) < interval_s:
            return False
        if len(self.asked_at) > 50_000:
            self.asked_at.clear()
        self.asked_at[route] = boot
        return True
