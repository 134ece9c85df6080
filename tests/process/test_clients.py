"""The clients that pilotq is made for, one by one, against a whole pool: what they say is understood, and so are we."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import (
    BOTH,
    IDLE,
    Balance,
    Balsam,
    Ce,
    CommandFailedError,
    FormerJalien,
    Jalien,
    LocalJalien,
    PerlCondor,
    PerlHtcondor,
)
from parts import Parts, wait_for
from pools import SHIMS

pytestmark = pytest.mark.timeout(120)
CE1, CE2 = "ce1.example.org:9619", "ce2.example.org:9619"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Two slots; policies are looked at every second."""
    found = Parts(tmp_path_factory.mktemp("clients"), 1, ["master.policy_interval_s=1"])
    # Where python3 is a script that looks for one, each command would take ten times as long.
    found.environ["PATH"] = f"{SHIMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        found.start_all(slots=2, foremen=1)
        yield found
    finally:
        found.close()


@pytest.fixture(autouse=True)
def emptied(pool: Parts) -> Iterator[None]:
    yield
    pool.condor("condor_rm", "-all")
    wait_for("an empty pool", lambda: not queue(pool) and not pool.status()["slots"]["busy"])


def queue(pool: Parts, *words: str) -> list[str]:
    done = pool.condor("condor_q", "-af", *(words or ["ClusterId"]))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def wait_running(pool: Parts, idle: int, running: int) -> None:
    wait_for(
        f"{idle} idle and {running} running",
        lambda: Counter(queue(pool, "JobStatus")) == Counter({"1": idle, "2": running}),
    )


def wait_ended(ce: Ce) -> None:
    ce.gate.touch()
    wait_for("an empty queue", lambda: not queue(ce.pool))


# ---- Perl AliEn --------------------------------------------------------------------------------------------------


def test_perl_condor(pool: Parts, tmp_path: Path) -> None:
    ce = PerlCondor(pool, tmp_path)
    assert ce.number(BOTH) == 0, "an empty queue is known to be empty"
    none = ce.number_of_lines(BOTH)
    script = ce.agent("agent.startup.77")
    assert [ce.submit(script, number) for number in range(3)] == [0, 0, 0]
    clusters = sorted(queue(pool))
    wait_running(pool, 1, 2)
    assert (ce.number(BOTH), ce.number(IDLE)) == (3, 1)
    lines = ce.number_of_lines(BOTH)
    assert none is not None and lines == none + 3
    listed = ce.listed()
    assert listed is not None and sorted(listed) == clusters
    wait_ended(ce)
    assert (ce.number(BOTH), ce.number(IDLE), ce.listed()) == (0, 0, [])
    assert {ce.seen(f"77.{number}")["CONDOR_ID"] for number in range(3)} == {f"{cluster}.0" for cluster in clusters}
    assert ce.seen("77.1")["ALIEN_ALICE_CM_AS_LDAP_PROXY"] == "voalice.cern.ch:8084"
    names = {f"AliEn.JobAgent.77.{number}.{kind}" for number in range(3) for kind in ("out", "err", "log")}
    assert set(os.listdir(ce.logs)) == names
    assert (ce.logs / "AliEn.JobAgent.77.2.out").read_text() == "started\n"
    wait_for("the log to be complete", lambda: "\n005 (" in (ce.logs / "AliEn.JobAgent.77.2.log").read_text())


def test_perl_condor_counts_grid_jobs(pool: Parts, tmp_path: Path) -> None:
    ce = PerlCondor(pool, tmp_path)
    assert ce.number_of_grid_jobs(BOTH) == 0
    script = ce.agent("agent.startup.77")
    for number in range(3):
        assert ce.submit(script, number, "universe=grid", "grid_resource=ce.example.org/jobmanager-pbs") == 0
    wait_running(pool, 1, 2)
    assert (ce.number_of_grid_jobs(BOTH), ce.number_of_grid_jobs(IDLE)) == (3, 1)
    assert queue(pool, "GridResource") == ["gt2 ce.example.org/jobmanager-pbs"] * 3


