"""Copies of kept files on a node, and asking for them."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

from pilotq import wire
from pilotq.errors import PeerError
from pilotq.mover.pieces import WINDOW, Pieces, Window, checked, is_digest, piece


class _Part:
    """A file of a cache that is not whole yet. Its hash grows with it as long as the pieces come in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The directory is ours alone: nobody puts a link there.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.descriptor, data, offset)
        if offset == self._hashed_bytes:
            self._hash.update(data)
            self._hashed_bytes += len(data)

    def digest(self) -> str:
        while data := os.pread(self.descriptor, 1 << 20, self._hashed_bytes):
            self._hash.update(data)
            self._hashed_bytes += len(data)
        return self._hash.hexdigest()


class Cache:
    """Copies of kept files on a node, for one process; a file has its name only when its content is right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        #: Sizes, least recently used first; their sum.
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self.size_bytes = 0
        for path in folder.iterdir():
            if is_digest(path.name):
                self._add(path.name, path.stat().st_size)
        self._parts: dict[str, _Part] = {}

    def has(self, digest: str) -> bool:
        if digest not in self._sizes:
            return False
        self._sizes.move_to_end(digest)
        return True

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """Size of a file and a piece of it; size -1 when it is not here."""
        return piece(self.folder / digest, offset, length) if digest in self._sizes else (-1, b"")

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a whole file.

        Raises: PeerError when the content is another one; OSError.
        """
        if self.has(digest):
            return
        self.write(digest, 0, data)
        if not self.finish(digest):
            raise PeerError(f"file {digest[:12]} came with another content")

    def write(self, digest: str, offset: int, data: bytes) -> None:
        part = self._parts.get(checked(digest))
        if part is None:
            part = self._parts[digest] = _Part(self.folder / f"{digest}.part")
        part.write(offset, data)

    def finish(self, digest: str) -> bool:
        """All pieces are there; False, and gone, when the content is another one."""
        part = self._parts.pop(digest)
        try:
            is_right = part.digest() == digest
            size = os.fstat(part.descriptor).st_size
        finally:
            os.close(part.descriptor)
        if is_right:
            part.path.chmod(0o400)
            part.path.replace(self.folder / digest)
            self._add(digest, size)
        else:
            part.path.unlink()
        return is_right

    def give_up(self, digest: str) -> None:
        """Forget the pieces of a file that will not come."""
        part = self._parts.pop(digest, None)
        if part is not None:
            os.close(part.descriptor)
            part.path.unlink(missing_ok=True)

    def drop(self, digest: str) -> None:
        size = self._sizes.pop(digest, None)
        if size is not None:
            self.size_bytes -= size
            (self.folder / digest).unlink(missing_ok=True)

    def _add(self, digest: str, size: int) -> None:
        self.size_bytes += size - self._sizes.get(digest, 0)
        self._sizes[digest] = size

    def trim(self, limit_bytes: int, in_use: Container[str] = ()) -> None:
        """Drop what was not used for longest, until the rest is within the limit."""
        for digest in list(self._sizes) if self.size_bytes > limit_bytes else ():
            if self.size_bytes <= limit_bytes:
                return
            if digest not in in_use:
                self.drop(digest)


class Done(NamedTuple):
    """The end of fetching a file."""

    digest: str
    #: Why it cannot be had; "": it is whole.
    reason: str = ""
    #: The reason is a disk that may have room again.
    may_pass: bool = False


class Fetcher:
    """Asks for files that are wanted, a window of pieces at a time, and goes on where a lost session stopped."""

    def __init__(self, cache: Cache, window: int = WINDOW) -> None:
        self.cache = cache
        self._wanted = Window(window)

    def want(self, digest: str, size: int = -1) -> None:
        """Fetch a file; to want it twice does no harm."""
        if digest not in self._wanted.files and not self.cache.has(digest):
            self._wanted.files[checked(digest)] = Pieces(size)

    def requests(self) -> Iterator[wire.Get]:
        """What to ask for now."""
        for digest, offset in self._wanted.ask():
            yield wire.Get(digest, offset)

    def on_chunk(self, chunk: wire.Chunk) -> Done | None:
        """Take a piece; the end, when it was the last of its file or the file cannot be had."""
        pieces = self._wanted.answered(chunk.digest, chunk.offset)
        if pieces is None:
            return None
        reason, may_pass = "", False
        if chunk.size == wire.NOT_NOW:
            reason, may_pass = "an input file cannot be kept by the foreman", True
        elif chunk.size < 0:
            reason = "an input file is not kept on the head any more"
        elif pieces.size not in (-1, chunk.size):
            reason = "an input file has another size than was said"
        else:
            pieces.size = chunk.size
            try:
                self.cache.write(chunk.digest, chunk.offset, chunk.data)
                pieces.arrived()
                if not pieces.is_whole:
                    return None
                if not self.cache.finish(chunk.digest):
                    reason = "an input file came damaged"
            except OSError as error:
                reason, may_pass = f"an input file cannot be kept: {error.strerror}", True
        self._wanted.drop(chunk.digest)
        self.cache.give_up(chunk.digest)
        return Done(chunk.digest, reason, may_pass)

    def restart(self) -> None:
        """The session is new: what was asked for will not come."""
        self._wanted.restart()
