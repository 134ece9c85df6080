"""Work that is counted, not timed: commits of a pool that runs many short tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts

COUNT = 2000
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


@pytest.mark.parametrize(("more", "commits_max"), [("", 0.25), ("output = o.$(Process)\nerror = e.$(Process)\n", 0.35)])
def test_commits_carry_many_tasks(parts: Parts, more: str, commits_max: float) -> None:
    """Results come in batches; with outputs there is one more commit for what the scribe has written."""
    parts.start_all(slots=2, foremen=1)
    text = f"executable = /bin/true\n{more}queue {{}}\n"
    parts.wait_done(parts.submit(text.format(100)))
    before = parts.status()["commits"]
    parts.wait_done(parts.submit(text.format(COUNT)), timeout_s=120)
    commits = parts.status()["commits"] - before
    assert 1 < commits <= commits_max * COUNT
