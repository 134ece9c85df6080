"""Clusters of many jobs: what does not differ is there once, and each job is what it would be alone."""

from __future__ import annotations

import gc
import sys
from types import FrameType

import msgspec
import pytest
from submitting import HOME, User, argvs, proc

from pilotq.condor import transfers
from pilotq.condor.jobfile import patched
from pilotq.condor.submit import Plan
from pilotq.deltas import each_delta, find_delta
from pilotq.model import CLUSTER_MARK, PROC_MARK, fill

EXE = "executable = job.sh\n"


def test_a_million_jobs_that_differ_by_number_alone_are_as_small_as_one() -> None:
    text = EXE + (
        "arguments = $(Process) $(Step)\nenvironment = \"P=$(ProcId) C='$(ClusterId) x'\"\noutput = o.$(Process)\n"
        "error = e.$(Cluster).$(Process)\nlog = l\n+Number = $(Process) + 1\nperiodic_hold = ProcId == $(Process)\n"
        "queue 1000000\n"
    )
    submission = User().one(text)
    assert (submission.count, submission.deltas) == (1_000_000, [])
    assert len(msgspec.msgpack.encode(submission)) < 8000
    description, body = proc(submission, 999_999, 12)
    assert description.argv[1:] == ["999999", "999999"]
    assert description.env == {"P": "999999", "C": "12 x"}
    assert (body.stdout, body.stderr) == (f"{HOME}/o.999999", f"{HOME}/e.12.999999")
    assert body.ad["Number"] == "999999 + 1" and body.policies["periodic_hold"] == "ProcId == 999999"
    assert submission.body.stdout == f"{HOME}/o.{PROC_MARK}" and CLUSTER_MARK in submission.body.stderr


def test_only_what_differs_is_in_a_delta() -> None:
    user = User()
    user.files |= {f"{HOME}/d/x{i}": b"%d" % i for i in range(3)}
    text = EXE + (
        'arguments = $(x) $(Process)\noutput = o.$(Process)\n+Q = "$(x)"\nrequest_memory = 5\n'
        "transfer_input_files = d/x$(Process)\nqueue x in (a 'b c)\n"
    )
    submission = user.one(text)
    assert argvs(submission) == [["a", "0"], ["'b", "1"], ["c", "2"]]
    deltas = [msgspec.msgpack.decode(delta) for delta in each_delta(submission.deltas)]
    assert all(set(delta) <= {"argv", "ad", "files"} for delta in deltas)
    assert deltas[1]["ad"] == {"Args": f'"\'b {PROC_MARK}"', "Q": '"\'b"', "TransferInput": '"d/x1"'}
    assert deltas[1]["argv"] == ["./condor_exec.exe", "'b", PROC_MARK]
    assert [file.name for file in proc(submission, 2)[0].files] == ["x2", "condor_exec.exe"]


def test_what_must_be_known_as_a_number_is_planned_for_each() -> None:
    user = User()
    user.files |= {f"{HOME}/run{i}/in": b"%d" % i for i in range(3)}
    text = EXE + "initialdir = run$(Process)\ninput = in\noutput = out\narguments = $INT(Process,%03d)\nqueue 3\n"
    submission = user.one(text)
    assert [proc(submission, i)[1].stdout for i in range(3)] == [f"{HOME}/run{i}/out" for i in range(3)]
    assert len({proc(submission, i)[0].files[0].digest for i in range(3)}) == 3
    assert argvs(submission) == [["000"], ["001"], ["002"]]
    assert user.rounds == 3
    user.files = {**user.files, f"{HOME}/run1/out.old": b""}
    inner = user.files.pop(f"{HOME}/run1/in")
    assert f'Can\'t open "{HOME}/run1/in"' in user.refused(text)
    user.files[f"{HOME}/run1/in"] = inner
    user.readonly = {f"{HOME}/run2/out"}
    assert f'Can\'t open "{HOME}/run2/out"' in user.refused(text)


def test_a_directory_for_each_job_is_checked() -> None:
    user = User()
    user.files |= {f"{HOME}/run{i}": None for i in range(2)}
    assert f'Can\'t open "{HOME}/run2/o"' in user.refused(EXE + "output = run$(Process)/o\nqueue 3\n")
    assert f'Can\'t open "{HOME}/no/o"' in user.refused(EXE + "output = $(x)/o\nqueue x in (run0 run1 no)\n")


def test_one_file_of_a_directory_is_tried_however_many_jobs_write_there() -> None:
    user = User()
    user.one(EXE + "output = o.$(x)\nerror = e.$(Process)\nlog = l\nqueue x from (\n" + "\n".join("abcdef") + "\n)\n")
    assert [argument for kind, argument in user.wants if kind == "write"] == [
        f"{HOME}/o.a", f"{HOME}/e.0", f"{HOME}/l"
    ]  # fmt: skip


