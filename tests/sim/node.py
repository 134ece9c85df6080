"""An execute node: its worker's core, keepers that start payloads that are only told of, and what outlives a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.turn import Now, Tell
from pilotq.core.worker import Options, WorkerCore
from pilotq.model import HARMLESS, Ended, Outcome, OutputFile, Resources, Usage
from tests.sim.clockwork import Clock, Daemon, number_of
from tests.sim.network import Dialer, Parts
from tests.sim.things import Payload

if TYPE_CHECKING:
    from tests.sim.world import World

#: A node that stood still for longer cannot be expected to have kept its lease.
FROZEN_S = 8.0
#: Payloads of less than this are over before their start is told.
QUICK_S = 0.05
OUTPUTS = {"": [], "small": [OutputFile("small", 3, 0o600, b"out")], "big": [OutputFile("big", 1 << 20, 0o600)]}


class Node:
    """The host: clock, scratch directory, payloads; one worker at a time."""

    def __init__(self, world: World, name: str, slots: int, rate: float, options: dict[str, Any]) -> None:
        self.world, self.time, self.name = world, world.time, name
        self.slots, self.options = slots, options
        self.clock = Clock(1000.0 * world.time.noise(5, len(world.nodes)), rate)
        self.worker: Worker | None = None
        self.starts = 0
        #: What the folder says of workers that were here.
        self.names: list[str] = []
        self.sandboxes: set[wire.Token] = set()
        self.running: dict[wire.Token, Payload] = {}
        self.frozen_until = 0.0
        #: End of the last pause, and of the last long one.
        self.resumed_at = self.thawed_at = float("-inf")
        #: How long it will stand still as soon as it is given something.
        self.pause_given_s = 0.0
        #: All payloads fail at once; files cannot be had.
        self.is_black_hole = False
        self.stage_fails_until = 0.0

    def was_frozen(self, since: float) -> bool:
        return self.thawed_at > since

    def start(self) -> None:
        """A worker comes up; first it removes all that another one left."""
        if self.worker is None or self.worker.is_dead:
            for token in list(self.running):
                self._over(token)
            self.sandboxes.clear()
            self.starts += 1
            self.worker = Worker(self.world, self)
            self.time.tell(f"{self.worker.name} starts")

    def reboot(self) -> None:
        """The host goes down: nobody is told, and its boot clock begins anew."""
        if self.worker is not None and not self.worker.is_dead:
            self.worker.die(True)
        for token in list(self.running):
            self._over(token)
        self.clock.origin = -self.time.t * self.clock.rate

    def pause(self, seconds: float, is_whole: bool) -> None:
        """The worker's process stands still, or with it all that runs here."""
        if self.worker is None or self.worker.is_dead:
            return
        self.worker.pause(seconds)
        if is_whole:
            self.frozen_until = max(self.frozen_until, self.time.t + seconds)
        self.resumed_at = max(self.resumed_at, self.time.t + seconds)
        if seconds > FROZEN_S:
            self.thawed_at = max(self.thawed_at, self.time.t + seconds)

    def on_given(self) -> None:
        """Something is on its way to the worker."""
        seconds, self.pause_given_s = self.pause_given_s, 0.0
        if seconds:
            self.time.tell(f"{self.name} stands still for {seconds:g} s")
            self.pause(seconds, False)

    # ---- payloads

    def begin(self, token: wire.Token, worker: Worker) -> Payload:
        """The payload of an attempt starts."""
        spec, time = self.world.ledger.specs[token.cluster], self.time
        noise = time.noise(11, token.cluster, token.proc, token.attempt)
        outcome, code = Outcome.OK, 0
        if self.is_black_hole or noise > 0.93:
            outcome, code = Outcome.EXIT, 1 + int(noise * 1e6) % 200
        elif noise > 0.88:
            outcome = (Outcome.SIGNAL, Outcome.MEMORY, Outcome.TIMEOUT, Outcome.DISK)[int(noise * 1e5) % 4]
            code = 9 if outcome == Outcome.SIGNAL else 0
        task_s = 0.001 if self.is_black_hole else spec.task_s * (0.5 + noise)
        ends_at = max(time.t, self.frozen_until) + task_s
        launched_at = worker.keepers.launched_at[token]
        payload = Payload(token, spec, worker.name, self, launched_at, time.t, ends_at, outcome, code)
        if token in worker.too_late:
            self.world.ledger.fail("drain", f"{worker.name} drains and starts {token.cluster}.{token.proc}")
        self.world.ledger.on_start(payload)
        self.running[token] = payload
        time.at(ends_at, self._end_by_itself, payload, worker)
        return payload

    def _end_by_itself(self, payload: Payload, worker: Worker) -> None:
        if not payload.is_running or (payload.is_stopped and not payload.is_ended) or self.time.t < payload.ends_at:
            return
        if self.time.t < self.frozen_until:
            self.time.at(self.frozen_until + 0.001, self._end_by_itself, payload, worker)
            return
        if payload.is_ended:
            # It gave way to its end: reported as that.
            self._killed(payload, payload.wanted_end, worker)
            return
        self._over(payload.token, by_itself=True)
        ended = Ended(payload.outcome, payload.code, usage=_usage(payload), outputs=_outputs(payload))
        worker.keepers.on_over(payload.token, ended, payload.started_at)

    def suspend(self, token: wire.Token, on: bool, worker: Worker) -> None:
        """A keeper stops it, or lets it go on: it ends later by so much."""
        payload = self.running.get(token)
        if payload is None or payload.is_ended or payload.is_stopped == on:
            return
        if on:
            payload.stopped_at = self.time.t
        else:
            payload.ends_at += self.time.t - payload.stopped_at
            payload.stopped_at = float("inf")
            self.time.at(payload.ends_at, self._end_by_itself, payload, worker)

    def kill(self, token: wire.Token, outcome: Outcome, worker: Worker) -> None:
        """A keeper ends it, after its grace."""
        payload = self.running.get(token)
        if payload is None or payload.is_ended:
            return
        payload.is_ended, payload.wanted_end = True, outcome
        grace_s = 10.0 if payload.spec.ignores_term else 0.01
        self.time.at(max(self.time.t, self.frozen_until) + grace_s, self._killed, payload, outcome, worker)

    def _killed(self, payload: Payload, outcome: Outcome, worker: Worker) -> None:
        if payload.is_running:
            self._over(payload.token)
            worker.keepers.on_over(payload.token, Ended(outcome, usage=_usage(payload)), payload.started_at)

    def end_all(self) -> None:
        """The keepers see that their worker is gone."""
        for token in list(self.running):
            self._over(token)

    def _over(self, token: wire.Token, by_itself: bool = False) -> None:
        payload = self.running.pop(token)
        payload.is_ended = payload.is_ended or not by_itself
        payload.over_at = self.time.t
        worker = self.worker
        if worker is not None and not worker.is_dead and worker.name == payload.worker:
            self.world.ledger.on_over(payload, worker.lease_from)
        if self.time.trace is not None:
            how = f"ends, {payload.outcome.name.lower()}" if not payload.is_ended else "is ended"
            self.time.tell(f"{token.cluster}.{token.proc} attempt {token.attempt} {how} on {payload.worker}")


