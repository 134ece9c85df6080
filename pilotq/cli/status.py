"""`status` and `drain`: what the master says, beside what this machine says."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pilotq import units
from pilotq.cli.context import read_settings
from pilotq.cli.processes import read_records
from pilotq.client import Client
from pilotq.config import Settings
from pilotq.errors import UnavailableError

STATES = ("idle", "running", "suspended", "held", "done", "failed", "cancelled")


def main(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    try:
        status: dict[str, Any] = Client(settings.home).get("/v1/status")
        trouble = None
    except UnavailableError as error:
        status, trouble = {}, error
    processes = _processes(settings, status)
    if options.json:
        # Without a master there are no numbers: null, not 0.
        nothing = {"home": settings.home, "state": "unreachable", "tasks": None, "slots": None, "workers": None}
        print(json.dumps({**(status or nothing), "processes": processes}))
    else:
        _print(status, processes)
    if trouble is not None:
        print(f"pilotq: {trouble.line()}", file=sys.stderr)
        return trouble.exit_code
    return 0


def _processes(settings: Settings, status: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process of this pool on this machine, dead ones too as long as their record is there."""
    peers = {int(one["pid"]): str(one["state"]) for kind in ("foremen", "workers") for one in status.get(kind, [])}
    found: list[dict[str, Any]] = []
    for process in read_records(settings.state_dir):
        state = "dead"
        if process.is_alive():
            state = (
                str(status.get("state", "running")) if process.role == "master" else peers.get(process.pid, "running")
            )
        found.append({"role": process.role, "name": process.name, "pid": process.pid, "state": state})
    known = {one["pid"] for one in found}
    for role in ("query", "scribe"):
        pid = (status.get(role) or {}).get("pid")
        if pid and pid not in known:
            found.append({"role": role, "name": role, "pid": pid, "state": "running"})
    return found


def _print(status: dict[str, Any], processes: list[dict[str, Any]]) -> None:
    if status:
        uptime = units.format_duration(float(status.get("uptime_s", 0)))
        print(f"pool      {status.get('home')} ({status.get('state')}, up {uptime}, version {status.get('version')})")
        tasks = status.get("tasks", {})
        print("tasks     " + ", ".join(f"{tasks.get(state, 0):,} {state}" for state in STATES))
        slots = status.get("slots", {})
        print(f"slots     {slots.get('open', 0):,} open, {slots.get('busy', 0):,} busy, {slots.get('free', 0):,} free")
        table(worker_rows(status.get("workers", [])))
        table(
            [("foreman", "pid", "workers", "state")]
            + [(str(f["name"]), str(f["pid"]), str(f["workers"]), str(f["state"])) for f in status.get("foremen", [])]
        )
    table([("process", "pid", "state")] + [(str(one["name"]), str(one["pid"]), str(one["state"])) for one in processes])


def worker_rows(workers: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A heading and a line for each worker."""
    rows: list[tuple[str, ...]] = [("worker", "host", "via", "slots", "busy", "state", "contact")]
    for one in workers:
        via = str(one.get("foreman") or "master")
        contact = f"{one.get('contact_s', 0):.0f} s"
        cells = (one.get("name"), one.get("host"), via, one.get("cpus"), one.get("busy"), one.get("state"), contact)
        rows.append(tuple(str(cell) for cell in cells))
    return rows


def table(rows: list[Any]) -> None:
    """Columns as wide as they must be; nothing when there is only the heading."""
    if len(rows) < 2:
        return
    rows = [[units.printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def drain(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    client = Client(settings.home)
    client.post("/v1/drain", {"on": not options.off})
    if options.off:
        print("pilotq: the master accepts tasks again", file=sys.stderr)
        return 0
    tasks = client.get("/v1/status")["tasks"]
    left = sum(int(tasks.get(state) or 0) for state in ("idle", "running", "suspended", "held"))
    print(f"pilotq: the master drains; {units.format_count(left, 'task')} to finish", file=sys.stderr)
    return 0
