"""TCP as ZeroMQ uses it: a session keeps its order and loses only its end; sessions overtake each other.

A cut stops one direction between two hosts: what is under way waits. A connection whose other end died is noticed at
once when the other end's host could tell, else only after long. What comes to a process that stands still waits in its
socket, and half the time is read only after the timers of that process were seen to.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

from pilotq import wire
from pilotq.access import FIRST
from tests.sim.clockwork import Daemon, Time, number_of

#: How long nobody notices that the host at the other end is gone.
SILENT_S = 120.0
RECONNECT_S = 0.2
#: From when a process goes on, or a way is open again, to when it reads what waited.
READ_S = 0.001
Parts = list[bytes]


class Server(Protocol):
    """What listens."""

    name: str
    host: str
    is_dead: bool
    wires: dict[bytes, Wire]

    def admits(self) -> bool:
        """Is the key of a worker known?"""

    def on_batch(self, peer: bytes, dialer: Dialer, parts: Parts) -> None: ...

    def on_lost(self, peer: bytes) -> None: ...


class Network:
    """All hosts, what listens there, and what is cut."""

    def __init__(self, time: Time, latency_s: float) -> None:
        self.time, self.latency_s = time, latency_s
        self.servers: dict[str, Any] = {}
        #: (from host, to host) -> end of the cut.
        self.cuts: dict[tuple[str, str], float] = {}
        #: Until then a payload may come twice, one after the other.
        self.doubles_until = 0.0
        self.wires: list[Wire] = []
        self.serial = 0
        #: Connections so far, by who calls whom.
        self.connects: Counter[int] = Counter()

    def cut(self, source: str, target: str, seconds: float) -> None:
        self.cuts[source, target] = max(self.cuts.get((source, target), 0.0), self.time.t + seconds)

    def open_from(self, source: str, target: str) -> float:
        """When the way is open again; the past: it is."""
        return self.cuts.get((source, target), 0.0)


class Lane:
    """One direction of a session."""

    def __init__(self, wire: Wire, number: int, source: str, reader: Any, hand_over: Callable[[Parts], None]) -> None:
        self._net, self._id, self._hand_over = wire.net, (*wire.identity, number), hand_over
        self._source, self._target, self._reader = source, reader.host, reader
        self._queue: deque[tuple[float, Parts]] = deque()
        self._last = 0.0
        self._count = 0
        self._is_armed = False
        #: Nothing more is taken in; called when what is left has been handed over.
        self._at_end: Callable[[], None] | None = None
        self.is_closed = False

    def put(self, parts: Parts) -> None:
        if self.is_closed:
            return
        net, time = self._net, self._net.time
        self._count += 1
        noise = time.noise(*self._id, self._count)
        if time.t < net.doubles_until:
            doubled: Parts = []
            for at in range(0, len(parts), 2):
                twice = time.noise(*self._id, self._count, at) < 0.3
                doubled += parts[at : at + 2] * (2 if twice else 1)
            parts = doubled
        delay = net.latency_s * (0.5 + noise) if noise < 0.9 else net.latency_s * 20 * noise
        self._last = max(self._last, time.t + delay)
        self._queue.append((self._last, parts))
        self._arm()

    def _arm(self) -> None:
        if not self._is_armed and self._queue:
            self._is_armed = True
            self._net.time.at(self._queue[0][0], self._deliver)

    def _deliver(self) -> None:
        self._is_armed = False
        time = self._net.time
        closed_until = max(self._net.open_from(self._source, self._target), self._unread_until())
        if time.t < closed_until:
            self._is_armed = True
            time.at(closed_until + READ_S, self._deliver)
            return
        queue = self._queue
        while queue and queue[0][0] <= time.t:
            self._hand_over(queue.popleft()[1])
        if queue:
            self._arm()
        elif self._at_end is not None:
            end, self._at_end = self._at_end, None
            end()

    def _unread_until(self) -> float:
        """The past: it is read as it comes, at the latest when its reader goes on."""
        paused_until: float = self._reader.paused_until
        is_read = self._reader.is_dead or self._net.time.noise(*self._id, 8, int(1000 * paused_until)) < 0.5
        return 0.0 if is_read else paused_until

    def close(self, keep: float, at_end: Callable[[], None] | None) -> None:
        """A part of what is under way arrives yet, then the other side is told."""
        if self.is_closed:
            return
        self.is_closed = True
        for _ in range(len(self._queue) - int(keep * (len(self._queue) + 1))):
            self._queue.pop()
        self._at_end = at_end
        if not self._queue and not self._is_armed:
            self._is_armed = True
            self._net.time.after(self._net.latency_s, self._deliver)


class Wire:
    """One TCP connection."""

    def __init__(self, net: Network, dialer: Dialer, server: Any) -> None:
        net.serial += 1
        self.net, self.dialer, self.server = net, dialer, server
        self.peer = wire.session_of(net.serial.to_bytes(wire.PEER_BYTES, "big"), FIRST)
        #: Does not change when something else in the plan does.
        pair = number_of(f"{dialer.daemon.name}>{dialer.target}")
        self.identity = (pair, net.connects[pair])
        net.connects[pair] += 1
        self.up = Lane(self, 0, dialer.host, server, self._on_up)
        self.down = Lane(self, 1, server.host, dialer.daemon, dialer.on_batch)
        server.wires[self.peer] = self
        net.wires.append(self)

    def _on_up(self, parts: Parts) -> None:
        if not self.server.is_dead:
            self.server.on_batch(self.peer, self.dialer, parts)

    def _keep(self, number: int) -> float:
        return self.net.time.noise(*self.identity, 7, number)

    def reset(self) -> None:
        """Both ends are told, sooner or later."""
        self.up.close(self._keep(0), self._gone_above)
        self.down.close(self._keep(1), self._gone_below)
        self._forget()

    def client_ends(self, is_silent: bool, keep: float | None = None) -> None:
        if is_silent:
            self.up.close(self._keep(2), None)
            self.down.close(0.0, None)
            self.net.time.after(SILENT_S, self._gone_above)
        else:
            self.up.close(self._keep(2) if keep is None else keep, self._gone_above)
            self.down.close(0.0, None)
        self._forget()

    def server_ends(self, is_silent: bool) -> None:
        self.up.close(0.0, None)
        if is_silent:
            self.down.close(self._keep(3), None)
            self.net.time.after(SILENT_S, self._gone_below)
        else:
            self.down.close(self._keep(3), self._gone_below)
        self._forget()

    def _forget(self) -> None:
        if self in self.net.wires:
            self.net.wires.remove(self)

    def _gone_above(self) -> None:
        self.server.wires.pop(self.peer, None)

    def _gone_below(self) -> None:
        self.dialer.on_wire_lost(self)


class Dialer:
    """The calling socket: it connects again by itself, and keeps what is said meanwhile."""

    def __init__(
        self,
        net: Network,
        daemon: Daemon,
        host: str,
        target: str,
        on_batch: Callable[[Parts], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._net, self.daemon, self.host, self.target = net, daemon, host, target
        self._on_batch, self._on_lost = on_batch, on_lost
        self.wire: Wire | None = None
        self._waiting: list[Parts] = []
        self.is_closed = False
        self._tries = 0
        net.time.after(net.latency_s, self._connect)

    def _connect(self) -> None:
        if self.is_closed or self.daemon.is_dead or self.wire is not None:
            return
        net, server = self._net, self._net.servers.get(self.target)
        there = server.host if server is not None else ""
        is_cut = net.time.t < max(net.open_from(self.host, there), net.open_from(there, self.host))
        if server is None or server.is_dead or is_cut:
            self._tries += 1
            net.time.after(min(2.0, RECONNECT_S * 2**self._tries), self._connect)
            return
        if not server.admits():
            # A key that was refused is not tried again.
            self._on_lost()
            return
        self._tries = 0
        self.wire = Wire(net, self, server)
        waiting, self._waiting = self._waiting, []
        for parts in waiting:
            self.wire.up.put(parts)

    def send(self, parts: Parts) -> None:
        if self.is_closed:
            return
        if self.wire is not None:
            self.wire.up.put(parts)
        else:
            self._waiting.append(parts)

    def on_batch(self, parts: Parts) -> None:
        if not self.is_closed and not self.daemon.is_dead:
            self._on_batch(parts)

    def on_wire_lost(self, wire: Wire) -> None:
        if self.wire is wire and not self.is_closed and not self.daemon.is_dead:
            self.wire = None
            self._on_lost()
            self._net.time.after(RECONNECT_S, self._connect)

    def close(self, is_silent: bool = False, keep: float | None = None) -> None:
        if not self.is_closed:
            self.is_closed = True
            if self.wire is not None:
                self.wire.client_ends(is_silent, keep)
                self.wire = None


class Listener:
    """The listening side of a daemon: what one turn sends to a peer leaves together."""

    def __init__(self, daemon: Any) -> None:
        self._daemon = daemon
        self._out: dict[bytes, Parts] = {}

    def send(self, peer: bytes, *parts: bytes) -> None:
        self._out.setdefault(peer, []).extend(parts)

    @property
    def has_waiting(self) -> bool:
        return bool(self._out)

    def flush(self) -> None:
        if not self._out:
            return
        out, self._out = self._out, {}
        for peer, parts in out.items():
            self._daemon.effect()
            wire = self._daemon.wires.get(peer)
            if wire is None:
                self._daemon.on_lost(peer)
            else:
                wire.down.put(parts)
