"""Backups of what a master remembers: queue, kept files, outputs that wait in the spool, the scribe's journal.

A backup is taken beside a running master, of one moment of its queue. Its last file is `backup.json`: a directory
without it is no backup.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pilotq.errors import UnavailableError, UserError
from pilotq.mover.inventory import kept_files, small_digests
from pilotq.mover.pieces import sync_path
from pilotq.store.checking import Finding, Report, check, must_exist, read_only
from pilotq.store.place import Lock, require_local

QUEUE, JOURNAL, SMALL, MARK = "queue.db", "scribe.db", "blobs/small.db", "backup.json"
FORMAT = 1
#: Numbers of clusters that may have been given between a backup and its restoration: they are not given again, so that
#: what a worker still holds is never taken for another task.
CLUSTERS_BETWEEN = 1_000_000
#: Looks at a queue whose files come and go meanwhile.
_TRIES = 5


def look(state: Path) -> tuple[Report, int, int]:
    """Check a store, or a backup, with all its files: what was found, kept files, their bytes.

    Raises: UserError when there is none.
    """
    report = check(state / QUEUE)
    faults: dict[str, str] = {}
    count = size = 0
    for kept in kept_files(state / "blobs"):
        faults[kept.digest] = kept.fault
        count, size = count + 1, size + kept.size_bytes
        if not kept.digest:
            report.findings.append(Finding(kept.fault))
    needed = set[str]()
    for digest, cluster, fault in _faults(state, report, faults):
        needed.add(digest)
        report.findings.append(Finding(f"kept file {digest[:16]}: {fault}", cluster))
    for digest, fault in faults.items():
        if digest and fault and digest not in needed:
            report.findings.append(Finding(f"kept file {digest[:16]}: {fault}; no task in the queue needs it"))
    for name, cluster in _unspooled(state, report):
        report.findings.append(Finding(f"an output that waits for the scribe ({name}) is missing or cut off", cluster))
    if (state / JOURNAL).is_file():
        try:
            with contextlib.closing(read_only(state / JOURNAL)) as db:
                said = [sentence for (sentence,) in db.execute("pragma integrity_check(5)")]
        except (sqlite3.Error, UnicodeDecodeError) as error:
            said = [str(error)]
        # The same false alarm as of the queue.
        wrong = [sentence for sentence in said if sentence != "ok" and not sentence.startswith("NULL value in ")]
        report.findings += [Finding(f"SQLite says of {JOURNAL}: {sentence.splitlines()[-1]}") for sentence in wrong]
    return report, count, size


def _faults(state: Path, report: Report, faults: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """Files that clusters need and that are not as they were: digest, cluster, fault."""
    for wanted in report.files:
        fault = faults.get(wanted.digest, "it is missing")
        if fault and _is_live(state, wanted.cluster):
            yield wanted.digest, wanted.cluster, fault


def _unspooled(state: Path, report: Report) -> Iterator[tuple[str, int]]:
    for name, size, cluster in report.spooled:
        path = state / "spool" / name
        if (not path.is_file() or path.stat().st_size < size) and _is_live(state, cluster):
            yield name, cluster


def _is_live(state: Path, cluster: int) -> bool:
    """It may have left the queue, with its files, since we looked."""
    try:
        with contextlib.closing(read_only(state / QUEUE)) as db:
            return db.execute("select 1 from cluster where cluster = ? and live", (cluster,)).fetchone() is not None
    except (sqlite3.Error, UserError):
        return True


# ---- backup


def backup(state: Path, target: Path) -> Report:
    """Copy a store; what is wrong with the copy.

    Raises: UserError when there is nothing to copy, or something in the way; UnavailableError when the disk does not
    take it.
    """
    must_exist(state / QUEUE)
    _take_empty(target)
    try:
        report = _copy_all(state, target)
        report.findings += look(target)[0].findings
        facts: dict[str, Any] = {"format": FORMAT, "queue": report.queue, "made_at": int(time.time())}
        facts |= {"clusters": report.clusters, "tasks": report.tasks, "findings": len(report.findings)}
        _sync_tree(target)
        mark = target / MARK
        with open(os.open(mark, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(json.dumps(facts) + "\n")
        sync_path(mark)
        sync_path(target)
        sync_path(target.absolute().parent)
        return report
    except BaseException as error:
        for path in target.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if isinstance(error, OSError | sqlite3.Error):
            raise UnavailableError(
                f"the backup cannot be written to {target}: {error}", "nothing is left of it"
            ) from None
        raise


def _take_empty(target: Path) -> None:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise UserError(f"{target} is not empty", "name a directory that is empty, or is not there yet")
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}", "name another directory for the backup") from None


def _copy_all(state: Path, target: Path) -> Report:
    """Queue first, then what it needs; again when something of that went meanwhile, as it may while a master works."""
    missing: set[str] | None = None
    for _ in range(_TRIES):
        _copy_database(state / QUEUE, target / QUEUE)
        # After the queue: an event that is pending there and written since must be known to be written.
        _copy_database(state / JOURNAL, target / JOURNAL)
        (target / "blobs").mkdir(mode=0o700, exist_ok=True)
        _copy_database(state / SMALL, target / SMALL)
        report = check(target / QUEUE)
        small = small_digests(target / SMALL)
        digests = {wanted.digest for wanted in report.files} - small
        large = (f"blobs/{digest[:2]}/{digest}" for digest in sorted(digests))
        spooled = (f"spool/{name}" for name, _, _ in report.spooled)
        before, missing = missing, set(_copy_files(state, target, [*large, *spooled]))
        if not missing or missing == before:
            break
    report.findings.clear()
    return report


def _copy_files(source: Path, target: Path, names: Iterable[str]) -> Iterator[str]:
    """Copy files; the names of those that are not there."""
    for name in names:
        copy = target / name
        if copy.exists():
            continue
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / name, copy)
        except FileNotFoundError:
            copy.unlink(missing_ok=True)
            yield name
        else:
            copy.chmod(0o400 if name.startswith("blobs/") else 0o600)


def _copy_database(source: Path, target: Path) -> None:
    """As it is at one moment, whatever is being written."""
    if not source.is_file():
        return
    for path in (target, *_beside(target)):
        path.unlink(missing_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    address = f"file:{quote(str(source.absolute()))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as db:
        # Nobody else has it: no locks, which some network file systems do not know; we sync it ourselves.
        address = f"file:{quote(str(target.absolute()))}?nolock=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as copy:
            copy.execute("pragma synchronous=off")
            db.backup(copy)
    with target.open("r+b") as file:
        # "No log beside it", so that a reader need not make one. Source: SQLite file format, 1.3.3.
        file.seek(18)
        file.write(b"\1\1")


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")]


def _sync_tree(top: Path) -> None:
    for folder, _, names in os.walk(top, topdown=False):
        for name in names:
            sync_path(Path(folder) / name)
        sync_path(Path(folder))


# ---- restore


def restore(source: Path, state: Path) -> Report:
    """Put a backup where there is no queue; what is wrong with it.

    Raises: UserError when it is none, or a queue is there, or a master; UnavailableError when it cannot be written.
    """
    _check_mark(source)
    report = look(source)[0]
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_local(state)
    lock = Lock(state / "lock", "master")
    try:
        _must_be_empty(state)
        for name in (QUEUE, JOURNAL, SMALL):
            for path in (state / name, *_beside(state / name)):
                path.unlink(missing_ok=True)
        large = [str(path.relative_to(source)) for part in ("blobs/??/*", "spool/*/*") for path in source.glob(part)]
        for name in (name for name in large if (state / name).exists()):
            (state / name).unlink()
        for _ in _copy_files(source, state, large):
            pass
        (state / "blobs").mkdir(mode=0o700, exist_ok=True)
        for name in (SMALL, JOURNAL):
            _copy_database(source / name, state / name)
        # Last, and by its name alone: when we are cut short there is no queue here, and it can be done again.
        new = state / f"{QUEUE}.new"
        _copy_database(source / QUEUE, new)
        _skip_numbers(new)
        for part in (state / "blobs", state / "spool", state / JOURNAL, new):
            if part.is_dir():
                _sync_tree(part)
            elif part.exists():
                sync_path(part)
        new.replace(state / QUEUE)
        sync_path(state)
    except (OSError, sqlite3.Error) as error:
        raise UnavailableError(
            f"the backup cannot be restored to {state}: {error}", "nothing is served from it"
        ) from None
    finally:
        lock.release()
    return report


def _check_mark(source: Path) -> None:
    try:
        facts = json.loads((source / MARK).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{source} holds no complete backup", "name a directory that `pilotq store backup` made"
        ) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{source} was made by another version of pilotq", "restore it with that version")


def _must_be_empty(state: Path) -> None:
    """Raises: UserError when something is there that would be overwritten."""
    path = state / QUEUE
    if not path.exists() or not path.stat().st_size:
        return
    try:
        with contextlib.closing(read_only(path)) as db:
            (clusters,) = db.execute("select count(*) from cluster").fetchone()
    except (sqlite3.Error, UnicodeDecodeError):
        clusters = -1
    if clusters:
        what = "a queue" if clusters > 0 else "a damaged queue"
        raise UserError(
            f"there is {what} in {state} already, and it is not overwritten",
            "move its queue.db*, scribe.db*, blobs and spool away first, or set state_dir to another directory",
        )


def _skip_numbers(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        (last,) = db.execute(
            "select max(ifnull((select max(cluster) from cluster), 0),"
            " ifnull((select cast(value as integer) from meta where name = 'cluster'), 0))"
        ).fetchone()
        db.execute("insert or replace into meta values ('cluster', ?)", (str(last + CLUSTERS_BETWEEN),))
