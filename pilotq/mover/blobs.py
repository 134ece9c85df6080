"""The kept files of the head."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Collection, Container
from pathlib import Path

from pilotq.errors import UnavailableError, UserError
from pilotq.mover.pieces import checked, is_digest, piece, sync_path, write_all
from pilotq.mover.small import SmallFiles
from pilotq.wire import INLINE_BYTES_MAX, NOT_KEPT, NOT_NOW, Buffer

log = logging.getLogger(__name__)


class BlobStore:
    """The kept files of the head: on disk before their digest is told.

    Each is a file `ab/<digest>`; small ones that came many at a time are rows of `small.db`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob("put-*"):
            leftover.unlink()
        self._count = 0
        self._small = SmallFiles(folder / "small.db")
        #: Naming and sweeping exclude each other, and a file is told to be there only after its directory is synced.
        self._naming = threading.Lock()

    def path(self, digest: str) -> Path:
        return self.folder / checked(digest)[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).exists() or digest in self._small.get([digest])

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """Size of a file and a piece of it; or `NOT_KEPT` (or no digest) or `NOT_NOW`."""
        if not is_digest(digest):
            return NOT_KEPT, b""
        found = piece(self.path(digest), offset, length)
        if found[0] >= 0:
            return found
        try:
            data = self._small.get([digest]).get(digest)
        except UnavailableError as error:
            log.warning("kept files cannot be read", extra={"facts": {"reason": str(error)}})
            return NOT_NOW, b""
        start = max(0, offset)
        return (NOT_KEPT, b"") if data is None else (len(data), bytes(data[start : start + max(0, length)]))

    def read_small(self, digests: Collection[str]) -> dict[str, Buffer]:
        """Those of these files that were kept by `put_small`, or were small and kept by `put`; by digest."""
        try:
            found = self._small.get(digests)
        except UnavailableError:
            return {}
        for digest in digests:
            if digest not in found:
                size, data = piece(self.path(digest), 0, INLINE_BYTES_MAX)
                if size == len(data):
                    found[digest] = data
        return found

    async def put_small(self, files: list[bytes]) -> list[tuple[str, int]]:
        """Keep many small files at once; digest and size of each, when all are on disk.

        Raises: UnavailableError when the disk does not take them.
        """
        digests = await asyncio.to_thread(self._small.put, files)
        return [(digest, len(data)) for digest, data in zip(digests, files, strict=True)]

    async def put(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Keep what comes; its digest and size, when it is on disk.

        Raises: UnavailableError when the disk does not take it.
        """
        temporary, digest, size = self._new(), hashlib.sha256(), 0
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    digest.update(chunk)
                    await asyncio.to_thread(write_all, descriptor, chunk)
                await asyncio.to_thread(self._settle, temporary, digest.hexdigest())
            finally:
                os.close(descriptor)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free space" if is_full else "see that its disk is in order, and submit again"
            raise UnavailableError(f"a file cannot be kept in {self.folder}: {error.strerror}", hint) from None
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def keep(self, path: Path) -> tuple[str, int]:
        """Keep a file of this host; its digest and size.

        Raises: UserError when it cannot be read or kept.
        """
        temporary = self._new()
        try:
            shutil.copyfile(path, temporary)
            temporary.chmod(0o400)
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            self._settle(temporary, digest)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)
        return digest, size

    def _new(self) -> Path:
        self._count += 1
        return self.folder / f"put-{self._count}"

    def _settle(self, temporary: Path, digest: str) -> None:
        """Give a file its name, durably."""
        target = self.path(digest)
        if not target.exists():
            sync_path(temporary)
        with self._naming:
            try:
                # Young again, so that the sweep leaves it to whoever is about to submit it.
                os.utime(target)
                return
            except FileNotFoundError:
                pass
            if not target.parent.exists():
                target.parent.mkdir(mode=0o700)
                sync_path(self.folder)
            sync_path(temporary)
            temporary.replace(target)
            try:
                sync_path(target.parent)
            except OSError:
                # To be put again, not to be found there.
                target.unlink()
                raise

    def sweep(self, in_use: Container[str], older_than_s: float) -> int:
        """Remove what nobody needs any more; how many."""
        limit, removed = time.time() - older_than_s, 0
        try:
            removed = self._small.sweep(in_use, older_than_s)
        except UnavailableError as error:
            # The next sweep will do it.
            log.warning("kept files cannot be swept", extra={"facts": {"reason": str(error)}})
        for path in self.folder.glob("??/*"):
            if path.name in in_use:
                continue
            with self._naming:
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed
