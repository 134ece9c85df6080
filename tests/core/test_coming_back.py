"""Many workers that lose their way at once come back one after the other."""

from __future__ import annotations

import pytest

from pilotq import wire
from pilotq.core import worker_turn as w
from pilotq.core.sessions import RETURNS_PER_S
from pilotq.core.turn import Now
from pilotq.core.worker import Options, WorkerCore
from pilotq.core.worker_session import ANSWER_S
from pilotq.model import Resources
from tests.core.world import Node, World

WORKERS = 10_000


def connects(core: WorkerCore, now: Now) -> bool:
    return any(isinstance(action, w.Connect) for action in core.handle(w.Tick(), now).actions)


def welcomed(spread: float, spread_s: float) -> WorkerCore:
    """A worker whose session is a second old at the time 1."""
    core = WorkerCore(Options("n", "n", 1, "0", Resources(1), spread=spread), Now(0.0, 0.0))
    assert connects(core, Now(0.0, 0.0))
    core.handle(w.FromMaster(core.session.link, wire.Welcome(2400.0, 5.0, 1, [], spread_s)), Now(0.0, 0.0))
    assert core.session.welcomed
    return core


@pytest.mark.parametrize("spread", [0.0, 0.25, 0.5, 0.99])
def test_the_first_try_lies_somewhere_in_the_time_that_the_master_said(spread: float) -> None:
    core = welcomed(spread, WORKERS / RETURNS_PER_S)
    core.handle(w.LinkLost(core.session.link), Now(1.0, 1.0))
    at = core.session.next_wakeup()
    assert 20 * spread <= at - 1.0 <= 20 * spread + 0.5
    assert not connects(core, Now(at - 0.01, at)) and connects(core, Now(at, at))
    # It waits for an answer as long as all the others may take.
    assert core.session.next_wakeup() - at >= 0.75 * (ANSWER_S + 20)


def test_in_a_small_pool_there_is_no_such_pause() -> None:
    world = World()
    nodes = [Node(world, f"n{number}", 1) for number in range(3)]
    for node in nodes:
        assert node.core.session.welcomed
        node.core.handle(w.LinkLost(node.core.session.link), world.now)
        assert node.core.session.next_wakeup() - world.now.boot < 0.5
