"""The sentences of docs/performance.md; the figures come from the results."""

from __future__ import annotations

from typing import NamedTuple

TOP = """# Performance

*Made by `tests/bench/run` from [the raw figures](performance/results.jsonl); the sentences are in
`tests/bench/sentences.py`. `tests/bench/run --quick` tries everything in a few minutes, `tests/bench/NAME.py --help`
tells what one benchmark can be asked.*

Every pilotq figure here is of the pool as it is used: a durable queue on disk, CURVE on every connection, foremen in
between, a scratch directory and output files for each task. **The peers keep nothing**: where one of them stands beside
a figure of ours, a run that survives `kill -9` of everything stands beside one that would have to begin again.
"""

RULES = """## How it was measured

- Contestants take turns: one round of each, then the next round, each round beginning with another one. The limits of
  the machine are measured again in every round. A figure is the median of the rounds, with their least and greatest in
  brackets; a ratio is taken within each round, and its median is what is told.
- Compare ratios. Absolute values of a virtual machine stray by a quarter from hour to hour.
- The master's CPU for each task stands beside every rate. It includes all threads of its process; scribe (writes what
  users get), query (answers `condor_q`), foremen, workers and keepers stand beside it. "tasks" is what the processes
  of the tasks took themselves, `exec` included.
- Everything runs on this one machine, on loopback, load generators and pollers included, and shares its cores.
- **Work Queue** is driven by a C program of ours over its own library, with a client window of 50 tasks, which is its
  best case: its cost a task grows with its queue. Its plots against the length of the queue show what happens
  otherwise.
- **HyperQueue's wheel is biased against HyperQueue**: server, worker and client are threads of one Python process and
  the worker forks from it, so that starting a task costs more the larger that process is. It has no journal and no
  array jobs, and its client looks for the end of a job once a second, so that we see the end from outside. A
  stand-alone `hq` would do better. No ratio to it is a goal.
- Ray, Dask, executorlib and Parsl run Python functions; theirs calls `subprocess.run` (Parsl: its `bash_app`, with a
  shell). They make no scratch directory and no output files.
- The C limits are a few lines of ours, in `tests/bench/peers`: `posix_spawn` from two processes; the same with the
  system calls that a keeper makes around a task on the same file system; the same and both streams delivered as files
  of the user.
"""


class Row(NamedTuple):
    """A section."""

    title: str
    text: str


ROWS = {
    1: Row(
        "Real tasks a second",
        """
`/bin/true`, all tasks in one submission with `condor_submit`, through one foreman. The clock runs from before
the command until the last completion is committed. The outputs of tasks are delivered meanwhile.
""",
    ),
    2: Row(
        "Dispatch ceiling",
        """
`pilotq bench`: master and foremen with the durable queue, and simulated workers that start no process. Peers
call a Python function that does nothing, on 8 workers. For comparison, CPU of Work Queue's manager beside its
rate is in the section before.
""",
    ),
    3: Row(
        "Latency on an idle pool",
        """
One `/bin/true` at a time: a client in the process of the benchmark submits it over the API and waits for its
end. Two commits to disk are in each of our figures, none in those of the peers.
""",
    ),
    4: Row(
        "Submitting one by one",
        """
`condor_submit` of one task as a whole process, beside an empty run of the same interpreter; and 100 connections
of one process that submit single tasks over the API as fast as they are accepted. Each answer comes after the
commit; commits are shared by those who wait at the same moment.
""",
    ),
    5: Row(
        "Submitting a million",
        """
One cluster, from before `condor_submit` until it has printed the id: all tasks alike, or each with an argument
of its own, read from a file. Meanwhile the API is asked every 10 ms; its longest answer bounds how long the
master's loop was deaf.
""",
    ),
    6: Row(
        "Memory of the queue",
        """
Growth of the private memory of the master, divided by the number of queued tasks. With own arguments, each task
also has two variables of its own and names one of ten input files.
""",
    ),
    7: Row(
        "Ramp",
        """
From an idle pool to so many really running `sleep 120`, one submission, and back with `condor_rm`. Processes
are counted as children of the keepers, and looked at one by one at the end. The C program starts as many from
two processes without anything else. Work Queue and HyperQueue have one worker with 1,000 slots.
""",
    ),
    8: Row(
        "A large pool",
        """
`pilotq bench --fill`: simulated workers on this machine, from their start until the last slot is busy, and then
what the daemons take while tasks end and begin. The simulators share the cores with the master.
""",
    ),
    9: Row(
        "Growth",
        """
The same work while so many other tasks wait in the queue, which ask for more than any worker has. Ratios are to
the shortest queue. The milliseconds of `condor_q` are of whole commands, start of the interpreter included.
""",
    ),
    10: Row(
        "Staging",
        """
The shared file: bytes that master and foremen sent over the busiest of their connections, as the kernel counts
them, divided by the size of the file. The small files: what they add to a run of as many tasks without files,
as files a second, beside `cp -r` of the same tree; and the same with the whole run, and with the upload, in the
numerator. Everything is on a tmpfs, the queue as well.
""",
    ),
    0: Row(
        "Against slots",
        """
Fewer tasks than in the first section, beside some of the peers; these are for the plots.
""",
    ),
}


