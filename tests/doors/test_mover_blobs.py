"""The kept files of the head."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pilotq import wire
from pilotq.errors import UnavailableError, UserError
from pilotq.mover import BlobStore

OLD = 1_000_000_000


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(folder: Path) -> list[str]:
    """Files with a name of their own."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("small.db")]
    return sorted(str(path.relative_to(folder)) for path in paths)


async def test_a_file_is_kept_under_its_content_once(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    data = os.urandom(700_000)
    name = digest(data)
    assert not blobs.has(name)
    assert await blobs.put(stream(data[:300_000], b"", data[300_000:])) == (name, len(data))
    assert await blobs.put(stream(data)) == (name, len(data))
    assert blobs.has(name)
    assert names(blobs.folder) == [f"{name[:2]}/{name}"]
    assert blobs.path(name).stat().st_mode & 0o777 == 0o400
    assert blobs.folder.stat().st_mode & 0o777 == blobs.path(name).parent.stat().st_mode & 0o777 == 0o700
    assert blobs.read(name, 0, 10) == (700_000, data[:10])
    assert blobs.read(name, 699_999, 10) == (700_000, data[-1:])
    assert blobs.read(name, 800_000, 10) == (700_000, b"")


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    name, size = await blobs.put(stream())
    assert (name, size) == (digest(b""), 0)
    assert blobs.read(name, 0, 10) == (0, b"")


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "0" * 64, "G" * 64, "0" * 64 + "\n"])
def test_what_is_not_kept_has_no_size(tmp_path: Path, name: str) -> None:
    assert BlobStore(tmp_path).read(name, 0, 10) == (-1, b"")


