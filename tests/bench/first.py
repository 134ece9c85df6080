"""First figures: rate beside xargs, latency on an idle pool, wall time of the shims. Prints one JSON line a figure.

    .venv/bin/python tests/bench/first.py [--rounds N] [--tasks N]

Every pair alternates in the same run; compare the ratios, not the absolute times.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/process")]

from parts import Parts, wait_for  # noqa: E402

XARGS = "mkdir d$1 && cp /bin/true d$1/x && cd d$1 && ./x >o 2>e </dev/null && cd .. && rm -r d$1"


def show(name: str, **figures: Any) -> None:
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"figure": name, **rounded}), flush=True)


def timed(argv: list[str], **more: Any) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    return time.perf_counter() - start


def rate(base: Path, rounds: int, tasks: int) -> None:
    """Real /bin/true tasks a second on 2 slots, beside xargs -P2 over the same scratch-directory work."""
    (base / "true.sub").write_text(f"executable = /bin/true\nqueue {tasks}\n")
    ours, theirs = [], []
    for _ in range(rounds):
        done = subprocess.run(
            [ROOT / "bin/pilotq", "run", "--slots", "2", "true.sub"],
            cwd=base,
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"\(([\d.,]+) tasks/s\)", done.stdout)
        assert found, done.stdout
        ours.append(float(found[1].replace(",", "")))
        numbers = "\n".join(map(str, range(tasks)))
        start = time.perf_counter()
        subprocess.run(
            ["xargs", "-P2", "-I{}", "sh", "-c", XARGS, "x", "{}"], input=numbers, text=True, cwd=base, check=True
        )
        theirs.append(tasks / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    show("rate", tasks_per_s=statistics.median(ours), xargs_per_s=statistics.median(theirs), ratio=ratio, rounds=rounds)


def latency(pool: Parts, count: int) -> None:
    """From before condor_submit of one task until its completion is in the history."""
    (pool.cwd / "one.sub").write_text("executable = /bin/true\nqueue\n")
    spent = []
    for _ in range(count):
        start = time.perf_counter()
        done = pool.condor("condor_submit", "-terse", "one.sub", cwd=pool.cwd)
        cluster = int(done.stdout.split(".")[0])
        while not pool.client.get(f"/v1/tasks?cluster={cluster}&state=done"):
            time.sleep(0.001)
        spent.append(1000 * (time.perf_counter() - start))
    spent.sort()
    show("submit to history", p50_ms=statistics.median(spent), p90_ms=spent[int(0.9 * count)], count=count)


def shims(pool: Parts, count: int) -> None:
    """Wall time of condor_q of one job and condor_submit of one task, beside an empty interpreter."""
    python = os.path.realpath(
        subprocess.check_output(["python3", "-c", "import sys; print(sys.executable)"], text=True).strip()
    )
    environ = {**pool.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    cluster = pool.submit("executable = /bin/sleep\narguments = 600\nhold = true\nqueue\n")
    empty, query, submit = [], [], []
    for _ in range(count):
        empty.append(1000 * timed([python, "-I", "-S", "-c", "pass"], env=environ))
        query.append(1000 * timed([str(ROOT / "fakecondor/condor_q"), str(cluster)], env=environ))
        submit.append(1000 * timed([str(ROOT / "fakecondor/condor_submit"), "one.sub"], env=environ, cwd=pool.cwd))
    base = statistics.median(empty)
    show(
        "condor_q",
        ms=statistics.median(query),
        over_empty_ms=statistics.median(query) - base,
        empty_ms=base,
        count=count,
    )
    show("condor_submit", ms=statistics.median(submit), over_empty_ms=statistics.median(submit) - base, count=count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--count", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        pool = Parts(base)
        try:
            pool.start_all(slots=2)
            wait_for("the foremen", lambda: len(pool.status()["foremen"]) == 2)
            latency(pool, options.count)
            shims(pool, options.count)
        finally:
            pool.close()
        rate(base, options.rounds, options.tasks)


if __name__ == "__main__":
    main()
