"""What the query process answers to each kind of request, as the bytes that are relayed unopened."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import groupby
from typing import Any

import msgspec

from pilotq.condor import options, others
from pilotq.condor.options import Query
from pilotq.condor.poolads import HeadFacts
from pilotq.condor.request import Reply, Request, raw, read_request, write_fields, write_reply
from pilotq.errors import PilotqError, UserError
from pilotq.model import STATE_NAMES, Outcome, State
from pilotq.query.adlists import AdList
from pilotq.query.questions import Question
from pilotq.query.reader import Reader
from pilotq.query.rows import Run
from pilotq.store.written import read_mark

log = logging.getLogger(__name__)
#: Text is passed on in pieces of about this size.
_PIECE_CHARS = 64 << 10
_TASKS_MAX = 10_000
TOOLS = frozenset({"condor_q", "condor_history", "condor_status", "condor_version", "condor_who"})

#: Opens a snapshot.
Open = Callable[[], Reader]


class TasksWanted(msgspec.Struct, frozen=True):
    """Of GET /v1/tasks."""

    cluster: int | None = None
    #: A name of `STATE_NAMES`, or "failed": done with another outcome than ok; "": any.
    state: str = ""
    limit: int = 100


class SelectWanted(msgspec.Struct, frozen=True):
    """Which tasks in the queue an action is for."""

    constraint: str = ""
    #: "": anybody's.
    owner: str = ""


class Ask(msgspec.Struct, frozen=True):
    """The one message of a connection; exactly one of request, tasks, select, clusters is there."""

    #: Fields of a shim's request; fields are the answer. All others are answered with one msgpack value, which is a
    #: map with `error` and `exit` when it cannot be given.
    request: bytes | None = None
    tasks: TasksWanted | None = None
    select: SelectWanted | None = None
    #: Ids, of clusters in the queue or not.
    clusters: list[int] | None = None
    facts: HeadFacts = HeadFacts()


_decode_ask = msgspec.msgpack.Decoder(Ask, strict=False)


def answer(message: bytes, open_reader: Open, mark: str) -> Generator[bytes, None, None]:
    """The bytes of the answer, piece by piece; never raises on what was asked.

    `mark`: where it is said how far the history is in files, if it is.
    """
    try:
        ask = _decode_ask.decode(message)
    except msgspec.MsgspecError as error:
        yield msgspec.msgpack.encode({"error": f"a broken question to the query process: {error}", "exit": 2})
        return
    if ask.request is not None:
        yield from _shim(ask.request, ask.facts, open_reader, mark)
        return
    try:
        reader = open_reader()
        try:
            yield msgspec.msgpack.encode(_value(ask, reader))
        finally:
            reader.close()
    except PilotqError as error:
        yield msgspec.msgpack.encode({"error": error.line(), "exit": error.exit_code})
    except Exception:
        log.exception("a question failed")
        yield msgspec.msgpack.encode({"error": "a bug in pilotq's query process, see its log", "exit": 70})


def _value(ask: Ask, reader: Reader) -> Any:
    if ask.select is not None:
        return selected(ask.select, ask.facts, reader)
    if ask.clusters is not None:
        return clusters(ask.clusters, reader)
    return tasks(ask.tasks or TasksWanted(), reader)


# ---- shims -----------------------------------------------------------------------------------------------------


def _shim(fields: bytes, head: HeadFacts, reader: Open, mark: str) -> Iterator[bytes]:
    """Pieces of fields: `out` pairs as they come, then `err` and `exit`."""
    tool = "pilotq"
    try:
        request = read_request(fields)
        tool = request.tool
        asked = _parse(request)
        if isinstance(asked, Reply):
            yield write_reply(asked)
            return
        heading = others.WHO_HEADING if tool == "condor_who" else ""
        for text in _pieces(asked, request, head, reader, mark):
            if heading:
                yield write_fields([b"out", raw(heading)])
                heading = ""
            yield write_fields([b"out", raw(text)])
        yield write_reply(Reply())
    except PilotqError as error:
        text = error.line()
        # A message that is HTCondor's own has its own beginning.
        yield write_reply(Reply(err=f"{text}\n" if text.startswith("Error: ") else f"{tool}: {text}\n", exit=1))
    except Exception:
        log.exception("a question failed", extra={"tool": tool})
        yield write_reply(Reply(err=f"{tool}: a bug in pilotq's query process, see its log\n", exit=1))


def _parse(request: Request) -> Query | Reply:
    if request.tool == "condor_version":
        return options.version()
    if request.tool not in TOOLS:
        raise UserError(f"the query process does not answer {request.tool or 'a request without a tool'}")
    if request.tool == "condor_who":
        return options.parse(others.who(request, os.uname().nodename))
    return options.parse(request)


def _pieces(query: Query, request: Request, head: HeadFacts, open_reader: Open, mark: str) -> Iterator[str]:
    now, local, user = time.time(), time.localtime, request.user
    if query.file:
        yield from _joined(AdList.of_file(query, now=now, local=local, user=user).answer())
        return
    # Before the snapshot is taken: what it says is written then is so.
    written = read_mark(mark)
    reader = open_reader()
    try:
        if written is not None:
            reader.show_leaving(written.done)
        yield from _joined(Question(query, reader, head, now=now, local=local, user=user).answer())
    finally:
        reader.close()


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """The same in pieces that are worth sending."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= _PIECE_CHARS:
            yield "".join(waiting)
            waiting.clear()
            size = 0
    if size:
        yield "".join(waiting)


