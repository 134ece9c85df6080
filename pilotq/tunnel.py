"""Connections to the API that come over a link instead of the Unix socket: bytes of many streams in messages.

A stream is one connection to the gateway's socket and one to the master's API. Who has sent as many bytes as the other
side may have unread waits; how many the other side passed on it says in every message, as a sum, so that one that is
lost with its connection does no harm. When the link breaks, its streams end: a command asks again, with the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from pilotq import wire

#: Bytes of a stream that may be on their way; a message has at most a quarter of them.
WINDOW = 1 << 20
#: Streams of one peer at a time; others are refused.
STREAMS_MAX = 64

Send = Callable[[wire.Flow], None]


class Stream:
    """One end: between a local connection and messages."""

    def __init__(self, number: int, send: Send, on_end: Callable[[int], object]) -> None:
        self.number = number
        self._send, self._on_end = send, on_end
        self._sent = self._got = self._passed = self._told = 0
        self._room = asyncio.Event()
        self._arrived: asyncio.Queue[wire.Flow] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self, connection: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(connection))

    def on_flow(self, flow: wire.Flow) -> None:
        if flow.got > self._got:
            self._got = flow.got
            self._room.set()
        if flow.data or flow.end:
            self._arrived.put_nowait(flow)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, connection: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await connection
            outwards = asyncio.create_task(self._outwards(reader))
            inwards = asyncio.create_task(self._inwards(writer))
            # What is sent to us after our side has ended is of no use; the other way round an answer may follow.
            done, _ = await asyncio.wait({outwards, inwards}, return_when=asyncio.FIRST_COMPLETED)
            if outwards not in done:
                await asyncio.wait({outwards})
            inwards.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            if writer is not None:
                writer.close()
            self._on_end(self.number)

    async def _outwards(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(WINDOW // 4):
                while self._sent + len(data) - self._got > WINDOW:
                    self._room.clear()
                    await self._room.wait()
                self._sent += len(data)
                self._say(data)
        self._say(b"", end=True)

    async def _inwards(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while not (flow := await self._arrived.get()).end:
                writer.write(flow.data)
                await writer.drain()
                self._passed += len(flow.data)
                if self._passed - self._told >= WINDOW // 4:
                    self._say(b"")
            writer.write_eof()

    def _say(self, data: bytes, end: bool = False) -> None:
        self._told = self._passed
        self._send(wire.Flow(self.number, data, self._passed, end))


class Tunnels:
    """The master's end of all streams. `serve(socket, role, user)` answers what comes by a connection."""

    def __init__(
        self,
        send: Callable[[bytes, wire.Flow], None],
        serve: Callable[[socket.socket, str, str], Awaitable[None]],
    ) -> None:
        self._send, self._serve = send, serve
        self._streams: dict[bytes, dict[int, Stream]] = {}
        #: Highest number of each peer: what comes late for one that is over does not open it again.
        self._highest: dict[bytes, int] = {}
        self._serving: set[asyncio.Future[None]] = set()

    def on_flow(self, peer: bytes, role: str, user: str, flow: wire.Flow) -> None:
        streams = self._streams.setdefault(peer, {})
        stream = streams.get(flow.stream)
        if stream is None:
            if flow.stream <= self._highest.get(peer, -1):
                return
            self._highest[peer] = flow.stream
            if len(streams) >= STREAMS_MAX:
                self._send(peer, wire.Flow(flow.stream, b"", 0, True))
                return
            stream = streams[flow.stream] = self._open(peer, role, user, flow.stream)
        stream.on_flow(flow)

    def _open(self, peer: bytes, role: str, user: str, number: int) -> Stream:
        ours, theirs = socket.socketpair()
        serving = asyncio.ensure_future(self._serve(theirs, role, user))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        streams = self._streams[peer]
        stream = Stream(number, lambda flow: self._send(peer, flow), lambda number: streams.pop(number, None))
        stream.start(asyncio.open_connection(sock=ours))
        return stream

    def on_peer_lost(self, peer: bytes) -> None:
        self._highest.pop(peer, None)
        for stream in list(self._streams.pop(peer, {}).values()):
            stream.close()
