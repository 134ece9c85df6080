"""One attempt in its keeper: what is started, in which environment, and how it ended."""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import Any

from pilotq.keeper.talk import Launch
from pilotq.model import REASON_CHARS_MAX, Command, Description, Ended, Outcome, Usage
from pilotq.sandbox import marks
from pilotq.sandbox.files import (
    JOB_AD_FILE,
    MACHINE_AD_FILE,
    STDERR_FILE,
    STDOUT_FILE,
    Collected,
    Print,
)
from pilotq.sandbox.groups import Group
from pilotq.sandbox.spares import Filling
from pilotq.wire import Token

#: A start that fails so may succeed a moment later.
TRANSIENT = frozenset({errno.EAGAIN, errno.ENOMEM, errno.ETXTBSY, errno.ENFILE, errno.EMFILE})
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Outcomes after which outputs are collected: the payload ended by itself.
BY_ITSELF = frozenset({Outcome.OK, Outcome.EXIT, Outcome.SIGNAL})
_MARK = marks.VARIABLE.encode()
_JOB_AD, _MACHINE_AD = f"/{JOB_AD_FILE}".encode(), f"/{MACHINE_AD_FILE}".encode()
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW


class Stage(IntEnum):
    """Where an attempt is."""

    #: For the attempt before it to be over.
    WAITING = 0
    STAGING = 1
    PRE = 2
    PAYLOAD = 3
    POST = 4
    #: Its main process is gone; its others go.
    CLEARING = 5
    #: None of its processes is left; outputs are being collected.
    COLLECTING = 6


def attempt_name(token: Token) -> str:
    return f"{token.cluster}.{token.proc}.{token.attempt}"


