"""DAGs on a real pool: condor_submit_dag, the runner, and kills of everything in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from parts import Parts, wait_for

from pilotq.proc import start_ticks

SUB = "executable = {program}\narguments = $(JOB) $(RETRY) $(x:none)\nqueue {count}\n"
#: Says that it runs, and what it was told.
WORK = '#!/bin/sh\necho "$@" >>{ran}\nexit $(cat {site}/exit.$1.$2 2>/dev/null || echo 0)\n'


@pytest.fixture(scope="module")
def module_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    parts = Parts(tmp_path_factory.mktemp("dag"), foremen=1)
    try:
        parts.start_all(slots=4, foremen=1)
        yield parts
    finally:
        parts.close()


class Site:
    """A directory with a DAG in it."""

    def __init__(self, pool: Parts, path: Path) -> None:
        self.pool, self.path, self.ran = pool, path, path / "ran"
        self.write("work", WORK.format(ran=self.ran, site=path), 0o755)
        self.write("node.sub", SUB.format(program=path / "work", count=""))

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        (self.path / name).write_text(text)
        (self.path / name).chmod(mode)

    def run(self, text: str, *words: str, timeout_s: float = 60) -> int:
        self.write("x.dag", text)
        done = self.pool.pilotq("dag", *words, "-Dag", "x.dag", cwd=self.path, timeout_s=timeout_s)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    def lines(self) -> list[str]:
        return self.ran.read_text().splitlines() if self.ran.exists() else []

    def has_run(self, count: int) -> bool:
        return len(self.lines()) >= count

    def out(self) -> str:
        path = self.path / "x.dag.dagman.out"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def site(module_pool: Parts, tmp_path: Path) -> Site:
    return Site(module_pool, tmp_path)


def test_a_diamond(site: Site) -> None:
    text = """
JOB A node.sub
JOB B node.sub
JOB C node.sub
JOB D node.sub
PARENT A CHILD B C
PARENT B C CHILD D
VARS B x="two words"
VARS C PREPEND x="c"
"""
    assert site.run(text) == 0
    lines = site.lines()
    assert (lines[0], lines[3], sorted(lines[1:3])) == ("A 0 none", "D 0 none", ["B 0 two words", "C 0 c"])
    out = site.out()
    assert "All jobs Completed!" in out and "EXITING WITH STATUS 0" in out
    metrics = json.loads((site.path / "x.dag.metrics").read_text())
    assert (metrics["exitcode"], metrics["jobs_succeeded"], metrics["total_jobs"]) == (0, 4, 4)
    log = (site.path / "x.dag.nodes.log").read_text()
    assert [log.count(f"\n{event} (") + log.startswith(f"{event} (") for event in ("000", "001", "005")] == [4, 4, 4]
    left = {path.name for path in site.path.iterdir()}
    assert not left & {"x.dag.lock", "x.dag.journal", "x.dag.rescue001"}


def test_failures_retries_scripts_and_rescue(site: Site) -> None:
    for name in ("exit.A.0", "exit.B.0", "exit.B.1"):
        site.write(name, "3")
    site.write("post", f'#!/bin/sh\necho POST "$@" >>{site.ran}\n', 0o755)
    text = """
