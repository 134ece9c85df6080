"""The scribe: it writes what is in the outbox, or was handed to it, into the logs and directories of users."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core.records import Note
from pilotq.scribe import IN_HAND_MAX
from pilotq.scribe.lanes import RETRY_S_MAX

if TYPE_CHECKING:
    from tests.sim.head import Master


class Scribe:
    """Writes the notes of each log in order: intends, appends, marks, tells. It may die in between.

    Both ends of `pilotq.scribe`: notes come from the outbox, when the master says so, or by hand.
    """

    STEP_S = 0.001
    #: From the master to the process.
    PIPE_S = 0.0004

    def __init__(self, master: Master, woken: int) -> None:
        self.master, self.world, self.time = master, master.world, master.time
        self.is_dead = False
        self.fuse = -1
        #: The master's end: notes up to these are committed; are known to the process; were handed and are not written.
        self.woken = self._known = woken
        self._in_hand: set[int] = set()
        #: The process: it has seen the outbox up to this note, and those beyond came by hand.
        self._last = 0
        self._ahead: set[int] = set()
        #: Came by hand and are not written.
        self._by_hand: set[int] = set()
        #: By log; which are at work; and the notes that were told to be such as cannot be written.
        self._lanes: dict[int, deque[Note]] = {}
        self._busy: set[int] = set()
        self._told: set[int] = set()
        self.time.after(self.PIPE_S, self._look, woken)

    def hand(self, notes: list[Note]) -> None:
        self.world.ledger.on_handed(notes)
        if self.is_dead or len(self._in_hand) >= IN_HAND_MAX:
            return
        self._in_hand.update(note.n for note in notes)
        if notes[0].n == self._known + 1 and notes[-1].n == self._known + len(notes):
            self._known += len(notes)
        self.time.after(self.PIPE_S, self._take, notes)

    def wake(self, n: int) -> None:
        self.woken = max(self.woken, n)
        if not self.is_dead and self.woken > self._known:
            self._known = self.woken
            self.time.after(self.PIPE_S, self._look, self.woken)

    def _take(self, notes: list[Note]) -> None:
        if self.is_dead or notes[0].n <= self._last:
            return
        for note in notes:
            self._ahead.add(note.n)
            self._by_hand.add(note.n)
            self._take_in(note)
        self._pass_over(self._last)

    def _look(self, committed: int) -> None:
        if self.is_dead:
            return
        outbox = self.world.disk.outbox
        for n in [n for n in outbox if n > self._last]:
            if n not in self._ahead:
                self._take_in(outbox[n])
            self._last = n
        self._pass_over(committed)

    def _pass_over(self, last: int) -> None:
        self._last = max(self._last, last)
        while self._last + 1 in self._ahead:
            self._last += 1
        self._ahead = {n for n in self._ahead if n > self._last}

    def _take_in(self, note: Note) -> None:
        self._lanes.setdefault(note.cluster, deque()).append(note)
        # One more note is a reason to try the log again.
        self._go_on(note.cluster)

    def retry(self, ns: list[int]) -> None:
        for cluster in [c for c, lane in self._lanes.items() if any(note.n in ns for note in lane)]:
            self._told.difference_update(note.n for note in self._lanes[cluster])
            self._go_on(cluster)

    def _go_on(self, cluster: int) -> None:
        if cluster not in self._busy and self._lanes[cluster]:
            self._busy.add(cluster)
            self.time.after(self.STEP_S, self._write, cluster)

    def _effect(self) -> None:
        if self.fuse >= 0:
            self.fuse -= 1
            if self.fuse < 0:
                self.time.tell("the scribe dies")
                self.is_dead = True
                self.time.after(0.5, self.master.new_scribe)

    def _write(self, cluster: int) -> None:
        if self.is_dead:
            return
        note = self._lanes[cluster][0]
        if self.time.t < self.world.log_broken.get(cluster, 0.0):
            self._busy.discard(cluster)
            if self.world.ledger.specs[cluster].has_log:
                self.time.after(RETRY_S_MAX, self._go_on, cluster)
            for waiting in self._lanes[cluster]:
                self._tell_failed(waiting)
            return
        # What is committed and not in the outbox is gone, however it came.
        if note.n in self.world.disk.outbox or (note.n in self._by_hand and note.n > self.woken):
            self._put_down(note)
            if self.is_dead:
                return
            self._by_hand.discard(note.n)
            self.time.after(self.STEP_S, self._tell_done, note.n)
        self._lanes[cluster].popleft()
        self._busy.discard(cluster)
        self._go_on(cluster)

    def _put_down(self, note: Note) -> None:
        """An append that a crash may come before, into or after; the journal tells the next scribe.

        Outputs alone are in no journal: they may be written twice.
        """
        if note.event < 0:
            self.publish(note)
            self._effect()
            return
        journal, ledger = self.world.journal, self.world.ledger
        known = journal.get(note.n)
        log = ledger.logs.setdefault(note.cluster, [])
        if known is None:
            journal[note.n] = known = (len(log), False)
            self._effect()
            if self.is_dead:
                return
        size, is_written = known
        if is_written:
            return
        if note.outputs:
            self.publish(note)
        if len(log) <= size:
            ledger.on_append(note.cluster, note.event, note.proc, note.count, note.n)
        self._effect()
        if not self.is_dead:
            journal[note.n] = (size, True)
            self._effect()

    def publish(self, note: Note) -> None:
        """The outputs of the attempt that counts, and of no other."""
        token = wire.Token(note.cluster, note.proc, note.attempt)
        ledger = self.world.ledger
        is_large = any(output.data is None for output in note.outputs)
        if is_large and token not in self.world.spool and (note.cluster, note.proc) not in ledger.lied_of:
            ledger.fail("I3", f"the outputs of {note.cluster}.{note.proc} attempt {note.attempt} are not in the spool")
        ledger.published.setdefault((note.cluster, note.proc), set()).add(note.attempt)

    def _tell_done(self, n: int) -> None:
        if not self.is_dead:
            self._in_hand.discard(n)
            self.master.put(t.Delivered([n]))

    def _tell_failed(self, note: Note) -> None:
        if note.n not in self._told:
            self._told.add(note.n)
            self._in_hand.discard(note.n)
            self.time.after(self.STEP_S, self.master.put, t.Undelivered(note.n, 13, "no permission"))
