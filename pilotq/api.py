"""The master's door for commands: HTTP on a Unix socket.

`POST /condor` speaks the fields of `pilotq.condor.request` with the shims, `PUT /blob` takes a file, everything under
`/v1` is JSON for `pilotq`. Only the account that runs the master (and root) may enter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

from pilotq.condor import actions
from pilotq.condor.request import Reply, Request, raw, read_request, write_reply
from pilotq.condor.submit import Plan, Site, plan_submit, submitted
from pilotq.core.turn import NewCluster
from pilotq.errors import PilotqError, UnavailableError, UserError
from pilotq.model import Submission
from pilotq.wire import PAYLOAD_BYTES_MAX

log = logging.getLogger(__name__)

#: Tools the query process answers; their requests are passed on unopened.
QUERIES = frozenset({"condor_q", "condor_history", "condor_status", "condor_version"})
ACTIONS = frozenset({"condor_rm", "condor_hold", "condor_release"})
_VERBS = {"cancel": "cancel", "hold": "hold", "release": "release"}
REQUEST_BYTES_MAX = 64 << 20
#: A description and a delta must leave room in a payload.
PACKED_BYTES_MAX = PAYLOAD_BYTES_MAX // 2
#: Submissions with more deltas than this are packed outside the loop.
SMALL = 200


class Office(Protocol):
    """What the master does for the API."""

    site: Site

    async def submit(self, key: str, clusters: list[NewCluster]) -> list[int] | str:
        """Ids, durable; or why not."""

    async def act(self, verb: str, selection: list[tuple[int, int]], reason: str, subcode: int = 0) -> list[Any]: ...
    async def worker_verb(self, worker: str, verb: str) -> bool: ...
    def drain(self, on: bool) -> None: ...
    def is_empty(self) -> bool: ...
    def status(self) -> dict[str, Any]: ...
    def clusters(self, ids: list[int]) -> tuple[list[dict[str, Any]], list[int]]:
        """Of live clusters (all, without ids); ids of others."""

    def head_facts(self, whole: bool) -> dict[str, Any]:
        """What only the master knows and the query process needs; `whole`: with all workers."""

    def query(self, message: dict[str, Any]) -> AsyncIterator[bytes]: ...
    async def keep_file(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]: ...
    def refusal(self) -> str:
        """Why nothing new is accepted at the moment; ""."""

    def is_known(self, owner: str, key: str) -> bool:
        """Was this submission accepted before?"""


def admit(submission: Submission, now: float) -> NewCluster:
    """Pack a cluster for the queue.

    Raises: UserError when it is too large to be sent to a worker.
    """
    body, description = submission.body, submission.description
    digests = {file.digest for file in description.files}
    has_log = bool(body.log)
    for packed in submission.deltas:
        if b"files" in packed or b"log" in packed or b"needs" in packed:
            delta = msgspec.msgpack.decode(packed)
            digests.update(file[1] for file in delta.get("files", ()))
            has_log = has_log or bool(delta.get("log"))
            if "needs" in delta:
                raise UserError("request_* differ between the tasks of one cluster", "submit them as separate clusters")
    packed_description = msgspec.msgpack.encode(description)
    largest = max([len(packed_description), *map(len, submission.deltas)])
    if largest > PACKED_BYTES_MAX:
        raise UserError(
            f"arguments and environment of a task take {largest} bytes, the limit is {PACKED_BYTES_MAX}",
            "put large values into an input file",
        )
    body = msgspec.structs.replace(body, submitted_at=now)
    return NewCluster(
        owner=body.owner,
        count=submission.count,
        needs=description.needs,
        priority=body.priority,
        has_log=has_log,
        body=msgspec.msgpack.encode(body),
        description=packed_description,
        deltas=submission.deltas,
        digests=sorted(digests),
        policies=body.policies,
        hold_reason=body.hold_reason,
        submitted_at=now,
    )


class Api:
    """The handlers."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self._runner: web.AppRunner | None = None

    async def start(self, path: Path) -> None:
        app = web.Application(client_max_size=REQUEST_BYTES_MAX, middlewares=[_lines])
        app.add_routes(
            [
                web.post("/condor", self.on_condor),
                web.put("/blob", self.on_blob),
                web.get("/v1/status", self.on_status),
                web.get("/v1/clusters", self.on_clusters),
                web.get("/v1/tasks", self.on_tasks),
                web.post("/v1/act", self.on_act),
                web.post("/v1/drain", self.on_drain),
                web.post("/v1/worker", self.on_worker),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 (a local directory)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A path may be longer than a socket address: bind relative to its directory.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            before = os.umask(0o177)
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.umask(before)
        finally:
            os.close(folder)
        listener.listen(1024)
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # ---- shims

    async def on_condor(self, http: web.Request) -> web.StreamResponse:
        data = await http.read()
        request = read_request(data)
        if request.tool in QUERIES:
            return await self._relay(http, request.tool, data)
        if request.tool == "condor_submit":
            reply = await self._submit(request)
        elif request.tool in ACTIONS:
            reply = await self._act(request)
        else:
            reply = Reply(err=f"{request.tool}: pilotq does not have this command yet\n", exit=1)
        return web.Response(body=write_reply(reply))

    async def _submit(self, request: Request) -> Reply:
        refusal = self.office.refusal()
        # Who did not get the answer that it was accepted must not be told that it was not.
        if refusal and not self.office.is_known(request.user, request.key):
            return Reply(err=f"\nERROR: {refusal}\n", exit=1)
        now = time.time()
        planned = await self._plan(request, now)
        if isinstance(planned, Reply):
            return planned
        plan, clusters = planned
        if not clusters:
            return submitted(plan, [])
        answer = await self.office.submit(request.key, clusters)
        if isinstance(answer, str):
            return Reply(err=f"\nERROR: {answer}\n", exit=1)
        return submitted(plan, answer)

    async def _plan(self, request: Request, now: float) -> Reply | tuple[Plan, list[NewCluster]]:
        def work() -> Reply | tuple[Plan, list[NewCluster]]:
            try:
                plan = plan_submit(request, now, self.office.site)
                if isinstance(plan, Reply):
                    return plan
                return plan, [admit(submission, now) for submission in plan.submissions]
            except UserError as error:
                return Reply(err=f"\nERROR: {error.line()}\n", exit=1)

        size = sum(len(answer.data) for answer in request.answers.values())
        if size > 20_000 or len(request.answers) > SMALL:
            return await asyncio.to_thread(work)
        return work()

    async def _act(self, request: Request) -> Reply:
        action = actions.parse(request)
        if isinstance(action, Reply):
            return action
        was_empty = self.office.is_empty()
        selection: list[tuple[int, int]] = []
        for wanted in action.selections:
            if isinstance(wanted, tuple):
                selection.append(wanted)
                continue
            try:
                found = await self.ask({"select": wanted, "facts": self.office.head_facts(False)})
            except PilotqError as error:
                return Reply(err=f"{request.tool}: {error.line()}\n", exit=1)
            selection += [(cluster, proc) for cluster, proc in found]
        results = await self.office.act(action.verb, selection, action.reason, action.subcode) if selection else []
        return actions.acted(action, [(cluster, proc, result) for cluster, proc, result in results], was_empty)

    async def ask(self, question: dict[str, Any]) -> Any:
        """A value from the query process.

        Raises: UserError with what it said instead of one.
        """
        answer = msgspec.msgpack.decode(b"".join([frame async for frame in self.office.query(question)]))
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(answer["error"], exit_code=answer.get("exit", 1))
        return answer

    async def _relay(self, http: web.Request, tool: str, data: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        frames = self.office.query({"request": data, "facts": self.office.head_facts(tool == "condor_status")})
        started = False
        async for frame in frames:
            if not started:
                await response.prepare(http)
                started = True
            await response.write(frame)
        if not started:
            raise UnavailableError("the query process gave no answer", "try again")
        await response.write_eof()
        return response

    async def on_blob(self, http: web.Request) -> web.Response:
        refusal = self.office.refusal()
        if refusal:
            raise UnavailableError(refusal)
        digest, size = await self.office.keep_file(http.content.iter_chunked(1 << 18))
        return web.Response(text=f"{digest} {size}\n")

    # ---- people

    async def on_status(self, http: web.Request) -> web.Response:
        return web.json_response(self.office.status())

    async def on_clusters(self, http: web.Request) -> web.Response:
        ids = [int(word) for word in http.query.get("ids", "").split(",") if word.isdigit()]
        live, missing = self.office.clusters(ids)
        return web.json_response(live + (await self.ask({"clusters": missing}) if missing else []))

    async def on_tasks(self, http: web.Request) -> web.Response:
        return web.json_response(await self.ask({"tasks": dict(http.query)}))

    async def on_act(self, http: web.Request) -> web.Response:
        body = await http.json()
        wanted = body["selection"]
        selection = [(int(item["cluster"]), int(item.get("proc", -1))) for item in wanted if not item.get("all")]
        results: list[Any] = []
        if wanted:
            reason = str(body.get("reason", "")) or f"via pilotq {body['verb']}"
            results = await self.office.act(_VERBS[body["verb"]], selection, reason)
        return web.json_response({"results": [[f"{c}.{p}", result] for c, p, result in results]})

    async def on_drain(self, http: web.Request) -> web.Response:
        self.office.drain(bool((await http.json()).get("on", True)))
        return web.json_response({"ok": True})

    async def on_worker(self, http: web.Request) -> web.Response:
        body = await http.json()
        known = await self.office.worker_verb(str(body["worker"]), str(body["verb"]))
        if not known:
            return web.json_response({"error": f"no worker {body['worker']}"}, status=404)
        return web.json_response({"ok": True})


@web.middleware
async def _lines(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Let in whom we know; turn every error into one line."""
    transport_socket = request.transport.get_extra_info("socket") if request.transport else None
    if transport_socket is not None:
        _, uid, _ = struct.unpack("3i", transport_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            return web.Response(status=403, text="this pool belongs to another account; ask its owner\n")
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except UnavailableError as error:
        return web.Response(status=503, body=raw(error.line() + "\n"))
    except PilotqError as error:
        return web.Response(status=400, body=raw(error.line() + "\n"))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if request.path.startswith("/v1"):
            return web.Response(status=400, text=f"not a request of the API: {error!r}\n")
        log.exception("a request failed")
        return web.Response(status=500, text="internal error of pilotq, see the master's log\n")
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("a request failed")
        return web.Response(status=500, text="internal error of pilotq, see the master's log\n")
