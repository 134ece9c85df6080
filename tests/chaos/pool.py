"""A pool that can be hurt: every process of it has a name, is killed, stopped, cut off and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests/process", ROOT / "tests/chaos"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from network import Network  # noqa: E402
from parts import Parts, wait_for  # noqa: E402

#: What the master is told beside the usual: nobody is held because this storm kills so many workers.
SETTINGS = ("master.max_losses=100000",)


class StormPool(Parts):
    """A master, foremen and workers, each on a node of its own where that is possible."""

    def __init__(self, base: Path, workers: int, foremen: int, slots: int, network: Network | None) -> None:
        super().__init__(base, foremen, SETTINGS)
        self.network = network
        self.slots = slots
        self.foremen = [f"foreman{index}" for index in range(foremen)]
        self.workers = [f"worker{index}" for index in range(workers)]
        self.names = ["master", *self.foremen, *self.workers]
        if network is not None:
            addresses = network.addresses
            port = self.environ["WQ_MASTER_BASEPORT"]
            self.environ |= {
                "WQ_MASTER": f"{addresses['master']}:{self.master_port}",
                "WQ_FOREMEN": ",".join(addresses[name] for name in self.foremen),
                "WQ_NUM_FOREMEN": "1",
                "WQ_MASTER_BASEPORT": port,
            }
        #: Roles that wait to be started again, and when (monotonic).
        self.due: dict[str, float] = {}

    def start(self, name: str, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        if name in self.workers:
            environ = {"WQ_NUM_WORKERS": str(self.slots), **environ}
        if self.network is not None and name != "master":
            # What a node keeps for itself is not shared.
            state = self.path.parent / f"state-{name}"
            state.mkdir(mode=0o700, exist_ok=True)
            environ["PILOTQ_STATE_DIR"] = str(state)
            words = (*words, "--set", "foreman.index=0") if name in self.foremen else words
        self._name = name
        return super().start(name, *words, **environ)

    def command(self, *words: str) -> list[str]:
        argv = super().command(*words)
        is_role = words[0] in ("master", "foreman", "worker") and all(word.startswith("--") for word in words[1:2])
        if self.network is None or not is_role:
            return argv
        return self.network.wrap(self._name, argv)

    def up(self) -> None:
        for name in self.names:
            self.start(name)
            if name == "master":
                wait_for("the master", self.status_or_none)
        slots = self.slots * len(self.workers)
        wait_for("the pool", lambda: self.status()["slots"]["open"] == slots, 60)

    def children(self, name: str) -> list[int]:
        """Processes that a role has started itself: keepers; scribe and query."""
        process = self.processes.get(name)
        if process is None:
            return []
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            return [int(word) for word in text.split()]
        return []

    def pid(self, name: str) -> int:
        return self.processes[name].pid

    def kill(self, name: str = "", restart_s: float = 0.0) -> None:
        """kill -9, and again a start in a while. Without a name: all, at the end."""
        if not name:
            super().kill()
            return
        self.kill9(name)
        self.due[name] = time.monotonic() + restart_s

    def start_due(self, *, all_of_them: bool = False) -> None:
        """What waited long enough, and what ended by itself."""
        now = time.monotonic()
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.processes.pop(name)
                self.due.setdefault(name, now)
        for name, at in list(self.due.items()):
            if all_of_them or now >= at:
                del self.due[name]
                self.start(name)

    def signal(self, pid: int, number: int) -> bool:
        """False when it is gone already."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        super().close()

    def query(self, *words: str) -> list[str]:
        """Lines of a condor command; asked again while the master is away."""

        def ask() -> Any:
            done = self.condor(words[0], *words[1:])
            return (done.stdout.splitlines(),) if done.returncode == 0 else None

        found: list[str] = wait_for(" ".join(words), ask, 60)[0]
        return found
