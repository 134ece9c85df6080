"""The worker on the master's own host that runs what universes local and scheduler name: an ordinary worker with a key
of its own, which the master starts when such a task waits, and ends when there was none for a while.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pilotq import keys
from pilotq.access import HEAD, Role
from pilotq.config import Settings
from pilotq.core.master import MasterCore
from pilotq.daemon import tell
from pilotq.home import running

#: It is ended when it had nothing for so long.
IDLE_S = 60.0
#: After it ended by itself, it is started again at the earliest after so long.
AGAIN_S = 5.0


class Head:
    """Starts and ends that worker. It is a daemon of its own, which survives the master as all workers do."""

    def __init__(self, settings: Settings, home: Path, state: Path, core: MasterCore) -> None:
        self.settings, self.home, self.state, self.core = settings, home, state, core
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._needed_at = time.monotonic()

    @property
    def is_wanted(self) -> bool:
        """Does a task wait for it?"""
        return any(needs.on_head for needs in self.core.queue.ready.needs(self.core.queue.clusters))

    def look(self) -> None:
        """Start or end it, as needed now."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        waits = self.is_wanted
        if waits or self._has_tasks():
            self._needed_at = now
        if waits and not self._pid() and now - self._started_at > AGAIN_S:
            self._started_at = now
            self._start()
        elif now - self._needed_at > IDLE_S:
            self.end()

    def end(self) -> None:
        """Let it go, unless it has tasks: they are taken back by the next master."""
        pid = self._pid()
        if pid and not self._has_tasks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def make_key(self) -> bool:
        """Make the key that this worker alone has; False: there is one."""
        if keys.token_path(self.home, Role.WORKER, HEAD).exists():
            return False
        keys.new_token(self.home, Role.WORKER, HEAD)
        return True

    def _has_tasks(self) -> bool:
        return any(worker.key == HEAD and not worker.is_empty for worker in self.core.peers.workers.values())

    def _pid(self) -> int:
        if self._process is not None:
            return self._process.pid
        found = running(self.state / "run" / f"{HEAD}.json")
        return int(found["pid"]) if found else 0

    def _start(self) -> None:
        settings, folder = self.settings, self.state / HEAD
        folder.mkdir(mode=0o700, exist_ok=True)
        host = "127.0.0.1" if settings.master_bind == "*" else settings.master_bind
        values = {
            "home": str(self.home),
            "state_dir": str(self.state),
            "master.host": host,
            "master.port": settings.master_port,
            "foreman.count": 0,
            "worker.token": keys.token_path(self.home, Role.WORKER, HEAD),
            "worker.workdir": folder,
            "worker.drain_file": folder / "drain",
            "worker.cores": settings.master_local_tasks,
            "worker.idle_timeout_s": 0,
            "worker.single_task": 0,
        }
        words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        isolated = ["-I"] if sys.flags.isolated else []
        with open(self.state / f"{HEAD}.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *isolated, "-X", "utf8", "-m", "pilotq", "worker", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        tell("master", "started the worker of this host", {"pid": self._process.pid})
