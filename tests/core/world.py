"""A master and workers joined by a wire that delivers when told to: the real cores, no sockets, a clock by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.master import Limits, MasterCore
from pilotq.core.queue import Queue
from pilotq.core.records import ClusterAdded, DrainWanted, Note, NotesAdded, NotesDone, TaskRows, TasksLeft
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now, Route
from pilotq.core.worker import Options, WorkerCore
from pilotq.model import HARMLESS, Description, Ended, Facts, Outcome, Resources, State, Usage


def never(expr: str, *rest: Any) -> bool | None:
    """An evaluator that knows three expressions."""
    return {"true": True, "false": False}.get(expr)


class Remembered:
    """What the records say, kept the way a store would."""

    def __init__(self) -> None:
        self.clusters: dict[int, ClusterAdded] = {}
        self.rows: dict[tuple[int, int], tuple[int, int, Facts]] = {}
        self.history: list[tuple[int, int, int, int, Facts]] = []
        self.outbox: dict[int, Note] = {}
        self.last_note = 0
        self.drains: list[str] = []

    def commit(self, records: list[Any]) -> None:
        for record in records:
            if isinstance(record, ClusterAdded):
                self.clusters[record.cluster] = record
            elif isinstance(record, TaskRows | TasksLeft):
                columns = zip(record.procs, record.states, record.attempts, record.facts, strict=True)
                for proc, state, attempt, facts in columns:
                    if isinstance(record, TaskRows):
                        self.rows[record.cluster, proc] = (state, attempt, facts)
                    else:
                        self.rows.pop((record.cluster, proc), None)
                        self.history.append((record.cluster, proc, state, attempt, facts))
            elif isinstance(record, NotesAdded):
                self.outbox.update((note.n, note) for note in record.notes)
                self.last_note = max(self.last_note, record.notes[-1].n)
            elif isinstance(record, NotesDone):
                for n in record.ns:
                    self.outbox.pop(n, None)
            elif isinstance(record, DrainWanted):
                (self.drains.append if record.on else self.drains.remove)(record.worker)

    def events(self, cluster: int, proc: int) -> list[int]:
        """Numbers of the notes still in the outbox for a task."""
        return [note.event for note in self.outbox.values() if (note.cluster, note.proc) == (cluster, proc)]


class World:
    """One master, any number of workers connected straight to it."""

    #: What waits is taken in one turn, as a busy loop does.
    all_at_once = False

    def __init__(self, limits: Limits | None = None, evaluate: Any = never) -> None:
        self.now = Now(1000.0, 1_700_000_000.0)
        self.limits = limits or Limits()
        self.evaluate = evaluate
        self.disk = Remembered()
        self.master = MasterCore(self.limits, evaluate, self.now)
        self.answers: dict[int, Any] = {}
        self.said: list[str] = []
        self.collects: list[t.Collect] = []
        self.stopped = ""
        self.retried: list[int] = []
        self.workers: dict[str, Node] = {}
        self._descriptions: dict[int, bytes] = {}
        self._reply = 0
        #: Notes the scribe got before their commit; does nobody wait for the last commit?
        self.handed: list[Note] = []
        self.may_wait = False

    def pass_time(self, seconds: float) -> None:
        """Let time pass in steps of a second at most, delivering everything."""
        end = self.now.boot + seconds
        while self.now.boot < end - 1e-9:
            step = min(1.0, end - self.now.boot)
            self.now = Now(self.now.boot + step, self.now.wall + step)
            self.tick()

    def tick(self) -> None:
        wakeup = self.master.next_wakeup()
        if wakeup is not None and wakeup <= self.now.boot:
            self.do(t.Tick())
        for node in list(self.workers.values()):
            due = node.core.next_wakeup() if not node.left else None
            if due is not None and due <= self.now.boot:
                node.do(w.Tick())
        self.deliver()

    def do(self, *events: t.Event) -> None:
        """One turn of the master: records first, then actions."""
        for event in events:
            self.master.react(event, self.now)
        turn = self.master.settle(self.now)
        if turn.records:
            self.may_wait = turn.may_wait
        for action in turn.at_once:
            self.handed += action.notes
        self.disk.commit(turn.records)
        for record in turn.records:
            if isinstance(record, ClusterAdded):
                self._descriptions[record.cluster] = record.description
        for action in turn.actions:
            self._perform(action)
        self.master.check()

    def _perform(self, action: Any) -> None:
        if isinstance(action, t.Send):
            self._to(action.route.peer, action.message)
        elif isinstance(action, t.SendDescription):
            self._to(action.peer, wire.Describe(action.cluster, self._descriptions[action.cluster]))
        elif isinstance(action, t.SendAssign):
            self._to(action.route.peer, wire.Assign(action.cluster, action.procs, action.attempts))
        elif isinstance(action, t.Answer):
            self.answers[action.reply] = action.value
        elif isinstance(action, t.Tell):
            self.said.append(action.text)
        elif isinstance(action, t.Collect):
            self.collects.append(action)
        elif isinstance(action, t.RetryNotes):
            self.retried += action.ns
        elif isinstance(action, t.Stop):
            self.stopped = action.reason

    def _to(self, peer: bytes, message: wire.Message) -> None:
        for node in self.workers.values():
            if node.peer == peer and not node.cut:
                node.inbox.append((node.core.session.link, message))

    def deliver(self) -> None:
        """Deliver everything until nothing is on its way, also what workers keep back for a moment."""
        self._exchange()
        self.now = Now(self.now.boot + 0.03, self.now.wall + 0.03)
        for node in list(self.workers.values()):
            due = node.core.next_wakeup() if not node.left else None
            if due is not None and due <= self.now.boot:
                node.do(w.Tick())
        self._exchange()

    def _exchange(self, rounds: int = 100) -> None:
        for _ in range(rounds):
            busy = False
            for node in list(self.workers.values()):
                said: list[t.Event] = []
                while node.outbox:
                    peer, message = node.outbox.popleft()
                    said.append(t.FromPeer(Route(peer, b""), "worker", "site", wire.unpack(wire.pack(message))))
                self._in_turns(self.do, said)
                heard: list[t.Event] = []
                while node.inbox:
                    link, message = node.inbox.popleft()
                    heard.append(w.FromMaster(link, wire.unpack(wire.pack(message))))
                self._in_turns(node.do, heard)
                busy = busy or bool(said or heard)
            if not busy:
                return

    def _in_turns(self, do: Callable[..., None], events: list[t.Event]) -> None:
        """All in one turn, or each in its own."""
        if self.all_at_once and events:
            do(*events)
        else:
            for event in events:
                do(event)

    def submit(self, count: int = 1, *, key: str = "", log: bool = False, **more: Any) -> Any:
        """Submit a cluster; its id, or the refusal."""
        self._reply += 1
        description = Description(["/bin/true"], needs=more.get("needs", Resources()))
        new = t.NewCluster(
            owner=more.get("owner", "alice"),
            count=count,
            needs=more.get("needs", Resources()),
            priority=more.get("priority", 0),
            has_log=log,
            body=b"log" if log else b"",
            description=msgspec.msgpack.encode(description),
            deltas=[],
            digests=[],
            policies=more.get("policies", {}),
            hold_reason=more.get("hold_reason", ""),
            submitted_at=self.now.wall,
        )
        self.do(t.Submit(self._reply, key, [new]))
        self.deliver()
        answer = self.answers[self._reply]
        return answer if isinstance(answer, str) else answer[0]

    def act(self, verb: str, *selection: tuple[int, int]) -> Any:
        self._reply += 1
        self.do(t.Act(self._reply, verb, list(selection), f"via {verb}"))
        self.deliver()
        while self._reply not in self.answers:
            self.do(t.Tick())
            self.deliver()
        return self.answers[self._reply]

    def write_notes(self) -> None:
        """The scribe has written everything."""
        if self.disk.outbox:
            self.do(t.Delivered(sorted(self.disk.outbox)))
            self.deliver()

    def restart_master(self) -> None:
        """kill -9 and a new master from what was committed."""
        queue = Queue(max(self.disk.clusters, default=0) + 1, self.disk.last_note + 1)
        ended = {(cluster, proc): (state, facts) for cluster, proc, state, _, facts in self.disk.history}
        for added in self.disk.clusters.values():
            needs = msgspec.msgpack.decode(added.description, type=Description).needs
            has_log = added.body == b"log"
            cluster = Cluster(added.cluster, added.owner, added.count, needs, has_log=has_log, state=added.state)
            for proc in range(added.count):
                if (added.cluster, proc) in ended:
                    cluster.put(proc, State(ended[added.cluster, proc][0]))
                    cluster.left += 1
                elif (added.cluster, proc) in self.disk.rows:
                    state, attempt, facts = self.disk.rows[added.cluster, proc]
                    cluster.put(proc, State(state))
                    cluster.attempts[proc], cluster.facts[proc] = attempt, facts
                    if state == State.IDLE:
                        cluster.came_back(proc)
            if cluster.left < len(cluster):
                queue.clusters[cluster.id] = cluster
                queue.ready.add(cluster)
        for note in self.disk.outbox.values():
            if note.final:
                queue.finals[note.n] = wire.Token(note.cluster, note.proc, note.attempt)
        self.master = MasterCore(self.limits, self.evaluate, self.now, queue, self.disk.drains)
        for node in self.workers.values():
            node.inbox.clear()
            node.peer = f"{node.name}/{self.now.boot}".encode()
            node.outbox.clear()

    def state(self, cluster: int, proc: int = 0) -> State:
        """State of a task, wherever it is."""
        live = self.master.queue.clusters.get(cluster)
        if live is not None:
            return live.state(proc)
        return State(next(row[2] for row in self.disk.history if row[:2] == (cluster, proc)))


class Node:
    """A worker: its core, and keepers that do what the test says."""

    def __init__(self, world: World, name: str, slots: int = 1, **options: Any) -> None:
        self.world, self.name = world, name
        self.peer = name.encode()
        self.inbox: deque[tuple[int, wire.Message]] = deque()
        self.outbox: deque[tuple[bytes, wire.Message]] = deque()
        #: True: nothing passes in either direction.
        self.cut = False
        #: True: the test says when files are there; when a payload was started.
        self.holds_files = False
        self.holds_launches = False
        self.left = ""
        #: True: the test says when keepers hear of orders.
        self.holds_orders = False
        self.orders: deque[w.Launch | w.End | w.TakeBack | w.GoOn | w.Suspend] = deque()
        self.slots = slots
        #: What every task takes.
        self.task_s = 5.0
        self.running: list[wire.Token] = []
        #: Attempts in a keeper that wait for another.
        self.followers: dict[wire.Token, wire.Token] = {}
        #: Attempts that stand still.
        self.suspended: set[wire.Token] = set()
        #: Attempts that failed, and behind which nothing begins yet.
        self.stopped: set[wire.Token] = set()
        #: How often a keeper gave one back.
        self.returns = 0
        self.fast_ends = 0
        self.launched: list[wire.Token] = []
        #: Payloads that were started.
        self.begun: list[wire.Token] = []
        self.discarded: list[wire.Token] = []
        options.setdefault("idle_timeout_s", 0.0)
        capacity = Resources(slots, 1 << 30, 1 << 30)
        self.core = WorkerCore(Options(name, name, 1, "test", capacity, **options), world.now)
        world.workers[name] = self
        self.do(w.Tick())
        world.deliver()

    def do(self, *events: Any) -> None:
        for event in events:
            self.core.react(event, self.world.now)
        turn = self.core.settle(self.world.now)
        assert not turn.records
        for action in turn.actions:
            self._perform(action)
        self.core.check()

    def _perform(self, action: Any) -> None:
        if isinstance(action, w.Say):
            if not self.cut:
                self.outbox.append((self.peer, action.message))
        elif isinstance(action, w.Connect):
            self.peer = f"{self.name}/{action.link}".encode()
            self.inbox.clear()
            self.outbox.clear()
        elif isinstance(action, w.Stage):
            if not self.holds_files:
                self.do(w.FilesReady(action.tokens))
        elif isinstance(action, w.Launch | w.End | w.TakeBack | w.GoOn | w.Suspend):
            self.orders.append(action)
            if not self.holds_orders:
                self.obey()
        elif isinstance(action, w.Discard):
            self.discarded += action.tokens
        elif isinstance(action, w.Leave):
            self.left = action.reason

    def obey(self) -> None:
        """The keepers do what they were told."""
        while self.orders:
            order = self.orders.popleft()
            if isinstance(order, w.Launch):
                assert order.token not in self.launched
                self.launched.append(order.token)
                if order.after in {*self.running, *self.followers, *self.stopped}:
                    self.followers[order.token] = order.after
                else:
                    self._tell(started=self._start(order.token))
            elif isinstance(order, w.GoOn):
                self.stopped.remove(order.token)
                self._tell(started=self._pass_on(order.token, None))
            elif order.token in self.running:
                if isinstance(order, w.End):
                    self.fast_ends += order.fast
                    self.end(order.token, order.outcome)
                elif isinstance(order, w.Suspend):
                    (self.suspended.add if order.on else self.suspended.discard)(order.token)
            elif isinstance(order, w.Suspend):
                pass
            elif order.token in self.followers:
                self._pass_on(order.token, self.followers.pop(order.token))
                if isinstance(order, w.End):
                    self._tell(ended=[(order.token, Ended(order.outcome), 0.0)])
                else:
                    self.returns += 1
                    self.launched.remove(order.token)
                    self._tell(returned=[order.token])

    def _start(self, token: wire.Token) -> list[wire.Token]:
        """Gives those of which the start is told."""
        self.running.append(token)
        self.begun.append(token)
        assert len(self.running) <= self.slots
        return [] if self.holds_launches else [token]

    def _pass_on(self, token: wire.Token, before: wire.Token | None) -> list[wire.Token]:
        """What followed it follows another, or starts; those started."""
        started = []
        for follower in [one for one, after in self.followers.items() if after == token]:
            if before is not None:
                self.followers[follower] = before
            else:
                del self.followers[follower]
                started += self._start(follower)
        return started

    def _tell(self, **what: Any) -> None:
        event = w.FromKeepers(**what)
        if event != w.FromKeepers():
            self.do(event)

    def end(self, token: wire.Token | None = None, outcome: Outcome = Outcome.OK, code: int = 0, **more: Any) -> None:
        """A running attempt ends."""
        token = token or self.running[0]
        self.tell_end(*self.over(token, outcome, code, **more))

    def over(
        self, token: wire.Token, outcome: Outcome = Outcome.OK, code: int = 0, **more: Any
    ) -> tuple[wire.Token, Ended, float]:
        """It ends, and its keeper has not told yet."""
        self.running.remove(token)
        self.suspended.discard(token)
        return token, Ended(outcome, code, usage=Usage(wall_s=self.task_s), **more), float(self.begun.index(token) + 1)

    def tell_end(self, token: wire.Token, ended: Ended, began_at: float) -> None:
        started = []
        if ended.outcome in HARMLESS:
            started = self._pass_on(token, None)
        else:
            self.stopped.add(token)
        self._tell(started=started, ended=[(token, ended, began_at)])

    def line_behind(self, first: wire.Token) -> list[wire.Token]:
        """What waits for it, one for the other."""
        line = [first]
        for token in line:
            line += [one for one, before in self.followers.items() if before == token]
        return line[1:]
