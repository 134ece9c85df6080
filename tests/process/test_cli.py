"""The commands that need no pool."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pools import ROOT, SHIMS, Home, clean_environ

from pilotq import client
from pilotq.cli import main as cli
from pilotq.cli import processes
from pilotq.cli.processes import Process
from pilotq.errors import UnavailableError
from pilotq.proc import start_ticks


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["rnu"], 2, "did you mean run?"),
        ([], 2, "no command was given"),
        (["run"], 2, "FILE.sub"),
        (["run", "none.sub"], 2, "none.sub cannot be read (No such file or directory)"),
        (["run", "."], 2, "Is a directory"),
        (["up", "--foremen", "-1"], 2, "no number of things"),
        (["up", "--slots", "many"], 2, "no number of things"),
        (["up", "--slots", "0"], 2, "1 slot or more"),
        (["up", "--set", "master.host=foo.invalid"], 2, "'foo.invalid' (WQ_MASTER) is not known"),
        (["up", "--set", "master.host=192.0.2.1"], 2, "is another machine"),
        (["status", "--set", "x"], 2, "there is no ="),
        (["--set", "master.prot=1", "status"], 2, "did you mean master.port?"),
        (["status"], 4, "no master runs in"),
        (["drain"], 4, "no master runs in"),
        (["worker", "drain"], 2, "needs the name of a worker"),
        (["worker", "forget", "w1"], 4, "no master runs in"),
        (["token"], 3, "there is no worker token"),
        (["site", "strange"], 1, "invalid command"),
        (["site", "master", "--prot", "1"], 1, "argument --prot unrecognized"),
    ],
)
def test_one_clear_line(home: Home, words: list[str], code: int, line: str) -> None:
    done = home.pilotq(*words)
    assert done.returncode == code
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_wrong_variable_is_told(home: Home) -> None:
    done = home.pilotq("status", WQ_NUM_FOREMEN="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pilotq: WQ_NUM_FOREMEN=many cannot be used")


def test_help_starts_with_examples(home: Home) -> None:
    done = home.pilotq("--help")
    assert done.returncode == 0
    assert done.stdout.index("pilotq run") < done.stdout.index("commands:")
    assert "site" not in done.stdout.partition("commands:")[2].split()


def test_every_command_has_its_function() -> None:
    for name, command in cli.COMMANDS.items():
        module, _, function = command.where.partition(":")
        assert callable(getattr(__import__(f"pilotq.cli.{module}", fromlist=[function]), function)), name


def test_commands_start_without_the_libraries_of_the_daemons() -> None:
    code = "import sys, pilotq.cli.main, pilotq.client; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"zmq", "aiohttp", "uvloop", "rich", "sqlite3", "asyncio", "psutil"} & set(found.split())


def test_env_is_for_eval(home: Home, tmp_path: Path) -> None:
    odd = tmp_path / "a 'b' $c"
    text = home.pilotq("env", PILOTQ_HOME=str(odd)).stdout
    done = home.call(["sh", "-c", f'{text} printf "%s\\n" "$PILOTQ_HOME" "$PATH"; command -v condor_q'])
    told, path, tool = done.stdout.splitlines()
    assert told == str(odd)
    assert path.startswith(f"{SHIMS}:{ROOT}/bin:")
    assert tool == str(SHIMS / "condor_q")


def test_status_without_a_master_has_no_numbers(home: Home) -> None:
    done = home.pilotq("status", "--json")
    assert done.returncode == 4
    status = json.loads(done.stdout)
    assert status["tasks"] is None
    assert status["processes"] == []


def test_token(home: Home, tmp_path: Path) -> None:
    for role in ("worker", "foreman"):
        (home.path / f"{role}.token").write_text(f"secret of the {role}")
    assert home.pilotq("token").stdout == f"worker\t{home.path}/worker.token\nforeman\t{home.path}/foreman.token\n"
    copy = tmp_path / "copy"
    copy.touch(0o644)
    assert home.pilotq("token", "worker", "--out", str(copy)).returncode == 0
    assert copy.read_text() == "secret of the worker"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert home.pilotq("token", "--out", str(copy)).returncode == 2
    assert home.pilotq("token", "foreman", "--out", str(tmp_path / "no" / "dir")).returncode == 2


def test_config(home: Home) -> None:
    (home.path / "pilotq.toml").write_text("[foreman]\ncount = 7\n")
    text = home.pilotq("config", "--set", "master.lease_s=1h").stdout
    assert "foreman.count = 7\n" in text
    assert "master.lease_s = 3600\n" in text
    assert "master.port = 9094   # default\n" in text
    assert json.loads(home.pilotq("config", "--json").stdout)["foreman.count"] == 7
    assert home.pilotq("config", "--defaults").stdout == (ROOT / "etc" / "pilotq.toml").read_text()
    (home.path / "pilotq.toml").write_bytes(b"\xff")
    assert "no UTF-8 text" in home.pilotq("config").stderr


def test_doctor_sees_what_is_wrong(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        os.chmod(home.path, 0o755)
        done = home.pilotq("doctor", "--json", WQ_MASTER=f"127.0.0.1:{port}")
    os.chmod(home.path, 0o700)
    bad = {finding["what"] for finding in json.loads(done.stdout) if finding["level"] == "bad"}
    assert done.returncode == 1
    assert f"{home.path} has mode 755" in bad
    assert f"port {port}, wanted by a master, is taken" in bad


def test_doctor_calls_ours_only_what_is_ours(home: Home) -> None:
    """A master answers, but not where WQ_MASTER says; somebody else listens there. The scratch cannot be made."""
    (home.path / "run").mkdir()
    with subprocess.Popen(["sleep", "60"]) as ours:
        record = {"role": "master", "pid": ours.pid, "started": start_ticks(ours.pid), "port": 1}
        (home.path / "run" / "master.json").write_text(json.dumps(record))
        done = home.pilotq("doctor", "--json", WQ_MASTER="127.0.0.1:2", WQ_WORKDIR="/proc/none/scratch")
        ours.kill()
    found = json.loads(done.stdout)
    bad = [finding["what"] for finding in found if finding["level"] == "bad"]
    assert "our master listens on port 1, but here WQ_MASTER says 2" in bad
    assert "scratch /proc/none/scratch: nobody can store anything on proc" in bad
    assert not any(finding["what"].endswith(": our master") for finding in found)


def test_a_node_is_sent_to_the_head(home: Home) -> None:
    assert "start one with `pilotq up`" in home.pilotq("status").stderr
    (home.path / "worker.token").touch()
    said = home.pilotq("status").stderr
    assert "looks like a node" in said
    assert "pilotq up" not in said


def test_a_reader_that_had_enough(home: Home) -> None:
    done = home.call(["sh", "-c", f"{shlex.join(home.command('config'))} | head -n 1"])
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_client_says_when_nobody_answers(home: Home) -> None:
    with pytest.raises(UnavailableError, match="no master runs in"):
        client.Client(str(home.path)).get("/v1/status")
    (home.path / "api").write_text(f"{home.path}/api.sock\n")
    with pytest.raises(UnavailableError, match="no answer") as caught:
        client.Client(str(home.path)).get("/v1/status")
    assert caught.value.exit_code == 4
    assert not client.Client(str(home.path)).is_there()


# ---- processes -----------------------------------------------------------------------------------------------------


def start(code: str) -> subprocess.Popen[str]:
    """A process that has run the code and waits; it says so first."""
    text = textwrap.dedent(code) + "\nprint(flush=True)\nsignal.pause()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal, os, sys\n" + text], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_process_is_its_pid_and_its_start() -> None:
    process = start("")
    known = Process("worker", "w", process.pid, start_ticks(process.pid))
    assert known.is_alive()
    assert not known._replace(started=known.started + 1).is_alive()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not known.is_alive(), "a zombie does nothing any more"
    process.wait()


def test_stop_asks_first_and_leaves_others_alone() -> None:
    polite, stubborn, other = start(""), start("signal.signal(15, signal.SIG_IGN)"), start("")
    one, two = (Process("r", "n", child.pid, start_ticks(child.pid)) for child in (polite, stubborn))
    wrong = Process("r", "n", other.pid, 1)
    assert processes.stop([one, two, wrong], 0.3) == [two]
    assert polite.wait() == -signal.SIGTERM
    assert stubborn.wait() == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_dies_with_us_dies_with_us(tmp_path: Path) -> None:
    code = f"""
        sys.path.insert(0, {str(ROOT)!r})
        from pilotq.cli import processes
        processes.command = lambda words: ["sleep", "60"]
        print(processes.start_detached([], {str(tmp_path / "log")!r}, dies_with_us=True).pid, flush=True)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", "import signal, sys\n" + textwrap.dedent(code) + "signal.pause()"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    descriptor = os.pidfd_open(child)
    parent.kill()
    parent.wait()
    assert processes.select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)


