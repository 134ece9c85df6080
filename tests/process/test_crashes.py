"""The head dies at syncs of its disk; what was printed is true after the next start. `tests/crash` takes them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import HOWS, Crashes, base_directory, sweep

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("crashes")]
#: Of so many syncs one is tried here.
STEP = 14


@pytest.fixture(scope="module")
def crashes() -> Iterator[Crashes]:
    with base_directory() as base:
        found = Crashes(base)
        try:
            found.start()
            yield found
        finally:
            found.close()


@pytest.mark.parametrize("how", HOWS)
def test_the_head_dies_at_a_sync(crashes: Crashes, how: str) -> None:
    points = list(sweep(crashes, how, 3 + 4 * HOWS.index(how), STEP))
    assert len(points) >= 5
    assert {Path(point.path).parts[0] for point in points} <= {"state", "site"}


def test_a_sync_that_fails_stops_the_master_for_good(crashes: Crashes) -> None:
    """It is never tried again: that would say that all is well. One line, exit 70; the restart knows the truth."""
    log = crashes.base / "master.log"
    for name, number in (("queue.db-wal", 4), ("queue.db-wal", 9), ("small.db-wal", 1)):
        before = len(log.read_text())
        # The answer to a submission may be that its files cannot be kept.
        assert crashes.run(number, "error", tries=3, only=f"/{name}").path.endswith(f"/{name}")
        said = log.read_text()[before:]
        assert crashes.codes == [70]
        what = f"{name.removesuffix('-wal')} cannot be used: disk I/O error"
        assert re.search(rf"^pilotq: \S+{what}[^\n]*: see that its disk is in order", said, re.M)
        assert "Traceback (most" not in said
        assert max(crashes.synced) == number, "nothing was asked of that file any more"
