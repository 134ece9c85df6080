"""The master: a real core in a simulated process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pilotq import wire
from pilotq.access import FIRST
from pilotq.core import turn as t
from pilotq.core.master import MasterCore
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now
from pilotq.model import Facts, Outcome
from pilotq.roles.performer import _SENDS, IDLE_SEND_S
from pilotq.roles.restart import restore
from tests.sim.clockwork import Clock, Daemon, Died
from tests.sim.foremen import Foreman
from tests.sim.network import Dialer, Listener, Parts, Wire
from tests.sim.scribe import Scribe

if TYPE_CHECKING:
    from tests.sim.world import World

#: Of ended clusters, so that some are forgotten.
KEYS_KEPT = 2
_PARSED: dict[str, Callable[[Facts], bool]] = {
    "ok": lambda facts: facts.outcome == Outcome.OK,
    "lost": lambda facts: facts.losses > 0 and not facts.holds,
}


def evaluate(expr: str, cluster: Cluster, proc: int, facts: Facts, now: float) -> bool | None:
    """Knows few policy expressions."""
    return _PARSED[expr](facts) if expr in _PARSED else None


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
        self._sends_soon = False
        #: Outputs on their way into the spool: the route, and the names that are still to come.
        self._pulling: dict[wire.Token, tuple[t.Route, set[str]]] = {}
        self._settled: set[wire.Token] = set()
        disk = world.disk
        disk.open("")  # type: ignore[arg-type]
        now = clock.read(self.time.t)
        loaded = disk.load()
        has_more = len(loaded.ended_keys) > KEYS_KEPT
        del loaded.ended_keys[:-KEYS_KEPT]
        queue = restore(loaded, disk, now.wall)
        queue.has_forgotten_keys = has_more
        finals = {wire.Token(final.cluster, final.proc, final.attempt) for final in queue.finals.values()}
        world.spool &= finals
        world.ledger.on_master_start()
        self.core = MasterCore(world.limits, evaluate, now, queue, loaded.drains)
        self.scribe = Scribe(self, queue.next_note - 1)
        self.put(t.SetKeys([("key", FIRST, 0.0)], [FIRST]))

    def new_tick(self) -> t.Tick:
        return t.Tick()

    def admits(self) -> bool:
        return True

    # ---- what comes in

    def new_scribe(self) -> None:
        """The one before died."""
        if not self.is_dead:
            self.scribe = Scribe(self, self.scribe.woken)

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
                self.put(t.FromPeer(route, role, FIRST, message))

    def on_lost(self, peer: bytes) -> None:
        self.put(t.PeerLost(peer))

    def react(self, event: Any, now: Now) -> None:
        if isinstance(event, t.FromPeer):
            message = event.message
            if isinstance(message, wire.Hello) and message.worker not in self.core.peers.workers:
                self.world.ledger.on_unknown(message.worker)
            self.world.ledger.on_heard(event.route, message)
        elif isinstance(event, t.WorkerVerb) and event.verb == "forget":
            self.world.ledger.on_forget(event.worker)
        self.core.react(event, now)

    # ---- turns

    def on_settled(self, turn: t.Turn) -> None:
        self.world.ledger.on_decided(turn)
        for action in turn.actions:
            if isinstance(action, t.SendAssign):
                self.world.ledger.on_decided_assign(action.route, _tokens(action))

    def take_turn(self, records: list[Any], actions: list[Any]) -> None:
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
            self.perform(action)
        if any(isinstance(action, _SENDS) and not t.may_wait(action) for action in actions):
            self.listener.flush()
        elif not self._sends_soon and self.listener.has_waiting:
            self._sends_soon = True
            self.time.after(IDLE_SEND_S, self._send_waiting)

    def perform(self, action: Any) -> None:
        performer = self._performers.get(type(action))
        if performer is not None:
            performer(self, action)

    def _send_waiting(self) -> None:
        if self.is_dead:
            return
        if self.time.t < self.paused_until:
            self.time.at(self.paused_until, self._send_waiting)
            return
        self._sends_soon = False
        self.listener.flush()

    def _send(self, action: t.Send) -> None:
        message, ledger = action.message, self.world.ledger
        if isinstance(message, wire.Ack):
            ledger.on_ack_sent(action.route, message.tokens)
        elif isinstance(message, wire.Kill):
            ledger.on_kill_sent(message.tokens)
        elif isinstance(message, wire.Welcome):
            ledger.on_kill_sent(message.kill)
            ledger.on_renewed(action.route)
        elif isinstance(message, wire.Renew):
            ledger.on_renewed(action.route)
        self.listener.send(action.route.peer, action.route.session, wire.pack(message))

    def _send_assign(self, action: t.SendAssign) -> None:
        self.world.ledger.on_assign_sent(_tokens(action))
        worker = self.core.peers.find_at(action.route)
        for node in self.world.nodes if worker is not None else ():
            if node.name == worker.host:
                node.on_given()
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
        if action.token in self._settled:
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
            self._settled.add(data.token)
            self.world.spool.add(data.token)
            self.time.after(0.002, self.put, t.Collected(data.token))

    def _discard(self, action: t.Discard) -> None:
        for token in action.tokens:
            self._pulling.pop(token, None)
            self._settled.discard(token)
            self.world.spool.discard(token)

    _performers: dict[type, Any] = {  # noqa: RUF012 never changed
        t.Send: _send,
        t.SendAssign: _send_assign,
        t.SendDescription: _send_description,
        t.Answer: _answer,
        t.Collect: _collect,
        t.Discard: _discard,
        t.Stop: _stop,
        t.WakeScribe: lambda self, action: self.scribe.wake(action.n),
        t.HandNotes: lambda self, action: self.scribe.hand(action.notes),
        t.RetryNotes: lambda self, action: self.scribe.retry(action.ns),
    }

    # ---- faults

    def die(self, is_silent: bool) -> None:
        super().die(is_silent)
        for one in list(self.wires.values()):
            one.server_ends(is_silent)
        self.scribe.is_dead = True
        self.world.on_master_dead(self)


def _tokens(action: t.SendAssign) -> list[wire.Token]:
    pairs = zip(action.procs, action.attempts, strict=True)
    return [wire.Token(action.cluster, proc, attempt) for proc, attempt in pairs]
