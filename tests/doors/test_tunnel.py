"""Streams over messages: large answers, slow readers, sides that end, peers that are lost."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from pilotq import wire
from pilotq.tunnel import STREAMS_MAX, WINDOW, Stream, Tunnels

pytestmark = pytest.mark.asyncio
ANSWER = os.urandom(3 * WINDOW + 17)


class Pair:
    """The two ends, joined by a wire that counts what is on its way."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.asked: list[bytes] = []
        self.most = 0
        self.tunnels = Tunnels(self._down, self._serve)

    async def _serve(self, peer: socket.socket, role: str, user: str) -> None:
        reader, writer = await asyncio.open_connection(sock=peer)
        self.asked.append(await reader.readuntil(b"\n"))
        assert (role, user) == ("submit", "ce")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    def _down(self, peer: bytes, flow: wire.Flow) -> None:
        asyncio.get_running_loop().call_soon(self._arrive, wire.pack(flow))

    def _arrive(self, payload: bytes) -> None:
        flow = wire.unpack(payload)
        assert isinstance(flow, wire.Flow)
        stream = self.streams.get(flow.stream)
        if stream is not None:
            stream.on_flow(flow)
            self.most = max(self.most, sum(len(one.data) for one in stream._arrived._queue))  # type: ignore[attr-defined]

    def up(self, flow: wire.Flow) -> None:
        self.tunnels.on_flow(b"peer", "submit", "ce", flow)

    async def connect(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        stream = self.streams[number] = Stream(number, self.up, lambda over: self.streams.pop(over, None))
        self.up(wire.Flow(number, b"", 0))
        stream.start(asyncio.open_connection(sock=theirs))
        return await asyncio.open_connection(sock=ours)


async def test_many_at_a_time_whoever_speaks_first() -> None:
    pair = Pair()
    connections = [await pair.connect(number) for number in range(8)]
    for index, (_, writer) in reversed(list(enumerate(connections))):
        writer.write(b"ask %d\n" % index)
        await asyncio.sleep(0.001)
    answers = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in connections)), 30)
    assert all(answer == ANSWER for answer in answers)
    assert sorted(pair.asked) == [b"ask %d\n" % index for index in range(8)]
    for _, writer in connections:
        writer.close()


async def test_a_slow_reader_keeps_no_more_than_the_window_in_memory() -> None:
    pair = Pair()
    reader, writer = await pair.connect(0)
    writer.write(b"ask\n")
    await asyncio.sleep(0.3)
    assert 0 < pair.most <= WINDOW
    assert await asyncio.wait_for(reader.read(), 30) == ANSWER
    assert pair.most <= WINDOW
    writer.close()


async def test_what_comes_late_opens_nothing_and_a_lost_peer_ends_its_streams() -> None:
    pair = Pair()
    reader, writer = await pair.connect(3)
    pair.up(wire.Flow(2, b"late\n", 0))
    assert list(pair.tunnels._streams[b"peer"]) == [3]
    pair.tunnels.on_peer_lost(b"peer")
    assert not pair.tunnels._streams
    writer.close()
    assert pair.asked == [] and not reader.at_eof()


async def test_too_many_are_refused() -> None:
    pair = Pair()
    connections = [await pair.connect(number) for number in range(STREAMS_MAX + 1)]
    assert await asyncio.wait_for(connections[-1][0].read(), 10) == b""
    for _, writer in connections:
        writer.close()
    pair.tunnels.on_peer_lost(b"peer")
