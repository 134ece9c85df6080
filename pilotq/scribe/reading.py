"""The scribe's view of the store: notes of the outbox, and where the things of a task go."""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec

from pilotq.condor.jobad import body_of
from pilotq.core.records import Note
from pilotq.deltas import DELTA_BLOCK, Block
from pilotq.model import PROC_MARK, ClusterBody, Facts, OutputFile, Resources, fill
from pilotq.scribe.lanes import Item
from pilotq.store import checksum

#: Clusters and blocks of deltas kept decoded.
CACHED = 500
#: Procs of one item. A journal entry is named by the first proc of its item: never change this.
ITEM_PROCS = 1000
#: Lanes of a cluster for tasks without a log: what one thread writes at once is synced at once.
SHARED = "cluster "
_SHARED_LANES = 4
#: Neighbours, which often end at the same time, are in the same of them.
_NEIGHBOURS = 256
#: Notes read by one statement.
_NOTES_AT_ONCE = 100
_COLUMNS = "n, event, cluster, proc, count, at, attempt, final, facts, outputs, crc"


class _Needs(msgspec.Struct):
    """The part of a description, or of a delta, that the log tells."""

    needs: Resources | None = None


_unpack_needs = msgspec.msgpack.Decoder(_Needs).decode
_unpack_facts = msgspec.msgpack.Decoder(Facts).decode
_unpack_outputs = msgspec.msgpack.Decoder(list[OutputFile]).decode


class Head(msgspec.Struct, frozen=True, gc=False):
    """What of a note says who writes it."""

    n: int
    event: int
    cluster: int
    proc: int
    count: int


class Unreadable(Exception):  # noqa: N818
    """Something in the store is damaged or missing."""


class Places(msgspec.Struct, frozen=True):
    """Where the things of one task go; no marks are left. All absolute; "": nowhere."""

    iwd: str
    log: str
    stdout: str
    stderr: str
    #: Destinations may be relative to `iwd`.
    remaps: dict[str, str]


class _Cluster:
    def __init__(self, packed: bytes, has_deltas: bool) -> None:
        self.packed = packed
        self.body = body_of(packed)
        self.has_deltas = has_deltas
        #: The log, and all places, when they are the same for every proc.
        self.log: str | None = None
        self.places: Places | None = None
        self.needs: Resources | None = None


