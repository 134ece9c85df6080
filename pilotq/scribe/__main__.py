"""The scribe's process: `python -m pilotq.scribe QUEUE SPOOL JOURNAL ADDRESS [HISTORY]`, a child of the master.

HISTORY is a `history.Plan` in JSON, when files of the history are kept.

It can be killed at any moment, and ends by itself when the master is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from pilotq.scribe.desk import Desk
from pilotq.scribe.events import EventTexts
from pilotq.scribe.history import History, Plan
from pilotq.scribe.journal import Journal
from pilotq.scribe.messages import FromScribe, Hand, Retry, Wake, pack, split, unpack_to_scribe
from pilotq.scribe.outputs import write_all
from pilotq.scribe.reading import Reader
from pilotq.scribe.writer import Writer

log = logging.getLogger("pilotq.scribe")

WATCH_S = 1.0
CLEAN_S = 30.0


def main() -> NoReturn:
    logging.basicConfig(format="%(asctime)s %(levelname)-7s scribe: %(message)s", level=logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C and a stop of the service reach every process; the master decides when we end.
        signal.signal(number, signal.SIG_IGN)
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    queue, spool, journal_path = (Path(argument) for argument in sys.argv[1:4])
    _be_the_only_one(journal_path.with_suffix(".lock"))
    journal = Journal(journal_path, queue)
    reader = Reader(queue)
    room, sending = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), threading.Lock()

    def post(message: FromScribe) -> None:
        try:
            with sending:
                write_all(1, pack(message))
        except BrokenPipeError:
            os._exit(0)

    writer = Writer(reader, journal, spool, EventTexts(reader, sys.argv[4]))
    desk = Desk(reader, writer, post, lambda: os.eventfd_write(room, 1))
    if len(sys.argv) > 5:
        history = History(queue, msgspec.json.decode(sys.argv[5], type=Plan))
        threading.Thread(target=history.serve, daemon=True).start()
    _serve(desk, journal, room)
    # On a full disk the next scribe compares again.
    with contextlib.suppress(OSError):
        journal.flush()
    # Threads may hang in a file system that does not answer.
    os._exit(0)


def _serve(desk: Desk, journal: Journal, room: int) -> None:
    """Until the master closes our input."""
    buffer = bytearray()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(room, select.POLLIN)
    watch_at = clean_at = time.monotonic()
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(WATCH_S * 1000)}
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            buffer += data
            for message in map(unpack_to_scribe, split(buffer)):
                if isinstance(message, Hand):
                    desk.take(message.notes)
                    continue
                desk.wake(message.n if isinstance(message, Wake) else 0)
                if isinstance(message, Retry):
                    # After what came before it: the release of a task stands in its log before its end.
                    desk.retry(message.ns)
        if room in ready:
            os.eventfd_read(room)
            desk.wake()
        now = time.monotonic()
        if now - watch_at >= WATCH_S:
            watch_at = now
            desk.watch()
        if now - clean_at >= CLEAN_S or (journal.is_long and now - clean_at >= WATCH_S):
            clean_at = now
            journal.clean()


def _be_the_only_one(path: Path) -> None:
    """Wait until no other scribe of this queue is left: one of a dead master may still hang in a write."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        log.warning("waiting for the scribe of an earlier master to end")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


if __name__ == "__main__":
    main()
