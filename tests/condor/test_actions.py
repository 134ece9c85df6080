"""condor_rm, hold, release, suspend, continue, vacate_job: command lines, texts, streams and exit codes."""

from __future__ import annotations

import pytest

from pilotq.condor.actions import Action, Result, acted, parse
from pilotq.condor.request import Reply, Request


def asked(line: str | list[str]) -> Action | Reply:
    words = line.split() if isinstance(line, str) else line
    return parse(Request(tool=words[0], argv=words[1:], user="bob"))


def action(line: str | list[str]) -> Action:
    found = asked(line)
    assert isinstance(found, Action), found
    return found


def done(line: str | list[str], *results: Result, queue_empty: bool = False) -> tuple[str, str, int]:
    reply = acted(action(line), results, queue_empty)
    return reply.out, reply.err, reply.exit


@pytest.mark.parametrize(
    ("line", "selections", "group"),
    [
        ("condor_rm 5.0 6.1", [(5, 0), (6, 1)], None),
        ("condor_rm 5", [(5, -1)], " in cluster 5"),
        (
            "condor_rm 5 6 5",
            [(5, -1), (6, -1)],
            " matching constraint (ClusterId == 5 || ClusterId == 6 || ClusterId == 5)",
        ),
        ("condor_rm 5.0 6", [(5, 0), (6, -1)], " in cluster 6"),
        ("condor_rm bob", [{"constraint": 'Owner == "bob"'}], ' of user "bob"'),
        ("condor_rm -all", [{"constraint": "true"}], ""),
        ("condor_rm -const JobStatus==1", [{"constraint": "JobStatus==1"}], " matching constraint (JobStatus==1)"),
        (
            "condor_rm -c A==1 -c B==2 5 bob",
            [{"constraint": '(ClusterId == 5 || Owner == "bob") && (A==1) && (B==2)'}],
            ' matching constraint ((ClusterId == 5 || Owner == "bob") && (A==1) && (B==2))',
        ),
    ],
)
def test_selections(line: str, selections: list[object], group: str | None) -> None:
    found = action(line)
    assert (found.selections, found.group) == (selections, group)


@pytest.mark.parametrize(
    ("line", "verb", "reason"),
    [
        ("condor_rm 5", "cancel", "via condor_rm (by user bob)"),
        ("condor_rm -forcex 5", "drop", "via condor_rm -forcex (by user bob)"),
        ("condor_rm -f 5", "drop", "via condor_rm -forcex (by user bob)"),
        ("condor_suspend 5", "suspend", "via condor_suspend (by user bob)"),
        ("condor_continue 5", "continue", "via condor_continue (by user bob)"),
        ("condor_vacate_job 5", "vacate", "via condor_vacate_job (by user bob)"),
        ("condor_vacate_job -fast 5", "vacate_fast", "via condor_vacate_job (by user bob)"),
        ("condor_hold 5", "hold", "via condor_hold (by user bob)"),
        ("condor_release 5", "release", "via condor_release (by user bob)"),
        ("condor_hold -reason because 5", "hold", "because (by user bob)"),
    ],
)
def test_verbs_and_reasons(line: str, verb: str, reason: str) -> None:
    found = action(line)
    assert (found.words.verb, found.reason) == (verb, reason)


def test_subcode_and_ignored_options() -> None:
    assert action("condor_hold -subcode 7 -name Q -pool P -debug 5").subcode == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("condor_rm", "You did not specify any jobs\nUsage: condor_rm "),
        ("condor_rm -x 5", "Unrecognized option: -x\nUsage: condor_rm "),
        ("condor_hold -forcex 5", "-forcex is only valid with condor_rm\nUsage: condor_hold "),
        ("condor_rm -fast 5", "-fast is only valid with condor_vacate_job\nUsage: condor_rm "),
        ("condor_rm -reason", "condor_rm: -reason requires another argument\n"),
        ("condor_rm -const JobStatus==", "condor_rm: JobStatus== is not a valid constraint\n"),
        ("condor_rm -all 5", "condor_rm: can't mix -all with other constraints\n"),
        ("condor_hold -subcode x 5", "Invalid -subcode x!\n"),
        ("condor_rm 0.1", "Invalid cluster # from 0.1.\n"),
        ("condor_rm 5x", 'Warning: unrecognized "5x" skipped.\nYou did not specify any jobs\n'),
    ],
)
def test_usage_errors(line: str, message: str) -> None:
    found = asked(line)
    assert isinstance(found, Reply)
    assert found.err.startswith(message)
    assert (found.out, found.exit) == ("", 1)


def test_help_and_version() -> None:
    shown, version = asked("condor_hold -help"), asked("condor_rm -version")
    assert isinstance(shown, Reply)
    assert isinstance(version, Reply)
    assert shown.out.startswith("Usage: condor_hold ")
    assert version.out.startswith("$CondorVersion: ")


