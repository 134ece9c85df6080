"""`alien_wq_worker.sh`: loops, counts, drain and stop, with real foremen and workers that wait for a master."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pools import ROOT, Home

from pilotq.cli.processes import Process, read_json, to_process
from pilotq.keys import make_keys

NODE = os.uname().nodename


class Node(Home):
    """A host of a site, told by WQ_* variables."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        base = random.randrange(20000, 32000)
        self.environ |= {
            "WQ_MASTER": f"127.0.0.1:{base}",
            "WQ_MASTER_BASEPORT": str(base + 1),
            "WQ_NUM_FOREMEN": "3",
            "WQ_NUM_WORKERS": "5",
        }

    def __call__(self, word: str, **environ: str) -> str:
        done = self.pilotq("site", word, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip() or done.stderr.strip()

    def loops(self, role: str) -> list[tuple[Process, Process | None]]:
        found = []
        for path in sorted(self.path.glob(f"work/*/run/{role}-*.json")):
            record = read_json(str(path))
            child = to_process(record["child"]) if record.get("child") else None
            found.append((to_process(record), child))
        return found

    def child(self, role: str) -> Process:
        child = self.loops(role)[0][1]
        assert child is not None
        return child


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    make_keys(path)
    found = Node(path)
    yield found
    found("stop-workers")
    found("stop-foremen")
    found.kill()


def until(is_true: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.05)


def test_counts_of_three_foremen_and_five_workers(node: Node) -> None:
    assert (node("count-foremen"), node("count-workers")) == ("0", "0")
    began = time.monotonic()
    assert "foreman-0" in node("start-foremen")
    assert "worker-0" in node("start-workers")
    until(lambda: node("count-foremen") == "3" and node("count-workers") == "5")
    assert time.monotonic() - began < 15
    assert "all are there" in node("start-foremen")
    assert "all are there" in node("start-workers")
    assert len(node.loops("foreman")) == 3
    assert len(node.loops("worker")) == 1

    everybody = [one for role in ("foreman", "worker") for pair in node.loops(role) for one in pair if one]
    assert "stopped worker-0" in node("stop-workers")
    assert (node("count-foremen"), node("count-workers")) == ("3", "0")
    assert "foreman-2" in node("stop-foremen")
    assert node("count-foremen") == "0"
    assert not any(process.is_alive() for process in everybody)
    assert not node.loops("foreman")
    assert not Path(node.environ["WQ_DRAIN"]).exists(), "others may look at it, too"
    assert "nothing to stop" in node("stop-foremen")


@pytest.fixture
def master(node: Node) -> Iterator[subprocess.Popen[str]]:
    """What `alien_work_queue --job-wrapper etc/alien_job_wrapper.sh` runs."""
    wrapper = str(ROOT / "etc" / "alien_job_wrapper.sh")
    words = ["site", "master", "--job-wrapper", wrapper, "--work-dir", str(node.path)]
    log = (node.path / "master.log").open("w")
    process = subprocess.Popen(node.command(*words), env=node.environ, stderr=log, text=True)
    yield process
    process.terminate()
    assert process.wait(20) == 0


def submit(node: Node) -> None:
    """The job of alien-workqueue's own test, which does not wait for anything to be ready."""
    node.call(["sh", "-c", "printf '#!/bin/sh\nenv >env.out; echo pid $$; sleep 0.1\n' >job; chmod +x job"])
    text = """
        cmd = job
        output = job.out
        transfer_output_files = env.out
        environment = FILTERED_OUT=1;ALIEN_X=two words;CONDOR_ID=$(Cluster).$(Process)
        queue
    """
    done = node.condor("condor_submit", stdin=text, AWQ_WORKDIR=str(node.path), PILOTQ_HOME="")
    assert done.returncode == 0, done.stderr


def test_the_acceptance_test_of_alien_workqueue(node: Node, master: subprocess.Popen[str]) -> None:
    node("start-foremen")
    node("start-workers")
    submit(node)
    until(lambda: node("count-foremen") == "3" and node("count-workers") == "5")
    output = node.path.parent / "env.out"
    until(lambda: (node.path.parent / "job.out").exists() and output.exists())
    seen = output.read_text().splitlines()
    assert "ALIEN_X=two words" in seen
    assert not [line for line in seen if line.startswith(("FILTERED_OUT", "CONDOR_ID="))]


def test_workers_of_the_master_itself(node: Node, master: subprocess.Popen[str]) -> None:
    direct = {"WQ_NUM_FOREMEN": "1", "WQ_FOREMEN": "localhost", "WQ_MASTER_BASEPORT": node.environ["WQ_MASTER"][10:]}
    node("start-workers", **direct)
    submit(node)
    until((node.path.parent / "job.out").exists)
    assert node("count-foremen") == "0"


def test_one_more_worker_for_the_slots_that_are_missing(node: Node) -> None:
    node("start-workers", WQ_NUM_WORKERS="2")
    until(lambda: node("count-workers") == "2")
    node("start-workers", WQ_NUM_WORKERS="5")
    until(lambda: node("count-workers") == "5")
    assert len(node.loops("worker")) == 2


def test_a_drain_ends_the_loops_and_start_takes_the_file_away(node: Node) -> None:
    node("start-workers")
    until(lambda: node("count-workers") == "5")
    loop, child = node.loops("worker")[0]
    began = time.monotonic()
    node("drain")
    until(lambda: not loop.is_alive())
    assert time.monotonic() - began < 5
    assert child is not None
    assert not child.is_alive()
    log = (node.path / "logs" / "worker-0.log").read_text()
    assert "drained" in log
    assert node("count-workers") == "0"
    node("start-workers")
    assert not Path(node.environ["WQ_DRAIN"]).exists()
    until(lambda: node("count-workers") == "5")


def test_the_drain_flag_of_alien_workqueue_was_a_directory(node: Node) -> None:
    Path(node.environ["WQ_DRAIN"]).mkdir()
    node("start-foremen", WQ_NUM_FOREMEN="1")
    assert not Path(node.environ["WQ_DRAIN"]).exists()
    until(lambda: node("count-foremen") == "1")


def test_what_ended_early_is_started_again_after_a_pause(node: Node) -> None:
    node("start-workers")
    until(lambda: node("count-workers") == "5")
    os.kill(node.child("worker").pid, signal.SIGKILL)
    log = node.path / "logs" / "worker-0.log"
    until(lambda: "next start in 30 s" in log.read_text())
    assert "all are there" in node("start-workers"), "a loop in its pause counts"
    began = time.monotonic()
    node("stop-workers")
    assert time.monotonic() - began < 10, "a pause does not hold up a stop"


def test_without_respawn_the_loop_ends_with_its_worker(node: Node) -> None:
    node("start-workers", WQ_NORESPAWN="1")
    until(lambda: node("count-workers") == "5")
    loop = node.loops("worker")[0][0]
    os.kill(node.child("worker").pid, signal.SIGTERM)
    until(lambda: not loop.is_alive())


def test_without_a_token_it_waits_and_says_so(node: Node) -> None:
    token = node.path / "worker.token"
    kept = token.rename(node.path / "kept")
    said = node("start-workers")
    assert f"waiting for {token}" in said
    assert node("count-workers") == "0"
    assert "all are there" in node("start-workers")
    kept.rename(token)
    until(lambda: node("count-workers") == "5")
    assert f"waits for {token}" in (node.path / "logs" / "worker-0.log").read_text()


def test_a_work_directory_that_cannot_be_made(node: Node) -> None:
    done = node.pilotq("site", "start-workers", WQ_WORKDIR="/proc/none")
    assert done.returncode == 2
    assert "set WQ_WORKDIR to another" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_record_of_another_process_is_not_believed(node: Node) -> None:
    node("start-foremen", WQ_NUM_FOREMEN="1")
    until(lambda: node("count-foremen") == "1")
    path = node.path / "work" / NODE / "run" / "foreman-7.json"
    # This test, but with another start time: its number was given to somebody else.
    path.write_text(json.dumps({"role": "foreman", "name": "foreman-7", "pid": os.getpid(), "started": 1}))
    assert node("count-foremen") == "1"
    node("stop-foremen")
    assert not path.exists()
