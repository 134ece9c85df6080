from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotq import units
from pilotq.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("0", 0),
        ("1h 5m", 3900),
        ("1h5m", 3900),
        ("2 days", 172800),
        ("1 hr 10 sec", 3610),
        ("250ms", 0.25),
        (" 3w ", 3 * 7 * 86400),
        ("01:02:03", 3723),
        ("100:00:00", 360000),
        ("2-00:00:01", 172801),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "  ", "abc", "5 lightyears", "-1", "1h 1h", "5 5", "1:2", "00:99:00", "1h 5", "nan", "1e3"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="not a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1048576", 1 << 20),
        ("512K", 512 << 10),
        ("2.5G", 5 << 29),
        ("2.5 GiB", 5 << 29),
        ("1gb", 1 << 30),
        ("3 T", 3 << 40),
        (str((1 << 60) + 1), (1 << 60) + 1),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "1X", "-1", "1 2", "1e9", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="not a size"):
        units.parse_size(text)


def test_ids() -> None:
    assert units.parse_ids("7") == units.Ids(7, None)
    assert units.parse_ids("7.3") == units.Ids(7, range(3, 4))
    assert units.parse_ids("7.1-100:2") == units.Ids(7, range(1, 101, 2))
    for text in ("", "x", "7.", "7-9", "7.1-", "7.5-1", "7.1-5:0", "7.1,2", "9" * 30):
        with pytest.raises(UserError):
            units.parse_ids(text)


@given(st.integers(0, 10**9), st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 50))
def test_ids_come_back(cluster: int, first: int, length: int, step: int) -> None:
    ids = units.Ids(cluster, range(first, first + length + 1, step))
    again = units.parse_ids(str(ids))
    assert again.cluster == cluster
    assert list(again.procs or ()) == list(ids.procs or ())


@given(st.text(max_size=20))
def test_nothing_but_user_errors(text: str) -> None:
    for parse in (units.parse_duration, units.parse_size, units.parse_ids):
        try:
            parse(text)
        except UserError as error:
            assert error.hint


def test_what_people_read() -> None:
    durations = [0, 0.25, 9.994, 42, 59.6, 185, 7830, 270000, -60]
    assert [units.format_duration(one) for one in durations] == [
        "0.00 s", "0.25 s", "9.99 s", "42 s", "1m 00s", "3m 05s", "2h 10m", "3d 03h", "-1m 00s",
    ]  # fmt: skip
    sizes = [0, 1023, 1536, 1 << 30, 150 << 20, (1 << 20) - 1, 1 << 70]
    assert [units.format_size(one) for one in sizes] == [
        "0 B", "1023 B", "1.5 KiB", "1.0 GiB", "150 MiB", "1.0 MiB", "1024 EiB",
    ]  # fmt: skip
    assert units.format_count(1, "task") == "1 task"
    assert units.format_count(10000, "task") == "10,000 tasks"
