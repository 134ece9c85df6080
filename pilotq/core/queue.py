"""The queue: every change of a task goes through here and becomes records.

`Queue` knows states, facts and notes, but no workers. What changed since the last `flush` is written once, however
often it changed in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from pilotq.core.records import (
    ClusterAdded,
    ClusterLeft,
    Edited,
    Note,
    NotesAdded,
    NotesDone,
    Record,
    TaskRows,
    TasksLeft,
)
from pilotq.core.tasks import NO_FACTS, Cluster, Ready, completed
from pilotq.core.turn import NewCluster
from pilotq.errors import InternalError
from pilotq.model import ENDED, ENDING, Edit, Ended, Facts, HoldCode, Outcome, OutputFile, State, add_edit
from pilotq.wire import Token

#: Numbers of user-log events. Source: HTCondor manual, job event log codes.
SUBMITTED, EXECUTING, EVICTED, TERMINATED, ABORTED, HELD, RELEASED = 0, 1, 4, 5, 9, 12, 13
SUSPENDED, UNSUSPENDED = 10, 11
#: Procs that one note covers at most, so that a log of a large cluster is written in pieces.
NOTE_PROCS_MAX = 5000
#: Submission keys remembered.
KEYS_MAX = 100_000

_change = msgspec.structs.replace


class Queue:
    """All live clusters."""

    def __init__(self, next_cluster: int = 1, next_note: int = 1) -> None:
        self.clusters: dict[int, Cluster] = {}
        self.ready = Ready()
        self.next_cluster = next_cluster
        self.next_note = next_note
        #: (owner, key) -> cluster ids of what was submitted with it; False: of all of them.
        self.keys: OrderedDict[tuple[str, str], list[int]] = OrderedDict()
        self.has_forgotten_keys = False
        #: The attempts whose tasks end when a note is written; and those whose note could not be written.
        self.finals: dict[int, Token] = {}
        self.stuck: dict[int, Token] = {}
        #: Clusters that left since the last flush.
        self.gone: list[int] = []
        #: Tasks that left the queue since the start, by how: done, failed, cancelled.
        self.done = self.failed = self.cancelled = 0
        self._added: list[ClusterAdded] = []
        self._changed: dict[int, dict[int, None]] = {}
        self._leaving: dict[int, dict[int, None]] = {}
        self._edited: dict[int, list[Edit]] = {}
        #: By cluster.
        self._notes: dict[int, list[Note]] = {}
        self._written: list[int] = []

    # ---- submitting

    def add(self, new: NewCluster, key: str) -> int:
        """Take a cluster in; its id."""
        number = self.next_cluster
        self.next_cluster += 1
        state = State.HELD if new.hold_reason else State.IDLE
        cluster = Cluster(
            number,
            new.owner,
            new.count,
            new.needs,
            priority=new.priority,
            submitted_at=new.submitted_at,
            has_log=new.has_log,
            has_deltas=bool(new.deltas),
            policies=new.policies,
            state=state,
        )
        self.clusters[number] = cluster
        self._added.append(
            ClusterAdded(
                cluster=number,
                owner=new.owner,
                key=key,
                count=new.count,
                priority=new.priority,
                submitted_at=new.submitted_at,
                body=new.body,
                description=new.description,
                deltas=new.deltas,
                digests=new.digests,
                state=state,
            )
        )
        if cluster.has_log:
            for first in range(0, new.count, NOTE_PROCS_MAX):
                self._note(SUBMITTED, cluster, first, new.submitted_at, count=min(NOTE_PROCS_MAX, new.count - first))
        if new.hold_reason:
            held = Facts(
                entered_at=new.submitted_at,
                holds=1,
                hold_code=HoldCode.SUBMITTED_HELD,
                reason=new.hold_reason,
            )
            cluster.facts.update(dict.fromkeys(range(new.count), held))
            self._changed[number] = dict.fromkeys(range(new.count))
            self._log_many(HELD, cluster, range(new.count), new.submitted_at, held)
        else:
            self.ready.add(cluster)
        return number

    def remember_key(self, owner: str, key: str, clusters: list[int]) -> None:
        if key:
            self.keys[owner, key] = clusters
            if len(self.keys) > KEYS_MAX:
                self.keys.popitem(last=False)
                self.has_forgotten_keys = True

    def edit(self, cluster: Cluster, change: Edit) -> None:
        """Somebody changes an attribute of some tasks."""
        cluster.edit(change)
        add_edit(self._edited.setdefault(cluster.id, []), change)
        self.ready.add(cluster)

    # ---- the life of a task

    def assign(self, cluster: Cluster, procs: list[int], worker: str, host: str, wall: float) -> list[int]:
        """Give idle tasks to a worker; their new attempt numbers."""
        attempts, known = cluster.attempts, cluster.facts
        numbers = [attempts[proc] + 1 for proc in procs]
        for proc, number in zip(procs, numbers, strict=True):
            attempts[proc] = number
        fresh = Facts(entered_at=cluster.submitted_at, worker=worker, host=host)
        facts = dict.fromkeys(procs, fresh)
        for proc in procs if not known.keys().isdisjoint(procs) else ():
            if proc in known:
                facts[proc] = _change(known[proc], worker=worker, host=host, outcome=-1)
        known.update(facts)
        self._changed.setdefault(cluster.id, {}).update(dict.fromkeys(procs))
        cluster.put_all(procs, State.ASSIGNED)
        return numbers

    def take_back(self, cluster: Cluster, proc: int, worker: str, host: str) -> None:
        """An idle task turns out to be held by a worker after all, by its latest attempt."""
        cluster.move(proc, State.ASSIGNED)
        self.set_facts(cluster, proc, _change(cluster.facts_of(proc), worker=worker, host=host, outcome=-1))

    def start(self, cluster: Cluster, procs: list[int], wall: float) -> None:
        """These payloads run; tasks that were not just assigned are passed over."""
        procs = [proc for proc in procs if cluster.states[proc] == State.ASSIGNED]
        if not procs:
            return
        known = cluster.facts
        # Tasks that shared their facts go on sharing them. The old ones are kept, so that no id comes twice.
        changed: dict[int, tuple[Facts, Facts]] = {}
        for proc in procs:
            old = known[proc]
            if id(old) not in changed:
                first, starts = old.first_started_at or wall, old.starts + 1
                new = _change(old, entered_at=wall, first_started_at=first, last_started_at=wall, starts=starts)
                changed[id(old)] = old, new
            known[proc] = changed[id(old)][1]
        self._changed.setdefault(cluster.id, {}).update(dict.fromkeys(procs))
        cluster.put_all(procs, State.RUNNING)
        for proc in procs if cluster.has_log else ():
            self._log(EXECUTING, cluster, proc, wall)

    def requeue(
        self,
        cluster: Cluster,
        proc: int,
        wall: float,
        end: Ended,
        *,
        lost: bool = False,
        charged: bool = False,
        still_runs: bool = False,
    ) -> None:
        """Its attempt is over without a completion: idle again.

        `lost` while it ran, perhaps by its own doing; `charged` when it was surely. `still_runs`: its worker was told
        to end it, and has not said so; a restart must know that. Of a lost attempt the worker is kept: it may be back.
        """
        state, facts = cluster.state(proc), cluster.facts_of(proc)
        was_started = state in (State.RUNNING, State.SUSPENDED)
        usage = end.usage
        self._move(
            cluster,
            proc,
            State.IDLE,
            wall,
            usage=usage,
            outcome=int(end.outcome),
            reason=end.reason,
            worker=facts.worker if still_runs or end.outcome == Outcome.LOST else "",
            wall_s=facts.wall_s + usage.wall_s,
            losses=max(facts.losses, len(facts.lost_on)) + 1 if charged else facts.losses,
            lost_on=(*facts.lost_on, facts.host)[-8:] if lost else facts.lost_on,
        )
        if was_started:
            self._log(EVICTED, cluster, proc, wall)
        if still_runs:
            cluster.fence(proc)
        self.ready.add(cluster)

    def suspend(self, cluster: Cluster, proc: int, on: bool, wall: float) -> None:
        """Its processes are to stand still, or to go on."""
        suspensions = cluster.facts_of(proc).suspensions + on
        self._move(cluster, proc, State.SUSPENDED if on else State.RUNNING, wall, suspensions=suspensions)
        self._log(SUSPENDED if on else UNSUSPENDED, cluster, proc, wall)

    def hold(self, cluster: Cluster, proc: int, wall: float, code: int, subcode: int, reason: str) -> None:
        """Park it until somebody releases it."""
        state, facts = cluster.state(proc), cluster.facts_of(proc)
        self._move(
            cluster,
            proc,
            State.HELD,
            wall,
            reason=reason,
            hold_code=code,
            hold_subcode=subcode,
            holds=facts.holds + 1,
        )
        if state in (State.RUNNING, State.SUSPENDED):
            self._log(EVICTED, cluster, proc, wall)
        self._log(HELD, cluster, proc, wall)

    def ended_attempt(self, cluster: Cluster, proc: int, end: Ended) -> None:
        """Note what an attempt used, whatever becomes of the task."""
        facts = cluster.facts_of(proc)
        new = _change(
            facts,
            usage=end.usage,
            wall_s=facts.wall_s + end.usage.wall_s,
            outcome=int(end.outcome),
            code=end.code,
            reason=end.reason,
            completions=facts.completions + (end.outcome in ENDING),
        )
        self.set_facts(cluster, proc, new)

    def release(self, cluster: Cluster, proc: int, wall: float, reason: str) -> int:
        """Un-hold it. The number of the note to try again when its outputs wait to be written, else 0."""
        for n, final in self._notes_of(cluster, proc):
            self.stuck.pop(n, None)
            self.finals[n] = final
            self._move(cluster, proc, State.STAGING_OUT, wall, release_reason=reason, reason="", hold_code=0)
            self._log(RELEASED, cluster, proc, wall)
            return n
        self._move(cluster, proc, State.IDLE, wall, release_reason=reason, reason="", hold_code=0, hold_subcode=0)
        self._log(RELEASED, cluster, proc, wall)
        self.ready.add(cluster)
        return 0

    def _notes_of(self, cluster: Cluster, proc: int) -> list[tuple[int, Token]]:
        """Final notes of a task that are not written yet, stuck or (after a restart) to be tried again."""
        pending = [*self.stuck.items(), *self.finals.items()]
        return [(n, final) for n, final in pending if (final.cluster, final.proc) == (cluster.id, proc)]

    def unfence(self, cluster: Cluster, proc: int, worker: str) -> None:
        """The attempt that was told to end on this worker has ended."""
        facts = cluster.facts.get(proc)
        if facts is None or facts.worker != worker:
            return
        if cluster.state(proc) in (State.HELD, State.IDLE):
            self.set_facts(cluster, proc, _change(facts, worker=""))
        if proc in cluster.fenced:
            cluster.fenced.discard(proc)
            if cluster.state(proc) == State.IDLE:
                cluster.came_back(proc)
                self.ready.add(cluster)

    def complete(self, cluster: Cluster, proc: int, wall: float, end: Ended, attempt: int) -> None:
        """It ended by itself: written to its user first when there is something to write, then out of the queue."""
        facts = completed(cluster.facts_of(proc), end, wall, was_started=True)
        self.set_facts(cluster, proc, facts)
        cluster.move(proc, State.STAGING_OUT)
        if not cluster.has_log and not end.outputs:
            self.finish(cluster, proc, wall)
            return
        event = TERMINATED if cluster.has_log else -1
        n = self._note(event, cluster, proc, wall, facts=facts, outputs=end.outputs, attempt=attempt, final=True)
        self.finals[n] = Token(cluster.id, proc, attempt)

    def complete_all(self, cluster: Cluster, procs: list[int], ends: list[Ended], wall: float) -> None:
        """Many tasks that ended by themselves: those of which nothing is to be written leave the queue.

        Shape: assigned or running procs, each once, of a cluster without log and policies.
        """
        states, facts = cluster.states, cluster.facts
        done: list[int] = []
        staging_out: list[int] = []
        for proc, end in zip(procs, ends, strict=True):
            facts[proc] = completed(facts[proc], end, wall, was_started=states[proc] != State.ASSIGNED)
            if end.outputs:
                staging_out.append(proc)
                self._note_outputs(cluster, proc, wall, end.outputs)
            else:
                done.append(proc)
        if staging_out:
            cluster.put_all(staging_out, State.STAGING_OUT)
            self._changed.setdefault(cluster.id, {}).update(dict.fromkeys(staging_out))
        if done:
            self._finish_all(cluster, done)

    def _note_outputs(self, cluster: Cluster, proc: int, wall: float, outputs: list[OutputFile]) -> None:
        """Nobody reads the facts of a note without an event."""
        n, number, attempt = self.next_note, cluster.id, cluster.attempts[proc]
        self.next_note = n + 1
        self._notes.setdefault(number, []).append(Note(n, -1, number, proc, 1, wall, NO_FACTS, outputs, attempt, True))
        self.finals[n] = Token(number, proc, attempt)

    def _finish_all(self, cluster: Cluster, procs: list[int]) -> None:
        """Everything of these is written, and no policy keeps them: done, and out of the queue."""
        facts = cluster.facts
        good = [facts[proc].outcome for proc in procs].count(Outcome.OK)
        self.done += good
        self.failed += len(procs) - good
        cluster.failed += len(procs) - good
        cluster.put_all(procs, State.DONE)
        self._leaving.setdefault(cluster.id, {}).update(dict.fromkeys(procs))

    def finish(self, cluster: Cluster, proc: int, wall: float) -> None:
        """Everything of a completed task is written: it is done."""
        if cluster.state(proc) == State.HELD:
            cluster.move(proc, State.STAGING_OUT)
        cluster.move(proc, State.DONE)
        if cluster.facts_of(proc).outcome == Outcome.OK:
            self.done += 1
        else:
            self.failed += 1
            cluster.failed += 1
        self._touch(cluster, proc)

    def cancel(self, cluster: Cluster, proc: int, wall: float, reason: str) -> None:
        """Somebody ended it."""
        if cluster.state(proc) == State.HELD:
            for n, _ in self._notes_of(cluster, proc):
                self.stuck.pop(n, None)
                self.finals.pop(n, None)
                self._written.append(n)
        self._move(cluster, proc, State.CANCELLED, wall, reason=reason, ended_at=wall, worker="")
        self.cancelled += 1
        self._log(ABORTED, cluster, proc, wall)

    def cancel_untouched(self, cluster: Cluster, procs: list[int], wall: float, reason: str) -> None:
        """Cancel tasks that never had a row and take them out of the queue: they share their facts and their notes.

        Shape: procs in order, each `Cluster.untouched`.
        """
        facts = Facts(entered_at=wall, reason=reason, ended_at=wall)
        for proc in procs:
            cluster.put(proc, State.CANCELLED)
        cluster.facts.update(dict.fromkeys(procs, facts))
        self._leaving.setdefault(cluster.id, {}).update(dict.fromkeys(procs))
        self.cancelled += len(procs)
        self._log_many(ABORTED, cluster, procs, wall, facts)

    def leave(self, cluster: Cluster, proc: int) -> None:
        """Out of the queue, into the history."""
        if cluster.state(proc) not in ENDED:
            raise InternalError(f"task {cluster.id}.{proc} leaves the queue in state {cluster.state(proc).name}")
        self._leaving.setdefault(cluster.id, {})[proc] = None

    def is_leaving(self, cluster: Cluster, proc: int) -> bool:
        """It left in this very turn."""
        return proc in self._leaving.get(cluster.id, ())

    # ---- notes

    def delivered(self, ns: list[int], wall: float) -> list[Token]:
        """The scribe wrote these: what they ended. The caller looks who of clusters with policies may leave."""
        self._written += ns
        ended = []
        plain: dict[int, list[int]] = {}
        for n in ns:
            final = self.finals.pop(n, None) or self.stuck.pop(n, None)
            cluster = self.clusters.get(final.cluster) if final is not None else None
            if final is None or cluster is None:
                continue
            state, proc = cluster.states[final.proc], final.proc
            if state == State.STAGING_OUT and not cluster.policies:
                plain.setdefault(final.cluster, []).append(proc)
            elif state in (State.STAGING_OUT, State.HELD):
                self.finish(cluster, proc, wall)
            else:
                continue
            ended.append(final)
        for number, procs in plain.items():
            self._finish_all(self.clusters[number], procs)
        return ended

    def undelivered(self, n: int, wall: float, errno: int, reason: str) -> None:
        """The scribe cannot write a note: its task waits for a person."""
        final = self.finals.pop(n, None)
        cluster = self.clusters.get(final.cluster) if final is not None else None
        if final is None or cluster is None:
            return
        self.stuck[n] = final
        if cluster.state(final.proc) == State.STAGING_OUT:
            facts = cluster.facts_of(final.proc)
            self._move(
                cluster,
                final.proc,
                State.HELD,
                wall,
                reason=reason,
                hold_code=HoldCode.OUTPUT_FILE,
                hold_subcode=errno,
                holds=facts.holds + 1,
            )
            self._log(HELD, cluster, final.proc, wall)

    # ---- records

    def flush(self, wall: float) -> list[Record]:
        """What changed since the last time, as records."""
        records: list[Record] = list(self._added)
        self._added = []
        records += [Edited(number, edits) for number, edits in self._edited.items()]
        self._edited = {}
        for number, procs in self._changed.items():
            cluster = self.clusters[number]
            leaving = self._leaving.get(number, {})
            staying = [proc for proc in procs if proc not in leaving] if leaving else list(procs)
            if staying:
                records.append(TaskRows(number, *cluster.columns(staying)))
        self._changed = {}
        for number, leaving in self._leaving.items():
            cluster = self.clusters[number]
            records.append(TasksLeft(number, *cluster.columns(list(leaving)), wall))
            for proc in leaving:
                cluster.facts.pop(proc, None)
            cluster.left += len(leaving)
            if cluster.left == len(cluster):
                del self.clusters[number]
                self.gone.append(number)
                records.append(ClusterLeft(number))
        self._leaving = {}
        records += [NotesAdded(notes) for notes in self._notes.values()]
        if self._written:
            records.append(NotesDone(self._written))
        self._notes, self._written = {}, []
        return records

    def set_facts(self, cluster: Cluster, proc: int, facts: Facts) -> None:
        cluster.facts[proc] = facts
        self._touch(cluster, proc)

    def _touch(self, cluster: Cluster, proc: int) -> None:
        changed = self._changed.get(cluster.id)
        if changed is None:
            changed = self._changed[cluster.id] = {}
        changed[proc] = None

    def _move(self, cluster: Cluster, proc: int, state: State, wall: float, **facts: Any) -> None:
        cluster.move(proc, state)
        self.set_facts(cluster, proc, _change(cluster.facts_of(proc), entered_at=wall, **facts))

    def _log(self, event: int, cluster: Cluster, proc: int, wall: float) -> None:
        if cluster.has_log:
            self._note(event, cluster, proc, wall, facts=cluster.facts_of(proc))

    def _log_many(self, event: int, cluster: Cluster, procs: Sequence[int], wall: float, facts: Facts) -> None:
        """The same event of many tasks, in order: one note for procs that follow each other."""
        if not cluster.has_log:
            return
        start = 0
        for end in range(1, len(procs) + 1):
            count = end - start
            if end == len(procs) or procs[end] != procs[start] + count or count == NOTE_PROCS_MAX:
                self._note(event, cluster, procs[start], wall, facts=facts, count=count)
                start = end

    def _note(self, event: int, cluster: Cluster, proc: int, wall: float, **more: Any) -> int:
        n = self.next_note
        self.next_note += 1
        more.setdefault("count", 1)
        note = Note(n=n, event=event, cluster=cluster.id, proc=proc, at=wall, **more)
        self._notes.setdefault(cluster.id, []).append(note)
        return n

    # ---- invariants

    def check(self) -> None:
        """Raises: InternalError when something does not add up."""
        for cluster in self.clusters.values():
            cluster.check()
