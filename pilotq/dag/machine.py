"""The machine that runs a DAG: events in, actions out, pure. The journal is its events; replayed, they give its state.

An edge statement is a join: it waits for all its parents and then lets all its children go, so that all-to-all edges
cost what is written, not what it means.
Source: HTCondor manual, DAGMan workflows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from pilotq.dag.model import Dag, Node

#: Results of a node that no job gave. Source: HTCondor manual, DAGMan script macros.
REFUSED, REMOVED, PRE_FAILED = -1001, -1002, -1004

#: What happened: a kind and its values. Kinds are the keys of `Machine._handlers`.
Event = tuple[Any, ...]


class State(IntEnum):
    """Of a node."""

    WAITING = 0  # for its parents
    PRE_READY = 1
    PRE = 2
    READY = 3  # to be submitted
    SUBMITTING = 4
    QUEUED = 5
    POST_READY = 6
    POST = 7
    DONE = 8
    FAILED = 9
    FUTILE = 10  # an ancestor failed


class Ending(IntEnum):
    """Of the DAG, as $DAG_STATUS says it."""

    OK = 0
    ERROR = 1
    NODE_FAILED = 2
    ABORTED = 3
    REMOVED = 4


class Limits(NamedTuple):
    """Most at a time; 0: any number."""

    jobs: int = 0
    idle: int = 0
    pre: int = 20
    post: int = 20
    always_run_post: bool = False


class Submit(NamedTuple):
    """Submit the job of a node."""

    node: str


class RunScript(NamedTuple):
    """Run a script of a node: PRE, POST or HOLD."""

    kind: str
    node: str


class Defer(NamedTuple):
    """Give the event ("again", kind, node) after so many seconds."""

    kind: str
    node: str
    after_s: int


class Remove(NamedTuple):
    """Take the job of a node out of the queue; `cluster` 0: it is not known yet, and may not be there."""

    node: str
    cluster: int


class Run:
    """A node while the DAG runs."""

    __slots__ = (
        "attempt", "cluster", "count", "groups", "idle", "left", "node", "order", "pre", "result", "state", "waits",
    )  # fmt: skip

    def __init__(self, node: Node, order: int) -> None:
        self.node = node
        self.order = order
        self.state = State.WAITING
        #: Edge statements with it among the children, that still wait; and those with it among the parents.
        self.waits = 0
        self.groups: list[int] = []
        #: From 0; each retry counts one more.
        self.attempt = 0
        self.cluster = 0
        #: Procs of its job, and those that did not end yet.
        self.count = self.left = 0
        #: Procs that are idle.
        self.idle: set[int] = set()
        #: What its last part that ended gave; and its PRE script.
        self.result = 0
        self.pre: int | None = None

    @property
    def is_over(self) -> bool:
        return self.state >= State.DONE


class Machine:
    """`on` takes an event; what is to be done then stands in `actions`, which the caller empties."""

    def __init__(self, dag: Dag, limits: Limits) -> None:
        self.dag = dag
        self.limits = limits
        self.runs = {name: Run(node, order) for order, (name, node) in enumerate(dag.nodes.items())}
        self.actions: list[Submit | RunScript | Defer | Remove] = []
        #: Exit code of the DAG, once it is over.
        self.exit_code: int | None = None
        self.ending = Ending.OK
        #: Nothing new is begun while it is.
        self.is_halted = False
        self.failed = 0
        self.done = 0
        self._returned = 0
        self._is_stopping = False
        self._has_begun_final = False
        self._owners: dict[int, Run] = {}
        #: Events of clusters whose number was not told yet.
        self._early: dict[int, list[Event]] = {}
        self._queues: dict[State, list[tuple[int, int, str]]] = {
            State.PRE_READY: [],
            State.READY: [],
            State.POST_READY: [],
        }
        #: Nodes whose category is full, by category.
        self._aside: dict[str, list[tuple[int, int, str]]] = {}
        self._counts = dict.fromkeys(State, 0)
        self._counts[State.WAITING] = len(self.runs)
        self._in_category: dict[str, int] = {}
        self._idle = 0
        self._handlers: dict[str, Callable[..., None]] = {
            "start": self._on_start,
            "script": self._on_script,
            "again": self._on_again,
            "submitted": self._on_submitted,
            "refused": self._on_refused,
            "executing": self._on_executing,
            "idle": self._on_idle,
            "held": self._on_held,
            "ended": self._on_ended,
            "stop": self._on_stop,
            "halt": self._on_halt,
        }
        self._before = [len(edges.parents) for edges in dag.edges]
        for index, edges in enumerate(dag.edges):
            for name in edges.parents:
                self.runs[name].groups.append(index)
            for name in edges.children:
                self.runs[name].waits += 1

    def on(self, event: Event) -> None:
        """An event of a node that is past it, or of a job of somebody else, changes nothing."""
        self._handlers[event[0]](*event[1:])
        self.fill()

    def count(self, *states: State) -> int:
        return sum(self._counts[state] for state in states)

    @property
    def nodes(self) -> Iterable[Run]:
        return self.runs.values()

    def find(self, cluster: int) -> Run | None:
        """Whose job it is, while it is in the queue."""
        return self._owners.get(cluster)

    def outstanding(self) -> None:
        """After a replay: `actions` becomes what was begun and not seen to end."""
        self.actions.clear()
        queued = {item[2] for queue in self._queues.values() for item in queue}
        for name, run in self.runs.items():
            if run.state in (State.PRE_READY, State.POST_READY) and name not in queued:
                self.actions.append(Defer("PRE" if run.state == State.PRE_READY else "POST", name, 0))
            elif run.state == State.PRE:
                self.actions.append(RunScript("PRE", name))
            elif run.state == State.POST:
                self.actions.append(RunScript("POST", name))
            elif run.state == State.SUBMITTING:
                self.actions.append(Remove(name, 0) if self._is_dropped(run) else Submit(name))
            elif run.state == State.QUEUED and (self._is_dropped(run) or (run.result and run.left)):
                self.actions.append(Remove(name, run.cluster))

    def _is_dropped(self, run: Run) -> bool:
        return self._is_stopping and not run.node.is_final

    # ---- events

    def _on_start(self) -> None:
        done = [run for run in self.runs.values() if run.node.is_done]
        for run in done:
            self._move(run, State.DONE)
        for run in done:
            self._end(run, State.DONE)
        for name, run in self.runs.items():
            if not run.waits and run.state == State.WAITING and not run.node.is_final:
                self._begin(name, run)

    def _on_script(self, kind: str, name: str, code: int) -> None:
        """A script of a node ended."""
        run = self.runs[name]
        wanted = {"PRE": State.PRE, "POST": State.POST}.get(kind)
        if run.state != wanted:
            return
        defer = run.node.scripts[kind].defer
        if defer is not None and code == defer[0] and not self._is_dropped(run):
            self.actions.append(Defer(kind, name, defer[1]))
            self._move(run, State.PRE_READY if kind == "PRE" else State.POST_READY)
            return
        if kind == "POST":
            run.result = code
            self._finish(run)
            return
        run.pre = code
        if code == 0:
            self._enter(run, State.READY)
        elif code == run.node.pre_skip:
            run.result = 0
            self._finish(run)
        elif self.limits.always_run_post and "POST" in run.node.scripts:
            run.result = PRE_FAILED
            self._after_job(run)
        else:
            run.result = code
            self._finish(run)

    def _on_again(self, kind: str, name: str) -> None:
        run = self.runs[name]
        state = State.PRE_READY if kind == "PRE" else State.POST_READY
        if run.state == state:
            self._enter(run, state)

    def _on_submitted(self, name: str, cluster: int, count: int) -> None:
        run = self.runs[name]
        if run.state != State.SUBMITTING:
            self._early.pop(cluster, None)
            return
        run.cluster, run.count, run.left, run.result = cluster, count, count, 0
        run.idle = set(range(count)) if self.limits.idle else set()
        self._idle += len(run.idle)
        self._owners[cluster] = run
        self._move(run, State.QUEUED)
        if self._is_dropped(run):
            self.actions.append(Remove(name, cluster))
        for event in self._early.pop(cluster, []):
            self._handlers[event[0]](*event[1:])

    def _on_refused(self, name: str) -> None:
        """condor_submit did not take it."""
        run = self.runs[name]
        if run.state == State.SUBMITTING:
            run.cluster = 0
            run.result = REFUSED
            self._after_job(run)

    def _owner(self, *event: Any) -> Run | None:
        """Whose job it is; None: that is not known yet, and the event will come again."""
        run = self._owners.get(event[1])
        if run is None:
            self._early.setdefault(event[1], []).append(event)
        return run

    def _set_idle(self, run: Run, proc: int, is_idle: bool) -> None:
        before = len(run.idle)
        if self.limits.idle:
            (run.idle.add if is_idle else run.idle.discard)(proc)
        self._idle += len(run.idle) - before

    def _on_executing(self, cluster: int, proc: int) -> None:
        if run := self._owner("executing", cluster, proc):
            self._set_idle(run, proc, is_idle=False)

    def _on_idle(self, cluster: int, proc: int) -> None:
        if run := self._owner("idle", cluster, proc):
            self._set_idle(run, proc, is_idle=True)

    def _on_held(self, cluster: int, proc: int) -> None:
        if run := self._owner("held", cluster, proc):
            self._set_idle(run, proc, is_idle=False)
            if "HOLD" in run.node.scripts:
                self.actions.append(RunScript("HOLD", run.node.name))

    def _on_ended(self, cluster: int, proc: int, result: int) -> None:
        """A proc of a job ended: exit code, minus the number of a signal, or REMOVED."""
        run = self._owner("ended", cluster, proc, result)
        if run is None:
            return
        self._set_idle(run, proc, is_idle=False)
        run.left -= 1
        if result and not run.result:
            run.result = result
            if run.left:
                self.actions.append(Remove(run.node.name, cluster))
        if not run.left:
            del self._owners[cluster]
            self._after_job(run)

    def _on_halt(self, is_halted: bool) -> None:
        self.is_halted = is_halted

    def _on_stop(self, code: int, ending: int) -> None:
        """End the DAG: nothing new but the FINAL node, jobs are removed."""
        if self._is_stopping or self.exit_code is not None:
            return
        self._is_stopping = True
        self._returned, self.ending = code, Ending(ending)
        for queue in self._queues.values():
            queue.clear()
        self._aside.clear()
        for name, run in self.runs.items():
            if run.node.is_final:
                continue
            if run.state == State.QUEUED:
                self.actions.append(Remove(name, run.cluster))
            elif run.state in (State.PRE_READY, State.READY, State.POST_READY):
                self._move(run, State.WAITING)

    # ---- the life of a node

    def _move(self, run: Run, state: State) -> None:
        category = run.node.category
        holds = (State.SUBMITTING, State.QUEUED)
        if category and (run.state in holds) != (state in holds):
            change = 1 if state in holds else -1
            self._in_category[category] = self._in_category.get(category, 0) + change
            if change < 0 and category in self._aside:
                for item in self._aside.pop(category):
                    heapq.heappush(self._queues[State.READY], item)
        self._counts[run.state] -= 1
        self._counts[state] += 1
        run.state = state

    def _enter(self, run: Run, state: State) -> None:
        """Queue it for what it is ready for."""
        if self._is_dropped(run):
            self._move(run, State.WAITING)
            return
        self._move(run, state)
        heapq.heappush(self._queues[state], (-run.node.priority, run.order, run.node.name))

    def _begin(self, name: str, run: Run) -> None:
        """Its parents are done, or it is tried again."""
        run.pre, run.result, run.cluster = None, 0, 0
        self._enter(run, State.PRE_READY if "PRE" in run.node.scripts else State.READY)

    def _after_job(self, run: Run) -> None:
        if "POST" in run.node.scripts and not self._is_dropped(run):
            self._enter(run, State.POST_READY)
        else:
            self._finish(run)

    def _finish(self, run: Run) -> None:
        """The last part of an attempt ended."""
        node = run.node
        if self._is_dropped(run):
            # What ended well is done all the same, and is not run again.
            self._end(run, State.WAITING if run.result else State.DONE)
            return
        if node.abort_on is not None and run.result == node.abort_on[0]:
            code, returned = node.abort_on
            self._end(run, State.FAILED if code else State.DONE)
            self._on_stop((code & 255) if returned is None else returned, Ending.ABORTED)
        elif run.result == 0:
            self._end(run, State.DONE)
        elif run.attempt < node.retries and run.result != node.unless_exit:
            run.attempt += 1
            self._begin(node.name, run)
        else:
            self._end(run, State.FAILED)

    def _end(self, run: Run, state: State) -> None:
        if run.state != state:
            self._move(run, state)
        if run.node.is_final:
            return
        if state == State.DONE:
            self.done += 1
            for index in run.groups:
                self._before[index] -= 1
                if not self._before[index]:
                    self._let_go(self.dag.edges[index].children)
        elif state == State.FAILED:
            self.failed += 1
            self._give_up(run)

    def _let_go(self, names: list[str]) -> None:
        for name in names:
            run = self.runs[name]
            run.waits -= 1
            if not run.waits and run.state == State.WAITING and not self._is_dropped(run):
                self._begin(name, run)

    def _give_up(self, failed: Run) -> None:
        todo = [failed]
        while todo:
            for index in todo.pop().groups:
                edges = self.dag.edges[index]
                if self._before[index] < 0:
                    continue
                # No parent can end this wait any more.
                self._before[index] = -1 - len(edges.parents)
                for child in (self.runs[name] for name in edges.children):
                    if child.state == State.WAITING:
                        self._move(child, State.FUTILE)
                        todo.append(child)

    # ---- what is begun

    def fill(self) -> None:
        """Begin what the limits allow; find the end of the DAG."""
        if not self.is_halted or self._has_begun_final:
            self._start_scripts("PRE", State.PRE_READY, State.PRE, self.limits.pre)
            while self._submit():
                self._start_scripts("PRE", State.PRE_READY, State.PRE, self.limits.pre)
        self._start_scripts("POST", State.POST_READY, State.POST, self.limits.post)
        if self.exit_code is None and not self.count(*_BUSY):
            self._end_dag()

    def _start_scripts(self, kind: str, ready: State, state: State, limit: int) -> None:
        queue = self._queues[ready]
        while queue and not (limit and self._counts[state] >= limit):
            run = self.runs[heapq.heappop(queue)[2]]
            self._move(run, state)
            self.actions.append(RunScript(kind, run.node.name))

    def _submit(self) -> bool:
        """Did a NOOP node end at once?"""
        has_ended = False
        queue, limits = self._queues[State.READY], self.limits
        while queue:
            if limits.jobs and self.count(State.SUBMITTING, State.QUEUED) >= limits.jobs:
                break
            if limits.idle and self._idle + self._counts[State.SUBMITTING] >= limits.idle:
                break
            item = heapq.heappop(queue)
            run = self.runs[item[2]]
            category = run.node.category
            most = self.dag.categories.get(category) if category else None
            if most is not None and self._in_category.get(category, 0) >= most:
                self._aside.setdefault(category, []).append(item)
                continue
            if run.node.is_noop:
                run.result = 0
                self._after_job(run)
                has_ended = True
                continue
            self._move(run, State.SUBMITTING)
            self.actions.append(Submit(run.node.name))
        return has_ended

    def _end_dag(self) -> None:
        """Nothing is under way any more: the FINAL node is the last to run, then the DAG is over."""
        if self.failed and not self._is_stopping:
            self.ending = Ending.NODE_FAILED
        final = self.runs.get(self.dag.final)
        if final is not None and not self._has_begun_final:
            self._has_begun_final = True
            self._begin(self.dag.final, final)
            self.fill()
            return
        if final is not None and not self._is_stopping:
            self.exit_code = 0 if final.state == State.DONE else 1
        elif self._is_stopping:
            self.exit_code = self._returned
        else:
            self.exit_code = 0 if self.ending == Ending.OK else 1


#: A node in one of these will be heard of again.
_BUSY = (
    State.PRE_READY, State.PRE, State.READY, State.SUBMITTING, State.QUEUED, State.POST_READY, State.POST,
)  # fmt: skip
