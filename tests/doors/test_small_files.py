"""Small files of single tasks travel with their assignment, and never touch the disk of a node but in a sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from pilotq import wire
from pilotq.core import turn as t
from pilotq.model import Description, FileRef
from pilotq.mover import BlobStore
from pilotq.roles.files import ASSIGN_BYTES_MAX, TASK_INLINE_BYTES_MAX, Stager, assignments
from pilotq.sandbox.files import exhaust, stage

pack = msgspec.msgpack.encode
SMALL = wire.INLINE_BYTES_MAX


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ref(name: str, data: bytes) -> FileRef:
    return FileRef(name, digest(data), len(data), 0o640)


def delta(**files: bytes) -> bytes:
    return pack({"files": [ref(name, data) for name, data in files.items()]})


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "head")


def keep(blobs: BlobStore, *files: bytes) -> None:
    asyncio.run(blobs.put_small(list(files)))


def assign(blobs: BlobStore, deltas: list[bytes]) -> list[wire.Assign]:
    procs = list(range(len(deltas)))
    action = t.SendAssign(t.Route(b"p", b"s"), 7, procs, [1] * len(deltas), True)
    found = [wire.unpack(payload) for payload in assignments(blobs, action, deltas)]
    assert all(isinstance(message, wire.Assign) for message in found)
    return found  # type: ignore[return-value]


def test_each_task_comes_with_its_files_in_messages_of_bounded_size(blobs: BlobStore) -> None:
    own = [os.urandom(SMALL) for _ in range(90)]
    keep(blobs, b"of all", *own)
    found = assign(blobs, [delta(shared=b"of all", own=data) for data in own])
    assert [proc for message in found for proc in message.procs] == list(range(90))
    assert len(found) == 3 and all(len(wire.pack(message)) <= ASSIGN_BYTES_MAX + 1000 for message in found)
    for message in found:
        assert len(message.deltas) == len(message.attempts) == len(message.procs)
        assert set(message.inline.values()) == {b"of all", *(own[proc] for proc in message.procs)}


def test_what_is_large_or_much_or_not_there_is_left_to_be_asked_for(blobs: BlobStore) -> None:
    many = [os.urandom(SMALL) for _ in range(20)]
    large = os.urandom(SMALL + 1)
    keep(blobs, *many, large)
    keep(blobs, b"words")
    (message,) = assign(blobs, [delta(a=large, b=b"words", c=b"never kept")])
    assert message.inline == {digest(b"words"): b"words"}
    (message,) = assign(blobs, [delta(**{f"f{number}": data for number, data in enumerate(many)})])
    assert sum(map(len, message.inline.values())) == TASK_INLINE_BYTES_MAX
    assert assign(blobs, [pack({"argv": ["files"]})])[0].inline == {}
    assert assign(blobs, []) == []


def test_they_reach_the_sandbox_without_the_cache(tmp_path: Path) -> None:
    asked: list[wire.Message] = []
    ready: list[wire.Token] = []
    stager = Stager(tmp_path / "cache", asked.append, lambda tokens, reason, may_pass: ready.extend(tokens))
    tokens = [wire.Token(7, proc, 1) for proc in range(3)]
    files = [b"zero", b"one", b"two"]
    inline = {digest(data): data for data in files} | {digest(b"two"): b"damaged on its way"}
    body = pack(Description(["./x"]))
    stager.stage(tokens, body, [delta(own=data, more=b"zero") for data in files], inline)
    # The damaged one is asked for.
    assert ready == tokens[:2] and asked == [wire.Get(digest(b"two"), 0)]
    assert list((tmp_path / "cache").iterdir()) == []
    assert stager.inline(tokens[1]) == {digest(b"one"): b"one", digest(b"zero"): b"zero"}
    stager.on_chunk(wire.Chunk(digest(b"two"), 0, 3, b"two"))
    assert ready == tokens and [path.name for path in (tmp_path / "cache").iterdir()] == [digest(b"two")]
    for token, data in zip(tokens, files, strict=True):
        sandbox = tmp_path / str(token.proc)
        sandbox.mkdir()
        refs = [ref("own", data), ref("sub/more", b"zero")]
        exhaust(stage(str(sandbox), str(tmp_path / "cache"), refs, ["own"], stager.inline(token) or {}))
        assert (sandbox / "own").read_bytes() == data and (sandbox / "sub" / "more").read_bytes() == b"zero"
        assert (sandbox / "own").stat().st_mode & 0o777 == 0o755
        stager.started(token)
        assert stager.inline(token) is None
        stager.forget(token)


def test_a_worker_of_many_files_asks_for_each_once_and_forgets_who_left(tmp_path: Path) -> None:
    asked: list[wire.Get] = []
    ready: list[wire.Token] = []
    stager = Stager(tmp_path, asked.append, lambda tokens, reason, may_pass: ready.extend(tokens))  # type: ignore[arg-type]
    files = [b"file %d" % number for number in range(100)]
    tokens = [wire.Token(7, proc, 1) for proc in range(50)]
    deltas = [delta(a=files[2 * proc], b=files[2 * proc + 1], all=b"of all") for proc in range(50)]
    stager.stage(tokens, pack(Description(["./x"])), deltas)
    for token in tokens[::2]:
        stager.forget(token)
    seen = 0
    while seen < len(asked):
        get = asked[seen]
        (data,) = [data for data in [*files, b"of all"] if digest(data) == get.digest]
        stager.on_chunk(wire.Chunk(get.digest, 0, len(data), data))
        seen += 1
        assert len(asked) - seen <= 16
    assert sorted(ready) == tokens[1::2]
    assert len({get.digest for get in asked}) == len(asked) == 101