class Attempt:
    """One attempt. `verdict` is set when somebody or a limit ends it; then `reason` says why."""

    #: Read when it begins.
    description: Description
    filling: Filling
    stage = Stage.WAITING
    #: The attempt it waits for.
    before: Attempt | None = None
    #: Main process of the stage; 0: none.
    pid = 0
    #: As the system takes it.
    env: dict[bytes, bytes] | None = None
    verdict: Outcome | None = None
    code = 0
    reason = ""
    #: Exit code of the payload, or minus its signal.
    status = 0
    #: What was in its sandbox before anything ran, when that matters at its end.
    prints: dict[str, Print] | None = None
    #: Its sandbox may become a spare.
    is_frugal = False
    tries = 0
    #: The sandbox is to be removed at the end.
    discarded = False
    #: It was reported; timers that name it are void.
    over = False
    #: Looks in a row that found nothing of it.
    clean_looks = 0
    #: The control group it has of its own; why that is of no use.
    group: Group | None = None
    group_error = ""
    #: Since when it is suspended; 0: it is not. For how long it was before.
    suspended_at = 0.0
    suspended_s = 0.0
    started_at = 0.0
    wall_s = 0.0
    user_s = 0.0
    system_s = 0.0
    memory_bytes = 0

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.token = launch.token
        self.name = attempt_name(launch.token)
        self.sandbox = launch.sandbox
        #: Those that wait for it.
        self.followers: list[Attempt] = []

    def fail(self, outcome: Outcome, code: int, reason: str) -> None:
        """The first verdict stands."""
        if self.verdict is None:
            self.verdict, self.code, self.reason = outcome, code, reason[: REASON_CHARS_MAX // 2]

    def fail_with(self, error: OSError, doing: str, otherwise: Outcome) -> None:
        """No space is `DISK` wherever it happens."""
        number = error.errno or errno.EIO
        outcome = Outcome.DISK if number in NO_SPACE else otherwise
        self.fail(outcome, number, f"{doing}: (errno={number}: '{error.strerror or error}')")

    # ---- start -------------------------------------------------------------------------------------------------

    def set_environment(self, common: dict[bytes, bytes], tag: str) -> None:
        sandbox = os.fsencode(self.sandbox)
        self.env = {
            **common,
            b"TMPDIR": sandbox,
            b"_CONDOR_SCRATCH_DIR": sandbox,
            b"_CONDOR_JOB_AD": sandbox + _JOB_AD,
            b"_CONDOR_MACHINE_AD": sandbox + _MACHINE_AD,
            _MARK: os.fsencode(tag),
        }

    def spawn(self, command: Command | None) -> int:
        """Start the payload (None), or a command before or after it; the pid.

        A relative path of an executable is in the sandbox. The process leads a session of its own. A command's
        standard streams are /dev/null, as in HTCondor.

        Order: this process has worn the attempt's mark, and ignores no signal, as the task would ignore it too.
        Raises: OSError; ValueError for what cannot be an argument or a variable.
        """
        d = self.description
        env = self.env or {}
        if command is None:
            argv = [*d.wrapper, *self._located(d.argv)] if d.wrapper else d.argv
            actions = self._streams()
        else:
            argv = command.argv
            env = {**env, **encoded(command.env), _MARK: env[_MARK]}
            actions = _NOWHERE
        argv = self._located(argv)
        if not argv:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.chdir(self.description.directory or self.sandbox)
        return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=())

    def _located(self, argv: list[str]) -> list[str]:
        if not argv or argv[0].startswith("/"):
            return argv
        return [f"{self.sandbox}/{argv[0].removeprefix('./')}", *argv[1:]]

    def _streams(self) -> list[tuple[Any, ...]]:
        """This process has /dev/null at 0 and 1."""
        d = self.description
        actions: list[tuple[Any, ...]] = []
        stdout, stderr = (os.path.join(self.sandbox, name) for name in (STDOUT_FILE, STDERR_FILE))
        if d.stdin:
            actions.append((os.POSIX_SPAWN_OPEN, 0, os.path.join(self.sandbox, d.stdin), os.O_RDONLY, 0))
        if d.keep_stdout:
            actions.append((os.POSIX_SPAWN_OPEN, 1, stdout, _WRITE, 0o644))
        if d.merge:
            actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
        elif d.keep_stderr:
            actions.append((os.POSIX_SPAWN_OPEN, 2, stderr, _WRITE, 0o644))
        else:
            actions.append(_NOWHERE[0])
        return actions

    def explain(self, error: OSError | ValueError, command: Command | None) -> None:
        """Say why a start failed. The system tells only a number for streams, interpreter and executable alike."""
        d = self.description
        argv = command.argv if command else d.wrapper or d.argv
        path = argv[0] if argv else ""
        doing = f"Failed to execute '{path}'"
        if not isinstance(error, OSError):
            self.fail(Outcome.STAGE_IN, errno.EINVAL, f"{doing}: (errno={errno.EINVAL}: '{error}')")
            return
        if command is None:
            for _, _, name, flags, mode in (action for action in self._streams() if len(action) == 5):
                try:
                    os.close(os.open(os.path.join(self.sandbox, name), flags | os.O_NONBLOCK, mode))
                except OSError as stream:
                    self.fail_with(stream, f"Cannot open {os.path.basename(name)!r}", Outcome.STAGE_IN)
                    return
        if error.errno in TRANSIENT - {errno.ETXTBSY}:
            self.fail_with(error, doing, Outcome.REJECTED)
            return
        self.fail_with(error, doing, Outcome.STAGE_IN)
        interpreter = _interpreter(self._located(argv)[0]) if error.errno == errno.ENOENT and argv else ""
        if interpreter:
            self.reason += f": its interpreter {interpreter!r} is not there"
        elif error.errno == errno.ENOEXEC:
            self.reason += ": it is neither a program for this machine nor a script that begins with #!"

    # ---- end ---------------------------------------------------------------------------------------------------

    def check_command(self, command: Command, name: str, status: int, outcome: Outcome) -> None:
        """A command ended: its exit code matters only when one is asked for."""
        if command.success_code is not None and status != command.success_code:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
            self.fail(outcome, max(status, 0), f"{name} '{command.argv[0]}' {how} instead of {command.success_code}")

    def ran(self) -> Outcome:
        """How the payload ended by itself."""
        return Outcome.SIGNAL if self.status < 0 else Outcome.EXIT if self.status else Outcome.OK

    def result(self, found: Collected) -> Ended:
        if self.verdict is None and found.problem and self.ran() != Outcome.SIGNAL:
            self.fail(Outcome.STAGE_OUT, found.code, found.problem)
        usage = Usage(self.user_s, self.system_s, self.memory_bytes, found.disk_bytes, self.wall_s)
        if self.verdict is not None:
            return Ended(self.verdict, self.code, self.reason, usage, found.outputs)
        return Ended(self.ran(), abs(self.status), "", usage, found.outputs)


_NOWHERE: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, 0, 2)]


def encoded(variables: dict[str, str]) -> dict[bytes, bytes]:
    """As the system takes them.

    Raises: ValueError for what cannot be a variable.
    """
    return {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}


def _interpreter(path: str) -> str:
    """What the first line of a script names; "" when it is no script."""
    try:
        with open(path, "rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    if not line.startswith(b"#!"):
        return ""
    # As the kernel reads it: a carriage return is part of the name.
    return line[2:].strip(b" \t\n").replace(b"\t", b" ").split(b" ")[0].decode(errors="replace")
