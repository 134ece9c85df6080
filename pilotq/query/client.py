"""The master's side of the query process: starts it, asks it, starts it again when it died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from pilotq.errors import UnavailableError

log = logging.getLogger(__name__)

START_S = 20.0
#: Of one piece of an answer.
PIECE_BYTES_MAX = 256 << 20
#: Longest wait for a piece of an answer.
PATIENCE_S = 60.0


class QueryProcess:
    """One `python -m pilotq.query`."""

    def __init__(self, db: Path, path: Path) -> None:
        self._db, self._path = db, path
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Raises: UnavailableError when it does not come up."""
        # The socket is named relative to its directory, whose path may be longer than a socket address.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pilotq.query",
            "--db",
            str(self._db),
            "--socket",
            self._path.name,
            cwd=self._path.parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), START_S)
        except TimeoutError:
            line = b""
        if line.strip() != b"ready":
            raise UnavailableError("the query process did not start", "its reason is in the master's log")
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Start it again, not more than once a second."""
        assert self._process is not None
        code = await self._process.wait()
        log.error("the query process ended, starting it again", extra={"facts": {"code": code}})
        await asyncio.sleep(1.0)
        with contextlib.suppress(UnavailableError):
            await self.start()

    async def ask(self, message: dict[str, Any]) -> AsyncIterator[bytes]:
        """The pieces of the answer.

        Raises: UnavailableError when it cannot answer to the end.
        """
        address = f"/proc/self/fd/{self._folder}/{self._path.name}"
        try:
            reader, writer = await asyncio.open_unix_connection(address, limit=1 << 20)
        except OSError as error:
            raise UnavailableError(f"the query process does not answer: {error.strerror}", "try again") from None
        try:
            data = msgspec.msgpack.encode(message)
            writer.write(len(data).to_bytes(4, "big") + data)
            while True:
                head = await asyncio.wait_for(reader.readexactly(4), PATIENCE_S)
                size = int.from_bytes(head, "big")
                if not size:
                    return
                if size > PIECE_BYTES_MAX:
                    raise UnavailableError("the query process gave a broken answer", "try again")
                yield await asyncio.wait_for(reader.readexactly(size), PATIENCE_S)
        except (OSError, EOFError, TimeoutError):
            raise UnavailableError("the query process broke off its answer", "try again") from None
        finally:
            writer.close()

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 3.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        os.close(self._folder)
