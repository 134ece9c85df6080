"""The master: core, store, sockets, scribe, query and API put together."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import platform
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import zmq

from pilotq import __version__, keys
from pilotq.access import Role
from pilotq.api import Api
from pilotq.catalog import Catalog
from pilotq.condor.expressions import valid
from pilotq.condor.submit import Site
from pilotq.config import Settings
from pilotq.core import turn as t
from pilotq.core.master import Limits, MasterCore
from pilotq.daemon import Engine, Watchdog, exists, notify, read_clocks, run, tell, wait_for_any
from pilotq.errors import UserError
from pilotq.home import home_of, state_dir_of, write_run_file
from pilotq.link import Listener, serving
from pilotq.model import FileRef, Resources
from pilotq.mover import BlobStore
from pilotq.proc import allow_many_files
from pilotq.query.client import QueryProcess
from pilotq.roles.collecting import Collector
from pilotq.roles.head import Head
from pilotq.roles.office import Office
from pilotq.roles.performer import Performer
from pilotq.roles.restart import restore
from pilotq.roles.view import counts
from pilotq.scribe import Scribe
from pilotq.scribe.history import Plan
from pilotq.store.sqlite import SqliteStore
from pilotq.tunnel import Tunnels

#: Kept files nobody needs are removed after this.
BLOB_AGE_S = 3600.0


class Master:
    """Starts the parts in order, keeps house, and ends them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = home_of(settings)
        self.state = state_dir_of(settings)
        self.store = SqliteStore()
        self.store.open(self.state / "queue.db")
        self.store.write_out_log()
        self.blobs = BlobStore(self.state / "blobs")
        self.site = read_site(settings, self.blobs)
        self.performer = Performer(self.store, self.blobs, self.site.schedd_name)
        self.context: Any = zmq.Context()
        #: As in force: see `_read_keys`.
        self.known: tuple[dict[str, keys.Key], str] = ({}, "")

    async def serve(self, stop: asyncio.Event) -> int:
        async with AsyncExitStack() as stack:
            stack.callback(self.store.close)
            stack.callback(self.context.destroy, linger=0)
            await self._open(stack)
            return await self._until_the_end(stop)

    async def _open(self, stack: AsyncExitStack) -> None:
        settings, performer = self.settings, self.performer
        loaded = self.store.load()
        queue = restore(loaded, self.store, read_clocks().wall)
        _spare_gc()
        self.core = MasterCore(_limits(settings), performer.evaluate, read_clocks(), queue, loaded.drains)
        self.engine = performer.engine = Engine(
            self.core,
            performer.perform,
            t.Tick(),
            performer.commit,
            reads=(t.SendAssign, t.SendDescription),
            on_turn=Watchdog(),
        )
        stack.callback(self.engine.close)
        put = self.engine.put
        pair = keys.make_keys(self.home)
        self.gate = stack.enter_context(serving(keys.Authenticator(self.context), self.engine.fail))
        listener = Listener(self.context, pair, self.gate, performer.on_batch, self._on_lost)
        stack.callback(listener.close)
        performer.listener = listener
        # Before the first knock: a key that is refused once is not tried again by itself.
        self._set_keys(*self._read_keys())
        self.port = listener.bind(settings.master_bind, settings.master_port)
        await listener.prove_closed()
        performer.collector = Collector(
            self.state / "spool",
            performer.send_now,
            lambda token, reason, retry: put(t.Collected(token, reason, retry)),
        )
        performer.collector.spool.sweep(set(queue.finals.values()))
        performer.scribe = self._new_scribe()
        await performer.scribe.start()
        stack.push_async_callback(performer.scribe.close)
        queries = QueryProcess(self.state / "queue.db", self.state / "query.sock")
        await queries.start()
        stack.push_async_callback(queries.close)
        office = Office(self.core, self.engine, performer, queries, self.site, self.home, self.state, self.port)
        api = Api(office)
        performer.tunnels = Tunnels(lambda peer, flow: performer.send_now(t.Route(peer, b""), flow), api.serve)
        await api.start(self.state / "api.sock")
        stack.push_async_callback(api.close)
        _write(self.home / "api", str(self.state / "api.sock"))
        listener.start()
        run_file = write_run_file(self.state, "master", role="master", port=self.port, version=__version__)
        stack.callback(run_file.unlink, missing_ok=True)
        put(t.Tick())
        performer.scribe.wake(queue.next_note - 1)
        self._report(stack, office)
        notify("READY=1")
        tell("master", "serving", {"port": self.port, "state": str(self.state), "pid": os.getpid()})

    def _report(self, stack: AsyncExitStack, office: Office) -> None:
        """To the catalog, if there is one."""
        settings = self.settings
        if settings.catalog_host:
            report = functools.partial(office.report, settings.catalog_project)
            catalog = Catalog(settings.catalog_host, settings.catalog_port, report)
            catalog.start()
            stack.push_async_callback(catalog.close)

    def _on_lost(self, peer: bytes) -> None:
        self.performer.tunnels.on_peer_lost(peer)
        self.engine.put(t.PeerLost(peer))

    def _new_scribe(self) -> Scribe:
        settings, put = self.settings, self.engine.put
        history = Plan(
            settings.master_history_file,
            settings.master_per_job_history_dir,
            settings.master_history_max_bytes,
            settings.master_history_rotations,
            self.site.schedd_name,
        )
        return Scribe(
            self.state / "queue.db",
            self.state / "spool",
            on_done=lambda ns: put(t.Delivered(ns)),
            on_failed=lambda n, errno, reason: put(t.Undelivered(n, errno, reason)),
            address=f"{self.site.host}:{self.port}",
            history=history,
        )

    async def _until_the_end(self, stop: asyncio.Event) -> int:
        """Housekeeping once a second until somebody ends us, the queue is drained, or something breaks."""
        drain_file = self.home / "drain"
        self.head = Head(self.settings, self.home, self.state, self.core)
        rounds = itertools.count()
        while not stop.is_set() and not self.performer.stopping:
            if self.engine.failed.done():
                self.engine.failed.result()
            if not self.core.draining and await exists(drain_file):
                self.engine.put(t.SetDrain(True))
            number = next(rounds)
            if number % 5 == 0:
                await self._look_at_keys()
            await self._look_at_head()
            if number % 3600 == 0:
                await self._sweep()
            if not self.store.has_ballast:
                await self.engine.call(self.store.restore_ballast)
            await wait_for_any(stop, self.engine.failed, 1.0)
        notify("STOPPING=1")
        self.head.end()
        reason = self.performer.stopping or "stopped"
        tell("master", reason, {"tasks left running": counts(self.core)["running"]})
        return 0

    async def _look_at_head(self) -> None:
        """The worker of this host, when a task waits for it."""
        if self.head.is_wanted and await asyncio.to_thread(self.head.make_key):
            await self._look_at_keys()
        self.head.look()

    async def _sweep(self) -> None:
        used = await self.engine.call(self.store.digests_in_use)
        if self.site.wrapper_file is not None:
            used.add(self.site.wrapper_file.digest)
        await asyncio.to_thread(self.blobs.sweep, used, BLOB_AGE_S)

    def _read_keys(self) -> tuple[dict[str, keys.Key], str]:
        """Who may come in, and the public key that foremen serve with."""
        return keys.authorized(self.home), keys.server_pair(self.home, "foreman").public

    def _set_keys(self, known: dict[str, keys.Key], serve: str) -> None:
        if (known, serve) == self.known:
            return
        self.known = (known, serve)
        self.gate.allow(known.items())
        workers = [(public, one.name, one.expires_at) for public, one in known.items() if one.role == Role.WORKER]
        foremen = [one.name for one in known.values() if one.role == Role.FOREMAN]
        self.engine.put(t.SetKeys(workers, foremen, serve))

    async def _look_at_keys(self) -> None:
        """What an operator changed, and what expired."""
        pair = await asyncio.to_thread(keys.server_pair, self.home, "master")
        self._set_keys(*await asyncio.to_thread(self._read_keys))
        if pair.public != self.performer.listener.public:
            await self.performer.listener.change_keys(pair)
            tell("master", "serving with its next key", {"public": pair.public})


