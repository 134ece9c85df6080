"""Control groups of a worker and of its attempts, where the system lets us have them.

A worker makes one group below the one it was started in, named after the nonce of its folder. Its keepers live in it,
and so does whatever they start, at no cost for a task: it bounds how many processes there are, and nothing in it gets
away. An attempt with a memory limit gets a group of its own in it. Version 2 has one directory for all of this,
version 1 one for each controller; a system may have both.

Source: cgroups(7); Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,pids}.rst.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator

import msgspec

from pilotq.sandbox import marks

_PREFIX = "pilotq-"
_KEEPERS, _WORKER = "keepers", "worker"
_CONTROLLERS = ("memory", "pids")
_REMOVE_S = 2.0
#: A group that had so little less than its limit was at it.
_NEAR_BYTES = 1 << 20
log = logging.getLogger(__name__)


class Group(msgspec.Struct, frozen=True):
    """One group: its directory for each of three uses; "" where that cannot be had."""

    #: Bounds memory.
    memory: str = ""
    #: Bounds processes and threads.
    pids: str = ""
    #: Ends all that is in it at once (version 2).
    kill: str = ""

    @property
    def directories(self) -> list[str]:
        return list(dict.fromkeys(filter(None, (self.memory, self.pids, self.kill))))

    @property
    def mode(self) -> str:
        """What is in force, in words: "memory v1, processes v1, kill v2"; "none"."""
        known = {"memory": self.memory, "processes": self.pids, "kill": self.kill}
        return ", ".join(f"{use} v{_version(path)}" for use, path in known.items() if path) or "none"

    def child(self, name: str) -> Group:
        return Group(*(path and f"{path}/{name}" for path in (self.memory, self.pids, self.kill)))

    def make(self) -> None:
        """Raises: OSError."""
        for path in self.directories:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)

    def enter(self, pid: int) -> None:
        """Put a process, with its threads, into it; one that is gone is no error.

        Cost: 0.5 ms in version 2, some milliseconds in version 1, in which the kernel waits.
        Raises: OSError.
        """
        for path in self.directories:
            with contextlib.suppress(ProcessLookupError):
                _write(f"{path}/cgroup.procs", str(pid))

    def limit_memory(self, size: int) -> None:
        """Without swap, where that can be told.

        Raises: OSError.
        """
        if not self.memory:
            return
        if _version(self.memory) == 2:
            _write(f"{self.memory}/memory.max", str(size))
            _try_to_write(f"{self.memory}/memory.swap.max", "0")
            _try_to_write(f"{self.memory}/memory.oom.group", "1")
        else:
            _write(f"{self.memory}/memory.limit_in_bytes", str(size))
            _try_to_write(f"{self.memory}/memory.memsw.limit_in_bytes", str(size))

    def limit_processes(self, count: int) -> None:
        """Raises: OSError."""
        if self.pids:
            _write(f"{self.pids}/pids.max", str(count))

    def memory_kills(self) -> int:
        """How often the kernel killed something in it for its own limit, not for want of memory on the node."""
        if not self.memory:
            return 0
        if _version(self.memory) == 2:
            events = _numbers(f"{self.memory}/memory.events")
            return events.get("oom_kill", 0) if events.get("oom", 0) else 0
        # Not every kernel counts in memory.failcnt.
        most, limit = (int(marks.read(f"{self.memory}/memory.{name}_in_bytes") or 0) for name in ("max_usage", "limit"))
        return _numbers(f"{self.memory}/memory.oom_control").get("oom_kill", 0) if most >= limit - _NEAR_BYTES else 0

    def kill_all(self) -> None:
        """End what is in it. Without `cgroup.kill` nothing in it can fork any more, so that one pass meets all."""
        if self.kill and _try_to_write(f"{self.kill}/cgroup.kill", "1"):
            return
        if self.pids:
            _try_to_write(f"{self.pids}/pids.max", "0")
        for pid in self.members():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def abandon(self) -> None:
        """A keeper leaves the group of its dead worker, and removes it when it was the last.

        Version 2 lets nobody back where controllers were handed on; who delegated them (systemd) removes what is empty.
        """
        for path in self.directories:
            if _try_to_write(f"{os.path.dirname(path)}/cgroup.procs", str(os.getpid())):
                for directory in (f"{path}/{_KEEPERS}", path):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)

    def members(self) -> set[int]:
        found: set[int] = set()
        for path in self.directories:
            found.update(int(word) for word in marks.read(f"{path}/cgroup.procs").split())
        return found

    def remove(self) -> bool:
        """False when something is in it."""
        removed = True
        for path in self.directories:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                removed = False
        return removed


class Home:
    """The group of a worker, from its start to its end."""

    def __init__(self, nonce: str, processes_max: int) -> None:
        """Make what can be had; without effect where nothing can."""
        own = own_directories()
        name = f"{_PREFIX}{nonce}"
        #: The group this process came from, when it had to leave it.
        self._left = ""
        unified = own.get("", "")
        self._unified = two = _made(f"{unified}/{name}") if unified else ""
        given = self._delegate(unified, two) if two else set()
        ones = {c: _made(f"{own[c]}/{name}") for c in _CONTROLLERS if c not in given and c in own}
        where = {c: two if c in given else ones.get(c, "") for c in _CONTROLLERS}
        kill = two if two and os.path.exists(f"{two}/cgroup.kill") else ""
        self.group = Group(where["memory"], where["pids"], kill)
        if two and two not in self.group.directories:
            os.rmdir(two)
        self.keepers = self.group.child(_KEEPERS)
        try:
            self.keepers.make()
            self.group.limit_processes(processes_max)
        except OSError as error:
            log.warning("no control groups", extra={"error": str(error)})
            self.release()
            self.group = self.keepers = Group()

    def _delegate(self, own: str, group: str) -> set[str]:
        """Get the controllers of version 2 for a group below ours; those that were had.

        A group with processes hands no controllers on: this process moves into a leaf, if it is the only one.
        """
        wanted = set(_CONTROLLERS) & set(_words(f"{own}/cgroup.controllers"))
        if not wanted:
            return set()
        leaf = f"{group}/{_WORKER}"
        try:
            if not wanted <= set(_words(f"{own}/cgroup.subtree_control")):
                os.mkdir(leaf)
                self._left = own
                _write(f"{leaf}/cgroup.procs", str(os.getpid()))
                _write(f"{own}/cgroup.subtree_control", _plus(wanted))
            _write(f"{group}/cgroup.subtree_control", _plus(wanted))
        except OSError as error:
            log.info("no controllers of cgroup version 2", extra={"group": own, "error": str(error)})
            self._go_back(leaf)
            return set()
        return wanted

    def _go_back(self, leaf: str) -> None:
        if self._left:
            for controller in _CONTROLLERS:
                _try_to_write(f"{self._left}/cgroup.subtree_control", f"-{controller}")
            if _try_to_write(f"{self._left}/cgroup.procs", str(os.getpid())):
                self._left = ""
            with contextlib.suppress(OSError):
                os.rmdir(leaf)

    def release(self) -> None:
        """Order: no keeper lives."""
        if self._left:
            for controller in _CONTROLLERS:
                _try_to_write(f"{self._unified}/cgroup.subtree_control", f"-{controller}")
            self._go_back(f"{self._unified}/{_WORKER}")
        for path in self.group.directories:
            bury(path)


def processes_max() -> int:
    """How many processes and threads all tasks of a worker may have together: half of what the node can have."""
    known = [int(_words(f"/proc/sys/kernel/{name}")[0]) for name in ("pid_max", "threads-max")]
    return max(1000, min(known) // 2)


def host_processes() -> int:
    """Processes and threads of this host."""
    return int(marks.read("/proc/loadavg").split()[3].partition(b"/")[2])


def own_directories() -> dict[str, str]:
    """The directory of this process's group for each controller of version 1; under "" that of version 2."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in marks.read("/proc/self/mountinfo").decode(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, point = before.split()[3:5]
        if kind == "cgroup2":
            mounts.setdefault("", (root, point))
        elif kind == "cgroup":
            for word in options.split(","):
                mounts.setdefault(word, (root, point))
    found = {}
    for line in marks.read("/proc/self/cgroup").decode(errors="replace").splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            root, point = mounts.get(name, ("", ""))
            inside = path if root == "/" else path.removeprefix(root) if path.startswith(root) else ""
            if point and ".." not in path and (inside or path == root):
                found[name] = f"{point}/{inside.strip('/')}".rstrip("/")
    return found


