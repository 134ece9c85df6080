"""The scribe's view of the store: notes of the outbox, and where the things of a task go."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec

from pilotq.condor.jobad import body_of
from pilotq.core.records import Note
from pilotq.deltas import DELTA_BLOCK, Block
from pilotq.model import CLUSTER_MARK, PROC_MARK, ClusterBody, Resources
from pilotq.scribe.lanes import Item
from pilotq.store import checksum, is_sound, outbox

#: Clusters and blocks of deltas kept decoded.
CACHED = 500
#: Procs of one item. A journal entry is named by the first proc of its item: never change this.
ITEM_PROCS = 1000
#: Lanes of a cluster for tasks without a log: what one thread writes at once is synced at once, while others write.
SHARED = "cluster "
_SHARED_LANES = 2
#: Neighbours, which often end at the same time, are in the same of them.
_NEIGHBOURS = 256


class _Needs(msgspec.Struct):
    """The part of a description, or of a delta, that the log tells."""

    needs: Resources | None = None


_unpack_needs = msgspec.msgpack.Decoder(_Needs).decode


class Unreadable(Exception):  # noqa: N818
    """Something in the store is damaged or missing."""


class Places(msgspec.Struct, frozen=True):
    """Where the things of one task go. All absolute; "": nowhere."""

    iwd: str
    log: str
    #: Log of a DAG that the events go to as well.
    copy: str
    #: `log` is written as XML.
    is_xml: bool
    stdout: str
    stderr: str
    #: Destinations may be relative to `iwd`.
    remaps: dict[str, str]


class _Cluster:
    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        #: The log when it is the same for every proc.
        self.log: str | None = None
        #: The log of the DAG, then as well.
        self.copy = ""
        #: All places with the marks of the proc left in, when there are no deltas.
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
        #: Notes that came by hand, by block; and the blocks of which some must be read.
        self._held: dict[int, dict[int, Note]] = {}
        self._partly: set[int] = set()

    def hold(self, block: int, notes: list[Note]) -> None:
        """These need not be read, and may not be there yet."""
        with self._lock:
            self._held[block] = {note.n: note for note in notes}

    def let_go(self, item: Item) -> None:
        """Its note is written, or is to be read when it is tried again."""
        with self._lock:
            held = self._held.get(item.block)
            if held is None or held.pop(item.n, None) is None:
                return
            self._partly.add(item.block)
            if not held:
                del self._held[item.block]
                self._partly.discard(item.block)

    def blocks(self, after: int, limit: int) -> list[outbox.Block]:
        """The next blocks of the outbox, in order."""
        with self._lock:
            return outbox.read(self._db, after, limit)

    def notes(self, blocks: list[int]) -> dict[int, Note | None]:
        """Notes of these blocks by number; a damaged block is None under its own, and one that is gone not there."""
        with self._lock:
            held: dict[int, Note | None] = {
                n: note for block in blocks for n, note in self._held.get(block, {}).items()
            }
            wanted = [block for block in blocks if block not in self._held or block in self._partly]
            return {**outbox.notes(self._db, wanted), **held} if wanted else held

    def items(self, block: outbox.Block) -> dict[str, list[Item]]:
        """The notes of a block in parts that have one log each, by the lane they belong to.

        Raises: Unreadable.
        """
        if block.heads is None:
            raise Unreadable(f"note {block.n} is damaged in the store")
        n, number = block.n, block.cluster
        with self._lock:
            cluster = self._cluster(number)
        # A block stays together, so that all of it is written at the same time.
        shared = f"{SHARED}{number}.{block.heads[0].proc // _NEIGHBOURS % _SHARED_LANES}"
        found: dict[str, list[Item]] = {}
        if cluster.log is not None:
            parts = [
                (head.n, number, proc, min(ITEM_PROCS, head.proc + head.count - proc), n)
                for head in block.heads
                for proc in range(head.proc, head.proc + head.count, ITEM_PROCS)
            ]
            found[cluster.log or shared] = [Item(*part) for part in parts]
            if cluster.copy:
                found[cluster.copy] = [Item(*part, is_copy=True) for part in parts]
            return found
        for head in block.heads:
            for proc in range(head.proc, head.proc + head.count):
                places = self.places(number, proc)
                found.setdefault(places.log or shared, []).append(Item(head.n, number, proc, 1, n))
                if places.copy:
                    found.setdefault(places.copy, []).append(Item(head.n, number, proc, 1, n, is_copy=True))
        return found

    def places(self, number: int, proc: int) -> Places:
        """Raises: Unreadable."""
        with self._lock:
            cluster = self._cluster(number)
            if cluster.places is not None:
                return _of_proc(cluster.places, str(proc))
            body = body_of(cluster.packed, self._delta(number, proc))
        return _of_proc(_places(body, str(number)), str(proc))

    def is_xml(self, number: int, proc: int) -> bool:
        """Is its user log XML? Raises: Unreadable."""
        with self._lock:
            cluster = self._cluster(number)
        return cluster.places.is_xml if cluster.places is not None else self.places(number, proc).is_xml

    def needs(self, number: int, proc: int) -> Resources:
        """Raises: Unreadable."""
        with self._lock:
            cluster = self._cluster(number)
            if cluster.needs is None:
                cluster.needs = self._description_needs(number)
            if cluster.places is None:
                return _unpack_needs(self._delta(number, proc)).needs or cluster.needs
            return cluster.needs

    def _description_needs(self, number: int) -> Resources:
        query = "select description, description_crc from cluster where cluster = ?"
        row = self._db.execute(query, (number,)).fetchone()
        if row is None or not is_sound(*row):
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
        cluster = _Cluster(row[-2])
        if deltas is None:
            places = cluster.places = _places(body_of(cluster.packed), str(number))
            if PROC_MARK not in places.log + places.copy:
                cluster.log, cluster.copy = places.log, places.copy
        _remember(self._clusters, number, cluster)
        return cluster

    def _block(self, number: int, first: int) -> Block:
        block = self._blocks.get((number, first))
        if block is not None:
            self._blocks.move_to_end((number, first))
            return block
        query = "select deltas, crc from delta where cluster = ? and first = ?"
        row = self._db.execute(query, (number, first)).fetchone()
        if row is None or not is_sound(*row):
            raise Unreadable(f"the items of tasks {number}.{first} and later are damaged in the store")
        block = Block(row[0])
        _remember(self._blocks, (number, first), block)
        return block


def _places(body: ClusterBody, number: str) -> Places:
    """With the marks of the proc left in."""
    iwd = body.iwd.replace(CLUSTER_MARK, number)
    log, nodes_log, stdout, stderr = (
        path and os.path.join(iwd, path.replace(CLUSTER_MARK, number))
        for path in (body.log, body.nodes_log, body.stdout, body.stderr)
    )
    remaps = {name.replace(CLUSTER_MARK, number): to.replace(CLUSTER_MARK, number) for name, to in body.remaps.items()}
    return Places(
        iwd,
        log or nodes_log,
        nodes_log if log and nodes_log != log else "",
        body.log_xml and bool(log),
        stdout,
        stderr,
        remaps,
    )


def _of_proc(places: Places, proc: str) -> Places:
    """No marks are left."""
    return Places(
        places.iwd.replace(PROC_MARK, proc),
        places.log.replace(PROC_MARK, proc),
        places.copy.replace(PROC_MARK, proc),
        places.is_xml,
        places.stdout.replace(PROC_MARK, proc),
        places.stderr.replace(PROC_MARK, proc),
        {name.replace(PROC_MARK, proc): to.replace(PROC_MARK, proc) for name, to in places.remaps.items()}
        if places.remaps
        else places.remaps,
    )


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > CACHED:
        cache.popitem(last=False)
