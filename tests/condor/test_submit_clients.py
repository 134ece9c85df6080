"""The submit files of grid clients, as they write them: Perl AliEn, JAliEn, ARGO's Balsam, the batch glue of a CE."""

from __future__ import annotations

import re

import pytest
from submitting import HOME, SCRIPT, User, proc

from pilotq.condor.request import Reply
from pilotq.condor.submit import Plan, submitted

LOGS = "/var/log/alien"


@pytest.fixture
def user() -> User:
    start = "/tmp/alice/agent.startup"
    files: dict[str, bytes | None] = {f"{start}.{suffix}": SCRIPT for suffix in ("77", "1700000000123", "4711")}
    return User(files=files | {f"{LOGS}/2024-05-01": None, LOGS: None})


# ---- Perl AliEn --------------------------------------------------------------------------------------------------


def test_perl_condor(user: User) -> None:
    """LQ/CONDOR.pm: description on standard input, no arguments at all, blanks around = as they come."""
    text = (
        "executable = /tmp/alice/agent.startup.77\narguments = \n"
        f"output = {LOGS}/AliEn.JobAgent.77.1.out\nerror  = {LOGS}/AliEn.JobAgent.77.1.err\n"
        f"log    = {LOGS}/AliEn.JobAgent.77.1.log\n"
        "environment=CONDOR_ID=$(Cluster).$(Process);ALIEN_CM_AS_LDAP_PROXY=voalice.cern.ch:8084;"
        "ALIEN_JOBAGENT_ID=77.1;ALIEN_ALICE_CM_AS_LDAP_PROXY=voalice.cern.ch:8084\nqueue\n"
    )
    submission = user.one(text, "-name", "x")
    assert user.wants[0] == ("read", "-")
    description, body = proc(submission, 0, 123)
    assert description.argv == ["./condor_exec.exe"]
    assert description.env == {
        "CONDOR_ID": "123.0",
        "ALIEN_CM_AS_LDAP_PROXY": "voalice.cern.ch:8084",
        "ALIEN_JOBAGENT_ID": "77.1",
        "ALIEN_ALICE_CM_AS_LDAP_PROXY": "voalice.cern.ch:8084",
    }
    assert body.stdout == f"{LOGS}/AliEn.JobAgent.77.1.out" and body.log == f"{LOGS}/AliEn.JobAgent.77.1.log"
    assert body.ad["Cmd"] == '"/tmp/alice/agent.startup.77"'


def test_perl_condor_with_what_a_site_adds(user: User) -> None:
    """CE_SUBMITARG, and the lines of a GRAM site."""
    text = (
        "executable = /tmp/alice/agent.startup.77\narguments = \nuniverse = grid\n"
        "grid_resource=gt2 ce.example.org/jobmanager-pbs\nqueue\n"
    )
    assert user.one(text, "-name", "x").body.ad["GridResource"] == '"gt2 ce.example.org/jobmanager-pbs"'


HTCONDOR_PM = """cmd = /tmp/alice/agent.startup.77
output = {logs}/2024-05-01/jobagent_77.1.out
error = {logs}/2024-05-01/jobagent_77.1.err
log = {logs}/2024-05-01/jobagent_77.1.log
universe = {universe}
\t+TransferOutput = ""
\t#periodic_hold = true
\tperiodic_remove = (CurrentTime - QDate) > 7*24*3600
{more}use_x509userproxy = true
environment="ALIEN_CM_AS_LDAP_PROXY='h:1' ALIEN_ALICE_CM_AS_LDAP_PROXY='h:1' ALIEN_JOBAGENT_ID='77.1'"
queue 1"""


def test_perl_htcondor_grid(user: User) -> None:
    """LQ/HTCONDOR.pm: lines begin with TABs, no newline at the end, and SUBMIT_ARGS."""
    text = HTCONDOR_PM.format(logs=LOGS, universe="grid", more="grid_resource = condor ce.x ce.x:9619\n")
    submission = user.one(text, "-append", "+TestClassAd=1")
    description, body = proc(submission, 0)
    assert description.outputs == []
    assert description.env["ALIEN_JOBAGENT_ID"] == "77.1"
    assert body.policies == {"periodic_remove": "(CurrentTime - QDate) > 7*24*3600"}
    assert body.ad["TestClassAd"] == "1" and body.ad["TransferOutput"] == '""'
    assert (body.ad["JobUniverse"], body.ad["GridResource"]) == ("9", '"condor ce.x ce.x:9619"')
    assert body.log == f"{LOGS}/2024-05-01/jobagent_77.1.log"


def test_perl_htcondor_job_router(user: User) -> None:
    more = "+WantJobRouter=True\njob_lease_duration = 7200\nShouldTransferFiles = YES\n+WantExternalCloud = True\n"
    body = user.one(HTCONDOR_PM.format(logs=LOGS, universe="vanilla", more=more), "-terse").body
    assert (body.ad["WantJobRouter"], body.ad["WantExternalCloud"], body.lease_s) == ("True", "True", 7200.0)
    assert (body.ad["JobUniverse"], body.ad["ShouldTransferFiles"]) == ("5", '"YES"')


