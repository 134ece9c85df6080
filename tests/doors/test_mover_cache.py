"""Copies on nodes, and fetching them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotq import wire
from pilotq.errors import PeerError
from pilotq.mover import BlobStore, Cache, Fetcher

CHUNK = wire.CHUNK_BYTES


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Head:
    """Answers requests from a blob store."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder)

    def keep(self, data: bytes) -> str:
        async def stream() -> AsyncIterator[bytes]:
            yield data

        return asyncio.run(self.blobs.put(stream()))[0]

    def answer(self, get: wire.Get) -> wire.Chunk:
        return wire.Chunk(get.digest, get.offset, *self.blobs.read(get.digest, get.offset, get.length))


@pytest.fixture
def head(tmp_path: Path) -> Head:
    return Head(tmp_path / "head")


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(Cache(tmp_path / "cache"), window=4)


def content(fetcher: Fetcher, name: str) -> bytes:
    path = fetcher.cache.folder / name
    assert path.stat().st_mode & 0o777 == 0o400
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 17])
@pytest.mark.parametrize("is_size_known", [True, False])
def test_a_file_comes_piece_by_piece_within_the_window(
    head: Head, fetcher: Fetcher, size: int, is_size_known: bool
) -> None:
    data = os.urandom(size)
    name = head.keep(data)
    fetcher.want(name, size if is_size_known else -1)
    fetcher.want(name)
    under_way = list(fetcher.requests())
    asked, done = len(under_way), None
    while under_way:
        assert len(under_way) <= 4 and done is None
        done = fetcher.on_chunk(head.answer(under_way.pop(0)))
        fresh = list(fetcher.requests())
        asked += len(fresh)
        under_way += fresh
    assert done == (name, "", False)
    assert asked == max(1, -(-size // CHUNK))
    assert fetcher.cache.has(name) and content(fetcher, name) == data
    fetcher.want(name)
    assert list(fetcher.requests()) == []


def test_pieces_may_come_in_any_order(head: Head, fetcher: Fetcher) -> None:
    files = [os.urandom(7 * CHUNK + 5), os.urandom(3), os.urandom(2 * CHUNK)]
    wanted = {head.keep(data): data for data in files}
    for name, data in wanted.items():
        fetcher.want(name, len(data))
    chance, done = random.Random(3), []
    under_way = list(fetcher.requests())
    while under_way:
        result = fetcher.on_chunk(head.answer(under_way.pop(chance.randrange(len(under_way)))))
        done += [result] if result else []
        under_way += list(fetcher.requests())
    assert sorted(done) == sorted((name, "", False) for name in wanted)
    assert all(content(fetcher, name) == data for name, data in wanted.items())


def test_a_lost_session_costs_only_what_was_under_way(head: Head, fetcher: Fetcher) -> None:
    data = os.urandom(10 * CHUNK)
    name = head.keep(data)
    fetcher.want(name, len(data))
    lost = list(fetcher.requests())
    for get in lost[:2]:
        fetcher.on_chunk(head.answer(get))
    fetcher.restart()
    asked, done = [], None
    under_way = list(fetcher.requests())
    # An answer of the old session that comes after all is not asked for twice, nor counted twice.
    fetcher.on_chunk(head.answer(lost[3]))
    while under_way:
        get = under_way.pop(0)
        asked.append(get.offset)
        done = fetcher.on_chunk(head.answer(get)) or done
        under_way += list(fetcher.requests())
    assert sorted(asked) == [offset * CHUNK for offset in range(2, 10)]
    assert done == (name, "", False) and content(fetcher, name) == data


def test_a_file_that_is_not_kept_is_said_to_be(fetcher: Fetcher) -> None:
    fetcher.want("0" * 64)
    (get,) = fetcher.requests()
    result = fetcher.on_chunk(wire.Chunk(get.digest, 0, -1, b""))
    assert result is not None and "not kept" in result[1]
    assert list(fetcher.requests()) == [] and list(fetcher.cache.folder.iterdir()) == []
    fetcher.want("0" * 64)
    assert len(list(fetcher.requests())) == 1


@pytest.mark.parametrize("chunk", [(0, 5, b"wrong"), (0, 6, b"words"), (0, 4, b"word")])
def test_a_file_that_comes_damaged_is_not_kept(fetcher: Fetcher, chunk: tuple[int, int, bytes]) -> None:
    name = digest(b"words")
    fetcher.want(name, 5)
    assert len(list(fetcher.requests())) == 1
    result = fetcher.on_chunk(wire.Chunk(name, *chunk))
    assert result is not None and result[0] == name and result[1]
    assert not fetcher.cache.has(name) and list(fetcher.cache.folder.iterdir()) == []


def test_what_nobody_asked_for_is_ignored(fetcher: Fetcher) -> None:
    assert fetcher.on_chunk(wire.Chunk(digest(b"x"), 0, 1, b"x")) is None
    assert fetcher.on_chunk(wire.Chunk("../x", 0, 1, b"x")) is None
    fetcher.want(digest(b"words"), 5)
    assert fetcher.on_chunk(wire.Chunk(digest(b"words"), 0, 5, b"words")) is None
    with pytest.raises(PeerError):
        fetcher.want("../x")
    assert list(fetcher.cache.folder.iterdir()) == []


def test_a_cache_knows_its_files_after_a_restart_but_no_parts(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep(digest(b"whole"), b"whole")
    cache.keep(digest(b"whole"), b"not looked at any more")
    cache.write(digest(b"half"), 0, b"ha")
    (tmp_path / "stranger").write_text("")
    cache = Cache(tmp_path)
    assert cache.has(digest(b"whole")) and not cache.has(digest(b"half"))
    assert sorted(os.listdir(tmp_path)) == sorted([digest(b"whole"), "stranger"])
    assert cache.read(digest(b"whole"), 1, 3) == (5, b"hol")
    assert cache.read(digest(b"half"), 0, 3) == cache.read("../stranger", 0, 3) == (-1, b"")
    cache.drop(digest(b"whole"))
    assert not cache.has(digest(b"whole")) and os.listdir(tmp_path) == ["stranger"]


def test_a_small_file_with_another_content_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(PeerError):
        cache.keep(digest(b"words"), b"others")
    assert not cache.has(digest(b"words")) and os.listdir(tmp_path) == []


def test_a_cache_that_is_too_large_loses_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    files = [digest(word) for word in (b"aaaa", b"bbbb", b"cccc", b"dddd")]
    for word in (b"aaaa", b"bbbb", b"cccc", b"dddd"):
        cache.keep(digest(word), word)
    assert cache.has(files[0])
    cache.trim(16)
    assert all(cache.has(name) for name in files)
    cache.has(files[0])
    cache.trim(9, in_use={files[1]})
    assert [cache.has(name) for name in files] == [True, True, False, False]
