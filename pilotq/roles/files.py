"""Files on their way down: what a master sends along, a worker's sandbox inputs, a foreman's cache for its workers.

Small files that only some tasks of a cluster need travel with the assignment of these, and stay in memory until they
are in the sandbox. All others are asked for, and kept on the way.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from pilotq import wire
from pilotq.core import turn as t
from pilotq.errors import PeerError
from pilotq.model import FileRef
from pilotq.mover import BlobStore, Cache, Fetcher
from pilotq.mover.pieces import is_digest
from pilotq.wire import Buffer

log = logging.getLogger(__name__)

#: Kept copies on a node or at a foreman; those used longest ago go first.
CACHE_BYTES_MAX = 10 << 30
#: Bytes of one assignment message, unless one task needs more; bytes of files that come with one task.
ASSIGN_BYTES_MAX = 1 << 20
TASK_INLINE_BYTES_MAX = 256 << 10
#: Requests of workers that wait at a foreman.
WAITING_MAX = 100_000


class _Files(msgspec.Struct):
    """The part of a description or a delta that names files."""

    files: list[FileRef] | None = None


_decode = msgspec.msgpack.Decoder(_Files).decode


def assignments(blobs: BlobStore, action: t.SendAssign, deltas: list[bytes]) -> Iterator[bytes]:
    """The packed messages that assign tasks which differ: with their deltas, and the small files these name."""

    def pack(start: int, end: int) -> bytes:
        procs, attempts = action.procs[start:end], action.attempts[start:end]
        return wire.pack(wire.Assign(action.cluster, procs, attempts, deltas[start:end], inline))

    inline: dict[str, memoryview] = {}
    start = size = 0
    for at, delta in enumerate(deltas):
        own = _small_files(blobs, delta)
        more = len(delta) + sum(map(len, own.values()))
        if at > start and size + more > ASSIGN_BYTES_MAX:
            yield pack(start, at)
            start, size, inline = at, 0, {}
        inline |= own
        size += more
    if deltas:
        yield pack(start, len(deltas))


def _small_files(blobs: BlobStore, delta: bytes) -> dict[str, memoryview]:
    if b"files" not in delta:
        return {}
    room, wanted = TASK_INLINE_BYTES_MAX, []
    for file in _decode(delta).files or ():
        if file.size_bytes <= min(wire.INLINE_BYTES_MAX, room):
            wanted.append(file.digest)
            room -= file.size_bytes
    # What is not found is asked for, and then it is said why it cannot be had.
    return {digest: memoryview(data) for digest, data in blobs.read_small(wanted).items()}


class Stager:
    """Brings what attempts need to the worker, each file once."""

    def __init__(
        self,
        folder: Path,
        ask: Callable[[wire.Message], None],
        on_ready: Callable[[list[wire.Token], str, bool], None],
    ) -> None:
        """`on_ready(tokens, reason, may_pass)`: the reason is empty when all is there."""
        self.cache = Cache(folder)
        self._ask, self._on_ready = ask, on_ready
        self._fetcher = Fetcher(self.cache)
        #: Attempts that wait, and the digests they wait for; who waits for a digest.
        self._waiting: dict[wire.Token, set[str]] = {}
        self._waiting_for: dict[str, dict[wire.Token, None]] = {}
        #: All attempts that have not ended: what they need from the cache, and what came with them.
        self._needed: dict[wire.Token, list[str]] = {}
        self._inline: dict[wire.Token, dict[str, Buffer]] = {}

    def keep(self, inline: dict[str, bytes]) -> None:
        """Small files that came with a description; what the disk does not take is fetched when it is needed."""
        for digest, data in inline.items():
            try:
                self.cache.keep(digest, data)
            except (OSError, PeerError) as error:
                # Whoever needs it asks for it, and is told why it cannot be had.
                self.cache.give_up(digest)
                log.warning("a file cannot be kept", extra={"facts": {"reason": str(error)}})

    def stage(
        self, tokens: list[wire.Token], body: bytes, deltas: list[bytes], inline: Mapping[str, Buffer] | None = None
    ) -> None:
        """Bring what attempts of one cluster need; `inline` came with them."""
        sent = _undamaged(inline or {})
        common = _decode(body).files or []
        digests = [file.digest for file in common]
        ready = []
        for token, delta in zip(tokens, deltas, strict=True):
            files, needed = common, digests
            if delta and (own := _decode(delta).files):
                files, needed = own, [file.digest for file in own]
            if sent:
                self._inline[token] = {digest: sent[digest] for digest in needed if digest in sent}
                files = [file for file in files if file.digest not in sent]
                needed = [file.digest for file in files]
            self._needed[token] = needed
            missing = {file.digest: file.size_bytes for file in files if not self.cache.has(file.digest)}
            if not missing:
                ready.append(token)
                continue
            self._waiting[token] = set(missing)
            for digest, size in missing.items():
                self._waiting_for.setdefault(digest, {})[token] = None
                self._fetcher.want(digest, size)
        if ready:
            self._on_ready(ready, "", False)
        self._pump()

    def inline(self, token: wire.Token) -> dict[str, Buffer] | None:
        """Files of an attempt that are not in the cache, by digest."""
        return self._inline.get(token)

    def started(self, token: wire.Token) -> None:
        """Its files are in its sandbox: they are held in memory no longer."""
        self._inline.pop(token, None)

    def forget(self, token: wire.Token) -> None:
        """It needs nothing any more."""
        for digest in self._waiting.pop(token, ()):
            self._waiting_for[digest].pop(token, None)
        self._needed.pop(token, None)
        self._inline.pop(token, None)

    def on_chunk(self, message: wire.Chunk) -> None:
        done = self._fetcher.on_chunk(message)
        if done is not None:
            over = []
            for token in self._waiting_for.pop(done.digest, ()):
                digests = self._waiting[token]
                digests.discard(done.digest)
                if done.reason or not digests:
                    over.append(token)
            for token in over:
                for digest in self._waiting.pop(token):
                    self._waiting_for[digest].pop(token, None)
            if over:
                self._on_ready(over, done.reason, done.may_pass)
            if self.cache.size_bytes > CACHE_BYTES_MAX:
                self.cache.trim(CACHE_BYTES_MAX, {digest for needed in self._needed.values() for digest in needed})
        self._pump()

    def ask_again(self) -> None:
        """The connection is new: what was asked for will not come."""
        self._fetcher.restart()
        self._pump()

    def _pump(self) -> None:
        for message in self._fetcher.requests():
            self._ask(message)


def _undamaged(inline: Mapping[str, Buffer]) -> Mapping[str, Buffer]:
    found = {digest: data for digest, data in inline.items() if hashlib.sha256(data).hexdigest() == digest}
    if len(found) < len(inline):
        # They are asked for.
        log.warning("files came with another content", extra={"facts": {"files": len(inline) - len(found)}})
    return found


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
        #: Requests that wait for a file, by digest; all of them.
        self._waiting: dict[str, list[tuple[bytes, wire.Get]]] = {}
        self._count = 0

    def on_get(self, session: bytes, message: wire.Get) -> None:
        if self.cache.has(message.digest):
            self._serve(session, message)
            return
        if not is_digest(message.digest):
            self._answer(session, wire.Chunk(message.digest, message.offset, -1, b""))
            return
        if self._count >= WAITING_MAX:
            self._answer(session, wire.Chunk(message.digest, message.offset, wire.NOT_NOW, b""))
            return
        self._count += 1
        self._waiting.setdefault(message.digest, []).append((session, message))
        self._fetcher.want(message.digest, -1)
        self._pump()

    def on_chunk(self, message: wire.Chunk) -> None:
        done = self._fetcher.on_chunk(message)
        if done is not None:
            size = wire.NOT_NOW if done.may_pass else wire.NOT_KEPT
            waiting = self._waiting.pop(done.digest, [])
            self._count -= len(waiting)
            for session, get in waiting:
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
