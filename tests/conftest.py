"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

#: Tests with a whole pool: one at a time, even when pytest runs several (`-n 2 --dist loadgroup`).
WHOLE_POOLS = ("tests/process/", "tests/live/", "tests/chaos/")
ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(ROOT).as_posix().startswith(WHOLE_POOLS):
            item.add_marker(pytest.mark.xdist_group("pool"))
