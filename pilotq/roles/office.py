"""What the master does for its API: submit, act, tell."""

from __future__ import annotations

import asyncio
import getpass
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pilotq import __version__, wire
from pilotq.catalog import Report
from pilotq.condor.submit import Site
from pilotq.core import turn as t
from pilotq.core.master import MasterCore
from pilotq.core.tasks import Cluster
from pilotq.daemon import Engine, read_clocks
from pilotq.model import State
from pilotq.mover.small import KeptFilesBroken
from pilotq.query.client import QueryProcess
from pilotq.roles.performer import Performer
from pilotq.roles.view import cluster_view, status_view

#: Workers up to which every question to the query process brings their list along.
HEAD_WORKERS = 50

#: A worker that is there answers sooner.
PEEK_S = 10.0

#: Free space below which nothing new is accepted, besides the ballast.
SPACE_BYTES_MIN = 1 << 20


class Office:
    """The desk behind the API."""

    def __init__(
        self,
        core: MasterCore,
        engine: Engine,
        performer: Performer,
        queries: QueryProcess,
        site: Site,
        home: Path,
        state: Path,
        port: int,
    ) -> None:
        self.core, self.engine, self.performer, self.queries = core, engine, performer, queries
        self.site, self.home, self.state, self.port = site, home, state, port
        self.started_at = time.time()
        self._endpoint = f"{site.host}:{port}"
        self._next_reply = itertools.count(1)
        #: Clusters somebody waits for.
        self._ends: dict[int, asyncio.Future[Cluster | None]] = {}

    def _reply(self) -> tuple[int, asyncio.Future[Any]]:
        number = next(self._next_reply)
        future: asyncio.Future[Any] = self.engine.loop.create_future()
        self.performer.waiting[number] = lambda value: None if future.done() else future.set_result(value)
        return number, future

    def refusal(self) -> str:
        return self._lack_of_space(0) or self.core.refusal(0)

    def is_known(self, owner: str, key: str) -> bool:
        return (owner, key) in self.core.queue.keys

    def _lack_of_space(self, size_bytes: int) -> str:
        """Why so much is not taken in: what is free is needed to finish what was accepted; ""."""
        disk = os.statvfs(self.state)
        free = disk.f_bavail * disk.f_frsize
        if self.performer.store.has_ballast and free >= SPACE_BYTES_MIN + size_bytes:
            return ""
        return f"the disk of the master ({self.state}) is full; free some space and submit again"

    async def submit(self, key: str, clusters: list[t.NewCluster]) -> list[int] | str:
        # In the log of the database, and then in the database.
        size = 2 * sum(len(new.body) + len(new.description) + sum(map(len, new.deltas)) for new in clusters)
        lack = self._lack_of_space(size)
        if lack and not self.is_known(clusters[0].owner, key):
            return lack
        known: list[int] = []
        if key and self.core.queue.has_forgotten_keys and not self.is_known(clusters[0].owner, key):
            known = await self.engine.call(self.performer.store.find_key, clusters[0].owner, key)
        number, future = self._reply()
        self.engine.put(t.Submit(number, key, clusters, known))
        answer: list[int] | str = await future
        return answer

    async def act(self, verb: str, selection: list[tuple[int, int]], reason: str, **more: Any) -> list[Any]:
        number, future = self._reply()
        self.engine.put(t.Act(number, verb, selection, reason, **more))
        answer: list[Any] = await future
        return answer

    async def worker_verb(self, worker: str, verb: str) -> bool:
        number, future = self._reply()
        self.engine.put(t.WorkerVerb(number, worker, verb))
        return bool(await future)

    def drain(self, on: bool) -> None:
        if not on:
            (self.home / "drain").unlink(missing_ok=True)
        self.engine.put(t.SetDrain(on))

    def is_empty(self) -> bool:
        return not self.core.queue.clusters

    def status(self) -> dict[str, Any]:
        boot, history = read_clocks().boot, self.performer.scribe.history
        return {
            "version": __version__,
            "home": str(self.home),
            "state_dir": str(self.state),
            "api_socket": str(self.state / "api.sock"),
            "uptime_s": round(time.time() - self.started_at, 3),
            "master": {"pid": os.getpid(), "endpoint": self._endpoint},
            "owner": getpass.getuser(),
            "schedd_name": self.site.schedd_name,
            "scribe": {"pid": self.performer.scribe.pid, "backlog": self.performer.store.backlog},
            "history": {"file": history.file, "per_job_dir": history.per_job_dir},
            "query": {"pid": self.queries.pid},
            "commits": self.engine.commits,
            "loop": {
                "longest_turn_ms": round(1000 * self.engine.turn_s.read(boot), 1),
                "lag_ms": round(1000 * self.engine.lag_s.read(boot), 1),
            },
            **status_view(self.core, boot),
        }

    def head_facts(self, whole: bool) -> dict[str, Any]:
        if whole or len(self.core.peers.workers) <= HEAD_WORKERS:
            return self.status()
        return {"schedd_name": self.site.schedd_name, "master": {"pid": os.getpid(), "endpoint": self._endpoint}}

    def clusters(self, ids: list[int]) -> tuple[list[dict[str, Any]], list[int]]:
        live = self.core.queue.clusters
        wanted = ids or list(live)
        return [cluster_view(live[i]) for i in wanted if i in live], [i for i in wanted if i not in live]

    async def over(self, ids: list[int], wait_s: float) -> list[dict[str, Any]]:
        """Waits until all of these are over, but not for long; those that are by then."""
        # Also of those that left the queue: the answer comes after the commit in which they did.
        waits = [self._end_of(number) for number in ids or list(self.core.queue.clusters)]
        if not waits:
            return []
        await asyncio.wait(waits, timeout=wait_s)
        return [cluster_view(cluster) for wait in waits if wait.done() and (cluster := wait.result()) is not None]

    def _end_of(self, cluster: int) -> asyncio.Future[Cluster | None]:
        """One question to the core, however many wait, and however often they come back."""
        future = self._ends.get(cluster)
        if future is None:
            number, future = self._reply()
            self._ends[cluster] = future
            future.add_done_callback(lambda _: self._ends.pop(cluster))
            self.engine.put(t.Wait(number, cluster))
        return future

    async def peek(self, cluster: int, proc: int, name: str, size: int) -> bytes | None:
        found = self.core.queue.clusters.get(cluster)
        if found is None or not found.has(proc) or found.state(proc) not in (State.RUNNING, State.SUSPENDED):
            return None
        worker = self.core.peers.workers.get(found.facts_of(proc).worker)
        token = wire.Token(cluster, proc, found.attempts[proc])
        if worker is None or worker.route is None or not worker.runs(token):
            return None
        peeks, loop = self.performer.peeks, self.engine.loop
        future = peeks.setdefault((token, name), loop.create_future())
        self.performer.send_now(worker.route, wire.Pull(token, name, -size, size))
        try:
            data = await asyncio.wait_for(asyncio.shield(future), PEEK_S)
        except TimeoutError:
            peeks.pop((token, name), None)
            return None
        return None if data.missing else data.data

    def query(self, message: dict[str, Any]) -> AsyncIterator[bytes]:
        return self.queries.ask(message)

    async def keep_file(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        return await self.performer.blobs.put(chunks)

    async def keep_small_files(self, files: list[bytes]) -> list[tuple[str, int]]:
        try:
            return await self.performer.blobs.put_small(files)
        except KeptFilesBroken as error:
            self.engine.fail(error)
            raise

    def report(self, project: str) -> Report:
        """What the Work Queue catalog shows of this master."""
        found = status_view(self.core, read_clocks().boot)
        tasks, slots = found["tasks"], found["slots"]
        present = [worker for worker in found["workers"] if worker["state"] != "lost"]
        busy = sum(1 for worker in present if worker["busy"])
        return Report(
            project=project,
            owner=getpass.getuser(),
            host=self.site.host,
            port=self.port,
            started_at=int(self.started_at),
            tasks_waiting=tasks["idle"],
            tasks_running=tasks["running"],
            tasks_complete=tasks["done"],
            workers=len(present),
            workers_busy=busy,
            workers_idle=len(present) - busy,
            cores_total=slots["open"],
            cores_inuse=slots["busy"],
        )