def _usage(payload: Payload) -> Usage:
    return Usage(wall_s=payload.over_at - payload.started_at)


def _outputs(payload: Payload) -> list[OutputFile]:
    return OUTPUTS[payload.spec.outputs] if payload.is_complete else []


class Keepers:
    """`keeper.keepers` and the process behind it: orders and events each keep their order, and take a moment."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._node, self._time = worker, worker.node, worker.time
        #: Attempts told of and not over; in the keeper: running ones, and those that wait for another.
        self._home: set[wire.Token] = set()
        #: When the worker gave them to the keeper.
        self.launched_at: dict[wire.Token, float] = {}
        self._running: set[wire.Token] = set()
        self._followers: dict[wire.Token, wire.Token] = {}
        #: Those that failed, and behind which nothing begins yet.
        self._stopped: set[wire.Token] = set()
        self._order_at = self._event_at = 0.0
        self._count = 0
        self.discards: set[wire.Token] = set()

    def _noise(self) -> float:
        self._count += 1
        return self._time.noise(13, number_of(self._worker.name), self._count)

    def order(self, action: w.Launch | w.TakeBack | w.GoOn | w.End | w.Suspend) -> None:
        if isinstance(action, w.Launch):
            if action.token in self._home:
                return
            self._home.add(action.token)
            self.launched_at[action.token] = self._time.t
        elif not isinstance(action, w.GoOn) and action.token not in self._home:
            return
        noise = self._noise()
        delay = 0.0005 + (noise if noise > 0.97 else noise * 0.002)
        self._order_at = max(self._order_at, self._time.t + delay)
        self._time.at(self._order_at, self._obey, action)

    def _obey(self, action: w.Launch | w.TakeBack | w.GoOn | w.End | w.Suspend) -> None:
        if self._worker.is_dead:
            return
        if self._time.t < self._node.frozen_until:
            # Later orders that were put off to the same moment stay behind this one.
            self._time.at(self._node.frozen_until, self._obey, action)
            return
        token = action.token
        if isinstance(action, w.Launch):
            if action.after in self._running or action.after in self._followers or action.after in self._stopped:
                self._followers[token] = action.after
            else:
                self._start(token)
        elif isinstance(action, w.GoOn):
            self._stopped.discard(token)
            self._pass_on(token, None)
        elif token in self._running:
            if isinstance(action, w.End):
                self._node.kill(token, action.outcome, self._worker)
            elif isinstance(action, w.Suspend):
                self._node.suspend(token, action.on, self._worker)
        elif isinstance(action, w.Suspend):
            pass
        elif token in self._followers:
            self._pass_on(token, self._followers.pop(token))
            if isinstance(action, w.End):
                self._tell(ended=[(token, Ended(action.outcome), 0.0)])
            else:
                self._tell(returned=[token])

    def _start(self, token: wire.Token) -> None:
        self._node.sandboxes.add(token)
        self._running.add(token)
        payload = self._node.begin(token, self._worker)
        if payload.ends_at - payload.started_at > QUICK_S:
            self._tell(started=[token])

    def _pass_on(self, token: wire.Token, before: wire.Token | None) -> None:
        """What followed it follows another, or starts."""
        for follower in [one for one, after in self._followers.items() if after == token]:
            if before is not None:
                self._followers[follower] = before
            else:
                del self._followers[follower]
                self._start(follower)

    def on_over(self, token: wire.Token, end: Ended, began_at: float) -> None:
        if self._worker.is_dead or token not in self._running:
            return
        self._running.discard(token)
        self._tell(ended=[(token, end, began_at)])
        if end.outcome in HARMLESS:
            self._pass_on(token, None)
        else:
            self._stopped.add(token)

    def die(self) -> None:
        """The keeper is killed: all in it is over, another one comes."""
        told: list[tuple[wire.Token, Ended, float]] = []
        for token in list(self._running):
            self._node._over(token)
            told.append((token, Ended(Outcome.LOST, reason="its keeper died"), 0.0))
        told += [(token, Ended(Outcome.EVICTED), 0.0) for token in self._followers]
        self._running.clear()
        self._followers.clear()
        self._stopped.clear()
        if told:
            self._tell(ended=told)

    def _tell(self, **what: Any) -> None:
        noise = self._noise()
        delay = 0.0005 + (noise if noise > 0.97 else noise * 0.002)
        self._event_at = max(self._event_at, self._time.t + delay)
        self._time.at(self._event_at, self._told, w.FromKeepers(**what))

    def _told(self, event: w.FromKeepers) -> None:
        for token, _, _ in event.ended:
            self._home.discard(token)
            if token in self.discards:
                self._node.sandboxes.discard(token)
        self._home.difference_update(event.returned)
        self._worker.put(event)

    def discard(self, token: wire.Token) -> None:
        if token in self._home:
            self.discards.add(token)
        else:
            self._node.sandboxes.discard(token)


class Worker(Daemon):
    """`roles.worker`."""

    def __init__(self, world: World, node: Node) -> None:
        super().__init__(world.time, node.clock, f"{node.name}#{node.starts}")
        self.world, self.node, self.host = world, node, node.name
        predecessors = list(node.names)
        node.names.append(self.name)
        self.up: Dialer | None = None
        self._parts: Parts = []
        #: When it sent the heartbeat, or the hello, that was answered last; and all of them.
        self.lease_from = float("inf")
        self._sent: dict[tuple[type, int], float] = {}
        #: It was told to drain; what came after that.
        self._is_drained = False
        self.too_late: set[wire.Token] = set()
        self.keepers = Keepers(self)
        names = [f"f{n}" for n in range(len(world.foremen))] or ["master"]
        self._endpoints = names + (["master"] if node.options.get("may_go_straight") and world.foremen else [])
        self._offset = int(world.time.noise(17, len(node.name), node.starts) * 10)
        capacity = Resources(node.slots)
        options = Options(
            name=self.name,
            host=node.name,
            pid=node.starts,
            version="sim",
            capacity=capacity,
            single_task=node.options.get("single_task", False),
            idle_timeout_s=node.options.get("idle_timeout_s", 0.0),
            spread=world.time.noise(19, node.starts),
            predecessors=predecessors,
        )
        self.core = WorkerCore(options, self.clock.read(self.time.t))
        self.put(w.Tick())

    def new_tick(self) -> w.Tick:
        return w.Tick()

    def perform(self, action: Any) -> None:
        performer = self._performers.get(type(action))
        if performer is not None:
            performer(self, action)

    def flush(self) -> None:
        if self._parts and self.up is not None:
            parts, self._parts = self._parts, []
            self.up.send(parts)

    def react(self, event: Any, now: Now) -> None:
        if isinstance(event, w.FromMaster):
            self._note(event)
        elif isinstance(event, w.Drain | w.Terminate):
            self._is_drained = True
        self.core.react(event, now)

    def _note(self, event: w.FromMaster) -> None:
        message = event.message
        if event.link != self.core.session.link:
            return
        if isinstance(message, wire.Renew | wire.Welcome):
            number = message.seq if isinstance(message, wire.Renew) else message.generation
            sent_at = self._sent.get((type(message), number), 0.0)
            self.lease_from = sent_at if self.lease_from == float("inf") else max(self.lease_from, sent_at)
        elif isinstance(message, wire.DrainPlease):
            self._is_drained = True
        elif isinstance(message, wire.Assign) and self._is_drained:
            pairs = zip(message.procs, message.attempts, strict=True)
            self.too_late.update(wire.Token(message.cluster, *pair) for pair in pairs)

    def say(self, message: wire.Message) -> None:
        if isinstance(message, wire.Beat):
            self._sent[wire.Renew, message.seq] = self.time.t
        elif isinstance(message, wire.Hello):
            self._sent[wire.Welcome, message.generation] = self.time.t
        self._parts += (b"", wire.pack(message))

    def _connect(self, action: w.Connect) -> None:
        if self.up is not None:
            self.up.close()
        self._parts = []
        target = self._endpoints[(self._offset + action.link) % len(self._endpoints)]
        self.up = Dialer(
            self.world.net,
            self,
            self.host,
            target,
            lambda parts: self._on_batch(action.link, parts),
            lambda: self.put(w.LinkLost(action.link)),
        )

    def _on_batch(self, link: int, parts: Parts) -> None:
        for payload in parts[1::2]:
            self.put(w.FromMaster(link, wire.unpack(payload)))

    def _stage(self, action: w.Stage) -> None:
        token = action.tokens[0]
        noise = self.time.noise(23, token.cluster, token.proc, token.attempt)
        delay = 0.001 + (noise * 3.0 if noise > 0.9 else 0.0)
        self.time.after(delay, self._staged, action.tokens)

    def _staged(self, tokens: list[wire.Token]) -> None:
        is_bad = self.time.t < self.node.stage_fails_until
        self.put(w.FilesReady(tokens, "no file" if is_bad else "", may_pass=is_bad))

    def _end(self, action: w.End) -> None:
        self.world.ledger.given_up.add(action.token)
        self.keepers.order(action)

    def _discard(self, action: w.Discard) -> None:
        for token in action.tokens:
            self.world.ledger.on_discard(self.name, token)
            self.keepers.discard(token)

    def _serve(self, action: w.Serve) -> None:
        pull = action.message
        is_missing = pull.token not in self.node.sandboxes
        self.say(wire.Data(pull.token, pull.name, pull.offset, b"", is_missing))

    def _known(self, action: w.Known) -> None:
        self.node.names = [self.name]

    def _leave(self, action: w.Leave) -> None:
        self.flush()
        self.time.after(0.1, self._gone)

    def _gone(self) -> None:
        if not self.is_dead:
            self.time.tell(f"{self.name} has left")
            if self.up is not None:
                self.up.close(keep=1.0)
            self.die(False)

    def _tell(self, action: Tell) -> None:
        if self.time.trace is not None:
            self.time.tell(f"{self.name}: {action.text}")

    _performers: dict[type, Any] = {  # noqa: RUF012 never changed
        w.Say: lambda self, action: self.say(action.message),
        w.Connect: _connect,
        w.Stage: _stage,
        w.Launch: lambda self, action: self.keepers.order(action),
        w.TakeBack: lambda self, action: self.keepers.order(action),
        w.Suspend: lambda self, action: self.keepers.order(action),
        w.GoOn: lambda self, action: self.keepers.order(action),
        w.End: _end,
        w.Discard: _discard,
        w.Serve: _serve,
        w.Known: _known,
        w.Leave: _leave,
        Tell: _tell,
    }

    def die(self, is_silent: bool) -> None:
        super().die(is_silent)
        if self.up is not None:
            self.up.close(is_silent)
        if not is_silent:
            self.time.after(0.5 * self.time.noise(29, number_of(self.name)), self._orphans)
        self.world.on_worker_dead(self.node)

    def _orphans(self) -> None:
        if self.node.worker is self:
            self.node.end_all()