# ---- values ----------------------------------------------------------------------------------------------------


def selected(wanted: SelectWanted, head: HeadFacts, reader: Reader) -> list[tuple[int, int]]:
    """(cluster, proc) of each matching task in the queue; proc -1: all that the cluster has there."""
    query = Query(
        "condor_q",
        output="totals",
        owners=[wanted.owner] if wanted.owner else [],
        constraints=[wanted.constraint] if wanted.constraint else [],
    )
    question = Question(query, reader, head, now=time.time(), local=time.localtime)
    found: list[tuple[int, int]] = []
    for number, runs in groupby((run for run, _ in question.matching()), lambda run: run.cluster.id):
        matching = list(runs)
        if sum(run.count for run in matching) == reader.counts([number])[number].total():
            found.append((number, -1))
        else:
            found += [(number, proc) for run in matching for proc in range(run.first, run.first + run.count)]
    return found


def clusters(ids: list[int], reader: Reader) -> list[dict[str, Any]]:
    """What became of the tasks of each cluster, by the words people read; failed ones are done as well."""
    found = []
    for cluster in reader.clusters(ids, ended=True):
        counts = Counter(dict.fromkeys(STATE_NAMES.values(), 0))
        ended, failed = reader.ended(cluster)
        for state, count in ended.items():
            counts[STATE_NAMES[state]] += count
        for run in reader.runs(cluster):
            counts[STATE_NAMES[run.state]] += run.count
            failed += run.count if run.state == State.DONE and run.facts.outcome != Outcome.OK else 0
        common = cluster.template.common
        found.append(
            {
                "cluster": cluster.id,
                "count": cluster.count,
                "owner": cluster.owner,
                "submitted_at": cluster.template.submitted_at,
                "batch_name": common.batch_name,
                "iwd": common.iwd,
                **counts,
                "failed": failed,
            }
        )
    return found


def tasks(wanted: TasksWanted, reader: Reader) -> list[dict[str, Any]]:
    """Tasks for people: those in the queue by id, then the ended ones, the last first."""
    if wanted.state not in ("", "failed", *STATE_NAMES.values()):
        names = ", ".join(sorted({*STATE_NAMES.values(), "failed"}))
        raise UserError(f"no such state: {wanted.state}", f"one of {names}")
    limit = max(0, min(wanted.limit, _TASKS_MAX))
    found: list[dict[str, Any]] = []
    for run in _all_runs(reader, wanted):
        if wanted.state not in ("", "failed") and STATE_NAMES[run.state] != wanted.state:
            continue
        if wanted.state == "failed" and run.state != State.DONE:
            continue
        if wanted.state == "failed" and run.facts.outcome == Outcome.OK:
            continue
        procs = range(run.first, run.first + min(run.count, limit - len(found)))
        found += [_task(run, proc) for proc in procs]
        if len(found) >= limit:
            break
    return found


def _all_runs(reader: Reader, wanted: TasksWanted) -> Iterator[Run]:
    for cluster in reader.clusters(None if wanted.cluster is None else [wanted.cluster]):
        yield from reader.runs(cluster)
    if wanted.state in ("", "failed", "done", "cancelled"):
        yield from reader.history(None if wanted.cluster is None else [(wanted.cluster, None)])


def _task(run: Run, proc: int) -> dict[str, Any]:
    facts = run.facts
    known = facts.outcome in Outcome._value2member_map_
    return {
        "task": f"{run.cluster.id}.{proc}",
        "state": STATE_NAMES[run.state],
        "outcome": Outcome(facts.outcome).name.lower() if known else "",
        "code": facts.code,
        "reason": facts.reason or (run.cluster.template.common.hold_reason if run.state == State.HELD else ""),
        "host": facts.host,
        "wall_s": facts.wall_s,
    }
