"""Talks to the master as the `condor_submit` shim does, but from inside a process that runs already."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pilotq.client import Client
from pilotq.condor.request import read_fields, write_fields

_KEY_BYTES = 16


class Door:
    """One kept connection to the API of a master; HTTP/1.1 over its Unix socket.

    Raises: ConnectionError when the master goes away, RuntimeError when it refuses.
    """

    def __init__(self, home: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        path = Client(home).socket_path()
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.socket.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.close(folder)

    def close(self) -> None:
        self.socket.close()

    def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer."""
        self.socket.sendall(request(method, path, body))
        status, answer = self._read()
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500]!r}")
        return answer

    def _read(self) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = -1
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if length < 0:
            raise RuntimeError("an answer without a length")
        while len(body) < length:
            body += self._more()
        return int(head[9:12]), body

    def _more(self) -> bytes:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the master closed the connection")
        return data


def request(method: str, path: str, body: bytes) -> bytes:
    """A whole request of HTTP/1.1."""
    return f"{method} {path} HTTP/1.1\r\nHost: pilotq\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Submission:
    """A submit file. The answers the master asks for are remembered, so that later it is sent in a single request."""

    def __init__(self, text: str, cwd: str | Path) -> None:
        rest = [b"cwd", os.fsencode(cwd), b"user", getpass.getuser().encode(), b"uid", b"%d" % os.getuid()]
        rest += [b"umask", b"22", b"tty", b"0", b"columns", b"0", b"arg", b"-terse", b"arg", b"task.sub"]
        self._text = text.encode()
        self._rest = write_fields(rest)

    def body(self) -> bytes:
        """A request with a key of its own."""
        key = secrets.token_hex(_KEY_BYTES).encode()
        return write_fields([b"tool", b"condor_submit", b"key", key]) + self._rest

    def send(self, door: Door) -> int:
        """Submit it; the cluster id, durable."""
        while True:
            found = _pairs(door.call("POST", "/condor", self.body()))
            wants = [want for name, want in found if name == b"want"]
            if not wants:
                return _accepted(found)
            for want in wants:
                self._rest += self._have(door, want)

    def _have(self, door: Door, want: bytes) -> bytes:
        kind, argument = read_fields(want)
        if kind == b"read":
            data = self._text
        elif kind == b"stat":
            data = write_fields([b"d" if os.path.isdir(argument) else b"f", *_mode_and_size(argument)])
        elif kind == b"store":
            said = door.call("PUT", "/blob", Path(os.fsdecode(argument)).read_bytes()).split()
            data = write_fields([*said, _mode_and_size(argument)[0], b"file"])
        elif kind == b"write":
            data = b""
        else:
            raise RuntimeError(f"the master wants {kind!r}, which this client does not have")
        return write_fields([b"have", write_fields([kind, argument, b"ok", data])])


def _mode_and_size(path: bytes) -> list[bytes]:
    status = os.stat(path)
    return [b"%o" % (status.st_mode & 0o7777), b"%d" % status.st_size]


def accepted(answer: bytes) -> int:
    """The cluster id in the answer to a submission.

    Raises: RuntimeError when it was refused.
    """
    return _accepted(_pairs(answer))


def _accepted(found: list[tuple[bytes, bytes]]) -> int:
    said = dict(found)
    if said.get(b"exit") != b"0":
        raise RuntimeError(f"refused: {said.get(b'err', b'')!r}")
    return int(said[b"out"].split(b".")[0])


def _pairs(answer: bytes) -> list[tuple[bytes, bytes]]:
    values = read_fields(answer)
    return list(zip(values[::2], values[1::2], strict=True))
