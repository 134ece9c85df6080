"""The ads condor_status shows: a machine ad for every core a worker offers, one schedd ad, one ad an owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pilotq.condor.expressions import unparse, unquote
from pilotq.condor.jobad import CONDOR_PLATFORM, CONDOR_VERSION
from pilotq.model import CONDOR_STATUS, State


class WorkerFacts(msgspec.Struct, frozen=True):
    """What the master knows of a worker; other keys of its status are passed over."""

    name: str
    host: str = ""
    #: Cores offered and in use.
    cpus: int = 1
    busy: int = 0
    #: ready, draining, suspended, lost.
    state: str = "ready"
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0
    #: Cores, memory, disk and GPUs that tasks hold.
    used: tuple[int, int, int, int] = (0, 0, 0, 0)


class MasterFacts(msgspec.Struct, frozen=True):
    """Where the master listens for foremen and workers, host:port."""

    endpoint: str = "127.0.0.1:9094"


class HeadFacts(msgspec.Struct, frozen=True):
    """What only the master knows, sent with every question: these keys of its status, others are passed over."""

    #: Host name of the head node; the name of the schedd to HTCondor's clients.
    schedd_name: str = "localhost"
    master: MasterFacts = MasterFacts()
    workers: list[WorkerFacts] = []
    uptime_s: float = 0.0
    draining: bool = False

    @property
    def address(self) -> str:
        """host:port as it is shown; a master that listens on all addresses goes by its host's name."""
        host, _, port = self.master.endpoint.rpartition(":")
        return f"{self.schedd_name if host in ('*', '0.0.0.0', '::', '[::]', '') else host}:{port}"


class TextAd:
    """A whole ad (`expressions.Ad`) from expression texts."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._lower = {name.lower(): text for name, text in texts.items()}

    def get(self, name: str) -> str | None:
        """Expression text of an attribute, named in lower case."""
        return self._lower.get(name)

    def attributes(self, only: Iterable[str] = ()) -> dict[str, str]:
        """The whole ad, or `only` these attributes of it, sorted by name without regard to case."""
        wanted = {name.lower() for name in only}
        names = [name for name in self._texts if not wanted or name.lower() in wanted]
        return {name: self._texts[name] for name in sorted(names, key=str.lower)}


class PoolAd(TextAd):
    """An ad from attributes; strings are values here, not expressions."""

    def __init__(self, attributes: Mapping[str, str | int | float | bool]) -> None:
        super().__init__({name: unparse(found) for name, found in attributes.items()})


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
                        "EnteredCurrentState": int(now),
                        "LastHeardFrom": int(now),
                    }
                )
            )
    return ads


def compact_ads(slots: Iterable[PoolAd]) -> list[PoolAd]:
    """One ad a machine from those of its slots."""
    by_machine: dict[str, list[PoolAd]] = {}
    for ad in slots:
        by_machine.setdefault(unquote(ad.get("machine") or "") or "", []).append(ad)
    return [_compact(machine, ads) for machine, ads in by_machine.items()]


def _compact(machine: str, ads: list[PoolAd]) -> PoolAd:
    states = Counter([unquote(ad.get("state") or "") or "" for ad in ads])
    most = max(states, key=lambda state: states[state])
    activity = {"Claimed": "b", "Unclaimed": "i"}.get(most, "r")

    def total(name: str, slots: Iterable[PoolAd]) -> int:
        return sum([int(float(ad.get(name) or 0)) for ad in slots])

    free = [ad for ad in ads if ad.get("state") == '"Unclaimed"']
    return PoolAd(
        {
            "MyType": "Machine",
            "Name": machine,
            "Machine": machine,
            "Arch": unquote(ads[0].get("arch") or "") or "",
            "OpSys": unquote(ads[0].get("opsys") or "") or "",
            "Slots": len(ads),
            **{f"Slots{state}": count for state, count in states.items()},
            "TotalCpus": total("cpus", ads),
            "TotalMemory": total("memory", ads),
            "FreeCpus": total("cpus", free),
            "FreeMemory": total("memory", free),
            "Memory": max([int(ad.get("memory") or 0) for ad in ads]),
            "LoadAvg": float(total("loadavg", ads)),
            "ST": f"{most[:1]}{activity}",
        }
    )


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


def daemon_ads(kind: str, head: HeadFacts, counts: Mapping[State, int], now: float) -> list[PoolAd]:
    """What the one daemon of a pool that does all shows as master, collector or negotiator; or "any" of these."""
    running, idle, _ = by_word(counts)
    hosts = len({worker.host for worker in head.workers if worker.state != "lost"})
    own: dict[str, tuple[str, dict[str, int]]] = {
        "master": ("DaemonMaster", {}),
        "collector": ("Collector", {"RunningJobs": running, "IdleJobs": idle, "HostsTotal": hosts}),
        "negotiator": ("Negotiator", {}),
    }
    started_at = {"DaemonStartTime": int(now - head.uptime_s)}
    return [
        PoolAd({**_daemon(my_type, head.schedd_name, head.address, now), **started_at, **more})
        for name, (my_type, more) in own.items()
        if kind in (name, "any")
    ]


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
