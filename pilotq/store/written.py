"""How far the history stands in files of HTCondor's form: a small file beside the queue.

It is there while such files are kept. Who writes them (`scribe.history`) and who shows the queue (`query.reader`) go by
it: a task that left the queue is shown in it until its ad is in its file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import msgspec

NAME = "history.mark"


class Mark(msgspec.Struct, frozen=True):
    #: Blocks of the history up to this one are written; those up to `until` may be, or in part.
    done: int
    until: int
    #: The file they are appended to, and its size before; counts only when `until` is later than `done`.
    device: int = 0
    inode: int = 0
    size: int = 0


def read_mark(path: Path | str) -> Mark | None:
    """None: no files are kept."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Mark)
    except FileNotFoundError:
        return None


def write_mark(path: Path, mark: Mark, *, sync: bool) -> None:
    """`sync`: it is on disk when this returns.

    Raises: OSError.
    """
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(mark))
        if sync:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(new, path)
    if sync:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def begin(queue: Path, is_on: bool) -> None:
    """Before anything can leave the queue: what left it earlier is not written when files begin to be kept."""
    path = queue.with_name(NAME)
    if not is_on:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    db = sqlite3.connect(f"file:{queue}?mode=ro", uri=True, timeout=10)
    try:
        last = int(db.execute("select ifnull(max(n), 0) from history").fetchone()[0])
    finally:
        db.close()
    mark = read_mark(path)
    # A queue that was restored may have forgotten what it had written.
    if mark is None or max(mark.done, mark.until) > last:
        write_mark(path, Mark(last, last), sync=True)