def test_perl_htcondor_later_writes_a_condition_over_several_lines(user: User) -> None:
    text = (
        "cmd = /tmp/alice/agent.startup.77\nperiodic_hold = JobStatus == 1 && \\\n  GridJobStatus =?= undefined && \\\n"
        "  CurrentTime - EnteredCurrentStatus > 1800\nqueue 1\n"
    )
    hold = user.one(text, "-name", "x").body.policies["periodic_hold"]
    assert hold == "JobStatus == 1 && GridJobStatus =?= undefined && CurrentTime - EnteredCurrentStatus > 1800"


# ---- JAliEn ------------------------------------------------------------------------------------------------------

GRID_HOLD = (
    "JobStatus == 1 && GridJobStatus =?= undefined && CurrentTime - EnteredCurrentStatus > 1800 || "
    "JobStatus <= 2 && CurrentTime - EnteredCurrentStatus > 172800"
)
LOCAL_HOLD = "JobStatus <= 2 && CurrentTime - EnteredCurrentStatus > 172800"


def jalien(script: str, hold: str, middle: str, proxy: str, classad: str = "") -> str:
    base = f"{LOGS}/2024-05-01/jobagent_4711_1"
    return (
        f'cmd = {script}\nlog = {base}.log\n+TransferOutput = ""\nperiodic_hold = {hold}\n'
        f"periodic_remove = CurrentTime - QDate > 259200\n{middle}{proxy}"
        f"environment = \"ALIEN_CM_AS_LDAP_PROXY='alice-ldap.cern.ch:8389'\"\n{classad}queue 1\n\n"
    )


@pytest.mark.parametrize(
    ("script", "proxy"),
    [
        ("/tmp/alice/agent.startup.1700000000123", "use_x509userproxy = true\n"),
        ("/tmp/alice/agent.startup.4711", "use_scitokens = true\nscitokens_file = /home/alice/.globus/wlcg.dat\n"),
    ],
)
def test_jalien_grid(user: User, script: str, proxy: str) -> None:
    """Both generations of HTCONDOR.java; the file is overwritten by the next submission."""
    middle = "universe = grid\ngrid_resource = condor ce1.x ce1.x:9619\n+WantExternalCloud = True\n"
    submission = user.one(jalien(script, GRID_HOLD, middle, proxy))
    description, body = proc(submission, 0)
    assert description.outputs == [] and not description.keep_stdout and not description.keep_stderr
    assert body.policies == {"periodic_hold": GRID_HOLD, "periodic_remove": "CurrentTime - QDate > 259200"}
    assert body.ad["GridResource"] == '"condor ce1.x ce1.x:9619"'
    assert (body.stdout, body.log) == ("", f"{LOGS}/2024-05-01/jobagent_4711_1.log")
    assert ("store", script) in user.wants
    assert "PeriodicRemove = CurrentTime - QDate > 259200\n" in description.job_ad


def test_jalien_local_pool(user: User) -> None:
    middle = "universe = vanilla\n+WantJobRouter = True\njob_lease_duration = 7200\nShouldTransferFiles = YES\n"
    text = jalien("/tmp/alice/agent.startup.4711", LOCAL_HOLD, middle, "")
    plan = user.submit(text)
    assert isinstance(plan, Plan) and plan.stderr == ""
    body = plan.submissions[0].body
    assert body.policies["periodic_hold"] == LOCAL_HOLD and body.lease_s == 7200.0
    assert "GridResource" not in body.ad


def test_jalien_doubles_the_line_ends_of_a_continued_classad(user: User) -> None:
    """A backslash at the end of a line of custom-classad.jdl comes out with an empty line after it."""
    classad = (
        '#\n# custom attributes start\n#\n\n+Owner2 = "a \\\n\nb"\n+MyTest = 1 + \\\n\n  2 + \\\n\n  3\n'
        "+Other = 5\n\n#\n# custom attributes end\n#\n\n"
    )
    text = jalien("/tmp/alice/agent.startup.4711", LOCAL_HOLD, "universe = vanilla\n", "", classad)
    ad = user.one(text).body.ad
    assert (ad["Owner2"], ad["MyTest"], ad["Other"]) == ('"a b"', "1 + 2 + 3", "5")


def test_a_list_that_ends_in_a_backslash_does_not_swallow_the_next_statement(user: User) -> None:
    text = jalien("/tmp/alice/agent.startup.4711", LOCAL_HOLD, "universe = vanilla\\\n\n", "")
    assert user.one(text).count == 1


# ---- ARGO --------------------------------------------------------------------------------------------------------

