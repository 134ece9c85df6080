"""The scribe's desk: which notes there are, who writes them, what the master is told."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

from pilotq.core.records import Note
from pilotq.scribe.lanes import THREADS, THREADS_MAX, Item, Lane, Lanes
from pilotq.scribe.messages import Done, Failed, FromScribe
from pilotq.scribe.reading import Reader, Unreadable
from pilotq.scribe.trouble import Trouble
from pilotq.scribe.writer import Verdict, Writer
from pilotq.store import outbox
from pilotq.store.outbox import Block, Head

log = logging.getLogger(__name__)

BLOCKS_AT_ONCE = 100
#: Events written to one log at once.
BATCH_PROCS = 1000
#: What may pass by itself is reported as failed when it did not for so long.
PATIENCE_S = 600.0


class Desk:
    """Hands items to threads and counts them. `wake`, `retry` and `watch` are for one thread."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        post: Callable[[FromScribe], None],
        on_room: Callable[[], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        #: `post` sends to the master, from any thread; `on_room`: call `wake` again.
        self._reader = reader
        self._writer = writer
        self._post = post
        self._patience_s = patience_s
        self._lanes = Lanes(on_room)
        self._last = 0
        #: All notes up to this one are in the outbox, or were.
        self._committed = 0
        #: Of notes that came by hand, the numbers beyond `_last`.
        self._ahead: set[int] = set()
        self._threads = 0
        self._lock = threading.Lock()
        #: Notes under way: items that are not written.
        self._open: dict[int, int] = {}
        #: Items that wait for `retry`, by note, with their lanes.
        self._parked: dict[int, list[tuple[str, Item]]] = {}
        #: Notes reported as failed since they were last tried, with the lanes in which items of theirs stand.
        self._told: dict[int, set[str]] = {}
        for _ in range(THREADS):
            self._start_thread()

    def wake(self, committed: int = 0) -> None:
        """Take in what is new in the outbox, as far as there is room. Notes up to `committed` are in it."""
        self._committed = max(self._committed, committed)
        while self._lanes.has_room:
            blocks = self._reader.blocks(self._last, BLOCKS_AT_ONCE)
            if not blocks:
                self._pass_over(self._committed)
                return
            for block in blocks:
                if block.n not in self._ahead:
                    self._take_in(block)
                self._last = block.n

    def take(self, notes: list[Note]) -> None:
        """Take in notes of a cluster that came by hand; they may not be in the outbox yet."""
        for some in outbox.blocks(notes):
            block = outbox.block_of(some)
            if block.n <= self._last:
                # Its commit was faster.
                continue
            self._reader.hold(block.n, some)
            self._take_in(block)
            self._ahead.update(note.n for note in some)
        self._pass_over(self._last)

    def _pass_over(self, last: int) -> None:
        """All blocks that begin up to this note are known, and those that follow without a gap."""
        self._last = max(self._last, last)
        while self._last + 1 in self._ahead:
            self._last += 1
        self._ahead = {n for n in self._ahead if n > self._last}

    def _take_in(self, block: Block) -> None:
        try:
            lanes = self._reader.items(block)
        except Unreadable as error:
            for head in block.heads or [Head(block.n, -1, 0, 1, 0, True)]:
                item = Item(head.n, block.cluster, head.proc, head.count, block.n)
                with self._lock:
                    self._open[head.n] = 1
                    self._parked[head.n] = [(_own_lane(block.cluster, head.proc), item)]
                self._post(Failed(head.n, errno.EBADMSG, str(error), "note"))
            return
        with self._lock:
            self._open.update(Counter([item.n for items in lanes.values() for item in items]))
        for key, items in lanes.items():
            self._lanes.add(key, items)

    def retry(self, ns: list[int]) -> None:
        """Try these notes again; and with them, in order, what could not be written to their logs before."""
        for n in ns:
            with self._lock:
                parked = self._parked.pop(n, [])
                lanes = self._told.pop(n, set())
            for key, item in parked:
                self._lanes.add(key, [item])
            for key in lanes:
                self._lanes.wake(key)

    def watch(self) -> None:
        """Once a second: start threads for those that are stuck."""
        is_short, stuck = self._lanes.watch()
        for key in stuck:
            log.warning("writing takes long: %s", key)
        if is_short and self._threads < THREADS_MAX:
            self._start_thread()

    # ---- in the threads

    def _start_thread(self) -> None:
        with self._lock:
            self._threads += 1
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            while (work := self._lanes.take(BATCH_PROCS)) is not None:
                lane, items = work
                self._settle(lane, items, self._writer.write(lane.key, items))
        except BaseException:
            # Nothing is lost: the master starts another scribe, which reads the journal.
            log.critical("unexpected error, ending; this is a bug of pilotq", exc_info=True)
            os._exit(70)
        with self._lock:
            self._threads -= 1

    def _settle(self, lane: Lane, items: list[Item], verdict: Verdict) -> None:
        """Give the lane back, and tell the master what became of the items."""
        trouble, since = verdict.trouble, lane.failing_since
        is_late = since is not None and time.monotonic() - since > self._patience_s
        if trouble is not None and is_late and trouble.is_transient and trouble.what != "log":
            # One task must not hold up the others of its log for ever.
            verdict.failed.append((verdict.rest.pop(0), trouble))
            trouble = None
        self._count(lane.key, verdict)
        for item in verdict.apart:
            self._lanes.add(_own_lane(item.cluster, item.proc), [item])
        if trouble is None:
            self._lanes.finish(lane, len(items), verdict.rest, is_well=bool(verdict.done))
            return
        left = self._lanes.finish(lane, len(items), verdict.rest, again=trouble.is_transient)
        if is_late or not trouble.is_transient:
            self._tell(lane.key, trouble, left)

    def _count(self, key: str, verdict: Verdict) -> None:
        done = []
        with self._lock:
            for item in verdict.done:
                self._open[item.n] -= 1
                if not self._open[item.n]:
                    del self._open[item.n]
                    self._told.pop(item.n, None)
                    done.append(item.n)
                    self._reader.let_go(item)
            for item, _ in verdict.failed:
                # Tried again after the commit of its failure only.
                self._reader.let_go(item)
                self._parked.setdefault(item.n, []).append((key, item))
        if done:
            self._post(Done(done))
        for item, trouble in verdict.failed:
            self._post(Failed(item.n, trouble.errno, str(trouble), trouble.what))

    def _tell(self, key: str, trouble: Trouble, items: list[Item]) -> None:
        """These wait in a lane that does not move; each note is reported once."""
        fresh = []
        with self._lock:
            for item in items:
                lanes = self._told.get(item.n)
                if lanes is None:
                    lanes = self._told[item.n] = set()
                    fresh.append(item.n)
                lanes.add(key)
        for n in fresh:
            self._post(Failed(n, trouble.errno, str(trouble), trouble.what))


def _own_lane(cluster: int, proc: int) -> str:
    return f"task {cluster}.{proc}"
