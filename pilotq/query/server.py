"""The query process: one thread a connection, a read-only snapshot of the store for each.

On its socket a connection asks one thing: a four-byte big-endian length and a msgpack map (`answers.Ask`). The answer
comes as pieces, each with its length before it; a length of 0 ends it. The master passes the pieces on unopened.

It says "ready" on stdout when it listens, and leaves when its stdin ends: then the master is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
from threading import Thread
from typing import NoReturn

from pilotq.query.answers import answer
from pilotq.query.reader import Reader
from pilotq.query.rows import Commons
from pilotq.store.written import NAME

THREADS = 8
#: Of one question: the largest request to the master, and what the master adds.
QUESTION_BYTES_MAX = 80 << 20
#: A client that reads nothing for so long is gone; its snapshot must not keep the store's log growing.
PATIENCE_S = 60.0
#: Below the master and the keepers: a constraint on a million tasks may take a core for seconds.
NICENESS = 5
#: How long a short question waits for a long one, each time it needs the interpreter.
SWITCH_S = 0.0005

log = logging.getLogger(__name__)


def listen(path: str) -> socket.socket:
    """A listening Unix socket that only its owner can connect to, in place of one left over."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


def serve(listener: socket.socket, db: str, commons: Commons) -> NoReturn:
    """Answers one connection after the other."""
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.settimeout(PATIENCE_S)
                answer_one(connection, db, commons)
            except OSError:
                # The other side left, which is its right.
                pass
            except Exception:
                log.exception("a connection failed")


def answer_one(connection: socket.socket, db: str, commons: Commons) -> None:
    size = int.from_bytes(_receive(connection, 4), "big")
    if size > QUESTION_BYTES_MAX:
        return
    # Closing it closes the snapshot, also when the other side leaves half-way.
    mark = os.path.join(os.path.dirname(db), NAME)
    with contextlib.closing(answer(_receive(connection, size), lambda: Reader(db, commons), mark)) as pieces:
        for piece in pieces:
            connection.sendall(len(piece).to_bytes(4, "big") + piece)
    connection.sendall(bytes(4))


def _receive(connection: socket.socket, size: int) -> bytes:
    """Raises: ConnectionError when the connection ends first."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise ConnectionError("cut off")
        data += piece
    return bytes(data)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="pilotq.query", description="Answers questions about the queue (internal).")
    parser.add_argument("--db", required=True, help="the store's database file")
    parser.add_argument("--socket", required=True, help="Unix socket to listen on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C and a stop of the service reach every process; the master decides when we end.
        signal.signal(number, signal.SIG_IGN)
    # A hardened service may not even be modest.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    sys.setswitchinterval(SWITCH_S)
    listener = listen(options.socket)
    commons = Commons()
    for _ in range(THREADS):
        Thread(target=serve, args=(listener, options.db, commons), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(OSError):
        os.unlink(options.socket)
    os._exit(0)
