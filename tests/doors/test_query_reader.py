"""The reader against a plain model of the queue, and what a question looks at."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from query_store import Builder, body

from pilotq.condor.jobad import Job
from pilotq.condor.options import Query, parse
from pilotq.condor.poolads import HeadFacts
from pilotq.condor.request import Request
from pilotq.core.records import TaskRows, TasksLeft
from pilotq.model import CONDOR_STATUS, ENDED, PROC_MARK, Facts, Outcome, State
from pilotq.query.questions import Question
from pilotq.query.reader import Reader
from pilotq.query.rows import Commons, Run

LIVE = [state for state in State if state not in ENDED]
#: Of a proc: None untouched, a state with a row, or one with which it left the queue.
PROC = st.one_of(st.none(), st.sampled_from(LIVE), st.sampled_from([State.DONE, State.CANCELLED]))
CLUSTERS = st.lists(
    st.tuples(st.sampled_from(["alice", "bob"]), st.sampled_from([State.IDLE, State.HELD]), st.lists(PROC, max_size=7)),
    max_size=4,
)
Model = dict[tuple[int, int], tuple[str, State]]


def built(where: Path, clusters: list[tuple[str, State, list[State | None]]]) -> Model:
    """A store of these clusters; (cluster, proc) -> (owner, state) of what is in the queue."""
    queue = Builder(where / "q.db")
    model: Model = {}
    for number, (owner, untouched, procs) in enumerate(clusters, 1):
        count = len(procs) + 2
        queue.cluster(number, count, body(owner), state=untouched)
        for proc, state in enumerate([*procs, None, None]):
            if state in ENDED:
                queue.ended(number, proc, state, outcome=int(Outcome.OK))
                continue
            if state is not None:
                queue.task(number, proc, state)
            model[number, proc] = (owner, state or untouched)
    return model


def expanded(runs: Iterator[Run]) -> list[tuple[int, int, State]]:
    return [(run.cluster.id, proc, run.state) for run in runs for proc in range(run.first, run.first + run.count)]


@settings(max_examples=60, deadline=None)
@given(CLUSTERS)
def test_the_reader_agrees_with_a_model(clusters: list[tuple[str, State, list[State | None]]]) -> None:
    with TemporaryDirectory() as where:
        model = built(Path(where), clusters)
        expected = sorted((number, proc, state) for (number, proc), (_, state) in model.items())
        reader = Reader(f"{where}/q.db", Commons())
        for bare in (False, True):
            assert expanded(reader.queue(lambda _, bare=bare: bare)) == expected
            found = [run for cluster in reader.clusters() for run in reader.runs(cluster, bare=bare)]
            assert expanded(iter(found)) == expected
        bare_runs = list(reader.queue(lambda _: True))
        for one, next_one in pairwise(bare_runs):
            at_once = one.cluster.id == next_one.cluster.id and one.first + one.count == next_one.first
            assert not (at_once and one.state == next_one.state)
        for cluster in reader.clusters():
            for proc in range(cluster.count + 1):
                states = [state for _, _, state in expanded(reader.runs(cluster, proc))]
                assert states == ([model[cluster.id, proc][1]] if (cluster.id, proc) in model else [])
        by_cluster: dict[int, Counter[State]] = {}
        by_owner: dict[str, Counter[State]] = {}
        for (number, _), (owner, state) in model.items():
            by_cluster.setdefault(number, Counter())[state] += 1
            by_owner.setdefault(owner, Counter())[state] += 1
        assert {number: counts for number, counts in reader.counts().items() if counts} == by_cluster
        assert reader.counts([1, 99]).get(1, Counter()) == by_cluster.get(1, Counter())
        assert reader.totals() == by_owner
        reader.close()


class CountingReader(Reader):
    """How many tasks were looked at one by one."""

    looked = 0

    def job(self, run: Run, proc: int, now: float, site: str) -> Job:
        self.looked += 1
        return super().job(run, proc, now, site)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 idle tasks, and 300 running ones among 1000 of another cluster."""
    path = tmp_path_factory.mktemp("many") / "q.db"
    queue = Builder(path).cluster(1, 100_000).cluster(2, 1000)
    for proc in range(100, 400):
        queue.task(2, proc, State.RUNNING, host="node1")
    return path


def asked(path: Path, *words: str) -> tuple[str, int]:
    reader = CountingReader(str(path), Commons())
    query = parse(Request(tool="condor_q", argv=list(words)))
    assert isinstance(query, Query)
    question = Question(query, reader, HeadFacts(), now=time.time(), local=time.localtime)
    text = "".join(question.answer())
    reader.close()
    return text, reader.looked


def test_counting_looks_at_no_task(many: Path) -> None:
    text, looked = asked(many, "-totals")
    assert "Total for query: 101000 jobs; 0 completed, 0 removed, 100700 idle, 300 running" in text
    assert looked == 0
    text, looked = asked(many, "-totals", "-const", "JobStatus == 1 && time() > QDate")
    assert "Total for query: 100700 jobs" in text
    assert looked == 0


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("-format", "%s\\n", "OWNER", "-const", "JobStatus == 1 || JobStatus == 2"), 101_000),
        (("-format", "%s\\n", "OWNER", "-const", "JobStatus == 1"), 100_700),
        (("-const", "JobStatus < 3", "-af", "JobStatus", "GridResource"), 101_000),
        (("-af", "Owner", "ClusterId", "-limit", "50000"), 50_000),
    ],
)
def test_lines_that_are_alike_are_made_once(many: Path, words: tuple[str, ...], lines: int) -> None:
    text, looked = asked(many, *words)
    assert text.count("\n") == lines
    # Neighbours in one state are one run: idle, idle, running, idle.
    assert looked <= 4


