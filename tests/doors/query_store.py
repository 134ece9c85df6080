"""Builds a store file from schema.sql, and asks the real query process about it."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from store_data import in_blocks

import pilotq
from pilotq.condor.request import read_fields, write_fields
from pilotq.core.records import Record, TaskRows, TasksLeft
from pilotq.model import PROC_MARK, ClusterBody, Facts, HoldCode, Outcome, Resources, State, Usage
from pilotq.store import checksum
from pilotq.store.blocks import Ledger
from pilotq.store.writing import Rows

SCHEMA = Path(pilotq.__file__).parent / "store" / "schema.sql"
QUEUED_AT = 1_700_000_000.0
DESCRIPTION = msgspec.msgpack.encode({"needs": Resources(cpus=2, memory_bytes=1 << 30)})
GRID = {"JobUniverse": "9", "GridResource": '"condor ce1 ce1:9619"'}


def body(owner: str = "alice", cmd: str = "/home/alice/agent.sh", **fields: Any) -> ClusterBody:
    ad = {"Cmd": f'"{cmd}"', "Arguments": '"a b"', "RequestCpus": "1", "RequestMemory": "128"}
    ad |= fields.pop("ad", {})
    return ClusterBody(owner=owner, iwd="/home/alice", ad=ad, submitted_at=QUEUED_AT, **fields)


class Builder:
    """Writes the rows that the store would write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = sqlite3.connect(path)
        self.db.execute("pragma journal_mode=wal")
        self.db.execute("pragma synchronous=off")
        self.db.executescript(SCHEMA.read_text())
        self._ledger = Ledger()

    def cluster(
        self,
        number: int,
        count: int = 1,
        of: ClusterBody | None = None,
        *,
        state: State = State.IDLE,
        deltas: list[dict[str, Any]] | None = None,
        block: int = 3,
        live: bool = True,
    ) -> Builder:
        made = of or body()
        row = {
            "cluster": number,
            "owner": made.owner,
            "key": f"key{number}",
            "count": count,
            "priority": made.priority,
            "submitted_at": float(made.submitted_at),
            "state": int(state),
            "since": 0,
            "body": msgspec.msgpack.encode(made),
        }
        self._insert(
            "cluster",
            **row,
            live=int(live),
            crc=checksum(row.values()),
            description=DESCRIPTION,
            description_crc=zlib.crc32(DESCRIPTION),
        )
        encoded = [msgspec.msgpack.encode(delta) for delta in deltas or []]
        for first in range(0, len(encoded), block):
            (packed,) = in_blocks(encoded[first : first + block])
            self._insert("delta", cluster=number, first=first, deltas=packed, crc=zlib.crc32(packed))
        self.db.commit()
        return self

    def task(self, cluster: int, proc: int, state: State, attempt: int = 1, **facts: Any) -> Builder:
        return self.write(TaskRows(cluster, [proc], [int(state)], [attempt], [Facts(**facts)]))

    def ended(self, cluster: int, proc: int, state: State = State.DONE, attempt: int = 1, **facts: Any) -> Builder:
        return self.write(TasksLeft(cluster, [proc], [int(state)], [attempt], [Facts(**facts)], QUEUED_AT + 100))

    def write(self, *records: Record) -> Builder:
        rows = Rows(self._ledger)
        for record in records:
            rows.take(record)
        rows.write(self.db)
        self.db.commit()
        return self

    def _insert(self, table: str, **row: Any) -> None:
        marks = ", ".join("?" * len(row))
        self.db.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", list(row.values()))


