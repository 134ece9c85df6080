"""A pool of this checkout for a benchmark: started with `pilotq up`, measured, stopped and removed."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/process")]

import machine  # noqa: E402
from dialog import Door, Submission  # noqa: E402
from parts import free_ports, wait_for  # noqa: E402
from pools import SHIMS, clean_environ  # noqa: E402

from pilotq.cli.processes import read_records, stop  # noqa: E402
from pilotq.client import Client  # noqa: E402

PORT_TRIES = 5
#: How long one question for the end of a cluster may wait.
WAIT_S = 20
#: Longest wait between two looks at a cluster that runs, and the shortest, which is the error of its end.
POLL_MAX_S, POLL_MIN_S = 0.5, 0.02


#: Linux: read and set the flags of a file; and ext4's flag for "what is below this is not related".
_GET_FLAGS, _SET_FLAGS, _TOP_OF_TREES = 0x80086601, 0x40086602, 0x20000


def new_directory(parent: str | None, what: str) -> Path:
    """A temporary directory that the caller removes, on a part of the disk of which nothing was removed just before.

    An ext4 without a journal takes no inode again for minutes and searches past all of them, each time it makes a file:
    what one contestant removed made the files of the next up to ten times as dear. It puts directories where there are
    the fewest; so what is around each stays until the end.
    """
    around = _spread(parent)
    around = around / str(len(os.listdir(around)))
    around.mkdir()
    return Path(tempfile.mkdtemp(prefix=f"{what}-", dir=around))


def _remove_empty(folder: Path) -> None:
    """What a contestant left is for a person to look at."""
    for path in (*folder.iterdir(), folder):
        with contextlib.suppress(OSError):
            path.rmdir()


@functools.cache
def _spread(parent: str | None) -> Path:
    """A directory whose directories lie apart from each other, where the file system can do that."""
    if parent:
        os.makedirs(parent, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="pilotq-bench-", dir=parent))
    atexit.register(_remove_empty, folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            flags = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))[0]
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _TOP_OF_TREES))
    finally:
        os.close(descriptor)
    return folder


class Pool:
    """Master, foremen and one worker on loopback and free ports.

    The queue lies below `scratch`, the sandboxes of the tasks below `workdir` (the same, when it is not given).
    """

    def __init__(
        self,
        slots: int,
        *,
        foremen: int = 1,
        scratch: str | None = None,
        workdir: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` are variables of the environment, as PILOTQ_WORKER_KEEPERS."""
        self.slots, self.foremen = slots, foremen
        self.base = new_directory(scratch, "pool")
        self.work = new_directory(workdir, "work") if workdir else self.base / "work"
        self.home = self.base / "home"
        self.home.mkdir(mode=0o700)
        self.cwd = self.base / "site"
        self.cwd.mkdir()
        interpreter = Path(sys.executable).resolve().parent
        self.environ = {
            **clean_environ(),
            "PILOTQ_HOME": str(self.home),
            "WQ_WORKDIR": str(self.work),
            "WQ_DRAIN": str(self.base / "drain"),
            "WQ_IDLETIMEOUT": "0",
            # The shims must find a real interpreter first, not a wrapper that chooses one.
            "PATH": f"{SHIMS}:{interpreter}:{os.environ['PATH']}",
            **(settings or {}),
        }
        self.client = Client(str(self.home))
        self._workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Pool:
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        return self

    def _up(self) -> None:
        """On free ports; on others when somebody took one of them meanwhile."""
        for left in reversed(range(PORT_TRIES)):
            first = free_ports(self.foremen + 1)
            self.environ |= {"WQ_MASTER": f"127.0.0.1:{first}", "WQ_MASTER_BASEPORT": str(first + 1)}
            try:
                self.command("up", "--foremen", str(self.foremen), "--slots", str(self.slots))
                return
            except RuntimeError as error:
                if not left or "in use" not in str(error):
                    raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all that was started from this home, and remove its files."""
        try:
            for worker in self._workers:
                worker.terminate()
            for worker in self._workers:
                _wait_or_kill(worker)
            if (self.home / "pool.json").exists():
                self.command("down", check=False, timeout_s=120)
        finally:
            stop(read_records(str(self.home)), 0, polite=False)
            shutil.rmtree(self.work, ignore_errors=True)
            shutil.rmtree(self.base, ignore_errors=True)

    def start_workers(self, count: int, cores: int, timeout_s: float = 120) -> None:
        """Further ones beside the first; returns when all their slots are open."""
        argv = [str(ROOT / "bin/pilotq"), "worker", "--set", f"worker.cores={cores}"]
        self.slots += count * cores
        for number in range(count):
            with (self.base / f"worker-{number}.log").open("wb") as log:
                worker = subprocess.Popen(
                    argv, env=self.environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self._workers.append(worker)
        wait_for("the workers", lambda: self.status()["slots"]["open"] >= self.slots, timeout_s)

    def command(self, *words: str, check: bool = True, timeout_s: float = 120) -> str:
        """What `pilotq WORDS` prints.

        Raises: RuntimeError with its complaint.
        """
        done = subprocess.run(
            [ROOT / "bin/pilotq", *words],
            env=self.environ,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"pilotq {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def condor(self, tool: str, *words: str, timeout_s: float = 600) -> str:
        """What a condor command prints.

        Raises: RuntimeError with its complaint.
        """
        done = subprocess.run(
            [SHIMS / tool, *words],
            env=self.environ,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{tool}: {done.stderr.strip()}")
        return done.stdout

    def write(self, text: str, name: str = "task.sub") -> None:
        """A submit file in the directory that condor commands run in."""
        (self.cwd / name).write_text(text)

    def submit(self, text: str) -> int:
        """With the shim; the cluster id, durable."""
        self.write(text)
        return int(self.condor("condor_submit", "-terse", "task.sub").split(".")[0])

    def door(self) -> Door:
        """A connection to the API."""
        return Door(str(self.home))

    def submission(self, text: str) -> Submission:
        """To be sent through a door."""
        return Submission(text, self.cwd)

    def status(self) -> dict[str, Any]:
        """Of `GET /v1/status`."""
        found: dict[str, Any] = self.client.get("/v1/status")
        return found

    def cluster(self, cluster: int) -> dict[str, Any]:
        """How many of its tasks are in which state."""
        found: dict[str, Any] = self.client.get(f"/v1/clusters?ids={cluster}")[0]
        return found

    def wait_ended(self, cluster: int, timeout_s: float = 3600) -> dict[str, Any]:
        """Wait until all its tasks are done, cancelled or held; the answer comes after the commit.

        A master that does not wait is asked rarely at first and often towards the end.
        """
        start = time.monotonic()
        while True:
            found: dict[str, Any] = self.client.get(f"/v1/clusters?ids={cluster}&wait_s={WAIT_S}")[0]
            ended = found["done"] + found["cancelled"] + found["held"]
            if ended >= found["count"]:
                return found
            passed_s = time.monotonic() - start
            if passed_s > timeout_s:
                raise RuntimeError(f"cluster {cluster} did not end: {found}")
            left_s = passed_s * (found["count"] - ended) / ended if ended else POLL_MIN_S
            time.sleep(min(POLL_MAX_S, max(POLL_MIN_S, left_s / 4)))

    def run_all(self, text: str, tasks: int) -> None:
        """Submit with the shim, and wait until so many are done.

        Raises: RuntimeError when not all of them ended well, with what the first says.
        """
        self.must_be_done(self.wait_ended(self.submit(text)), tasks)

    def must_be_done(self, found: dict[str, Any], tasks: int) -> None:
        """Raises: RuntimeError when not all of a cluster ended well, with what the first says."""
        if found["done"] == tasks and not found.get("failed"):
            return
        reason = self.condor("condor_q", f"{found['cluster']}.0", "-af", "HoldReason").strip() if found["held"] else ""
        raise RuntimeError(f"of {tasks} tasks {found['done']} are done, {found['held']} held. {reason}")

    # ---- what it costs

    def processes(self) -> dict[str, list[int]]:
        """Pids by role; keepers are children of a worker."""
        status = self.status()
        found = {
            "master": [status["master"]["pid"]],
            "scribe": [status["scribe"]["pid"]],
            "query": [status["query"]["pid"]],
            "foreman": [one["pid"] for one in status["foremen"]],
            "worker": [one["pid"] for one in status["workers"]],
        }
        found["keeper"] = [child for pid in found["worker"] for child in machine.children(pid)]
        return found

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU by role so far; "tasks" are what keepers have waited for."""
        found: dict[str, float] = {}
        for role, pids in self.processes().items():
            spent = [machine.cpu(pid) for pid in pids]
            found[role] = sum(one.own_s for one in spent)
            if role == "keeper":
                found["tasks"] = sum(one.children_s for one in spent)
        return found


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_per_task(before: Mapping[str, float], after: Mapping[str, float], tasks: int) -> dict[str, float]:
    """Microseconds by role."""
    return {role: 1e6 * (spent - before.get(role, 0.0)) / tasks for role, spent in after.items()}
