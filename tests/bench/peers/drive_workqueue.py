"""Work Queue: our C program as its manager, and one worker of Debian's package. It keeps nothing on disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from driving import children, read_options, tell

#: Submitted and not yet returned. Its cost a task grows with its queue, so that this is its best case.
WINDOW = 50
FOREVER_S = 3600
LOOK_S = 0.02


def main() -> None:
    options = read_options(__doc__, "rate", "latency", "queued", "ramp")
    tasks, cores, behind = options.tasks, options.slots, options.queued
    words = {"rate": [tasks, cores, behind, WINDOW], "queued": [tasks]}.get(options.mode, [tasks, cores, behind])
    argv = [options.program, options.mode, *map(str, words)]
    with tempfile.TemporaryDirectory(dir=options.scratch) as workdir:
        manager = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert manager.stdout is not None
        port = json.loads(manager.stdout.readline())["port"]
        worker = None
        if options.mode != "queued":
            worker = start_worker(port, cores, workdir)
        try:
            if options.mode == "ramp" and worker is not None:
                ramp(manager, worker.pid, tasks)
                return
            said = manager.stdout.read().strip()
            code = manager.wait()
        finally:
            manager.kill()
            if worker is not None:
                end(worker)
    print(said, flush=True)
    sys.exit(code)


def ramp(manager: subprocess.Popen[str], worker: int, tasks: int) -> None:
    """From the first submission until the worker has so many children."""
    assert manager.stdout is not None
    manager.stdout.readline()
    start = time.perf_counter()
    while len(children(worker)) < tasks:
        time.sleep(LOOK_S)
    tell({"tasks": tasks, "seconds": time.perf_counter() - start})


def end(worker: subprocess.Popen[bytes]) -> None:
    """With the tasks that it has; each leads a process group."""
    for pid in children(worker.pid):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    worker.terminate()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def start_worker(port: int, cores: int, workdir: str) -> subprocess.Popen[bytes]:
    """With memory and disk for as many tasks as it has cores, and more."""
    # More than the machine has would make it leave at once.
    size = str(max(1000, 10 * cores))
    argv = ["work_queue_worker", "--cores", str(cores), "--memory", size, "--disk", size]
    argv += ["--workdir", workdir, "-t", str(FOREVER_S), "127.0.0.1", str(port)]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
