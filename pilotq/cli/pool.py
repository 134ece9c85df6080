"""`up` and `down`: a whole pool on this machine."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from pilotq.cli.context import SHIMS, make_directories, read_facts, read_settings
from pilotq.cli.processes import (
    Process,
    last_line,
    read_json,
    read_records,
    start_detached,
    stop,
    to_process,
    write_json,
)
from pilotq.client import Client
from pilotq.config import Settings
from pilotq.errors import UnavailableError, UserError
from pilotq.proc import start_ticks

READY_S = 60.0
#: After so long a wait somebody wants to know what for.
SILENT_S = 5.0
#: A worker kills its tasks politely and reports them; master and foremen only close their sockets.
WORKER_GRACE_S, GRACE_S = 30.0, 15.0


class Interrupted(BaseException):
    """A signal asks us to leave."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Pool:
    """Master, foremen and a worker of one home, as processes that this command starts and stops."""

    def __init__(
        self,
        settings: Settings,
        overrides: Mapping[str, str],
        environ: Mapping[str, str],
        *,
        dies_with_us: bool = False,
        has_worker: bool = True,
        chosen: Mapping[str, str] | None = None,
        earlier: Iterable[Process] = (),
    ) -> None:
        """`chosen` is what `up` repairs with, `earlier` what it has started before."""
        self.settings = settings
        self.overrides = dict(overrides)
        self.environ = {**environ, "PILOTQ_HOME": settings.home}
        self.client = Client(settings.home)
        self._dies_with_us = dies_with_us
        self._has_worker = has_worker
        self._chosen = self.overrides if chosen is None else chosen
        self._earlier = list(earlier)
        self._children: dict[int, tuple[subprocess.Popen[bytes], str, str]] = {}

    def start_missing(self) -> list[Process]:
        """Start what does not run, and wait until all of it is at work; returns what was started.

        Raises: UnavailableError with the last words of what ended, or when it takes too long; what this call
        started is stopped again.
        """
        end = time.monotonic() + READY_S
        try:
            if not self._alive("master"):
                self._start("master", "master", {})
            self._wait(end, "the master", self._is_master_ready)
            running = {process.port for process in self._alive("foreman")}
            for index, port in enumerate(self.settings.foreman_ports()):
                if port not in running:
                    self._start("foreman", f"foreman-{port}", {"foreman.index": str(index)})
            if self._has_worker and not self._alive("worker"):
                self._start("worker", "worker", {})
            self._wait(end, "foremen and worker", self._are_all_connected)
        except BaseException:
            self.stop(self._started())
            raise
        return self._started()

    def repair(self) -> list[str]:
        """Start again what ended by itself; the last words of each."""
        words = []
        for pid, (child, name, _) in list(self._children.items()):
            if child.poll() is not None:
                words.append(f"{name} ended with {child.returncode}: {last_line(self._log(name))}")
                del self._children[pid]
        if words:
            self.start_missing()
        return words

    def remember(self, chosen: Mapping[str, str] | None = None) -> None:
        """Write down what `down` has to stop, and with what `up` repairs."""
        ours = [*(one for one in self._earlier if one.is_alive()), *self._started()]
        record = {
            "chosen": dict(self._chosen if chosen is None else chosen),
            "started": [one._asdict() for one in ours],
        }
        write_json(f"{self.settings.state_dir}/pool.json", record)

    def stop_all(self, *, polite: bool = True) -> list[Process]:
        """Stop whatever runs from this home."""
        known = {one.pid: one for one in (*read_records(self.settings.state_dir), *self._started())}
        return self.stop(list(known.values()), polite=polite)

    def stop(self, processes: list[Process], *, polite: bool = True) -> list[Process]:
        """Workers first, so that the master hears of their evictions; returns those that had to be killed."""
        killed: list[Process] = []
        for role, grace_s in (("worker", WORKER_GRACE_S), ("foreman", GRACE_S), ("master", GRACE_S)):
            killed += stop([one for one in processes if one.role == role], grace_s, polite=polite)
        for child, _, _ in self._children.values():
            child.poll()
        return killed

    def _start(self, role: str, name: str, extra: Mapping[str, str]) -> None:
        words = [word for pair in {**self.overrides, **extra}.items() for word in ("--set", "=".join(pair))]
        child = start_detached([role, *words], self._log(name), self.environ, dies_with_us=self._dies_with_us)
        self._children[child.pid] = (child, name, role)
        # At once: whatever happens to us, `down` finds it.
        self.remember()

    def _started(self) -> list[Process]:
        found = ((pid, role, name) for pid, (child, name, role) in self._children.items() if child.poll() is None)
        # Of a foreman the port is in its name.
        return [
            Process(role, name, pid, start_ticks(pid), int(name.partition("-")[2] or 0)) for pid, role, name in found
        ]

    def _alive(self, role: str) -> list[Process]:
        return [one for one in read_records(self.settings.state_dir) if one.role == role and one.is_alive()]

    def _log(self, name: str) -> str:
        return f"{self.settings.state_dir}/logs/{name}.log"

    def _wait(self, end: float, what: str, is_ready: Callable[[], bool]) -> None:
        pause = 0.02
        tell_at = time.monotonic() + SILENT_S
        while not is_ready():
            self.check_children()
            if time.monotonic() > end:
                raise UnavailableError(
                    f"{what} not ready within {READY_S:.0f} s", f"look into {self.settings.state_dir}/logs", exit_code=1
                )
            if time.monotonic() > tell_at:
                tell_at = float("inf")
                _say(f"waiting for {what}, {READY_S:.0f} s at most; logs are in {self.settings.state_dir}/logs")
            time.sleep(pause)
            pause = min(pause * 1.3, 0.25)

    def check_children(self) -> None:
        """Raises: UnavailableError with the last words of a process of ours that ended."""
        for child, name, _ in self._children.values():
            if child.poll() is not None:
                log = self._log(name)
                raise UnavailableError(
                    last_line(log).removeprefix("pilotq: ") or f"{name} ended with {child.returncode}",
                    f"its log is {log}",
                    exit_code=1,
                )

    def _status(self) -> dict[str, Any]:
        try:
            found = self.client.get("/v1/status")
        except UnavailableError:
            return {}
        return found if isinstance(found, dict) else {}

    def _is_master_ready(self) -> bool:
        return bool(self._status())

    def _are_all_connected(self) -> bool:
        status = self._status()
        ours = {pid: role for pid, (_, _, role) in self._children.items()}
        ours |= {one.pid: role for role in ("foreman", "worker") for one in self._alive(role)}
        at_work = {int(one["pid"]) for kind in ("foremen", "workers") for one in status.get(kind, []) if _is_there(one)}
        return all(pid in at_work for pid, role in ours.items() if role != "master")


