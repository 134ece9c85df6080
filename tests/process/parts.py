"""A pool whose processes a test starts, kills and restarts one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pools import Home

from pilotq.client import Client
from pilotq.condor.request import write_fields
from pilotq.errors import PilotqError

BEAT = ("--set", "master.beat_s=1", "--set", "master.contact_lost_s=6")


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row on loopback."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first + count > 65000:
            continue
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    one = stack.enter_context(socket.socket())
                    one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise RuntimeError("no free ports")


def wait_for(what: str, check: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """What `check` gives once it is true."""
    end = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s} s for {what}; last: {found!r}")
        time.sleep(0.05)


class Parts(Home):
    """One home; roles by name: "master", "foreman0", "worker0"."""

    def __init__(self, base: Path, foremen: int = 2, settings: Sequence[str] = ()) -> None:
        """`settings` of the master, as NAME=VALUE."""
        super().__init__(base / "home")
        self.settings = [word for setting in settings for word in ("--set", setting)]
        self.path.mkdir(mode=0o700)
        self.cwd = base / "site"
        self.cwd.mkdir()
        first = free_ports(foremen + 1)
        self.environ |= {
            "WQ_MASTER": f"127.0.0.1:{first}",
            "WQ_MASTER_BASEPORT": str(first + 1),
            "WQ_NUM_FOREMEN": str(foremen),
            "WQ_IDLETIMEOUT": "0",
        }
        self.master_port = first
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = Client(str(self.path))

    def start(self, name: str, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        role, index = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
        argv = self.command(role, *words)
        if role == "master":
            argv += [*BEAT, *self.settings]
        if role == "foreman":
            argv += ["--set", f"foreman.index={index}"]
        with (self.path.parent / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv, env={**self.environ, **environ}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        self.processes[name] = process
        return process

    def start_master(self) -> None:
        self.start("master")
        wait_for("the master", self.status_or_none)

    def start_all(self, slots: int = 2, foremen: int = 2) -> None:
        self.start_master()
        for index in range(foremen):
            self.start(f"foreman{index}")
        self.start("worker0", WQ_NUM_WORKERS=str(slots))
        wait_for("the pool", lambda: self.status_or_none() and self.status()["slots"]["open"] == slots)

    def log(self, name: str) -> str:
        return (self.path.parent / f"{name}.log").read_text()

    def kill9(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self, name: str, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout_s)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/v1/status")
        return found

    def status_or_none(self) -> dict[str, Any] | None:
        try:
            return self.status()
        except (PilotqError, OSError):
            return None

    def submit(self, text: str, *, file: str = "task.sub") -> int:
        """Submit a description from the site directory; the cluster id."""
        (self.cwd / file).write_text(text)
        done = self.condor("condor_submit", file, cwd=self.cwd)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split("submitted to cluster ")[1].split(".")[0])

    def submit_with_key(self, key: str, *told: bytes) -> bytes:
        """What the master answers to one who submits a task with this key, and says such of himself."""
        text = b"executable = /bin/true\ntransfer_executable = false\nqueue\n"
        have = write_fields([b"read", b"-", b"ok", text])
        body = write_fields([b"tool", b"condor_submit", b"key", key.encode(), b"cwd", b"/", *told, b"have", have])
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(str(self.path / "api.sock"))
            peer.sendall(b"POST /condor HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return peer.makefile("rb").read()

    def counts(self, cluster: int) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/clusters?ids={cluster}")[0]
        return found

    def wait_done(self, cluster: int, timeout_s: float = 60) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            with contextlib.suppress(PilotqError, OSError):
                found = self.counts(cluster)
                if found["done"] + found["cancelled"] == found["count"]:
                    return found
            return None

        found: dict[str, Any] = wait_for(f"cluster {cluster}", check, timeout_s)
        return found

    def history(self, cluster: int) -> list[int]:
        """Procs of a cluster in condor_history, one entry a row."""
        done = self.condor("condor_history", str(cluster), "-af", "ProcId")
        assert done.returncode == 0, done.stderr
        return [int(line) for line in done.stdout.split()]

    def close(self) -> None:
        for name in sorted(self.processes, reverse=True):
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.kill()


def marked(path: Path) -> list[int]:
    """Processes whose environment names this directory."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                if os.fsencode(str(path)) in file.read():
                    found.append(int(entry))
    return found
