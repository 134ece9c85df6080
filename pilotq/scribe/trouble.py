"""Why something could not be written."""

from __future__ import annotations

import errno as codes

#: May pass without anybody changing the task: full disks, quotas, servers that are away.
TRANSIENT = frozenset(
    {
        codes.EAGAIN,
        codes.EDQUOT,
        codes.EHOSTDOWN,
        codes.EHOSTUNREACH,
        codes.EIO,
        codes.EMFILE,
        codes.ENETDOWN,
        codes.ENETUNREACH,
        codes.ENFILE,
        codes.ENOBUFS,
        codes.ENOLCK,
        codes.ENOMEM,
        codes.ENOSPC,
        codes.ENOTCONN,
        codes.EREMOTEIO,
        codes.ESTALE,
        codes.ETIMEDOUT,
    }
)


class Trouble(Exception):  # noqa: N818
    """One thing that could not be written, in words for its user."""

    def __init__(self, what: str, path: str, error: OSError, hint: str = "") -> None:
        name = {"output": "standard output", "error": "standard error", "log": "the user log"}.get(what, "output file")
        reason = hint or error.strerror or str(error)
        super().__init__(f"cannot write {name} {path}: {reason} (errno {error.errno})")
        self.what = what
        self.errno = error.errno or 0

    @property
    def is_transient(self) -> bool:
        return self.errno in TRANSIENT
