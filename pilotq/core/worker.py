"""The worker decides: which attempt it takes, when it starts, which slot closes, when it leaves.

A slot is a core. Open cores that hold nothing close when they were idle too long, or after one task; a drain closes
all of them; the worker leaves with its last slot when every result is acknowledged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.turn import Core, Event, Now, Tell, Turn
from pilotq.core.worker_session import Session
from pilotq.model import Description, Ended, Outcome, Resources

#: An unacknowledged result is sent again after this.
RESEND_S = 30.0
#: While tasks wait to be started, what the master should hear may wait as well, so that it comes in batches.
BATCH_S = 0.005
BATCH_TASKS_MAX = 100
#: A task that does not fit lets smaller ones pass for this long; then they wait until it does.
PASSED_S = 30.0
#: A start is told after this, unless the task ended before: then its result says it.
START_TOLD_S = 0.02
#: A worker whose tasks take less than this on average holds some ahead.
SHORT_TASK_S = 0.5
AHEAD_MAX = 64


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


@dataclass
class _Attempt:
    token: wire.Token
    delta: bytes
    needs: Resources
    #: "staging", "waiting" (for room), "starting", "running" or "ending".
    phase: str = "staging"
    #: Boot clock: since when it has its files.
    waiting_since: float = 0.0
    #: The master asked to end it: no result is wanted.
    killed: bool = False


class WorkerCore(Core):
    """The deciding part of a worker."""

    def __init__(self, options: Options, now: Now) -> None:
        self.options = options
        self.name = options.name
        self.session = Session(self, now)
        self.draining = ""
        self.attempts: dict[wire.Token, _Attempt] = {}
        self.results: dict[wire.Token, Ended] = {}
        #: Attempts with their files that wait for room, in order; how many still wait for files.
        self._waiting: deque[_Attempt] = deque()
        self._staging = 0
        #: Results and starts that were not told yet, and when they must be.
        self._new_results: dict[wire.Token, Ended] = {}
        self._new_starts: dict[wire.Token, None] = {}
        self._tell_at = float("inf")
        self.capacity = options.capacity
        self._used = [0, 0, 0, 0]
        self._idle_since = [now.boot] * options.capacity.cpus
        self.checksum = 0
        self._bodies: dict[int, bytes] = {}
        self._needs: dict[int, Resources] = {}
        self._resend_at = float("inf")
        self._mean_task_s = 1e9
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
            wire.AskInventory: session.on_ask_inventory,
            wire.Leave: session.on_leave,
            wire.DrainPlease: lambda message, now: self.drain("an operator asked for it"),
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
        elif isinstance(event, w.Exited):
            self.on_exited(event, now)
        elif isinstance(event, w.Launched):
            self.on_launched(event, now)
        elif isinstance(event, w.FilesReady):
            self.on_files_ready(event, now)
        elif isinstance(event, w.LinkLost):
            if event.link == session.link:
                session.disconnected(now)
        elif isinstance(event, w.Drain):
            self.drain(event.reason)
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
        wakeup = min(self.session.next_wakeup(), self._resend_at, self._tell_at)
        if self.options.idle_timeout_s and self._idle_since and not self._expects_to_start:
            wakeup = min(wakeup, self._idle_since[0] + self.options.idle_timeout_s)
        return wakeup

    def check(self) -> None:
        """Raises: AssertionError when what is used does not add up."""
        held = sum(a.needs.cpus for a in self.attempts.values() if a.phase in _ROOM)
        assert held == self._used[0], (held, self._used)
        phases = [attempt.phase for attempt in self.attempts.values()]
        assert phases.count("waiting") == len(self._waiting)
        assert phases.count("staging") == self._staging

    # ---- attempts

    def on_describe(self, message: wire.Describe, now: Now) -> None:
        if len(self._bodies) > 1000:
            used = {token.cluster for token in self.attempts}
            for cluster in [c for c in self._bodies if c not in used]:
                del self._bodies[cluster], self._needs[cluster]
        self._bodies[message.cluster] = message.body
        self._needs[message.cluster] = msgspec.msgpack.decode(message.body, type=Description).needs
        if message.inline:
            self.actions.append(w.Describe(message.inline))

    def on_assign(self, message: wire.Assign, now: Now) -> None:
        body, refused, reason = self._bodies.get(message.cluster), [], "full"
        for index, (proc, number) in enumerate(zip(message.procs, message.attempts, strict=True)):
            token = wire.Token(message.cluster, proc, number)
            if token in self.attempts or token in self.results:
                continue
            if self.draining:
                reason = "draining"
            elif body is None:
                reason = "undescribed"
            if self.draining or body is None or not self._has_room(self._needs[message.cluster]):
                refused.append(token)
                continue
            delta = message.deltas[index] if message.deltas else b""
            self.attempts[token] = _Attempt(token, delta, self._needs[message.cluster])
            self._staging += 1
            self.checksum ^= wire.checksum(token)
            self.actions.append(w.Stage(token, body, delta))
        if refused:
            self._say(wire.Refuse(refused, reason))

    def _has_room(self, needs: Resources) -> bool:
        """May it come, at least to wait?"""
        return needs.cpus <= self.capacity.cpus

    def on_files_ready(self, event: w.FilesReady, now: Now) -> None:
        attempt = self.attempts.get(event.token)
        if attempt is None or attempt.phase != "staging":
            return
        if event.reason and event.may_pass:
            self._give_back([attempt], event.reason)
            return
        if event.reason:
            self._end(attempt, Ended(Outcome.STAGE_IN, reason=event.reason), now)
            return
        self._staging -= 1
        attempt.phase, attempt.waiting_since = "waiting", now.boot
        self._waiting.append(attempt)

    def _start_waiting(self, now: Now) -> None:
        passed = 0
        while passed < len(self._waiting):
            attempt = self._waiting[passed]
            if attempt.needs.cpus > self.capacity.cpus:
                self._give_back([attempt], "full")
                continue
            if not self._fits(attempt.needs):
                if now.boot - attempt.waiting_since > PASSED_S:
                    break
                passed += 1
                continue
            del self._waiting[passed]
            attempt.phase = "starting"
            self._take(attempt.needs, 1)
            del self._idle_since[len(self._idle_since) - min(attempt.needs.cpus, len(self._idle_since)) :]
            body = self._bodies[attempt.token.cluster]
            self.actions.append(w.Launch(attempt.token, body, attempt.delta, attempt.needs))

    def _fits(self, needs: Resources) -> bool:
        capacity, used = self.capacity, self._used
        return (
            used[0] + needs.cpus <= capacity.cpus
            and (not needs.memory_bytes or used[1] + needs.memory_bytes <= capacity.memory_bytes)
            and (not needs.disk_bytes or used[2] + needs.disk_bytes <= capacity.disk_bytes)
            and used[3] + needs.gpus <= capacity.gpus
        )

    def _take(self, needs: Resources, sign: int) -> None:
        used = self._used
        used[0] += sign * needs.cpus
        used[1] += sign * needs.memory_bytes
        used[2] += sign * needs.disk_bytes
        used[3] += sign * needs.gpus

    def on_launched(self, event: w.Launched, now: Now) -> None:
        attempt = self.attempts.get(event.token)
        if attempt is not None and attempt.phase == "starting":
            attempt.phase = "running"
            self._new_starts[event.token] = None
            self._tell_at = min(self._tell_at, now.boot + START_TOLD_S)

    def on_exited(self, event: w.Exited, now: Now) -> None:
        attempt = self.attempts.get(event.token)
        if attempt is not None:
            self._end(attempt, event.end, now)

    def _end(self, attempt: _Attempt, end: Ended, now: Now) -> None:
        """Nothing of it runs any more: free its room, keep the result until it is acknowledged."""
        token = attempt.token
        self._forget(attempt)
        if attempt.phase in _ROOM:
            self._take(attempt.needs, -1)
            if self.options.single_task:
                self._close(attempt.needs.cpus)
            else:
                self._idle_since += [now.boot] * attempt.needs.cpus
            self._mean_task_s = 0.8 * min(self._mean_task_s, 10.0) + 0.2 * end.usage.wall_s
        if attempt.killed:
            self._say(wire.Killed([token]))
            self.actions.append(w.Discard(token))
            return
        self.results[token] = end
        self._resend_at = min(self._resend_at, now.boot + RESEND_S)
        self._new_results[token] = end
        self._tell_at = min(self._tell_at, now.boot + BATCH_S)

    def started(self) -> list[wire.Token]:
        """Attempts whose payload runs."""
        return [attempt.token for attempt in self.attempts.values() if attempt.phase in ("running", "ending")]

    def _forget(self, attempt: _Attempt) -> None:
        """It is not held any more, in whatever phase it was."""
        del self.attempts[attempt.token]
        self.checksum ^= wire.checksum(attempt.token)
        self._new_starts.pop(attempt.token, None)
        if attempt.phase == "staging":
            self._staging -= 1
        elif attempt.phase == "waiting":
            self._waiting.remove(attempt)

    def _tell_news(self, now: Now) -> None:
        """Say what started and ended, in one message each; at once when there is nothing else to start."""
        if not self.session.welcomed:
            # The welcome will ask for it.
            self._tell_at = float("inf")
            return
        count = len(self._new_results)
        if not (now.boot >= self._tell_at or (count and not self._waiting) or count >= BATCH_TASKS_MAX):
            return
        if self._new_starts:
            self._say(wire.Started(list(self._new_starts)))
        if count:
            self._say_results(self._new_results)
        self._new_starts, self._new_results, self._tell_at = {}, {}, float("inf")

    def tell_starts(self, now: Now) -> None:
        """There is a session again: what started meanwhile is news."""
        if self._new_starts:
            self._tell_at = now.boot

    def _say_results(self, results: dict[wire.Token, Ended]) -> None:
        """Results with the contents of outputs travel alone, so that no message becomes too large."""
        plain = {token: end for token, end in results.items() if not end.outputs}
        if plain:
            self._say(wire.Result(list(plain), list(plain.values())))
        for token, end in results.items():
            if end.outputs:
                self._say(wire.Result([token], [end]))

    def on_ack(self, message: wire.Ack, now: Now) -> None:
        for token in message.tokens:
            if self.results.pop(token, None) is not None:
                self.actions.append(w.Discard(token))
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
                    self.actions.append(w.Discard(token))
                gone.append(token)
            elif attempt.phase in ("staging", "waiting"):
                attempt.killed = True
                self._end(attempt, Ended(Outcome.CANCELLED), now)
            else:
                attempt.killed = True
                self._stop(attempt, Outcome.CANCELLED)
        if gone:
            self._say(wire.Killed(gone))

    def _stop(self, attempt: _Attempt, outcome: Outcome) -> None:
        attempt.phase = "ending"
        self.actions.append(w.End(attempt.token, outcome))

    # ---- slots, time, leaving

    def _close(self, cpus: int) -> None:
        capacity = self.capacity
        self.capacity = msgspec.structs.replace(capacity, cpus=max(0, capacity.cpus - cpus))

    def drain(self, reason: str) -> None:
        """Take nothing new; never undone."""
        if self.draining:
            return
        self.draining = reason
        self.actions.append(Tell("draining", {"reason": reason}))
        self._give_back(self._not_started(), "draining")

    def _not_started(self) -> list[_Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.phase in ("staging", "waiting")]

    @property
    def _expects_to_start(self) -> bool:
        return bool(self._staging or self._waiting)

    def _give_back(self, attempts: list[_Attempt], reason: str) -> None:
        """Attempts that were not started go back to the queue."""
        for attempt in attempts:
            self._forget(attempt)
            self.actions.append(w.Discard(attempt.token))
        if attempts:
            self._say(wire.Refuse([attempt.token for attempt in attempts], reason))

    def on_terminate(self, now: Now) -> None:
        self.drain("stopped")
        for attempt in self.attempts.values():
            if attempt.phase != "ending":
                self._stop(attempt, Outcome.EVICTED)

    def give_up(self, now: Now) -> None:
        """The lease is over: what runs here may be started elsewhere."""
        for attempt in list(self.attempts.values()):
            attempt.killed = True
            if attempt.phase in ("staging", "waiting"):
                self._end(attempt, Ended(Outcome.LOST), now)
            elif attempt.phase != "ending":
                self._stop(attempt, Outcome.LOST)

    def on_tick(self, now: Now) -> None:
        self.session.on_time(now)
        if now.boot >= self._resend_at:
            self.send_results(now)
        if self.options.idle_timeout_s and not self._expects_to_start:
            late = sum(1 for at in self._idle_since if now.boot - at >= self.options.idle_timeout_s)
            if late:
                del self._idle_since[:late]
                self._close(late)

    def _after(self, now: Now) -> None:
        """What follows from any event: starts, a changed offer, the end."""
        self._start_waiting(now)
        self._tell_news(now)
        self.session.tell_offer(now)
        if (self.draining or self.capacity.cpus <= 0) and not self.attempts and not self._left:
            if self.capacity.cpus <= 0 and not self.draining:
                self.draining = "no slot is open any more"
            if not self.results:
                self._left = True
                self._say(wire.Goodbye(self.draining))
                self.actions.append(w.Leave(self.draining))

    def offer(self) -> wire.Offer:
        ahead = self.options.ahead
        if ahead < 0:
            ahead = 0
            if self._mean_task_s < SHORT_TASK_S:
                ahead = min(AHEAD_MAX, 1 + round(self.capacity.cpus * 0.1 / max(self._mean_task_s, 0.002)))
                ahead = 1 << (ahead.bit_length() - 1)
        if self.options.single_task:
            ahead = 0
        return wire.Offer(self.capacity, ahead, bool(self.draining))

    def _say(self, message: wire.Message) -> None:
        """Send, when there is a session: the next hello tells all that a silent time kept back."""
        if self.session.welcomed:
            self.actions.append(w.Say(message))


_ROOM = ("starting", "running", "ending")
