"""Which process belongs to which attempt, until none is left.

The keeper is a subreaper: whatever an attempt starts is its descendant for ever. When a process of it loses its parent,
it becomes a child of the keeper. So an attempt whose main process is gone has a process left if and only if the keeper
has a child of it, and killing such children brings up the next generation, until there is none.

A child that is nobody's main process is an *orphan*. Its *suspects* are the attempts it may belong to: one, when the
marks of `sandbox.marks` or its session tell; all attempts that live when it is first seen, when they do not. An orphan
is killed as soon as none of its suspects lives, and they have not ended before it is gone. A child keeps its pid until
we reap it, so that what was found out about an orphan stays true.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

from pilotq.keeper.attempt import Attempt
from pilotq.sandbox import marks

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: The pids known to be foreign are forgotten after so long, as numbers come round again.
_FOREIGN_S = 2.0
_SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class Family:
    """The children of this process, by attempt."""

    def __init__(self, nonce: str, serial: int) -> None:
        self._first_mark = marks.number(nonce, serial, 0)
        self._count = 0
        self._start = marks.prefix(nonce, serial)
        # A pool inside a task of another pool keeps the other's word.
        self._outer = os.environ.get(marks.VARIABLE, "").split()[:-1]
        self._marks: dict[int, Attempt] = {}
        self._tags: dict[str, Attempt] = {}
        self._sessions: dict[int, Attempt] = {}
        #: Mark, word and sessions of every attempt that was not forgotten.
        self._known: dict[Attempt, tuple[int, str, set[int]]] = {}
        self._living: set[Attempt] = set()
        #: pid of the process an attempt is at -> the attempt.
        self.mains: dict[int, Attempt] = {}
        #: pid -> suspects.
        self.orphans: dict[int, set[Attempt]] = {}
        self.list_children: Callable[[], list[int]] = children_file() or Scan()

    @property
    def looks(self) -> int:
        """Looks in a row that must find nothing: a scan of /proc may miss a child that was born during it."""
        return 2 if isinstance(self.list_children, Scan) else 1

    def add(self, attempt: Attempt) -> str:
        """A new attempt that lives; the value of its variable."""
        self._count += 1
        mark = self._first_mark + self._count % marks.NUMBERS
        word = self._start + attempt.name
        self._known[attempt] = (mark, word, set())
        self._marks[mark] = attempt
        self._tags[word] = attempt
        self._living.add(attempt)
        return " ".join([*self._outer, word])

    def before_start(self, attempt: Attempt) -> None:
        """This process is about to start one of the attempt."""
        marks.wear(self._known[attempt][0])

    def started(self, attempt: Attempt, pid: int) -> None:
        """The main process of the attempt, leader of a session."""
        self.mains[pid] = attempt
        self._own_session(attempt, pid)

    def _own_session(self, attempt: Attempt, session: int) -> None:
        self._sessions[session] = attempt
        self._known[attempt][2].add(session)

    def ended(self, attempt: Attempt) -> None:
        """From now on what is left of it is to be killed."""
        self._living.discard(attempt)

    def forget(self, attempt: Attempt) -> None:
        """Nothing is left of it."""
        mark, word, sessions = self._known.pop(attempt)
        self._living.discard(attempt)
        self._marks.pop(mark, None)
        self._tags.pop(word, None)
        for session in sessions:
            if self._sessions.get(session) is attempt:
                del self._sessions[session]

    def reaped(self, pid: int) -> Attempt | None:
        """A child is gone; the attempt it belonged to for certain, if any."""
        attempt = self.mains.pop(pid, None)
        if attempt is not None:
            return attempt
        suspects = self.orphans.pop(pid, set())
        return next(iter(suspects)) if len(suspects) == 1 else None

    def look(self) -> set[Attempt]:
        """Find new orphans, kill those that nobody living may own; the ended attempts that are not gone yet."""
        left: set[Attempt] = set()
        for pid in self.list_children():
            if pid in self.mains:
                continue
            suspects = self._noticed(pid)
            if suspects.isdisjoint(self._living):
                left |= suspects
                kill_group(pid)
        return left

    def _noticed(self, pid: int) -> set[Attempt]:
        """Suspects of an orphan, as they were when it was first seen."""
        suspects = self.orphans.get(pid)
        if suspects is None:
            suspects = self.orphans[pid] = self._suspects(pid)
        return suspects

    def _suspects(self, pid: int) -> set[Attempt]:
        try:
            session = os.getsid(pid)
        except OSError:
            return set()
        attempt = self._sessions.get(session)
        if attempt is None:
            mark = marks.worn(pid)
            words = marks.tags(pid)
            attempt = self._marks.get(mark) or next((self._tags[word] for word in words if word in self._tags), None)
            if attempt is None:
                number = mark - self._first_mark
                of_the_past = 0 < number <= self._count or any(word.startswith(self._start) for word in words)
                return set() if of_the_past else set(self._known)
            self._own_session(attempt, session)
        return {attempt}

    def end(self) -> None:
        """Kill everything; returns when nothing is left."""
        while True:
            for pid in self.list_children():
                kill_group(pid)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.002)

    def members(self, attempt: Attempt) -> set[int]:
        """Its processes: those known and their descendants."""
        line = [pid for pid, one in self.mains.items() if one is attempt]
        line += [pid for pid in self.list_children() if pid not in self.mains and self._noticed(pid) == {attempt}]
        if not isinstance(self.list_children, Scan):
            for pid in line:
                line += descend(pid)
            return set(line)
        return {pid for pid, _, _ in self.census().get(attempt, [])}

    def census(self) -> dict[Attempt, list[tuple[int, int, int]]]:
        """Processes of every living attempt with their resident sets in bytes and their threads.

        Cost: one read a process of the host.
        """
        parent: dict[int, int] = {}
        sizes: dict[int, tuple[int, int]] = {}
        owner: dict[int, Attempt | None] = {os.getpid(): None}
        for pid in marks.pids():
            fields = stat(pid)
            if fields:
                parent[pid] = int(fields[1])
                sizes[pid] = int(fields[21]) * _PAGE, int(fields[17])
        for pid, suspects in self.orphans.items():
            owner[pid] = next(iter(suspects)) if len(suspects) == 1 else None
        owner.update(self.mains)
        found: dict[Attempt, list[tuple[int, int, int]]] = {}
        for pid in parent:
            line = [pid]
            while line[-1] not in owner and line[-1] in parent:
                line.append(parent[line[-1]])
            attempt = owner.get(line[-1])
            for one in line:
                owner[one] = attempt
            if attempt is not None:
                found.setdefault(attempt, []).append((pid, *sizes[pid]))
        return found


def endings() -> int:
    """A descriptor to read from when a child has ended; the signal that says so is blocked from now on.

    Source: signalfd(2). What is read counts nothing: one signal may stand for many children.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    mask = (1 << signal.SIGCHLD - 1).to_bytes(128, sys.byteorder)
    fd = ctypes.CDLL(None, use_errno=True).signalfd(-1, mask, _SFD_FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


def kill_group(pid: int) -> None:
    """Kill a child and its process group at once, so that none of a group that forks gets away."""
    try:
        group = os.getpgid(pid)
        if group != os.getpgid(0):
            os.killpg(group, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def resident(pid: int) -> int:
    """The resident set of a process in bytes; 0 when it is gone."""
    fields = marks.read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def proportional(pid: int) -> int | None:
    """The resident set of a process with its shared pages divided among those that share them; bytes."""
    for line in marks.read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return None


def stat(pid: int) -> list[bytes]:
    """Fields of /proc/pid/stat from the third on (state, ppid, pgrp, session, ...); empty when it is gone."""
    return marks.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def descend(pid: int) -> list[int]:
    """The children of a process, of all its threads."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(word) for thread in threads for word in marks.read(f"/proc/{pid}/task/{thread}/children").split()]


def children_file() -> Callable[[], list[int]] | None:
    """The children of this single-threaded process in two calls, where the kernel tells them (CONFIG_PROC_CHILDREN).

    New children are added at its end, and only we take children away: one reading misses none.
    """
    try:
        fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

    def children() -> list[int]:
        data = b""
        while chunk := os.pread(fd, 1 << 16, len(data)):
            data += chunk
        return [int(pid) for pid in data.split()]

    return children


class Scan:
    """The children of this process from all of /proc, for kernels that do not tell them.

    A process whose parent is foreign is foreign, and stays so: a descendant of ours never gets a foreign parent.
    """

    def __init__(self) -> None:
        self._foreign: set[int] = set()
        self._fresh_until = 0.0

    def __call__(self) -> list[int]:
        now = time.monotonic()
        if now > self._fresh_until:
            self._foreign.clear()
            self._fresh_until = now + _FOREIGN_S
        here = set(marks.pids())
        self._foreign &= here
        parents: dict[int, int] = {}
        for pid in here - self._foreign:
            fields = stat(pid)
            if fields:
                parents[pid] = int(fields[1])
        me = os.getpid()
        for pid in parents:
            line = [pid]
            while line[-1] in parents and line[-1] != me and len(line) <= len(parents):
                line.append(parents[line[-1]])
            if line[-1] in self._foreign or line[-1] == 0:
                self._foreign.update(line)
        self._foreign.discard(me)
        return [pid for pid, parent in parents.items() if parent == me]
