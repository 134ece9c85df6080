"""One client cannot stop others; and each role asks for what it may, over the real socket."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotq import access, http
from pilotq.access import Role
from pilotq.api import QUERIES, Api
from pilotq.condor.request import write_fields
from pilotq.http import Answer, HttpServer, Request

ASK = b"GET /x HTTP/1.0\r\n\r\n"


class Door:
    """A server that takes bodies and gives large answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = HttpServer(self._answer, lambda uid: "admin")
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.under_way = self.most = 0

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(1000)
        await self.server.start(listener)

    async def _answer(self, request: Request) -> Answer:
        if request.path == "/body":
            data = await request.read(1 << 30)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.begun.set()
            await self.go_on.wait()
            self.under_way -= 1
            return Answer(b"%d" % len(data))
        if request.path == "/large":
            return Answer(self._pieces())
        return Answer(b"ok")

    async def _pieces(self) -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1 << 16)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def ask(self, text: bytes) -> bytes:
        reader, writer = await self.dial()
        writer.write(text)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer

    async def ask_from_elsewhere(self) -> bytes:
        """By another process."""
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1]); "
        code += f"s.sendall({ASK!r}); sys.stdout.buffer.write(s.recv(1 << 16))"
        command = [sys.executable, "-I", "-S", "-c", code, str(self.path)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    found = Door(tmp_path / "s")
    await found.start()
    yield found
    found.go_on.set()
    await found.server.close()


async def test_a_process_with_too_many_connections_leaves_room_for_others(door: Door) -> None:
    silent = [await door.dial() for _ in range(http.PROCESS_CONNECTIONS_MAX)]
    assert b" 503 " in await door.ask(ASK)
    assert b" 200 " in await door.ask_from_elsewhere()
    silent.pop()[1].close()
    for _ in range(500):
        if b" 200 " in (answer := await door.ask(ASK)):
            break
    assert b" 200 " in answer, "room again"
    for _, writer in silent:
        writer.close()


async def test_large_bodies_wait_for_each_other(door: Door) -> None:
    size = http.BODY_BYTES_SUM // 2 + 1
    text = b"POST /body HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % size
    asked = [asyncio.create_task(door.ask(text + bytes(size))) for _ in range(2)]
    await asyncio.wait_for(door.begun.wait(), 20)
    assert b" 200 " in await door.ask(ASK), "small ones do not wait"
    door.go_on.set()
    assert all(answer.endswith(b"%d" % size) for answer in await asyncio.gather(*asked))
    assert door.most == 1


async def test_who_does_not_read_is_not_waited_for(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE_S", 0.3)
    slow, fast = await door.dial(), await door.dial()
    slow[1].write(b"GET /large HTTP/1.0\r\n\r\n")
    stalled = asyncio.create_task(door.ask(b"POST /body HTTP/1.0\r\nContent-Length: 10\r\n\r\nabc"))
    fast[1].write(b"GET /large HTTP/1.0\r\n\r\n")
    assert len(await asyncio.wait_for(fast[0].read(), 20)) > 1000 << 16
    assert await stalled == b"", "nor who does not go on writing"
    received = 0
    async with asyncio.timeout(20):
        while data := await slow[0].read(1 << 16):
            received += len(data)
    assert received < 1000 << 16
    for _, writer in (slow, fast):
        writer.close()


async def test_every_role_with_every_request(tmp_path: Path) -> None:
    """A real socket with nobody behind the desk: what is allowed fails later."""
    roles = ["", *Role]
    for role in roles:
        api = Api(object(), lambda uid, role=role: role)  # type: ignore[arg-type, misc]
        path = tmp_path / f"socket-{role}"
        await api.start(path)
        try:
            for request, allowed in access.REQUESTS.items():
                if request.startswith("condor_"):
                    body = write_fields([b"tool", request.encode(), b"key", b"k", b"cwd", b"/", b"user", b"u"])
                    head = b"POST /condor"
                else:
                    body, head = b"", request.encode()
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(head + b" HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                answer = await asyncio.wait_for(reader.read(), 20)
                writer.close()
                assert (b" 403 " in answer.split(b"\r\n")[0]) is (role not in allowed), f"{role}: {request}: {answer!r}"
        finally:
            await api.close()


async def test_every_request_is_in_the_table() -> None:
    api = Api(object())  # type: ignore[arg-type]
    handlers = {f"{method} {path}" for method, path in api._handlers} - {"POST /condor"}
    assert handlers | QUERIES | set(api._commands._answers) | {"condor_submit"} == set(access.REQUESTS)