def test_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.last_line(str(log)) == ""
    log.write_text("first\n" + "x" * 20000 + "\nlast  \n\n")
    assert processes.last_line(str(log)) == "last"


# ---- bin/pilotq ----------------------------------------------------------------------------------------------------


PYTHON = """\
#!/bin/sh
# Stands for a Python: makes "environments" of itself, installs nothing, and writes down what it was asked.
echo "$*" >>"$CALLS"
case "$*" in
    *"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    *"-m pip"*) sleep 0.2; if [ -e "$CALLS.fail" ]; then echo "ERROR: no network"; exit 1; fi ;;
    *"-m pilotq"*) printf '%s\\n' "$@" ;;
esac
"""


class Checkout:
    def __init__(self, base: Path) -> None:
        self.root = base / "a check  out ü"
        (self.root / "bin").mkdir(parents=True)
        (self.root / "bin" / "pilotq").write_bytes((ROOT / "bin" / "pilotq").read_bytes())
        os.chmod(self.root / "bin" / "pilotq", 0o755)
        for name in ("alien_work_queue", "alien_wq_worker.sh"):
            assert (ROOT / "bin" / name).readlink() == Path("pilotq")
            (self.root / "bin" / name).symlink_to("pilotq")
        for name in ("pyproject.toml", "constraints.txt"):
            (self.root / name).write_bytes((ROOT / name).read_bytes())
        self.python = base / "python"
        self.python.write_text(PYTHON)
        os.chmod(self.python, 0o755)
        self.calls = base / "calls"
        self.environ = {**clean_environ(), "PILOTQ_PYTHON": str(self.python), "CALLS": str(self.calls)}

    def start(self, *words: str, name: str = "pilotq", **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "bin" / name, *words],
            env={**self.environ, **environ},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pips(self) -> int:
        return self.calls.read_text().count("-m pip")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_calls_make_one_environment(checkout: Checkout) -> None:
    calls = [checkout.start("status", "a b", "") for _ in range(4)]
    outs = [call.communicate(timeout=30) for call in calls]
    assert [call.returncode for call in calls] == [0] * 4
    assert {out for out, _ in outs} == {"-I\n-X\nutf8\n-m\npilotq\nstatus\na b\n\n"}
    assert checkout.pips() == 1
    assert sum("making a virtual environment" in err for _, err in outs) == 1
    later = checkout.start("x").communicate(timeout=30)
    assert later == ("-I\n-X\nutf8\n-m\npilotq\nx\n", "")


