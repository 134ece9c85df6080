"""The foreman decides little: who is connected, what goes where, when to leave. It never opens what it relays."""

from __future__ import annotations

from typing import Any

import msgspec

from pilotq import wire
from pilotq.core.turn import Action, Core, Event, Now, Tell, Turn
from pilotq.errors import PeerError

#: A master that is silent for this many heartbeats is looked for again.
BEATS_MISSED_MAX = 4
#: First and longest pause between two tries to connect.
BACKOFF_S = (0.1, 5.0)
#: A worker's session without a word for this long is forgotten.
SESSION_SILENT_S = 60.0
#: Heartbeats of workers wait so long for company: one message for many costs the master little more than for one.
BEATS_WAIT_S = 0.05


class FromAbove(Event, frozen=True):
    """What the master says: session and payload in turn; an empty session is the foreman itself."""

    parts: wire.Parts


class FromBelow(Event, frozen=True):
    """What a worker says."""

    session: bytes
    payloads: list[wire.Buffer]


class SessionLost(Event, frozen=True):
    """A worker's connection cannot be written to any more."""

    session: bytes


class AboveReset(Event, frozen=True):
    """The connection to the master was closed or made anew."""


class Drain(Event, frozen=True):
    """The drain file is there."""


class Tick(Event, frozen=True):
    """The time `next_wakeup` named has come."""


class Up(Action, frozen=True):
    """Send to the master; session and payload in turn."""

    parts: wire.Parts


class Down(Action, frozen=True):
    """Send to a worker; an empty session and a payload in turn."""

    session: bytes
    parts: wire.Parts


class Allow(Action, frozen=True):
    """Let these keys (public, name) in and no others, and serve with the pair that has this public key."""

    keys: list[tuple[str, str]]
    serve: str


class Connect(Action, frozen=True):
    """Open the connection to the master, closing the one before."""


class FileWanted(Action, frozen=True):
    """A worker asks for a kept file: serve it from the cache, or get it first."""

    session: bytes
    message: wire.Get


class FileArrived(Action, frozen=True):
    """A piece of a kept file came from the master."""

    message: wire.Chunk


class Leave(Action, frozen=True):
    """End the process."""

    reason: str


_FOR_GOOD = float("inf")


class _AssignHead(wire._Message, frozen=True, tag="Assign"):
    """The part of an assignment a foreman looks at; the rest stays packed."""

    cluster: int


_assign_head = msgspec.msgpack.Decoder(_AssignHead)


def _cluster_of(payload: wire.Buffer) -> int:
    """Of an assignment; 0 when it is none."""
    try:
        return _assign_head.decode(payload).cluster
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0


_GET, _BEAT = b"\xa3Get", b"\xa4Beat"
_ASSIGN = b"\xa6Assign"


