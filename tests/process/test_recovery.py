"""The benchmarks of recovery, small: a head that was killed with much in its queue, workers that lose their way."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pools import ROOT, clean_environ

pytestmark = pytest.mark.timeout(240)


def figures(name: str, *words: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What a benchmark says, by name and contestant or kind."""
    argv = [sys.executable, "-X", "utf8", str(ROOT / "tests/bench" / name), "--quick", *words]
    done = subprocess.run(argv, env=clean_environ(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [one["skipped"] for one in found if one["skipped"]], done.stderr
    return {(one["name"], one["settings"].get("what", one["who"])): one for one in found}


def test_a_large_queue_is_there_again_soon_after_a_kill() -> None:
    found = figures("recovery.py")
    assert len(found) == 6
    for one in found.values():
        # Beside other tests a second may take several.
        assert one["met"] or (one["unit"] == "s" and one["value"] < 20), one


def test_workers_that_lost_foreman_or_master_are_all_back_and_start_nothing_again() -> None:
    found = figures("reconnect.py", "--moving", "200", "--workers", "200")
    assert {what for _, what in found} == {"foreman", "direct", "through"}
    for (name, what), one in found.items():
        if "started again" in name:
            assert one["value"] == 0, what
        elif "welcome" in name:
            assert one["met"], one
