"""Print masks and whole ads, against HTCondor's own printers where it has them."""

from __future__ import annotations

import itertools
import json
import time
from xml.etree import ElementTree

import classad2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotq.condor import expressions, formats
from pilotq.condor.expressions import ad_of, canonical, literal, quote, unparse, unquote
from pilotq.condor.formats import Mask, format_column
from pilotq.errors import UserError

AD = ad_of(
    {
        "ClusterId": 12,
        "ProcId": 3,
        "JobStatus": 2,
        "Owner": '"alice"',
        "ExitBySignal": False,
        "RemoteUserCpu": 2.5,
        "Requirements": '(TARGET.Arch == "X86_64") && (Memory >= 1)',
        "Memory": "Base * 2",
        "Base": 64,
        "Nothing": "undefined",
        "Quoted": '"say \\"hi\\" in C:\\new"',
        "Items": '{1,"x"}',
        "QDate": 1_700_000_000,
    }
)


def shown(fmt: str, source: str) -> str:
    return format_column(fmt, source).render(AD, 0, time.gmtime)


@pytest.mark.parametrize(
    ("fmt", "source", "expected"),
    [
        ("%d", "ClusterId", "12"),
        ("%d\\n", "clusterid", "12\n"),
        ("%s\\n", "OWNER", "alice\n"),
        ("%d", "ExitBySignal", "0"),
        ("%f", "RemoteUserCpu", "2.500000"),
        ("%d", "RemoteUserCpu", "2"),
        ("%.1f|", "ClusterId", "12.0|"),
        ("[%5d]", "ProcId", "[    3]"),
        ("[%-8s]", "Owner", "[alice   ]"),
        ("%04d", "ProcId", "0003"),
        ("%x", "ClusterId", "c"),
        # Nothing of the format, its text included, when there is nothing to print ...
        ("code=%d\\n", "ExitCode", ""),
        ("%d", "Owner", ""),
        ("%s", "ExitCode", ""),
        # ... but blanks where it has a width, and the text alone where it has no conversion.
        ("<%6d>", "ExitCode", "      "),
        (",", "ALWAYS", ","),
        ("local_pool", "GridResource", "local_pool"),
        ("100%%\\n", "ALWAYS", "100%\n"),
        # Not a string: the expression as written.
        ("%s", "JobStatus", "2"),
        ("%s", "Memory", "Base * 2"),
        ("%s", "Requirements", '(TARGET.Arch == "X86_64") && (Memory >= 1)'),
        ("%s", "JobStatus + 1", ""),
        ("%s", 'strcat(Owner, "!")', "alice!"),
        ("%v", "Memory", "128"),
        ("%v %%", "Owner", "alice %"),
        ("%V", "Owner", '"alice"'),
        ("%v", "ExitCode", "undefined"),
        ("%r", "Memory", "Base * 2"),
        ("%T", "ClusterId", "0+00:00:12"),
        ("%Y", "QDate", "2023-11-14 22:13:20"),
        ("%d", "JobStatus == 2", "1"),
        ("%n", "JobStatus", "%n"),
        ("%*d", "JobStatus", "%*d"),
        ("\\t\\x41\\101\\\\", "ALWAYS", "\tAA\\"),
    ],
)
def test_format(fmt: str, source: str, expected: str) -> None:
    assert shown(fmt, source) == expected


def row(*options: tuple[str, list[str]]) -> str:
    mask = Mask()
    for letters, sources in options:
        mask.add_autoformat(letters, sources)
    return mask.row(mask.fields(AD, 0, time.gmtime))


@pytest.mark.parametrize(
    ("letters", "sources", "expected"),
    [
        ("", ["JobStatus", "Owner", "ExitCode"], "2 alice undefined\n"),
        ("", ["ExitBySignal", "RemoteUserCpu", "Items"], 'false 2.5 { 1,"x" }\n'),
        ("", ["JobStatus + 1", "1/0"], "3 error\n"),
        (",", ["JobStatus", "Owner", "ProcId"], "2, alice, 3\n"),
        ("t", ["JobStatus", "Owner"], "2\talice\n"),
        ("n", ["JobStatus", "Owner"], "2\n alice\n"),
        ("g", ["JobStatus", "Owner"], "\n2alice\n"),
        ("j", ["JobStatus"], "12.3 2\n"),
        ("l", ["JobStatus", "owner"], "JobStatus = 2 owner = alice\n"),
        ("V", ["JobStatus", "Owner", "Quoted"], '2 "alice" "say \\"hi\\" in C:\\new"\n'),
        ("r", ["Memory", "Missing"], "Base * 2 undefined\n"),
        ("lrng", ["JobStatus", "Owner"], '\nJobStatus = 2\nOwner = "alice"\n'),
        ("T", ["ClusterId"], "0+00:00:12\n"),
    ],
)
def test_autoformat(letters: str, sources: list[str], expected: str) -> None:
    assert row((letters, sources)) == expected


