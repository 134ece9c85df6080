"""Which idle task goes to which worker."""

from __future__ import annotations

from collections.abc import Iterator

from pilotq.access import HEAD
from pilotq.core.health import Health
from pilotq.core.peers import Peers, Worker
from pilotq.core.tasks import Cluster, Ready
from pilotq.core.turn import Now
from pilotq.model import Facts, Outcome, Resources

#: Tasks of one assignment message.
ASSIGN_MAX = 500
#: Clusters that have nothing for a worker, though idle tasks: so many let others pass.
ASIDE_MAX = 100
#: For so long a task that came back waits for a node on which it did not fail.
AVOID_S = 30.0
#: Tasks that were lost so often with their worker are kept apart for so long, so that it is seen which one it is.
SUSPECT_LOSSES, APART_S = 2, 120.0
#: Nodes a task can avoid, and one more.
_NODES_MAX = 10
_FAILED = frozenset(
    int(outcome)
    for outcome in Outcome
    if outcome not in (Outcome.OK, Outcome.EVICTED, Outcome.CANCELLED, Outcome.REJECTED)
)


def avoided(facts: Facts) -> frozenset[str]:
    """Nodes on which a task failed or was lost."""
    last = (facts.host,) if facts.outcome in _FAILED else ()
    return frozenset((*facts.lost_on, *last))


class Matcher:
    """Remembers which workers may have room, so that a turn without news costs nothing."""

    def __init__(self, contact_lost_s: float, peers: Peers, health: Health) -> None:
        self.contact_lost_s = contact_lost_s
        self._peers = peers
        self._health = health
        #: Names of workers whose room may have grown since they were last looked at; insertion order.
        self.hungry: dict[str, None] = {}
        #: Workers with nothing that fits them, and the needs that did not.
        self._resting: dict[str, None] = {}
        self._unfit: set[Resources] = set()
        #: Some nodes that take tasks of a need; of this turn.
        self._nodes: dict[Resources, frozenset[str]] = {}

    def match(
        self, ready: Ready, clusters: dict[int, Cluster], now: Now
    ) -> Iterator[tuple[Worker, Cluster, list[int]]]:
        """Fill free slots first, of all workers; then let workers with short tasks hold a few ahead.

        The caller must move the tasks it is given before it asks for the next.
        """
        needs = ready.needs(clusters)
        if not self._unfit.issuperset(needs):
            self.hungry = {**self._resting, **self.hungry}
            self._resting.clear()
            self._unfit.clear()
        if not self.hungry or not needs:
            return
        self._nodes.clear()
        for with_ahead in (False, True):
            for name in list(self.hungry):
                worker = self._peers.workers.get(name)
                if worker is None or not self._takes(worker, now.boot):
                    del self.hungry[name]
                    continue
                yield from self._fill(worker, ready, clusters, worker.offer.ahead if with_ahead else 0, now)
                if not ready.needs(clusters):
                    return
        # Tasks are left over: whoever could not take them now rests until it changes, or other needs come.
        self._resting.update(self.hungry)
        self.hungry.clear()
        self._unfit.update(ready.needs(clusters))

    def _takes(self, worker: Worker, boot: float) -> bool:
        return worker.takes_tasks(boot, self.contact_lost_s) and self._health.room(worker, boot) != 0

    def _fill(
        self, worker: Worker, ready: Ready, clusters: dict[int, Cluster], ahead: int, now: Now
    ) -> Iterator[tuple[Worker, Cluster, list[int]]]:
        for needs in ready.needs(clusters):
            aside: list[Cluster] = []
            while len(aside) < ASIDE_MAX and (room := self._room(worker, needs, ahead, now.boot)) > 0:
                cluster = ready.first(needs, clusters)
                if cluster is None:
                    break
                procs = cluster.take(min(room, ASSIGN_MAX), _Admission(self, worker, cluster, clusters, now).admits)
                if procs:
                    yield worker, cluster, procs
                else:
                    aside.append(cluster)
                    ready.remove(cluster)
            for cluster in aside:
                ready.add(cluster)

    def _room(self, worker: Worker, needs: Resources, ahead: int, boot: float) -> int:
        allowed = self._health.room(worker, boot)
        return worker.room(needs, ahead) if allowed is None else min(allowed, worker.room(needs, 0))

    def has_other_node(self, needs: Resources, avoided: frozenset[str], boot: float) -> bool:
        """Does a node that is not avoided take tasks of this need, be it later?"""
        if needs not in self._nodes:
            found: set[str] = set()
            for worker in self._peers.workers.values():
                is_right = needs.on_head == (worker.key == HEAD)
                if is_right and worker.offer.capacity.cpus >= needs.cpus and self._takes(worker, boot):
                    found.add(worker.host)
                    if len(found) == _NODES_MAX:
                        break
            self._nodes[needs] = frozenset(found)
        return not self._nodes[needs] <= avoided


class _Admission:
    """May a task that came back go to this worker?"""

    def __init__(
        self, matcher: Matcher, worker: Worker, cluster: Cluster, clusters: dict[int, Cluster], now: Now
    ) -> None:
        self._matcher, self._worker = matcher, worker
        self._cluster, self._clusters, self._now = cluster, clusters, now
        self._has_suspect: bool | None = None

    def admits(self, proc: int) -> bool:
        facts = self._cluster.facts_of(proc)
        waited_s = self._now.wall - facts.entered_at
        elsewhere = avoided(facts) if waited_s <= AVOID_S else frozenset()
        if self._worker.host in elsewhere and self._matcher.has_other_node(
            self._cluster.needs, elsewhere, self._now.boot
        ):
            return False
        if len(facts.lost_on) < SUSPECT_LOSSES or waited_s > APART_S:
            return True
        if self._has_suspect is None:
            self._has_suspect = any(
                len(self._clusters[number].facts_of(held).lost_on) >= SUSPECT_LOSSES
                for number, held in self._worker.tasks
                if number in self._clusters
            )
        if self._has_suspect:
            return False
        self._has_suspect = True
        return True
