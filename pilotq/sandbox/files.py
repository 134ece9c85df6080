"""Fill, measure and collect one sandbox.

What may take long is a generator that yields now and then, so that one thread can serve many sandboxes: run it to its
end with `exhaust` when there is nothing else to do.

No name from outside leads out of the sandbox: names are relative and without "..", and a symbolic link is followed only
when it ends inside. Files are opened part by part (`pilotq.beneath`), as other tasks may exchange what is there.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from pilotq.beneath import open_file, open_folder
from pilotq.model import STDERR, STDOUT, Description, FileRef, OutputFile
from pilotq.wire import INLINE_BYTES_MAX, Buffer

STDOUT_FILE = "_condor_stdout"
STDERR_FILE = "_condor_stderr"
JOB_AD_FILE = ".job.ad"
MACHINE_AD_FILE = ".machine.ad"
#: Files of a sandbox that nobody asked for by leaving the list of outputs open.
OWN_FILES = frozenset({STDOUT_FILE, STDERR_FILE, JOB_AD_FILE, MACHINE_AD_FILE})
_NOTHING = {name: OutputFile(name, 0, 0o644, b"") for name in (STDOUT, STDERR)}
_STREAMS = {STDOUT: STDOUT_FILE, STDERR: STDERR_FILE}

#: Bounds on what one attempt reports, so that its result always fits into one message.
INLINE_BYTES_SUM = 256 << 10
OUTPUT_FILES_MAX = 10_000
OUTPUT_NAMES_BYTES_MAX = 1 << 20

_COPY_BYTES = 8 << 20
#: Directory entries looked at between two yields.
_ENTRIES = 500
#: Staged files are made to look so much older, because file systems have coarse clocks: any later change shows.
_OLDER_NS = 10_000_000_000
#: How files of a sandbox are opened: other tasks may have put a link there, or a FIFO, which must not stop us.
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_REFLINK = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})

#: What tells a changed file: moments of change of its content, and of anything; then mode, inode, device, links, owner,
#: group, size.
Print = tuple[int, ...]
T = TypeVar("T")


class Collected(NamedTuple):
    """What an attempt left."""

    outputs: list[OutputFile]
    disk_bytes: int
    #: The first output that was asked for and cannot be had: errno and sentence; 0 and "" when all is there.
    code: int = 0
    problem: str = ""
    #: What is on the top level of the sandbox.
    top: dict[str, os.stat_result] = {}  # noqa: RUF012 never changed


def exhaust(work: Generator[None, None, T]) -> T:
    """Run a generator to its end and give what it returned."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def confined(name: str) -> str:
    """The name without needless parts, when it stays inside the sandbox.

    Raises: PermissionError for an absolute name or one with ".."; OSError when it cannot be a name at all.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise PermissionError(errno.EPERM, "it is not inside the sandbox", name)
    if not parts or "\x00" in name:
        raise OSError(errno.EINVAL, "it is not a file name", name)
    return "/".join(parts)


# ---- in --------------------------------------------------------------------------------------------------------


def stage(
    sandbox: str, cache: str, files: Iterable[FileRef], executables: Iterable[str], inline: Mapping[str, Buffer]
) -> Generator[None, None, dict[str, Print]]:
    """Put files into a fresh sandbox, from memory or copied from the cache; no process of the attempt may run yet.

    What of it is on the top level is told.

    Raises: OSError with the name of the file in the sandbox.
    """
    executable = {os.path.normpath(name) for name in executables}
    prints: dict[str, Print] = {}
    folders = _Folders(sandbox)
    try:
        for ref in files:
            name = confined(ref.name)
            mode = 0o755 if name in executable else ref.mode & 0o777 | 0o600
            data = inline.get(ref.digest)
            try:
                folder, base = folders.of(name)
                if data is None:
                    found = yield from _copy(os.path.join(cache, ref.digest), folder, base, ref.size_bytes, mode)
                else:
                    found = write(base, data, mode, folder)
            except OSError as error:
                raise OSError(error.errno, error.strerror, ref.name) from None
            if folder == folders.top:
                prints[name] = found
    finally:
        folders.close()
    for name in folders.made:
        prints[name] = print_of(os.lstat(f"{sandbox}/{name}"))
    return prints


class _Folders:
    """A sandbox while files are put into it: its own directory stays open, and the last one that was needed in it."""

    def __init__(self, sandbox: str) -> None:
        self.top = self._last = os.open(sandbox, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
        self._below = ""
        #: Directories on the top level.
        self.made: set[str] = set()

    def of(self, name: str) -> tuple[int, str]:
        """The directory that a file belongs in, made if need be, and the name it has there.

        Raises: OSError when it cannot be made, or there is a link or a file in its place.
        """
        below, _, base = name.rpartition("/")
        if below != self._below:
            self._leave()
            if below:
                self._last, self._below = open_folder(self.top, below, 0o755), below
                self.made.add(below.partition("/")[0])
        return self._last, base

    def _leave(self) -> None:
        last, self._last, self._below = self._last, self.top, ""
        if last != self.top:
            os.close(last)

    def close(self) -> None:
        self._leave()
        os.close(self.top)


def _copy(source: str, folder: int, name: str, size: int, mode: int) -> Generator[None, None, Print]:
    reader = os.open(source, os.O_RDONLY | _SAFE)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFE, mode, dir_fd=folder)
        try:
            # copy_file_range shares blocks where the file system can; it does not work between all of them.
            share = True
            done = 0
            while done < size:
                length = min(size - done, _COPY_BYTES)
                try:
                    if share:
                        count = os.copy_file_range(reader, writer, length)
                    else:
                        count = os.sendfile(writer, reader, None, length)
                except OSError as error:
                    if not share or error.errno not in _NO_REFLINK:
                        raise
                    share = False
                    continue
                if not count:
                    raise OSError(errno.EIO, f"only {done} of {size} bytes are kept")
                done += count
                if done < size:
                    yield
            return _aged(writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def write(path: str, data: Buffer, mode: int = 0o644, folder: int | None = None) -> Print:
    """A new small file; with `folder` the path is a name in that directory."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, mode, dir_fd=folder)
    try:
        return _fill(fd, data)
    finally:
        os.close(fd)


