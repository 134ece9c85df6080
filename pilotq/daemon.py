"""The one loop of every daemon: inputs, core, commit, actions.

1. Take every input that waits, up to a bound, and let the core react to each.
2. When no commit is in flight, let it settle all it heard since the last time, and commit the records in one
   transaction in the store's thread.
3. Only then perform the actions, in order.

Nothing leaves before the commit that makes it true; only what may be done twice begins before it. What nobody waits for
is committed with what comes next. Memory is never rolled back: a commit that fails because the disk is full is tried
again unchanged; any other failure ends the process, and the restart reads the truth from disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pilotq.core.turn import Core, Now, Turn
from pilotq.errors import InternalError, PilotqError
from pilotq.proc import hide_memory
from pilotq.units import printable

log = logging.getLogger(__name__)

#: Events handled before the loop looks at its sockets again.
EVENTS_PER_TURN = 500
#: A turn nobody waits for is committed after so long, or with the next one.
LATER_S = 0.01
#: The watchdog is fed at least this often, from a turn.
IDLE_TURN_S = 5.0
#: Of a line of the log.
LINE_CHARS_MAX = 8192
#: How often the lag of the loop is measured.
PROBE_S = 0.1


#: Commits records and returns what the actions need from the store; runs in the store's thread.
Commit = Callable[[list[Any], list[Any]], Any]


def read_clocks() -> Now:
    return Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class Peak:
    """The largest value of the last 10 to 20 seconds."""

    WINDOW_S = 10.0

    def __init__(self) -> None:
        self._now = self._before = self._began_at = 0.0

    def note(self, value: float, boot: float) -> None:
        if boot - self._began_at >= self.WINDOW_S:
            self._before = self._now if boot - self._began_at < 2 * self.WINDOW_S else 0.0
            self._now, self._began_at = 0.0, boot
        self._now = max(self._now, value)

    def read(self, boot: float) -> float:
        self.note(0.0, boot)
        return max(self._now, self._before)


class StoreThread:
    """One thread, one thing after the other; a third of the price of an executor, which counts at one commit a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def start(
        self, on_done: Callable[[Any, Exception | None], None], function: Callable[..., Any], *arguments: Any
    ) -> None:
        """Run a function in the thread, and then `on_done(value, error)` in the loop."""

        def job() -> None:
            value, failure = None, None
            try:
                value = function(*arguments)
            except Exception as error:
                failure = error
            self._loop.call_soon_threadsafe(on_done, value, failure)

        self._jobs.put(job)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The same for who waits in another way."""
        future: Future[Any] = Future()

        def job() -> None:
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def close(self) -> None:
        """Returns when all is done."""
        self._jobs.put(None)
        self._thread.join()


def _joined(turn: Turn, later: Turn) -> Turn:
    """One turn of two; what may begin at once has begun."""
    may_wait = turn.may_wait and later.may_wait
    return Turn(turn.records + later.records, turn.actions + later.actions, may_wait=may_wait)


class Engine:
    """Runs a core."""

    def __init__(
        self,
        core: Core,
        perform: Callable[[list[Any], Any], None],
        tick: Any,
        commit: Commit | None = None,
        reads: tuple[type, ...] = (),
        on_turn: Callable[[], None] | None = None,
    ) -> None:
        #: `reads`: types of actions for which `commit` must fetch something from the store, even without records.
        self.core = core
        self.loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self.loop.create_future()
        self._perform, self._tick, self._commit, self._reads, self._on_turn = perform, tick, commit, reads, on_turn
        self._inbox: deque[Any] = deque()
        #: The core has heard nothing since it settled.
        self._is_settled = True
        self._committing = False
        #: What the core settled and nobody waits for, until the next commit, or this moment.
        self._later = Turn()
        self._later_at: float | None = None
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._thread = StoreThread(self.loop) if commit else None
        self.commits = 0
        #: How long turns took, and how late a timer came, seconds.
        self.turn_s, self.lag_s = Peak(), Peak()
        self._probe_at = 0.0
        if commit is not None:
            self._probe()

    def put(self, event: Any) -> None:
        """Give the core an event in the next turn."""
        self._inbox.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self.failed.done():
            return
        now = read_clocks()
        try:
            inbox, react = self._inbox, self.core.react
            for _ in range(min(len(inbox), EVENTS_PER_TURN)):
                self._is_settled = False
                react(inbox.popleft(), now)
            self._pump(now)
        except Exception as error:
            self.fail(error)
            return
        if self._inbox:
            self._schedule()
        self._arm(now.boot)
        if self._on_turn is not None:
            self._on_turn()
        self.turn_s.note(time.clock_gettime(time.CLOCK_BOOTTIME) - now.boot, now.boot)

    def _pump(self, now: Now) -> None:
        """Settle and commit, unless a commit is in flight; without records there is nothing to wait for.

        So a commit carries all that came during the one before. What the core does by the clock waits for the commit
        as well, so that a long piece of work cannot run ahead of the disk.
        """
        if self._committing:
            return
        wakeup = self.core.next_wakeup()
        if wakeup is not None and wakeup <= now.boot:
            self._is_settled = False
            self.core.react(self._tick, now)
        if not self._is_settled:
            self._is_settled = True
            turn = self.core.settle(now)
            if turn.at_once:
                self._perform(turn.at_once, None)
            self._later = turn if self._later_at is None else _joined(self._later, turn)
        turn = self._later
        if turn.may_wait and turn.records:
            if self._later_at is None:
                self._later_at = now.boot + LATER_S
            if now.boot < self._later_at:
                return
        self._later, self._later_at = Turn(), None
        self._do(turn.records, turn.actions)

    def _do(self, records: list[Any], actions: list[Any]) -> None:
        if not records and not actions:
            return
        is_quick = not records and not any(isinstance(action, self._reads) for action in actions)
        if self._commit is None or self._thread is None or is_quick:
            self._perform(actions, None)
            return
        self._committing = True
        self.commits += 1 if records else 0
        self._thread.start(functools.partial(self._committed, actions), self._commit, records, actions)

    def _committed(self, actions: list[Any], found: Any, failure: Exception | None) -> None:
        self._committing = False
        if self.failed.done():
            return
        try:
            if failure is not None:
                raise failure
            self._perform(actions, found)
            now = read_clocks()
            self._pump(now)
        except Exception as error:
            self.fail(error)
            return
        self._arm(now.boot)

    def fail(self, error: Exception) -> None:
        """End with this error; only the first counts."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def _arm(self, boot: float) -> None:
        """See that a turn comes when the core wants one. A timer that comes too early is cheaper than a new one."""
        wakeup = None if self._committing else self.core.next_wakeup()
        if self._later_at is not None:
            wakeup = min(wakeup or self._later_at, self._later_at)
        at = boot + IDLE_TURN_S if wakeup is None else min(max(wakeup, boot), boot + IDLE_TURN_S)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        # The loop counts whole milliseconds: rounded down, it would turn idly until the time has come.
        self._timer = self.loop.call_later(math.ceil((at - boot) * 1000) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._schedule()

    def _probe(self) -> None:
        """Measure how late the loop comes to what is due."""
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._probe_at:
            self.lag_s.note(boot - self._probe_at, boot)
        self._probe_at = boot + PROBE_S
        self._probe_timer = self.loop.call_later(PROBE_S, self._probe)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something in the store's thread, between two commits."""
        assert self._thread is not None
        return await asyncio.wrap_future(self._thread.call(function, *arguments))

    def blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same from within a reaction of the core: the loop waits. For what is asked once and then cached."""
        assert self._thread is not None
        return self._thread.call(function, *arguments).result()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._probe_timer.cancel()
            self._thread.close()


class LogFormatter(logging.Formatter):
    """Time, level, sentence, facts: one line, whatever is in them; what follows an exception is set in."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        facts = getattr(record, "facts", None) or {}
        trace = ""
        text = record.getMessage() + "".join(f" {name}={_plain(value)}" for name, value in facts.items())
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            trace = "".join(f"\n  | {printable(line)[:LINE_CHARS_MAX]}" for line in lines)
        line = f"{moment} {record.levelname.lower():7} {record.name.removeprefix('pilotq.')}: {printable(text)}"
        return line[:LINE_CHARS_MAX] + trace


class Sparing(logging.Filter):
    """Lets a sentence pass only so often: a peer must not be able to fill the disk with what it does wrong."""

    def __init__(self, most: int = 50, window_s: float = 10.0) -> None:
        super().__init__()
        self._most, self._window_s = most, window_s
        self._began_at = 0.0
        self._counts: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._began_at >= self._window_s:
            self._began_at = now
            left_out = {text: count - self._most for text, count in self._counts.items() if count > self._most}
            self._counts.clear()
            for text, count in left_out.items():
                log.warning("left out", extra={"facts": {"count": count, "of": text}})
        self._counts[str(record.msg)] += 1
        return record.levelno >= logging.ERROR or self._counts[str(record.msg)] <= self._most


def _plain(value: Any) -> str:
    text = str(value)
    if text.isprintable() and " " not in text and text:
        return text[:1000]
    return ascii(text)[:1000]


def set_up_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    handler.addFilter(Sparing())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")


def tell(name: str, text: str, facts: dict[str, Any], level: int = logging.INFO) -> None:
    """What a core wants an operator to know."""
    logging.getLogger(f"pilotq.{name}").log(level, text, extra={"facts": facts})


def notify(text: str) -> None:
    """Tell systemd, when it started us. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.send(text.encode())


class Watchdog:
    """Feeds systemd's watchdog from the loop's turns, so that a hung loop is seen."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + IDLE_TURN_S
            notify("WATCHDOG=1")


def run(main: Callable[[asyncio.Event], Any], level: str) -> int:
    """Run a role until it ends or a signal asks it to; its exit code. Errors of ours become one line."""
    import uvloop

    set_up_logging(level)
    hide_memory()

    async def body() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return int(await main(stop) or 0)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(body())
    except PilotqError as error:
        sys.stderr.write(f"pilotq: {printable(error.line())}\n")
        if isinstance(error, InternalError):
            log.error("this is a bug of pilotq", exc_info=error)
        return error.exit_code
    except Exception as error:
        log.critical("unexpected error, ending; this is a bug of pilotq", exc_info=error)
        return 70


async def exists(path: Path) -> bool:
    """Is it there? Asked in a thread: a file system that hangs must not stop the loop."""
    return await asyncio.to_thread(path.exists)


async def wait_for_any(stop: asyncio.Event | None, failed: asyncio.Future[None], timeout_s: float) -> None:
    """Until somebody stops us, the engine fails, or the time is over."""
    waits: set[asyncio.Future[Any]] = {failed}
    if stop is not None:
        waits.add(asyncio.ensure_future(stop.wait()))
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for waiting in waits - {failed}:
        waiting.cancel()