async def test_many_at_once(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    data = [b"%d" % (number % 5) for number in range(40)]
    found = await asyncio.gather(*(blobs.put(stream(one)) for one in data))
    assert found == [(digest(one), 1) for one in data]
    assert len(names(tmp_path)) == 5


async def test_nothing_is_left_of_an_upload_that_breaks_off(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"words"
        raise ConnectionResetError

    blobs = BlobStore(tmp_path)
    with pytest.raises(UnavailableError):
        await blobs.put(broken())
    assert names(tmp_path) == []
    (tmp_path / "put-7").write_text("of a master that was killed")
    BlobStore(tmp_path)
    assert names(tmp_path) == []


def test_files_of_this_host_are_kept_too(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    (tmp_path / "wrapper").write_bytes(b"#!/bin/sh\n")
    assert blobs.keep(tmp_path / "wrapper") == (digest(b"#!/bin/sh\n"), 10)
    with pytest.raises(UserError, match="No such file"):
        blobs.keep(tmp_path / "missing")


async def test_the_sweep_spares_what_is_needed_or_young(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    kept, old, young, again = [(await blobs.put(stream(word)))[0] for word in (b"kept", b"old", b"young", b"again")]
    for name in (kept, old, again):
        os.utime(blobs.path(name), (OLD, OLD))
    await blobs.put(stream(b"again"))
    assert blobs.sweep({kept}, 3600) == 1
    assert [blobs.has(name) for name in (kept, old, young, again)] == [True, False, True, True]


def test_what_was_told_survives_a_kill(tmp_path: Path) -> None:
    """A child keeps files and tells their digests; whenever it is killed, all it told are there and whole."""
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                blobs = BlobStore(tmp_path)
                for number in range(10_000):
                    name, _ = asyncio.run(blobs.put(stream(b"%d %f" % (number, time.time()))))
                    os.write(writer, name.encode())
            finally:
                os._exit(1)
        os.close(writer)
        told = b""
        while len(told) < 64 * 10:
            told += os.read(reader, 64)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reader, 1 << 16):
            told += more
        os.close(reader)
        blobs = BlobStore(tmp_path)
        for start in range(0, len(told), 64):
            name = told[start : start + 64].decode()
            size, data = blobs.read(name, 0, 1000)
            assert size > 0 and digest(data) == name
        assert not list(tmp_path.glob("put-*"))


# ---- small files, many at once


async def test_small_files_are_kept_together_and_read_like_any_other(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    files = [b"", b"one", os.urandom(32 << 10), b"one"]
    assert await blobs.put_small(files) == [(digest(data), len(data)) for data in files]
    assert names(tmp_path) == []
    for data in files:
        name = digest(data)
        assert blobs.has(name)
        assert blobs.read(name, 0, 1 << 20) == (len(data), data)
        assert blobs.read(name, 2, 5) == (len(data), data[2:7])
        assert blobs.read(name, -1, -1) == (len(data), b"")
    assert not blobs.has(digest(b"two")) and blobs.read(digest(b"two"), 0, 10) == (-1, b"")
    again = BlobStore(tmp_path)
    assert again.read(digest(b"one"), 0, 10) == (3, b"one")
    assert (await again.put(stream(b"one")))[1] == 3


async def test_the_sweep_takes_small_files_too(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    words = [b"kept", b"old", b"young", b"again"]
    kept, old, young, again = [name for name, _ in await blobs.put_small(words)]
    with blobs._small._writer.transaction() as db:
        db.execute("update small set kept_at = 1000 where digest <> ?", (bytes.fromhex(young),))
    await blobs.put_small([b"again"])
    assert blobs.sweep({kept}, 3600) == 1
    assert [blobs.has(name) for name in (kept, old, young, again)] == [True, False, True, True]


async def test_a_pack_goes_with_the_last_of_its_files(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    files = [os.urandom(30_000) for _ in range(10)]
    kept = [name for name, _ in await blobs.put_small(files)]

    def packs() -> list[int]:
        with blobs._small._reader.open() as db:
            return [size for (size,) in db.execute("select length(data) from pack order by id")]

    assert packs() == [120_000, 120_000, 60_000]
    await blobs.put_small([*files, b"one more"])
    assert packs() == [120_000, 120_000, 60_000, 8], "what is kept is not kept twice"
    assert blobs.read_small(kept[::-1]) == dict(zip(kept, files, strict=True))
    assert blobs.sweep({kept[3], kept[9]}, -1) == 9
    assert packs() == [120_000, 60_000]
    assert blobs.read_small(kept) == {kept[3]: files[3], kept[9]: files[9]}
    assert blobs.sweep((), -1) == 2 and packs() == []
    assert [name for name, _ in await blobs.put_small(files)] == kept
    assert blobs.read_small(kept) == dict(zip(kept, files, strict=True))


def test_many_small_files_cost_few_syncs(tmp_path: Path) -> None:
    """Counted from outside: 2,000 files in four requests."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from pilotq.mover import BlobStore\n"
        "blobs = BlobStore(Path(sys.argv[1]))\n"
        "for r in range(4):\n"
        "    asyncio.run(blobs.put_small([b'%d' % (r * 500 + n) * 100 for n in range(500)]))\n"
    )
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    command = [strace, "-f", "-e", "trace=fsync,fdatasync,rename", "-o", str(trace)]
    subprocess.run([*command, sys.executable, "-c", program, str(tmp_path / "blobs")], check=True)
    calls = [line for line in trace.read_text().splitlines() if "sync(" in line or "rename(" in line]
    assert 4 <= len(calls) <= 40
    assert BlobStore(tmp_path / "blobs").read(digest(b"1999" * 100), 0, 4) == (400, b"1999")


async def test_small_files_that_cannot_be_read_now_are_not_said_to_be_gone(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    ((name, _),) = await blobs.put_small([b"words"])
    blobs._small.close()
    (tmp_path / "small.db").rename(tmp_path / "away")
    (tmp_path / "small.db").mkdir()
    assert blobs.read(name, 0, 10) == (wire.NOT_NOW, b"")
    assert blobs.read_small([name]) == {} and blobs.sweep((), -1) == 0
    (tmp_path / "small.db").rmdir()
    (tmp_path / "away").rename(tmp_path / "small.db")
    assert blobs.read(name, 0, 10) == (5, b"words")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_is_one_clear_line_and_leaves_nothing(small_disk: Path) -> None:
    blobs = BlobStore(small_disk / "blobs")
    with pytest.raises(UnavailableError, match="No space left"):
        await blobs.put(stream(*[bytes(50_000)] * 20))
    assert names(small_disk) == []
    assert (await blobs.put(stream(b"small")))[1] == 5
    with pytest.raises(UnavailableError, match="files cannot be kept"):
        await blobs.put_small([bytes([number]) * 20_000 for number in range(30)])
    assert (await blobs.put_small([b"tiny"]))[0] == (digest(b"tiny"), 4)
