"""Arguments and environment: what is joined splits again, and HTCondor's own functions agree."""

from __future__ import annotations

import classad2
import htcondor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotq.condor.lexer import SubmitError
from pilotq.condor.macro_functions import calculate
from pilotq.condor.macros import Macros, parse
from pilotq.condor.quoting import (
    join_environment,
    join_new,
    parse_arguments,
    parse_environment,
    split_new,
    split_old,
)

#: No NUL, as in every argument; lone surrogates are bytes of no encoding.
word = st.text(st.characters(exclude_characters="\x00"), max_size=12)
plain = st.text(st.sampled_from("ab '\"\\=;$\t"), max_size=12)
words = st.lists(st.one_of(word, plain), max_size=6)
names = st.text(st.sampled_from("ABC_1"), min_size=1, max_size=4)


def quoted(raw: str) -> str:
    return '"' + raw.replace('"', '""') + '"'


@given(words)
def test_words_come_back_from_the_new_syntax(given_words: list[str]) -> None:
    assert split_new(join_new(given_words)) == given_words
    assert parse_arguments(quoted(join_new(given_words))) == given_words


@given(st.lists(st.text(st.sampled_from("ab'\"=;$-"), min_size=1, max_size=6), max_size=6))
def test_words_come_back_from_the_old_syntax(given_words: list[str]) -> None:
    assert split_old(" ".join(given_words).replace('"', '\\"')) == given_words


@given(st.dictionaries(names, st.one_of(word, plain), max_size=5))
def test_variables_come_back(variables: dict[str, str]) -> None:
    assert parse_environment(quoted(join_environment(variables))) == variables


@given(st.dictionaries(names, st.text(st.sampled_from("ab '\"=$"), max_size=6), max_size=5))
def test_variables_come_back_from_the_old_syntax(variables: dict[str, str]) -> None:
    text = ";".join(f"{name}={value}" for name, value in variables.items())
    if not text.startswith('"'):
        assert parse_environment(text) == variables


@given(st.text(st.sampled_from("ab '\"\\\n"), max_size=14))
def test_any_text_is_split_or_refused(text: str) -> None:
    for reader in (parse_arguments, parse_environment, split_new):
        try:
            reader(text)
        except SubmitError:
            pass


# ---- HTCondor's own opinion --------------------------------------------------------------------------------------

ascii_words = st.lists(st.text(st.sampled_from("ab '\"=-"), max_size=6), max_size=5)


def ask(function: str, value: object) -> object:
    return classad2.ExprTree(f"{function}(x)").eval(classad2.ClassAd({"x": value}))


@given(ascii_words)
def test_condor_writes_words_the_same_way(given_words: list[str]) -> None:
    assert join_new(given_words) == ask("listToArgs", given_words)


@given(ascii_words)
def test_condor_reads_what_we_write(given_words: list[str]) -> None:
    assert list(ask("argsToList", join_new(given_words))) == given_words  # type: ignore[call-overload]


@given(st.text(st.sampled_from("ab '"), max_size=12))
def test_condor_reads_any_text_as_we_do(text: str) -> None:
    theirs = ask("argsToList", text)
    try:
        assert split_new(text) == theirs
    except SubmitError:
        assert not isinstance(theirs, list)


@given(st.dictionaries(names, st.text(st.sampled_from("ab '="), max_size=6), min_size=1, max_size=4))
def test_condor_converts_the_old_environment_as_we_do(variables: dict[str, str]) -> None:
    text = ";".join(f"{name}={value}" for name, value in variables.items())
    theirs = ask("envV1ToV2", text)
    assert parse_environment(quoted(str(theirs))) == parse_environment(text)


# ---- macros ------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("ab$():. ENVF"), max_size=20))
def test_any_text_has_its_parts(text: str) -> None:
    assert parse(text)
    macros = Macros({}, {}, "/", "")
    macros.define("a", "A")
    try:
        macros.expand(text)
    except SubmitError:
        pass


CASES = [
    "$(a)", "$(a:d)", "$(none:d)", "$(none:$(a))", "x$(a)y$(b)z", "$(a$(one))", "$(none:a(b))", "$Fn(p)", "$Fpnx(p)",
    "$Fd(p)", "$Fdd(p)", "$Fxb(p)", "$Fqa(p)", "$BASENAME(p)", "$DIRNAME(p)", "$INT(i)", "$INT(i,%04d)", "$INT(8/3)",
    "$REAL(i,%.1f)", "$SUBSTR(b,1)", "$SUBSTR(b,-2)", "$SUBSTR(b,0,-1)", "$CHOICE(1,a,b,c)", "$CHOICE(one,list)",
    "$(DOLLAR)(a)", "$$(a)", "$x", "$(x y)", "$(unclosed",
]  # fmt: skip
TABLE = {
    "a": "Alpha",
    "b": "beta$(a)",
    "one": "1",
    "a1": "nested",
    "p": "/u/v w/file.tar.gz",
    "i": "7*6",
    "list": "x,y,z",
}


@pytest.mark.parametrize("text", CASES)
def test_condor_expands_the_same(text: str) -> None:
    theirs = htcondor2.Submit("".join(f"{name} = {value}\n" for name, value in TABLE.items()) + f"it = {text}\n")
    macros = Macros({"dollar": "$"}, {}, "/", "")
    for name, value in TABLE.items():
        macros.define(name, value)
    assert macros.expand(text) == theirs.expand("it")


arithmetic = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "%"]), inner).map(lambda t: f"({' '.join(t)})"),
    max_leaves=6,
)


@given(arithmetic)
def test_arithmetic_is_that_of_classads(text: str) -> None:
    theirs = classad2.ExprTree(text).eval()
    assert calculate(text) == (None if isinstance(theirs, classad2.Value) else theirs)
