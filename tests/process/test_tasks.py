"""What a task finds and leaves, end to end: real commands, master, foreman, worker and processes."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import Parts, wait_for
from pools import SHIMS

from pilotq.proc import start_ticks

pytestmark = pytest.mark.timeout(120)
SLOTS = 3
LARGE = 6 << 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """The worker has a variable that is no task's business."""
    found = Parts(tmp_path_factory.mktemp("tasks"), 1)
    # Where python3 is a script that looks for one, each command would take ten times as long.
    found.environ["PATH"] = f"{SHIMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    found.environ |= {"NOT_FOR_TASKS": "1", "LC_TIME": "C.UTF-8"}
    try:
        found.start_all(slots=SLOTS, foremen=1)
        yield found
    finally:
        found.close()


@pytest.fixture
def site(pool: Parts, tmp_path: Path) -> Iterator[Path]:
    """A directory of its own to submit from."""
    before, pool.cwd = pool.cwd, tmp_path
    yield tmp_path
    pool.cwd = before
    assert wait_for("the worker to be idle", lambda: not pool.status()["slots"]["busy"]) is True
    wait_for("scratch to be removed", lambda: not sandboxes(pool))


def sandboxes(pool: Parts) -> list[Path]:
    return list((pool.path / "work").glob("*/tasks/*"))


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def inline(code: str) -> str:
    """Lines of a description for a task that is some Python."""
    quoted = code.replace("'", "''").replace('"', '""')
    return f"executable = {sys.executable}\ntransfer_executable = false\narguments = \"-I -S -c '{quoted}'\"\n"


def run(pool: Parts, text: str, timeout_s: float = 30) -> int:
    cluster = pool.submit(text)
    pool.wait_done(cluster, timeout_s)
    return cluster


def history(pool: Parts, cluster: int, *attributes: str) -> list[str]:
    """Values of some attributes of the only task of a cluster."""
    done = pool.condor("condor_history", str(cluster), "-af:,", *attributes)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    return [word.strip() for word in line.split(",")]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- scratch and environment -------------------------------------------------------------------------------------


def test_scratch_and_ads(pool: Parts, site: Path) -> None:
    classad2 = pytest.importorskip("classad2")
    script(
        site / "look",
        "pwd; stat -c '%a %u' .; echo $TMPDIR; echo $_CONDOR_SCRATCH_DIR; echo $PWD; ls -A; touch here\n"
        "cat $_CONDOR_JOB_AD > job.$1; cat $_CONDOR_MACHINE_AD > machine.$1; mktemp",
    )
    cluster = run(
        pool,
        'executable = look\narguments = $(Process)\noutput = out.$(Process)\n+Flavour = "mint"\nrequest_cpus = 1\n'
        "transfer_output_files = job.$(Process), machine.$(Process)\nqueue 2\n",
    )
    scratches = set()
    for proc in range(2):
        where, mode, *places = (site / f"out.{proc}").read_text().splitlines()
        assert mode == f"700 {os.geteuid()}"
        assert places[:3] == [where] * 3
        assert set(places[3:-1]) == {".job.ad", ".machine.ad", "_condor_stdout", "condor_exec.exe"}
        assert Path(where).is_relative_to(pool.path / "work") and not Path(where).exists()
        assert places[-1].startswith(where), "temporary files are made there too"
        scratches.add(where)
        job = classad2.parseOne((site / f"job.{proc}").read_text())
        assert (job["ClusterId"], job["ProcId"], job["Flavour"], job["RequestCpus"]) == (cluster, proc, "mint", 1)
        assert (job["Cmd"], job["Iwd"]) == (str(site / "look"), str(site))
        machine = classad2.parseOne((site / f"machine.{proc}").read_text())
        assert (machine["Machine"], machine["Cpus"], machine["TotalCpus"]) == (socket.gethostname(), 1, SLOTS)
        assert machine["Memory"] > 0 and machine["Disk"] > 0 and machine["OpSys"] == "LINUX"
    assert len(scratches) == 2
    assert not (site / "here").exists(), "only what was asked for comes home"


