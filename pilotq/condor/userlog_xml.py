"""The user log as XML (log_xml): the events of `userlog` as ads.

HTCondor's own reader makes the classic text of it again; the tests hold it to that.
Source: HTCondor manual, log_xml; classads.dtd.
"""

from __future__ import annotations

from collections.abc import Callable
from xml.sax.saxutils import escape, quoteattr

from pilotq.condor import userlog
from pilotq.condor.userlog import kib_of, line_of, mib_of, node_of, times_of
from pilotq.model import Facts, Outcome, Resources

Value = str | int | float | bool
Ad = dict[str, Value]


def format_xml_event(
    event: int,
    cluster: int,
    proc: int,
    at: float,
    facts: Facts,
    *,
    address: str,
    local: Callable[[float], str],
    needs: Resources | None = None,
) -> str:
    """One event of one job; arguments are those of `userlog.format_event`.

    Raises: KeyError for an event it does not know.
    """
    name, attributes = _EVENTS[event]
    slot = f"slot1@{facts.host or 'unknown'}"
    ad: Ad = {
        "MyType": name,
        "EventTypeNumber": event,
        "EventTime": local(at).replace(" ", "T"),
        "Cluster": cluster,
        "Proc": proc,
        "Subproc": 0,
        **attributes(facts, slot, address, needs),
    }
    lines = "".join([f"    <a n={quoteattr(key)}>{_shown(value)}</a>\n" for key, value in ad.items()])
    return f"<c>\n{lines}</c>\n"


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return f'<b v="{"t" if value else "f"}"/>'
    if isinstance(value, int):
        return f"<i>{value}</i>"
    return f"<r>{value:.15E}</r>" if isinstance(value, float) else f"<s>{escape(value)}</s>"


def _reason(name: str, text: str, default: str = "") -> Ad:
    said = line_of(text) or default
    return {name: said} if said else {}


def _usages(facts: Facts, *kinds: str) -> Ad:
    found: Ad = {}
    for kind in kinds:
        total = "" if kind == "Run" else kind
        found |= {
            f"{kind}LocalUsage": times_of(0, 0),
            f"{kind}RemoteUsage": times_of(facts.usage.user_s, facts.usage.system_s),
            f"{total}SentBytes": float(facts.sent_bytes),
            f"{total}ReceivedBytes": float(facts.received_bytes),
        }
    return found


def _submitted(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    return {"SubmitHost": f"<{address}>"}


def _executing(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    return {"ExecuteHost": node_of(slot), "SlotName": slot}


def _evicted(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    flags: Ad = {"Checkpointed": False, "TerminatedAndRequeued": False, "TerminatedNormally": False}
    return {**flags, **_usages(facts, "Run"), **_reason("Reason", facts.reason)}


def _terminated(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    is_normal = facts.outcome in (Outcome.OK, Outcome.EXIT)
    number = facts.code if is_normal or facts.outcome == Outcome.SIGNAL else 9
    how = "ReturnValue" if is_normal else "TerminatedBySignal"
    table = {} if needs is None else _resources(facts, needs)
    return {"TerminatedNormally": is_normal, how: number, **_usages(facts, "Run", "Total"), **table}


def _resources(facts: Facts, needs: Resources) -> Ad:
    usage = facts.usage
    found: Ad = {"Cpus": needs.cpus, "RequestCpus": needs.cpus}
    if usage.wall_s > 0:
        found["CpusUsage"] = round((usage.user_s + usage.system_s) / usage.wall_s, 2)
    found |= {"DiskUsage": kib_of(usage.disk_bytes), "MemoryUsage": mib_of(usage.memory_bytes)}
    for name, size in (("Disk", kib_of(needs.disk_bytes)), ("Memory", mib_of(needs.memory_bytes))):
        found |= {name: size, f"Request{name}": size} if size else {}
    return found | ({"GPUs": needs.gpus, "RequestGPUs": needs.gpus} if needs.gpus else {})


def _image_size(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    size = facts.usage.memory_bytes
    return {"Size": kib_of(size), "MemoryUsage": mib_of(size), "ResidentSetSize": kib_of(size)}


def _aborted(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    return _reason("Reason", facts.reason)


def _suspended(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    return {"NumberOfPIDs": 1}


def _unsuspended(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    return {}


def _held(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    code: Ad = {"HoldReasonCode": int(facts.hold_code), "HoldReasonSubCode": facts.hold_subcode}
    return {**_reason("HoldReason", facts.reason), **code}


def _released(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    return _reason("Reason", facts.release_reason)


def _disconnected(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    where: Ad = {"StartdName": slot, "StartdAddr": node_of(slot)}
    what: Ad = {"EventDescription": "Job disconnected, attempting to reconnect"}
    return {**where, **_reason("DisconnectReason", facts.reason, "Contact was lost"), **what}


def _reconnected(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    node = node_of(slot)
    return {"StartdName": slot, "StartdAddr": node, "StarterAddr": node, "EventDescription": "Job reconnected"}


def _reconnect_failed(facts: Facts, slot: str, address: str, needs: Resources | None) -> Ad:
    what: Ad = {"StartdName": slot, "EventDescription": "Job reconnect impossible: rescheduling job"}
    return {**what, **_reason("Reason", facts.reason, "The lease is over")}


#: Event -> its type, and what it has besides.
_EVENTS: dict[int, tuple[str, Callable[[Facts, str, str, Resources | None], Ad]]] = {
    userlog.SUBMITTED: ("SubmitEvent", _submitted),
    userlog.EXECUTING: ("ExecuteEvent", _executing),
    userlog.EVICTED: ("JobEvictedEvent", _evicted),
    userlog.TERMINATED: ("JobTerminatedEvent", _terminated),
    userlog.IMAGE_SIZE: ("JobImageSizeEvent", _image_size),
    userlog.ABORTED: ("JobAbortedEvent", _aborted),
    userlog.SUSPENDED: ("JobSuspendedEvent", _suspended),
    userlog.UNSUSPENDED: ("JobUnsuspendedEvent", _unsuspended),
    userlog.HELD: ("JobHeldEvent", _held),
    userlog.RELEASED: ("JobReleaseEvent", _released),
    userlog.DISCONNECTED: ("JobDisconnectedEvent", _disconnected),
    userlog.RECONNECTED: ("JobReconnectedEvent", _reconnected),
    userlog.RECONNECT_FAILED: ("JobReconnectFailedEvent", _reconnect_failed),
}