def test_one_job_is_found_without_looking_at_others(many: Path) -> None:
    for words in (("1.77777",), ("-const", "ClusterId == 1 && ProcId == 77777")):
        text, looked = asked(many, *words, "-af", "ProcId", "Cmd")
        assert text == "77777 /home/alice/agent.sh\n"
        assert looked == 1


def test_what_needs_facts_is_asked_only_where_there_are_some(many: Path) -> None:
    text, looked = asked(many, "-const", 'RemoteHost == "slot1@node1"', "-af", "ClusterId")
    assert text.count("\n") == 300
    assert looked == 300 + 3


def test_tasks_that_have_their_facts_in_common_are_looked_at_once(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    procs = list(range(10, 310))
    same = Facts(host="node1", starts=1)
    queue = Builder(path).cluster(1, 1000)
    queue.write(TaskRows(1, procs, [State.RUNNING] * 300, [1] * 300, [same] * 300))
    queue.write(TasksLeft(1, [200, 100], [State.DONE] * 2, [1] * 2, [same] * 2, 1.0))
    started = ("-const", "NumJobStarts == 1", "-af", "RemoteHost")
    text, looked = asked(path, *started)
    assert text == "slot1@node1\n" * 298
    # Idle, running in three pieces, idle.
    assert looked == 5
    assert asked(path, *started, "-limit", "150")[0] == "slot1@node1\n" * 150
    text, _ = asked(path, "-const", "NumJobStarts == 1 && ProcId % 100 == 0", "-af", "ProcId", "RemoteHost")
    assert text == "300 slot1@node1\n"


def test_statuses_are_those_of_the_states(tmp_path: Path) -> None:
    model = built(tmp_path, [("alice", State.IDLE, list(LIVE))])
    text, _ = asked(tmp_path / "q.db", "-af", "JobStatus")
    assert [int(line) for line in text.splitlines()] == [CONDOR_STATUS[state] for _, state in model.values()]


#: Parts of constraints, and what they are joined with; some evaluate to undefined, an error or a number.
PART = st.sampled_from(
    [
        *("ProcId == 1", "ProcId =?= 2", "ProcId % 2 == 1", "MY.ProcId > 0", "ProcId", "ProcId / (ProcId - 1)"),
        *("JobStatus == 1", 'Owner == "alice"', 'Args == "a1"', 'regexp("[02]$", Args)', "Number < 2", "Number =!= 3"),
        *("NoSuch > 1", "NoSuch =?= undefined", 'GlobalJobId =!= "x"', "Derived == 3", "Both == 2", "Mixed == 11"),
        *("size(Cmd) > ProcId", "time() > ProcId", "ClusterId == 1", "ifThenElse(ProcId > 1, true, Args)"),
    ]
)
CONSTRAINT = st.recursive(
    PART,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda part: f"!({part})"),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clusters whose tasks differ in every way there is."""
    path = tmp_path_factory.mktemp("differing") / "q.db"
    mark = PROC_MARK
    ad = {"Args": f'"a{mark}"', "Number": mark, "Derived": "ProcId + 1", "Both": f"{mark} + 0", "Mixed": f"1{mark}"}
    queue = Builder(path).cluster(1, 16, body(ad=ad)).cluster(2, 5, body("bob", ad={"Args": f'"é{mark} \\"q\\" \\\\"'}))
    queue.cluster(3, 4, body(), deltas=[{"ad": {"Args": f'"a{proc}"', "Number": "3"}} for proc in range(4)])
    queue.task(1, 6, State.RUNNING, host="node1", starts=1).ended(1, 8, outcome=int(Outcome.OK))
    return path


@settings(max_examples=300, deadline=None)
@given(CONSTRAINT)
def test_a_constraint_on_runs_finds_what_it_finds_task_by_task(differing: Path, constraint: str) -> None:
    reader = Reader(str(differing), Commons())
    query = Query("condor_q", output="long", constraints=[constraint])
    question = Question(query, reader, HeadFacts(), now=1_800_000_000.0, local=time.localtime)
    found = expanded(run for run, _ in question.matching())
    everything = [
        (run, proc)
        for cluster in reader.clusters()
        for run in reader.runs(cluster)
        for proc in range(run.first, run.first + run.count)
    ]
    assert found == [
        (run.cluster.id, proc, run.state) for run, proc in everything if question.is_match(question.job(run, proc))
    ]
    reader.close()


def test_damaged_items_keep_no_other_task_from_being_shown(tmp_path: Path) -> None:
    queue = Builder(tmp_path / "q.db")
    queue.cluster(1, 4, body(), deltas=[{"ad": {"Number": str(proc)}} for proc in range(4)]).cluster(2, 1)
    queue.db.execute("update delta set deltas = x'92' || deltas where first = 3")
    queue.db.commit()
    reader = Reader(str(queue.path), Commons())
    runs = list(reader.queue(lambda cluster: False))
    jobs = [reader.job(run, proc, 0.0, "site") for run in runs for proc in range(run.first, run.first + run.count)]
    assert [str(job.get("number")) for job in jobs] == ["0", "1", "2", "None", "None"]
    reader.close()
