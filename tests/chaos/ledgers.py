"""Four ledgers that must agree after a storm: what clients were told, store, user logs, the tasks' own lines."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from load import Client
from pool import StormPool
from storm import Storm

Task = tuple[int, int]
#: A task writes its line when its shell has started; its worker may have been killed a moment before.
SLACK_S = 3.0


@dataclass
class Verdict:
    """What was found; every list must be empty."""

    tasks: int = 0
    lost: list[Task] = field(default_factory=list)
    doubly_reported: list[str] = field(default_factory=list)
    never_ran: list[Task] = field(default_factory=list)
    wrong_outputs: list[str] = field(default_factory=list)
    #: Started again though nothing that ran it was killed.
    doubled: list[str] = field(default_factory=list)
    #: Started again, rightly.
    again: int = 0
    processes: list[str] = field(default_factory=list)
    sandboxes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, int]:
        named = {name: value for name, value in vars(self).items() if isinstance(value, list)}
        return {name: len(value) for name, value in named.items() if value}


def compare(pool: StormPool, client: Client, storm: Storm) -> Verdict:
    """While the pool still answers, after everything has ended."""
    verdict = Verdict(tasks=client.accepted)
    expected = {(cluster, proc) for cluster, count in client.ledger.printed.items() for proc in range(count)}
    rows = pool.query("condor_history", "-af", "ClusterId", "ProcId", "JobStatus", "ExitCode")
    history = Counter((int(row.split()[0]), int(row.split()[1])) for row in rows)
    verdict.lost = sorted(expected - set(history))
    verdict.doubly_reported += [
        f"{task} is in the history {count} times" for task, count in history.items() if count > 1
    ]
    verdict.doubly_reported += [f"history: {row}" for row in rows if not row.endswith(" 4 0")]
    _compare_logs(client, expected, verdict)
    _compare_lines(client, storm, expected, verdict)
    _compare_outputs(pool, client, verdict)
    return verdict


def _compare_logs(client: Client, expected: set[Task], verdict: Verdict) -> None:
    begun: Counter[Task] = Counter()
    ended: Counter[Task] = Counter()
    for log in sorted(set(client.ledger.logs.values())):
        for event, cluster, proc in re.findall(r"^(\d{3}) \((\d+)\.(\d+)\.", log.read_text(), re.M):
            task = (int(cluster), int(proc))
            begun[task] += event == "000"
            ended[task] += event in ("005", "009")
    for task in expected:
        if (begun[task], ended[task]) != (1, 1):
            verdict.doubly_reported.append(f"{task} has {begun[task]} first and {ended[task]} last events in its log")


def _compare_lines(client: Client, storm: Storm, expected: set[Task], verdict: Verdict) -> None:
    """Every start beyond the first must have a reason: what ran the one before was killed."""
    kills: dict[str, list[float]] = defaultdict(list)
    for deed in storm.deeds:
        if deed.what in ("kill worker", "kill keeper"):
            kills[deed.name].append(deed.at)
    starts: dict[Task, list[tuple[float, str]]] = defaultdict(list)
    ends: Counter[Task] = Counter()
    for what, name, host, at in client.lines():
        task = (int(name.split(".")[0]), int(name.split(".")[1]))
        if what == "start":
            starts[task].append((float(at), host))
        else:
            ends[task] += 1
    is_named = storm.pool.network is not None
    for task in expected:
        if not starts[task] or not ends[task]:
            verdict.never_ran.append(task)
        found = sorted(starts[task])
        verdict.again += len(found) - 1
        for (began, host), (again, _) in itertools.pairwise(found):
            moments = kills[host] if is_named else [at for every in kills.values() for at in every]
            if not any(began - SLACK_S <= at <= again for at in moments):
                verdict.doubled.append(f"{task} started on {host} at {began:.2f} and again at {again:.2f}")


def _compare_outputs(pool: StormPool, client: Client, verdict: Verdict) -> None:
    found = Counter()
    for path in pool.cwd.glob("out.*"):
        text = path.read_text()
        match = re.fullmatch(r"result of (\d+)\.\d+\n", text)
        if match is None:
            verdict.wrong_outputs.append(f"{path.name}: {text[:40]!r}")
        else:
            found[int(match[1])] += 1
    for cluster in client.ledger.with_outputs:
        count = client.ledger.printed[cluster]
        if found[cluster] != count:
            verdict.wrong_outputs.append(f"cluster {cluster} has {found[cluster]} outputs of {count}")


def leftovers(pool: StormPool, verdict: Verdict) -> None:
    """After everything was stopped: no process of it, no sandbox of a task."""
    verdict.sandboxes = [str(path) for path in (pool.path / "work").glob("*/tasks/*")]
    base = os.fsencode(pool.path.parent)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                seen = Path(f"/proc/{entry}/cmdline").read_bytes() + Path(f"/proc/{entry}/environ").read_bytes()
                cwd = os.fsencode(os.readlink(f"/proc/{entry}/cwd"))
            except OSError:
                continue
            if base in seen or cwd.startswith(base):
                verdict.processes.append(f"{entry} {seen[:60]!r}")
