"""condor_config_val, drain, vacate, ping, userprio, tail, who: command lines, texts, streams and exit codes."""

from __future__ import annotations

import pytest

from pilotq.condor import knobs, others
from pilotq.condor.request import Reply, Request
from pilotq.errors import UserError

FACTS = {
    "host": "head.cern.ch",
    "schedd": "head.cern.ch",
    "port": "9094",
    "home": "/home/bob/.pilotq",
    "state": "/var/tmp/pilotq-7",
    "bin": "/opt/pilotq/fakecondor",
    "release": "/opt/pilotq",
    "user": "bob",
    "ids": "7.7",
    "history": "/var/lib/history",
    "per_job_history": "",
}


def request(line: str, **env: str) -> Request:
    words = line.split()
    return Request(tool=words[0], argv=words[1:], user="bob", env=env)


def config_val(line: str, **env: str) -> tuple[str, str, int]:
    reply = knobs.answer(request(f"condor_config_val {line}", **env), FACTS)
    return reply.out, reply.err, reply.exit


def test_config_val() -> None:
    assert config_val("SPOOL") == ("/var/tmp/pilotq-7/spool\n", "", 0)
    assert config_val("schedd_name condor_host") == ("head.cern.ch\nhead.cern.ch\n", "", 0)
    assert config_val("HISTORY PER_JOB_HISTORY_DIR") == (
        "/var/lib/history\n",
        "Not defined: PER_JOB_HISTORY_DIR\n",
        1,
    )
    assert config_val("NONE BIN") == ("/opt/pilotq/fakecondor\n", "Not defined: NONE\n", 1)
    assert config_val("BIN", _CONDOR_BIN="/x", _condor_other="y")[0] == "/x\n"
    assert config_val("OTHER", _condor_other="y")[0] == "y\n"
    assert config_val("-verbose HOSTNAME")[0] == "HOSTNAME = head\n # at: <pilotq>\n # raw: HOSTNAME = head\n"
    assert config_val("-dump host")[0] == (
        "COLLECTOR_HOST = head.cern.ch:9094\nCONDOR_HOST = head.cern.ch\nFULL_HOSTNAME = head.cern.ch\n"
        "HOSTNAME = head\nSCHEDD_HOST = head.cern.ch\n"
    )
    assert "HISTORY = /var/lib/history\n" in config_val("-dump")[0]
    assert config_val("-config")[0] == "Configuration source:\n\t/home/bob/.pilotq/pilotq.toml\n"
    assert config_val("-schedd -name X SPOOL")[2] == 0
    for line in ("-set A=1", "-rset A=1", "-bogus", ""):
        assert config_val(line)[2] == 1 and not config_val(line)[0]


@pytest.mark.parametrize(
    ("line", "names", "everywhere", "ends"),
    [
        ("condor_drain n1 n2", ["n1", "n2"], False, ""),
        ("condor_drain -fast n1", ["n1"], False, "vacate_fast"),
        ("condor_drain -quick -reason why n1", ["n1"], False, "vacate"),
        ("condor_vacate", [], False, "vacate"),
        ("condor_vacate -fast -name n1", ["n1"], False, "vacate_fast"),
        ("condor_vacate -all", [], True, "vacate"),
    ],
)
def test_machines(line: str, names: list[str], everywhere: bool, ends: str) -> None:
    found = others.machines(request(line))
    assert isinstance(found, others.Machines)
    assert (found.names, found.everywhere, found.ends) == (names, everywhere, ends)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("condor_drain", "ERROR: No target machine specified\n"),
        ("condor_drain -x n1", "ERROR: Unrecognized option: -x\n"),
        ("condor_drain -cancel n1", "condor_drain: a drain that has begun is not undone"),
        ("condor_drain -reason", "ERROR: -reason requires another argument\n"),
    ],
)
def test_machines_that_are_refused(line: str, message: str) -> None:
    found = others.machines(request(line))
    assert isinstance(found, Reply)
    assert found.err.startswith(message)
    assert (found.out, found.exit) == ("", 1)


def test_ping() -> None:
    def said(line: str) -> tuple[str, str, int]:
        reply = others.ping(request(f"condor_ping {line}"), "head")
        return reply.out, reply.err, reply.exit

    using = "command using (no encryption, no integrity, and FS) succeeded as bob@head to schedd head.\n"
    assert said("-type schedd WRITE") == (f"WRITE {using}", "", 0)
    assert said("")[0] == f"WRITE {using}"
    assert said("READ WRITE")[0] == f"READ {using}WRITE {using}"
    assert said("-quiet WRITE") == ("", "", 0)
    assert "Authorized:                  TRUE\n" in said("-verbose -name Q -pool P WRITE")[0]
    assert said("NONSENSE")[1:] == ("ERROR: Could not understand command or authorization level 'NONSENSE'\n", 1)


def test_userprio() -> None:
    reply = others.userprio(request("condor_userprio -all"), {"bob": 3, "ann": 0}, "head", "11/29 07:00")
    lines = reply.out.splitlines()
    assert lines[0] == "Last Priority Update: 11/29 07:00"
    assert lines[4] == "ann@head                         500.00   1000.00      0"
    assert lines[-1].split() == ["Number", "of", "users:", "2", "3"]
    assert len({len(line) for line in lines[1:]}) == 1
    with pytest.raises(UserError):
        others.userprio(request("condor_userprio -setprio bob 5"), {}, "head", "")


def test_tail() -> None:
    found = others.tail(request("condor_tail -maxbytes 10 -stderr 5.1"))
    assert found == others.Tail(5, 1, ["\x00stdout", "\x00stderr"], 10)
    assert others.tail(request("condor_tail -no-stdout 5 out.txt")) == others.Tail(5, 0, ["out.txt"], 1024)
    for line in ("condor_tail", "condor_tail -f 5", "condor_tail -maxbytes x 5", "condor_tail x"):
        refused = others.tail(request(line))
        assert isinstance(refused, Reply) and refused.exit == 1 and refused.err


def test_who_takes_what_runs_on_this_machine() -> None:
    found = others.who(request("condor_who -wide"), "n7")
    assert found.tool == "condor_q"
    assert found.argv[:2] == ["-constraint", 'RemoteHost == "slot1@n7" && (JobStatus == 2 || JobStatus == 7)']
    with pytest.raises(UserError):
        others.who(request("condor_who -x"), "n7")