class Peer(NamedTuple):
    """What one needs to know of a peer."""

    name: str
    durable: str
    promises: str
    here: str


PEERS = {
    "pilotq": Peer(
        "pilotq",
        "yes",
        "accepted means on disk; survives `kill -9` of everything; each end reported once",
        "everything on, as above",
    ),
    "workqueue": Peer(
        "Work Queue",
        "no",
        "the queue lives in the application and dies with it; tasks of lost workers are run again",
        "Debian's package, C client, window of 50, one worker, a sandbox a task",
    ),
    "hyperqueue": Peer(
        "HyperQueue",
        "only with a journal",
        "with `hq server --journal` jobs survive the server, but for the last seconds; the wheel cannot",
        "PyPI wheel, `LocalCluster`, one worker, one process for all",
    ),
    "parsl": Peer(
        "Parsl",
        "no",
        "results of finished apps can be memoized and checkpointed; the queue dies with the script",
        "HighThroughputExecutor, `bash_app`, no encryption",
    ),
    "dask": Peer(
        "Dask distributed",
        "no",
        "tasks of lost workers are run again; the queue dies with the scheduler",
        "`LocalCluster`, a process a slot",
    ),
    "ray": Peer(
        "Ray",
        "no",
        "tasks of lost workers are run again; the queue dies with the driver",
        "`ray.init`, one node, no dashboard",
    ),
    "executorlib": Peer(
        "executorlib",
        "no",
        "futures of one Python process; no queue beyond it",
        "`SingleNodeExecutor`, workers kept (block allocation)",
    ),
}

_HOPS = (
    "Five processes and two synced commits are on our way (submitted and assigned; ended and outputs written), one "
    "process and nothing on disk on Work Queue's. Of about 4 ms the process itself takes 0.9, two commits 0.9, the "
    "scribe with two files of the user 0.4, keeper and worker 0.6, two hops each way over CURVE 0.6, HTTP and the "
    "master's own work 0.6."
)

#: Why a goal is not reached, by row and name of the figure.
REASONS: dict[tuple[int, str], str] = {
    (1, "rate"): (
        "A task costs about 0.6 ms of CPU for its process, as in C, 0.26 to 0.33 in the keepers, 0.07 in worker, "
        "foreman and master; with outputs, 0.04 ms in the scribe, half of it in the kernel that makes two more files a "
        "task, and 0.02 more in the master. None of the peers and none of the programs in C syncs anything."
    ),
    (3, "latency p50"): _HOPS,
    (3, "latency p99"): _HOPS,
    (
        9,
        "condor_q -constraint",
    ): "An expression over a million numbers costs the ClassAd library 1.7 us for each.",
    (9, "rate while condor_q is asked, of that without"): (
        "The query process is another one and gives way, but the two cores are the same."
    ),
    (10, "small files, what they add to the run"): (
        "Of about 100 us of CPU for a file of 10 KB, its two hops (encryption and TCP) take 30 to 40, its digest 8, "
        "SQLite 5, writing it 6; `cp` takes 16 to 25 for the whole of it."
    ),
}
