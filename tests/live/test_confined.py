"""Master and foreman do their work under the rules of their systemd units, and speak to systemd as these expect."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotq.client import Client
from pilotq.errors import UnavailableError

ROOT = Path(__file__).resolve().parents[2]
CONFINED = Path(__file__).with_name("confined.py")

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or ctypes.util.find_library("seccomp") is None,
    reason="systemd-analyze or libseccomp is not installed",
)


def free_ports(count: int) -> list[int]:
    """Ports that nobody had a moment ago, in a row from the first."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            ports = [first.getsockname()[1] + index for index in range(count)]
            for port in ports[1:]:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


def until(probe: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
    end = time.monotonic() + patience_s
    while not (value := probe()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
    return value


class Site:
    """Processes with one home, started as the units start them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.client = Client(str(self.home))
        master, foreman = free_ports(2)
        self.environ = {
            "PATH": f"{ROOT / 'fakecondor'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PILOTQ_HOME": str(self.home),
            "PILOTQ_MASTER_BIND": "127.0.0.1",
            "PILOTQ_FOREMAN_BIND": "127.0.0.1",
            "WQ_MASTER": f"127.0.0.1:{master}",
            "WQ_MASTER_BASEPORT": str(foreman),
            "WQ_NUM_FOREMEN": "1",
            "WQ_NUM_WORKERS": "1",
            "WQ_IDLETIMEOUT": "0",
            "WQ_WORKDIR": str(folder / "scratch"),
        }

    def start(self, role: str, unit: str = "", **environ: str) -> subprocess.Popen[bytes]:
        before = [sys.executable, str(CONFINED), str(ROOT / "systemd" / unit)] if unit else []
        with (self.folder / f"{role}.log").open("wb") as log:
            return subprocess.Popen(
                [*before, sys.executable, "-X", "utf8", "-m", "pilotq", role],
                cwd=ROOT,
                env={**self.environ, "WQ_DRAIN": self.drain_file(role), **environ},
                stdout=log,
                stderr=log,
            )

    def drain_file(self, role: str) -> str:
        return str(self.folder / f"drain-{role}")

    def heard(self, listener: socket.socket, wanted: str, role: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until a service has said this to systemd."""
        end = time.monotonic() + 30
        said: list[str] = []
        while wanted not in said:
            log = (self.folder / f"{role}.log").read_text()
            assert process.poll() is None and time.monotonic() < end, f"{role} said {said}, and in its log: {log}"
            with contextlib.suppress(TimeoutError):
                said += listener.recv(4096).decode().splitlines()

    def has(self, kind: str) -> bool:
        with contextlib.suppress(UnavailableError):
            return any(one["state"] == "ready" for one in self.client.get("/v1/status")[kind])
        return False


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens to a service."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(0.2)
        yield listener


def stop_as_the_unit_does(unit: str, process: subprocess.Popen[bytes], environ: dict[str, str]) -> None:
    """Run the ExecStop= lines; they are over when the process is, which somebody has to reap for that."""
    text = (ROOT / "systemd" / unit).read_text()
    lines = re.findall(r"^ExecStop=(.*)$", text, re.MULTILINE)
    assert lines
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    for line in lines:
        words = string.Template(line).substitute({**environ, "MAINPID": str(process.pid)}).split()
        subprocess.run(words, check=True, timeout=30)
    reaper.join()


def test_a_task_runs_and_everybody_leaves_when_told(site: Site, systemd: socket.socket) -> None:
    notify = str(systemd.getsockname())
    started: list[subprocess.Popen[bytes]] = []
    try:
        for role, unit in (("master", "pilotq-master.service"), ("foreman", "pilotq-foreman@.service")):
            started.append(site.start(role, unit, NOTIFY_SOCKET=notify))
            site.heard(systemd, "READY=1", role, started[-1])
            site.heard(systemd, "WATCHDOG=1", role, started[-1])
        until(lambda: site.has("foremen"), "the foreman")
        started.append(site.start("worker"))
        until(lambda: site.has("workers"), "the worker")

        output = site.folder / "out.txt"
        text = (
            f"executable = /bin/sh\narguments = \"-c 'echo here'\"\noutput = {output}\nlog = {site.folder}/log\nqueue\n"
        )
        command = [str(ROOT / "fakecondor" / "condor_submit")]
        said = subprocess.run(
            command, input=text, env=site.environ, capture_output=True, text=True, timeout=30, check=False
        )
        assert "1 job(s) submitted to cluster 1." in said.stdout, said.stderr
        until(lambda: output.exists() and output.read_text() == "here\n", "the output")

        worker = started.pop()
        stop_as_the_unit_does("pilotq-worker@.service", worker, {"WQ_DRAIN": site.drain_file("worker")})
        assert worker.wait(20) == 0
        assert "worker: drained" in (site.folder / "worker.log").read_text()
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        for process in started:
            process.kill()
            process.wait()
