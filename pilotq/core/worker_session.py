"""The worker's session with the master: connect, hello, heartbeat, lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.turn import Now, Tell

if TYPE_CHECKING:
    from pilotq.core.worker import WorkerCore

#: Heartbeats without an answer after which another way to the master is tried.
BEATS_MISSED_MAX = 3
#: A worker moves away from a draining foreman once in this time, in case the others drain too.
MOVE_S = 10.0
#: First and longest pause between two tries to connect; a try has this long to be answered.
BACKOFF_S = (0.2, 15.0)
ANSWER_S = 3.0
_NEVER = float("inf")


class Session:
    """One way to the master at a time, through a foreman or straight."""

    def __init__(self, worker: WorkerCore, now: Now) -> None:
        self._worker = worker
        self._options = worker.options
        #: Counts connections, and hellos.
        self.link = 0
        self.generation = 0
        self.welcomed = self._was_welcomed = False
        self._lease_s, self._beat_s, self._spread_s = 2400.0, 5.0, 0.0
        #: Boot clock: when the last lease it had is over; it is watched until then.
        self._lease_over_at = -_NEVER
        self._lease_watched = False
        self._seq = 0
        self._sent_at: dict[int, float] = {}
        self._beat_at = _NEVER
        self._retry_at = self._hello_at = now.boot
        self._tries = 0
        self._moved_at = -_NEVER
        self._told_offer: wire.Offer | None = None

    def next_wakeup(self) -> float:
        lease_over_at = self._lease_over_at if self._lease_watched else _NEVER
        return min(self._beat_at, self._retry_at, lease_over_at)

    def has_lease(self, now: Now) -> bool:
        """False: what it was given may be somebody else's by now."""
        return now.boot < self._lease_over_at

    def on_time(self, now: Now) -> None:
        if self._lease_watched and not self.has_lease(now):
            self._lease_watched = False
            self._tell("no contact with the master for the whole lease, ending all tasks")
            self._worker.give_up(now)
        if now.boot >= self._beat_at:
            self._beat(now)
        if now.boot >= self._retry_at:
            if self._tries in (2, 5, 10):
                self._tell("waiting for the master", tries=self._tries)
            self._connect(now)

    def tell_offer(self, now: Now) -> None:
        """At once when it changed."""
        if self.welcomed and self._told_offer != self._worker.offer():
            self._beat(now)

    def disconnected(self, now: Now) -> None:
        spread_s = 0.0
        if self.welcomed:
            self._tries, spread_s = 0, self._spread_s
        self.welcomed = False
        self._beat_at = _NEVER
        low, high = BACKOFF_S
        pause = min(high, low * 2**self._tries) * (0.5 + self._options.spread) + spread_s * self._options.spread
        # A socket that knocks by itself again and again must not put off the next way for ever.
        self._retry_at = min(self._retry_at, now.boot + pause)

    def _connect(self, now: Now) -> None:
        """Try the next way."""
        self.link += 1
        self.welcomed = False
        self._worker.actions.append(w.Connect(self.link))
        self._say_hello(now)
        low, high = BACKOFF_S
        self._tries = min(self._tries + 1, 10)
        # Where many come back at once the answer takes longer; to give up would cost another handshake.
        pause = max(ANSWER_S + self._spread_s, min(high, low * 2**self._tries))
        self._retry_at = now.boot + pause * (0.75 + self._options.spread / 2)

    def _say_hello(self, now: Now, answers: int = 0) -> None:
        worker, options = self._worker, self._options
        self.generation += 1
        self._hello_at = now.boot
        self._told_offer = offer = worker.offer()
        hello = wire.Hello(
            protocol=wire.PROTOCOL,
            worker=options.name,
            generation=self.generation,
            host=options.host,
            pid=options.pid,
            version=options.version,
            offer=offer,
            live=list(worker.attempts),
            started=worker.started(),
            unacked=list(worker.results),
            predecessors=options.predecessors,
            answers=answers,
            containment=options.containment,
            suspended=[token for token, attempt in worker.attempts.items() if attempt.suspended],
        )
        worker.actions.append(w.Say(hello))

    def on_welcome(self, message: wire.Welcome, now: Now) -> None:
        if message.generation != self.generation:
            return
        if not self.welcomed:
            self._tell("welcomed by the master", worker=self._options.name)
        if not self._was_welcomed:
            self._was_welcomed = True
            self._worker.actions.append(w.Known())
        self.welcomed, self._tries = True, 0
        self._lease_s, self._beat_s, self._spread_s = message.lease_s, message.beat_s, message.spread_s
        self._retry_at = _NEVER
        self._lease_over_at, self._lease_watched = self._hello_at + self._lease_s, True
        self._sent_at.clear()
        self._beat_at = now.boot + self._beat_s
        self._worker.on_kill(wire.Kill(message.kill), now)
        self._worker.send_results(now)

    def on_reject(self, message: wire.Reject, now: Now) -> None:
        self._tell("rejected by the master", reason=message.reason)
        self.disconnected(now)
        self._retry_at = now.boot + message.retry_after_s

    def on_ask_inventory(self, message: wire.AskInventory, now: Now) -> None:
        self.welcomed = False
        self._say_hello(now, message.number)
        self._retry_at = now.boot + ANSWER_S + self._spread_s

    def on_leave(self, message: wire.Leave, now: Now) -> None:
        """The foreman drains: look for another; without one this way is found again, until the foreman is gone."""
        if now.boot - self._moved_at < MOVE_S:
            return
        self._moved_at = now.boot
        self._tell("the foreman drains, looking for another")
        self._connect(now)

    def on_renew(self, message: wire.Renew, now: Now) -> None:
        sent_at = self._sent_at.pop(message.seq, None)
        if sent_at is None:
            return
        self._lease_over_at, self._lease_watched = max(self._lease_over_at, sent_at + self._lease_s), True
        for seq in [seq for seq in self._sent_at if seq < message.seq]:
            del self._sent_at[seq]

    def _beat(self, now: Now) -> None:
        if self._sent_at and now.boot - min(self._sent_at.values()) > BEATS_MISSED_MAX * self._beat_s:
            self._tell("no word from the master, connecting again")
            self._sent_at.clear()
            self.disconnected(now)
            return
        worker = self._worker
        self._seq += 1
        self._sent_at[self._seq] = now.boot
        self._told_offer = worker.offer()
        self._beat_at = now.boot + self._beat_s
        worker.actions.append(w.Say(wire.Beat(self._seq, self._told_offer, len(worker.attempts), worker.checksum)))

    def _tell(self, text: str, **facts: object) -> None:
        self._worker.actions.append(Tell(text, facts))