def environment(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().split("\0") if line)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('environment = ONE=1;TWO=two words; THREE=a=b;EMPTY=;QUOTED=it\'s \\"x\\"', id="old"),
        pytest.param(
            "environment = \"ONE=1 TWO='two words' THREE=a=b EMPTY= QUOTED='it''s \"\"x\"\"'\"",
            id="new",
        ),
    ],
)
def test_environment_in_both_syntaxes(pool: Parts, site: Path, text: str) -> None:
    script(site / "env", "env -0")
    run(pool, f"executable = env\n{text}\ngetenv = MINE\noutput = out\nqueue\n")
    found = environment(site / "out")
    expected = {"ONE": "1", "TWO": "two words", "THREE": "a=b", "EMPTY": ""}
    assert {name: found.get(name) for name in expected} == expected
    assert found["QUOTED"].replace("\\", "") == 'it\'s "x"'
    assert "MINE" not in found and "NOT_FOR_TASKS" not in found
    assert found["LC_TIME"] == "C.UTF-8" and found["HOME"] == os.path.expanduser("~")
    assert not any(name.startswith(("WQ_", "PYTHON")) for name in found)


def test_getenv_takes_the_submitters_environment(pool: Parts, site: Path) -> None:
    script(site / "env", "env -0")
    (site / "get.sub").write_text(
        'executable = env\ngetenv = MINE, PART_*\nenvironment = "PART_B=mine"\noutput = out\nqueue\n'
    )
    mine = {"MINE": "a value\twith = and 'quotes'", "PART_A": "a", "PART_B": "b", "OTHER": "o"}
    done = pool.condor("condor_submit", "get.sub", cwd=site, **mine)
    assert done.returncode == 0, done.stderr
    pool.wait_done(int(done.stdout.split("cluster ")[1].rstrip(".\n")))
    found = environment(site / "out")
    assert {name: found.get(name) for name in mine} == {**mine, "PART_B": "mine", "OTHER": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(r"one two  3 \"four\" it's", ["one", "two", "3", '"four"', "it's"], id="old"),
        pytest.param("\"one 'two  words' 'it''s' \"\"q\"\" ''\"", ["one", "two  words", "it's", '"q"', ""], id="new"),
        pytest.param("", [], id="none"),
        pytest.param("\"$(Cluster).$(Process) * $HOME `id` ;\"", None, id="nothing-is-expanded"),
    ],
)  # fmt: skip
def test_arguments_in_both_syntaxes(pool: Parts, site: Path, text: str, words: list[str] | None) -> None:
    script(site / "show", 'for word in "$@"; do printf "%s\\0" "$word"; done')
    cluster = run(pool, f"executable = show\narguments = {text}\noutput = out\nqueue\n")
    found = (site / "out").read_text().split("\0")[:-1]
    assert found == ([f"{cluster}.0", "*", "$HOME", "`id`", ";"] if words is None else words)


# ---- streams and files -------------------------------------------------------------------------------------------


def test_standard_streams(pool: Parts, site: Path) -> None:
    (site / "in.txt").write_text("line 1\nline 2\n")
    script(site / "streams", "cat; echo problem >&2; exec 3>&1; echo done >&3")
    cluster = run(pool, "executable = streams\ninput = in.txt\noutput = out\nerror = err\nqueue\n")
    assert ((site / "out").read_text(), (site / "err").read_text()) == ("line 1\nline 2\ndone\n", "problem\n")
    assert history(pool, cluster, "ExitCode") == ["0"]
    run(pool, "executable = streams\nqueue\n")
    assert sorted(path.name for path in site.iterdir()) == ["err", "in.txt", "out", "streams", "task.sub"]


def test_one_file_for_output_and_error_keeps_the_order(pool: Parts, site: Path) -> None:
    script(site / "both", "for i in 1 2 3; do echo out $i; echo err $i >&2; done")
    (site / "old").write_text("this goes\n" * 100)
    run(pool, "executable = both\noutput = old\nerror = ./old\nqueue\n")
    assert (site / "old").read_text() == "".join(f"out {i}\nerr {i}\n" for i in (1, 2, 3))


def test_input_files_and_directories(pool: Parts, site: Path) -> None:
    (site / "tree/below/deep").mkdir(parents=True)
    (site / "flat").mkdir()
    for name in ("single", "tree/a", "tree/below/deep/b", "flat/c", "flat/empty"):
        (site / name).write_text("" if name.endswith("empty") else f"content of {name}\n")
    script(site / "tree/below/tool", "echo tool ran")
    (site / "large").write_bytes(os.urandom(LARGE))
    script(
        site / "look",
        "cat single tree/a tree/below/deep/b c empty; tree/below/tool; sha256sum large | cut -c-64; ls -A | sort",
    )
    run(pool, "executable = look\ntransfer_input_files = single, tree, flat/, large\noutput = out\nqueue\n")
    lines = (site / "out").read_text().splitlines()
    assert lines[:4] == [f"content of {name}" for name in ("single", "tree/a", "tree/below/deep/b", "flat/c")]
    assert lines[4:6] == ["tool ran", sha256(site / "large")]
    own = {".job.ad", ".machine.ad", "_condor_stdout", "condor_exec.exe"}
    assert set(lines[6:]) == {"single", "tree", "c", "empty", "large"} | own


