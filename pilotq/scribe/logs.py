"""Appending to user logs, and finding out after a crash what of an append is there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from pilotq.scribe.journal import Entry
from pilotq.scribe.outputs import open_regular, sync_folder_of, write_all
from pilotq.scribe.trouble import Trouble

#: How far back a log that was replaced (rotated, edited) is searched.
SEARCH_BYTES = 16 << 20


@dataclass
class Log:
    """An open user log; `descriptor` None is /dev/null."""

    path: str
    descriptor: int | None

    def entries(self, texts: list[tuple[int, int, bytes]]) -> list[Entry]:
        """What the journal must know before these (n, proc, data) are appended."""
        if self.descriptor is None:
            return []
        facts = os.fstat(self.descriptor)
        size, found = facts.st_size, []
        for n, proc, data in texts:
            found.append(Entry(n, proc, self.path, facts.st_dev, facts.st_ino, size, data))
            size += len(data)
        return found

    def append(self, entries: list[Entry]) -> None:
        """In one write, and onto the disk.

        Raises: OSError; then `complete` tells what is there.
        """
        if self.descriptor is None or not entries:
            return
        data = b"".join(entry.data for entry in entries)
        written = os.write(self.descriptor, data)
        if written < len(data):
            # Nobody should read half an event while the disk stays full.
            if os.fstat(self.descriptor).st_size == entries[0].size + written:
                os.ftruncate(self.descriptor, entries[0].size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(self.descriptor)
        if not entries[0].size:
            sync_folder_of(self.path)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


def open_log(path: str) -> Log:
    """Raises: Trouble."""
    try:
        return Log(path, open_regular(path, os.O_APPEND))
    except OSError as error:
        raise Trouble("log", path, error) from error


def complete(entries: list[Entry]) -> bool:
    """Look for an append that may have been cut short; what is there in part is finished.

    Returns: True when all of it is in the log now, False when nothing of it is.
    Raises: OSError.
    """
    whole = b"".join(entry.data for entry in entries)
    first = entries[0]
    for path in _candidates(first):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            is_same = (facts.st_dev, facts.st_ino) == (first.device, first.inode) and facts.st_size >= first.size
            start = first.size if is_same else max(0, facts.st_size - SEARCH_BYTES)
            there = overlap(_read_from(descriptor, start), whole)
            # The end of another file is not the beginning of our events.
            if there == len(whole) or (there and is_same):
                write_all(descriptor, whole[there:])
                os.fdatasync(descriptor)
                if not first.size:
                    sync_folder_of(path)
                return True
        finally:
            os.close(descriptor)
    return False


def _candidates(entry: Entry) -> Iterator[str]:
    """The file of an entry by its inode, wherever a rotation put it; then what is at its path now."""
    folder = os.path.dirname(entry.path)
    try:
        facts = os.stat(entry.path)
        if (facts.st_dev, facts.st_ino) == (entry.device, entry.inode):
            yield entry.path
            return
    except FileNotFoundError:
        pass
    with os.scandir(folder) as names:
        renamed = [name.path for name in names if name.inode() == entry.inode and name.is_file(follow_symlinks=False)]
    yield from renamed
    if os.path.isfile(entry.path):
        yield entry.path


def overlap(tail: bytes, whole: bytes) -> int:
    """How many of the first bytes of `whole` are in `tail`: all of them anywhere, or some at its end."""
    if whole in tail:
        return len(whole)
    head = whole[: whole.find(b"\n") + 1]
    at = tail.find(head)
    while at >= 0:
        if whole.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(head, at + 1)
    return next((size for size in range(min(len(head), len(tail)), 0, -1) if tail.endswith(head[:size])), 0)


def _read_from(descriptor: int, start: int) -> bytes:
    parts = []
    while data := os.pread(descriptor, 1 << 20, start):
        parts.append(data)
        start += len(data)
    return b"".join(parts)
