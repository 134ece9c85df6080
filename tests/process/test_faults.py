"""kill -9 of anything, restarts, failover, drains: nothing lost, nothing reported twice."""

from __future__ import annotations

import os
import pwd
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from parts import Parts, marked, wait_for

from pilotq.core.records import ClusterAdded, ClusterLeft, TasksLeft
from pilotq.model import ClusterBody, Description, Facts, State
from pilotq.store import ENDED_KEYS_MAX
from pilotq.store.sqlite import SqliteStore

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path)
    yield found
    found.close()


def endings(log: Path) -> Counter[int]:
    """How often each proc has a 005 or 009 event."""
    return Counter(int(proc) for proc in re.findall(r"^00[59] \(\d+\.(\d+)\.", log.read_text(), re.M))


def test_kill_anything_during_500_tasks(parts: Parts) -> None:
    parts.start_all(slots=4)
    cluster = parts.submit(
        "executable = /bin/sh\narguments = \"-c 'sleep 0.0$(Process)'\"\ntransfer_executable = false\n"
        "log = all.log\noutput = out.$(Process)\nqueue 500\n"
    )
    choose = random.Random(7)
    for name in ["worker0", "foreman0", "master", "foreman1", "master", "worker0"]:
        time.sleep(choose.uniform(0.3, 1.2))
        parts.kill9(name)
        time.sleep(choose.uniform(0.0, 0.5))
        parts.start(name, WQ_NUM_WORKERS="4")
    parts.wait_done(cluster, 120)
    assert sorted(parts.history(cluster)) == list(range(500))
    assert endings(parts.cwd / "all.log") == Counter(range(500))
    assert len(list(parts.cwd.glob("out.*"))) == 500
    assert parts.end("worker0") == 0
    assert not list((parts.path / "work").glob("*/tasks/*")), "no sandbox is left"


def test_master_away_for_20_s_restarts_nothing(parts: Parts) -> None:
    """All slots are busy; every attempt is taken back, none is started again."""
    slots = 16
    parts.start_all(slots=slots)
    cluster = parts.submit(
        "executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'echo start >> {parts.cwd}/starts.$(Process); sleep 28'\"\nlog = l\nqueue {slots + 1}\n"
    )
    wait_for("all to run", lambda: parts.counts(cluster)["running"] == slots)
    parts.kill9("master")
    time.sleep(20)
    parts.start("master")
    wait_for("the worker to be back", lambda: parts.status_or_none() and parts.status()["slots"]["busy"] == slots, 15)
    assert parts.counts(cluster)["running"] == slots and parts.counts(cluster)["idle"] == 1
    parts.wait_done(cluster, 90)
    assert sorted(parts.history(cluster)) == list(range(slots + 1))
    for proc in range(slots + 1):
        assert (parts.cwd / f"starts.{proc}").read_text() == "start\n"
    assert endings(parts.cwd / "l") == Counter(range(slots + 1))


def test_results_wait_while_the_master_is_away(parts: Parts) -> None:
    parts.start_all(slots=2)
    cluster = parts.submit("executable = /bin/sleep\narguments = 2\ntransfer_executable = false\nqueue 2\n")
    wait_for("both to run", lambda: parts.counts(cluster)["running"] == 2)
    parts.kill9("master")
    time.sleep(3)
    parts.start("master")
    parts.wait_done(cluster)
    done = parts.condor("condor_history", str(cluster), "-af", "NumJobStarts", "ExitCode")
    assert done.stdout.splitlines() == ["1 0", "1 0"]


def test_workers_move_when_their_foreman_dies_and_keep_their_tasks(parts: Parts) -> None:
    parts.start_all(slots=2)
    cluster = parts.submit(
        "executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'echo start >> {parts.cwd}/starts; sleep 8'\"\nqueue\n"
    )
    wait_for("it to run", lambda: parts.counts(cluster)["running"] == 1)
    port = parts.status()["workers"][0]["foreman"].rsplit(":", 1)[1]
    used = f"foreman{int(port) - parts.master_port - 1}"
    parts.kill9(used)

    def moved() -> bool:
        worker = parts.status()["workers"][0]
        return (
            worker["state"] == "ready" and worker["foreman"] not in ("", f"x:{port}") and port not in worker["foreman"]
        )

    wait_for("the worker to move", moved)
    parts.start(used)
    wait_for("the foreman to be back", lambda: len(parts.status()["foremen"]) == 2)
    parts.wait_done(cluster)
    assert (parts.cwd / "starts").read_text() == "start\n"


