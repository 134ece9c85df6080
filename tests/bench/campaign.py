"""Runs the benchmarks one after the other, stores what they print, and writes docs/performance.md.

Each benchmark runs its own alternating rounds. Rows that are not run keep the figures they have.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
from contestants import PYTHON_PEERS, WORK_QUEUE, cache_directory, version_of
from figures import say
from pool import ROOT
from report import read_results, write_report

from pilotq import __version__

#: Benchmarks by the row they are for; 0: for the plots.
ROWS = {
    1: "rate", 2: "ceiling", 3: "latency", 4: "submit", 5: "bulk",
    6: "memory", 7: "ramp", 8: "fleet", 9: "growth", 10: "staging", 0: "slots",
}  # fmt: skip
#: Of a quick try: what is not needed to see that it works.
SHORTER = {2: ["--peers", "executorlib"], 9: ["--peers", "workqueue"]}
HERE = Path(__file__).resolve().parent
RESULTS, PAGE = ROOT / "docs/performance/results.jsonl", ROOT / "docs/performance.md"


def run_row(row: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Its figures; what it printed before it failed counts."""
    argv = [sys.executable, str(HERE / f"{ROWS[row]}.py")]
    if options.quick:
        argv += ["--quick", *([] if options.peers else SHORTER.get(row, []))]
    for name in ("rounds", "scratch", "cache", "peers"):
        if getattr(options, name) is not None:
            argv += [f"--{name}", str(getattr(options, name))]
    if options.workdir and row in (1, 3, 0, 9):
        argv += ["--workdir", options.workdir]
    argv += options.more
    # Shims must find a real interpreter first, not a wrapper that chooses one.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).resolve().parent}:{os.environ['PATH']}"}
    lines: list[dict[str, Any]] = []
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(json.loads(line))
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()
    if process.returncode:
        say(f"{ROWS[row]} ended with {process.returncode}")
    return lines


def about(row: int, options: argparse.Namespace, load: float, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run was; no name of this machine, no path of it."""
    cache = cache_directory(options.cache)
    peers = {peer: version_of(peer, cache) for peer in (*PYTHON_PEERS, WORK_QUEUE)}
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    scratch = options.scratch or tempfile.gettempdir()
    return {
        "run": row,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": max((len(figure["rounds"]) for figure in figures), default=0),
        "quick": options.quick,
        "load": load,
        "pilotq": f"{__version__}, {done.stdout.strip() or 'no checkout'}",
        "machine": machine.facts(),
        "versions": {"pilotq": __version__, **peers},
        "file systems": {
            "queue": machine.file_system(scratch),
            "sandboxes": machine.file_system(options.workdir or scratch),
        },
    }


def store(row: int, lines: list[dict[str, Any]], results: Path) -> None:
    """In place of what this row had."""
    runs, figures = read_results(results) if results.exists() else ([], [])
    kept = [line for line in runs if line["run"] != row] + [line for line in figures if line["row"] != row]
    order = sorted([*kept, *lines], key=lambda line: (line.get("row", -1), line.get("run", -1)))
    results.parent.mkdir(parents=True, exist_ok=True)
    temporary = results.with_suffix(".new")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in order), "utf-8")
    temporary.replace(results)


def read_options() -> argparse.Namespace:
    names = ", ".join(f"{row} {name}" for row, name in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description=__doc__, epilog=f"Rows: {names}. Options of one row's benchmark may follow."
    )
    parser.add_argument("--quick", action="store_true", help="few tasks, one round, few peers; kept apart")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="numbers or names of rows")
    parser.add_argument("--rounds", type=int, help="alternating rounds (each benchmark's own default, mostly 5)")
    parser.add_argument("--scratch", metavar="DIR", help="where queues and scratch directories lie (a temporary one)")
    parser.add_argument("--workdir", metavar="DIR", help="where sandboxes lie, as /dev/shm (where the queue lies)")
    parser.add_argument("--cache", metavar="DIR", help="where peers are installed (~/.cache/pilotq-bench)")
    parser.add_argument("--peers", metavar="NAMES", help="only these beside pilotq and the limits, comma separated")
    parser.add_argument("--results", metavar="FILE", type=Path, help="raw figures, and the page beside them")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write the page again")
    options, more = parser.parse_known_args()
    options.more = more
    by_name = {name: row for row, name in ROWS.items()}
    try:
        options.rows = [by_name[word] if word in by_name else int(word) for word in options.only or map(str, ROWS)]
    except ValueError as error:
        parser.error(f"no row: {error}")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no rows: {unknown}")
    if options.more and len(options.rows) != 1:
        parser.error(f"{' '.join(options.more)}: options of one benchmark need --only with that one")
    return options


def main() -> None:
    options = read_options()
    results, page = RESULTS, PAGE
    if options.quick and options.results is None:
        options.results = cache_directory(options.cache) / "quick" / "results.jsonl"
    if options.results is not None:
        results, page = options.results, options.results.with_suffix(".md")
    for row in [] if options.report else options.rows:
        say(f"row {row}: {ROWS[row]}")
        load = os.getloadavg()[0]
        figures = run_row(row, options)
        if figures:
            store(row, [about(row, options, load, figures), *figures], results)
    write_report(results, page)
    say(f"wrote {page}")


if __name__ == "__main__":
    main()