def test_new_requirements_are_installed(checkout: Checkout) -> None:
    checkout.start().communicate(timeout=30)
    later = time.time() + 5
    os.utime(checkout.root / "constraints.txt", (later, later))
    assert checkout.start().communicate(timeout=30)[1] == "", "the same text again is no reason"
    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    os.utime(checkout.root / "constraints.txt", (later + 5, later + 5))
    checkout.start().communicate(timeout=30)
    assert checkout.pips() == 2


def test_an_extra_stays(checkout: Checkout) -> None:
    checkout.start().communicate(timeout=30)
    checkout.start(PILOTQ_EXTRA="dev").communicate(timeout=30)
    assert checkout.pips() == 2
    checkout.start().communicate(timeout=30)
    checkout.start(PILOTQ_EXTRA="dev").communicate(timeout=30)
    assert checkout.pips() == 2


def test_a_pip_that_fails_is_one_line_and_tried_again(checkout: Checkout) -> None:
    fail = Path(f"{checkout.calls}.fail")
    fail.touch()
    call = checkout.start("x")
    out, err = call.communicate(timeout=30)
    assert (call.returncode, out) == (1, "")
    assert "pip could not install what pilotq needs: ERROR: no network" in err.splitlines()[-1]
    fail.unlink()
    assert checkout.start("x").communicate(timeout=30)[0]


