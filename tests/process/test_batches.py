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


def test_a_task_that_somebody_waits_for_costs_two_commits(parts: Parts) -> None:
    """Accepted and assigned; ended and written. What nobody waits for has no commit of its own."""
    parts.start_all(slots=2, foremen=1)
    text = "executable = /bin/true\noutput = o\nerror = e\nqueue\n"
    parts.wait_done(parts.submit(text))
    before, count = parts.status()["commits"], 20
    for _ in range(count):
        cluster = parts.submit(text)
        (found,) = parts.client.get(f"/v1/clusters?ids={cluster}&wait_s=30")
        assert found["done"] == 1
    assert parts.status()["commits"] - before <= 2.5 * count
