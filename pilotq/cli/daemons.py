"""The roles in the foreground."""

from __future__ import annotations

import argparse

from pilotq.cli.context import make_directories, read_facts, read_settings
from pilotq.config import Settings


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


def gateway(options: argparse.Namespace) -> int:
    from pilotq.roles.gateway import main

    return main(_settings(options))


def worker(options: argparse.Namespace) -> int:
    from pilotq.roles.worker import main

    settings = _settings(options)
    return main(settings, read_facts(settings.worker_workdir))
