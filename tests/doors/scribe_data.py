"""A store with notes in it, and a scribe's parts around it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from store_data import in_blocks

from pilotq.core.records import ClusterAdded, Note, NotesAdded, NotesDone
from pilotq.model import ClusterBody, Description, Facts, OutputFile
from pilotq.scribe.desk import Desk
from pilotq.scribe.events import EventTexts
from pilotq.scribe.journal import Journal
from pilotq.scribe.lanes import Item
from pilotq.scribe.messages import Done, Failed, FromScribe
from pilotq.scribe.reading import Reader
from pilotq.scribe.writer import Verdict, Writer
from pilotq.store.sqlite import SqliteStore

pack = msgspec.msgpack.encode
Text = Callable[..., bytes]


def plain(note: Note, first: int, count: int, is_copy: bool = False) -> bytes:
    """An event in two lines, so that the tests can read it."""
    return b"".join(b"%03d (%d.%d)\n...\n" % (note.event, note.cluster, proc) for proc in range(first, first + count))


class House:
    """`user`: the directory of the user; `state`: that of the master."""

    def __init__(self, path: Path) -> None:
        self.user, self.state = path / "user", path / "state"
        self.user.mkdir()
        self.spool = self.state / "spool"
        self.store = SqliteStore(1 << 20)
        self.store.open(self.state / "queue.db")
        self.spool.mkdir()
        self._clusters = self._notes = 0

    def cluster(self, count: int = 1, deltas: list[bytes] | None = None, **body: object) -> int:
        self._clusters += 1
        values: dict[str, object] = {"owner": "alice", "iwd": str(self.user), **body}
        packed = pack(ClusterBody(**values))  # type: ignore[arg-type]
        description = pack(Description(argv=["x"]))
        new = ClusterAdded(self._clusters, "alice", "", count, 0, 1.0, packed, description, in_blocks(deltas or []), [])
        self.store.commit([new])
        return self._clusters

    def note(
        self, cluster: int, proc: int = 0, event: int = 5, *, count: int = 1, outputs: list[OutputFile] | None = None
    ) -> int:
        """Commit a note; its number."""
        self._notes += 1
        final = bool(outputs) or event in (5, -1)
        facts = Facts(outcome=0, host="n1")
        new = Note(self._notes, event, cluster, proc, count, 1700000000.0, facts, outputs or [], 1, final)
        self.store.commit([NotesAdded([new])])
        return self._notes

    def done(self, ns: list[int]) -> None:
        """What the master does when it is told."""
        self.store.commit([NotesDone(ns)])

    def pulled(self, cluster: int, proc: int, index: int, data: bytes) -> None:
        folder = self.spool / f"{cluster}.{proc}.1"
        folder.mkdir(exist_ok=True)
        (folder / str(index)).write_bytes(data)

    def writer(self, text: Text = plain) -> Writer:
        queue = self.state / "queue.db"
        return Writer(Reader(queue), Journal(self.state / "scribe.db", queue), self.spool, text)

    def items(self) -> dict[str, list[Item]]:
        """Everything in the outbox, by lane."""
        reader, found = Reader(self.state / "queue.db"), {}
        for block in reader.blocks(0, 100_000):
            for key, items in reader.items(block).items():
                found.setdefault(key, []).extend(items)
        return found

    def write(self, text: Text = plain) -> Verdict:
        """Have one lane written by a new scribe."""
        ((key, items),) = self.items().items()
        return self.writer(text).write(key, items)


class Office:
    """A desk whose messages can be waited for."""

    def __init__(self, house: House, patience_s: float = 600.0) -> None:
        self.done: list[int] = []
        self.failed: list[Failed] = []
        #: Messages that said what is done.
        self.told = 0
        self._changed = threading.Condition()
        reader = Reader(house.state / "queue.db")
        journal = Journal(house.state / "scribe.db", house.state / "queue.db")
        writer = Writer(reader, journal, house.spool, EventTexts(reader, "head:9094"))
        self.desk = Desk(reader, writer, self._post, lambda: None, patience_s)

    def _post(self, message: FromScribe) -> None:
        with self._changed:
            if isinstance(message, Done):
                self.done += message.ns
                self.told += 1
            else:
                self.failed.append(message)
            self._changed.notify_all()

    def wait(self, done: int = 0, failed: int = 0, timeout_s: float = 20.0) -> None:
        with self._changed:
            is_so = self._changed.wait_for(lambda: len(self.done) >= done and len(self.failed) >= failed, timeout_s)
        assert is_so, (self.done, self.failed)
