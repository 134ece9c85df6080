"""condor_wait, which asks no master: logs that are there, that grow, of some jobs; what it prints and exits with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

WAIT = Path(__file__).parents[2] / "fakecondor" / "condor_wait"


def event(code: int, job: str, text: str = "Something happened.") -> str:
    cluster, proc = map(int, job.split("."))
    return f"{code:03d} ({cluster:03d}.{proc:03d}.000) 2026-11-29 07:00:00 {text}\n\tmore\n...\n"


def wait(*words: str | Path, timeout_s: float = 20) -> tuple[str, str, int]:
    # An empty environment, and no standard input.
    done = subprocess.run(
        [str(WAIT), *map(str, words)],
        env={"PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text(event(0, "1.0") + event(0, "1.1") + event(1, "1.0") + event(5, "1.0") + event(0, "22.0"))
    return path


def test_all_jobs(log: Path) -> None:
    assert wait("-wait", "0", log) == ("Time expired.\n", "", 1)
    with log.open("a") as file:
        file.write(event(9, "1.1") + event(5, "22.0"))
    assert wait(log) == ("All jobs done.\n", "", 0)


def test_some_jobs(log: Path) -> None:
    assert wait(log, "1.0") == ("All jobs done.\n", "", 0)
    assert wait("-wait", "0", log, "1")[2] == wait("-wait", "0", log, "1.0", "22")[2] == 1
    assert wait("-wait", "0", log, "7")[2] == 1
    assert wait("-num", "1", log) == ("", "", 0)


def test_it_waits_for_what_is_appended(log: Path) -> None:
    process = subprocess.Popen([WAIT, "-status", log, "1"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines == ["1.0 submitted\n", "1.1 submitted\n", "1.0 executing\n", "1.0 completed\n"]
    whole = event(9, "1.1")
    with log.open("a") as file:
        # Half an event is none.
        file.write(whole[:30])
        file.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        file.write(whole[30:])
    assert process.communicate(timeout=20)[0] == "1.1 aborted\nAll jobs done.\n"
    assert process.returncode == 0


def test_echo(log: Path) -> None:
    assert wait("-echo", log, "1.0")[0] == event(0, "1.0") + event(1, "1.0") + event(5, "1.0") + "All jobs done.\n"


def test_errors(tmp_path: Path, log: Path) -> None:
    assert wait(tmp_path / "none") == ("", f"Couldn't open {tmp_path}/none: No such file or directory\n", 1)
    assert wait(log, "x") == ("", "Couldn't understand job ID: x\n", 1)
    assert wait()[1].startswith("Usage: condor_wait ") and wait()[2] == 1
    assert wait("-bogus", log)[1].startswith("condor_wait: unrecognized argument -bogus\n")
    assert wait("-help")[0].startswith("Usage: ") and wait("-version")[0].startswith("$CondorVersion: ")
