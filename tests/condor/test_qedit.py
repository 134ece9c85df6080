"""condor_qedit and condor_prio: command lines, texts, streams and exit codes."""

from __future__ import annotations

from typing import Any

import pytest

from pilotq.condor.actions import Result
from pilotq.condor.edits import Editing, edited, parse
from pilotq.condor.request import Reply, Request


def asked(line: str | list[str]) -> Editing | Reply:
    words = line.split() if isinstance(line, str) else line
    return parse(Request(tool=words[0], argv=words[1:], user="bob"))


def editing(line: str | list[str]) -> Editing:
    found = asked(line)
    assert isinstance(found, Editing), found
    return found


@pytest.mark.parametrize(
    ("line", "selections", "changes"),
    [
        ("condor_qedit 5.0 A 1", [(5, 0)], {"A": "1"}),
        ("condor_qedit 5.0 5.1 A=1 B x+1", [(5, 0), (5, 1)], {"A": "1", "B": "x+1"}),
        ("condor_qedit 5 B=2 A=1", [(5, -1)], {"A": "1", "B": "2"}),
        (["condor_qedit", "bob", "A", '"x y"'], [{"constraint": 'Owner == "bob"'}], {"A": '"x y"'}),
        ("condor_qedit -const B==1 A 1", [{"constraint": "B==1"}], {"A": "1"}),
        (
            "condor_qedit 5.1 6 -const B==1 A 1",
            [{"constraint": "((ClusterId == 5 && ProcId == 1) || (ClusterId == 6)) && (B==1)"}],
            {"A": "1"},
        ),
        ("condor_prio -p 7 5 6.1", [(5, -1), (6, 1)], {"JobPrio": "7"}),
        ("condor_prio +3 5.0", [(5, 0)], {"JobPrio": "3"}),
        ("condor_prio -3 bob", [{"constraint": 'Owner == "bob"'}], {"JobPrio": "-3"}),
        ("condor_prio -p -2 -a", [{"constraint": "true"}], {"JobPrio": "-2"}),
    ],
)
def test_what_is_changed_of_whom(line: str | list[str], selections: list[Any], changes: dict[str, str]) -> None:
    found = editing(line)
    assert (found.selections, found.changes) == (selections, changes)
    assert list(found.changes) == sorted(changes)


def test_a_priority_goes_before_an_adjustment() -> None:
    assert editing("condor_prio +3 5.0").adjust
    for line in ("condor_prio +3 -p 7 5.0", "condor_prio -p 7 +3 5.0"):
        assert (editing(line).changes, editing(line).adjust) == ({"JobPrio": "7"}, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("condor_qedit", "Usage: condor_qedit "),
        ("condor_qedit 5.0", "condor_qedit : Error - no attributes specifed.\nUsage: condor_qedit "),
        ("condor_qedit -x 5.0 A 1", "condor_qedit: -x is not a valid option\nUsage: "),
        ("condor_qedit 5.0 A", "condor_qedit : expression required after attribute A\nUsage: "),
        ("condor_qedit 5x A 1", "Invalid cluster # from 5x.\n"),
        ("condor_qedit -const A== A 1", "condor_qedit: A== is not a valid constraint\n"),
        (
            "condor_qedit 5.0 A 1+",
            "Update aborted, illegal value for : A\nTransaction failed.  No attributes were set.\n",
        ),
        ("condor_qedit 5.0 JobPrio high", "Update aborted, illegal value for : JobPrio\nTransaction failed."),
        (
            "condor_qedit 5.0 1A 1",
            'Update aborted, illegal attribute-name specified for attribute "1A".\nTransaction failed.',
        ),
        (
            "condor_qedit 5.0 clusterid 1",
            'Update of immutable attribute "clusterid" is not allowed.\nTransaction failed.',
        ),
        (
            "condor_qedit 5.0 JobStatus 1",
            'Update of immutable attribute "JobStatus" is not allowed.\nTransaction failed.',
        ),
        (
            "condor_qedit 5.0 Args 1",
            'Update of attribute "Args" is not allowed: pilotq fixes it when the job is submitted',
        ),
        ("condor_prio", "Usage: condor_prio "),
        ("condor_prio 5.0", "You must specify a new priority or priority adjustment.\nUsage: condor_prio "),
        ("condor_prio 5.0 -p", "condor_prio: -p requires another argument\n"),
        ("condor_prio -p x 5.0", "condor_prio: -p requires a number, not x\n"),
    ],
)
def test_usage_errors(line: str, message: str) -> None:
    found = asked(line)
    assert isinstance(found, Reply)
    assert found.err.startswith(message)
    assert (found.out, found.exit) == ("", 1)


def done(line: str, *results: Result) -> tuple[str, str, int]:
    reply = edited(editing(line), list(results))
    return reply.out, reply.err, reply.exit


def test_what_is_said() -> None:
    assert done("condor_qedit 5.0 5.1 B 2 A 1", (5, 0, "ok"), (5, 1, "ok")) == (
        'Set attribute "A" for 2 matching jobs.\nSet attribute "B" for 2 matching jobs.\n',
        "",
        0,
    )
    assert done("condor_qedit 5 A 1", (5, 0, "ok")) == ('Set attribute "A" for all matching jobs.\n', "", 0)
    assert done("condor_qedit -dry-run 5.0 A 1", (5, 0, "ok"))[0] == 'Can Set attribute "A" for 1 matching jobs.\n'
    failed = "Queue transaction failed.  No attributes were set.\n"
    assert done("condor_qedit 5.0 5.7 B 2 A 1", (5, 0, "ok"), (5, 7, "not_found")) == (
        "",
        f'Failed to set attribute "A" for job 5.7.\n{failed}',
        1,
    )
    none = ("", f'Failed to set attribute "A" by constraint: B==1\n{failed}', 1)
    assert done("condor_qedit -const B==1 A 1") == none


def test_what_condor_prio_says() -> None:
    assert done("condor_prio +1 5 %x", (5, 0, "ok")) == ("", 'Warning: unrecognized "%x" skipped\n', 0)
    assert done("condor_prio +1 5.0 5.7", (5, 0, "ok"), (5, 7, "not_found")) == (
        "",
        "Couldn't retrieve current priority for 5.7.\n",
        0,
    )
