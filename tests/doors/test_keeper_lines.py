"""Attempts that follow each other in a slot without asking the worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotq.model import Outcome
from pilotq.wire import Token
from tests.doors.keeping import PATIENCE_S, Bench, until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    await found.keepers.start()
    yield found
    await found.keepers.close(0)
    assert not list(found.tasks.iterdir())


class Line:
    """Attempts that follow each other; each writes its name and, when it is to wait, waits for a file."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.path = bench.path
        self.last: Token | None = None

    def add(self, name: str, waits: bool = False) -> Token:
        wait = f"while [ ! -e {self.path}/go.{name} ]; do sleep 0.01; done"
        script = f"echo {name} >> {self.path}/ran\n{wait if waits else ''}"
        self.last = self.bench.launch_sh(script, after=self.last)
        return self.last

    def go(self, name: str) -> None:
        (self.path / f"go.{name}").touch()

    def ran(self) -> list[str]:
        ran = self.path / "ran"
        return ran.read_text().split() if ran.exists() else []


async def returned(bench: Bench, token: Token) -> None:
    await asyncio.wait_for(bench.returned[token], PATIENCE_S)


async def test_one_after_the_other(bench: Bench) -> None:
    line = Line(bench)
    tokens = [line.add("a", waits=True), line.add("b"), line.add("c", waits=True), line.add("d")]
    other = bench.launch("/bin/true")
    await bench.end(other)
    assert line.ran() == ["a"], "a slot runs one attempt, others go on"
    line.go("a")
    await bench.pid(tokens[2])
    assert line.ran() == ["a", "b", "c"]
    line.go("c")
    assert [(await bench.end(token)).outcome for token in tokens] == [Outcome.OK] * 4
    assert line.ran() == ["a", "b", "c", "d"]


async def test_after_one_that_is_over(bench: Bench) -> None:
    first = bench.launch("/bin/true")
    await bench.end(first)
    assert (await bench.run("/bin/true", after=first)).outcome == Outcome.OK


@pytest.mark.parametrize("how", ["exit 3", "kill -9 $$", "nowhere"])
async def test_behind_one_that_fails_nothing_begins(bench: Bench, how: str) -> None:
    """The failure is told at once, and the slot waits for the worker's word; another slot goes on."""
    line = Line(bench)
    long = bench.launch_sh(f"while [ ! -e {bench.path}/go.long ]; do sleep 0.01; done")
    behind_long = bench.launch("/bin/true", after=long)
    first = line.add("a", waits=True)
    line.last = failing = (
        bench.launch("none", after=first) if how == "nowhere" else bench.launch_sh(f"echo x; {how}", after=first)
    )
    rest = [line.add(name) for name in "bc"]
    line.go("a")
    ended = await bench.end(failing)
    assert ended.outcome == {"exit 3": Outcome.EXIT, "nowhere": Outcome.STAGE_IN}.get(how, Outcome.SIGNAL)
    assert bench.ends[first].done(), "in their order"
    late = bench.launch_sh(f"echo late >> {bench.path}/ran", after=failing)
    line.go("long")
    assert [(await bench.end(token)).outcome for token in (long, behind_long)] == [Outcome.OK] * 2
    assert (await bench.run("/bin/true")).outcome == Outcome.OK, "a slot that the worker fills anew"
    assert line.ran() == ["a"]
    bench.keepers.take_back(rest[0])
    await returned(bench, rest[0])
    bench.keepers.go_on(failing)
    assert [(await bench.end(token)).outcome for token in (rest[1], late)] == [Outcome.OK] * 2
    assert sorted(line.ran()) == ["a", "c", "late"]


async def test_what_waits_behind_a_failure_is_not_lost_with_its_keeper(bench: Bench) -> None:
    failing = bench.launch("/bin/false")
    behind = bench.launch("/bin/true", after=failing)
    await bench.end(failing)
    os.kill(bench.keepers.pids[0], signal.SIGKILL)
    assert (await bench.end(behind)).outcome == Outcome.EVICTED, "it had not begun"


