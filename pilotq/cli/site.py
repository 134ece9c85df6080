"""What `alien_work_queue` and `alien_wq_worker.sh` did: `pilotq site ...`, called under these two names.

`start-*` leaves a loop behind for each foreman and for the worker of this host. A loop starts its process again when
that ended, after a pause when it had run less than 30 s, until the drain file is there or somebody stops it. Loops are
found again by their record (pid and start time) in WQ_WORKDIR/<host>/run, so a second call starts only what is missing.

Unlike in alien-workqueue, `stop-*` does not leave the drain file behind: its loops are told themselves, and a file in a
shared home would drain every other host.
"""

from __future__ import annotations

import argparse
import fcntl
import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pilotq.cli import daemons
from pilotq.cli.context import make_directories, read_facts, read_settings
from pilotq.cli.processes import (
    Process,
    command,
    read_json,
    read_records,
    start_detached,
    stop,
    to_process,
    write_json,
)
from pilotq.config import Settings
from pilotq.errors import UnavailableError, UserError
from pilotq.home import private_dir
from pilotq.proc import start_ticks

#: A process that lived shorter is not started again at once.
BACK_OFF_S = 30.0
STOP_S = 30.0
#: A loop that was just started must have written its record by then.
RECORD_S = 10.0

COMMANDS = ("start-foremen", "stop-foremen", "count-foremen", "start-workers", "stop-workers", "count-workers", "drain")


def main(options: argparse.Namespace) -> int:
    overrides = dict(options.overrides)
    if os.environ.get("WQ_DEBUG") == "1":
        overrides.setdefault("log.level", "debug")
    word, *rest = options.words or [""]
    if word == "master":
        return _master(rest, overrides)
    if word == "loop":
        return _loop(rest, overrides)
    if word in ("-h", "--help"):
        print("alien_wq_worker.sh " + " | ".join(COMMANDS))
        return 0
    if word not in COMMANDS or rest:
        raise UserError(f"{' '.join(options.words)}: invalid command", "use " + ", ".join(COMMANDS), exit_code=1)
    site = Site(read_settings(overrides), overrides)
    verb, _, kind = word.partition("-")
    if verb == "drain":
        return site.drain()
    role = {"foremen": "foreman", "workers": "worker"}[kind]
    todo: Callable[[str], int] = getattr(site, verb)
    return todo(role)


def _master(words: list[str], overrides: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(prog="alien_work_queue", allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--job-wrapper", metavar="P", dest="master.job_wrapper", help="put before every payload")
    parser.add_argument("--work-dir", metavar="D", dest="home", help="PILOTQ_HOME (condor_*: AWQ_WORKDIR)")
    parser.add_argument("--catalog-host", metavar="H", dest="catalog.host", help="Work Queue catalog to report to")
    parser.add_argument("--catalog-port", metavar="N", dest="catalog.port")
    parser.add_argument("--project-name", metavar="S", dest="catalog.project")
    try:
        given, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error), "see `alien_work_queue --help`", exit_code=1) from None
    if unknown:
        raise UserError(f"argument {unknown[0]} unrecognized", "see `alien_work_queue --help`", exit_code=1)
    named = {name: value for name, value in vars(given).items() if value is not None}
    return daemons.master(argparse.Namespace(overrides={**overrides, **named}))


class Loop(NamedTuple):
    """A respawn loop of this host, alive when its record was read."""

    process: Process
    #: The foreman or worker it has started; None in a pause.
    child: Process | None
    #: Index of the foreman; cores of the worker.
    number: int


