"""`pilotq run`, `up`, `status`, `drain` and `down` with real pools."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pools import ROOT, Home

pytestmark = pytest.mark.timeout(180)


class Place(Home):
    """A directory to submit from; temporary pools are made beside it."""

    def __init__(self, base: Path) -> None:
        super().__init__(base / "home")
        self.path.mkdir(mode=0o700)
        self.cwd = base / "here ü"
        self.cwd.mkdir()
        self.temporary = base / "tmp"
        self.temporary.mkdir()
        port = random.randrange(20000, 32000)
        self.environ |= {
            "TMPDIR": str(self.temporary),
            "WQ_MASTER": f"127.0.0.1:{port}",
            "WQ_MASTER_BASEPORT": str(port + 1),
        }

    def write(self, name: str, text: str) -> str:
        (self.cwd / name).write_text(text)
        return name

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.pilotq("run", "--slots", "2", *words, cwd=self.cwd, timeout_s=120)

    def start_run(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command("run", "--slots", "2", *words),
            env=self.environ,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def left(self) -> list[int]:
        """Processes that were told of one of our directories."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    told = Path(f"/proc/{name}/environ").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.temporary) in told:
                    found.append(int(name))
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.pilotq("status", "--json").stdout)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.pilotq("down")
    found.kill()
    for pid in found.left():
        os.kill(pid, signal.SIGKILL)


def until(is_true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.05)


def shell(code: str, count: int = 1, more: str = "") -> str:
    return (
        f"executable = /bin/sh\ntransfer_executable = false\narguments = \"-c '{code}'\"\n"
        f"output = $(Process).out\nlog = log\n{more}\nqueue {count}\n"
    )


def test_run(place: Place) -> None:
    place.write("a b.sub", shell("echo task $(Process)", 5))
    place.write("more.sub", shell("echo more >&2", 1, "error = err"))
    done = place.run("a b.sub", "more.sub")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 tasks: 6 done in ")
    assert str(place.cwd) in done.stdout
    assert "submitted a b.sub as cluster 1: 5 tasks" in done.stderr
    assert "cluster 1: 5 of 5 done" in done.stderr
    assert (place.cwd / "4.out").read_text() == "task 4\n"
    assert (place.cwd / "err").read_text() == "more\n"
    assert (place.cwd / "log").read_text().count("\n005 (") == 6
    assert place.left() == []
    assert list(place.temporary.iterdir()) == []


def test_run_of_a_description_from_stdin(place: Place) -> None:
    words = place.command("run", "--slots", "1", "--foremen", "0", "-")
    done = place.call(words, stdin=shell("echo piped"), cwd=place.cwd)
    assert done.returncode == 0, done.stderr
    assert (place.cwd / "0.out").read_text() == "piped\n"


def test_run_tells_what_a_task_waits_for_that_fits_nowhere(place: Place) -> None:
    place.write("big.sub", shell("true", 1, "request_cpus = 64"))
    process = place.start_run("big.sub")
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "-better-analyze" in line)
        assert said.endswith("condor_q -better-analyze 1\n")
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out.startswith("1 task: 0 done, 1 cancelled in ")


def test_run_of_the_example_from_elsewhere(place: Place) -> None:
    done = place.run(str(ROOT / "etc" / "examples" / "pilots.sub"), "--foremen", "0", "--slots", "8")
    assert done.returncode == 0, done.stderr
    assert "40 tasks: 40 done" in done.stdout
    assert "is done" in (place.cwd / "pilots.39.out").read_text()


def test_run_tells_what_failed_and_what_is_held(place: Place) -> None:
    place.write("bad.sub", shell("exit $(Process)", 3))
    place.write("held.sub", shell("true", 1, "hold = true"))
    done = place.run("bad.sub", "held.sub")
    assert done.returncode == 1
    assert re.match(r"4 tasks: 1 done, 2 failed, 1 held in ", done.stdout)
    assert re.search(r"^  1\.1 failed: exit 1", done.stdout, re.MULTILINE)
    assert re.search(r"^  2\.0 held: ", done.stdout, re.MULTILINE)


def test_run_shows_why_a_file_was_refused(place: Place) -> None:
    place.write("bad.sub", "executable = none\nqueue\n")
    done = place.run("bad.sub")
    assert done.returncode == 2
    assert "none" in done.stderr
    assert "bad.sub was refused" in done.stderr.splitlines()[-1]
    assert place.left() == []

    place.write("good.sub", shell("sleep 600"))
    done = place.run("good.sub", "bad.sub")
    assert done.returncode == 2
    assert "what was submitted before is cancelled (cluster 1)" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_is_interrupted(place: Place, number: signal.Signals) -> None:
    place.write("long.sub", shell("echo up; sleep 600", 4))
    process = place.start_run("long.sub")
    until(lambda: (place.cwd / "log").exists() and "\n001 (" in (place.cwd / "log").read_text(), 60)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out.startswith("4 tasks: 0 done, 4 cancelled in ")
    assert place.left() == []
    assert list(place.temporary.iterdir()) == []
    assert (place.cwd / "log").read_text().count("\n009 (") == 4


