"""The scribe: a process that writes users' outputs and logs, so that no file system of theirs can stop the master.

Here is the master's end of it. The process reads notes from the store's outbox by itself; it is told that there are
some, and tells which are written. It may die at any moment and is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

import pilotq
from pilotq.core.records import Note
from pilotq.errors import InternalError
from pilotq.scribe.history import Plan
from pilotq.scribe.messages import Done, Hand, Retry, ToScribe, Wake, pack, split, unpack_from_scribe
from pilotq.store.written import begin

log = logging.getLogger(__name__)

RESTART_S = 0.1
RESTART_S_MAX = 10.0
#: How long a scribe may take to end when it is asked to.
END_S = 3.0
#: While it is at work it is woken at most this often, so that what it writes at once is much when much comes.
WAKE_S = 0.05
#: When it has written so many at once or fewer, not much comes.
_FEW = 4
#: Notes that may be in its hands; what is more waits on disk.
IN_HAND_MAX = 200
#: Bytes of notes that are handed over at once.
HAND_BYTES_MAX = 8 << 20

__all__ = ["Scribe"]


class Scribe:
    """Runs the process and speaks with it. Callbacks come from the event loop."""

    def __init__(
        self,
        queue: Path,
        spool: Path,
        *,
        on_done: Callable[[list[int]], None],
        on_failed: Callable[[int, int, str], None],
        address: str = "127.0.0.1",
        history: Plan | None = None,
    ) -> None:
        """`address`: host:port of the master, for the logs. `history`: which files of it are kept.

        `on_failed` gets the note, an errno, and a sentence; the note then waits for `retry`, or a restart.
        Both callbacks may name notes that are long gone.
        """
        self._arguments = [str(queue), str(spool), str(queue.with_name("scribe.db")), address]
        self._queue, self.history = queue, history or Plan()
        if history:
            self._arguments.append(msgspec.json.encode(history).decode())
        self._on_done, self._on_failed = on_done, on_failed
        self._process: asyncio.subprocess.Process | None = None
        self._serving: asyncio.Task[None] | None = None
        self._last = 0
        #: The process knows of all notes up to this one.
        self._known = 0
        #: Notes handed to it that it did not write yet.
        self._in_hand: set[int] = set()
        #: Loop time when it may be woken again, and what will do it then.
        self._wake_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    @property
    def pid(self) -> int:
        """0: it is just being started again."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        begin(self._queue, bool(self.history))
        await self._start_process()
        self._serving = asyncio.create_task(self._serve())

    def hand(self, notes: list[Note]) -> None:
        """Notes it may write before they are committed; `wake` follows in any case.

        While it has enough to do, or they are large, it is not given them: then it finds them in the outbox.
        """
        stdin = self._process.stdin if self._process is not None else None
        if stdin is None or len(self._in_hand) >= IN_HAND_MAX or stdin.transport.get_write_buffer_size():
            return
        data = pack(Hand(notes))
        if len(data) > HAND_BYTES_MAX:
            return
        self._in_hand.update(note.n for note in notes)
        if notes[0].n == self._known + 1 and notes[-1].n == self._known + len(notes):
            self._known += len(notes)
        self._write(data)

    def wake(self, n: int) -> None:
        """Notes up to this number are committed."""
        self._last = max(self._last, n)
        if self._timer is not None or self._last <= self._known:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._wake_at:
            self._timer = loop.call_at(self._wake_at, self._wake)
        else:
            self._wake()

    def _be_idle(self) -> None:
        """What comes next, or waits already, need not wait for company."""
        self._wake_at = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._wake()

    def _wake(self) -> None:
        self._timer = None
        self._wake_at = asyncio.get_running_loop().time() + WAKE_S
        stdin = self._process.stdin if self._process is not None else None
        if stdin is not None:
            self._known = max(self._known, self._last)
            self._send(Wake(self._last))

    def retry(self, ns: list[int]) -> None:
        """Try notes again that had failed."""
        self._send(Retry(ns))

    async def close(self) -> None:
        """End it; what it did not write, the next one will."""
        self._is_closing = True
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
        if self._serving is not None:
            done, _ = await asyncio.wait([self._serving], timeout=END_S)
            if not done and process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.wait([self._serving], timeout=END_S)

    def _send(self, message: ToScribe) -> None:
        self._write(pack(message))

    def _write(self, data: bytes) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(data)

    async def _start_process(self) -> None:
        path = os.pathsep.join(filter(None, [str(Path(pilotq.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pilotq.scribe",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        # It finds by itself what is in the outbox; a note that waits for a retry is tried again by a new one.
        self._known = self._last
        self._in_hand.clear()
        self._send(Wake(self._last))

    async def _serve(self) -> None:
        delay_s = RESTART_S
        while True:
            assert self._process is not None
            try:
                if await self._listen(self._process):
                    delay_s = RESTART_S
            except (InternalError, msgspec.MsgspecError, ValueError) as error:
                log.error("the scribe is not understood", extra={"facts": {"reason": str(error)}})
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            code = await self._process.wait()
            self._process = None
            if self._is_closing:
                return
            log.error("the scribe ended, starting another", extra={"facts": {"code": code, "in_s": delay_s}})
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RESTART_S_MAX)
            await self._start_process()

    async def _listen(self, process: asyncio.subprocess.Process) -> bool:
        """Until it ends; True when it said anything."""
        assert process.stdout is not None
        buffer, has_spoken = bytearray(), False
        while data := await process.stdout.read(1 << 16):
            has_spoken = True
            buffer += data
            ns: list[int] = []
            for message in map(unpack_from_scribe, split(buffer)):
                if isinstance(message, Done):
                    ns += message.ns
                else:
                    self._in_hand.discard(message.n)
                    self._on_failed(message.n, message.errno, message.reason)
            if ns:
                self._in_hand.difference_update(ns)
                if len(ns) <= _FEW:
                    self._be_idle()
                self._on_done(ns)
        return has_spoken