def test_a_worker_can_connect_to_the_master_itself(parts: Parts) -> None:
    parts.start_master()
    parts.start("worker0", WQ_NUM_FOREMEN="1", WQ_FOREMEN="127.0.0.1", WQ_MASTER_BASEPORT=str(parts.master_port))
    wait_for("the worker", lambda: parts.status_or_none() and parts.status()["workers"])
    assert parts.status()["workers"][0]["foreman"] == ""
    cluster = parts.submit("executable = /bin/echo\narguments = hello\noutput = o\nqueue\n")
    parts.wait_done(cluster)
    assert (parts.cwd / "o").read_text() == "hello\n"


def test_started_before_the_master_they_wait_and_say_so(parts: Parts) -> None:
    parts.start_master()
    assert parts.end("master") == 0
    parts.start("foreman0")
    parts.start("worker0", WQ_NUM_FOREMEN="1")
    wait_for("a word", lambda: "waiting for the master" in parts.log("worker0"))
    parts.start("master")
    wait_for("the worker", lambda: parts.status_or_none() and parts.status()["slots"]["open"])


def test_missing_token_and_occupied_port_are_one_line(parts: Parts) -> None:
    assert parts.start("worker0").wait(20) == 2
    assert re.fullmatch(r"pilotq: no worker token: [^\n]*worker.token[^\n]*\n", parts.log("worker0"))
    parts.start_master()
    (parts.path.parent / "other").mkdir()
    other = Parts(parts.path.parent / "other")
    other.environ["WQ_MASTER"] = parts.environ["WQ_MASTER"]
    assert other.start("master").wait(20) == 2
    assert re.fullmatch(r"pilotq: cannot listen on [^\n]*\n", other.log("master"))


def test_a_second_master_on_the_same_home_is_refused(parts: Parts) -> None:
    parts.start_master()
    second = parts.start("master1")
    assert second.wait(20) != 0
    assert parts.log("master1").count("\n") == 1


def test_drain_file_of_a_worker(parts: Parts) -> None:
    parts.start_all(slots=2)
    cluster = parts.submit("executable = /bin/sleep\narguments = 4\ntransfer_executable = false\nqueue 4\n")
    wait_for("two to run", lambda: parts.counts(cluster)["running"] == 2)
    Path(parts.environ["WQ_DRAIN"]).touch()
    wait_for("the node to be shown draining", lambda: parts.status()["workers"][0]["state"] == "draining", 3)
    worker = parts.processes.pop("worker0")
    assert worker.wait(30) == 0
    assert "drained" in parts.log("worker0")
    found = parts.counts(cluster)
    assert (found["done"], found["idle"]) == (2, 2), "what ran was finished and reported, nothing new was taken"


def test_a_draining_foreman_sends_its_workers_away(parts: Parts) -> None:
    parts.start_all(slots=1)
    cluster = parts.submit("executable = /bin/sleep\narguments = 6\ntransfer_executable = false\nqueue\n")
    wait_for("it to run", lambda: parts.counts(cluster)["running"] == 1)
    port = int(parts.status()["workers"][0]["foreman"].rsplit(":", 1)[1])
    used = f"foreman{port - parts.master_port - 1}"
    assert parts.end(used) == 0
    drain = parts.path.parent / "drain-foreman"
    parts.start(used, WQ_DRAIN=str(drain))
    wait_for("the foreman", lambda: len(parts.status()["foremen"]) == 2)
    other = f"foreman{1 - (port - parts.master_port - 1)}"
    parts.end(other)
    wait_for("the worker to be back", lambda: str(port) in parts.status()["workers"][0]["foreman"])
    parts.start(other)
    wait_for("the other foreman", lambda: len(parts.status()["foremen"]) == 2)
    drain.touch()
    assert parts.processes.pop(used).wait(20) == 0
    assert "drained" in parts.log(used)
    parts.wait_done(cluster)