def test_output_files_and_directories(pool: Parts, site: Path) -> None:
    (site / "large").write_bytes(os.urandom(LARGE + 12345))
    script(
        site / "make",
        "cp large copy; mkdir -p dir/sub; echo small > dir/small; cp large dir/sub/copy; touch empty\n"
        "echo no > unasked; echo x > tool; chmod 755 tool",
    )
    cluster = run(
        pool,
        "executable = make\ntransfer_input_files = large\ntransfer_output_files = copy, dir, empty, tool\n"
        'transfer_output_remaps = "copy=renamed"\nqueue\n',
    )
    assert sha256(site / "renamed") == sha256(site / "dir/sub/copy") == sha256(site / "large")
    assert ((site / "dir/small").read_text(), (site / "empty").read_text()) == ("small\n", "")
    assert os.access(site / "tool", os.X_OK) and not os.access(site / "empty", os.X_OK)
    assert not (site / "unasked").exists() and not (site / "copy").exists()
    (sent,) = (float(text) for text in history(pool, cluster, "BytesSent"))
    assert sent >= 2 * LARGE
    assert not list((pool.path / "spool").iterdir()), "nothing is left on the head"


def test_without_a_list_what_is_new_or_changed_comes_home(pool: Parts, site: Path) -> None:
    for name in ("kept", "changed"):
        (site / name).write_text("as it was\n")
    stamp = (site / "kept").stat().st_mtime_ns
    script(site / "make", "echo new > new; echo more >> changed; mkdir dir; echo in > dir/in; ln -s /etc/passwd link")
    run(pool, "executable = make\ntransfer_input_files = kept, changed\nshould_transfer_files = YES\nqueue\n")
    assert ((site / "new").read_text(), (site / "changed").read_text()) == ("new\n", "as it was\nmore\n")
    assert (site / "kept").stat().st_mtime_ns == stamp
    assert not (site / "dir").exists() and not (site / "link").is_symlink(), "as in Condor: files of the top level"


def test_an_output_file_that_was_not_made_holds_the_task(pool: Parts, site: Path) -> None:
    cluster = pool.submit(inline("print('ran')") + "transfer_output_files = never\noutput = out\nqueue\n")
    code, reason = wait_held(pool, cluster, "never")
    assert code == "12" and "No such file" in reason
    assert pool.condor("condor_rm", str(cluster)).returncode == 0


def test_initialdir_is_where_all_but_the_executable_is(pool: Parts, site: Path) -> None:
    script(site / "work", "cat; cat data; echo made > result")
    for proc in range(2):
        (site / f"run.{proc}").mkdir()
        (site / f"run.{proc}/in").write_text(f"stdin {proc}\n")
        (site / f"run.{proc}/data").write_text(f"data {proc}\n")
    run(
        pool,
        "executable = work\ninitialdir = run.$(Process)\ninput = in\ntransfer_input_files = data\noutput = out\n"
        "log = log\ntransfer_output_files = result\nqueue 2\n",
    )
    for proc in range(2):
        there = site / f"run.{proc}"
        assert (there / "out").read_text() == f"stdin {proc}\ndata {proc}\n"
        assert (there / "result").read_text() == "made\n"
        assert re.findall(r"^005 \(\d+\.0*(\d+)\.", (there / "log").read_text(), re.M) == [str(proc)]
    assert sorted(path.name for path in site.iterdir()) == ["run.0", "run.1", "task.sub", "work"]


# ---- slots and limits --------------------------------------------------------------------------------------------


