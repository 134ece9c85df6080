"""Work that is counted, not timed: the system calls a keeper makes for a task."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pilotq.model import FileRef, Outcome
from pilotq.wire import Token
from tests.doors.keeping import PATIENCE_S, Bench

COUNT = 200
TRUE = Path("/bin/true").read_bytes()
#: Of one attempt that follows others in their sandbox.
CALLS_MAX = 35
#: For a file of its own that is written over that of the one before; another half as many to make and remove one.
FILES, FILE_CALLS_MAX = 10, 6.5
#: From the order to the report of a start in a sandbox of its own, with two streams.
FRESH_MAX = 28


@asynccontextmanager
async def counting(bench: Bench) -> AsyncIterator[dict[str, int]]:
    """Fills in, at the end, how often the keeper made which system call."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    report = bench.path / "report"
    (pid,) = bench.keepers.pids
    tracer = await asyncio.create_subprocess_exec(
        strace, "-c", "-U", "calls,name", "-p", str(pid), "-o", str(report), stderr=asyncio.subprocess.PIPE
    )
    assert tracer.stderr is not None
    line = await asyncio.wait_for(tracer.stderr.readline(), PATIENCE_S)
    if b"attached" not in line:
        pytest.skip(f"strace cannot attach here: {line.decode().strip()}")
    calls: dict[str, int] = {}
    yield calls
    os.kill(tracer.pid, signal.SIGINT)
    await asyncio.wait_for(tracer.wait(), PATIENCE_S)
    lines = [line.split() for line in report.read_text().splitlines()]
    calls.update({words[1]: int(words[0]) for words in lines if words[0].isdigit()})
    assert calls["total"] >= 10 * COUNT


async def test_a_short_task_takes_few_system_calls(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.keepers.start()
    try:
        true = bench.keep("condor_exec.exe", TRUE, 0o755)
        last: Token | None = None
        async with counting(bench) as calls:
            for _ in range(COUNT):
                last = bench.launch(
                    "condor_exec.exe", files=[true], keep_stdout=True, keep_stderr=True, job_ad="A = 1\n", after=last
                )
            ends = await asyncio.wait_for(asyncio.gather(*bench.ends.values()), PATIENCE_S)
    finally:
        await bench.keepers.close(0)
    assert {end.outcome for end in ends} == {Outcome.OK}
    assert calls["total"] <= CALLS_MAX * COUNT, calls


async def test_the_start_of_a_task_in_a_fresh_sandbox_takes_few_system_calls(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.keepers.start()
    try:
        async with counting(bench) as calls:
            for _ in range(COUNT):
                bench.launch("/bin/sleep", "600", keep_stdout=True, keep_stderr=True, job_ad="A = 1\n")
            pids = await asyncio.wait_for(asyncio.gather(*bench.pids.values()), PATIENCE_S)
    finally:
        await bench.keepers.close(0)
    assert len(set(pids)) == COUNT
    assert calls["total"] <= FRESH_MAX * COUNT, calls


async def test_files_of_its_own_take_few_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.keepers.start()
    try:
        last: Token | None = None
        async with counting(bench) as calls:
            for _ in range(COUNT):
                contents = {
                    hashlib.sha256(data).hexdigest(): data for data in (os.urandom(10_000) for _ in range(FILES))
                }
                refs = [FileRef(f"f{n}", digest, 10_000, 0o644) for n, digest in enumerate(contents)]
                last = bench.launch("/bin/true", files=refs, inline=contents, after=last, job_ad="A = 1\n")
            ends = await asyncio.wait_for(asyncio.gather(*bench.ends.values()), PATIENCE_S)
    finally:
        await bench.keepers.close(0)
    assert {end.outcome for end in ends} == {Outcome.OK}
    assert calls["openat"] >= FILES * COUNT
    assert calls["total"] <= (CALLS_MAX + FILES * FILE_CALLS_MAX) * COUNT, calls
