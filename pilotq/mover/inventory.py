"""Kept files as they lie on disk, looked at from outside: beside a master or without one."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pilotq.mover.pieces import is_digest


class Kept(NamedTuple):
    """One kept file."""

    digest: str
    size_bytes: int
    #: What is wrong with it; "": nothing.
    fault: str


def kept_files(folder: Path) -> Iterator[Kept]:
    """All of a folder of kept files, each read and compared with its digest. Cost: it reads them all."""
    for path in sorted(folder.glob("??/*")):
        if not is_digest(path.name):
            continue
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except FileNotFoundError:
            # Swept since the folder was read.
            continue
        except OSError as error:
            yield Kept(path.name, 0, f"it cannot be read ({error.strerror})")
            continue
        yield Kept(path.name, size, "" if digest == path.name else "its content is not what was kept")
    yield from _small_files(folder / "small.db")


def _small_files(path: Path) -> Iterator[Kept]:
    if not path.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute("begin")
            last, packs = b"", dict[int, list[tuple[int, int, bytes]]]()
            for key, pack, at, size in db.execute("select digest, pack, at, size from small order by digest"):
                digest = key.hex() if isinstance(key, bytes) else str(key)
                if not isinstance(key, bytes) or key <= last or not is_digest(digest):
                    yield Kept(digest, 0, "its name is damaged")
                    continue
                last = key
                if [type(number) for number in (pack, at, size)] == [int, int, int]:
                    packs.setdefault(pack, []).append((at, size, key))
                else:
                    yield Kept(digest, 0, "where it lies is damaged")
            for pack, files in packs.items():
                yield from _packed(db, pack, files)
            for (sentence,) in db.execute("pragma quick_check(20)"):
                if sentence != "ok":
                    yield Kept("", 0, f"SQLite says of {path.name}: {sentence.splitlines()[-1]}")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        yield Kept("", 0, f"{path.name} cannot be read to its end ({error})")


def _packed(db: sqlite3.Connection, pack: int, files: list[tuple[int, int, bytes]]) -> Iterator[Kept]:
    """The files of one pack: one that cannot be read costs no others."""
    data: object = None
    reason = "it cannot be read"
    try:
        (data,) = db.execute("select data from pack where id = ?", (pack,)).fetchone() or (None,)
    except sqlite3.Error as error:
        reason = f"it cannot be read ({error})"
    for at, size, key in files:
        if not isinstance(data, bytes):
            yield Kept(key.hex(), 0, reason)
            continue
        sound = at >= 0 and hashlib.sha256(data[at : at + size]).digest() == key
        yield Kept(key.hex(), size, "" if sound else "its content is not what was kept")


def small_digests(path: Path) -> set[str]:
    """Names of all files in a database of small ones. Raises: sqlite3.Error."""
    if not path.is_file():
        return set()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return {key.hex() for (key,) in db.execute("select digest from small")}
