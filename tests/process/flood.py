"""Guests that cost something: connections that never say a word, and one that reads a byte a second."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import threading

#: Silent connections of the goal; fewer where the limit of descriptors does not allow them.
WANTED = 5000


def allowed() -> int:
    """How many this process can have, when its limit is raised as far as it goes."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(WANTED, most // 2)


class Flood:
    """`count` silent connections to some ports of this host, kept up by a thread."""

    def __init__(self, ports: list[int], count: int) -> None:
        self.ports, self.count = ports, count
        #: Connections made; those that the other side ended.
        self.made = self.ended = 0
        self._stop = threading.Event()
        self._full = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Flood:
        self._thread.start()
        assert self._full.wait(60), f"{self.made} of {self.count} connections"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            missing = self.count - len(self._selector.get_map())
            for _ in range(min(missing, 200)):
                self._open()
            if missing <= 0:
                self._full.set()
            for key, _ in self._selector.select(0.0 if missing > 0 else 0.05):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                with contextlib.suppress(OSError):
                    # The greeting of the server is taken in; an end is an end.
                    if one.recv(4096):
                        continue
                self.ended += 1
                self._selector.unregister(one)
                one.close()

    def _open(self) -> None:
        one = socket.socket()
        try:
            one.settimeout(5)
            one.connect(("127.0.0.1", self.ports[self.made % len(self.ports)]))
            one.setblocking(False)
        except OSError:
            one.close()
            return
        self.made += 1
        self._selector.register(one, selectors.EVENT_READ)


class SlowReader:
    """Asks for all tasks and reads a byte a second."""

    def __init__(self, path: str) -> None:
        self.peer = socket.socket(socket.AF_UNIX)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.peer.connect(path)
        self.peer.sendall(b"GET /v1/tasks HTTP/1.0\r\n\r\n")
        self.read = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.peer.settimeout(30)
        while not self.stop.wait(1.0):
            self.read += len(self.peer.recv(1))

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.peer.close()
