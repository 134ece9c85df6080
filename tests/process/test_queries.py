"""Queries of a whole pool: its history as files, through kills of the writers; what is told of its workers."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from parts import Parts, wait_for

pytestmark = pytest.mark.timeout(120)


def test_history_files(tmp_path: Path) -> None:
    each = tmp_path / "each"
    each.mkdir()
    # Its directory is not there yet: so nothing can be written, and nothing may leave.
    file = tmp_path / "later" / "history"
    pool = Parts(tmp_path, 0, [f"master.history_file={file}", f"master.per_job_history_dir={each}"])
    try:
        pool.start_all(slots=2, foremen=0)
        description = "executable = /bin/true\nqueue 20\n"
        assert pool.condor("condor_submit", stdin=description).returncode == 0

        def states() -> list[str]:
            return pool.condor("condor_q", "-af", "JobStatus").stdout.split()

        wait_for("the end of all jobs", lambda: states() == ["4"] * 20)
        assert pool.condor("condor_history", "-af", "ProcId").stdout == ""
        assert not os.listdir(each)
        pool.condor("condor_submit", stdin=description)
        os.kill(pool.status()["scribe"]["pid"], signal.SIGKILL)
        file.parent.mkdir()

        def is_over() -> bool:
            # In the queue first, then in the file: what is in neither at any moment is lost to who polls.
            queued = set(pool.condor("condor_q", "-af:j").stdout.split())
            written = set(re.findall(r'^GlobalJobId = "[^#]*#([\d.]*)#', _read(file), re.MULTILINE))
            assert len(queued | written) == 40
            return not queued

        is_over()
        pool.kill9("master")
        pool.start_master()
        wait_for("an empty queue", is_over)
        text = _read(file)
        names = re.findall(r"^\*\*\* Offset = \d+ ClusterId = (\d+) ProcId = (\d+) Owner", text, re.MULTILINE)
        assert sorted((int(cluster), int(proc)) for cluster, proc in names) == [
            (c, p) for c in (1, 2) for p in range(20)
        ]
        assert sorted(os.listdir(each)) == sorted(f"history.{c}.{p}" for c in (1, 2) for p in range(20))
        found = pool.condor("condor_history", "-file", str(file), "2.7", "-af", "ExitCode", "JobStatus")
        assert (found.stdout, found.stderr) == ("0 4\n", "")
        own = pool.condor("condor_history", "-file", str(each / "history.1.3"), "-af:j", "Cmd").stdout
        assert own == "1.3 /bin/true\n"
        os.truncate(each / "history.1.3", 70 << 20)
        large = pool.condor("condor_history", "-file", str(each / "history.1.3"))
        assert (large.stdout, large.returncode, len(large.stderr.splitlines())) == ("", 1, 1)
        assert "the limit is" in large.stderr
    finally:
        pool.close()


def test_what_the_master_says_of_workers(tmp_path: Path) -> None:
    pool = Parts(tmp_path, 1)
    try:
        pool.start_all(slots=2, foremen=1)
        needs = ["request_cpus = 1", "request_cpus = 3", "request_cpus = 1\nrequest_memory = 900T"]
        for need in needs:
            text = f"executable = /bin/sleep\narguments = 1000\n{need}\nqueue\n"
            assert pool.condor("condor_submit", stdin=text).returncode == 0
        wait_for("a job that runs", lambda: "2" in pool.condor("condor_q", "-af", "JobStatus").stdout)
        shown = pool.condor("condor_q", "-better-analyze").stdout
        assert "001.000:  Job is running.\n" in shown
        assert "1 have less than 3 cores\n" in shown and "MB of memory\n" in shown
        assert shown.count("No machines matched the job's constraints\n") == 2
        memory = pool.condor("condor_status", "-af", "Memory", "State").stdout.split()
        assert int(memory[0]) > 0 and sorted(memory[1::2]) == ["Claimed", "Unclaimed"]
        assert pool.condor("condor_status", "-coll", "-af", "RunningJobs", "HostsTotal").stdout == "1 1\n"
    finally:
        pool.close()


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
