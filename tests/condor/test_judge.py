"""HTCondor's own parser and ours read the same descriptions: the job ads are the same, attribute by attribute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import judging
import pytest
from judging import Judge

CORPUS = Path(__file__).parent / "corpus"
pytestmark = pytest.mark.skipif(not judging.PYTHON.exists(), reason=f"no {judging.PYTHON}: tests/judge makes it")

#: Descriptions of which the two do not think the same, and why.
_UNSEEN = "an executable that is not transferred is not looked at, as it lies on another machine"
_EMPTY = "an empty row is no job; the library makes one with the values of the row before"
DIFFERENT = {
    "conditions: versions": "a version of one number is taken; the library wants two at least",
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
