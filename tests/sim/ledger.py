"""What really happened, as the world saw it, and the invariants I1 to I12 over that.

Nothing here asks a core. What counts: what was committed, what was said on the wire and heard by the master, what each
payload did, what stands in the users' logs, what clients were told.
"""

from __future__ import annotations

from typing import Any

from pilotq import wire
from pilotq.core.queue import ABORTED, HELD, RELEASED, SUBMITTED, TERMINATED
from pilotq.core.records import ClusterAdded, Note, NotesAdded, TaskRows, TasksLeft
from pilotq.core.turn import HandNotes, Route, Turn
from pilotq.model import ENDED, ENDING, ON_WORKER, Facts, HoldCode, Outcome, State
from pilotq.store.memory import MemoryStore
from tests.sim.clockwork import Time, Violation
from tests.sim.things import Payload, Seen, Spec

Task = tuple[int, int]
_TERMINAL = (TERMINATED, ABORTED)


class Ledger:
    """See above. Every method that checks raises Violation."""

    def __init__(self, time: Time, disk: MemoryStore, lease_s: float) -> None:
        self.time, self.disk, self.lease_s = time, disk, lease_s
        self.specs: dict[int, Spec] = {}
        self.wanted: dict[bytes, Spec] = {}
        self.payloads: dict[wire.Token, Payload] = {}
        self.of_task: dict[Task, list[Payload]] = {}
        self.attempts: dict[Task, int] = {}
        self.states: dict[Task, State] = {}
        self.holders: dict[wire.Token, str] = {}
        #: State and attempt as the master has it, committed or not.
        self._decided: dict[Task, tuple[State, int]] = {}
        #: How often a task had been held, by the attempt whose result held it.
        self._held_by: dict[wire.Token, int] = {}
        self.workers: dict[str, Seen] = {}
        self.by_route: dict[Route, str] = {}
        self.master_began_at = 0.0
        #: Attempts that may be followed by another one: their worker, or an operator, said that they are over.
        self.released: set[wire.Token] = set()
        #: Attempts whose task was held or cancelled while they ran: of these no result is wanted.
        self.unwanted: set[wire.Token] = set()
        self.acked: set[wire.Token] = set()
        #: Attempts somebody wanted to end: the master, or the worker as its lease was over.
        self.kill_sent: set[wire.Token] = set()
        self.killed_at: dict[wire.Token, float] = {}
        self.given_up: set[wire.Token] = set()
        #: Attempts of which an operator said that they are gone with their worker, wrongly perhaps.
        self.forgotten: set[wire.Token] = set()
        #: Tasks whose result is on disk; the keys of submissions.
        self.recorded: set[Task] = set()
        self.keys: dict[tuple[str, str], int] = {}
        #: (event, first proc, count, number of the note), as it stands in the log of a cluster.
        self.logs: dict[int, list[tuple[int, int, int, int]]] = {}
        self.log_ended: set[Task] = set()
        #: Attempts whose outputs were put in place for the user.
        self.published: dict[Task, set[int]] = {}
        #: Clusters of which somebody wanted something released.
        self.release_asked: set[int] = set()
        self.cancel_wanted: set[Task] = set()
        self.cancelled: set[Task] = set()
        #: Workers that an operator wants to leave, and was told that they will.
        self.drained: set[str] = set()
        #: Workers that lie, and tasks that one of them had: nothing it says of these can be trusted.
        self.liars: set[str] = set()
        self.lied_of: set[Task] = set()

    def fail(self, invariant: str, text: str) -> None:
        self.time.tell(f"VIOLATION {invariant}: {text}")
        raise Violation(invariant, text)

    # ---- the disk

    def on_commit(self, records: list[Any]) -> None:
        """Before a transaction becomes durable."""
        for record in records:
            if isinstance(record, TaskRows):
                columns = zip(record.procs, record.states, record.attempts, record.facts, strict=True)
                for proc, state, attempt, facts in columns:
                    self._row((record.cluster, proc), State(state), attempt, facts)
            elif isinstance(record, TasksLeft):
                columns = zip(record.procs, record.states, record.attempts, record.facts, strict=True)
                for proc, state, attempt, facts in columns:
                    self._left((record.cluster, proc), State(state), attempt, facts)
            elif isinstance(record, ClusterAdded):
                self._added(record)
            elif isinstance(record, NotesAdded):
                self._noted(record.notes)
        self.disk.commit(records)

    def _noted(self, notes: list[Note]) -> None:
        for note in notes:
            if note.final and self.states.get((note.cluster, note.proc)) != State.STAGING_OUT:
                self.fail("I2", f"the last note of {note.cluster}.{note.proc} is written apart from its result")

    def _added(self, record: ClusterAdded) -> None:
        if record.key:
            if (record.owner, record.key) in self.keys:
                self.fail("I7", f"key {record.key} was accepted twice")
            self.keys[record.owner, record.key] = record.cluster
        self.specs[record.cluster] = self.wanted[record.description]

    def _row(self, task: Task, state: State, attempt: int, facts: Facts) -> None:
        if task in self.disk.history:
            self.fail("I2", f"task {_name(task)} has left the queue and is in it again")
        old = self.attempts.get(task, 0)
        if task in self.recorded and (state in ON_WORKER or state == State.IDLE):
            self.fail("I2", f"task {_name(task)} is {state.name} after its result was recorded")
        if attempt < old:
            self.fail("I3", f"attempt {attempt} of {_name(task)} follows {old}")
        if attempt > old:
            self._new_attempt(task, old, attempt, facts.worker)
        elif state in ON_WORKER and facts.worker and self.holders.get(wire.Token(*task, attempt)) != facts.worker:
            self._other_holder(task, attempt, facts.worker)
        if state == State.STAGING_OUT:
            self._recorded(task, attempt, facts)
        elif state == State.IDLE and attempt and (not facts.worker or facts.outcome == Outcome.LOST):
            self._free(wire.Token(*task, attempt), f"{_name(task)} is idle again")
        elif state in (State.HELD, State.CANCELLED) or (state == State.IDLE and attempt):
            self.unwanted.add(wire.Token(*task, attempt))
        if state == State.HELD:
            self._held(wire.Token(*task, attempt), facts)
        self.attempts[task], self.states[task] = attempt, state
        if self.time.trace is not None:
            self.time.tell(f"disk: {_name(task)} {state.name.lower()} attempt {attempt} {facts.worker}")

    def _held(self, token: wire.Token, facts: Facts) -> None:
        """By its result once; and never because outputs are gone that nobody was to keep."""
        task = (token.cluster, token.proc)
        if facts.hold_code not in (HoldCode.RESOURCES, HoldCode.DURATION, HoldCode.OUTPUT_FILE) or task in self.lied_of:
            return
        if facts.outcome == Outcome.STAGE_OUT:
            self.fail("I5", f"{_name(task)} is held because outputs are gone that its worker was to keep, or to forget")
        if facts.outcome in ENDING:
            return
        before = self._held_by.setdefault(token, facts.holds)
        if facts.holds > before:
            self.fail("I2", f"the result of {_token(token)} holds its task a second time")

    def _left(self, task: Task, state: State, attempt: int, facts: Facts) -> None:
        if task in self.disk.history:
            self.fail("I2", f"task {_name(task)} leaves the queue twice")
        if state not in ENDED:
            self.fail("I2", f"task {_name(task)} leaves the queue in state {state.name}")
        if task in self.cancelled and state != State.CANCELLED:
            self.fail("I4", f"task {_name(task)} is {state.name}, but its cancelling was answered")
        if state == State.DONE:
            self._recorded(task, attempt, facts)
            if self.specs[task[0]].has_log and task not in self.log_ended:
                self.fail("I12", f"task {_name(task)} left before its last event was in the log")
            if self.specs[task[0]].outputs and task not in self.published and task not in self.lied_of:
                self.fail("I5", f"task {_name(task)} left before its outputs were brought home")
        elif task not in self.cancel_wanted:
            self.fail("I2", f"task {_name(task)} was cancelled by nobody")
        self.states[task] = state
        self.time.tell(f"disk: {_name(task)} left, {state.name.lower()}")

    def _recorded(self, task: Task, attempt: int, facts: Facts) -> None:
        """Some payload of the task must have ended like that, by an attempt that was issued."""
        if task in self.recorded:
            return
        self.recorded.add(task)
        if task in self.lied_of:
            return
        for payload in self.of_task.get(task, ()):
            if payload.is_complete and (payload.outcome, payload.code) == (facts.outcome, facts.code):
                return
        self.fail("I3", f"a result of {_name(task)} is recorded that no payload of it gave")

    def _new_attempt(self, task: Task, old: int, new: int, worker: str) -> None:
        token = wire.Token(*task, new)
        self.holders[token] = worker
        if worker in self.liars:
            self.lied_of.add(task)
        if new != old + 1 and task not in self.lied_of:
            self.fail("I3", f"attempt {new} of {_name(task)} follows {old}")
        if old:
            self._free(wire.Token(*task, old), f"attempt {new} of {_name(task)} is issued")
        for payload in self.of_task.get(task, ()):
            if payload.is_running and not self._is_excused(payload):
                self.fail("I6", f"attempt {new} of {_name(task)} is issued while {payload.worker} runs it")

    def _free(self, token: wire.Token, what: str) -> None:
        """A task may run elsewhere only when its worker said that it has not got it, or after its lease."""
        task = (token.cluster, token.proc)
        if token not in self.released and task not in self.lied_of:
            holder = self.holders[token]
            contact = max(self.workers[holder].contact_at if holder in self.workers else 0.0, self.master_began_at)
            if self.time.t - contact < self.lease_s:
                text = f"{what}, {holder} may have attempt {token.attempt}"
                self.fail("I6", f"{text} and was heard of {self.time.t - contact:.0f} s ago")
        self.released.add(token)

    def _other_holder(self, task: Task, attempt: int, worker: str) -> None:
        if worker in self.liars:
            self.lied_of.add(task)
        if task not in self.lied_of:
            text = f"attempt {attempt} of {_name(task)} is given to {worker}"
            self.fail("I3", f"{text}, but {self.holders.get(wire.Token(*task, attempt))} got it")
        self.holders[wire.Token(*task, attempt)] = worker

    # ---- what the master hears and says

    def on_master_start(self) -> None:
        self.master_began_at = self.time.t
        for seen in self.workers.values():
            seen.route, seen.generation = None, -1
            seen.open.clear()
        self.by_route.clear()
        self._decided = {task: (state, self.attempts.get(task, 0)) for task, state in self.states.items()}

    def on_unknown(self, name: str) -> None:
        """The master does not remember it: any of its hellos may be the newest."""
        if name in self.workers:
            self.workers[name].generation = -1

    def on_heard(self, route: Route, message: Any) -> None:
        """Before the master's core reacts to it."""
        if isinstance(message, wire.Hello):
            name = message.worker
            seen = self.workers.setdefault(name, Seen())
            if message.generation < seen.generation:
                return
            seen.heard_at, seen.route, seen.generation = self.time.t, route, message.generation
            seen.offer = message.offer
            self.by_route[route] = name
            here = {*message.live, *message.unacked}
            self._release_all(name, here)
            seen.open = set(message.live)
            for predecessor in message.predecessors:
                self._release_all(predecessor, set())
            return
        name = self.by_route.get(route, "")
        if not name:
            return
        seen = self.workers[name]
        if isinstance(message, wire.Beat) and route == seen.route:
            # One that comes by a route it has left is old.
            seen.heard_at, seen.offer = self.time.t, message.offer
        elif isinstance(message, wire.Result | wire.Refuse | wire.Killed):
            seen.open.difference_update(message.tokens)
            self.released.update(token for token in message.tokens if self.holders.get(token) == name)
        elif isinstance(message, wire.Goodbye):
            self._release_all(name, set())

    def on_renewed(self, route: Route) -> None:
        """The master says that a lease goes on."""
        seen = self.workers.get(self.by_route.get(route, ""))
        if seen is not None:
            seen.contact_at = seen.heard_at

    def on_forget(self, name: str) -> None:
        """An operator says that it is gone; he may be wrong, then he takes the blame for a second copy."""
        self._release_all(name, set())
        self.forgotten.update(token for token, holder in self.holders.items() if holder == name)
        for token in [token for token in self.killed_at if self.holders.get(token) == name]:
            del self.killed_at[token]
        seen = self.workers.get(name)
        if seen is not None:
            seen.open.clear()

    def _release_all(self, name: str, but: set[wire.Token]) -> None:
        gone = [token for token, holder in self.holders.items() if holder == name and token not in but]
        self.released.update(gone)

    def on_decided(self, turn: Turn) -> None:
        for record in turn.records:
            if isinstance(record, ClusterAdded):
                self.specs[record.cluster] = self.wanted[record.description]
            elif isinstance(record, TaskRows):
                self._decided_rows(record)
        early = [action for action in turn.at_once if not isinstance(action, HandNotes)]
        if early:
            self.fail("I4", f"{early} begin before their commit")

    def _decided_rows(self, record: TaskRows) -> None:
        """What was free and is taken back by the worker that has it is not free any more."""
        for proc, state, attempt in zip(record.procs, record.states, record.attempts, strict=True):
            task, after = (record.cluster, proc), (State(state), attempt)
            if after[0] in ON_WORKER and self._decided.get(task) == (State.IDLE, attempt):
                self.released.discard(wire.Token(*task, attempt))
                self.forgotten.discard(wire.Token(*task, attempt))
            self._decided[task] = after

    def on_handed(self, notes: list[Note]) -> None:
        """Before their commit: it may never come, so only what may be done twice."""
        for note in notes:
            if note.event >= 0:
                self.fail("I12", f"event {note.event} of {note.cluster}.{note.proc} is handed over before its commit")

    def on_decided_assign(self, route: Route, tokens: list[wire.Token]) -> None:
        """I9 and I10, when the master decides."""
        name = self.by_route.get(route, "")
        seen = self.workers.get(name)
        if seen is None or seen.offer is None:
            self.fail("I10", "a task is given to somebody who never said hello")
        assert seen is not None and seen.offer is not None
        if seen.route != route:
            self.fail("I10", f"{name} is given a task by a route that a newer session replaced")
        seen.open.update(tokens)
        for token in tokens:
            # A number that never reached the disk may be used again.
            self.holders[token] = name
            self.released.discard(token)
            self.kill_sent.discard(token)
            self.killed_at.pop(token, None)
        if name in self.liars:
            return
        if name in self.drained:
            self.fail("I9", f"{name} is given a task, and an operator was told that it drains")
        if seen.offer.draining:
            self.fail("I9", f"{name} drains and is given a task")
        # What is left of clusters that are gone is about to end.
        here = [token.cluster for token in seen.open if token.cluster in self.disk.live or token in tokens]
        needs = [self.specs[cluster].cpus for cluster in here]
        most = seen.offer.capacity.cpus + seen.offer.ahead * max(needs)
        if sum(needs) > most:
            self.fail("I9", f"{name} offered {most} cores in all and holds {sum(needs)}")

    def on_assign_sent(self, tokens: list[wire.Token]) -> None:
        for token in tokens:
            task = (token.cluster, token.proc)
            if self.attempts.get(task, 0) != token.attempt or self.states.get(task) not in ON_WORKER:
                self.fail("I4", f"attempt {token.attempt} of {_name(task)} leaves before it is on disk")

    def on_kill_sent(self, tokens: list[wire.Token]) -> None:
        self.kill_sent.update(tokens)
        self.killed_at.update(dict.fromkeys(tokens, self.time.t))

    def on_ack_sent(self, route: Route, tokens: list[wire.Token]) -> None:
        if self.by_route.get(route, "") in self.liars:
            return
        for token in tokens:
            self.acked.add(token)
            task, payload = (token.cluster, token.proc), self.payloads.get(token)
            if payload is None or not payload.is_complete or task in self.lied_of:
                continue
            if token in self.kill_sent or token in self.unwanted:
                continue
            state = self.states.get(task, State.IDLE)
            if payload.spec.policy != "again" and (state in ON_WORKER or state == State.IDLE):
                self.fail("I4", f"the result of {_name(task)} is acknowledged, but on disk it is {state.name}")

    # ---- payloads

    def on_start(self, payload: Payload) -> None:
        token = payload.token
        task = (token.cluster, token.proc)
        if token in self.payloads:
            self.fail("I6", f"attempt {token.attempt} of {_name(task)} starts twice")
        is_excused = self._is_excused(payload)
        if token.attempt != self.attempts.get(task, 0) and not is_excused:
            now = self.attempts.get(task, 0)
            self.fail("I6", f"attempt {token.attempt} of {_name(task)} starts, but {now} was issued")
        for other in self.of_task.get(task, ()):
            if other.is_running and not is_excused and not self._is_excused(other):
                self.fail("I6", f"{_name(task)} starts on {payload.worker} and runs on {other.worker}")
        self.payloads[token] = payload
        self.of_task.setdefault(task, []).append(payload)
        self.time.tell(f"{payload.worker} runs {_name(task)} attempt {token.attempt}")

    def _is_excused(self, payload: Payload) -> bool:
        """Nobody can promise that this one runs alone."""
        token = payload.token
        is_lied_of = (token.cluster, token.proc) in self.lied_of
        return is_lied_of or token in self.forgotten or payload.node.was_frozen(payload.launched_at)

    def on_over(self, payload: Payload, lease_from: float) -> None:
        """It may have run for a lease after its worker last sent what was answered, and no longer."""
        grace_s = 14.0 if payload.spec.ignores_term else 3.5
        most = lease_from + 1.011 * self.lease_s + grace_s
        if payload.over_at > most and not payload.node.was_frozen(payload.over_at - 2 * self.lease_s):
            text = f"{payload.worker} ran {_token(payload.token)} {payload.over_at - most:.1f} s longer than it may"
            self.fail("I6", text)

    def on_collect(self, token: wire.Token) -> None:
        killed_s = self.time.t - self.killed_at.get(token, float("-inf"))
        if killed_s < self.lease_s and (token.cluster, token.proc) not in self.lied_of:
            self.fail("I5", f"outputs of {_token(token)} are wanted, but its worker was told to forget it")
        if token in self.acked and (token.cluster, token.proc) not in self.lied_of:
            self.fail("I5", f"outputs of {_token(token)} are wanted, but its result was acknowledged")

    def on_missing(self, token: wire.Token) -> None:
        """A worker says that outputs are gone."""
        payload = self.payloads.get(token)
        wanted = not (token in self.kill_sent or token in self.acked or (token.cluster, token.proc) in self.lied_of)
        if payload is not None and payload.is_complete and wanted:
            self.fail("I5", f"{payload.worker} has not got the outputs of {_token(token)} any more")

    def on_discard(self, worker: str, token: wire.Token) -> None:
        """A worker removes what is left of an attempt."""
        payload = self.payloads.get(token)
        if payload is None or not payload.is_complete or payload.worker != worker or worker in self.liars:
            return
        if token not in self.acked and token not in self.kill_sent and token not in self.given_up:
            self.fail("I5", f"{worker} forgets the result of {_token(token)} before the master has it")

    # ---- logs of users

    def on_append(self, cluster: int, event: int, first: int, count: int, n: int) -> None:
        log = self.logs.setdefault(cluster, [])
        if any(entry[1:] == (first, count, n) for entry in log):
            self.fail("I12", f"note {n} of {cluster}.{first} is in the log twice")
        for proc in range(first, first + count):
            if (cluster, proc) in self.log_ended and event not in (HELD, RELEASED):
                self.fail("I12", f"event {event} of {cluster}.{proc} follows its last one in the log")
            if event in _TERMINAL:
                self.log_ended.add((cluster, proc))
        log.append((event, first, count, n))

    # ---- clients

    def on_submit_answer(self, spec: Spec, value: Any) -> None:
        if not isinstance(value, list):
            return
        for number in value:
            if number not in self.disk.clusters:
                self.fail("I1", f"cluster {number} is answered and is not on disk")
            if self.specs[number] != spec:
                self.fail("I7", f"cluster {number} is answered for another submission")

    def on_act_answer(self, verb: str, results: list[tuple[int, int, str]]) -> None:
        for cluster, proc, result in results:
            if verb != "cancel" or result != "ok":
                continue
            task = (cluster, proc)
            self.cancelled.add(task)
            row = self.disk.tasks.get(task) or self.disk.history.get(task)
            if row is None or row.state != State.CANCELLED:
                self.fail("I4", f"the cancelling of {_name(task)} is answered and is not on disk")

    def on_verb_answer(self, worker: str, verb: str, is_known: bool) -> None:
        if verb == "drain" and is_known:
            self.drained.add(worker)

    def on_wait_answer(self, cluster: int) -> None:
        if cluster in self.release_asked:
            # What was over for a moment, as it was held, may have been released in the same transaction.
            return
        for proc in range(self.specs[cluster].count):
            row = self.disk.history.get((cluster, proc)) or self.disk.tasks.get((cluster, proc))
            if row is None or row.state not in (State.DONE, State.CANCELLED, State.HELD):
                self.fail("I4", f"the end of cluster {cluster} is answered, but {cluster}.{proc} goes on")

    # ---- the end

    def check_end(self, answered: dict[int, list[int]]) -> None:
        """I1, I8, I12 when all is over: `answered` are the ids of each submission."""
        for number, ids in answered.items():
            for cluster in ids:
                spec = self.specs.get(cluster)
                if spec is None:
                    self.fail("I1", f"cluster {cluster} was answered to submission {number} and is gone")
                assert spec is not None
                for proc in range(spec.count):
                    if (cluster, proc) not in self.disk.history:
                        self.fail("I8", f"task {cluster}.{proc} is lost")
        for cluster, spec in self.specs.items():
            if not spec.has_log:
                continue
            begun = [entry for entry in self.logs.get(cluster, ()) if entry[0] == SUBMITTED]
            if sum(entry[2] for entry in begun) != spec.count:
                self.fail("I12", f"cluster {cluster} has no submit event for each task in its log")
            for proc in range(spec.count):
                if (cluster, proc) not in self.log_ended:
                    self.fail("I12", f"task {cluster}.{proc} has no last event in its log")


def _name(task: Task) -> str:
    return f"{task[0]}.{task[1]}"


def _token(token: wire.Token) -> str:
    return f"{token.cluster}.{token.proc} attempt {token.attempt}"