def test_autoformat_sets_the_separators_of_format_columns_too() -> None:
    mask = Mask()
    mask.add_autoformat("", ["JobStatus"])
    mask.add_format("local_pool", "GridResource")
    assert mask.row(mask.fields(AD, 0, time.gmtime)) == "2 local_pool\n"


def test_format_columns_alone_have_no_separators() -> None:
    mask = Mask()
    for fmt, source in [
        ("%d", "ClusterId"),
        (",", "ALWAYS"),
        ("%d", "ExitCode"),
        ("%d", "JobStatus"),
        ("\\n", "ALWAYS"),
    ]:
        mask.add_format(fmt, source)
    assert mask.row(mask.fields(AD, 0, time.gmtime)) == "12,2\n"


def test_unknown_autoformat_letter_is_refused() -> None:
    with pytest.raises(UserError, match="unknown -autoformat option q"):
        row(("q", ["Owner"]))


# ---- expressions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("JobStatus == 1 || JobStatus==2", True),
        ('owner =?= "ALICE"', False),
        ('OWNER == "ALICE"', True),
        ("MY.JobStatus == 2 && my.ProcId == 3", True),
        ("TARGET.JobStatus =?= undefined", True),
        ("CurrentTime - QDate > 5", True),
        ("time() == CurrentTime && time() == 1800000000", True),
        ("CurrentTime - QDate > 200000000", False),
        ("Memory == 128", True),
        ('Quoted == "say \\"hi\\" in C:\\new"', True),
        ("GridJobStatus =?= undefined", True),
        ('stringListMember("alice", "bob,alice")', True),
        ('regexp("^al", Owner)', True),
    ],
)
def test_evaluation(text: str, expected: bool) -> None:
    expression = expressions.compiled(text)
    assert expression.evaluate(AD, 1_800_000_000) is expected
    # A second time from memory.
    assert expression.evaluate(AD, 1_800_000_000) is expected


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("true", True),
        ("0.5", True),
        ("0", False),
        ("false", False),
        ("undefined", None),
        ("1/0", None),
        ('"true"', None),
        ("ExitCode", None),
    ],
)
def test_what_counts_as_true(text: str, truth: bool | None) -> None:
    value = expressions.compiled(text).evaluate(AD)
    assert expressions.truth(value) is truth
    assert expressions.is_true(value) is (truth is True)


def test_the_moment_is_not_remembered() -> None:
    late = expressions.compiled("CurrentTime > 100")
    assert [late.evaluate({}, now) for now in (50, 150, 50)] == [False, True, False]


def test_an_attribute_that_is_an_expression_is_not_remembered_by_its_text_alone() -> None:
    twice = expressions.compiled("Memory > 100")
    assert [twice.evaluate(ad_of({"Memory": "Base * 2", "Base": base}), 0) for base in (64, 1)] == [True, False]


def test_circular_attributes_come_to_nothing() -> None:
    assert expressions.evaluate("A", {"A": "B + 1", "B": "A + 1"}, 0) is expressions.UNDEFINED


@pytest.mark.parametrize("text", ["", "1 2", "a ==", "a = 3", "(", '"x', "a b", "(" * 5000 + ")" * 5000, "a" * 70_000])
def test_what_is_not_an_expression(text: str) -> None:
    assert not expressions.valid(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ClusterId == 5 && ProcId == 0", [(5, 0)]),
        ("(ClusterId==5)&&(procid =?= 7)", [(5, 7)]),
        ("ClusterId == 5 && JobStatus < 3", [(5, None)]),
        ('Owner == "a||b" && ((ClusterId == 5))', [(5, None)]),
        ("ClusterId == 5 || ClusterId == 6", [(5, None), (6, None)]),
        ("(ClusterId == 5 && ProcId == 1) || (ClusterId == 6)", [(5, 1), (6, None)]),
        ("((ClusterId == 5) || ClusterId == 6) && ProcId == 2 && JobStatus != 3", [(5, 2), (6, 2)]),
        ("ClusterId == 5 && ClusterId == 6", []),
        ("ProcId == 3", [(None, 3)]),
        ("ClusterId == 5 || ProcId == 0", [(5, None), (None, 0)]),
        ("ClusterId == 5 || JobStatus == 1", [(5, None), (None, None)]),
        ("!(JobStatus == 1 && ClusterId == 5)", [(None, None)]),
        ("!(JobStatus == 1 && ClusterId == 5 && ProcId == 1)", [(None, None)]),
        ("ClusterId == 5 == false", [(None, None)]),
        ("(ClusterId == 5) == false", [(None, None)]),
        ("ClusterId == 5 + 1", [(None, None)]),
        ("ClusterId == 5 ? false : true", [(None, None)]),
        ("ClusterId != 5", [(None, None)]),
        ('Owner == "ClusterId == 5 && ProcId == 1"', [(None, None)]),
        ("ifThenElse(a && ClusterId == 5 && b, 0, 1)", [(None, None)]),
        ("(", [(None, None)]),
        ("", [(None, None)]),
    ],
)
def test_id_bounds(text: str, expected: list[tuple[int | None, int | None]]) -> None:
    assert expressions.id_bounds(text) == expected


