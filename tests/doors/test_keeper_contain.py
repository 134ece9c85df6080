"""Nothing of an attempt is left when it is reported, whatever it does; and nothing at all when keeper or worker die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from keeping import Bench, alive, data, numbers, until

from pilotq.keeper.family import Scan, stat
from pilotq.model import STDOUT, Outcome
from pilotq.sandbox import marks
from pilotq.wire import Token

#: A daemon: says its pid in the file $PIDS and stays. Forked twice, in a session of its own.
STAY = "echo $$ >> $PIDS; exec sleep 60"
DAEMON = f"setsid -f sh -c 'setsid -f sh -c \"$0\"' '{STAY}'\n"
#: The same without any variable.
SCRUBBED = f"setsid -f env -i PIDS=$PIDS sh -c '{STAY}' <&- >&- 2>&-\n"
WAIT = "while [ ! -s $PIDS ]; do sleep 0.01; done\n"
#: The same without the limit that is a mark, and thus without anything that tells whose it is.
HIDDEN = "import os, resource; resource.setrlimit(10, (-1, -1)); os.execve('/bin/sh', ['sh', '-c', os.sys.argv[1]], {})"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.keepers.start()
    yield bench
    await bench.keepers.close(0)


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    return tmp_path / "pids"


def env(pids: Path) -> dict[str, str]:
    return {"PIDS": str(pids)}


def living(pids: Path) -> list[int]:
    """Those who said their pid and are still there; there must have been some."""
    assert numbers(pids)
    return [pid for pid in numbers(pids) if alive(pid)]


def hidden(pids: Path) -> str:
    return f"setsid -f {sys.executable} -I -S -c \"{HIDDEN}\" 'PIDS={pids}; {STAY}'\n"


async def test_children_in_the_background(bench: Bench, pids: Path) -> None:
    ended = await bench.sh(f"sh -c '{STAY}' & {WAIT} exit 3", env=env(pids))
    assert (ended.outcome, ended.code) == (Outcome.EXIT, 3)
    assert not living(pids)


async def test_daemons(bench: Bench, pids: Path) -> None:
    assert (await bench.sh(DAEMON + DAEMON + WAIT, env=env(pids))).outcome == Outcome.OK
    assert not living(pids)


async def test_daemons_of_a_cancelled_attempt(bench: Bench, pids: Path) -> None:
    token = bench.launch_sh(DAEMON + DAEMON + "sleep 60", env=env(pids))
    await until(lambda: len(numbers(pids)) == 2)
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    await bench.end(token)
    assert not living(pids)


async def test_scrubbed_environment_and_closed_files(bench: Bench, pids: Path) -> None:
    """It dies with its attempt, and the like of another attempt lives on."""
    others = pids.with_name("others")
    other = bench.launch_sh(SCRUBBED + "sleep 60", env=env(others))
    await until(lambda: numbers(others))
    assert (await bench.sh(SCRUBBED + WAIT, env=env(pids))).outcome == Outcome.OK
    assert not living(pids)
    assert living(others)
    bench.keepers.end(other, Outcome.CANCELLED, 0)
    await bench.end(other)
    assert not living(others)


async def test_nothing_tells_whose_it_is(bench: Bench, pids: Path) -> None:
    """Alone in its keeper, an attempt is the suspect and waits for its end."""
    assert (await bench.sh(hidden(pids) + WAIT, env=env(pids))).outcome == Outcome.OK
    assert not living(pids)


async def test_one_of_several_suspects(bench: Bench, pids: Path) -> None:
    other = bench.launch("/bin/sleep", "60")
    await bench.pid(other)
    await bench.sh(hidden(pids) + WAIT, env=env(pids))
    assert living(pids), "it may be the other's"
    bench.keepers.end(other, Outcome.CANCELLED, 0)
    await bench.end(other)
    assert not living(pids)


async def test_a_tree_that_grows(bench: Bench, pids: Path) -> None:
    """Up to 120 processes, each in a session of its own, ended while they appear."""
    script = bench.path / "grow"
    script.write_text(
        'echo $$ >> "$1"; [ $2 = 4 ] && exec sleep 30\n'
        'for i in 1 2 3; do setsid sh "$0" "$1" $(($2+1)) & sleep 0.01; done; sleep 30\n'
    )
    token = bench.launch("/bin/sh", str(script), str(pids), "0")
    await until(lambda: len(numbers(pids)) > 20)
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    await bench.end(token)
    assert not [pid for pid in numbers(pids) if alive(pid)]


async def test_many_at_once(bench: Bench) -> None:
    tokens = [bench.launch_sh(f"echo {n}; exit {n % 3}", keep_stdout=True) for n in range(200)]
    ends = await asyncio.gather(*(bench.end(token) for token in tokens))
    assert [end.code for end in ends] == [n % 3 for n in range(200)]
    assert [int(data(end, STDOUT)) for end in ends] == list(range(200))
    for token in tokens:
        bench.keepers.discard(token)
    await until(lambda: not list(bench.tasks.iterdir()))
    assert children(bench.keepers.pids[0]) == [], "all were reaped"


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "--no-headers", "-o", "pid", "--ppid", str(pid)], capture_output=True, check=False)
    return [int(word) for word in found.stdout.split()]


async def test_long_and_short_tasks_do_not_wait_for_each_other(bench: Bench) -> None:
    long = bench.launch("/bin/sleep", "60")
    assert (await bench.run("/bin/true")).outcome == Outcome.OK
    assert not bench.ends[long].done()


async def test_keeper_is_killed(bench: Bench, pids: Path) -> None:
    token = bench.launch_sh(DAEMON + "sleep 60", env=env(pids))
    pid = await bench.pid(token)
    await until(lambda: numbers(pids))
    os.kill(bench.keepers.pids[0], signal.SIGKILL)
    ended = await bench.end(token)
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "Its keeper process was killed by signal 9")
    assert not alive(pid)
    assert not living(pids)
    assert (await bench.run("/bin/true")).outcome == Outcome.OK, "another took its place"
    await until(lambda: not bench.sandbox(token).exists())


async def test_tasks_go_first_when_memory_runs_out(bench: Bench) -> None:
    """The kernel's order, and that a keeper is back at its own place when it has started what there was."""
    (keeper,) = bench.keepers.pids
    own = score(keeper)
    for _ in range(2):
        token = bench.launch("/bin/sleep", "60")
        assert score(await bench.pid(token)) == min(1000, max(500, own + 500))
    await until(lambda: score(keeper) == own)


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_task_kills_its_keeper(bench: Bench, pids: Path) -> None:
    ended = await bench.sh(DAEMON + WAIT + "kill -9 $PPID; sleep 60", env=env(pids))
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "Its keeper process was killed by signal 9")
    assert not living(pids)


