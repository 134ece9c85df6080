"""5,000 silent connections and a reader of one byte a second: everybody else is served all the same.

Counted, not timed; `tests/bench/flood.py` says what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flood import Flood, SlowReader, allowed
from parts import Parts, wait_for

pytestmark = pytest.mark.timeout(240)
SHORT = "executable = /bin/true\ntransfer_executable = false\nlog = log\nqueue {}\n"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


def test_silent_connections_and_a_slow_reader_stop_nobody(parts: Parts) -> None:
    parts.start_all(slots=2, foremen=1)
    waiting = parts.submit("executable = /bin/true\ntransfer_executable = false\nrequest_cpus = 99\nqueue 20000\n")
    reader = SlowReader(str(parts.path / "api.sock"))
    ports = [parts.master_port, parts.master_port + 1]
    with Flood(ports, allowed()) as flood:
        cluster = parts.submit(SHORT.format(300))
        parts.start("worker1", WQ_NUM_WORKERS="1")
        wait_for("another worker to come in", lambda: len(parts.status()["workers"]) == 2, 60)
        parts.wait_done(cluster, 120)
        assert parts.condor("condor_q", "-totals").returncode == 0
        wait_for("the silent ones to be put out", lambda: flood.ended > flood.count, 60)
        again = parts.submit(SHORT.format(50))
        parts.wait_done(again, 120)
    assert reader.read and reader.thread.is_alive()
    assert sorted(parts.history(cluster)) == list(range(300))
    assert parts.counts(waiting)["idle"] == 20000
    reader.close()
    for name in ("master", "foreman0"):
        assert "Traceback" not in parts.log(name)
        folder = Path(f"/proc/{parts.processes[name].pid}/fd")
        wait_for("descriptors to be free again", lambda folder=folder: len(list(folder.iterdir())) < 200)
