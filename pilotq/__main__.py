"""`python -m pilotq`."""

from __future__ import annotations

from pilotq.cli.main import run

run()
