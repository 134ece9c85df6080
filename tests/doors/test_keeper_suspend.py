"""Suspending an attempt: all of its processes stand still, whatever they did to hide; and go on, or end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from keeping import Bench, alive, data, numbers, until

from pilotq.keeper.family import stat
from pilotq.model import STDOUT, Outcome
from pilotq.wire import Token

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: A child, one in a session of its own, and one that has no parent of the task's any more.
FAMILY = """
echo $$ >> pids
sleep 100 & echo $! >> pids
setsid sh -c 'echo $$ >> pids; sleep 100 & echo $! >> pids; wait' &
(setsid sh -c 'echo $$ >> pids; exec sleep 100' &)
wait
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    await bench.keepers.start()
    yield bench
    await bench.keepers.close(0)


async def family(bench: Bench) -> tuple[Token, list[int]]:
    token = bench.launch_sh(FAMILY)
    pids = bench.sandbox(token) / "pids"
    await until(lambda: len(numbers(pids)) == 5)
    return token, numbers(pids)


def states(pids: list[int]) -> set[str]:
    """Letters of what there is."""
    return {fields[0].decode() for pid in pids if (fields := stat(pid))}


async def test_all_of_a_family_stop_and_go_on(bench: Bench) -> None:
    token, pids = await family(bench)
    bench.keepers.suspend(token, True)
    await until(lambda: states(pids) == {"T"})
    # Said twice it is of no effect.
    bench.keepers.suspend(token, True)
    bench.keepers.suspend(token, False)
    await until(lambda: "T" not in states(pids))
    assert len(pids) == len([pid for pid in pids if alive(pid)])
    bench.keepers.end(token, Outcome.CANCELLED)
    assert (await bench.end(token)).outcome == Outcome.CANCELLED
    assert not [pid for pid in pids if alive(pid)]


async def test_one_that_starts_others_all_the_time_comes_to_rest(bench: Bench) -> None:
    token = bench.launch_sh("while :; do sh -c 'date +%N > now'; done")
    now = bench.sandbox(token) / "now"
    await until(now.exists)
    bench.keepers.suspend(token, True)

    def written() -> tuple[int, str]:
        return now.stat().st_mtime_ns, now.read_text()

    async def still() -> bool:
        before = written()
        await asyncio.sleep(0.1)
        return written() == before

    while not await still():
        pass
    assert await still() and await still()
    before = written()
    bench.keepers.suspend(token, False)
    await until(lambda: written() != before)
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    await bench.end(token)


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.EVICTED])
async def test_the_end_of_a_suspended_one_reaches_it(bench: Bench, outcome: Outcome) -> None:
    """It may react to its signal, as if it had not been stopped."""
    token = bench.launch_sh("trap 'echo bye > ../said; exit 0' TERM; echo ready > ready; sleep 100 & wait")
    await until((bench.sandbox(token) / "ready").exists)
    bench.keepers.suspend(token, True)
    await until(lambda: states([bench.pids[token].result()]) == {"T"} if bench.pids[token].done() else False)
    began = time.monotonic()
    bench.keepers.end(token, outcome, 10)
    assert (await bench.end(token)).outcome == outcome
    assert time.monotonic() - began < 8
    said = Path(bench.tasks) / "said"
    assert said.read_text() == "bye\n"
    said.unlink()


async def test_time_for_which_it_is_suspended_is_no_wall_time(bench: Bench) -> None:
    token = bench.launch_sh("sleep 0.5; echo done", wall_time_s=1.0, keep_stdout=True)
    await bench.pid(token)
    bench.keepers.suspend(token, True)
    await asyncio.sleep(1.5)
    bench.keepers.suspend(token, False)
    ended = await bench.end(token)
    assert (ended.outcome, data(ended, STDOUT)) == (Outcome.OK, b"done\n")
    token = bench.launch_sh("sleep 100", wall_time_s=0.3)
    await bench.pid(token)
    bench.keepers.suspend(token, True)
    bench.keepers.suspend(token, False)
    assert (await bench.end(token)).outcome == Outcome.TIMEOUT


async def test_one_that_is_not_here_and_one_that_ends(bench: Bench) -> None:
    bench.keepers.suspend(Token(1, 1, 1), True)
    token = bench.launch_sh("exit 3")
    bench.keepers.suspend(token, True)
    bench.keepers.suspend(token, False)
    assert (await bench.end(token)).outcome == Outcome.EXIT
