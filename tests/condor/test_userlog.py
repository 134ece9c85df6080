"""The user log, held against HTCondor's own reader: what it reads and writes again is what we wrote."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotq.condor import userlog
from pilotq.condor.userlog import format_event
from pilotq.condor.userlog_xml import _EVENTS, format_xml_event
from pilotq.model import Facts, HoldCode, Outcome, Resources, Usage

htcondor2 = pytest.importorskip("htcondor2")

AT = 1_767_323_045.0
ADDRESS = "10.0.0.1:9094"
EVENTS = [0, 1, 4, 5, 6, 9, 10, 11, 12, 13, 22, 23, 24]
RAN = Usage(user_s=3661.7, system_s=90000.2, memory_bytes=300 << 20, disk_bytes=5 << 20, wall_s=100_000)


@pytest.fixture(autouse=True, scope="module")
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def event(number: int, facts: Facts, cluster: int = 7, proc: int = 0, **more: object) -> str:
    return format_event(number, cluster, proc, AT, facts, address=ADDRESS, local=local, **more)  # type: ignore[arg-type]


def read(path: Path, texts: list[str]) -> list[object]:
    path.write_text("".join(texts), encoding="utf-8")
    return list(htcondor2.JobEventLog(str(path)).events(stop_after=0))


@pytest.mark.parametrize("number", EVENTS)
@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(host="node1", reason="via condor_rm (by user bob)", release_reason="go on", usage=RAN),
        Facts(host="node1", reason="two\nlines\r\nand ...\n...\n", hold_code=HoldCode.INPUT_FILE, hold_subcode=2),
        Facts(host="node1", outcome=Outcome.SIGNAL, code=11, sent_bytes=12345, received_bytes=1 << 40),
    ],
)
def test_round_trip(tmp_path: Path, number: int, facts: Facts) -> None:
    text = event(number, facts, needs=Resources(cpus=2, memory_bytes=1 << 30))
    found = read(tmp_path / "log", [text])
    assert [f"{one}...\n" for one in found] == [text]
    assert int(found[0].type) == number  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", EVENTS)
@pytest.mark.parametrize("needs", [None, Resources(cpus=2, memory_bytes=1 << 30, disk_bytes=1 << 20, gpus=1)])
@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(
            host="node1", reason="via <condor_rm> & 'so' \"on\"", release_reason="go on", usage=RAN, sent_bytes=1 << 40
        ),
        Facts(host="node1", outcome=Outcome.SIGNAL, code=11, reason="two\nlines", hold_code=HoldCode.INPUT_FILE),
    ],
)
def test_xml_says_the_same(tmp_path: Path, number: int, facts: Facts, needs: Resources | None) -> None:
    classic = event(number, facts, needs=needs)
    xml = format_xml_event(number, 7, 0, AT, facts, address=ADDRESS, local=local, needs=needs)
    (read_classic,), (read_xml,) = read(tmp_path / "log", [classic]), read(tmp_path / "xml", [xml])
    assert dict(read_xml) == dict(read_classic)  # type: ignore[call-overload]
    assert f"{read_xml}...\n" == classic


def test_a_whole_log_is_read_event_by_event(tmp_path: Path) -> None:
    facts = Facts(host="node1", reason="why", outcome=Outcome.OK, usage=RAN, hold_code=1)
    texts = [event(number, facts, proc=proc) for proc in range(3) for number in EVENTS]
    found = read(tmp_path / "log", texts)
    assert [f"{one}...\n" for one in found] == texts


def test_what_the_reader_understands(tmp_path: Path) -> None:
    ended = Facts(host="node1", outcome=Outcome.EXIT, code=3, usage=RAN)
    killed = Facts(outcome=Outcome.SIGNAL, code=9)
    held = Facts(reason="disk full", hold_code=HoldCode.OUTPUT_FILE, hold_subcode=28)
    needs = Resources(cpus=2, memory_bytes=1 << 30, disk_bytes=1 << 20)
    texts = [
        event(0, Facts(), cluster=12345, proc=100_000),
        event(1, Facts(host="node1")),
        event(5, ended, needs=needs),
        event(5, killed),
        event(12, held),
    ]
    submitted, started, normal, abnormal, hold = [dict(one) for one in read(tmp_path / "log", texts)]  # type: ignore[call-overload]
    assert (submitted["Cluster"], submitted["Proc"]) == (12345, 100_000)
    assert submitted["SubmitHost"] == f"<{ADDRESS}>"
    assert submitted["EventTime"] == "2026-01-02T03:04:05"
    assert started["SlotName"] == "slot1@node1"
    assert (normal["TerminatedNormally"], normal["ReturnValue"]) == (True, 3)
    assert normal["RunRemoteUsage"] == "Usr 0 01:01:01, Sys 1 01:00:00"
    assert (normal["CpusUsage"], normal["MemoryUsage"], normal["DiskUsage"]) == (0.94, 300, 5120)
    assert (normal["RequestCpus"], normal["RequestMemory"], normal["RequestDisk"]) == (2, 1024, 1024)
    assert (abnormal["TerminatedNormally"], abnormal["TerminatedBySignal"]) == (False, 9)
    assert (hold["HoldReason"], hold["HoldReasonCode"], hold["HoldReasonSubCode"]) == ("disk full", 12, 28)


sizes = st.one_of(st.just(0), st.integers(0, 1 << 24), st.integers(0, 1 << 50))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 1e7),
    st.floats(0, 1e3),
    sizes,
    sizes,
    st.sampled_from([0.0, 1.0, 3600.0]),
    st.sampled_from([1, 64]),
    sizes,
    sizes,
    st.integers(0, 2),
)
def test_the_table_of_resources(
    tmp_path_factory: pytest.TempPathFactory,
    user_s: float,
    system_s: float,
    memory: int,
    disk: int,
    wall_s: float,
    cpus: int,
    memory_wanted: int,
    disk_wanted: int,
    gpus: int,
) -> None:
    facts = Facts(outcome=Outcome.OK, usage=Usage(user_s, system_s, memory, disk, wall_s))
    text = event(5, facts, needs=Resources(cpus, memory_wanted, disk_wanted, gpus))
    found = read(tmp_path_factory.mktemp("log") / "log", [text])
    assert [f"{one}...\n" for one in found] == [text]


def test_layout() -> None:
    assert event(0, Facts()) == f"000 (007.000.000) 2026-01-02 03:04:05 Job submitted from host: <{ADDRESS}>\n...\n"
    assert event(9, Facts(reason="via condor_rm (by user bob)")) == (
        "009 (007.000.000) 2026-01-02 03:04:05 Job was aborted.\n\tvia condor_rm (by user bob)\n...\n"
    )
    assert event(12, Facts()).splitlines()[1:] == ["\tReason unspecified", "\tCode 0 Subcode 0", "..."]


def test_events_it_does_not_know() -> None:
    with pytest.raises(KeyError):
        event(99, Facts())
    assert sorted(userlog._BODIES) == sorted(_EVENTS) == EVENTS
