"""Command lines of the reading commands."""

from __future__ import annotations

import pytest

from pilotq.condor.options import Query, needs_workers, parse
from pilotq.condor.request import Answer, Reply, Request


def asked(line: str | list[str], **request: object) -> Query | Reply:
    words = line.split() if isinstance(line, str) else line
    return parse(Request(tool=words[0], argv=words[1:], **request))  # type: ignore[arg-type]


def query(line: str | list[str], **request: object) -> Query:
    found = asked(line, **request)
    assert isinstance(found, Query), found
    return found


def refused(line: str | list[str]) -> str:
    found = asked(line)
    assert isinstance(found, Reply)
    assert (found.exit, found.out) == (1, "")
    return found.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("condor_q", {"output": "nobatch"}),
        ("condor_q -nobatch", {"output": "nobatch"}),
        ("condor_q -NOB", {"output": "nobatch"}),
        ("condor_q --batch", {"output": "batch"}),
        ("condor_q 5 6.7 bob", {"ids": [(5, None), (6, 7)], "owners": ["bob"]}),
        ("condor_q -submitter bob@site", {"owners": ["bob"]}),
        ("condor_q -const A==1 -c B==2", {"constraints": ["A==1", "B==2"], "constraint": "(A==1) && (B==2)"}),
        ("condor_q -l", {"output": "long"}),
        ("condor_q -long -attributes A,B -attr C", {"attributes": ["A", "B", "C"]}),
        ("condor_q -json", {"output": "json"}),
        ("condor_q -jsonl", {"output": "jsonl"}),
        ("condor_q -xml", {"output": "xml"}),
        ("condor_q -tot", {"output": "totals", "totals_only": True}),
        ("condor_q -run", {"output": "run"}),
        ("condor_q -hold", {"output": "hold", "constraints": ["JobStatus == 5"]}),
        ("condor_q -held", {"output": "hold"}),
        ("condor_q -idle", {"output": "idle"}),
        ("condor_q -limit 3", {"limit": 3}),
        ("condor_q -match 3", {"limit": 3}),
        ("condor_q -global -pool P -name Q -all -wide -debug", {"output": "nobatch", "ids": [], "owners": []}),
        ("condor_q -analyze 7", {"output": "analyze", "ids": [(7, None)]}),
        ("condor_q -analyze7", {"output": "analyze", "ids": [(7, None)]}),
        ("condor_q -better-analyze:summary 7.1", {"output": "analyze", "ids": [(7, 1)]}),
        ("condor_q -cumulative-time", {"cumulative": True}),
        ("condor_history", {"output": "history", "forwards": False}),
        ("condor_history -f %d A 5 -backwards -match 1", {"ids": [(5, None)], "output": "mask", "limit": 1}),
        ("condor_history -forwards -limit 2 bob", {"forwards": True, "limit": 2, "owners": ["bob"]}),
        ("condor_history -since 5.1", {"since": "ClusterId == 5 && ProcId == 1"}),
        ("condor_history -since 5 -scanlimit 9", {"since": "ClusterId == 5", "scan_limit": 9}),
        ("condor_history -since JobStatus==3", {"since": "JobStatus==3"}),
        ("condor_q -af ClusterId -hold", {"output": "mask", "constraints": ["JobStatus == 5"]}),
        ("condor_q -hold -af ClusterId", {"output": "mask", "constraints": ["JobStatus == 5"]}),
        ("condor_q -idle -json", {"output": "json", "constraints": ["JobStatus == 1"]}),
        ("condor_q -json -totals", {"output": "json", "totals_only": True}),
        ("condor_q -totals -json", {"output": "json", "totals_only": True}),
        ("condor_q -g", {"is_global": True}),
        (["condor_q", "", "5", "-const", "", "-pool", "", "-af", "", "A", "-name", ""], {"ids": [(5, None)]}),
        (["condor_q", "", "-const", ""], {"owners": [], "ids": [], "constraints": []}),
        ("condor_history -completedsince 99", {"constraints": ["CompletionDate >= 99"]}),
        ("condor_status -schedd -af Name", {"kind": "schedd", "output": "mask"}),
        ("condor_status -submitters", {"kind": "submitters"}),
        ("condor_status -claimed node1", {"constraints": ['State == "Claimed"'], "owners": ["node1"]}),
        ("condor_status -total", {"kind": "machines", "totals_only": True}),
        ("condor_status -run", {"output": "slots-run", "constraints": ['State == "Claimed"']}),
        ("condor_status -run -af Name", {"output": "mask", "constraints": ['State == "Claimed"']}),
        ("condor_status -af Name -compact", {"output": "mask"}),
        ("condor_status -compact", {"output": "compact"}),
        ("condor_status -master", {"kind": "master"}),
        ("condor_status -coll -sort Name", {"kind": "collector", "sort": ["Name"]}),
    ],
)
def test_options(line: str | list[str], expected: dict[str, object]) -> None:
    found = query(line)
    assert {name: getattr(found, name) for name in expected} == expected


