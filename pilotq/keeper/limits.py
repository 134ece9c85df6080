"""What an attempt may use: time, memory, disk, processes; who uses more is ended with an outcome that says so.

Where there are control groups, an attempt with a memory limit gets one when it has run for a moment, and the kernel
holds the limit; short tasks do not pay for it. Else its processes are measured every second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from pilotq.keeper.agenda import Agenda, Chore
from pilotq.keeper.attempt import Attempt
from pilotq.keeper.family import Family, proportional, resident
from pilotq.model import Outcome
from pilotq.sandbox import files
from pilotq.sandbox.groups import Group, host_processes

EVERY_S = 1.0
DISK_EVERY_S = 5.0
#: An attempt that runs for so long gets its group.
GROUP_S = 0.05
#: Of its time a keeper spends at most a tenth on looking for processes.
REST = 9
_REMOVE_TRIES = 10

#: Ends an attempt: outcome, reason, grace (None: its own).
Stop = Callable[[Attempt, Outcome, str, float | None], None]


class Bounds(msgspec.Struct, frozen=True):
    """What a worker tells its keepers."""

    #: Group of the worker; those of attempts are made in it.
    group: Group = Group()
    #: Processes and threads of one attempt, and of all together; 0: not looked at.
    processes: int = 0
    processes_together: int = 0


class Limits:
    """Watches over the attempts of a keeper."""

    def __init__(
        self, bounds: Bounds, agenda: Agenda, family: Family, attempts: Callable[[], Iterable[Attempt]], stop: Stop
    ) -> None:
        self._bounds, self._agenda, self._family = bounds, agenda, family
        self._attempts, self._stop = attempts, stop
        self._watching = False

    def begin(self, attempt: Attempt) -> None:
        """A process of it was started."""
        d, pid = attempt.description, attempt.pid
        if d.wall_time_s:
            reason = f"It ran longer than its wall time of {d.wall_time_s:g} s"
            self._agenda.at(d.wall_time_s, attempt, lambda: self._on_time(attempt, pid, reason, 0.0))
        if d.memory_limit_bytes and self._bounds.group.memory:
            self._agenda.at(GROUP_S, attempt, lambda: self._agenda.chore(self._enclose(attempt, pid), attempt))
        if d.disk_limit_bytes:
            self._agenda.at(EVERY_S, attempt, lambda: self._agenda.chore(self._watch_disk(attempt, pid), attempt))
        if not self._watching and (d.memory_limit_bytes or self._bounds.processes):
            self._watching = True
            self._agenda.at(EVERY_S, None, self._watch)

    def ended(self, attempt: Attempt) -> None:
        """Its process ended: the kernel may have done it, or what the process did not get over."""
        if attempt.group and attempt.group.memory_kills():
            attempt.fail(Outcome.MEMORY, 0, _killed(attempt))

    def clear(self, attempt: Attempt) -> None:
        """Nothing in its group may go on."""
        if attempt.group:
            attempt.group.kill_all()

    def over(self, attempt: Attempt, tries: int = _REMOVE_TRIES) -> None:
        """Nothing of it is left; the kernel may need a moment to see that."""
        if attempt.group and not attempt.group.remove() and tries:
            self._agenda.at(0.05, None, lambda: self.over(attempt, tries - 1))

    # ---- inside

    def _on_time(self, attempt: Attempt, pid: int, reason: str, excused_s: float) -> None:
        """Time for which it was suspended does not count; so much of that was waited for already."""
        if attempt.pid != pid:
            return
        suspended_s = attempt.suspended_s
        if attempt.suspended_at:
            suspended_s += time.monotonic() - attempt.suspended_at
        if suspended_s > excused_s:
            pause_s = max(EVERY_S, suspended_s - excused_s)
            self._agenda.at(pause_s, attempt, lambda: self._on_time(attempt, pid, reason, suspended_s))
        else:
            self._stop(attempt, Outcome.TIMEOUT, reason, None)

    def _enclose(self, attempt: Attempt, pid: int) -> Chore:
        """Move what runs of it into a group with its limits. What it used until now stays charged elsewhere."""
        if attempt.pid != pid:
            return
        group = self._bounds.group.child(attempt.name)
        try:
            if attempt.group is None:
                group.make()
                attempt.group = group
                group.limit_memory(attempt.description.memory_limit_bytes)
                yield
                if self._bounds.processes:
                    group.limit_processes(self._bounds.processes)
            while attempt.pid == pid and (outside := self._family.members(attempt) - group.members()):
                for one in outside:
                    group.enter(one)
                yield
        except OSError as error:
            # It is measured instead.
            attempt.group_error = str(error)

    def _watch(self) -> None:
        """Once a second, while something runs."""
        began = time.monotonic()
        running = [attempt for attempt in self._attempts() if attempt.pid]
        self._watching = bool(running)
        if not running:
            return
        measured = []
        for attempt in running:
            if attempt.group and not attempt.group_error:
                self._look_at_group(attempt, attempt.group)
            elif attempt.description.memory_limit_bytes:
                measured.append(attempt)
        most = self._bounds.processes
        is_crowded = most and host_processes() >= most
        if measured or is_crowded:
            found = self._family.census()
            for attempt in measured:
                self._compare(attempt, {pid: size for pid, size, _ in found.get(attempt, [])})
            for attempt in running if is_crowded else ():
                count = sum(threads for _, _, threads in found.get(attempt, []))
                if count >= most:
                    reason = f"It had {count} processes and threads, its limit is {most}"
                    self._stop(attempt, Outcome.PROCESSES, reason, 0)
        self._agenda.at(max(EVERY_S, REST * (time.monotonic() - began)), None, self._watch)

    def _look_at_group(self, attempt: Attempt, group: Group) -> None:
        """Did the kernel kill something? And what was used before there was a group counts too."""
        if group.memory_kills():
            self._stop(attempt, Outcome.MEMORY, _killed(attempt), None)
        else:
            self._compare(attempt, {pid: resident(pid) for pid in group.members()})

    def _compare(self, attempt: Attempt, sizes: dict[int, int]) -> None:
        """Shared pages count once when it matters."""
        limit = attempt.description.memory_limit_bytes
        if sum(sizes.values()) <= limit:
            return
        used = sum(proportional(pid) or size for pid, size in sizes.items())
        if used > limit:
            reason = f"It used {used >> 20} MiB of memory, its limit is {limit >> 20} MiB"
            attempt.memory_bytes = max(attempt.memory_bytes, used)
            self._stop(attempt, Outcome.MEMORY, reason, None)

    def _watch_disk(self, attempt: Attempt, pid: int) -> Chore:
        limit = attempt.description.disk_limit_bytes
        used = yield from files.measure(attempt.sandbox)
        if attempt.pid != pid:
            return
        if used > limit:
            reason = f"Its scratch directory holds {used >> 20} MiB, its limit is {limit >> 20} MiB"
            return self._stop(attempt, Outcome.DISK, reason, None)
        self._agenda.at(DISK_EVERY_S, attempt, lambda: self._agenda.chore(self._watch_disk(attempt, pid), attempt))


def _killed(attempt: Attempt) -> str:
    limit = attempt.description.memory_limit_bytes >> 20
    return f"It wanted more memory, and was killed by the system: its limit is {limit} MiB"
