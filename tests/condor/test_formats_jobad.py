"""The job ad of a task in each of its states."""

from __future__ import annotations

import classad2
import msgspec
import pytest

from pilotq.condor.expressions import canonical, compiled, is_true
from pilotq.condor.jobad import CONDOR_VERSION, Job, Template, body_of, job_ad
from pilotq.condor.jobrules import Scope, scope
from pilotq.model import CLUSTER_MARK, CONDOR_STATUS, PROC_MARK, ClusterBody, Facts, HoldCode, Outcome, State, Usage

NOW = 1_700_001_000.0
BODY = ClusterBody(
    owner="alice",
    iwd="/home/alice",
    ad={
        "Cmd": '"/home/alice/agent.sh"',
        "Arguments": f'"{CLUSTER_MARK}.{PROC_MARK} x"',
        "GridResource": '"condor ce1 ce1:9619"',
        "periodichold": "false",
        "ImageSize": "4",
    },
    log=f"/home/alice/{CLUSTER_MARK}.{PROC_MARK}.log",
    policies={"periodic_remove": "NumJobStarts > 1", "periodic_hold": "JobStatus == 1"},
    batch_name="night",
    priority=3,
    submitted_at=1_700_000_000.5,
)
RAN = Facts(
    entered_at=1_700_000_900.0,
    first_started_at=1_700_000_100.0,
    last_started_at=1_700_000_500.0,
    ended_at=1_700_000_900.0,
    starts=2,
    holds=1,
    host="node1",
    wall_s=450.5,
    usage=Usage(10.0, 0.5, (5 << 20) + 1, 3 << 10, 400.0),
)


def ad(state: State, facts: Facts = RAN, body: ClusterBody = BODY, attempt: int = 2) -> dict[str, str]:
    return job_ad(body, 7, 4, state, attempt, facts, NOW, "head.example", count=10)


def changed(**values: object) -> Facts:
    return msgspec.structs.replace(RAN, **values)


def test_an_unstarted_job() -> None:
    found = ad(State.IDLE, Facts(), attempt=0)
    expected = {
        "ClusterId": "7",
        "ProcId": "4",
        "GlobalJobId": '"head.example#7.4#1700000000"',
        "Owner": '"alice"',
        "User": '"alice@head.example"',
        "QDate": "1700000000",
        "EnteredCurrentStatus": "1700000000",
        "ServerTime": "1700001000",
        "TotalSubmitProcs": "10",
        "JobStatus": "1",
        "JobPrio": "3",
        "JobUniverse": "5",
        "Iwd": '"/home/alice"',
        "UserLog": '"/home/alice/7.4.log"',
        "Arguments": '"7.4 x"',
        "JobBatchName": '"night"',
        "PeriodicRemove": "NumJobStarts > 1",
        "NumJobStarts": "0",
        "CurrentHosts": "0",
        "ImageSize": "4",
        "ExitBySignal": "false",
        "ExitStatus": "0",
        "RemoteWallClockTime": "0.0",
        "MyType": '"Job"',
        "CondorVersion": f'"{CONDOR_VERSION}"',
        "LeaveJobInQueue": "false",
    }
    assert {name: found.get(name) for name in expected} == expected
    absent = "JobStartDate CompletionDate ExitCode ExitSignal HoldReason RemoveReason RemoteHost GridJobStatus"
    assert not set(absent.split()) & set(found)


def test_names_are_sorted_and_written_once() -> None:
    names = list(ad(State.RUNNING))
    assert names == sorted(names, key=str.lower)
    assert len({name.lower() for name in names}) == len(names)
    assert ad(State.RUNNING)["PeriodicHold"] == "false"