async def test_what_was_given_back_may_come_again(bench: Bench) -> None:
    first = bench.launch_sh(f"while [ ! -e {bench.path}/go ]; do sleep 0.01; done")
    second = bench.launch("/bin/true", after=first)
    bench.keepers.take_back(second)
    await returned(bench, second)
    bench.relaunch(second)
    third = bench.launch("/bin/true", after=second)
    assert [(await bench.end(token)).outcome for token in (second, third)] == [Outcome.OK] * 2
    (bench.path / "go").touch()
    await bench.end(first)


async def test_behind_one_that_was_cancelled_the_next_begins(bench: Bench) -> None:
    line = Line(bench)
    first, second = line.add("a", waits=True), line.add("b")
    await bench.pid(first)
    bench.keepers.end(first, Outcome.CANCELLED)
    assert [(await bench.end(token)).outcome for token in (first, second)] == [Outcome.CANCELLED, Outcome.OK]


async def test_ended_while_it_waits(bench: Bench) -> None:
    line = Line(bench)
    first, second, third = line.add("a", waits=True), line.add("b"), line.add("c")
    bench.keepers.end(second, Outcome.CANCELLED)
    ended = await bench.end(second)
    assert (ended.outcome, ended.usage.wall_s, ended.outputs) == (Outcome.CANCELLED, 0.0, [])
    assert line.ran() == ["a"]
    line.go("a")
    await bench.end(first)
    await bench.end(third)
    assert line.ran() == ["a", "c"]


async def test_taken_back(bench: Bench) -> None:
    line = Line(bench)
    first, second, third = line.add("a", waits=True), line.add("b"), line.add("c", waits=True)
    bench.keepers.take_back(first)
    bench.keepers.take_back(second)
    await returned(bench, second)
    assert not bench.sandbox(second).exists()
    line.go("a")
    await bench.end(first)
    await bench.pid(third)
    bench.keepers.take_back(third)
    line.go("c")
    assert (await bench.end(third)).outcome == Outcome.OK
    assert line.ran() == ["a", "c"]
    assert not bench.returned[first].done(), "what runs is not given back"
    assert not bench.returned[third].done()


async def test_taken_back_and_ended_at_once(bench: Bench) -> None:
    """It is told once what became of it."""
    line = Line(bench)
    first, second = line.add("a", waits=True), line.add("b")
    bench.keepers.take_back(second)
    bench.keepers.end(second, Outcome.EVICTED)
    await returned(bench, second)
    line.go("a")
    await bench.end(first)
    assert not bench.ends[second].done()


async def test_what_follows_in_a_dead_keeper_was_not_started(bench: Bench) -> None:
    line = Line(bench)
    tokens = [line.add("a", waits=True), line.add("b"), line.add("c")]
    await bench.pid(tokens[0])
    os.kill(bench.keepers.pids[0], signal.SIGKILL)
    outcomes = [(await bench.end(token)).outcome for token in tokens]
    assert outcomes == [Outcome.LOST, Outcome.EVICTED, Outcome.EVICTED]
    assert line.ran() == ["a"]
    for token in tokens:
        bench.keepers.discard(token)
    await until(lambda: not list(bench.tasks.iterdir()))


async def test_short_tasks_are_told_in_batches_and_without_their_start(bench: Bench) -> None:
    reads: list[int] = []
    told = bench.keepers._on_events
    bench.keepers._on_events = lambda events: (reads.append(len(events)), told(events))[1]  # type: ignore[func-returns-value]
    token = None
    tokens = [token := bench.launch("/bin/true", after=token) for _ in range(200)]
    for token in tokens:
        assert (await bench.end(token)).outcome == Outcome.OK
    assert sum(reads) < 1.5 * len(tokens)
    assert len(reads) < len(tokens) / 2


async def test_close_ends_what_waits(bench: Bench) -> None:
    line = Line(bench)
    tokens = [line.add("a", waits=True), line.add("b")]
    await until(line.ran)
    await bench.keepers.close(0)
    assert [(await bench.end(token)).outcome for token in tokens] == [Outcome.EVICTED] * 2
    assert line.ran() == ["a"]
