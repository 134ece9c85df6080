"""10,000 nodes of /bin/true as a flat and as a layered DAG, beside one plain submission of as many tasks.

Prints JSON: seconds of each, and rates as a ratio to the plain one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "process"), str(Path(__file__).resolve().parents[2])]

from parts import Parts  # noqa: E402

SUB = "executable = /bin/true\ntransfer_executable = false\n"


def plain(pool: Parts, count: int) -> float:
    began = time.monotonic()
    cluster = pool.submit(f"{SUB}log = plain.log\nqueue {count}\n")
    pool.wait_done(cluster, 600)
    return time.monotonic() - began


def dag(pool: Parts, name: str, lines: list[str]) -> float:
    (pool.cwd / "node.sub").write_text(f"{SUB}queue\n")
    (pool.cwd / f"{name}.dag").write_text("\n".join(lines) + "\n")
    began = time.monotonic()
    done = pool.pilotq("dag", "-Dag", f"{name}.dag", cwd=pool.cwd, timeout_s=900)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    count, width = options.nodes, options.nodes // options.layers
    layers = [[f"L{layer}N{index}" for index in range(width)] for layer in range(options.layers)]
    jobs = [f"JOB {name} node.sub" for layer in layers for name in layer]
    edges = [f"PARENT {' '.join(before)} CHILD {' '.join(after)}" for before, after in pairwise(layers)]
    with tempfile.TemporaryDirectory() as folder:
        pool = Parts(Path(folder), foremen=1)
        try:
            pool.start_all(slots=options.slots, foremen=1)
            plain(pool, 200)
            seconds = {
                "plain": plain(pool, count),
                "flat": dag(pool, "flat", jobs),
                "layered": dag(pool, "layered", [*jobs, *edges]),
            }
        finally:
            pool.close()
    ratios = {name: round(seconds["plain"] / value, 2) for name, value in seconds.items()}
    print(json.dumps({"nodes": count, "layers": options.layers, "seconds": seconds, "ratio_to_plain": ratios}))


if __name__ == "__main__":
    main()
