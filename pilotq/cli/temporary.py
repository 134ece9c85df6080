"""A pool that lives as long as a command: its directory, ports and settings, apart from everything else here."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile

from pilotq.cli.context import is_on_network
from pilotq.errors import UnavailableError

#: Below the range that the kernel takes for outgoing connections.
PORTS = range(20000, 32000)


def of_its_own(home: str, foremen: int) -> dict[str, str]:
    """Settings that keep this pool apart from everything else on the machine."""
    master, first = _find_ports(foremen)
    return {
        "home": home,
        "state_dir": home,
        "master.bind": "127.0.0.1",
        "master.host": "127.0.0.1",
        "master.port": str(master),
        "foreman.bind": "127.0.0.1",
        "foreman.hosts": "127.0.0.1",
        "foreman.base_port": str(first),
        "foreman.token": f"{home}/foreman.token",
        "worker.token": f"{home}/worker.token",
        "worker.workdir": f"{home}/work",
        "worker.drain_file": f"{home}/drain-worker",
        "worker.single_task": "0",
        "catalog.host": "",
    }


def _find_ports(foremen: int) -> tuple[int, int]:
    """A free loopback port for the master, and the first of enough free ones in a row."""
    for _ in range(100):
        first = random.choice(PORTS)
        sockets: list[socket.socket] = []
        try:
            for port in range(first, first + foremen + 1):
                one = socket.socket()
                sockets.append(one)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return first, first + 1
        finally:
            for one in sockets:
                one.close()
    raise UnavailableError(f"no {foremen + 1} free ports in a row on 127.0.0.1", "ask for fewer with --foremen")


def find_local_directory() -> str:
    """Where temporary files go, unless that is on a network."""
    for path in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if os.access(path, os.W_OK | os.X_OK) and not is_on_network(path):
            return path
    raise UnavailableError("there is no local directory for temporary files", "set TMPDIR to one")


def keep_logs(home: str) -> str:
    """Copy the logs to a directory that stays; where they are."""
    kept = tempfile.mkdtemp(prefix="pilotq-logs-", dir=os.path.dirname(home))
    shutil.copytree(f"{home}/logs", kept, dirs_exist_ok=True)
    return kept
