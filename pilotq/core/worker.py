"""The worker decides: which attempt it takes, when it starts, which slot closes, when it leaves.

A slot is a core. Open cores that hold nothing close when they were idle too long, or after one task; a drain closes
all of them; the worker leaves with its last slot when every result is acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.turn import Event, Now, Tell, Turn
from pilotq.model import Description, Ended, Outcome, Resources

#: Heartbeats without an answer after which another way to the master is tried.
BEATS_MISSED_MAX = 3
#: An unacknowledged result is sent again after this.
RESEND_S = 30.0
#: A worker moves away from a draining foreman once in this time, in case the others drain too.
MOVE_S = 10.0
#: First and longest pause between two tries to connect.
BACKOFF_S = (0.2, 15.0)
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
    launched_at: float = 0.0
    #: The master asked to end it: no result is wanted.
    killed: bool = False


class WorkerCore:
    """The deciding part of a worker."""

    def __init__(self, options: Options, now: Now) -> None:
        self.options = options
        self.name = options.name
        self.generation = 0
        self.link = 0
        self.welcomed = self._was_welcomed = False
        self.draining = ""
        self.attempts: dict[wire.Token, _Attempt] = {}
        self.results: dict[wire.Token, Ended] = {}
        self.capacity = options.capacity
        self._used = [0, 0, 0, 0]
        self._idle_since = [now.boot] * options.capacity.cpus
        self._checksum = 0
        self._bodies: dict[int, bytes] = {}
        self._needs: dict[int, Resources] = {}
        self._lease_s, self._beat_s = 2400.0, 5.0
        self._lease_over_at = float("inf")
        self._seq = 0
        self._sent_at: dict[int, float] = {}
        self._beat_at = float("inf")
        self._retry_at = self._hello_at = now.boot
        self._tries = 0
        self._moved_at = float("-inf")
        self._resend_at = float("inf")
        self._mean_task_s = 1e9
        self._told_offer: wire.Offer | None = None
        self._left = False
        self._actions: list[Any] = []
        self._reactions: dict[type, Any] = {
            wire.Welcome: self.on_welcome,
            wire.Reject: self.on_reject,
            wire.Describe: self.on_describe,
            wire.Assign: self.on_assign,
            wire.Renew: self.on_renew,
            wire.Ack: self.on_ack,
            wire.Kill: self.on_kill,
            wire.AskInventory: self.on_ask_inventory,
            wire.Leave: self.on_leave,
            wire.DrainPlease: lambda message, now: self.drain("an operator asked for it"),
            wire.Pull: lambda message, now: self._actions.append(w.Serve(message)),
            wire.Chunk: lambda message, now: self._actions.append(w.FileArrived(message)),
        }

    def handle(self, event: Event, now: Now) -> Turn:
        """React to one event; a worker remembers nothing in a store."""
        if self._left:
            return Turn()
        if isinstance(event, w.FromMaster):
            reaction = self._reactions.get(type(event.message))
            if event.link == self.link and reaction is not None:
                reaction(event.message, now)
        elif isinstance(event, w.Exited):
            self.on_exited(event, now)
        elif isinstance(event, w.Launched):
            self.on_launched(event, now)
        elif isinstance(event, w.FilesReady):
            self.on_files_ready(event, now)
        elif isinstance(event, w.LinkLost):
            if event.link == self.link:
                self._disconnected(now)
        elif isinstance(event, w.Drain):
            self.drain(event.reason)
        elif isinstance(event, w.Terminate):
            self.on_terminate(now)
        else:
            self.on_tick(now)
        self._after(now)
        actions, self._actions = self._actions, []
        return Turn([], actions)

    def next_wakeup(self) -> float | None:
        """Boot time of the next `Tick`."""
        wakeup = min(self._beat_at, self._retry_at, self._resend_at, self._lease_over_at)
        if self.options.idle_timeout_s and self._idle_since and not self._not_started():
            wakeup = min(wakeup, self._idle_since[0] + self.options.idle_timeout_s)
        return wakeup

    def check(self) -> None:
        """Raises: AssertionError when what is used does not add up."""
        held = sum(a.needs.cpus for a in self.attempts.values() if a.phase in _ROOM)
        assert held == self._used[0], (held, self._used)

    # ---- the session

    def _disconnected(self, now: Now) -> None:
        if self.welcomed:
            self._tries = 0
        self.welcomed = False
        self._beat_at = float("inf")
        low, high = BACKOFF_S
        self._retry_at = now.boot + min(high, low * 2**self._tries) * (0.5 + self.options.spread)

    def _connect(self, now: Now) -> None:
        """Try the next way; it has 5 s to answer."""
        self.link += 1
        self.welcomed = False
        self._actions.append(w.Connect(self.link))
        self._say_hello()
        low, high = BACKOFF_S
        self._tries = min(self._tries + 1, 10)
        self._retry_at = now.boot + max(3.0, min(high, low * 2**self._tries)) * (0.75 + self.options.spread / 2)
        self._hello_at = now.boot

    def _say_hello(self) -> None:
        self.generation += 1
        self._told_offer = offer = self._offer()
        self._actions.append(
            w.Say(
                wire.Hello(
                    protocol=wire.PROTOCOL,
                    worker=self.name,
                    generation=self.generation,
                    host=self.options.host,
                    pid=self.options.pid,
                    version=self.options.version,
                    offer=offer,
                    live=list(self.attempts),
                    started=[a.token for a in self.attempts.values() if a.phase in ("running", "ending")],
                    unacked=list(self.results),
                    predecessors=self.options.predecessors,
                )
            )
        )

    def on_welcome(self, message: wire.Welcome, now: Now) -> None:
        if message.generation != self.generation:
            return
        if not self.welcomed:
            self._actions.append(Tell("welcomed by the master", {"worker": self.name}))
        if not self._was_welcomed:
            self._was_welcomed = True
            self._actions.append(w.Known())
        self.welcomed, self._tries = True, 0
        self._lease_s, self._beat_s = message.lease_s, message.beat_s
        self._retry_at = float("inf")
        self._lease_over_at = self._hello_at + self._lease_s
        self._sent_at.clear()
        self._beat_at = now.boot + self._beat_s
        self.on_kill(wire.Kill(message.kill), now)
        self._send_results(now)

    def on_reject(self, message: wire.Reject, now: Now) -> None:
        self._actions.append(Tell("rejected by the master", {"reason": message.reason}))
        self._disconnected(now)
        self._retry_at = now.boot + message.retry_after_s

    def on_ask_inventory(self, message: wire.AskInventory, now: Now) -> None:
        self.welcomed = False
        self._hello_at = now.boot
        self._say_hello()
        self._retry_at = now.boot + 5.0

    def on_leave(self, message: wire.Leave, now: Now) -> None:
        """The foreman drains: look for another; without one this way is found again, until the foreman is gone."""
        if now.boot - self._moved_at < MOVE_S:
            return
        self._moved_at = now.boot
        self._actions.append(Tell("the foreman drains, looking for another"))
        self._connect(now)

    def on_renew(self, message: wire.Renew, now: Now) -> None:
        sent_at = self._sent_at.pop(message.seq, None)
        if sent_at is None:
            return
        self._lease_over_at = max(self._lease_over_at, sent_at + self._lease_s)
        for seq in [seq for seq in self._sent_at if seq < message.seq]:
            del self._sent_at[seq]

    def _beat(self, now: Now) -> None:
        if self._sent_at and now.boot - min(self._sent_at.values()) > BEATS_MISSED_MAX * self._beat_s:
            self._actions.append(Tell("no word from the master, connecting again"))
            self._sent_at.clear()
            self._disconnected(now)
            return
        self._seq += 1
        self._sent_at[self._seq] = now.boot
        self._told_offer = self._offer()
        self._beat_at = now.boot + self._beat_s
        self._say(wire.Beat(self._seq, self._told_offer, len(self.attempts), self._checksum))

    # ---- attempts

    def on_describe(self, message: wire.Describe, now: Now) -> None:
        if len(self._bodies) > 1000:
            used = {token.cluster for token in self.attempts}
            for cluster in [c for c in self._bodies if c not in used]:
                del self._bodies[cluster], self._needs[cluster]
        self._bodies[message.cluster] = message.body
        self._needs[message.cluster] = msgspec.msgpack.decode(message.body, type=Description).needs
        if message.inline:
            self._actions.append(w.Describe(message.inline))

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
            self._checksum ^= wire.checksum(token)
            self._actions.append(w.Stage(token, body, delta))
        if refused:
            self._say(wire.Refuse(refused, reason))

    def _has_room(self, needs: Resources) -> bool:
        """May it come, at least to wait?"""
        return needs.cpus <= self.capacity.cpus

    def on_files_ready(self, event: w.FilesReady, now: Now) -> None:
        attempt = self.attempts.get(event.token)
        if attempt is None or attempt.phase != "staging":
            return
        if event.reason:
            self._end(attempt, Ended(Outcome.STAGE_IN, reason=event.reason), now)
            return
        attempt.phase = "waiting"

    def _start_waiting(self, now: Now) -> None:
        for attempt in list(self.attempts.values()):
            if attempt.phase != "waiting":
                continue
            if attempt.needs.cpus > self.capacity.cpus:
                self._give_back([attempt], "full")
                continue
            if not self._fits(attempt.needs):
                break
            attempt.phase = "starting"
            self._take(attempt.needs, 1)
            del self._idle_since[len(self._idle_since) - min(attempt.needs.cpus, len(self._idle_since)) :]
            body = self._bodies[attempt.token.cluster]
            self._actions.append(w.Launch(attempt.token, body, attempt.delta, attempt.needs))

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
            attempt.phase, attempt.launched_at = "running", now.boot
            self._say(wire.Started([event.token]))

    def on_exited(self, event: w.Exited, now: Now) -> None:
        attempt = self.attempts.get(event.token)
        if attempt is not None:
            self._end(attempt, event.end, now)

    def _end(self, attempt: _Attempt, end: Ended, now: Now) -> None:
        """Nothing of it runs any more: free its room, keep the result until it is acknowledged."""
        token = attempt.token
        del self.attempts[token]
        self._checksum ^= wire.checksum(token)
        if attempt.phase in _ROOM:
            self._take(attempt.needs, -1)
            if self.options.single_task:
                self._close(attempt.needs.cpus)
            else:
                self._idle_since += [now.boot] * attempt.needs.cpus
            self._mean_task_s = 0.8 * min(self._mean_task_s, 10.0) + 0.2 * end.usage.wall_s
        if attempt.killed:
            self._say(wire.Killed([token]))
            self._actions.append(w.Discard(token))
            return
        self.results[token] = end
        self._resend_at = min(self._resend_at, now.boot + RESEND_S)
        self._say(wire.Result([token], [end]))

    def on_ack(self, message: wire.Ack, now: Now) -> None:
        for token in message.tokens:
            if self.results.pop(token, None) is not None:
                self._actions.append(w.Discard(token))
        if not self.results:
            self._resend_at = float("inf")

    def _send_results(self, now: Now) -> None:
        self._resend_at = now.boot + RESEND_S if self.results else float("inf")
        for token, end in self.results.items():
            self._say(wire.Result([token], [end]))

    def on_kill(self, message: wire.Kill, now: Now) -> None:
        gone = []
        for token in message.tokens:
            attempt = self.attempts.get(token)
            if attempt is None:
                if self.results.pop(token, None) is not None:
                    self._actions.append(w.Discard(token))
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
        self._actions.append(w.End(attempt.token, outcome))

    # ---- slots, time, leaving

    def _close(self, cpus: int) -> None:
        capacity = self.capacity
        self.capacity = msgspec.structs.replace(capacity, cpus=max(0, capacity.cpus - cpus))

    def drain(self, reason: str) -> None:
        """Take nothing new; never undone."""
        if self.draining:
            return
        self.draining = reason
        self._actions.append(Tell("draining", {"reason": reason}))
        self._give_back(self._not_started(), "draining")

    def _not_started(self) -> list[_Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.phase in ("staging", "waiting")]

    def _give_back(self, attempts: list[_Attempt], reason: str) -> None:
        """Attempts that were not started go back to the queue."""
        for attempt in attempts:
            del self.attempts[attempt.token]
            self._checksum ^= wire.checksum(attempt.token)
            self._actions.append(w.Discard(attempt.token))
        if attempts:
            self._say(wire.Refuse([attempt.token for attempt in attempts], reason))

    def on_terminate(self, now: Now) -> None:
        self.drain("stopped")
        for attempt in self.attempts.values():
            if attempt.phase != "ending":
                self._stop(attempt, Outcome.EVICTED)

    def on_tick(self, now: Now) -> None:
        if now.boot >= self._lease_over_at:
            self._lease_over_at = float("inf")
            self._actions.append(Tell("no contact with the master for the whole lease, ending all tasks"))
            for attempt in list(self.attempts.values()):
                attempt.killed = True
                if attempt.phase in ("staging", "waiting"):
                    self._end(attempt, Ended(Outcome.LOST), now)
                elif attempt.phase != "ending":
                    self._stop(attempt, Outcome.LOST)
        if now.boot >= self._beat_at:
            self._beat(now)
        if now.boot >= self._retry_at:
            if self._tries in (2, 5, 10):
                self._actions.append(Tell("waiting for the master", {"tries": self._tries}))
            self._connect(now)
        if now.boot >= self._resend_at:
            self._send_results(now)
        if self.options.idle_timeout_s and not self._not_started():
            late = sum(1 for at in self._idle_since if now.boot - at >= self.options.idle_timeout_s)
            if late:
                del self._idle_since[:late]
                self._close(late)

    def _after(self, now: Now) -> None:
        """What follows from any event: starts, a changed offer, the end."""
        self._start_waiting(now)
        if self.welcomed and self._told_offer != self._offer():
            self._beat(now)
        if (self.draining or self.capacity.cpus <= 0) and not self.attempts and not self._left:
            if self.capacity.cpus <= 0 and not self.draining:
                self.draining = "no slot is open any more"
            if not self.results:
                self._left = True
                self._say(wire.Goodbye(self.draining))
                self._actions.append(w.Leave(self.draining))

    def _offer(self) -> wire.Offer:
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
        if self.welcomed:
            self._actions.append(w.Say(message))


_ROOM = ("starting", "running", "ending")
