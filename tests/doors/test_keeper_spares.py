"""Sandboxes that serve again: the next attempt cannot tell."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pilotq.model import STDOUT, Ended, FileRef, Outcome
from pilotq.sandbox.files import write
from pilotq.sandbox.spares import Filling, Spares, whole
from pilotq.wire import Token
from tests.doors.keeping import Bench, data, until

#: What an attempt finds, told by itself; its argument is done afterwards.
PROGRAM = """#!/bin/sh
stat -c '%A %U %h %n' . .job.ad .machine.ad input run
ls -A
cat .job.ad input
cat run | cksum
eval "$1"
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    await found.keepers.start()
    yield found
    await found.keepers.close(0)
    assert not list(found.tasks.iterdir()), "nothing is left of any sandbox"


class Runs:
    """Runs attempts of one cluster, and tells which directory each had."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.files = [bench.keep("run", PROGRAM, 0o755), bench.keep("input", "same\n")]

    def launch(self, doing: str, **fields: Any) -> Token:
        common = {"files": self.files, "keep_stdout": True, "keep_stderr": True, "job_ad": "ProcId = \x00p\n"}
        return self.bench.launch("run", doing, **{**common, **fields})

    async def run(self, doing: str = "", **fields: Any) -> tuple[int, list[str]]:
        """The inode of the sandbox, and what the attempt found in it."""
        token = self.launch(f"{doing}\nstat -c %i .", **fields)
        ended = await self.bench.end(token)
        assert ended.outcome in (Outcome.OK, Outcome.SIGNAL, Outcome.EXIT), ended
        *found, inode = data(ended, STDOUT).decode().splitlines()
        assert f"ProcId = {token.proc}" in found
        return int(inode), [line for line in found if "ProcId" not in line]


async def test_an_unchanged_sandbox_serves_again(bench: Bench) -> None:
    runs = Runs(bench)
    first, found = await runs.run()
    for doing in (
        "",
        "echo more >&2",
        "printf x | dd of=.job.ad conv=notrunc status=none",
        "cat input >/dev/null",
        "cp input copy; rm copy",
    ):
        again, same = await runs.run(doing)
        assert same == found
        assert again == first or doing.startswith("cp")
    assert "".join(found).count("_condor_stdout") == 1


CHANGES = [
    "echo sane > input",
    "echo sane > input; touch -r run input",
    "mv input x; cp -p x input; rm x",
    "cp -p input x; mv x input",
    "chmod 644 run",
    "chmod 711 .",
    "chmod 500 .",
    "mkdir directory",
    "ln -s /etc/passwd link",
    "ln input ../hard.link",
    "rm .machine.ad",
    "rm input",
    "rm .job.ad; mkdir .job.ad",
    "rm _condor_stderr; ln -s /etc/passwd _condor_stderr",
]


@pytest.mark.parametrize("doing", CHANGES)
async def test_a_changed_one_does_not(bench: Bench, doing: str) -> None:
    runs = Runs(bench)
    first, found = await runs.run()
    changed, _ = await runs.run(doing)
    assert changed == first, "it is tried on a spare"
    assert (await runs.run())[1] == found
    (bench.tasks / "hard.link").unlink(missing_ok=True)


@pytest.mark.parametrize("doing", [*CHANGES, "attribute input", "attribute .", "touch .machine.ad", "cp input x; rm x"])
def test_what_makes_a_spare(tmp_path: Path, doing: str) -> None:
    sandbox, filling = str(tmp_path / "1.0.1"), Filling([], [], "", [])
    os.mkdir(sandbox, 0o700)
    names = ("input", "run", ".job.ad", ".machine.ad", "_condor_stderr")
    prints = whole(sandbox, {name: write(f"{sandbox}/{name}", b"same\n") for name in names})
    spares = Spares()
    assert spares.give(sandbox, filling, prints, level(sandbox))
    taken = spares.take(filling, str(tmp_path / "1.1.1"), b"new", {})
    assert taken is not None
    sandbox = str(tmp_path / "1.1.1")
    if doing.startswith("attribute "):
        # Beyond one tick of the clock of the file system.
        time.sleep(0.02)
        os.setxattr(f"{sandbox}/{doing.split()[1]}", "user.word", b"text")
    else:
        time.sleep(0.02 if doing.startswith("cp input") else 0)
        subprocess.run(doing, shell=True, cwd=sandbox, check=True)
    os.chmod(sandbox, stat.S_IMODE(os.stat(sandbox).st_mode) | 0o500)
    assert not spares.give(sandbox, filling, taken, level(sandbox))
    assert spares.take(filling, str(tmp_path / "1.2.1"), b"", {}) is None


def level(path: str) -> dict[str, os.stat_result]:
    return {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(path)}


async def test_what_was_not_its_own_end_leaves_no_spare(bench: Bench) -> None:
    runs = Runs(bench)
    token = runs.launch("sleep 100")
    await bench.pid(token)
    bench.keepers.end(token, Outcome.CANCELLED)
    assert (await bench.end(token)).outcome == Outcome.CANCELLED
    await until(lambda: not list(bench.tasks.iterdir()))


async def test_other_files_other_sandbox(bench: Bench) -> None:
    runs, other = Runs(bench), Runs(bench)
    other.files = [other.files[0], bench.keep("input", "other\n")]
    _, found = await runs.run()
    _, others = await other.run()
    assert "other" in others
    assert "same" in found
    assert (await runs.run())[1] == found


@pytest.mark.parametrize("spoil", ["", "echo sane > other", "chmod 600 other", "ln other ../hard.link", "touch more"])
async def test_files_that_came_along_are_written_over_those_of_the_one_before(bench: Bench, spoil: str) -> None:
    """Longer, shorter, empty; but only where the one before changed nothing."""
    runs, inodes = Runs(bench), set()
    for content in ("first\n", "second, which is longer\n", "3rd\n", "", "x" * 300_000 + "\n", "last\n"):
        own = FileRef("other", hashlib.sha256(content.encode()).hexdigest(), len(content), 0o640)
        show = f"stat -c '%A %h %s %n' other; sha256sum < other; cat other | cut -c 1-30; ls -A\n{spoil}"
        token = runs.launch(
            f"{show}\nstat -c %i .", files=[*runs.files, own], inline={own.digest: content.encode()}, outputs=None
        )
        ended = await bench.end(token)
        *found, inode = data(ended, STDOUT).decode().splitlines()
        inodes.add(inode)
        at = found.index(f"-rw-r----- 1 {len(content)} other")
        assert found[at + 1].split()[0] == own.digest
        assert found[at + 2 : -7] == content[:30].splitlines()
        assert found[-7:] == [".job.ad", ".machine.ad", "_condor_stderr", "_condor_stdout", "input", "other", "run"]
        changed = {"echo sane > other": ["other"], "touch more": ["more"]}.get(spoil, [])
        assert [file.name for file in ended.outputs[2:]] == changed
        (bench.tasks / "hard.link").unlink(missing_ok=True)
    assert len(inodes) == 1 or spoil


async def test_a_file_that_did_not_come_along_or_has_another_mode_is_not_written_over(bench: Bench) -> None:
    runs = Runs(bench)
    _, found = await runs.run()
    runs.files[1] = bench.keep("input", "same\n", 0o600)
    own = [line.replace("-rw-r--r--", "-rw-------") if line.endswith(" input") else line for line in found]
    assert (await runs.run())[1] == own != found


async def test_streams_are_fresh(bench: Bench) -> None:
    first = await bench.sh("echo one; chmod 600 _condor_stdout", keep_stdout=True)
    second = await bench.sh("stat -c '%a %s' _condor_stdout", keep_stdout=True)
    assert [data(ended, STDOUT) for ended in (first, second)] == [b"one\n", b"644 0\n"]


async def test_a_killed_payload_may_leave_a_spare(bench: Bench) -> None:
    runs = Runs(bench)
    token = runs.launch("kill -9 $$")
    ended: Ended = await bench.end(token)
    assert ended.outcome == Outcome.SIGNAL
    (spare,) = bench.tasks.iterdir()
    inode = spare.stat().st_ino
    assert (await runs.run())[0] == inode


async def test_spares_are_few_and_do_not_last(bench: Bench) -> None:
    runs = Runs(bench)
    tokens = [runs.launch("sleep 0.2") for _ in range(30)]
    for token in tokens:
        await bench.end(token)
    await until(lambda: len(list(bench.tasks.iterdir())) <= 8)
    await until(lambda: not list(bench.tasks.iterdir()))
    for path in bench.cache.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