class Reader:
    """Reads the queue of a running master; used by all threads."""

    def __init__(self, queue: Path) -> None:
        self._db = sqlite3.connect(
            f"file:{queue}?mode=ro", uri=True, timeout=10, isolation_level=None, check_same_thread=False
        )
        self._lock = threading.Lock()
        self._clusters: OrderedDict[int, _Cluster] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()

    def heads(self, after: int, limit: int) -> list[Head]:
        """The next notes of the outbox, in order."""
        query = "select n, event, cluster, proc, count from outbox where n > ? order by n limit ?"
        with self._lock:
            return [Head(*row) for row in self._db.execute(query, (after, limit))]

    def notes(self, ns: list[int]) -> dict[int, Note | None]:
        """Notes by number; None for a damaged one, none for one that is gone."""
        found: dict[int, Note | None] = {}
        for start in range(0, len(ns), _NOTES_AT_ONCE):
            some = ns[start : start + _NOTES_AT_ONCE]
            query = f"select {_COLUMNS} from outbox where n in ({', '.join('?' * len(some))})"
            with self._lock:
                rows = self._db.execute(query, some).fetchall()
            found.update((row[0], _note(row)) for row in rows)
        return found

    def items(self, head: Head) -> list[tuple[str, Item]]:
        """A note in parts that have one log each, with the name of the lane they belong to.

        Raises: Unreadable.
        """
        n, number, first, count = head.n, head.cluster, head.proc, head.count
        with self._lock:
            cluster = self._cluster(number)
        if cluster.log is not None:
            key = cluster.log or _shared_lane(number, first)
            return [
                (key, Item(n, number, proc, min(ITEM_PROCS, first + count - proc)))
                for proc in range(first, first + count, ITEM_PROCS)
            ]
        return [
            (self.places(number, proc).log or _shared_lane(number, proc), Item(n, number, proc, 1))
            for proc in range(first, first + count)
        ]

    def places(self, number: int, proc: int) -> Places:
        """Raises: Unreadable."""
        with self._lock:
            cluster = self._cluster(number)
            if cluster.places is not None:
                return cluster.places
            body = cluster.body
            if cluster.has_deltas:
                body = body_of(cluster.packed, self._delta(number, proc))
        return _places(body, number, proc)

    def needs(self, number: int, proc: int) -> Resources:
        """Raises: Unreadable."""
        with self._lock:
            cluster = self._cluster(number)
            if cluster.needs is None:
                cluster.needs = self._description_needs(number)
            if cluster.has_deltas:
                return _unpack_needs(self._delta(number, proc)).needs or cluster.needs
            return cluster.needs

    def _description_needs(self, number: int) -> Resources:
        query = "select description, description_crc from cluster where cluster = ?"
        row = self._db.execute(query, (number,)).fetchone()
        if row is None or zlib.crc32(row[0]) != row[1]:
            raise Unreadable(f"the description of cluster {number} is damaged in the store")
        return _unpack_needs(row[0]).needs or Resources()

    def _delta(self, number: int, proc: int) -> bytes:
        return self._block(number, proc - proc % DELTA_BLOCK)[proc % DELTA_BLOCK]

    def _cluster(self, number: int) -> _Cluster:
        cluster = self._clusters.get(number)
        if cluster is not None:
            self._clusters.move_to_end(number)
            return cluster
        row = self._db.execute(
            "select cluster, owner, key, count, priority, submitted_at, state, since, body, crc from cluster"
            " where cluster = ?",
            (number,),
        ).fetchone()
        if row is None or checksum(row[:-1]) != row[-1]:
            raise Unreadable(f"cluster {number} is damaged in the store")
        deltas = self._db.execute("select 1 from delta where cluster = ? limit 1", (number,)).fetchone()
        cluster = _Cluster(row[-2], deltas is not None)
        body = cluster.body
        if deltas is None and not any(PROC_MARK in text for text in (body.iwd, body.log)):
            places = _places(body, number, 0)
            cluster.log = places.log
            texts = (body.stdout, body.stderr, *body.remaps, *body.remaps.values())
            if not any(PROC_MARK in text for text in texts):
                cluster.places = places
        _remember(self._clusters, number, cluster)
        return cluster

    def _block(self, number: int, first: int) -> Block:
        block = self._blocks.get((number, first))
        if block is not None:
            self._blocks.move_to_end((number, first))
            return block
        query = "select deltas, crc from delta where cluster = ? and first = ?"
        row = self._db.execute(query, (number, first)).fetchone()
        if row is None or zlib.crc32(row[0]) != row[1]:
            raise Unreadable(f"the items of tasks {number}.{first} and later are damaged in the store")
        block = Block(row[0])
        _remember(self._blocks, (number, first), block)
        return block


def _shared_lane(number: int, proc: int) -> str:
    return f"{SHARED}{number}.{proc // _NEIGHBOURS % _SHARED_LANES}"


def _places(body: ClusterBody, number: int, proc: int) -> Places:
    iwd, *files, remaps = fill([body.iwd, body.log, body.stdout, body.stderr, body.remaps], number, proc)
    log, stdout, stderr = (path and os.path.join(iwd, path) for path in files)
    return Places(iwd, log, stdout, stderr, remaps)


def _note(row: tuple[Any, ...]) -> Note | None:
    n, event, cluster, proc, count, at, attempt, final, facts, outputs, crc = row
    if checksum(row[:-1]) != crc:
        return None
    return Note(
        n=n,
        event=event,
        cluster=cluster,
        proc=proc,
        count=count,
        at=at,
        facts=_unpack_facts(facts),
        outputs=_unpack_outputs(outputs),
        attempt=attempt,
        final=bool(final),
    )


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > CACHED:
        cache.popitem(last=False)
