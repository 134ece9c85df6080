"""One attempt's directory, and the folder of a host that holds them.

`files` fills, measures and collects a sandbox, `removal` removes it; `host` takes and sweeps the folder; `marks` finds
the processes that belong to it; `groups` holds them together where the system can.
"""

from __future__ import annotations

from pilotq.sandbox.files import (
    STDERR_FILE,
    STDOUT_FILE,
    Collected,
    collect,
    measure,
    read_output,
    stage,
)
from pilotq.sandbox.host import Folder, sweep, take_folder
from pilotq.sandbox.removal import remove, removing

__all__ = [
    "STDERR_FILE",
    "STDOUT_FILE",
    "Collected",
    "Folder",
    "collect",
    "measure",
    "read_output",
    "remove",
    "removing",
    "stage",
    "sweep",
    "take_folder",
]
