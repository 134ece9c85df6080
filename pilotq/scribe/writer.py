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
from pilotq.scribe.outputs import Deliveries
from pilotq.scribe.reading import SHARED, Reader, Unreadable
from pilotq.scribe.trouble import Trouble

#: The text of a note's event for some of its procs: (note, first proc, count, for the log of a DAG).
Text = Callable[[Note, int, int, bool], bytes]


@dataclass
class Verdict:
    """What became of the items of a batch; those in none of the lists are to be tried again, because of `trouble`."""

    done: list[Item] = field(default_factory=list)
    failed: list[tuple[Item, Trouble]] = field(default_factory=list)
    #: To be tried again each on its own, so that they hold up nobody.
    apart: list[Item] = field(default_factory=list)
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
            return self._write(log, items, is_ordered=not lane.startswith(SHARED))
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

    def _write(self, log: Log, items: list[Item], is_ordered: bool) -> Verdict:
        verdict = Verdict()
        texts, troubles = self._prepare(items, is_ordered, has_log=log.descriptor is not None)
        if not troubles:
            verdict.done = items
        for index, item in enumerate(items if troubles else ()):
            trouble = troubles.get(item)
            if trouble is None:
                verdict.done.append(item)
            elif not trouble.is_transient:
                verdict.failed.append((item, trouble))
            elif is_ordered:
                verdict.rest, verdict.trouble = items[index:], trouble
                break
            else:
                verdict.apart.append(item)
        if texts:
            wanted = [(*item.key, text) for item in verdict.done if (text := texts.get(item))]
            if wanted:
                self._append(log, wanted, verdict)
        if self._written:
            self._written.difference_update(item.key for item in verdict.done)
        return verdict

    def _prepare(
        self, items: list[Item], is_ordered: bool, has_log: bool
    ) -> tuple[dict[Item, bytes], dict[Item, Trouble]]:
        """Bring all outputs home. Returns: the texts for the log; and what cannot be written."""
        notes = self._reader.notes(list({item.block: None for item in items}))
        texts: dict[Item, bytes] = {}
        outputs = Deliveries(self._spool)
        troubles = outputs.troubles
        for item in items:
            is_gone = item.n not in notes and item.block not in notes
            if is_gone or item.key in self._written:
                continue
            note = notes.get(item.n)
            try:
                if note is None:
                    raise Unreadable(f"note {item.n} is damaged in the store")
                if note.outputs and not item.is_copy:
                    outputs.add(item, note, self._reader.places(item.cluster, item.proc))
                    if is_ordered and item in troubles and troubles[item].is_transient:
                        break
                if has_log and note.event >= 0:
                    texts[item] = self._text(note, item.proc, item.count, item.is_copy)
            except Unreadable as error:
                damage = OSError(errno.EBADMSG, str(error))
                troubles[item] = Trouble("note", f"of {item.cluster}.{item.proc}", damage)
        outputs.settle()
        return texts, troubles

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
