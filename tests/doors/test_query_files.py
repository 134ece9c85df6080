"""condor_q -jobads, condor_history -file and condor_status -ads: files of our own making, and of others."""

from __future__ import annotations

from collections.abc import Iterator

import classad2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from query_store import Asker, Builder, Shown, fill, query_process

from pilotq.condor.expressions import canonical
from pilotq.query.adfiles import read_ads

#: As HTCondor writes it: banners after the ads, a string of two lines, an ad that is not complete at the end.
HISTORY = """\
ClusterId = 7
ProcId = 0
Owner = "zoe"
JobStatus = 4
CompletionDate = 1700000300
QDate = 1700000000
RemoteWallClockTime = 61.0
Cmd = "/bin/sleep"
Arguments = "10"
Env = "A=1
B = 2"
Requirements = (TARGET.Memory >= RequestMemory) && true
*** Offset = 0 ClusterId = 7 ProcId = 0 Owner = "zoe" CompletionDate = 1700000300 CurrentTime = 1700000301
ClusterId = 7
ProcId = 1
Owner = "yan"
JobStatus = 3
QDate = 1700000000
RemoteWallClockTime = 0.0
Cmd = "/bin/sleep"
RemoveReason = "say \\"no\\""
*** Offset = 400 ClusterId = 7 ProcId = 1 Owner = "yan" CompletionDate = 0 CurrentTime = 1700000400
ClusterId = 8
ProcId = 0
Own"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    where = tmp_path_factory.mktemp("files")
    fill(Builder(where / "queue.db"))
    with query_process(where / "queue.db", where) as (asker, _):
        asker.facts["workers"] = [{"name": "w", "host": "n", "cpus": 2, "busy": 1}]
        yield asker


def from_file(ask: Asker, text: str, *words: str) -> Shown:
    """What is said when the shim has read this in the file "F"."""
    return ask(*words, file=text)


@pytest.mark.parametrize("option", ["-long", "-json", "-jsonl", "-xml"])
@pytest.mark.parametrize(
    ("tool", "source"), [("condor_q", "-jobads"), ("condor_history", "-file"), ("condor_status", "-ads")]
)
def test_what_is_printed_is_read_again(ask: Asker, tool: str, source: str, option: str) -> None:
    order = ["-forwards"] if tool == "condor_history" else []
    printed = ask(tool, option, *order).out
    again = from_file(ask, printed, tool, source, "F", option, *order)
    assert (again.out, again.err, again.exit) == (printed, "", 0)
    shown = set(from_file(ask, printed, tool, source, "F", *order).lines)
    # Run times go on, and what else is in the pool is not in the file.
    passing = ("-- ", "Total for ")
    assert {line for line in ask(tool, *order).lines if "0+00:" not in line and not line.startswith(passing)} <= shown


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("-long", classad2.ParserType.Old),
        ("-json", classad2.ParserType.JSON),
        ("-jsonl", classad2.ParserType.JSON),
        ("-xml", classad2.ParserType.XML),
    ],
)
@pytest.mark.parametrize("tool", ["condor_q", "condor_history", "condor_status"])
def test_htcondors_reader_sees_the_same_ads(ask: Asker, tool: str, option: str, kind: classad2.ParserType) -> None:
    printed = ask(tool, option).out
    parts = printed.splitlines() if option == "-jsonl" else [printed]
    if option == "-json":
        # It takes objects one after the other.
        parts = [printed.removeprefix("[\n").removesuffix("]\n").replace("\n}\n,\n{", "\n}\n{")]
    theirs = [ad for part in parts for ad in classad2.parseAds(part, kind)]
    ours = read_ads(printed)
    assert len(theirs) == len(ours) == {"condor_q": 19, "condor_history": 4, "condor_status": 2}[tool]
    for their, our in zip(theirs, ours, strict=True):
        texts = our.attributes()
        assert sorted(their.keys(), key=str.lower) == list(texts)
        shown = dict(line.split(" = ", 1) for line in their.printOld().splitlines())
        assert {name: canonical(text) for name, text in texts.items()} == shown


def test_a_history_file_of_another_pool(ask: Asker) -> None:
    found = from_file(ask, HISTORY, "condor_history", "-file", "F", "-af:j", "Owner", "JobStatus", "RemoveReason")
    assert found.lines == ['7.1 yan 3 say "no"', "7.0 zoe 4 undefined"]
    assert from_file(ask, HISTORY, "condor_history", "-fi", "F", "-forwards", "-limit", "1", "-af", "Env").out == (
        "A=1\nB = 2\n"
    )
    table = from_file(ask, HISTORY, "condor_history", "-file", "F", "7.0").lines
    assert [line.split()[0] for line in table] == ["ID", "7.0"]
    assert table[1].endswith(" 0+00:01:01 C  11/14 22:18 /bin/sleep 10")
    assert (
        from_file(ask, HISTORY, "condor_history", "-file", "F", "-const", "JobStatus==4", "-af", "ProcId").out == "0\n"
    )
    assert from_file(ask, HISTORY, "condor_history", "-file", "F", "yan", "-af", "ProcId").out == "1\n"
    assert from_file(ask, HISTORY, "condor_history", "-file", "F", "-since", "7.0", "-af", "ProcId").out == "1\n"
    assert from_file(ask, "", "condor_history", "-file", "F").lines[0].startswith(" ID ")
    assert from_file(ask, "", "condor_history", "-file", "F", "-json").out == "[\n]\n"


def test_a_history_file_that_breaks_off_at_the_end_of_a_line(ask: Asker) -> None:
    cut = HISTORY[: HISTORY.rindex("Own")]
    assert cut.endswith("ProcId = 0\n")
    assert from_file(ask, cut, "condor_history", "-file", "F", "-af", "ProcId").lines == ["1", "0"]


@pytest.mark.parametrize("value", ['"C:\\dir\\"', '"a \\"b\\""', '"a" == "b"', '"a" == B', '""', '"a\nb\\"'])
def test_strings_end_where_htcondors_reader_ends_them(ask: Asker, value: str) -> None:
    text = f"ClusterId = 1\nA = {value}\nB = 7\n"
    assert from_file(ask, text, "condor_q", "-jobads", "F", "-af", "B").lines == ["7"]
    (theirs,) = classad2.parseAds(text, classad2.ParserType.Old) if "\n" not in value else ({"B": 7},)
    assert theirs["B"] == 7


def test_slots_are_sorted_by_number(ask: Asker) -> None:
    text = "\n".join(f'Name = "s{rank}"\nRank = {rank}\n' for rank in (3, 0, 2, 1))
    shown = from_file(ask, text, "condor_status", "-ads", "F", "-sort", "Rank", "-af", "Rank")
    assert shown.lines == ["0", "1", "2", "3"]


def test_ads_that_do_not_say_how_many_jobs_there_were(ask: Asker) -> None:
    text = 'ClusterId = 1\nProcId = 0\nOwner = "zoe"\nJobStatus = 1\n'
    (line,) = (line for line in from_file(ask, text, "condor_q", "-jobads", "F", "-batch").lines if "zoe" in line)
    assert line.split()[-5:] == ["_", "_", "1", "1", "1.0"]


def test_tables_of_job_ads(ask: Asker) -> None:
    ads = ask("condor_q", "-long").out
    shown = from_file(ask, ads, "condor_q", "-jobads", "F")
    assert shown.out.startswith("\n\n-- Jobads: F\n ID ")
    assert shown.lines[-1] == (
        "Total for query: 19 jobs; 1 completed, 0 removed, 11 idle, 3 running, 3 held, 1 suspended"
    )
    theirs, ours = from_file(ask, ads, "condor_q", "-jobads", "F", "-batch").lines, ask("condor_q", "-batch").lines
    assert (
        theirs[3:] != []
        and theirs[3:-1] == [line for line in ours[3:] if not line.startswith("Total")][: len(theirs[3:-1])]
    )
    assert "-analyze is about" in from_file(ask, ads, "condor_q", "-jobads", "F", "-analyze").err
    assert '"Jobs": 19' in from_file(ask, ads, "condor_q", "-jobads", "F", "-totals", "-json").out


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("ClusterId = 1\nrubbish\n", "", "line 2 is not an attribute of an ad: rubbish"),
        ('[{"A": 1}, 5]', "", "not ads in JSON"),
        ("[" * 100_000, "", "not ads in JSON"),
        ("{", ":json", "not ads in JSON"),
        ("<classads><c><a>", "", "not ads in XML"),
        ('<!DOCTYPE c [<!ENTITY a "b">]><classads/>', "", "do not define entities"),
    ],
)
def test_what_is_not_ads(ask: Asker, text: str, form: str, message: str) -> None:
    found = from_file(ask, text, "condor_q", f"-jobads{form}", "F")
    assert (found.out, found.exit) == ("", 1)
    assert found.err.startswith("Error: F: ") and message in found.err
    assert len(found.err.splitlines()) == 1


NAMES = "ClusterId ProcId Owner JobStatus QDate ShadowBday CompletionDate EnteredCurrentStatus RemoteWallClockTime Cmd"
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats().map(lambda value: f'real("{value}")'),
    st.sampled_from(["undefined", "error", "true", "1e308 * 10", "ProcId", "{ 1 }", "[ a = 1 ]", '"x', "==", "a b"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(lambda value: f'"{value}"'),
)
TOOLS = ["condor_q", "condor_q -batch", "condor_q -hold", "condor_q -idle", "condor_q -run", "condor_history"]
TOOLS += ["condor_status -run", "condor_status -schedd", "condor_status -compact", "condor_q -af:hjTl ProcId QDate"]
TOOLS += ["condor_q -json", "condor_q -xml", "condor_q -af:Y QDate ShadowBday", "condor_q -format %5d ProcId"]


@given(st.lists(st.dictionaries(st.sampled_from(NAMES.split()), VALUES), max_size=3), st.sampled_from(TOOLS))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_file_is_an_answer_or_one_line(ask: Asker, found: list[dict[str, str]], tool: str) -> None:
    text = "\n\n".join(["\n".join([f"{name} = {value}" for name, value in ad.items()]) for ad in found])
    words = tool.split()
    source = {"condor_q": "-jobads", "condor_history": "-file", "condor_status": "-ads"}[words[0]]
    shown = from_file(ask, text, words[0], source, "F", *words[1:])
    assert "a bug" not in shown.err
    assert (shown.exit, shown.err) == (0, "") or (shown.exit == 1 and shown.err.startswith("Error: F: "))
