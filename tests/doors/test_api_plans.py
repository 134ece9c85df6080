"""Plans that are remembered for a second."""

from __future__ import annotations

from pilotq.api import _Plans
from pilotq.condor.request import read_request, write_fields
from pilotq.condor.submit import Plan, Site, plan_submit
from pilotq.model import Resources

SITE = Site(
    host="head",
    schedd_name="head",
    arch="X86_64",
    needs=Resources(1),
    wall_time_s=0,
    wrapper=[],
    wrapper_file=None,
    valid=lambda expression: True,
)


def request(key: str, arguments: str = "", cwd: str = "/tmp") -> bytes:
    text = f"executable = /bin/true\ntransfer_executable = false\narguments = {arguments}\nqueue\n".encode()
    have = write_fields([b"read", b"-", b"ok", text])
    fields = [b"tool", b"condor_submit", b"key", key.encode(), b"cwd", cwd.encode(), b"user", b"me", b"have", have]
    return write_fields(fields)


def planned(plans: _Plans, data: bytes, now: float) -> tuple[Plan, bool]:
    """A plan as the API makes it; was it known?"""
    wanted = read_request(data)
    found = plans.find(wanted, data, now)
    if found is not None:
        return found, True
    plan = plan_submit(wanted, now, SITE)
    assert isinstance(plan, Plan), plan
    plans.keep(wanted, data, now, plan)
    return plan, False


def test_the_same_submission_with_another_key_is_planned_once_a_second() -> None:
    plans = _Plans()
    first, _ = planned(plans, request("a"), 100.1)
    again, known = planned(plans, request("b"), 100.9)
    assert known
    assert again is first
    anew = plan_submit(read_request(request("b")), 100.9, SITE)
    assert isinstance(anew, Plan)
    assert [one.description for one in anew.submissions] == [one.description for one in again.submissions]
    assert not planned(plans, request("c"), 101.0)[1], "the time is in the job ad"


def test_another_submission_is_planned_anew() -> None:
    plans = _Plans()
    planned(plans, request("a"), 100.0)
    assert not planned(plans, request("a", "x"), 100.0)[1]
    assert not planned(plans, request("a", cwd="/"), 100.0)[1]


def test_random_macros_are_drawn_for_each_submission() -> None:
    plans = _Plans()
    draws = {
        planned(plans, request(key, "$RANDOM_INTEGER(1,1000000000)"), 100.0)[0].submissions[0].description.argv[1]
        for key in ("a", "b", "c")
    }
    assert len(draws) == 3
