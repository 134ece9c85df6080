"""condor_suspend, continue, vacate_job, hold, release, rm, prio and qedit against a real pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, wait_for


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    parts = Parts(tmp_path_factory.mktemp("actions"), foremen=1)
    try:
        parts.start_all(slots=2, foremen=1)
        yield parts
    finally:
        parts.close()


def run(pool: Parts, *words: str) -> tuple[str, str, int]:
    done = pool.condor(*words, cwd=pool.cwd)
    return done.stdout, done.stderr, done.returncode


def count_up(pool: Parts, name: str, more: str = "") -> tuple[str, Path]:
    """A task that writes a dot into a file all the time, by itself and by a child of its own session; its id."""
    file = pool.cwd / name
    script = pool.cwd / f"{name}.sh"
    script.write_text(f"#!/bin/sh\nsetsid sh -c 'while :; do echo . >> {file}; sleep 0.01; done' &\nwait\n")
    script.chmod(0o755)
    cluster = pool.submit(f"executable = {script}\nlog = {file}.log\n{more}\nqueue\n", file=f"{name}.sub")
    wait_for(f"{name} to run", lambda: file.exists() and status(pool, f"{cluster}.0") == "2")
    return f"{cluster}.0", file


def status(pool: Parts, job: str) -> str:
    return run(pool, "condor_q", job, "-af", "JobStatus")[0].strip()


def is_growing(file: Path) -> bool:
    before = file.stat().st_size
    time.sleep(0.2)
    return file.stat().st_size > before


def test_a_job_is_told_of_its_removal_by_a_signal_of_its_own(pool: Parts) -> None:
    told = pool.cwd / "told"
    script = pool.cwd / "traps.sh"
    script.write_text(
        f'#!/bin/sh\nfor name in TERM USR1; do trap "echo $name >> {told}; exit 0" $name; done\n'
        f"echo begins >> {told}\nwhile :; do sleep 0.05; done\n"
    )
    script.chmod(0o755)
    job = f"{pool.submit(f'executable = {script}{chr(10)}remove_kill_sig = SIGUSR1{chr(10)}queue{chr(10)}')}.0"

    def lines() -> list[str]:
        return told.read_text().split() if told.exists() else []

    wait_for("it to run", lambda: lines() == ["begins"])
    assert run(pool, "condor_hold", job)[2] == 0
    wait_for("it to be told", lambda: lines() == ["begins", "TERM"])
    assert run(pool, "condor_release", job)[2] == 0
    wait_for("it to run again", lambda: lines() == ["begins", "TERM", "begins"])
    assert run(pool, "condor_rm", job)[2] == 0
    wait_for("it to be told", lambda: lines() == ["begins", "TERM", "begins", "USR1"])


def test_suspend_continue_and_vacate(pool: Parts) -> None:
    job, file = count_up(pool, "dots")
    assert run(pool, "condor_suspend", job) == (f"Job {job} suspended\n", "", 0)
    assert run(pool, "condor_suspend", job) == ("", f"Job {job} already suspended\n", 1)
    wait_for("it to stand still", lambda: not is_growing(file))
    assert not is_growing(file)
    assert run(pool, "condor_q", job, "-af", "JobStatus", "TotalSuspensions")[0] == "7 1\n"
    assert " S " in run(pool, "condor_q", "-nobatch", job)[0]
    assert run(pool, "condor_continue", job) == (f"Job {job} continued\n", "", 0)
    wait_for("it to go on", lambda: is_growing(file))
    assert run(pool, "condor_continue", job) == ("", f"Job {job} already running\n", 1)
    assert run(pool, "condor_vacate_job", "-fast", job) == (f"Job {job} fast-vacated\n", "", 0)
    wait_for("its second start", lambda: run(pool, "condor_q", job, "-af", "NumJobStarts", "JobStatus")[0] == "2 2\n")
    assert run(pool, "condor_rm", job.partition(".")[0]) == (
        f"All jobs in cluster {job.partition('.')[0]} have been marked for removal\n",
        "",
        0,
    )
    wait_for("it to be gone", lambda: not is_growing(file))
    events = wait_for("its log", lambda: "009" in (text := Path(f"{file}.log").read_text()) and text)
    heads = [line[:3] for line in events.splitlines() if line[3:5] == " ("]
    assert heads == ["000", "001", "010", "011", "004", "001", "009"]


def test_a_suspended_task_stays_so_when_the_master_is_killed(pool: Parts) -> None:
    job, file = count_up(pool, "kept")
    run(pool, "condor_suspend", job)
    wait_for("it to stand still", lambda: not is_growing(file))
    run(pool, "condor_qedit", job, "Wanted", '"this"', "JobPrio", "3")
    pool.kill9("master")
    pool.start_master()
    wait_for("the worker", lambda: pool.status()["slots"]["open"] == 2)
    assert run(pool, "condor_q", job, "-af", "JobStatus", "Wanted", "JobPrio")[0] == "7 this 3\n"
    assert not is_growing(file)
    run(pool, "condor_continue", job)
    wait_for("it to go on", lambda: is_growing(file))
    run(pool, "condor_rm", job)
    assert wait_for("its history", lambda: run(pool, "condor_history", job, "-af", "Wanted", "JobStatus")[0]) == (
        "this 3\n"
    )


def test_hold_and_release_at_once_starts_it_again(pool: Parts) -> None:
    job, file = count_up(pool, "again")
    assert run(pool, "condor_hold", "-reason", "because", "-subcode", "7", job) == (f"Job {job} held\n", "", 0)
    assert run(pool, "condor_release", job) == (f"Job {job} released\n", "", 0)
    wait_for("its second start", lambda: run(pool, "condor_q", job, "-af", "NumJobStarts", "JobStatus")[0] == "2 2\n")
    assert is_growing(file)
    run(pool, "condor_rm", job)


def test_one_that_is_kept_is_shown_as_removed_until_it_is_forced_out(pool: Parts) -> None:
    job, _ = count_up(pool, "left", "leave_in_queue = true")
    assert run(pool, "condor_rm", "-forcex", job) == ("", f"Job {job} not in `X' state to be forcibly removed\n", 1)
    assert run(pool, "condor_rm", job) == (f"Job {job} marked for removal\n", "", 0)
    assert run(pool, "condor_rm", job) == ("", f"Job {job} already marked for removal\n", 1)
    assert status(pool, job) == "3"
    assert " X " in run(pool, "condor_q", "-nobatch", job)[0]
    assert run(pool, "condor_rm", "-forcex", job) == (f"Job {job} removed locally (remote state unknown)\n", "", 0)
    assert status(pool, job) == ""
    assert run(pool, "condor_history", job, "-af", "JobStatus")[0] == "3\n"


def test_edits_are_seen_by_queries_and_policies(pool: Parts) -> None:
    cluster = pool.submit("executable = /bin/true\nhold = true\nMY.Wanted = 1\nqueue 4\n")
    assert run(pool, "condor_qedit", f"{cluster}.1", f"{cluster}.2", "Wanted", "5", "More=Wanted+ProcId") == (
        'Set attribute "More" for 2 matching jobs.\nSet attribute "Wanted" for 2 matching jobs.\n',
        "",
        0,
    )
    assert run(pool, "condor_q", str(cluster), "-af", "Wanted", "More")[0] == ("1 undefined\n5 6\n5 7\n1 undefined\n")
    assert run(pool, "condor_q", "-const", "Wanted == 5", "-af:j", "Wanted")[0] == f"{cluster}.1 5\n{cluster}.2 5\n"
    assert run(pool, "condor_qedit", "-const", f"ClusterId == {cluster} && Wanted == 1", "Wanted", "6")[2] == 0
    assert run(pool, "condor_q", str(cluster), "-af", "Wanted")[0] == "6\n5\n5\n6\n"
    assert run(pool, "condor_qedit", f"{cluster}.9", "Wanted", "6") == (
        "",
        f'Failed to set attribute "Wanted" for job {cluster}.9.\nQueue transaction failed.  No attributes were set.\n',
        1,
    )
    assert run(pool, "condor_prio", "-p", "4", str(cluster)) == ("", "", 0)
    assert run(pool, "condor_prio", "+2", f"{cluster}.3") == ("", "", 0)
    assert run(pool, "condor_q", str(cluster), "-af", "JobPrio")[0] == "4\n4\n4\n6\n"
    assert "Wanted = 5\n" in run(pool, "condor_q", f"{cluster}.1", "-long")[0]
    # One that leaves keeps what was changed before; what is changed later is not its own.
    run(pool, "condor_rm", f"{cluster}.0")
    run(pool, "condor_qedit", str(cluster), "Wanted", "7")
    assert run(pool, "condor_history", f"{cluster}.0", "-af", "Wanted")[0] == "6\n"
    assert run(pool, "condor_q", str(cluster), "-af", "Wanted")[0] == "7\n7\n7\n"
    run(pool, "condor_rm", str(cluster))
