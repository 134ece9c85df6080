"""Work that is counted, not timed: what one task costs the master's core, whatever else the machine does.

The numbers of Python's own instructions hold for one version of Python; the bounds leave room for a fifth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core.master import Limits, MasterCore
from pilotq.core.records import NotesAdded
from pilotq.core.turn import Now, Route
from pilotq.model import STDERR, STDOUT, Ended, Outcome, OutputFile, Resources, Usage

WORKERS, SLOTS, AHEAD = 10, 8, 32
#: Tasks: a multiple of what all workers hold at once.
COUNT = WORKERS * (SLOTS + AHEAD) * 5
PLAIN = Ended(Outcome.OK, 0, "", Usage(0.001, 0.001, 1 << 20, 4096, 0.002))
WITH_OUTPUTS = Ended(Outcome.OK, 0, "", PLAIN.usage, [OutputFile(name, 0, 0o644, b"") for name in (STDOUT, STDERR)])


class Counted:
    """A master that runs one cluster on workers that answer at once, and what that took."""

    def __init__(self, end: Ended) -> None:
        self.end = end
        self.messages = self.bytes = self.records = self.turns = self.instructions = 0
        self.now = Now(1.0, 1e9)
        self.core = MasterCore(Limits(), lambda *_: None, self.now)
        self.assigned: list[t.SendAssign] = []

    def run(self) -> None:
        for i in range(WORKERS):
            offer = wire.Offer(Resources(SLOTS), AHEAD)
            hello = wire.Hello(wire.PROTOCOL, f"node{i}#1.ab", 1, f"node{i}", 1, "1", offer, [], [], [])
            self.core.handle(self._from(i, hello), self.now)
        new = t.NewCluster("ada", COUNT, Resources(1), 0, False, b"body", b"text", [], [], {}, "", 1e9)
        self._do(t.Submit(1, "key", [new]))
        done = 0
        while self.assigned:
            assigned, self.assigned = self.assigned, []
            for message in assigned:
                tokens = [
                    wire.Token(message.cluster, proc, attempt)
                    for proc, attempt in zip(message.procs, message.attempts, strict=True)
                ]
                done += len(tokens)
                payload = wire.pack(wire.Result(tokens, [self.end] * len(tokens)))
                self._count(payload)
                self._do(self._from(int(message.route.peer), wire.unpack(payload)))
        assert done == COUNT
        assert self.core.queue.done == COUNT
        assert not self.core.queue.clusters

    def _from(self, worker: int, message: wire.Message) -> t.FromPeer:
        return t.FromPeer(Route(b"%d" % worker, b""), "worker", "site", message)

    def _count(self, payload: bytes) -> None:
        self.messages += 1
        self.bytes += len(payload)

    def _do(self, event: t.Event) -> None:
        with self._counting():
            turn = self.core.handle(event, self.now)
        self.turns += bool(turn.records)
        self.records += len(turn.records)
        notes = [note for record in turn.records if isinstance(record, NotesAdded) for note in record.notes]
        finals = [note.n for note in notes if note.final]
        for action in turn.actions:
            if isinstance(action, t.SendAssign):
                self.assigned.append(action)
                self._count(wire.pack(wire.Assign(action.cluster, action.procs, action.attempts)))
            elif isinstance(action, t.Send):
                self._count(wire.pack(action.message))
        if finals:
            self._do(t.Delivered(finals))

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the instructions that Python executes in here."""

        def on_call(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return on_opcode

        def on_opcode(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            if event == "opcode":
                self.instructions += 1
            return on_opcode

        before = sys.gettrace()
        sys.settrace(on_call)
        try:
            yield
        finally:
            sys.settrace(before)


def test_a_plain_task_costs_the_master_little() -> None:
    counted = Counted(PLAIN)
    counted.run()
    assert counted.instructions / COUNT <= 1.2 * 430
    assert counted.messages / COUNT <= 0.15
    assert counted.bytes / COUNT <= 60
    assert counted.records / COUNT <= 0.1
    assert counted.turns / COUNT <= 0.06


def test_tasks_with_outputs_are_noted_and_ended_together() -> None:
    counted = Counted(WITH_OUTPUTS)
    counted.run()
    assert counted.instructions / COUNT <= 1.2 * 700
    assert counted.messages / COUNT <= 0.15
    assert counted.bytes / COUNT <= 90
    assert counted.records / COUNT <= 0.25
    assert counted.turns / COUNT <= 0.11


def test_a_peer_that_is_lost_costs_the_same_among_many() -> None:
    """Thousands may lose their way together, each a peer of its own."""
    costs = []
    for workers in (10, 1000):
        counted = Counted(PLAIN)
        for i in range(workers):
            hello = wire.Hello(
                wire.PROTOCOL, f"node{i}#1.ab", 1, f"node{i}", 1, "1", wire.Offer(Resources(1)), [], [], []
            )
            counted.core.handle(counted._from(i, hello), counted.now)
        counted._do(t.PeerLost(b"5"))
        assert sum(worker.route is None for worker in counted.core.peers.workers.values()) == 1
        costs.append(counted.instructions)
    assert costs[1] <= 1.2 * costs[0], costs
