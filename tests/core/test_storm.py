"""Random faults on the real cores: nothing lost, nothing reported twice, nothing run twice at a time."""

from __future__ import annotations

import random

import pytest

from pilotq.core import worker_turn as w
from pilotq.core.master import Limits
from pilotq.model import ENDED, Outcome, State
from tests.core.world import Node, World


class Storm:
    """A world in which anything may happen, chosen by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(Limits(lease_s=60.0, max_losses=1000))
        self.world.all_at_once = seed % 2 == 1
        self.submitted: dict[int, int] = {}
        self.names = 0
        for _ in range(3):
            self.new_node([])

    def new_node(self, predecessors: list[str]) -> None:
        self.names += 1
        node = Node(self.world, f"n{self.names}", slots=self.random.randint(1, 3), predecessors=predecessors)
        # With short tasks attempts follow each other in a slot.
        node.task_s = self.random.choice([0.002, 0.04, 5.0])

    def step(self) -> None:
        world, choose = self.world, self.random
        node = choose.choice(list(world.workers.values()))
        what = choose.randrange(13)
        if what <= 1:
            count = choose.choice([1, 2, 5, 20])
            self.submitted[world.submit(count, log=choose.random() < 0.5)] = count
        elif what <= 4 and node.running:
            outcomes = [Outcome.OK] * 6 + [Outcome.EXIT, Outcome.LOST]
            node.end(choose.choice(node.running), choose.choice(outcomes))
        elif what == 5:
            node.cut = not node.cut
        elif what == 6:
            world.restart_master()
        elif what == 7 and choose.random() < 0.3:
            del world.workers[node.name]
            self.new_node([node.core.name] if node.core.name else [])
        elif what == 8:
            self._act()
        elif what == 9 and choose.random() < 0.2:
            node.do(w.LinkLost(node.core.session.link))
        elif what == 10:
            world.write_notes()
        elif what == 11:
            node.holds_orders = True
        else:
            self.obey()
            world.pass_time(choose.choice([0.2, 1.0, 5.0, 30.0, 90.0]))
        if choose.random() < 0.8:
            world.deliver()
        self.check()

    def _act(self) -> None:
        live = [(c.id, p) for c in self.world.master.queue.clusters.values() for p in c.live_procs()]
        if live:
            self.world.act(self.random.choice(["cancel", "hold", "release", "release"]), self.random.choice(live))

    def obey(self) -> None:
        """Keepers are never late for long."""
        for node in self.world.workers.values():
            node.holds_orders = False
            node.obey()

    def check(self) -> None:
        world = self.world
        ended = [row[:2] for row in world.disk.history]
        assert len(ended) == len(set(ended)), "a task ended twice"
        running: dict[tuple[int, int], str] = {}
        for node in world.workers.values():
            for token in node.running:
                task = (token.cluster, token.proc)
                assert task not in running, f"{task} runs on {running.get(task)} and on {node.name}"
                running[task] = node.name
        for cluster, count in self.submitted.items():
            assert cluster in world.disk.clusters
            live = world.master.queue.clusters.get(cluster)
            here = {row[1] for row in world.disk.history if row[0] == cluster}
            if live is None:
                assert here == set(range(count)), f"cluster {cluster} is gone, but not all of it ended"

    def calm(self) -> None:
        """No more faults: everything must end."""
        world = self.world
        for node in world.workers.values():
            node.cut = False
        self.obey()
        for _ in range(400):
            for cluster in list(world.master.queue.clusters.values()):
                for proc in cluster.live_procs():
                    if cluster.state(proc) == State.HELD:
                        world.act("release", (cluster.id, proc))
            for node in list(world.workers.values()):
                while node.running:
                    node.end()
            world.deliver()
            world.write_notes()
            if not world.master.queue.clusters:
                return
            world.pass_time(3.0)
        left = {c.id: [(p, c.state(p).name) for p in c.live_procs()] for c in world.master.queue.clusters.values()}
        raise AssertionError(f"still in the queue: {left}")


@pytest.mark.parametrize("seed", range(60))
def test_storm(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(150):
        storm.step()
    storm.calm()
    world = storm.world
    tasks = {(cluster, proc) for cluster, count in storm.submitted.items() for proc in range(count)}
    assert {row[:2] for row in world.disk.history} == tasks
    assert all(State(row[2]) in ENDED for row in world.disk.history)
    world.pass_time(10.0)
    for node in world.workers.values():
        assert not node.core.results, "a result was never acknowledged"
        assert not node.core.attempts
    for worker in world.master.peers.workers.values():
        assert not worker.tasks
        assert worker.used == [0, 0, 0, 0]
