"""Sessions of workers and foremen: hello, heartbeat, inventory, lease, goodbye.

Losing contact is not death: only a goodbye, an inventory without the task, the end of the lease or an operator frees
what a worker holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotq import wire
from pilotq.access import Role, may_send, worker_name
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


def _is_name(text: str) -> bool:
    """It will stand in logs, tables and user logs."""
    return 0 < len(text) <= NAME_CHARS_MAX and text.isprintable()


class Sessions:
    """Reactions to what workers and foremen say."""

    def __init__(self, master: MasterCore) -> None:
        self._master = master
        self._peers = master.peers
        self._keys = t.SetKeys([], [])
        self._names: set[str] = set()
        self._reactions: dict[type, Any] = {
            wire.Beat: self.on_beat,
            wire.Started: self.on_started,
            wire.Result: self._master.results.on_result,
            wire.Refuse: self.on_refuse,
            wire.Killed: self.on_killed,
            wire.Goodbye: self.on_goodbye,
        }

    def on_message(self, event: t.FromPeer, now: Now) -> None:
        message, route, role, key = event.message, event.route, event.role, event.name
        if route.session:
            # What a worker says through a foreman, which names the key that the worker came with.
            role = Role.WORKER if role == Role.FOREMAN else ""
            key = wire.key_of(route.session)
            if key not in self._names:
                self._tell("a foreman names a key that is not allowed", key)
                return
        if not may_send(role, type(message)):
            self._tell("message not allowed for this key", key)
            return
        if role == Role.FOREMAN:
            self._from_foreman(event, now)
            return
        if isinstance(message, wire.Hello):
            self.on_hello(route, key, message, now)
            return
        worker = self._peers.find_at(route)
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

    def on_hello(self, route: Route, key: str, message: wire.Hello, now: Now) -> None:
        if message.protocol != wire.PROTOCOL:
            text = f"this master speaks protocol {wire.PROTOCOL}, worker {message.version} speaks {message.protocol}"
            self._send(route, wire.Reject(text, 60.0))
            return
        limits = self._master.limits
        if (
            not all(map(_is_name, (message.worker, message.host, message.version)))
            or "@" in message.worker + message.host
        ):
            self._send(route, wire.Reject("not a name for a worker", 60.0))
            return
        name = worker_name(message.worker, key)
        if name in self._peers.over:
            return
        worker = self._peers.know(name, message.host, now.boot, limits.lease_s)
        if message.generation < worker.generation:
            return
        if worker.route == route and not worker.asked:
            # Something said to it since the last hello may not have reached it when it said this one.
            self._ask_inventory(worker, now)
            return
        is_answer = worker.route == route and message.answers == worker.ask
        if worker.route == route and not is_answer:
            # The answer is on its way; to ask again would only bring one more of these.
            return
        if worker.route is None:
            self._master.actions.append(t.Tell("worker joined", {"worker": name, "host": message.host}))
        worker.host, worker.pid, worker.version, worker.key = message.host, message.pid, message.version, key
        worker.generation, worker.offer, worker.asked = message.generation, message.offer, False
        worker.containment = message.containment
        worker.mismatch_since = float("inf")
        worker.heard_at, worker.lease_over_at = now.boot, lease_end(now.boot, limits.lease_s)
        self._peers.connect(worker, route)
        here = {*message.live, *message.unacked}
        gone = [task for task in worker.tasks if wire.Token(*task, worker.number(task)) not in here]
        ended = [token for token in worker.ending if token not in here]
        if (gone or ended) and not is_answer:
            # It may be old, kept by a foreman that stood still. What it lacks counts when we asked for it.
            self._ask_inventory(worker, now)
            return
        self._master.results.lose(worker, gone, "its worker does not have it", now)
        for token in ended:
            self.on_ended(worker, token)
        kill = self._take_in(worker, message, now)
        spread_s = len(self._peers.workers) / RETURNS_PER_S
        self._send(route, wire.Welcome(limits.lease_s, limits.beat_s, message.generation, kill, spread_s))
        self._set_right(worker, message)
        if worker.drain_wanted:
            self._send(route, wire.DrainPlease())
        for predecessor in message.predecessors:
            other = self._peers.workers.get(worker_name(predecessor, key)) if "@" not in predecessor else None
            if other is not None and other is not worker:
                self._bury(other, "its worker was started again", now, is_over=True)
        self._master.matcher.hungry[name] = None

    def _take_in(self, worker: Worker, message: wire.Hello, now: Now) -> list[wire.Token]:
        """Set what the worker holds against the queue; what it must end."""
        clusters = self._master.queue.clusters
        kill: list[wire.Token] = []
        for token in message.live:
            task = (token.cluster, token.proc)
            if worker.number(task) == token.attempt:
                continue
            cluster = clusters.get(token.cluster)
            if token in worker.ending:
                kill.append(token)
            elif cluster is None or not self._adopt(worker, cluster, token, now):
                kill.append(token)
                worker.ending_too(token, cluster.needs if cluster is not None else Resources())
        for token in message.unacked:
            cluster = clusters.get(token.cluster)
            if token in worker.ending:
                kill.append(token)
                continue
            if cluster is None or worker.number((token.cluster, token.proc)):
                continue
            # Its result follows: not to be started again before.
            if not self._master.policy.judges_exits(cluster):
                self._adopt(worker, cluster, token, now)
        for token in message.started:
            cluster = clusters.get(token.cluster)
            if cluster is not None and worker.number((token.cluster, token.proc)) == token.attempt:
                self._master.queue.start(cluster, [token.proc], now.wall)
        return kill

    def _set_right(self, worker: Worker, message: wire.Hello) -> None:
        """Have it stop, or let go on, what the queue says; of what it was told of these something was lost."""
        clusters = self._master.queue.clusters
        there = set(message.suspended)
        wrong: dict[bool, list[wire.Token]] = {True: [], False: []}
        for token in message.live:
            cluster = clusters.get(token.cluster)
            if cluster is not None and worker.runs(token):
                on = cluster.state(token.proc) == State.SUSPENDED
                worker.suspend(token, on)
                if on != (token in there):
                    wrong[on].append(token)
        assert worker.route is not None
        for on, tokens in wrong.items():
            if tokens:
                self._send(worker.route, wire.Suspend(tokens, on))

    def _adopt(self, worker: Worker, cluster: Cluster, token: wire.Token, now: Now) -> bool:
        """Take an attempt back that the master thought was lost; one that another worker got is not its own."""
        if not cluster.has(token.proc) or cluster.attempts[token.proc] != token.attempt:
            return False
        state = cluster.state(token.proc)
        if state == State.IDLE and worker.has_lost(cluster, token.proc):
            self._master.queue.take_back(cluster, token.proc, worker.name, worker.host)
        elif state not in ON_WORKER or cluster.facts_of(token.proc).worker != worker.name:
            return False
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
            cluster = queue.clusters.get(token.cluster)
            if cluster is not None and cluster.state(token.proc) in ON_WORKER - {State.ASSIGNED}:
                # It said before that it runs: its inventory decides.
                continue
            worker.drop(task)
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
        self._bury(worker, message.reason or "its worker left", now, is_over=True)

    def on_ended(self, worker: Worker, token: wire.Token) -> bool:
        """Nothing of an attempt that was to end is left: its task may run again. False: it was not to end."""
        if not worker.ended(token):
            return False
        cluster = self._master.queue.clusters.get(token.cluster)
        if cluster is not None and cluster.has(token.proc) and cluster.attempts[token.proc] == token.attempt:
            self._master.queue.unfence(cluster, token.proc, worker.name)
        return True

    def is_ending(self, cluster: Cluster, proc: int) -> bool:
        """Does an attempt of it still run that was told to end?"""
        worker = self._peers.workers.get(cluster.facts_of(proc).worker)
        return worker is not None and wire.Token(cluster.id, proc, cluster.attempts[proc]) in worker.ending

    def is_on_worker(self, cluster: Cluster, proc: int) -> bool:
        """Does a worker hold its attempt, of which no result has come?"""
        worker = self._peers.workers.get(cluster.facts_of(proc).worker)
        return worker is not None and worker.runs(wire.Token(cluster.id, proc, cluster.attempts[proc]))

    def suspend(self, cluster: Cluster, proc: int, on: bool, now: Now) -> None:
        """Tell the worker that runs this task to stop it, or to let it go on."""
        worker = self._peers.workers.get(cluster.facts_of(proc).worker)
        token = wire.Token(cluster.id, proc, cluster.attempts[proc])
        if worker is None or not worker.runs(token):
            return
        worker.suspend(token, on)
        if worker.route is not None:
            worker.told_at = now.boot
            self._send(worker.route, wire.Suspend([token], on))

    def end_attempt(self, cluster: Cluster, proc: int, now: Now, fast: bool = False, removed: bool = False) -> None:
        """Tell the worker that holds this task to end it; it goes on using its slot until it has."""
        if cluster.state(proc) not in ON_WORKER:
            return
        worker = self._peers.workers.get(cluster.facts_of(proc).worker)
        token = worker.begin_ending((cluster.id, proc)) if worker is not None else None
        if worker is None or token is None:
            return
        self._master.results.drop_collected(token)
        if worker.route is not None:
            worker.told_at = now.boot
            self._send(worker.route, wire.Kill([token], fast, removed))

    def call_back(self, worker: Worker, now: Now) -> None:
        """End what a worker holds and has not started, so that it starts elsewhere."""
        queue = self._master.queue
        for number, proc in worker.tasks:
            cluster = queue.clusters.get(number)
            if cluster is None or cluster.state(proc) != State.ASSIGNED or (number, proc) in worker.returned:
                continue
            self.end_attempt(cluster, proc, now)
            end = Ended(Outcome.REJECTED, reason="its node was suspended")
            queue.requeue(cluster, proc, now.wall, end, still_runs=self.is_ending(cluster, proc))

    def _bury(self, worker: Worker, reason: str, now: Now, *, is_over: bool = False) -> None:
        """A worker is no more: free what it held."""
        self._master.results.lose(worker, worker.tasks, reason, now)
        self._master.results.stop_collecting(worker)
        for token in list(worker.ending):
            self.on_ended(worker, token)
        self._peers.remove(worker, is_over=is_over)
        self._master.actions.append(t.Tell("worker left", {"worker": worker.name, "reason": reason}))

    # ---- foremen

    def _from_foreman(self, event: t.FromPeer, now: Now) -> None:
        message, peer = event.message, event.route.peer
        if isinstance(message, wire.ForemanHello):
            if message.protocol != wire.PROTOCOL:
                self._send(event.route, wire.Reject(f"this master speaks protocol {wire.PROTOCOL}", 60.0))
                return
            if not (_is_name(message.name) and _is_name(message.version)):
                self._send(event.route, wire.Reject("not a name for a foreman", 60.0))
                return
            for other in [f for f in self._peers.foremen.values() if f.name == message.name and f.peer != peer]:
                if other.key == event.name:
                    self._peers.lose_peer(other.peer)
            self._peers.told.pop(peer, None)
            self._peers.foremen[peer] = Foreman(message.name, peer, event.name, message.pid, message.version, now.boot)
            self._send(event.route, self._welcome(now))
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
                worker = self._peers.find_at(Route(peer, session))
                if worker is not None:
                    self._peers.disconnect(worker)
        elif isinstance(message, wire.Goodbye):
            self._peers.lose_peer(peer)
            self._master.actions.append(t.Tell("foreman left", {"foreman": foreman.name, "reason": message.reason}))

    def on_keys(self, event: t.SetKeys, now: Now) -> None:
        self._keys, self._names = event, {name for _, name, _ in event.workers}
        for worker in self._peers.workers.values():
            if worker.route is not None and worker.key not in self._names:
                self._peers.disconnect(worker)
                self._tell("a worker's key is not allowed any more", worker.key)
        for foreman in list(self._peers.foremen.values()):
            if foreman.key not in event.foremen:
                self._peers.lose_peer(foreman.peer)
                self._tell("a foreman's key is not allowed any more", foreman.key)
        for peer in self._peers.foremen:
            self._send(Route(peer, b""), self._welcome(now))

    def _welcome(self, now: Now) -> wire.ForemanWelcome:
        """Only durations cross the wire."""
        keys = [
            wire.AllowedKey(public, name, max(0.0, end - now.wall) if end else -1.0)
            for public, name, end in self._keys.workers
        ]
        return wire.ForemanWelcome(keys, self._master.limits.beat_s, self._keys.serve)

    def _tell(self, text: str, key: str) -> None:
        self._master.actions.append(t.Tell(text, {"key": key}))

    def on_peer_lost(self, event: t.PeerLost, now: Now) -> None:
        self._peers.lose_peer(event.peer)

    # ---- operators and time

    def on_worker_verb(self, event: t.WorkerVerb, now: Now) -> None:
        worker = self._peers.workers.get(event.worker)
        if worker is not None and event.verb == "drain":
            self._peers.drain(worker)
            if worker.route is not None:
                self._send(worker.route, wire.DrainPlease())
        elif worker is not None and event.verb == "resume":
            self._master.health.resume(worker.node, now)
        elif worker is not None:
            self._bury(worker, "an operator said that it is gone", now)
        self._master.actions.append(t.Answer(event.reply, worker is not None))

    def on_time(self, now: Now) -> None:
        """Leases that ended, foremen that fell silent."""
        limits, boot = self._master.limits, now.boot
        silent_since = boot - 4 * limits.contact_lost_s
        # Of ten thousand the loop looks at little more than two numbers each.
        for worker in list(self._peers.workers.values()):
            if boot >= worker.lease_over_at:
                self._bury(worker, "no contact with its worker for the whole lease", now)
            elif worker.heard_at < silent_since and worker.is_empty:
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
