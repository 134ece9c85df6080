"""HTTP + JSON to the master's Unix socket, for commands. Standard library only, and little of it: start-up counts."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from pilotq.errors import InternalError, PeerError, PilotqError, UnavailableError, UserError

#: A path that does not fit into sockaddr_un is reached through a descriptor of its directory.
_PATH_MAX = 100
_HINTS = {404: 3, 403: 5, 409: 7, 503: 5}


class Client:
    """The master of one PILOTQ_HOME; calls follow each other on one connection. Not for several threads."""

    def __init__(self, home: str, timeout_s: float = 30.0) -> None:
        self.home = home
        self.timeout_s = timeout_s
        self._kept: socket.socket | None = None

    def get(self, path: str) -> Any:
        """Raises: UnavailableError when nobody answers, UserError when it was refused, PeerError."""
        return self._json("GET", path, b"")

    def post(self, path: str, body: Any) -> Any:
        return self._json("POST", path, json.dumps(body).encode())

    def send(self, method: str, path: str, body: bytes) -> bytes:
        """For what is not JSON; raises as `get` does."""
        return self._call(method, path, body)

    def _json(self, method: str, path: str, body: bytes) -> Any:
        try:
            return json.loads(self._call(method, path, body))
        except ValueError:
            raise PeerError(f"the master answered {method} {path} with something else than JSON") from None

    def is_there(self) -> bool:
        """Does a master answer?"""
        try:
            self._connect().close()
        except UnavailableError:
            return False
        return True

    def advice(self) -> str:
        """What to do when no master has been started here."""
        try:
            names = os.listdir(self.home)
        except OSError:
            names = []
        if names and "keys" not in names:
            return "this looks like a node (no keys/ there); ask on the head, where the master runs"
        return "start one with `pilotq up`"

    def socket_path(self) -> str:
        """Raises: UnavailableError when no master has been started here."""
        try:
            with open(os.path.join(self.home, "api"), encoding="utf-8", errors="surrogateescape") as file:
                return file.read().strip()
        except FileNotFoundError:
            raise UnavailableError(f"no master runs in {self.home}", self.advice()) from None
        except OSError as error:
            raise UnavailableError(
                f"{self.home} cannot be read ({error.strerror})", "set PILOTQ_HOME to a pool of your own", exit_code=5
            ) from None

    def _connect(self) -> socket.socket:
        path = self.socket_path()
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(self.timeout_s)
        folder = -1
        try:
            if len(os.fsencode(path)) > _PATH_MAX:
                folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
                path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
            peer.connect(path)
        except OSError as error:
            peer.close()
            raise self._nobody(error) from None
        finally:
            if folder >= 0:
                os.close(folder)
        return peer

    def _nobody(self, error: OSError) -> PilotqError:
        if isinstance(error, PermissionError):
            return UnavailableError(
                f"{self.home} belongs to another user", "set PILOTQ_HOME to a pool of your own", exit_code=5
            )
        said = error.strerror or str(error)
        return UnavailableError(
            f"no answer from the master of {self.home} ({said})", "start it with `pilotq up`, or see `pilotq doctor`"
        )

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _connection(self) -> socket.socket:
        """The connection of the last call when the master has not closed it, else another."""
        kept = self._kept
        if kept is None:
            return self._connect()
        kept.settimeout(0)
        try:
            kept.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            kept.settimeout(self.timeout_s)
            return kept
        except OSError:
            pass
        self.close()
        return self._connect()

    def _call(self, method: str, path: str, body: bytes) -> bytes:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: pilotq\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        peer = self._connection()
        self._kept = None
        try:
            peer.sendall(head.encode() + body)
            data, is_kept = _receive(peer)
        except OSError as error:
            peer.close()
            raise self._nobody(error) from None
        if is_kept:
            self._kept = peer
        else:
            peer.close()
        return _read_answer(method, path, data)


def _receive(peer: socket.socket) -> tuple[bytes, bool]:
    """A whole answer, or what came of it; may the connection be used again?"""
    data, wanted = bytearray(), -1
    while True:
        part = peer.recv(1 << 18)
        data += part
        if not part:
            return bytes(data), False
        if wanted < 0:
            head, found, _ = data.partition(b"\r\n\r\n")
            if not found:
                continue
            lines = head.lower().split(b"\r\n")
            sizes = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
            wanted = len(head) + 4 + sizes[0] if sizes else 1 << 62
        if len(data) >= wanted:
            return bytes(data), b"connection: close" not in lines


def _read_answer(method: str, path: str, data: bytes) -> bytes:
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].split()
    if len(words) < 2 or not words[1].isdigit():
        raise UnavailableError("the master went away in the middle of an answer", "try again")
    status = int(words[1])
    if status == 200:
        return body
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        text = str(json.loads(text).get("error", text))
    text = text or f"the master answered {method} {path} with {status}"
    if status == 500:
        raise InternalError(text, "look into logs/master.log; this is a bug of pilotq")
    family = UnavailableError if status in (502, 503, 504) else UserError
    raise family(text, exit_code=_HINTS.get(status, 2 if status < 500 else 4))
