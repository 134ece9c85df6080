"""The master's memory as JSON for people: what `pilotq status` and progress bars show."""

from __future__ import annotations

from typing import Any

from pilotq.access import HEAD
from pilotq.core.health import Node
from pilotq.core.master import MasterCore
from pilotq.core.peers import Foreman, Worker
from pilotq.core.tasks import Cluster
from pilotq.model import STATE_NAMES, State

#: A foreman that was not heard for so many beats is shown as lost.
_BEATS_MISSED_MAX = 3
_NAMES = ("idle", "running", "suspended", "held", "done", "cancelled")


def counts(core: MasterCore) -> dict[str, int]:
    """Tasks by state; done, failed and cancelled ones since the master started."""
    found = dict.fromkeys(_NAMES, 0)
    for cluster in core.queue.clusters.values():
        for state in (State.IDLE, State.ASSIGNED, State.RUNNING, State.SUSPENDED, State.STAGING_OUT, State.HELD):
            found[STATE_NAMES[state]] += cluster.counts[state]
    queue = core.queue
    found.update(done=queue.done + queue.failed, cancelled=queue.cancelled, failed=queue.failed)
    return found


def cluster_view(cluster: Cluster) -> dict[str, Any]:
    """One live cluster."""
    found: dict[str, Any] = dict.fromkeys(_NAMES, 0)
    for state in State:
        found[STATE_NAMES[state]] += cluster.counts[state]
    return {
        "cluster": cluster.id,
        "count": len(cluster),
        "owner": cluster.owner,
        "submitted_at": cluster.submitted_at,
        **found,
        "failed": cluster.failed,
    }


def _worker_view(worker: Worker, core: MasterCore, boot: float) -> dict[str, Any]:
    silent_s = boot - worker.heard_at
    state = "ready"
    if worker.route is None or silent_s > core.limits.contact_lost_s:
        state = "lost"
    elif worker.offer.draining or worker.drain_wanted:
        state = "draining"
    elif core.health.is_suspended(worker.node):
        state = "suspended"
    foreman = core.peers.foremen.get(worker.route.peer) if worker.route else None
    return {
        "name": worker.name,
        "host": worker.host,
        "key": worker.key,
        "pid": worker.pid,
        "version": worker.version,
        "cgroups": worker.containment,
        "foreman": foreman.name if foreman else "",
        "cpus": worker.offer.capacity.cpus,
        "memory_bytes": worker.offer.capacity.memory_bytes,
        "disk_bytes": worker.offer.capacity.disk_bytes,
        "gpus": worker.offer.capacity.gpus,
        "used": list(worker.used),
        "busy": min(worker.used[0], worker.offer.capacity.cpus),
        "ahead": worker.offer.ahead,
        "tasks": worker.count,
        "state": state,
        "contact_s": round(silent_s, 1),
    }


def _node_view(node: Node, boot: float) -> dict[str, Any]:
    return {
        "host": node.host,
        "state": "suspended" if node.suspended else "ready",
        "failed_in_a_row": sum(node.row.values()),
        "next_try_s": round(max(0.0, node.try_at - boot), 1) if node.suspended else None,
        "trying": "{}.{}".format(*node.trying) if node.trying else "",
        "steps": [{"at": at, "what": what} for at, what in node.steps],
    }


def _foreman_state(foreman: Foreman, core: MasterCore, boot: float) -> str:
    if boot - foreman.heard_at > _BEATS_MISSED_MAX * core.limits.beat_s:
        return "lost"
    return "draining" if foreman.draining else "ready"


def status_view(core: MasterCore, boot: float) -> dict[str, Any]:
    """Tasks, slots, workers and foremen."""
    workers = [_worker_view(worker, core, boot) for worker in core.peers.workers.values()]
    # The one of the head is not for what the pool is for.
    present = [worker for worker in workers if worker["state"] != "lost" and worker["key"] != HEAD]
    open_slots = sum(worker["cpus"] for worker in present)
    busy = sum(worker["busy"] for worker in present)
    return {
        "state": "draining" if core.draining else "serving",
        "draining": core.draining,
        "tasks": counts(core),
        "clusters": len(core.queue.clusters),
        "slots": {"open": open_slots, "busy": busy, "free": max(0, open_slots - busy)},
        "workers": workers,
        # Those that were ever suspended, or fail tasks at the moment.
        "nodes": [_node_view(node, boot) for node in core.health.nodes.values() if node.row or node.steps],
        "foremen": [
            {
                "name": foreman.name,
                "pid": foreman.pid,
                "version": foreman.version,
                "workers": foreman.workers,
                "state": _foreman_state(foreman, core, boot),
            }
            for foreman in core.peers.foremen.values()
        ],
    }
