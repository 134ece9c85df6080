"""A pool at a steady rate, with a worker that comes and one that goes every second: does anything grow?

Memory, open files, the store without its history, and the lag of the master's loop are read every few seconds. What is
told is their slope over the second half, when caches are full.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from pool import ROOT, StormPool  # first: it makes the other modules findable

sys.path.insert(0, str(ROOT / "tests/bench"))

import machine  # isort: skip
from parts import wait_for  # isort: skip

TEXT = "executable = /bin/true\ntransfer_executable = false\nlog = log\n{more}queue {count}\n"
SAMPLE_S = 5.0
#: How long a worker that comes and goes stays.
STAY = 6
#: Above these something grows. Memory of all daemons of the head together, files of one process.
MEMORY_MIB_H, FILES, LAG_MS = 40.0, 20, 500.0


class Load(threading.Thread):
    """So many tasks a second, in a submission each second; every fifth has outputs."""

    def __init__(self, pool: StormPool, rate: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.pool, self.rate, self.seconds = pool, rate, seconds
        self.submitted = 0
        self.late = 0

    def run(self) -> None:
        end, due, number = time.monotonic() + self.seconds, time.monotonic(), 0
        while time.monotonic() < end:
            number += 1
            more = f"output = out/{number % 10}.$(Process)\n" if number % 5 == 0 else ""
            self.pool.submit(TEXT.format(more=more, count=self.rate))
            self.submitted += self.rate
            due += 1.0
            self.late += time.monotonic() > due
            time.sleep(max(0.0, due - time.monotonic()))
            # A user rotates his log.
            log = self.pool.cwd / "log"
            if log.exists() and log.stat().st_size > 50 << 20:
                log.rename(self.pool.cwd / "log.old")


class Churn(threading.Thread):
    """One worker more every second, and the oldest of them told to leave."""

    def __init__(self, pool: StormPool, seconds: float) -> None:
        super().__init__(daemon=True)
        self.pool, self.seconds = pool, seconds
        self.came = 0
        self.failed = 0

    def run(self) -> None:
        end, here = time.monotonic() + self.seconds, deque[subprocess.Popen[bytes]]()
        argv = [sys.executable, "-m", "pilotq", "worker", "--set", "worker.cores=1", "--set", "worker.keepers=1"]
        with (self.pool.path.parent / "churn.log").open("ab") as log:
            while time.monotonic() < end:
                environ = {**self.pool.environ, "WQ_WORKDIR": f"{self.pool.path}/churn{self.came % (2 * STAY)}"}
                here.append(
                    subprocess.Popen(argv, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
                self.came += 1
                if len(here) > STAY:
                    self._end(here.popleft())
                time.sleep(1.0)
            while here:
                self._end(here.popleft())

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            self.failed += process.wait(20) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.failed += 1


def sample(pool: StormPool) -> dict[str, float] | None:
    """What is watched, now."""
    status = pool.status_or_none()
    if status is None:
        return None
    pids = {"master": [status["master"]["pid"]], "scribe": [status["scribe"]["pid"]], "query": [status["query"]["pid"]]}
    pids["foreman"] = [one["pid"] for one in status["foremen"]]
    pids["worker"] = [pool.pid(name) for name in pool.workers]
    found = {f"{role}, MiB": machine.private_bytes(some) / (1 << 20) for role, some in pids.items()}
    found["head, MiB"] = sum(found[f"{role}, MiB"] for role in ("master", "scribe", "query", "foreman"))
    found["files"] = max(len(os.listdir(f"/proc/{pid}/fd")) for some in pids.values() for pid in some)
    found["lag, ms"] = status["loop"]["lag_ms"]
    found["queued"] = status["tasks"]["idle"] + status["tasks"]["running"]
    found["workers"] = len(status["workers"])
    found["live store, MiB"] = live_store_bytes(pool) / (1 << 20)
    found["sandboxes"] = len(list((pool.path / "work").glob("*/tasks/*")))
    return found


def live_store_bytes(pool: StormPool) -> int:
    """Pages of the queue that are not history, free pages included."""
    with sqlite3.connect(f"file:{pool.path}/queue.db?mode=ro", uri=True) as store:
        history = store.execute("select count(*) from dbstat where name like 'history%'").fetchone()[0]
        pages = store.execute("pragma page_count").fetchone()[0]
        size = store.execute("pragma page_size").fetchone()[0]
    return int((pages - history) * size)


def slope_per_h(moments: list[float], values: list[float]) -> float:
    """Least squares."""
    return 3600 * statistics.linear_regression(moments, values).slope


def soak(pool: StormPool, options: argparse.Namespace) -> dict[str, Any]:
    (pool.cwd / "out").mkdir()
    pool.up()
    load, churn = Load(pool, options.rate, options.seconds), Churn(pool, options.seconds)
    load.start()
    churn.start()
    began, moments, samples = time.monotonic(), [], []
    while load.is_alive():
        time.sleep(min(SAMPLE_S, options.seconds / 20))
        found = sample(pool)
        if found is not None:
            moments.append(time.monotonic() - began)
            samples.append(found)
    churn.join()
    wait_for("all to end", lambda: not any(pool.status()["tasks"][s] for s in ("idle", "running")), 300)
    half = len(moments) // 2
    result: dict[str, Any] = {
        "seconds": round(options.seconds),
        "tasks": load.submitted,
        "workers that came": churn.came,
        "workers that ended badly": churn.failed,
        "submissions late": load.late,
    }
    for name in samples[0]:
        values = [one[name] for one in samples]
        result[name] = {"half way": round(values[half], 2), "end": round(values[-1], 2), "most": round(max(values), 2)}
        result[name]["slope an hour"] = round(slope_per_h(moments[half:], values[half:]), 2)
    return result


def faults(result: dict[str, Any]) -> list[str]:
    found = []
    if result["head, MiB"]["slope an hour"] > MEMORY_MIB_H:
        found.append("memory grows")
    if result["files"]["end"] - result["files"]["half way"] > FILES:
        found.append("open files grow")
    if result["lag, ms"]["most"] > LAG_MS:
        found.append("the loop lags")
    if result["workers that ended badly"]:
        found.append("workers ended badly")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200, help="(%(default)s)")
    parser.add_argument("--rate", type=int, default=300, help="tasks a second (%(default)s)")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="pilotq-soak-"))
    pool = StormPool(base, workers=2, foremen=2, slots=4, network=None)
    try:
        result = soak(pool, options)
    finally:
        pool.close()
        shutil.rmtree(base, ignore_errors=True)
    result["faults"] = faults(result)
    print(json.dumps(result, indent=2))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
