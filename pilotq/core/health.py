"""Which nodes look like black holes: they take tasks and fail them at once.

A node is judged by the failures that came in a row since its last success, against how the same tasks do on other
nodes: a row that is as unlikely there as one in a hundred suspends the node, so that tasks that fail everywhere suspend
none. A suspended node gets one task at a time, after pauses that double; one success makes it well again.

A node is a host as the workers of one key know it (`Worker.node`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from pilotq.core.peers import Peers, Task, Worker
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now
from pilotq.model import ON_WORKER, QUICK_S, Ended, Outcome, State

#: So many in a row at least, and no likelier than this.
ROW_MIN, DOUBT = 3, math.log(0.01)
#: Share of failures believed of tasks of which nothing is known elsewhere, with the weight of one result.
PRIOR = 0.2
#: Results remembered of a node and a group of tasks; then all count half.
MEMORY = 100
#: Between two tries on a suspended node: the first pause, and the longest.
PAUSE_S, PAUSE_MAX_S = 10.0, 3600.0
#: Steps of a node that are told.
STEPS_MAX = 50
#: Groups of tasks, and nodes, remembered.
GROUPS_MAX, NODES_MAX = 10_000, 20_000

#: Tasks that are alike: those of a cluster, or the single ones of an owner.
Group = int | str


def group_of(cluster: Cluster) -> Group:
    return cluster.id if len(cluster) > 1 else cluster.owner


@dataclass
class Node:
    """What is known of one node."""

    host: str
    #: Failures since the last success, by group of tasks.
    row: dict[Group, int] = field(default_factory=dict)
    suspended: bool = False
    pause_s: float = PAUSE_S
    #: Boot clock: when the next try may begin, and when the present one did.
    try_at: float = 0.0
    tried_at: float = 0.0
    #: The task that is tried on it.
    trying: Task | None = None
    #: What happened to it: wall clock, sentence.
    steps: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=STEPS_MAX))


class Health:
    """Judges nodes by the results of their tasks."""

    def __init__(self, peers: Peers) -> None:
        self.nodes: dict[str, Node] = {}
        self._peers = peers
        #: Results of a group by host: good, bad.
        self._tried: dict[Group, dict[str, list[float]]] = {}
        #: Hosts that were suspended, and that may take tasks (again), since these were last emptied.
        self.new_suspended: list[str] = []
        self.well_again: list[str] = []
        #: For the log of the daemon: host, what happened.
        self.news: list[tuple[str, str]] = []

    def room(self, worker: Worker, boot: float) -> int | None:
        """How many tasks a worker may be given now because of its node; None: as many as it has room for."""
        node = self.nodes.get(worker.node)
        if node is None or not node.suspended:
            return None
        return 1 if boot >= node.try_at and node.trying is None else 0

    def is_suspended(self, host: str) -> bool:
        node = self.nodes.get(host)
        return node is not None and node.suspended

    def workers_on(self, host: str) -> list[Worker]:
        return [worker for worker in self._peers.workers.values() if worker.node == host]

    # ---- what happened

    def on_try(self, host: str, task: Task, now: Now) -> None:
        """A task was given to a node."""
        node = self.nodes.get(host)
        if node is not None and node.suspended:
            node.trying, node.tried_at = task, now.boot

    def on_good(self, host: str, cluster: Cluster, count: int, now: Now, *, row_stands: bool = False) -> None:
        """So many tasks ended well there; `row_stands`: they began before the last failures did."""
        node = self.nodes.get(host)
        if node is not None and node.row and not row_stands:
            node.row.clear()
            self._lift(node, "a task ended well: well again", now)
        group = group_of(cluster)
        if type(group) is str or group in self._tried:
            self._count(group, host, 0, count)

    def on_end(self, host: str, cluster: Cluster, proc: int, end: Ended, now: Now, *, row_stands: bool = False) -> None:
        """An attempt ended there. One that took long, or that was ended by a person or a limit, says nothing."""
        if end.outcome == Outcome.OK:
            self.on_good(host, cluster, 1, now, row_stands=row_stands)
        elif end.is_quick_failure:
            how = f"{end.outcome.name.lower()} {end.code}" if end.code else end.outcome.name.lower()
            self.on_bad(host, cluster, proc, end.reason or how, now)

    def on_bad(self, host: str, cluster: Cluster, proc: int, how: str, now: Now) -> None:
        """A task failed there at once, or was lost with its worker."""
        if not host:
            return
        node = self._get(host)
        group = group_of(cluster)
        if group not in self._tried and type(group) is int:
            # What it did before anything failed was good.
            good = cluster.counts[State.DONE] - cluster.failed
            if good > 0:
                self._count(group, "", 0, min(good, MEMORY))
        self._count(group, host, 1, 1)
        node.row[group] = node.row.get(group, 0) + 1
        if not node.suspended:
            if self._is_unlikely(node) and self._is_other(host):
                self._suspend(node, how, now)
        elif node.trying == (cluster.id, proc):
            node.trying = None
            node.pause_s = min(2 * node.pause_s, PAUSE_MAX_S)
            node.try_at = now.boot + node.pause_s
            self._step(node, f"tried again and failed ({how}): next try in {node.pause_s:.0f} s", now)
        for other in self.nodes.values():
            # What fails here as well was perhaps not the other's fault.
            if other.suspended and other is not node and group in other.row and not self._is_unlikely(other):
                other.row.clear()
                self._lift(other, "the same tasks fail on other nodes: well again", now)

    def resume(self, host: str, now: Now) -> None:
        """An operator says that the node is well."""
        node = self.nodes.get(host)
        if node is not None:
            node.row.clear()
            self._lift(node, "an operator resumed it: well again", now)

    def on_time(self, clusters: dict[int, Cluster], now: Now) -> list[str]:
        """Once a second: hosts that may be tried now."""
        due = []
        for node in self.nodes.values():
            if not node.suspended:
                continue
            if node.trying is not None:
                self._look_at_try(node, clusters, now)
            if node.suspended and not self._is_other(node.host):
                self._lift(node, "no other node is left: well again", now)
            if node.suspended and node.trying is None and now.boot >= node.try_at:
                due.append(node.host)
        return due

    def forget_group(self, cluster: int) -> None:
        """A cluster left the queue."""
        self._tried.pop(cluster, None)

    # ---- inside

    def _get(self, host: str) -> Node:
        node = self.nodes.get(host)
        if node is None:
            if len(self.nodes) >= NODES_MAX:
                del self.nodes[next(iter(self.nodes))]
            node = self.nodes[host] = Node(host)
        return node

    def _look_at_try(self, node: Node, clusters: dict[int, Cluster], now: Now) -> None:
        """Is the task that is tried still there, and for how long?"""
        number, proc = node.trying or (0, 0)
        cluster = clusters.get(number)
        if (
            cluster is None
            or cluster.state(proc) not in ON_WORKER
            or cluster.facts_of(proc).host != node.host.partition("@")[0]
        ):
            node.trying = None
        elif cluster.state(proc) == State.RUNNING and now.boot - node.tried_at > 2 * QUICK_S:
            node.row.clear()
            self._lift(node, "a task runs and goes on running: well again", now)

    def _suspend(self, node: Node, how: str, now: Now) -> None:
        node.suspended, node.trying = True, None
        node.pause_s, node.try_at = PAUSE_S, now.boot + PAUSE_S
        count = sum(node.row.values())
        text = f"{count} tasks in a row failed at once, the last with {how}: suspended, next try in {PAUSE_S:.0f} s"
        self._step(node, text, now)
        self.new_suspended.append(node.host)

    def _lift(self, node: Node, why: str, now: Now) -> None:
        if node.suspended:
            node.suspended, node.trying = False, None
            self._step(node, why, now)
            self.well_again.append(node.host)

    def _step(self, node: Node, text: str, now: Now) -> None:
        node.steps.append((now.wall, text))
        self.news.append((node.host, text))

    def _is_other(self, host: str) -> bool:
        """Is there a node beside this one?"""
        return any(worker.node != host and worker.route is not None for worker in self._peers.workers.values())

    def _is_unlikely(self, node: Node) -> bool:
        """Do tasks fail here in a row that other nodes would hardly make of them?"""
        if sum(node.row.values()) < ROW_MIN:
            return False
        likely = [count * math.log(self._share_elsewhere(group, node.host)) for group, count in node.row.items()]
        return sum(likely) < DOUBT

    def _share_elsewhere(self, group: Group, host: str) -> float:
        """How many tasks of a group fail on other nodes."""
        good = bad = 0.0
        for name, found in self._tried.get(group, {}).items():
            if name != host:
                good, bad = good + found[0], bad + found[1]
        return (bad + PRIOR) / (good + bad + 1.0)

    def _count(self, group: Group, host: str, kind: int, count: float) -> None:
        if group not in self._tried and len(self._tried) >= GROUPS_MAX:
            del self._tried[next(iter(self._tried))]
        hosts = self._tried.setdefault(group, {})
        if host not in hosts and len(hosts) >= NODES_MAX:
            del hosts[next(iter(hosts))]
        found = hosts.setdefault(host, [0.0, 0.0])
        found[kind] += count
        if found[0] + found[1] > MEMORY:
            found[0] *= 0.5
            found[1] *= 0.5
