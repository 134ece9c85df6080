"""HTCondor's own parser and ours read the same descriptions: the job ads are the same, attribute by attribute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import judging
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging import Judge

CORPUS = Path(__file__).parent / "corpus"
pytestmark = pytest.mark.skipif(not judging.PYTHON.exists(), reason=f"no {judging.PYTHON}: tests/judge makes it")

#: Descriptions of which the two do not think the same, and why.
_UNSEEN = "an executable that is not transferred is not looked at, as it lies on another machine"
_EMPTY = "an empty row is no job; the library makes one with the values of the row before"
DIFFERENT = {
    "conditions: versions": "a version of one number is taken; the library wants two at least",
    "macros: a default with a sign": "a default may have any sign; the library then leaves the macro as it is",
    "macros: functions in functions": "a function's body may be the value of another; the library ends the process",
    "payload: an executable that stays where it is": _UNSEEN,
    "payload: a relative executable that stays where it is": _UNSEEN,
    "queue: rows with comments and empty lines": _EMPTY,
    "queue: rows of a file": _EMPTY,
    "queue: rows of a command": _EMPTY,
}


def descriptions() -> Iterator[tuple[str, str]]:
    """Purpose and text of all."""
    for path in sorted(CORPUS.glob("*.subs")):
        for part in path.read_text().split("### ")[1:]:
            purpose, _, text = part.partition("\n")
            yield f"{path.stem}: {purpose}", text


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.close()


def test_the_corpus_is_large_and_no_purpose_is_twice_in_it() -> None:
    purposes = [purpose for purpose, _ in descriptions()]
    assert len(set(purposes)) == len(purposes) >= 150
    assert set(DIFFERENT) <= set(purposes)


@pytest.mark.parametrize(("purpose", "text"), [pytest.param(*one, id=one[0]) for one in descriptions()])
def test_a_description(judge: Judge, tmp_path: Path, purpose: str, text: str) -> None:
    found = judging.differences(judging.ours(text, tmp_path), judge.ask(text))
    if purpose in DIFFERENT:
        assert found, f"no difference any more: {DIFFERENT[purpose]}"
    else:
        assert not found, "\n".join(found)


# ---- generated ones ----------------------------------------------------------------------------------------------

word = st.text("abzXY019_.:/@%+,-", min_size=1, max_size=6)
#: What the two syntaxes of arguments and environment quote.
wild = st.text("ab '\"\\;=$(", max_size=8)
name = st.sampled_from(["x", "y", "Item", "Process", "Cluster", "Step", "nothing", "A.b"])
reference = st.one_of(
    name.map("$({})".format),
    st.tuples(name, st.text("ab0_./,:", min_size=1)).map(lambda two: "$({}:{})".format(*two)),
    st.sampled_from(["$ENV(A_ONE)", "$ENV(NONE:d)", "$Fn(p)", "$Fpx(p)", "$INT(n)", "$INT(n,%03d)", "$SUBSTR(p,1,3)"]),
    st.sampled_from(["$CHOICE(0,a,b)", "$REAL(n,%.2f)", "$BASENAME(p)", "$STRING(p)", "$(DOLLAR)(x)", "$$(Cpus)"]),
)
mixed = st.lists(st.one_of(word, reference), max_size=4).map(" ".join)
size = st.tuples(st.sampled_from(["1", "2.5", "0", "1000", "3"]), st.sampled_from(["", "K", "M", "G", "MB", " g"])).map(
    "".join
)
expression = st.sampled_from(
    [
        "true",
        "False",
        "1 + 2",
        '"a b"',
        "JobStatus == 2",
        "time() - QDate > 60",
        "ExitCode =?= 0 || x",
        "{1, 2}",
        "2.50",
    ]
)
signal = st.sampled_from(["SIGINT", "sigkill", "SIGUSR1", "15", "SIGFOO"])
values: dict[str, st.SearchStrategy[str]] = {
    "x": mixed,
    "y": word,
    "arguments": st.one_of(mixed.map("a {}".format), wild, wild.map('"{}"'.format)),
    "environment": st.one_of(
        wild, wild.map('"A={}"'.format), st.tuples(word, word).map(lambda two: "A={};B={}".format(*two))
    ),
    "getenv": st.sampled_from(["A_*", "A_ONE, B_QUOTE", "false"]),
    "request_memory": st.one_of(size, st.sampled_from(["10 * 3", "MemoryUsage * 2", "Foo"])),
    "request_disk": size,
    "request_cpus": st.sampled_from(["1", "4", "1 + 1", "Foo"]),
    "request_thing": st.sampled_from(["1", "0", "2"]),
    "requirements": st.sampled_from(["Memory > 5", 'Arch == "x"', "TARGET.Cpus >= 2 && HasFileTransfer", "true"]),
    "+Attr": st.one_of(expression, mixed.map('"{}"'.format)),
    "MY.Other": expression,
    "periodic_remove": expression,
    "on_exit_hold": expression,
    "max_retries": st.sampled_from(["0", "3"]),
    "retry_until": st.sampled_from(["5", "ExitCode > 1"]),
    "kill_sig": signal,
    "output": st.tuples(word, reference).map(
        lambda two: "o{}.{}z".format(two[0].replace("/", "_"), two[1].replace("/", "").replace("p", "n"))
    ),
    "priority": st.sampled_from(["1", "-3", "2 + 2"]),
    "batch_name": word,
    "accounting_group": st.sampled_from(["a", "a.b"]),
    "leave_in_queue": expression,
    "transfer_input_files": st.sampled_from(["a.dat", "data", "a.dat, data/one.txt"]),
    "should_transfer_files": st.sampled_from(["YES", "no", "If_Needed", "what"]),
    "hold": st.sampled_from(["true", "false"]),
}
line = st.sampled_from(sorted(values)).flatmap(lambda key: values[key].map(lambda value: f"{key} = {value}\n"))
queue = st.one_of(
    st.sampled_from(["queue\n", "queue 2\n", "queue x in (a, b)\n", "queue 2 y in a b\n", "queue x matching *.dat\n"]),
    st.lists(mixed.filter(str.strip), min_size=1, max_size=3).map(
        lambda rows: "queue x, y from (\n" + "\n".join(row.lstrip("#") for row in rows) + "\n)\n"
    ),
    st.sampled_from(["queue x in [1:] (a b c)\n", "queue x from [::2] table.csv\n", "queue x, y from table.csv\n"]),
)


# The same ones each time: what the library thinks of odd text has no end.
@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(line, max_size=6).map("".join), queue)
def test_a_generated_description(judge: Judge, tmp_path: Path, lines: str, statement: str) -> None:
    text = "executable = job.sh\np = /d/file.txt\nn = 3\n" + lines + statement
    theirs = judge.ask(text)
    if theirs.error == "the library ended the process":
        return
    found = judging.differences(judging.ours(text, tmp_path), theirs)
    assert not found, "\n".join(found)
