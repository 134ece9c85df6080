"""Opening what is below a directory, without a symbolic link on the way, whatever others put there meanwhile.

Every part of a name is opened relative to the one before it and must not be a link, so that between looking and opening
nothing can be exchanged. (openat2 with RESOLVE_BENEATH would be one call, but Python has none.)
"""

from __future__ import annotations

import errno
import os

#: Directories in one name.
DEPTH_MAX = 100
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_folder(root: str | int, below: str = "", make: int | None = None) -> int:
    """A descriptor of a directory, below a path or another descriptor; made with this mode where it is not there.

    Raises: OSError; ENOTDIR for what is a link or no directory.
    """
    if below.count("/") >= DEPTH_MAX:
        raise OSError(errno.ENAMETOOLONG, f"more than {DEPTH_MAX} directories in one name", below[:100])
    descriptor = os.open(root, _DIRECTORY) if isinstance(root, str) else os.open(".", _DIRECTORY, dir_fd=root)
    try:
        for part in below.split("/") if below else ():
            inner = _step(descriptor, part, make, f"{root}/{below}" if isinstance(root, str) else below)
            os.close(descriptor)
            descriptor = inner
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _step(folder: int, part: str, make: int | None, path: str) -> int:
    try:
        try:
            return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            if make is None:
                raise
            try:
                os.mkdir(part, make, dir_fd=folder)
            except FileExistsError:
                # Somebody was faster; opening says what it is.
                pass
            return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise OSError(errno.ENOTDIR, f"{part!r} is a link or no directory", path) from None
        raise


def open_file(root: str, name: str, flags: int, mode: int = 0o600, make: int | None = None) -> int:
    """A descriptor of a file below a directory; the name is relative, without "." and "..".

    Raises: OSError; ELOOP when it is a link.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    below, _, base = name.rpartition("/")
    if not below:
        return os.open(f"{root}/{name}", flags, mode)
    folder = open_folder(root, below, make)
    try:
        return os.open(base, flags, mode, dir_fd=folder)
    finally:
        os.close(folder)
