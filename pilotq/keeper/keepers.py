"""The worker's side of its keepers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

import pilotq
from pilotq.errors import UnavailableError
from pilotq.keeper import talk
from pilotq.keeper.attempt import attempt_name
from pilotq.keeper.family import Scan, children_file, kill_group
from pilotq.keeper.limits import Bounds
from pilotq.model import HARMLESS, Ended, Outcome
from pilotq.sandbox import marks, remove
from pilotq.sandbox.groups import Group
from pilotq.sandbox.marks import KEEPER
from pilotq.wire import Buffer, Token

START_S = 30.0
#: A keeper that dies again and again is started more and more slowly.
_RESTART_S_MAX = 10.0
_CLOSE_S = 10.0
#: What is being removed has such a name.
_GRAVE = ".grave."

Event = talk.Launched | talk.Exited | talk.Returned
log = logging.getLogger(__name__)


class _Keeper:
    """A place for a keeper process; it outlives the process. Orders of the time without one wait in its pipe."""

    def __init__(self) -> None:
        self.serial = 0
        self.pid = 0
        self.pipe: talk.Pipe[talk.Event] | None = None
        self.waiting: list[talk.Order] = []
        #: Attempts in it, and the one each was to follow.
        self.tokens: dict[Token, Token | None] = {}
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writing = False
        self.deaths = 0
        #: Set when it is dead and no other follows it.
        self.gone = asyncio.Event()

    def load(self) -> tuple[bool, int]:
        """The least one gets the next attempt."""
        return not self.pid, len(self.tokens)


class Keepers:
    """The keeper processes of a worker. `on_events` gets what they say, in the event loop.

    The worker must have no other children: what a dead keeper leaves becomes a child of the worker, and is killed.
    """

    def __init__(
        self,
        count: int,
        on_events: Callable[[list[Event]], None],
        scratch: str,
        nonce: str = "",
        bounds: Bounds | None = None,
        group: Group | None = None,
    ) -> None:
        self._bounds = bounds or Bounds()
        #: Where the keepers live.
        self._group = group or Group()
        self._count = count
        #: Directory of all sandboxes, and of nothing else.
        self._scratch = scratch
        self._on_events = on_events
        self._nonce = nonce or marks.new_nonce()
        self._serials = itertools.count(1)
        self._keepers: list[_Keeper] = []
        self._home: dict[Token, _Keeper] = {}
        #: Of attempts that live, or left something that is still wanted.
        self._sandboxes: dict[Token, str] = {}
        self._graves = itertools.count(1)
        self._list_children = children_file() or Scan()
        self._burials: set[asyncio.Task[None]] = set()
        self._closing = False
        self._empty = asyncio.Event()
        self._dirty: set[_Keeper] = set()
        #: Where attempts were that failed, until their slots may go on.
        self._stopped: dict[Token, _Keeper] = {}

    @property
    def pids(self) -> list[int]:
        """Of the keeper processes that run."""
        return [keeper.pid for keeper in self._keepers if keeper.pid]

    @property
    def live(self) -> int:
        """Attempts launched and not exited."""
        return len(self._home)

    async def start(self) -> None:
        """Make this process a subreaper and start the keepers.

        Raises: UnavailableError when one does not come up.
        """
        marks.become_subreaper()
        for _ in range(self._count):
            keeper = _Keeper()
            self._keepers.append(keeper)
            self._spawn(keeper)
        try:
            await asyncio.wait_for(asyncio.gather(*(keeper.ready for keeper in self._keepers)), START_S)
        except TimeoutError:
            await self.close(0)
            raise UnavailableError(f"a keeper process did not start within {START_S:g} s") from None

    def launch(
        self,
        token: Token,
        description: bytes,
        delta: bytes,
        sandbox: str,
        cache: str,
        env: dict[str, str],
        machine_ad: str,
        after: Token | None = None,
        inline: dict[str, Buffer] | None = None,
    ) -> None:
        """Run an attempt in a keeper, at once or when the one before it in its slot ended well.

        When that one fails it waits for `go_on`. Events: `Launched` when its payload runs for a while, `Exited` when
        nothing of it is left.
        """
        if token in self._home:
            return
        keeper = self._home.get(after) or self._stopped.get(after) if after else None
        if keeper is None:
            after, keeper = None, min(self._keepers, key=_Keeper.load)
        keeper.tokens[token] = after
        self._home[token] = keeper
        self._sandboxes[token] = sandbox
        self._put(keeper, talk.Launch(token, description, delta, sandbox, cache, env, machine_ad, after, inline or {}))

    def take_back(self, token: Token) -> None:
        """Ask for an attempt that waits for the one before it: `Returned`, or it goes its way when it does not wait."""
        keeper = self._home.get(token)
        if keeper:
            self._put(keeper, talk.Return(token))

    def go_on(self, token: Token) -> None:
        """What waits for this attempt, which failed, may begin."""
        keeper = self._stopped.pop(token, None)
        if keeper:
            self._put(keeper, talk.GoOn(token))

    def end(self, token: Token, outcome: Outcome, grace_s: float | None = None, removed: bool = False) -> None:
        """End an attempt so that it is reported with this outcome; without a grace: that of its description.

        `removed`: by the signal for a removal.

        Nothing happens when it is not live. When its processes ended already it is reported as it ended.
        """
        keeper = self._home.get(token)
        if keeper:
            self._put(keeper, talk.End(token, outcome, grace_s, removed))

    def suspend(self, token: Token, on: bool) -> None:
        """Stop all processes of an attempt, or let them go on; nothing happens when it is not live."""
        keeper = self._home.get(token)
        if keeper:
            self._put(keeper, talk.Suspend(token, on))

    def discard(self, token: Token) -> None:
        """Remove the sandbox of an attempt, at its end when it is live."""
        sandbox = self._sandboxes.get(token)
        if sandbox is None:
            return
        keeper = self._home.get(token)
        if keeper is None:
            del self._sandboxes[token]
            keeper = self._keepers[token.proc % len(self._keepers)]
        self._put(keeper, talk.Discard(token, sandbox))

    def wake(self) -> None:
        """Continue keepers that somebody stopped (SIGSTOP): nothing else would end their tasks."""
        for keeper in self._keepers:
            with contextlib.suppress(OSError):
                if keeper.pid and os.waitid(os.P_PID, keeper.pid, os.WSTOPPED | os.WNOHANG):
                    os.kill(keeper.pid, signal.SIGCONT)
                    log.warning("a keeper was stopped, and is continued", extra={"pid": keeper.pid})

    async def close(self, grace_s: float | None = None) -> None:
        """End everything (EVICTED), wait for it, and let the keepers go; no process is left."""
        for token in list(self._home):
            self.end(token, Outcome.EVICTED, grace_s)
        try:
            await asyncio.wait_for(self._until_empty(), None if grace_s is None else grace_s + _CLOSE_S)
        except TimeoutError:
            log.warning("attempts did not end in time", extra={"count": len(self._home)})
        self._closing = True
        for keeper in self._keepers:
            if keeper.pipe:
                self._send(keeper)
                keeper.pipe.sock.shutdown(socket.SHUT_WR)
        try:
            await asyncio.wait_for(self._until_gone(), _CLOSE_S)
        except TimeoutError:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
            await self._until_gone()
        await asyncio.gather(*self._burials)

    async def _until_gone(self) -> None:
        await asyncio.gather(*(keeper.gone.wait() for keeper in self._keepers))

    async def _until_empty(self) -> None:
        while self._home:
            self._empty.clear()
            await self._empty.wait()

    # ---- one keeper --------------------------------------------------------------------------------------------

    def _spawn(self, keeper: _Keeper) -> None:
        """Start a process in a session of its own; it inherits its socket and standard error, nothing else."""
        here, there = socket.socketpair()
        keeper.serial = next(self._serials)
        root = os.path.dirname(os.path.dirname(os.path.abspath(pilotq.__file__)))
        word = marks.prefix(self._nonce, keeper.serial) + KEEPER
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
        env[marks.VARIABLE] = " ".join(filter(None, [env.get(marks.VARIABLE, ""), word]))
        argv = [sys.executable, "-P", "-X", "utf8", "-m", "pilotq.keeper"]
        argv += ["3", self._nonce, str(keeper.serial), msgspec.json.encode(self._bounds).decode()]
        with there:
            keeper.pid = os.posix_spawn(
                sys.executable,
                argv,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, there.fileno(), 3),
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                ],
                setsid=True,
                setsigmask=(),
            )
        try:
            self._group.enter(keeper.pid)
        except OSError as error:
            log.warning("a keeper is in no control group", extra={"error": str(error)})
        keeper.pipe = talk.Pipe(here, talk.events)
        keeper.writing = False
        asyncio.get_running_loop().add_reader(here, self._on_readable, keeper)
        for order in keeper.waiting:
            keeper.pipe.put(order)
        keeper.waiting.clear()
        self._send(keeper)

    def _put(self, keeper: _Keeper, order: talk.Order) -> None:
        """Send with all others of this turn of the event loop."""
        if keeper.pipe is None:
            keeper.waiting.append(order)
            return
        keeper.pipe.put(order)
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._send_all)
        self._dirty.add(keeper)

    def _send_all(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for keeper in dirty:
            self._send(keeper)

    def _send(self, keeper: _Keeper) -> None:
        if keeper.pipe is None:
            return
        loop = asyncio.get_running_loop()
        try:
            done = keeper.pipe.flush()
        except OSError:
            done = True  # It died; the reader is told so too.
        if done == keeper.writing:
            keeper.writing = not done
            if keeper.writing:
                loop.add_writer(keeper.pipe.sock, self._send, keeper)
            else:
                loop.remove_writer(keeper.pipe.sock)

    def _on_readable(self, keeper: _Keeper) -> None:
        assert keeper.pipe is not None
        events = keeper.pipe.get()
        if events is None:
            self._on_dead(keeper)
            return
        told: list[Event] = []
        for event in events:
            if isinstance(event, talk.Ready):
                if not keeper.ready.done():
                    keeper.ready.set_result(None)
                continue
            if not isinstance(event, talk.Launched):
                keeper.deaths = 0
                self._over(keeper, event.token, isinstance(event, talk.Exited) and event.kept)
            if isinstance(event, talk.Exited) and event.ended.outcome not in HARMLESS:
                self._stopped[event.token] = keeper
            told.append(event)
        if told:
            self._on_events(told)

    def _over(self, keeper: _Keeper, token: Token, has_sandbox: bool) -> None:
        keeper.tokens.pop(token, None)
        self._home.pop(token, None)
        if not has_sandbox:
            self._sandboxes.pop(token, None)
        if not self._home:
            self._empty.set()

    # ---- a dead one --------------------------------------------------------------------------------------------

    def _on_dead(self, keeper: _Keeper) -> None:
        assert keeper.pipe is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(keeper.pipe.sock)
        loop.remove_writer(keeper.pipe.sock)
        keeper.pipe.sock.close()
        keeper.pipe = None
        if not self._closing:
            os.kill(keeper.pid, signal.SIGKILL)
        burial = loop.create_task(self._bury(keeper))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)

    async def _bury(self, keeper: _Keeper) -> None:
        """Kill all it kept, report it lost, start another, remove what it left on disk."""
        status = await self._reaped(keeper)
        graves: list[str] = []
        if keeper.tokens or not self._closing or status:
            groups = [self._bounds.group.child(attempt_name(token)) for token in keeper.tokens]
            for group in groups:
                group.kill_all()
            empty = 0
            while empty < 2:
                empty = 0 if marks.hunt(self._nonce, keeper.serial) + self._kill_strays() else empty + 1
                await asyncio.sleep(0.005)
            for group in groups:
                group.remove()
            log.error("a keeper died", extra={"status": status, "tasks": len(keeper.tokens)})
            self._report_lost(keeper, f"Its keeper process {_how(status)}")
            graves = self._unwanted()
        removal = asyncio.get_running_loop().run_in_executor(None, _remove_all, graves)
        keeper.deaths += 1
        if keeper.deaths > 1 and not self._closing:
            await asyncio.sleep(min(_RESTART_S_MAX, 0.05 * 2**keeper.deaths))
        if self._closing:
            keeper.gone.set()
        else:
            self._spawn(keeper)
        await removal

    def _kill_strays(self) -> int:
        """What a dead keeper left is our child, also when nothing tells whose it was; how many there were."""
        strays = [pid for pid in self._list_children() if pid not in self.pids]
        for pid in strays:
            kill_group(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return len(strays)

    def _unwanted(self) -> list[str]:
        """Set aside the sandboxes that neither live nor have outputs to be pulled: those of a dead keeper.

        Spares of the other keepers are among them; a keeper does without a spare that is gone.
        """
        wanted = {os.path.basename(sandbox) for sandbox in self._sandboxes.values()}
        graves = []
        for name in os.listdir(self._scratch):
            if name not in wanted and not name.startswith(_GRAVE):
                grave = f"{self._scratch}/{_GRAVE}{next(self._graves)}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._scratch}/{name}", grave)
                    graves.append(grave)
        return graves

    def _report_lost(self, keeper: _Keeper, reason: str) -> None:
        """All that was in it is over. What waited for another was not started, as far as was told."""
        unsent = {order.token for order in keeper.waiting if isinstance(order, talk.Launch)}
        told: list[Event] = []
        for token, after in list(keeper.tokens.items()):
            if token not in unsent:
                outcome = Outcome.EVICTED if after in keeper.tokens or after in self._stopped else Outcome.LOST
                told.append(talk.Exited(token, Ended(outcome, 0, reason)))
        for event in told:
            self._over(keeper, event.token, False)
        if told:
            self._on_events(told)

    async def _reaped(self, keeper: _Keeper) -> int:
        """Its exit code or minus its signal. It was killed, or leaves by itself: this takes milliseconds."""
        status = None
        while status is None:
            await asyncio.sleep(0.002)
            try:
                pid, code = os.waitpid(keeper.pid, os.WNOHANG)  # noqa: ASYNC222 it does not wait
            except ChildProcessError:
                pid, code = keeper.pid, 0
            status = os.waitstatus_to_exitcode(code) if pid else None
        keeper.pid = 0
        return status


def _remove_all(paths: list[str]) -> None:
    """Those that it can."""
    for path in paths:
        try:
            remove(path)
        except OSError as error:
            log.warning("a sandbox cannot be removed", extra={"sandbox": path, "error": str(error)})


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
