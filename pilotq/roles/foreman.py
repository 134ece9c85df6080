"""The foreman: a listening socket for workers, one connection to the master, a cache of files in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq

from pilotq import __version__, keys, wire
from pilotq.access import Role
from pilotq.config import Settings
from pilotq.core import foreman as f
from pilotq.core.turn import Tell
from pilotq.daemon import Engine, Watchdog, exists, notify, read_clocks, run, tell, wait_for_any
from pilotq.errors import UserError
from pilotq.home import private_dir, state_dir_of, write_run_file
from pilotq.link import Dialer, Listener, serving
from pilotq.proc import allow_many_files
from pilotq.roles.files import CachingRelay


class Foreman:
    """Performs what the core decides."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.token = self._read_token()
        #: Public key of the pair the master wants our workers to be served with.
        self.serve = ""
        self.port = settings.foreman_port()
        self.host = socket.gethostname()
        self.folder = private_dir(Path(settings.worker_workdir), "work directory") / self.host
        private_dir(self.folder, "work directory")
        self.leaving = ""
        #: Tries to connect to the master; somebody was told that the token is too old.
        self.tries = -1
        self.is_told = False

    def _read_token(self) -> keys.Token:
        return keys.read_token(Path(self.settings.foreman_token), "foreman")

    async def run(self, stop: asyncio.Event) -> int:
        with ExitStack() as stack:
            await self._open(stack)
            return await self._until_the_end(stop)

    async def _open(self, stack: ExitStack) -> None:
        self.context: Any = zmq.Context()
        stack.callback(self.context.destroy, linger=0)
        self.gate = stack.enter_context(serving(keys.Authenticator(self.context), self._fail))
        pair = self.token.pairs()[0]
        self.listener = Listener(self.context, pair, self.gate, self._from_below, self._on_lost)
        stack.callback(self.listener.close)
        self.port = self.listener.bind(self.settings.foreman_bind, self.port)
        await self.listener.prove_closed()
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
        keys.warn_of_end(self.token, "foreman")
        notify("READY=1")

    async def _until_the_end(self, stop: asyncio.Event) -> int:
        drain_file = Path(self.settings.worker_drain_file)
        while not stop.is_set() and not self.leaving:
            if self.engine.failed.done():
                self.engine.failed.result()
            if await exists(drain_file):
                self.engine.put(f.Drain())
            if self.serve not in ("", self.listener.public):
                await self._change_keys()
            await wait_for_any(stop, self.engine.failed, 1.0)
        notify("STOPPING=1")
        tell("foreman", self.leaving or "stopped", {"foreman": self.name})
        await asyncio.sleep(0.1)  # lets the goodbye leave
        return 0

    def _fail(self, error: Exception) -> None:
        self.engine.fail(error)

    async def _change_keys(self) -> None:
        """Serve with the pair the master names, if the token has it by now."""
        with contextlib.suppress(UserError):
            self.token = self._read_token()
        pair = next((one for one in self.token.pairs() if one.public == self.serve), None)
        if pair is not None:
            await self.listener.change_keys(pair)
            tell("foreman", "serving with the next key", {"public": pair.public})
        elif not self.is_told:
            self.is_told = True
            hint = {"file": self.settings.foreman_token}
            tell("foreman", "the servers have new keys, copy the token of this foreman again", hint, logging.WARNING)

    def _dial(self) -> None:
        self._hang_up()
        with contextlib.suppress(UserError):
            # Somebody may have put a new one there.
            self.token = self._read_token()
        servers = self.token.servers(is_master=True)
        self.tries += 1
        self.up = Dialer(
            self.context,
            f"tcp://{self.settings.master_host}:{self.settings.master_port}",
            servers[self.tries % len(servers)],
            self.token,
            self._from_above,
            lambda: self.engine.put(f.AboveReset()),
        )
        self.up.start()

    def _hang_up(self) -> None:
        if self.up is not None:
            self.up.close()

    def _from_below(self, peer: bytes, key: keys.Key, parts: wire.Parts) -> None:
        if not any(parts[::2]):
            self.engine.put(f.FromBelow(wire.session_of(peer, key.name), parts[1::2]))

    def _on_lost(self, session: bytes) -> None:
        self.engine.put(f.SessionLost(session))

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
                self.gate.allow((public, keys.Key(Role.WORKER, name)) for public, name in action.keys)
                self.serve, self.is_told = action.serve, False
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
        return await Foreman(settings).run(stop)

    allow_many_files()
    return run(body, settings.log_level)
