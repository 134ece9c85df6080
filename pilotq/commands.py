"""What the master answers to the condor_* commands that neither submit nor only look at jobs."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pilotq.condor import actions, edits, knobs, others
from pilotq.condor.request import Reply, Request
from pilotq.condor.submit import Site
from pilotq.core.turn import NewCluster
from pilotq.errors import PilotqError, UserError
from pilotq.model import STDERR, STDOUT


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

    async def peek(self, cluster: int, proc: int, name: str, size: int) -> bytes | None:
        """The last bytes of a file of a running task; None when it does not run, or there is none."""

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
            "condor_config_val": self._config_val,
            "condor_drain": self._machines,
            "condor_vacate": self._machines,
            "condor_reschedule": self._reschedule,
            "condor_ping": self._ping,
            "condor_userprio": self._userprio,
            "condor_transfer_data": self._transfer_data,
            "condor_tail": self._tail,
        }

    async def answer(self, request: Request) -> Reply:
        answer = self._answers.get(request.tool)
        if answer is None:
            why = others.ABSENT.get(request.tool, "there is no such command")
            return Reply(err=f"{request.tool}: not a command of pilotq: {why}\n", exit=1)
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

    # ---- the others

    async def _config_val(self, request: Request) -> Reply:
        status, shims = self.office.status(), Path(__file__).parents[1] / "fakecondor"
        facts = {
            "host": self.office.site.host,
            "schedd": self.office.site.schedd_name,
            "port": status["master"]["endpoint"].rpartition(":")[2],
            "home": str(status["home"]),
            "state": str(status["state_dir"]),
            "bin": str(shims),
            "release": str(shims.parent),
            "user": request.user,
            "ids": f"{os.getuid()}.{os.getgid()}",
            "history": status["history"]["file"],
            "per_job_history": status["history"]["per_job_dir"],
        }
        return knobs.answer(request, facts)

    async def _machines(self, request: Request) -> Reply:
        """Drain, or empty, the workers of machines."""
        asked = others.machines(request)
        if isinstance(asked, Reply):
            return asked
        workers = self.office.head_facts(True)["workers"]
        here = asked.names or [self.office.site.host, self.office.site.host.partition(".")[0]]
        reply, found = Reply(), set[str]()
        for worker in workers:
            names = {worker["name"], worker["host"], worker["host"].partition(".")[0]}
            if not asked.everywhere and names.isdisjoint(here):
                continue
            found |= names
            if asked.tool == "condor_drain":
                await self.office.worker_verb(worker["name"], "drain")
            reply.out += others.told(asked, worker["host"], worker["name"])
            if asked.ends:
                jobs = await self._select([{"constraint": others.on_machine(worker["host"])}])
                reason = f"via {asked.tool} (by user {request.user})"
                if jobs:
                    await self.office.act(asked.ends, jobs, reason)
        missing = [name for name in asked.names if name not in found]
        for name in missing:
            reply.err += f"ERROR: Can't find address for startd {name}\n"
        if missing or not found:
            reply.err = reply.err or "ERROR: Can't find address of local startd\n"
            reply.exit = 1
        return reply

    async def _reschedule(self, request: Request) -> Reply:
        return others.reschedule(request)

    async def _ping(self, request: Request) -> Reply:
        return others.ping(request, self.office.site.schedd_name)

    async def _userprio(self, request: Request) -> Reply:
        in_use: Counter[str] = Counter()
        for cluster in self.office.clusters([])[0]:
            in_use[cluster["owner"]] += cluster["running"]
        moment = time.strftime("%m/%d %H:%M")
        return others.userprio(request, in_use, self.office.site.schedd_name, moment)

    async def _transfer_data(self, request: Request) -> Reply:
        """Outputs are where the submit file wants them when a job is done: there is nothing left to be fetched."""
        action = actions.parse(request)
        if isinstance(action, Reply):
            return action
        found = await self._select(action.selections)
        known = await self.office.act("find", found, "") if found else []
        if not any(result == "ok" for _, _, result in known):
            return Reply(out="Fetching data files...\n", err="\nERROR: Failed to spool job files.\n", exit=1)
        return Reply(out="Fetching data files...\n")

    async def _tail(self, request: Request) -> Reply:
        """The last bytes of what a running job wrote, as its worker has them."""
        asked = others.tail(request)
        if isinstance(asked, Reply):
            return asked
        reply = Reply()
        for name in asked.names:
            data = await self.office.peek(asked.cluster, asked.proc, name, asked.size)
            if data is None:
                what = {STDOUT: "standard output", STDERR: "standard error"}.get(name, name)
                text = f"there is no {what} of job {asked.cluster}.{asked.proc} on a worker; it must be running"
                return Reply(err=f"condor_tail: {text}\n", exit=1)
            reply.out += data.decode("utf-8", "surrogateescape")
        return reply