class ForemanCore(Core):
    """The deciding part of a foreman."""

    def __init__(self, name: str, pid: int, version: str, now: Now) -> None:
        self.name, self._pid, self._version = name, pid, version
        #: Worker session -> boot time of its last word, and clusters it was told of.
        self.sessions: dict[bytes, float] = {}
        self._told: dict[bytes, set[int]] = {}
        #: Packed `Describe` by cluster.
        self._descriptions: dict[int, wire.Buffer] = {}
        self.welcomed = False
        self.draining = False
        self._seq = 0
        self._beat_s = 1.0
        self._beat_at = now.boot
        self._heard_at = now.boot
        #: When to open the connection to the master anew, and how often that was tried.
        self._retry_at = now.boot
        self._tries = 0
        self._drain_said_at = float("-inf")
        #: Keys that may come in, and until when (boot clock).
        self._keys: list[tuple[wire.AllowedKey, float]] = []
        self._serve = ""
        self._actions: list[Any] = []
        #: What goes up next, session and payload in turn, and when.
        self._out: wire.Parts = []
        self._out_at = float("inf")

    def react(self, event: Event, now: Now) -> None:
        if isinstance(event, FromBelow):
            self._from_below(event, now)
        elif isinstance(event, FromAbove):
            self._from_above(event, now)
        elif isinstance(event, SessionLost):
            self._forget(event.session)
        elif isinstance(event, AboveReset):
            self._lost(now)
        elif isinstance(event, Drain):
            self._drain(now)
        else:
            self._tick(now)

    def settle(self, now: Now) -> Turn:
        """A foreman remembers nothing durably."""
        actions, self._actions = self._actions, []
        if now.boot >= self._out_at:
            actions.append(Up(self._out))
            self._out, self._out_at = [], float("inf")
        return Turn([], actions)

    def next_wakeup(self) -> float | None:
        return min(self._beat_at, self._retry_at, self._out_at)

    def check(self) -> None:
        """Nothing here can contradict itself."""

    def _from_below(self, event: FromBelow, now: Now) -> None:
        session = event.session
        if session not in self.sessions:
            self._told[session] = set()
        self.sessions[session] = now.boot
        for payload in event.payloads:
            if payload[1:5] == _GET:
                self._get(session, payload)
                continue
            self._out += (session, payload)
            self._out_at = min(self._out_at, now.boot + (BEATS_WAIT_S if payload[1:6] == _BEAT else 0.0))

    def _read(self, payload: wire.Buffer) -> wire.Message | None:
        try:
            return wire.unpack(payload)
        except PeerError as error:
            self._actions.append(Tell("not a message of ours", {"reason": str(error)}))
            return None

    def _get(self, session: bytes, payload: wire.Buffer) -> None:
        message = self._read(payload)
        if isinstance(message, wire.Get):
            self._actions.append(FileWanted(session, message))

    def _from_above(self, event: FromAbove, now: Now) -> None:
        self._heard_at = now.boot
        down: dict[bytes, wire.Parts] = {}
        for session, payload in zip(event.parts[::2], event.parts[1::2], strict=True):
            if not session:
                if (message := self._read(payload)) is not None:
                    self._for_me(message, payload, now)
                continue
            told = self._told.get(session)
            if told is None:
                self._up(wire.Gone([session]))
                continue
            parts = down.get(session)
            if parts is None:
                parts = down[session] = []
            if payload[1:8] == _ASSIGN:
                cluster = _cluster_of(payload)
                if cluster not in told and cluster in self._descriptions:
                    told.add(cluster)
                    parts += (b"", self._descriptions[cluster])
            parts += (b"", payload)
        self._actions += [Down(session, parts) for session, parts in down.items()]

    def _for_me(self, message: wire.Message, payload: wire.Buffer, now: Now) -> None:
        if isinstance(message, wire.ForemanWelcome):
            if not self.welcomed:
                self._actions.append(Tell("welcomed by the master", {"keys": len(message.keys)}))
                self._descriptions.clear()
                for told in self._told.values():
                    told.clear()
                # The master may be a new one: whoever is connected here says again what it holds.
                for session in self.sessions:
                    self._down(session, wire.AskInventory())
            self.welcomed, self._tries, self._retry_at = True, 0, float("inf")
            self._beat_s, self._serve = message.beat_s, message.serve
            self._keys = [(key, now.boot + key.left_s if key.left_s >= 0 else _FOR_GOOD) for key in message.keys]
            self._allow(now)
        elif isinstance(message, wire.Describe):
            # Told again because somebody does not have it (any more).
            self._descriptions[message.cluster] = payload
            for told in self._told.values():
                told.discard(message.cluster)
        elif isinstance(message, wire.Forget):
            self._descriptions.pop(message.cluster, None)
            for told in self._told.values():
                told.discard(message.cluster)
        elif isinstance(message, wire.Chunk):
            self._actions.append(FileArrived(message))
        elif isinstance(message, wire.AskInventory):
            self._descriptions.clear()
            self._say_hello(now)
        elif isinstance(message, wire.Reject):
            self._actions.append(Tell("rejected by the master", {"reason": message.reason}))

    def _allow(self, now: Now) -> None:
        """Let in whose key is good now, and nobody else, whoever came before."""
        self._keys = [(key, end) for key, end in self._keys if end > now.boot]
        names = {key.name for key, _ in self._keys}
        for session in [one for one in self.sessions if wire.key_of(one) not in names]:
            self._forget(session)
        self._actions.append(Allow([(key.public, key.name) for key, _ in self._keys], self._serve))

    def _drain(self, now: Now) -> None:
        """Ask the workers to move; leave when nobody is connected any more."""
        if not self.draining:
            self._actions.append(Tell("draining"))
        self.draining = True
        if now.boot - self._drain_said_at >= 2.0:
            self._drain_said_at = now.boot
            for session in self.sessions:
                self._down(session, wire.Leave())
        if not self.sessions:
            self._up(wire.Goodbye("drained"))
            self._actions.append(Leave("drained"))

    def _lost(self, now: Now) -> None:
        """The connection is gone: try again, later each time."""
        self.welcomed = False
        self._heard_at = now.boot
        low, high = BACKOFF_S
        self._retry_at = min(self._retry_at, now.boot + min(high, low * 2**self._tries))

    def _tick(self, now: Now) -> None:
        if now.boot >= self._retry_at:
            self._tries = min(self._tries + 1, 10)
            low, high = BACKOFF_S
            self._retry_at = now.boot + max(2.0, min(high, low * 2**self._tries))
            if self._tries in (3, 6, 10):
                self._actions.append(Tell("waiting for the master", {"tries": self._tries}))
            self._actions.append(Connect())
            self._say_hello(now)
        if now.boot < self._beat_at:
            return
        self._beat_at = now.boot + self._beat_s
        if any(end <= now.boot for _, end in self._keys):
            self._allow(now)
        silent = [s for s, at in self.sessions.items() if now.boot - at > SESSION_SILENT_S]
        for session in silent:
            self._forget(session)
        if self.draining:
            self._drain(now)
        if self.welcomed:
            self._seq += 1
            self._up(wire.ForemanBeat(self._seq, len(self.sessions), self.draining))
        if self.welcomed and now.boot - self._heard_at > BEATS_MISSED_MAX * max(self._beat_s, 1.0):
            self._actions.append(Tell("no word from the master, connecting again"))
            self._lost(now)

    def _say_hello(self, now: Now) -> None:
        self._up(wire.ForemanHello(wire.PROTOCOL, self.name, self._pid, self._version))

    def _forget(self, session: bytes) -> None:
        if self.sessions.pop(session, None) is not None:
            del self._told[session]
            self._up(wire.Gone([session]))

    def _up(self, message: wire.Message) -> None:
        self._out += (b"", wire.pack(message))
        self._out_at = 0.0

    def _down(self, session: bytes, message: wire.Message) -> None:
        self._actions.append(Down(session, [b"", wire.pack(message)]))
