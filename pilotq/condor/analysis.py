"""Why a task does not run: what the matcher would say of each worker.

Source: HTCondor manual, condor_q -analyze, for the frame; the reasons are those of `core.match`.
"""

from __future__ import annotations

from collections import Counter

from pilotq.condor.expressions import canonical
from pilotq.condor.jobad import Job
from pilotq.condor.poolads import HeadFacts, WorkerFacts
from pilotq.condor.tables import word
from pilotq.core.match import APART_S, AVOID_S, SUSPECT_LOSSES, avoided
from pilotq.model import Resources, State

_OTHER_STATES = {
    State.RUNNING: "running",
    State.SUSPENDED: "suspended",
    State.STAGING_OUT: "completed, and its outputs are being written",
    State.DONE: "completed",
    State.CANCELLED: "removed",
}


def analysis(job: Job, needs: Resources, head: HeadFacts) -> str:
    """What condor_q -analyze and -better-analyze say of one task."""
    title = f"{job.template.cluster:03d}.{job.proc:03d}"
    if job.state == State.HELD:
        reason = " ".join(word(job, "holdreason").split())
        return f"\n{title}:  Job is held.\n\nHold reason: {reason}\n\n"
    if job.state in _OTHER_STATES:
        return f"\n{title}:  Job is {_OTHER_STATES[job.state]}.\n\n"
    lines = [
        f"\nThe Requirements expression for job {title} is\n\n    {canonical(job.get('requirements') or 'true')}\n\n"
    ]
    if job.state == State.ASSIGNED:
        lines.append(
            f"{title}:  Job is matched: it has gone to {job.facts.host} and starts when a slot there is free.\n\n"
        )
        return "".join(lines)
    return "".join(
        [*lines, f"{title}:  Run analysis summary.  Of {len(head.workers)} machines,\n", *_summary(job, needs, head)]
    )


def _summary(job: Job, needs: Resources, head: HeadFacts) -> list[str]:
    small = Counter[str]()
    unfit = Counter[str]()
    full = able = 0
    others = frozenset(worker.host for worker in head.workers if worker.state == "ready") - avoided(job.facts)
    for worker in head.workers:
        lack = _lack(worker, needs)
        refusal = "" if lack else _refusal(worker, job, bool(others))
        small[lack] += bool(lack)
        unfit[refusal] += bool(refusal)
        has_room = not lack and not refusal and _has_room(worker, needs)
        able += has_room
        full += not (lack or refusal or has_room)
    lines = [
        f"{small.total():>7} are rejected by your job's requirements\n",
        *[f"{'':>11}{count} {lack}\n" for lack, count in small.items() if count],
        f"{unfit.total():>7} reject your job because of their own requirements\n",
        *[f"{'':>11}{count} {refusal}\n" for refusal, count in unfit.items() if count],
        f"{full:>7} match but are serving other jobs\n",
        f"{able:>7} are able to run your job\n\n",
    ]
    return lines + _advice(job, needs, head, small.total(), able)


def _lack(worker: WorkerFacts, needs: Resources) -> str:
    """Why a task of this need never fits there."""
    if worker.cpus < needs.cpus:
        return f"have less than {needs.cpus} cores"
    if worker.gpus < needs.gpus:
        return f"have less than {needs.gpus} GPUs"
    if needs.memory_bytes and worker.memory_bytes < needs.memory_bytes:
        return f"have less than {needs.memory_bytes >> 20} MB of memory"
    if needs.disk_bytes and worker.disk_bytes < needs.disk_bytes:
        return f"have less than {needs.disk_bytes >> 10} KB of disk"
    return ""


def _refusal(worker: WorkerFacts, job: Job, has_others: bool) -> str:
    """Why a worker takes no task, or not this one."""
    if worker.state == "lost":
        return "have not been heard of for too long"
    if worker.state == "draining":
        return "are draining"
    if worker.state == "suspended":
        return "are on nodes where tasks fail at once"
    waited_s = job.now - job.entered_at
    if has_others and waited_s <= AVOID_S and worker.host in avoided(job.facts):
        return f"are on nodes where it failed: others are preferred for {AVOID_S:.0f} s"
    return ""


def _has_room(worker: WorkerFacts, needs: Resources) -> bool:
    used = worker.used
    return (
        worker.cpus - used[0] >= needs.cpus
        and (not needs.memory_bytes or worker.memory_bytes - used[1] >= needs.memory_bytes)
        and (not needs.disk_bytes or worker.disk_bytes - used[2] >= needs.disk_bytes)
        and worker.gpus - used[3] >= needs.gpus
    )


def _advice(job: Job, needs: Resources, head: HeadFacts, small: int, able: int) -> list[str]:
    lines = []
    if not head.workers:
        lines.append("No workers are connected.")
    elif small == len(head.workers):
        lines.append("WARNING:  Be advised:\n   No machines matched the job's constraints")
    if head.draining:
        lines.append("The pool drains: nothing new is started.")
    lost = len(job.facts.lost_on)
    if lost >= SUSPECT_LOSSES and job.now - job.entered_at <= APART_S:
        lines.append(
            f"It was lost {lost} times with its worker: for {APART_S:.0f} s it gets one without another such job."
        )
    if able and not lines:
        lines.append("It is started when the jobs before it are, or at once.")
    return [f"{line}\n" for line in lines] + (["\n"] if lines else [])