def read_site(settings: Settings, blobs: BlobStore) -> Site:
    """What a submission has to know of this site; the job wrapper is kept like any file of a task.

    Raises: UserError when the wrapper cannot be used.
    """
    wrapper: list[str] = []
    file: FileRef | None = None
    if settings.master_job_wrapper:
        path = Path(settings.master_job_wrapper)
        if not path.is_file() or not path.stat().st_mode & stat.S_IXUSR:
            raise UserError(f"job wrapper {path} is not an executable file", "name one, or leave it out")
        digest, size = blobs.keep(path)
        file = FileRef("condor_wrapper", digest, size, 0o755)
        wrapper = ["./condor_wrapper"]
    host = socket.getfqdn()
    if host.startswith("localhost"):
        host = socket.gethostname()
    return Site(
        host=host,
        schedd_name=host,
        arch="X86_64" if platform.machine() == "x86_64" else platform.machine(),
        needs=Resources(settings.task_cpus, settings.task_memory_bytes, settings.task_disk_bytes),
        wall_time_s=settings.task_wall_time_s,
        wrapper=wrapper,
        wrapper_file=file,
        valid=valid,
    )


def _spare_gc() -> None:
    """A walk over all objects of a large queue takes seconds; few of them ever become garbage in cycles."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _limits(settings: Settings) -> Limits:
    return Limits(
        lease_s=settings.master_lease_s,
        beat_s=settings.master_beat_s,
        contact_lost_s=settings.master_contact_lost_s,
        policy_interval_s=settings.master_policy_interval_s,
        max_losses=settings.master_max_losses,
        max_idle=settings.queue_max_idle,
    )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def main(settings: Settings) -> int:
    """Run the master in the foreground until it is told to stop or has drained."""
    allow_many_files()
    return run(lambda stop: Master(settings).serve(stop), settings.log_level)
