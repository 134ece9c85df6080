"""The worker: core, keepers, file cache and one connection upwards put together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any, ClassVar

import zmq

from pilotq import __version__, keys, wire
from pilotq.access import HEAD
from pilotq.config import Facts, Settings
from pilotq.core import worker_turn as w
from pilotq.core.turn import Tell
from pilotq.core.worker import Options, WorkerCore
from pilotq.daemon import Engine, Watchdog, exists, notify, read_clocks, run, tell, wait_for_any
from pilotq.errors import PeerError, UserError
from pilotq.home import state_dir_of, write_run_file
from pilotq.keeper import talk
from pilotq.keeper.keepers import Event as KeeperEvent
from pilotq.keeper.keepers import Keepers
from pilotq.keeper.limits import Bounds
from pilotq.link import Dialer
from pilotq.model import Resources
from pilotq.roles.files import Stager
from pilotq.sandbox import Folder, groups, marks, read_output, sweep, take_folder

#: After a signal to stop, the results of evicted tasks have this long to be acknowledged.
GOODBYE_S = 15.0


class Worker:
    """Performs what the core decides."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        self.settings = settings
        self.token = keys.read_token(Path(settings.worker_token), "worker")
        self.host = socket.gethostname()
        self.folder: Folder = take_folder(settings.worker_workdir, self.host)
        self.predecessors = sweep(self.folder)
        self.name = f"{self.host}#{os.getpid()}.{self.folder.nonce}"
        together = groups.processes_max()
        marks.protect()
        self.groups = groups.Home(self.folder.nonce, together) if settings.worker_cgroups == "auto" else None
        own = self.groups.group if self.groups else groups.Group()
        most = min(settings.worker_task_processes, together)
        self.bounds = Bounds(own, most, together)
        # On disk before anybody is told: whoever comes after us can say that we are gone.
        self.folder.announce(self.name, own.directories)
        self.capacity = settings.offer(facts)
        self._blobs, self._tasks = self.folder.blobs, self.folder.tasks
        self._task_env = {"_CONDOR_SLOT": "slot1", "_CONDOR_SLOT_NAME": f"slot1@{self.host}"}
        self._machine_ads: dict[Resources, str] = {}
        self.endpoints = settings.endpoints()
        # Every worker begins at another foreman, and spreads its tries.
        self.spread = int.from_bytes(hashlib.sha256(f"{self.host} {os.getpid()}".encode()).digest()[:4]) / 2**32
        self.offset = int(self.spread * 1000)
        self.up: Dialer | None = None
        self.leaving = ""

    async def serve(self, stop: asyncio.Event) -> int:
        settings = self.settings
        self.context: Any = zmq.Context()
        options = Options(
            name=self.name,
            host=self.host,
            pid=os.getpid(),
            version=__version__,
            capacity=self.capacity,
            single_task=settings.worker_single_task,
            idle_timeout_s=settings.worker_idle_timeout_s,
            ahead=settings.worker_ahead or -1,
            spread=self.spread,
            predecessors=self.predecessors,
            containment=self.bounds.group.mode,
        )
        self.core = WorkerCore(options, read_clocks())
        self.engine = Engine(self.core, self._perform, w.Tick(), on_turn=Watchdog())
        self.stager = Stager(
            Path(self.folder.blobs),
            ask=self._send,
            on_ready=lambda tokens, reason, may_pass: self.engine.put(w.FilesReady(tokens, reason, may_pass)),
        )
        self.keepers = Keepers(
            max(1, min(settings.worker_keepers, self.capacity.cpus)),
            self._on_keepers,
            self._tasks,
            self.folder.nonce,
            self.bounds,
            self.groups.keepers if self.groups else groups.Group(),
        )
        await self.keepers.start()
        # What lives now lives for ever, and attempts leave no cycles worth looking for often.
        gc.freeze()
        gc.set_threshold(50_000)
        self._write_status()
        self.engine.put(w.Tick())
        where = ", ".join(str(endpoint) for endpoint in self.endpoints[:8])
        facts = {"cores": self.capacity.cpus, "connects to": where, "cgroups": self.bounds.group.mode}
        tell("worker", "serving", {**facts, "pid": os.getpid()})
        keys.warn_of_end(self.token, "worker")
        name = HEAD if self.token.name == HEAD else Path(self.folder.path).name.replace(self.host, "worker", 1)
        run_file = write_run_file(state_dir_of(settings), name, role="worker", version=__version__)
        notify("READY=1")
        try:
            return await self._until_the_end(stop)
        finally:
            run_file.unlink(missing_ok=True)
            await self.keepers.close(0)
            # Results that were not acknowledged in time, and what killed keepers left: nobody can ask for it any more.
            self.folder.empty()
            if self.groups:
                self.groups.release()
            self.engine.close()
            if self.up is not None:
                self.up.close()
            self.context.destroy(linger=0)
            self.folder.release()

    async def _until_the_end(self, stop: asyncio.Event) -> int:
        drain_file = Path(self.settings.worker_drain_file)
        deadline = float("inf")
        while not self.leaving and time.monotonic() < deadline:
            if self.engine.failed.done():
                self.engine.failed.result()
            if not self.core.draining and await exists(drain_file):
                self.engine.put(w.Drain("drained"))
            if stop.is_set() and deadline == float("inf"):
                deadline = time.monotonic() + GOODBYE_S
                self.engine.put(w.Terminate())
            self._write_status()
            self.keepers.wake()
            timeout = 1.0 if not stop.is_set() and not self.core.draining else 0.1
            await wait_for_any(None if stop.is_set() else stop, self.engine.failed, timeout)
        notify("STOPPING=1")
        tell("worker", self.leaving or "stopped", {"worker": self.core.name})
        await asyncio.sleep(0.1)  # lets the goodbye leave
        return 0

    # ---- between core, keepers and socket

    def _connect(self, link: int) -> None:
        if self.up is not None:
            self.up.close()
        with contextlib.suppress(UserError):
            # Somebody may have put a new one there.
            self.token = keys.read_token(Path(self.settings.worker_token), "worker")
        ways = [(one, server) for one in self.endpoints for server in self.token.servers(one.is_master)]
        endpoint, server = ways[(self.offset + link) % len(ways)]
        self.up = Dialer(
            self.context,
            f"tcp://{endpoint}",
            server,
            self.token,
            lambda frames: self._on_batch(link, frames),
            lambda: self.engine.put(w.LinkLost(link)),
        )
        self.up.start()
        self.stager.ask_again()

    def _on_batch(self, link: int, frames: wire.Parts) -> None:
        for payload in frames[1::2]:
            try:
                message = wire.unpack(payload)
            except PeerError as error:
                tell("worker", "not a message of ours", {"reason": str(error)})
                self.engine.put(w.LinkLost(link))
                return
            self.engine.put(w.FromMaster(link, message))

    def _on_keepers(self, events: list[KeeperEvent]) -> None:
        started, ended, returned = [], [], []
        for event in events:
            if isinstance(event, talk.Exited):
                ended.append((event.token, event.ended, event.began_at))
                self.stager.forget(event.token)
            elif isinstance(event, talk.Launched):
                started.append(event.token)
                self.stager.started(event.token)
            else:
                returned.append(event.token)
        self.engine.put(w.FromKeepers(started, ended, returned))

    def _send(self, message: wire.Message) -> None:
        if self.up is not None:
            self.up.send(b"", wire.pack(message))
            self.engine.loop.call_soon(self.up.flush)

    def _perform(self, actions: list[Any], _: Any) -> None:
        for action in actions:
            self._performers[type(action)](self, action)
        if self.up is not None:
            self.up.flush()

    def _say(self, action: w.Say) -> None:
        if self.up is not None:
            self.up.send(b"", wire.pack(action.message))

    def _launch(self, action: w.Launch) -> None:
        self.keepers.launch(
            action.token,
            action.body,
            action.delta,
            sandbox=self._sandbox(action.token),
            cache=self._blobs,
            env=self._task_env,
            machine_ad=self._machine_ad(action.needs),
            after=action.after,
            inline=self.stager.inline(action.token),
        )

    def _machine_ad(self, needs: Resources) -> str:
        known = self._machine_ads.get(needs)
        if known is not None:
            return known
        facts = {
            "Name": f'"slot1@{self.host}"',
            "Machine": f'"{self.host}"',
            "Cpus": str(needs.cpus),
            "Memory": str((needs.memory_bytes or self.capacity.memory_bytes) >> 20),
            "Disk": str((needs.disk_bytes or self.capacity.disk_bytes) >> 10),
            "TotalCpus": str(self.capacity.cpus),
            "Arch": '"X86_64"' if platform.machine() == "x86_64" else f'"{platform.machine()}"',
            "OpSys": '"LINUX"',
            "CondorVersion": f'"$CondorVersion: 24.0.0 2024-10-31 BuildID: pilotq-{__version__} $"',
            "State": '"Claimed"',
            "Activity": '"Busy"',
        }
        ad = "".join(f"{name} = {value}\n" for name, value in sorted(facts.items()))
        if len(self._machine_ads) > 1000:
            self._machine_ads.clear()
        self._machine_ads[needs] = ad
        return ad

    def _sandbox(self, token: wire.Token) -> str:
        return f"{self._tasks}/{token.cluster}.{token.proc}.{token.attempt}"

    def _serve(self, action: w.Serve) -> None:
        pull = action.message
        try:
            length = min(pull.length, wire.CHUNK_BYTES)
            data, missing = read_output(self._sandbox(pull.token), pull.name, pull.offset, length), False
        except (OSError, ValueError):
            data, missing = b"", True
        self._send(wire.Data(pull.token, pull.name, pull.offset, data, missing))

    def _discard(self, action: w.Discard) -> None:
        for token in action.tokens:
            self.stager.forget(token)
            self.keepers.discard(token)

    def _leave(self, action: w.Leave) -> None:
        self.leaving = action.reason

    _performers: ClassVar[dict[type, Any]] = {
        w.Say: _say,
        w.Connect: lambda self, action: self._connect(action.link),
        w.Stage: lambda self, action: self.stager.stage(action.tokens, action.body, action.deltas, action.inline),
        w.Launch: _launch,
        w.TakeBack: lambda self, action: self.keepers.take_back(action.token),
        w.GoOn: lambda self, action: self.keepers.go_on(action.token),
        w.End: lambda self, action: self.keepers.end(
            action.token, action.outcome, 0 if action.fast else None, action.removed
        ),
        w.Suspend: lambda self, action: self.keepers.suspend(action.token, action.on),
        w.Discard: _discard,
        w.Serve: _serve,
        w.Describe: lambda self, action: self.stager.keep(action.inline),
        w.FileArrived: lambda self, action: self.stager.on_chunk(action.message),
        w.Known: lambda self, action: self.folder.remember(self.name),
        w.Leave: _leave,
        Tell: lambda self, action: tell("worker", action.text, action.facts),
    }

    def _write_status(self) -> None:
        """What count-workers and `pilotq status` read, when it changed."""
        state = "draining" if self.core.draining else "ready" if self.core.session.welcomed else "waiting"
        open_slots = 0 if self.core.draining else self.core.capacity.cpus
        self.folder.show(open_slots=open_slots, tasks=len(self.core.attempts), state=state)


def main(settings: Settings, facts: Facts) -> int:
    """Run a worker in the foreground until its last slot closed, it drained, or it is told to stop."""

    async def body(stop: asyncio.Event) -> int:
        return await Worker(settings, facts).serve(stop)

    return run(body, settings.log_level)
