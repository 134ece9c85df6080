"""The folder of a host below WQ_WORKDIR: one worker's for life, and swept of what its predecessor left.

<workdir>/<hostname>/    (a second worker on the same host: <hostname>.2, and so on)
    lock                 held by flock while the worker lives
    worker.json          nonces of its processes, names it had
    blobs/               kept files, by digest; they outlive the worker
    tasks/               sandboxes
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import struct
import time

from pilotq.errors import PilotqError, UnavailableError, UserError
from pilotq.proc import start_ticks
from pilotq.sandbox import groups, marks
from pilotq.sandbox.removal import remove

FOLDERS_MAX = 64
_SWEEP_S = 20.0
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_TOPDIR = 0x20000
#: The kernel reads and writes an int, whatever the number of the call says.
_FLAGS = struct.Struct("i4x")
_HINT = "set WQ_WORKDIR to a directory of yours on a local disk"
log = logging.getLogger(__name__)


class Folder:
    """A host folder whose lock this process holds until it ends or calls `release`."""

    def __init__(self, base: str, host: str, n: int, lock: int) -> None:
        self.base = base
        self.host = host
        self.path = _path(base, host, n)
        self._lock = lock
        #: Stands in every process of this worker.
        self.nonce = marks.new_nonce()
        #: Nonces of dead workers whose processes may still be there.
        self._stale: list[str] = []
        #: Control groups of this worker, and of dead ones.
        self.groups: list[str] = []
        self._stale_groups: list[str] = []
        #: Names under which earlier workers of this folder were known, until the master was told.
        self.names: list[str] = []
        self._shown: dict[str, object] = {}
        self._unsaved = False
        self._load()

    @property
    def blobs(self) -> str:
        return os.path.join(self.path, "blobs")

    @property
    def tasks(self) -> str:
        return os.path.join(self.path, "tasks")

    def announce(self, name: str, groups: list[str]) -> None:
        """This worker's name and control groups go beside those of its predecessors."""
        self.names = [*self.names, name]
        self.groups = groups
        self._save()

    def remember(self, name: str) -> None:
        """The master calls this worker so, and was told of its predecessors."""
        self.names = [name] if name else []
        self._try_to_save()

    def show(self, **facts: object) -> None:
        """Put what the worker is doing into worker.json, for commands on this host to read."""
        if facts != self._shown or self._unsaved:
            self._shown = facts
            self._try_to_save()

    def empty(self) -> None:
        """Remove all sandboxes. Order: nothing runs in them."""
        for name in os.listdir(self.tasks) if os.path.isdir(self.tasks) else []:
            try:
                remove(os.path.join(self.tasks, name))
            except OSError as error:
                facts = {"folder": self.path, "task": name, "error": str(error)}
                log.warning("a sandbox cannot be removed", extra=facts)

    def release(self) -> None:
        os.close(self._lock)

    def _load(self) -> None:
        try:
            with open(os.path.join(self.path, "worker.json"), encoding="utf-8") as file:
                known = json.load(file)
            self._stale = [str(nonce) for nonce in known["nonces"] if int(str(nonce), 16) < 1 << 32]
            self.names = [str(name) for name in known["names"]]
            self._stale_groups = [str(path) for path in known.get("groups", [])]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("worker.json of a dead worker is damaged", extra={"folder": self.path, "error": str(error)})

    def _try_to_save(self) -> None:
        """A disk that filled up must not end a worker that runs tasks: the next `show` tries again."""
        try:
            self._save()
            self._unsaved = False
        except PilotqError as error:
            if not self._unsaved:
                log.warning("worker.json cannot be written", extra={"error": str(error)})
            self._unsaved = True

    def _save(self) -> None:
        path = os.path.join(self.path, "worker.json")
        content = {
            "nonces": [self.nonce, *self._stale],
            "names": self.names,
            "groups": self.groups + self._stale_groups,
            "pid": os.getpid(),
            "started": start_ticks(os.getpid()),
            **self._shown,
        }
        try:
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(path + ".new", path)
        except OSError as error:
            raise _trouble(self.path, error) from None


