"""A pool whose head dies at a chosen sync of its disk, with real processes and real files.

The syncs of master and scribe are counted (`sync_points.c`); at one of them the process that asks for it is killed, or
the whole head loses its power: then its files are put back to what had been synced. The head is started again, and
what was printed before must be true.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
from parts import Parts, wait_for
from troubles import new_pool

from pilotq.roles.backup import look

HOWS = ("before", "after", "power")
SOURCE = Path(__file__).with_name("sync_points.c")
TASKS = 8
NAMES = ("one", "many", "held", "long")


class Point(NamedTuple):
    """What happened at a sync."""

    number: int
    how: str
    #: The file, without where it lies; "": there was no such sync any more.
    path: str


def compiled(folder: Path) -> Path:
    """The library. Skips without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to count syncs")
    library = folder / "sync_points.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


@contextmanager
def base_directory() -> Iterator[Path]:
    """In memory where there is such a place: fast, and no inode number comes twice."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="pilotq-crash-", dir=memory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Disk:
    """What lies below some directories, and what would be left of it without power."""

    def __init__(self, roots: list[Path], shadow: Path) -> None:
        self._roots, self._shadow = roots, shadow
        self._folders: dict[int, list[tuple[int, str]]] = {}
        self._data: dict[int, bytes] = {}

    def begin(self) -> None:
        """All that is there now counts as synced."""
        shutil.rmtree(self._shadow, ignore_errors=True)
        for part in ("data", "folders"):
            (self._shadow / part).mkdir(parents=True)
        self._folders.clear()
        self._data.clear()
        for root in self._roots:
            for path in (root, *root.rglob("*")):
                if path.is_dir():
                    names = [(entry.inode(), entry.name) for entry in os.scandir(path)]
                    self._folders[path.stat().st_ino] = names
                elif path.is_file() and path.name != "ballast":
                    self._data[path.stat().st_ino] = path.read_bytes()

    def cut_power(self) -> None:
        """Forget what was not synced: content, names, removals."""
        for part in ("folders", "data"):
            for path in (self._shadow / part).iterdir():
                if path.name.isdigit():
                    found = path.read_bytes()
                    if part == "data":
                        self._data[int(path.name)] = found
                        continue
                    lines = (line.split(" ", 1) for line in found.decode("utf-8", "surrogateescape").splitlines())
                    self._folders[int(path.name)] = [(int(inode), name) for inode, name in lines]
        for root in self._roots:
            # Files keep their inodes, as they would.
            stage = root.with_name(f"{root.name}.stage")
            stage.mkdir()
            for path in root.rglob("*"):
                if path.is_file() and not (stage / str(path.stat().st_ino)).exists():
                    (stage / str(path.stat().st_ino)).hardlink_to(path)
            self._lay_out(root, root.stat().st_ino, stage)
            shutil.rmtree(stage)

    def _lay_out(self, folder: Path, inode: int, stage: Path) -> None:
        """What is as it should be is not touched: users' commands go on meanwhile."""
        wanted = {name: number for number, name in self._folders.get(inode, []) if name != "ballast"}
        for path in folder.iterdir():
            if path.lstat().st_ino != wanted.get(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, number in wanted.items():
            path = folder / name
            if number in self._folders:
                path.mkdir(mode=0o700, exist_ok=True)
                self._lay_out(path, number, stage)
                continue
            if not path.exists():
                kept = stage / str(number)
                if not kept.exists():
                    kept.touch(0o600)
                path.hardlink_to(kept)
            content = self._data.get(number, b"")
            if path.is_file() and path.read_bytes() != content:
                mode = path.stat().st_mode
                path.chmod(0o600)
                path.write_bytes(content)
                path.chmod(mode)


class Crashes:
    """A pool, and scenarios on it in which the head dies once."""

    def __init__(self, base: Path, slots: int = 4) -> None:
        self.base = base
        self.state = base / "state"
        self.pool: Parts = new_pool(base, f"state_dir={self.state}")
        self.library = compiled(base)
        self.disk = Disk([self.state, self.pool.cwd], base / "shadow")
        self._slots = slots
        self.round = 0
        self._is_over = threading.Event()
        #: Syncs of the last round by their numbers.
        self.synced: dict[int, str] = {}
        #: Exit codes of the master that was to die.
        self.codes: list[int] = []

    def start(self) -> None:
        self.pool.start_master()
        self.pool.start("foreman0")
        self.pool.start("worker0", WQ_NUM_WORKERS=str(self._slots))
        wait_for("the pool", lambda: self.pool.status()["slots"]["open"] == self._slots)
        self.stop_head()

    def close(self) -> None:
        self.pool.close()

    def stop_head(self) -> None:
        self.pool.end("master")

    # ---- one round

    def run(self, number: int, how: str, tries: int = 1, only: str = "") -> Point:
        """The scenario with a head that dies at its sync of this number; what was checked is asserted."""
        self.round += 1
        scenario = Scenario(self.pool, self.round, self.base)
        scenario.prepare()
        self.disk.begin()
        self.codes.clear()
        environ, log = self._watched(number, how)
        if only:
            environ["SYNC_ONLY"] = only
        self._start_watched(environ)
        self._is_over.clear()
        keeper = threading.Thread(target=self._keep_up, args=(how,))
        keeper.start()
        try:
            scenario.run(tries)
        finally:
            self._is_over.set()
            keeper.join()
        lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
        self.synced = {int(at): path for at, _, path in lines}
        path = self.synced.get(number, "")
        self.stop_head()
        scenario.check(self.pool, self.state)
        return Point(number, how, re.sub(r"[0-9a-f]{64}", "DIGEST", path.removeprefix(f"{self.base}/")))

    def _watched(self, number: int, how: str) -> tuple[dict[str, str], Path]:
        count, log = self.base / "count", self.base / f"log.{self.round}"
        count.write_bytes(bytes(8))
        log.touch()
        return {
            "LD_PRELOAD": str(self.library),
            "SYNC_ROOTS": f"{self.state}:{self.pool.cwd}",
            "SYNC_COUNT": str(count),
            "SYNC_LOG": str(log),
            "SYNC_AT": str(number),
            "SYNC_HOW": how,
            **({"SYNC_SHADOW": str(self.base / "shadow")} if how == "power" else {}),
        }, log

    def _start_watched(self, environ: dict[str, str]) -> None:
        """In a group of its own, so that all of the head can be killed at once."""
        argv = [*self.pool.command("master"), "--set", "master.beat_s=1", "--set", "master.contact_lost_s=6"]
        argv += self.pool.settings
        with (self.base / "master.log").open("ab") as log:
            self.pool.processes["master"] = subprocess.Popen(
                argv,
                env={**self.pool.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def _keep_up(self, how: str) -> None:
        """Start the master again when it died, as systemd would."""
        while not self._is_over.wait(0.02):
            code = self.pool.processes["master"].poll()
            if code is None:
                continue
            self.codes.append(code)
            if how == "power" and code == -signal.SIGKILL:
                self.disk.cut_power()
            self.pool.start("master")


class Scenario:
    """Submissions of all kinds, holds, releases, removals; and what must be true of them at the end."""

    def __init__(self, pool: Parts, number: int, base: Path) -> None:
        self.pool, self.cwd = pool, pool.cwd / f"round{number}"
        self.starts = base / f"starts{number}"
        self.seed = number
        #: Cluster -> number of tasks; those that were removed.
        self.printed: dict[int, int] = {}
        self.removed: set[int] = set()

    def prepare(self) -> None:
        """What the user wrote before; it is on disk."""
        self.cwd.mkdir()
        self.starts.mkdir()
        (self.cwd / "large").write_bytes(bytes(range(256)) * 150 + b"%d" % self.seed)
        for proc in range(TASKS):
            (self.cwd / f"small.{proc}").write_text(f"file {proc} of round {self.seed}\n")
        files = "transfer_input_files = small.$(Process), large\nshould_transfer_files = yes\n"
        self._write("one", f"{files}queue\n")
        self._write("many", f"{files}queue {TASKS}\n")
        self._write("held", "hold = true\nqueue 2\n", sleep="0")
        self._write("long", "queue 3\n", sleep="60")

    def _write(self, name: str, text: str, sleep: str = "0.05") -> None:
        mark = f"{self.starts}/$(Cluster).$(Process)"
        (self.cwd / f"{name}.sub").write_text(
            "executable = /bin/sh\ntransfer_executable = false\n"
            f"arguments = \"-c 'echo start >> {mark}; sleep {sleep}; echo done; cat small.* 2>/dev/null; true'\"\n"
            f"log = {name}.log\noutput = {name}.out.$(Process)\n{text}"
        )

    def run(self, tries: int) -> None:
        """`tries`: how often a submission may be refused."""
        pool = self.pool
        wait_for("the master", pool.status_or_none, 20)
        one, many, held, long = (self.submit(name, tries) for name in NAMES)
        wait_for("one to run", lambda: self.counts(long)["running"], 30)
        self.act("condor_hold", f"{long}.0")
        self.act("condor_release", str(held))
        self.act("condor_release", f"{long}.0")
        self.removed.add(long)
        self.act("condor_rm", str(long))
        for cluster in (one, many, held, long):
            pool.wait_done(cluster, 60)
        wait_for("the scribe", lambda: (pool.status_or_none() or {}).get("scribe", {}).get("backlog") == 0, 30)

    def counts(self, cluster: int) -> dict[str, int]:
        found = self.pool.condor("condor_q", str(cluster), "-af", "JobStatus").stdout.split()
        return {"running": found.count("2")}

    def submit(self, name: str, tries: int) -> int:
        for _ in range(tries):
            done = self.pool.condor("condor_submit", "-terse", f"{name}.sub", cwd=self.cwd)
            if done.returncode == 0:
                break
            assert tries == 1 or re.search(r"I/O error|Input/output error", done.stderr), done.stderr
        assert done.returncode == 0, done.stderr
        first, last = (int(part.split(".")[1]) for part in done.stdout.split(" - "))
        cluster = int(done.stdout.split(".")[0])
        self.printed[cluster] = last - first + 1
        return cluster

    def act(self, tool: str, what: str) -> None:
        """May say that it is done already: the answer to the first try can be lost."""
        self.pool.condor(tool, what)

    # ---- what must be true

    def check(self, pool: Parts, state: Path) -> None:
        """With a head that is down: the store says it all."""
        report, _, _ = look(state)
        assert not report.findings
        assert not report.tasks, "all are over"
        pool.start_master()
        history: dict[int, list[int]] = {}
        for line in pool.condor("condor_history", "-af", "ClusterId", "ProcId").stdout.splitlines():
            cluster, proc = map(int, line.split())
            history.setdefault(cluster, []).append(proc)
        since = min(self.printed)
        assert {number for number in history if number >= since} == set(self.printed), "printed, and nothing more"
        for cluster, count in self.printed.items():
            assert sorted(history[cluster]) == list(range(count)), "in the history once"
        for name, cluster in zip(NAMES, self.printed, strict=True):
            self._check_cluster(name, cluster)
        pool.end("master")

    def _check_cluster(self, name: str, cluster: int) -> None:
        text = (self.cwd / f"{name}.log").read_text()
        events = Counter(
            (number, int(proc)) for number, proc in re.findall(rf"^(\d{{3}}) \({cluster:03}\.(\d+)\.", text, re.M)
        )
        assert text.endswith("...\n") and len(re.findall(r"^\.\.\.$", text, re.M)) == events.total(), "no torn event"
        for proc in range(self.printed[cluster]):
            assert events["000", proc] == 1, (name, proc, text)
            assert events["005", proc] + events["009", proc] == 1, (name, proc, text)
            started = self.starts / f"{cluster}.{proc}"
            starts = started.read_text().count("start") if started.exists() else 0
            if cluster in self.removed:
                assert events["009", proc] == 1 and starts <= 2
                continue
            assert starts == 1, f"{name}: {cluster}.{proc} was started {starts} times"
            output = (self.cwd / f"{name}.out.{proc}").read_text()
            files = f"file {proc} of round {self.seed}\n" if name in ("one", "many") else ""
            assert output == f"done\n{files}", (name, proc)


def sweep(crashes: Crashes, how: str, first: int, step: int) -> Iterator[Point]:
    """Every `step`-th sync, until the scenario has no such one any more."""
    number = first
    while True:
        point = crashes.run(number, how)
        if not point.path:
            return
        yield point
        number += step


def main() -> int:
    """All syncs, or every N-th; a line for each that went wrong, and how many there were of which file."""
    step, tried, wrong = int(sys.argv[1]), Counter[tuple[str, str]](), 0
    with base_directory() as base:
        crashes = Crashes(base)
        try:
            crashes.start()
            for how in HOWS:
                for number in itertools.count(1, step):
                    try:
                        point = crashes.run(number, how)
                    except AssertionError as error:
                        wrong += 1
                        print(f"sync {number}, {how}: {str(error)[:2000]}", flush=True)
                        crashes.stop_head()
                        continue
                    if not point.path:
                        break
                    kind = re.sub(r"round\d+|\d+\.\d+\.\d+|put-\d+|/../DIGEST", "*", point.path)
                    tried[re.sub(r"\.out\.\d+|\*\.log", "*", kind), how] += 1
        finally:
            crashes.close()
    print(f"{'the sync of':32}" + "".join(f"{how:>8}" for how in HOWS))
    for kind in sorted({kind for kind, _ in tried}):
        print(f"{kind:32}" + "".join(f"{tried[kind, how]:8}" for how in HOWS))
    total = tried.total()
    print(
        f"{total} heads died, {total * sum((1, TASKS, 2, 3)):,} tasks were submitted; {wrong} times something was wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