def test_drain_of_the_master(parts: Parts) -> None:
    parts.start_all(slots=1)
    cluster = parts.submit("executable = /bin/sleep\narguments = 2\ntransfer_executable = false\nlog = l\nqueue 2\n")
    assert parts.pilotq("drain").returncode == 0
    refused = parts.condor("condor_submit", "task.sub", cwd=parts.cwd)
    assert refused.returncode == 1
    assert "draining" in refused.stderr
    assert refused.stdout == ""
    assert parts.processes.pop("master").wait(40) == 0
    assert endings(parts.cwd / "l") == Counter([0, 1])
    assert "drained" in parts.log("master")
    assert cluster == 1


def test_single_task_and_idle_timeout(parts: Parts) -> None:
    parts.start_master()
    parts.start("foreman0")
    cluster = parts.submit("executable = /bin/true\nqueue 3\n")
    single = parts.start("worker0", WQ_SINGLETASK="1", WQ_NUM_WORKERS="2", WQ_NUM_FOREMEN="1")
    assert single.wait(30) == 0
    assert parts.counts(cluster)["done"] == 2
    idle = parts.start("worker1", WQ_IDLETIMEOUT="2", WQ_NUM_WORKERS="1", WQ_NUM_FOREMEN="1")
    assert idle.wait(30) == 0
    assert parts.counts(cluster)["done"] == 3


def test_a_killed_worker_leaves_nothing_when_it_is_started_again(parts: Parts) -> None:
    parts.start_all(slots=1)
    cluster = parts.submit(
        "executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'echo start >> {parts.cwd}/starts; (setsid sleep 300 &) ; sleep 3'\"\nlog = l\nqueue\n"
    )
    wait_for("it to run", (parts.cwd / "starts").exists)
    parts.kill9("worker0")
    parts.start("worker0", WQ_NUM_WORKERS="1")
    parts.wait_done(cluster)
    assert (parts.cwd / "starts").read_text() == "start\n" * 2
    assert endings(parts.cwd / "l") == Counter([0])
    for name in ("worker0", "foreman0", "foreman1", "master"):
        assert parts.end(name, signal.SIGTERM) == 0
    wait_for("all processes to be gone", lambda: not marked(parts.path), 10)
    assert not list((parts.path / "work").glob("*/tasks/*"))


def test_a_key_that_is_not_remembered_any_more_is_its_cluster(parts: Parts) -> None:
    """It was submitted long ago, and so much ended since that a restart does not bring it back."""
    owner, body = pwd.getpwuid(os.getuid()).pw_name, msgspec.msgpack.encode(ClusterBody(owner="x", iwd="/"))
    store = SqliteStore(1 << 20)
    store.open(parts.path / "queue.db")
    numbers = range(1, ENDED_KEYS_MAX + 3)
    description = msgspec.msgpack.encode(Description(["true"]))
    store.commit([ClusterAdded(n, owner, f"key{n}/0", 1, 0, 1.0, body, description, [], []) for n in numbers])
    store.commit([TasksLeft(n, [0], [State.DONE], [1], [Facts(outcome=0)], 2.0) for n in numbers])
    store.commit([ClusterLeft(n) for n in numbers])
    store.close()
    parts.start_master()
    assert b"submitted to cluster 1." in parts.submit_with_key("key1")
    assert b"submitted to cluster %d." % numbers[-1] in parts.submit_with_key(f"key{numbers[-1]}")
    assert b"submitted to cluster %d." % (numbers[-1] + 1) in parts.submit_with_key("another")
    assert parts.status_or_none()


def test_a_drain_by_name_survives_a_restart_of_the_master(parts: Parts) -> None:
    parts.start_all(slots=1)
    worker = parts.processes["worker0"]
    name = parts.status()["workers"][0]["name"]
    worker.send_signal(signal.SIGSTOP)
    done = parts.pilotq("worker", "drain", name)
    assert done.returncode == 0, done.stderr
    parts.kill9("master")
    parts.start_master()
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(40) == 0
    assert "draining reason" in parts.log("worker0")
