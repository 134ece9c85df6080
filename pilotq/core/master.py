"""The master decides: what is accepted, who runs what, when an attempt is over.

Sessions of workers and foremen are in `sessions`, what a result means is in `results`, periodic policies in `policy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core.acts import Acts
from pilotq.core.health import Health
from pilotq.core.match import Matcher
from pilotq.core.peers import Peers
from pilotq.core.policy import Policy
from pilotq.core.queue import Queue
from pilotq.core.records import NotesAdded, Record, TaskRows, TasksLeft
from pilotq.core.results import Results
from pilotq.core.sessions import Sessions
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now, Turn
from pilotq.model import ON_WORKER, Outcome, State


@dataclass(frozen=True)
class Limits:
    """Settings of the master's core; durations in seconds."""

    lease_s: float = 2400.0
    beat_s: float = 5.0
    contact_lost_s: float = 30.0
    policy_interval_s: float = 60.0
    max_losses: int = 5
    #: Idle tasks above which submissions are refused; 0: no limit.
    max_idle: int = 0


class MasterCore(t.Core):
    """The deciding part of the master."""

    def __init__(
        self,
        limits: Limits,
        evaluate: t.Evaluator,
        now: Now,
        queue: Queue | None = None,
        drains: Iterable[str] = (),
    ) -> None:
        #: `drains`: workers that an operator wanted to leave before this start.
        self.limits = limits
        self.queue = queue or Queue()
        self.peers = Peers()
        self.peers.drains.update(dict.fromkeys(drains))
        self.health = Health(self.peers)
        self.matcher = Matcher(limits.contact_lost_s, self.peers, self.health)
        self.draining = False
        self.stopped = False
        self._woken = self.queue.next_note
        #: What this turn has to do; filled by all parts.
        self.actions: list[Any] = []
        self.policy = Policy(self, evaluate, now)
        self.results = Results(self)
        self.sessions = Sessions(self)
        self.acts = Acts(self)
        #: Who waits for the end of a cluster.
        self._waits: dict[int, tuple[Cluster, list[int]]] = {}
        self._next_check_at = now.boot
        self._take_back(now)
        self._reactions: dict[type, Any] = {
            t.FromPeer: self.sessions.on_message,
            t.PeerLost: self.sessions.on_peer_lost,
            t.SetKeys: self.sessions.on_keys,
            t.WorkerVerb: self.sessions.on_worker_verb,
            t.Submit: self.on_submit,
            t.Act: self.acts.on_act,
            t.Wait: self.on_wait,
            t.Delivered: self.on_delivered,
            t.Undelivered: self.on_undelivered,
            t.Collected: self.results.on_collected,
            t.SetDrain: self.on_drain,
            t.Tick: self.on_tick,
        }

    def react(self, event: t.Event, now: Now) -> None:
        self._reactions[type(event)](event, now)

    def settle(self, now: Now) -> Turn:
        self.heed_health(now)
        self._match(now)
        return self._turn(now)

    def next_wakeup(self) -> float | None:
        if self.acts.is_busy:
            return 0.0
        return min(self._next_check_at, self.policy.next_at)

    def check(self) -> None:
        """Raises: InternalError when an invariant is broken."""
        self.queue.check()
        self.sessions.check()

    # ---- reactions

    def on_submit(self, event: t.Submit, now: Now) -> None:
        if not event.clusters:
            self.actions.append(t.Answer(event.reply, []))
            return
        owner = event.clusters[0].owner
        known = self.queue.keys.get((owner, event.key), event.known) if event.key else None
        if known:
            self.actions.append(t.Answer(event.reply, known))
            return
        refusal = self.refusal(sum(new.count for new in event.clusters))
        if refusal:
            self.actions.append(t.Answer(event.reply, refusal))
            return
        numbers = [
            self.queue.add(new, f"{event.key}/{index}" if event.key else "") for index, new in enumerate(event.clusters)
        ]
        self.queue.remember_key(owner, event.key, numbers)
        self.actions.append(t.Answer(event.reply, numbers))

    def on_wait(self, event: t.Wait, now: Now) -> None:
        cluster = self.queue.clusters.get(event.cluster)
        if cluster is None or cluster.is_over:
            self.actions.append(t.Answer(event.reply, cluster))
        else:
            self._waits.setdefault(cluster.id, (cluster, []))[1].append(event.reply)

    def _answer_waits(self, records: list[Record]) -> None:
        """In the turn whose records end a cluster, so that the answer leaves after their commit."""
        for record in records:
            if isinstance(record, TaskRows | TasksLeft) and record.cluster in self._waits:
                cluster, replies = self._waits[record.cluster]
                if cluster.is_over:
                    del self._waits[record.cluster]
                    self.actions += [t.Answer(reply, cluster) for reply in replies]

    def refusal(self, more: int) -> str:
        """Why this many more tasks are not accepted; "" when they are."""
        if self.draining:
            return "the master is draining and takes no new tasks; `pilotq drain --off` ends that"
        limit = self.limits.max_idle
        if limit:
            idle = sum(cluster.idle for cluster in self.queue.clusters.values())
            if idle + more > limit:
                return f"{idle} tasks are idle already and queue.max_idle is {limit}; submit again later"
        return ""

    def on_delivered(self, event: t.Delivered, now: Now) -> None:
        queue = self.queue
        ended = queue.delivered(event.ns, now.wall)
        for cluster, proc in [(queue.clusters[token.cluster], token.proc) for token in ended]:
            if not queue.is_leaving(cluster, proc):
                self.policy.leave_or_stay(cluster, proc, now)
        self.actions.append(t.Discard(ended))

    def on_undelivered(self, event: t.Undelivered, now: Now) -> None:
        self.queue.undelivered(event.n, now.wall, event.errno, event.reason)

    def on_drain(self, event: t.SetDrain, now: Now) -> None:
        if event.on != self.draining:
            self.draining = event.on
            self.actions.append(t.Tell("draining" if event.on else "not draining any more"))

    def on_tick(self, event: t.Tick, now: Now) -> None:
        if self.acts.is_busy:
            self.acts.work_off(now)
        if now.boot >= self.policy.next_at:
            self.policy.run(now)
        if now.boot >= self._next_check_at:
            self._next_check_at = now.boot + 1.0
            self.sessions.on_time(now)
            self._make_hungry(self.health.on_time(self.queue.clusters, now))

    # ---- inside

    def heed_health(self, now: Now) -> None:
        """Nodes that were suspended give back what they have not started; those that are well again take tasks."""
        health = self.health
        for host, text in health.news:
            self.actions.append(t.Tell(text, {"node": host}))
        for host in health.new_suspended:
            for worker in health.workers_on(host):
                self.sessions.call_back(worker, now)
        self._make_hungry(health.well_again)
        health.news, health.new_suspended, health.well_again = [], [], []

    def _make_hungry(self, hosts: list[str]) -> None:
        for host in hosts:
            for worker in self.health.workers_on(host):
                self.matcher.hungry[worker.name] = None

    def _take_back(self, now: Now) -> None:
        """After a restart: every assigned task counts as just renewed, on the worker the store names."""
        for cluster in self.queue.clusters.values():
            for proc, facts in cluster.facts.items():
                state = cluster.state(proc)
                may_run = state in (State.HELD, State.IDLE) and facts.outcome != Outcome.LOST
                if not facts.worker or not (may_run or state in ON_WORKER):
                    continue
                worker = self.peers.know(facts.worker, facts.host, now.boot, self.limits.lease_s)
                worker.hold(cluster.id, [proc], [cluster.attempts[proc]], cluster.needs)
                if state == State.SUSPENDED:
                    worker.suspend(wire.Token(cluster.id, proc, cluster.attempts[proc]), True)
                if state not in ON_WORKER:
                    # It was told to end, or not even that yet.
                    worker.begin_ending((cluster.id, proc))
                    if state == State.IDLE:
                        cluster.fence(proc)

    def _match(self, now: Now) -> None:
        """Give idle tasks to workers with room."""
        queue = self.queue
        for worker, cluster, procs in self.matcher.match(queue.ready, queue.clusters, now):
            assert worker.route is not None
            self.health.on_try(worker.node, (cluster.id, procs[0]), now)
            numbers = queue.assign(cluster, procs, worker.name, worker.host, now.wall)
            worker.hold(cluster.id, procs, numbers, cluster.needs)
            worker.told_at = now.boot
            told = self.peers.told.setdefault(worker.route.peer, set())
            if cluster.id not in told:
                told.add(cluster.id)
                self.actions.append(t.SendDescription(worker.route.peer, cluster.id))
            self.actions.append(t.SendAssign(worker.route, cluster.id, procs, numbers, cluster.has_deltas))

    def _turn(self, now: Now) -> Turn:
        queue = self.queue
        records = [*queue.flush(now.wall), *self.peers.records]
        self.peers.records = []
        if self._waits:
            self._answer_waits(records)
        actions, self.actions = self.actions, []
        at_once: list[Any] = []
        is_told = True
        if queue.next_note > self._woken:
            self._woken = queue.next_note
            actions.append(t.WakeScribe(queue.next_note - 1))
            # To bring outputs home twice does no harm; an event in a log would be there twice.
            added = [record.notes for record in records if isinstance(record, NotesAdded)]
            silent = [notes for notes in added if all(note.event < 0 for note in notes)]
            at_once += [t.HandNotes(notes) for notes in silent]
            is_told = len(silent) == len(added)
        for number in queue.gone:
            self.health.forget_group(number)
            actions.append(t.ClusterGone(number))
            for peer, told in self.peers.told.items():
                if number in told:
                    told.discard(number)
                    if peer in self.peers.foremen:
                        actions.append(t.Send(t.Route(peer, b""), wire.Forget(number)))
        queue.gone = []
        if self.draining and not self.stopped and self._is_drained():
            self.stopped = True
            actions.append(t.Stop("drained"))
        return Turn(records, actions, at_once, may_wait=is_told and all(map(t.may_wait, actions)))

    def _is_drained(self) -> bool:
        waiting = (State.IDLE, State.ASSIGNED, State.RUNNING, State.SUSPENDED, State.STAGING_OUT)
        busy = any(any(cluster.counts[state] for state in waiting) for cluster in self.queue.clusters.values())
        return not busy and not any(worker.ending for worker in self.peers.workers.values())
