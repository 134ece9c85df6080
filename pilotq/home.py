"""The home and the state directory: who owns them, where they are, which processes run from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pilotq.config import Settings
from pilotq.errors import UserError
from pilotq.proc import start_ticks
from pilotq.store.place import is_network


def private_dir(path: Path, what: str) -> Path:
    """Make a directory that only this account can enter, or check that it is one.

    Raises: UserError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.stat()
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}", "choose another directory") from None
    if facts.st_uid != os.geteuid():
        raise UserError(f"{what} {path} belongs to uid {facts.st_uid}, you are uid {os.geteuid()}", "use your own")
    if facts.st_mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as error:
            raise UserError(f"{what} {path} is open to others: {error.strerror}", "chmod 700 it") from None
    return path


def home_of(settings: Settings) -> Path:
    return private_dir(Path(settings.home), "PILOTQ_HOME")


def state_dir_of(settings: Settings) -> Path:
    """Where store, socket and logs are: the home itself when it is on a local disk."""
    if settings.state_dir:
        return private_dir(Path(settings.state_dir), "state_dir")
    home = home_of(settings)
    if is_network(home):
        return private_dir(Path(f"/var/tmp/pilotq-{os.geteuid()}"), "state_dir")
    return home


def write_run_file(state: Path, name: str, **facts: Any) -> Path:
    """Say that this process runs: `run/NAME.json` with its pid and start time."""
    folder = private_dir(state / "run", "run directory")
    path = folder / f"{name}.json"
    temporary = folder / f".{name}.{os.getpid()}"
    content = {"pid": os.getpid(), "started": start_ticks(os.getpid()), "name": name, **facts}
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
    return path


def running(path: Path) -> dict[str, Any] | None:
    """The content of a run file when its process is alive."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not content.get("pid"):
        return None
    return content if start_ticks(int(content["pid"])) == content.get("started") else None