def test_perl_condor_removes(pool: Parts, tmp_path: Path) -> None:
    ce = PerlCondor(pool, tmp_path)
    ce.submit(ce.agent("agent.startup.77"), 1)
    wait_for("the agent", lambda: ce.seen("77.1"))
    (cluster,) = ce.listed() or []
    assert ce.backticks(f"condor_rm {cluster}") == f"All jobs in cluster {cluster} have been marked for removal\n"
    wait_for("it to be gone", lambda: ce.number(BOTH) == 0)
    assert ce.backticks(f"condor_history {cluster} -af JobStatus") == "3\n"


def test_perl_condor_is_told_what_was_not_accepted(pool: Parts, tmp_path: Path) -> None:
    ce = PerlCondor(pool, tmp_path)
    assert ce.submit(tmp_path / "agent.startup.gone", 1) == 1
    assert ce.number(BOTH) == 0


def test_perl_htcondor_by_standard_input(pool: Parts, tmp_path: Path) -> None:
    ce = PerlHtcondor(pool, tmp_path)
    script = ce.agent(f"agent.startup.{os.getpid()}")
    assert (ce.from_schedd(), ce.from_totals()) == ((0, 0), (0, 0))
    for number in range(3):
        assert ce.submit(ce.text(script, f"77.{number}")) == 0
    wait_running(pool, 1, 2)
    assert (ce.from_schedd(), ce.from_totals()) == ((2, 1), (2, 1))
    shown = queue(pool, "TestClassAd", "WantExternalCloud", "TransferOutput", "GridResource")
    assert shown == ["1 true  condor ce.example.org ce.example.org:9619"] * 3
    (idle,) = ce.backticks("condor_q -constraint 'JobStatus == 1' -af ClusterId").split()
    ce.system(f"condor_hold {idle}")
    assert (ce.from_schedd(), ce.from_totals()) == ((2, 0), (2, 1)), "held ones count as queued in the totals"
    ce.system(f"condor_release {idle}")
    wait_ended(ce)
    assert ce.seen("77.2")["ALIEN_JOBAGENT_ID"] == "77.2"
    assert (ce.logs / "jobagent_77.2.out").read_text() == "started\n"


def test_perl_htcondor_by_a_file_that_is_used_again(pool: Parts, tmp_path: Path) -> None:
    ce = PerlHtcondor(pool, tmp_path)
    script = ce.agent("agent.startup.1")
    hold = (
        "periodic_hold = JobStatus == 1 && \\\n\tGridJobStatus =?= undefined && \\\n"
        "\tCurrentTime - EnteredCurrentStatus > 1800\n"
    )
    for number in range(3):
        assert ce.submit_file(ce.text(script, f"1.{number}", router=True, hold=hold)) == 0
    wait_running(pool, 1, 2)
    assert (ce.sum_from_schedd(), ce.from_schedd()[1]) == (3, 1)
    (said,) = set(ce.backticks("condor_q -af:r WantJobRouter JobLeaseDuration PeriodicHold").splitlines())
    assert said == (
        "true 7200 JobStatus == 1 && GridJobStatus =?= undefined && CurrentTime - EnteredCurrentStatus > 1800"
    )
    wait_ended(ce)
    assert set(os.listdir(ce.ran)) == {"1.0", "1.1", "1.2"}


# ---- JAliEn ------------------------------------------------------------------------------------------------------


def balance(idle: int, running: int, *places: str) -> Balance:
    return Balance(idle, running, Counter(places))


def no_output_came(ce: Jalien) -> bool:
    """Neither streams nor what was made in the sandbox."""
    kinds = {name.partition(".")[2] for name in os.listdir(ce.logs)}
    return kinds == {"17000.jdl", "log"} and not (ce.folder / "here").exists()


