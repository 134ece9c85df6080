"""The submit language: lines, macros, conditions, includes, queue statements."""

from __future__ import annotations

import pytest
from submitting import HOME, User, argvs, proc

from pilotq.condor.lexer import Assign, Directive, Queue, Unknown, statements
from pilotq.condor.submit import Plan

EXE = "executable = job.sh\n"


def arguments(text: str, tail: str = "queue\n") -> list[str]:
    """What `arguments` of the first job come to, as written."""
    return [" ".join(words) for words in argvs(User().one(EXE + text + tail))]


# ---- lines -------------------------------------------------------------------------------------------------------


def test_lines() -> None:
    text = (
        '\ufeffA = 1\r\n  b.c=  two words  \n\t+X = "y"\nMY.Z = 3\n# comment \\\n\nlong = a \\\n   b\\  \nc\n'
        "block @=end\n one\n# two\n@end\nif defined x\n@include : f\nerror = e\nerror : e\nno line\nQUEUE\tn in a"
    )
    assert list(statements(text, "f")) == [
        Assign(1, "A", "1"),
        Assign(2, "b.c", "two words"),
        Assign(3, "MY.X", '"y"'),
        Assign(4, "MY.Z", "3"),
        Assign(7, "long", "a bc"),
        Assign(10, "block", "one\n# two"),
        Directive(14, "if", "defined x"),
        Directive(15, "include", ": f"),
        Assign(16, "error", "e"),
        Directive(17, "error", ": e"),
        Unknown(18, "no line"),
        Queue(19, "n in a", None),
    ]


def test_a_list_on_lines_of_its_own() -> None:
    text = "queue $INT(N) x from (\n a b\n\n # no\n c\n)\nqueue x in (a\nb)\n)\n"
    assert list(statements(text, "f")) == [
        Queue(1, "$INT(N) x from ", ["a b", "c"]),
        Queue(7, "x in ", ["a", "b)"]),
    ]


def test_a_file_without_a_final_newline_and_with_dos_line_ends() -> None:
    submission = User().one("executable = job.sh\r\narguments = a \\\r\n b\r\nqueue 2")
    assert (submission.count, argvs(submission)[0]) == (2, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("queue x from (\na\n", 2, "there is no closing )"),
        ("x @=e\na\nqueue\n", 2, "there is no closing @e"),
        ("x-y = 1\nqueue\n", 2, "this is neither"),
        ("queue = 5\n", 2, "invalid queue statement"),
        ("queue foo\n", 2, "Invalid Queue count expression"),
        ("queue -1\n", 2, "Queue count out of range"),
        ("queue 99999999999\n", 2, "Queue count out of range"),
        ("queue x in (a b) c\n", 2, "invalid queue statement"),
        ("else\nqueue\n", 2, "else without matching if"),
        ("x = 1\nif $(x) == 1\nendif\nqueue\n", 3, "complex conditionals are not supported"),
        ("use foo:bar\nqueue\n", 2, "'use' is not supported"),
        ("error : no such site\nqueue\n", 2, "no such site"),
        ("include : none\nqueue\n", 2, "cannot include none (No such file or directory)"),
        ("queue x from none\n", 2, "queue from: cannot open file none (No such file or directory)"),
    ],
)
def test_what_cannot_be_understood_is_told_with_its_line(text: str, line: int, said: str) -> None:
    refusal = User().refused(EXE + text)
    assert f"ERROR: on Line {line} of job.sub: " in refusal and said in refusal
    assert f"\nERROR: Failed to parse command file (line {line})." in refusal


# ---- macros ------------------------------------------------------------------------------------------------------