def put(path: str, data: bytes, *, is_there: bool = False, is_old: bool = False) -> Print:
    """Write a small file of ours, new or over one that is there; its print. `is_old`: every later change shows.

    One that is there is not truncated first: some file systems then write it to the disk at once.
    """
    new = 0 if is_there else os.O_CREAT | os.O_EXCL
    fd = os.open(path, os.O_WRONLY | _SAFE | new, 0o644)
    try:
        if data and os.pwrite(fd, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if is_old:
            _age(fd)
        status = os.fstat(fd)
        if status.st_size > len(data):
            os.ftruncate(fd, len(data))
            status = os.fstat(fd)
        return print_of(status)
    finally:
        os.close(fd)


def rewrite(name: str, data: Buffer, size: int, top: int) -> Print:
    """Other content for a file of `size` bytes in the directory `top`.

    It is not truncated first: some file systems then write it to the disk at once.
    """
    fd = os.open(name, os.O_WRONLY | _SAFE, dir_fd=top)
    try:
        if size > len(data):
            os.ftruncate(fd, len(data))
        return _fill(fd, data)
    finally:
        os.close(fd)


def _fill(fd: int, data: Buffer) -> Print:
    done = os.write(fd, data) if data else 0
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])
    return _aged(fd)


def _aged(fd: int) -> Print:
    """Make a file look older, so that every later change of it shows."""
    _age(fd)
    return print_of(os.fstat(fd))


def _age(fd: int) -> None:
    before = time.time_ns() - _OLDER_NS
    os.utime(fd, ns=(before, before))


def print_of(status: os.stat_result) -> Print:
    return status.st_mtime_ns, status.st_ctime_ns, *status[:7]


def _has_other_content(status: os.stat_result, before: Print | None) -> bool:
    return before is None or (status.st_mtime_ns, status.st_ino, status.st_size) != (before[0], before[3], before[8])


# ---- out -------------------------------------------------------------------------------------------------------


def _level(path: str) -> list[tuple[str, os.stat_result]]:
    """Name and status of everything in a directory; what vanishes or cannot be read is left out."""
    found: list[tuple[str, os.stat_result]] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
                except OSError:
                    pass
    except OSError:
        pass
    return found


