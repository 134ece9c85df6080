"""Many short tasks on few slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, wait_for

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


def submit(parts: Parts, script: str, count: int) -> int:
    return parts.submit(
        f"executable = /bin/sh\ntransfer_executable = false\narguments = \"-c '{script}'\"\n"
        f"output = out.$(Process)\nqueue {count}\n"
    )


def test_no_short_task_waits_behind_a_long_one(parts: Parts) -> None:
    """The 100th of 300 takes until all others have ended."""
    parts.start_all(slots=2, foremen=1)
    parts.wait_done(submit(parts, ":", 100))
    go = parts.cwd / "go"
    cluster = submit(
        parts, f"if [ $(Process) = 99 ]; then while [ ! -e {go} ]; do sleep 0.05; done; fi; echo $(Process)", 300
    )
    counts = wait_for("all others to end", lambda: (found := parts.counts(cluster))["done"] == 299 and found)
    assert counts["running"] == 1
    go.touch()
    parts.wait_done(cluster)
    for proc in range(300):
        assert (parts.cwd / f"out.{proc}").read_text() == f"{proc}\n"


def test_cancelled_while_many_follow_each_other(parts: Parts) -> None:
    parts.start_all(slots=2, foremen=1)
    parts.wait_done(submit(parts, ":", 100))
    started = parts.cwd / "started"
    cluster = submit(parts, f"echo $(Process) >> {started}", 2000)
    wait_for("some to end", lambda: parts.counts(cluster)["done"] > 100)
    assert parts.condor("condor_rm", str(cluster), cwd=parts.cwd).returncode == 0
    wait_for("the rest to be gone", lambda: not parts.status()["slots"]["busy"])
    ran = [int(line) for line in started.read_text().split()]
    assert len(ran) == len(set(ran)), "nothing ran twice"
    assert len(ran) < 2000
