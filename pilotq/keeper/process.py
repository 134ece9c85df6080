"""The keeper: one thread, one loop over its worker's orders, the ends of its children, timers and chores.

One turn of the loop: orders and children that ended -> timers and chores -> a look at what is left of ended attempts ->
events to the worker. When the worker is gone everything is killed and the keeper leaves.

An attempt may come while the one before it in its slot still runs. It waits, and begins the moment that one is over, so
that a slot does not wait for messages. Behind one that failed nothing begins until the worker says so, as the node
may have turned bad.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import select
import signal
import socket
import time

import msgspec

from pilotq.condor.matching import matched
from pilotq.keeper import talk
from pilotq.keeper.agenda import Agenda, Chore
from pilotq.keeper.attempt import BY_ITSELF, TRANSIENT, Attempt, Stage
from pilotq.keeper.family import Family, endings
from pilotq.keeper.limits import REST, Bounds, Limits
from pilotq.keeper.recipe import Recipes, base_environment
from pilotq.keeper.report import Report
from pilotq.keeper.scratch import Scratch
from pilotq.model import BY_ORDER, HARMLESS, Outcome
from pilotq.sandbox import files, marks
from pilotq.wire import Token

#: A look that takes less of the processor's time needs no rest.
_CHEAP_S = 0.001
_TRIES = 7
#: A keeper that may sleep for longer has nothing to start.
_IDLE_S = 0.1

log = logging.getLogger(__name__)


class Keeper:
    """What one keeper process does, from `run` to the end of its worker."""

    def __init__(self, sock: socket.socket, nonce: str, serial: int, bounds: Bounds) -> None:
        self._pipe: talk.Pipe[talk.Order] = talk.Pipe(sock, talk.orders)
        self._report = Report(self._pipe)
        self._nonce, self._group = nonce, bounds.group
        self._family = Family(nonce, serial)
        self._base = base_environment()
        self._recipes = Recipes()
        self._attempts: dict[Token, Attempt] = {}
        #: How many of them wait for the one before them.
        self._waiting = 0
        #: Those that failed, until the worker lets the slot go on.
        self._stopped: dict[Token, Attempt] = {}
        self._clearing: set[Attempt] = set()
        self._look_at = 0.0
        self._agenda = Agenda(self._on_failure)
        self._scratch = Scratch(self._agenda)
        self._limits = Limits(bounds, self._agenda, self._family, self._attempts.values, self._stop)
        self._poll = select.epoll()
        self._endings = endings()
        self._victims = marks.Victims()

    def run(self) -> None:
        """Serve until the worker is gone, then kill everything."""
        pipe = self._pipe
        here = pipe.sock.fileno()
        self._poll.register(here, select.EPOLLIN)
        self._poll.register(self._endings, select.EPOLLIN)
        pipe.put(talk.Ready())
        sending = False
        try:
            while True:
                try:
                    done = pipe.flush()
                except OSError:
                    return
                if done is sending:
                    sending = not done
                    self._poll.modify(here, select.EPOLLIN | (select.EPOLLOUT if sending else 0))
                pause_s = self._pause_s()
                if pause_s > _IDLE_S:
                    self._victims.withdraw()
                for fd, what in self._poll.poll(pause_s):
                    if fd != here:
                        os.read(fd, 4096)
                        self._reap()
                    elif what & ~select.EPOLLOUT:
                        orders = pipe.get()
                        if orders is None:
                            return
                        for order in orders:
                            self._on_order(order)
                self._agenda.turn()
                self._look()
                self._report.tell(time.monotonic(), self._waiting > 0)
        finally:
            self._family.end()
            marks.hunt_until_none(self._nonce, spare=marks.KEEPER)
            for attempt in self._attempts.values():
                self._limits.over(attempt, 0)
            self._scratch.end()
            self._group.abandon()

    def _pause_s(self) -> float:
        """How long the loop may sleep."""
        now = time.monotonic()
        # The end of what was killed wakes us; 20 ms are for what neither dies nor says so.
        until = max(self._look_at, now + 0.02) if self._clearing else now + 3600
        return self._agenda.pause_s(self._report.due_at(until))

    def _on_failure(self, attempt: Attempt, error: Exception) -> None:
        """One attempt must not take the others with it."""
        attempt.fail(Outcome.REJECTED, 0, f"its keeper failed: {error!r}")
        if attempt.stage == Stage.COLLECTING:
            self._ended(attempt, files.Collected([], 0))
        elif attempt.pid:
            self._stop(attempt, Outcome.REJECTED, "", 0)
        else:
            self._clear(attempt)

    # ---- orders ------------------------------------------------------------------------------------------------

    def _on_order(self, order: talk.Order) -> None:
        if isinstance(order, talk.Launch):
            self._on_launch(order)
            return
        if isinstance(order, talk.GoOn):
            self._go_on(order.token)
            return
        attempt = self._attempts.get(order.token)
        if isinstance(order, talk.Discard):
            if attempt:
                attempt.discarded = True
            else:
                self._scratch.remove(order.sandbox)
        elif attempt is None:
            return
        elif isinstance(order, talk.End):
            self._stop(attempt, order.outcome, "", order.grace_s, order.removed)
        elif isinstance(order, talk.Suspend):
            self._suspend(attempt, order.on)
        elif attempt.stage == Stage.WAITING:
            self._let_go(attempt)
            self._pipe.put(talk.Returned(attempt.token))

    def _on_launch(self, launch: talk.Launch) -> None:
        if launch.token in self._attempts:
            return
        attempt = self._attempts[launch.token] = Attempt(launch)
        before = self._attempts.get(launch.after) or self._stopped.get(launch.after) if launch.after else None
        if before is None:
            self._begin(attempt)
        else:
            self._queue(attempt, before)

    def _queue(self, attempt: Attempt, before: Attempt) -> None:
        if attempt.before is None:
            self._waiting += 1
        attempt.before = before
        before.followers.append(attempt)

    def _let_go(self, attempt: Attempt) -> None:
        """It is over: what waited for it begins, or waits for what it waited for."""
        attempt.over = True
        del self._attempts[attempt.token]
        before, followers = attempt.before, attempt.followers
        attempt.before, attempt.followers = None, []
        if before is not None:
            self._waiting -= 1
            before.followers.remove(attempt)
        for follower in followers:
            if before is None:
                self._begin_next(follower)
            else:
                self._queue(follower, before)

    def _go_on(self, token: Token) -> None:
        """What waited for one that failed begins."""
        stopped = self._stopped.pop(token, None)
        for follower in stopped.followers if stopped else ():
            self._begin_next(follower)

    def _begin_next(self, follower: Attempt) -> None:
        self._waiting -= 1
        follower.before = None
        self._begin(follower)

    def _begin(self, attempt: Attempt) -> None:
        attempt.stage = Stage.STAGING
        self._agenda.chore(self._stage(attempt), attempt)

    def _stage(self, attempt: Attempt) -> Chore:
        """Make the sandbox, fill it, start the first process."""
        launch = attempt.launch
        try:
            recipe = self._recipes.get(launch.description)
            d = attempt.description = recipe.description(launch)
            common = recipe.environment(d, self._base, launch.env)
        except (msgspec.MsgspecError, AttributeError, ValueError) as error:
            attempt.fail(Outcome.REJECTED, 0, f"its description cannot be read: {error}")
            self._ended(attempt, files.Collected([], 0))
            return
        if d.at_match:
            try:
                d = attempt.description = matched(d, launch.machine_ad)
                common = recipe.environment(d, self._base, launch.env)
            except ValueError as error:
                attempt.fail(Outcome.STAGE_IN, 0, str(error))
                self._ended(attempt, files.Collected([], 0))
                return
        attempt.filling = recipe.filling(d, launch.machine_ad)
        attempt.set_environment(common, self._family.add(attempt))
        if self._scratch.reuse(attempt) or (yield from self._scratch.furnish(attempt)):
            launch.inline.clear()
            self._start(attempt, Stage.PRE if d.pre else Stage.PAYLOAD)
        else:
            self._clear(attempt)

    # ---- processes ---------------------------------------------------------------------------------------------

    def _start(self, attempt: Attempt, stage: Stage) -> None:
        """Start the process of a stage, unless the attempt was ended before."""
        attempt.stage = stage
        if attempt.verdict is not None:
            self._clear(attempt)
            return
        d = attempt.description
        command = d.pre if stage == Stage.PRE else d.post if stage == Stage.POST else None
        self._family.before_start(attempt)
        self._victims.offer()
        began = time.monotonic()
        try:
            pid = attempt.spawn(command)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in TRANSIENT and attempt.tries < _TRIES:
                attempt.tries += 1
                self._agenda.at(0.02 * 2**attempt.tries, attempt, lambda: self._start(attempt, stage))
                return
            attempt.explain(error, command)
            self._clear(attempt)
            return
        attempt.pid = pid
        self._family.started(attempt, pid)
        if stage == Stage.PAYLOAD:
            attempt.started_at = began
            self._report.started(attempt.token, pid, began)
        self._limits.begin(attempt)

    def _reap(self) -> None:
        """Take every child that ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            attempt = self._family.reaped(pid)
            if attempt is None:
                continue
            attempt.user_s += usage.ru_utime
            attempt.system_s += usage.ru_stime
            # Of a short process this is at least our own size, which the kernel counts until its exec.
            attempt.memory_bytes = max(attempt.memory_bytes, usage.ru_maxrss * 1024)
            if pid == attempt.pid:
                attempt.pid = 0
                self._on_end(attempt, os.waitstatus_to_exitcode(status))

    def _on_end(self, attempt: Attempt, status: int) -> None:
        """The main process of a stage ended: exit code, or minus a signal."""
        d = attempt.description
        self._limits.ended(attempt)
        if attempt.stage == Stage.PAYLOAD:
            attempt.status = status
            attempt.wall_s = time.monotonic() - attempt.started_at
        elif attempt.stage == Stage.PRE and d.pre:
            attempt.check_command(d.pre, "PreCmd", status, Outcome.STAGE_IN)
        elif d.post:
            attempt.check_command(d.post, "PostCmd", status, Outcome.STAGE_OUT)
        if attempt.stage == Stage.PRE:
            self._start(attempt, Stage.PAYLOAD)
        elif attempt.stage == Stage.PAYLOAD and d.post:
            self._start(attempt, Stage.POST)
        else:
            self._clear(attempt)

    # ---- limits and the end ------------------------------------------------------------------------------------

    def _stop(
        self, attempt: Attempt, outcome: Outcome, reason: str, grace_s: float | None, removed: bool = False
    ) -> None:
        """End it by its signal, then SIGKILL. The first verdict stands; a later one may only shorten the grace."""
        if attempt.stage >= Stage.CLEARING:
            return
        if attempt.stage == Stage.WAITING:
            attempt.fail(outcome, 0, reason)
            self._ended(attempt, files.Collected([], 0))
            return
        if attempt.verdict is None:
            attempt.fail(outcome, 0, reason)
            d = attempt.description
            self._signal(attempt, (d.remove_signal if removed else 0) or d.kill_signal)
            self._signal(attempt, signal.SIGCONT)
            self._suspend(attempt, False)
        pid = attempt.pid
        grace = attempt.description.kill_grace_s if grace_s is None else grace_s
        if grace > 0:
            self._agenda.at(grace, attempt, lambda: self._kill(attempt, pid))
        else:
            self._kill(attempt, pid)

    def _kill(self, attempt: Attempt, pid: int) -> None:
        if attempt.pid == pid:
            self._signal(attempt, signal.SIGKILL)

    def _signal(self, attempt: Attempt, number: int) -> None:
        """To the process group of the main process, which was not reaped: shells pass nothing on."""
        if attempt.pid:
            try:
                os.killpg(attempt.pid, number)
            except OSError:
                # Not a signal's number; or a set-uid program, which only its end frees us from.
                with contextlib.suppress(OSError):
                    os.killpg(attempt.pid, signal.SIGTERM)

    def _suspend(self, attempt: Attempt, on: bool) -> None:
        """Stop its processes, or let them go on. Nothing that is about to end is stopped."""
        if not attempt.pid or on == bool(attempt.suspended_at) or (on and attempt.verdict is not None):
            return
        now = time.monotonic()
        attempt.suspended_s += 0.0 if on else now - attempt.suspended_at
        attempt.suspended_at = now if on else 0.0
        self._agenda.chore(self._signal_all(attempt, signal.SIGSTOP if on else signal.SIGCONT), attempt)

    def _signal_all(self, attempt: Attempt, number: int) -> Chore:
        """Until none is new: what is not stopped yet may start others."""
        known: set[int] = set()
        is_on = number == signal.SIGSTOP
        while is_on == bool(attempt.suspended_at) and (new := self._family.members(attempt) - known):
            for pid in new:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            known |= new
            yield

    def _clear(self, attempt: Attempt) -> None:
        """Its main process is gone for good: nothing of it may stay."""
        attempt.stage = Stage.CLEARING
        self._family.ended(attempt)
        self._limits.clear(attempt)
        self._clearing.add(attempt)

    def _look(self) -> None:
        """One look serves all attempts that ended in this turn."""
        if not self._clearing or time.monotonic() < self._look_at:
            return
        began = time.thread_time()
        left = self._family.look()
        cost = time.thread_time() - began
        # What is being killed may grow meanwhile: then we may not rest long.
        self._look_at = time.monotonic() + cost * (1 if left else REST) if cost > _CHEAP_S else 0.0
        needed = self._family.looks
        for attempt in list(self._clearing):
            attempt.clean_looks = 0 if attempt in left else attempt.clean_looks + 1
            if attempt.clean_looks >= needed:
                self._clearing.discard(attempt)
                attempt.stage = Stage.COLLECTING
                self._agenda.chore(self._collect(attempt), attempt)

    def _collect(self, attempt: Attempt) -> Chore:
        by_itself = (attempt.verdict or attempt.ran()) in BY_ITSELF
        if attempt.verdict in BY_ORDER:
            found = files.Collected([], 0)
        else:
            found = yield from files.collect(attempt.sandbox, attempt.description, attempt.prints, by_itself)
        self._ended(attempt, found)

    def _ended(self, attempt: Attempt, found: files.Collected) -> None:
        """Nothing of it is left: say so, and forget it."""
        if attempt.over:
            return
        ended = attempt.result(found)
        kept = not attempt.discarded and any(output.data is None for output in ended.outputs)
        now = time.monotonic()
        self._report.ended(talk.Exited(attempt.token, ended, kept, attempt.started_at or now), now)
        if attempt.env:
            # It had begun.
            self._family.forget(attempt)
            self._limits.over(attempt)
            if not kept:
                self._scratch.leave(attempt, found)
        if attempt.stage == Stage.WAITING or ended.outcome in HARMLESS:
            self._let_go(attempt)
            return
        self._report.tell_ends()
        attempt.over = True
        self._stopped[attempt.token] = self._attempts.pop(attempt.token)


def main(argv: list[str]) -> None:
    """Be a keeper: descriptor of the socket to the worker, nonce, serial, bounds."""
    fd, nonce, serial = int(argv[0]), argv[1], int(argv[2])
    bounds = msgspec.json.decode(argv[3], type=Bounds)
    # What the worker was started with and did not know of is not for tasks.
    for other in [int(name) for name in os.listdir("/proc/self/fd")]:
        if other > 2 and other != fd:
            with contextlib.suppress(OSError):
                os.close(other)
    logging.basicConfig(format="keeper %(process)d: %(message)s")
    # The worker decides when to end; a signal to the whole service is not for us. Handled, as tasks would inherit it
    # that a signal is ignored.
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN}
    for number in ignored | {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        signal.signal(number, lambda number, frame: None)
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    most, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if bounds.processes_together and not bounds.group.pids and not 0 <= most <= bounds.processes_together:
        # Counts all of the account; of no effect for root.
        resource.setrlimit(resource.RLIMIT_NPROC, (bounds.processes_together, hard))
    marks.become_subreaper()
    # What lives now lives for ever, and an attempt leaves no cycles worth looking for often.
    gc.freeze()
    gc.set_threshold(50_000)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    Keeper(sock, nonce, serial, bounds).run()
