"""Blocks: how tasks lie in the store.

A block is one row for tasks of a cluster that came into one state in one commit. Of several blocks in `task` that name
the same task the last one counts, and a block in `history` counts more than any of them: a block is written once, and
deleted when it counts for none of its tasks any more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import msgspec

from pilotq.core.records import TaskRows, TasksLeft
from pilotq.model import Facts
from pilotq.store.outbox import Waiting

#: Tasks of one block at most.
TASKS_MAX = 1000
#: The procs of a block lie in one span, which begins at a multiple of this: so one task is found by an index.
SPAN = 4096

#: In place of the number of a block: the task is in none, or left the queue.
NONE, LEFT = 0, -1

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[list[int], list[Facts], list[int]]).decode


class Block(msgspec.Struct, frozen=True, gc=False):
    """Tasks of one cluster in one state."""

    first: int
    last: int
    #: A range, or in the order in which they came.
    procs: Sequence[int]
    state: int
    attempts: list[int]
    facts: list[Facts]

    @property
    def span(self) -> int:
        return self.first - self.first % SPAN


def blocks(rows: TaskRows | TasksLeft) -> list[Block]:
    """The blocks of a record: one, if it is not too large or too wide."""
    procs, states, attempts, facts = rows.procs, rows.states, rows.attempts, rows.facts
    count = len(procs)
    if count == 1:
        proc = procs[0]
        return [Block(proc, proc, range(proc, proc + 1), states[0], attempts, facts)]
    if not count:
        return []
    first, last = min(procs), max(procs)
    if count <= TASKS_MAX and first // SPAN == last // SPAN and states.count(states[0]) == count:
        return [Block(first, last, _plain(first, last, procs), states[0], attempts, facts)]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (proc, state) in enumerate(zip(procs, states, strict=True)):
        groups.setdefault((proc // SPAN, state), []).append(index)
    found = []
    for (_, state), indexes in groups.items():
        for start in range(0, len(indexes), TASKS_MAX):
            some = indexes[start : start + TASKS_MAX]
            own = [procs[index] for index in some]
            first, last = min(own), max(own)
            columns = [attempts[index] for index in some], [facts[index] for index in some]
            found.append(Block(first, last, _plain(first, last, own), state, *columns))
    return found


def _plain(first: int, last: int, procs: list[int]) -> Sequence[int]:
    """As a range if they are one, in order."""
    run = range(first, last + 1)
    return run if len(run) == len(procs) and procs == list(run) else procs


def pack_procs(procs: Sequence[int]) -> bytes:
    """For the column `procs`: nothing when they are all from first to last, in order."""
    return b"" if isinstance(procs, range) else array("I", procs).tobytes()


def procs_of(first: int, last: int, packed: bytes) -> Sequence[int]:
    """The procs of a block, from its columns."""
    return array("I", packed) if packed else range(first, last + 1)


def pack_body(block: Block) -> bytes:
    """What is the same for all tasks of a block is in it once."""
    attempts, facts = block.attempts, block.facts
    count = len(facts)
    which: list[int] = []
    if count > 1:
        if attempts.count(attempts[0]) == count:
            attempts = attempts[:1]
        distinct = {id(one): one for one in facts}
        if len(distinct) < count:
            if len(distinct) > 1:
                places = {number: place for place, number in enumerate(distinct)}
                which = [places[id(one)] for one in facts]
            facts = list(distinct.values())
    return _pack((attempts, facts, which))


def read_body(body: bytes, count: int) -> tuple[list[int], list[Facts]]:
    """Attempts and facts of the tasks of a block, in the order of its procs.

    Raises: ValueError when it is not the body of a block of `count` tasks.
    """
    attempts, facts, which = _unpack(body)
    if len(attempts) == 1:
        attempts *= count
    if which:
        facts = [facts[place] for place in which]
    elif len(facts) == 1:
        facts *= count
    if len(attempts) != count or len(facts) != count:
        raise ValueError("a block with tasks missing")
    return attempts, facts


def paint(where: array[int], procs: Sequence[int], value: int) -> Iterable[int]:
    """Set an array at these places, and make it longer when it must be: what was there."""
    is_run = isinstance(procs, range)
    missing = (procs[-1] if is_run else max(procs)) + 1 - len(where)
    if missing > 0:
        where.frombytes(bytes(missing * where.itemsize))
    if is_run and len(procs) > 1:
        run = slice(procs[0], procs[-1] + 1)
        before = where[run]
        where[run] = array(where.typecode, (value,)) * len(procs)
        return before
    found = []
    for proc in procs:
        found.append(where[proc])
        where[proc] = value
    return found


class LeftTwiceError(Exception):
    """A task that is in the history was to be written again."""


class Ledger:
    """The writer's memory of the tables: which block counts for which task, and for how many each counts."""

    def __init__(self) -> None:
        #: Numbers of the last block of `task`, of `history`.
        self.last_n = 0
        self.last_left = 0
        #: Cluster -> by proc: number of the block; NONE; LEFT. As long as the highest proc that was touched needs.
        self._where: dict[int, array[int]] = {}
        #: Block -> tasks it counts for.
        self._counts: dict[int, int] = {}
        #: Of the outbox.
        self.notes = Waiting()

    def put(self, n: int, cluster: int, procs: Sequence[int]) -> dict[int, int]:
        """From now on block `n` counts for these: blocks that did, and for how many others each still does."""
        shrunk = self._move(cluster, procs, n)
        self._counts[n] = len(procs)
        return shrunk

    def leave(self, cluster: int, procs: Sequence[int]) -> dict[int, int]:
        """They are in the history: blocks that counted for them, and for how many others each still does."""
        return self._move(cluster, procs, LEFT)

    def forget(self, cluster: int) -> None:
        """Nothing of it is in the queue."""
        self._where.pop(cluster, None)

    def where(self, cluster: int) -> Sequence[int]:
        """By proc: number of the block that counts for it; NONE; LEFT. It ends with the highest that was touched."""
        return self._where.get(cluster, ())

    def _move(self, cluster: int, procs: Sequence[int], to: int) -> dict[int, int]:
        where = self._where.get(cluster)
        if where is None:
            where = self._where[cluster] = array("q")
        counts = self._counts
        shrunk: dict[int, int] = {}
        for n in paint(where, procs, to):
            if n == NONE:
                continue
            if n == LEFT:
                raise LeftTwiceError
            counts[n] = shrunk[n] = counts[n] - 1
        for n, count in shrunk.items():
            if not count:
                del counts[n]
        return shrunk
