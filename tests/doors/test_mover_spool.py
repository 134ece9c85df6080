"""Outputs on the head."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pilotq import wire
from pilotq.model import STDOUT, OutputFile
from pilotq.mover import Pulling, Spool

CHUNK = wire.CHUNK_BYTES
TOKEN = wire.Token(7, 3, 2)


class Worker:
    """Answers pulls from what an attempt left."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    def outputs(self) -> list[OutputFile]:
        return [OutputFile(name, len(data), 0o644) for name, data in self.files.items()]

    def answer(self, pull: wire.Pull) -> wire.Data:
        data = self.files[pull.name][pull.offset : pull.offset + pull.length]
        return wire.Data(pull.token, pull.name, pull.offset, data)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def content(spool: Spool) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in spool.path(TOKEN).iterdir()}


def test_outputs_are_pulled_within_a_window(spool: Spool) -> None:
    worker = Worker(a=os.urandom(5 * CHUNK + 9), b=os.urandom(CHUNK), c=b"x")
    pulling = Pulling(spool, TOKEN, worker.outputs(), 3)
    chance, result = random.Random(5), None
    under_way = list(pulling.requests())
    while under_way:
        assert len(under_way) <= 3 and result is None
        result = pulling.on_data(worker.answer(under_way.pop(chance.randrange(len(under_way)))))
        under_way += list(pulling.requests())
    assert result == "" and pulling.is_whole
    pulling.sync()
    assert spool.path(TOKEN) == spool.folder / "7.3.2"
    assert content(spool) == {"0": worker.files["a"], "1": worker.files["b"], "2": b"x"}
    spool.discard(TOKEN)
    spool.discard(TOKEN)
    assert list(spool.folder.iterdir()) == []


def test_only_what_has_no_data_is_pulled_and_keeps_its_place(spool: Spool) -> None:
    outputs = [OutputFile(STDOUT, 3, 0o644, b"abc"), OutputFile("empty", 0, 0o644), OutputFile("big", 4, 0o644)]
    pulling = Pulling(spool, TOKEN, outputs)
    assert list(pulling.requests()) == [wire.Pull(TOKEN, "big", 0)]
    assert pulling.on_data(wire.Data(TOKEN, "big", 0, b"1234")) == ""
    assert content(spool) == {"2": b"1234"}
    nothing = Pulling(spool, TOKEN, outputs[:2])
    assert nothing.is_whole and list(nothing.requests()) == []
    assert content(spool) == {}


def test_a_new_way_to_the_worker_goes_on_where_the_old_one_ended(spool: Spool) -> None:
    worker = Worker(a=os.urandom(6 * CHUNK))
    pulling = Pulling(spool, TOKEN, worker.outputs(), 5)
    lost = list(pulling.requests())
    pulling.on_data(worker.answer(lost[1]))
    pulling.restart()
    asked = [pull.offset // CHUNK for pull in pulling.requests()]
    assert sorted(asked) == [0, 2, 3, 4, 5]
    results = [pulling.on_data(worker.answer(wire.Pull(TOKEN, "a", offset * CHUNK))) for offset in asked]
    assert results == [None] * 4 + [""]
    assert content(spool) == {"0": worker.files["a"]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wire.Data(TOKEN, "a", 0, b"", missing=True), "not on the worker"),
        (wire.Data(TOKEN, "a", 0, b"123456"), "another size"),
        (wire.Data(TOKEN, "a", 0, b"1234"), "another size"),
    ],
)
def test_a_worker_that_does_not_keep_its_word_is_told_apart(spool: Spool, data: wire.Data, reason: str) -> None:
    pulling = Pulling(spool, TOKEN, [OutputFile("a", 5, 0o644)])
    assert len(list(pulling.requests())) == 1
    result = pulling.on_data(data)
    assert result is not None and reason in result


def test_what_was_not_asked_for_is_ignored(spool: Spool) -> None:
    pulling = Pulling(spool, TOKEN, [OutputFile("a", 5, 0o644)])
    for data in (
        wire.Data(TOKEN, "a", 0, b"12345"),
        wire.Data(TOKEN, "b", 0, b"12345"),
        wire.Data(TOKEN, "../a", 0, b"12345"),
    ):
        assert pulling.on_data(data) is None
    assert content(spool) == {}


def test_a_pull_of_an_earlier_master_is_begun_anew(spool: Spool) -> None:
    old = Pulling(spool, TOKEN, [OutputFile("a", 9, 0o644)])
    list(old.requests())
    old.on_data(wire.Data(TOKEN, "a", 0, b"123456789"))
    new = Pulling(spool, TOKEN, [OutputFile("a", 5, 0o644)])
    list(new.requests())
    assert new.on_data(wire.Data(TOKEN, "a", 0, b"abcde")) == ""
    assert content(spool) == {"0": b"abcde"}


def test_at_the_start_only_what_a_note_waits_for_is_kept(spool: Spool) -> None:
    for token in (TOKEN, wire.Token(7, 3, 1), wire.Token(8, 0, 1)):
        Pulling(spool, token, [])
    (spool.folder / "note.txt").write_text("of the operator")
    spool.sweep({TOKEN})
    assert sorted(os.listdir(spool.folder)) == ["7.3.2", "note.txt"]
