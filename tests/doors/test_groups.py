"""Control groups, as far as this machine lets us have them; what it does not is skipped and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pilotq.keeper.limits import Bounds
from pilotq.model import Outcome
from pilotq.sandbox import groups, marks
from pilotq.sandbox.groups import Group, Home
from tests.doors.keeping import Bench, alive, numbers, until

MIB = 1 << 20
#: Takes 1 MiB after the other, up to so many, and holds them.
HOG = "import time; b = [bytearray(b'x') * (1 << 20) for _ in range({})]; open('full', 'w'); time.sleep({})"


@pytest.fixture
def home() -> Iterator[Home]:
    found = Home(marks.new_nonce(), 5000)
    yield found
    found.release()
    assert not any(os.path.exists(path) for path in found.group.directories)


@pytest.fixture
async def bench(tmp_path: Path, home: Home) -> AsyncIterator[Bench]:
    found = Bench(tmp_path, bounds=Bounds(home.group, 200, 5000), group=home.keepers)
    await found.keepers.start()
    yield found
    await found.keepers.close(0)


def need(what: str, home: Home) -> None:
    if not getattr(home.group, what):
        pytest.skip(f"no control group for {what} can be made here ({home.group.mode})")


def sleepers(group: Group, count: int = 3) -> list[subprocess.Popen[bytes]]:
    found = [subprocess.Popen(["setsid", "sleep", "60"]) for _ in range(count)]
    for process in found:
        group.enter(process.pid)
    return found


def test_all_in_a_group_is_killed_at_once(home: Home) -> None:
    need("kill", home)
    group = Group(kill=home.group.kill).child("1.0.1")
    group.make()
    processes = sleepers(group)
    assert not group.remove(), "something is in it"
    group.kill_all()
    assert [process.wait(5) for process in processes] == [-signal.SIGKILL] * 3
    assert group.remove()


def test_without_cgroup_kill_nothing_forks_away(home: Home) -> None:
    need("pids", home)
    group = Group(pids=home.group.pids).child("1.0.1")
    group.make()
    forks = "import os\nwhile 1:\n  try: os.fork() or os.setsid()\n  except OSError: 0"
    first = subprocess.Popen([sys.executable, "-c", "input()\n" + forks], stdin=subprocess.PIPE)
    group.enter(first.pid)
    group.limit_processes(50)
    assert first.stdin
    first.stdin.write(b"go\n")
    first.stdin.flush()
    while len(group.members()) < 50:
        assert first.poll() is None
    pids = group.members()
    group.kill_all()
    assert first.wait(5) == -signal.SIGKILL
    while not group.remove():
        assert not group.members() - pids, "born after the kill"


def test_a_dead_workers_group_is_buried_with_all_in_it() -> None:
    home = Home(marks.new_nonce(), 5000)
    if not home.group.directories:
        pytest.skip("no control group can be made here")
    inner = home.keepers
    processes = sleepers(inner)
    for path in home.group.directories:
        assert groups.bury(path)
        assert not os.path.exists(path)
    assert [process.wait(5) for process in processes] == [-signal.SIGKILL] * 3


def test_what_is_not_ours_is_not_buried(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert not groups.bury(str(tmp_path / "other"))
    assert (tmp_path / "other").exists()


async def test_the_kernel_holds_the_memory_limit(bench: Bench, home: Home) -> None:
    """The hog never has more than its limit, and its like beside it lives on."""
    need("memory", home)
    other = bench.launch(sys.executable, "-c", HOG.format(100, 60), memory_limit_bytes=200 * MIB)
    await until((bench.sandbox(other) / "full").exists)
    ended = await bench.run(
        sys.executable, "-c", "import time; time.sleep(0.5)\n" + HOG.format(2000, 60), memory_limit_bytes=64 * MIB
    )
    assert ended.outcome == Outcome.MEMORY
    assert ended.reason == "It wanted more memory, and was killed by the system: its limit is 64 MiB"
    assert ended.usage.memory_bytes <= 90 * MIB
    assert not bench.ends[other].done()
    bench.keepers.end(other, Outcome.CANCELLED, 0)
    await bench.end(other)
    await until(lambda: not children(home.group) - {"keepers"})


async def test_what_was_taken_before_there_was_a_group_counts(bench: Bench, home: Home) -> None:
    need("memory", home)
    ended = await bench.run(sys.executable, "-I", "-S", "-c", HOG.format(60, 60), memory_limit_bytes=40 * MIB)
    assert ended.outcome == Outcome.MEMORY
    assert ended.reason.endswith("its limit is 40 MiB")


async def test_a_child_that_hogs_is_told_apart_from_its_parent(bench: Bench, home: Home) -> None:
    """The main process goes on when the kernel kills its child: the limit is passed all the same."""
    need("memory", home)
    hog = HOG.format(2000, 60)
    ended = await bench.sh(f'sleep 0.3; {sys.executable} -c "{hog}"; sleep 60', memory_limit_bytes=64 * MIB)
    assert ended.outcome == Outcome.MEMORY


async def test_short_tasks_get_no_group(bench: Bench, home: Home) -> None:
    need("memory", home)
    before = os.stat(home.group.memory).st_mtime_ns
    for _ in range(20):
        assert (await bench.run("/bin/true", memory_limit_bytes=64 * MIB)).outcome == Outcome.OK
    assert os.stat(home.group.memory).st_mtime_ns == before
    assert children(home.group) == {"keepers"}


async def test_daemons_of_an_attempt_are_in_its_group(bench: Bench, home: Home) -> None:
    need("memory", home)
    pids = bench.path / "pids"
    token = bench.launch_sh(
        f"setsid -f env -i sh -c 'echo $$ >> {pids}; exec sleep 60'; sleep 60", memory_limit_bytes=64 * MIB
    )
    await until(lambda: numbers(pids))
    group = home.group.child(f"{token.cluster}.{token.proc}.{token.attempt}")
    await until(lambda: len(group.members()) == 3)
    assert set(numbers(pids)) < group.members()
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    await bench.end(token)
    assert not alive(numbers(pids)[0])
    await until(lambda: not children(home.group) - {"keepers"})


def children(group: Group) -> set[str]:
    return {entry.name for path in group.directories for entry in os.scandir(path) if entry.is_dir()}


async def test_a_killed_keeper_leaves_no_group(bench: Bench, home: Home) -> None:
    need("memory", home)
    token = bench.launch("/bin/sleep", "60", memory_limit_bytes=64 * MIB)
    await until(lambda: children(home.group) - {"keepers"})
    os.kill(bench.keepers.pids[0], signal.SIGKILL)
    assert (await bench.end(token)).outcome == Outcome.LOST
    assert children(home.group) == {"keepers"}


BOMB = "import os, time\nwhile 1:\n  try: os.fork() or {}time.sleep(60)\n  except OSError: time.sleep(0.01)"


@pytest.mark.parametrize("how", ["", "os.setsid() or "])
@pytest.mark.parametrize("group", ["its own", "the worker's", "none"])
async def test_a_fork_bomb(tmp_path: Path, home: Home, how: str, group: str) -> None:
    """With a group of its own, in that of the worker only, and without any: found out, named, and gone."""
    need("pids", home)
    limits = {"memory_limit_bytes": 1 << 30} if group == "its own" else {}
    # Always in the group of the worker, so that a failure of this test does no harm; the keeper may not know of it.
    known = Group() if group == "none" else home.group
    bench = Bench(tmp_path, bounds=Bounds(known, 300, 5000), group=home.keepers)
    home.group.limit_processes(1000)
    await bench.keepers.start()
    beside = bench.launch("/bin/sleep", "60")
    ended = await bench.run(sys.executable, "-c", BOMB.format(how), **limits)
    assert ended.outcome == Outcome.PROCESSES
    assert "processes and threads, its limit is 300" in ended.reason
    assert not bench.ends[beside].done()
    await until(lambda: len(home.keepers.members()) == 2)
    await bench.keepers.close(0)


def test_where_memory_and_pids_are_of_version_2() -> None:
    own = groups.own_directories().get("", "")
    given = set(marks.read(f"{own}/cgroup.controllers").decode().split()) if own else set()
    if not {"memory", "pids"} <= given or not os.access(f"{own}/cgroup.procs", os.W_OK):
        pytest.skip(f"cgroup version 2 gives us {sorted(given) or 'nothing'} in {own or 'no mount'}")
    home = Home(marks.new_nonce(), 5000)
    if home.group.memory != home.group.kill:
        home.release()
        pytest.skip(f"version 2 is there, but this process is not alone in {own}")
    group = home.group.child("1.0.1")
    group.make()
    group.limit_memory(64 * MIB)
    group.limit_processes(100)
    process = subprocess.Popen([sys.executable, "-c", "input()\n" + HOG.format(500, 0)], stdin=subprocess.PIPE)
    group.enter(process.pid)
    process.communicate(b"go\n")
    assert process.returncode == -signal.SIGKILL
    assert group.memory_kills() == 1
    assert group.remove()
    home.release()
    assert groups.own_directories()[""] == own
