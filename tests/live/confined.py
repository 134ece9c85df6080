"""Starts a program under the rules of a systemd unit that one process can set up for itself, without systemd.

    python confined.py UNIT PROGRAM [ARGUMENT ...]

That is: SystemCallFilter, SystemCallErrorNumber, RestrictAddressFamilies, MemoryDenyWriteExecute, NoNewPrivileges.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
# Source: seccomp.h of libseccomp 2.
_ALLOW, _ERRNO, _EQUAL = 0x7FFF0000, 0x00050000, 4
#: Address families of Linux have numbers below this.
_FAMILIES = 64


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


def calls_of(group: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """The system calls of a group of systemd's, with those of the groups in it."""
    if not group.startswith("@"):
        return {group}
    if group in seen:
        return set()
    command = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    entries = [line.strip() for line in text.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for entry in entries for call in calls_of(entry, seen | {group})}


def call_actions(unit: str) -> dict[str, int]:
    """What happens to the system calls that are not refused: they are done, or said to have given an errno."""
    actions: dict[str, int] = {}
    for line in values(unit, "SystemCallFilter"):
        for entry in line.lstrip("~").split():
            group, _, number = entry.partition(":")
            for call in calls_of(group):
                if not line.startswith("~"):
                    actions[call] = _ALLOW
                elif number:
                    actions[call] = _ERRNO | int(number)
                else:
                    actions.pop(call, None)
    return actions


def confine(unit: str) -> None:
    """From here on the rules hold for this process and all it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    actions = call_actions(unit)
    refuse = _ERRNO | getattr(errno, values(unit, "SystemCallErrorNumber")[0])
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(refuse)))
    del actions["socket"]
    for call, action in sorted(actions.items()):
        code = library.seccomp_syscall_resolve_name(call.encode())
        if code >= 0:
            _must(library.seccomp_rule_add_exact_array(rules, ctypes.c_uint32(action), code, 0, None), call)
    families = [getattr(socket, family) for family in values(unit, "RestrictAddressFamilies")[0].split()]
    code = library.seccomp_syscall_resolve_name(b"socket")
    for family in range(_FAMILIES):
        only = _Comparison(0, _EQUAL, family, 0)
        action = _ALLOW if family in families else _ERRNO | errno.EAFNOSUPPORT
        _must(library.seccomp_rule_add_array(rules, ctypes.c_uint32(action), code, 1, ctypes.byref(only)), "socket")
    if values(unit, "MemoryDenyWriteExecute") == ["yes"]:
        libc.prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # old kernels do not have it
    _must(-libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _must(library.seccomp_load(rules), "load")


def _must(code: int, what: str) -> None:
    if code < 0:
        raise SystemExit(f"confined: {what}: {os.strerror(-code)}")


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text("utf-8"))
    os.execvp(sys.argv[2], sys.argv[2:])
