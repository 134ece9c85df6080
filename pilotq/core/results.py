"""What the end of an attempt means for its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotq import wire
from pilotq.core import turn as t
from pilotq.core.peers import Worker
from pilotq.core.tasks import Cluster, completed
from pilotq.core.turn import Now
from pilotq.model import ENDED, ENDING, ON_WORKER, Ended, HoldCode, Outcome, State

if TYPE_CHECKING:
    from pilotq.core.master import MasterCore

#: errno of a full disk and of a used up quota: the node's trouble, not the task's.
_NO_SPACE = frozenset({28, 122})
#: A worker that could not take or stage a task gets nothing new for this long.
PAUSE_S = 10.0
#: As numbers, for the hot loop: the last of `ENDING`, and the states of `ON_WORKER`.
_LAST_ENDING = int(max(ENDING))
_ON_WORKER = bytes(ON_WORKER)
#: Ends of a task that only a person can mend, and Condor's code for them.
_HOLDS = {
    Outcome.TIMEOUT: HoldCode.DURATION,
    Outcome.MEMORY: HoldCode.RESOURCES,
    Outcome.DISK: HoldCode.RESOURCES,
    Outcome.PROCESSES: HoldCode.RESOURCES,
    Outcome.STAGE_IN: HoldCode.CANNOT_START,
    Outcome.STAGE_OUT: HoldCode.OUTPUT_FILE,
}


def _is_nodes_trouble(end: Ended) -> bool:
    """The node could not start the task or had no space for it."""
    return end.outcome == Outcome.REJECTED or (end.outcome == Outcome.DISK and end.code in _NO_SPACE)


class Results:
    """Results of attempts, judged by task and attempt number alone."""

    def __init__(self, master: MasterCore) -> None:
        self._master = master
        #: Ends whose larger outputs are on their way into the spool.
        self.collecting: dict[wire.Token, tuple[Worker, Ended]] = {}

    def on_result(self, worker: Worker, message: wire.Result, now: Now) -> None:
        told = message.tokens[: len(message.ends)]
        stands = message.row_stands
        tokens, ends = self._take_plain(worker, told, message.ends, stands, now)
        acks = [token for token, end in zip(tokens, ends, strict=False) if self._judge(worker, token, end, stands, now)]
        if len(tokens) < len(told):
            acks += set(told).difference(tokens)
        # The acknowledgement lets the worker go on: what it must give back it is told before.
        self._master.heed_health(now)
        if acks and worker.route is not None:
            self._master.actions.append(t.Send(worker.route, wire.Ack(acks)))
            unheard = [token for token in acks if token in worker.ending]
            if unheard:
                # It is asked again whether anything of these is left.
                self._master.actions.append(t.Send(worker.route, wire.Kill(unheard)))

    def _take_plain(
        self, worker: Worker, tokens: list[wire.Token], ends: list[Ended], row_stands: bool, now: Now
    ) -> tuple[list[wire.Token], list[Ended]]:
        """Complete at once what needs no judging: the rest.

        Those are the present attempts of a cluster, held by this worker, that ended by themselves, whose outputs came
        along, and of which nobody is to be asked or told.
        """
        number = tokens[0].cluster if tokens else 0
        cluster, held = self._master.queue.clusters.get(number), worker.held.get(number)
        if cluster is None or held is None or cluster.has_log or cluster.policies or worker.returned:
            return tokens, ends
        numbers, states, attempts = held.numbers, cluster.states, cluster.attempts
        plain: dict[int, tuple[wire.Token, Ended]] = {}
        other_tokens, other_ends = [], []
        for token, end in zip(tokens, ends, strict=False):
            proc = token.proc
            if (
                end.outcome <= _LAST_ENDING
                and (not end.outputs or None not in [output.data for output in end.outputs])
                and token.cluster == number
                and numbers.get(proc) == token.attempt == attempts[proc]
                and states[proc] in _ON_WORKER
                and proc not in plain
            ):
                plain[proc] = token, end
            else:
                other_tokens.append(token)
                other_ends.append(end)
        if plain:
            procs = list(plain)
            self._note_health(worker, cluster, plain, row_stands, now)
            worker.drop_all(number, procs, [token.attempt for token, _ in plain.values()])
            self._master.queue.complete_all(cluster, procs, [end for _, end in plain.values()], now.wall)
        return other_tokens, other_ends

    def _note_health(
        self,
        worker: Worker,
        cluster: Cluster,
        plain: dict[int, tuple[wire.Token, Ended]],
        row_stands: bool,
        now: Now,
    ) -> None:
        health = self._master.health
        bad = [(proc, end) for proc, (_, end) in plain.items() if end.outcome]
        if len(bad) < len(plain):
            health.on_good(worker.node, cluster, len(plain) - len(bad), now, row_stands=row_stands)
        for proc, end in bad:
            health.on_end(worker.node, cluster, proc, end, now)

    def _judge(self, worker: Worker, token: wire.Token, end: Ended, row_stands: bool, now: Now) -> bool:
        """Take one result; True when the worker may forget it."""
        # Until it says `Killed` it may tell a result that was on its way again.
        is_ending = token in worker.ending
        task = (token.cluster, token.proc)
        if worker.number(task) == token.attempt:
            worker.drop(task)
        if _is_nodes_trouble(end):
            # Or it would come back at once, again and again.
            worker.pause_until = now.boot + PAUSE_S
        cluster = self._master.queue.clusters.get(token.cluster)
        is_large = end.outcome in ENDING and any(output.data is None for output in end.outputs)
        if cluster is None or not cluster.has(token.proc) or (is_ending and is_large):
            # Or its worker was told to end it and to forget it, and its outputs are gone.
            return True
        state, current = cluster.state(token.proc), cluster.attempts[token.proc]
        if state in ENDED or state in (State.STAGING_OUT, State.HELD) or token.attempt > current:
            return True
        if token.attempt == current and not worker.may_speak_for(cluster, token.proc):
            # It was given to another worker: not this one's to tell of.
            return True
        is_idle = state == State.IDLE and token.attempt == current
        is_over = token.attempt < current or is_idle
        if is_over and (end.outcome not in ENDING or self._master.policy.judges_exits(cluster)):
            # Of no use; or judged before, and told again as the acknowledgement was lost.
            return True
        if is_idle and not is_ending and not worker.has_lost(cluster, token.proc):
            # Judged before as well.
            return True
        if token not in self.collecting:
            self._master.health.on_end(worker.node, cluster, token.proc, end, now, row_stands=row_stands)
        if is_large:
            if is_idle:
                # Not to be started again while its outputs come.
                self._master.queue.take_back(cluster, token.proc, worker.name, worker.host)
            if token.attempt == current:
                worker.returned[task] = current
            self._collect(worker, token, end)
            return False
        self._end(cluster, token, end, now)
        return True

    def _collect(self, worker: Worker, token: wire.Token, end: Ended) -> None:
        """Pull the larger outputs; told again, go on with the pulling by the present route."""
        assert worker.route is not None
        self.collecting[token] = (worker, end)
        self._master.actions.append(t.Collect(worker.route, token, end.outputs))

    def on_collected(self, event: t.Collected, now: Now) -> None:
        """The spool has all outputs of an attempt; or the worker is to be asked again later."""
        worker, end = self.collecting.pop(event.token, (None, None))
        if worker is None or end is None or (event.reason and event.retry):
            return
        if event.reason:
            end = Ended(Outcome.STAGE_OUT, reason=event.reason, usage=end.usage)
        token = event.token
        if worker.returned.get((token.cluster, token.proc)) == token.attempt:
            del worker.returned[token.cluster, token.proc]
        cluster = self._master.queue.clusters.get(token.cluster)
        is_open = cluster is not None and cluster.state(token.proc) in ON_WORKER | {State.IDLE}
        # The outputs of an earlier attempt that cannot be had do not matter to the present one.
        if cluster is not None and is_open and (not event.reason or token.attempt == cluster.attempts[token.proc]):
            self._end(cluster, token, end, now)
        else:
            self._master.actions.append(t.Discard([token]))
        if worker.route is not None:
            self._master.actions.append(t.Send(worker.route, wire.Ack([token])))

    def _end(self, cluster: Cluster, token: wire.Token, end: Ended, now: Now) -> None:
        queue, proc = self._master.queue, token.proc
        if token.attempt != cluster.attempts[proc]:
            self._master.sessions.end_attempt(cluster, proc, now)
        if end.usage.wall_s and cluster.state(proc) == State.ASSIGNED:
            queue.start(cluster, [proc], max(now.wall - end.usage.wall_s, cluster.facts_of(proc).entered_at))
        if end.outcome in ENDING:
            self._completed(cluster, token, end, now)
        elif _is_nodes_trouble(end):
            is_charged = end.outcome == Outcome.DISK
            self._lost(cluster, proc, end, now, lost=is_charged, charged=is_charged)
        elif end.outcome in _HOLDS:
            queue.ended_attempt(cluster, proc, end)
            code = _HOLDS[end.outcome]
            queue.hold(cluster, proc, now.wall, code, end.code, end.reason or end.outcome.name.lower())
        else:
            is_charged = end.outcome == Outcome.LOST and cluster.state(proc) in (State.RUNNING, State.SUSPENDED)
            self._lost(cluster, proc, end, now, lost=is_charged, charged=is_charged)

    def _completed(self, cluster: Cluster, token: wire.Token, end: Ended, now: Now) -> None:
        queue, policy, proc = self._master.queue, self._master.policy, token.proc
        if cluster.policies:
            judged = completed(cluster.facts_of(proc), end, now.wall, was_started=True)
            fate = policy.at_exit(cluster, proc, judged, now)
            if fate != "leave" and any(output.data is None for output in end.outputs):
                self._master.actions.append(t.Discard([token]))
            if fate != "leave":
                queue.ended_attempt(cluster, proc, end)
            if fate == "hold":
                subcode, reason = policy.held("on_exit_hold", cluster, proc, judged, now)
                queue.hold(cluster, proc, now.wall, HoldCode.POLICY, subcode, reason)
                return
            if fate == "again":
                queue.requeue(cluster, proc, now.wall, Ended(end.outcome, end.code, end.reason))
                return
        queue.complete(cluster, proc, now.wall, end, token.attempt)
        if cluster.state(proc) == State.DONE:
            policy.leave_or_stay(cluster, proc, now)

    def _lost(
        self, cluster: Cluster, proc: int, end: Ended, now: Now, *, lost: bool = False, charged: bool = False
    ) -> None:
        """Idle again, or held when it was lost too often."""
        queue = self._master.queue
        queue.requeue(cluster, proc, now.wall, end, lost=lost, charged=charged)
        facts = cluster.facts_of(proc)
        if facts.losses >= self._master.limits.max_losses and len(set(facts.lost_on)) >= 2:
            nodes = ", ".join(sorted(set(facts.lost_on)))
            reason = f"lost {facts.losses} times with its worker (on {nodes})"
            queue.hold(cluster, proc, now.wall, HoldCode.LOST, 0, reason)

    def drop_collected(self, token: wire.Token) -> None:
        """The outputs of an attempt are not wanted any more."""
        if self.collecting.pop(token, None) is not None:
            self._master.actions.append(t.Discard([token]))

    def stop_collecting(self, worker: Worker) -> None:
        """It is no more; should it come back after all, it tells its results again."""
        for token in [token for token, (other, _) in self.collecting.items() if other is worker]:
            del self.collecting[token]
            self._master.actions.append(t.Discard([token]))

    def lose(self, worker: Worker, tasks: list[tuple[int, int]], reason: str, now: Now) -> None:
        """These attempts of a worker are gone without a result.

        Perhaps one of those that ran has killed it: the one that was lost most often before is charged. Where several
        were lost as often, none is: each remembers it, until one of them is lost alone or more often than the others.
        """
        running = self._running(tasks, worker)
        most = max(running.values(), default=0)
        suspects = [task for task, losses in running.items() if losses == most]
        for task in tasks:
            number = worker.drop(task)
            token = wire.Token(task[0], task[1], max(number, 1))
            if token in self.collecting:
                del self.collecting[token]
                self._master.actions.append(t.Discard([token]))
            cluster = self._master.queue.clusters.get(task[0])
            if cluster is None or cluster.attempts[task[1]] != number or cluster.state(task[1]) not in ON_WORKER:
                continue
            end = Ended(Outcome.LOST, reason=reason)
            self._lost(cluster, task[1], end, now, lost=task in running, charged=suspects == [task])
        if suspects:
            number, proc = suspects[0]
            self._master.health.on_bad(worker.node, self._master.queue.clusters[number], proc, reason, now)

    def _running(self, tasks: list[tuple[int, int]], worker: Worker) -> dict[tuple[int, int], int]:
        """Those of a worker's tasks that run there, with how often each was lost before."""
        found = {}
        for task in tasks:
            cluster = self._master.queue.clusters.get(task[0])
            if (
                cluster is not None
                and cluster.attempts[task[1]] == worker.number(task)
                and cluster.state(task[1]) in (State.RUNNING, State.SUSPENDED)
            ):
                found[task] = len(cluster.facts_of(task[1]).lost_on)
        return found
