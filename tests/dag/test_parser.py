"""DAG files: what is understood, and what is said of the rest."""

from __future__ import annotations

import pytest

from pilotq.dag.model import Dag, DagError
from pilotq.dag.parser import parse


def read(use_dag_dir: bool = False, **files: str) -> Dag:
    texts = {name.replace("__", "/").replace("_", "."): text for name, text in files.items()}
    return parse([name for name in texts if name.endswith("dag")], texts.__getitem__, use_dag_dir)


def edges(dag: Dag) -> list[tuple[list[str], list[str]]]:
    return [(edge.parents, edge.children) for edge in dag.edges]


def test_nodes_and_edges() -> None:
    dag = read(
        x_dag="# x\nparent A B child C \\\n D\njob A a.sub\nJob B b.sub DIR sub NOOP\nJOB C c.sub DONE\nJOB D a.sub"
    )
    assert list(dag.nodes) == ["A", "B", "C", "D"]
    assert edges(dag) == [(["A", "B"], ["C", "D"])]
    assert (dag.nodes["B"].directory, dag.nodes["B"].is_noop, dag.nodes["C"].is_done) == ("sub", True, True)


def test_descriptions_in_the_file() -> None:
    dag = read(
        x_dag="JOB A {\n executable = x\n queue\n}\nSUBMIT-DESCRIPTION s {\narguments = $(x)\n}\nJOB B s\nJOB C t"
    )
    assert dag.nodes["A"].inline == " executable = x\n queue\n"
    assert (dag.nodes["B"].inline, dag.nodes["C"].inline, dag.nodes["C"].file) == ("arguments = $(x)\n", "", "t")


def test_what_is_said_of_nodes() -> None:
    dag = read(
        x_dag="""
JOB A a.sub
JOB B b.sub
FINAL F f.sub
SCRIPT DEFER 4 30 DEBUG out.txt ALL PRE A check.sh $NODE x
SCRIPT POST ALL_NODES after
RETRY ALL_NODES 3
RETRY B 1 UNLESS-EXIT 2
VARS A x="a \\"b\\" \\\\" +Attr="1" x2="y"
VARS A APPEND x="z"
ABORT-DAG-ON B 7 RETURN 1
PRE_SKIP A 5
PRIORITY B -3
CATEGORY A big
MAXJOBS big 2
NODE_STATUS_FILE status.txt 30
JOBSTATE_LOG states.log
CONFIG dag.config
ENV GET HOME,PATH
ENV SET A=1;B=x y
SET_JOB_ATTR Project = "x"
DOT x.dot
"""
    )
    a, b, final = dag.nodes["A"], dag.nodes["B"], dag.nodes["F"]
    assert (a.scripts["PRE"].argv, a.scripts["PRE"].defer) == (["check.sh", "$NODE", "x"], (4, 30))
    assert a.scripts["PRE"].debug == ("out.txt", "ALL")
    assert ["POST" in node.scripts for node in (a, b, final)] == [True, True, False]
    assert [(n.retries, n.unless_exit) for n in (a, b)] == [(3, None), (1, 2)]
    assert [(v.key, v.value, v.is_appended) for v in a.vars] == [
        ("+Attr", "1", None),
        ("x2", "y", None),
        ("x", "z", True),
    ]
    assert (b.abort_on, a.pre_skip, b.priority, a.category, dag.categories) == ((7, 1), 5, -3, "big", {"big": 2})
    assert dag.final == "F"
    assert (dag.env_get, dag.env_set) == (["HOME", "PATH"], [("A", "1"), ("B", "x y")])
    assert [warning.split()[3] for warning in dag.warnings] == [
        "NODE_STATUS_FILE", "JOBSTATE_LOG", "CONFIG", "SET_JOB_ATTR", "DOT",
    ]  # fmt: skip


