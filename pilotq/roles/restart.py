"""From what the store remembers to the queue in memory."""

from __future__ import annotations

import logging
from operator import itemgetter

import msgspec

from pilotq.core.queue import Queue
from pilotq.core.tasks import Cluster
from pilotq.model import ClusterBody, Description, Facts, HoldCode, State
from pilotq.store import LiveCluster, Loaded, Store, StoreDamaged
from pilotq.wire import Token

log = logging.getLogger(__name__)


def restore(loaded: Loaded, store: Store) -> Queue:
    """The queue as it was when the last commit returned."""
    queue = Queue(loaded.next_cluster, loaded.next_note)
    for sentence in loaded.damage:
        log.error("damage in the store", extra={"facts": {"what": sentence}})
    # In the order of their ids, of which the oldest are forgotten first.
    named = loaded.ended_keys + [(live.owner, live.key, live.cluster) for live in loaded.clusters if live.key]
    keys: dict[tuple[str, str], dict[int, int]] = {}
    for owner, name, number in sorted(named, key=itemgetter(2)):
        key, _, index = name.partition("/")
        keys.setdefault((owner, key), {})[int(index or 0)] = number
    for live in loaded.clusters:
        cluster = _cluster(live, store)
        if cluster is None:
            continue
        queue.clusters[cluster.id] = cluster
        if cluster.idle:
            queue.ready.add(cluster)
    for (owner, key), numbers in keys.items():
        queue.remember_key(owner, key, [numbers[index] for index in sorted(numbers)])
    for final in loaded.finals:
        queue.finals[final.n] = Token(final.cluster, final.proc, final.attempt)
    return queue


def _cluster(live: LiveCluster, store: Store) -> Cluster | None:
    try:
        body = msgspec.msgpack.decode(live.body, type=ClusterBody)
        needs = msgspec.msgpack.decode(store.description(live.cluster), type=Description).needs
    except (StoreDamaged, msgspec.MsgspecError) as error:
        log.error("cluster cannot be served", extra={"facts": {"cluster": live.cluster, "reason": str(error)}})
        return None
    cluster = Cluster(
        live.cluster,
        live.owner,
        live.count,
        needs,
        priority=live.priority,
        submitted_at=live.submitted_at,
        has_log=bool(body.log),
        has_deltas=live.has_deltas,
        policies=body.policies,
        state=live.state,
    )
    for proc, state, attempt, facts in zip(live.procs, live.states, live.attempts, live.facts, strict=True):
        cluster.put(proc, State(state))
        cluster.attempts[proc] = attempt
        cluster.facts[proc] = facts
        if state == State.IDLE:
            cluster.came_back(proc)
    for proc, state in zip(live.left, live.left_states, strict=True):
        cluster.put(proc, State(state))
    cluster.left = len(live.left)
    cluster.failed = live.failed
    for proc, sentence in live.damaged.items():
        cluster.put(proc, State.HELD)
        cluster.facts[proc] = Facts(reason=sentence, hold_code=int(HoldCode.LOST), holds=1)
        # Its last attempt number is not known: begin far above any that was used.
        cluster.attempts[proc] = 30_000
    return cluster
