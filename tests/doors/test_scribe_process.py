"""The scribe as a process of the master: it is woken, killed, started again, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scribe_data import House

from pilotq.core.records import Note
from pilotq.model import PROC_MARK, STDOUT, OutputFile
from pilotq.scribe import HAND_BYTES_MAX, Scribe


class Master:
    """The part of the master that a scribe sees: commits what is done."""

    def __init__(self, house: House, *, commits: bool = True) -> None:
        self.house = house
        self.commits = commits
        self.done: list[int] = []
        self.failed: list[tuple[int, int, str]] = []
        self._changed = asyncio.Event()
        self.scribe = Scribe(
            house.state / "queue.db", house.spool, on_done=self._on_done, on_failed=self._on_failed, address="head:9094"
        )

    def _on_done(self, ns: list[int]) -> None:
        self.done += ns
        if self.commits:
            self.house.done(ns)
        self._changed.set()

    def _on_failed(self, n: int, code: int, reason: str) -> None:
        self.failed.append((n, code, reason))
        self._changed.set()

    async def until(self, done: int = 0, failed: int = 0) -> None:
        async with asyncio.timeout(30):
            while len(set(self.done)) < done or len(self.failed) < failed:
                self._changed.clear()
                await self._changed.wait()

    async def kill(self) -> None:
        """Kill it, and wait until there is another."""
        old = self.scribe.pid
        os.kill(old, signal.SIGKILL)
        async with asyncio.timeout(30):
            while self.scribe.pid in (0, old):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def fill(house: House, tasks: int, first: int = 0) -> None:
    for proc in range(first, first + tasks):
        house.note(1, proc, 1)
        house.note(1, proc, 5, outputs=[OutputFile(STDOUT, 2, 0o644, b"hi")])


def heads(house: House) -> list[str]:
    text = (house.user / "log").read_text()
    assert text.count("...\n") == text.count("(001.") and text.endswith("...\n")
    return [line[:17] for line in text.split("\n") if "(001." in line]


async def test_notes_of_before_and_after_the_start_are_written(house: House) -> None:
    house.cluster(100, log=f"{house.user}/log", stdout=f"{house.user}/out")
    fill(house, 10)
    master = Master(house)
    await master.scribe.start()
    await master.until(done=20)
    fill(house, 10, first=10)
    master.scribe.wake(40)
    await master.until(done=40)
    assert heads(house) == [f"{event} (001.{proc:03d}.000)" for proc in range(20) for event in ("001", "005")]
    await master.scribe.close()
    assert master.scribe.pid == 0


async def test_what_is_handed_over_needs_no_commit_and_a_kill_no_second_wake(house: House) -> None:
    house.cluster(3, stdout=f"{house.user}/out.{PROC_MARK}")
    notes = [
        Note(n, -1, 1, n - 1, 1, 1.0, outputs=[OutputFile(STDOUT, 2, 0o644, b"hi")], attempt=1, final=True)
        for n in (1, 2, 3)
    ]
    master = Master(house, commits=False)
    await master.scribe.start()
    master.scribe.hand(notes[:2])
    await master.until(done=2)
    assert (house.user / "out.1").read_bytes() == b"hi"
    for proc in (0, 1):
        house.note(1, proc, -1, outputs=notes[proc].outputs)
    master.scribe.wake(2)
    # Handed over, not written, not committed: the next scribe does not know it until it is woken.
    os.kill(master.scribe.pid, signal.SIGSTOP)
    master.scribe.hand(notes[2:])
    await master.kill()
    house.note(1, 2, -1, outputs=notes[2].outputs)
    master.scribe.wake(3)
    await master.until(done=3)
    assert (house.user / "out.2").read_bytes() == b"hi"
    await master.scribe.close()


async def test_what_is_too_large_to_be_handed_over_waits_for_its_commit(house: House) -> None:
    house.cluster(2, stdout=f"{house.user}/out.{PROC_MARK}")
    large, small = bytes(HAND_BYTES_MAX), b"hi"
    notes = [
        Note(n, -1, 1, n - 1, 1, 1.0, outputs=[OutputFile(STDOUT, len(data), 0o644, data)], attempt=1, final=True)
        for n, data in ((1, large), (2, small))
    ]
    master = Master(house)
    await master.scribe.start()
    for note in notes:
        master.scribe.hand([note])
    await master.until(done=1)
    assert master.done == [2]
    for note in notes:
        house.note(1, note.proc, -1, outputs=note.outputs)
    master.scribe.wake(2)
    await master.until(done=2)
    assert (house.user / "out.0").stat().st_size == len(large)
    await master.scribe.close()


async def test_what_cannot_be_written_is_told_and_tried_again(house: House) -> None:
    house.cluster(1, log=f"{house.user}/log", stdout=f"{house.user}/no/out")
    fill(house, 1)
    master = Master(house)
    await master.scribe.start()
    await master.until(done=1, failed=1)
    assert master.failed == [
        (2, 2, f"cannot write standard output {house.user}/no/out: No such file or directory (errno 2)")
    ]
    (house.user / "no").mkdir()
    master.scribe.retry([2])
    await master.until(done=2)
    await master.scribe.close()


@pytest.mark.parametrize("commits", [True, False], ids=["master hears", "master forgets"])
async def test_kills_of_the_scribe_cost_nothing(house: House, commits: bool) -> None:
    house.cluster(2000, log=f"{house.user}/log", stdout=f"{house.user}/out")
    master = Master(house, commits=commits)
    await master.scribe.start()
    for kills in range(4):
        fill(house, 200, first=200 * kills)
        master.scribe.wake(400 * (kills + 1))
        # Wait for a sign of life, then kill it in the middle of its work.
        await master.until(done=400 * kills + 1)
        await master.kill()
    await master.until(done=1600)
    await master.scribe.close()
    assert heads(house) == [f"{event} (001.{proc:03d}.000)" for proc in range(800) for event in ("001", "005")]


async def test_it_ends_with_its_master_and_only_one_writes(house: House) -> None:
    house.cluster(1, log=f"{house.user}/log", stdout=f"{house.user}/out")
    fill(house, 1)
    arguments = [str(house.state / "queue.db"), str(house.spool), str(house.state / "scribe.db"), "head:9094"]
    command = [sys.executable, "-m", "pilotq.scribe", *arguments]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdin=pipe, stdout=pipe, env=environment
    ) as old:
        assert old.stdin is not None and old.stdout is not None
        old.stdin.write(b"\0\0\0\x07\x92\xa4Wake\x00")
        old.stdin.flush()
        assert old.stdout.read(4)
        old.send_signal(signal.SIGTERM)
        old.send_signal(signal.SIGINT)
        master = Master(house)
        await master.scribe.start()
        # The old one still lives, so the new one waits.
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.5):
                await master.until(done=1)
        old.stdin.close()
        await master.until(done=2)
        assert old.wait(10) == 0
    assert heads(house) == ["001 (001.000.000)", "005 (001.000.000)"]
    await master.scribe.close()
