"""Three minutes of storm: at least 60 kills over 5,000 tasks, and four ledgers that agree."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from campaign import Plan, run

pytestmark = pytest.mark.timeout(600)


def test_nothing_is_lost_or_doubled_in_a_storm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("PILOTQ_STORM_SEED") or time.time_ns() % 100_000)
    plan = Plan(seed=seed)
    verdict, facts = run(plan, tmp_path, print)
    with capsys.disabled():
        print(f"\nstorm: {json.dumps(facts)}")
    assert not verdict.faults, f"again with PILOTQ_STORM_SEED={seed}: {vars(verdict)}"
    assert facts["kills"] >= plan.kills and verdict.tasks >= plan.tasks
