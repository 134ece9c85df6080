"""`pilotq bench` with real master and foremen: it measures, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pools import Home

pytestmark = pytest.mark.timeout(180)


class Bench(Home):
    """Calls of the command, and what is left of them."""

    def __init__(self, base: Path) -> None:
        super().__init__(base / "home")
        self.temporary = base / "tmp"
        self.temporary.mkdir()
        self.environ["TMPDIR"] = str(self.temporary)

    def run(self, *words: str) -> dict[str, Any]:
        done = self.pilotq("bench", "--json", *words, timeout_s=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def left(self) -> list[int]:
        """Processes that were told of our directory."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    told = Path(f"/proc/{name}/environ").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.temporary) in told:
                    found.append(int(name))
        return found

    def assert_clean(self) -> None:
        assert self.left() == []
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    for pid in found.left():
        os.kill(pid, signal.SIGKILL)


def test_all_tasks_are_done_and_counted(bench: Bench) -> None:
    found = bench.run("--tasks", "3000", "--workers", "6", "--slots", "4", "--queued", "50")
    assert (found["tasks"], found["workers"], found["slots"], found["queued"]) == (3000, 6, 24, 50)
    assert found["tasks_per_s"] == pytest.approx(3000 / found["seconds"], rel=0.01)
    for role in ("master", "foreman", "simulator"):
        assert found[f"{role}_cpu_us_per_task"] > 0
    assert 0 < found["commits"] < 3000
    # An assignment, a result and an acknowledgement, for many tasks each.
    assert 0 < found["messages_per_task"] < 1
    assert found["longest_turn_ms"] > 0
    bench.assert_clean()


def test_workers_without_foremen(bench: Bench) -> None:
    found = bench.run("--tasks", "500", "--workers", "2", "--foremen", "0", "--ahead", "0", "--task-s", "0.01")
    assert found["foreman_cpu_us_per_task"] == 0
    assert found["seconds"] >= 500 / 16 * 0.01
    bench.assert_clean()


def test_slots_are_filled_and_stay_full(bench: Bench) -> None:
    where = bench.temporary / "disk"
    where.mkdir()
    found = bench.run(
        *("--fill", "--task-s", "4", "--workers", "30", "--slots", "4", "--watch", "2", "--dir", str(where))
    )
    assert found["filled_s"] >= found["joined_s"] - 1
    # 120 slots with tasks of 4 s that end evenly from the start.
    assert 20 <= found["ended_per_s"] <= 45
    assert 0 < found["master_cpu_share"] < 2
    assert list(where.iterdir()) == []
    where.rmdir()
    bench.assert_clean()


def test_what_a_person_reads(bench: Bench) -> None:
    done = bench.pilotq("bench", "--tasks", "200", "--workers", "2", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 tasks in ")
    assert "CPU a task: master " in done.stdout


def test_ctrl_c_takes_everything_down(bench: Bench) -> None:
    words = bench.command("bench", "--workers", "3", "--tasks", "100", "--task-s", "1h")
    with subprocess.Popen(words, env=bench.environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "3 workers joined" in line)
        assert len(bench.left()) > 3
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "pilotq: stopping\n"
    bench.assert_clean()


def test_workers_end_when_the_command_is_killed(bench: Bench) -> None:
    words = bench.command("bench", "--workers", "3", "--tasks", "100", "--task-s", "1h")
    with subprocess.Popen(words, env=bench.environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "3 workers joined" in line)
        descriptors = [os.pidfd_open(pid) for pid in bench.left() if pid != process.pid]
        process.kill()
    for descriptor in descriptors:
        with open(descriptor) as file:
            assert _ends(file.fileno()), "a process outlives the command"


def _ends(descriptor: int) -> bool:
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(30_000))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fill"], "--fill needs tasks that last"),
        (["--fill", "--task-s", "10", "--tasks", "5"], "5 tasks cannot fill 400 slots"),
        (["--tasks", "0"], "argument --tasks: 0 is too few, it must be 1 or more"),
        (["--workers", "many"], "argument --workers: 'many' is no number"),
        (["--task-s", "soon"], "not a duration: 'soon'"),
        (["--dir", "/proc/nowhere"], "--dir /proc/nowhere: no directory that can be written to"),
    ],
)
def test_bad_input_is_one_line(bench: Bench, words: list[str], said: str) -> None:
    done = bench.pilotq("bench", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    bench.assert_clean()


def test_more_workers_than_files_may_be_open(bench: Bench) -> None:
    words = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *bench.command("bench", "--workers", "100")]
    done = bench.call(words)
    assert done.returncode == 2
    assert done.stderr == "pilotq: 100 workers need 400 open files, 300 are allowed: raise `ulimit -Hn`\n"
