"""Files between submit side and sandbox, by content.

The head keeps every file once, under the sha256 of its content (`BlobStore`); workers and foremen hold copies (`Cache`)
that a `Fetcher` asks for piece by piece; what is too large for a result is pulled the same way into a `Spool`. The
consumer asks, so nobody is sent more than he wants. Nothing here knows a socket: requests are returned as messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from pilotq import wire
from pilotq.errors import PeerError, UnavailableError, UserError
from pilotq.model import OutputFile

#: Requests for pieces that a consumer has under way at once.
WINDOW = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


def checked(digest: str) -> str:
    """Raises: PeerError when it is not a sha256 in hexadecimal: it becomes a path."""
    if not _DIGEST.fullmatch(digest):
        raise PeerError("not a digest")
    return digest


def _sync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _piece(path: Path, offset: int, length: int) -> tuple[int, bytes]:
    """Size of a file and a piece of it."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return size, os.pread(file.fileno(), max(0, length), max(0, offset))


class BlobStore:
    """The kept files of the head: durable before their digest is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob("put-*"):
            leftover.unlink()
        self._count = 0

    def path(self, digest: str) -> Path:
        return self.folder / checked(digest)[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """Size of the file and a piece of it.

        Raises: OSError, PeerError.
        """
        return _piece(self.path(digest), offset, length)

    async def put(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Keep what comes; its digest and size, when it is on disk.

        Raises: UnavailableError when the disk is full.
        """
        self._count += 1
        temporary = self.folder / f"put-{os.getpid()}-{self._count}"
        loop = asyncio.get_running_loop()
        digest, size = hashlib.sha256(), 0
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
                async for chunk in chunks:
                    size += len(chunk)
                    digest.update(chunk)
                    await loop.run_in_executor(None, _write_all, file, chunk)
                await loop.run_in_executor(None, os.fsync, file.fileno())
            return await loop.run_in_executor(None, self._settle, temporary, digest.hexdigest()), size
        except OSError as error:
            raise UnavailableError(f"a file cannot be kept in {self.folder}: {error.strerror}", "free space") from None
        finally:
            temporary.unlink(missing_ok=True)

    def keep(self, path: Path) -> tuple[str, int]:
        """Keep a file of this host; its digest and size.

        Raises: UserError when it cannot be read.
        """
        temporary = self.folder / f"put-{os.getpid()}-keep"
        try:
            shutil.copyfile(path, temporary)
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
                os.fsync(file.fileno())
            return self._settle(temporary, digest), size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _settle(self, temporary: Path, digest: str) -> str:
        target = self.path(digest)
        if target.exists():
            # Young again, so that the sweep leaves it to whoever is about to submit it.
            os.utime(target)
            return digest
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_dir(self.folder)
        os.chmod(temporary, 0o400)
        os.replace(temporary, target)
        _sync_dir(target.parent)
        return digest

    def sweep(self, in_use: set[str], older_than_s: float) -> int:
        """Remove what nobody needs any more; how many."""
        limit = time.time() - older_than_s
        removed = 0
        for path in self.folder.glob("??/*"):
            if path.name not in in_use and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class Cache:
    """Copies of kept files on a node; a file has its name only when its content is right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        self._known = {path.name for path in folder.iterdir() if _DIGEST.fullmatch(path.name)}

    def has(self, digest: str) -> bool:
        return digest in self._known

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        return _piece(self.folder / checked(digest), offset, length)

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a whole file.

        Raises: PeerError when the content is another one.
        """
        if digest in self._known:
            return
        if hashlib.sha256(data).hexdigest() != checked(digest):
            raise PeerError(f"file {digest[:12]} came with another content")
        part = self.folder / f"{digest}.part"
        part.write_bytes(data)
        self._name(part, digest)

    def write(self, digest: str, offset: int, data: bytes) -> None:
        descriptor = os.open(self.folder / f"{checked(digest)}.part", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def finish(self, digest: str) -> bool:
        """All pieces are there; False, and gone, when the content is another one."""
        part = self.folder / f"{checked(digest)}.part"
        part.touch(mode=0o600)
        with open(part, "rb") as file:
            is_right = hashlib.file_digest(file, "sha256").hexdigest() == digest
        if is_right:
            self._name(part, digest)
        else:
            part.unlink()
        return is_right

    def drop(self, digest: str) -> None:
        self._known.discard(digest)
        (self.folder / checked(digest)).unlink(missing_ok=True)

    def _name(self, part: Path, digest: str) -> None:
        part.chmod(0o400)
        part.replace(self.folder / digest)
        self._known.add(digest)


class _Download:
    """A file on its way: which pieces are asked for, which are there."""

    def __init__(self, size: int) -> None:
        #: -1 until the first piece tells.
        self.size = size
        self.asked: set[int] = set()
        self.there: set[int] = set()

    def next_offset(self) -> int | None:
        if self.size < 0:
            return 0 if 0 not in self.asked else None
        offset = 0
        while offset < max(self.size, 1):
            if offset not in self.asked and offset not in self.there:
                return offset
            offset += wire.CHUNK_BYTES
        return None

    @property
    def is_whole(self) -> bool:
        return self.size >= 0 and len(self.there) * wire.CHUNK_BYTES >= max(self.size, 1)


class Fetcher:
    """Asks for files that are wanted, a window of pieces at a time, and goes on where a lost session stopped."""

    def __init__(self, cache: Cache, window: int = WINDOW) -> None:
        self.cache = cache
        self._window = window
        self._downloads: dict[str, _Download] = {}

    def want(self, digest: str, size: int = -1) -> None:
        if not self.cache.has(digest) and digest not in self._downloads:
            self._downloads[checked(digest)] = _Download(size)

    def requests(self) -> Iterator[wire.Get]:
        """What to ask for now."""
        room = self._window - sum(len(download.asked) for download in self._downloads.values())
        for digest, download in self._downloads.items():
            while room > 0:
                offset = download.next_offset()
                if offset is None:
                    break
                download.asked.add(offset)
                room -= 1
                yield wire.Get(digest, offset)

    def on_chunk(self, chunk: wire.Chunk) -> tuple[str, str] | None:
        """Take a piece: (digest, "") when its file is whole, (digest, reason) when it cannot be had."""
        download = self._downloads.get(chunk.digest)
        if download is None or chunk.offset not in download.asked:
            return None
        if chunk.size < 0:
            del self._downloads[chunk.digest]
            return chunk.digest, "an input file is not kept on the head any more"
        download.asked.discard(chunk.offset)
        download.size = chunk.size
        try:
            self.cache.write(chunk.digest, chunk.offset, chunk.data)
            download.there.add(chunk.offset)
            if not download.is_whole:
                return None
            del self._downloads[chunk.digest]
            if self.cache.finish(chunk.digest):
                return chunk.digest, ""
            return chunk.digest, "an input file came damaged"
        except OSError as error:
            self._downloads.pop(chunk.digest, None)
            return chunk.digest, f"an input file cannot be kept: {error.strerror}"

    def restart(self) -> None:
        """The session is new: what was asked for will not come."""
        for download in self._downloads.values():
            download.asked.clear()


class Spool:
    """Outputs of ended attempts on the head, until the scribe has written them: `<token>/<index of the output>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, token: wire.Token) -> Path:
        return self.folder / f"{token.cluster}.{token.proc}.{token.attempt}"

    def discard(self, token: wire.Token) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path(token))


class Pulling:
    """The outputs of one attempt on their way into the spool."""

    def __init__(self, spool: Spool, token: wire.Token, outputs: list[OutputFile]) -> None:
        self.token = token
        self._folder = spool.path(token)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._wanted = {output.name: (index, output) for index, output in enumerate(outputs) if output.data is None}
        self._downloads = {name: _Download(output.size_bytes) for name, (_, output) in self._wanted.items()}
        for name, download in self._downloads.items():
            self._write(name, 0, b"")
            if not download.size:
                download.there.add(0)

    def requests(self, window: int = WINDOW) -> Iterator[wire.Pull]:
        room = window - sum(len(download.asked) for download in self._downloads.values())
        for name, download in self._downloads.items():
            while room > 0:
                offset = download.next_offset()
                if offset is None:
                    break
                download.asked.add(offset)
                room -= 1
                yield wire.Pull(self.token, name, offset)

    def on_data(self, data: wire.Data) -> str | None:
        """Take a piece: None: go on; "": all is there; else why it cannot be had.

        Raises: OSError when the head's disk does not take it.
        """
        download = self._downloads.get(data.name)
        if download is None or data.offset not in download.asked:
            return None
        if data.missing:
            return f"output {data.name} is not on the worker any more"
        download.asked.discard(data.offset)
        self._write(data.name, data.offset, data.data)
        download.there.add(data.offset)
        return "" if self.is_whole else None

    @property
    def is_whole(self) -> bool:
        return all(download.is_whole for download in self._downloads.values())

    def restart(self) -> None:
        for download in self._downloads.values():
            download.asked.clear()

    def sync(self) -> None:
        """Make it durable."""
        for path in self._folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_dir(self._folder)
        _sync_dir(self._folder.parent)

    def _write(self, name: str, offset: int, data: bytes) -> None:
        descriptor = os.open(self._folder / str(self._wanted[name][0]), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)
