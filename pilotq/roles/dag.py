"""The runner of a DAG: turns of the machine, scripts, submissions, recovery.

A turn takes what happened, appends it to the journal, and only then does what the machine wants done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

from pilotq.client import Client
from pilotq.condor.jobad import CONDOR_VERSION
from pilotq.condor.request import Reply
from pilotq.dag.machine import Defer, Ending, Event, Limits, Machine, Remove, Run, RunScript, State, Submit
from pilotq.dag.model import Dag, Node
from pilotq.dag.options import Options
from pilotq.dag.records import SUMMARY_HEAD, summary
from pilotq.errors import UnavailableError, UserError
from pilotq.roles.dag_files import LOCK_S, Journal, Lock, NodesLog, Out, last_rescue, save_metrics, save_rescue
from pilotq.roles.dag_side import Job, Side

#: Jobs submitted at once.
BATCH = 500
#: How often a file is looked at that nobody tells about: `.halt`, and the log where it is not told.
LOOK_S = 2.0
RETRY_S = 0.5
#: Longer lists of parents are not put into the ad of a job.
_PARENTS_CHARS_MAX = 4000
_PDEATHSIG = 1


class Runner:
    """One run of one DAG, or the rest of one."""

    def __init__(self, options: Options, dag: Dag, digest: str, client: Client) -> None:
        self.options, self.dag = options, dag
        self.file = options.primary
        self.out = Out(f"{self.file}.dagman.out")
        self.key = options.values.get("key", "")
        self.lock = Lock(f"{self.file}.lock", LOCK_S if self.key else 0)
        self.journal = Journal(f"{self.file}.journal")
        limits = Limits(
            options.number("maxjobs"),
            options.number("maxidle"),
            options.number("maxpre", 20),
            options.number("maxpost", 20),
            "alwaysrunpost" in options.flags,
        )
        self.machine = Machine(dag, limits)
        self.environ = {**os.environ, **dict(dag.env_set)}
        self.side = Side(client, self.environ)
        self.started_at = time.time()
        self._digest = hashlib.sha256(f"{digest}{limits}".encode()).hexdigest()
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._todo: list[Submit] = []
        self._removals: list[int] = []
        self._has_work = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subdags: dict[str, asyncio.subprocess.Process] = {}
        self._parents: dict[str, list[str]] = {}
        for edges in dag.edges:
            for child in edges.children:
                self._parents.setdefault(child, []).append(",".join(edges.parents[:200]))

    async def run(self) -> int:
        """The exit code of the DAG; 3: it was asked to go, and goes on when it is started again."""
        loop = asyncio.get_running_loop()
        self.out.say("*" * 54, f"** condor_dagman (pilotq) STARTING UP, pid {os.getpid()}", "*" * 54)
        result = self._begin()
        if result is not None:
            return self._leave(result)
        loop.add_reader(self.nodes_log.descriptor, self._wake.set)
        loop.add_signal_handler(signal.SIGUSR1, self._put, ("stop", 2, int(Ending.REMOVED)))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_go)
        self._is_going = False
        submitting = asyncio.create_task(self._serve())
        submitting.add_done_callback(lambda _: self._wake.set())
        while self.machine.exit_code is None and not self._is_going:
            self._turn()
            self.out.flush()
            if submitting.done():
                # It only ends when something is wrong.
                submitting.result()
            if self.machine.exit_code is None and not self._events:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LOOK_S)
            self._wake.clear()
        submitting.cancel()
        for task in self._tasks:
            task.cancel()
        if self._is_going:
            self.out.say("Going, to go on later")
            self.out.flush()
            return 3
        assert self.machine.exit_code is not None
        return self._end(self.machine.exit_code)

    # ---- beginning and end

    def _begin(self) -> int | None:
        """Start anew, or go on; the result, when there is one already."""
        records = self.journal.records
        header = records[0] if records else ()
        if header and header[2] == self.key and "force" not in self.options.flags:
            if records[-1][0] == "result":
                return int(records[-1][1])
            if header[3] != self._digest:
                self.lock.release()
                raise UserError(
                    f"{self.file} was changed while it ran", f"put it back, or remove {self.journal.path} to start anew"
                )
            self.id = header[1]
            for name, node in self.dag.nodes.items():
                node.is_done = name in header[4]
            self.out.say("Running in RECOVERY mode...")
            offset = 0
            for record in records[1:]:
                if record[0] == "log":
                    offset = record[1]
                else:
                    self.machine.on(record)
            self.machine.outstanding()
            self.nodes_log = NodesLog(f"{self.file}.nodes.log", offset)
            actions = list(self.machine.actions)
            self.machine.actions.clear()
            self._perform(actions)
            for run in self.machine.nodes:
                if run.state == State.QUEUED and run.node.is_subdag:
                    self._start(self._run_subdag(run.node, run.attempt))
            return None
        self.id = secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.file}.nodes.log")
        self.nodes_log = NodesLog(f"{self.file}.nodes.log", 0)
        done = [name for name, node in self.dag.nodes.items() if node.is_done]
        self.journal.restart(("dag", self.id, self.key, self._digest, done))
        self._put(("start",))
        return None

    def _end(self, code: int) -> int:
        machine = self.machine
        number = last_rescue(self.file)
        if machine.failed or machine.ending not in (Ending.OK,):
            self.out.say(f"Writing Rescue DAG to {save_rescue(machine, self.file)}...")
        elif code == 0:
            self.out.say("All jobs Completed!")
        self._summary()
        save_metrics(machine, self.file, self.started_at, number, CONDOR_VERSION)
        self.journal.append([("result", code)])
        return self._leave(code)

    def _leave(self, code: int) -> int:
        if not self.key:
            self.journal.remove()
        self.lock.release()
        self.out.say(f"**** condor_scheduniv_exec (condor_DAGMAN) pid {os.getpid()} EXITING WITH STATUS {code}")
        self.out.flush()
        return code

    def _on_go(self) -> None:
        self._is_going = True
        self._wake.set()

    def _summary(self) -> None:
        self.out.say(f"Of {len(self.machine.runs)} nodes total:", *SUMMARY_HEAD, summary(self.machine))

    # ---- turns

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _turn(self) -> None:
        is_halted = os.path.exists(f"{self.file}.halt")
        events, self._events = self._events, []
        if is_halted != self.machine.is_halted:
            events.append(("halt", is_halted))
        seen = self.nodes_log.read()
        if seen:
            events += [*seen, ("log", self.nodes_log.offset)]
        if not events:
            return
        for event in events:
            if event[0] != "log":
                self._tell(event)
                self.machine.on(event)
        self.journal.append(events)
        actions, self.machine.actions = self.machine.actions, []
        self._perform(actions)
        self._summary()

    def _tell(self, event: Event) -> None:
        kind, *values = event
        if kind == "ended":
            cluster, proc, result = values
            how = "completed successfully" if result == 0 else f"failed with status {result}"
            run = self.machine.find(cluster)
            name = run.node.name if run else "(not known yet)"
            self.out.say(f"Node {name} job proc ({cluster}.{proc}.0) {how}.")
        elif kind == "submitted":
            self.out.say(f"\tassigned HTCondor ID ({values[1]}.0.0) to node {values[0]}")
        elif kind == "script":
            script, name, code = values
            how = "completed successfully" if code == 0 else f"failed with status {code}"
            self.out.say(f"{script} Script of Node {name} {how}.")
        elif kind == "stop":
            self.out.say(f"Aborting DAG: {Ending(values[1]).name}")

    def _perform(self, actions: list[Any]) -> None:
        loop = asyncio.get_running_loop()
        for action in actions:
            if isinstance(action, RunScript):
                self._start(self._run_script(action.kind, self.machine.runs[action.node]))
            elif isinstance(action, Defer):
                loop.call_later(action.after_s, self._put, ("again", action.kind, action.node))
            elif self.dag.nodes[action.node].is_subdag:
                self._on_subdag(action)
            elif isinstance(action, Remove) and action.cluster:
                self._removals.append(action.cluster)
            else:
                # Also what is to be removed and whose number is not known: its key gives the number.
                self.out.say(f"Submitting HTCondor Node {action.node} job(s)...")
                self._todo.append(Submit(action.node))
        if self._todo or self._removals:
            self._has_work.set()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- jobs

    async def _serve(self) -> None:
        """Submits and removes, one batch at a time."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._removals or self._todo:
                clusters, self._removals = self._removals, []
                some, self._todo = self._todo[:BATCH], self._todo[BATCH:]
                if clusters:
                    await self._until_answered(self.side.remove, clusters)
                if some:
                    jobs = [self._job(self.machine.runs[submit.node]) for submit in some]
                    replies = await self._until_answered(self.side.submit, jobs)
                    for submit, reply in zip(some, replies, strict=True):
                        self._on_reply(submit.node, reply)

    async def _until_answered(self, call: Any, values: Any) -> Any:
        is_told = False
        while True:
            try:
                return await asyncio.to_thread(call, values)
            except UnavailableError as error:
                if not is_told:
                    self.out.say(f"Waiting for the master: {error.line()}")
                    self.out.flush()
                is_told = True
                await asyncio.sleep(RETRY_S)

    def _on_reply(self, name: str, reply: Reply) -> None:
        """condor_submit -terse prints first and last id."""
        words = reply.out.split()
        if reply.exit or len(words) != 3:
            said = " ".join(reply.err.split()) or "it queued no jobs"
            self.out.say(f"ERROR: submit attempt for node {name} failed: {said}")
            self._put(("refused", name))
            return
        cluster, last = words[0].partition(".")[0], words[2].partition(".")[2]
        self._put(("submitted", name, int(cluster), int(last) + 1))

    def _key(self, run: Run) -> str:
        return hashlib.sha256(f"{self.id} {run.attempt} {run.node.name}".encode()).hexdigest()[:32]

    def _job(self, run: Run) -> Job:
        node = run.node
        log = os.path.abspath(f"{self.file}.nodes.log")
        before = [f"JOB={node.name}", f"RETRY={run.attempt}"]
        after = [f"dagman_log = {log}", f'+DAGNodeName = "{node.name}"']
        if job := self.options.values.get("jobid"):
            after += [f"+DAGManJobId = {job}"]
            before += [f"DAGManJobId={job}"]
        parents = ",".join(self._parents.get(node.name, []))
        if len(parents) < _PARENTS_CHARS_MAX:
            after.append(f'+DAGParentNodeNames = "{parents}"')
        priority = node.priority + self.options.number("priority")
        if priority:
            after.append(f"priority = {priority}")
        if node.is_final:
            before += [f"DAG_STATUS={int(self.machine.ending)}", f"FAILED_COUNT={self.machine.failed}"]
        if name := self.options.values.get("batch-name"):
            after.append(f"batch_name = {name}")
        for var in node.vars:
            value = var.value.replace("$(JOB)", node.name).replace("$(RETRY)", str(run.attempt))
            if var.is_appended:
                after.append(f"{var.key} = {value}")
            else:
                before.append(f"{var.key}={value}")
        argv = ["-terse", "-single-cluster", *before]
        for line in after:
            argv += ["-append", line]
        argv.append("-" if node.inline else node.file)
        if node.inline and "queue" not in [line.split()[0].lower() for line in _lines(node.inline)]:
            argv += ["-queue", "1"]
        return Job(self._key(run), self._directory(node), argv, node.inline)

    def _directory(self, node: Node) -> str:
        return os.path.abspath(node.directory)

    # ---- scripts and inner DAGs

    async def _run_script(self, kind: str, run: Run) -> None:
        self.out.say(f"Running {kind} script of Node {run.node.name}...")
        try:
            child = await self._begin_script(kind, run)
        except OSError as error:
            self.out.say(f"ERROR: {kind} script of Node {run.node.name} cannot be run: {error}")
            self._put(("script", kind, run.node.name, 127))
            return
        self._put(("script", kind, run.node.name, await child.wait()))

    def _begin_script(self, kind: str, run: Run) -> Coroutine[Any, Any, asyncio.subprocess.Process]:
        """Raises: OSError."""
        script = run.node.scripts[kind]
        words = [self._macro(word, run) for word in script.argv]
        cwd = self._directory(run.node)
        program = os.path.join(cwd, words[0])
        if not os.path.exists(program):
            program = shutil.which(words[0]) or program
        out, err = -1, -1
        if script.debug is not None:
            file = os.open(os.path.join(cwd, script.debug[0]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            out, err = (file if script.debug[1] in (name, "ALL") else -1 for name in ("STDOUT", "STDERR"))
        return _spawn([program, *words[1:]], cwd, self.environ, out, err)

    def _macro(self, word: str, run: Run) -> str:
        machine = self.machine
        values = {
            "$NODE": run.node.name, "$JOB": run.node.name, "$RETRY": run.attempt, "$MAX_RETRIES": run.node.retries,
            "$RETURN": run.result, "$PRE_SCRIPT_RETURN": -1 if run.pre is None else run.pre,
            "$JOBID": f"{run.cluster}.0", "$CLUSTERID": run.cluster, "$DAG_STATUS": int(machine.ending),
            "$FAILED_COUNT": machine.failed, "$SUCCESS": run.result == 0, "$JOB_COUNT": run.count,
            "$DAGID": self.options.values.get("jobid", "0"), "$NODE_COUNT": len(machine.runs),
            "$DONE_COUNT": machine.done,
        }  # fmt: skip
        return str(values.get(word.upper(), word)) if word.startswith("$") else word

    def _on_subdag(self, action: Submit | Remove) -> None:
        if isinstance(action, Submit):
            run = self.machine.runs[action.node]
            # It is no job of the queue: a number that no job has.
            self._put(("submitted", action.node, _number(run), 1))
            self._start(self._run_subdag(run.node, run.attempt))
        elif action.node in self._subdags:
            with contextlib.suppress(ProcessLookupError):
                self._subdags[action.node].send_signal(signal.SIGUSR1)
        elif not action.cluster:
            self._put(("refused", action.node))

    async def _run_subdag(self, node: Node, attempt: int) -> None:
        run = self.machine.runs[node.name]
        words = [sys.executable, "-m", "pilotq", "dag", "-Key", self._key(run), "-Dag", node.file]
        words += ["-usedagdir"] if "usedagdir" in self.options.flags else []
        code = 3
        while code < 0 or code == 3:
            child = await _spawn(words, self._directory(node), self.environ, 1, 2)
            self._subdags[node.name] = child
            code = await child.wait()
        del self._subdags[node.name]
        self._put(("ended", _number(run), 0, code))


def _number(run: Run) -> int:
    return -(run.order * 1000 + run.attempt + 1)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


async def _spawn(words: list[str], cwd: str, environ: dict[str, str], out: int, err: int) -> asyncio.subprocess.Process:
    """`out`, `err`: descriptors, which are closed when they are not ours; -1: nowhere. Raises: OSError."""
    nowhere = asyncio.subprocess.DEVNULL
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            cwd=cwd,
            env=environ,
            stdin=nowhere,
            stdout=nowhere if out < 0 else out,
            stderr=nowhere if err < 0 else err,
            preexec_fn=_die_with_parent,
        )
    finally:
        for descriptor in {out, err}:
            if descriptor > 2:
                os.close(descriptor)


def _die_with_parent() -> None:
    """What a killed runner left is begun again, so it must not go on."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