BALSAM = """Universe                       = vanilla
Arguments                      =  --seed 5 -o out.dat
Priority                       = 5
Initialdir                     = {work}
Output                         = condor_stdout.txt.$(Cluster).$(Process)
Error                          = condor_stderr.txt.$(Cluster).$(Process)
Log                            = condor_log.txt.$(Cluster).$(Process)
should_transfer_files          = YES
when_to_transfer_output        = ON_EXIT_OR_EVICT
Executable                     = {bin}/alpgen.sh
+PreCmd                        = "condor_untar_input.sh"
+PreArguments                  = "condor_job_input.tgz"
+PostCmd                       = "condor_tar_output.sh"
+PostArguments                 = "condor_job_output.tgz"
transfer_input_files           = {bin}/condor_untar_input.sh,{bin}/condor_tar_output.sh,condor_job_input.tgz
transfer_output_files          = condor_job_output.tgz
stream_output                  = true
stream_error                   = true
Queue
"""


@pytest.fixture
def balsam() -> User:
    names = ("alpgen.sh", "condor_untar_input.sh", "condor_tar_output.sh")
    return User(files={f"/opt/{name}": SCRIPT for name in names} | {"/data/w 1/condor_job_input.tgz": b"tgz"})


def test_balsam(balsam: User) -> None:
    plan = balsam.submit(BALSAM.format(work="/data/w 1", bin="/opt"))
    assert isinstance(plan, Plan) and plan.stderr == ""
    description, body = proc(plan.submissions[0], 0, 6903)
    assert description.argv == ["./condor_exec.exe", "--seed", "5", "-o", "out.dat"]
    assert description.pre is not None and description.pre.argv == ["./condor_untar_input.sh", "condor_job_input.tgz"]
    assert description.post is not None and description.post.argv == ["./condor_tar_output.sh", "condor_job_output.tgz"]
    assert {file.name for file in description.files} == {
        "condor_exec.exe", "condor_untar_input.sh", "condor_tar_output.sh", "condor_job_input.tgz"
    }  # fmt: skip
    assert description.outputs == ["condor_job_output.tgz"]
    assert (body.iwd, body.priority) == ("/data/w 1", 5)
    assert body.stdout == "/data/w 1/condor_stdout.txt.6903.0" and body.log == "/data/w 1/condor_log.txt.6903.0"


def test_balsam_reads_the_number(balsam: User) -> None:
    plan = balsam.submit(BALSAM.format(work="/data/w 1", bin="/opt") + "typo = 1\nqueue 2\n")
    assert isinstance(plan, Plan)
    reply = submitted(plan, [6903])
    # It reads standard output and error in one: the word after the first "cluster" without its full stop.
    for said in (reply.err + reply.out, reply.out + reply.err):
        assert int(said.partition("cluster")[2].split()[0].replace(".", "")) == 6903
    line = next(line for line in reply.out.splitlines() if line.find("job(s) submitted to cluster") > 0)
    assert int(line.split()[-1][:-1]) == 6903


# ---- the batch glue of a CE --------------------------------------------------------------------------------------

BLAHP = """universe = vanilla
executable = /tmp/ce/bl_1.sh
input = /dev/null
output = /tmp/ce/o
error = /tmp/ce/e
arguments = "a 'b c'"
environment = "X='1 2' Y=3"
request_cpus = 1
request_memory = 2000
periodic_remove = JobStatus == 2 && time() - JobCurrentStartExecutingDate > 3600
transfer_input_files = /tmp/ce/proxy
should_transfer_files = yes
when_to_transfer_output = on_exit
notification = never
+blah = "x"
leave_in_queue = JobStatus == 4 && (CompletionDate =?= UNDEFINED || CompletionDate == 0 || \
((CurrentTime - CompletionDate) < 1800))
queue 1
"""


def test_blahp() -> None:
    user = User(files={"/tmp/ce/bl_1.sh": SCRIPT, "/tmp/ce/proxy": b"p"})
    plan = user.submit(BLAHP, "-pool", "p", "-name", "q", "job.sub")
    assert isinstance(plan, Plan) and plan.stderr == ""
    body = plan.submissions[0].body
    assert body.policies["leave_in_queue"].endswith("((CurrentTime - CompletionDate) < 1800))")
    assert body.ad["WhenToTransferOutput"] == '"ON_EXIT"'
    reply = submitted(plan, [42])
    # Word 8 of all of standard output joined on blanks, without dots.
    assert re.sub(r"\.", "", reply.out.replace("\n", " ").split(" ")[7]) == "42"


def test_a_ce_is_told_when_the_script_is_gone(user: User) -> None:
    del user.files["/tmp/alice/agent.startup.4711"]
    reply = user.submit(jalien("/tmp/alice/agent.startup.4711", LOCAL_HOLD, "universe = vanilla\n", ""))
    assert isinstance(reply, Reply) and (reply.exit, reply.out) == (1, "")
    assert not any(line.lstrip().startswith(("1", "2")) for line in reply.err.splitlines())


def test_the_examples_that_come_with_pilotq() -> None:
    from pathlib import Path

    examples = Path(__file__).parents[2] / "etc" / "examples"
    for example in sorted(examples.glob("*.sub")):
        user = User(files={f"{HOME}/{path.name}": path.read_bytes() for path in examples.iterdir()})
        plan = user.submit(example.read_bytes())
        assert isinstance(plan, Plan), plan.err
        assert plan.stderr == "" and all(not submission.deltas for submission in plan.submissions)
