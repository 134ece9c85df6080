"""Row 5: durable submission of one cluster of a million tasks, and how long the master's loop is deaf meanwhile.

From before condor_submit until it has printed the cluster id. Meanwhile a cheap request of the API is sent every 10 ms;
the time of its answer is the lag of the loop and a little more.
"""

from __future__ import annotations

import argparse
import functools
import threading
import time

import machine
from figures import US, Goal, Rounds, Sample, new_parser, percentile
from pool import Pool

EVERY_S = 0.010
#: How the tasks come: all alike, or each with an argument of its own.
KINDS = {US: "queue COUNT\n", f"{US}, own arguments": "arguments = $(item)\nqueue item from items\n"}
PROMISED_S, LAG_MS = 8.0, 100.0


class Lag:
    """Asks for the status again and again; `with` it around what may disturb the loop."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.spent_ms: list[float] = []

    def _ask(self) -> None:
        door = self._pool.door()
        while not self._stop.wait(EVERY_S):
            start = time.perf_counter()
            door.call("GET", "/v1/status")
            self.spent_ms.append(1e3 * (time.perf_counter() - start))
        door.close()

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def submit(options: argparse.Namespace, kind: str) -> Sample:
    """On a pool of its own; the tasks ask for more than any worker has, so that none of them starts."""
    with Pool(1, scratch=options.scratch) as pool:
        text = f"executable = /bin/true\ntransfer_executable = false\nrequest_cpus = 100000\n{KINDS[kind]}"
        text = text.replace("COUNT", str(options.tasks))
        if "items" in text:
            (pool.cwd / "items").write_text("".join(f"item-{number:08d}\n" for number in range(options.tasks)))
        with Lag(pool) as before:
            time.sleep(1.0)
        with Lag(pool) as lag:
            start = time.perf_counter()
            pool.submit(text)
            seconds = time.perf_counter() - start
            time.sleep(0.2)
        status = pool.status()
        idle = status["tasks"]["idle"]
    if idle != options.tasks:
        raise RuntimeError(f"{idle} tasks are queued instead of {options.tasks}")
    return {
        "seconds": seconds,
        "tasks_per_s": options.tasks / seconds,
        "lag_max_ms": max(lag.spent_ms),
        "lag_p99_ms": percentile(lag.spent_ms, 0.99),
        "also": {"the same on an idle loop, ms": max(before.spent_ms), **status.get("loop", {})},
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of the cluster (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks = 1, min(options.tasks, 200_000)
    rounds = Rounds(5, {"tasks": options.tasks, "queue on": machine.file_system(options.scratch or "/tmp")})
    rounds.run(options.rounds, {kind: functools.partial(submit, options, kind) for kind in KINDS})
    least = Goal(PROMISED_S * options.tasks / 1_000_000, least=False)
    for kind in KINDS:
        rounds.show("until the id is printed", "seconds", "s", who=kind, goal=least)
        rounds.show("submission", "tasks_per_s", "tasks/s", who=kind)
        rounds.show(
            "longest answer of the loop meanwhile", "lag_max_ms", "ms", who=kind, goal=Goal(LAG_MS, least=False)
        )
        rounds.show("p99 of the answers of the loop", "lag_p99_ms", "ms", who=kind)


if __name__ == "__main__":
    main()
