"""Removing a sandbox, whatever a task has made of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator

from pilotq.sandbox.files import exhaust

#: Directory entries looked at between two yields.
_ENTRIES = 500


def remove(path: str) -> None:
    """Remove a sandbox and all in it; nothing to do when it is not there. See `removing`."""
    exhaust(removing(path))


def removing(path: str) -> Generator[None, None, None]:
    """Remove a directory and all in it, whatever its depth, modes and names; no symbolic link is followed.

    Directories further down are first lifted to the top level, so that neither open files, nor recursion, nor the
    length of a path grows with the depth.

    Raises: OSError for what cannot be removed (another user's file, an immutable one); the rest is gone then.
    """
    failed: list[OSError] = []
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            # Put in its place by a task; what it points to is not ours to remove.
            os.unlink(path)
            return
        todo = yield from _emptied(path, failed)
    except FileNotFoundError:
        return
    lifted = 0
    while todo:
        directory = todo.pop()
        try:
            for below in (yield from _emptied(directory, failed)):
                lifted += 1
                todo.append(_lift(directory, below, f"{path}/\x7fpilotq.{os.getpid()}.{lifted}"))
            os.rmdir(directory)
        except OSError as error:
            failed.append(error)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        # Somebody else removed it, or set it aside.
        return
    except OSError as error:
        # A directory that changed while it was read may have hidden something: once more, unless there is a reason.
        if error.errno != errno.ENOTEMPTY or failed:
            raise (failed or [error])[0] from None
        yield from removing(path)


def _emptied(directory: str, failed: list[OSError]) -> Generator[None, None, list[str]]:
    """Unlink the files of a directory; give the directories in it."""
    below: list[str] = []
    try:
        entries = os.scandir(directory)
    except PermissionError:
        os.chmod(directory, 0o700)
        entries = os.scandir(directory)
    with entries:
        for count, entry in enumerate(entries, 1):
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
                continue
            try:
                try:
                    os.unlink(entry.path)
                except PermissionError:
                    os.chmod(directory, 0o700)
                    os.unlink(entry.path)
            except OSError as error:
                failed.append(error)
            if not count % _ENTRIES:
                yield
    return below


def _lift(directory: str, below: str, target: str) -> str:
    try:
        os.rename(below, target)
    except PermissionError:
        # Moving a directory needs the right to write into it, and into the one it is taken from.
        os.chmod(directory, 0o700)
        os.chmod(below, 0o700)
        os.rename(below, target)
    return target
