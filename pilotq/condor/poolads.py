"""The ads condor_status shows: a machine ad for every core a worker offers, one schedd ad, one ad an owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pilotq.condor.expressions import unparse
from pilotq.condor.jobad import CONDOR_PLATFORM, CONDOR_VERSION
from pilotq.model import CONDOR_STATUS, State


class WorkerFacts(msgspec.Struct, frozen=True):
    """What the master knows of a worker; other keys of its status are passed over."""

    name: str
    host: str = ""
    #: Cores offered and in use.
    cpus: int = 1
    busy: int = 0
    #: ready, draining, lost.
    state: str = "ready"
    memory_bytes: int = 0
    disk_bytes: int = 0


class PoolAd:
    """A whole ad (`expressions.Ad`) from attributes; strings are values here, not expressions."""

    def __init__(self, attributes: Mapping[str, str | int | float | bool]) -> None:
        self._texts = {name: unparse(found) for name, found in attributes.items()}
        self._lower = {name.lower(): text for name, text in self._texts.items()}

    def get(self, name: str) -> str | None:
        """Expression text of an attribute, named in lower case."""
        return self._lower.get(name)

    def attributes(self, only: Iterable[str] = ()) -> dict[str, str]:
        wanted = {name.lower() for name in only}
        names = [name for name in self._texts if not wanted or name.lower() in wanted]
        return {name: self._texts[name] for name in sorted(names, key=str.lower)}


def machine_ads(workers: Iterable[WorkerFacts], now: float) -> list[PoolAd]:
    """One ad a core, the busy ones first; lost workers have none."""
    present = [worker for worker in workers if worker.state != "lost"]
    by_host = Counter(worker.host or worker.name for worker in present)
    ads = []
    for worker in sorted(present, key=lambda worker: (worker.host, worker.name)):
        host = worker.host or worker.name
        place = host if by_host[host] == 1 else f"{worker.name}@{host}"
        for core in range(worker.cpus):
            is_busy = core < worker.busy
            idle_state, idle_activity = ("Drained", "Retiring") if worker.state == "draining" else ("Unclaimed", "Idle")
            ads.append(
                PoolAd(
                    {
                        "MyType": "Machine",
                        "Name": f"slot{core + 1}@{place}",
                        "Machine": host,
                        "SlotID": core + 1,
                        "SlotType": "Static",
                        "State": "Claimed" if is_busy else idle_state,
                        "Activity": "Busy" if is_busy else idle_activity,
                        "Arch": "X86_64",
                        "OpSys": "LINUX",
                        "Cpus": 1,
                        "TotalCpus": worker.cpus,
                        "TotalSlots": worker.cpus,
                        "Memory": worker.memory_bytes // worker.cpus >> 20,
                        "Disk": worker.disk_bytes // worker.cpus >> 10,
                        "LoadAvg": 1.0 if is_busy else 0.0,
                        "CondorVersion": CONDOR_VERSION,
                        "CondorPlatform": CONDOR_PLATFORM,
                        "EnteredCurrentActivity": int(now),
                        "LastHeardFrom": int(now),
                    }
                )
            )
    return ads


def by_word(counts: Mapping[State, int]) -> tuple[int, int, int]:
    """Running, idle and held among tasks by state; outputs on their way home still run."""
    statuses: Counter[int] = Counter()
    for state, count in counts.items():
        statuses[CONDOR_STATUS[state]] += count
    return statuses[2] + statuses[6], statuses[1] + statuses[7], statuses[5]


def schedd_ad(name: str, address: str, owners: int, counts: Mapping[State, int], now: float) -> PoolAd:
    running, idle, held = by_word(counts)
    return PoolAd(
        {
            **_daemon("Scheduler", name, address, now),
            "TotalRunningJobs": running,
            "TotalIdleJobs": idle,
            "TotalHeldJobs": held,
            "TotalRemovedJobs": counts.get(State.CANCELLED, 0),
            "TotalJobAds": sum(counts.values()),
            "NumUsers": owners,
        }
    )


def submitter_ad(owner: str, name: str, address: str, counts: Mapping[State, int], now: float) -> PoolAd:
    running, idle, held = by_word(counts)
    return PoolAd(
        {
            **_daemon("Submitter", f"{owner}@{name}", address, now),
            "ScheddName": name,
            "RunningJobs": running,
            "IdleJobs": idle,
            "HeldJobs": held,
        }
    )


def _daemon(kind: str, name: str, address: str, now: float) -> dict[str, Any]:
    return {
        "MyType": kind,
        "Name": name,
        "Machine": name.rpartition("@")[2],
        "MyAddress": f"<{address}>",
        "ScheddIpAddr": f"<{address}>",
        "CondorVersion": CONDOR_VERSION,
        "CondorPlatform": CONDOR_PLATFORM,
        "LastHeardFrom": int(now),
    }