def _is_there(peer: Mapping[str, Any]) -> bool:
    return peer.get("state") in ("ready", "draining")


def up(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    make_directories(settings)
    with _only_one(settings):
        before = read_json(f"{settings.state_dir}/pool.json")
        # What was chosen at an earlier call holds for the repair, too.
        chosen = {**before.get("chosen", {}), **options.overrides, **choices(options)}
        settings = read_settings(chosen)
        overrides = dict(chosen)
        if "worker.idle_timeout_s" not in settings.given:
            overrides["worker.idle_timeout_s"] = "0"
        _refuse_when_draining(settings)
        _refuse_other_host(settings)
        earlier = [to_process(one) for one in before.get("started", [])]
        pool = Pool(settings, overrides, os.environ, chosen=chosen, earlier=earlier)
        try:
            with interruptible(signal.SIGTERM, signal.SIGHUP):
                started = pool.start_missing()
        except Interrupted as interrupt:
            pool.remember(before.get("chosen", {}))
            _say("interrupted; what was started is stopped again")
            return interrupt.exit_code
        except BaseException:
            pool.remember(before.get("chosen", {}))
            raise
        pool.remember()
    for process in started:
        print(f"started {process}", file=sys.stderr)
    _tell_ready(settings)
    return 0


def choices(options: argparse.Namespace) -> dict[str, str]:
    """--foremen and --slots as settings."""
    named = {"foreman.count": options.foremen, "worker.cores": options.slots}
    return {name: str(value) for name, value in named.items() if value is not None}


def _refuse_when_draining(settings: Settings) -> None:
    for path in (f"{settings.home}/drain", settings.worker_drain_file):
        if os.path.exists(path):
            raise UserError(f"{path} is there, so what is started would drain", f"rm {path}", exit_code=7)


def _refuse_other_host(settings: Settings) -> None:
    """What `up` starts would look for the master elsewhere.

    Raises: UserError.
    """
    host = settings.master_host
    hint = "`up` starts the master here: set WQ_MASTER to 127.0.0.1 or an address of this host"
    try:
        found = {entry[4] for entry in socket.getaddrinfo(host, 0, socket.AF_INET, socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise UserError(f"the master's host {host!r} (WQ_MASTER) is not known", hint) from None
    for address in found:
        with socket.socket() as one, suppress(OSError):
            one.bind(address)
            return
    raise UserError(f"the master's host {host!r} (WQ_MASTER) is another machine", hint)


@contextmanager
def interruptible(*signals: signal.Signals) -> Iterator[None]:
    """These come as `Interrupted`, once; those that were ignored stay ignored."""
    numbers = [one for one in signals if signal.getsignal(one) != signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(number)

    before = {one: signal.signal(one, interrupt) for one in numbers}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"pilotq: {text}", file=sys.stderr, flush=True)


def _tell_ready(settings: Settings) -> None:
    cores = settings.worker_cores or read_facts().cpus
    print(
        f"pilotq: the pool of {settings.home} is ready: {settings.foreman_count} foremen, {cores} slots",
        file=sys.stderr,
    )
    if SHIMS not in os.environ.get("PATH", "").split(":"):
        print('pilotq: `eval "$(pilotq env)"` puts condor_submit and its kin on PATH', file=sys.stderr)


def down(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    record = f"{settings.state_dir}/pool.json"
    if not os.path.isdir(settings.state_dir):
        print(f"pilotq: nothing runs in {settings.home}", file=sys.stderr)
        return 0
    with _only_one(settings):
        started = [to_process(one) for one in read_json(record).get("started", [])]
        ours = [one for one in started if one.is_alive()]
        killed = Pool(settings, {}, os.environ).stop(ours)
        if os.path.exists(record):
            os.unlink(record)
    for process in ours:
        print(f"{'killed' if process in killed else 'stopped'} {process}", file=sys.stderr)
    others = [one for one in read_records(settings.state_dir) if one.is_alive()]
    if others:
        names = ", ".join(map(str, others))
        print(f"pilotq: left alone, because `pilotq up` did not start them: {names}", file=sys.stderr)
    elif not ours:
        print(f"pilotq: nothing runs in {settings.home}", file=sys.stderr)
    return 0


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Two `up` at the same time would start everything twice."""
    with open(f"{settings.state_dir}/pool.lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