def bury(path: str, patience_s: float = _REMOVE_S) -> bool:
    """Kill all in a group of a worker and in those below it, and remove them; True when it is gone."""
    if not os.path.basename(path).startswith(_PREFIX):
        return False
    deadline = time.monotonic() + patience_s
    if any(os.getpid() in Group(pids=directory).members() for directory in _deepest_first(path)):
        return False
    while os.path.isdir(path):
        for directory in _deepest_first(path):
            kill = os.path.exists(f"{directory}/cgroup.kill")
            if marks.read(f"{directory}/cgroup.procs"):
                Group(pids=directory, kill=directory if kill else "").kill_all()
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if time.monotonic() > deadline:
            log.warning("a control group cannot be removed", extra={"group": path})
            return False
        if os.path.isdir(path):
            time.sleep(0.01)
    return True


def _deepest_first(path: str) -> Iterator[str]:
    for directory, _, _ in os.walk(path, topdown=False):
        yield directory


def _version(path: str) -> int:
    return 2 if os.path.exists(f"{path}/cgroup.controllers") else 1


def _made(path: str) -> str:
    """The path, if there can be a group; it may be there, as two controllers may have one directory."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return ""
    if os.access(f"{path}/cgroup.procs", os.W_OK):
        return path
    os.rmdir(path)
    return ""


def _plus(controllers: set[str]) -> str:
    return " ".join(f"+{controller}" for controller in sorted(controllers))


def _numbers(path: str) -> dict[str, int]:
    """Of a file with a word and a number in each line."""
    words = _words(path)
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


def _words(path: str) -> list[str]:
    return marks.read(path).decode().split()


def _write(path: str, text: str) -> None:
    """A file of a group takes one write; it is never made."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _try_to_write(path: str, text: str) -> bool:
    try:
        _write(path, text)
    except OSError:
        return False
    return True
