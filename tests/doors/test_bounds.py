"""What our own processes say to each other has a size, and it is looked at before anything is kept or unpacked."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from pilotq.errors import InternalError, UnavailableError
from pilotq.keeper import talk
from pilotq.query import server
from pilotq.query.client import PIECE_BYTES_MAX, QueryProcess
from pilotq.scribe import messages


def test_a_keeper_that_announces_too_much_is_as_good_as_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pipe: talk.Pipe[talk.Event] = talk.Pipe(ours, talk.events)
        theirs.sendall(talk.MESSAGE_BYTES_MAX.to_bytes(4, "little"))
        assert pipe.get() == [], "as much as it may"
        other, there = socket.socketpair()
        with other, there:
            pipe = talk.Pipe(other, talk.events)
            there.sendall((talk.MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"))
            assert pipe.get() is None


def test_a_scribe_that_announces_too_much_is_not_understood() -> None:
    assert messages.split(bytearray(messages.MESSAGE_BYTES_MAX.to_bytes(4, "big"))) == []
    with pytest.raises(InternalError, match="between master and scribe"):
        messages.split(bytearray((messages.MESSAGE_BYTES_MAX + 1).to_bytes(4, "big")))


async def test_a_piece_of_an_answer_has_a_bound(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write((PIECE_BYTES_MAX + 1).to_bytes(4, "big"))
        await writer.drain()
        await reader.read()
        writer.close()

    listener = await asyncio.start_unix_server(serve, str(tmp_path / "query.sock"))
    queries = QueryProcess(tmp_path / "queue.db", tmp_path / "query.sock")
    with pytest.raises(UnavailableError, match="broken answer"):
        async for _ in queries.ask({"tasks": {}}):
            pass
    await queries.close()
    listener.close()


def test_a_question_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((server.QUESTION_BYTES_MAX + 1).to_bytes(4, "big"))
        server.answer_one(ours, os.devnull, server.Commons())
        ours.close()
        assert theirs.recv(100) == b""
