"""Command lines of the reading commands."""

from __future__ import annotations

import pytest

from pilotq.condor.options import Query, parse
from pilotq.condor.request import Reply, Request


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
        ("condor_history -since 5.1", {"since": (5, 1)}),
        ("condor_history -completedsince 99", {"constraints": ["CompletionDate >= 99"]}),
        ("condor_status -schedd -af Name", {"kind": "schedd", "output": "mask"}),
        ("condor_status -submitters", {"kind": "submitters"}),
        ("condor_status -claimed node1", {"constraints": ['State == "Claimed"'], "owners": ["node1"]}),
        ("condor_status -total", {"kind": "machines", "totals_only": True}),
    ],
)
def test_options(line: str, expected: dict[str, object]) -> None:
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


@pytest.mark.parametrize("name", ["_CONDOR_CONDOR_Q_DASH_BATCH_IS_DEFAULT", "CONDOR_Q_DASH_BATCH_IS_DEFAULT"])
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
        ("condor_q -jobads F", "Error: -jobads is not supported by pilotq\n"),
        ("condor_history -file F", "Error: -file is not supported by pilotq\n"),
        ("condor_history -since ClusterId==5", "Error: -since ClusterId==5: pilotq takes a job id there\n"),
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
