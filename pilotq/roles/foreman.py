"""The foreman: a listening socket for workers, one connection to the master, a cache of files in between."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq

from pilotq import __version__, keys, wire
from pilotq.config import Settings
from pilotq.core import foreman as f
from pilotq.core.turn import Tell
from pilotq.daemon import Engine, Watchdog, exists, notify, read_clocks, run, tell, wait_for_any
from pilotq.home import private_dir, state_dir_of, write_run_file
from pilotq.link import Dialer, Listener, prove_closed, serving
from pilotq.roles.files import CachingRelay


class Foreman:
    """Performs what the core decides."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.token = keys.read_token(Path(settings.foreman_token), "foreman")
        self.port = settings.foreman_port()
        self.host = socket.gethostname()
        self.folder = private_dir(Path(settings.worker_workdir), "work directory") / self.host
        private_dir(self.folder, "work directory")
        self.leaving = ""

    async def serve(self, stop: asyncio.Event) -> int:
        with ExitStack() as stack:
            await self._open(stack)
            return await self._until_the_end(stop)

    async def _open(self, stack: ExitStack) -> None:
        self.context: Any = zmq.Context()
        stack.callback(self.context.destroy, linger=0)
        self.authenticator = stack.enter_context(serving(keys.Authenticator(self.context)))
        pair = keys.KeyPair(self.token.public, self.token.secret)
        self.listener = Listener(
            self.context, pair, self._from_below, lambda peer: self.engine.put(f.SessionLost(peer))
        )
        stack.callback(self.listener.close)
        self.port = self.listener.bind(self.settings.foreman_bind, self.port)
        await prove_closed(self.context, self.port, pair.public)
        self.name = f"{self.host}:{self.port}"
        self.files = CachingRelay(
            private_dir(self.folder / f"foreman-{self.port}", "work directory"),
            ask=self._up,
            answer=self._down,
        )
        core = f.ForemanCore(self.name, os.getpid(), __version__, read_clocks())
        self.engine = Engine(core, self._perform, f.Tick(), on_turn=Watchdog())
        stack.callback(self.engine.close)
        self.up: Dialer | None = None
        stack.callback(self._hang_up)
        self.listener.start()
        state = state_dir_of(self.settings)
        run_file = write_run_file(state, f"foreman-{self.port}", role="foreman", port=self.port, version=__version__)
        stack.callback(run_file.unlink, missing_ok=True)
        self.engine.put(f.Tick())
        master = f"{self.settings.master_host}:{self.settings.master_port}"
        tell("foreman", "serving", {"port": self.port, "master": master, "pid": os.getpid()})
        notify("READY=1")

    async def _until_the_end(self, stop: asyncio.Event) -> int:
        drain_file = Path(self.settings.worker_drain_file)
        while not stop.is_set() and not self.leaving:
            if self.engine.failed.done():
                self.engine.failed.result()
            if await exists(drain_file):
                self.engine.put(f.Drain())
            await wait_for_any(stop, self.engine.failed, 1.0)
        notify("STOPPING=1")
        tell("foreman", self.leaving or "stopped", {"foreman": self.name})
        await asyncio.sleep(0.1)  # lets the goodbye leave
        return 0

    def _dial(self) -> None:
        self._hang_up()
        endpoint = f"tcp://{self.settings.master_host}:{self.settings.master_port}"
        self.up = Dialer(
            self.context,
            endpoint,
            self.token.master,
            self.token,
            self._from_above,
            lambda: self.engine.put(f.AboveReset()),
        )
        self.up.start()

    def _hang_up(self) -> None:
        if self.up is not None:
            self.up.close()

    def _from_below(self, peer: bytes, user: str, parts: wire.Parts) -> None:
        if not any(parts[::2]):
            self.engine.put(f.FromBelow(peer, parts[1::2]))

    def _from_above(self, parts: wire.Parts) -> None:
        self.engine.put(f.FromAbove(parts))

    def _up(self, message: wire.Message) -> None:
        if self.up is not None:
            self.up.send(b"", wire.pack(message))
            self.engine.loop.call_soon(self.up.flush)

    def _down(self, session: bytes, message: wire.Message) -> None:
        self.listener.send(session, b"", wire.pack(message))
        self.engine.loop.call_soon(self.listener.flush)

    def _perform(self, actions: list[Any], _: Any) -> None:
        for action in actions:
            if isinstance(action, f.Up):
                if self.up is not None:
                    self.up.send(*action.parts)
            elif isinstance(action, f.Down):
                self.listener.send(action.session, *action.parts)
            elif isinstance(action, f.FileWanted):
                self.files.on_get(action.session, action.message)
            elif isinstance(action, f.FileArrived):
                self.files.on_chunk(action.message)
            elif isinstance(action, f.Allow):
                self.authenticator.allowed = {public: ("worker", name) for public, name in action.keys}
                self.files.ask_again()
            elif isinstance(action, f.Connect):
                self._dial()
            elif isinstance(action, f.Leave):
                self.leaving = action.reason
            elif isinstance(action, Tell):
                tell("foreman", action.text, action.facts)
        if self.up is not None:
            self.up.flush()
        self.listener.flush()


def main(settings: Settings) -> int:
    """Run a foreman in the foreground until it is told to stop or has drained."""

    async def body(stop: asyncio.Event) -> int:
        return await Foreman(settings).serve(stop)

    return run(body, settings.log_level)
