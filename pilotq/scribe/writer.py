"""Writes the items of one lane: outputs, then the events, once each."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pilotq.core.records import Note
from pilotq.scribe.journal import Entry, Journal, Key
from pilotq.scribe.lanes import Item
from pilotq.scribe.logs import Log, complete, open_log
from pilotq.scribe.outputs import deliver
from pilotq.scribe.reading import Reader, Unreadable
from pilotq.scribe.trouble import Trouble

#: The text of a note's event for some of its procs: (note, first proc, count).
Text = Callable[[Note, int, int], bytes]


@dataclass
class Verdict:
    """What became of the items of a batch; those in none of the lists are to be tried again, because of `trouble`."""

    done: list[Item] = field(default_factory=list)
    failed: list[tuple[Item, Trouble]] = field(default_factory=list)
    rest: list[Item] = field(default_factory=list)
    trouble: Trouble | None = None


class Writer:
    """Used by all threads; never twice at a time for one lane."""

    def __init__(self, reader: Reader, journal: Journal, spool: Path, text: Text) -> None:
        self._reader = reader
        self._journal = journal
        self._spool = str(spool)
        self._text = text
        #: Items that an earlier run, or an attempt whose end was not seen, wrote or may have written.
        self._written: set[Key]
        self._doubts: dict[str, list[Entry]]
        self._written, self._doubts = journal.load()

    def write(self, lane: str, items: list[Item]) -> Verdict:
        """Write items in order, up to the first that must be tried again."""
        log = Log("", None)
        try:
            if lane.startswith("/"):
                self._clear_doubts(lane)
                log = open_log(lane)
            return self._write(log, items)
        except Trouble as trouble:
            return Verdict(rest=items, trouble=trouble)
        finally:
            log.close()

    def _clear_doubts(self, path: str) -> None:
        entries = self._doubts.get(path)
        if not entries:
            return
        try:
            is_there = complete(entries)
        except OSError as error:
            raise Trouble("log", path, error) from error
        if is_there:
            keys = [(entry.n, entry.proc) for entry in entries]
            self._written.update(keys)
            self._journal.settle(keys)
        del self._doubts[path]

    def _write(self, log: Log, items: list[Item]) -> Verdict:
        verdict = Verdict()
        notes = self._reader.notes([item.n for item in items])
        texts: list[tuple[int, int, bytes]] = []
        for index, item in enumerate(items):
            if (item.n, item.proc) in self._written or item.n not in notes:
                self._written.discard((item.n, item.proc))
                verdict.done.append(item)
                continue
            try:
                data = self._prepare(item, notes[item.n], has_log=log.descriptor is not None)
            except Trouble as trouble:
                if trouble.is_transient:
                    verdict.rest, verdict.trouble = items[index:], trouble
                    break
                verdict.failed.append((item, trouble))
                continue
            verdict.done.append(item)
            if data:
                texts.append((item.n, item.proc, data))
        if texts:
            self._append(log, texts, verdict)
        return verdict

    def _prepare(self, item: Item, note: Note | None, has_log: bool) -> bytes:
        """Bring the outputs home; the text for the log."""
        try:
            if note is None:
                raise Unreadable(f"note {item.n} is damaged in the store")
            if note.outputs:
                deliver(note, self._reader.places(item.cluster, item.proc), self._spool)
            return self._text(note, item.proc, item.count) if has_log and note.event >= 0 else b""
        except Unreadable as error:
            raise Trouble("note", f"of {item.cluster}.{item.proc}", OSError(errno.EBADMSG, str(error))) from error

    def _append(self, log: Log, texts: list[tuple[int, int, bytes]], verdict: Verdict) -> None:
        entries: list[Entry] = []
        try:
            entries = log.entries(texts)
            self._journal.intend(entries)
            log.append(entries)
        except OSError as error:
            if entries:
                self._doubts[log.path] = entries
            # Outputs of these are written again then, which does no harm.
            verdict.rest = verdict.done + verdict.rest
            verdict.done = []
            verdict.trouble = Trouble("log", log.path, error)
            return
        self._journal.settle((entry.n, entry.proc) for entry in entries)
