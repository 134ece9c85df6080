"""What the tests of the store write into it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from pilotq.core.records import ClusterAdded, Note, NotesAdded, Record, TaskRows, TasksLeft
from pilotq.deltas import Blocks, Form
from pilotq.model import STDOUT, ClusterBody, Description, Facts, Outcome, OutputFile, State
from pilotq.store import Loaded
from pilotq.store.sqlite import SqliteStore

pack = msgspec.msgpack.encode


def in_blocks(deltas: list[bytes]) -> list[bytes]:
    """Of deltas that are given one by one."""
    blocks = Blocks()
    for delta in deltas:
        blocks.add(Form.whole(delta))
    return blocks.packed()


def cluster(number: int, count: int = 1, **more: object) -> ClusterAdded:
    values: dict[str, object] = {
        "cluster": number,
        "owner": "alice",
        "key": "",
        "count": count,
        "priority": 0,
        "submitted_at": 1700000000.25,
        "body": pack(ClusterBody(owner="alice", iwd="/home/alice")),
        "description": pack(Description(argv=["condor_exec.exe"])),
        "deltas": [],
        "digests": [],
    }
    if "deltas" in more:
        more["deltas"] = in_blocks(more["deltas"])  # type: ignore[arg-type]
    return ClusterAdded(**{**values, **more})  # type: ignore[arg-type]


def facts(**values: object) -> Facts:
    return Facts(**values)  # type: ignore[arg-type]


def rows(number: int, procs: list[int], state: State, attempt: int = 1, **values: object) -> TaskRows:
    size = len(procs)
    return TaskRows(number, procs, [state] * size, [attempt] * size, [facts(**values)] * size)


def left(number: int, procs: list[int], state: State = State.DONE, **values: object) -> TasksLeft:
    size = len(procs)
    values.setdefault("outcome", Outcome.OK)
    return TasksLeft(number, procs, [state] * size, [1] * size, [facts(**values)] * size, 1700000100.5)


def mixed(number: int, procs: list[int]) -> TaskRows:
    """Rows of tasks that have as little in common as can be."""
    states = [State.ASSIGNED if proc % 5 else State.RUNNING for proc in procs]
    some = [facts(), facts(host="n1"), facts(host="n2", starts=1)]
    return TaskRows(number, procs, states, [1 + proc % 2 for proc in procs], [some[proc % 7 % 3] for proc in procs])


def note(n: int, number: int, proc: int = 0, *, final: bool = False) -> NotesAdded:
    outputs = [OutputFile(STDOUT, 3, 0o644, b"hi\n")] if final else []
    return NotesAdded([Note(n, 5, number, proc, 1, 1700000100.5, outputs=outputs, attempt=1, final=final)])


def started(path: Path, *commits: list[Record], ballast_bytes: int = 1 << 20) -> SqliteStore:
    """A store with these commits in it."""
    store = SqliteStore(ballast_bytes)
    store.open(path)
    for records in commits:
        store.commit(records)
    return store


def tasks(loaded: Loaded) -> dict[tuple[int, int], tuple[int, int]]:
    """State and attempt of every live or ended task that has a row."""
    found = {}
    for live in loaded.clusters:
        for proc, state, attempt in zip(live.procs, live.states, live.attempts, strict=True):
            found[live.cluster, proc] = (state, attempt)
        for proc, state in zip(live.left, live.left_states, strict=True):
            assert (live.cluster, proc) not in found
            found[live.cluster, proc] = (state, -1)
    return found


def damage(path: Path, statement: str) -> None:
    """Change one row behind the back of the store."""
    db = sqlite3.connect(path)
    assert db.execute(statement).rowcount == 1
    db.commit()
    db.close()