def fill(queue: Builder) -> None:
    """A queue with something of everything.

    1: ten procs of alice: 0 running, 1 suspended, 2 assigned, 3 held, 4 staging out, 5 done and 6 cancelled and left,
    7 done but kept, 8 and 9 never touched. 2: bob's, five untouched. 3: three procs with deltas, one of them running.
    4: held since it was submitted. 5: all gone. 6: one grid job.
    """
    started = {"starts": 1, "host": "node1", "first_started_at": QUEUED_AT + 50, "last_started_at": QUEUED_AT + 50}
    gone = {**started, "ended_at": QUEUED_AT + 100, "entered_at": QUEUED_AT + 100, "wall_s": 50.0}
    gone["usage"] = Usage(wall_s=50.0, memory_bytes=10 << 20)
    queue.cluster(1, 10, body(ad={"Out": f'"out.{PROC_MARK}"'}))
    queue.task(1, 0, State.RUNNING, **started)
    queue.task(1, 1, State.SUSPENDED, **started)
    queue.task(1, 2, State.ASSIGNED)
    queue.task(1, 3, State.HELD, hold_code=HoldCode.INPUT_FILE, hold_subcode=2, reason="no such file: x")
    queue.task(1, 4, State.STAGING_OUT, outcome=int(Outcome.OK), **gone)
    queue.ended(1, 5, State.DONE, outcome=int(Outcome.EXIT), code=3, **gone)
    queue.ended(1, 6, State.CANCELLED, reason="via condor_rm (by user alice)")
    queue.task(1, 7, State.DONE, outcome=int(Outcome.SIGNAL), code=9, **gone)
    queue.cluster(2, 5, body("bob"))
    queue.cluster(3, 3, body(), deltas=[{"ad": {"Color": f'"c{proc}"'}, "argv": ["x"]} for proc in range(3)], block=2)
    queue.task(3, 2, State.RUNNING, **started)
    queue.cluster(4, 2, body(hold_reason="submitted on hold at user's request"), state=State.HELD)
    queue.cluster(5, 2, body(batch_name="old"), live=False)
    queue.ended(5, 1, State.DONE, outcome=int(Outcome.OK), **gone)
    queue.ended(5, 0, State.DONE, outcome=int(Outcome.OK), **gone)
    queue.cluster(6, 1, body(ad=GRID))


class Shown:
    """What a shim would print and exit with."""

    def __init__(self, fields: bytes) -> None:
        values = read_fields(fields)
        pairs = list(zip(values[::2], values[1::2], strict=True))
        self.out = b"".join(value for name, value in pairs if name == b"out").decode("utf-8", "surrogateescape")
        self.err = b"".join(value for name, value in pairs if name == b"err").decode()
        self.exit = int(pairs[-1][1])
        assert pairs[-1][0] == b"exit"

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Asker:
    """Speaks to a query process as the master does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.facts: dict[str, Any] = {
            "schedd_name": "head.example",
            "master": {"pid": 1, "endpoint": "10.0.0.1:9094"},
            "workers": [],
            "uptime_s": 1.0,
        }

    def pieces(self, question: dict[str, Any]) -> list[bytes]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.path)
            message = msgspec.msgpack.encode({**question, "facts": self.facts})
            connection.sendall(len(message).to_bytes(4, "big") + message)
            stream = connection.makefile("rb")
            found = []
            while size := int.from_bytes(stream.read(4), "big"):
                found.append(stream.read(size))
            assert stream.read() == b""
            return found

    def ask(self, question: dict[str, Any]) -> bytes:
        return b"".join(self.pieces(question))

    def shim(
        self, *words: str, user: str = "alice", env: dict[str, str] | None = None, file: str | None = None, **more: str
    ) -> Shown:
        """`file`: what the shim read in the file "F"."""
        pairs = [("tool", words[0]), ("key", "0" * 32), ("cwd", "/tmp"), ("user", user), ("uid", "1000")]
        pairs += list(more.items())
        pairs += [("arg", word) for word in words[1:]]
        pairs += [("env", f"{name}={value}") for name, value in (env or {}).items()]
        fields = [part.encode("utf-8", "surrogateescape") for pair in pairs for part in pair]
        if file is not None:
            fields += [b"have", write_fields([b"read", b"F", b"ok", file.encode()])]
        return Shown(self.ask({"request": write_fields(fields)}))

    def __call__(self, *words: str, **more: Any) -> Shown:
        return self.shim(*words, **more)


@contextlib.contextmanager
def query_process(db: Path, where: Path) -> Iterator[tuple[Asker, subprocess.Popen[bytes]]]:
    path = where / "query.sock"
    words = [sys.executable, "-m", "pilotq.query", "--db", str(db), "--socket", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"ready\n"
        try:
            yield Asker(str(path)), process
        finally:
            process.stdin.close()
            process.wait(10)