class Site:
    """Foremen and workers of this host."""

    def __init__(self, settings: Settings, overrides: Mapping[str, str]) -> None:
        self.settings = settings
        self.overrides = overrides
        self.host = read_facts().host
        self.run_dir = f"{settings.worker_workdir}/{self.host}/run"

    def start(self, role: str) -> int:
        make_directories(self.settings)
        self._make_run_dir()
        with self._only_one():
            if os.path.lexists(self.settings.worker_drain_file):
                _remove(self.settings.worker_drain_file)
            missing = self._missing_foremen() if role == "foreman" else self._missing_workers()
            started = [self._start_loop(role, name, number) for name, number in missing.items()]
            self._wait_for_records(started)
        token = self.settings.foreman_token if role == "foreman" else self.settings.worker_token
        if missing and not os.path.exists(token):
            _say(f"waiting for {token}: start the master, or copy the token that it made (`pilotq token {role}`)")
        names = ", ".join(f"{name} (pid {child.pid})" for name, child in started)
        _say(f"started {names}" if started else "nothing to start, all are there")
        return 0

    def stop(self, role: str) -> int:
        loops = self._loops(role)
        stop([loop.process for loop in loops], STOP_S)
        # Of a loop that had to be killed: what it had started.
        killed = stop([loop.child for loop in loops if loop.child], 0.0, polite=False)
        for name in os.listdir(self.run_dir) if loops else []:
            path = f"{self.run_dir}/{name}"
            if name.endswith(".json") and not to_process(read_json(path)).is_alive():
                os.unlink(path)
        names = [str(loop.process) for loop in loops]
        _say(f"stopped {', '.join(names)}" if names else "nothing to stop")
        for child in killed:
            _say(f"killed {child}")
        return 0

    def count(self, role: str) -> int:
        if role == "foreman":
            print(sum(1 for loop in self._loops("foreman") if loop.child and loop.child.is_alive()))
        else:
            print(sum(self._open_slots().values()))
        return 0

    def drain(self) -> int:
        path = self.settings.worker_drain_file
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror})", "set WQ_DRAIN to another file") from None
        _say(f"draining: {path}")
        return 0

    def _missing_foremen(self) -> dict[str, int]:
        there = {loop.number for loop in self._loops("foreman")}
        ports = {process.port for process in read_records(self.settings.state_dir) if process.is_alive()}
        wanted = enumerate(self.settings.foreman_ports())
        return {f"foreman-{index}": index for index, port in wanted if index not in there and port not in ports}

    def _missing_workers(self) -> dict[str, int]:
        """One more worker with as many cores as there are too few open slots."""
        slots = self._open_slots()
        loops = self._loops("worker")
        coming = sum(loop.number for loop in loops if loop.child is None or loop.child.pid not in slots)
        wanted = self.settings.worker_cores or read_facts().cpus
        missing = wanted - sum(slots.values()) - coming
        taken = {loop.process.name for loop in loops}
        name = next(f"worker-{number}" for number in range(len(taken) + 1) if f"worker-{number}" not in taken)
        return {name: missing} if missing > 0 else {}

    def _open_slots(self) -> dict[int, int]:
        """Open single-core slots by pid of the worker, of all live workers of this host."""
        found: dict[int, int] = {}
        folder = glob.escape(f"{self.settings.worker_workdir}/{self.host}")
        for path in (*glob.glob(f"{folder}/worker.json"), *glob.glob(f"{folder}.[0-9]*/worker.json")):
            record = read_json(path)
            process = to_process(record)
            if process.is_alive():
                found[process.pid] = int(record.get("open_slots") or 0)
        return found

    def _loops(self, role: str) -> list[Loop]:
        found: list[Loop] = []
        for path in sorted(glob.glob(f"{glob.escape(self.run_dir)}/{role}-*.json")):
            record = read_json(path)
            process = to_process(record)
            if process.is_alive():
                child = to_process(record["child"]) if record.get("child") else None
                found.append(Loop(process, child, int(record.get("number") or 0)))
        return found

    def _start_loop(self, role: str, name: str, number: int) -> tuple[str, subprocess.Popen[bytes]]:
        words = ["site", "loop", role, name, str(number)]
        given = [word for pair in self.overrides.items() for word in ("--set", "=".join(pair))]
        return name, start_detached([*given, *words], f"{self.settings.state_dir}/logs/{name}.log", os.environ)

    def _wait_for_records(self, started: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
        end = time.monotonic() + RECORD_S
        for name, child in started:
            while to_process(read_json(f"{self.run_dir}/{name}.json")).pid != child.pid:
                if child.poll() is not None or time.monotonic() > end:
                    log = f"{self.settings.state_dir}/logs/{name}.log"
                    raise UnavailableError(f"{name} could not be started", f"look into {log}", exit_code=1)
                time.sleep(0.02)

    def _make_run_dir(self) -> None:
        try:
            os.makedirs(self.settings.worker_workdir, mode=0o700, exist_ok=True)
            private_dir(Path(self.run_dir).parent, "WQ_WORKDIR")
            os.makedirs(self.run_dir, mode=0o700, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.settings.worker_workdir} cannot be made ({error.strerror})", "set WQ_WORKDIR to another one"
            ) from None

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        with open(f"{self.run_dir}/lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _remove(path: str) -> None:
    """Remove a drain flag: alien-workqueue made directories as well."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError as error:
        raise UserError(f"the drain file {path} cannot be removed ({error.strerror})", "remove it yourself") from None


def _say(text: str) -> None:
    print(f"pilotq: {text}", file=sys.stderr, flush=True)


class _Respawn:
    """The process behind `pilotq site loop`."""

    def __init__(self, settings: Settings, overrides: Mapping[str, str], role: str, name: str, number: int) -> None:
        self.settings = settings
        self.role, self.name, self.number = role, name, number
        self.record = f"{settings.worker_workdir}/{read_facts().host}/run/{name}.json"
        own = {"foreman.index": str(number)} if role == "foreman" else {"worker.cores": str(number)}
        self.words = [role, *(word for pair in {**overrides, **own}.items() for word in ("--set", "=".join(pair)))]
        self.token = settings.foreman_token if role == "foreman" else settings.worker_token
        self.child: subprocess.Popen[bytes] | None = None
        self.is_stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._write()
        try:
            while self._wait_for_token():
                began = time.monotonic()
                self.child = subprocess.Popen(command(self.words), stdin=subprocess.DEVNULL)
                if self.is_stopping:  # the signal came while there was no child to pass it on to
                    self.child.terminate()
                self._write()
                code = self.child.wait()
                self.child = None
                self._write()
                if self._is_over() or (self.role == "worker" and self.settings.worker_no_respawn):
                    break
                ran = time.monotonic() - began
                pause = 0.0 if ran >= BACK_OFF_S else BACK_OFF_S
                _say(f"{self.name} ended with {code} after {ran:.0f} s; next start in {pause:.0f} s")
                if not self._pause(pause):
                    break
        finally:
            os.unlink(self.record)
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.is_stopping and self.child is not None:
            self.child.terminate()
        self.is_stopping = True

    def _is_over(self) -> bool:
        return self.is_stopping or os.path.lexists(self.settings.worker_drain_file)

    def _pause(self, seconds: float) -> bool:
        """False when it is time to leave."""
        end = time.monotonic() + seconds
        while not self._is_over():
            left = end - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, 0.25))
        return False

    def _wait_for_token(self) -> bool:
        if not os.path.exists(self.token):
            _say(f"{self.name} waits for {self.token}")
        while not os.path.exists(self.token):
            if not self._pause(0.25):
                return False
        return not self._is_over()

    def _write(self) -> None:
        child = None
        if self.child is not None:
            child = {"role": self.role, "pid": self.child.pid, "started": start_ticks(self.child.pid)}
        me = Process(self.role, self.name, os.getpid(), start_ticks(os.getpid()))
        write_json(self.record, {**me._asdict(), "number": self.number, "child": child})


def _loop(words: list[str], overrides: Mapping[str, str]) -> int:
    role, name, number = words
    return _Respawn(read_settings(overrides), overrides, role, name, int(number)).run()