def test_several_queue_statements_are_one_cluster() -> None:
    text = EXE + "arguments = $(Process)\nlog = l\nqueue 2\narguments = x$(Process)\n+B = 2\nqueue 2\n"
    submission = User().one(text)
    assert argvs(submission) == [["0"], ["1"], ["x2"], ["x3"]]
    assert list(each_delta(submission.deltas))[:2] == [msgspec.msgpack.encode({})] * 2
    assert [proc(submission, i)[1].ad.get("B") for i in range(4)] == [None, None, "2", "2"]
    assert User().one(EXE + "queue 2\nqueue 3\n").deltas == []


def test_what_a_later_statement_takes_away_is_gone() -> None:
    text = (
        EXE + 'output = o\narguments = a\nenvironment = A=1\n+X = 1\nqueue\noutput =\narguments = "b"\nenvironment =\n'
    )
    submission = User().one(text + "+X =\nqueue\n")
    (first, one), (second, two) = proc(submission, 0), proc(submission, 1)
    assert (first.keep_stdout, first.env, one.ad["X"]) == (True, {"A": "1"}, "1")
    assert (second.keep_stdout, second.env, two.stdout, two.ad["X"]) == (False, {}, "", "undefined")
    assert (two.ad["Args"], two.ad["Arguments"]) == ("undefined", '"b"')


def test_another_executable_is_another_cluster() -> None:
    user = User()
    user.files[f"{HOME}/other.sh"] = b"x"
    plan = user.submit(EXE + "arguments = $(Process)\nqueue 2\nexecutable = other.sh\nqueue 2\n")
    assert isinstance(plan, Plan) and plan.stderr == ""
    assert [argvs(submission) for submission in plan.submissions] == [[["0"], ["1"]], [["0"], ["1"]]]
    assert "-single-cluster is given" in user.refused(EXE + "queue\nexecutable=other.sh\nqueue\n", "-single", "job.sub")


def test_what_a_cluster_needs_is_enough_for_all_of_its_jobs() -> None:
    for text in ("request_cpus = 1\nqueue\nrequest_cpus = 3\nqueue 2\n", "request_cpus=$(x)\nqueue x in (1 3 2)\n"):
        plan = User().submit(EXE + text)
        assert isinstance(plan, Plan)
        assert [(s.count, s.description.needs.cpus) for s in plan.submissions] == [(3, 3)]
        assert "request_* differs" in plan.stderr
        ads = [proc(plan.submissions[0], number)[1].ad["RequestCpus"] for number in range(3)]
        assert ads[:2] == ["1", "3"]


def test_jobs_of_a_cluster_may_have_other_priorities_and_policies() -> None:
    submission = User().one(EXE + "priority = $(x)\nperiodic_remove = JobStatus == $(x)\nqueue x in (0 7 3)\n")
    assert (submission.body.priority, submission.body.policies) == (7, {"periodic_remove": "PeriodicRemove"})
    found = [proc(submission, number)[1].ad for number in range(3)]
    assert [(ad["JobPrio"], ad["PeriodicRemove"]) for ad in found] == [
        ("0", "JobStatus == 0"),
        ("7", "JobStatus == 7"),
        ("3", "JobStatus == 3"),
    ]
    assert "hold differs between the jobs" in User().refused(EXE + "hold = $(x)\nqueue x in (0 1)\n")


def test_a_policy_that_only_some_jobs_have() -> None:
    submission = User().one(EXE + "queue\nperiodic_hold = true\nqueue\n")
    assert submission.body.policies == {"periodic_hold": "PeriodicHold"}
    assert [proc(submission, number)[1].ad["PeriodicHold"] for number in (0, 1)] == ["undefined", "true"]


def test_the_ad_file_of_a_job_is_that_of_its_cluster_with_its_delta() -> None:
    submission = User().one(EXE + "arguments = $(x)\n+Q = $(x)\nqueue x in (1 2)\n")
    delta = msgspec.msgpack.decode(find_delta(submission.deltas, 1))
    text = fill(patched(submission.description.job_ad, delta["ad"]), 7, 1)
    assert 'Args = "2"\n' in text and "Q = 2\n" in text and "ProcId = 1\n" in text
    lines = text.splitlines()
    assert lines == sorted(lines, key=str.lower)


def test_too_many_are_refused_before_they_take_memory() -> None:
    assert "more than pilotq takes at once" in User().refused(EXE + "queue 9000000 x in (a b)\n")
    assert "more than 2000000 jobs that are not alike" in User().refused(EXE + "queue\narguments = a\nqueue 9000000\n")


