"""The loop of a daemon: nothing is done before the commit that makes it true, whatever comes meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pilotq.core.turn import Core, Now, Turn
from pilotq.daemon import Engine, Peak

TICK = "tick"


class Scripted(Core):
    """A core whose events are what is to be done: ("record", x), ("say", x); it remembers when it was asked."""

    def __init__(self) -> None:
        self.wakeup: float | None = None
        self.asked_at: list[float] = []
        self._turn = Turn()

    def react(self, event: Any, now: Now) -> None:
        if event == TICK:
            self.asked_at.append(now.boot)
            self.wakeup = None
            event = ("say", "ticked")
        kind, value = event
        self._turn.may_wait = kind in ("early", "later") and (self._turn.may_wait or not self._turn.actions)
        if kind == "early":
            self._turn.at_once.append(value)
            return
        if kind == "fail":
            raise ValueError(value)
        if kind in ("record", "later"):
            self._turn.records.append(value)
        self._turn.actions.append(value)

    def settle(self, now: Now) -> Turn:
        turn, self._turn = self._turn, Turn()
        return turn

    def next_wakeup(self) -> float | None:
        return self.wakeup


class Shell:
    """What the engine commits and performs, in order; a commit waits for the gate."""

    def __init__(self) -> None:
        self.core = Scripted()
        self.gate = threading.Event()
        self.error: Exception | None = None
        self.seen: list[tuple[str, list[Any]]] = []
        self.begun, self.done = asyncio.Event(), asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.engine = Engine(self.core, self.perform, TICK, self.commit)

    def commit(self, records: list[Any], actions: list[Any]) -> None:
        self.loop.call_soon_threadsafe(self.begun.set)
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.seen.append(("commit", list(records)))

    def perform(self, actions: list[Any], found: Any) -> None:
        self.seen.append(("perform", list(actions)))
        self.done.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.done.clear()
                await self.done.wait()


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    found = Shell()
    yield found
    found.gate.set()
    found.engine.close()


async def test_actions_wait_for_their_commit_and_later_turns_for_one_commit(shell: Shell) -> None:
    shell.engine.put(("record", 1))
    await shell.begun.wait()
    shell.engine.put(("say", "hello"))
    shell.engine.put(("record", 2))
    shell.engine.put(("record", 3))
    assert await asyncio.to_thread(lambda: shell.seen == []), "nothing is said while the disk works"
    shell.gate.set()
    await shell.until(lambda: len(shell.seen) == 4)
    assert shell.seen == [
        ("commit", [1]),
        ("perform", [1]),
        ("commit", [2, 3]),
        ("perform", ["hello", 2, 3]),
    ]
    assert shell.engine.commits == 2


async def test_what_needs_no_commit_does_not_wait_for_one(shell: Shell) -> None:
    shell.engine.put(("say", "hello"))
    await shell.until(lambda: bool(shell.seen))
    assert shell.seen == [("perform", ["hello"])]
    assert shell.engine.commits == 0


async def test_what_may_begin_at_once_does_not_wait_for_the_commit(shell: Shell) -> None:
    shell.engine.put(("early", "begin"))
    shell.engine.put(("record", 1))
    await shell.begun.wait()
    assert shell.seen == [("perform", ["begin"])]
    shell.gate.set()
    await shell.until(lambda: len(shell.seen) == 3)
    assert shell.seen[1:] == [("commit", [1]), ("perform", [1])]


async def test_what_nobody_waits_for_is_committed_with_what_comes_next(shell: Shell, monkeypatch: Any) -> None:
    monkeypatch.setattr("pilotq.daemon.LATER_S", 60.0)
    shell.gate.set()
    for event in (("later", 1), ("early", "begin"), ("later", 2)):
        shell.engine.put(event)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert shell.seen == [("perform", ["begin"])]
    shell.engine.put(("say", "hello"))
    await shell.until(lambda: len(shell.seen) == 3)
    assert shell.seen[1:] == [("commit", [1, 2]), ("perform", [1, 2, "hello"])], "nothing overtakes"
    assert shell.engine.commits == 1


async def test_what_nobody_waits_for_is_committed_in_time(shell: Shell) -> None:
    shell.gate.set()
    shell.engine.put(("later", 1))
    await shell.until(lambda: len(shell.seen) == 2)
    assert shell.seen == [("commit", [1]), ("perform", [1])]


async def test_a_commit_that_fails_ends_it_and_nothing_is_said(shell: Shell) -> None:
    shell.error = OSError("the disk is broken")
    shell.gate.set()
    shell.engine.put(("record", 1))
    with pytest.raises(OSError, match="broken"):
        await asyncio.wait_for(asyncio.shield(shell.engine.failed), 10)
    assert shell.seen == []


async def test_a_core_that_fails_ends_it(shell: Shell) -> None:
    shell.engine.put(("fail", "no"))
    with pytest.raises(ValueError, match="no"):
        await asyncio.wait_for(asyncio.shield(shell.engine.failed), 10)


async def test_other_work_in_the_thread_waits_for_the_commit(shell: Shell) -> None:
    shell.engine.put(("record", 1))
    await shell.begun.wait()
    other = asyncio.ensure_future(shell.engine.call(lambda: list(shell.seen)))
    shell.gate.set()
    assert (await asyncio.wait_for(other, 10))[:1] == [("commit", [1])]
    assert shell.engine.blocking(lambda word: word, "answer") == "answer"
    with pytest.raises(ZeroDivisionError):
        await shell.engine.call(lambda: 1 // 0)


async def test_the_core_is_asked_when_it_wants_to_be_even_if_that_changes(shell: Shell) -> None:
    shell.engine.put(("say", "far"))
    await shell.until(lambda: bool(shell.seen))
    wanted = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.05
    shell.core.wakeup = wanted
    shell.engine.put(("say", "near"))
    await shell.until(lambda: bool(shell.core.asked_at))
    assert shell.core.asked_at[0] >= wanted
    shell.core.wakeup = shell.core.asked_at[0] + 0.02
    shell.engine.put(("say", "again"))
    await shell.until(lambda: len(shell.core.asked_at) == 2)


def test_a_peak_is_forgotten_in_time() -> None:
    peak = Peak()
    peak.note(5.0, 100.0)
    peak.note(1.0, 105.0)
    assert peak.read(106.0) == 5.0
    assert peak.read(111.0) == 5.0, "the window before still counts"
    peak.note(2.0, 112.0)
    assert peak.read(121.5) == 2.0
    assert peak.read(200.0) == 0.0
