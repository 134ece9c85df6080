"""Work that is counted, not timed: the system calls a keeper makes for a short task."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilotq.model import FileRef, Outcome
from pilotq.wire import Token
from tests.doors.keeping import PATIENCE_S, Bench

COUNT = 200
TRUE = Path("/bin/true").read_bytes()
#: Of one attempt that follows others in their sandbox; a fresh one needs about twice as many.
CALLS_MAX = 40
#: For a file of its own that is written over that of the one before; another half as many to make and remove one.
FILES, FILE_CALLS_MAX = 10, 6.5


async def traced(bench: Bench, report: Path, launch: Callable[[Token | None], Token]) -> dict[str, int]:
    """System calls of a keeper, by name, while attempts follow each other."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    await bench.keepers.start()
    try:
        (pid,) = bench.keepers.pids
        tracer = await asyncio.create_subprocess_exec(
            strace, "-c", "-U", "calls,name", "-p", str(pid), "-o", str(report), stderr=asyncio.subprocess.PIPE
        )
        assert tracer.stderr is not None
        line = await asyncio.wait_for(tracer.stderr.readline(), PATIENCE_S)
        if b"attached" not in line:
            pytest.skip(f"strace cannot attach here: {line.decode().strip()}")
        last: Token | None = None
        for _ in range(COUNT):
            last = launch(last)
        ends = await asyncio.wait_for(asyncio.gather(*bench.ends.values()), PATIENCE_S)
        os.kill(tracer.pid, signal.SIGINT)
        await asyncio.wait_for(tracer.wait(), PATIENCE_S)
    finally:
        await bench.keepers.close(0)
    assert {end.outcome for end in ends} == {Outcome.OK}
    return counted(report)


def counted(report: Path) -> dict[str, int]:
    lines = [line.split() for line in report.read_text().splitlines()]
    calls = {words[1]: int(words[0]) for words in lines if words[0].isdigit()}
    assert calls["total"] >= 10 * COUNT
    return calls


async def test_a_short_task_takes_few_system_calls(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    true = bench.keep("condor_exec.exe", TRUE, 0o755)
    common: dict[str, Any] = {"files": [true], "keep_stdout": True, "keep_stderr": True, "job_ad": "A = 1\n"}
    calls = await traced(bench, tmp_path / "report", lambda last: bench.launch("condor_exec.exe", after=last, **common))
    assert calls["total"] <= CALLS_MAX * COUNT, calls


async def test_files_of_its_own_take_few_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def launch(last: Token | None) -> Token:
        contents = {hashlib.sha256(data).hexdigest(): data for data in (os.urandom(10_000) for _ in range(FILES))}
        refs = [FileRef(f"f{n}", digest, 10_000, 0o644) for n, digest in enumerate(contents)]
        return bench.launch("/bin/true", files=refs, inline=contents, after=last, job_ad="A = 1\n")

    calls = await traced(bench, tmp_path / "report", launch)
    assert calls["openat"] >= FILES * COUNT
    assert calls["total"] <= (CALLS_MAX + FILES * FILE_CALLS_MAX) * COUNT, calls
