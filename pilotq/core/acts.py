"""What people ask for tasks: cancel, hold, release, suspend, continue, vacate, edit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core.tasks import Cluster
from pilotq.core.turn import Now
from pilotq.model import ENDED, Edit, Ended, HoldCode, Outcome, State

if TYPE_CHECKING:
    from pilotq.core.master import MasterCore

#: Tasks that one turn acts on, so that a huge cluster does not stop the loop.
ACT_TASKS_MAX = 5000
_STARTED = frozenset({State.RUNNING, State.SUSPENDED})


@dataclass
class _Job:
    """An `Act` that is worked off in pieces."""

    act: t.Act
    todo: deque[tuple[int, list[int] | None]]
    results: list[tuple[int, int, str]]


class Acts:
    """Each verb is a method that says what became of one task: ok, already, bad_state, not_found."""

    def __init__(self, master: MasterCore) -> None:
        self._master = master
        self._jobs: deque[_Job] = deque()
        self._verbs: dict[str, Callable[[t.Act, Cluster, int, Now], str]] = {
            "cancel": self._cancel,
            "drop": self._drop,
            "find": lambda act, cluster, proc, now: "ok",
            "hold": self._hold,
            "release": self._release,
            "suspend": self._suspend,
            "continue": self._continue,
            "vacate": self._vacate,
            "vacate_fast": self._vacate,
        }

    @property
    def is_busy(self) -> bool:
        """Is something left to be worked off?"""
        return bool(self._jobs)

    def on_act(self, event: t.Act, now: Now) -> None:
        if event.verb == "edit":
            self._edit(event)
            return
        clusters = self._master.queue.clusters
        job = _Job(event, deque(), [])
        selection = event.selection or [(number, -1) for number in sorted(clusters)]
        for number, proc in selection:
            cluster = clusters.get(number)
            if cluster is None or (proc >= 0 and not cluster.has(proc)):
                job.results.append((number, proc, "not_found"))
            elif proc >= 0:
                job.todo.append((number, [proc]))
            else:
                job.todo.append((number, None))
        self._jobs.append(job)
        self.work_off(now)

    def work_off(self, now: Now) -> None:
        """As much as one turn may."""
        budget = ACT_TASKS_MAX
        while self._jobs and budget > 0:
            job = self._jobs[0]
            while job.todo and budget > 0:
                number, procs = job.todo.popleft()
                cluster = self._master.queue.clusters.get(number)
                if cluster is None:
                    continue
                if procs is None:
                    procs = cluster.live_procs()
                self._act_on(job, cluster, procs[:budget], now)
                if len(procs) > budget:
                    job.todo.appendleft((number, procs[budget:]))
                budget -= len(procs)
            if job.todo:
                return
            self._jobs.popleft()
            self._master.actions.append(t.Answer(job.act.reply, job.results))

    def _act_on(self, job: _Job, cluster: Cluster, procs: list[int], now: Now) -> None:
        if job.act.verb == "cancel" and "leave_in_queue" not in cluster.policies:
            procs = self._cancel_untouched(job, cluster, procs, now)
        verb = self._verbs[job.act.verb]
        for proc in procs:
            result = verb(job.act, cluster, proc, now) if self._is_there(cluster, proc) else "not_found"
            job.results.append((cluster.id, proc, result))

    def _edit(self, act: t.Act) -> None:
        """At once, as a range of tasks costs little more than one."""
        queue = self._master.queue
        results: list[tuple[int, int, str]] = []
        ranges: list[tuple[Cluster, int, int]] = []
        for number, proc in act.selection:
            cluster = queue.clusters.get(number)
            live = cluster.live_procs() if cluster is not None and proc < 0 else [proc]
            is_there = cluster is not None and (proc < 0 or self._is_there(cluster, proc))
            results += [(number, one, "ok" if is_there else "not_found") for one in live]
            if cluster is None or not is_there:
                continue
            if proc < 0:
                ranges.append((cluster, 0, len(cluster) - 1))
            elif ranges and ranges[-1][0] is cluster and ranges[-1][2] == proc - 1:
                ranges[-1] = (cluster, ranges[-1][1], proc)
            else:
                ranges.append((cluster, proc, proc))
        if all(result == "ok" for _, _, result in results):
            for cluster, first, last in ranges:
                for name, value in act.edits.items():
                    for change in _adjusted(cluster, first, last, value) if act.adjust else [(first, last, value)]:
                        queue.edit(cluster, Edit(change[0], change[1], name, change[2]))
        self._master.actions.append(t.Answer(act.reply, results))

    def _is_there(self, cluster: Cluster, proc: int) -> bool:
        """Is it in the queue?"""
        if not cluster.has(proc) or self._master.queue.is_leaving(cluster, proc):
            return False
        return cluster.state(proc) not in ENDED or proc in cluster.facts

    # ---- verbs

    def _cancel_untouched(self, job: _Job, cluster: Cluster, procs: list[int], now: Now) -> list[int]:
        """The short way for tasks to which nothing ever happened; the others."""
        untouched = cluster.untouched(procs)
        if not untouched:
            return procs
        self._master.queue.cancel_untouched(cluster, untouched, now.wall, job.act.reason)
        job.results += [(cluster.id, proc, "ok") for proc in untouched]
        done = set(untouched)
        return [proc for proc in procs if proc not in done]

    def _cancel(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        state, master = cluster.state(proc), self._master
        if state == State.CANCELLED:
            return "already"
        if state == State.STAGING_OUT:
            return "bad_state"
        master.sessions.end_attempt(cluster, proc, now, removed=True)
        if state == State.HELD:
            master.actions.append(t.Discard([wire.Token(cluster.id, proc, max(1, cluster.attempts[proc]))]))
        master.queue.cancel(cluster, proc, now.wall, act.reason)
        master.policy.leave_or_stay(cluster, proc, now)
        return "ok"

    def _drop(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        """Out of the queue, whatever its leave_in_queue says."""
        if cluster.state(proc) != State.CANCELLED:
            return "bad_state"
        self._master.queue.leave(cluster, proc)
        return "ok"

    def _hold(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        state = cluster.state(proc)
        if state == State.HELD:
            return "already"
        if state in ENDED or state == State.STAGING_OUT:
            return "bad_state"
        self._master.sessions.end_attempt(cluster, proc, now)
        self._master.queue.hold(cluster, proc, now.wall, HoldCode.USER, act.subcode, act.reason)
        return "ok"

    def _release(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        if cluster.state(proc) != State.HELD:
            return "bad_state"
        self.release(cluster, proc, act.reason, now)
        return "ok"

    def release(self, cluster: Cluster, proc: int, reason: str, now: Now) -> None:
        """Un-hold a task; it starts again only when nothing of its last attempt runs any more."""
        if self._master.sessions.is_ending(cluster, proc):
            cluster.fence(proc)
        n = self._master.queue.release(cluster, proc, now.wall, reason)
        if n:
            self._master.actions.append(t.RetryNotes([n]))

    def _suspend(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        state = cluster.state(proc)
        if state == State.SUSPENDED:
            return "already"
        if state != State.RUNNING or not self._master.sessions.is_on_worker(cluster, proc):
            return "bad_state"
        self._master.sessions.suspend(cluster, proc, True, now)
        self._master.queue.suspend(cluster, proc, True, now.wall)
        return "ok"

    def _continue(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        state = cluster.state(proc)
        if state == State.RUNNING:
            return "already"
        if state != State.SUSPENDED:
            return "bad_state"
        self._master.sessions.suspend(cluster, proc, False, now)
        self._master.queue.suspend(cluster, proc, False, now.wall)
        return "ok"

    def _vacate(self, act: t.Act, cluster: Cluster, proc: int, now: Now) -> str:
        """End its attempt; it starts again when nothing of that one runs any more."""
        sessions = self._master.sessions
        if cluster.state(proc) not in _STARTED or not sessions.is_on_worker(cluster, proc):
            return "bad_state"
        sessions.end_attempt(cluster, proc, now, fast=act.verb == "vacate_fast")
        end = Ended(Outcome.EVICTED, reason=act.reason)
        self._master.queue.requeue(cluster, proc, now.wall, end, still_runs=sessions.is_ending(cluster, proc))
        return "ok"


def _adjusted(cluster: Cluster, first: int, last: int, more: str) -> list[tuple[int, int, str]]:
    """New priorities of a range: of all, then of those with one of their own."""
    own = [proc for proc in sorted(cluster.priorities) if first <= proc <= last]
    found = [(first, last, cluster.priority), *((proc, proc, cluster.priorities[proc]) for proc in own)]
    return [(first, last, str(priority + int(more))) for first, last, priority in found]
