"""Tables: by character, and by what clients' parsers make of them."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest

from pilotq.condor import tables
from pilotq.condor.expressions import ad_of
from pilotq.condor.poolads import WorkerFacts, machine_ads, schedd_ad, submitter_ad
from pilotq.condor.statustables import status_table
from pilotq.condor.tables import Batch
from pilotq.model import State

# 2024-05-02 11:43:00 UTC and later.
QUEUED = 1_714_650_180
NOW = QUEUED + 3600.0
BASE = {
    "ClusterId": 1,
    "ProcId": 0,
    "Owner": '"bob"',
    "QDate": QUEUED,
    "JobStatus": 1,
    "JobPrio": 0,
    "ImageSize": 0,
    "Cmd": '"/bin/sleep"',
    "Arguments": '"10"',
}


def line(table: str, *, cumulative: bool = False, **changes: object) -> str:
    ad = ad_of({**BASE, **changes})  # type: ignore[dict-item]
    rest = tables.row(table, ad, NOW, time.gmtime, cumulative)
    return f"{tables.job_name(int(ad['clusterid']), int(ad['procid']))} {rest}"


def test_nobatch_layout() -> None:
    assert tables.HEADINGS["nobatch"] == (" ID      OWNER            SUBMITTED     RUN_TIME ST PRI SIZE CMD\n")
    assert line("nobatch") == "   1.0   bob             5/2  11:43   0+00:00:00 I  0    0.0 sleep 10\n"
    grown = {"ClusterId": 12345, "ProcId": 10, "JobStatus": 2, "JobPrio": -10, "MemoryUsage": 1953.125}
    assert line("nobatch", ShadowBday=NOW - 90061, **grown) == (
        "12345.10  bob             5/2  11:43   1+01:01:01 R  -10 1953.1 sleep 10\n"
    )


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"JobStatus": 2, "ShadowBday": QUEUED + 3540}, "0+00:01:00 R"),
        ({"JobStatus": 6, "ShadowBday": QUEUED + 3540}, "0+00:01:00 >"),
        ({"JobStatus": 7, "ShadowBday": QUEUED + 3540}, "0+00:01:00 S"),
        ({"JobStatus": 5, "ShadowBday": QUEUED, "LastRunWallClockTime": "20.0"}, "0+00:00:20 H"),
        ({"JobStatus": 4, "LastRunWallClockTime": "20.0"}, "0+00:00:20 C"),
        ({"JobStatus": 3}, "0+00:00:00 X"),
    ],
)
def test_run_time_and_state(changes: dict[str, object], shown: str) -> None:
    assert shown in line("nobatch", **changes)


def test_cumulative_time() -> None:
    running = {"JobStatus": 2, "ShadowBday": QUEUED + 3540, "RemoteWallClockTime": "100.0"}
    assert "0+00:02:40" in line("nobatch", cumulative=True, **running)


def test_commands_stay_on_one_line() -> None:
    assert line("nobatch", Arguments='"a\nb\tc"').endswith(" sleep a b c\n")
    assert line("nobatch", JobDescription='"what it does"').endswith(" (what it does)\n")
    assert line("nobatch", MemoryUsage="ResidentSetSize / 1024", ResidentSetSize=4096).split()[7] == "4.0"


def test_other_tables() -> None:
    running = line("run", JobStatus=2, ShadowBday=QUEUED, RemoteHost='"slot1@node1"')
    assert running == "   1.0   bob             5/2  11:43   0+01:00:00 slot1@node1\n"
    held = {"JobStatus": 5, "EnteredCurrentStatus": QUEUED, "HoldReasonCode": 12, "HoldReasonSubCode": 28}
    assert line("hold", HoldReason='"disk\nfull"', **held) == (
        "   1.0   bob             5/2  11:43 12/28    disk full\n"
    )
    assert line("idle", JobUniverse=9, RequestCpus=2, RequestMemory="1024 * 2", NumJobStarts=3) == (
        "   1.0   bob            grid        2     2048      3 \n"
    )


def test_history_layout() -> None:
    ended = {"JobStatus": 4, "RemoteWallClockTime": "61.5", "CompletionDate": QUEUED + 120}
    assert line("history", **ended) == (
        "   1.0   bob             5/2  11:43   0+00:01:01 C   5/2  11:45 /bin/sleep 10\n"
    )
    assert line("history", JobStatus=3).split()[5:] == ["X", "???", "/bin/sleep", "10"]


def test_heading() -> None:
    assert tables.heading("head.example", "10.0.0.1:9094", NOW, time.gmtime) == (
        "\n\n-- Schedd: head.example : <10.0.0.1:9094?... @ 05/02/24 12:43:00\n"
    )


def test_totals_count_outputs_on_their_way_as_running() -> None:
    assert tables.totals("query", Counter({1: 2, 2: 1, 6: 1, 5: 3, 7: 1, 4: 1, 3: 1})) == (
        "Total for query: 10 jobs; 1 completed, 1 removed, 2 idle, 2 running, 3 held, 1 suspended"
    )


def test_a_terminal_cuts_lines_and_nothing_else_does() -> None:
    long = line("nobatch", Arguments=f'"{"x" * 200}"')
    assert tables.cut(long, 0) == long
    assert tables.cut(long, 79) == long[:79] + "\n"
    assert tables.cut("short\n", 79) == "short\n"


def test_batch_table() -> None:
    rows = [Batch("alice", "ID: 1", QUEUED, total=3, counts=Counter({2: 1, 1: 2}), first=(1, 0), last=(1, 2))]
    assert tables.batch_table(rows, time.gmtime) == (
        "OWNER BATCH_NAME    SUBMITTED   DONE   RUN    IDLE  TOTAL JOB_IDS\n"
        "alice ID: 1        5/2  11:43      _      1      2      3 1.0-2\n"
    )
    rows.append(Batch("bob", "a long name of it", QUEUED, 9, Counter({5: 1, 6: 2, 7: 1}), (2, 5), (4, 1)))
    assert tables.batch_table(rows, time.gmtime) == (
        "OWNER BATCH_NAME           SUBMITTED   DONE   RUN    IDLE   HOLD  TOTAL JOB_IDS\n"
        "alice ID: 1               5/2  11:43      _      1      2      _      3 1.0-2\n"
        "bob   a long name of it   5/2  11:43      5      2      1      1      9 2.5 ... 4.1\n"
    )
    assert "1.7\n" in tables.batch_table([Batch("a", "b", 0, 1, Counter({1: 1}), (1, 7), (1, 7))], time.gmtime)


def test_balsam_reads_the_state_of_each_job() -> None:
    """Its parser: from the line with ID, OWNER and CMD to the one with completed, removed and idle; nine words."""
    text = tables.heading("head", "h:1", NOW, time.gmtime) + tables.HEADINGS["nobatch"]
    for status, proc in ((1, 0), (2, 1), (5, 2)):
        text += line("nobatch", ClusterId=6903, ProcId=proc, JobStatus=status)
    text += "\n" + tables.totals("query", Counter({1: 1, 2: 1, 5: 1})) + " \n"
    states, inside = {}, False
    for found in text.splitlines():
        if all(word in found for word in ("ID", "OWNER", "CMD")):
            inside = True
        elif all(word in found for word in ("completed", "removed", "idle")):
            inside = False
        elif inside and len(found.split()) >= 9:
            words = found.split()
            states[words[0]] = words[5]
    assert states == {"6903.0": "I", "6903.1": "R", "6903.2": "H"}


# ---- condor_status -----------------------------------------------------------------------------------------------

WORKERS = [
    WorkerFacts("w1", "node1", cpus=2, busy=1, memory_bytes=4 << 30, disk_bytes=1 << 30),
    WorkerFacts("w2", "node2", cpus=1, busy=0, state="draining"),
    WorkerFacts("w3", "node3", cpus=1, busy=1, state="draining"),
    WorkerFacts("w4", "node4", cpus=8, busy=8, state="lost"),
]


def test_machine_table() -> None:
    assert status_table("machines", machine_ads(WORKERS, NOW), NOW, False) == (
        "Name        OpSys      Arch   State     Activity LoadAv    Mem   ActvtyTime\n"
        "\n"
        "slot1@node1 LINUX      X86_64 Claimed   Busy      1.000   2048   0+00:00:00\n"
        "slot2@node1 LINUX      X86_64 Unclaimed Idle      0.000   2048   0+00:00:00\n"
        "slot1@node2 LINUX      X86_64 Drained   Retiring  0.000      0   0+00:00:00\n"
        "slot1@node3 LINUX      X86_64 Claimed   Busy      1.000      0   0+00:00:00\n"
        "\n"
        "                Total Owner Claimed Unclaimed Matched Preempting  Drain Backfill BkIdle\n"
        "\n"
        "  X86_64/LINUX      4     0       2         1       0          0      1        0      0\n"
        "\n"
        "         Total      4     0       2         1       0          0      1        0      0\n"
    )
    assert status_table("machines", [], NOW, False) == ""
    assert status_table("machines", machine_ads(WORKERS, NOW), NOW, True).startswith("\n                Total Owner")


def test_slots_of_two_workers_on_one_host_have_names_of_their_own() -> None:
    ads = machine_ads([WorkerFacts("a", "node"), WorkerFacts("b", "node")], NOW)
    assert [tables.word(ad, "name") for ad in ads] == ["slot1@a@node", "slot1@b@node"]
    assert {tables.word(ad, "machine") for ad in ads} == {"node"}


def test_schedd_and_submitters() -> None:
    counts = {State.IDLE: 5, State.ASSIGNED: 1, State.RUNNING: 2, State.STAGING_OUT: 1, State.HELD: 1}
    ad = schedd_ad("head", "h:1", 1, counts, NOW)
    assert [ad.get(name) for name in ("totalrunningjobs", "totalidlejobs", "totalheldjobs")] == ["3", "6", "1"]
    text = status_table("schedd", [ad], NOW, False)
    assert text.startswith(
        "Name Machine RunningJobs   IdleJobs   HeldJobs\n\nhead head              3          6          1\n\n"
    )
    assert re.search(r"\n\s+TotalRunningJobs\s+TotalIdleJobs\s+TotalHeldJobs\n", text)
    assert text.splitlines()[-1].split() == ["Total", "3", "6", "1"]
    assert status_table("schedd", [], NOW, False) == ""
    submitter = submitter_ad("alice", "head", "h:1", counts, NOW)
    shown = status_table("submitters", [submitter], NOW, False)
    assert shown.splitlines()[2].split() == ["alice@head", "head", "3", "6", "1"]
