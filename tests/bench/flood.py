#!/usr/bin/env python3
"""What 5,000 silent TCP connections and a reader of one byte a second cost: tasks a second with and without them, in
alternating rounds, and how late the master's loop came to what was due. Prints JSON.

tests/bench/flood.py [--rounds 3] [--tasks 1000]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]

from flood import Flood, SlowReader, allowed  # noqa: E402
from parts import Parts  # noqa: E402


def rate(parts: Parts, tasks: int) -> float:
    """Tasks a second from submission to the last end."""
    began = time.monotonic()
    cluster = parts.submit(f"executable = /bin/true\ntransfer_executable = false\nqueue {tasks}\n")
    parts.client.get(f"/v1/clusters?ids={cluster}&wait_s=60")
    parts.wait_done(cluster, 300)
    return tasks / (time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args()
    found: dict[str, list[float]] = {"quiet": [], "flooded": []}
    lags: dict[str, list[float]] = {"quiet": [], "flooded": []}
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder), foremen=1)
        count = allowed()
        try:
            parts.start_all(slots=2, foremen=1)
            # What the slow reader asks for.
            parts.submit("executable = /bin/true\ntransfer_executable = false\nrequest_cpus = 99\nqueue 20000\n")
            rate(parts, options.tasks)
            for _ in range(options.rounds):
                for name, rates in found.items():
                    ports = [parts.master_port, parts.master_port + 1]
                    with contextlib.ExitStack() as guests:
                        if name == "flooded":
                            guests.enter_context(contextlib.closing(SlowReader(str(parts.path / "api.sock"))))
                            guests.enter_context(Flood(ports, count))
                        rates.append(rate(parts, options.tasks))
                        lags[name].append(parts.status()["loop"]["lag_ms"])
        finally:
            parts.close()
    ratio = statistics.median(found["flooded"]) / statistics.median(found["quiet"])
    rates = {name: [round(one) for one in values] for name, values in found.items()}
    print(json.dumps({"connections": count, "tasks_per_s": rates, "ratio": round(ratio, 2), "lag_ms": lags}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
