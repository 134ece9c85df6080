"""Which idle task goes to which worker."""

from __future__ import annotations

from collections.abc import Iterator

from pilotq.core.peers import Peers, Worker
from pilotq.core.tasks import Cluster, Ready
from pilotq.model import Resources

#: Tasks of one assignment message.
ASSIGN_MAX = 500


class Matcher:
    """Remembers which workers may have room, so that a turn without news costs nothing."""

    def __init__(self, contact_lost_s: float) -> None:
        self.contact_lost_s = contact_lost_s
        #: Names of workers whose room may have grown since they were last looked at; insertion order.
        self.hungry: dict[str, None] = {}
        #: Workers with nothing that fits them, and the needs that did not.
        self._resting: dict[str, None] = {}
        self._unfit: set[Resources] = set()

    def match(
        self, ready: Ready, clusters: dict[int, Cluster], peers: Peers, boot: float
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
        for with_ahead in (False, True):
            for name in list(self.hungry):
                worker = peers.workers.get(name)
                if worker is None or not worker.takes_tasks(boot, self.contact_lost_s):
                    del self.hungry[name]
                    continue
                yield from self._fill(worker, ready, clusters, worker.offer.ahead if with_ahead else 0)
                if not ready.needs(clusters):
                    return
        # Tasks are left over: whoever could not take them now rests until it changes, or other needs come.
        self._resting.update(self.hungry)
        self.hungry.clear()
        self._unfit.update(ready.needs(clusters))

    def _fill(
        self, worker: Worker, ready: Ready, clusters: dict[int, Cluster], ahead: int
    ) -> Iterator[tuple[Worker, Cluster, list[int]]]:
        for needs in ready.needs(clusters):
            room = worker.room(needs, ahead)
            while room > 0:
                cluster = ready.first(needs, clusters)
                if cluster is None:
                    break
                procs = cluster.take(min(room, ASSIGN_MAX))
                if not procs:
                    break
                room -= len(procs)
                yield worker, cluster, procs
