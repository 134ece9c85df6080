"""What the tests of keepers share: keepers in this process as their worker, and attempts told in one line."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pilotq.keeper import talk
from pilotq.keeper.keepers import Event, Keepers
from pilotq.model import Description, Ended, FileRef, OutputFile
from pilotq.proc import start_ticks
from pilotq.wire import Token

PATIENCE_S = 20.0
_numbers = itertools.count(1)


class Bench:
    """Keepers, their events, and a directory for sandboxes and kept files."""

    def __init__(self, path: Path, count: int = 1, **bounds: Any) -> None:
        self.path = path
        self.cache = path / "blobs"
        self.tasks = path / "tasks"
        for directory in (self.cache, self.tasks):
            directory.mkdir(exist_ok=True)
        self.keepers = Keepers(count, self._on_events, str(self.tasks), **bounds)
        self.pids: dict[Token, asyncio.Future[int]] = {}
        self.ends: dict[Token, asyncio.Future[Ended]] = {}
        self.kept: dict[Token, bool] = {}
        self.returned: dict[Token, asyncio.Future[None]] = {}
        self._launches: dict[Token, Callable[..., None]] = {}

    def _on_events(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, talk.Launched):
                self.pids[event.token].set_result(event.pid)
            elif isinstance(event, talk.Exited):
                self.kept[event.token] = event.kept
                self.ends[event.token].set_result(event.ended)
            else:
                self.returned[event.token].set_result(None)

    def keep(self, name: str, content: bytes | str, mode: int = 0o644) -> FileRef:
        """A file of the submit side."""
        data = content.encode() if isinstance(content, str) else content
        digest = hashlib.sha256(data).hexdigest()
        (self.cache / digest).write_bytes(data)
        return FileRef(name, digest, len(data), mode)

    def launch(
        self,
        *argv: str,
        delta: dict[str, Any] | None = None,
        extra: Any = None,
        after: Token | None = None,
        inline: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Token:
        """Begin an attempt of a new task."""
        token = Token(7, next(_numbers), 1)
        loop = asyncio.get_running_loop()
        self.pids[token] = loop.create_future()
        self.ends[token] = loop.create_future()
        self.returned[token] = loop.create_future()
        body = msgspec.msgpack.encode(Description(argv=list(argv), **fields))
        packed = msgspec.msgpack.encode(delta) if delta else b""
        sandbox = str(self.sandbox(token))
        self._launches[token] = launch = functools.partial(
            self.keepers.launch, token, body, packed, sandbox, str(self.cache), extra or {}, "Cpus = 1\n"
        )
        launch(after, inline)
        return token

    def relaunch(self, token: Token) -> None:
        """Once more what was given back."""
        self._launches[token]()

    def sandbox(self, token: Token) -> Path:
        return self.tasks / f"{token.cluster}.{token.proc}.{token.attempt}"

    async def pid(self, token: Token) -> int:
        """Of the payload, once it runs."""
        return await asyncio.wait_for(self.pids[token], PATIENCE_S)

    async def end(self, token: Token) -> Ended:
        return await asyncio.wait_for(self.ends[token], PATIENCE_S)

    async def run(self, *argv: str, **more: Any) -> Ended:
        return await self.end(self.launch(*argv, **more))

    async def sh(self, script: str, *arguments: str, **more: Any) -> Ended:
        return await self.run("/bin/sh", "-c", script, "sh", *arguments, **more)

    def launch_sh(self, script: str, *arguments: str, **more: Any) -> Token:
        return self.launch("/bin/sh", "-c", script, "sh", *arguments, **more)


def data(ended: Ended, name: str) -> bytes:
    """Content of an output that travels inside the result."""
    content = output(ended, name).data
    assert content is not None
    return content


def output(ended: Ended, name: str) -> OutputFile:
    return next(file for file in ended.outputs if file.name == name)


def alive(pid: int) -> bool:
    return start_ticks(pid) != 0


async def until(what: Callable[[], Any]) -> Any:
    """Wait for what no event tells: another process's doing."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
    return value


def numbers(path: Path) -> list[int]:
    """The pids that tasks wrote into a file."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_root() -> bool:
    return os.geteuid() == 0
