"""Performs what the master's core decides: commits, sends, wakes the scribe; and feeds it what comes in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from pilotq import wire
from pilotq.access import Role, may_send
from pilotq.condor.expressions import compiled
from pilotq.condor.jobad import Job, Template, body_of
from pilotq.core import turn as t
from pilotq.core.records import Record
from pilotq.core.tasks import Cluster
from pilotq.daemon import Engine, tell
from pilotq.errors import PeerError
from pilotq.keys import Key
from pilotq.link import Listener
from pilotq.model import Facts, FileRef
from pilotq.mover import BlobStore
from pilotq.roles.collecting import Collector
from pilotq.roles.files import assignments
from pilotq.scribe import Scribe
from pilotq.store import Store, StoreDamaged, StoreFull
from pilotq.tunnel import Tunnels

log = logging.getLogger(__name__)

#: What nobody waits for goes with the next message, or after this: each message costs every process on its way a turn.
IDLE_SEND_S = 0.02
_SENDS = (t.Send, t.SendAssign, t.SendDescription)
#: Descriptions kept packed in memory.
DESCRIPTIONS_MAX = 2000


class _Files(msgspec.Struct):
    """The part of a description that names files."""

    files: list[FileRef] = []


class Performer:
    """Stands between the core, the store and the sockets; the sockets are put in when they are open."""

    engine: Engine
    listener: Listener
    collector: Collector
    scribe: Scribe
    tunnels: Tunnels

    def __init__(self, store: Store, blobs: BlobStore, schedd_name: str) -> None:
        self.store, self.blobs, self.schedd_name = store, blobs, schedd_name
        #: Who waits for an `Answer`.
        self.waiting: dict[int, Callable[[Any], None]] = {}
        #: Who waits for bytes of a file of a running task.
        self.peeks: dict[tuple[wire.Token, str], asyncio.Future[wire.Data]] = {}
        self.stopping = ""
        self._descriptions: dict[int, bytes] = {}
        self._templates: dict[int, Template] = {}
        #: After which all is sent that nobody waits for.
        self._idle_send: asyncio.TimerHandle | None = None

    def on_batch(self, peer: bytes, key: Key, frames: wire.Parts) -> None:
        for session, payload in zip(frames[::2], frames[1::2], strict=True):
            route = t.Route(peer, session)
            try:
                message = wire.unpack(payload)
            except PeerError as error:
                tell("link", "not a message of ours", {"key": key.name, "reason": str(error)}, logging.WARNING)
                continue
            # Of files the core knows nothing; all else it judges itself.
            if isinstance(message, wire.Flow):
                if session or not may_send(key.role, wire.Flow):
                    tell("link", "message not allowed for this key", {"key": key.name}, logging.WARNING)
                else:
                    self.tunnels.on_flow(peer, key.role, key.name, message)
            elif not isinstance(message, wire.Get | wire.Data):
                self.engine.put(t.FromPeer(route, key.role, key.name, message))
            elif not may_send(Role.WORKER if session else key.role, type(message)):
                tell("link", "message not allowed for this key", {"key": key.name}, logging.WARNING)
            elif isinstance(message, wire.Get):
                self._serve_file(route, message)
            elif (waiting := self.peeks.pop((message.token, message.name), None)) is not None:
                if not waiting.done():
                    waiting.set_result(message)
            else:
                self.collector.on_data(route, message)

    def _serve_file(self, route: t.Route, message: wire.Get) -> None:
        try:
            size, data = self.blobs.read(message.digest, message.offset, min(message.length, wire.CHUNK_BYTES))
        except (OSError, ValueError, KeyError):
            size, data = wire.NOT_KEPT, b""
        self.send_now(route, wire.Chunk(message.digest, message.offset, size, data))

    def send_now(self, route: t.Route, message: wire.Message) -> None:
        self.listener.send(route.peer, route.session, wire.pack(message))
        self.engine.loop.call_soon(self.listener.flush)

    def commit(self, records: list[Record], actions: list[Any]) -> dict[int, Any]:
        """In the store's thread: one transaction, then what the actions need from the store, by their index."""
        if records:
            self._commit_until_done(records)
        found: dict[int, Any] = {}
        for index, action in enumerate(actions):
            try:
                if isinstance(action, t.SendAssign) and action.has_deltas:
                    deltas = self.store.deltas(action.cluster, action.procs)
                    found[index] = list(assignments(self.blobs, action, deltas))
                elif isinstance(action, t.SendDescription):
                    found[index] = self._descriptions.get(action.cluster) or self._describe(action.cluster)
            except StoreDamaged as error:
                found[index] = error
        return found

    def _commit_until_done(self, records: list[Record]) -> None:
        told = False
        while True:
            try:
                self.store.commit(records)
                break
            except StoreFull:
                if not self.store.release_ballast():
                    if not told:
                        log.error("the disk of the queue is full, waiting for space; nothing is lost")
                    told = True
                    time.sleep(1.0)
        if told:
            log.info("the disk of the queue has space again")

    def _describe(self, cluster: int) -> bytes:
        """The packed message that describes a cluster, its small files included."""
        body = self.store.description(cluster)
        inline: dict[str, bytes] = {}
        room = wire.CHUNK_BYTES
        for file in msgspec.msgpack.decode(body, type=_Files).files:
            if file.size_bytes <= min(wire.INLINE_BYTES_MAX, room) and file.digest not in inline:
                size, data = self.blobs.read(file.digest, 0, file.size_bytes)
                if size == file.size_bytes == len(data):
                    inline[file.digest] = data
                    room -= size
        return wire.pack(wire.Describe(cluster, body, inline))

    def perform(self, actions: list[Any], found: dict[int, Any] | None) -> None:
        found = found or {}
        for index, action in enumerate(actions):
            if isinstance(found.get(index), StoreDamaged):
                # What describes these tasks cannot be read: a person must look at it, everything else goes on.
                log.error("damage in the store, holding a cluster", extra={"facts": {"cluster": action.cluster}})
                self.engine.put(t.Act(0, "hold", [(action.cluster, -1)], str(found[index])))
                continue
            self._performers[type(action)](self, action, found.get(index))
        if any(isinstance(action, _SENDS) and not t.may_wait(action) for action in actions):
            self.listener.flush()
        elif self._idle_send is None and self.listener.has_waiting:
            self._idle_send = self.engine.loop.call_later(IDLE_SEND_S, self._send_waiting)

    def _send_waiting(self) -> None:
        self._idle_send = None
        self.listener.flush()

    def _send(self, action: t.Send, _: Any) -> None:
        self.listener.send(action.route.peer, action.route.session, wire.pack(action.message))

    def _send_assign(self, action: t.SendAssign, payloads: list[bytes] | None) -> None:
        peer, session = action.route
        if not payloads:
            message = wire.Assign(action.cluster, action.procs, action.attempts)
            self.listener.send(peer, session, wire.pack(message))
            return
        for payload in payloads:
            self.listener.send(peer, session, payload)

    def _send_description(self, action: t.SendDescription, payload: bytes) -> None:
        while len(self._descriptions) >= DESCRIPTIONS_MAX:
            self._descriptions.pop(next(iter(self._descriptions)))
        self._descriptions[action.cluster] = payload
        self.listener.send(action.peer, b"", payload)

    def _answer(self, action: t.Answer, _: Any) -> None:
        answer = self.waiting.pop(action.reply, None)
        if answer is not None:
            answer(action.value)

    def _cluster_gone(self, action: t.ClusterGone, _: Any) -> None:
        self._descriptions.pop(action.cluster, None)
        self._templates.pop(action.cluster, None)

    def _stop(self, action: t.Stop, _: Any) -> None:
        self.stopping = action.reason

    _performers: ClassVar[dict[type, Any]] = {
        t.Send: _send,
        t.SendAssign: _send_assign,
        t.SendDescription: _send_description,
        t.Answer: _answer,
        t.ClusterGone: _cluster_gone,
        t.Stop: _stop,
        t.Tell: lambda self, action, _: tell("master", action.text, action.facts),
        t.Collect: lambda self, action, _: self.collector.begin(action.route, action.token, action.outputs),
        t.Discard: lambda self, action, _: self.collector.discard(action.tokens),
        t.WakeScribe: lambda self, action, _: self.scribe.wake(action.n),
        t.HandNotes: lambda self, action, _: self.scribe.hand(action.notes),
        t.RetryNotes: lambda self, action, _: self.scribe.retry(action.ns),
    }

    def evaluate(self, expr: str, cluster: Cluster, proc: int, facts: Facts, now: float) -> bool | float | str | None:
        """The core's evaluator: an expression of a policy over the job ad."""
        try:
            template = self._template(cluster, proc)
        except (KeyError, IndexError, StoreDamaged):
            # Not committed yet, or damaged: nothing is known, so nothing fires.
            return None
        job = Job(template, proc, cluster.state(proc), cluster.attempts[proc], facts, now, self.schedd_name)
        value = compiled(expr).evaluate(job, now)
        return value if isinstance(value, bool | int | float | str) else None

    def _template(self, cluster: Cluster, proc: int) -> Template:
        number = cluster.id
        template = self._templates.get(number)
        if template is None:
            packed = self.engine.blocking(self.store.body, number)
            template = self._templates[number] = Template(body_of(packed), number, len(cluster))
        if cluster.has_deltas:
            template = template.with_delta(self.engine.blocking(self.store.deltas, number, [proc])[0])
        changes = {edit.name: edit.value for edit in cluster.edits if edit.first <= proc <= edit.last}
        return template.with_edits(changes) if changes else template
