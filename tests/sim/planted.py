"""Bugs that the simulator must find: each puts something wrong in place of one thing that is right."""

from __future__ import annotations

from typing import Any

import msgspec

from pilotq import daemon, wire
from pilotq.access import worker_name
from pilotq.core import foreman, peers, policy, queue, results, sessions
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.acts import Acts
from pilotq.core.foreman import ForemanCore
from pilotq.core.master import MasterCore
from pilotq.core.records import NotesAdded, TaskRows
from pilotq.core.sessions import Sessions
from pilotq.core.turn import Now
from pilotq.core.worker import WorkerCore
from pilotq.core.worker_session import Session
from pilotq.model import ENDING, Ended, Outcome, State
from pilotq.store.memory import MemoryStore
from tests.sim import head
from tests.sim.planting import BUGS, Planted, bug

# ---- the commit, and what may leave only after it


def _early(*kinds: type) -> Any:
    def take_turn(right: Any, self: Any, records: list[Any], actions: list[Any]) -> None:
        def is_early(action: Any) -> bool:
            return isinstance(action.message if isinstance(action, t.Send) else action, kinds)

        if records:
            self._perform_all([action for action in actions if is_early(action)])
            actions = [action for action in actions if not is_early(action)]
        right(self, records, actions)

    return take_turn


for _name, _text, _kinds in (
    ("ack-early", "a result is acknowledged before the commit", (wire.Ack,)),
    ("answer-early", "clients are answered before the commit", (t.Answer,)),
    ("assign-early", "assignments leave before the commit", (t.SendAssign,)),
):
    bug(_name, _text, head.Master, "take_turn")(_early(*_kinds))


@bug("fsync-ignored", "after a commit that failed the master goes on", head.Master, "_durable")
def _(right: Any, self: Any, records: list[Any], actions: list[Any]) -> None:
    faults = self.world.disk_faults
    if faults.breaks == "lost":
        faults.breaks = ""
        self.time.after(0.0003, self._committed, actions)
        return
    right(self, records, actions)


@bug("note-apart", "the last note is committed after the result", queue.Queue, "flush")
def _(right: Any, self: Any, wall: float) -> Any:
    notes, self._notes = self._notes, {}
    kept, self._kept = getattr(self, "_kept", {}), notes
    self._notes = kept
    return right(self, wall)


@bug("key-twice", "a key is not looked up", MasterCore, "on_submit")
def _(right: Any, self: Any, event: t.Submit, now: Now) -> None:
    self.queue.keys.clear()
    right(self, event, now)


@bug("key-forgotten", "keys of ended clusters do not survive a restart", MemoryStore, "load")
def _(right: Any, self: Any) -> Any:
    loaded = right(self)
    loaded.ended_keys = []
    return loaded


@bug("key-not-looked-up", "a key that is not remembered is taken for a new one", MemoryStore, "find_key")
def _(right: Any, self: Any, owner: str, key: str) -> list[int]:
    return []


@bug("wait-early", "the end of a cluster is answered when nothing of it is idle", MasterCore, "on_wait")
def _(right: Any, self: Any, event: t.Wait, now: Now) -> None:
    cluster = self.queue.clusters.get(event.cluster)
    if cluster is not None and not cluster.idle:
        self.actions.append(t.Answer(event.reply, cluster))
    else:
        right(self, event, now)


# ---- what begins before its commit, and what waits for the next one


@bug("events-handed", "events of logs are handed to the scribe before their commit", MasterCore, "_turn")
def _(right: Any, self: Any, now: Now) -> t.Turn:
    turn: t.Turn = right(self, now)
    handed = [t.HandNotes(record.notes) for record in turn.records if isinstance(record, NotesAdded)]
    return t.Turn(turn.records, turn.actions, handed, turn.may_wait)


@bug("later-dropped", "a turn that waits for the next commit is forgotten when there is one", daemon, "_joined")
def _(right: Any, turn: t.Turn, later: t.Turn) -> t.Turn:
    return right(t.Turn(), later)


