"""What the master answers to the condor_* commands that neither submit nor only look at jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import msgspec

from pilotq.condor import actions, edits
from pilotq.condor.request import Reply, Request
from pilotq.condor.submit import Site
from pilotq.core.turn import NewCluster
from pilotq.errors import PilotqError, UserError


class Office(Protocol):
    """What the master does for the API."""

    site: Site

    async def submit(self, key: str, clusters: list[NewCluster]) -> list[int] | str:
        """Ids, durable; or why not."""

    async def act(self, verb: str, selection: list[tuple[int, int]], reason: str, **more: Any) -> list[Any]:
        """`more`: fields of `turn.Act`."""

    async def worker_verb(self, worker: str, verb: str) -> bool: ...
    def drain(self, on: bool) -> None: ...
    def is_empty(self) -> bool: ...
    def status(self) -> dict[str, Any]: ...
    def clusters(self, ids: list[int]) -> tuple[list[dict[str, Any]], list[int]]:
        """Of live clusters (all, without ids); ids of others."""

    async def over(self, ids: list[int], wait_s: float) -> list[dict[str, Any]]:
        """Of clusters that are over now, or within this time; all live ones, without ids."""

    def head_facts(self, whole: bool) -> dict[str, Any]:
        """What only the master knows and the query process needs; `whole`: with all workers."""

    def query(self, message: dict[str, Any]) -> AsyncIterator[bytes]: ...
    async def keep_file(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]: ...
    async def keep_small_files(self, files: list[bytes]) -> list[tuple[str, int]]: ...
    def refusal(self) -> str:
        """Why nothing new is accepted at the moment; ""."""

    def is_known(self, owner: str, key: str) -> bool:
        """Was this submission accepted before?"""


class Commands:
    """Each answers a request that its sender may make."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self._answers: dict[str, Callable[[Request], Awaitable[Reply]]] = {
            **dict.fromkeys(actions.TOOLS, self._act),
            **dict.fromkeys(edits.TOOLS, self._edit),
        }

    async def answer(self, request: Request) -> Reply:
        answer = self._answers.get(request.tool)
        if answer is None:
            return Reply(err=f"{request.tool}: pilotq does not have this command\n", exit=1)
        try:
            return await answer(request)
        except PilotqError as error:
            return Reply(err=f"{request.tool}: {error.line()}\n", exit=1)

    async def ask(self, question: dict[str, Any]) -> Any:
        """A value from the query process.

        Raises: UserError with what it said instead of one.
        """
        answer = msgspec.msgpack.decode(b"".join([frame async for frame in self.office.query(question)]))
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(answer["error"], exit_code=answer.get("exit", 1))
        return answer

    async def _select(self, selections: list[actions.Selection]) -> list[tuple[int, int]]:
        """Tasks, and clusters of which all are meant (proc -1)."""
        found: list[tuple[int, int]] = []
        for wanted in selections:
            if isinstance(wanted, tuple):
                found.append(wanted)
            else:
                matching = await self.ask({"select": wanted, "facts": self.office.head_facts(False)})
                found += [(cluster, proc) for cluster, proc in matching]
        return found

    async def _act(self, request: Request) -> Reply:
        action = actions.parse(request)
        if isinstance(action, Reply):
            return action
        was_empty = self.office.is_empty()
        found = await self._select(action.selections)
        verb, subcode = action.words.verb, action.subcode
        results = await self.office.act(verb, found, action.reason, subcode=subcode) if found else []
        return actions.acted(action, results, was_empty)

    async def _edit(self, request: Request) -> Reply:
        editing = edits.parse(request)
        if isinstance(editing, Reply):
            return editing
        found = await self._select(editing.selections)
        changes = {} if editing.is_trial else editing.changes
        results: list[actions.Result] = []
        # To condor_prio each job is one of its own.
        for some in [found] if request.tool == "condor_qedit" else [[one] for one in found]:
            if some:
                results += await self.office.act("edit", some, "", edits=changes, adjust=editing.adjust)
        return edits.edited(editing, results)
