"""Workers that start no process, thousands in one process: for `pilotq bench`.

Each is a connection of its own to a foreman and speaks the protocol of a real worker: hello, heartbeats, inventories,
results that are kept until they are acknowledged. Only the tasks are not real: they are over after a given time.

There is no object for a worker: all workers share a few lists, and one epoll looks at their sockets.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import zmq
import zmq.utils.monitor

from pilotq import __version__, keys, wire
from pilotq.core.worker_session import ANSWER_S, BACKOFF_S
from pilotq.errors import PilotqError, UnavailableError
from pilotq.link import RECONNECT_MS, new_socket
from pilotq.model import Ended, Outcome, Resources, Usage

#: Workers that wait for their first welcome at the same time: more would only time out.
JOINING_MAX = 200
#: Reports are at least so far apart.
REPORT_S = 0.01
#: Steps of the golden ratio lie evenly in any range, however many there are.
_GOLDEN = 0.6180339887498949
_EVENTS_MAX = 1000
_NEVER = float("inf")
_BEAT_S = 5.0


class Plan(msgspec.Struct, frozen=True):
    """What the workers of one process are; a line of JSON on standard input."""

    #: Where the token of the workers is.
    token: str
    #: Addresses of the foremen, as ZeroMQ writes them; `is_direct`: of the master itself.
    endpoints: list[str]
    is_direct: bool
    workers: int
    slots: int
    #: Tasks a worker takes beyond its slots.
    ahead: int
    task_s: float
    #: The first tasks of all slots end evenly over `task_s`, as in a pool that has run for long.
    spread: bool
    #: They watch their connections, and look for another way when one breaks, as real workers do.
    comes_back: bool = False


class Report(msgspec.Struct):
    """The counts so far; a line of JSON on standard output whenever they changed. Moments are CLOCK_MONOTONIC."""

    #: Workers that are welcome now.
    joined: int = 0
    #: How often one that was welcome lost its session.
    lost: int = 0
    joined_at: float = 0.0
    #: Slots that have had a task.
    filled: int = 0
    filled_at: float = 0.0
    #: Tasks whose result the master acknowledged, so it is committed.
    acked: int = 0
    acked_at: float = 0.0
    #: Messages to and from the foremen.
    messages: int = 0
    #: Why it cannot go on; "": it can.
    error: str = ""


class Simulated:
    """The workers of one process; a worker is its index in the lists."""

    def __init__(self, plan: Plan, context: Any) -> None:
        self._plan, self._context = plan, context
        self._token = keys.read_token(Path(plan.token), "worker")
        self._offer = wire.Offer(Resources(plan.slots), plan.ahead)
        end = Ended(Outcome.OK, usage=Usage(wall_s=plan.task_s))
        #: Every task ends alike, so its end is packed once.
        self._end = cast(Ended, msgspec.Raw(msgspec.msgpack.encode(end)))
        self.report = Report()
        self._poll = select.epoll()
        self._workers: dict[int, int] = {}
        self._joining = 0
        self._sockets: list[Any] = []
        self._is_joined, self._was_joined = bytearray(plan.workers), bytearray(plan.workers)
        self._generations = [0] * plan.workers
        self._beats = [0] * plan.workers
        self._filled = [0] * plan.workers
        self._free = [plan.slots] * plan.workers
        self._described: list[set[int]] = [set() for _ in range(plan.workers)]
        self._live: list[set[wire.Token]] = [set() for _ in range(plan.workers)]
        self._waiting: list[deque[wire.Token]] = [deque() for _ in range(plan.workers)]
        self._unacked: list[set[wire.Token]] = [set() for _ in range(plan.workers)]
        self._beat_s, self._spread_s = _BEAT_S, 0.0
        #: (moment, worker, tokens that end; empty: its heartbeat is due, or it tries to connect again).
        self._timers: list[tuple[float, int, list[wire.Token]]] = []
        #: With `comes_back`: monitors of the sockets, whose they are by descriptor; tries since it was welcome last,
        #: when the next one is due, and which way it takes.
        self._monitors: list[Any] = [None] * (plan.workers if plan.comes_back else 0)
        self._watched: dict[int, int] = {}
        self._tries = [0] * plan.workers
        self._retry_at, self._beat_at = [_NEVER] * plan.workers, [_NEVER] * plan.workers
        self._ways = list(range(plan.workers))
        #: What the worker whose turn it is will say.
        self._out: list[bytes] = []
        self._ended: list[wire.Token] = []
        self._now = time.monotonic()
        self._reactions: dict[type, Any] = {
            wire.Welcome: self._on_welcome,
            wire.Describe: lambda worker, message: self._described[worker].add(message.cluster),
            wire.Assign: self._on_assign,
            wire.Ack: self._on_ack,
            wire.Kill: lambda worker, message: self._kill(worker, message.tokens),
            wire.AskInventory: self._on_ask_inventory,
            wire.Reject: self._on_reject,
        }

    def run(self, control: int, tell: Callable[[Report], None]) -> None:
        """Until `control`, a descriptor, is closed by the other side; `tell` gets the reports."""
        self._poll.register(control, select.EPOLLIN)
        told, told_at = Report(), 0.0
        while True:
            self._join_more()
            found = self._poll.poll(self._pause(told_at + REPORT_S if told != self.report else None), _EVENTS_MAX)
            self._now = time.monotonic()
            for descriptor, _ in found:
                worker = self._workers.get(descriptor)
                if worker is not None:
                    self._serve(worker)
                elif descriptor in self._watched:
                    self._watch(self._watched[descriptor])
                elif descriptor == control and not os.read(control, 1):
                    return
            while self._timers and self._timers[0][0] <= self._now:
                self._on_time(*heapq.heappop(self._timers)[1:])
            if told != self.report and self._now >= told_at + REPORT_S:
                told, told_at = msgspec.structs.replace(self.report), self._now
                tell(told)

    def close(self) -> None:
        for worker in range(len(self._sockets)):
            self._hang_up(worker)
        self._poll.close()

    def _pause(self, report_at: float | None) -> float:
        """How long there is nothing to do unless a message comes."""
        moments = [self._timers[0][0]] if self._timers else []
        if report_at is not None:
            moments.append(report_at)
        return max(0.0, min(moments, default=self._now + 1.0) - time.monotonic())

    # ---- sockets

    def _join_more(self) -> None:
        plan = self._plan
        while self._joining < JOINING_MAX and len(self._sockets) < plan.workers:
            worker = len(self._sockets)
            self._sockets.append(None)
            self._joining += 1
            self._connect(worker)
            self._say_hello(worker)
            if plan.comes_back:
                self._try_at(worker, ANSWER_S)
            self._serve(worker)

    def _connect(self, worker: int) -> None:
        plan = self._plan
        socket = self._sockets[worker] = new_socket(self._context, zmq.DEALER)
        socket.curve_serverkey = (self._token.master if plan.is_direct else self._token.foreman).encode()
        socket.curve_publickey, socket.curve_secretkey = self._token.public.encode(), self._token.secret.encode()
        if plan.comes_back:
            socket.reconnect_ivl, socket.reconnect_ivl_max = RECONNECT_MS
            events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            monitor = self._monitors[worker] = socket.get_monitor_socket(events)
            self._listen(self._watched, monitor, worker)
        socket.connect(plan.endpoints[self._ways[worker] % len(plan.endpoints)])
        self._listen(self._workers, socket, worker)
        if plan.comes_back:
            # Its descriptor tells of changes only after its state was asked for once.
            self._watch(worker)

    def _listen(self, by: dict[int, int], socket: Any, worker: int) -> None:
        descriptor = socket.getsockopt(zmq.FD)
        by[descriptor] = worker
        self._poll.register(descriptor, select.EPOLLIN)

    def _watch(self, worker: int) -> None:
        monitor = self._monitors[worker]
        while monitor is not None and monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            zmq.utils.monitor.recv_monitor_message(monitor)
            self._lose(worker)

    def _lose(self, worker: int) -> None:
        """The connection broke: try again after a pause, as `core.worker_session` does."""
        spread_s = 0.0
        if self._is_joined[worker]:
            self._leave(worker)
            self._tries[worker], spread_s = 0, self._spread_s
        low, high = BACKOFF_S
        pause_s = min(high, low * 2 ** self._tries[worker]) * random.uniform(0.5, 1.5)
        self._try_at(worker, pause_s + spread_s * random.random())

    def _leave(self, worker: int) -> None:
        self._is_joined[worker] = False
        self.report.joined -= 1
        self.report.lost += 1

    def _try_at(self, worker: int, pause_s: float) -> None:
        self._retry_at[worker] = self._now + pause_s
        heapq.heappush(self._timers, (self._now + pause_s, worker, []))

    def _try_again(self, worker: int) -> None:
        self._hang_up(worker)
        self._ways[worker] += 1
        self._tries[worker] = min(self._tries[worker] + 1, 10)
        self._connect(worker)
        self._say_hello(worker)
        low, high = BACKOFF_S
        pause_s = max(ANSWER_S + self._spread_s, min(high, low * 2 ** self._tries[worker]))
        self._try_at(worker, pause_s * random.uniform(0.75, 1.25))

    def _hang_up(self, worker: int) -> None:
        socket, self._sockets[worker] = self._sockets[worker], None
        if socket is None:
            return
        if self._monitors:
            monitor, self._monitors[worker] = self._monitors[worker], None
            self._forget(self._watched, monitor)
            socket.disable_monitor()
            monitor.close()
        self._forget(self._workers, socket)
        socket.close()

    def _forget(self, by: dict[int, int], socket: Any) -> None:
        descriptor = socket.getsockopt(zmq.FD)
        del by[descriptor]
        self._poll.unregister(descriptor)

    def _serve(self, worker: int) -> None:
        """Take all that came for a worker and say all it has to say; its descriptor tells of a message only once."""
        socket, reactions = self._sockets[worker], self._reactions
        while True:
            while socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                self.report.messages += 1
                for payload in wire.split(socket.recv_multipart(zmq.NOBLOCK))[1::2]:
                    message = wire.unpack(payload)
                    reaction = reactions.get(type(message))
                    if reaction is not None:
                        reaction(worker, message)
            if not self._flush(worker):
                return

    def _flush(self, worker: int) -> bool:
        """Send what the worker has to say, all in one message."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._out.append(wire.pack(wire.Result(ended, [self._end] * len(ended))))
        if not self._out:
            return False
        out, self._out = self._out, []
        parts: wire.Parts = [b""] * (2 * len(out))
        parts[1::2] = out
        for frames in wire.join(parts):
            self._sockets[worker].send_multipart(frames, zmq.NOBLOCK)
            self.report.messages += 1
        return True

    def _say(self, message: wire.Message) -> None:
        self._out.append(wire.pack(message))

    # ---- the session

    def _say_hello(self, worker: int, answers: int = 0) -> None:
        self._generations[worker] += 1
        live, waiting = self._live[worker], set(self._waiting[worker])
        self._say(
            wire.Hello(
                protocol=wire.PROTOCOL,
                worker=f"simulated-{os.getpid()}-{worker}",
                generation=self._generations[worker],
                host=f"simulated-{worker}",
                pid=os.getpid(),
                version=__version__,
                offer=self._offer,
                live=list(live),
                started=list(live - waiting),
                unacked=list(self._unacked[worker]),
                answers=answers,
            )
        )

    def _on_ask_inventory(self, worker: int, message: wire.AskInventory) -> None:
        if self._plan.comes_back and self._is_joined[worker]:
            self._leave(worker)
            self._try_at(worker, ANSWER_S + self._spread_s)
        self._say_hello(worker, message.number)

    def _on_welcome(self, worker: int, message: wire.Welcome) -> None:
        if message.generation != self._generations[worker]:
            return
        self._beat_s, self._spread_s = message.beat_s, message.spread_s
        if not self._is_joined[worker]:
            self._is_joined[worker] = True
            self._joining -= 1 if not self._was_joined[worker] else 0
            self._was_joined[worker] = True
            self._tries[worker], self._retry_at[worker] = 0, _NEVER
            self.report.joined += 1
            self.report.joined_at = self._now
            self._beat_at[worker] = self._now + self._beat_s
            heapq.heappush(self._timers, (self._beat_at[worker], worker, []))
        self._kill(worker, message.kill)
        self._ended += self._unacked[worker].difference(self._ended)

    def _on_reject(self, worker: int, message: wire.Reject) -> None:
        raise UnavailableError(f"the master rejects a simulated worker: {message.reason}")

    def _beat(self, worker: int) -> None:
        live, every = self._live[worker], 0
        for token in live:
            every ^= wire.checksum(token)
        self._beats[worker] += 1
        self._say(wire.Beat(self._beats[worker], self._offer, len(live), every))
        self._beat_at[worker] = self._now + self._beat_s
        heapq.heappush(self._timers, (self._beat_at[worker], worker, []))

    def _on_time(self, worker: int, tokens: list[wire.Token]) -> None:
        if tokens:
            live = self._live[worker]
            self._end_all(worker, [token for token in tokens if token in live])
        elif self._retry_at[worker] <= self._now:
            self._try_again(worker)
        elif self._is_joined[worker] and self._beat_at[worker] <= self._now:
            self._beat(worker)
        self._serve(worker)

    # ---- tasks

    def _on_assign(self, worker: int, message: wire.Assign) -> None:
        cluster = message.cluster
        tokens = [wire.Token(cluster, *one) for one in zip(message.procs, message.attempts, strict=True)]
        if cluster not in self._described[worker]:
            self._say(wire.Refuse(tokens, "undescribed"))
            return
        live, unacked = self._live[worker], self._unacked[worker]
        if not (live.isdisjoint(tokens) and unacked.isdisjoint(tokens)):
            tokens = [token for token in tokens if token not in live and token not in unacked]
        if self._plan.task_s > 0:
            live.update(tokens)
            self._waiting[worker] += tokens
            self._start(worker)
        else:
            self._fill(worker, len(tokens))
            self._ended += tokens
            unacked.update(tokens)

    def _fill(self, worker: int, count: int) -> int:
        """So many tasks start: how many of them are the first in their slot."""
        count = min(count, self._plan.slots - self._filled[worker])
        if count:
            self._filled[worker] += count
            self.report.filled += count
            self.report.filled_at = self._now
        return count

    def _start(self, worker: int) -> None:
        """What waits goes into free slots."""
        plan, waiting = self._plan, self._waiting[worker]
        tokens = [waiting.popleft() for _ in range(min(len(waiting), self._free[worker]))]
        if not tokens:
            return
        self._free[worker] -= len(tokens)
        self._say(wire.Started(tokens))
        first = self._fill(worker, len(tokens))
        spread = first if plan.spread else 0
        for token in tokens[:spread]:
            part = token.proc * _GOLDEN % 1.0
            heapq.heappush(self._timers, (self._now + plan.task_s * part, worker, [token]))
        if tokens[spread:]:
            heapq.heappush(self._timers, (self._now + plan.task_s, worker, tokens[spread:]))

    def _end_all(self, worker: int, tokens: list[wire.Token]) -> None:
        """These payloads are over."""
        self._live[worker].difference_update(tokens)
        self._unacked[worker].update(tokens)
        self._free[worker] += len(tokens)
        self._ended += tokens
        self._start(worker)

    def _on_ack(self, worker: int, message: wire.Ack) -> None:
        unacked = self._unacked[worker]
        before = len(unacked)
        unacked.difference_update(message.tokens)
        self.report.acked += before - len(unacked)
        self.report.acked_at = self._now

    def _kill(self, worker: int, tokens: list[wire.Token]) -> None:
        live, waiting = self._live[worker], self._waiting[worker]
        for token in live.intersection(tokens):
            live.discard(token)
            if token in waiting:
                waiting.remove(token)
            else:
                self._free[worker] += 1
        self._unacked[worker].difference_update(tokens)
        if tokens:
            self._say(wire.Killed(list(tokens)))
            self._start(worker)


def main() -> int:
    """Be the workers of the plan on standard input until that is closed."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            return 0
        line += part
    plan = msgspec.json.decode(line, type=Plan)
    context = zmq.Context()
    # A monitor is two sockets more; what was closed counts for a moment longer.
    context.set(zmq.MAX_SOCKETS, plan.workers * (12 if plan.comes_back else 1) + 16)

    def tell(report: Report) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()

    try:
        workers = Simulated(plan, context)
        try:
            workers.run(0, tell)
        finally:
            workers.close()
    except (PilotqError, zmq.ZMQError, OSError) as error:
        tell(Report(error=error.line() if isinstance(error, PilotqError) else str(error)))
        return 1
    finally:
        context.destroy(linger=0)
    return 0
