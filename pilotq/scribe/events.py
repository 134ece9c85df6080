"""The text of a note's event, as it stands in the user log."""

from __future__ import annotations

import time

from pilotq.condor.userlog import IN_NODES_LOG, TERMINATED, format_event
from pilotq.condor.userlog_xml import format_xml_event
from pilotq.core.records import Note
from pilotq.scribe.reading import Reader, Unreadable


class EventTexts:
    """A `writer.Text`."""

    def __init__(self, reader: Reader, address: str) -> None:
        """`address`: host:port of the master."""
        self._reader = reader
        self._address = address
        self._second = (-1, "")

    def __call__(self, note: Note, first: int, count: int, is_copy: bool = False) -> bytes:
        """Raises: Unreadable."""
        if is_copy and note.event not in IN_NODES_LOG:
            return b""
        needs = self._reader.needs(note.cluster, first) if note.event == TERMINATED else None
        write = format_xml_event if not is_copy and self._reader.is_xml(note.cluster, first) else format_event
        try:
            texts = [
                write(
                    note.event,
                    note.cluster,
                    proc,
                    note.at,
                    note.facts,
                    address=self._address,
                    local=self._local,
                    needs=needs,
                )
                for proc in range(first, first + count)
            ]
        except KeyError:
            raise Unreadable(f"event {note.event} is not one of the user log") from None
        return "".join(texts).encode("utf-8", "replace")

    def _local(self, at: float) -> str:
        second, text = self._second
        if second != int(at):
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
            self._second = (int(at), text)
        return text
