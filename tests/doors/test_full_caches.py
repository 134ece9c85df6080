"""A full disk on a node or at a foreman: whoever needs a file is told that it may be had later."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotq import wire
from pilotq.model import Description, FileRef
from pilotq.mover import Cache, Fetcher
from pilotq.roles.files import CachingRelay, Stager

DATA = b"what a task needs"
DIGEST = hashlib.sha256(DATA).hexdigest()
CHUNK = wire.Chunk(DIGEST, 0, len(DATA), DATA)
TOKEN = wire.Token(1, 0, 1)


def leave_no_space(folder: Path) -> None:
    """What is written of the file meets the end of the disk."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (folder / f"{DIGEST}.part").symlink_to("/dev/full")


def test_a_piece_that_the_disk_does_not_take(tmp_path: Path) -> None:
    fetcher = Fetcher(Cache(tmp_path))
    leave_no_space(tmp_path)
    fetcher.want(DIGEST, len(DATA))
    assert len(list(fetcher.requests())) == 1
    done = fetcher.on_chunk(CHUNK)
    assert done == (DIGEST, "an input file cannot be kept: No space left on device", True)
    assert list(tmp_path.iterdir()) == []
    fetcher.want(DIGEST, len(DATA))
    assert len(list(fetcher.requests())) == 1
    assert fetcher.on_chunk(CHUNK) == (DIGEST, "", False), "there is space again"


def test_a_foreman_tells_its_workers_to_come_back(tmp_path: Path) -> None:
    asked: list[wire.Message] = []
    answers: list[tuple[bytes, Any]] = []
    relay = CachingRelay(tmp_path, asked.append, lambda session, message: answers.append((session, message)))
    leave_no_space(tmp_path)
    relay.on_get(b"w", wire.Get(DIGEST, 0))
    relay.on_chunk(CHUNK)
    assert answers == [(b"w", wire.Chunk(DIGEST, 0, wire.NOT_NOW, b""))]
    relay.on_get(b"w", wire.Get(DIGEST, 0))
    assert len(asked) == 2
    relay.on_chunk(CHUNK)
    assert answers[1:] == [(b"w", CHUNK)]


def test_a_worker_with_a_full_disk_lives_and_gives_its_tasks_back(tmp_path: Path) -> None:
    asked: list[wire.Message] = []
    ready: list[tuple[list[wire.Token], str, bool]] = []
    stager = Stager(tmp_path, asked.append, lambda *what: ready.append(what))
    leave_no_space(tmp_path)
    stager.keep({DIGEST: DATA})
    assert not stager.cache.has(DIGEST)
    body = msgspec.msgpack.encode(Description(["./x"], files=[FileRef("x", DIGEST, len(DATA), 0o755)]))
    leave_no_space(tmp_path)
    for chunk, reason, may_pass in (
        (CHUNK, "cannot be kept: No space left on device", True),
        (wire.Chunk(DIGEST, 0, wire.NOT_NOW, b""), "cannot be kept by the foreman", True),
        (wire.Chunk(DIGEST, 0, wire.NOT_KEPT, b""), "not kept on the head any more", False),
        (CHUNK, "", False),
    ):
        stager.stage([TOKEN], body, [b""])
        assert len(asked) == len(ready) + 1
        stager.on_chunk(chunk)
        token, said, later = ready[-1]
        assert (token, later) == ([TOKEN], may_pass) and said.endswith(reason)
    assert ready[-1][1] == ""
