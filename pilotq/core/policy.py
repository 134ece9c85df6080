"""Policy expressions of users: periodic ones, those at the exit of a task, and staying in the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotq.core.tasks import POLICY_ATTRIBUTES, Cluster
from pilotq.core.turn import Evaluator, Now
from pilotq.model import ENDED, Facts, HoldCode, State

if TYPE_CHECKING:
    from pilotq.core.master import MasterCore

#: What each periodic policy applies to. Source: HTCondor manual, periodic job policy expressions.
_APPLIES = {
    "periodic_hold": frozenset({State.IDLE, State.ASSIGNED, State.RUNNING, State.SUSPENDED}),
    "periodic_release": frozenset({State.HELD}),
    "periodic_remove": frozenset({State.IDLE, State.ASSIGNED, State.RUNNING, State.SUSPENDED, State.HELD, State.DONE}),
}


def fired(policy: str, expr: str) -> str:
    """HTCondor's sentence for a policy that became true."""
    return f"The job attribute {POLICY_ATTRIBUTES[policy]} expression '{expr}' evaluated to TRUE"


class Policy:
    """Evaluates what clusters ask for; undefined never fires."""

    def __init__(self, master: MasterCore, evaluate: Evaluator, now: Now) -> None:
        self._master = master
        self._evaluate = evaluate
        self.next_at = now.boot + master.limits.policy_interval_s

    def run(self, now: Now) -> None:
        """All periodic policies once."""
        self.next_at = now.boot + self._master.limits.policy_interval_s
        for cluster in list(self._master.queue.clusters.values()):
            if cluster.policies:
                self._run_cluster(cluster, now)

    def _run_cluster(self, cluster: Cluster, now: Now) -> None:
        answers: dict[tuple[str, int, int, int], bool | None] = {}
        for policy, states in _APPLIES.items():
            if policy not in cluster.policies:
                continue
            for proc in cluster.live_procs():
                state = cluster.state(proc)
                expr = cluster.policy(policy, proc)
                if state not in states or not expr:
                    continue
                facts = cluster.facts_of(proc)
                # Tasks that share their facts share the answer, as long as the expression cannot see the proc.
                differs = cluster.has_deltas or cluster.edits or "proc" in expr.lower()
                key = (policy, int(state), id(facts), proc if differs else -1)
                if key not in answers:
                    answers[key] = self._ask(expr, cluster, proc, facts, now)
                if answers[key]:
                    self._fire(policy, expr, cluster, proc, now)
        if "leave_in_queue" in cluster.policies:
            for proc in cluster.live_procs():
                if cluster.state(proc) in ENDED:
                    self.leave_or_stay(cluster, proc, now)

    def _fire(self, policy: str, expr: str, cluster: Cluster, proc: int, now: Now) -> None:
        master, reason = self._master, fired(policy, expr)
        if policy == "periodic_hold":
            subcode, reason = self.held(policy, cluster, proc, cluster.facts_of(proc), now)
            master.sessions.end_attempt(cluster, proc, now)
            master.queue.hold(cluster, proc, now.wall, HoldCode.POLICY, subcode, reason)
        elif policy == "periodic_release":
            master.acts.release(cluster, proc, reason, now)
        else:
            master.sessions.end_attempt(cluster, proc, now, removed=True)
            master.queue.cancel(cluster, proc, now.wall, reason)
            self.leave_or_stay(cluster, proc, now)

    def judges_exits(self, cluster: Cluster) -> bool:
        """May the end of a payload not be the end of its task? Then one result may be told twice and count once."""
        return not cluster.policies.keys().isdisjoint(("on_exit_hold", "on_exit_remove"))

    def at_exit(self, cluster: Cluster, proc: int, facts: Facts, now: Now) -> str:
        """What becomes of a task whose payload ended: "hold", "again" or "leave"."""
        hold, remove = cluster.policy("on_exit_hold", proc), cluster.policy("on_exit_remove", proc)
        if hold and self._ask(hold, cluster, proc, facts, now):
            return "hold"
        if remove and self._ask(remove, cluster, proc, facts, now) is False:
            return "again"
        return "leave"

    def leave_or_stay(self, cluster: Cluster, proc: int, now: Now) -> None:
        """Take an ended task out of the queue unless its leave_in_queue holds."""
        expr = cluster.policy("leave_in_queue", proc)
        if expr and self._ask(expr, cluster, proc, cluster.facts_of(proc), now):
            return
        self._master.queue.leave(cluster, proc)

    def held(self, policy: str, cluster: Cluster, proc: int, facts: Facts, now: Now) -> tuple[int, str]:
        """Subcode and reason of a hold: the user's own, where they come to a number and a text."""

        def value(name: str) -> bool | float | str | None:
            expr = cluster.policy(f"{policy}_{name}", proc)
            return self._evaluate(expr, cluster, proc, facts, now.wall) if expr else None

        subcode, reason = value("subcode"), value("reason")
        return (
            int(subcode) if isinstance(subcode, int | float) else 0,
            reason if isinstance(reason, str) and reason else fired(policy, cluster.policy(policy, proc)),
        )

    def _ask(self, expr: str, cluster: Cluster, proc: int, facts: Facts, now: Now) -> bool | None:
        value = self._evaluate(expr, cluster, proc, facts, now.wall)
        return None if value is None or isinstance(value, str) else bool(value)
