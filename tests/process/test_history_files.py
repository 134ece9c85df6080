"""History as files in a whole pool: written before a job leaves the queue, once each, through kills of the writers."""

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
    finally:
        pool.close()


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