@pytest.mark.parametrize("values", [["a", "b.c", "d/e", "f@g:1"], ["a b", "c"], ["'", "x"], ["$(y)", "$"], ["", "z"]])
def test_each_job_is_what_it_would_be_alone(values: list[str]) -> None:
    text = EXE + (
        "y = why\narguments = -f $(v) --n=$(v)\nenvironment = A=$(v);B_1=x$(v)x\noutput = o_$(v)\nerror = o_z\n"
        '+S = "$(v)"\n'
    )
    user = User()
    user.files |= {f"{HOME}/o_d": None}
    rows = "\n".join(f"{index} {value}" for index, value in enumerate(values))
    many = user.one(text + f"queue n, v from (\n{rows}\n)\n")
    assert many.count == len(values)
    for number, value in enumerate(values):
        alone_description, alone_body = proc(user.one(text + f"v = {value}\nqueue\n"), 0)
        description, body = proc(many, number)
        assert (description.argv, description.env) == (alone_description.argv, alone_description.env)
        assert (description.merge, body.stdout) == (alone_description.merge, alone_body.stdout)
        for name in ("Args", "Environment", "Out", "S"):
            assert body.ad[name] == alone_body.ad[name]


def test_what_is_not_made_again_is_what_each_job_would_have_alone() -> None:
    user = User()
    user.files |= {f"{HOME}/{name}": name.encode() for name in ("x1", "x2", "y1", "y2", "z")}
    rows = ["a x 1", "b x 2", "c x 1", "d y 1", "e", "f y 2", "g y 1", "h x 1"]
    text = EXE + "x_file = x$(number)\ny_file = y$(number)\ntransfer_input_files = $($(kind)_file:z)\n"
    many = user.one(
        f"{text}arguments = $(name) $(Step)\nqueue 2 name, kind, number from (\n" + "\n".join(rows) + "\n)\n"
    )
    assert [words[:2] for words in argvs(many)] == [[row[0], str(step)] for row in rows for step in range(2)]
    for place, row in enumerate(rows):
        alone = user.one(f"{text}queue 1 name, kind, number from (\n{row}\n)\n")
        for number in (2 * place, 2 * place + 1):
            assert proc(many, number)[0].files == proc(alone, 0)[0].files


def test_files_are_looked_at_once_for_each_value_of_the_variables_that_name_them() -> None:
    calls = 0

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is transfers.on_files.__code__

    user = User()
    user.files |= {f"{HOME}/in.{number}": b"%d" % number for number in range(3)}
    rows = "\n".join(f"item-{number} {number % 3}" for number in range(300))
    sys.setprofile(on_event)
    try:
        submission = user.one(f"{EXE}transfer_input_files = in.$(file)\nqueue item, file from (\n{rows}\n)\n")
    finally:
        sys.setprofile(None)
    assert submission.count == 300 and len({proc(submission, number)[0].files[0].digest for number in range(300)}) == 3
    assert calls <= 5 * user.rounds


ITEMS = 3000


def many_of_their_own() -> tuple[User, str]:
    """Jobs with arguments, environment and files of their own."""
    user = User()
    user.files |= {f"{HOME}/in.{number}": b"%d" % number for number in range(10)}
    user.files[f"{HOME}/items"] = b"".join(b"name-of-item-%09d %d\n" % (n, n % 10) for n in range(ITEMS))
    return user, EXE + (
        'arguments = "work $(item)"\nenvironment = "ITEM=$(item) PART=$(Process)"\ntransfer_input_files = in.$(file)\n'
        "queue item, file from items\n"
    )


def test_of_jobs_that_differ_by_items_little_more_than_the_items_is_kept() -> None:
    user, text = many_of_their_own()
    submission = user.one(text)
    # Of these the item takes 23 and its head one.
    assert sum(map(len, submission.deltas)) < 30 * ITEMS
    description, _ = proc(submission, ITEMS - 1)
    assert description.argv[1:] == ["work", f"name-of-item-{ITEMS - 1:09d}"]
    assert description.env == {"ITEM": f"name-of-item-{ITEMS - 1:09d}", "PART": str(ITEMS - 1)}
    assert description.files[0].name == "in.9"


def test_a_job_that_differs_by_items_takes_few_calls() -> None:
    user, text = many_of_their_own()
    calls = 0

    def on_event(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(on_event)
    try:
        user.one(text)
    finally:
        sys.setprofile(None)
    # Two rounds go over all the items.
    assert calls < 25 * ITEMS


def test_a_plan_leaves_nothing_for_the_collector() -> None:
    user, text = many_of_their_own()
    user.one(text)
    gc.collect()
    gc.disable()
    try:
        user.one(text)
        assert gc.collect() < 100
    finally:
        gc.enable()
