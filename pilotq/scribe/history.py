"""History as files of HTCondor's form: one that grows, and one of each job when a directory is named.

A thread of the scribe follows the history in the store and appends the ads of what left the queue, each exactly once.
Before an append, the mark (`store.written`) says what is appended where; the same text can be made again at any time,
so that after a crash the file is compared with it, and what is missing is written.

Source: HTCondor manual, HISTORY, PER_JOB_HISTORY_DIR, MAX_HISTORY_LOG, MAX_HISTORY_ROTATIONS.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pilotq.condor.expressions import literal
from pilotq.condor.formats import long_text
from pilotq.errors import PilotqError
from pilotq.query.reader import Reader
from pilotq.query.rows import Commons
from pilotq.scribe.journal import Entry
from pilotq.scribe.logs import complete
from pilotq.scribe.outputs import open_regular, sync_folder_of, write_all
from pilotq.store.written import NAME, Mark, read_mark, write_mark

log = logging.getLogger(__name__)

#: Between two looks at the store; one costs some microseconds while nothing has changed.
LOOK_S = 0.05
RETRY_S, RETRY_S_MAX = 1.0, 60.0
#: Tasks written at once, at least when there are so many.
TASKS_AT_ONCE = 1000
_MODE = 0o644
#: In the name of a file that was put aside.
_STAMP = "%Y%m%dT%H%M%S"


class Plan(msgspec.Struct, frozen=True):
    """Which files are kept."""

    #: "": none of all jobs.
    file: str = ""
    #: Directory for `history.CLUSTER.PROC`; "": none.
    per_job_dir: str = ""
    #: The file is put aside when it is larger; so many of those are kept.
    max_bytes: int = 20 << 20
    rotations: int = 2
    schedd_name: str = "localhost"

    def __bool__(self) -> bool:
        return bool(self.file or self.per_job_dir)


class Job(msgspec.Struct, frozen=True):
    """A job that left: its ad as text without an end, and its banner without the offset."""

    name: str
    text: bytes
    banner: bytes


class History:
    """Used by one thread."""

    def __init__(self, queue: Path, plan: Plan) -> None:
        self._queue, self._plan = queue, plan
        self._mark_path = queue.with_name(NAME)
        self._commons = Commons()
        # Tells whether anybody wrote to the store.
        self._watch = sqlite3.connect(f"file:{queue}?mode=ro", uri=True, timeout=10, check_same_thread=False)
        self._seen = -1

    def serve(self) -> None:
        """For ever; what cannot be written is tried again."""
        delay_s = 0.0
        while True:
            time.sleep(delay_s or LOOK_S)
            try:
                self.write_new()
                delay_s = 0.0
            except (OSError, PilotqError, sqlite3.Error) as error:
                log.error("the history cannot be written, its jobs stay in the queue: %s", error)
                delay_s = min(max(RETRY_S, 2 * delay_s), RETRY_S_MAX)
                self._seen = -1

    def write_new(self) -> None:
        """Everything that left the queue until now.

        Raises: OSError; then nothing is lost, and it may be called again.
        """
        (version,) = self._watch.execute("pragma data_version").fetchone()
        if version == self._seen:
            return
        while (mark := read_mark(self._mark_path)) is not None and self._write_some(mark):
            pass
        self._seen = version

    def _write_some(self, mark: Mark) -> bool:
        """False: there was nothing to write."""
        last, jobs = self._left(mark.done, mark.until if mark.until > mark.done else 0)
        if not jobs:
            return False
        if self._plan.file and not self._is_there(mark, jobs):
            self._append(mark, last, jobs)
        for job in jobs if self._plan.per_job_dir else ():
            self._write_own(job)
        if self._plan.per_job_dir:
            sync_folder_of(os.path.join(self._plan.per_job_dir, "history"))
        write_mark(self._mark_path, Mark(last, last), sync=False)
        return True

    def _left(self, after: int, until: int) -> tuple[int, list[Job]]:
        """What left the queue after a block of the history, whole blocks: the last of them, and the jobs.

        `until`: up to this one; 0: as many as are worth one write.
        """
        reader = Reader(str(self._queue), self._commons)
        try:
            jobs: list[Job] = []
            last = after
            for run in reader.history(forwards=True, after=after):
                if run.left != last and ((until and run.left > until) or (not until and len(jobs) >= TASKS_AT_ONCE)):
                    break
                last = run.left
                attributes = reader.job(run, run.first, 0.0, self._plan.schedd_name).attributes()
                # The moment of asking; and so the text is always the same.
                del attributes["ServerTime"]
                jobs.append(_job(attributes, run.cluster.id, run.first, run.cluster.owner))
            return last, jobs
        finally:
            reader.close()

    # ---- the one file

    def _is_there(self, mark: Mark, jobs: list[Job]) -> bool:
        """After a crash in the middle of an append: it is complete now, or nothing of it is there."""
        if mark.until <= mark.done:
            return False
        data = b"".join(_with_banners(jobs, mark.size))
        return complete([Entry(0, 0, self._plan.file, mark.device, mark.inode, mark.size, data)])

    def _append(self, mark: Mark, last: int, jobs: list[Job]) -> None:
        path = self._plan.file
        self._rotate()
        descriptor = open_regular(path, os.O_APPEND)
        if descriptor is None:
            return
        try:
            facts = os.fstat(descriptor)
            if not facts.st_size:
                os.fchmod(descriptor, _MODE)
            intent = Mark(mark.done, last, facts.st_dev, facts.st_ino, facts.st_size)
            write_mark(self._mark_path, intent, sync=True)
            write_all(descriptor, b"".join(_with_banners(jobs, facts.st_size)))
            os.fdatasync(descriptor)
            if not facts.st_size:
                sync_folder_of(path)
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        """Put the file aside when it is too large, and forget the oldest of those."""
        path, folder = Path(self._plan.file), Path(self._plan.file).parent
        try:
            facts = path.stat()
        except FileNotFoundError:
            return
        if not self._plan.max_bytes or facts.st_size <= self._plan.max_bytes:
            return
        old = sorted(folder.glob(f"{path.name}.{'[0-9]' * 8}T{'[0-9]' * 6}"))
        at = time.time()
        if old:
            # Their names are in their order, however fast they follow each other.
            at = max(at, time.mktime(time.strptime(old[-1].name.rpartition(".")[2], _STAMP)) + 1)
        kept = Path(f"{path}.{time.strftime(_STAMP, time.localtime(at))}")
        path.rename(kept)
        for one in [*old, kept][: len(old) + 1 - self._plan.rotations]:
            with contextlib.suppress(FileNotFoundError):
                one.unlink()

    # ---- one of each job

    def _write_own(self, job: Job) -> None:
        path = os.path.join(self._plan.per_job_dir, f"history.{job.name}")
        part = os.path.join(self._plan.per_job_dir, f".history.{job.name}.tmp")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            write_all(descriptor, job.text)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(part, path)


def _job(attributes: dict[str, str], cluster: int, proc: int, owner: str) -> Job:
    text = long_text(attributes).removesuffix("\n")
    completed = literal(attributes.get("CompletionDate", "0"))
    entered = literal(attributes["EnteredCurrentStatus"])
    banner = (
        f'ClusterId = {cluster} ProcId = {proc} Owner = "{owner}" CompletionDate = {completed} CurrentTime = {entered}'
    )
    return Job(f"{cluster}.{proc}", _raw(text), _raw(banner))


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _with_banners(jobs: list[Job], offset: int) -> Iterator[bytes]:
    """Each banner says where its ad begins; `offset` is where the first one does."""
    for job in jobs:
        whole = b"%b*** Offset = %d %b\n" % (job.text, offset, job.banner)
        yield whole
        offset += len(whole)
