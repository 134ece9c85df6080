"""`tests/simulate`: long runs, replays, planted bugs."""

from __future__ import annotations

import argparse
import secrets
import time

from tests.sim.hunt import catch_all, cores, explain, hunt

PROGRESS_S = 5.0
#: What a planted bug has until it must have shown.
PLANTED_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/simulate", description=__doc__)
    parser.add_argument("--steps", type=int, default=0, help="go on until so many events were given to cores")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long (default 60, without --steps)")
    parser.add_argument("--base", type=int, default=0, help="the first seed (default: a random one)")
    parser.add_argument("--seed", type=int, help="replay one seed: shrink it if it fails, and tell its story")
    parser.add_argument("--planted", action="store_true", help="find the planted bugs, and print a table")
    parser.add_argument(
        "--bug", default="", help="with --seed: this planted bug is in place; else: only those named so"
    )
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (default: all cores)")
    options = parser.parse_args()
    if options.seed is not None:
        print(explain(options.seed, options.bug))
        return 0
    base = options.base or secrets.randbelow(1 << 40)
    if options.planted or options.bug:
        return _planted(base, options)
    return _long(base, options)


def _long(base: int, options: argparse.Namespace) -> int:
    began = told = time.monotonic()
    seconds = options.seconds or (float("inf") if options.steps else 60.0)
    print(f"seeds from {base}", flush=True)
    steps, failed = 0, 0
    for found in hunt(base, seconds=seconds, steps=options.steps or 1 << 62, processes=options.jobs):
        steps, now = found.steps, time.monotonic()
        for seed, failure in found.failures[failed:]:
            print(f"FAILED seed {seed}: {failure}\n  tests/simulate --seed {seed}", flush=True)
        failed = len(found.failures)
        if now - told > PROGRESS_S:
            told = now
            print(
                f"{steps:12,} steps, {found.counts['runs']:7,} runs, {steps / (now - began):7,.0f} steps/s", flush=True
            )
        last = found
    took = time.monotonic() - began
    print(f"{steps:,} steps in {took:.0f} s ({steps / took:,.0f}/s), {failed} failures; seeds from {base}")
    print(", ".join(f"{count:,} {what}" for what, count in last.counts.items()))
    return 1 if failed else 0


def _planted(base: int, options: argparse.Namespace) -> int:
    print(f"seeds from {base}\n\n| bug | what is wrong | found by | s | runs | seed | events: plan, shrunk |")
    print("|---|---|---|---|---|---|---|", flush=True)
    missed = 0
    for one in catch_all(base, options.seconds or PLANTED_S, options.jobs, options.bug):
        if one.failure:
            by = one.failure.partition(":")[0]
            found = f"{by} | {one.seconds:.1f} | {one.runs} | {one.seed} | {one.items}, {one.shrunk}"
        else:
            missed += 1
            found = f"NOT FOUND | {one.seconds:.0f} | {one.runs} | | "
        print(f"| `{one.bug}` | {one.text} | {found} |", flush=True)
    if missed:
        print(f"\n{missed} bugs were not found")
    return 1 if missed else 0


raise SystemExit(main())
