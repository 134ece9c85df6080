"""Find the processes that belong to an attempt, wherever they went.

Two marks are inherited by every process of an attempt. The variable `PILOTQ_ATTEMPT` says which attempt it is; a task
may remove it. The soft limit RLIMIT_LOCKS is a number that stands for the attempt; Linux has not used that limit since
2.4.25, so that nothing else sets it, and it survives `env -i`, `setsid`, double forks and set-uid programs.

A mark is a nonce (32 bits, one for each life of a host folder), a serial (11 bits, one for each keeper) and a number
(20 bits, one for each attempt).
Source: getrlimit(2), RLIMIT_LOCKS; proc(5), /proc/pid/environ and /proc/pid/limits.
"""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import signal
import time

VARIABLE = "PILOTQ_ATTEMPT"
#: Instead of the name of an attempt, in the word of a keeper.
KEEPER = "keeper"
_RLIMIT_LOCKS = 10
_SERIALS = 1 << 11
#: Of attempts, before the marks of a keeper come round again.
NUMBERS = 1 << 20
_PR_SET_CHILD_SUBREAPER = 36
#: Score of worker and keepers when the kernel looks for something to kill.
PROTECTED = -500


def new_nonce() -> str:
    return secrets.token_hex(4)


def number(nonce: str, serial: int, n: int) -> int:
    """The mark of the nth attempt of a keeper; n counts modulo 2**20, serial modulo 2**11."""
    return (int(nonce, 16) * _SERIALS + serial % _SERIALS) * NUMBERS + n % NUMBERS


def prefix(nonce: str, serial: int) -> str:
    """What the value of the variable begins with for the attempts of a keeper."""
    return f"{nonce}-{serial % _SERIALS}:"


def wear(mark: int) -> None:
    """Put a mark on this process for what it starts next; without effect where limits forbid it."""
    try:
        resource.setrlimit(_RLIMIT_LOCKS, (mark, _HARD))
    except (OSError, ValueError):
        pass


_HARD = resource.getrlimit(_RLIMIT_LOCKS)[1]


class Victims:
    """What this process starts between `offer` and `withdraw` is what the kernel kills first when memory runs out."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        self._own = os.read(self._file, 16)
        self._offered = str(min(1000, max(500, int(self._own) + 500))).encode()
        self._is_offered = False

    def offer(self) -> None:
        if not self._is_offered:
            self._set(self._offered)
            self._is_offered = True

    def withdraw(self) -> None:
        if self._is_offered:
            self._set(self._own)
            self._is_offered = False

    def _set(self, score: bytes) -> None:
        try:
            os.pwrite(self._file, score, 0)
        except OSError:
            pass


def protect() -> None:
    """The kernel is to spare this process, where we may say so; what it starts inherits that.

    Source: proc(5), /proc/pid/oom_score_adj.
    """
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            if int(file.read()) > PROTECTED:
                file.seek(0)
                file.write(str(PROTECTED))
    except OSError:
        pass


def worn(pid: int) -> int:
    """The mark of a process; -1 when it has none or is gone."""
    try:
        return resource.prlimit(pid, _RLIMIT_LOCKS)[0]
    except PermissionError:
        pass
    except OSError:
        return -1
    # A set-uid program: its limits can still be read.
    for line in read(f"/proc/{pid}/limits").splitlines():
        if line.startswith(b"Max file locks"):
            soft = line[len(b"Max file locks") :].split()[0]
            return int(soft) if soft.isdigit() else -1
    return -1


def tags(pid: int) -> list[str]:
    """The words of a process's variable; more than one when a pool runs inside a task of another."""
    wanted = VARIABLE.encode() + b"="
    for entry in read(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(wanted):
            return entry[len(wanted) :].decode(errors="replace").split()
    return []


def read(path: str) -> bytes:
    """A file of /proc; empty when it is gone or closed to us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def pids() -> list[int]:
    """Of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def hunt_until_none(nonce: str, spare: str) -> None:
    """Kill all that carries the nonce but for processes whose word ends so; two passes at least."""
    empty = 0
    while empty < 2:
        empty = 0 if hunt(nonce, spare=spare) else empty + 1
        time.sleep(0.005)


def hunt(nonce: str, serial: int | None = None, spare: str = "") -> int:
    """One pass: kill all that carries the nonce (and serial), reap our own children of them; how many still live.

    Spared is what has a word of the nonce that ends with `spare`, if one is given. Call it until it finds nothing, with
    pauses, as what was killed needs a moment to go.

    Cost: three reads a process of the host.
    """
    lowest = number(nonce, serial or 0, 0)
    highest = lowest + (NUMBERS if serial is not None else NUMBERS * _SERIALS)
    start = prefix(nonce, serial) if serial is not None else f"{nonce}-"
    found = 0
    for pid in pids():
        if pid == os.getpid():
            continue
        words = [tag for tag in tags(pid) if tag.startswith(start)]
        if spare and any(word.endswith(spare) for word in words):
            continue
        if words or lowest <= worn(pid) < highest:
            found += _killed(pid)
    return found


def _killed(pid: int) -> bool:
    """Kill and reap; False when it was only a zombie (of another parent, who may never reap it)."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    except ChildProcessError:
        pass
    return read(f"/proc/{pid}/stat").rpartition(b")")[2][1:2] not in (b"Z", b"X", b"")


def become_subreaper() -> None:
    """From now on orphans among the descendants of this process become its children.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
