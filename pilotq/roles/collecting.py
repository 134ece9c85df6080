"""The master pulls the larger outputs of ended attempts into the spool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from pilotq import wire
from pilotq.core.turn import Route
from pilotq.model import OutputFile
from pilotq.mover import Pulling, Spool


class Collector:
    """All attempts whose outputs are on their way.

    `on_done(token, reason, retry)`: the reason is empty when all is there; `retry` says that it may work later.
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[[Route, wire.Message], None],
        on_done: Callable[[wire.Token, str, bool], None],
    ) -> None:
        self.spool = Spool(folder)
        self._send, self._on_done = send, on_done
        self._pulling: dict[wire.Token, tuple[Route, Pulling]] = {}
        #: Whole, being synced or told to be: a result that is told again must not begin anew.
        self._settled: set[wire.Token] = set()

    def begin(self, route: Route, token: wire.Token, outputs: list[OutputFile]) -> None:
        """Pull; told again with another route, go on that way."""
        if token in self._settled:
            return
        known = self._pulling.get(token)
        try:
            pulling = known[1] if known else Pulling(self.spool, token, outputs)
        except OSError as error:
            self._on_done(token, f"spool: {error.strerror}", True)
            return
        if known and known[0] != route:
            pulling.restart()
        self._pulling[token] = (route, pulling)
        if pulling.is_whole:
            self._finish(token, pulling)
            return
        self._ask(route, pulling)

    def on_data(self, route: Route, data: wire.Data) -> None:
        known = self._pulling.get(data.token)
        if known is None or known[0] != route:
            return
        pulling = known[1]
        try:
            result = pulling.on_data(data)
        except OSError as error:
            del self._pulling[data.token]
            self._on_done(data.token, f"spool: {error.strerror}", True)
            return
        if result is None:
            self._ask(route, pulling)
        elif result == "":
            self._finish(data.token, pulling)
        else:
            del self._pulling[data.token]
            self._on_done(data.token, result, False)

    def discard(self, tokens: list[wire.Token]) -> None:
        if self._pulling or self._settled:
            for token in tokens:
                self._pulling.pop(token, None)
                self._settled.discard(token)
        if self.spool.has_any:
            for token in tokens:
                self.spool.discard(token)

    def _ask(self, route: Route, pulling: Pulling) -> None:
        for message in pulling.requests():
            self._send(route, message)

    def _finish(self, token: wire.Token, pulling: Pulling) -> None:
        del self._pulling[token]
        self._settled.add(token)
        future = asyncio.get_running_loop().run_in_executor(None, pulling.sync)

        def done(result: asyncio.Future[None]) -> None:
            error = result.exception()
            if error:
                self._settled.discard(token)
            self._on_done(token, f"spool: {error}" if error else "", bool(error))

        future.add_done_callback(done)