def test_two_cores_are_two_slots(pool: Parts, site: Path) -> None:
    script(site / "wait", "until test -e $1; do sleep 0.05; done; grep -i '^Cpus' $_CONDOR_MACHINE_AD")
    cluster = pool.submit(
        f"executable = wait\narguments = {site}/go\nrequest_cpus = 2\noutput = out.$(Process)\nqueue 2\n"
    )
    wait_for("one to run", lambda: pool.counts(cluster)["running"] == 1)
    single = pool.submit(f"executable = wait\narguments = {site}/go\nqueue 2\n")
    wait_for("the third slot to be used", lambda: pool.counts(single)["running"] == 1)
    time.sleep(0.3)
    assert pool.status()["slots"] == {**pool.status()["slots"], "busy": SLOTS, "open": SLOTS}
    assert (pool.counts(cluster)["running"], pool.counts(single)["running"]) == (1, 1)
    (site / "go").touch()
    pool.wait_done(cluster)
    pool.wait_done(single)
    assert (site / "out.1").read_text().split() == ["Cpus", "=", "2"]


def wait_held(pool: Parts, cluster: int, text: str) -> tuple[str, str]:
    """Code and reason of the only task of a cluster, which is to be held with this in the reason."""

    def look() -> list[str]:
        done = pool.condor("condor_q", str(cluster), "-af", "JobStatus", "HoldReasonCode", "HoldReason")
        return [line for line in done.stdout.splitlines() if line.startswith("5 ")]

    (line,) = wait_for(f"cluster {cluster} to be held", look)
    _, code, reason = line.split(" ", 2)
    assert text in reason
    return code, reason


def test_limits_have_their_own_outcome(pool: Parts, site: Path) -> None:
    """All at once: wall time, memory, disk. What was printed before comes home only at a release that works."""
    hog = "import time; x = bytearray(120 << 20); time.sleep(100)"
    writer = "import time; open('f', 'wb').write(bytes(8 << 20)); time.sleep(100)"
    clusters = {
        "46": (pool.submit(inline("import time; time.sleep(100)") + "allowed_execute_duration = 1\nlog = l46\nqueue\n"),
               "wall time of 1 s"),
        "34": (pool.submit(inline(hog) + "request_memory = 60\nlog = l34\nqueue\n"), "its limit is 60 MiB"),
        "34d": (pool.submit(inline(writer) + "request_disk = 2048\nlog = l34d\nqueue\n"), "its limit is 2 MiB"),
    }  # fmt: skip
    outcomes = {}
    for name, (cluster, text) in clusters.items():
        code, _ = wait_held(pool, cluster, text)
        assert code == name[:2]
        wait_for("the log", lambda name=name: f"Code {name[:2]} Subcode" in (site / f"l{name}").read_text())
        assert re.findall(r"^(\d{3}) ", (site / f"l{name}").read_text(), re.M) == ["000", "001", "004", "012"]
        (task,) = pool.client.get(f"/v1/tasks?cluster={cluster}")
        outcomes[name] = task["outcome"]
        assert pool.condor("condor_rm", str(cluster)).returncode == 0
    assert outcomes == {"46": "timeout", "34": "memory", "34d": "disk"}


# ---- the end -----------------------------------------------------------------------------------------------------


def test_nothing_of_a_task_outlives_it(pool: Parts, site: Path) -> None:
    """A child in the background, one in a session of its own, a double fork that closed everything."""
    daemon = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.chdir('/')\n"
        "        [os.close(fd) for fd in range(3)]\n"
        f"        with open('{site}/pids', 'a') as file: file.write(f'{{os.getpid()}}\\n')\n"
        "        os.execve('/bin/sleep', ['kworker', '1000'], {})\n"
        "    os._exit(0)\n"
    )
    (site / "daemon.py").write_text(daemon)
    script(
        site / "leave",
        f"sleep 1000 & echo $! >> {site}/pids; setsid sh -c 'echo $$ >> {site}/pids; exec sleep 1000' &\n"
        f"{shlex.quote(sys.executable)} -I -S daemon.py\n"
        f"until test $(wc -l < {site}/pids) = 3; do sleep 0.02; done; touch mess; mkdir -p a/b; chmod 0 a; exit 7",
    )
    cluster = run(pool, "executable = leave\ntransfer_input_files = daemon.py\nqueue\n")
    pids = [int(line) for line in (site / "pids").read_text().split()]
    assert len(pids) == 3 and not any(start_ticks(pid) for pid in pids)
    assert history(pool, cluster, "ExitCode") == ["7"]

    (site / "pids").write_text("")
    cluster = pool.submit("executable = leave\narguments = x\ntransfer_input_files = daemon.py\nqueue\n")
    wait_for("them to run", lambda: len((site / "pids").read_text().split()) == 3)
    pool.wait_done(cluster)
    assert not any(start_ticks(int(line)) for line in (site / "pids").read_text().split())


