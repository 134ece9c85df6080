"""HTTP/1.1 on a Unix socket, as much of it as the API needs.

A connection is one coroutine that takes one request after the other, so that a request costs little more than its two
system calls. Bodies of requests have a length; answers have one too, or come in pieces.

One client cannot take what all need: there are bounds on the connections of a process, on its requests under way, on
bytes of bodies in memory, and on how long somebody who sends or reads nothing is waited for.

Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 64 << 10
PIECE_BYTES = 1 << 18
#: Connections in all, those of one process, and how many of these are served at a time.
CONNECTIONS_MAX, PROCESS_CONNECTIONS_MAX, PROCESS_REQUESTS_MAX = 2048, 256, 32
#: Bytes of bodies in memory; more wait. What is smaller does not count.
BODY_BYTES_SUM, BODY_BYTES_SMALL = 256 << 20, 256 << 10
#: How long a connection may lie idle, and how long we wait for the next piece of what is under way.
IDLE_S, PATIENCE_S = 300.0, 60.0
#: How long somebody may go on sending what was refused already.
SKIP_S = 10.0
_NUMBER_DIGITS_MAX = 18
#: Bytes that may follow a head that was not understood.
_UNKNOWN = 1 << 40


class HttpError(Exception):
    """Something a client did wrong; it is told so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Answer(NamedTuple):
    """What a handler gives back: all of it, or pieces as they come."""

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    kind: str = "application/octet-stream"


