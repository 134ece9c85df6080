"""The worker decides: which attempt it takes, when it starts, which slot closes, when it leaves.

Open cores that hold nothing close when they were idle too long, or after one task; a drain closes all of them; the
worker leaves with its last slot when every result is acknowledged. Which attempt starts when is up to `worker_slots`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.turn import Core, Event, Now, Tell, Turn
from pilotq.core.worker_session import Session
from pilotq.core.worker_slots import Attempt, Row, Slots
from pilotq.model import HARMLESS, Description, Ended, Outcome, Resources

#: An unacknowledged result is sent again after this.
RESEND_S = 30.0
#: Contents of outputs that travel in one message; the results of one.
RESULT_BYTES = 256 << 10
RESULT_TASKS_MAX = 1000
#: A worker whose tasks take less than this on average holds some ahead: so much work, and so many.
SHORT_TASK_S = 0.5
AHEAD_S = 0.3
AHEAD_MAX = 512


@dataclass
class Options:
    """Settings of a worker."""

    name: str
    host: str
    pid: int
    version: str
    capacity: Resources
    single_task: bool = False
    #: 0: never.
    idle_timeout_s: float = 100.0
    #: -1: as many as short tasks need.
    ahead: int = -1
    #: 0 to 1, other on every worker: spreads their tries to connect.
    spread: float = 0.5
    predecessors: list[str] = field(default_factory=list)
    #: Which control groups are in force, in words.
    containment: str = ""


class WorkerCore(Core):
    """The deciding part of a worker."""

    def __init__(self, options: Options, now: Now) -> None:
        self.options = options
        self.name = options.name
        self.session = Session(self, now)
        self.draining = ""
        self.attempts: dict[wire.Token, Attempt] = {}
        self.results: dict[wire.Token, Ended] = {}
        self.slots = Slots(options.capacity, options.single_task, now)
        #: How many attempts wait for files.
        self._staging = 0
        #: Results and starts that were not told yet.
        self._new_results: dict[wire.Token, Ended] = {}
        self._new_starts: dict[wire.Token, None] = {}
        #: Attempts that were ended as the master asked; of this turn.
        self._new_killed: list[wire.Token] = []
        self.checksum = 0
        self._bodies: dict[int, bytes] = {}
        self._needs: dict[int, Resources] = {}
        self._resend_at = float("inf")
        self.row = Row()
        #: Attempts that failed, and whose slots may not go on yet.
        self._stopped: list[wire.Token] = []
        self._left = False
        #: What this turn has to do; filled by the session too.
        self.actions: list[Any] = []
        session = self.session
        self._reactions: dict[type, Any] = {
            wire.Welcome: session.on_welcome,
            wire.Reject: session.on_reject,
            wire.Describe: self.on_describe,
            wire.Assign: self.on_assign,
            wire.Renew: session.on_renew,
            wire.Ack: self.on_ack,
            wire.Kill: self.on_kill,
            wire.Suspend: self.on_suspend,
            wire.AskInventory: session.on_ask_inventory,
            wire.Leave: session.on_leave,
            wire.DrainPlease: lambda message, now: self.drain("an operator asked for it", now),
            wire.Pull: lambda message, now: self.actions.append(w.Serve(message)),
            wire.Chunk: lambda message, now: self.actions.append(w.FileArrived(message)),
        }

    def react(self, event: Event, now: Now) -> None:
        if self._left:
            return
        session = self.session
        if isinstance(event, w.FromMaster):
            reaction = self._reactions.get(type(event.message))
            if event.link == session.link and reaction is not None:
                reaction(event.message, now)
        elif isinstance(event, w.FromKeepers):
            self.on_keepers(event, now)
        elif isinstance(event, w.FilesReady):
            self.on_files_ready(event, now)
        elif isinstance(event, w.LinkLost):
            if event.link == session.link:
                session.disconnected(now)
        elif isinstance(event, w.Drain):
            self.drain(event.reason, now)
        elif isinstance(event, w.Terminate):
            self.on_terminate(now)
        else:
            self.on_tick(now)

    def settle(self, now: Now) -> Turn:
        """A worker remembers nothing in a store."""
        if not self._left:
            self._after(now)
        actions, self.actions = self.actions, []
        return Turn([], actions)

    def next_wakeup(self) -> float | None:
        wakeup = min(self.session.next_wakeup(), self._resend_at)
        idle_since = self.slots.idle_since
        if self.options.idle_timeout_s and idle_since and not self._expects_to_start:
            wakeup = min(wakeup, idle_since[0] + self.options.idle_timeout_s)
        return wakeup

    @property
    def capacity(self) -> Resources:
        """Of open slots."""
        return self.slots.capacity

    def check(self) -> None:
        """Raises: AssertionError when what is used does not add up."""
        self.slots.check(list(self.attempts.values()))
        assert [attempt.phase for attempt in self.attempts.values()].count("staging") == self._staging

    # ---- attempts

    def on_describe(self, message: wire.Describe, now: Now) -> None:
        if len(self._bodies) > 1000:
            used = {token.cluster for token in self.attempts}
            for cluster in [c for c in self._bodies if c not in used]:
                del self._bodies[cluster], self._needs[cluster]
        try:
            needs = msgspec.msgpack.decode(message.body, type=Description).needs
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # Its tasks are refused as not described.
            self.actions.append(Tell("a description cannot be read", {"reason": str(error)}))
            return
        self._bodies[message.cluster], self._needs[message.cluster] = message.body, needs
        if message.inline:
            self.actions.append(w.Describe(message.inline))

    def on_assign(self, message: wire.Assign, now: Now) -> None:
        if len(message.deltas) not in (0, len(message.procs)):
            self.actions.append(Tell("an assignment cannot be understood", {"cluster": message.cluster}))
            return
        body, refused, reason = self._bodies.get(message.cluster), [], "full"
        # It lay unread while this process stood still.
        is_late = not self.session.has_lease(now)
        taken: list[wire.Token] = []
        deltas: list[bytes] = []
        for index, (proc, number) in enumerate(zip(message.procs, message.attempts, strict=False)):
            token = wire.Token(message.cluster, proc, number)
            if token in self.attempts or token in self.results:
                continue
            if self.draining:
                reason = "draining"
            elif is_late:
                reason = "its lease was over"
            elif body is None:
                reason = "undescribed"
            if self.draining or is_late or body is None or not self._has_room(self._needs[message.cluster]):
                refused.append(token)
                continue
            delta = message.deltas[index] if message.deltas else b""
            self.attempts[token] = Attempt(token, delta, self._needs[message.cluster])
            self.checksum ^= wire.checksum(token)
            taken.append(token)
            deltas.append(delta)
        if taken and body is not None:
            self._staging += len(taken)
            self.actions.append(w.Stage(taken, body, deltas, message.inline))
        if refused:
            self._say(wire.Refuse(refused, reason))

    def _has_room(self, needs: Resources) -> bool:
        """May it come, at least to wait?"""
        return needs.cpus <= self.capacity.cpus

    def on_files_ready(self, event: w.FilesReady, now: Now) -> None:
        for token in event.tokens:
            attempt = self.attempts.get(token)
            if attempt is None or attempt.phase != "staging":
                continue
            if event.reason and event.may_pass:
                self._give_back([attempt], event.reason, now)
            elif event.reason:
                self._end(attempt, Ended(Outcome.STAGE_IN, reason=event.reason), now)
            else:
                self._staging -= 1
                self.slots.wait(attempt, now)

    def on_keepers(self, event: w.FromKeepers, now: Now) -> None:
        for token, end, began_at in event.ended:
            if end.outcome not in HARMLESS:
                self._stopped.append(token)
            attempt = self.attempts.get(token)
            if attempt is not None:
                if not attempt.killed:
                    self.row.note(token, end, began_at)
                self._end(attempt, end, now)
        for token in event.started:
            attempt = self.attempts.get(token)
            if attempt is not None and attempt.phase in ("starting", "next"):
                attempt.phase = "running"
                self._new_starts[token] = None
                if attempt.suspended:
                    self.actions.append(w.Suspend(token, True))
        # The first comes to the front last.
        for token in reversed(event.returned):
            attempt = self.attempts.get(token)
            if attempt is not None:
                self._on_returned(attempt, now)

    def _on_returned(self, attempt: Attempt, now: Now) -> None:
        """Its keeper gave it back before it was started."""
        if attempt.killed:
            self._end(attempt, Ended(Outcome.CANCELLED), now)
        elif self.draining:
            self._give_back([attempt], "draining", now)
        else:
            self.slots.leave(attempt, now)
            self.slots.wait(attempt, now)

    def _start_waiting(self, now: Now) -> None:
        slots = self.slots
        self.actions += map(w.GoOn, self._stopped)
        self._stopped.clear()
        self._give_back(slots.too_large(), "full", now)
        for attempt, before in slots.fill(now):
            token = attempt.token
            after = before.token if before else None
            self.actions.append(w.Launch(token, self._bodies[token.cluster], attempt.delta, attempt.needs, after))
        self._take_back(slots.to_take_back())

    def _take_back(self, attempts: list[Attempt]) -> None:
        self.actions += [w.TakeBack(attempt.token) for attempt in self.slots.ask(attempts)]

    def _end(self, attempt: Attempt, end: Ended, now: Now) -> None:
        """Nothing of it runs any more: free its room, keep the result until it is acknowledged."""
        token = attempt.token
        self._forget(attempt, now)
        if attempt.killed:
            self._new_killed.append(token)
            return
        # One that fails may be quicker than others, not slower.
        if end.outcome == Outcome.OK or end.usage.wall_s > self.slots.mean_task_s:
            self.slots.note_task_s(end.usage.wall_s)
        self.results[token] = end
        self._resend_at = min(self._resend_at, now.boot + RESEND_S)
        self._new_results[token] = end

    def started(self) -> list[wire.Token]:
        """Attempts whose payload runs."""
        return [attempt.token for attempt in self.attempts.values() if attempt.phase in ("running", "ending")]

    def _forget(self, attempt: Attempt, now: Now) -> None:
        """It is not held any more, in whatever phase it was."""
        del self.attempts[attempt.token]
        self._set_suspended(attempt, False)
        self.checksum ^= wire.checksum(attempt.token)
        self._new_starts.pop(attempt.token, None)
        if attempt.phase == "staging":
            self._staging -= 1
        self.slots.leave(attempt, now)

    def _tell_news(self) -> None:
        """Say what started and ended; without a session it waits for the next welcome."""
        if self._new_killed:
            self._say(wire.Killed(self._new_killed))
            self.actions.append(w.Discard(self._new_killed))
            self._new_killed = []
        if not self.session.welcomed:
            return
        if self._new_starts:
            self._say(wire.Started(list(self._new_starts)))
            self._new_starts = {}
        if self._new_results:
            self._say_results(self._new_results)
            self._new_results = {}

    def _say_results(self, results: dict[wire.Token, Ended]) -> None:
        """In as few messages as their size allows."""
        tokens: list[wire.Token] = []
        ends: list[Ended] = []
        size = 0
        for token, end in results.items():
            own = sum(len(output.data or b"") + len(output.name) for output in end.outputs)
            if tokens and (size + own > RESULT_BYTES or len(tokens) >= RESULT_TASKS_MAX):
                self._say_result(tokens, ends)
                tokens, ends, size = [], [], 0
            tokens.append(token)
            ends.append(end)
            size += own
        if tokens:
            self._say_result(tokens, ends)

    def _say_result(self, tokens: list[wire.Token], ends: list[Ended]) -> None:
        row_stands = self.row.length > sum(end.is_quick_failure for end in ends) if self.row.length else False
        self._say(wire.Result(tokens, ends, row_stands))

    def on_ack(self, message: wire.Ack, now: Now) -> None:
        known = [token for token in message.tokens if self.results.pop(token, None) is not None]
        for token in known:
            self.row.judged(token)
        if known:
            self.actions.append(w.Discard(known))
        if not self.results:
            self._resend_at = float("inf")

    def send_results(self, now: Now) -> None:
        self._resend_at = now.boot + RESEND_S if self.results else float("inf")
        self._new_results = {}
        self._say_results(self.results)

    def on_kill(self, message: wire.Kill, now: Now) -> None:
        gone = []
        for token in message.tokens:
            attempt = self.attempts.get(token)
            if attempt is None:
                if self.results.pop(token, None) is not None:
                    self._new_results.pop(token, None)
                    self.row.judged(token)
                    self.actions.append(w.Discard([token]))
                gone.append(token)
                continue
            attempt.killed = True
            self._set_suspended(attempt, False)
            if attempt.is_here_only:
                self._end(attempt, Ended(Outcome.CANCELLED), now)
            else:
                self._stop(attempt, Outcome.CANCELLED, message.fast, message.removed)
        if gone:
            self._say(wire.Killed(gone))

    def on_suspend(self, message: wire.Suspend, now: Now) -> None:
        for token in message.tokens:
            attempt = self.attempts.get(token)
            if attempt is None or attempt.killed or not self._set_suspended(attempt, message.on):
                continue
            if attempt.phase == "running":
                self.actions.append(w.Suspend(token, message.on))
            if message.on and attempt.slot is not None:
                self._take_back(list(attempt.slot.line))

    def _set_suspended(self, attempt: Attempt, on: bool) -> bool:
        """False: it is so already."""
        if attempt.suspended == on:
            return False
        attempt.suspended = on
        self.checksum ^= wire.suspended_checksum(attempt.token)
        return True

    def _stop(self, attempt: Attempt, outcome: Outcome, fast: bool = False, removed: bool = False) -> None:
        attempt.phase = "ending"
        self.actions.append(w.End(attempt.token, outcome, fast, removed))

    # ---- time, leaving

    def drain(self, reason: str, now: Now) -> None:
        """Take nothing new; never undone."""
        if self.draining:
            return
        self.draining = reason
        self.actions.append(Tell("draining", {"reason": reason}))
        held = list(self.attempts.values())
        self._give_back([attempt for attempt in held if attempt.is_here_only], "draining", now)
        self._take_back(held)

    @property
    def _expects_to_start(self) -> bool:
        return bool(self._staging or self.slots.waiting)

    def _give_back(self, attempts: list[Attempt], reason: str, now: Now) -> None:
        """Attempts that were not started go back to the queue."""
        if not attempts:
            return
        for attempt in attempts:
            self._forget(attempt, now)
        tokens = [attempt.token for attempt in attempts]
        self.actions.append(w.Discard(tokens))
        self._say(wire.Refuse(tokens, reason))

    def on_terminate(self, now: Now) -> None:
        self.drain("stopped", now)
        for attempt in self.attempts.values():
            if attempt.phase != "ending":
                self._stop(attempt, Outcome.EVICTED)

    def give_up(self, now: Now) -> None:
        """The lease is over: what runs here may be started elsewhere."""
        for attempt in list(self.attempts.values()):
            attempt.killed = True
            if attempt.is_here_only:
                self._end(attempt, Ended(Outcome.LOST), now)
            elif attempt.phase != "ending":
                self._stop(attempt, Outcome.LOST)

    def on_tick(self, now: Now) -> None:
        self.session.on_time(now)
        if now.boot >= self._resend_at:
            self.send_results(now)
        if self.options.idle_timeout_s and not self._expects_to_start:
            self.slots.close_idle(self.options.idle_timeout_s, now)

    def _after(self, now: Now) -> None:
        """What follows from any event: starts, a changed offer, the end."""
        if not self.row.must_wait:
            self._start_waiting(now)
        self._tell_news()
        self.session.tell_offer(now)
        if (self.draining or self.capacity.cpus <= 0) and not self.attempts and not self._left:
            if self.capacity.cpus <= 0 and not self.draining:
                self.draining = "no slot is open any more"
            if not self.results:
                self._left = True
                self._say(wire.Goodbye(self.draining))
                self.actions.append(w.Leave(self.draining))

    def offer(self) -> wire.Offer:
        ahead, mean_s = self.options.ahead, self.slots.mean_task_s
        if ahead < 0:
            ahead = 0
            if mean_s < SHORT_TASK_S:
                ahead = min(AHEAD_MAX, 1 + round(self.capacity.cpus * AHEAD_S / max(mean_s, 1e-3)))
                # In steps, so that a small change of the mean is not told.
                ahead = 1 << (ahead.bit_length() - 1)
        if self.options.single_task:
            ahead = 0
        return wire.Offer(self.capacity, ahead, bool(self.draining))

    def _say(self, message: wire.Message) -> None:
        """Send, when there is a session: the next hello tells all that a silent time kept back."""
        if self.session.welcomed:
            self.actions.append(w.Say(message))
