"""HyperQueue's wheel: server, worker and client are threads of this one process, and the worker forks from it.

Its client asks for the end of a job only once a second, so the end is seen from outside: by a byte that the task
appends to a file (latency), or as the last moment at which this process had a child (rate). So the report of the last
task to the server is not in the figure. No journal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from driving import children, measure, read_options, tell
from hyperqueue import Job, LocalCluster  # type: ignore[import-not-found,unused-ignore]
from hyperqueue.cluster import WorkerConfig  # type: ignore[import-not-found,unused-ignore]

LOOK_S, LATENCY_LOOK_S = 0.01, 0.0005
#: Without a child for so long there will be none.
QUIET_S = 0.3


def last_child() -> float:
    """The last moment at which this process had a child."""
    while not children(os.getpid()):
        time.sleep(LOOK_S)
    seen = time.perf_counter()
    while time.perf_counter() - seen < QUIET_S:
        time.sleep(LOOK_S)
        if children(os.getpid()):
            seen = time.perf_counter()
    return seen


def ramp(client: Any, tasks: int) -> None:
    """From the submission until this process has so many children; leaves without waiting for them."""
    job = Job(max_fails=0)
    for _ in range(tasks):
        job.program(["/bin/sleep", "120"], stdout=None, stderr=None)
    start = time.perf_counter()
    client.submit(job)
    while len(pids := children(os.getpid())) < tasks:
        time.sleep(2 * LOOK_S)
    tell({"tasks": tasks, "seconds": time.perf_counter() - start})
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    options = read_options(__doc__, "rate", "latency", "ramp")
    where = Path(tempfile.mkdtemp(dir=options.scratch))
    os.chdir(where)
    ended = where / "ended"
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=options.slots))
        client = cluster.client()

        def rate(count: int) -> float:
            job = Job(max_fails=0)
            for _ in range(count):
                job.program(["/bin/true"], stdout=None, stderr=None)
            submitted = client.submit(job)
            end = last_child()
            client.wait_for_jobs([submitted])
            return end

        def latency(count: int) -> None:
            job = Job(max_fails=0)
            ended.write_bytes(b"")
            for _ in range(count):
                job.program(["/bin/sh", "-c", f"printf . >>{ended}"], stdout=None, stderr=None)
            client.submit(job)
            while ended.stat().st_size < count:
                time.sleep(LATENCY_LOOK_S)

        if options.mode == "ramp":
            ramp(client, options.tasks)
            return
        measure(options, rate if options.mode == "rate" else latency)


if __name__ == "__main__":
    main()