def _tree(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a directory by relative name, no symbolic link followed."""
    todo = [""]
    while todo:
        under = todo.pop()
        for name, status in _level(os.path.join(root, under)):
            path = f"{under}/{name}" if under else name
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                todo.append(path)


def measure(sandbox: str) -> Generator[None, None, int]:
    """Bytes on disk of everything in a sandbox."""
    used = 0
    for count, (_, status) in enumerate(_tree(sandbox), 1):
        used += status.st_blocks * 512
        if not count % _ENTRIES:
            yield
    return used


class _Outputs:
    """The list being made: keeps the bounds, and the first thing that went wrong."""

    def __init__(self, sandbox: str) -> None:
        self.sandbox = sandbox
        self.found: dict[str, OutputFile] = {}
        self.code = 0
        self.problem = ""
        self._inline_bytes = 0
        self._name_bytes = 0

    def fail(self, name: str, code: int, text: str) -> None:
        if not self.problem:
            self.code, self.problem = code, f"Cannot send output file {name!r}: (errno={code}: '{text}')"

    def add(self, name: str, status: os.stat_result, path: str) -> None:
        """Take a regular file; the path is that in the sandbox, links resolved."""
        if name in self.found:
            return
        try:
            self._name_bytes += len(name.encode())
        except UnicodeEncodeError:
            self.fail(name, errno.EILSEQ, "its name is not UTF-8")
            return
        if len(self.found) >= OUTPUT_FILES_MAX or self._name_bytes > OUTPUT_NAMES_BYTES_MAX:
            self.fail(name, errno.E2BIG, f"more than {OUTPUT_FILES_MAX} files; pack them into one")
            return
        data: bytes | None = None
        size = status.st_size
        if not size:
            data = b""
        elif size <= INLINE_BYTES_MAX and self._inline_bytes + size <= INLINE_BYTES_SUM:
            try:
                data = _read(self.sandbox, path, 0, size)
            except OSError as error:
                self.fail(name, error.errno or errno.EIO, error.strerror or str(error))
                return
            size = len(data)
            self._inline_bytes += size
        self.found[name] = OutputFile(name, size, status.st_mode & 0o777, data)


def collect(
    sandbox: str, description: Description, before: dict[str, Print] | None, wanted: bool
) -> Generator[None, None, Collected]:
    """Find what an ended attempt leaves for its user: its streams and, when `wanted`, its outputs.

    No process of the attempt may run any more. `before` is what `settle` saw, needed when the list of outputs is open.
    """
    out = _Outputs(sandbox)
    top: dict[str, os.stat_result] = {}
    used = 0
    for name, status in _level(sandbox):
        top[name] = status
        used += status.st_blocks * 512
        if stat.S_ISDIR(status.st_mode):
            used += yield from measure(f"{sandbox}/{name}")
    for kept, name in ((description.keep_stdout, STDOUT), (description.keep_stderr and not description.merge, STDERR)):
        if kept:
            found = top.get(_STREAMS[name])
            if found is not None and stat.S_ISREG(found.st_mode) and (found.st_size or found.st_mode & 0o777 != 0o644):
                out.add(name, found, _STREAMS[name])
            else:
                out.found[name] = _NOTHING[name]
    if wanted and description.outputs is None:
        for name in sorted(top.keys() - OWN_FILES):
            status = top[name]
            if stat.S_ISREG(status.st_mode) and _has_other_content(status, (before or {}).get(name)):
                out.add(name, status, name)
    elif wanted:
        for name in description.outputs or []:
            yield from _listed(out, name)
    return Collected(list(out.found.values()), used, out.code, out.problem, top)


def _listed(out: _Outputs, asked: str) -> Generator[None, None, None]:
    """Take one entry of the list of outputs: a file, or all regular files below a directory."""
    try:
        name = confined(asked)
        path = _inside(out.sandbox, name)
        status = os.lstat(os.path.join(out.sandbox, path))
    except OSError as error:
        return out.fail(asked, error.errno or errno.EIO, error.strerror or str(error))
    if stat.S_ISREG(status.st_mode):
        return out.add(name, status, path)
    if not stat.S_ISDIR(status.st_mode):
        return out.fail(asked, errno.EINVAL, "it is not a regular file")
    for count, (below, found) in enumerate(_tree(os.path.join(out.sandbox, path)), 1):
        if stat.S_ISREG(found.st_mode):
            out.add(f"{name}/{below}", found, f"{path}/{below}")
        if not count % _ENTRIES:
            yield


def _inside(sandbox: str, name: str) -> str:
    """The path of a name in the sandbox, links resolved.

    Raises: PermissionError when a link leads out of the sandbox; OSError when there is no such file.
    """
    root = os.path.realpath(sandbox)
    path = os.path.realpath(os.path.join(root, name), strict=True)
    if not path.startswith(root + "/"):
        raise PermissionError(errno.EPERM, "it is a link that leads out of the sandbox", name)
    return path[len(root) + 1 :]


def _read(sandbox: str, path: str, offset: int, length: int) -> bytes:
    # O_NONBLOCK: a FIFO put there must not stop us.
    fd = open_file(sandbox, path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        if offset < 0:
            offset = max(0, status.st_size + offset)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def read_output(sandbox: str, name: str, offset: int, length: int) -> bytes:
    """Bytes of an output file; fewer than asked for only at its end. A negative offset counts from there.

    Raises: OSError when it is not there, not a regular file, or not inside the sandbox.
    """
    return _read(sandbox, _inside(sandbox, _STREAMS.get(name) or confined(name)), offset, length)