_LEAVES = st.sampled_from(["ClusterId == 1", "ClusterId == 2", "ProcId == 0", "ProcId =?= 1", "X", "X == 2", "true"])
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||", "=="]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(" ".join),
        inner.map(lambda text: f"!({text})"),
    ),
    max_leaves=8,
)


@given(_TREES)
def test_id_bounds_leave_out_no_job(text: str) -> None:
    bounds = expressions.id_bounds(text)
    for cluster, proc, flag in itertools.product((1, 2, 3), (0, 1, 2), ("true", "false")):
        ad = ad_of({"ClusterId": cluster, "ProcId": proc, "X": flag})
        if expressions.is_true(expressions.compiled(text).evaluate(ad)):
            assert any(a in (None, cluster) and b in (None, proc) for a, b in bounds), (text, cluster, proc)


def test_many_ids_are_read_in_one_pass() -> None:
    text = "ClusterId == 0"
    for number in range(1, 500):
        text = f"({text} || (ClusterId == {number} && ProcId == 1))"
    assert expressions.id_bounds(text)[-1] == (499, 1)
    assert len(expressions.id_bounds(text)) == 500


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_strings_come_back(value: str) -> None:
    assert unquote(quote(value)) == value
    assert expressions.find("x").evaluate(ad_of({"x": quote(value)}), 0) == value  # type: ignore[union-attr]


@given(st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_values_are_printed_as_htcondor_prints_them(value: float | bool) -> None:
    assert unparse(value) == classad2.ClassAd({"x": value}).printOld()[4:-1]
    assert isinstance(expressions.compiled(unparse(value)).evaluate({}), type(value))


@given(st.lists(st.one_of(st.integers(-99, 99), st.text('ab"\\/é'), st.booleans()), max_size=3))
def test_json_is_htcondors(values: list[object]) -> None:
    ad = {f"A{index}": unparse(value) for index, value in enumerate(values)}
    theirs = classad2.ClassAd({f"A{index}": value for index, value in enumerate(values)}).printJson()
    assert json.loads(formats.json_object(ad)) == json.loads(theirs)


# ---- whole ads -------------------------------------------------------------------------------------------------

WHOLE = {
    "Cmd": '"/bin/echo"',
    "ExitBySignal": "false",
    "JobStatus": "2",
    "Missing": "undefined",
    "Requirements": "(a  =?= UNDEFINED)&&b",
    "UserCpu": "2.5",
    "Words": '{1,"<x>"}',
}


def test_long() -> None:
    assert formats.long_text(WHOLE) == (
        'Cmd = "/bin/echo"\nExitBySignal = false\nJobStatus = 2\nMissing = undefined\n'
        'Requirements = (a =?= undefined) && b\nUserCpu = 2.5\nWords = {1,"<x>"}\n\n'.replace(
            '{1,"<x>"}', '{ 1,"<x>" }'
        )
    )


def test_json() -> None:
    assert formats.json_object(WHOLE).splitlines() == [
        "{",
        '  "Cmd": "/bin/echo",',
        '  "ExitBySignal": false,',
        '  "JobStatus": 2,',
        '  "Missing": null,',
        '  "Requirements": "\\/Expr((a is undefined) && b)\\/",',
        '  "UserCpu": 2.5,',
        '  "Words": [',
        "    1,",
        '    "<x>"',
        "  ]",
        "}",
    ]
    assert json.loads(formats.json_line(WHOLE)) == json.loads(formats.json_object(WHOLE))
    assert "\n" not in formats.json_line(WHOLE)


def test_xml() -> None:
    text = formats.XML_HEAD + formats.xml_text({**WHOLE, "Bad": '"\x01&"', "Oops": "error"}) + formats.XML_FOOT
    found = {a.get("n"): a[0] for a in ElementTree.fromstring(text)[0]}
    assert {name: (a.tag, a.text) for name, a in found.items() if len(a) == 0} == {
        "Cmd": ("s", "/bin/echo"),
        "ExitBySignal": ("b", None),
        "JobStatus": ("i", "2"),
        "Missing": ("un", None),
        "Requirements": ("e", "(a =?= undefined) && b"),
        "UserCpu": ("r", "2.500000000000000E+00"),
        "Bad": ("s", "?&"),
        "Oops": ("er", None),
    }
    assert found["ExitBySignal"].get("v") == "f"
    assert [(a.tag, a.text) for a in found["Words"]] == [("i", "1"), ("s", "<x>")]
    assert text.startswith(
        '<?xml version="1.0"?>\n<!DOCTYPE classads SYSTEM "classads.dtd">\n<classads>\n<c>\n    <a n="'
    )


def test_canonical_text_is_htcondors() -> None:
    assert canonical("a=?=UNDEFINED&&(b||time()>3.0)") == "a =?= undefined && (b || time() > 3.0)"
    assert canonical('"a\\nb"') == '"a\\nb"'
    assert canonical("not ( an expression") == "not ( an expression"
    assert literal("TRUE") is True
