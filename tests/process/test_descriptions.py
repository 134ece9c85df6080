"""What a submit description asks for happens in a pool."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import Parts, wait_for
from pools import SHIMS

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    found = Parts(tmp_path_factory.mktemp("descriptions"), 1, settings=["master.policy_interval_s=1"])
    found.environ["PATH"] = f"{SHIMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        found.start_all(slots=2, foremen=1)
        yield found
    finally:
        found.close()


def submit(pool: Parts, text: str, script: str) -> int:
    path = pool.cwd / "job.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return pool.submit(f"executable = job.sh\n{text}\nqueue\n")


def values(pool: Parts, tool: str, cluster: int, *names: str) -> list[str]:
    done = pool.condor(tool, str(cluster), "-af:,", *names)
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in done.stdout.strip().split(",")]


def test_retries_end(pool: Parts) -> None:
    cluster = submit(pool, "max_retries = 2", f"echo x >> {pool.cwd}/tries; exit 3")
    pool.wait_done(cluster)
    assert (pool.cwd / "tries").read_text() == "x\n" * 3
    assert values(pool, "condor_history", cluster, "ExitCode", "NumJobCompletions", "NumJobStarts") == ["3", "3", "3"]


def test_a_retry_that_ends_well_is_the_last(pool: Parts) -> None:
    cluster = submit(pool, "max_retries = 5\nsuccess_exit_code = 7", f"echo x >> {pool.cwd}/good; exit 7")
    pool.wait_done(cluster)
    assert (pool.cwd / "good").read_text() == "x\n"
    wall_s = float(values(pool, "condor_history", cluster, "RemoteWallClockTime")[0])
    assert wall_s < 2.0


def test_a_hold_at_exit_has_the_users_reason_and_subcode(pool: Parts) -> None:
    text = 'on_exit_hold = ExitCode != 0\non_exit_hold_reason = strcat("ended with ", string(ExitCode))\n'
    cluster = submit(pool, text + "on_exit_hold_subcode = ExitCode + 100", "exit 5")
    wait_for("the hold", lambda: pool.counts(cluster)["held"] == 1)
    found = values(pool, "condor_q", cluster, "HoldReason", "HoldReasonCode", "HoldReasonSubCode")
    assert found == ["ended with 5", "3", "105"]
    assert pool.condor("condor_rm", str(cluster)).returncode == 0


def test_a_periodic_hold_has_the_users_reason_and_subcode(pool: Parts) -> None:
    text = 'periodic_hold = JobStatus == 2\nperiodic_hold_reason = "it runs"\nperiodic_hold_subcode = 42'
    cluster = submit(pool, text, "sleep 60")
    wait_for("the hold", lambda: pool.counts(cluster)["held"] == 1)
    assert values(pool, "condor_q", cluster, "HoldReason", "HoldReasonSubCode") == ["it runs", "42"]
    assert pool.condor("condor_rm", str(cluster)).returncode == 0


def test_each_job_of_a_cluster_has_its_own_policy(pool: Parts) -> None:
    text = "arguments = $(x)\non_exit_hold = ExitCode == $(x)"
    (pool.cwd / "job.sh").write_text('#!/bin/sh\nexit "$1"\n')
    cluster = pool.submit(f"executable = job.sh\n{text.replace('== $(x)', '== 2 * $(x)')}\nqueue x in (0 3)\n")

    def counted() -> Any:
        found = pool.counts(cluster)
        return (found["held"], found["done"]) if found["held"] + found["done"] == 2 else None

    assert wait_for("both", counted) == (1, 1)
    assert values(pool, "condor_q", cluster, "ProcId") == ["0"]
    assert pool.condor("condor_rm", str(cluster)).returncode == 0


def test_the_slot_says_what_was_left_open_until_the_match(pool: Parts) -> None:
    text = 'arguments = $$(Cpus) $$([Cpus * 2 + ClusterId - ClusterId]) $$(Nothing:else)\nenvironment = "M=$$(Machine)"'
    cluster = submit(pool, text + "\noutput = matched", 'echo "$@"; test -n "$M" && test "$M" = "$(hostname)"')
    assert pool.wait_done(cluster)["failed"] == 0
    assert (pool.cwd / "matched").read_text() == "1 2 else\n"


def test_what_the_slot_does_not_say_holds_the_job(pool: Parts) -> None:
    cluster = submit(pool, "arguments = $$(Nothing)", "true")
    wait_for("the hold", lambda: pool.counts(cluster)["held"] == 1)
    assert values(pool, "condor_q", cluster, "HoldReason") == ["Cannot expand $$(Nothing): the machine does not say"]
    assert pool.condor("condor_rm", str(cluster)).returncode == 0


def test_requests_may_be_expressions(pool: Parts) -> None:
    text = "+Base = 100\nrequest_memory = ifThenElse(isUndefined(MemoryUsage), Base * 3, MemoryUsage * 2)"
    cluster = submit(
        pool, text + "\nrequest_cpus = 1 + 1\noutput = needs", "grep -E '^(Cpus|Memory) ' $_CONDOR_MACHINE_AD"
    )
    pool.wait_done(cluster)
    assert (pool.cwd / "needs").read_text() == "Cpus = 2\nMemory = 300\n"


# ---- universes of the head ---------------------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Parts]:
    """A master alone: no foreman, no worker."""
    found = Parts(tmp_path, 0, settings=["master.local_tasks=2"])
    found.environ["PATH"] = f"{SHIMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        found.start_master()
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("universe", ["local", "scheduler"])
def test_a_job_of_the_head_runs_where_it_was_submitted(head: Parts, universe: str) -> None:
    (head.cwd / "beside").write_text("it is here\n")
    text = f"universe = {universe}\narguments = $(Cluster)\noutput = out\nerror = err\nlog = log"
    cluster = submit(head, text, 'pwd > where; cat beside; echo "to stderr $1" >&2')
    assert head.wait_done(cluster)["failed"] == 0
    assert (head.cwd / "where").read_text() == f"{head.cwd}\n"
    assert (head.cwd / "out").read_text() == "it is here\n"
    assert (head.cwd / "err").read_text() == f"to stderr {cluster}\n"
    assert "Job terminated" in (head.cwd / "log").read_text()
    assert head.status()["slots"]["open"] == 0


def test_jobs_of_the_head_are_limited_and_survive_the_master(head: Parts) -> None:
    (head.cwd / "job.sh").write_text('#!/bin/sh\necho "$1" >> starts\nwhile [ ! -e go ]; do sleep 0.1; done\n')
    (head.cwd / "job.sh").chmod(0o755)
    cluster = head.submit("universe = local\nexecutable = job.sh\narguments = $(Process)\nqueue 3\n")
    wait_for("the first two", lambda: head.counts(cluster)["running"] == 2)
    head.kill9("master")
    head.start_master()
    wait_for("them again", lambda: head.counts(cluster)["running"] == 2)
    (head.cwd / "go").touch()
    assert head.wait_done(cluster)["failed"] == 0
    assert sorted((head.cwd / "starts").read_text().split()) == ["0", "1", "2"]


def test_the_worker_of_the_head_leaves_with_an_idle_master(head: Parts) -> None:
    cluster = submit(head, "universe = local", "true")
    head.wait_done(cluster)
    record = head.path / "run" / "head.json"
    assert record.exists()
    head.end("master")
    wait_for("its worker to leave", lambda: not record.exists())


def test_no_other_worker_gets_jobs_of_the_head(pool: Parts) -> None:
    cluster = submit(pool, "universe = local\noutput = slot", "echo $_CONDOR_SCRATCH_DIR $_CONDOR_JOB_AD")
    plain = submit(pool, "", "sleep 0.1")
    pool.wait_done(cluster)
    pool.wait_done(plain)
    workers = {worker["key"]: worker["name"] for worker in pool.status()["workers"]}
    assert workers.keys() == {"site", "head"}
    assert f"{pool.path}/head/" in (pool.cwd / "slot").read_text()