JOB A node.sub
JOB B node.sub
JOB C node.sub
JOB N node.sub NOOP
FINAL F node.sub
PARENT A N CHILD B
PARENT B CHILD C
RETRY A 2
RETRY B 1
SCRIPT POST N post $NODE $RETURN $RETRY
SCRIPT POST F post $NODE $RETURN $DAG_STATUS $FAILED_COUNT
ABORT-DAG-ON C 9
"""
    site.run(text)
    assert sorted(site.lines()) == sorted(
        ["POST N 0 0", "A 0 none", "A 1 none", "B 0 none", "B 1 none", "F 0 none", "POST F 0 2 1"]
    )
    rescue = (site.path / "x.dag.rescue001").read_text()
    assert [line for line in rescue.splitlines() if line.startswith("DONE")] == ["DONE A", "DONE N"]
    site.ran.unlink()
    site.write("exit.B.0", "0")
    assert site.run(text) == 0
    assert site.lines() == ["B 0 none", "C 0 none", "F 0 none", "POST F 0 0 0"]


def test_splices_inner_dags_and_many_procs(site: Site) -> None:
    site.write("many.sub", SUB.format(program=site.path / "work", count="3"))
    site.write("s.dag", "JOB X node.sub\nJOB Y node.sub\nPARENT X CHILD Y\n")
    site.write("inner.dag", "JOB I node.sub\n")
    text = "JOB A many.sub\nSPLICE S s.dag\nSUBDAG EXTERNAL E inner.dag\nPARENT A CHILD S\nPARENT S CHILD E\n"
    assert site.run(text) == 0
    assert site.lines() == ["A 0 none"] * 3 + ["S+X 0 none", "S+Y 0 none", "I 0 none"]


def test_what_condor_submit_refuses_fails_the_node(site: Site) -> None:
    site.write("bad.sub", "executable = /no/such/program\nqueue\n")
    assert site.run("JOB A bad.sub\nJOB B {\nexecutable = work\narguments = inline\n}\n") == 1
    assert "submit attempt for node A failed: ERROR: Can't access" in site.out()
    assert site.lines() == ["inline"]


def test_a_removed_job_fails_its_node(site: Site) -> None:
    site.write("sleep.sub", f"log = own.log\n{SLEEP}")
    site.write("x.dag", "JOB A sleep.sub\n")
    runner = site.pool.condor("condor_submit_dag", "x.dag", cwd=site.path)
    assert runner.returncode == 0, runner.stderr

    def submitted() -> str:
        log = site.path / "x.dag.nodes.log"
        return log.read_text()[5:].partition(".")[0] if log.exists() else ""

    cluster = int(wait_for("the job", submitted))
    assert site.pool.condor("condor_rm", str(cluster)).returncode == 0
    wait_for("the end", lambda: "EXITING WITH STATUS 1" in site.out())
    assert f"009 ({cluster:03}.000.000)" in (site.path / "own.log").read_text()


SLEEP = "executable = /bin/sleep\narguments = $(time:1000)\nqueue\n"


def test_it_ends_when_it_is_asked_to(site: Site) -> None:
    site.write("sleep.sub", SLEEP)
    site.write("x.dag", "JOB A node.sub\nJOB B sleep.sub\nPARENT A CHILD B\nFINAL F node.sub\n")
    done = site.pool.condor("condor_submit_dag", "x.dag", cwd=site.path)
    job = done.stdout.split("submitted to cluster ")[1].partition(".")[0]
    wait_for("a running job", lambda: site.out().count("assigned") == 2)
    shown = site.pool.condor("condor_q", "-af", "ClusterId", "JobUniverse", "DAGManJobId").stdout.splitlines()
    assert shown[0] == f"{job} 7 undefined" and len(shown) == 2 and shown[1].endswith(f" 5 {job}")
    again = site.pool.condor("condor_submit_dag", "-f", "x.dag", cwd=site.path)
    assert (again.returncode, "is being run by process" in again.stderr) == (1, True)
    assert site.pool.condor("condor_rm", job).returncode == 0
    wait_for("the end", lambda: "EXITING WITH STATUS 2" in site.out())
    assert site.lines() == ["A 0 none", "F 0 none"]
    assert "\nDONE A\n" in (site.path / "x.dag.rescue001").read_text()
    assert site.pool.condor("condor_q", "-af", "ClusterId").stdout == ""
    assert f"009 ({int(job):03}.000.000)" in (site.path / "x.dag.dagman.log").read_text()


def test_a_held_dag_goes_on_when_it_is_released(site: Site) -> None:
    site.write("sleep.sub", SLEEP)
    jobs = 'JOB A node.sub\nJOB B sleep.sub\nVARS B time="2"\nJOB C node.sub\n'
    site.write("x.dag", f"{jobs}PARENT A CHILD B\nPARENT B CHILD C\n")
    done = site.pool.condor("condor_submit_dag", "x.dag", cwd=site.path)
    job = done.stdout.split("submitted to cluster ")[1].partition(".")[0]
    wait_for("the second job", lambda: site.out().count("assigned") == 2)
    assert site.pool.condor("condor_hold", job).returncode == 0
    wait_for("the runner to be gone", lambda: not start_ticks(_runner(site)))
    assert site.pool.condor("condor_release", job).returncode == 0
    wait_for("the end", (site.path / "x.dag.metrics").exists)
    assert site.lines() == ["A 0 none", "C 0 none"]
    assert (site.path / "x.dag.nodes.log").read_text().count("Job submitted") == 3


def test_it_goes_and_goes_on_when_it_is_told_to_go(site: Site) -> None:
    site.write("sleep.sub", SLEEP)
    jobs = 'JOB A node.sub\nJOB B sleep.sub\nVARS B time="2"\nJOB C node.sub\n'
    site.write("x.dag", f"{jobs}PARENT A CHILD B\nPARENT B CHILD C\n")
    command = site.pool.command("dag", "-Dag", "x.dag")
    runner = subprocess.Popen(command, cwd=site.path, env=site.pool.environ)
    wait_for("the second job", lambda: site.out().count("assigned") == 2)
    runner.terminate()
    assert runner.wait(20) == 3
    assert site.pool.call(command, cwd=site.path).returncode == 0
    assert site.lines() == ["A 0 none", "C 0 none"]
    assert (site.path / "x.dag.nodes.log").read_text().count("Job submitted") == 3


def test_a_dag_that_was_changed_meanwhile_is_refused(site: Site) -> None:
    site.write("sleep.sub", SLEEP)
    site.write("x.dag", "JOB A sleep.sub\n")
    command = site.pool.command("dag", "-Dag", "x.dag")
    runner = subprocess.Popen(command, cwd=site.path, env=site.pool.environ)
    wait_for("the job", lambda: site.out().count("assigned") == 1)
    runner.kill()
    runner.wait()
    assert site.run("JOB B node.sub\n") == 2
    assert site.pool.condor("condor_rm", "-all").returncode == 0


def test_what_condor_submit_dag_says(site: Site) -> None:
    site.write("x.dag", "JOB A node.sub\n")
    done = site.pool.condor("condor_submit_dag", "-maxjobs", "3", "x.dag", cwd=site.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[1] == lines[-1] == "-" * 71
    assert lines[2] == "File for submitting this DAG to HTCondor            : x.dag.condor.sub"
    assert "1 job(s) submitted to cluster " in done.stdout
    assert lines[6] == "Log of the life of condor_dagman itself             : x.dag.dagman.log"
    wait_for("the end", (site.path / "x.dag.metrics").exists)
    assert "-maxjobs 3" in (site.path / "x.dag.condor.sub").read_text()
    again = site.pool.condor("condor_submit_dag", "x.dag", cwd=site.path)
    assert again.returncode == 1
    assert again.stderr.startswith('ERROR: "x.dag.condor.sub" already exists.\n')
    assert site.pool.condor("condor_submit_dag", "-f", "-no_submit", "x.dag", cwd=site.path).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.dag"], "ERROR: no such DAG file no.dag\n"),
        ([], "ERROR: no DAG file was given\n"),
        (["-what", "x.dag"], "ERROR: unknown option -what\n"),
        (["-maxjobs", "many", "x.dag"], "ERROR: -maxjobs requires a number, not many\n"),
    ],
)
def test_bad_command_lines(site: Site, words: list[str], said: str) -> None:
    done = site.pool.condor("condor_submit_dag", *words, cwd=site.path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def _runner(site: Site) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((site.path / "x.dag.lock").read_text())
    return 0


@pytest.mark.timeout(240)
def test_kills_of_runner_and_master_run_no_node_twice(tmp_path: Path) -> None:
    pool = Parts(tmp_path, foremen=1)
    try:
        pool.start_all(slots=4, foremen=1)
        site = Site(pool, pool.cwd)
        layers = [[f"L{layer}N{index}" for index in range(20)] for layer in range(8)]
        lines = [f"JOB {name} node.sub" for layer in layers for name in layer]
        lines += [f"PARENT {' '.join(before)} CHILD {' '.join(after)}" for before, after in pairwise(layers)]
        site.write("x.dag", "\n".join(lines) + "\n")
        assert pool.condor("condor_submit_dag", "x.dag", cwd=site.path).returncode == 0
        for count in (5, 30, 55, 80, 105, 130):
            wait_for(f"{count} nodes", partial(site.has_run, count), 60)
            if count % 2:
                pid = wait_for("the runner", partial(_runner, site))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                pool.kill9("master")
                pool.start_master()
        wait_for("the end", (site.path / "x.dag.metrics").exists, 90)
        assert json.loads((site.path / "x.dag.metrics").read_text())["exitcode"] == 0
        assert Counter(site.lines()) == Counter(f"{name} 0 none" for layer in layers for name in layer)
        assert "RECOVERY" in site.out()
    finally:
        pool.close()
