"""Blocks against a plain model: whatever is written in whatever order, store and reader know each task."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_data import cluster, facts, started

from pilotq.core.records import ClusterLeft, Record, TaskRows, TasksLeft
from pilotq.model import Facts, Outcome, State
from pilotq.query.reader import Reader
from pilotq.query.rows import Commons
from pilotq.store import Loaded, Store
from pilotq.store.blocks import SPAN, TASKS_MAX, Ledger, LeftTwiceError, blocks, pack_body, procs_of, read_body
from pilotq.store.blocks import pack_procs as packed
from pilotq.store.memory import MemoryStore
from pilotq.store.sqlite import SqliteStore

COUNT = 3 * SPAN
FACTS = [facts(), facts(host="n1"), facts(host="n2", outcome=Outcome.EXIT), facts(host="n3", outcome=Outcome.OK)]
LIVE = [State.IDLE, State.ASSIGNED, State.RUNNING, State.HELD]
#: Procs that follow each other, some further apart than a span, and more than a block takes.
PROCS = st.one_of(
    st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=9, unique=True),
    st.builds(lambda first, size: list(range(first, min(first + size, COUNT))), st.integers(0, 60), st.integers(1, 40)),
    st.builds(lambda first: list(range(first, first + 1500)), st.integers(SPAN - 1400, SPAN)),
)
#: Cluster, procs, what to vary states, attempts and facts by; True: they leave; True: the store is started again.
STEP = st.tuples(st.integers(1, 2), PROCS, st.integers(0, 3), st.booleans(), st.booleans())
Known = tuple[int, int, Facts]


def record(number: int, procs: list[int], kind: int, leave: bool) -> TaskRows | TasksLeft:
    ends = [State.DONE, State.CANCELLED] if leave else LIVE
    spread = [proc * kind // 7 for proc in procs]
    columns = (
        [int(ends[value % len(ends)]) for value in spread],
        [1 + value % 2 for value in spread],
        [FACTS[value % len(FACTS)] for value in spread],
    )
    return TasksLeft(number, procs, *columns, 1.5) if leave else TaskRows(number, procs, *columns)


class Model:
    """What is known of each task, written down one by one."""

    def __init__(self) -> None:
        self.live: dict[tuple[int, int], Known] = {}
        self.left: dict[tuple[int, int], Known] = {}

    def take(self, said: TaskRows | TasksLeft) -> None:
        for proc, *known in zip(said.procs, said.states, said.attempts, said.facts, strict=True):
            task = said.cluster, proc
            if isinstance(said, TasksLeft):
                self.live.pop(task, None)
                self.left[task] = (known[0], known[1], known[2])
            else:
                self.live[task] = (known[0], known[1], known[2])

    def failed(self, number: int) -> int:
        return sum(
            state == State.DONE and known.outcome != Outcome.OK
            for (cluster_, _), (state, _, known) in self.left.items()
            if cluster_ == number
        )


def check_loaded(loaded: Loaded, model: Model) -> None:
    live, left = {}, {}
    for found in loaded.clusters:
        for proc, *known in zip(found.procs, found.states, found.attempts, found.facts, strict=True):
            assert (found.cluster, proc) not in live
            live[found.cluster, proc] = tuple(known)
        for proc, state in zip(found.left, found.left_states, strict=True):
            assert (found.cluster, proc) not in left
            left[found.cluster, proc] = state
        assert found.failed == model.failed(found.cluster) and not found.damaged
    assert live == model.live and left == {task: known[0] for task, known in model.left.items()}
    assert not loaded.damage


def check_reader(path: Path, model: Model) -> None:
    reader = Reader(str(path), Commons())
    states: dict[int, Counter[State]] = {}
    for found in reader.clusters():
        expected = {
            proc: model.live.get((found.id, proc), (State.IDLE, 0, Facts()))
            for proc in range(COUNT)
            if (found.id, proc) not in model.left
        }
        states[found.id] = Counter(State(known[0]) for known in expected.values())
        for bare in (False, True):
            shown: dict[int, Known] = {}
            for run in reader.runs(found, bare=bare):
                for proc in range(run.first, run.first + run.count):
                    assert proc not in shown
                    shown[proc] = (run.state, run.attempt, run.facts)
            if bare:
                assert {proc: known[0] for proc, known in shown.items()} == {
                    proc: known[0] for proc, known in expected.items()
                }
            else:
                assert shown == expected and list(shown) == sorted(shown)
        for number, proc in [*list(model.live)[-5:], *list(model.left)[-5:], (found.id, COUNT - 1)]:
            if number == found.id:
                one = [(run.state, run.attempt, run.facts) for run in reader.runs(found, proc)]
                assert one == ([expected[proc]] if proc in expected else [])
        ended, failed = reader.ended(found)
        assert failed == model.failed(found.id)
        assert sum(ended.values()) == sum(number == found.id for number, _ in model.left)
    assert reader.counts() == states
    assert reader.totals() == {"alice": sum(states.values(), Counter())}
    told = [((run.cluster.id, run.first), (run.state, run.attempt, run.facts)) for run in reader.history()]
    assert dict(told) == model.left and len(told) == len(model.left)
    assert told[::-1] == [
        ((run.cluster.id, run.first), (run.state, run.attempt, run.facts)) for run in reader.history(forwards=True)
    ]
    for number, proc in list(model.left)[-3:]:
        assert [run.first for run in reader.history([(number, proc)])] == [proc]
    reader.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=8))
def test_stores_and_reader_agree_with_a_model(steps: list[tuple[int, list[int], int, bool, bool]]) -> None:
    with TemporaryDirectory() as where:
        path, model = Path(where) / "queue.db", Model()
        stores: list[Store] = [SqliteStore(1 << 20), MemoryStore()]
        for store in stores:
            store.open(path)
            store.commit([cluster(1, COUNT), cluster(2, COUNT)])
        for number, procs, kind, leave, again in steps:
            staying = [proc for proc in procs if (number, proc) not in model.left]
            said = record(number, staying, kind, leave)
            model.take(said)
            for store in stores:
                store.commit([said])
                if again:
                    store.close()
                    store.open(path)
        for store in stores:
            check_loaded(store.load(), model)
        check_reader(path, model)
        for store in stores:
            store.close()


def rows_left(path: Path) -> int:
    store = started(path)
    (count,) = store._open_db.execute("select count(*) from task").fetchone()
    store.close()
    return int(count)


def test_a_block_goes_with_the_last_task_it_counts_for(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    commits: list[list[Record]] = [
        [cluster(1, 300), record(1, list(range(200)), 0, False)],
        [record(1, list(range(100)), 0, True)],
        [record(1, [150], 0, False), record(1, [151], 0, False), record(1, [151], 0, True)],
        [record(1, [proc for proc in range(100, 200) if proc not in (150, 151)], 0, True)],
    ]
    kept = []
    for commit in commits:
        started(path, commit).close()
        kept.append(rows_left(path))
    # 151 never gets a row of its own: it left in the commit that wrote it.
    assert kept == [1, 1, 2, 1]
    started(path, [record(1, [150], 0, True)]).close()
    assert rows_left(path) == 0


def test_all_of_a_cluster_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    procs = list(range(5000))
    started(
        path,
        [cluster(1, 5000), record(1, procs, 3, False)],
        [record(1, procs[::-3], 2, False)],
        [record(1, procs[::2], 1, True)],
        [record(1, procs[1::2], 1, True), ClusterLeft(1)],
    ).close()
    assert rows_left(path) == 0


def test_blocks_are_neither_large_nor_wide() -> None:
    procs = [*range(0, 9000, 2), 1, 4097]
    found = blocks(record(1, procs, 3, False))
    assert sorted(proc for block in found for proc in block.procs) == sorted(procs)
    for block in found:
        assert len(block.procs) <= TASKS_MAX and block.first // SPAN == block.last // SPAN
        assert (min(block.procs), max(block.procs)) == (block.first, block.last)
        assert list(procs_of(block.first, block.last, packed(block.procs))) == list(block.procs)
        attempts, details = read_body(pack_body(block), len(block.procs))
        assert (attempts, details) == (block.attempts, block.facts)


def test_what_tasks_have_in_common_is_written_once() -> None:
    many = [facts(host="n1", reason="x" * 100)] * 500
    (block,) = blocks(TaskRows(1, list(range(500)), [2] * 500, [1] * 500, many))
    assert len(pack_body(block)) < 300 and packed(block.procs) == b""
    some = [*many[:250], *[facts(host="n2", reason="y" * 100)] * 250]
    (block,) = blocks(TaskRows(1, list(range(500)), [2] * 500, [1] * 500, some))
    assert len(pack_body(block)) < 1000
    assert read_body(pack_body(block), 500) == ([1] * 500, some)


def test_a_body_with_tasks_missing_is_refused() -> None:
    (block,) = blocks(TaskRows(1, [1, 2], [2, 2], [1, 2], FACTS[:2]))
    with pytest.raises(ValueError, match="missing"):
        read_body(pack_body(block), 3)


def test_no_task_is_in_the_history_twice() -> None:
    ledger = Ledger()
    assert ledger.put(1, 7, range(3)) == {}
    assert ledger.leave(7, [2, 0]) == {1: 1}
    for again in ([0], range(2, 4), [1, 1]):
        with pytest.raises(LeftTwiceError):
            ledger.leave(7, again)