async def test_a_task_that_nothing_tells_whose_it_is_kills_its_keeper(bench: Bench, pids: Path) -> None:
    ended = await bench.sh(hidden(pids) + WAIT + "kill -9 $PPID; sleep 60", env=env(pids))
    assert ended.outcome == Outcome.LOST
    assert not living(pids)
    assert (await bench.run("/bin/true")).outcome == Outcome.OK


async def test_a_task_stops_its_keeper(bench: Bench) -> None:
    (keeper,) = bench.keepers.pids
    stopper = bench.launch_sh("kill -STOP $PPID; sleep 60")
    beside = bench.launch_sh("sleep 0.1")
    await until(lambda: stat(keeper)[0] == b"T")
    bench.keepers.wake()
    assert (await bench.end(beside)).outcome == Outcome.OK
    bench.keepers.end(stopper, Outcome.CANCELLED)
    assert (await bench.end(stopper)).outcome == Outcome.CANCELLED


async def test_what_a_killed_keeper_left_on_disk(tmp_path: Path) -> None:
    """Spares, what it was to remove and what lived in it go; outputs that were not pulled and what lives stay."""
    bench = Bench(tmp_path, count=2)
    await bench.keepers.start()
    here = bench.launch("/bin/sleep", "60")
    there = bench.launch("/bin/sleep", "60")
    await asyncio.gather(bench.pid(here), bench.pid(there))
    kept = bench.launch_sh("head -c 100000 /dev/zero > out; mkdir d; echo > d/x", outputs=["out"])
    assert (await bench.end(kept)).outcome == Outcome.OK
    assert bench.kept[kept]
    spares = [bench.launch("/bin/sleep", "0.1") for _ in range(6)]
    await asyncio.gather(*(bench.end(token) for token in spares))
    assert [token for token in spares if bench.sandbox(token).exists()]
    os.kill(parent(await bench.pid(here)), signal.SIGKILL)
    assert (await bench.end(here)).outcome == Outcome.LOST
    await until(lambda: {path.name for path in bench.tasks.iterdir()} == {name(bench, kept), name(bench, there)})
    assert (bench.sandbox(kept) / "out").stat().st_size == 100_000
    assert (await bench.run("/bin/true")).outcome == Outcome.OK
    bench.keepers.discard(kept)
    await until(lambda: not bench.sandbox(kept).exists())
    await bench.keepers.close(0)
    assert not list(bench.tasks.iterdir())