def take_folder(workdir: str, host: str) -> Folder:
    """Make and lock the first free folder of this host.

    Raises: UserError when the directory cannot be used; UnavailableError when its disk is full or all are taken.
    """
    base = os.path.realpath(workdir)
    for n in range(1, FOLDERS_MAX + 1):
        lock = _lock(_path(base, host, n))
        if lock is None:
            continue
        folder = Folder(base, host, n, lock)
        try:
            for directory in (folder.blobs, folder.tasks):
                os.makedirs(directory, 0o700, exist_ok=True)
            spread(folder.tasks)
            folder._save()
        except OSError as error:
            folder.release()
            raise _trouble(folder.path, error) from None
        except PilotqError:
            folder.release()
            raise
        return folder
    raise UnavailableError(f"{FOLDERS_MAX} workers use {workdir} on {host} already", "stop one of them")


def spread(directory: str) -> None:
    """Tell the file system that what lies in the directories of this one is not related; nothing, where it has no word
    for that.

    ext4 then puts each sandbox into the emptiest part of the disk, as it does with /home/*, not all into the part where
    their folder is. There keepers would wait for each other, and without a journal each new file would first pass by
    all that were deleted there in the last minutes: hundreds of microseconds a sandbox.

    Source: chattr(1), attribute T; ioctl_iflags(2).
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | FS_TOPDIR))
    except OSError as error:
        log.debug("sandboxes are not spread", extra={"folder": directory, "error": str(error)})
    finally:
        os.close(fd)


def _path(base: str, host: str, n: int) -> str:
    return os.path.join(base, host if n == 1 else f"{host}.{n}")


def _lock(path: str) -> int | None:
    """The lock of a folder, made when missing; None when a living worker holds it."""
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.makedirs(path, 0o700, exist_ok=True)
        status = os.stat(path)
        if status.st_uid != os.geteuid():
            raise UserError(f"{path} belongs to another user (uid {status.st_uid})", _HINT)
        if status.st_mode & 0o077:
            os.chmod(path, 0o700)
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _trouble(path, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise UserError(f"{path} cannot be locked: {error.strerror}", _HINT) from None
    return fd


def _trouble(path: str, error: OSError) -> PilotqError:
    # makedirs says EEXIST when something else is there.
    why = os.strerror(errno.ENOTDIR) if error.errno == errno.EEXIST else error.strerror
    text = f"the scratch directory {path} cannot be used: {why}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(text, "free some space there, or set WQ_WORKDIR to another disk")
    return UserError(text, _HINT)


def sweep(folder: Folder) -> list[str]:
    """End and remove what dead workers left in this folder and in the host's other folders; the names they had.

    Nothing of those names is left when this returns.

    Raises: UnavailableError when a process cannot be killed within 20 s.
    Cost: two scans of /proc or more, when there was a predecessor.
    """
    _clean(folder)
    for n in range(1, FOLDERS_MAX + 1):
        path = _path(folder.base, folder.host, n)
        if path == folder.path or not os.path.exists(os.path.join(path, "worker.json")):
            continue
        lock = _lock(path)
        if lock is None:
            continue
        other = Folder(folder.base, folder.host, n, lock)
        try:
            _clean(other)
            folder.names += other.names
            folder._save()
            os.unlink(os.path.join(path, "worker.json"))
        finally:
            other.release()
    return list(folder.names)


def _clean(folder: Folder) -> None:
    deadline = time.monotonic() + _SWEEP_S
    for nonce in folder._stale:
        empty = 0
        while empty < 2:
            empty = 0 if marks.hunt(nonce) else empty + 1
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"processes of an earlier worker in {folder.path} cannot be killed", "look for them in `ps`"
                )
            if not empty:
                time.sleep(0.01)
    for group in folder._stale_groups:
        groups.bury(group)
    folder.empty()
    folder._stale, folder._stale_groups = [], []
    folder._save()
