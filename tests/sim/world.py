"""A whole pool in virtual time: one head, foremen, nodes, clients, and a plan of what goes wrong."""

from __future__ import annotations

from typing import Any

from pilotq import wire
from pilotq.core import foreman as f
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.master import Limits
from pilotq.store.memory import MemoryStore
from tests.sim.clients import Clients
from tests.sim.clockwork import Clock, Time, Violation
from tests.sim.foremen import Foreman
from tests.sim.head import Disk, Master
from tests.sim.ledger import Ledger
from tests.sim.lies import lie
from tests.sim.network import Network
from tests.sim.node import Node
from tests.sim.plan import Item, Plan

#: After the last fault everything must be over within so many leases and seconds.
CALM_LEASES, CALM_S = 4, 1500.0


class World:
    """Runs a plan. Raises Violation, or whatever a core raised."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.plan = plan
        self.time = Time(plan.noise)
        if trace:
            self.time.trace = []
        self.limits = Limits(lease_s=plan.lease_s, beat_s=plan.beat_s, contact_lost_s=15.0, policy_interval_s=20.0)
        self.disk = MemoryStore()
        self.disk_faults = Disk()
        self.disk_faults.commit_s = plan.commit_s
        self.ledger = Ledger(self.time, self.disk, plan.lease_s)
        self.net = Network(self.time, plan.latency_s)
        #: What outlives the master's process: pulled outputs, the scribe's journal (note -> size of the log, written).
        self.spool: set[wire.Token] = set()
        self.journal: dict[int, tuple[int, bool]] = {}
        #: Cluster -> until when its log cannot be written.
        self.log_broken: dict[int, float] = {}
        self.is_calm = False
        self.head_clock = Clock(5000.0, plan.head_rate)
        self.master: Master | None = None
        self.foremen: list[Foreman | None] = [None] * plan.foremen
        self._foreman_away = [1.0] * plan.foremen
        self.master_away = 1.0
        self.nodes: list[Node] = []
        for number, node in enumerate(plan.nodes):
            self.nodes.append(Node(self, f"n{number}", node.slots, node.rate, node.options))
        self.node_away = [3.0] * len(self.nodes)
        self.clients = Clients(self)

    def run(self) -> None:
        """All of it: the faults, then calm in which everything must end."""
        self.start_master()
        for number in range(len(self.foremen)):
            self.start_foreman(number)
        for node in self.nodes:
            self.time.after(0.1, node.start)
        for item in self.plan.items:
            self.time.at(item.at, self._do, item)
        self.time.run(self.plan.horizon_s)
        self._calm()
        work_s = sum(spec.count * spec.task_s for spec in self.clients.specs.values())
        deadline = self.time.t + CALM_LEASES * self.plan.lease_s + CALM_S + 3 * work_s
        self._next_look = 0.0
        self.time.run(deadline, self._is_over)
        left = self.what_is_left()
        if left:
            self.ledger.fail(
                "I5" if "sandboxes" in left else "I13",
                f"{deadline - self.plan.horizon_s:.0f} s after the last fault: {left}",
            )
        self.ledger.check_end(self.clients.printed)

    # ---- processes come and go

    def start_master(self) -> None:
        if self.master is None or self.master.is_dead:
            self.time.tell("the master starts")
            self.master = Master(self, self.head_clock)
            self.net.servers["master"] = self.master

    def on_master_dead(self, master: Master) -> None:
        away, self.master_away = self.master_away, 1.0
        self.time.after(away, self.start_master)

    def start_foreman(self, number: int) -> None:
        foreman = self.foremen[number]
        if foreman is None or foreman.is_dead:
            clock = Clock(100.0 * number, self.head_clock.rate)
            self.foremen[number] = self.net.servers[f"f{number}"] = Foreman(self, clock, f"f{number}")
            self.time.tell(f"f{number} starts")

    def on_foreman_dead(self, foreman: Foreman) -> None:
        number = int(foreman.name[1:])
        away, self._foreman_away[number] = self._foreman_away[number], 1.0
        self.time.after(away, self.start_foreman, number)

    def on_worker_dead(self, node: Node) -> None:
        number = self.nodes.index(node)
        away, self.node_away[number] = self.node_away[number], 3.0
        self.time.after(away, node.start)

    # ---- the plan

    def _do(self, item: Item) -> None:
        if self.time.trace is not None:
            self.time.tell(f"-- {item.kind} {' '.join(map(str, item.args))}")
        getattr(self, f"_{item.kind}")(*item.args)

    def _submit(self, spec: Any) -> None:
        self.clients.submit(spec)

    def _again(self, number: int, proc: int, noise: float) -> None:
        self.clients.again(number)

    def _cancel(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("cancel", number, proc)

    def _hold(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("hold", number, proc)

    def _release(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("release", number, proc)

    def _hold_and_release(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("hold", number, proc)
        self.time.after(noise * noise, self.clients.act, "release", number, proc)

    def _suspend(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("suspend", number, proc)

    def _continue(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("continue", number, proc)

    def _suspend_and_continue(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("suspend", number, proc)
        self.time.after(20.0 * noise * noise, self.clients.act, "continue", number, proc)

    def _vacate(self, number: int, proc: int, noise: float) -> None:
        self.clients.act("vacate", number, proc)

    def _wait(self, number: int, proc: int, noise: float) -> None:
        self.clients.wait(number)

    def _kill_master(self, fuse: int, away: float) -> None:
        if self.master is not None and not self.master.is_dead:
            self.master_away = away
            self.master.fuse = fuse

    def _kill_master_at(self, what: str, away: float) -> None:
        if self.master is not None and not self.master.is_dead:
            self.master_away = away
            self.master.dies_before = {"ack": wire.Ack, "assign": t.SendAssign, "answer": t.Answer}[what]

    def _kill_scribe(self, fuse: int, away: float) -> None:
        if self.master is not None:
            self.master.scribe.fuse = fuse

    def _kill_foreman(self, number: int, fuse: int, away: float, is_silent: bool) -> None:
        foreman = self._foreman(number)
        if foreman is not None:
            self._foreman_away[number] = away
            if is_silent:
                foreman.die(True)
            else:
                foreman.fuse = fuse

    def _foreman(self, number: int) -> Foreman | None:
        if number >= len(self.foremen):
            return None
        foreman = self.foremen[number]
        return None if foreman is None or foreman.is_dead else foreman

    def _kill_worker(self, number: int, fuse: int, away: float) -> None:
        worker = self.nodes[number].worker
        if worker is not None and not worker.is_dead:
            self.node_away[number] = away
            worker.fuse = fuse

    def _reboot(self, number: int, away: float) -> None:
        self.node_away[number] = away
        self.nodes[number].reboot()

    def _kill_keeper(self, number: int) -> None:
        worker = self.nodes[number].worker
        if worker is not None and not worker.is_dead:
            worker.keepers.die()

    def _pause_master(self, seconds: float) -> None:
        if self.master is not None:
            self.master.pause(seconds)

    def _pause_foreman(self, number: int, seconds: float) -> None:
        foreman = self._foreman(number)
        if foreman is not None:
            foreman.pause(seconds)

    def _hang_foreman(self, number: int, node: int, seconds: float) -> None:
        """It takes in what a new worker says and passes it on when there is a new master."""
        self._pause_foreman(number, seconds)
        self._kill_worker(node, 0, 0.3)
        self.time.after(seconds - 0.3, self._kill_master, 0, 0.2)

    def _pause_worker(self, number: int, seconds: float) -> None:
        self.nodes[number].pause(seconds, False)

    def _pause_node(self, number: int, seconds: float) -> None:
        self.nodes[number].pause(seconds, True)

    def _pause_given(self, number: int, seconds: float) -> None:
        """The worker's process stands still when its next tasks are on their way to it."""
        self.nodes[number].pause_given_s = seconds

    def _cut(self, one: str, other: str, seconds: float) -> None:
        self.net.cut(one, other, seconds)
        self.net.cut(other, one, seconds)

    def _cut_one_way(self, one: str, other: str, seconds: float) -> None:
        self.net.cut(one, other, seconds)

    def _flap(self, one: str, other: str, first: float, gap: float, second: float) -> None:
        self._cut_one_way(one, other, first)
        self.time.after(first + gap, self._cut, one, other, second)

    def _reset(self, noise: float) -> None:
        if self.net.wires:
            self.net.wires[min(int(noise * len(self.net.wires)), len(self.net.wires) - 1)].reset()

    def _doubles(self, seconds: float) -> None:
        self.net.doubles_until = self.time.t + seconds

    def _disk_breaks(self, what: str, away: float) -> None:
        self.disk_faults.breaks = what
        self.master_away = away

    def _disk_full(self, seconds: float) -> None:
        self.disk_faults.full_until = self.time.t + seconds

    def _wall_jump(self, host: str, seconds: float) -> None:
        clock = self.head_clock if host == "head" else self.nodes[int(host[1:])].clock
        clock.wall_offset += seconds

    def _log_broken(self, number: int, seconds: float) -> None:
        ids = self.clients.printed.get(number)
        if ids is not None:
            self.log_broken[ids[0]] = self.time.t + seconds

    def _stage_fails(self, number: int, seconds: float) -> None:
        self.nodes[number].stage_fails_until = self.time.t + seconds

    def _black_hole(self, number: int, seconds: float) -> None:
        node = self.nodes[number]
        node.is_black_hole = True
        self.time.after(seconds, setattr, node, "is_black_hole", False)

    def _lie(self, number: int, what: int, noise: float) -> None:
        worker = self.nodes[number].worker
        if worker is not None and not worker.is_dead and worker.up is not None:
            lie(self, worker, what, noise)

    def _drain_worker(self, number: int, away: float) -> None:
        worker = self.nodes[number].worker
        if worker is not None:
            self.node_away[number] = away
            worker.put(w.Drain("drained"))

    def _terminate(self, number: int, away: float) -> None:
        worker = self.nodes[number].worker
        if worker is not None:
            self.node_away[number] = away
            worker.put(w.Terminate())

    def _drain_foreman(self, number: int, away: float) -> None:
        foreman = self._foreman(number)
        if foreman is not None:
            self._foreman_away[number] = away
            foreman.put(f.Drain())

    def _drain_master(self, seconds: float) -> None:
        if self.master is not None:
            self.master.put(t.SetDrain(True))
            self.time.after(seconds, self._no_drain)

    def _no_drain(self) -> None:
        if self.master is not None:
            self.master.put(t.SetDrain(False))

    def _forget(self, number: int) -> None:
        worker = self.nodes[number].worker
        if worker is not None:
            self.clients.worker_verb(worker.name, "forget")

    def _resume(self, number: int) -> None:
        worker = self.nodes[number].worker
        if worker is not None:
            self.clients.worker_verb(worker.name, "resume")

    def _drain_by_name(self, number: int) -> None:
        worker = self.nodes[number].worker
        if worker is not None:
            self.clients.worker_verb(worker.name, "drain")

    # ---- the end

    def _calm(self) -> None:
        """No more faults."""
        self.is_calm = True
        self.time.tell("-- calm")
        self.net.cuts.clear()
        self.net.doubles_until = 0.0
        self.log_broken.clear()
        self.disk_faults = Disk()
        self.disk_faults.commit_s = self.plan.commit_s
        for daemon in [self.master, *self.foremen, *(node.worker for node in self.nodes)]:
            if daemon is not None and not daemon.is_dead:
                daemon.fuse = -1
        if self.master is not None:
            self.master.scribe.fuse, self.master.dies_before = -1, None
        for node in self.nodes:
            node.is_black_hole, node.stage_fails_until, node.pause_given_s = False, 0.0, 0.0
            worker = node.worker
            if worker is not None and not worker.is_dead and worker.name in self.ledger.liars:
                # Nobody owes anything to somebody who lied.
                worker.die(False)
        self.time.after(0.5, self._keep_going)

    def _keep_going(self) -> None:
        """Somebody releases what is held, and starts what has left."""
        self._no_drain()
        self.clients.release_all()
        for node in self.nodes:
            if node.worker is None or node.worker.is_dead:
                node.start()
        self.time.after(10.0, self._keep_going)

    def _is_over(self) -> bool:
        if self.time.t < self._next_look:
            return False
        self._next_look = self.time.t + 1.0
        return not self.what_is_left()

    def what_is_left(self) -> str:
        """Why it is not over; "": it is."""
        disk, specs = self.disk, self.clients.specs
        missing = [number for number in specs if number not in self.clients.printed]
        if missing:
            return f"submissions {missing} have no answer"
        if disk.live:
            tasks = {task: self.ledger.states.get(task) for task in list(disk.tasks)[:5]}
            return f"clusters {sorted(disk.live)} are in the queue, tasks {tasks}"
        if disk.outbox:
            return f"notes {sorted(disk.outbox)} are not written"
        for node in self.nodes:
            core = node.worker.core if node.worker is not None and not node.worker.is_dead else None
            if node.sandboxes and (core is None or not core.attempts):
                return f"sandboxes are left on {node.name}: {sorted(node.sandboxes)}"
            if node.running or (core is not None and (core.attempts or core.results)):
                return f"{node.name} runs {list(node.running)}, holds {list(core.attempts) if core else ''}"
        if self.master is not None and not self.master.is_dead:
            peers = self.master.core.peers.workers.values()
            used = [peer.name for peer in peers if not peer.is_empty and peer.route is not None]
            if used:
                return f"the master thinks that {used} hold something"
        if self.spool:
            return f"{sorted(self.spool)} are left in the spool"
        return ""


def play(plan: Plan, *, trace: bool = False) -> tuple[World, str]:
    """Run a plan; the invariant that broke and how, or ""."""
    world = World(plan, trace=trace)
    try:
        world.run()
    except Violation as violation:
        return world, str(violation)
    except Exception as error:
        return world, f"I11: {type(error).__name__}: {error}"
    return world, ""
