"""Outputs of ended attempts on the head, and pulling them from their workers."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Container, Iterator
from pathlib import Path

from pilotq import wire
from pilotq.model import OutputFile
from pilotq.mover.pieces import WINDOW, Pieces, Window, sync_path

_NAME = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class Spool:
    """Outputs of ended attempts on the head, until the scribe has written them: `<attempt>/<index of the output>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        #: Directories that are there: most attempts have none, and nothing is to be removed for them.
        self._there = {path.name for path in folder.iterdir()}

    @property
    def has_any(self) -> bool:
        """Is anything in it?"""
        return bool(self._there)

    def path(self, token: wire.Token) -> Path:
        return self.folder / _name(token)

    def make(self, token: wire.Token) -> Path:
        """An empty directory for an attempt.

        Raises: OSError.
        """
        self.discard(token)
        path = self.path(token)
        path.mkdir(mode=0o700)
        self._there.add(path.name)
        return path

    def discard(self, token: wire.Token) -> None:
        name = _name(token)
        if name in self._there:
            self._there.discard(name)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def sweep(self, keep: Container[wire.Token]) -> None:
        """At the start: remove all but these; what was half pulled is pulled again."""
        for name in list(self._there):
            found = _NAME.fullmatch(name)
            if found and (token := wire.Token(*map(int, found.groups()))) not in keep:
                self.discard(token)


def _name(token: wire.Token) -> str:
    return f"{token.cluster}.{token.proc}.{token.attempt}"


class Pulling:
    """The outputs of one attempt on their way into the spool: those without data of their own."""

    def __init__(self, spool: Spool, token: wire.Token, outputs: list[OutputFile], window: int = WINDOW) -> None:
        """Begin anew, whatever is in the spool.

        Raises: OSError.
        """
        self.token = token
        self._folder = spool.make(token)
        self._index: dict[str, int] = {}
        self._wanted = Window(window)
        for index, output in enumerate(outputs):
            if output.data is None and output.size_bytes > 0:
                self._index[output.name] = index
                self._wanted.files[output.name] = Pieces(output.size_bytes)

    def requests(self) -> Iterator[wire.Pull]:
        """What to ask for now."""
        for name, offset in self._wanted.ask():
            yield wire.Pull(self.token, name, offset)

    def on_data(self, data: wire.Data) -> str | None:
        """Take a piece: None: go on; "": all is there; else why it cannot be had.

        Raises: OSError when the head's disk does not take it.
        """
        pieces = self._wanted.answered(data.name, data.offset)
        if pieces is None:
            return None
        if data.missing:
            return f"output {data.name} is not on the worker any more"
        if len(data.data) != pieces.length(data.offset):
            return f"output {data.name} has another size than its worker said"
        self._write(self._index[data.name], data.offset, data.data)
        pieces.arrived()
        if pieces.is_whole:
            self._wanted.drop(data.name)
        return "" if self.is_whole else None

    @property
    def is_whole(self) -> bool:
        return not self._wanted.files

    def restart(self) -> None:
        """The way to the worker is new: what was asked for will not come."""
        self._wanted.restart()

    def sync(self) -> None:
        """Make it durable; for a thread, it may take long.

        Raises: OSError.
        """
        for path in (*self._folder.iterdir(), self._folder, self._folder.parent):
            sync_path(path)

    def _write(self, index: int, offset: int, data: bytes) -> None:
        descriptor = os.open(self._folder / str(index), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.pwrite(descriptor, data, offset) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
