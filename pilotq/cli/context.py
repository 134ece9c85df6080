"""What every command starts with: facts of this machine, the settings, the directories."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pilotq import config
from pilotq.config import Facts, Settings
from pilotq.errors import UserError
from pilotq.home import private_dir
from pilotq.store.place import is_network

#: The checkout, or the directory the package is installed in.
ROOT = str(Path(__file__).resolve().parent.parent.parent)
SHIMS = f"{ROOT}/fakecondor"


def read_facts(workdir: str = "", environ: Mapping[str, str] = os.environ) -> Facts:
    """Facts of this machine; the free disk is that of `workdir`."""
    free = os.statvfs(existing_part(workdir)) if workdir else None
    return Facts(
        home_dir=environ.get("HOME") or _account_dir(),
        host=os.uname().nodename,
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_bytes=free.f_bavail * free.f_frsize if free else 0,
        cwd=_cwd(),
    )


def read_settings(overrides: Mapping[str, str] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from pilotq.toml, environment and `--set`, with the state directory decided.

    Raises: UserError.
    """
    facts = read_facts(environ=environ)
    if not environ.get("PILOTQ_HOME") and not environ.get("AWQ_WORKDIR"):
        environ = {**environ, "PILOTQ_HOME": default_home()}
    home = config.find_home(environ, overrides, facts)
    try:
        with open(f"{home}/pilotq.toml", encoding="utf-8") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        text = ""
    except UnicodeDecodeError:
        raise UserError(f"{home}/pilotq.toml is no UTF-8 text", "mend it, or compare with etc/pilotq.toml") from None
    except OSError as error:
        raise UserError(
            f"{home}/pilotq.toml cannot be read ({error.strerror})", "set PILOTQ_HOME to a directory of your own"
        ) from None
    settings = config.load(environ, text, overrides, facts)
    if settings.state_dir:
        return settings
    local = settings.home if not is_on_network(settings.home) else f"/var/tmp/pilotq-{os.getuid()}"
    return replace(settings, state_dir=local)


def default_home() -> str:
    """Where the shims look as well when PILOTQ_HOME is not set."""
    try:
        with open(f"{SHIMS}/home", encoding="utf-8") as file:
            if told := file.read().strip():
                return told
    except OSError:
        pass
    return f"{_account_dir()}/.pilotq"


def make_directories(settings: Settings) -> None:
    """Home and state directory with what lies in it.

    Raises: UserError.
    """
    private_dir(Path(settings.home), "PILOTQ_HOME")
    state_dir = private_dir(Path(settings.state_dir), "state_dir")
    for name in ("logs", "run"):
        (state_dir / name).mkdir(mode=0o700, exist_ok=True)


def existing_part(path: str) -> str:
    """A path, or the nearest directory above it that exists."""
    while not os.path.exists(path) and path not in ("", "/"):
        path = os.path.dirname(path)
    return path or "/"


def is_on_network(path: str) -> bool:
    """Is a path, there or not yet, on a file system that neither locks nor SQLite can trust?"""
    return is_network(Path(existing_part(path)))


def _account_dir() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return os.environ.get("HOME") or "/"


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"