V = "v = /a/b.d/c e/file.tar.gz\n"


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("", "$(x)", "<>"),
        ("", "$(x:d)", "<d>"),
        ("x =\n", "$(x:d)", "<d>"),
        ("y = 3\n", "$(x:$(y))", "<3>"),
        ("", "$(x:a(b))", "<a(b)>"),
        ("", "$(x:$(y:q))", "<q>"),
        ("b = c\nac = 5\n", "$(a$(b))", "<5>"),
        ("x = $(y)\ny = late\n", "$(X)", "<late>"),
        ("x = 1\nx = $(x)2\nx = $(X:9)3\n", "$(x)", "<123>"),
        ("", "$(x y) $(x a$)b $5 $foo(x)", "<$(x y) $(x a$)b $5 $foo(x)>"),
        ("", "$(DOLLAR)(x)", "<$(x)>"),
        ("x.y = 3\n", "$(x.y)", "<3>"),
        ("+X = 4\n", "$(MY.X)", "<4>"),
        ("x = yes\n$(x)no = 5\n", "$(yesno)", "<5>"),
        ("", "$ENV(LANG) $ENV(NONE) $ENV(NONE:d)", "<C UNDEFINED d>"),
        ("", "$(cluster).$(ClusterId).$(Process).$(PROCID).$(Step).$(Row).$(ItemIndex).$(Item)", "<7.7.0.0.0.0.0.>"),
        ("step = S\nprocess = P\n", "$(step) $(process)", "<S P>"),
        ("", "$(SUBMIT_FILE) $(ARCH) $(OPSYS) $(IsLinux)", "<job.sub X86_64 LINUX 1>"),
        (V, "$F(v)", "</a/b.d/c e/file.tar.gz>"),
        (V, "$Fp(v)", "</a/b.d/c e/>"),
        (V, "$Fpb(v)", "</a/b.d/c e>"),
        (V, "$Fd(v) $Fdd(v) $Fdb(v)", "<c e/ b.d/c e/ c e>"),
        (V, "$Fn(v) $Fx(v) $Fxb(v) $Fnx(v) $Fpn(v)", "<file.tar .gz gz file.tar.gz /a/b.d/c e/file.tar>"),
        (V, "$Fnxqa(v)", "<'file.tar.gz'>"),
        ("v = f\n", "$Fp(v)|$Fd(v)|$Fx(v)|$Ff(v)", f"<|||{HOME}/f>"),
        (V, "$BASENAME(v) $DIRNAME(v) $BASENAME(/x/y.z)", "<file.tar.gz /a/b.d/c e/ y.z>"),
        ("v = 3*4\n", "$INT(v) $INT(v,%03d) $INT(7/2) $INT(-7/2) $INT(-7%3) $INT(1e3)", "<12 012 3 -3 -1 1000>"),
        ("v = 1.0/3\n", "$REAL(v,%.2f) $REAL(v) $REAL(3)", "<0.33 0.3333333333333333 3>"),
        ('v = "abc"\n', "$STRING(v) $STRING(v,%5s)", "<abc   abc>"),
        ("v = abcdef\nn = 2\n", "$SUBSTR(v,1) $SUBSTR(v,n,2) $SUBSTR(v,-3) $SUBSTR(v,1,-1)", "<bcdef cd def bcde>"),
        ("v = 2\nl = x,y,z\n", "$CHOICE(1,a,b) $CHOICE(v,l)", "<b z>"),
    ],
)
def test_macros(text: str, value: str, expected: str) -> None:
    words = proc(User().one(f"{EXE}{text}arguments = <{value}>\nqueue\n"), 0)[0].argv[1:]
    assert words == expected.split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = $(b)\nb = $(a)\narguments = $(a)\n", "a macro refers to itself"),
        ("arguments = $INT(foo)\n", "$INT() macro: foo does not evaluate to an integer!"),
        ("arguments = $INT(3,%s)\n", "'%s' is not a valid format specifier!"),
        ("arguments = $INT(3,%999999d)\n", "is not a valid format specifier!"),
        ("arguments = $CHOICE(5,a,b)\n", "is not a number from 0 to 1"),
        ("arguments = $EVAL(1 +)\n", "$EVAL() macro: 1 + is not an expression"),
        ("arguments = $Fn($(Cluster))\n", "$(Cluster) cannot be used in $F()"),
        ("".join(f"m{i} = $(m{i + 1})$(m{i + 1})\n" for i in range(45)) + "arguments = $(m0)\n", "becomes longer than"),
    ],
)
def test_macros_that_are_refused(text: str, said: str) -> None:
    assert said in User().refused(EXE + text + "queue\n")


def test_random_macros_differ_by_job_and_are_the_same_each_time_it_is_planned() -> None:
    text = EXE + "arguments = $RANDOM_INTEGER(0,999999) $RANDOM_INTEGER(0,999999) $RANDOM_CHOICE(a,b)\nqueue 4\n"
    first, again = argvs(User().one(text)), argvs(User().one(text))
    assert first == again
    assert len({word for words in first for word in words[:2]}) > 5
    assert {words[2] for words in first} <= {"a", "b"}
    assert all(
        int(value) in (5, 8, 11) for (value,) in argvs(User().one(EXE + "args=$RANDOM_INTEGER(5,12,3)\nqueue 9"))
    )


# ---- conditions and includes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("true", True), ("Yes", True), ("1", True), ("2", True), ("T", True), ("! false", True), ("!0", True),
        ("false", False), ("no", False), ("0", False), ("0.0", False), ("$(nothing)", False), ("!true", False),
        ("defined one", True), ("defined none", False), ("! defined none", True), ("defined empty", False),
        ("defined $(name)", True), ("defined MY.A", True), ("defined", False), ("$(one)", True),
        ("version >= 8.1", True), ("version > 99", False), ("version == 24.0", True), ("version != 24", False),
    ],
)  # fmt: skip
def test_conditions(condition: str, holds: bool) -> None:
    text = f"one = 1\nempty =\nname = one\n+A = 1\nif {condition}\n arguments = yes\nelse\n arguments = no\nendif\n"
    assert arguments(text) == ["yes" if holds else "no"]


