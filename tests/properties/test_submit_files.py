"""Whatever a submit file holds, the answer is a plan, wants, or a clear refusal."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from pilotq.condor.expressions import valid
from pilotq.condor.keywords import KNOWN
from pilotq.condor.request import Answer, Reply, Request, Want, raw, write_fields
from pilotq.condor.submit import Plan, Site, plan_submit, submitted

SITE = Site("head", "head", valid=valid)

scraps = st.sampled_from(
    [
        *["$(x)", "$(Process)", "$(Cluster)", "$(Item)", "$INT(", "$Fn(x)", "$CHOICE(x,a)", "$(", ")", "(", "$$(x)"],
        *["/dev/null", "/", "../..", ".", "d/", "true", "1", "-1", "2.5G", "0", "9" * 30, ";", ",", "=", "\\", "\t"],
        *["JobStatus == 1", "1 +", "\udcff", "\u00e4", "http://x/y", "[1:2]", "in", "from", "matching", "+", "MY."],
        *['"', "'", '""', "a b", "%d"],
    ]
)
value = st.lists(scraps, max_size=4).map("".join)
key = st.sampled_from([*sorted(KNOWN), "+X", "MY.Y", "+PreCmd", "+PreArguments", "+TransferOutput", "request_foo", "x"])
line = st.one_of(
    st.tuples(key, value).map(" = ".join),
    value,
    st.tuples(st.sampled_from(["queue", "if", "elif", "else", "endif", "include :", "include", "use"]), value).map(
        " ".join
    ),
    st.sampled_from(
        ["queue 2", "queue x in (a b)", "queue x from (\na 1\n)", "endif", "executable = e", "x @=e\na\n@e"]
    ),
)
file = st.lists(line, max_size=12).map("\n".join)


def answered(kind: str, argument: str, number: int) -> Answer:
    """What a user's side may say: also that nothing is there."""
    if number % 4 == 3:
        return Answer(False, error=os.strerror(2), errno=2)
    if number % 4 == 2 and kind == "store":
        return Answer(False, error=os.strerror(21), errno=21)
    fields = {
        "store": [b"ab" * 32, b"5", b"644", b"file"],
        "stat": [b"d", b"755", b"5"],
        "list": [b"a", b"f", b"b/c", b"f", b"b", b"d"],
        "glob": [b"fa", b"db", b"oc"],
    }
    return Answer(True, data=write_fields(fields[kind]) if kind in fields else b"x = 1\nqueue\n")


@settings(max_examples=400, deadline=None)
@given(file, st.integers(0, 3))
def test_any_file_is_answered(text: str, mood: int) -> None:
    answers: dict[Want, Answer] = {("read", "f"): Answer(True, data=raw("executable = e\n" + text + "\nqueue"))}
    for _ in range(30):
        request = Request("condor_submit", "k", ["f"], "/home/bob", {"A": "1"}, "bob", 1000, answers=answers)
        result = plan_submit(request, 1.7e9, SITE)
        if isinstance(result, Plan):
            reply = submitted(result, list(range(1, len(result.submissions) + 1)))
            assert reply.exit == 0
            return
        if not result.wants:
            refused(result)
            return
        answers |= {want: answered(*want, mood + len(answers)) for want in result.wants}
    raise AssertionError("it never has enough")


@given(
    st.lists(
        st.sampled_from(["-append", "-a", "-q", "-terse", "-dry", "-", "x=1", "f", "queue", "", "--", "-maxjobs", "3"])
    )
)
def test_any_command_line_is_answered(argv: list[str]) -> None:
    result = plan_submit(Request("condor_submit", "k", argv, "/home/bob", {}, "bob", 1000), 1.7e9, SITE)
    assert isinstance(result, Reply)
    if not result.wants and not result.out:
        refused(result)


def refused(reply: Reply) -> None:
    assert reply.exit == 1 and not reply.out
    assert reply.err.startswith("\nERROR: ")
    assert "\x00" not in reply.err and len(reply.err) < 10_000
