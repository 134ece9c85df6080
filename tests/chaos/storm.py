"""A seeded storm over a pool under load: kills, stops and cuts of everything, at random moments."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pool import StormPool

#: What a storm is made of, and how often.
WEIGHTS = {
    "kill master": 10,
    "kill foreman": 14,
    "kill worker": 14,
    "kill keeper": 8,
    "kill scribe or query": 6,
    "pause master": 4,
    "pause foreman": 4,
    "pause worker": 4,
    "pause keeper": 2,
    "cut node": 6,
    "mute node": 3,
}
#: Longest pause and cut, and the longest time until a killed role is started again; seconds.
PAUSE_S, CUT_S, AWAY_S = 6.0, 8.0, 3.0


@dataclass
class Deed:
    """Something that was done, and what undoes it."""

    what: str
    name: str
    #: Seconds since boot.
    at: float
    undo: Callable[[], None] | None = None
    undo_at: float = 0.0


@dataclass
class Storm:
    """Does one thing after the other."""

    pool: StormPool
    seed: int
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    deeds: list[Deed] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._pending: list[Deed] = []

    @property
    def kills(self) -> int:
        return sum(count for what, count in self.counts.items() if what.startswith("kill"))

    def step(self) -> None:
        """Do one thing, undo what is over, start what is due."""
        self.settle()
        kinds = {
            what: weight
            for what, weight in WEIGHTS.items()
            if self.pool.network is not None or not what.startswith(("cut", "mute"))
        }
        what = self._random.choices(list(kinds), list(kinds.values()))[0]
        verb, _, role = what.partition(" ")
        deed = getattr(self, f"_{verb}")(role)
        if deed is not None:
            deed.what = what
            self.deeds.append(deed)
            self.counts[what] += 1
            if deed.undo is not None:
                self._pending.append(deed)

    def settle(self, *, end: bool = False) -> None:
        """Undo what has lasted long enough, or all."""
        now = uptime()
        for deed in list(self._pending):
            if end or now >= deed.undo_at:
                self._pending.remove(deed)
                assert deed.undo is not None
                deed.undo()
        self.pool.start_due(all_of_them=end)

    def _choose(self, role: str) -> str | None:
        names = {"master": ["master"], "foreman": self.pool.foremen, "worker": self.pool.workers}[role]
        alive = [name for name in names if name in self.pool.processes]
        return self._random.choice(alive) if alive else None

    def _kill(self, role: str) -> Deed | None:
        if role in ("keeper", "scribe or query"):
            name = self._choose("worker" if role == "keeper" else "master")
            children = self.pool.children(name) if name else []
            if not children or name is None:
                return None
            self.pool.signal(self._random.choice(children), signal.SIGKILL)
            return Deed("", name, uptime())
        name = self._choose(role)
        if name is None:
            return None
        deed = Deed("", name, uptime())
        self.pool.kill(name, self._random.uniform(0.0, AWAY_S))
        return deed

    def _pause(self, role: str) -> Deed | None:
        name = self._choose("worker" if role == "keeper" else role)
        if name is None:
            return None
        pids = [self.pool.pid(name)]
        if role == "keeper":
            children = self.pool.children(name)
            if not children:
                return None
            pids = [self._random.choice(children)]
        if not self.pool.signal(pids[0], signal.SIGSTOP):
            return None
        undo_at = uptime() + self._random.uniform(0.3, PAUSE_S)
        return Deed("", name, uptime(), lambda: void(self.pool.signal(pids[0], signal.SIGCONT)), undo_at)

    def _cut(self, role: str) -> Deed | None:
        network, name = self.pool.network, self._random.choice(self.pool.names)
        if network is None or self._is_cut(name):
            return None
        network.cut(name, is_cut=True)
        undo_at = uptime() + self._random.uniform(0.3, CUT_S)
        return Deed("", name, uptime(), lambda: network.cut(name, is_cut=False), undo_at)

    def _mute(self, role: str) -> Deed | None:
        network, name = self.pool.network, self._random.choice(self.pool.names)
        if network is None or self._is_cut(name):
            return None
        other = self._random.choice([one for one in self.pool.names if one != name])
        network.mute(name, other, is_mute=True)
        undo_at = uptime() + self._random.uniform(0.3, CUT_S)
        return Deed("", name, uptime(), lambda: network.mute(name, other, is_mute=False), undo_at)

    def _is_cut(self, name: str) -> bool:
        return any(deed.name == name and deed.what.startswith(("cut", "mute")) for deed in self._pending)


def void(value: object) -> None:
    """For a call of which the answer does not matter."""


def uptime() -> float:
    """Seconds since boot, as tasks write them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
