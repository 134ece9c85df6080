"""Sandboxes that serve again, because making and removing one costs more than a short task.

An attempt that ended by itself and left its sandbox as it was given to it, but for what it printed, leaves a spare. The
next attempt that is to find files of the same names and modes gets it under its own name, with its own job ad; of its
files, those that came with it are written over the ones of its predecessor. What is not exactly as it was (a name,
content, mode, link, owner or attribute of anything) is no spare.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from pilotq.model import FileRef
from pilotq.sandbox.files import JOB_AD_FILE, OWN_FILES, STDERR_FILE, STDOUT_FILE, Print, print_of, put, rewrite
from pilotq.wire import Buffer

#: Kept at a time, and the size of what may be kept: files and bytes of one.
SPARES_MAX = 8
_FILES_MAX = 16
_BYTES_MAX = 4 << 20
#: Files that are not an attempt's own doing when they are other than before; they are made new.
_RENEWED = frozenset({JOB_AD_FILE, STDOUT_FILE, STDERR_FILE})
#: The directory itself among the prints of what is in it.
_SELF = ""


class Filling(NamedTuple):
    """What a sandbox holds before anything runs, besides the job ad."""

    files: list[FileRef]
    executables: list[str]
    machine_ad: str
    #: Empty files for standard output and error.
    streams: list[str]

    @property
    def is_small(self) -> bool:
        """May a sandbox with it be kept as a spare?"""
        files = self.files
        few = len(files) <= _FILES_MAX and not any("/" in file.name or file.name in OWN_FILES for file in files)
        return few and sum(file.size_bytes for file in files) <= _BYTES_MAX

    def others(self, wanted: Filling, inline: Mapping[str, Buffer]) -> list[tuple[FileRef, FileRef]] | None:
        """What must be written over to make this the wanted one, with what is there; None when that cannot be."""
        if self[1:] != wanted[1:] or len(self.files) != len(wanted.files):
            return None
        found = []
        for is_there, file in zip(self.files, wanted.files, strict=True):
            if is_there == file:
                continue
            if file.digest not in inline or is_there.name != file.name or is_there.mode != file.mode:
                return None
            found.append((is_there, file))
        return found


class _Spare(NamedTuple):
    path: str
    filling: Filling
    prints: dict[str, Print]


class Spares:
    """The spares of one keeper."""

    def __init__(self) -> None:
        self._spares: deque[_Spare] = deque()

    def __len__(self) -> int:
        return len(self._spares)

    def take(
        self, filling: Filling, sandbox: str, job_ad: bytes, inline: Mapping[str, Buffer]
    ) -> dict[str, Print] | None:
        """Make a spare the sandbox of an attempt: what is in it, for `give`; None when none fits.

        Raises: OSError; then there may be anything at the path of the sandbox.
        """
        for n, spare in enumerate(self._spares):
            others = spare.filling.others(filling, inline)
            if others is not None:
                del self._spares[n]
                break
        else:
            return None
        prints = spare.prints
        os.rename(spare.path, sandbox)
        prints[JOB_AD_FILE] = put(f"{sandbox}/{JOB_AD_FILE}", job_ad, is_there=JOB_AD_FILE in prints)
        for name in filling.streams:
            if name not in prints:
                prints[name] = put(f"{sandbox}/{name}", b"")
        if others:
            top = os.open(sandbox, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for is_there, file in others:
                    prints[file.name] = rewrite(file.name, inline[file.digest], is_there.size_bytes, top)
            finally:
                os.close(top)
        prints[_SELF] = print_of(os.lstat(sandbox))
        return prints

    def give(self, sandbox: str, filling: Filling, prints: dict[str, Print], top: dict[str, os.stat_result]) -> bool:
        """Keep the sandbox of an attempt of which nothing runs, when it may serve again; else it is to be removed."""
        if len(self._spares) >= SPARES_MAX or prints.keys() - {_SELF} != top.keys():
            return False
        try:
            if print_of(os.lstat(sandbox)) != prints[_SELF]:
                return False
            for name, status in top.items():
                if print_of(status) == prints[name]:
                    continue
                if name not in _RENEWED or not stat.S_ISREG(status.st_mode):
                    return False
                os.unlink(f"{sandbox}/{name}")
                del prints[name]
        except OSError:
            return False
        self._spares.append(_Spare(sandbox, filling, prints))
        return True

    def drop(self) -> list[str]:
        """Give all up; their paths, to be removed."""
        paths = [spare.path for spare in self._spares]
        self._spares.clear()
        return paths


def whole(sandbox: str, prints: dict[str, Print]) -> dict[str, Print]:
    """Prints of a fresh sandbox, as `Spares.give` wants them."""
    return {**prints, _SELF: print_of(os.lstat(sandbox))}
