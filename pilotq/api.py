"""The master's door for commands: HTTP on a Unix socket.

`POST /condor` speaks the fields of `pilotq.condor.request` with the shims, `POST /condors` with runners of DAGs,
`PUT /blob` takes a file, `PUT /blobs` many small ones, everything under `/v1` is JSON for `pilotq`. Only the account
that runs the master (and root) may enter.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import os
import pwd
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from pilotq.access import REQUESTS, Role, may_ask
from pilotq.commands import Commands, Office
from pilotq.condor.options import needs_workers
from pilotq.condor.request import Reply, Request, raw, read_fields, read_request, write_fields, write_reply
from pilotq.condor.submit import Plan, plan_submit, submitted
from pilotq.core.turn import NewCluster
from pilotq.deltas import Block
from pilotq.errors import PilotqError, UnavailableError, UserError
from pilotq.http import Answer, HttpError, HttpServer, listen
from pilotq.http import Request as HttpRequest
from pilotq.model import FileRef, Resources, Submission
from pilotq.wire import PAYLOAD_BYTES_MAX

log = logging.getLogger(__name__)

#: Tools the query process answers; their requests are passed on unopened.
QUERIES = frozenset({"condor_q", "condor_history", "condor_status", "condor_version", "condor_who"})
#: Of POST /v1/act.
VERBS = frozenset({"cancel", "hold", "release", "suspend", "continue", "vacate"})
REQUEST_BYTES_MAX = 64 << 20
#: A description and a delta must leave room in a payload.
PACKED_BYTES_MAX = PAYLOAD_BYTES_MAX // 2
#: Longest wait for the end of clusters; who wants to wait on asks again.
WAIT_S_MAX = 60.0
#: Submissions with more deltas than this are packed outside the loop.
SMALL = 200
#: Plans remembered for a second, and the largest request of one.
PLANS_MAX, PLAN_BYTES_MAX = 100, 16 << 10


class _Judged(msgspec.Struct):
    """What of a delta counts when it is admitted."""

    files: list[FileRef] = []
    log: str = ""
    nodes_log: str = ""
    needs: Resources | None = None


#: A reply at once, or what is to be admitted.
_Planned = Reply | tuple[Plan, list[NewCluster]]

_judged = msgspec.msgpack.Decoder(_Judged).decode


def admit(submission: Submission, now: float) -> NewCluster:
    """Pack a cluster for the queue.

    Raises: UserError when it is too large to be sent to a worker.
    """
    body, description = submission.body, submission.description
    digests = {file.digest for file in description.files}
    has_log = bool(body.log or body.nodes_log)
    packed_description = msgspec.msgpack.encode(description)
    largest = len(packed_description)
    for packed in submission.deltas:
        block = Block(packed)
        longest = 0
        for sample in block.samples():
            longest = max(longest, len(sample))
            if b"files" in sample or b"log" in sample or b"needs" in sample:
                delta = _judged(sample)
                digests.update([file.digest for file in delta.files])
                has_log = has_log or bool(delta.log or delta.nodes_log)
                if delta.needs is not None:
                    raise UserError(
                        "request_* differ between the tasks of one cluster", "submit them as separate clusters"
                    )
        if longest > PACKED_BYTES_MAX:
            longest = max(map(len, block))
        largest = max(largest, longest)
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


class _Plans:
    """Plans of this second: who submits the same again and again waits for the submit language only once.

    A request says all that a plan is made of, but for the time in seconds; its key only matters to random macros.
    """

    def __init__(self) -> None:
        self._second = 0
        self._known: dict[bytes, Plan] = {}

    def find(self, request: Request, data: bytes, now: float) -> Plan | None:
        if int(now) != self._second:
            self._second = int(now)
            self._known = {}
        return self._known.get(_without_key(request, data))

    def keep(self, request: Request, data: bytes, now: float, plan: Plan) -> None:
        is_small = len(data) <= PLAN_BYTES_MAX and not any(one.deltas for one in plan.submissions)
        if is_small and not plan.is_random and int(now) == self._second and len(self._known) < PLANS_MAX:
            self._known[_without_key(request, data)] = plan


def _without_key(request: Request, data: bytes) -> bytes:
    return b"%d " % request.uid + data.replace(write_fields([b"key", raw(request.key)]), b"", 1)


def role_of_uid(uid: int) -> str:
    """What an account of this host is here: root and whoever runs the master may do everything, others nothing."""
    return Role.ADMIN if uid in (0, os.geteuid()) else ""


@functools.cache
def account_name(uid: int) -> str:
    """Of an account, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Api:
    """The handlers; `access.REQUESTS` says who may ask for what."""

    def __init__(self, office: Office, role_of: Callable[[int], str] = role_of_uid) -> None:
        self.office = office
        self._plans = _Plans()
        self._commands = Commands(office)
        self._server = HttpServer(self.answer, role_of)
        self._handlers: dict[tuple[str, str], Callable[[HttpRequest], Awaitable[Answer]]] = {
            ("POST", "/condor"): self.on_condor,
            ("POST", "/condors"): self.on_condors,
            ("PUT", "/blob"): self.on_blob,
            ("PUT", "/blobs"): self.on_blobs,
            ("GET", "/v1/status"): self.on_status,
            ("GET", "/v1/clusters"): self.on_clusters,
            ("GET", "/v1/tasks"): self.on_tasks,
            ("POST", "/v1/act"): self.on_act,
            ("POST", "/v1/drain"): self.on_drain,
            ("POST", "/v1/worker"): self.on_worker,
        }

    async def start(self, path: Path) -> None:
        await self._server.start(listen(path))

    async def serve(self, peer: socket.socket, role: str, user: str) -> None:
        """One connection of somebody whose key said who he is."""
        await self._server.serve(peer, role, user)

    async def close(self) -> None:
        await self._server.close()

    async def answer(self, http: HttpRequest) -> Answer:
        """One request; every error becomes one line.

        Raises: what ends the connection.
        """
        handler = self._handlers.get((http.method, http.path))
        if handler is None:
            known = any(path == http.path for _, path in self._handlers)
            return _line(405, "not a method for this") if known else _line(404, "there is no such thing here")
        if http.path != "/condor" and not may_ask(http.role, f"{http.method} {http.path}"):
            return _line(403, f"{http.method} {http.path} is not for a {http.role}")
        try:
            return await handler(http)
        except (HttpError, asyncio.IncompleteReadError, ConnectionResetError, TimeoutError):
            raise
        except UnavailableError as error:
            return _line(503, error.line())
        except PilotqError as error:
            return _line(400, error.line())
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if http.path.startswith("/v1"):
                return _line(400, f"not a request of the API: {error!r}")
            log.exception("a request failed")
        except Exception:
            log.exception("a request failed")
        return _line(500, "internal error of pilotq, see the master's log")

    # ---- shims

    async def on_condor(self, http: HttpRequest) -> Answer:
        data = await http.read(REQUEST_BYTES_MAX)
        # Who he is says the socket, not he.
        request = dataclasses.replace(read_request(data), user=http.user or account_name(http.uid), uid=http.uid)
        if request.tool in REQUESTS and not may_ask(http.role, request.tool):
            return _line(403, f"{request.tool} is not for a {http.role}")
        if request.tool in QUERIES:
            return await self._relay(request, data)
        if request.tool == "condor_submit":
            reply = await self._submit(request, data)
        else:
            reply = await self._commands.answer(request)
        return Answer(write_reply(reply))

    async def _submit(self, request: Request, data: bytes) -> Reply:
        refusal = self.office.refusal()
        # Who did not get the answer that it was accepted must not be told that it was not.
        if refusal and not self.office.is_known(request.user, request.key):
            return Reply(err=f"\nERROR: {refusal}\n", exit=1)
        now = time.time()
        size = sum(len(answer.data) for answer in request.answers.values())
        if size > 20_000 or len(request.answers) > SMALL:
            return await self._take_in(request, await asyncio.to_thread(self._plan, request, data, now))
        return await self._take_in(request, self._plan(request, data, now))

    async def on_condors(self, http: HttpRequest) -> Answer:
        """Many requests of condor_submit at once, and their replies: fields they share, then the other ones of each.

        While nothing is taken in the answer is 503, and nobody is told a refusal: all of it may be sent again.
        """
        shared, *others = read_fields(await http.read(REQUEST_BYTES_MAX))
        owner = account_name(http.uid)
        requests = [
            dataclasses.replace(read_request(shared + other), tool="condor_submit", user=owner, uid=http.uid)
            for other in others
        ]
        refusal = self.office.refusal()
        if refusal and not all(self.office.is_known(owner, request.key) for request in requests):
            raise UnavailableError(refusal)
        now = time.time()

        def plan() -> list[_Planned]:
            return [self._plan(request, other, now) for request, other in zip(requests, others, strict=True)]

        planned = await asyncio.to_thread(plan)
        replies = await asyncio.gather(
            *[self._take_in(request, one, waits=True) for request, one in zip(requests, planned, strict=True)]
        )
        return Answer(write_fields(map(write_reply, replies)))

    async def _take_in(self, request: Request, planned: _Planned, waits: bool = False) -> Reply:
        """Raises: UnavailableError with a refusal, if `waits`."""
        if isinstance(planned, Reply):
            return planned
        plan, clusters = planned
        if not clusters:
            return submitted(plan, [])
        answer = await self.office.submit(request.key, clusters)
        if isinstance(answer, str):
            if waits:
                raise UnavailableError(answer)
            return Reply(err=f"\nERROR: {answer}\n", exit=1)
        return submitted(plan, answer)

    def _plan(self, request: Request, data: bytes, now: float) -> _Planned:
        try:
            plan = self._plans.find(request, data, now) or plan_submit(request, now, self.office.site)
            if isinstance(plan, Reply):
                return plan
            self._plans.keep(request, data, now, plan)
            return plan, [admit(submission, now) for submission in plan.submissions]
        except UserError as error:
            return Reply(err=f"\nERROR: {error.line()}\n", exit=1)

    async def _relay(self, request: Request, data: bytes) -> Answer:
        pieces = self.office.query({"request": data, "facts": self.office.head_facts(needs_workers(request))})
        first = await anext(pieces, None)
        if first is None:
            raise UnavailableError("the query process gave no answer", "try again")

        async def whole() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        return Answer(whole())

    async def on_blob(self, http: HttpRequest) -> Answer:
        refusal = self.office.refusal()
        if refusal:
            raise UnavailableError(refusal)
        digest, size = await self.office.keep_file(http.pieces())
        return Answer(f"{digest} {size}\n".encode(), kind="text/plain")

    async def on_blobs(self, http: HttpRequest) -> Answer:
        refusal = self.office.refusal()
        if refusal:
            raise UnavailableError(refusal)
        kept = await self.office.keep_small_files(read_fields(await http.read(REQUEST_BYTES_MAX)))
        return Answer(b"".join(b"%b %d\n" % (digest.encode(), size) for digest, size in kept), kind="text/plain")

    # ---- people

    async def on_status(self, http: HttpRequest) -> Answer:
        return _json(self.office.status())

    async def on_clusters(self, http: HttpRequest) -> Answer:
        """Clusters by id, or all live ones; with `wait_s` when all of them are over, or after that time."""
        ids = [int(word) for word in http.query.get("ids", "").split(",") if word.isdigit()]
        wait_s = min(float(http.query.get("wait_s", "0")), WAIT_S_MAX)
        found = await self.office.over(ids, wait_s) if wait_s > 0 else []
        known = {view["cluster"] for view in found}
        rest = [number for number in ids if number not in known]
        if rest or not ids:
            live, missing = self.office.clusters(rest)
            found += [view for view in live if view["cluster"] not in known]
            found += await self._commands.ask({"clusters": missing}) if missing else []
        return _json(found)

    async def on_tasks(self, http: HttpRequest) -> Answer:
        return _json(await self._commands.ask({"tasks": dict(http.query)}))

    async def on_act(self, http: HttpRequest) -> Answer:
        body = await _body(http)
        wanted, verb = body["selection"], body["verb"]
        if verb not in VERBS:
            raise UserError(f"no such verb: {verb}", f"one of {', '.join(sorted(VERBS))}")
        selection = [(int(item["cluster"]), int(item.get("proc", -1))) for item in wanted if not item.get("all")]
        results: list[Any] = []
        if wanted:
            reason = str(body.get("reason", "")) or f"via pilotq {verb}"
            results = await self.office.act(verb, selection, reason)
        return _json({"results": [[f"{c}.{p}", result] for c, p, result in results]})

    async def on_drain(self, http: HttpRequest) -> Answer:
        self.office.drain(bool((await _body(http)).get("on", True)))
        return _json({"ok": True})

    async def on_worker(self, http: HttpRequest) -> Answer:
        body = await _body(http)
        known = await self.office.worker_verb(str(body["worker"]), str(body["verb"]))
        if not known:
            return _json({"error": f"no worker {body['worker']}"}, 404)
        return _json({"ok": True})


def _line(status: int, text: str) -> Answer:
    return Answer(raw(text + "\n"), status, "text/plain; charset=utf-8")


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, "application/json; charset=utf-8")


async def _body(http: HttpRequest) -> Any:
    return json.loads(await http.read(REQUEST_BYTES_MAX))
