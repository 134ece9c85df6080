"""HTTP on a Unix socket: what the API's clients send, and what others might."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotq.http import HEAD_BYTES_MAX, Answer, HttpServer, Request


class Door:
    """A server whose handler does what the path says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_open = True
        self.server = HttpServer(self._answer, lambda uid: "admin" if self.is_open else "")
        self.waiting, self.go_on = asyncio.Event(), asyncio.Event()
        self.uploaded = b""

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen()
        await self.server.start(listener)

    async def _answer(self, http: Request) -> Answer:
        if http.path == "/echo":
            return Answer(http.method.encode() + b" " + await http.read(1000) + repr(http.query).encode())
        if http.path == "/upload":
            async for piece in http.pieces():
                self.uploaded += piece
            return Answer(b"%d" % len(self.uploaded))
        if http.path == "/stream":
            return Answer(self._pieces())
        if http.path == "/broken":
            return Answer(self._breaks())
        if http.path == "/wait":
            self.waiting.set()
            await self.go_on.wait()
            return Answer(b"at last")
        return Answer(b"nothing here", 404, "text/plain")

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in (b"one", b"", b"two" * 1000):
            yield piece

    async def _breaks(self) -> AsyncIterator[bytes]:
        yield b"one"
        raise RuntimeError("the source is gone")

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def ask(self, text: bytes) -> bytes:
        """All that comes until the connection ends."""
        reader, writer = await self.dial()
        writer.write(text)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    found = Door(tmp_path / "s")
    await found.start()
    yield found
    found.go_on.set()
    await found.server.close()


async def test_many_requests_on_one_connection_even_sent_at_once(door: Door) -> None:
    text = b"POST /echo?a=1&b=x%20y HTTP/1.1\r\nHost: pilotq\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET /echo HTTP/1.1\r\nconnection: close\r\n\r\n"
    answer = await door.ask(text + text + last)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answer.count(b"POST abc{'a': '1', 'b': 'x y'}") == 2
    assert answer.endswith(b"Connection: close\r\n\r\nGET {}")


async def test_an_old_client_is_answered_until_the_end_of_the_connection(door: Door) -> None:
    assert (await door.ask(b"GET /stream HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\none" + b"two" * 1000)
    assert b"Content-Length: 6\r\n" in await door.ask(b"GET /echo HTTP/1.0\r\n\r\n")


async def test_pieces_of_unknown_length(door: Door) -> None:
    text = b"GET /stream HTTP/1.1\r\n\r\nGET /none HTTP/1.1\r\nConnection: close\r\n\r\n"
    head, _, rest = (await door.ask(text)).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    body = b"3\r\none\r\nbb8\r\n" + b"two" * 1000 + b"\r\n0\r\n\r\n"
    assert rest.startswith(body + b"HTTP/1.1 404 Not Found\r\n")


async def test_an_answer_that_breaks_off_does_not_look_whole(door: Door) -> None:
    answer = await door.ask(b"GET /broken HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"3\r\none\r\n"), "without the last chunk"


async def test_a_large_body_comes_in_pieces(door: Door) -> None:
    data = bytes(range(256)) * 20_000
    answer = await door.ask(b"PUT /upload HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert answer.endswith(b"\r\n\r\n%d" % len(data))
    assert door.uploaded == data


async def test_who_is_refused_while_he_writes_reads_why(door: Door) -> None:
    data = b"x" * 3_000_000
    answer = await door.ask(b"POST /echo HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert answer.startswith(b"HTTP/1.1 413 ")
    answer = await door.ask(b"POST /nothing HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"GET /echo SPDY/9\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET /echo HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX * 3 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_request_is_refused_in_one_line(door: Door, text: bytes, status: int) -> None:
    answer = await door.ask(text)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\n")
    assert b"200" in await door.ask(b"GET /echo HTTP/1.0\r\n\r\n"), "others are served on"


async def test_a_body_that_breaks_off_is_no_request(door: Door) -> None:
    reader, writer = await door.dial()
    writer.write(b"PUT /upload HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_an_expected_go_ahead_is_given(door: Door) -> None:
    reader, writer = await door.dial()
    writer.write(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hi")
    assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"POST hi{}")
    writer.close()


async def test_another_account_gets_one_line(door: Door) -> None:
    door.is_open = False
    answer = await door.ask(b"GET /echo HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"belongs to another account" in answer


async def test_close_answers_what_was_asked_and_leaves_nobody_waiting(door: Door) -> None:
    idle, idle_writer = await door.dial()
    asked = asyncio.ensure_future(door.ask(b"GET /wait HTTP/1.1\r\n\r\n"))
    await door.waiting.wait()
    closing = asyncio.ensure_future(door.server.close(10))
    door.go_on.set()
    assert (await asked).endswith(b"at last")
    await asyncio.wait_for(closing, 10)
    assert await asyncio.wait_for(idle.read(), 10) == b""
    idle_writer.close()


async def test_close_does_not_wait_for_ever(door: Door) -> None:
    asked = asyncio.ensure_future(door.ask(b"GET /wait HTTP/1.1\r\n\r\n"))
    await door.waiting.wait()
    await asyncio.wait_for(door.server.close(0.01), 10)
    assert await asked == b""