@pytest.mark.parametrize("client", [FormerJalien, Jalien])
def test_jalien_grid(pool: Parts, tmp_path: Path, client: type[Jalien]) -> None:
    """One submit file for all, and scripts that are gone or rewritten as soon as condor_submit is back."""
    ce = client(pool, tmp_path)
    assert ce.count() == balance(0, 0)
    for number, place in enumerate([CE1, CE2, CE1]):
        script = ce.agent(f"agent.startup.{1700000000123 + number if ce.former else 4711}", f"agent{number}")
        code, said = ce.submit(ce.text(script, f"17000_{number}", place, token=not ce.former))
        assert code == 0, said
        if ce.former:
            script.unlink()
    (ce.logs / "htc-submit.17000.jdl").write_text("rubbish")
    wait_running(pool, 1, 2)
    assert ce.count() == balance(1, 2, CE1, CE2, CE1)
    code, said = ce.bash(ce.count_command)
    assert sorted(said.splitlines())[1:] == sorted(
        f"2 condor {place.partition(':')[0]} {place}" for place in (CE1, CE2)
    )
    assert queue(pool, "MyTest", "Site", "TestClassAd") == ["6 a 1"] * 3
    wait_ended(ce)
    assert sorted(os.listdir(ce.ran)) == ["agent0", "agent1", "agent2"]
    assert no_output_came(ce)


def test_jalien_local_pool(pool: Parts, tmp_path: Path) -> None:
    """The mode of the sites that have no CE of their own: vanilla, and everything counts for `local_pool`."""
    ce = LocalJalien(pool, tmp_path)
    assert ce.count() == balance(0, 0)
    script = ce.agent("agent.startup.4711", "agent")
    for number in range(3):
        code, said = ce.submit(ce.text(script, f"4711_{number}"))
        assert code == 0, said
    wait_running(pool, 1, 2)
    assert ce.count() == balance(1, 2, *["local_pool"] * 3)
    assert sorted(ce.bash(ce.count_command)[1].splitlines()) == ["1 local_pool", "2 local_pool", "2 local_pool"]
    wait_ended(ce)
    assert no_output_came(ce)


def test_what_an_agent_of_jalien_looks_at(pool: Parts, tmp_path: Path) -> None:
    ce = LocalJalien(pool, tmp_path)
    ce.gate.touch()
    ce.submit(ce.text(ce.agent("agent.startup.4711", "agent"), "4711_1", sandbox=True))
    wait_ended(ce)
    assert (ce.logs / "jobagent_4711_1.out").read_text() == "started\n"
    seen = ce.seen("agent")
    assert seen["ALIEN_CM_AS_LDAP_PROXY"] == "alice-ldap.cern.ch:8389"
    assert seen["HOME"] == seen["_CONDOR_SCRATCH_DIR"]
    assert (seen["WRITABLE"], seen["MODE"]) == ("1", "700")
    assert re.fullmatch(r'"\S+#\d+\.0#\d+"', seen["GlobalJobId"])
    assert seen["PeriodicRemove"] == "CurrentTime - QDate > 259200"
    assert seen["CondorVersion"].startswith('"$CondorVersion: ')


