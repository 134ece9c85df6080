"""The master and its scribe, and foremen: real cores in simulated processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pilotq import wire
from pilotq.core import foreman as f
from pilotq.core import turn as t
from pilotq.core.master import MasterCore
from pilotq.core.records import Note
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now, Tell
from pilotq.model import Facts, Outcome
from pilotq.roles.restart import restore
from tests.sim.clockwork import Clock, Daemon, Died
from tests.sim.network import Dialer, Listener, Parts, Wire

if TYPE_CHECKING:
    from tests.sim.world import World

_PARSED: dict[str, Callable[[Facts], bool]] = {
    "ok": lambda facts: facts.outcome == Outcome.OK,
    "lost": lambda facts: facts.losses > 0 and not facts.holds,
}


def evaluate(expr: str, cluster: Cluster, proc: int, facts: Facts, now: float) -> bool | None:
    """Knows few policy expressions."""
    known = _PARSED.get(expr)
    return known(facts) if known else None


class Disk:
    """What can go wrong when the master commits."""

    def __init__(self) -> None:
        self.commit_s = 0.002
        #: Until then it is full: the transaction waits.
        self.full_until = 0.0
        #: The next commit fails; what was written of it is there ("kept") or not ("lost").
        self.breaks = ""


class Master(Daemon):
    """`roles.master` and its performer."""

    def __init__(self, world: World, clock: Clock) -> None:
        super().__init__(world.time, clock, "master")
        self.world, self.host = world, "head"
        self.wires: dict[bytes, Wire] = {}
        self.listener = Listener(self)
        #: It dies instead of doing the next of this kind.
        self.dies_before: type | None = None
        self.waiting: dict[int, Callable[[Any], None]] = {}
        self._reply = 0
        #: Outputs on their way into the spool: the route, and the names that are still to come.
        self._pulling: dict[wire.Token, tuple[t.Route, set[str]]] = {}
        disk = world.disk
        disk.open("")  # type: ignore[arg-type]
        queue = restore(disk.load(), disk)
        finals = {wire.Token(final.cluster, final.proc, final.attempt) for final in queue.finals.values()}
        world.spool &= finals
        world.ledger.on_master_start()
        self.core = MasterCore(world.limits, evaluate, clock.read(self.time.t), queue)
        self.scribe = Scribe(self)
        self.put(t.SetKeys([("key", "site")]))
        self.scribe.wake()

    def new_tick(self) -> t.Tick:
        return t.Tick()

    def admits(self) -> bool:
        return True

    # ---- what comes in

    def new_scribe(self) -> None:
        """The one before died."""
        if not self.is_dead:
            self.scribe = Scribe(self)
            self.scribe.wake()

    def ask(self, event_of: Callable[[int], t.Event], answer: Callable[[Any], None]) -> None:
        """A request of the API."""
        self._reply += 1
        self.waiting[self._reply] = answer
        self.put(event_of(self._reply))

    def on_batch(self, peer: bytes, dialer: Dialer, parts: Parts) -> None:
        role = "foreman" if isinstance(dialer.daemon, Foreman) else "worker"
        for session, payload in zip(parts[::2], parts[1::2], strict=True):
            route = t.Route(peer, session)
            message = wire.unpack(payload)
            if isinstance(message, wire.Data):
                self._on_data(route, message)
            else:
                self.put(t.FromPeer(route, role, "site", message))

    def on_lost(self, peer: bytes) -> None:
        self.put(t.PeerLost(peer))

    def react(self, event: Any, now: Now) -> None:
        if isinstance(event, t.FromPeer):
            message = event.message
            if isinstance(message, wire.Hello) and message.worker not in self.core.peers.workers:
                self.world.ledger.on_unknown(message.worker)
            self.world.ledger.on_heard(event.route, message)
        elif isinstance(event, t.WorkerVerb) and event.verb == "forget":
            self.world.on_forget(event.worker)
        self.core.react(event, now)

    # ---- turns

    def take_turn(self, records: list[Any], actions: list[Any]) -> None:
        self.world.ledger.on_decided(records)
        for action in actions:
            if isinstance(action, t.SendAssign):
                self.world.ledger.on_decided_assign(action.route, _tokens(action))
        if not records:
            self._perform_all(actions)
            return
        self.committing = True
        disk = self.world.disk_faults
        write_s = disk.commit_s * (0.5 + self.time.noise(3, self._turns))
        self.time.at(max(self.time.t + write_s, disk.full_until), self._durable, records, actions)

    def _durable(self, records: list[Any], actions: list[Any]) -> None:
        if self.time.t < self.paused_until:
            self.time.at(self.paused_until, self._durable, records, actions)
            return
        self.effect()
        faults, breaks = self.world.disk_faults, self.world.disk_faults.breaks
        faults.breaks = ""
        if breaks != "lost":
            self.world.ledger.on_commit(records)
        if breaks:
            self.time.tell(f"a commit fails, what it wrote is {breaks}: the master ends")
            self.die(False)
            return
        self.time.after(0.0003, self._committed, actions)

    def _committed(self, actions: list[Any]) -> None:
        if self.time.t < self.paused_until:
            self.time.at(self.paused_until, self._committed, actions)
            return
        self._perform_all(actions)
        self.resume()

    def _perform_all(self, actions: list[Any]) -> None:
        for action in actions:
            self.effect()
            if self.dies_before and isinstance(getattr(action, "message", action), self.dies_before):
                self.time.tell("the master dies instead of saying what it has committed")
                self.die(False)
                raise Died
            performer = self._performers.get(type(action))
            if performer is not None:
                performer(self, action)
        self.listener.flush()

    def _send(self, action: t.Send) -> None:
        message, ledger = action.message, self.world.ledger
        if isinstance(message, wire.Ack):
            ledger.on_ack_sent(action.route, message.tokens)
        elif isinstance(message, wire.Kill):
            ledger.on_kill_sent(message.tokens)
        elif isinstance(message, wire.Welcome):
            ledger.on_kill_sent(message.kill)
        self.listener.send(action.route.peer, action.route.session, wire.pack(message))

    def _send_assign(self, action: t.SendAssign) -> None:
        self.world.ledger.on_assign_sent(_tokens(action))
        message = wire.Assign(action.cluster, action.procs, action.attempts)
        self.listener.send(action.route.peer, action.route.session, wire.pack(message))

    def _send_description(self, action: t.SendDescription) -> None:
        message = wire.Describe(action.cluster, self.world.disk.description(action.cluster))
        self.listener.send(action.peer, b"", wire.pack(message))

    def _answer(self, action: t.Answer) -> None:
        answer = self.waiting.pop(action.reply, None)
        if answer is not None:
            answer(action.value)

    def _stop(self, action: t.Stop) -> None:
        self.time.tell("the master has drained")
        self.die(False)

    # ---- outputs

    def _collect(self, action: t.Collect) -> None:
        names = {output.name for output in action.outputs if output.data is None}
        self.world.ledger.on_collect(action.token)
        if action.token in self.world.spool:
            return
        self._pulling[action.token] = (action.route, names)
        for name in sorted(names):
            message = wire.Pull(action.token, name, 0)
            self.listener.send(action.route.peer, action.route.session, wire.pack(message))

    def _on_data(self, route: t.Route, data: wire.Data) -> None:
        known = self._pulling.get(data.token)
        if known is None or known[0] != route:
            return
        if data.missing:
            del self._pulling[data.token]
            self.world.ledger.on_missing(data.token)
            self.put(t.Collected(data.token, f"{data.name} is not there"))
            return
        known[1].discard(data.name)
        if not known[1]:
            del self._pulling[data.token]
            self.world.spool.add(data.token)
            self.time.after(0.002, self.put, t.Collected(data.token))

    def _discard(self, action: t.Discard) -> None:
        self._pulling.pop(action.token, None)
        self.world.spool.discard(action.token)

    _performers: dict[type, Any] = {  # noqa: RUF012 never changed
        t.Send: _send,
        t.SendAssign: _send_assign,
        t.SendDescription: _send_description,
        t.Answer: _answer,
        t.Collect: _collect,
        t.Discard: _discard,
        t.Stop: _stop,
        t.WakeScribe: lambda self, action: self.scribe.wake(),
        t.RetryNotes: lambda self, action: self.scribe.retry(action.ns),
    }

    # ---- faults

    def die(self, is_silent: bool) -> None:
        super().die(is_silent)
        for one in list(self.wires.values()):
            one.server_ends(is_silent)
        self.scribe.is_dead = True
        self.world.on_master_dead(self)


class Scribe:
    """Writes the notes of each log in order: intends, appends, marks, tells. It may die in between."""

    STEP_S = 0.001

    def __init__(self, master: Master) -> None:
        self.master, self.world, self.time = master, master.world, master.time
        self.is_dead = False
        self.fuse = -1
        self._last = 0
        #: By log; and those whose log cannot be written, with what was told of them.
        self._lanes: dict[int, deque[Note]] = {}
        self._busy: set[int] = set()
        self._parked: set[int] = set()
        self._told: set[int] = set()

    def wake(self) -> None:
        outbox = self.world.disk.outbox
        for n in [n for n in outbox if n > self._last]:
            note = outbox[n]
            self._last = n
            lane = self._lanes.setdefault(note.cluster, deque())
            lane.append(note)
            # One more note is a reason to try the log again.
            self._parked.discard(note.cluster)
            self._go_on(note.cluster)

    def retry(self, ns: list[int]) -> None:
        for cluster in [c for c, lane in self._lanes.items() if any(note.n in ns for note in lane)]:
            self._told.difference_update(note.n for note in self._lanes[cluster])
            self._parked.discard(cluster)
            self._go_on(cluster)

    def retry_all(self) -> None:
        """As a new scribe does."""
        self.retry([note.n for lane in self._lanes.values() for note in lane])

    def _go_on(self, cluster: int) -> None:
        if cluster not in self._busy and self._lanes[cluster]:
            self._busy.add(cluster)
            self.time.after(self.STEP_S, self._write, cluster)

    def _effect(self) -> None:
        if self.fuse >= 0:
            self.fuse -= 1
            if self.fuse < 0:
                self.time.tell("the scribe dies")
                self.is_dead = True
                self.time.after(0.5, self.master.new_scribe)

    def _write(self, cluster: int) -> None:
        if self.is_dead:
            return
        note = self._lanes[cluster][0]
        if self.time.t < self.world.log_broken.get(cluster, 0.0):
            self._busy.discard(cluster)
            self._parked.add(cluster)
            for waiting in self._lanes[cluster]:
                self._tell_failed(waiting)
            return
        if note.n in self.world.disk.outbox:
            self._put_down(note)
            if self.is_dead:
                return
            self.time.after(self.STEP_S, self._tell_done, note.n)
        self._lanes[cluster].popleft()
        self._busy.discard(cluster)
        self._go_on(cluster)

    def _put_down(self, note: Note) -> None:
        """An append that a crash may come before, into or after; the journal tells the next scribe."""
        journal, ledger = self.world.journal, self.world.ledger
        known = journal.get(note.n)
        log = ledger.logs.setdefault(note.cluster, [])
        if known is None:
            journal[note.n] = known = (len(log), False)
            self._effect()
            if self.is_dead:
                return
        size, is_written = known
        if is_written:
            return
        if note.outputs:
            self.publish(note)
        if note.event >= 0 and len(log) <= size:
            ledger.on_append(note.cluster, note.event, note.proc, note.count, note.n)
        self._effect()
        if not self.is_dead:
            journal[note.n] = (size, True)
            self._effect()

    def publish(self, note: Note) -> None:
        """The outputs of the attempt that counts, and of no other."""
        token = wire.Token(note.cluster, note.proc, note.attempt)
        ledger = self.world.ledger
        if token not in self.world.spool and (note.cluster, note.proc) not in ledger.lied_of:
            ledger.fail("I3", f"the outputs of {note.cluster}.{note.proc} attempt {note.attempt} are not in the spool")
        ledger.published.setdefault((note.cluster, note.proc), set()).add(note.attempt)

    def _tell_done(self, n: int) -> None:
        if not self.is_dead:
            self.master.put(t.Delivered([n]))

    def _tell_failed(self, note: Note) -> None:
        if note.n not in self._told:
            self._told.add(note.n)
            self.time.after(self.STEP_S, self.master.put, t.Undelivered(note.n, 13, "no permission"))


class Foreman(Daemon):
    """`roles.foreman`."""

    def __init__(self, world: World, clock: Clock, name: str) -> None:
        super().__init__(world.time, clock, name)
        self.world, self.host = world, name
        self.wires: dict[bytes, Wire] = {}
        self.listener = Listener(self)
        self.up: Dialer | None = None
        self._parts: Parts = []
        self._keys: list[tuple[str, str]] = []
        self.core = f.ForemanCore(name, 1, "sim", clock.read(self.time.t))
        self.put(f.Tick())

    def new_tick(self) -> f.Tick:
        return f.Tick()

    def admits(self) -> bool:
        return bool(self._keys)

    def on_batch(self, peer: bytes, dialer: Dialer, parts: Parts) -> None:
        self.put(f.FromBelow(peer, parts[1::2]))

    def on_lost(self, peer: bytes) -> None:
        self.put(f.SessionLost(peer))

    def perform(self, action: Any) -> None:
        if isinstance(action, f.Up):
            self._parts += action.parts
        elif isinstance(action, f.Down):
            self.listener.send(action.session, *action.parts)
        elif isinstance(action, f.Allow):
            self._keys = action.keys
        elif isinstance(action, f.Connect):
            if self.up is not None:
                self.up.close()
            self._parts = []
            self.up = Dialer(
                self.world.net,
                self,
                self.host,
                "master",
                lambda parts: self.put(f.FromAbove(parts)),
                lambda: self.put(f.AboveReset()),
            )
        elif isinstance(action, f.Leave):
            self.flush()
            self.die(False)
        elif isinstance(action, Tell) and self.time.trace is not None:
            self.time.tell(f"{self.name}: {action.text}")

    def flush(self) -> None:
        if self._parts and self.up is not None:
            parts, self._parts = self._parts, []
            self.up.send(parts)
        self.listener.flush()

    def die(self, is_silent: bool) -> None:
        super().die(is_silent)
        if self.up is not None:
            self.up.close(is_silent)
        for one in list(self.wires.values()):
            one.server_ends(is_silent)
        self.world.on_foreman_dead(self)


def _tokens(action: t.SendAssign) -> list[wire.Token]:
    pairs = zip(action.procs, action.attempts, strict=True)
    return [wire.Token(action.cluster, proc, attempt) for proc, attempt in pairs]
