"""The machine, driven through any DAG by a world that ends things in any order, and that crashes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotq.dag.machine import (
    PRE_FAILED,
    REFUSED,
    REMOVED,
    Defer,
    Ending,
    Event,
    Limits,
    Machine,
    Remove,
    RunScript,
    State,
    Submit,
)  # fmt: skip
from pilotq.dag.model import Dag
from pilotq.dag.parser import parse
from pilotq.dag.records import read_journal, read_log, read_rescue, write_journal, write_rescue

NO_LIMITS = Limits()


def new_dag(text: str) -> Dag:
    return parse(["x.dag"], {"x.dag": text}.__getitem__)


class World:
    """Answers actions, one at a time; what is outstanding survives `crash`."""

    def __init__(self, text: str, limits: Limits = NO_LIMITS, results: dict[str, list[int]] | None = None) -> None:
        self.text, self.limits = text, limits
        #: What the parts of nodes give, in order; then 0. "A", "A PRE", "A POST".
        self.results = {name: list(values) for name, values in (results or {}).items()}
        self.machine = Machine(new_dag(text), limits)
        self.journal: list[Event] = []
        self.open: list[Submit | RunScript | Defer | Remove] = []
        self.in_queue: dict[int, tuple[str, int]] = {}
        #: (node, attempt) -> cluster: a key that was used gives the same answer again.
        self.keys: dict[tuple[str, int], int] = {}
        self.log: list[str] = []
        self.procs: dict[str, int] = {}
        self.put("start")

    def put(self, *event: object) -> None:
        self.journal.append(event)
        self.machine.on(event)
        self._take()

    def _take(self) -> None:
        self.open += self.machine.actions
        self.machine.actions.clear()

    def result(self, part: str) -> int:
        values = self.results.get(part)
        return values.pop(0) if values else 0

    def step(self, choice: int) -> None:
        """One thing ends: an action, or a job."""
        things = [*self.open, *self.in_queue]
        thing = things[choice % len(things)]
        if isinstance(thing, int):
            node, left = self.in_queue[thing]
            result = self.result(node)
            self.in_queue[thing] = (node, left - 1)
            if left == 1:
                del self.in_queue[thing]
            self.log.append(f"end {node}")
            self.put("ended", thing, left - 1, result)
            return
        self.open.remove(thing)
        if isinstance(thing, Submit):
            self._submit(thing.node)
        elif isinstance(thing, RunScript):
            self.log.append(f"{thing.kind} {thing.node}")
            self.put("script", thing.kind, thing.node, self.result(f"{thing.node} {thing.kind}"))
        elif isinstance(thing, Defer):
            self.put("again", thing.kind, thing.node)
        elif thing.cluster in self.in_queue:
            node, left = self.in_queue.pop(thing.cluster)
            for proc in range(left):
                self.put("ended", thing.cluster, proc, REMOVED)
        elif not thing.cluster:
            self._submit(thing.node)

    def _submit(self, node: str) -> None:
        if self.results.get(f"{node} REFUSED"):
            self.results[f"{node} REFUSED"].pop()
            self.put("refused", node)
            return
        key = node, self.machine.runs[node].attempt
        if key not in self.keys:
            self.keys[key] = len(self.keys) + 1
            self.in_queue[self.keys[key]] = (node, self.procs.get(node, 1))
            self.log.append(f"submit {node}")
        self.put("submitted", node, self.keys[key], self.procs.get(node, 1))

    def run(self, choices: list[int] = [0]) -> Machine:  # noqa: B006 (it is only read)
        turn = 0
        while self.machine.exit_code is None:
            assert self.open or self.in_queue, "nothing can happen any more"
            self.step(choices[turn % len(choices)])
            turn += 1
            assert turn < 10_000
        return self.machine

    def crash(self) -> None:
        """The runner is gone and comes again: all it has is its journal."""
        before = {name: run.state for name, run in self.machine.runs.items()}
        records, size = read_journal(write_journal(self.journal) + b'["ended",1')
        assert size == len(write_journal(self.journal))
        self.machine = Machine(new_dag(self.text), self.limits)
        for record in records:
            self.machine.on(record)
        assert {name: run.state for name, run in self.machine.runs.items()} == before
        self.machine.outstanding()
        self.open = []
        self._take()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 8))
    names = [f"N{index}" for index in range(count)]
    lines = [f"JOB {name} x.sub{draw(st.sampled_from(['', '', ' NOOP', ' DONE']))}" for name in names]
    results: dict[str, list[int]] = {}
    few = st.lists(st.sampled_from([0, 0, 1, 2, -9]), max_size=3)
    for at, name in enumerate(names):
        children = draw(st.lists(st.sampled_from(names[at + 1 :]), max_size=3, unique=True)) if at + 1 < count else []
        if children:
            others = draw(st.lists(st.sampled_from(names[: at + 1]), max_size=2, unique=True))
            children = [child for child in children if child > max([name, *others])]
            lines += [f"PARENT {' '.join({name, *others})} CHILD {' '.join(children)}"] if children else []
        for kind in ("PRE", "POST"):
            if draw(st.booleans()):
                defer = draw(st.sampled_from(["", "DEFER 2 5 "]))
                lines.append(f"SCRIPT {defer}{kind} {name} x")
                results[f"{name} {kind}"] = draw(few)
        lines.append(f"RETRY {name} {draw(st.integers(0, 2))}")
        lines.append(f"PRIORITY {name} {draw(st.integers(-1, 1))}")
        if draw(st.booleans()):
            lines.append(f"CATEGORY {name} c")
        if draw(st.integers(0, 9)) == 0:
            lines.append(f"ABORT-DAG-ON {name} 2 RETURN 5")
        results[name] = draw(few)
        results[f"{name} REFUSED"] = draw(st.lists(st.just(1), max_size=1))
    lines.append("MAXJOBS c 1")
    if draw(st.booleans()):
        lines.append("FINAL F x.sub")
    limits = Limits(*[draw(st.integers(0, 2)) for _ in range(4)], draw(st.booleans()))
    world = World("\n".join(lines), limits, results)
    world.procs = {name: draw(st.integers(1, 3)) for name in names}
    return world


@settings(max_examples=400, deadline=None)
@given(worlds(), st.lists(st.integers(0, 50), min_size=1, max_size=40), st.sets(st.integers(0, 60)))
def test_any_dag_in_any_order_with_crashes(world: World, choices: list[int], crashes: set[int]) -> None:
    dag = world.machine.dag
    parents: dict[str, set[str]] = {name: set() for name in dag.nodes}
    for edges in dag.edges:
        for child in edges.children:
            parents[child].update(edges.parents)
    turn, seen = 0, 0
    while world.machine.exit_code is None:
        if turn in crashes:
            world.crash()
        assert world.open or world.in_queue, "nothing can happen any more"
        world.step(choices[turn % len(choices)])
        turn += 1
        machine, limits = world.machine, world.limits
        busy = machine.count(State.SUBMITTING, State.QUEUED)
        assert not limits.jobs or busy <= limits.jobs
        assert not limits.pre or machine.count(State.PRE) <= limits.pre
        assert not limits.post or machine.count(State.POST) <= limits.post
        in_category = [r for r in machine.nodes if r.node.category and r.state in (State.SUBMITTING, State.QUEUED)]
        assert len(in_category) <= 1
        for line in world.log[seen:]:
            word, name = line.split()
            if word in ("submit", "PRE"):
                assert all(machine.runs[parent].state == State.DONE for parent in parents[name])
        seen = len(world.log)
    attempts = [line for line in world.log if line.startswith("submit ")]
    for name, run in world.machine.runs.items():
        assert attempts.count(f"submit {name}") <= run.attempt + 1 <= run.node.retries + 1
        if run.node.is_done:
            assert f"submit {name}" not in attempts
        if run.state == State.FUTILE:
            assert any(world.machine.runs[one].state in (State.FAILED, State.FUTILE) for one in parents[name])
    if world.machine.ending == Ending.OK:
        assert all(run.state == State.DONE for run in world.machine.nodes)
        assert world.machine.exit_code == 0


def done(machine: Machine) -> str:
    return "".join(name for name, run in machine.runs.items() if run.state == State.DONE)


def test_a_failed_node_stops_its_descendants_only() -> None:
    text = "JOB A x\nJOB B x\nJOB C x\nJOB D x\nJOB E x\nPARENT A CHILD B C\nPARENT B C CHILD D\nPARENT C CHILD E"
    machine = World(text, results={"B": [3]}).run()
    assert (machine.exit_code, machine.ending, done(machine)) == (1, Ending.NODE_FAILED, "ACE")
    assert machine.runs["D"].state == State.FUTILE
    rescue = write_rescue(machine, "x.dag", "2026-01-02 03:04:05")
    assert "# Nodes premarked DONE: 3\n# Nodes that failed: 1\n#   B,<ENDLIST>\n\nDONE A\nDONE C\nDONE E\n" in rescue
    again = World(text + "\n" + "\n".join(line for line in rescue.splitlines() if line.startswith("DONE")))
    assert done(again.run()) == "ABCDE"
    assert [line for line in again.log if line.startswith("submit")] == ["submit B", "submit D"]
    dag = new_dag(text)
    read_rescue(dag, rescue)
    assert [name for name, node in dag.nodes.items() if node.is_done] == ["A", "C", "E"]


@pytest.mark.parametrize(
    ("lines", "results", "log"),
    [
        ("SCRIPT PRE A x\nSCRIPT POST A x", {"A": [1]}, ["PRE A", "submit A", "end A", "POST A"]),
        ("SCRIPT PRE A x\nSCRIPT POST A x", {"A PRE": [1]}, ["PRE A"]),
        ("SCRIPT PRE A x\nPRE_SKIP A 4\nSCRIPT POST A x", {"A PRE": [4]}, ["PRE A"]),
        ("SCRIPT DEFER 4 9 PRE A x", {"A PRE": [4, 4]}, ["PRE A", "PRE A", "PRE A", "submit A", "end A"]),
        ("SCRIPT POST A x\nRETRY A 1", {"A POST": [1]}, ["submit A", "end A", "POST A"] * 2),
        ("RETRY A 5 UNLESS-EXIT 2", {"A": [1, 2]}, ["submit A", "end A"] * 2),
        ("RETRY A 3\nABORT-DAG-ON A 9", {"A": [9]}, ["submit A", "end A"]),
        ("SCRIPT POST A x", {"A REFUSED": [1]}, ["POST A"]),
    ],
)
def test_parts_of_a_node(lines: str, results: dict[str, list[int]], log: list[str]) -> None:
    world = World(f"JOB A x\n{lines}", results=results)
    world.run()
    assert world.log == log


@pytest.mark.parametrize(
    ("lines", "results", "code", "result"),
    [
        ("", {"A": [7]}, 1, 7),
        ("", {"A": [-9]}, 1, -9),
        ("", {"A REFUSED": [1]}, 1, REFUSED),
        ("SCRIPT PRE A x", {"A PRE": [6]}, 1, 6),
        ("SCRIPT POST A x", {"A": [7]}, 0, 0),
        ("ABORT-DAG-ON A 3", {"A": [3]}, 3, 3),
        ("ABORT-DAG-ON A 3 RETURN 0", {"A": [3]}, 0, 3),
        ("FINAL F x", {"A": [3]}, 0, 3),
        ("FINAL F x", {"F": [1]}, 1, 0),
    ],
)
def test_exit_codes(lines: str, results: dict[str, list[int]], code: int, result: int) -> None:
    machine = World(f"JOB A x\n{lines}", results=results).run()
    assert (machine.exit_code, machine.runs["A"].result) == (code, result)


def test_post_scripts_run_after_a_failed_pre_script_when_asked_to() -> None:
    world = World("JOB A x\nSCRIPT PRE A x\nSCRIPT POST A x", Limits(always_run_post=True), {"A PRE": [1]})
    world.step(0)
    assert world.machine.runs["A"].result == PRE_FAILED
    assert world.run().exit_code == 0


def test_the_rest_of_a_job_is_removed_when_one_proc_fails() -> None:
    world = World("JOB A x", results={"A": [4]})
    world.procs = {"A": 3}
    world.step(0)
    world.step(0)
    assert world.open == [Remove("A", 1)]
    assert world.run().runs["A"].result == 4


def test_stop_removes_jobs_and_runs_the_final_node() -> None:
    world = World("JOB A x\nJOB B x\nPARENT A CHILD B\nFINAL F x")
    world.step(0)
    world.put("stop", 2, int(Ending.REMOVED))
    machine = world.run()
    assert (machine.exit_code, world.log) == (2, ["submit A", "submit F", "end F"])


def test_events_may_come_before_the_answer() -> None:
    world = World("JOB A x", Limits(idle=1))
    world.put("executing", 1, 0)
    world.put("ended", 1, 0, 5)
    world.put("submitted", "A", 1, 1)
    assert (world.machine.exit_code, world.machine.runs["A"].result) == (1, 5)


def test_first_comes_who_is_wanted_most() -> None:
    world = World("JOB A x\nJOB B x\nJOB C x\nPRIORITY C 5\nPRIORITY B -1", Limits(jobs=1))
    world.run()
    assert [line for line in world.log if line.startswith("submit")] == ["submit C", "submit A", "submit B"]


def test_a_halted_dag_begins_nothing() -> None:
    world = World("JOB A x\nJOB B x\nPARENT A CHILD B")
    world.put("halt", True)
    world.step(0)
    world.step(0)
    assert (world.open, world.machine.exit_code) == ([], None)
    world.crash()
    world.put("halt", False)
    assert world.run().exit_code == 0


def test_idle_procs_are_counted() -> None:
    world = World("JOB A x\nJOB B x\nJOB C x", Limits(idle=2))
    world.procs = {"A": 2}
    world.step(0)
    assert world.machine.count(State.READY) == 1
    world.open.clear()
    world.put("executing", 1, 0)
    world.put("executing", 1, 1)
    assert [type(action) for action in world.open] == [Submit]
    world.put("idle", 1, 1)


def test_ten_thousand_nodes_in_layers() -> None:
    layers = [[f"L{layer}N{index}" for index in range(100)] for layer in range(100)]
    lines = [f"JOB {name} x" for layer in layers for name in layer]
    lines += [f"PARENT {' '.join(before)} CHILD {' '.join(after)}" for before, after in pairwise(layers)]
    world = World("\n".join(lines))
    clusters = 0
    while world.machine.exit_code is None:
        some, world.open = world.open, []
        for action in some:
            assert isinstance(action, Submit)
            clusters += 1
            world.put("submitted", action.node, clusters, 1)
            world.put("ended", clusters, 0, 0)
    assert (world.machine.exit_code, clusters) == (0, 10_000)


def test_what_the_user_log_says() -> None:
    whole = (
        b"000 (012.000.000) 2026-01-02 03:04:05 Job submitted from host: <h>\n...\n"
        b"001 (012.000.000) 2026-01-02 03:04:05 Job executing on host: <h>\n\tSlotName: s\n...\n"
        b"004 (012.000.000) 2026-01-02 03:04:05 Job was evicted.\n...\n"
        b"012 (012.001.000) 2026-01-02 03:04:05 Job was held.\n...\n"
        b"005 (012.000.000) 2026-01-02 03:04:05 Job terminated.\n\t(1) Normal termination (return value 3)\n...\n"
        b"005 (012.001.000) 2026-01-02 03:04:05 Job terminated.\n\t(0) Abnormal termination (signal 9)\n...\n"
        b"009 (100000.002.000) 2026-01-02 03:04:05 Job was aborted.\n...\n"
    )
    events = [
        ("executing", 12, 0), ("idle", 12, 0), ("held", 12, 1),
        ("ended", 12, 0, 3), ("ended", 12, 1, -9), ("ended", 100000, 2, REMOVED),
    ]  # fmt: skip
    assert read_log(whole) == (events, len(whole))
    for cut in range(len(whole)):
        some, size = read_log(whole[:cut])
        rest, more = read_log(whole[size:])
        assert some + rest == events
        assert size + more == len(whole)
