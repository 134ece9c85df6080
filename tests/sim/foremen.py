"""Foremen: real cores in simulated processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotq.core import foreman as f
from pilotq.core.turn import Tell
from tests.sim.clockwork import Clock, Daemon
from tests.sim.network import Dialer, Listener, Parts, Wire

if TYPE_CHECKING:
    from tests.sim.world import World


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
