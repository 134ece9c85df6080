"""condor_submit, the head's side: a request of the shim to what admission needs, and back to what the shim prints.

Nothing is read here: what must be known of the user's files is a want. A request comes again with more answers until
there are no more wants, and is planned from the start each time.

Source: HTCondor manual, condor_submit.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotq.condor.job import Job, Site
from pilotq.condor.jobad import CONDOR_PLATFORM
from pilotq.condor.jobfile import patched
from pilotq.condor.keywords import is_known
from pilotq.condor.lexer import SubmitError, shown, shown_path
from pilotq.condor.macros import Macros
from pilotq.condor.procs import Procs
from pilotq.condor.queue import Rows
from pilotq.condor.request import Reply, Request, text
from pilotq.condor.script import Script
from pilotq.condor.submit_options import USAGE, Options, read_options
from pilotq.condor.user_side import UserSide, Waiting
from pilotq.deltas import each_delta
from pilotq.model import Submission, fill

__all__ = ["Plan", "Site", "plan_submit", "submitted"]

DOTS_MAX = 1000
#: Procs whose ads -verbose and -dry-run print.
ADS_MAX = 1000


@dataclass
class Plan:
    """What was asked for, understood and found to be in order."""

    #: One a cluster.
    submissions: list[Submission] = field(default_factory=list)
    #: Warnings.
    stderr: str = ""
    terse: bool = False
    verbose: bool = False
    #: It depends on the key of the request.
    is_random: bool = False


def plan_submit(request: Request, now: float, site: Site) -> Reply | Plan:
    """A plan; or a reply with wants, with a refusal, or with what was only asked to be shown."""
    try:
        options = read_options(request.argv)
        if options.help:
            return Reply(out=USAGE)
        if options.version:
            return Reply(out=f"{site.version}\n{CONDOR_PLATFORM}\n")
        return _Planner(request, options, now, site).plan()
    except SubmitError as error:
        return Reply(err=f"\nERROR: {error}\n", exit=1)


class _Planner:
    def __init__(self, request: Request, options: Options, now: float, site: Site) -> None:
        self.request = request
        self.options = options
        self.side = UserSide(request, store=not options.dry_run)
        self.macros = Macros(_automatic(options, now, site), request.env, request.cwd, request.key)
        self.job = Job(self.macros, self.side, site, options, now)
        self.procs = Procs(self.job)
        self.name = options.file if options.file not in ("", "-") else "(stdin)"
        self.notes: list[str] = []
        self.script_warnings: list[str] = []
        self.total = 0

    def plan(self) -> Reply | Plan:
        try:
            self._run()
        except Waiting:
            return Reply(wants=list(self.side.wants))
        if self.side.wants:
            return Reply(wants=list(self.side.wants))
        stderr = self._stderr()
        if not self.total:
            return Plan(
                [], f'{stderr}\nWARNING: "{shown(self.name)}" has only empty "queue" commands -- no jobs queued\n'
            )
        submissions = self.procs.submissions()
        if self.options.single_cluster and len(submissions) > 1:
            raise SubmitError(f"-single-cluster is given, but these are {len(submissions)} clusters")
        if self.options.dry_run:
            count = sum(submission.count for submission in submissions)
            ads = "".join(_ads(submission, number) for number, submission in enumerate(submissions, 1))
            return Reply(out=f"Dry-Run job(s){_dots(count)}\n\n{ads}{count} job(s) dry-run.\n", err=stderr)
        return Plan(submissions, stderr, self.options.terse, self.options.verbose, self.macros.is_random)

    def _run(self) -> None:
        content = self._description()
        for key, value in self.options.definitions:
            self.macros.define(key, value)
        version = re.search(r"[0-9]+(?:\.[0-9]+)+", self.job.site.version)
        # It knows us, and we do not know it: in a cycle a large submission would stay in memory.
        script = Script(self.macros, self.side, version[0] if version else "0", self._on_queue, self.options.appended)
        script.run(content, self.name)
        if not script.queues and self.options.appended:
            script.run("\n".join(self.options.appended), "-append")
        if self.options.queue is not None:
            if script.queues:
                raise SubmitError("-queue is given, but the submit description has a queue statement of its own")
            script.run(f"queue {self.options.queue}", "-queue")
        if not script.queues:
            raise SubmitError(f'"{shown(self.name)}" doesn\'t contain any "queue" commands -- no jobs queued')
        self.script_warnings = script.warnings

    def _description(self) -> str:
        file = self.options.file or "-"
        if file == "-" and self.options.queue is not None and not self.options.file:
            return ""
        answer = self.side.must("read", file)
        if not answer.ok:
            raise SubmitError(f"Failed to open command file ({shown_path(self.name)}) ({answer.error})")
        return text(answer.data)

    def _on_queue(self, rows: Rows) -> None:
        self.notes += rows.warnings
        self.total += rows.total
        limit = self.options.max_jobs
        if limit and self.total > limit:
            raise SubmitError(f"{self.total} jobs are more than -maxjobs {limit} allows")
        self.procs.add(rows)

    def _stderr(self) -> str:
        unused = [
            f"the line '{shown(entry.key)} = {shown(entry.value)}' was unused by condor_submit. Is it a typo?"
            for name, entry in self.macros.table.items()
            if entry.line and name not in self.macros.used and not is_known(name)
        ]
        return "".join(
            f"\nWARNING: {note}\n" for note in [*self.script_warnings, *self.notes, *self.job.warnings, *unused]
        )


def _automatic(options: Options, now: float, site: Site) -> dict[str, str]:
    day = datetime.datetime.fromtimestamp(now)
    return {
        "dollar": "$",
        "submit_file": options.file,
        "submit_time": str(int(now)),
        "year": f"{day.year}",
        "month": f"{day.month:02}",
        "day": f"{day.day:02}",
        "arch": site.arch,
        "opsys": site.opsys,
        "opsysver": "",
        "opsysandver": "",
        "opsysmajorver": "",
        "islinux": "1" if site.opsys == "LINUX" else "0",
        "iswindows": "0",
    }


# ---- what is printed ---------------------------------------------------------------------------------------------


def submitted(plan: Plan, clusters: list[int]) -> Reply:
    """The reply once the clusters of a plan, in its order, are durable under these ids."""
    counts = [submission.count for submission in plan.submissions]
    if not counts:
        return Reply(err=plan.stderr)
    if plan.terse:
        out = "".join(f"{cluster}.0 - {cluster}.{count - 1}\n" for cluster, count in zip(clusters, counts, strict=True))
    elif plan.verbose:
        out = "".join(_ads(submission, cluster) for cluster, submission in zip(clusters, plan.submissions, strict=True))
    else:
        out = f"Submitting job(s){_dots(sum(counts))}\n"
        for cluster, count in zip(clusters, counts, strict=True):
            out += f"{count} job(s) submitted to cluster {cluster}.\n"
    return Reply(out=out, err=plan.stderr)


def _dots(count: int) -> str:
    return "." * min(count, DOTS_MAX)


def _ads(submission: Submission, cluster: int) -> str:
    """The ads of a cluster, as -verbose prints them."""
    return "".join(f"** Proc {cluster}.{proc}:\n{ad}\n" for proc, ad in _job_ads(submission, cluster))


def _job_ads(submission: Submission, cluster: int) -> Iterator[tuple[int, str]]:
    deltas = each_delta(submission.deltas)
    for proc in range(min(submission.count, ADS_MAX)):
        ad = submission.description.job_ad
        delta = next(deltas, None)
        if delta is not None:
            changes: dict[str, Any] = msgspec.msgpack.decode(delta)
            ad = patched(ad, changes.get("ad", {}))
        yield proc, fill(ad, cluster, proc)
