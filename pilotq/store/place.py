"""What a store needs of its directory: a local file system, no other master, and a reserve for the day it is full."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path

from pilotq.errors import UserError

#: Their locks and shared memory are not to be trusted, so a store on them may be damaged by its own readers.
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "pvfs2",
        "smb3",
        "smbfs",
    }
)
BALLAST_BYTES = 16 << 20
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


def filesystem(path: str | Path, mountinfo: str | None = None) -> str:
    """The type of the file system a path lies on, as the kernel names it; "" when that is not known.

    Source: proc(5), /proc/pid/mountinfo.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
    wanted = os.path.realpath(path)
    best, found = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = point in ("/", wanted) or wanted.startswith(point + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(point) >= best:
            best, found = len(point), right.split(" ")[0]
    return found


def is_network(path: str | Path) -> bool:
    """True when a store must not lie there."""
    return filesystem(path) in NETWORK_FILESYSTEMS


def require_local(directory: Path) -> None:
    """Raises: UserError for a directory on a network file system."""
    kind = filesystem(directory)
    if kind in NETWORK_FILESYSTEMS:
        raise UserError(
            f"the queue cannot be kept in {directory}, which is on a network file system ({kind})",
            "set state_dir to a directory on a local disk, such as /var/tmp",
        )


def is_full(directory: Path) -> bool:
    """True when not even a little more can be written there."""
    probe = directory / ".probe"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, 256 << 10)
        finally:
            os.close(descriptor)
            os.unlink(probe)
    except OSError as error:
        return error.errno in FULL_ERRNOS
    return False


class Lock:
    """A file that one process holds for its life."""

    def __init__(self, path: Path, holder: str) -> None:
        """Take it.

        Raises: UserError when another process has it.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(self._descriptor, 20).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise UserError(
                f"another {holder} (process {pid or 'unknown'}) works in {path.parent}",
                "stop it first, or use another PILOTQ_HOME",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Ballast:
    """Disk space kept to be given back when the disk is full, so that what was accepted can be finished."""

    def __init__(self, directory: Path, size: int = BALLAST_BYTES) -> None:
        self._path = directory / "ballast"
        self._size = size
        self.is_there = self._path.exists() and self._path.stat().st_blocks * 512 >= size

    def release(self) -> bool:
        """True when there was something to give back."""
        self.is_there = False
        try:
            size = self._path.stat().st_size
            os.unlink(self._path)
        except OSError:
            return False
        return size > 0

    def restore(self, room: int = 2) -> bool:
        """Take the space again if the disk has `room` times of it; True when it is there."""
        if self.is_there:
            return True
        try:
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < room * self._size:
                return False
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        self.is_there = True
        return True
