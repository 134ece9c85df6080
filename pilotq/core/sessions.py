"""Sessions of workers and foremen: hello, heartbeat, inventory, lease, goodbye.

Losing contact is not death: only a goodbye, an inventory without the task, the end of the lease or an operator frees
what a worker holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core.peers import Foreman, Worker, lease_end
from pilotq.core.results import PAUSE_S
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now, Route
from pilotq.errors import InternalError
from pilotq.model import ON_WORKER, Ended, Outcome, Resources, State

if TYPE_CHECKING:
    from pilotq.core.master import MasterCore

NAME_CHARS_MAX = 200
#: Workers that may come back in a second after all of them lost their way: each costs a handshake and an inventory.
RETURNS_PER_S = 500
#: A checksum that is wrong for this long makes the master ask for an inventory, even of a worker that is kept busy:
#: what is on its way to the worker makes it wrong for a moment, what was lost for ever.
MISMATCH_S = 60.0


class Sessions:
    """Reactions to what workers and foremen say."""

    def __init__(self, master: MasterCore) -> None:
        self._master = master
        self._peers = master.peers
        self._keys: list[tuple[str, str]] = []
        self._reactions: dict[type, Any] = {
            wire.Beat: self.on_beat,
            wire.Started: self.on_started,
            wire.Result: self._master.results.on_result,
            wire.Refuse: self.on_refuse,
            wire.Killed: self.on_killed,
            wire.Goodbye: self.on_goodbye,
        }

    def on_message(self, event: t.FromPeer, now: Now) -> None:
        message, route = event.message, event.route
        if type(message) not in wire.ALLOWED.get(event.role, ()) and not (event.role == "foreman" and route.session):
            self._master.actions.append(t.Tell("message not allowed for this key", {"key": event.name}))
            return
        if event.role == "foreman" and not route.session:
            self._from_foreman(event, now)
            return
        if event.role == "foreman":
            if type(message) not in wire.ALLOWED["worker"]:
                return
        elif route.session:
            return
        if isinstance(message, wire.Hello):
            self.on_hello(event, message, now)
            return
        worker = self._peers.routes.get(route)
        if worker is None:
            if self._peers.may_ask(route, now.boot):
                self._send(route, wire.AskInventory())
            return
        worker.heard_at = now.boot
        reaction = self._reactions.get(type(message))
        if reaction is not None:
            reaction(worker, message, now)
            self._master.matcher.hungry[worker.name] = None

    # ---- workers

    def on_hello(self, event: t.FromPeer, message: wire.Hello, now: Now) -> None:
        if message.protocol != wire.PROTOCOL:
            text = f"this master speaks protocol {wire.PROTOCOL}, worker {message.version} speaks {message.protocol}"
            self._send(event.route, wire.Reject(text, 60.0))
            return
        limits = self._master.limits
        name = message.worker
        if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            self._send(event.route, wire.Reject("not a name for a worker", 60.0))
            return
        worker = self._peers.know(name, message.host, now.boot, limits.lease_s)
        if worker.key and worker.key != event.name:
            self._send(event.route, wire.Reject("this worker name belongs to another key", 60.0))
            return
        if worker.route is not None and message.generation < worker.generation:
            return
        if worker.route == event.route and (not worker.asked or message.answers != worker.ask):
            # Something said to it since the last hello may not have reached it when it said this one.
            self._ask_inventory(worker, now)
            return
        is_new = worker.route is None
        worker.host, worker.pid, worker.version, worker.key = message.host, message.pid, message.version, event.name
        worker.generation, worker.offer, worker.asked = message.generation, message.offer, False
        worker.mismatch_since = float("inf")
        worker.heard_at, worker.lease_over_at = now.boot, lease_end(now.boot, limits.lease_s)
        self._peers.connect(worker, event.route)
        kill = self._compare(worker, message, now)
        spread_s = len(self._peers.workers) / RETURNS_PER_S
        self._send(event.route, wire.Welcome(limits.lease_s, limits.beat_s, message.generation, kill, spread_s))
        for predecessor in message.predecessors:
            other = self._peers.workers.get(predecessor)
            if other is not None and other is not worker and other.key in ("", event.name):
                self._bury(other, "its worker was started again", now)
        self._master.matcher.hungry[name] = None
        if is_new:
            self._master.actions.append(t.Tell("worker joined", {"worker": name, "host": message.host}))

    def _compare(self, worker: Worker, message: wire.Hello, now: Now) -> list[wire.Token]:
        """Set the worker's inventory against the queue; what it must end."""
        clusters = self._master.queue.clusters
        held = set(message.live)
        unacked = {(token.cluster, token.proc) for token in message.unacked}
        gone = [
            task for task in worker.tasks if task not in unacked and wire.Token(*task, worker.number(task)) not in held
        ]
        self._master.results.lose(worker, gone, "its worker does not have it", now)
        for token in list(worker.ending):
            if token not in held:
                self.on_ended(worker, token)
        kill: list[wire.Token] = []
        for token in message.live:
            task = (token.cluster, token.proc)
            if worker.number(task) == token.attempt:
                continue
            cluster = clusters.get(token.cluster)
            if cluster is not None and self._adopt(worker, cluster, token, now):
                continue
            kill.append(token)
            if token not in worker.ending:
                worker.ending_too(token, cluster.needs if cluster is not None else Resources(0))
        for token in message.started:
            cluster = clusters.get(token.cluster)
            if cluster is not None and worker.number((token.cluster, token.proc)) == token.attempt:
                self._master.queue.start(cluster, [token.proc], now.wall)
        return kill

    def _adopt(self, worker: Worker, cluster: Cluster, token: wire.Token, now: Now) -> bool:
        """Take a running attempt back that the master thought was elsewhere or over."""
        if not cluster.has(token.proc) or cluster.attempts[token.proc] != token.attempt:
            return False
        task, state = (token.cluster, token.proc), cluster.state(token.proc)
        if state == State.IDLE:
            self._master.queue.take_back(cluster, token.proc, worker.name, worker.host)
        elif state not in ON_WORKER:
            return False
        other = self._peers.workers.get(cluster.facts_of(token.proc).worker)
        if other is not None and other is not worker:
            other.drop(task)
        worker.hold(cluster.id, [token.proc], [token.attempt], cluster.needs)
        return True

    def on_beat(self, worker: Worker, message: wire.Beat, now: Now) -> None:
        worker.offer = message.offer
        worker.lease_over_at = lease_end(now.boot, self._master.limits.lease_s)
        assert worker.route is not None
        self._send(worker.route, wire.Renew(message.seq))
        beat_s = self._master.limits.beat_s
        if worker.asked:
            if now.boot - worker.asked_at > 2 * beat_s:
                # The question was lost on its way, or the answer.
                self._ask_inventory(worker, now)
            return
        if (message.count, message.checksum) == (worker.count, worker.checksum):
            worker.mismatch_since = float("inf")
            return
        worker.mismatch_since = min(worker.mismatch_since, now.boot)
        wrong_s = now.boot - worker.mismatch_since
        if wrong_s > MISMATCH_S or (wrong_s > 1.5 * beat_s and now.boot - worker.told_at > beat_s):
            worker.mismatch_since = float("inf")
            self._ask_inventory(worker, now)

    def _ask_inventory(self, worker: Worker, now: Now) -> None:
        """Until the hello with this number comes it gets nothing new."""
        assert worker.route is not None
        worker.asked, worker.asked_at = True, now.boot
        worker.ask += 1
        self._send(worker.route, wire.AskInventory(worker.ask))

    def on_started(self, worker: Worker, message: wire.Started, now: Now) -> None:
        started: dict[int, dict[int, None]] = {}
        for token in message.tokens:
            if worker.number((token.cluster, token.proc)) == token.attempt:
                started.setdefault(token.cluster, {})[token.proc] = None
        queue = self._master.queue
        for number, procs in started.items():
            cluster = queue.clusters.get(number)
            if cluster is not None:
                queue.start(cluster, list(procs), now.wall)

    def on_refuse(self, worker: Worker, message: wire.Refuse, now: Now) -> None:
        """Not started there: idle again, nobody is charged."""
        queue = self._master.queue
        for token in message.tokens:
            self.on_ended(worker, token)
            task = (token.cluster, token.proc)
            if worker.number(task) != token.attempt:
                continue
            worker.drop(task)
            cluster = queue.clusters.get(token.cluster)
            if cluster is not None and cluster.state(token.proc) == State.ASSIGNED:
                queue.requeue(cluster, token.proc, now.wall, Ended(Outcome.REJECTED, reason=message.reason))
        if message.reason == "undescribed" and worker.route is not None:
            self._peers.told.pop(worker.route.peer, None)
            worker.pause_until = now.boot + 0.2
        elif message.reason not in ("full", "draining"):
            worker.pause_until = now.boot + PAUSE_S
            facts = {"worker": worker.name, "reason": message.reason}
            self._master.actions.append(t.Tell("worker refuses tasks", facts))

    def on_killed(self, worker: Worker, message: wire.Killed, now: Now) -> None:
        for token in message.tokens:
            self.on_ended(worker, token)

    def on_goodbye(self, worker: Worker, message: wire.Goodbye, now: Now) -> None:
        self._bury(worker, message.reason or "its worker left", now)

    def on_ended(self, worker: Worker, token: wire.Token) -> None:
        """Nothing of an attempt that was to end is left: its task may run again."""
        if worker.ended(token):
            cluster = self._master.queue.clusters.get(token.cluster)
            if cluster is not None and cluster.has(token.proc):
                self._master.queue.unfence(cluster, token.proc, worker.name)

    def is_ending(self, cluster: Cluster, proc: int) -> bool:
        """Does an attempt of it still run that was told to end?"""
        worker = self._peers.workers.get(cluster.facts_of(proc).worker)
        return worker is not None and wire.Token(cluster.id, proc, cluster.attempts[proc]) in worker.ending

    def end_attempt(self, cluster: Cluster, proc: int, now: Now) -> None:
        """Tell the worker that holds this task to end it; it goes on using its slot until it has."""
        if cluster.state(proc) not in ON_WORKER:
            return
        worker = self._peers.workers.get(cluster.facts_of(proc).worker)
        token = worker.begin_ending((cluster.id, proc)) if worker is not None else None
        if worker is not None and token is not None and worker.route is not None:
            worker.told_at = now.boot
            self._send(worker.route, wire.Kill([token]))

    def call_back(self, worker: Worker, now: Now) -> None:
        """End what a worker holds and has not started, so that it starts elsewhere."""
        queue = self._master.queue
        for number, proc in worker.tasks:
            cluster = queue.clusters.get(number)
            if cluster is None or cluster.state(proc) != State.ASSIGNED or (number, proc) in worker.returned:
                continue
            self.end_attempt(cluster, proc, now)
            queue.requeue(cluster, proc, now.wall, Ended(Outcome.REJECTED, reason="its node was suspended"))
            if self.is_ending(cluster, proc):
                cluster.fence(proc)

    def _bury(self, worker: Worker, reason: str, now: Now) -> None:
        """A worker is no more: free what it held."""
        self._master.results.lose(worker, worker.tasks, reason, now)
        for token in list(worker.ending):
            self.on_ended(worker, token)
        self._peers.remove(worker)
        self._master.actions.append(t.Tell("worker left", {"worker": worker.name, "reason": reason}))

    # ---- foremen

    def _from_foreman(self, event: t.FromPeer, now: Now) -> None:
        message, peer = event.message, event.route.peer
        if isinstance(message, wire.ForemanHello):
            if message.protocol != wire.PROTOCOL:
                self._send(event.route, wire.Reject(f"this master speaks protocol {wire.PROTOCOL}", 60.0))
                return
            for other in [f for f in self._peers.foremen.values() if f.name == message.name and f.peer != peer]:
                self._peers.lose_peer(other.peer)
            self._peers.told.pop(peer, None)
            self._peers.foremen[peer] = Foreman(message.name, peer, message.pid, message.version, now.boot)
            self._send(event.route, wire.ForemanWelcome(self._keys, self._master.limits.beat_s))
            self._master.actions.append(t.Tell("foreman joined", {"foreman": message.name}))
            return
        foreman = self._peers.foremen.get(peer)
        if foreman is None:
            if self._peers.may_ask(event.route, now.boot):
                self._send(event.route, wire.AskInventory())
            return
        foreman.heard_at = now.boot
        if isinstance(message, wire.ForemanBeat):
            foreman.workers, foreman.draining = message.workers, message.draining
            self._send(event.route, wire.ForemanRenew(message.seq))
        elif isinstance(message, wire.Gone):
            for session in message.sessions:
                worker = self._peers.routes.get(Route(peer, session))
                if worker is not None:
                    self._peers.disconnect(worker)
        elif isinstance(message, wire.Goodbye):
            self._peers.lose_peer(peer)
            self._master.actions.append(t.Tell("foreman left", {"foreman": foreman.name, "reason": message.reason}))

    def on_keys(self, event: t.SetKeys, now: Now) -> None:
        self._keys = event.keys
        for peer in self._peers.foremen:
            self._send(Route(peer, b""), wire.ForemanWelcome(self._keys, self._master.limits.beat_s))

    def on_peer_lost(self, event: t.PeerLost, now: Now) -> None:
        self._peers.lose_peer(event.peer)

    # ---- operators and time

    def on_worker_verb(self, event: t.WorkerVerb, now: Now) -> None:
        worker = self._peers.workers.get(event.worker)
        if worker is not None and event.verb == "drain":
            worker.drain_wanted = True
            if worker.route is not None:
                self._send(worker.route, wire.DrainPlease())
        elif worker is not None and event.verb == "resume":
            self._master.health.resume(worker.host, now)
        elif worker is not None:
            self._bury(worker, "an operator said that it is gone", now)
        self._master.actions.append(t.Answer(event.reply, worker is not None))

    def on_time(self, now: Now) -> None:
        """Leases that ended, foremen that fell silent."""
        limits = self._master.limits
        for worker in list(self._peers.workers.values()):
            if now.boot >= worker.lease_over_at:
                self._bury(worker, "no contact with its worker for the whole lease", now)
            elif worker.is_empty and now.boot - worker.heard_at > 4 * limits.contact_lost_s:
                self._peers.remove(worker)
                self._master.actions.append(t.Tell("worker forgotten", {"worker": worker.name}))
        for foreman in list(self._peers.foremen.values()):
            if now.boot - foreman.heard_at > limits.contact_lost_s:
                self._peers.lose_peer(foreman.peer)
                self._master.actions.append(t.Tell("foreman lost", {"foreman": foreman.name}))

    def _send(self, route: Route, message: wire.Message) -> None:
        self._master.actions.append(t.Send(route, message))

    def check(self) -> None:
        """Raises: InternalError when workers and queue disagree."""
        clusters = self._master.queue.clusters
        held: dict[tuple[int, int], str] = {}
        for worker in self._peers.workers.values():
            for task in worker.tasks:
                cluster = clusters.get(task[0])
                if cluster is None or cluster.attempts[task[1]] != worker.number(task):
                    continue
                if task in held:
                    raise InternalError(f"task {task} is held by {held[task]} and {worker.name}")
                held[task] = worker.name
        for cluster in clusters.values():
            for proc, facts in cluster.facts.items():
                if cluster.state(proc) in ON_WORKER and held.get((cluster.id, proc)) != facts.worker:
                    raise InternalError(f"task {cluster.id}.{proc} is on no worker")
