"""A delta comes out of its block as it would have been packed whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotq.deltas import DELTA_BLOCK, HOLES, TEXT_MAX, Block, Blocks, Form, each_delta, find_delta
from pilotq.model import PROC_MARK, FileRef

COLUMNS = 4
words = st.sampled_from([*HOLES[:COLUMNS], "", "a", "\u00e4", "x" * 40, PROC_MARK, "\n", "A"])
texts = st.lists(words, max_size=5).map("".join)
values = st.recursive(
    st.one_of(texts, st.integers(-(2**40), 2**40), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=20), st.dictionaries(texts, inner, max_size=20)),
    max_leaves=40,
)
deltas = st.dictionaries(texts, values, max_size=18)
rows = st.lists(st.text("abc\u00e4\U0001f6b0", max_size=TEXT_MAX), min_size=COLUMNS, max_size=COLUMNS)


def filled(value: Any, row: list[str]) -> Any:
    if isinstance(value, str):
        for hole, text in zip(HOLES, row, strict=False):
            value = value.replace(hole, text)
        return value
    if isinstance(value, dict):
        return {filled(name, row): filled(item, row) for name, item in value.items()}
    return [filled(item, row) for item in value] if isinstance(value, list) else value


@given(st.lists(deltas, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), rows), min_size=1, max_size=9))
def test_a_form_is_filled_in_as_its_map_would_be(
    forms: list[dict[str, Any]], procs: list[tuple[int, list[str]]]
) -> None:
    blocks = Blocks()
    made = [Form.of(form) for form in forms]
    for number, row in procs:
        blocks.add(made[number % len(made)], row)
    (packed,) = blocks.packed()
    longest = max(map(len, Block(packed).samples()))
    for delta, (number, row) in zip(each_delta([packed]), procs, strict=True):
        assert msgspec.msgpack.decode(delta) == filled(forms[number % len(forms)], row)
        assert len(delta) <= longest


def test_each_proc_finds_its_own_whatever_block_it_is_in() -> None:
    form = Form.of({"argv": ["x", f"{HOLES[1]}-{HOLES[0]}"], "files": [FileRef("n", "d", 1)]})
    blocks = Blocks()
    blocks.add(Form.whole(b"same"), count=DELTA_BLOCK + 1)
    for number in range(DELTA_BLOCK):
        blocks.add(form, ["v", str(number)])
    packed = blocks.packed()
    assert blocks.count == 2 * DELTA_BLOCK + 1 and list(map(len, map(Block, packed))) == [DELTA_BLOCK, DELTA_BLOCK, 1]
    assert find_delta(packed, 0) == find_delta(packed, DELTA_BLOCK) == b"same"
    for number in (0, 1, DELTA_BLOCK - 1):
        found = msgspec.msgpack.decode(find_delta(packed, DELTA_BLOCK + 1 + number))
        assert found == {"argv": ["x", f"{number}-v"], "files": [["n", "d", 1, 0o600]]}
    assert find_delta([], 3) == b""


def test_what_is_no_block_is_an_error() -> None:
    with pytest.raises(msgspec.MsgspecError):
        Block(b"\x00")