def test_no_python(checkout: Checkout) -> None:
    call = checkout.start(PILOTQ_PYTHON="/no/python")
    assert call.communicate(timeout=30)[1].splitlines() == [
        "pilotq: PILOTQ_PYTHON=/no/python is no Python 3.11 or later"
    ]
    assert call.returncode == 1


def test_a_checkout_that_cannot_be_written(checkout: Checkout, tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root can write everywhere")
    os.chmod(checkout.root, 0o555)
    out, _ = checkout.start("x", XDG_CACHE_HOME=str(tmp_path / "cache")).communicate(timeout=30)
    assert out
    assert list((tmp_path / "cache" / "pilotq").glob("venv-*/pilotq.stamp"))


def test_links_and_the_names_of_alien_workqueue(checkout: Checkout, tmp_path: Path) -> None:
    checkout.start().communicate(timeout=30)
    (tmp_path / "link").symlink_to("a check  out ü/bin/pilotq")
    done = subprocess.run(
        ["./link", "x"], env=checkout.environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("pilotq\nx\n")
    out, _ = checkout.start("--job-wrapper", "w", name="alien_work_queue").communicate(timeout=30)
    assert out.endswith("pilotq\nsite\nmaster\n--job-wrapper\nw\n")
    out, _ = checkout.start("count-workers", name="alien_wq_worker.sh").communicate(timeout=30)
    assert out.endswith("pilotq\nsite\ncount-workers\n")


# ---- etc -----------------------------------------------------------------------------------------------------------


def test_job_wrapper() -> None:
    wrapper = ROOT / "etc" / "alien_job_wrapper.sh"
    odd = "a b\nALIEN_NOT=1 'c' \"$d\" `e` *"
    environ = {"PATH": os.environ["PATH"], "ALIEN_X": odd, "FILTERED_OUT": "1", "CONDOR_ID": "1.0", "TMPDIR": "/t"}
    code = "import os; print(os.getpid(), dict(os.environ))"
    process = subprocess.Popen(
        [wrapper, sys.executable, "-c", code, "x y"], env=environ, stdout=subprocess.PIPE, text=True
    )
    pid, _, seen = process.communicate(timeout=20)[0].partition(" ")
    assert int(pid) == process.pid
    found = eval(seen)
    assert found["ALIEN_X"] == odd
    assert "ALIEN_NOT" not in found or found["ALIEN_NOT"] == ""
    assert not {"FILTERED_OUT", "CONDOR_ID"} & set(found)
    assert (found["PATH"], found["LC_ALL"], found["TMPDIR"]) == ("/bin:/usr/bin", "C", "/t")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_env_sh(shell: str, tmp_path: Path) -> None:
    if subprocess.run(["sh", "-c", f"command -v {shell}"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {shell}")
    code = f'set -eu; . {ROOT}/etc/env.sh; . {ROOT}/etc/env.sh; printf "%s\\n" "$PATH" "${{PILOTQ_HOME-unset}}"'
    done = subprocess.run(
        [shell, "-c", code], env=clean_environ(), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    path, told = done.stdout.splitlines()
    assert path.startswith(f"{SHIMS}:{ROOT}/bin:")
    assert path.count(str(SHIMS)) == 1
    assert told == "unset"
    assert done.stderr == ""