def test_a_running_job() -> None:
    found = ad(State.RUNNING)
    expected = {
        "JobStatus": "2",
        "JobStartDate": "1700000100",
        "JobCurrentStartDate": "1700000500",
        "ShadowBday": "1700000500",
        "NumJobStarts": "2",
        "NumShadowStarts": "2",
        "RemoteHost": '"slot1@node1"',
        "CurrentHosts": "1",
        "ResidentSetSize": "5121",
        "ImageSize": "5121",
        "MemoryUsage": "6",
        "DiskUsage": "3",
        "RemoteUserCpu": "10.0",
        "RemoteSysCpu": "0.5",
        "RemoteWallClockTime": "450.5",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "LastRemoteHost" not in found


@pytest.mark.parametrize(
    ("outcome", "code", "expected"),
    [
        (Outcome.OK, 0, {"ExitBySignal": "false", "ExitCode": "0", "ExitSignal": None, "ExitStatus": "0"}),
        (Outcome.EXIT, 3, {"ExitBySignal": "false", "ExitCode": "3", "ExitSignal": None, "ExitStatus": "3"}),
        (Outcome.SIGNAL, 9, {"ExitBySignal": "true", "ExitCode": None, "ExitSignal": "9", "ExitStatus": "9"}),
    ],
)
def test_an_ended_job(outcome: Outcome, code: int, expected: dict[str, str | None]) -> None:
    found = ad(State.DONE, changed(outcome=int(outcome), code=code))
    expected = {**expected, "JobStatus": "4", "CompletionDate": "1700000900", "LastRemoteHost": '"slot1@node1"'}
    assert {name: found.get(name) for name in expected} == expected
    assert "RemoteHost" not in found
    running = ad(State.RUNNING, changed(outcome=int(outcome), code=code, ended_at=0.0))
    assert "ExitCode" not in running
    assert "ExitSignal" not in running


def test_a_job_whose_outputs_are_written_is_not_complete() -> None:
    found = ad(State.STAGING_OUT, changed(outcome=int(Outcome.OK)))
    assert (found["JobStatus"], found["ExitCode"], "CompletionDate" in found) == ("6", "0", False)


def test_a_held_job() -> None:
    found = ad(State.HELD, changed(reason='no "x"', hold_code=HoldCode.INPUT_FILE, hold_subcode=2))
    expected = {
        "JobStatus": "5",
        "HoldReason": '"no \\"x\\""',
        "HoldReasonCode": "13",
        "HoldReasonSubCode": "2",
        "NumHolds": "1",
        "NumSystemHolds": "1",
    }
    assert {name: found.get(name) for name in expected} == expected


def test_held_since_its_submission() -> None:
    body = msgspec.structs.replace(BODY, hold_reason="submitted on hold at user's request")
    found = ad(State.HELD, Facts(), body)
    assert found["HoldReason"] == '"submitted on hold at user\'s request"'
    assert found["HoldReasonCode"] == "15"


def test_released_and_removed() -> None:
    released = ad(State.IDLE, changed(release_reason="via condor_release (by user alice)", hold_code=1))
    assert released["ReleaseReason"] == '"via condor_release (by user alice)"'
    assert released["LastHoldReasonCode"] == "1"
    assert "HoldReason" not in released
    removed = ad(State.CANCELLED, changed(reason="via condor_rm (by user alice)"))
    assert (removed["JobStatus"], removed["RemoveReason"]) == ("3", '"via condor_rm (by user alice)"')
    assert "CompletionDate" not in removed


def test_grid_jobs_have_a_grid_status_so_that_jaliens_periodic_hold_does_not_fire() -> None:
    body = msgspec.structs.replace(BODY, ad={**BODY.ad, "JobUniverse": "9"})
    hold = compiled(
        "JobStatus == 1 && GridJobStatus =?= undefined && CurrentTime - EnteredCurrentStatus > 1800 || "
        "JobStatus <= 2 && CurrentTime - EnteredCurrentStatus > 172800"
    )
    for state, status in ((State.IDLE, "IDLE"), (State.ASSIGNED, "IDLE"), (State.RUNNING, "RUNNING")):
        assert ad(state, body=body)["GridJobStatus"] == f'"{status}"'
        job = Job(Template(body, 7, 1), 0, state, 0, Facts(), NOW, "head")
        assert not is_true(hold.evaluate(job, NOW + 7200))
        assert is_true(hold.evaluate(job, NOW + 200_000))
    vanilla = Job(Template(BODY, 7, 1), 0, State.IDLE, 0, Facts(), NOW, "head")
    assert is_true(hold.evaluate(vanilla, NOW + 7200))
    # JAliEn writes the same condition for a job router.
    body = msgspec.structs.replace(BODY, ad={**BODY.ad, "WantJobRouter": "True"})
    routed = Job(Template(body, 7, 1), 0, State.IDLE, 0, Facts(), NOW, "head")
    assert not is_true(hold.evaluate(routed, NOW + 7200))


@pytest.mark.parametrize("state", list(State))
def test_every_state_makes_an_ad_that_htcondor_reads(state: State) -> None:
    found = ad(state, changed(outcome=1, code=3, reason="why", hold_code=1, release_reason="so"))
    assert found["JobStatus"] == str(CONDOR_STATUS[state])
    text = "".join([f"{name} = {value}\n" for name, value in found.items()])
    read = classad2.parseOne(text, classad2.ParserType.Old)
    assert sorted(read.keys(), key=str.lower) == list(found)
    assert [canonical(value) for value in found.values()] == [
        line.partition(" = ")[2] for line in sorted(read.printOld().splitlines(), key=str.lower)
    ]


def test_one_attribute_at_a_time_is_the_same() -> None:
    job = Job(Template(BODY, 7, 10), 4, State.RUNNING, 2, RAN, NOW, "head.example")
    whole = job.attributes()
    assert {name: job.get(name.lower()) for name in whole} == whole
    assert job.attributes(["jobstatus", "CMD", "nothing"]) == {"Cmd": whole["Cmd"], "JobStatus": "2"}


def test_deltas() -> None:
    packed = msgspec.msgpack.encode(BODY)
    delta = {"argv": ["a"], "log": "/tmp/x.log", "ad": {"X": f"{PROC_MARK} + 1", "arguments": '"z"'}}
    encoded = msgspec.msgpack.encode(delta)
    merged = body_of(packed, encoded)
    assert (merged.log, merged.ad["X"], merged.ad["Cmd"]) == ("/tmp/x.log", f"{PROC_MARK} + 1", BODY.ad["Cmd"])
    plain = Template(body_of(packed), 7, 10)
    made = Job(plain.with_delta(encoded), 4, State.IDLE, 0, Facts(), NOW, "h").attributes()
    assert (made["X"], made["UserLog"], made["Arguments"]) == ("4 + 1", '"/tmp/x.log"', '"z"')
    assert "X" not in Job(plain, 4, State.IDLE, 0, Facts(), NOW, "h").attributes()
    assert plain.with_delta(msgspec.msgpack.encode({"argv": ["b"]})).common is plain.common


def test_scopes() -> None:
    template = Template(BODY, 7, 10)
    assert [scope(name, template, False) for name in ("jobstatus", "owner", "cmd", "nothing")] == [Scope.STATE] * 4
    assert [scope(name, template, False) for name in ("remotehost", "exitcode")] == [Scope.UNSTARTED] * 2
    assert [scope(name, template, False) for name in ("procid", "arguments", "userlog")] == [Scope.PROC] * 3
    assert [scope(name, template, True) for name in ("jobstatus", "cmd")] == [Scope.STATE, Scope.PROC]
