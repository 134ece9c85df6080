"""What a benchmark prints: one JSON line a figure; and how rounds become a figure."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

US = "pilotq"
#: Peers of a quick try, when none are named.
QUICK = ("executorlib", "workqueue")


class SkippedError(Exception):
    """A contestant that cannot run here; the text says why."""


class Goal(NamedTuple):
    """A bound of the issue: `least` true for at least, false for at most."""

    bound: float
    least: bool = True

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.bound:,g}"


@dataclass
class Figure:
    """One figure: a median over rounds, of a value or of its ratio to another contestant's in the same round."""

    #: Row of the table of goals.
    row: int
    #: What is measured; with `who` and `settings` it names the figure.
    name: str
    value: float
    unit: str
    #: A contestant: "pilotq", a peer, or a limit of the machine.
    who: str = US
    #: The contestant below the line; "": an absolute value.
    ratio_to: str = ""
    goal: str = ""
    met: bool | None = None
    #: The value of each round.
    rounds: list[float] = field(default_factory=list)
    #: What it was measured with: tasks, slots, file systems.
    settings: dict[str, Any] = field(default_factory=dict)
    #: What else was seen: CPU per task of each role, spread.
    details: dict[str, Any] = field(default_factory=dict)
    #: Why there is no value.
    skipped: str = ""


def show(figure: Figure) -> None:
    """Print a figure as one line of JSON."""
    print(json.dumps(_rounded(dataclasses.asdict(figure))), flush=True)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def without_paths(text: str) -> str:
    """What is said of a file, without where it lies on this machine."""
    return re.sub(r"(?:/[^\s/:'\"]+)+/", "", text)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# ---- rounds ----------------------------------------------------------------------------------------------------

#: What a contestant measured in one round: numbers by name.
Sample = Mapping[str, Any]


class Rounds:
    """Contestants that take turns; each round begins with another one."""

    def __init__(self, row: int, settings: Mapping[str, Any] | None = None) -> None:
        self.row = row
        self.settings = dict(settings or {})
        self.samples: dict[str, list[Sample | None]] = {}
        #: Who cannot run here, and why.
        self.skipped: dict[str, str] = {}
        #: Rounds that broke off, by contestant, with the last reason.
        self.failed: dict[str, tuple[int, str]] = {}

    def run(self, rounds: int, contestants: Mapping[str, Callable[[], Sample]]) -> None:
        """Measure all of them so many times; one that cannot run is left out and its reason kept."""
        names = list(contestants)
        for number in range(rounds):
            shift = number % len(names) if names else 0
            for name in names[shift:] + names[:shift]:
                self._measure(name, contestants[name], number, rounds)

    def _measure(self, name: str, contestant: Callable[[], Sample], number: int, rounds: int) -> None:
        found: Sample | None = None
        if name not in self.skipped:
            say(f"row {self.row}, round {number + 1} of {rounds}: {name}")
            try:
                found = contestant()
            except SkippedError as error:
                self.skipped[name] = str(error)
                say(f"{name} is left out: {error}")
            except Exception as error:
                # One bad round must not cost the hours of all others; the figure tells of it.
                self.failed[name] = (self.failed.get(name, (0, ""))[0] + 1, without_paths(str(error))[:300])
                say(f"this round of {name} failed: {error!r}")
        self.samples.setdefault(name, []).append(found)

    def values(self, who: str, metric: str) -> list[float | None]:
        """Of each round; None where it did not run or has no such number."""
        found = (None if sample is None else sample.get(metric) for sample in self.samples.get(who, []))
        return [None if value is None else float(value) for value in found]

    def show(
        self, name: str, metric: str, unit: str, *, who: str = US, goal: Goal | None = None, **settings: Any
    ) -> Figure:
        """Print the median of what a contestant measured."""
        values = [value for value in self.values(who, metric) if value is not None]
        return self._show(Figure(self.row, name, 0.0, unit, who, rounds=values), goal, settings, self._details(who))

    def ratio(
        self, name: str, metric: str, other: str, *, of: str = US, goal: Goal | None = None, **settings: Any
    ) -> Figure:
        """Print the median of the ratios to another contestant, each of two values of one round."""
        pairs = zip(self.values(of, metric), self.values(other, metric), strict=False)
        values = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        figure = Figure(self.row, name, 0.0, "ratio", of, ratio_to=other, rounds=values)
        if not values:
            figure.skipped = self.skipped.get(other, "")
        return self._show(figure, goal, settings, {})

    def _show(self, figure: Figure, goal: Goal | None, settings: Mapping[str, Any], details: dict[str, Any]) -> Figure:
        figure.settings = {**self.settings, **settings}
        figure.details = details
        if figure.rounds:
            figure.value = statistics.median(figure.rounds)
        else:
            reason = self.skipped.get(figure.who) or self.failed.get(figure.who, (0, "nothing was measured"))[1]
            figure.skipped = figure.skipped or reason
        if goal is not None:
            figure.goal = str(goal)
            figure.met = None if figure.skipped else goal.is_met(figure.value)
        show(figure)
        return figure

    def _details(self, who: str) -> dict[str, Any]:
        """Medians of what came along in dictionaries, and what is the same in each round."""
        samples = [sample for sample in self.samples.get(who, []) if sample is not None]
        found: dict[str, Any] = {}
        for key, value in (samples[0] if samples else {}).items():
            if isinstance(value, dict):
                parts = [sample.get(key, {}) for sample in samples]
                names = dict.fromkeys(name for part in parts for name in part)
                found[key] = {name: statistics.median(part.get(name, 0.0) for part in parts) for name in names}
        if who in self.failed:
            found["failed"] = f"{self.failed[who][0]} of {len(self.samples[who])} rounds: {self.failed[who][1]}"
        return found


# ---- command lines ---------------------------------------------------------------------------------------------


def new_parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """What every benchmark takes. From now on the signals that end us let what was started be stopped first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="alternating rounds (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few tasks and one round, to try it")
    parser.add_argument("--scratch", metavar="DIR", help="where queues and scratch directories lie (a temporary one)")
    parser.add_argument("--cache", metavar="DIR", help="where peers are installed (~/.cache/pilotq-bench)")
    parser.add_argument("--peers", metavar="NAMES", help="only these contestants beside pilotq, comma separated")
    return parser


def is_wanted(options: argparse.Namespace, name: str) -> bool:
    """Was this contestant asked for?"""
    if not options.peers:
        return not options.quick or name in QUICK
    return name in options.peers.split(",")
