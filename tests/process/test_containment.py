"""Whatever a task does, and whoever dies: the node is clean afterwards, and the pool goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, marked, wait_for

from pilotq.proc import start_ticks

pytestmark = pytest.mark.timeout(120)
#: A daemon forked twice, in a session of its own, without environment; it says its pid.
DAEMON = "setsid -f env -i setsid -f sh -c 'echo $$ >> {}; exec sleep 300'"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path)
    yield found
    found.close()


def submit(parts: Parts, script: str, more: str = "", count: int = 1) -> int:
    path = parts.cwd / f"task{time.monotonic_ns()}.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return parts.submit(f"executable = {path.name}\n{more}\nqueue {count}\n")


def pids(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def living(path: Path) -> list[int]:
    return [pid for pid in pids(path) if start_ticks(pid)]


def left(parts: Parts) -> list[Path]:
    return list((parts.path / "work").glob("*/tasks/*"))


def groups_of(parts: Parts) -> list[str]:
    (file,) = (parts.path / "work").glob("*/worker.json")
    return [str(path) for path in json.loads(file.read_text())["groups"]]


def test_a_killed_worker_ends_its_tasks_within_5_s(parts: Parts) -> None:
    parts.start_all(slots=2)
    told = parts.cwd / "pids"
    submit(
        parts,
        f"trap '' TERM HUP INT\necho $$ >> {told}\n{DAEMON.format(told)}\nsleep 300; sleep 300",
        "job_max_vacate_time = 1",
        2,
    )
    wait_for("tasks and daemons", lambda: len(living(told)) == 4)
    parts.kill9("worker0")
    wait_for("all of them to be gone", lambda: not living(told), 5)
    wait_for("the keepers to be gone", lambda: not [pid for pid in marked(parts.path) if b"keeper" in command(pid)], 5)
    groups = groups_of(parts)
    if "memory v2" not in parts.status()["workers"][0]["cgroups"]:
        assert not [path for path in groups if os.path.exists(path)], "the last keeper removed it"
    parts.start("worker0", WQ_NUM_WORKERS="2")
    wait_for("the next worker", lambda: len(living(told)) == 4)
    assert not [path for path in groups if os.path.exists(path)]
    groups = groups_of(parts)
    assert parts.end("worker0", signal.SIGTERM) == 0
    assert not living(told)
    assert not left(parts)
    assert not [path for path in groups if os.path.exists(path)]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_task_kills_its_keeper_and_its_worker(parts: Parts) -> None:
    """At one stroke, so that neither can see to what the other leaves: the other keeper does."""
    parts.start_all(slots=2)
    told = parts.cwd / "pids"
    go = parts.cwd / "go"
    submit(parts, f"echo $$ >> {told}\n{DAEMON.format(told)}\nsleep 300", count=1)
    wait_for("the one beside it", lambda: len(living(told)) == 2)
    worker = parts.processes["worker0"].pid
    submit(
        parts,
        f"{DAEMON.format(told)}\nwhile [ ! -e {go} ]; do sleep 0.1; done\nrm {go}\nkill -9 {worker} $PPID\nsleep 300",
    )
    wait_for("its daemon", lambda: len(living(told)) == 3)
    go.touch()
    assert parts.processes.pop("worker0").wait(10) == -signal.SIGKILL
    wait_for("nothing to be left", lambda: not living(told), 5)


def test_killed_keepers_leave_nothing_on_disk(parts: Parts) -> None:
    """Short tasks leave spares behind; a worker that is stopped after its keepers were killed takes them away."""
    parts.start_all(slots=2)
    cluster = parts.submit("executable = /bin/true\ntransfer_executable = false\nqueue 200\n")
    for _ in range(4):
        for pid in marked(parts.path):
            if b"pilotq.keeper" in command(pid):
                os.kill(pid, signal.SIGKILL)
                break
        time.sleep(0.2)
    parts.wait_done(cluster, 60)
    assert parts.end("worker0", signal.SIGTERM) == 0
    assert not left(parts)


def test_a_worker_that_leaves_without_its_master_leaves_nothing(parts: Parts) -> None:
    parts.start_all(slots=1)
    ran = parts.cwd / "ran"
    submit(parts, f"echo > {ran}; sleep 1; head -c 1000000 /dev/zero > out", "transfer_output_files = out")
    wait_for("it to run", ran.exists)
    parts.kill9("master")
    wait_for("its end", lambda: any((path / "out").exists() for path in left(parts)))
    assert parts.end("worker0", signal.SIGTERM) == 0
    assert not left(parts)


def test_who_asks_is_told_which_groups_are_in_force(parts: Parts) -> None:
    parts.start_all(slots=1)
    (worker,) = json.loads(parts.pilotq("worker", "list", "--json").stdout)
    assert worker["cgroups"]
    assert f"cgroups          {worker['cgroups']}" in parts.pilotq("worker", "show", worker["host"]).stdout
    assert worker["cgroups"] in parts.log("worker0")
    off = parts.start("worker1", WQ_NUM_WORKERS="1", PILOTQ_WORKER_CGROUPS="off")
    wait_for("the other", lambda: len(parts.status()["workers"]) == 2)
    assert {one["cgroups"] for one in parts.status()["workers"]} == {worker["cgroups"], "none"}
    off.terminate()


def test_a_fork_bomb_is_held_with_the_reason(parts: Parts) -> None:
    parts.start_master()
    parts.start("worker0", WQ_NUM_WORKERS="2", WQ_NUM_FOREMEN="0", PILOTQ_WORKER_TASK_PROCESSES="300")
    bomb = "f() { sleep 300 & sleep 300 & }\nwhile :; do f; done"
    cluster = submit(parts, bomb)
    wait_for("it to be held", lambda: parts.counts(cluster)["held"] == 1, 60)
    reason = parts.condor("condor_q", str(cluster), "-af", "HoldReason").stdout
    assert "processes and threads, its limit is 300" in reason
