"""Files on their way down: a worker's sandbox inputs, a foreman's cache for its workers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from pilotq import wire
from pilotq.errors import PeerError
from pilotq.model import FileRef
from pilotq.mover import Cache, Fetcher
from pilotq.mover.pieces import is_digest

log = logging.getLogger(__name__)

#: Kept copies on a node or at a foreman; those used longest ago go first.
CACHE_BYTES_MAX = 10 << 30


class _Files(msgspec.Struct):
    """The part of a description or a delta that names files."""

    files: list[FileRef] | None = None


_decode = msgspec.msgpack.Decoder(_Files).decode


class Stager:
    """Brings what attempts need into the worker's cache, each file once."""

    def __init__(
        self,
        folder: Path,
        ask: Callable[[wire.Message], None],
        on_ready: Callable[[wire.Token, str, bool], None],
    ) -> None:
        """`on_ready(token, reason, may_pass)`: the reason is empty when all is there."""
        self.cache = Cache(folder)
        self._ask, self._on_ready = ask, on_ready
        self._fetcher = Fetcher(self.cache)
        #: Attempts that wait, and the digests they wait for; all attempts, and what they need.
        self._waiting: dict[wire.Token, set[str]] = {}
        self._needed: dict[wire.Token, list[str]] = {}

    def keep(self, inline: dict[str, bytes]) -> None:
        """Small files that came with a description; what the disk does not take is fetched when it is needed."""
        for digest, data in inline.items():
            try:
                self.cache.keep(digest, data)
            except (OSError, PeerError) as error:
                # Whoever needs it asks for it, and is told why it cannot be had.
                self.cache.give_up(digest)
                log.warning("a file cannot be kept", extra={"facts": {"reason": str(error)}})

    def stage(self, token: wire.Token, body: bytes, delta: bytes) -> None:
        files = (_decode(delta).files if delta else None) or _decode(body).files or []
        self._needed[token] = [file.digest for file in files]
        missing = {file.digest: file.size_bytes for file in files if not self.cache.has(file.digest)}
        if not missing:
            self._on_ready(token, "", False)
            return
        self._waiting[token] = set(missing)
        for digest, size in missing.items():
            self._fetcher.want(digest, size)
        self._pump()

    def forget(self, token: wire.Token) -> None:
        self._waiting.pop(token, None)
        self._needed.pop(token, None)

    def on_chunk(self, message: wire.Chunk) -> None:
        done = self._fetcher.on_chunk(message)
        if done is not None:
            for token, digests in list(self._waiting.items()):
                if done.digest not in digests:
                    continue
                digests.discard(done.digest)
                if done.reason or not digests:
                    del self._waiting[token]
                    self._on_ready(token, done.reason, done.may_pass)
            self.cache.trim(CACHE_BYTES_MAX, {digest for needed in self._needed.values() for digest in needed})
        self._pump()

    def ask_again(self) -> None:
        """The connection is new: what was asked for will not come."""
        self._fetcher.restart()
        self._pump()

    def _pump(self) -> None:
        for message in self._fetcher.requests():
            self._ask(message)


class CachingRelay:
    """Serves workers from the foreman's cache; what is missing comes from the master once."""

    def __init__(
        self,
        folder: Path,
        ask: Callable[[wire.Message], None],
        answer: Callable[[bytes, wire.Message], None],
    ) -> None:
        self.cache = Cache(folder)
        self._ask, self._answer = ask, answer
        self._fetcher = Fetcher(self.cache)
        #: Requests that wait for a file, by digest.
        self._waiting: dict[str, list[tuple[bytes, wire.Get]]] = {}

    def on_get(self, session: bytes, message: wire.Get) -> None:
        if self.cache.has(message.digest):
            self._serve(session, message)
            return
        if not is_digest(message.digest):
            self._answer(session, wire.Chunk(message.digest, message.offset, -1, b""))
            return
        self._waiting.setdefault(message.digest, []).append((session, message))
        self._fetcher.want(message.digest, -1)
        self._pump()

    def on_chunk(self, message: wire.Chunk) -> None:
        done = self._fetcher.on_chunk(message)
        if done is not None:
            size = wire.NOT_NOW if done.may_pass else wire.NOT_KEPT
            for session, get in self._waiting.pop(done.digest, []):
                if done.reason:
                    self._answer(session, wire.Chunk(done.digest, get.offset, size, b""))
                else:
                    self._serve(session, get)
            self.cache.trim(CACHE_BYTES_MAX)
        self._pump()

    def ask_again(self) -> None:
        """The connection to the master is new."""
        self._fetcher.restart()
        self._pump()

    def _serve(self, session: bytes, message: wire.Get) -> None:
        size, data = self.cache.read(message.digest, message.offset, min(message.length, wire.CHUNK_BYTES))
        self._answer(session, wire.Chunk(message.digest, message.offset, size, data))

    def _pump(self) -> None:
        for message in self._fetcher.requests():
            self._ask(message)
