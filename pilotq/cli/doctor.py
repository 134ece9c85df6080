"""`doctor`: what could go wrong here, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import stat
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pilotq import units
from pilotq.cli.context import SHIMS, existing_part, is_on_network, read_facts, read_settings
from pilotq.cli.processes import read_records
from pilotq.client import Client
from pilotq.config import Settings
from pilotq.sandbox import marks
from pilotq.sandbox.groups import Home, processes_max
from pilotq.store.place import filesystem

#: Open files a master needs for some thousand workers without foremen.
FILES_MIN = 4096
SPACE_MIN_BYTES = 1 << 30
#: File systems of the kernel's own.
NO_STORAGE = ("proc", "sysfs", "cgroup", "cgroup2")


class Finding(NamedTuple):
    #: "ok", "warn" or "bad".
    level: str
    what: str
    advice: str = ""


def main(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    findings = list(_look(settings))
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for level, what, advice in findings:
            print(f"{level:4}  {what}" + (f": {advice}" if advice and level != "ok" else ""))
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def _look(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} ({sys.executable})")
    yield from _limits()
    yield from _home(settings)
    yield from _space(settings)
    yield from _drain_files(settings)
    yield _groups(settings)
    client = Client(settings.home)
    is_there = client.is_there()
    said = "answers" if is_there else "does not answer"
    yield Finding("ok" if is_there else "warn", f"master {said}", client.advice())
    yield from _ports(settings)
    if SHIMS in os.environ.get("PATH", "").split(":"):
        yield Finding("ok", "condor_* are on PATH")
    else:
        yield Finding("warn", "condor_* of pilotq are not on PATH", 'eval "$(pilotq env)", or source etc/env.sh')


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = "ok" if hard >= FILES_MIN or hard == resource.RLIM_INFINITY else "warn"
    yield Finding(level, f"open files: {soft}, at most {hard}", f"raise the hard limit to {FILES_MIN} (limits.conf)")


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    if not os.path.isdir(home):
        yield Finding("warn", f"{home} does not exist yet", "pilotq up makes it")
        return
    found = os.stat(home)
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid():
        yield Finding("bad", f"{home} belongs to uid {found.st_uid}", "set PILOTQ_HOME to a directory of your own")
    elif mode & 0o077:
        yield Finding("bad", f"{home} has mode {mode:o}", f"chmod 700 {home}")
    else:
        yield Finding("ok", f"home {home}, mode {mode:o}")
    for role, path in (("worker", settings.worker_token), ("foreman", settings.foreman_token)):
        if not os.path.exists(path):
            yield Finding("warn", f"no {role} token at {path}", "the master makes it; other hosts need a copy")
        elif os.stat(path).st_mode & 0o077:
            yield Finding("bad", f"others may read {path}", f"chmod 600 {path}")
        else:
            yield Finding("ok", f"{role} token {path}")


def _space(settings: Settings) -> Iterator[Finding]:
    for name, path in (("state directory", settings.state_dir), ("scratch", settings.worker_workdir)):
        existing = existing_part(path)
        kind = filesystem(existing)
        if kind in NO_STORAGE or not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
            variable = "PILOTQ_STATE_DIR" if name == "state directory" else "WQ_WORKDIR"
            why = f"nobody can store anything on {kind}" if kind in NO_STORAGE else f"{existing} cannot be written"
            yield Finding("bad", f"{name} {path}: {why}", f"set {variable} to another directory")
            continue
        free = read_facts(path).disk_bytes
        text = f"{name} {path}: {units.format_size(free)} free on {kind or 'an unknown file system'}"
        if name == "state directory" and is_on_network(path):
            yield Finding("bad", text, "the queue needs a local disk; set PILOTQ_STATE_DIR")
        else:
            yield Finding("ok" if free >= SPACE_MIN_BYTES else "warn", text, "there should be 1 GiB")


def _drain_files(settings: Settings) -> Iterator[Finding]:
    for path in (f"{settings.home}/drain", settings.worker_drain_file):
        if os.path.exists(path):
            yield Finding("warn", f"{path} is there: what looks at it drains", f"rm {path}")


def _groups(settings: Settings) -> Finding:
    """What a worker that is started from here would have."""
    if settings.worker_cgroups == "off":
        return Finding("ok", "control groups: off (worker.cgroups)")
    home = Home(marks.new_nonce(), processes_max())
    mode, instead = home.group.mode, "" if home.group.memory else "; memory of tasks is measured every second"
    home.release()
    return Finding("ok", f"control groups of a worker started here: {mode}{instead}")


def _ports(settings: Settings) -> Iterator[Finding]:
    ours = {(process.role, process.port) for process in read_records(settings.state_dir) if process.is_alive()}
    wanted = {"master": [settings.master_port], "foreman": settings.foreman_ports()}
    for role, port in sorted(ours):
        if role == "master" and port and port != settings.master_port:
            what = f"our master listens on port {port}, but here WQ_MASTER says {settings.master_port}"
            yield Finding("bad", what, "foremen and workers would not find it; set WQ_MASTER alike everywhere")
            wanted["master"] = []
    for role, ports in wanted.items():
        for port in ports:
            if (role, port) in ours:
                yield Finding("ok", f"port {port}: our {role}")
            elif _is_free(port):
                yield Finding("ok", f"port {port} is free for a {role}")
            else:
                name = "WQ_MASTER" if role == "master" else "WQ_MASTER_BASEPORT"
                yield Finding("bad", f"port {port}, wanted by a {role}, is taken", f"choose another one with {name}")


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError:
            return False
    return True
