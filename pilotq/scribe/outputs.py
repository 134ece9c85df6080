"""Bringing home what attempts left: standard streams in place, other files by rename.

The files of many tasks are written first; then their data is synced, all at once; then parts take their names; then
their directories are synced. A file is told to be there only after that.

Standard output, standard error and remapped files go where their user said. Every other name comes from a worker, and
stays below the task's directory: no `..`, and no directory on the way that is a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from typing import NamedTuple

from pilotq.beneath import open_folder
from pilotq.core.records import Note
from pilotq.model import STDERR, STDOUT
from pilotq.scribe.lanes import Item
from pilotq.scribe.reading import Places
from pilotq.scribe.trouble import Trouble

COPY_BYTES = 1 << 20
#: Files and directories that one thread has open at once.
OPEN_MAX = 128
#: Syncs of one thread that wait at the same time; a disk serves them together.
SYNC_THREADS = 8
_NULL = os.makedev(1, 3)
#: Of users' files; the umask applies.
_MODE = 0o664
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _File(NamedTuple):
    """Written, but not yet known to be on disk under its name."""

    item: Item
    what: str
    path: str
    #: -1: there is no data to sync.
    descriptor: int
    #: Where it takes its name: directory, present name, name; -1: it has it.
    folder: int = -1
    part: str = ""
    base: str = ""


class Deliveries:
    """Outputs of many notes on their way; to deliver a note twice does no harm."""

    def __init__(self, spool: str) -> None:
        self._spool = spool
        #: What kept outputs from being delivered.
        self.troubles: dict[Item, Trouble] = {}
        self._files: list[_File] = []
        #: Open directories by path and by what is below it without a link; with those who have something there.
        self._folders: dict[tuple[str, str], tuple[int, list[Item]]] = {}
        self._open = 0

    def add(self, item: Item, note: Note, places: Places) -> None:
        """Write all outputs of a note; `settle` makes them last."""
        for index, output in enumerate(note.outputs):
            is_stream = True
            if output.name == STDOUT:
                what, path = "output", places.stdout
            elif output.name == STDERR:
                what, path = "error", places.stderr
            else:
                what, path, is_stream = output.name, os.path.join(places.iwd, output.name), False
            if not path:
                continue
            if self._open >= OPEN_MAX:
                self.settle()
            try:
                if is_stream:
                    self._write_in_place(item, what, path, note, index)
                else:
                    self._write_part(item, path, note, index, places)
            except OSError as error:
                self._fail(item, what, path, error)
                return

    def settle(self) -> None:
        """Have everything on disk, or in `troubles`."""
        files, self._files = self._files, []
        folders, self._folders = self._folders, {}
        self._open = 0
        try:
            self._sync(files)
            self._rename(files)
            for (path, below), (descriptor, items) in folders.items():
                try:
                    _sync_folder(descriptor)
                except OSError as error:
                    for item in items:
                        self._fail(item, "output", os.path.join(path, below), error)
        finally:
            for file in files:
                _close(file.descriptor)
            for descriptor, _ in folders.values():
                _close(descriptor)

    def _sync(self, files: list[_File]) -> None:
        written = [file for file in files if file.descriptor >= 0]
        if len(written) > 1:
            for file in written:
                # Starts writing, and waits for nothing: so the disk gets all of them at once.
                os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        # Threads of its own: what hangs in one file system must not hold up another.
        count = min(SYNC_THREADS, len(written) // 8 + 1)
        threads = [
            threading.Thread(target=self._wait_for_disk, args=(written[index::count],), daemon=True)
            for index in range(1, count)
        ]
        for thread in threads:
            thread.start()
        self._wait_for_disk(written[::count])
        for thread in threads:
            thread.join()

    def _wait_for_disk(self, files: list[_File]) -> None:
        for file in files:
            try:
                os.fdatasync(file.descriptor)
            except OSError as error:
                self._fail(file.item, file.what, file.path, error)

    def _rename(self, files: list[_File]) -> None:
        for file in files:
            if file.folder < 0:
                continue
            try:
                if file.item not in self.troubles:
                    os.rename(file.part, file.base, src_dir_fd=file.folder, dst_dir_fd=file.folder)
                    continue
            except OSError as error:
                self._fail(file.item, file.what, file.path, error)
            _unlink(file.part, file.folder)

    def _fail(self, item: Item, what: str, path: str, error: OSError) -> None:
        self.troubles.setdefault(item, Trouble(what, path, error))

    def _write_in_place(self, item: Item, what: str, path: str, note: Note, index: int) -> None:
        if note.outputs[index].size_bytes or not _made_empty(path):
            with _Source(self._spool, note, index) as source:
                descriptor = open_regular(path, 0)
                if descriptor is None:
                    return
                try:
                    old_bytes = os.fstat(descriptor).st_size
                    if old_bytes:
                        os.ftruncate(descriptor, 0)
                    source.copy_to(descriptor)
                except OSError:
                    os.close(descriptor)
                    raise
            if source.size or old_bytes:
                self._wait_for(_File(item, what, path, descriptor))
            else:
                os.close(descriptor)
        # A directory that only takes files cannot be opened; nothing but a crash of the machine would show it.
        with contextlib.suppress(PermissionError):
            self._folder(item, path.rpartition("/")[0] or "/")

    def _write_part(self, item: Item, path: str, note: Note, index: int, places: Places) -> None:
        """Write a file under another name first, so that nobody ever sees a part of it."""
        output = note.outputs[index]
        _check(output.name)
        root, below, base = _place(output.name, places)
        if f"{root}/{base}" == "/dev/null":
            return
        folder = self._folder(item, root, below)
        mark = f"{note.cluster}.{note.proc}.{index}"
        part = f".{base.encode('utf-8', 'surrogateescape')[:100].decode('utf-8', 'ignore')}.{mark}.part"
        _unlink(part, folder)
        # The umask applies; set-uid, set-gid and sticky bits never come home.
        descriptor = os.open(part, _NEW, (output.mode & 0o777) | 0o600, dir_fd=folder)
        try:
            with _Source(self._spool, note, index) as source:
                source.copy_to(descriptor)
        except OSError:
            os.close(descriptor)
            _unlink(part, folder)
            raise
        if not source.size:
            os.close(descriptor)
            descriptor = -1
        self._wait_for(_File(item, output.name, path, descriptor, folder, part, base))

    def _wait_for(self, file: _File) -> None:
        self._files.append(file)
        self._open += file.descriptor >= 0

    def _folder(self, item: Item, root: str, below: str = "") -> int:
        """An open directory; `below` is made where it is not there, and no link in it is followed."""
        known = self._folders.get((root, below))
        if known is None:
            known = self._folders[root, below] = (_open(root, below), [])
            self._open += 1
        known[1].append(item)
        return known[0]


def _made_empty(path: str) -> bool:
    """Make an empty file where nothing is, in one call."""
    try:
        os.mknod(path, stat.S_IFREG | _MODE)
    except FileExistsError:
        return False
    return True


def open_regular(path: str, flags: int) -> int | None:
    """Open a user's file for writing, without ever waiting; None when it is /dev/null.

    Raises: OSError; EINVAL for what is neither.
    """
    try:
        descriptor = os.open(path, _WRITE | flags, _MODE)
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

    def __init__(self, spool: str, note: Note, index: int) -> None:
        output = note.outputs[index]
        self.size = output.size_bytes
        self._data = output.data
        self._pulled = f"{spool}/{note.cluster}.{note.proc}.{note.attempt}/{index}"
        self._descriptor = -1

    def __enter__(self) -> _Source:
        if self._data is None and self.size:
            self._descriptor = os.open(self._pulled, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def copy_to(self, target: int) -> None:
        if self._descriptor < 0:
            write_all(target, self._data or b"")
            return
        while data := os.read(self._descriptor, COPY_BYTES):
            write_all(target, data)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _check(name: str) -> None:
    """Raises: OSError when it is not a name below a directory."""
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, f"the worker named it {name!r}, which is not a name below a directory")


def _place(name: str, places: Places) -> tuple[str, str, str]:
    """Where a file goes: a directory its user named, what is below that by the worker's word, and the file's name."""
    folder, base = os.path.split(name)
    if not places.remaps:
        return places.iwd, folder, base
    target = places.remaps.get(name)
    if target is not None:
        target = os.path.join(places.iwd, target)
        root, own = os.path.split(target)
        return root, "", own or base
    below = ""
    while folder:
        target = places.remaps.get(folder)
        if target is not None:
            root = os.path.join(places.iwd, target)
            os.makedirs(root, exist_ok=True)
            return root, below, base
        folder, last = os.path.split(folder)
        below = f"{last}/{below}" if below else last
    return places.iwd, os.path.dirname(name), base


def _open(root: str, below: str) -> int:
    try:
        return open_folder(root, below, 0o777)
    except OSError as error:
        if error.errno == errno.ENOTDIR and below:
            raise OSError(errno.ENOTDIR, f"{error.strerror}; a remap may lead there", error.filename) from None
        raise


def sync_folder_of(path: str) -> None:
    """The name of a new file is on disk too."""
    # A directory that only takes files cannot be opened; nothing but a crash of the machine would show it.
    with contextlib.suppress(PermissionError):
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync_folder(descriptor)
        finally:
            os.close(descriptor)


def _sync_folder(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not know how to sync a directory.
        if error.errno != errno.EINVAL:
            raise


def _close(descriptor: int) -> None:
    """Errors of writing were told by the sync."""
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
