"""The query process when something goes wrong: bad questions, broken connections, a store it cannot read, its end."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from query_store import Asker, Builder, Shown, fill, query_process

from pilotq.model import State
from pilotq.query.reader import Reader
from pilotq.query.rows import Commons


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    where = tmp_path_factory.mktemp("query")
    fill(Builder(where / "queue.db"))
    with query_process(where / "queue.db", where) as (asker, _):
        yield asker


def value(ask: Asker, **question: Any) -> Any:
    return msgspec.msgpack.decode(ask.ask(question))


def test_usage_errors_are_one_reply(ask: Asker) -> None:
    shown = ask("condor_q", "-const", "JobStatus ==")
    assert (shown.out, shown.exit) == ("", 1)
    assert shown.err == "Error: Argument 2 (JobStatus ==) is not a valid constraint\n"
    shown = ask("condor_submit")
    assert (shown.out, shown.exit) == ("", 1)
    assert "does not answer condor_submit" in shown.err


def test_broken_questions_are_answered(ask: Asker) -> None:
    shown = Shown(ask.ask({"request": b"5:abc"}))
    assert (shown.out, shown.exit) == ("", 1)
    assert shown.err.count("\n") == 1
    assert "error" in value(ask, tasks=7)
    assert "error" in value(ask, select={"constraint": "1 ="})
    assert "error" in value(ask, clusters="x")


def test_connections_that_break_are_normal(ask: Asker) -> None:
    for sent in (b"", b"\x00", (1000).to_bytes(4, "big") + b"half", (1 << 31).to_bytes(4, "big")):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(ask.path)
            connection.sendall(sent)
    # More of them than there are threads, each left in the middle of a long answer.
    message = msgspec.msgpack.encode({"request": b"4:tool8:condor_q3:arg5:-long"})
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(ask.path)
            connection.sendall(len(message).to_bytes(4, "big") + message)
            connection.recv(4)
    assert ask("condor_q", "6", "-af", "ProcId").out == "0\n"


def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is not a database" * 100)
    for name in ("missing.db", "broken.db"):
        with query_process(tmp_path / name, tmp_path) as (asker, _):
            shown = asker("condor_q")
            assert (shown.out, shown.exit) == ("", 1)
            assert shown.err.startswith("condor_q: the queue cannot be read (")
            assert shown.err.count("\n") == 1
            assert "the queue cannot be read" in value(asker, select={"constraint": "true"})["error"]


def test_a_damaged_record_costs_one_task_its_facts(tmp_path: Path) -> None:
    queue = Builder(tmp_path / "q.db").cluster(1, 3)
    queue.task(1, 1, State.HELD)
    queue.task(1, 2, State.RUNNING, host="node1")
    queue.db.execute("update task set body = x'ff00' where first = 1")
    queue.db.commit()
    with query_process(tmp_path / "q.db", tmp_path) as (asker, _):
        shown = asker("condor_q", "-af", "JobStatus", "RemoteHost", "HoldReason")
        assert [line.split()[:2] for line in shown.lines] == [
            ["1", "undefined"],
            ["5", "undefined"],
            ["2", "slot1@node1"],
        ]
        assert "its record in the store is damaged" in shown.lines[1]


def test_socket_mode_and_end_with_the_master(tmp_path: Path) -> None:
    Builder(tmp_path / "q.db").cluster(1)
    with query_process(tmp_path / "q.db", tmp_path) as (asker, process):
        assert stat.S_IMODE(os.stat(asker.path).st_mode) == 0o600
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0
        assert not os.path.exists(asker.path)


def test_signals_are_the_masters_business(tmp_path: Path) -> None:
    Builder(tmp_path / "q.db").cluster(1)
    with query_process(tmp_path / "q.db", tmp_path) as (asker, process):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        asker.facts["master"]["endpoint"] = "*:9094"
        assert "-- Schedd: head.example : <head.example:9094?... @ " in asker("condor_q").out


def test_answers_are_of_one_moment_and_of_the_last_commit(tmp_path: Path) -> None:
    queue = Builder(tmp_path / "q.db").cluster(1, 2)
    with query_process(tmp_path / "q.db", tmp_path) as (asker, _):
        assert asker("condor_q", "-af", "JobStatus").lines == ["1", "1"]
        queue.task(1, 0, State.RUNNING, host="node1")
        assert asker("condor_q", "-af", "JobStatus").lines == ["2", "1"]
        # A transaction that is not committed is not seen, and does not block.
        queue.db.execute("delete from task")
        assert asker("condor_q", "-af", "JobStatus").lines == ["2", "1"]
        queue.db.rollback()
        queue.ended(1, 0, State.DONE)
        assert asker("condor_q", "-af", "ProcId").lines == ["1"]
        assert asker("condor_history", "-af", "ProcId").lines == ["0"]
        # A checkpoint that wants the whole log back is not held up by a reader that is through.
        assert queue.db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0


def test_it_cannot_write(tmp_path: Path) -> None:
    Builder(tmp_path / "q.db").cluster(1)
    reader = Reader(str(tmp_path / "q.db"), Commons())
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._db.execute("delete from cluster")
    reader.close()
