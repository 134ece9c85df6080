"""The gateway: on a host without a master, the socket that condor_* look for; it speaks CURVE with the master.

It knows nothing of what passes. Who may ask for what is up to the master, by the role of the gateway's key.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import zmq

from pilotq import __version__, keys, wire
from pilotq.config import Settings
from pilotq.daemon import notify, run, tell
from pilotq.errors import PeerError, UserError
from pilotq.home import home_of, state_dir_of, write_run_file
from pilotq.http import listen, peer_of
from pilotq.link import Dialer
from pilotq.tunnel import STREAMS_MAX, Stream

#: Between two tries to reach the master.
RETRY_S = 1.0


class Gateway:
    """One connection upwards, one stream for each connection to the socket."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home, self.state = home_of(settings), state_dir_of(settings)
        self.path = Path(settings.submit_token)
        self.token = keys.read_token(self.path, "submit")
        self.context: Any = zmq.Context()
        self.endpoint = f"tcp://{settings.master_host}:{settings.master_port}"
        self.up: Dialer | None = None
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count()
        self._tries = itertools.count()

    async def serve(self, stop: asyncio.Event) -> int:
        if (self.state / "queue.db").exists():
            raise UserError(f"{self.state} is of a master", "give the gateway a PILOTQ_HOME of its own")
        listener = listen(self.state / "api.sock")
        server = await asyncio.start_unix_server(self._on_connection, sock=listener)
        self._connect()
        temporary = self.home / f".api.{os.getpid()}"
        temporary.write_text(f"{self.state / 'api.sock'}\n")
        temporary.replace(self.home / "api")
        run_file = write_run_file(self.state, "gateway", role="gateway", version=__version__)
        keys.warn_of_end(self.token, "gateway")
        notify("READY=1")
        tell("gateway", "serving", {"master": self.endpoint, "key": self.token.name, "pid": os.getpid()})
        try:
            await stop.wait()
        finally:
            notify("STOPPING=1")
            run_file.unlink(missing_ok=True)
            server.close()
            self._end_streams()
            if self.up is not None:
                self.up.close()
            self.context.destroy(linger=0)
        tell("gateway", "stopped", {})
        return 0

    def _connect(self) -> None:
        with contextlib.suppress(UserError):
            # Somebody may have put a new one there.
            self.token = keys.read_token(self.path, "submit")
        servers = self.token.servers(is_master=True)
        server = servers[next(self._tries) % len(servers)]
        self.up = Dialer(self.context, self.endpoint, server, self.token, self._on_batch, self._on_lost)
        self.up.start()

    def _on_lost(self) -> None:
        """Whoever waits for an answer asks again."""
        if self.up is None:
            return
        self.up.close()
        self.up = None
        self._end_streams()
        asyncio.get_running_loop().call_later(RETRY_S, self._connect)

    def _end_streams(self) -> None:
        for stream in list(self._streams.values()):
            stream.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, uid = peer_of(writer)
        if uid not in (0, os.geteuid()) or self.up is None or len(self._streams) >= STREAMS_MAX:
            writer.close()
            return

        async def connection() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return reader, writer

        number = next(self._numbers)
        stream = self._streams[number] = Stream(number, self._send, self._forget)
        # Opened in the order of the numbers, whoever is the first to say something.
        self._send(wire.Flow(number, b"", 0))
        stream.start(connection())

    def _forget(self, number: int) -> None:
        self._streams.pop(number, None)

    def _send(self, flow: wire.Flow) -> None:
        if self.up is not None:
            self.up.send(b"", wire.pack(flow))
            asyncio.get_running_loop().call_soon(self.up.flush)

    def _on_batch(self, parts: wire.Parts) -> None:
        for payload in parts[1::2]:
            try:
                message = wire.unpack(payload)
            except PeerError as error:
                tell("gateway", "not a message of ours", {"reason": str(error)})
                continue
            stream = self._streams.get(message.stream) if isinstance(message, wire.Flow) else None
            if stream is not None and isinstance(message, wire.Flow):
                stream.on_flow(message)


def main(settings: Settings) -> int:
    """Run a gateway in the foreground until it is told to stop."""

    async def body(stop: asyncio.Event) -> int:
        return await Gateway(settings).serve(stop)

    return run(body, settings.log_level)
