"""From what the store remembers to the queue in memory."""

from __future__ import annotations

import logging
from operator import itemgetter

import msgspec

from pilotq.core.queue import Queue
from pilotq.core.tasks import Cluster
from pilotq.model import HoldCode, Resources, State
from pilotq.store import ENDED_KEYS_MAX, LiveCluster, Loaded, Store, StoreDamaged
from pilotq.wire import Token

log = logging.getLogger(__name__)


#: Attempts of one life of a master, and of all lives before: the last one of a damaged task is not known.
_ATTEMPTS, _ATTEMPTS_BEFORE = 1_000, 30_000


class _Body(msgspec.Struct):
    """The part of a `ClusterBody` that the queue knows: of a hundred thousand the rest is not read."""

    log: str = ""
    nodes_log: str = ""
    policies: dict[str, str] = {}


class _Needs(msgspec.Struct):
    """The same of a `Description`."""

    needs: Resources = Resources()


_decode_body = msgspec.msgpack.Decoder(_Body).decode
_decode_needs = msgspec.msgpack.Decoder(_Needs).decode


def restore(loaded: Loaded, store: Store, wall: float) -> Queue:
    """The queue as it was when the last commit returned; what is damaged is held, and so written anew."""
    queue = Queue(loaded.next_cluster, loaded.next_note)
    for sentence in loaded.damage:
        log.error("damage in the store", extra={"facts": {"what": sentence}})
    # In the order of their ids, of which the oldest are forgotten first.
    named = loaded.ended_keys + [(live.owner, live.key, live.cluster) for live in loaded.clusters if live.key]
    keys: dict[tuple[str, str], dict[int, int]] = {}
    for owner, name, number in sorted(named, key=itemgetter(2)):
        key, slash, index = name.rpartition("/")
        keys.setdefault((owner, key if slash else name), {})[int(index) if slash else 0] = number
    for live in loaded.clusters:
        cluster = _cluster(live, store)
        queue.clusters[cluster.id] = cluster
    queue.has_forgotten_keys = len(loaded.ended_keys) >= ENDED_KEYS_MAX
    for (owner, key), numbers in keys.items():
        queue.remember_key(owner, key, [numbers[index] for index in sorted(numbers)])
    waiting: dict[int, set[int]] = {}
    for final in loaded.finals:
        queue.finals[final.n] = Token(final.cluster, final.proc, final.attempt)
        waiting.setdefault(final.cluster, set()).add(final.proc)
    for live in loaded.clusters:
        cluster = queue.clusters[live.cluster]
        _hold_forgotten(queue, cluster, waiting.get(cluster.id, set()), wall)
        _hold_damaged(queue, cluster, live.damaged, loaded.epoch, wall)
        if cluster.idle:
            queue.ready.add(cluster)
    return queue


def _hold_forgotten(queue: Queue, cluster: Cluster, waiting: set[int], wall: float) -> None:
    """Tasks whose end can never be told: all but those whose note waits to be written."""
    if not cluster.counts[State.STAGING_OUT]:
        return
    for proc, state in enumerate(cluster.states):
        if state == State.STAGING_OUT and proc not in waiting:
            text = f"the note about the end of task {cluster.id}.{proc} is damaged in the store"
            queue.hold(cluster, proc, wall, HoldCode.LOST, 0, text)


def _hold_damaged(queue: Queue, cluster: Cluster, damaged: dict[int, str], epoch: int, wall: float) -> None:
    """Tasks of which something is not known."""
    for sentence in dict.fromkeys(damaged.values()):
        log.error("damage in the store, holding tasks", extra={"facts": {"cluster": cluster.id, "what": sentence}})
    for proc, sentence in damaged.items():
        # Begin far above any attempt that may have been.
        cluster.attempts[proc] = _ATTEMPTS_BEFORE + _ATTEMPTS * epoch
        queue.hold(cluster, proc, wall, HoldCode.LOST, 0, sentence)


def _cluster(live: LiveCluster, store: Store) -> Cluster:
    body, needs = _Body(), Resources()
    try:
        if live.body:
            body = _decode_body(live.body)
        needs = _decode_needs(store.description(live.cluster)).needs
    except (StoreDamaged, msgspec.MsgspecError) as error:
        live.damaged = dict.fromkeys(set(range(live.count)).difference(live.left), str(error))
    untouched = live.state
    if live.damaged and len(live.damaged) + len(live.left) == live.count:
        # As if nothing had ever happened to them.
        untouched = State.IDLE
        for column in (live.procs, live.states, live.attempts, live.facts):
            del column[:]
    cluster = Cluster(
        live.cluster,
        live.owner,
        live.count,
        needs,
        priority=live.priority,
        submitted_at=live.submitted_at,
        has_log=bool(body.log or body.nodes_log),
        has_deltas=live.has_deltas,
        policies=body.policies,
        state=untouched,
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
    for proc in live.damaged:
        cluster.put(proc, State.IDLE)
    for edit in live.edits:
        cluster.edit(edit)
    return cluster