@pytest.mark.parametrize(
    ("tool", "result", "out", "err"),
    [
        ("condor_rm", "ok", "Job 1.0 marked for removal\n", ""),
        ("condor_hold", "ok", "Job 1.0 held\n", ""),
        ("condor_release", "ok", "Job 1.0 released\n", ""),
        ("condor_rm -forcex", "ok", "Job 1.0 removed locally (remote state unknown)\n", ""),
        ("condor_suspend", "ok", "Job 1.0 suspended\n", ""),
        ("condor_continue", "ok", "Job 1.0 continued\n", ""),
        ("condor_vacate_job", "ok", "Job 1.0 vacated\n", ""),
        ("condor_vacate_job -fast", "ok", "Job 1.0 fast-vacated\n", ""),
        ("condor_suspend", "already", "", "Job 1.0 already suspended\n"),
        ("condor_continue", "already", "", "Job 1.0 already running\n"),
        ("condor_suspend", "bad_state", "", "Job 1.0 not running to be suspended\n"),
        ("condor_continue", "bad_state", "", "Job 1.0 not running to be continued\n"),
        ("condor_vacate_job", "bad_state", "", "Job 1.0 not running to be vacated\n"),
        ("condor_vacate_job -fast", "bad_state", "", "Job 1.0 not running to be fast-vacated\n"),
        ("condor_rm -forcex", "bad_state", "", "Job 1.0 not in `X' state to be forcibly removed\n"),
        ("condor_vacate_job", "denied", "", "Permission denied to vacate job 1.0\n"),
        ("condor_rm", "not_found", "", "Job 1.0 not found\n"),
        ("condor_rm", "already", "", "Job 1.0 already marked for removal\n"),
        ("condor_hold", "already", "", "Job 1.0 already held\n"),
        ("condor_release", "bad_state", "", "Job 1.0 not held to be released\n"),
        ("condor_release", "already", "", "Job 1.0 not held to be released\n"),
        ("condor_hold", "bad_state", "", "Job 1.0 not in a state to be held\n"),
        ("condor_rm", "bad_state", "", "Job 1.0 is ending already\n"),
        ("condor_rm", "denied", "", "Permission denied to remove job 1.0\n"),
        ("condor_hold", "denied", "", "Permission denied to hold job 1.0\n"),
    ],
)
def test_one_job(tool: str, result: str, out: str, err: str) -> None:
    assert done(f"{tool} 1.0", (1, 0, result)) == (out, err, 0 if out else 1)


def test_a_list_fails_only_when_nothing_of_it_was_done() -> None:
    # The results come in another order than they were asked for.
    assert done("condor_rm 1.0 1.1", (1, 1, "not_found"), (1, 0, "ok")) == (
        "Job 1.0 marked for removal\n",
        "Job 1.1 not found\n",
        0,
    )
    assert done("condor_rm 1.0 1.1", (1, 1, "not_found"), (1, 0, "already"))[2] == 1


def test_groups() -> None:
    assert done("condor_rm 5", (5, 0, "ok"), (5, 1, "ok")) == (
        "All jobs in cluster 5 have been marked for removal\n",
        "",
        0,
    )
    assert done("condor_hold bob", (5, 0, "ok"), (5, 1, "already"))[0] == 'All jobs of user "bob" have been held\n'
    assert done("condor_release -const A==1", (5, 0, "ok"))[0] == (
        "All jobs matching constraint (A==1) have been released\n"
    )
    assert done("condor_rm -all", (5, 0, "ok"))[0] == "All jobs have been marked for removal\n"
    assert done("condor_rm 5", (5, -1, "not_found")) == ("", "\nCouldn't find/remove all jobs in cluster 5\n", 1)
    assert done("condor_release 5", (5, 0, "bad_state")) == ("", "\nCouldn't find/release all jobs in cluster 5\n", 1)
    assert done("condor_suspend 5", (5, 0, "ok"))[0] == "All jobs in cluster 5 have been suspended\n"
    assert done("condor_vacate_job -fast 5", (5, 0, "bad_state"))[1] == (
        "\nCouldn't find/fast-vacate all jobs in cluster 5\n"
    )
    assert done("condor_rm -forcex 5", (5, 0, "bad_state"))[1] == "\nCouldn't find/remove all jobs in cluster 5\n"
    assert done("condor_rm -all", queue_empty=True) == ("", "condor_rm:0:There are no jobs in the queue\n", 0)


def test_a_list_and_a_group() -> None:
    out, err, code = done("condor_rm 1.0 5", (1, 0, "not_found"), (5, 0, "ok"), (5, 1, "ok"))
    assert out == "All jobs in cluster 5 have been marked for removal\n"
    assert (err, code) == ("Job 1.0 not found\n", 1)


def test_totals() -> None:
    counts = "1 Succeeded, 0 Failed, 1 Not Found, 0 Bad Status, 1 Already Done, 0 Permission Denied\n"
    out, _, code = done("condor_rm -totals 1.0 1.1 1.2", (1, 0, "ok"), (1, 1, "not_found"), (1, 2, "already"))
    assert out == counts + "Job 1.0 marked for removal\n"
    assert code == 0
    assert done("condor_rm -totals 5", (5, 0, "ok"))[0] == (
        "1 Succeeded, 0 Failed, 0 Not Found, 0 Bad Status, 0 Already Done, 0 Permission Denied\n"
        "All jobs in cluster 5 have been marked for removal\n"
    )


def test_a_skipped_word_is_told() -> None:
    assert done("condor_rm 5x 1.0", (1, 0, "ok")) == (
        "Job 1.0 marked for removal\n",
        'Warning: unrecognized "5x" skipped.\n',
        0,
    )
