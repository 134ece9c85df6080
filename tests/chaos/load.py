"""What runs while the storm blows: clients that submit, and tasks that keep a ledger of their own."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pool import StormPool
from pools import SHIMS

#: Appends a line at its start and one at its end, in one write each, so that they never mix.
TASK = """#!/bin/sh
echo "start $1.$2 $(hostname) $(cut -d' ' -f1 /proc/uptime)" >> {ledger}
sleep $3
echo "result of $1.$2"
echo "end $1.$2 $(hostname) $(cut -d' ' -f1 /proc/uptime)" >> {ledger}
"""
DESCRIPTION = """executable = {task}
arguments = $(Cluster) $(Process) 0.$INT(Wait)
Wait = ($(Process) * {factor}) % {spread} + 1
log = {log}
{more}queue {count}
"""
#: Seconds between the kills of a condor_submit.
SHIM_KILL_S = 5.0


@dataclass
class Ledger:
    """What a client was told."""

    #: Cluster id -> tasks.
    printed: dict[int, int] = field(default_factory=dict)
    #: Those with outputs.
    with_outputs: set[int] = field(default_factory=set)
    logs: dict[int, Path] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    killed_shims: int = 0
    lines: str = ""


class Client(threading.Thread):
    """Submits until it has so many tasks, through storms and refusals."""

    def __init__(self, pool: StormPool, tasks: int, batch: int, ahead: int, seed: int, spread: int) -> None:
        super().__init__(daemon=True)
        self.pool, self.tasks, self.batch, self.ahead = pool, tasks, batch, ahead
        self.spread = spread
        self.ledger = Ledger()
        self.enough = threading.Event()
        self._random = random.Random(seed)
        self._path = pool.cwd / "ledger"
        self._path.touch()
        self._reading = threading.Lock()
        #: Tasks that told their end, as far as the ledger was read.
        self._ended: set[bytes] = set()
        self._read = 0
        self.task = pool.cwd / "task.sh"
        self.task.write_text(TASK.format(ledger=self._path))
        self.task.chmod(0o755)
        self._shim_kill_at = time.monotonic() + SHIM_KILL_S

    @property
    def accepted(self) -> int:
        return sum(self.ledger.printed.values())

    def ended(self) -> int:
        """Tasks that told their end."""
        with self._reading, self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            self._ended.update(re.findall(rb"^end (\S+)", whole, re.M))
            return len(self._ended)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()]

    def run(self) -> None:
        number = 0
        while self.accepted < self.tasks and not self.enough.is_set():
            if self.accepted - self.ended() > self.ahead:
                time.sleep(0.2)
                continue
            number += 1
            self._submit(number, min(self.batch, self.tasks - self.accepted))

    def _submit(self, number: int, count: int) -> None:
        log = self.pool.cwd / f"log.{number % 7}"
        has_outputs = number % 3 == 0
        more = f"output = out.{number}.$(Process)\n" if has_outputs else ""
        factor = self._random.randrange(1, self.spread)
        text = DESCRIPTION.format(task=self.task, log=log, more=more, count=count, factor=factor, spread=self.spread)
        file = self.pool.cwd / "storm.sub"
        file.write_text(text)
        process = subprocess.Popen(
            [SHIMS / "condor_submit", file.name],
            env=self.pool.environ,
            cwd=self.pool.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if time.monotonic() > self._shim_kill_at:
            # Nobody was told an id: the tasks may be there or not.
            self._shim_kill_at = time.monotonic() + SHIM_KILL_S
            time.sleep(self._random.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            self.ledger.killed_shims += 1
        stdout, stderr = process.communicate()
        found = re.search(r"submitted to cluster (\d+)\.", stdout)
        if found:
            cluster = int(found[1])
            self.ledger.printed[cluster] = count
            self.ledger.logs[cluster] = log
            if has_outputs:
                self.ledger.with_outputs.add(cluster)
        elif process.returncode >= 0:
            self.ledger.refused.append(stderr.strip())
