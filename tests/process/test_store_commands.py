"""`pilotq store check | backup | restore`, beside a running master and without one."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import Parts, wait_for
from troubles import TRUE, events, new_pool, queue, wait_until_it_runs

pytestmark = pytest.mark.timeout(180)
FILES = "transfer_input_files = small.$(Process), large\noutput = out.$(Process)\nlog = all.log\n"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Parts]:
    found = new_pool(tmp_path)
    (found.cwd / "large").write_bytes(bytes(range(256)) * 400)
    for proc in range(5):
        (found.cwd / f"small.{proc}").write_text(f"the file of {proc}\n")
    found.start_master()
    yield found
    found.close()


def start_nodes(pool: Parts) -> None:
    pool.start("foreman0")
    pool.start("worker0", WQ_NUM_WORKERS="2")


def store(pool: Parts, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = pool.pilotq("store", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def checked(pool: Parts, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store(pool, "check", "--json", code=code).stdout)
    assert found["ok"] == (code == 0)
    return found


def submit_files(pool: Parts) -> int:
    return pool.submit(
        f"executable = /bin/cat\ntransfer_executable = false\narguments = small.$(Process)\n{FILES}queue 5\n"
    )


def test_a_sound_store_is_one_line_whether_a_master_runs_or_not(pool: Parts) -> None:
    cluster = submit_files(pool)
    said = store(pool, "check").stdout
    assert re.fullmatch(r"\S+ is sound: 5 tasks in 1 cluster in the queue, 0 ended tasks, 6 kept files .*\n", said)
    assert checked(pool)["master"] == pool.processes["master"].pid
    start_nodes(pool)
    pool.wait_done(cluster)
    wait_for("the logs", lambda: checked(pool)["notes"] == 0)
    pool.kill9("master")
    found = checked(pool)
    assert (found["master"], found["ended"], found["tasks"], found["files"]) == (None, 5, 0, 6)
    assert pool.status_or_none() is None


def test_without_a_queue_check_says_where_it_looked(pool: Parts) -> None:
    done = pool.pilotq("store", "check", PILOTQ_STATE_DIR=str(pool.path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"pilotq: there is no queue at \S+nowhere/queue.db: [^\n]+\n", done.stderr)


def test_files_that_are_missing_or_wrong_are_told_with_their_cluster(pool: Parts) -> None:
    cluster = submit_files(pool)
    (large,) = [path for path in pool.path.glob("blobs/??/*") if path.stat().st_size > 100_000]
    content = large.read_bytes()
    large.chmod(0o600)
    large.write_bytes(b"X" + content[1:])
    assert store(pool, "check", code=1).stdout == (
        f"cluster {cluster}: kept file {large.name[:16]}: its content is not what was kept\n"
    )
    large.unlink()
    (found,) = checked(pool, 1)["findings"]
    assert found == {"what": f"kept file {large.name[:16]}: it is missing", "cluster": cluster, "procs": ""}
    large.write_bytes(content)
    db = sqlite3.connect(pool.path / "blobs/small.db")
    ((data,),) = db.execute("select data from pack").fetchall()
    assert data.count(b"the file of 3\n") == 1
    db.execute("update pack set data = ?", (data.replace(b"the file of 3\n", b"the file of X\n"),))
    db.commit()
    db.close()
    done = store(pool, "check", code=1)
    assert re.fullmatch(rf"cluster {cluster}: kept file \w+: its content is not what was kept\n", done.stdout)
    assert re.fullmatch(r"pilotq: \S+ is damaged: 1 finding; [^\n]+\n", done.stderr)
    # The others run; the one whose file is damaged is held and says so.
    start_nodes(pool)
    wait_for("the rest", lambda: pool.counts(cluster)["done"] == 4 and pool.counts(cluster)["held"] == 1)
    (line,) = queue(pool, "ProcId", "JobStatus", "HoldReason")
    assert line.startswith("3 5 ") and "input file" in line


def test_a_backup_of_a_running_master_is_whole_and_brings_everything_back(pool: Parts, tmp_path: Path) -> None:
    start_nodes(pool)
    first = submit_files(pool)
    pool.wait_done(first)
    gate = tmp_path / "gate"
    running = pool.submit(
        f"executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'until test -e {gate}; do sleep 0.05; done; cat large | wc -c'\"\n{FILES}queue\n"
    )
    wait_until_it_runs(pool, running)
    waiting = pool.submit(f"{TRUE}{FILES}request_cpus = 100\nqueue 3\n")
    target = tmp_path / "backup"
    said = store(pool, "backup", str(target)).stdout
    assert re.fullmatch(r"backup of 4 tasks in 2 clusters in the queue in \S+\n", said)
    assert {path.stat().st_mode & 0o077 for path in target.rglob("*")} == {0}
    again = store(pool, "backup", str(target), code=2).stderr
    assert re.fullmatch(r"pilotq: \S+ is not empty: [^\n]+\n", again)
    # Of the time after the backup nothing is known.
    later = pool.submit(f"{TRUE}queue\n")
    refused = store(pool, "restore", str(target), code=2).stderr
    assert re.fullmatch(r"pilotq: another master \(process \d+\) works in \S+: stop it first[^\n]*\n", refused)
    assert pool.end("master") == 0
    refused = store(pool, "restore", str(target), code=2).stderr
    assert re.fullmatch(r"pilotq: there is a queue in \S+ already, and it is not overwritten: move [^\n]+\n", refused)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("queue.db", "queue.db-wal", "queue.db-shm", "scribe.db", "scribe.db-wal", "scribe.db-shm", "blobs"):
        if (pool.path / name).exists():
            (pool.path / name).rename(old / name)
    said = store(pool, "restore", str(target)).stdout
    assert re.fullmatch(r"restored 4 tasks in 2 clusters in the queue to \S+; start the master\n", said)
    assert checked(pool)["tasks"] == 4
    pool.start_master()
    assert queue(pool, "ClusterId", "ProcId") == [f"{running} 0", *(f"{waiting} {proc}" for proc in range(3))]
    # What ran is taken back, and its file is there; no number is given twice.
    wait_for("the worker to be back", lambda: pool.status()["slots"]["busy"] == 1)
    gate.touch()
    pool.wait_done(running)
    assert (pool.cwd / "out.0").read_text() == "102400\n"
    assert pool.submit(f"{TRUE}queue\n") > later + 1000
    assert sorted(pool.history(first)) == list(range(5))
    assert events(pool.cwd / "all.log").count("005") == 6
    assert checked(pool)["ended"] >= 6


def test_what_is_no_backup_is_not_restored(pool: Parts, tmp_path: Path) -> None:
    assert pool.end("master") == 0
    (tmp_path / "empty").mkdir()
    said = store(pool, "restore", str(tmp_path / "empty"), code=2).stderr
    assert re.fullmatch(r"pilotq: \S+ holds no complete backup: [^\n]+\n", said)
    assert "needs a directory" in store(pool, "restore", code=2).stderr


def test_a_backup_beside_a_busy_master_is_of_one_moment(pool: Parts, tmp_path: Path) -> None:
    """Each backup, taken while tasks come and go, is sound by itself and holds all that was there before it."""
    start_nodes(pool)
    clusters = []
    for number in range(4):
        clusters.append(submit_files(pool))
        target = tmp_path / f"backup{number}"
        store(pool, "backup", str(target))
        found = json.loads(pool.pilotq("--set", f"state_dir={target}", "store", "check", "--json").stdout)
        assert found["ok"] and found["tasks"] + found["ended"] == 5 * len(clusters)
    for cluster in clusters:
        pool.wait_done(cluster)


def test_damage_is_held_with_a_reason_and_the_rest_runs(pool: Parts) -> None:
    """A row, a description, the log: after the start people see what is held, and the tables are whole again."""
    waiting = pool.submit(f"{TRUE}request_cpus = 100\nqueue 3\n")
    sound = pool.submit(f"{TRUE}queue 3\n")
    broken = pool.submit(f"{TRUE}request_cpus = 100\nqueue 2\n")
    assert pool.condor("condor_hold", f"{waiting}.1").returncode == 0
    assert pool.end("master") == 0
    db = sqlite3.connect(pool.path / "queue.db")
    for statement in (
        f"update task set body = x'00' || body where cluster = {waiting}",
        f"update cluster set description = x'80' where cluster = {broken}",
    ):
        assert db.execute(statement).rowcount == 1
    db.commit()
    db.close()
    told = {(one["cluster"], one["what"].split(" in ")[0]) for one in checked(pool, 1)["findings"]}
    assert {cluster for cluster, _ in told} == {waiting, broken}
    pool.start_master()
    start_nodes(pool)
    pool.wait_done(sound)

    def held() -> list[str]:
        return queue(pool, "ClusterId", "ProcId", "JobStatus", "HoldReason")

    wait_for("the reasons", lambda: sum(" 5 " in line for line in held()) == 3)
    assert held() == [
        f"{waiting} 0 1 undefined",
        f"{waiting} 1 5 the row of task {waiting}.1 is damaged in the store",
        f"{waiting} 2 1 undefined",
        *(f"{broken} {proc} 5 the description of cluster {broken} is damaged in the store" for proc in range(2)),
    ]
    # What is held is written anew; the description is not to be had again.
    assert {one["cluster"] for one in checked(pool, 1)["findings"]} == {broken}
    assert pool.condor("condor_rm", str(broken)).returncode == 0
    assert pool.condor("condor_release", f"{waiting}.1").returncode == 0
    wait_for("it to wait again", lambda: f"{waiting} 1 1" in queue(pool, "ClusterId", "ProcId", "JobStatus"))
