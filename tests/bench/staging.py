"""Row 10: input files. One of 100 MB that all tasks share, and ten small ones that each task has of its own.

The shared file: 1,000 tasks on 10 workers behind 2 foremen; the bytes that master and foremen sent over each of their
connections are compared with the size of the file. The small files: the time of 10,000 tasks with files, less that of
as many without, beside `cp -r` of the same tree. All of it lies in memory (--memory).
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import time
from pathlib import Path

import links
import machine
from figures import US, Goal, Rounds, Sample, new_parser
from pool import Pool, new_directory

COPY = "cp -r"
#: The same ten files for all tasks, which workers keep by their content.
SAME = "pilotq, the same files for all"
FILES, FILE_BYTES = 10, 10_000
PLAIN = "executable = /bin/true\ntransfer_executable = false\n"
ONCE, OF_COPY = Goal(1.05, least=False), Goal(0.7)


def shared(options: argparse.Namespace) -> Sample:
    """How often the file crossed each link."""
    with Pool(1, foremen=2, scratch=options.memory) as pool:
        pool.start_workers(options.workers - 1, 1)
        size = options.megabytes * 1_000_000
        with (pool.cwd / "shared.bin").open("wb") as file:
            for _ in range(options.megabytes):
                file.write(os.urandom(1_000_000))
        master = int(pool.environ["WQ_MASTER"].rpartition(":")[2])
        first = int(pool.environ["WQ_MASTER_BASEPORT"])
        ports = {"master": [master], "foreman": [first, first + 1]}
        before = {role: [links.sent_from(port) for port in ones] for role, ones in ports.items()}
        start = time.perf_counter()
        text = f"{PLAIN}transfer_input_files = shared.bin\nqueue {options.shared_tasks}\n"
        ended = pool.wait_ended(pool.submit(text))
        seconds = time.perf_counter() - start
        after = {role: [links.sent_from(port) for port in ones] for role, ones in ports.items()}
        connected = len(pool.status()["workers"])
        pool.must_be_done(ended, options.shared_tasks)
    crossed = {}
    for role in ports:
        sent = [max(one, default=0) for one in after[role]]
        base = [max(one, default=0) for one in before[role]]
        crossed[role] = max(now - then for now, then in zip(sent, base, strict=True)) / size
        crossed[f"{role}, all links"] = sum(map(sum, after[role])) / size
    also = {**crossed, "seconds": seconds, "workers": connected}
    return {"crossed": max(crossed["master"], crossed["foreman"]), "tasks_per_s": ended["done"] / seconds, "also": also}


def new_tree(parent: Path, tasks: int) -> Path:
    """A directory for each task with its files, all different."""
    tree = parent / "tree"
    for number in range(tasks):
        folder = tree / str(number)
        folder.mkdir(parents=True)
        data = os.urandom(FILES * FILE_BYTES)
        for index in range(FILES):
            (folder / f"f{index}").write_bytes(data[index * FILE_BYTES : (index + 1) * FILE_BYTES])
    return tree


def run_s(pool: Pool, text: str, tasks: int) -> tuple[float, float]:
    """Seconds until accepted, and from then on until all is done."""
    start = time.perf_counter()
    cluster = pool.submit(text)
    accepted = time.perf_counter()
    pool.must_be_done(pool.wait_ended(cluster), tasks)
    return accepted - start, time.perf_counter() - accepted


def small(options: argparse.Namespace, folder: str) -> Sample:
    """Tasks with files of their own (or those of one folder), and as many without."""
    tasks = options.small_tasks
    with Pool(options.slots, foremen=2, scratch=options.memory) as pool:
        tree = new_tree(pool.cwd, tasks)
        names = ", ".join(f"{tree.name}/{folder}/f{index}" for index in range(FILES))
        bare = run_s(pool, f"{PLAIN}queue {tasks}\n", tasks)
        full = run_s(pool, f"{PLAIN}transfer_input_files = {names}\nqueue {tasks}\n", tasks)
    staging_s = max(full[1] - bare[1], 1e-3)
    return {
        "files_per_s": FILES * tasks / staging_s,
        "whole_per_s": FILES * tasks / sum(full),
        "run_per_s": FILES * tasks / full[1],
        "also": {"upload, s": full[0], "run, s": full[1], "without files, s": bare[1]},
    }


def copy(options: argparse.Namespace) -> Sample:
    """The same tree, from memory to memory."""
    parent = new_directory(options.memory, "copy")
    try:
        tree = new_tree(parent, options.small_tasks)
        start = time.perf_counter()
        subprocess.run(["cp", "-r", tree, parent / "copy"], check=True)
        rate = FILES * options.small_tasks / (time.perf_counter() - start)
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    return {"files_per_s": rate, "whole_per_s": rate, "run_per_s": rate}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--memory", metavar="DIR", default="/dev/shm", help="a tmpfs (%(default)s)")
    parser.add_argument("--shared-tasks", type=int, default=1_000, help="(%(default)s)")
    parser.add_argument("--megabytes", type=int, default=100, help="of the shared file (%(default)s)")
    parser.add_argument("--workers", type=int, default=10, help="of one slot each (%(default)s)")
    parser.add_argument("--small-tasks", type=int, default=10_000, help="with small files (%(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="for the small files (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.shared_tasks, options.megabytes = 1, 60, 20
        options.workers, options.small_tasks = 4, min(options.small_tasks, 300)
    lies = machine.file_system(options.memory)
    settings = {"tasks": options.shared_tasks, "MB": options.megabytes, "workers": options.workers, "foremen": 2}
    rounds = Rounds(10, {**settings, "all on": lies})
    rounds.run(options.rounds, {US: functools.partial(shared, options)})
    rounds.show("shared file, times over the busiest link", "crossed", "times", goal=ONCE)
    rounds.show("tasks with the shared file", "tasks_per_s", "tasks/s")
    settings = {"tasks": options.small_tasks, "files": FILES, "bytes": FILE_BYTES, "slots": options.slots}
    rounds = Rounds(10, {**settings, "all on": lies})
    own, same = functools.partial(small, options, "$(Process)"), functools.partial(small, options, "0")
    rounds.run(options.rounds, {US: own, SAME: same, COPY: functools.partial(copy, options)})
    for who in (US, SAME, COPY):
        if who != SAME:  # Files that all tasks share add nothing that could be told from noise.
            rounds.show("small files", "files_per_s", "files/s", who=who)
    rounds.ratio("small files, what they add to the run", "files_per_s", COPY, goal=OF_COPY)
    for who in (US, SAME):
        rounds.ratio("small files, the run with its processes", "run_per_s", COPY, of=who)
        rounds.ratio("small files, with their upload", "whole_per_s", COPY, of=who)


if __name__ == "__main__":
    main()