def test_branches_nest_and_what_is_not_taken_is_not_read() -> None:
    text = "if false\n garbage\n if true\n  arguments = 1\n else\n  arguments = 2\n endif\n include : none\n"
    text += "elif true\n if false\n  arguments = 3\n elif yes\n  arguments = 4\n else\n  arguments = 5\n endif\n"
    text += "elif true\n arguments = 6\nelse\n arguments = 7\nendif\n"
    assert arguments(text) == ["4"]


def test_includes() -> None:
    user = User(commands={"date +%s": b"x = 1\n", "list": b"y = 2\n"})
    user.files[f"{HOME}/inc.sub"] = b"z = 3\ninclude : date +%s |\n"
    text = "include : inc.sub\ninclude command : list\ninclude ifexist : none\narguments = $(x)$(y)$(z)\nqueue\n"
    assert argvs(user.one(EXE + text)) == [["123"]]
    user.files[f"{HOME}/inc.sub"] = b"include : inc.sub\n"
    assert "includes are nested too deep" in user.refused(EXE + "include : inc.sub\nqueue\n")


def test_a_warning_of_the_file_is_passed_on() -> None:
    plan = User().submit(EXE + "warning : old template\nqueue\n")
    assert isinstance(plan, Plan) and plan.stderr == "\nWARNING: old template\n"


# ---- queue -------------------------------------------------------------------------------------------------------

WHERE = "arguments = $(Process)|$(Step)|$(Row)|$(Item)|$(x)|$(y)|\n"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("queue\n", ["0|0|0||||"]),
        ("queue 2\n", ["0|0|0||||", "1|1|0||||"]),
        ("N = 1\nqueue $(N)+1\n", ["0|0|0||||", "1|1|0||||"]),
        ("queue 2 in (p,q)\n", ["0|0|0|p|||", "1|1|0|p|||", "2|0|1|q|||", "3|1|1|q|||"]),
        ("queue in p q,, r\n", ["0|0|0|p|||", "1|0|1|q|||", "2|0|2|r|||"]),
        ("queue x in (\n p\n q r\n)\n", ["0|0|0||p||", "1|0|1||q||", "2|0|2||r||"]),
        (
            "queue x,y from (\n 1 2 3\n 4,5\n 6 ,\t7\n 8\n)\n",
            ["0|0|0||1|2 3|", "1|0|1||4|5|", "2|0|2||6|7|", "3|0|3||8||"],
        ),
        ("queue x y from (\n 1 2\n)\n", ["0|0|0||1|2|"]),
        ("queue x from (\n 1 2\n # no\n)\n", ["0|0|0||1 2||"]),
        ("queue x in [1:] (a b c)\n", ["0|0|1||b||", "1|0|2||c||"]),
        ("queue x in [::2] (a b c)\n", ["0|0|0||a||", "1|0|2||c||"]),
        ("queue x in [-1:] (a b c)\n", ["0|0|2||c||"]),
        ("L = a b\nqueue x in ($(L))\n", ["0|0|0||a||", "1|0|1||b||"]),
        ("queue x from list.txt\n", ["0|0|0||l1 a||", "1|0|1||l2||"]),
        ("queue x from seq 2 |\n", ["0|0|0||1||", "1|0|1||2||"]),
        ("queue x matching *.dat\n", ["0|0|0||a.dat||", "1|0|1||b.dat||"]),
        ("queue x matching files d* a.dat *.dat\n", ["0|0|0||a.dat||", "1|0|1||b.dat||"]),
        ("queue matching dirs (d*)\n", ["0|0|0|dir/|||"]),
        ("queue\nqueue 2 x in (a)\n", ["0|0|0||||", "1|0|0||a||", "2|1|0||a||"]),
    ],
)
def test_queue(tail: str, expected: list[str]) -> None:
    user = User(commands={"seq 2": b"1\n2\n"})
    user.files |= {f"{HOME}/{name}": b"x" for name in ("a.dat", "b.dat")}
    user.files |= {f"{HOME}/dir": None, f"{HOME}/list.txt": b"l1 a\n\n l2 \r\n"}
    submission = user.one(EXE + WHERE + tail)
    assert [" ".join(words) for words in argvs(submission)] == expected
    assert submission.count == len(expected)


def test_names_that_match_nothing_are_no_jobs_and_those_that_match_twice_one() -> None:
    plan = User().submit(EXE + "queue matching none*\n")
    assert isinstance(plan, Plan) and plan.submissions == [] and "no files match none*" in plan.stderr
    plan = User().submit(EXE + "arguments = $(Item)\nqueue matching (job.sh *.sh)\n")
    assert isinstance(plan, Plan) and plan.submissions[0].count == 1
    assert "'job.sh' matching pattern '*.sh' is a duplicate" in plan.stderr


def test_later_statements_see_later_definitions() -> None:
    text = "arguments = $(x)\nx = 1\nqueue\nx = 2\nqueue 2\narguments = three\nqueue\n"
    submission = User().one(EXE + text)
    assert argvs(submission) == [["1"], ["2"], ["2"], ["three"]]
