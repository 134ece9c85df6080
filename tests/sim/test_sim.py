"""The whole pool under faults, from the same seeds each time; and that this would find what is wrong.

A failure prints its seed and its shortest story; `tests/simulate --seed N` tells it again. Fresh seeds are for
`tests/simulate`: a change must not fail for what another one did.
"""

from __future__ import annotations

import pytest

from tests.sim.hunt import catch, explain, hunt
from tests.sim.plan import new_plan
from tests.sim.planted import BUGS
from tests.sim.planting import planted
from tests.sim.world import play

#: Of each of the parts below, which run side by side on two cores.
SECONDS = 25.0
#: So that a faster machine takes the same seeds.
STEPS_MAX = 1_000_000
#: Planted bugs that show within a second or two: a test of the test for every change. `tests/simulate --planted`
#: takes all of them.
QUICK = {"ack-early", "answer-early", "key-twice", "lose-on-reset", "results-forgotten", "foreman-acks", "delta-credit"}
QUICK |= {"events-handed", "later-undone"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("base", [1, 1_000_000])
def test_nothing_is_lost_doubled_or_stuck(base: int) -> None:
    for found in hunt(base, seconds=SECONDS, steps=STEPS_MAX):
        if found.failures:
            seed, failure = found.failures[0]
            pytest.fail(f"seed {seed}: {failure}\n{explain(seed)}", pytrace=False)
    assert found.counts["tasks ended"] > found.counts["runs"]


def test_a_seed_says_it_all() -> None:
    for seed in range(5):
        one, other = (play(new_plan(seed), trace=True) for _ in range(2))
        assert one[1] == other[1] == ""
        assert one[0].time.trace == other[0].time.trace
        assert one[0].time.steps == other[0].time.steps


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name in QUICK], ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: object) -> None:
    caught = catch(bug, 1, 60.0)  # type: ignore[arg-type]
    assert caught.failure
    assert caught.shrunk <= 6, "its story is short"


def test_all_planted_bugs_are_whole() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 25
    assert {bug.name for bug in BUGS} >= QUICK
    for one in BUGS:
        plan = new_plan(1)
        plan.items = plan.items[:1]
        with planted(one):
            assert "TypeError" not in play(plan)[1], f"{one.name} is no bug of what there is now"
    _, failure = play(new_plan(1))
    assert not failure, "and none of them is in place"