class Request:
    """A request; its body is still on its way."""

    #: Of who asks, by the socket or by the key: see `access.Role`; the account, or the name of the key.
    role = ""
    uid = -1
    user = ""

    def __init__(
        self, method: str, target: str, length: int, reader: asyncio.StreamReader, room: _Room | None = None
    ) -> None:
        self.method = method
        path, _, query = target.partition("?")
        self.path = unquote(path)
        self.query: dict[str, str] = dict(parse_qsl(query)) if query else {}
        #: Bytes of the body that were not read yet.
        self.left = length
        self._reader = reader
        self._room = room
        self._taken = 0

    async def read(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises: HttpError when it is larger.
        """
        if self.left > bytes_max:
            raise HttpError(413, f"a request of {self.left} bytes, the limit is {bytes_max}")
        if self.left > BODY_BYTES_SMALL:
            if self._room is not None:
                await self._room.take(self.left)
                self._taken = self.left
            return b"".join([piece async for piece in self.pieces()])
        async with asyncio.timeout(PATIENCE_S):
            data = await self._reader.readexactly(self.left)
        self.left = 0
        return data

    async def forget(self) -> None:
        """Nothing of the body is needed any more."""
        if self._room is not None and self._taken:
            taken, self._taken = self._taken, 0
            await self._room.give(taken)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises: asyncio.IncompleteReadError when it breaks off.
        """
        while self.left:
            async with asyncio.timeout(PATIENCE_S):
                data = await self._reader.read(min(self.left, PIECE_BYTES))
            if not data:
                raise asyncio.IncompleteReadError(b"", self.left)
            self.left -= len(data)
            yield data


class _Room:
    """Bytes that all bodies share."""

    def __init__(self, size: int) -> None:
        self.free = self._size = size
        self._changed = asyncio.Condition()

    async def take(self, size: int) -> None:
        """Waits until there is room; something too large for all of it gets all of it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.free >= min(size, self._size))
            self.free -= size

    async def give(self, size: int) -> None:
        async with self._changed:
            self.free += size
            self._changed.notify_all()


class _Process:
    """A process that has connections to us."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = asyncio.Semaphore(PROCESS_REQUESTS_MAX)


Handler = Callable[[Request], Awaitable[Answer]]


class HttpServer:
    """Serves one socket; `role_of(uid)` says what an account is here; "": it is not answered."""

    def __init__(self, handler: Handler, role_of: Callable[[int], str]) -> None:
        self._handler, self._role_of = handler, role_of
        self._room = _Room(BODY_BYTES_SUM)
        #: By pid, or by key.
        self._processes: dict[int | str, _Process] = {}
        self._server: asyncio.Server | None = None
        self._is_closing = False
        self._connections: set[asyncio.Task[None]] = set()
        #: Those of them that are at work on a request.
        self._busy: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=HEAD_BYTES_MAX)

    async def serve(self, peer: socket.socket, role: str, user: str) -> None:
        """Serve one connection of somebody whose key said who he is."""
        reader, writer = await asyncio.open_connection(sock=peer, limit=HEAD_BYTES_MAX)
        await self._serve(reader, writer, (user, role))

    async def close(self, grace_s: float = 1.0) -> None:
        """Answers what was asked, but not for long."""
        self._is_closing = True
        if self._server is not None:
            self._server.close()
        if self._busy:
            await asyncio.wait(self._busy, timeout=grace_s)
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, known: tuple[str, str] | None = None
    ) -> None:
        """`known`: name and role of who comes with a key."""
        task = asyncio.current_task()
        assert task is not None
        pid, uid = (f"key {known[0]}", -1) if known else peer_of(writer)
        process = self._processes.setdefault(pid, _Process())
        process.connections += 1
        self._connections.add(task)
        try:
            user, role = known or ("", self._role_of(uid))
            refusal = None if role else HttpError(403, "this pool belongs to another account; ask its owner")
            if len(self._connections) > CONNECTIONS_MAX or process.connections > PROCESS_CONNECTIONS_MAX:
                refusal = HttpError(503, "too many connections; try again")
            who = (role, uid, user)
            while await self._one(reader, writer, task, who, process, refusal):
                pass
        except (OSError, EOFError, TimeoutError):
            pass
        except asyncio.CancelledError:
            # Only `close` does that, and waits for our end.
            pass
        except Exception as error:
            log.warning("an answer broke off", extra={"facts": {"reason": str(error)}})
        finally:
            process.connections -= 1
            if not process.connections:
                self._processes.pop(pid, None)
            self._connections.discard(task)
            self._busy.discard(task)
            writer.close()

    async def _one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
        who: tuple[str, int, str],
        process: _Process,
        refusal: HttpError | None,
    ) -> bool:
        """One request; may there be another on this connection?"""
        request, is_last = Request("", "", _UNKNOWN, reader), True
        try:
            async with asyncio.timeout(SKIP_S if refusal else IDLE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            self._busy.add(task)
            request, is_last = _read_head(head, reader, writer, self._room)
            if refusal is not None:
                raise refusal
            request.role, request.uid, request.user = who
            async with process.requests:
                answer = await self._handler(request)
        except asyncio.LimitOverrunError:
            answer = Answer(b"the head of the request is too long\n", 431, "text/plain")
        except HttpError as error:
            is_last = True
            answer = Answer(f"{error}\n".encode(), error.status, "text/plain")
        finally:
            await request.forget()
        is_last = is_last or request.left > 0 or self._is_closing
        await _send(writer, answer, is_last)
        if request.left:
            writer.write_eof()
            await _skip(request)
        self._busy.discard(task)
        return not is_last


def _read_head(
    head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: _Room
) -> tuple[Request, bool]:
    """The request, and whether it is the last one of its connection.

    Raises: HttpError.
    """
    lines = head[:-4].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise HttpError(400, "not a request of HTTP/1.1")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    if "transfer-encoding" in fields:
        raise HttpError(411, "a body must have a Content-Length")
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > _NUMBER_DIGITS_MAX:
        raise HttpError(400, "not a Content-Length")
    if "expect" in fields:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    is_last = words[2] == "HTTP/1.0" or fields.get("connection", "").lower() == "close"
    return Request(words[0], words[1], int(length), reader, room), is_last


def listen(path: Path) -> socket.socket:
    """A Unix socket that only this account and root can connect to."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A path may be longer than a socket address: bind relative to its directory.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        before = os.umask(0o177)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.umask(before)
    finally:
        os.close(folder)
    listener.listen(1024)
    return listener


def peer_of(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Pid and uid of who connected."""
    peer = writer.get_extra_info("socket")
    pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _head_of(answer: Answer, size: str, is_last: bool) -> bytes:
    end = "Connection: close\r\n" if is_last else ""
    phrase = HTTPStatus(answer.status).phrase
    return f"HTTP/1.1 {answer.status} {phrase}\r\nContent-Type: {answer.kind}\r\n{size}{end}\r\n".encode()


async def _send(writer: asyncio.StreamWriter, answer: Answer, is_last: bool) -> None:
    if isinstance(answer.body, bytes):
        writer.write(_head_of(answer, f"Content-Length: {len(answer.body)}\r\n", is_last) + answer.body)
    else:
        writer.write(_head_of(answer, "" if is_last else "Transfer-Encoding: chunked\r\n", is_last))
        async for piece in answer.body:
            if piece:
                writer.write(piece if is_last else b"%x\r\n%b\r\n" % (len(piece), piece))
                await _drain(writer)
        if not is_last:
            writer.write(b"0\r\n\r\n")
    await _drain(writer)


async def _drain(writer: asyncio.StreamWriter) -> None:
    """Raises: TimeoutError when the other side does not read."""
    if writer.transport.get_write_buffer_size() or writer.is_closing():
        async with asyncio.timeout(PATIENCE_S):
            await writer.drain()


async def _skip(request: Request) -> None:
    """Take in what was not wanted: who is cut off while he writes may not read the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SKIP_S):
            async for _ in request.pieces():
                pass