def test_a_removed_task_is_ended_with_all_its_processes(pool: Parts, site: Path) -> None:
    script(site / "stay", f"setsid sh -c 'echo $$ >> {site}/pids; exec sleep 1000' & echo $$ >> {site}/pids; wait")
    cluster = pool.submit("executable = stay\nlog = log\nqueue\n")
    wait_for("them to run", lambda: (site / "pids").exists() and len((site / "pids").read_text().split()) == 2)
    assert pool.condor("condor_rm", str(cluster), "-reason", "enough").returncode == 0
    pids = [int(line) for line in (site / "pids").read_text().split()]
    wait_for("them to be gone", lambda: not any(start_ticks(pid) for pid in pids), 15)
    assert history(pool, cluster, "JobStatus", "RemoveReason")[0] == "3"
    wait_for("the last event", lambda: "\n009 (" in (site / "log").read_text())
    assert "enough" in (site / "log").read_text()


def log_events(path: Path) -> dict[int, Any]:
    """The last event of each number in a user log, read by HTCondor's own library."""
    htcondor2 = pytest.importorskip("htcondor2")
    return {int(event.type): event for event in htcondor2.JobEventLog(str(path)).events(stop_after=0)}


@pytest.mark.parametrize(
    ("code", "normal", "value"),
    [
        pytest.param("raise SystemExit(3)", True, 3, id="exit-3"),
        pytest.param("import os; os.kill(os.getpid(), 9)", False, 9, id="signal-9"),
        pytest.param("import os; os.kill(os.getpid(), 11)", False, 11, id="signal-11"),
    ],
)
def test_how_it_ended_is_recorded(pool: Parts, site: Path, code: str, normal: bool, value: int) -> None:
    cluster = run(pool, inline(code) + "log = log\nqueue\n")
    found = history(pool, cluster, "ExitBySignal", "ExitCode", "ExitSignal", "JobStatus", "NumJobStarts")
    exits = ["false", str(value), "undefined"] if normal else ["true", "undefined", str(value)]
    assert found == [*exits, "4", "1"]
    events = log_events(site / "log")
    assert set(events) == {0, 1, 5}
    ended = events[5]
    assert (ended.cluster, ended.proc, ended["TerminatedNormally"]) == (cluster, 0, normal)
    assert ended["ReturnValue" if normal else "TerminatedBySignal"] == value


def test_what_it_used_is_recorded(pool: Parts, site: Path) -> None:
    burn = (
        "import time\n"
        "x = bytearray(80 << 20)\n"
        "while time.process_time() < 1.2: pass\n"
        "open('f', 'wb').write(bytes(3 << 20))\n"
        "time.sleep(0.5)\n"
    )
    (site / "burn.py").write_text(burn)
    began = time.time()
    cluster = run(
        pool,
        f"executable = {sys.executable}\ntransfer_executable = false\narguments = -I -S burn.py\n"
        "transfer_input_files = burn.py\ntransfer_output_files = f\nlog = log\nqueue\n",
    )
    user_s, wall_s, memory_mib, disk_kib, *moments = (
        float(text)
        for text in history(
            pool,
            cluster,
            *("RemoteUserCpu", "RemoteWallClockTime", "MemoryUsage", "DiskUsage"),
            *("QDate", "JobStartDate", "CompletionDate"),
        )
    )
    system_s = float(history(pool, cluster, "RemoteSysCpu")[0])
    assert 1.0 < user_s + system_s < 10 and 1.5 < wall_s < 20
    assert 80 <= memory_mib < 200
    assert disk_kib >= 3 << 10
    assert int(began) <= moments[0] <= moments[1] <= moments[2] <= time.time() + 1
    host = socket.gethostname()
    assert history(pool, cluster, "LastRemoteHost") == [f"slot1@{host}"]
    events = log_events(site / "log")
    assert host in events[1]["ExecuteHost"] and events[1]["SlotName"] == f"slot1@{host}"
    ended = events[5]
    usage = re.search(r"Usr \d+ (\d\d):(\d\d):(\d\d), Sys \d+ (\d\d):(\d\d):(\d\d)", ended["RunRemoteUsage"])
    assert usage is not None and int(usage[3]) + int(usage[6]) in range(5)
    assert ended["MemoryUsage"] == memory_mib and ended["DiskUsage"] == disk_kib
    assert ended["ReceivedBytes"] >= 0 and ended["SentBytes"] >= 3 << 20
