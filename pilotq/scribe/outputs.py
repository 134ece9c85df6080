"""Bringing home what an attempt left: standard streams in place, other files by rename.

Standard output, standard error and remapped files go where their user said. Every other name comes from a worker, and
stays below the task's directory: no `..`, and no directory on the way that is a symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pilotq.core.records import Note
from pilotq.model import STDERR, STDOUT, OutputFile
from pilotq.scribe.reading import Places
from pilotq.scribe.trouble import Trouble

COPY_BYTES = 1 << 20
_NULL = os.makedev(1, 3)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def deliver(note: Note, places: Places, spool: str) -> None:
    """Write all outputs of a note; to do it twice does no harm.

    Raises: Trouble.
    """
    changed: set[str] = set()
    streams = {STDOUT: ("output", places.stdout), STDERR: ("error", places.stderr)}
    for index, output in enumerate(note.outputs):
        what, path = streams.get(output.name) or (output.name, os.path.join(places.iwd, output.name))
        if not path:
            continue
        try:
            with _Source(output, f"{spool}/{note.cluster}.{note.proc}.{note.attempt}/{index}") as source:
                if output.name in streams:
                    _write_in_place(path, source)
                else:
                    _check(output.name)
                    changed.add(_put(output, places, source, f".{note.cluster}.{note.proc}"))
        except OSError as error:
            raise Trouble(what, path, error) from error
    for folder in changed:
        try:
            _sync_folder(folder)
        except OSError as error:
            raise Trouble("output", folder, error) from error


def open_regular(path: str, flags: int) -> int | None:
    """Open a user's file for writing, without ever waiting; None when it is /dev/null.

    Raises: OSError; EINVAL for what is neither.
    """
    try:
        descriptor = os.open(path, _WRITE | flags, 0o664)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "it is a FIFO or a socket, not a regular file") from None
        raise
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == _NULL:
        return None
    raise OSError(errno.EINVAL, "it is not a regular file")


class _Source:
    """The bytes of an output, from the note or from the spool."""

    def __init__(self, output: OutputFile, pulled: str) -> None:
        self._data = output.data
        self._size = output.size_bytes
        self._pulled = pulled
        self._descriptor = -1

    def __enter__(self) -> _Source:
        if self._data is None and self._size:
            self._descriptor = os.open(self._pulled, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def copy_to(self, target: int) -> None:
        """Write everything, and have it on disk."""
        if self._descriptor < 0:
            write_all(target, self._data or b"")
        else:
            while data := os.read(self._descriptor, COPY_BYTES):
                write_all(target, data)
        if self._size:
            os.fdatasync(target)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_in_place(path: str, source: _Source) -> None:
    descriptor = open_regular(path, 0)
    if descriptor is None:
        return
    try:
        os.ftruncate(descriptor, 0)
        source.copy_to(descriptor)
    finally:
        os.close(descriptor)


def _check(name: str) -> None:
    """Raises: OSError when it is not a name below a directory."""
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, f"the worker named it {name!r}, which is not a name below a directory")


def _put(output: OutputFile, places: Places, source: _Source, mark: str) -> str:
    """Write one file that is no stream; the directory it is in now."""
    target = _remapped(output.name, places)
    if target is None:
        with _folder(places.iwd, output.name) as (folder, base, path):
            _replace(folder, base, output.mode, source, mark)
            return path
    path, base = os.path.split(target)
    if target == "/dev/null":
        return path
    folder = os.open(path, _DIRECTORY)
    try:
        _replace(folder, base, output.mode, source, mark)
    finally:
        os.close(folder)
    return path


def _remapped(name: str, places: Places) -> str | None:
    """The destination a user gave for a file, or for a directory it is in; None: he did not."""
    if not places.remaps:
        return None
    target = places.remaps.get(name)
    if target is not None:
        target = os.path.join(places.iwd, target)
        return os.path.join(target, os.path.basename(name)) if target.endswith("/") else target
    folder, rest = os.path.dirname(name), os.path.basename(name)
    while folder:
        target = places.remaps.get(folder)
        if target is not None:
            target = os.path.join(places.iwd, target, rest)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            return target
        rest = f"{os.path.basename(folder)}/{rest}"
        folder = os.path.dirname(folder)
    return None


@contextmanager
def _folder(root: str, name: str) -> Iterator[tuple[int, str, str]]:
    """The directory a name belongs in, made below `root` without following links: descriptor, base name, path."""
    *folders, base = name.split("/")
    descriptor = os.open(root, _DIRECTORY)
    path = root
    try:
        for part in folders:
            path = os.path.join(path, part)
            try:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except FileNotFoundError:
                os.mkdir(part, 0o777, dir_fd=descriptor)
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise OSError(errno.ENOTDIR, f"{path} is a link or no directory; a remap may lead there") from None
                raise
            os.close(descriptor)
            descriptor = below
        yield descriptor, base, path
    finally:
        os.close(descriptor)


def _replace(folder: int, base: str, mode: int, source: _Source, mark: str) -> None:
    """Write a file under another name and rename it, so that nobody ever sees a part of it."""
    part = f".{base.encode('utf-8', 'surrogateescape')[:100].decode('utf-8', 'ignore')}{mark}.part"
    try:
        os.unlink(part, dir_fd=folder)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # The umask applies; set-uid, set-gid and sticky bits never come home.
    descriptor = os.open(part, flags, (mode & 0o777) | 0o600, dir_fd=folder)
    try:
        source.copy_to(descriptor)
        os.rename(part, base, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(part, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