@bug("later-undone", "what follows a turn that waits is done at once", head.Master, "on_settled")
def _(right: Any, self: Any, turn: t.Turn) -> None:
    right(self, turn)
    if turn.may_wait:
        self._perform_all(turn.actions)
        turn.actions = []


@bug("handed-is-written", "a new scribe passes over what the one before was handed", head.Master, "new_scribe")
def _(right: Any, self: Any) -> None:
    before = self.scribe
    right(self)
    self.scribe._last = max(before._by_hand, default=0)


# ---- results


@bug("any-attempt", "the attempt number of a result is not looked at", results.Results, "_judge")
def _(right: Any, self: Any, worker: Any, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> Any:
    cluster = self._master.queue.clusters.get(token.cluster)
    if cluster is not None and cluster.has(token.proc):
        token = wire.Token(token.cluster, token.proc, max(1, cluster.attempts[token.proc]))
    return right(self, worker, token, end, row_stands, now)


@bug("late-refused", "a finished result is acknowledged and dropped when contact was lost", results.Results, "_judge")
def _(right: Any, self: Any, worker: Any, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> Any:
    return True if not worker.number((token.cluster, token.proc)) else right(self, worker, token, end, row_stands, now)


@bug("late-twice", "a late success is adopted while its outputs are written", results.Results, "_judge")
def _(right: Any, self: Any, worker: Any, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> Any:
    cluster = self._master.queue.clusters.get(token.cluster)
    if cluster is not None and cluster.has(token.proc) and cluster.state(token.proc) == State.STAGING_OUT:
        self._master.queue.complete(cluster, token.proc, now.wall, end, token.attempt)
    return right(self, worker, token, end, row_stands, now)


@bug("collect-acked", "a result is acknowledged while its outputs are still pulled", results.Results, "_judge")
def _(right: Any, self: Any, worker: Any, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> Any:
    right(self, worker, token, end, row_stands, now)
    return True


@bug("speaks-for-others", "anybody may tell the result of an attempt", results.Results, "_judge")
def _(right: Any, self: Any, worker: Any, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> Any:
    cluster = self._master.queue.clusters.get(token.cluster)
    holder = cluster.facts_of(token.proc).worker if cluster is not None and cluster.has(token.proc) else ""
    return right(self, self._master.peers.workers.get(holder, worker), token, end, row_stands, now)


@bug("judged-twice", "with a policy, a result told twice counts twice", policy.Policy, "judges_exits")
def _(right: Any, self: Any, cluster: Any) -> bool:
    return False


@bug("ended-wanted", "the result of an attempt that was told to end counts", results.Results, "_judge")
def _(right: Any, self: Any, worker: Any, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> Any:
    cluster = self._master.queue.clusters.get(token.cluster)
    if token in worker.ending and cluster is not None and cluster.state(token.proc) == State.IDLE:
        self._master.sessions.on_ended(worker, token)
        has_lost = peers.Worker.has_lost
        peers.Worker.has_lost = lambda *_: True  # type: ignore[method-assign]
        try:
            return right(self, worker, token, end, row_stands, now)
        finally:
            peers.Worker.has_lost = has_lost  # type: ignore[method-assign]
    return right(self, worker, token, end, row_stands, now)


@bug("dropped-once", "a dropped result is forgotten before its worker forgot it", results.Results, "on_result")
def _(right: Any, self: Any, worker: Any, message: wire.Result, now: Now) -> None:
    right(self, worker, message, now)
    for token in message.tokens:
        self._master.sessions.on_ended(worker, token)


@bug("judged-again", "a result that was judged is taken for a late one", peers.Worker, "has_lost")
def _(right: Any, self: Any, cluster: Any, proc: int) -> bool:
    return True


# ---- leases and sessions


@bug("lose-on-reset", "a connection that broke frees what the worker held", Sessions, "on_peer_lost")
def _(right: Any, self: Any, event: t.PeerLost, now: Now) -> None:
    for worker in self._peers.lose_peer(event.peer):
        self._bury(worker, "connection lost", now)


@bug("lose-on-gone", "a foreman that says that a session ended frees what the worker held", peers.Peers, "disconnect")
def _(right: Any, self: Any, worker: Any) -> None:
    if worker.route is not None and worker.route.session:
        worker.lease_over_at = 0.0
    right(self, worker)


@bug("wall-lease", "the master counts leases by the wall clock", Sessions, "on_time")
def _(right: Any, self: Any, now: Now) -> None:
    first = self.__dict__.setdefault("_first", now)
    right(self, Now(now.boot + (now.wall - first.wall) - (now.boot - first.boot), now.wall))


BUGS.append(
    Planted(
        "no-margin",
        "the master waits for the lease alone, without margin and grace",
        ((sessions, "lease_end", lambda sent_at, lease_s: sent_at + lease_s),),
    )
)


@bug("restart-not-renewed", "after a restart leases count as over", MasterCore, "_take_back")
def _(right: Any, self: Any, now: Now) -> None:
    right(self, now)
    for worker in self.peers.workers.values():
        worker.lease_over_at = now.boot


@bug("restart-not-fenced", "after a restart what was told to end is forgotten", MasterCore, "_take_back")
def _(right: Any, self: Any, now: Now) -> None:
    right(self, now)
    for cluster in self.queue.clusters.values():
        for proc in list(cluster.fenced):
            cluster.fenced.discard(proc)
            cluster.came_back(proc)
            self.queue.ready.add(cluster)


@bug("attempt-reused", "attempt numbers begin anew after a restart", MasterCore, "_take_back")
def _(right: Any, self: Any, now: Now) -> None:
    right(self, now)
    for cluster in self.queue.clusters.values():
        for proc in range(len(cluster)):
            if cluster.state(proc) == State.IDLE:
                cluster.attempts[proc] = 0


@bug("receipt-lease", "the worker counts its lease from when the answer came", Session, "on_renew")
def _(right: Any, self: Any, message: wire.Renew, now: Now) -> None:
    right(self, message, now)
    self._lease_over_at = max(self._lease_over_at, now.boot + self._lease_s)


@bug("unread-started", "a worker starts what lay unread until its lease was over", WorkerCore, "on_assign")
def _(right: Any, self: Any, message: wire.Assign, now: Now) -> None:
    session, over_at = self.session, self.session._lease_over_at
    session._lease_over_at = float("inf")
    right(self, message, now)
    session._lease_over_at = over_at


@bug("lease-ignored", "a worker without contact goes on for ever", WorkerCore, "give_up")
def _(right: Any, self: Any, now: Now) -> None:
    return


@bug("kill-swapped", "the answer to an inventory ends what should stay", Sessions, "_take_in")
def _(right: Any, self: Any, worker: Any, message: wire.Hello, now: Now) -> Any:
    kill = right(self, worker, message, now)
    return [token for token in message.live if token not in kill]


@bug("kill-not-repeated", "what should end is not told again to a worker that comes back", Sessions, "_take_in")
def _(right: Any, self: Any, worker: Any, message: wire.Hello, now: Now) -> Any:
    for token in right(self, worker, message, now):
        self.on_ended(worker, token)
    return []


@bug("adopts-others", "an inventory takes what another worker got", Sessions, "_adopt")
def _(right: Any, self: Any, worker: Any, cluster: Any, token: wire.Token, now: Now) -> Any:
    other = self._peers.workers.get(cluster.facts_of(token.proc).worker) if cluster.has(token.proc) else None
    if other is None or other is worker or cluster.attempts[token.proc] != token.attempt:
        return right(self, worker, cluster, token, now)
    other.drop((token.cluster, token.proc))
    self._master.queue.requeue(cluster, token.proc, now.wall, Ended(Outcome.LOST))
    self._master.queue.take_back(cluster, token.proc, worker.name, worker.host)
    worker.hold(cluster.id, [token.proc], [token.attempt], cluster.needs)
    return True


@bug("hello-believed", "what a hello lacks counts without a question", Sessions, "on_hello")
def _(right: Any, self: Any, route: t.Route, key: str, message: wire.Hello, now: Now) -> None:
    worker = self._peers.workers.get(worker_name(message.worker, key))
    if worker is not None and worker.route != route and message.generation >= worker.generation:
        self._peers.connect(worker, route)
        worker.asked, worker.ask = True, message.answers
    right(self, route, key, message, now)


@bug("left-comes-back", "a worker that left is let in by an old hello", peers.Peers, "remove")
def _(right: Any, self: Any, worker: Any, *, is_over: bool = False) -> None:
    right(self, worker)


@bug("ending-adopted", "an inventory takes back what was told to end", Sessions, "_take_in")
def _(right: Any, self: Any, worker: Any, message: wire.Hello, now: Now) -> Any:
    ending, worker.ending = worker.ending, {}
    kill = right(self, worker, message, now)
    worker.ending = {**ending, **worker.ending}
    return kill


@bug("hold-keeps-result", "a hold does not end an attempt whose outputs come", peers.Worker, "begin_ending")
def _(right: Any, self: Any, task: tuple[int, int]) -> Any:
    return None if task in self.returned else right(self, task)


@bug("old-hello", "a hello of an older session counts when the newer one is gone", Sessions, "on_hello")
def _(right: Any, self: Any, route: t.Route, key: str, message: wire.Hello, now: Now) -> None:
    worker = self._peers.workers.get(worker_name(message.worker, key))
    if worker is not None and worker.route is None:
        worker.generation = 0
        worker.ask = message.answers
        self._peers.connect(worker, route)
        worker.asked = True
    right(self, route, key, message, now)


@bug("questions-breed", "each hello that is no answer brings one more question", Sessions, "on_hello")
def _(right: Any, self: Any, route: t.Route, key: str, message: wire.Hello, now: Now) -> None:
    worker = self._peers.workers.get(worker_name(message.worker, key))
    if worker is not None and worker.route == route and worker.asked and message.answers != worker.ask:
        self._ask_inventory(worker, now)
        return
    right(self, route, key, message, now)


@bug("drain-lost", "a drain is not told to a worker that connects again", Sessions, "on_hello")
def _(right: Any, self: Any, route: t.Route, key: str, message: wire.Hello, now: Now) -> None:
    worker = self._peers.workers.get(worker_name(message.worker, key))
    wanted = worker is not None and worker.drain_wanted
    if worker is not None and wanted:
        worker.drain_wanted = False
    right(self, route, key, message, now)
    if worker is not None and wanted:
        worker.drain_wanted = True


@bug("drain-not-kept", "a drain by name does not survive a restart of the master", MemoryStore, "load")
def _(right: Any, self: Any) -> Any:
    loaded = right(self)
    loaded.drains = []
    return loaded


@bug("release-races", "a released task does not wait for its first copy to end", Acts, "release")
def _(right: Any, self: Any, cluster: Any, proc: int, reason: str, now: Now) -> None:
    self._master.queue.release(cluster, proc, now.wall, reason)


@bug("delta-credit", "every heartbeat adds to what a worker offers", Sessions, "on_beat")
def _(right: Any, self: Any, worker: Any, message: wire.Beat, now: Now) -> None:
    more = worker.offer.capacity.cpus
    capacity = msgspec.structs.replace(message.offer.capacity, cpus=message.offer.capacity.cpus + more)
    right(self, worker, msgspec.structs.replace(message, offer=wire.Offer(capacity)), now)


@bug("assign-to-draining", "a worker that drains gets tasks", peers.Worker, "takes_tasks")
def _(right: Any, self: Any, boot: float, contact_lost_s: float) -> bool:
    return self.route is not None and not self.asked


@bug("called-back-twice", "what a suspended node gives back starts elsewhere at once", queue.Queue, "requeue")
def _(right: Any, self: Any, *arguments: Any, still_runs: bool = False, **more: bool) -> None:
    right(self, *arguments, **more)


@bug("called-back-forgotten", "a restart forgets what a suspended node is to give back", queue.Queue, "flush")
def _(right: Any, self: Any, wall: float) -> Any:
    records = right(self, wall)
    for record in records:
        if isinstance(record, TaskRows):
            for index, facts in enumerate(record.facts):
                if record.states[index] == State.IDLE and facts.outcome == Outcome.REJECTED:
                    record.facts[index] = msgspec.structs.replace(facts, worker="")
    return records


# ---- workers, foremen, scribe


@bug("results-forgotten", "a worker forgets a result once it is sent", WorkerCore, "_say_results")
def _(right: Any, self: Any, results: Any) -> None:
    sent = list(results)
    right(self, results)
    self.results.clear()
    if sent:
        self.actions.append(w.Discard(sent))


@bug("results-not-resent", "a worker does not tell its results again", WorkerCore, "send_results")
def _(right: Any, self: Any, now: Now) -> None:
    self._resend_at = float("inf")


@bug("drained-accepts", "a worker that drains takes tasks", WorkerCore, "on_assign")
def _(right: Any, self: Any, message: wire.Assign, now: Now) -> None:
    draining, self.draining = self.draining, ""
    right(self, message, now)
    self.draining = draining


@bug("hello-keeps-still", "what a worker stopped stays so when it comes back", Sessions, "_set_right")
def _(right: Any, self: Any, worker: Any, message: wire.Hello) -> None:
    pass


@bug("kill-answered-early", "a worker says that an attempt is gone when it begins to end it", WorkerCore, "on_kill")
def _(right: Any, self: Any, message: wire.Kill, now: Now) -> None:
    right(self, message, now)
    self._say(wire.Killed(message.tokens))


@bug("foreman-acks", "a foreman acknowledges results", ForemanCore, "_from_below")
def _(right: Any, self: Any, event: foreman.FromBelow, now: Now) -> None:
    right(self, event, now)
    for payload in event.payloads:
        message = wire.unpack(payload)
        if isinstance(message, wire.Result):
            self._down(event.session, wire.Ack(message.tokens))


@bug("mark-before-append", "the scribe marks an event as written before it appends it", head.Scribe, "_put_down")
def _(right: Any, self: Any, note: Any) -> None:
    self.world.journal.setdefault(note.n, (0, True))
    self._effect()
    if not self.is_dead and self.world.journal[note.n] == (0, True):
        del self.world.journal[note.n]
        right(self, note)


@bug("log-given-up", "a log that refused is not tried again before something new comes", head.Scribe, "_write")
def _(right: Any, self: Any, cluster: int) -> None:
    after, self.time.after = self.time.after, lambda seconds, *what: seconds < 1 and after(seconds, *what)
    right(self, cluster)
    self.time.after = after


@bug("append-unseen", "a new scribe does not compare the log with its journal", head.Scribe, "_put_down")
def _(right: Any, self: Any, note: Any) -> None:
    known = self.world.journal.get(note.n)
    if known is not None and not known[1]:
        del self.world.journal[note.n]
    right(self, note)


@bug("outcomes-mixed", "results of one message are taken in the wrong order", results.Results, "on_result")
def _(right: Any, self: Any, worker: Any, message: wire.Result, now: Now) -> None:
    right(self, worker, msgspec.structs.replace(message, ends=message.ends[::-1]), now)


@bug("lost-is-done", "a task whose worker is lost counts as done", results.Results, "_lost")
def _(right: Any, self: Any, cluster: Any, proc: int, end: Ended, now: Now, **more: bool) -> None:
    if end.outcome == Outcome.LOST and Outcome.EXIT in ENDING:
        self._master.queue.complete(cluster, proc, now.wall, Ended(Outcome.EXIT, 1), cluster.attempts[proc])
        if cluster.state(proc) == State.DONE:
            self._master.policy.leave_or_stay(cluster, proc, now)
    else:
        right(self, cluster, proc, end, now, **more)
