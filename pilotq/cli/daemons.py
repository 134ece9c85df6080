"""The roles in the foreground."""

from __future__ import annotations

import argparse

from pilotq.cli.context import make_directories, read_facts, read_settings
from pilotq.client import Client
from pilotq.config import Settings
from pilotq.errors import UserError


def _settings(options: argparse.Namespace) -> Settings:
    settings = read_settings(options.overrides)
    make_directories(settings)
    return settings


def master(options: argparse.Namespace) -> int:
    from pilotq.roles.master import main

    return main(_settings(options))


def foreman(options: argparse.Namespace) -> int:
    from pilotq.roles.foreman import main

    return main(_settings(options))


def worker(options: argparse.Namespace) -> int:
    if options.verb:
        return _tell_worker(options)
    from pilotq.roles.worker import main

    settings = _settings(options)
    return main(settings, read_facts(settings.worker_workdir))


def _tell_worker(options: argparse.Namespace) -> int:
    if not options.name:
        raise UserError(f"pilotq worker {options.verb} needs the name of a worker", "`pilotq status` names them")
    client = Client(read_settings(options.overrides).home)
    client.post("/v1/worker", {"worker": options.name, "verb": options.verb})
    return 0
