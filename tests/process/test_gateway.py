"""The other commands against a real pool, and all of them from another host through a gateway."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import BEAT, Parts, wait_for
from pools import SHIMS, Home


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    parts = Parts(tmp_path_factory.mktemp("gateway"), foremen=1)
    try:
        parts.start_all(slots=2, foremen=1)
        yield parts
    finally:
        parts.close()


class Far(Home):
    """Another host: a home of its own with a token, and a gateway."""

    def __init__(self, pool: Parts, path: Path, role: str, site: str) -> None:
        super().__init__(path)
        path.mkdir(mode=0o700)
        self.environ["WQ_MASTER"] = f"127.0.0.1:{pool.master_port}"
        done = pool.pilotq("token", "new", "--role", role, "--site", site, "--out", str(path / f"{role}.token"))
        assert done.returncode == 0, done.stderr
        self.log = path / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command("gateway"), env=self.environ, stdout=log, stderr=log)
        wait_for("the gateway", (self.path / "api").exists)

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def far(pool: Parts, tmp_path: Path) -> Iterator[Far]:
    found = Far(pool, tmp_path / "far", "submit", f"ce{tmp_path.name[-12:]}".replace("_", "-"))
    found.start()
    try:
        yield found
    finally:
        assert found.end() == 0


def test_from_another_host(pool: Parts, far: Far, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "run.sh").write_text("#!/bin/sh\ncat big | wc -c; sleep 100\n")
    (site / "run.sh").chmod(0o755)
    (site / "big").write_bytes(os.urandom(5 << 20))
    (site / "task.sub").write_text(
        "executable = run.sh\ntransfer_input_files = big\noutput = out\nlog = log\nshould_transfer_files = yes\nqueue\n"
    )
    wait_for("the pool", lambda: far.condor("condor_q").returncode == 0)
    done = far.condor("condor_submit", "-name", "any", "-pool", "any", "task.sub", cwd=site)
    assert done.returncode == 0, done.stderr
    cluster = done.stdout.split("cluster ")[1].split(".")[0]
    shown = ("condor_q", cluster, "-af", "JobStatus")
    wait_for("it to run", lambda: far.condor(*shown).stdout == "2\n")
    # What it wrote until now.
    wait_for("its output", lambda: far.condor("condor_tail", cluster).stdout == f"{5 << 20}\n")
    assert far.condor("condor_suspend", f"{cluster}.0").stdout == f"Job {cluster}.0 suspended\n"
    assert far.condor("condor_prio", "-p", "3", cluster).returncode == 0
    assert far.condor("condor_rm", cluster).returncode == 0
    assert far.condor("condor_history", cluster, "-af", "JobPrio", "JobStatus").stdout == "3 3\n"
    owner = far.condor("condor_history", cluster, "-af", "Owner").stdout
    assert owner.startswith("ce")
    refused = far.condor("condor_drain", "any")
    assert (refused.stdout, refused.returncode) == ("", 1)
    assert "condor_drain is not for a submit" in refused.stderr


def test_a_large_answer_and_many_at_a_time(pool: Parts, far: Far) -> None:
    cluster = pool.submit('executable = /bin/true\nhold = true\nMY.Pad = "' + "x" * 500 + '"\nqueue 5000\n')
    wait_for("the pool", lambda: far.condor("condor_q").returncode == 0)
    here = pool.condor("condor_q", str(cluster), "-af", "ProcId", "Pad").stdout
    assert len(here) > 2 << 20
    command = [str(SHIMS / "condor_q"), str(cluster), "-af", "ProcId", "Pad"]
    many = [subprocess.Popen(command, env=far.environ, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert all(one.communicate(timeout=60)[0] == here for one in many)
    pool.condor("condor_rm", str(cluster))


def test_the_master_is_started_again(pool: Parts, far: Far) -> None:
    wait_for("the pool", lambda: far.condor("condor_q").returncode == 0)
    pool.kill9("master")
    pool.start("master", *BEAT)
    wait_for("the pool", lambda: far.condor("condor_q").returncode == 0)


def test_a_stranger_gets_nothing(pool: Parts, tmp_path: Path) -> None:
    stranger = Far(pool, tmp_path / "stranger", "submit", "stranger")
    assert pool.pilotq("token", "revoke", "stranger").returncode == 0
    stranger.start()
    done = stranger.condor("condor_q")
    assert (done.stdout, done.returncode) == ("", 1)
    assert re.fullmatch(r"condor_q: no answer from the master of .*\n", done.stderr)
    assert stranger.end() == 0


def test_the_key_of_a_worker_is_none_for_a_gateway(pool: Parts, tmp_path: Path) -> None:
    other = Far(pool, tmp_path / "other", "worker", "other")
    (other.path / "worker.token").rename(other.path / "submit.token")
    done = other.pilotq("gateway")
    assert done.returncode == 2
    assert "is a token for a worker, not for a submit" in done.stderr


# ---- the others, on the head


def test_the_other_commands(pool: Parts) -> None:
    def run(*words: str) -> tuple[str, str, int]:
        done = pool.condor(*words)
        return done.stdout, done.stderr, done.returncode

    assert run("condor_reschedule") == ('Sent "Reschedule" command to local schedd\n', "", 0)
    assert run("condor_config_val", "SPOOL")[0].startswith(str(pool.path))
    assert Path(run("condor_config_val", "BIN")[0].strip(), "condor_q").exists()
    assert run("condor_ping", "WRITE")[2] == 0
    assert run("condor_userprio")[2] == 0
    out, err, code = run("condor_store_cred", "add")
    assert (out, code) == ("", 1) and err.startswith("condor_store_cred: not a command of pilotq: ")
    cluster = pool.submit("executable = /bin/sh\narguments = \"-c 'echo hi; sleep 100'\"\noutput = out\nqueue\n")
    wait_for("it to run", lambda: run("condor_q", str(cluster), "-af", "JobStatus")[0] == "2\n")
    assert f"{cluster:>4}.0" in run("condor_who")[0]
    wait_for("its output", lambda: run("condor_tail", f"{cluster}.0")[0] == "hi\n")
    assert run("condor_tail", f"{cluster}.0", "none")[2] == 1
    assert run("condor_transfer_data", str(cluster)) == ("Fetching data files...\n", "", 0)
    assert run("condor_transfer_data", "9999")[2] == 1
    host = os.uname().nodename
    assert run("condor_vacate", "-fast", host)[0].startswith(f'Sent "Vacate-All-Claims-Fast" command to startd {host}')
    wait_for("it to run again", lambda: run("condor_q", str(cluster), "-af", "NumJobStarts", "JobStatus")[0] == "2 2\n")
    assert run("condor_drain", "nowhere") == ("", "ERROR: Can't find address for startd nowhere\n", 1)
    assert run("condor_drain", host)[2] == 0
    wait_for("the drain", lambda: pool.status()["slots"]["open"] == 0 or pool.status()["workers"][0]["state"])
    run("condor_rm", str(cluster))


@pytest.mark.parametrize("closed", ["0<&-", "0<&- 2>&-"])
def test_an_empty_environment_and_a_configuration_of_its_own(pool: Parts, tmp_path: Path, closed: str) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "condor").write_bytes((SHIMS / "condor").read_bytes())
    (shims / "condor").chmod(0o755)
    (shims / "condor_q").symlink_to("condor")
    (shims / "home").write_text(f"{pool.path}\n")
    environ = {"PATH": os.environ["PATH"], "CONDOR_CONFIG": "/etc/condor/other"}
    script = f'exec "{shims}/condor_q" -totals {closed}'
    done = subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Total for all users: " in done.stdout
