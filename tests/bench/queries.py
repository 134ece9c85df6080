"""What the commands that ask cost their user, beyond an empty run of the same interpreter.

On an idle pool, one command at a time, in turns with the empty runs; then with 100,000 tasks in the queue, where 200
of them are asked for in one line.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import statistics

from figures import US, Goal, Rounds, Sample, new_parser
from pool import Pool
from pools import SHIMS
from submit import WAITING, wall_ms

FULL = f"{US}, a long queue"
#: Name of a figure -> command; "JOB" is a job that waits.
COMMANDS = {
    "condor_q of one job": ["condor_q", "JOB"],
    "condor_q -af of one job": ["condor_q", "JOB", "-af", "JobStatus"],
    "condor_q -json": ["condor_q", "-json"],
    "condor_q -better-analyze": ["condor_q", "-better-analyze", "JOB"],
    "condor_q -totals": ["condor_q", "-totals"],
    "condor_history of one job": ["condor_history", "JOB", "-limit", "1"],
    "condor_status": ["condor_status"],
    "condor_status -schedd": ["condor_status", "-schedd", "-af", "Name"],
    "condor_version": ["condor_version"],
}
IDS = "condor_q -constraint of 200 ids"


def over_ms(pool: Pool, commands: dict[str, list[str]], count: int) -> Sample:
    """Medians, beyond the empty runs made in between; and the empty run itself."""
    python = shutil.which("python3", path=pool.environ["PATH"])
    assert python is not None
    empty: list[float] = []
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(count):
        for name, (tool, *words) in commands.items():
            empty.append(wall_ms([python, "-I", "-S", "-c", "pass"], pool))
            spent[name].append(wall_ms([str(SHIMS / tool), *words], pool))
    base = statistics.median(empty)
    return {"empty": base, **{name: statistics.median(values) - base for name, values in spent.items()}}


def idle(options: argparse.Namespace) -> Sample:
    """One job is in the queue."""
    with Pool(1, scratch=options.scratch) as pool:
        pool.write(WAITING)
        pool.condor("condor_submit", "task.sub")
        job = pool.condor("condor_q", "-af:j").split()[0]
        commands = {name: [job if word == "JOB" else word for word in words] for name, words in COMMANDS.items()}
        return over_ms(pool, commands, options.count)


def full(options: argparse.Namespace) -> Sample:
    """Ten clusters, and of each some jobs."""
    with Pool(1, scratch=options.scratch) as pool:
        pool.write(WAITING.replace("queue", f"queue {options.tasks // 10}"))
        for _ in range(10):
            pool.condor("condor_submit", "task.sub")
        step = max(options.tasks // 10 // 20, 1)
        ids = [f"(ClusterId == {number} && ProcId == {proc * step})" for number in range(1, 11) for proc in range(20)]
        words = ["condor_q", "-constraint", " || ".join(ids), "-af:j", "JobStatus"]
        assert len(pool.condor(*words).splitlines()) == 200
        return over_ms(pool, {IDS: words}, options.count)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=30, help="runs of each command (%(default)s)")
    parser.add_argument("--tasks", type=int, default=100_000, help="in the long queue (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.count, options.tasks = 1, 5, min(options.tasks, 2000)
    rounds = Rounds(4, {"count": options.count, "tasks": options.tasks})
    rounds.run(options.rounds, {US: functools.partial(idle, options), FULL: functools.partial(full, options)})
    rounds.show("empty interpreter", "empty", "ms", who=US)
    for name in COMMANDS:
        limit = 10 if name.endswith("of one job") and name.startswith("condor_q") else 20
        rounds.show(f"{name} beyond an empty interpreter", name, "ms", goal=Goal(limit, least=False))
    rounds.show(f"{IDS} beyond an empty interpreter", IDS, "ms", who=FULL, goal=Goal(60, least=False))


if __name__ == "__main__":
    main()