def test_the_copy_of_a_script_with_credentials_is_private(pool: Parts, tmp_path: Path) -> None:
    ce = LocalJalien(pool, tmp_path)
    secret = f"secret-{os.urandom(16).hex()}"
    script = ce.agent("agent.startup.4711", "agent")
    script.write_text(script.read_text() + f"# {secret} {'x' * 200_000}\n")
    ce.submit(ce.text(script, "4711_1"))
    wait_for("the agent", lambda: ce.seen("agent"))
    copies = [path for path in pool.path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert len(copies) >= 2, "one on the head, one on the node"
    for copy in copies:
        assert any(not path.stat().st_mode & 0o077 for path in (copy, *copy.parents) if pool.path in path.parents)


@pytest.mark.parametrize("router", [False, True])
def test_a_hold_for_jobs_that_no_grid_knows(pool: Parts, tmp_path: Path, router: bool) -> None:
    """It must not hold what is only idle: for a CE we are the grid that has the job."""
    ce = Jalien(pool, tmp_path)
    script = ce.agent("agent.startup.4711", "agent")
    text = ce.text(script, "1", CE1, router=router).replace("> 1800", "> 0")
    for _ in range(3):
        assert ce.submit(text)[0] == 0
    other = text.replace("GridJobStatus =?= undefined", "GridJobStatus =!= 1")
    wait_running(pool, 1, 2)
    assert ce.submit(other)[0] == 0
    wait_for("the other to be held", lambda: Counter(queue(pool, "JobStatus")) == Counter("2215"), 10)
    (reason,) = ce.backticks("condor_q -const 'JobStatus == 5' -af HoldReason").splitlines()
    assert reason.startswith("The job attribute PeriodicHold expression 'JobStatus == 1 && GridJobStatus =!= 1")
    found = ce.count()
    assert found is not None and (found.idle, found.running) == (1, 2)


# ---- ARGO's Balsam -----------------------------------------------------------------------------------------------


@pytest.fixture
def balsam(pool: Parts, tmp_path: Path) -> Balsam:
    ce = Balsam(pool, tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "input.cards").write_text("41 1 ! seed\n")
    return ce


def alpgen(ce: Balsam) -> Path:
    """Something that uses what was packed."""
    return ce.script(
        "alpgen.sh",
        f"[ -e input.cards ] || exit 7\nfor i in $(seq 600); do [ -e {ce.gate} ] && break; sleep 0.1; done\n"
        'echo "$@"; echo bad >&2\nmkdir -p result && tr 41 52 < input.cards > result/events.unw\n',
    )


def test_balsam(balsam: Balsam, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = balsam.submit(alpgen(balsam), "--seed 5 -o out.dat", work)
    wait_for("it to run", lambda: balsam.state(first) == "JOB_RUNNING")
    (row,) = balsam.rows(first)
    assert (row[0], row[1], row[5], row[6]) == (f"{first}.0", balsam.user, "R", "5")
    assert row[8:] == ["alpgen.sh", "--seed", "5", "-o", "out.dat"]
    balsam.gate.touch()
    wait_for("it to end", lambda: balsam.state(first) == "JOB_FINISHED")
    ((name, owner, *_, letter, _day, _time, command, _, _, _, _),) = balsam.ended_rows(first)
    assert (name, owner, letter, command) == (f"{first}.0", balsam.user, "C", str(tmp_path / "scripts" / "alpgen.sh"))
    # Balsam unpacks at once.
    subprocess.run(["tar", "zxf", work / "condor_job_output.tgz", "-C", work], check=True)
    assert (work / "result" / "events.unw").read_text() == "52 2 ! seed\n"
    assert (work / f"condor_stdout.txt.{first}.0").read_text() == "--seed 5 -o out.dat\n"
    assert (work / f"condor_stderr.txt.{first}.0").read_text() == "bad\n"
    log = work / f"condor_log.txt.{first}.0"
    wait_for("the log to be complete", lambda: f"\n005 ({first:03d}.000.000)" in log.read_text())


def test_balsam_counts_what_waits(balsam: Balsam, tmp_path: Path) -> None:
    ids = [balsam.submit(alpgen(balsam), "", tmp_path / "work") for _ in range(3)]
    wait_running(balsam.pool, 1, 2)
    assert Counter(map(balsam.state, ids)) == {"JOB_RUNNING": 2, "JOB_QUEUED": 1}


def test_balsam_sees_held_and_removed_jobs(balsam: Balsam, tmp_path: Path) -> None:
    cluster = balsam.submit(alpgen(balsam), "", tmp_path / "work")
    assert balsam.run(f"condor_hold {cluster}") == f"All jobs in cluster {cluster} have been held\n"
    assert balsam.state(cluster) == "JOB_HELD"
    assert balsam.hold_reason(cluster) == f"via condor_hold (by user {balsam.user})"
    assert balsam.run(f"condor_release {cluster}") == f"All jobs in cluster {cluster} have been released\n"
    wait_for("it to run", lambda: balsam.state(cluster) == "JOB_RUNNING")
    assert balsam.run(f"condor_rm {cluster}") == f"All jobs in cluster {cluster} have been marked for removal\n"
    wait_for("it to be gone", lambda: balsam.state(cluster) == "JOB_FAILED")
    ((*_, letter, when, _command),) = balsam.ended_rows(cluster)
    assert (letter, when) == ("X", "???")


def test_an_ended_job_is_in_the_history_before_it_leaves_the_queue(balsam: Balsam, tmp_path: Path) -> None:
    """Balsam breaks when it is in neither: asked without a pause from the submission on."""
    balsam.gate.touch()
    program, cards = alpgen(balsam), tmp_path / "work" / "input.cards"

    def follow(number: int) -> set[str]:
        """All states one job was seen in."""
        text = f"executable = {program}\ntransfer_input_files = {cards}\nqueue\n"
        cluster = balsam.pool.submit(text, file=f"{number}.sub")
        states = [balsam.state(cluster)]
        while states[-1] not in ("JOB_FINISHED", "JOB_FAILED"):
            states.append(balsam.state(cluster))
        return set(states)

    with ThreadPoolExecutor(2) as threads:
        for states in threads.map(follow, range(20)):
            assert states <= {"JOB_QUEUED", "JOB_RUNNING", "JOB_FINISHED"}


# ---- all of them -------------------------------------------------------------------------------------------------


def test_condor_version(pool: Parts) -> None:
    done = pool.condor("condor_version")
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"\$CondorVersion: \d+\.\d+\.\d+ .*\$", first)
    assert re.fullmatch(r"\$CondorPlatform: \S+ \$", second)


def test_the_master_is_away(pool: Parts, tmp_path: Path) -> None:
    """Nobody takes that for an empty queue, but the one who never looks at exit codes: it reads no false jobs."""
    perl, htcondor = PerlCondor(pool, tmp_path / "1"), PerlHtcondor(pool, tmp_path / "2")
    former, jalien, local = (kind(pool, tmp_path / kind.__name__) for kind in (FormerJalien, Jalien, LocalJalien))
    balsam = Balsam(pool, tmp_path / "6")
    script = perl.agent("agent.startup.77")
    for number in range(3):
        perl.submit(script, number)
    wait_running(pool, 1, 2)
    pool.kill9("master")
    with ThreadPoolExecutor(12) as threads:
        submitted = threads.submit(jalien.submit, jalien.text(script, "1", CE1))
        perl_submitted = threads.submit(perl.submit, script, 4)
        count = threads.submit(perl.backticks, perl.count_command(BOTH))
        health = threads.submit(perl.system, "condor_q")
        listed = threads.submit(perl.listed)
        from_schedd = threads.submit(htcondor.backticks, "condor_status -schedd -af totalRunningJobs totalIdleJobs")
        asked = [threads.submit(ce.bash, ce.count_command) for ce in (former, jalien, local)]
        bare = threads.submit(pool.condor, "condor_q")
        row = threads.submit(balsam.rows, 1)
    assert perl_submitted.result() == 1
    code, said = submitted.result()
    assert code == 1 and "job(s) submitted" not in said
    assert int(count.result()) == 0 and health.result(), "which is no number for Perl AliEn"
    assert (listed.result(), from_schedd.result()) == (None, "")
    for question in asked:
        code, said = question.result()
        assert code and not any(line.lstrip().startswith(("1", "2")) for line in said.splitlines())
    assert bare.result().returncode and not bare.result().stdout
    with pytest.raises(CommandFailedError):
        row.result()
    pool.start_master()
    wait_running(pool, 1, 2)
    assert (perl.number(BOTH), perl.number(IDLE)) == (3, 1)
    wait_ended(perl)
    assert sorted(os.listdir(perl.ran)) == ["77.0", "77.1", "77.2"]