def parent(pid: int) -> int:
    return int(stat(pid)[1])


def name(bench: Bench, token: Token) -> str:
    return bench.sandbox(token).name


async def test_only_the_dead_keepers_tasks_are_lost(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=2)
    await bench.keepers.start()
    first, second = bench.launch("/bin/sleep", "60"), bench.launch("/bin/sleep", "60")
    await bench.pid(first)
    survivor = await bench.pid(second)
    os.kill(bench.keepers.pids[0], signal.SIGKILL)
    queued = bench.launch("/bin/true")
    assert (await bench.end(first)).outcome == Outcome.LOST
    assert (await bench.end(queued)).outcome in (Outcome.OK, Outcome.LOST)
    assert alive(survivor)
    await bench.keepers.close(0)
    assert (await bench.end(second)).outcome == Outcome.EVICTED
    assert not alive(survivor)


async def test_close_gives_time(bench: Bench) -> None:
    saved = bench.path / "saved"
    token = bench.launch_sh("trap 'echo > $1; exit 0' TERM; sh -c 'echo > ready; exec sleep 60'", str(saved))
    await until((bench.sandbox(token) / "ready").exists)
    keeper = bench.keepers.pids[0]
    await bench.keepers.close(10)
    assert (await bench.end(token)).outcome == Outcome.EVICTED
    assert saved.exists()
    assert not bench.sandbox(token).exists(), "removed before the keeper left"
    assert not alive(keeper)


WORKER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from keeping import Bench
async def main():
    bench = Bench(Path(sys.argv[2]))
    await bench.keepers.start()
    token = bench.launch_sh(sys.argv[3], env={"PIDS": sys.argv[4]})
    print(bench.keepers.pids[0], await bench.pid(token), flush=True)
    await asyncio.sleep(300)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_worker_dies(tmp_path: Path, pids: Path, number: int) -> None:
    script = "trap '' TERM HUP\n" + DAEMON + "sleep 60; sleep 60"
    root = Path(__file__).parent
    argv = [sys.executable, "-c", WORKER, str(root), str(tmp_path), script, str(pids)]
    environment = {**os.environ, "PYTHONPATH": str(root.parent.parent)}
    worker = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, env=environment)
    assert worker.stdout
    keeper, task = (int(word) for word in (await worker.stdout.readline()).split())
    (escaped,) = await until(lambda: numbers(pids))
    worker.send_signal(number)
    await worker.wait()
    await until(lambda: not any(alive(pid) for pid in (keeper, task, escaped)))


def test_hunt(pids: Path) -> None:
    """What a dead worker left is found by the variable or by the limit alone."""
    nonce = marks.new_nonce()
    number = marks.number(nonce, 3, 5)
    tagged = {"PATH": os.environ["PATH"], marks.VARIABLE: f"outer {marks.prefix(nonce, 3)}1.0.1"}
    limited = (
        f"import os, resource; resource.setrlimit(10, ({number}, -1)); os.execve('/bin/sleep', ['sleep', '60'], {{}})"
    )
    by_variable = subprocess.Popen(["/bin/sleep", "60"], env=tagged)
    by_limit = subprocess.Popen([sys.executable, "-I", "-S", "-c", limited])
    foreign = subprocess.Popen(["/bin/sleep", "60"])
    while marks.worn(by_limit.pid) != number:
        time.sleep(0.01)
    assert marks.hunt(nonce, 4) == marks.hunt(marks.new_nonce()) == 0
    while marks.hunt(nonce):
        time.sleep(0.01)
    assert not alive(by_variable.pid)
    assert not alive(by_limit.pid)
    assert alive(foreign.pid)
    foreign.kill()
    for process in (by_variable, by_limit, foreign):
        process.wait()


def test_children_without_the_kernels_help() -> None:
    """What is used where /proc tells no children."""
    scan = Scan()
    before = scan()
    processes = [subprocess.Popen(["/bin/sleep", "60"]) for _ in range(3)]
    here = {process.pid for process in processes}
    assert set(scan()) - set(before) == here
    assert set(scan()) - set(before) == here, "known foreign processes are not read again"
    for process in processes:
        process.kill()
        process.wait()
    assert not here & set(scan())
