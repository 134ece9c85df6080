"""The query process: a real store file, a real process, a real socket; asked as the clients ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from query_store import QUEUED_AT, Asker, Builder, Shown, body, fill, query_process


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    where = tmp_path_factory.mktemp("query")
    fill(Builder(where / "queue.db"))
    with query_process(where / "queue.db", where) as (asker, _):
        yield asker


def value(ask: Asker, **question: Any) -> Any:
    return msgspec.msgpack.decode(ask.ask(question))


# ---- clients -----------------------------------------------------------------------------------------------------


def test_perl_alien_counts_lines(ask: Asker) -> None:
    both = ask("condor_q", "-format", "%s\\n", "OWNER", "-constraint", "JobStatus==1 || JobStatus==2")
    idle = ask("condor_q", "-format", "%s\\n", "OWNER", "-constraint", "JobStatus==1")
    assert (both.exit, both.err) == (0, "")
    # 1.0 runs, 1.2 8 9 wait; bob's five; 3.0 1 wait, 3.2 runs; 6.0 waits.
    assert (len(both.lines), len(idle.lines)) == (13, 11)
    assert set(both.lines) == {"alice", "bob"}
    assert ask("condor_q").exit == 0


def test_perl_alien_lists(ask: Asker) -> None:
    constraint = "JobStatus==1 || JobStatus==2"
    found = ask("condor_q", "-constraint", constraint, "-format", "%d ", "ClusterId", "-format", "%s \\n", "Cmd")
    assert found.lines[0] == "1 /home/alice/agent.sh "
    assert len(found.lines) == 13


def test_perl_alien_with_condor_status(ask: Asker) -> None:
    assert ask("condor_status", "-schedd", "-af", "totalRunningJobs", "totalIdleJobs").out == "3 12\n"
    assert ask("condor_status", "-schedd", "-af", "TOTALHELDJOBS").out == "3\n"


def test_perl_alien_with_totals(ask: Asker) -> None:
    last = ask("condor_q", "alice", "-totals").lines[-1]
    match = re.search(r"(\d+) idle,\s+(\d+) running,\s+(\d+) held,\s+(\d+) suspended", last)
    assert match
    assert [int(number) for number in match.groups()] == [11, 3, 3, 1]


def test_jalien_counts_by_regular_expression(ask: Asker) -> None:
    old = ask("condor_q", "-const", "JobStatus < 3", "-af", "JobStatus", "GridResource")
    found = [re.fullmatch(r"\s*([12]).*\s(\S+)", line) for line in old.lines]
    assert [match[1] for match in found if match].count("1") == 11
    assert [match[2] for match in found if match][-1] == "ce1:9619"
    local = ask("condor_q", "-const", "JobStatus < 3", "-af", "JobStatus", "-format", "local_pool", "GridResource")
    new = [re.fullmatch(r"\s*([12]+)\s.*?(\S+)", line) for line in local.lines]
    assert [(match[1], match[2]) for match in new if match].count(("2", "local_pool")) == 2
    assert len(new) == 13


def test_balsam_reads_states_and_history(ask: Asker) -> None:
    lines = ask("condor_q", "1").lines
    first = next(n for n, line in enumerate(lines) if all(word in line for word in ("ID", "OWNER", "CMD")))
    last = next(n for n, line in enumerate(lines) if all(word in line for word in ("completed", "removed", "idle")))
    rows = [line.split() for line in lines[first + 1 : last] if line]
    assert {row[0]: row[5] for row in rows} == {
        "1.0": "R", "1.1": "S", "1.2": "I", "1.3": "H", "1.4": ">", "1.7": "C", "1.8": "I", "1.9": "I"
    }  # fmt: skip
    assert all(len(row) >= 9 for row in rows)
    assert "Hold reason: no such file: x" in ask("condor_q", "-analyze1").out
    ended = [line.split() for line in ask("condor_history", "1").lines[1:]]
    assert [(row[0], row[5], row[6]) for row in ended] == [("1.6", "X", "???"), ("1.5", "C", "11/14")]


def test_elastiq_counts_text(ask: Asker) -> None:
    found = ask("condor_q", "-global", "-attributes", "JobStatus", "-long")
    assert found.out.count("JobStatus = 1\n\n") == 11
    assert set(found.lines) == {f"JobStatus = {status}" for status in range(1, 8) if status != 3} | {""}


def test_glite_blah_reads_one_job(ask: Asker) -> None:
    """A chain of -format of which ExitCode and ExitSignal share a field."""
    chain = "%d ClusterId , ALWAYS %d JobStatus , ALWAYS %f RemoteWallClockTime , ALWAYS %d ExitBySignal , ALWAYS"
    words = [*chain.split(), "%d", "ExitCode", "%d", "ExitSignal", "\\n", "ALWAYS"]
    formats = [word for fmt, source in zip(words[::2], words[1::2], strict=True) for word in ("-format", fmt, source)]
    assert ask("condor_q", *formats, "1.7").out == "1,4,50.000000,1,9\n"
    assert ask("condor_q", *formats, "1.5").out == ""
    assert ask("condor_history", *formats, "-backwards", "-match", "1", "1.5").out == "1,4,50.000000,0,3\n"


# ---- condor_q ----------------------------------------------------------------------------------------------------


def ids(shown: Shown) -> list[str]:
    assert (shown.exit, shown.err) == (0, "")
    return shown.lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("1", "1.0 1.1 1.2 1.3 1.4 1.7 1.8 1.9"),
        ("1.5", ""),
        ("1.8", "1.8"),
        ("1.99 99 5", ""),
        ("2.4 1.0 2.3", "1.0 2.3 2.4"),
        ("bob", "2.0 2.1 2.2 2.3 2.4"),
        ("bob 1", ""),
        ("-submitter bob@site -limit 2", "2.0 2.1"),
        ("-limit 0", ""),
        ("-run", "1.0 1.1 1.4 3.2"),
        ("-hold", "1.3 4.0 4.1"),
        ("-const JobStatus==5 -const ClusterId==1", "1.3"),
        ("-const ClusterId==1&&ProcId==8", "1.8"),
        ("-const ClusterId==1&&ProcId==5", ""),
        ("-const ProcId==2", "1.2 2.2 3.2"),
        ('-const Color=="c1"', "3.1"),
        ('-const Color=!=undefined&&JobStatus==2', "3.2"),
        ('-const Out=="out.8"', "1.8"),
        ('-const regexp("node1",RemoteHost)', "1.0 1.1 1.4 3.2"),
        ("-const HoldReasonCode==15", "4.0 4.1"),
        ("-const time()-QDate<5", ""),
        ("-const NumJobStarts>0&&JobStatus==7", "1.1"),
        ("-const undefined", ""),
        ("-const ExitSignal==9", "1.7"),
    ],
)  # fmt: skip
def test_selections(ask: Asker, words: str, expected: str) -> None:
    found = ids(ask("condor_q", *words.split(), "-af", 'strcat(ClusterId, ".", ProcId)'))
    assert found == expected.split()
    # The same by a mask that needs nothing but the id, and by the table.
    assert ids(ask("condor_q", *words.split(), "-af:j", "JobPrio")) == [f"{job} 0" for job in expected.split()]
    rows = [
        line.split()[0] for line in ask("condor_q", "-nobatch", *words.split()).lines if re.match(r" *\d+\.\d", line)
    ]
    assert rows == expected.split()


@pytest.mark.parametrize(
    "constraint",
    ["", "JobStatus < 3", 'Owner == "bob"', "ProcId > 1", 'RemoteHost == "slot1@node1"', 'Color == "c1"', "JobStatus"],
)
def test_totals_agree_with_the_jobs(ask: Asker, constraint: str) -> None:
    extra = ["-const", constraint] if constraint else []
    statuses = ids(ask("condor_q", *extra, "-af", "JobStatus"))
    words = {"completed": "4", "removed": "3", "idle": "1", "held": "5", "suspended": "7"}
    expected = {word: statuses.count(status) for word, status in words.items()}
    expected["running"] = statuses.count("2") + statuses.count("6")
    for shown in (ask("condor_q", *extra, "-totals"), ask("condor_q", *extra)):
        line = next(line for line in shown.lines if line.startswith("Total for query:"))
        assert line.startswith(f"Total for query: {len(statuses)} jobs; ")
        assert {word: int(count) for count, word in re.findall(r"(\d+) (\w+)(?:,| ?$)", line)} == expected


def test_table_frame(ask: Asker) -> None:
    shown = ask("condor_q", "6")
    lines = shown.out.split("\n")
    assert lines[:2] == ["", ""]
    assert re.fullmatch(
        r"-- Schedd: head\.example : <10\.0\.0\.1:9094\?\.\.\. @ \d\d/\d\d/\d\d \d\d:\d\d:\d\d", lines[2]
    )
    assert lines[3] == " ID      OWNER            SUBMITTED     RUN_TIME ST PRI SIZE CMD"
    assert lines[4].startswith("   6.0   alice ")
    assert lines[5:] == [
        "",
        "Total for query: 1 jobs; 0 completed, 0 removed, 1 idle, 0 running, 0 held, 0 suspended ",
        "Total for alice: 14 jobs; 1 completed, 0 removed, 6 idle, 3 running, 3 held, 1 suspended ",
        "Total for all users: 19 jobs; 1 completed, 0 removed, 11 idle, 3 running, 3 held, 1 suspended",
        "",
        "",
    ]


def test_other_tables(ask: Asker) -> None:
    assert ask("condor_q", "-run").lines[4].endswith(" slot1@node1")
    assert "13/2     no such file: x" in ask("condor_q", "-hold").out
    assert "Total for query: 3 jobs" in ask("condor_q", "-hold").out
    assert "Total" not in ask("condor_q", "-run").out
    batch = ask("condor_q", "-batch").lines
    assert batch[4].split() == ["alice", "ID:", "1", *batch[4].split()[3:5], "3", "2", "4", "1", "10", "1.0-9"]
    assert ask("condor_q", env={"_CONDOR_CONDOR_Q_DASH_BATCH_IS_DEFAULT": "true"}).lines[3:] == batch[3:]


def test_analysis(ask: Asker) -> None:
    """1.8 needs two cores and 1 GiB of memory."""
    room = {"cpus": 4, "memory_bytes": 8 << 30, "state": "ready"}
    ask.facts["workers"] = [
        {"name": "free", "host": "a", **room, "used": [2, 0, 0, 0]},
        {"name": "full", "host": "b", **room, "used": [3, 0, 0, 0]},
        {"name": "swapped", "host": "c", **room, "used": [0, 8 << 30, 0, 0]},
        {"name": "small", "host": "d", **room, "cpus": 1},
        {"name": "thin", "host": "e", **room, "memory_bytes": 1 << 29},
        {"name": "leaving", "host": "f", **room, "state": "draining"},
        {"name": "away", "host": "g", **room, "state": "lost"},
        {"name": "bad", "host": "h", **room, "state": "suspended"},
    ]
    try:
        shown = ask("condor_q", "-better-analyze", "1").out
        ask.facts["workers"] = ask.facts["workers"][3:5]
        hopeless = ask("condor_q", "-analyze", "1.8").out
        ask.facts["workers"] = []
        nobody = ask("condor_q", "-analyze", "1.8").out
    finally:
        ask.facts["workers"] = []
    assert "001.000:  Job is running.\n" in shown
    assert "001.003:  Job is held.\n\nHold reason: no such file: x\n" in shown
    assert "001.002:  Job is matched" in shown
    assert (
        "001.008:  Run analysis summary.  Of 8 machines,\n"
        "      2 are rejected by your job's requirements\n"
        "           1 have less than 2 cores\n"
        "           1 have less than 1024 MB of memory\n"
        "      3 reject your job because of their own requirements\n"
        "           1 are draining\n"
        "           1 have not been heard of for too long\n"
        "           1 are on nodes where tasks fail at once\n"
        "      2 match but are serving other jobs\n"
        "      1 are able to run your job\n"
    ) in shown
    assert "WARNING:  Be advised:\n   No machines matched the job's constraints\n" in hopeless
    assert "No workers are connected.\n" in nobody


IDS = ["-af", "ClusterId", "ProcId"]


def test_many_ids_in_one_constraint(ask: Asker) -> None:
    text = " || ".join([f"(ClusterId == {number % 7} && ProcId == {number // 7})" for number in range(200)])
    wanted = ask("condor_q", "-constraint", text, *IDS)
    everything = ask("condor_q", *IDS)
    assert wanted.out == everything.out and len(wanted.lines) == 19
    assert ask("condor_q", "-constraint", "ClusterId == 1 && ClusterId == 2", *IDS).out == ""
    assert (
        "Total for query: 0 jobs" in ask("condor_q", "-totals", "-constraint", "ClusterId == 1 && ClusterId == 2").out
    )


def test_ids_and_owners_mixed(ask: Asker) -> None:
    assert ids(ask("condor_q", "1.8", "2", "bob", "-format", "%d\n", "ProcId")) == ["0", "1", "2", "3", "4"]
    assert ask("condor_q", "", "nobody", "", *IDS).out == ""
    assert len(ids(ask("condor_q", "", "", *IDS))) == 19


def test_only_my_jobs(ask: Asker) -> None:
    mine = {"env": {"_condor_CONDOR_Q_ONLY_MY_JOBS": "True"}, "user": "bob"}
    assert len(ids(ask("condor_q", *IDS, **mine))) == 5
    assert len(ids(ask("condor_q", "-allusers", *IDS, **mine))) == 19
    assert ids(ask("condor_q", "6", *IDS, **mine)) == ["6 0"]
    assert "Total for query: 5 jobs;" in ask("condor_q", "-totals", **mine).out
    old = ask("condor_q", env={"_CONDOR_CONDOR_Q_SHOW_OLD_SUMMARY": "True"}).lines
    assert [line for line in old if "jobs;" in line] == [
        "19 jobs; 1 completed, 0 removed, 11 idle, 3 running, 3 held, 1 suspended"
    ]


def test_totals_as_an_ad(ask: Asker) -> None:
    (found,) = json.loads(ask("condor_q", "bob", "-totals", "-json", user="alice").out)
    assert (found["Jobs"], found["Idle"], found["AllusersJobs"], found["MyJobs"]) == (5, 5, 19, 14)
    assert (found["AllusersHeld"], found["MyType"]) == (3, "Summary")
    assert "AllusersRunning = 3\n" in ask("condor_q", "-long", "-totals").out


def test_global_with_something(ask: Asker) -> None:
    assert ask("condor_q", "-global").out.startswith("\n\n-- Schedd: head.example")


def test_history_stops(ask: Asker) -> None:
    everything = ids(ask("condor_history", *IDS))
    assert everything == ["5 0", "5 1", "1 6", "1 5"]
    assert ids(ask("condor_history", "-since", "1.6", *IDS)) == everything[:2]
    assert ids(ask("condor_history", "-since", "JobStatus == 3", *IDS)) == everything[:2]
    assert ids(ask("condor_history", "1", "-since", "1.5", *IDS)) == ["1 6"]
    assert ids(ask("condor_history", "1", "-scanlimit", "3", *IDS)) == ["1 6"]
    assert ids(ask("condor_history", "-forwards", "-limit", "2", "-backwards", *IDS)) == ["1 5", "1 6"]


def test_other_daemons(ask: Asker) -> None:
    assert ask("condor_status", "-master").lines[2].split()[:2] == ["head.example", "24.0.0"]
    assert ask("condor_status", "-collector", "-af", "Name", "RunningJobs", "IdleJobs").out == "head.example 3 12\n"
    assert ask("condor_status", "-negotiator", "-af", "MyType").out == "Negotiator\n"
    kinds = set(ids(ask("condor_status", "-any", "-af", "MyType")))
    assert kinds == {"Scheduler", "Submitter", "DaemonMaster", "Collector", "Negotiator"}


def test_slot_tables(ask: Asker) -> None:
    big, small = {"memory_bytes": 4 << 30, "cpus": 2}, {"memory_bytes": 1 << 30, "cpus": 1}
    ask.facts["workers"] = [{"name": "b", "host": "n2", **big, "busy": 1}, {"name": "a", "host": "n1", **small}]
    try:
        shown = {option: ask("condor_status", option) for option in ("-run", "-state", "-server", "-compact", "-total")}
        ordered = ids(ask("condor_status", "-sort", "-Memory", "-sort", "State", "-af", "Name", "Memory", "State"))
        assert ask("condor_status", "-run", "-af", "Name").out == "slot1@n2\n"
    finally:
        ask.facts["workers"] = []
    assert [line.split()[0] for line in shown["-run"].lines[2:3]] == ["slot1@n2"]
    assert shown["-state"].lines[0].split()[-2:] == ["Activ", "ActvtyTime"]
    assert "Mips" in shown["-server"].lines[0]
    assert shown["-compact"].lines[2:4] == [
        "n1      x64/Linux     1    1          1.00      1     1.00    0.00 Ui     0.00      1.00",
        "n2      x64/Linux     2    2          4.00      1     2.00    1.00 Cb     0.00      2.00",
    ]
    for option in ("-state", "-compact", "-total"):
        assert shown[option].lines[-1].split()[:4] == ["Total", "3", "0", "1"], option
    assert shown["-total"].out.startswith("\n                Total Owner")
    assert ordered == ["slot1@n2 2048 Claimed", "slot2@n2 2048 Unclaimed", "slot1@n1 1024 Unclaimed"]


def test_terminal_width(ask: Asker) -> None:
    assert max(len(line) for line in ask("condor_q", "3", tty="1", columns="60").lines[4:-4]) <= 59
    assert "agent.sh a b" in ask("condor_q", "3", columns="60").out


def test_deltas_and_marks_reach_the_ads(ask: Asker) -> None:
    assert ids(ask("condor_q", "3", "-af", "ProcId", "Color", "JobStatus")) == ["0 c0 1", "1 c1 1", "2 c2 2"]
    assert ids(ask("condor_q", "1.8", "1.9", "-format", "%s\\n", "Out")) == ["out.8", "out.9"]
    assert 'Color = "c1"\n' in ask("condor_q", "3.1", "-long").out
    assert "Color" not in ask("condor_q", "2.1", "-long").out


def test_headings(ask: Asker) -> None:
    assert ask("condor_q", "3", "-af:hj", "JobStatus", "RemoteHost").lines == [
        " ID      JobStatus RemoteHost ",
        "   3.0   1         undefined  ",
        "   3.1   1         undefined  ",
        "   3.2   2         slot1@node1",
    ]
    assert ask("condor_q", "99", "-af:h", "JobStatus").lines == ["JobStatus"]


def test_whole_ads(ask: Asker) -> None:
    ads = json.loads(ask("condor_q", "1", "-json").out)
    assert [ad["ProcId"] for ad in ads] == [0, 1, 2, 3, 4, 7, 8, 9]
    assert [json.loads(line) for line in ask("condor_q", "1", "-jsonl").lines] == ads
    assert ask("condor_q", "1", "-xml", "-attributes", "ProcId").out.count("<i>") == 8
    # Zero ads.
    assert ask("condor_q", "99", "-json").out == ""
    assert ask("condor_q", "99", "-long").out == ""
    assert ask("condor_history", "99", "-json").out == "[\n]\n"
    assert ask("condor_q", "99", "-xml").lines[-1] == "</classads>"


def test_what_users_write_comes_back(tmp_path: Path) -> None:
    Builder(tmp_path / "q.db").cluster(1, 1, body(cmd="/home/müller/ dir/a.sh", ad={"Arguments": '"x\ny"'}))
    with query_process(tmp_path / "q.db", tmp_path) as (asker, _):
        assert asker("condor_q", "-af", "Cmd").out == "/home/müller/ dir/a.sh\n"
        assert asker("condor_q", "-long", "-attributes", "Cmd").out == 'Cmd = "/home/müller/ dir/a.sh"\n\n'
        assert asker("condor_q", "-const", 'regexp("ller", Cmd)', "-af", "ProcId").out == "0\n"
        assert json.loads(asker("condor_q", "-json").out)[0]["Arguments"] == "x\ny"
        assert asker("condor_q").lines[4].endswith(" a.sh x y")


# ---- condor_history ----------------------------------------------------------------------------------------------


def test_history(ask: Asker) -> None:
    def shown(*words: str) -> list[str]:
        return ids(ask("condor_history", *words, "-af", 'strcat(ClusterId, ".", ProcId)'))

    assert shown() == ["5.0", "5.1", "1.6", "1.5"]
    assert shown("-forwards") == ["1.5", "1.6", "5.1", "5.0"]
    assert shown("-limit", "1") == ["5.0"]
    assert shown("5.1", "1.5", "1.0") == ["5.1", "1.5"]
    assert shown("1") == ["1.6", "1.5"]
    assert shown("bob") == []
    assert shown("-const", "ExitCode == 3") == ["1.5"]
    assert shown("-const", "ClusterId == 5 && ProcId == 1") == ["5.1"]
    assert shown("-since", "1.6") == ["5.0", "5.1"]
    assert shown("-completedsince", str(int(QUEUED_AT) + 101)) == []
    assert ask("condor_history", "99").lines == [" ID      OWNER            SUBMITTED     RUN_TIME ST   COMPLETED CMD"]
    assert ask("condor_history", "1.5").lines[1].split()[4:6] == ["0+00:00:50", "C"]
    assert ask("condor_history", "1.5").lines[1].endswith(" /home/alice/agent.sh a b")


# ---- condor_status -----------------------------------------------------------------------------------------------


def test_machines(ask: Asker) -> None:
    assert ask("condor_status").out == ""
    ask.facts["workers"] = [
        {"name": "w2", "host": "node2", "cpus": 1, "busy": 0, "state": "ready", "foreman": "f", "pid": 1},
        {"name": "w1", "host": "node1", "cpus": 2, "busy": 1, "state": "ready"},
    ]
    try:
        words = ("Name", "State", "Cpus")
        assert ids(ask("condor_status", "-af", *words)) == [
            "slot1@node1 Claimed 1",
            "slot2@node1 Unclaimed 1",
            "slot1@node2 Unclaimed 1",
        ]
        assert ids(ask("condor_status", "node2", "-af", "Name")) == ["slot1@node2"]
        assert ids(ask("condor_status", "-avail", "-af:h", "Name", "Activity")) == [
            "Name        Activity",
            "slot2@node1 Idle    ",
            "slot1@node2 Idle    ",
        ]
        xml = ask("condor_status", "-xml", "-attributes", "MyType,Activity,Machine").out
        assert xml.count("<s>Machine</s>") == 3
        assert xml.count("<s>Busy</s>") == 1
        assert "X86_64/LINUX" in ask("condor_status").out
    finally:
        ask.facts["workers"] = []


def test_schedd_and_submitters(ask: Asker) -> None:
    assert ask("condor_status", "-schedd", "-af", "Name").out == "head.example\n"
    assert ask("condor_status", "-schedd").lines[2].split() == ["head.example", "head.example", "3", "12", "3"]
    assert ids(ask("condor_status", "-submitters", "-af", "Name", "IdleJobs")) == [
        "alice@head.example 7",
        "bob@head.example 5",
    ]
    assert "TotalJobAds = 19\n" in ask("condor_status", "-schedd", "-long").out


def test_version(ask: Asker) -> None:
    assert re.match(r"\$CondorVersion: (\d+)\.(\d+)\.(\d+) .* pilotq-\d+\.\d+\.\d+ \$\n", ask("condor_version").out)


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "owner", "expected"),
    [
        ("true", "", [(1, -1), (2, -1), (3, -1), (4, -1), (6, -1)]),
        ("", "bob", [(2, -1)]),
        ('Owner == "bob"', "", [(2, -1)]),
        ("JobStatus == 5", "", [(1, 3), (4, -1)]),
        ("ClusterId == 1 && JobStatus == 1", "", [(1, 2), (1, 8), (1, 9)]),
        ('Color == "c0"', "", [(3, 0)]),
        ("ClusterId == 5", "", []),
        ("false", "", []),
    ],
)
def test_select(ask: Asker, constraint: str, owner: str, expected: list[tuple[int, int]]) -> None:
    found = value(ask, select={"constraint": constraint, "owner": owner})
    assert [tuple(pair) for pair in found] == expected


def test_tasks(ask: Asker) -> None:
    failed = value(ask, tasks={"state": "failed"})
    assert [(task["task"], task["outcome"], task["code"]) for task in failed] == [
        ("1.7", "signal", 9),
        ("1.5", "exit", 3),
    ]
    assert value(ask, tasks={"cluster": "4", "limit": "1"}) == [
        {
            "task": "4.0",
            "state": "held",
            "outcome": "",
            "code": 0,
            "reason": "submitted on hold at user's request",
            "host": "",
            "wall_s": 0.0,
        }
    ]
    everything = value(ask, tasks={})
    assert len(everything) == 19 + 4
    assert [task["task"] for task in value(ask, tasks={"cluster": 1, "state": "running"})] == ["1.0", "1.4"]
    assert [task["task"] for task in value(ask, tasks={"cluster": 5})] == ["5.0", "5.1"]
    assert value(ask, tasks={"state": "gone"})["exit"] == 2


def test_clusters(ask: Asker) -> None:
    first, old = value(ask, clusters=[5, 1, 99])
    expected = {"cluster": 1, "count": 10, "owner": "alice", "iwd": "/home/alice", "idle": 3, "running": 2, "held": 1}
    expected |= {"suspended": 1, "done": 2, "failed": 2, "cancelled": 1}
    assert {name: first[name] for name in expected} == expected
    assert (old["cluster"], old["batch_name"], old["done"], old["failed"], old["idle"]) == (5, "old", 2, 0, 0)
