"""`worker`: be one, or ask and tell the master about one."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from pilotq.cli import daemons
from pilotq.cli.context import read_settings
from pilotq.cli.status import table, worker_rows
from pilotq.client import Client
from pilotq.errors import UserError


def main(options: argparse.Namespace) -> int:
    if not options.verb:
        return daemons.worker(options)
    client = Client(read_settings(options.overrides).home)
    if options.verb == "list":
        return _list(client, options)
    if not options.name:
        raise UserError(f"pilotq worker {options.verb} needs the name of a worker", "`pilotq worker list` names them")
    if options.verb == "show":
        return _show(client, options)
    client.post("/v1/worker", {"worker": options.name, "verb": options.verb})
    return 0


def _list(client: Client, options: argparse.Namespace) -> int:
    workers = client.get("/v1/status")["workers"]
    if options.json:
        print(json.dumps(workers))
    else:
        table(worker_rows(workers))
    return 0


def _show(client: Client, options: argparse.Namespace) -> int:
    """One worker, by its name or that of its host, and what happened to its node."""
    status = client.get("/v1/status")
    found = [one for one in status["workers"] if options.name in (one["name"], one["host"])]
    hosts = {one["host"] for one in found} | {options.name}
    nodes = [one for one in status["nodes"] if one["host"].partition("@")[0] in hosts or one["host"] == options.name]
    if not found and not nodes:
        raise UserError(f"there is no worker {options.name}", "`pilotq worker list` names them", exit_code=3)
    if options.json:
        print(json.dumps({"workers": found, "nodes": nodes}))
        return 0
    for worker in found:
        _fields(worker)
    for node in nodes:
        _fields({name: value for name, value in node.items() if name != "steps"})
        for step in node["steps"]:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(step['at']))}  {step['what']}")
    return 0


def _fields(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if value not in ("", None):
            print(f"{name:16} {value}")
    print()
