"""Full disks of the head and of a node: refused in a line, nothing lost, mended by space alone."""

from __future__ import annotations

import contextlib
import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, wait_for
from troubles import TRUE, events, new_pool, queue, refused, small_disk, unmount, wait_until_it_runs

pytestmark = pytest.mark.timeout(600)
#: How often the disks fill and empty again; `tests/crash` takes the longer form.
CYCLES = 20 if os.environ.get("PILOTQ_ALL_POINTS") == "1" else 3


class SmallDisks:
    """A pool whose master and whose worker have a small disk each."""

    def __init__(self, base: Path) -> None:
        self.state, self.work = base / "state", base / "node"
        try:
            small_disk(self.state, "size=48m")
            small_disk(self.work, "size=16m")
            self.pool = new_pool(base, f"state_dir={self.state}")
            self.pool.start_master()
            self.pool.start("foreman0")
            self.pool.start("worker0", WQ_NUM_WORKERS="3", WQ_WORKDIR=str(self.work))
            wait_for("the pool", lambda: self.pool.status()["slots"]["open"] == 3)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
        unmount(self.state)
        unmount(self.work)

    def submit_gated(self, gate: Path, more: str = "") -> int:
        """A task that runs, and ends when the gate is there."""
        cluster = self.pool.submit(
            "executable = /bin/sh\ntransfer_executable = false\n"
            f"arguments = \"-c 'until test -e {gate}; do sleep 0.05; done; {more}'\"\nlog = {gate}.log\nqueue\n"
        )
        wait_until_it_runs(self.pool, cluster)
        return cluster


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisks]:
    found = SmallDisks(tmp_path_factory.mktemp("small"))
    yield found
    found.close()


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte is left on this disk."""
    filler = disk / "filler"
    try:
        fill(filler)
        yield
    finally:
        filler.unlink(missing_ok=True)


def fill(filler: Path) -> None:
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def test_the_disk_of_the_head_is_full(small: SmallDisks, tmp_path: Path) -> None:
    pool = small.pool
    first, second = (small.submit_gated(tmp_path / gate) for gate in ("first", "second"))
    with filled(small.state):
        for text in (TRUE, "executable = prog\n", f"{TRUE}arguments = {'x' * 100_000}\n"):
            refused(pool, f"{text}queue\n", "disk of the master", "full", "free some space")
        (tmp_path / "first").touch()
        pool.wait_done(first, 10)
        refused(pool, f"{TRUE}queue\n", "full")
        # Now the reserve is gone as well: what ends must wait for space, and is not lost.
        fill(small.state / "filler")
        (tmp_path / "second").touch()
        refused(pool, f"{TRUE}queue\n", "full")
        for tool in ("condor_q", "condor_history"):
            assert pool.condor(tool).returncode == 0
    pid = pool.processes["master"].pid
    pool.wait_done(second, 20)
    cluster = wait_for("submissions to be taken again", lambda: submitted(pool, "executable = prog\nqueue\n"), 15)
    pool.wait_done(cluster)
    for gate, task in (("first", first), ("second", second)):
        assert pool.history(task) == [0]
        wait_for("its last event", lambda gate=gate: events(tmp_path / f"{gate}.log") == ["000", "001", "005"])
    assert pool.status()["master"]["pid"] == pid, "it did not have to be started again"


def submitted(pool: Parts, text: str) -> int | None:
    """The cluster, when it is accepted."""
    (pool.cwd / "again.sub").write_text(text)
    done = pool.condor("condor_submit", "again.sub", cwd=pool.cwd)
    return int(done.stdout.split("cluster ")[1].rstrip(".\n")) if done.returncode == 0 else None


def test_a_file_that_is_larger_than_the_disk_of_the_head(small: SmallDisks) -> None:
    pool = small.pool
    (pool.cwd / "huge").write_bytes(bytes(64 << 20))
    refused(pool, f"{TRUE}transfer_input_files = huge\nqueue\n", "No space left on device")
    assert not list(small.state.glob("blobs/put-*"))
    pool.wait_done(pool.submit(f"{TRUE}queue\n"))


def test_the_disk_of_a_node_is_full(small: SmallDisks, tmp_path: Path) -> None:
    """Nothing is held or lost for it, and the node gets tasks again when it has space."""
    pool = small.pool
    (pool.cwd / "big").write_bytes(random.Random(3).randbytes(300_000))
    running = small.submit_gated(tmp_path / "gate", "exit 3")
    with filled(small.work):
        # At once, so that both are tried: one for which its file has no place, one without files.
        with_file = pool.submit(
            "executable = prog\ntransfer_input_files = big\noutput = node.out\nqueue\n"
            "executable = /bin/true\ntransfer_executable = false\ntransfer_input_files =\noutput = other.out\nqueue\n"
        )
        # Its output keeps it from a spare sandbox of the test before, which would need no space.
        without = with_file + 1
        reasons = [("rejected", "an input file cannot be kept"), ("disk", "Cannot make the scratch directory")]
        for cluster, (outcome, reason) in zip((with_file, without), reasons, strict=True):
            found = wait_for("an end", lambda cluster=cluster: last_end(pool, cluster), 10)
            assert (found["outcome"], found["state"]) == (outcome, "idle")
            assert found["reason"].startswith(reason) and "No space left on device" in found["reason"]
        assert sorted(queue(pool, "JobStatus")) == ["1", "1", "2"]
        (tmp_path / "gate").touch()
        pool.wait_done(running, 10)
        assert pool.processes["worker0"].poll() is None
    for cluster in (with_file, without):
        pool.wait_done(cluster, 30)
    assert (pool.cwd / "node.out").read_text() == "hi \n"
    assert len(re.findall("worker refuses tasks", pool.log("master"))) < 4, "it was not tried all the time"
    done = pool.condor("condor_history", "-af", "ClusterId", "ExitCode", "NumHolds")
    found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert found[str(running)] == ["3", "undefined"]
    assert found[str(with_file)] == found[str(without)] == ["0", "undefined"]


def last_end(pool: Parts, cluster: int) -> dict[str, str] | None:
    """The task, once an attempt of it has ended."""
    (found,) = pool.client.get(f"/v1/tasks?cluster={cluster}")
    return found if found["reason"] else None


def took_to_refuse(pool: Parts, text: str) -> float:
    """Seconds until a submission is refused, in one line."""
    began = time.monotonic()
    refused(pool, text, "full", "free some space")
    return time.monotonic() - began


def test_disks_that_fill_and_empty_again_and_again(small: SmallDisks, tmp_path: Path) -> None:
    """Each time: refused at once, results taken, all as before when there is space; no process is started again."""
    pool = small.pool
    pids = {name: process.pid for name, process in pool.processes.items()}
    spent, back, clusters = [], [], []
    for cycle in range(CYCLES):
        gates = [tmp_path / f"{cycle}.{where}" for where in ("head", "node")]
        running = [small.submit_gated(gate, f"echo {cycle} > out") for gate in gates]
        with filled(small.state):
            spent.append(took_to_refuse(pool, f"{TRUE}queue\n"))
            spent.append(took_to_refuse(pool, "executable = prog\nqueue 10\n"))
            gates[0].touch()
            pool.wait_done(running[0], 10)
            spent.append(took_to_refuse(pool, f"{TRUE}queue\n"))
        began = time.monotonic()
        clusters.append(wait_for("submissions", lambda: submitted(pool, "executable = prog\nqueue 5\n"), 15))
        back.append(time.monotonic() - began)
        with filled(small.work):
            # What runs there ends, and its output is brought home from what it had.
            gates[1].touch()
            pool.wait_done(running[1], 10)
        for cluster in (*running, clusters[-1]):
            pool.wait_done(cluster, 40)
        for gate, cluster in zip(gates, running, strict=True):
            assert pool.history(cluster) == [0]
            log = tmp_path / f"{gate.name}.log"
            wait_for("its last event", lambda log=log: events(log) == ["000", "001", "005"])
    for cluster in clusters:
        assert sorted(pool.history(cluster)) == list(range(5))
    assert statistics.median(spent) < 1.0, spent
    assert max(back) < 5.0, back
    assert {name: process.pid for name, process in pool.processes.items()} == pids
    assert all(process.poll() is None for process in pool.processes.values())
    done = pool.pilotq("--set", f"state_dir={small.state}", "store", "check")
    assert done.returncode == 0, done.stdout
    if CYCLES > 3:
        print(f"refused in {max(spent):.2f} s at most, accepted again {max(back):.2f} s after there was space")
