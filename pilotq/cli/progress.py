"""How far the clusters are: a bar each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID

#: A cluster as the master counts it (`GET /v1/clusters`).
Counts = Mapping[str, Any]


class Progress(Protocol):
    def show(self, clusters: Sequence[Counts]) -> None: ...
    def close(self) -> None: ...


def new_progress() -> Progress:
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Bars()
    return Lines()


def ended(cluster: Counts) -> int:
    return int(cluster["done"]) + int(cluster["cancelled"])


def is_over(cluster: Counts) -> bool:
    """Nothing of it will run unless somebody does something."""
    return not (cluster["idle"] or cluster["running"] or cluster["suspended"])


def describe(cluster: Counts) -> str:
    """ "12 of 40 done, 2 running, 26 waiting, 1 failed" """
    words = [f"{ended(cluster)} of {cluster['count']} done"]
    names = {"running": "running", "idle": "waiting", "suspended": "suspended", "held": "held", "failed": "failed"}
    words += [f"{cluster[key]} {word}" for key, word in names.items() if cluster.get(key)]
    return ", ".join(words)


class Lines:
    """A line when something changed, at most one a second for each cluster."""

    def __init__(self) -> None:
        self._shown: dict[int, str] = {}
        self._waiting: dict[int, str] = {}
        self._next_at = 0.0

    def show(self, clusters: Sequence[Counts]) -> None:
        for cluster in clusters:
            self._waiting[cluster["cluster"]] = describe(cluster)
        if time.monotonic() >= self._next_at:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        for number, text in self._waiting.items():
            if self._shown.get(number) != text:
                self._shown[number] = text
                self._next_at = time.monotonic() + 1.0
                print(f"cluster {number}: {text}", file=sys.stderr, flush=True)


class Bars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            expand=True,
        )
        self._ids: dict[int, TaskID] = {}
        self._bars.start()

    def show(self, clusters: Sequence[Counts]) -> None:
        for cluster in clusters:
            number = cluster["cluster"]
            if number not in self._ids:
                text = f"cluster {number}" + (f" {cluster['batch_name']}" if cluster.get("batch_name") else "")
                self._ids[number] = self._bars.add_task(text, total=cluster["count"], more="")
            more = describe(cluster).partition(", ")[2]
            self._bars.update(self._ids[number], completed=ended(cluster), total=cluster["count"], more=more)

    def close(self) -> None:
        self._bars.stop()
