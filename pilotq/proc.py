"""What the kernel says about processes."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import time

_PR_SET_DUMPABLE = 4


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; with the pid it names a process for good.

    0 when there is none, or only a zombie.

    Source: proc(5), /proc/pid/stat, fields 3 and 22.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if words[0] in (b"Z", b"X") else int(words[19])


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, all its threads included, in seconds.

    Raises: OSError when there is none.
    Source: clock_getcpuclockid(3), as glibc makes the number of the clock.
    """
    return time.clock_gettime((~pid << 3) | 2)


def hide_memory() -> None:
    """This process holds keys: no core file, and no other process of the account (but root's) may look into it.

    A program that it starts begins anew in this.

    Source: prctl(2), PR_SET_DUMPABLE.
    """
    _limit(resource.RLIMIT_CORE, 0)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_many_files() -> None:
    """A server needs a descriptor for each connection: as many as this account may have."""
    _limit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _limit(what: int, soft: int) -> None:
    # A hardened service may not even do that; its unit has set the limits.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))