def test_splices() -> None:
    dag = read(
        x_dag="JOB A a\nSPLICE S s.spl DIR in\nSPLICE T s.spl\nJOB Z z\n"
        "PARENT A CHILD S\nPARENT S CHILD T\nPARENT T CHILD Z",
        in__s_spl="JOB X x\nJOB Y y\nPARENT X CHILD Y\nCATEGORY X c\nMAXJOBS c 1\nCATEGORY Y +all",
        s_spl="JOB X x\nJOB Y y",
    )  # fmt: skip
    assert list(dag.nodes) == ["A", "S+X", "S+Y", "T+X", "T+Y", "Z"]
    assert edges(dag) == [
        (["S+X"], ["S+Y"]), (["A"], ["S+X"]), (["S+Y"], ["T+X", "T+Y"]), (["T+X", "T+Y"], ["Z"]),
    ]  # fmt: skip
    assert (dag.nodes["S+X"].category, dag.nodes["S+Y"].category, dag.categories) == ("S+c", "all", {"S+c": 1})
    assert dag.nodes["S+X"].directory == "in"


def test_several_files_and_their_directories() -> None:
    dag = read(use_dag_dir=True, a__x_dag="JOB A a.sub DIR d\nINCLUDE more", y_dag="JOB A a.sub", a__more="JOB B b.sub")
    assert {name: node.directory for name, node in dag.nodes.items()} == {"0.A": "a/d", "0.B": "a", "1.A": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("JOB A", '"x.dag" (line 1): JOB takes a name and a file'),
        ("\nJOB A a\nJOB A b", '"x.dag" (line 3): node A is defined twice'),
        ("JOB parent a", '"x.dag" (line 1): a node cannot be called parent'),
        ("JOB A+B a", '"x.dag" (line 1): the name of a node cannot have a + in it: A+B'),
        ("JOB A a\nPARENT A CHILD B", '"x.dag" (line 2): there is no node B'),
        ("JOB A a\nPARENT A CHILD", '"x.dag" (line 2): it should be PARENT P ... CHILD C ...'),
        ("JOB A a WHAT", '"x.dag" (line 1): WHAT is not an option of JOB'),
        ("JOB A {\nqueue", '"x.dag" (line 1): the { of this line has no line with a } of its own'),
        ("HELLO A", '"x.dag" (line 1): HELLO is not a keyword of DAG files'),
        ("JOB A a\nRETRY A many", '"x.dag" (line 2): many is not a number'),
        ("JOB A a\nRETRY A -1", '"x.dag" (line 2): -1 is not a number from 0'),
        ("JOB A a\nABORT-DAG-ON A 1 RETURN 256", '"x.dag" (line 2): 256 is not a number from 0 to 255'),
        ("JOB A a\nVARS A x=1", '"x.dag" (line 2): this is not NAME="VALUE": x=1'),
        ("FINAL F f\nFINAL G f", '"x.dag" (line 2): there is a FINAL node already: F'),
        ("FINAL F f\nJOB A a\nPARENT A CHILD F", '"x.dag" (line 3): the FINAL node F cannot be a parent or a child'),
        ("PROVISIONER P p", '"x.dag" (line 1): PROVISIONER is not supported by pilotq'),
        ("REJECT", '"x.dag" (line 1): REJECT: this DAG is not meant to be run'),
        (
            "JOB A a\nJOB B b\nPARENT A CHILD B\nPARENT B CHILD A",
            "there is a cycle in the DAG: node A waits for itself",
        ),
        ("JOB A a\nPARENT A CHILD A", "there is a cycle in the DAG: node A waits for itself"),
        ("INCLUDE x.dag", '"x.dag": files are nested too deep'),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(DagError) as error:
        read(x_dag=text)
    assert str(error.value).startswith(said)


def test_all_to_all_edges_cost_what_is_written() -> None:
    many = 20_000
    sides = [" ".join(f"{side}{index}" for index in range(many)) for side in "ab"]
    jobs = "\n".join(f"JOB {name} x" for name in " ".join(sides).split())
    dag = read(x_dag=f"{jobs}\nPARENT {sides[0]} CHILD {sides[1]}")
    assert len(dag.nodes) == 2 * many