def test_autoformat_takes_words_up_to_the_next_option() -> None:
    words = "condor_q -af:jt JobStatus GridResource -format local_pool GridResource 12 -autoformat Owner - 13"
    found = query(words)
    assert [column.source for column in found.mask.columns] == [
        "",
        "JobStatus",
        "GridResource",
        "GridResource",
        "Owner",
    ]
    assert found.ids == [(12, None), (13, None)]


@pytest.mark.parametrize("prefix", ["", "_CONDOR_", "_condor_"])
def test_other_knobs(prefix: str) -> None:
    mine, old = f"{prefix}CONDOR_Q_ONLY_MY_JOBS", f"{prefix}CONDOR_Q_SHOW_OLD_SUMMARY"
    found = query("condor_q", env={mine: "true", old: "1"})
    assert (found.is_mine_only, found.old_summary) == (True, True)
    assert not query("condor_q -allusers", env={mine: "true"}).is_mine_only
    assert not query("condor_q", env={mine: "false"}).is_mine_only
    assert not query("condor_history", env={mine: "true"}).is_mine_only


def test_a_file_is_asked_for_and_then_there() -> None:
    for line, option in (
        ("condor_q -jobads F", "long"),
        ("condor_history -file F", "auto"),
        ("condor_status -ads:json F", "json"),
    ):
        reply = asked(line)
        assert isinstance(reply, Reply) and reply.wants == [("read", "F")] and not reply.out
        found = query(line, answers={("read", "F"): Answer(True, data=b"A = 1\n")})
        assert (found.file, found.text) == ("F", "A = 1\n"), option
        missing = asked(line, answers={("read", "F"): Answer(False, error="No such file or directory", errno=2)})
        assert missing == Reply(err="Error: Can't open file F: No such file or directory\n", exit=1)


def test_who_needs_the_workers() -> None:
    lines = ["condor_status", "condor_q -analyze", "condor_q -better-an:x 5", "condor_q --BETTER 5.1"]
    assert all(needs_workers(Request(line.split()[0], argv=line.split()[1:])) for line in lines)
    lines = ["condor_q", "condor_q -all", "condor_history -backwards", "condor_q -batch"]
    assert not any(needs_workers(Request(line.split()[0], argv=line.split()[1:])) for line in lines)


@pytest.mark.parametrize("name", [f"{prefix}CONDOR_Q_DASH_BATCH_IS_DEFAULT" for prefix in ("_CONDOR_", "", "_condor_")])
def test_the_knob_for_the_batch_table(name: str) -> None:
    assert query("condor_q", env={name: "True"}).output == "batch"
    assert query("condor_q", env={name: "False"}).output == "nobatch"
    assert query("condor_q -nobatch", env={name: "True"}).output == "nobatch"
    assert query("condor_q -hold", env={name: "True"}).output == "hold"
    assert query("condor_history", env={name: "True"}).output == "history"


def test_width_is_that_of_a_terminal() -> None:
    assert query("condor_q", tty=True, columns=80).width == 79
    assert query("condor_q -wide", tty=True, columns=80).width == 0
    assert query("condor_q", columns=80).width == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("condor_q -foo", "Error: unrecognized argument -foo\nUsage: condor_q "),
        (["condor_q", "5", "-const", "JobStatus =="], "Error: Argument 3 (JobStatus ==) is not a valid constraint\n"),
        ("condor_q -const", "Error: -const requires another parameter\n"),
        ("condor_q -format %d", "Error: -format requires format and attribute parameters\n"),
        ("condor_q -af", "Error: -autoformat requires at least one attribute parameter\n"),
        ("condor_q -limit many", "Error: -limit requires a number, not many\n"),
        ("condor_q -userlog F", "Error: -userlog is not supported by pilotq\n"),
        ("condor_q -jobads:new F", "Error: -jobads: pilotq does not read ads in the form new\n"),
        ("condor_history -since ClusterId==", "Error: invalid -since constraint: ClusterId==\n"),
        ("condor_status -sort ==", "Error: -sort: == is not an expression\n"),
        ("condor_status -hold", "Error: unrecognized argument -hold\nUsage: condor_status "),
    ],
)
def test_what_is_refused(line: str | list[str], message: str) -> None:
    assert refused(line).startswith(message)


def test_version_and_help() -> None:
    version = asked("condor_q -version")
    assert isinstance(version, Reply)
    first, second = version.out.splitlines()
    assert first.startswith("$CondorVersion: 24.0.0 ")
    assert "pilotq-" in first
    assert first.endswith(" $")
    assert second.startswith("$CondorPlatform: ")
    for tool in ("condor_q", "condor_history", "condor_status"):
        shown = asked(f"{tool} -help")
        assert isinstance(shown, Reply)
        assert shown.out.startswith(f"Usage: {tool}")
        assert shown.exit == 0
