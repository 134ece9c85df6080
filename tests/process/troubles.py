"""What tests of bad input and of full disks share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parts import Parts, wait_for
from pools import SHIMS

TRUE = "executable = /bin/true\ntransfer_executable = false\n"


def new_pool(base: Path, *settings: str) -> Parts:
    found = Parts(base, 1, settings)
    # Where python3 is a script that looks for one, each command would take ten times as long.
    found.environ["PATH"] = f"{SHIMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script(found.cwd / "prog", 'echo "hi $*"')
    return found


def script(path: Path, text: str, interpreter: str = "/bin/sh") -> None:
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)


def small_disk(path: Path, options: str) -> None:
    """Mount a small file system here; skips where that is not permitted."""
    path.mkdir(mode=0o700)
    if os.geteuid():
        pytest.skip("needs root, to mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"{options},mode=0700", "pilotq-test", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    if os.path.ismount(path):
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def queue(pool: Parts, *words: str) -> list[str]:
    done = pool.condor("condor_q", "-af", *(words or ["ClusterId", "ProcId"]))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def refused(pool: Parts, content: str | bytes, *said: str, words: tuple[str, ...] = ("bad.sub",)) -> None:
    """Submit this: it must be refused in one or two lines, quickly, and leave nothing."""
    before, last = queue(pool), pool.client.get("/v1/clusters")
    (pool.cwd / "bad.sub").write_bytes(content.encode() if isinstance(content, str) else content)
    began = time.monotonic()
    done = pool.condor("condor_submit", *words, cwd=pool.cwd)
    took_s = time.monotonic() - began
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert 1 <= len(lines) <= 2 and all(len(line) < 500 and line.isprintable() for line in lines), lines
    assert not re.search(r"Traceback|File \"|internal error|submitted to cluster", done.stderr)
    for text in said:
        assert text in done.stderr
    assert took_s < 3
    assert (queue(pool), pool.client.get("/v1/clusters")) == (before, last)


def wait_held(pool: Parts, cluster: int) -> tuple[int, int, str]:
    """Code, subcode and reason of a task that is held in the end."""

    def look() -> list[str]:
        found = queue(pool, "ClusterId", "JobStatus", "HoldReasonCode", "HoldReasonSubCode", "HoldReason")
        return [line for line in found if line.startswith(f"{cluster} 5 ")]

    code, subcode, reason = wait_for(f"cluster {cluster} to be held", look)[0].split(" ", 4)[2:]
    return int(code), int(subcode), reason


def events(log: Path) -> list[str]:
    """Numbers of the events in a user log, in order."""
    return re.findall(r"^(\d{3}) \(", log.read_text(), re.M)


def wait_until_it_runs(pool: Parts, cluster: int) -> None:
    wait_for("it to run", lambda: pool.counts(cluster)["running"] == 1)