def test_nothing_is_left_of_a_run_that_was_killed(place: Place) -> None:
    place.write("long.sub", shell("sleep 600", 2))
    process = place.start_run("long.sub")
    until(lambda: (place.cwd / "log").exists() and "\n001 (" in (place.cwd / "log").read_text(), 60)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: place.left() == [], 60)


def test_run_survives_the_death_of_its_foreman(place: Place) -> None:
    place.write("some.sub", shell("sleep 0.2", 30))
    process = place.start_run("--foremen", "1", "some.sub")
    until(lambda: list(place.temporary.glob("pilotq-*/run/foreman-*.json")), 60)
    until((place.cwd / "log").exists, 60)
    record = json.loads(next(place.temporary.glob("pilotq-*/run/foreman-*.json")).read_text())
    os.kill(record["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "30 tasks: 30 done" in out
    assert "started again" in err


def test_keep(place: Place) -> None:
    place.write("a.sub", shell("true"))
    done = place.run("--keep", "a.sub")
    assert done.returncode == 0, done.stderr
    (kept,) = place.temporary.iterdir()
    assert f"stop it with: {ROOT}/bin/pilotq down; after that the directory {kept} can be removed" in done.stderr
    environ = {"PILOTQ_HOME": str(kept)}
    history = place.condor("condor_history", "1", "-af", "ExitCode", **environ)
    assert history.stdout == "0\n"
    assert place.pilotq("down", **environ).returncode == 0
    assert place.left() == []


def test_a_pool_that_stays(place: Place) -> None:
    done = place.pilotq("up", "--foremen", "2", "--slots", "2")
    assert done.returncode == 0, done.stderr
    status = place.status()
    assert status["slots"] == {"open": 2, "busy": 0, "free": 2}
    before = {one["name"]: one["pid"] for one in status["processes"]}
    roles = [one["role"] for one in status["processes"]]
    assert sorted(roles) == ["foreman", "foreman", "master", "query", "scribe", "worker"]
    assert not any(one["state"] == "dead" for one in status["processes"])

    # What died is started again, with what was asked for at first; the rest is left alone.
    victim = next(one for one in status["processes"] if one["role"] == "foreman")
    os.kill(victim["pid"], signal.SIGKILL)
    assert "dead" in {one["state"] for one in place.status()["processes"]}
    done = place.pilotq("up")
    assert done.returncode == 0, done.stderr
    after = {one["name"]: one["pid"] for one in place.status()["processes"] if one["state"] != "dead"}
    assert {name for name in before if before[name] != after[name]} == {victim["name"]}

    place.write("a.sub", shell("echo there"))
    submitted = place.condor("condor_submit", "a.sub", cwd=place.cwd)
    assert "1 job(s) submitted to cluster 1." in submitted.stdout
    until((place.cwd / "0.out").exists)
    assert "1 done" in place.pilotq("status").stdout

    done = place.pilotq("down")
    assert done.returncode == 0
    assert len(re.findall("^stopped ", done.stderr, re.MULTILINE)) == 4
    assert place.left() == []
    assert place.pilotq("status").returncode == 4
    assert "nothing runs" in place.pilotq("down").stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_up_is_ended(place: Place, number: signal.Signals) -> None:
    """Nothing is left of it, or `down` finds what is."""
    # A worker looks for foremen where there are none: `up` waits.
    words = place.command("up", "--foremen", "1", "--slots", "1", "--set", "foreman.hosts=127.0.0.2")
    words += ["--set", "foreman.bind=127.0.0.1"]
    log = place.path.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, env=place.environ, stdin=subprocess.DEVNULL, stderr=output)
    record = place.path / "pool.json"
    until(lambda: record.exists() and len(json.loads(record.read_text())["started"]) == 3, 30)
    if number != signal.SIGKILL:
        until(lambda: b"pilotq: waiting for " in log.read_bytes(), 30)
    process.send_signal(number)
    code = process.wait(60)
    if number == signal.SIGKILL:
        done = place.pilotq("down")
        assert len(re.findall("^stopped ", done.stderr, re.MULTILINE)) == 3
        assert "left alone" not in done.stderr
    else:
        assert code == 128 + number
        assert "nothing runs" in place.pilotq("down").stderr
    assert place.left() == []


def test_drain_of_the_master(place: Place) -> None:
    assert place.pilotq("up", "--foremen", "0", "--slots", "1").returncode == 0
    assert place.pilotq("drain").returncode == 0
    place.write("a.sub", shell("true"))
    refused = place.condor("condor_submit", "a.sub", cwd=place.cwd)
    assert (refused.returncode, refused.stdout.count("submitted")) == (1, 0)
    assert "drain" in refused.stderr


def test_a_port_that_is_taken(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", int(place.environ["WQ_MASTER"].rpartition(":")[2])))
        taken.listen()
        done = place.pilotq("up", "--foremen", "1", "--slots", "1")
    assert done.returncode == 1
    assert place.environ["WQ_MASTER"].rpartition(":")[2] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert place.left() == []


def test_up_while_a_drain_file_is_there(place: Place) -> None:
    Path(place.environ["WQ_DRAIN"]).touch()
    done = place.pilotq("up")
    assert done.returncode == 7
    assert "rm " in done.stderr
