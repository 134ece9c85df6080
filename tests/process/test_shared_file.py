"""A file that many tasks share crosses each link once, however many ask for it at the same time."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, free_ports, wait_for

pytestmark = pytest.mark.timeout(240)

SIZE = 12 << 20
#: Encryption, frames, and all else that is said meanwhile.
MORE = SIZE // 10


class Gate:
    """Passes connections on to a port, and counts what comes from there."""

    def __init__(self, port: int, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", port))
        #: Bytes towards each of those who connected.
        self.down: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                peer.close()
                continue
            self.down.append(0)
            index = len(self.down) - 1
            threading.Thread(target=self._copy, args=(peer, far, None), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, peer, index), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, index: int | None) -> None:
        try:
            while data := source.recv(1 << 18):
                if index is not None:
                    self.down[index] += len(data)
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            one.close()

    def crossings(self) -> list[float]:
        """How often the file went to each peer that got more than a few messages."""
        return [count / SIZE for count in self.down if count > MORE]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


def test_files_of_single_tasks_arrive_whole_and_leave_nothing_on_the_node(parts: Parts, tmp_path: Path) -> None:
    parts.start_all(slots=2, foremen=1)
    expected = {}
    for proc in range(60):
        folder = parts.cwd / str(proc)
        folder.mkdir()
        for name, size in (("a", 10_000), ("b", 0), ("c", 32 << 10), ("d", 40_000)):
            (folder / name).write_bytes(os.urandom(size))
        expected[proc] = b"".join((folder / name).read_bytes() for name in "abcd")
    files = ", ".join(f"$(Process)/{name}" for name in "abcd")
    text = "executable = /bin/cat\ntransfer_executable = false\narguments = a b c d\n"
    cluster = parts.submit(f"{text}transfer_input_files = {files}\noutput = out.$(Process)\nqueue 60\n")
    assert parts.wait_done(cluster)["failed"] == 0
    assert {proc: (parts.cwd / f"out.{proc}").read_bytes() for proc in range(60)} == expected
    # Sandboxes vanish meanwhile; `os.walk` passes over what is gone.
    folders = [folder for folder, _, _ in os.walk(parts.path / "work") if folder.endswith("/blobs")]
    kept = sorted(path.stat().st_size for folder in folders for path in Path(folder).iterdir())
    # The description is that of the first task, whose small files come with it.
    assert kept == [0, 10_000, 32 << 10] + [40_000] * 60, "only what is not small is kept on the node"


def test_a_shared_file_crosses_each_link_once(parts: Parts, tmp_path: Path) -> None:
    ports = free_ports(2)
    above = Gate(ports, parts.master_port)
    below = Gate(ports + 1, parts.master_port + 1)
    data = os.urandom(SIZE)
    (parts.cwd / "shared").write_bytes(data)
    parts.start_master()
    parts.start("foreman0", WQ_MASTER=f"127.0.0.1:{ports}")
    workers = {"WQ_MASTER_BASEPORT": str(ports + 1), "WQ_NUM_WORKERS": "2"}
    for index in range(4):
        parts.start(f"worker{index}", WQ_WORKDIR=str(tmp_path / f"node{index}"), **workers)
    # All begin at once, so all ask while the foreman has nothing of it.
    wait_for("the pool", lambda: parts.status()["slots"]["open"] == 8)
    text = "executable = /usr/bin/sha256sum\ntransfer_executable = false\narguments = {}\n"
    text += "transfer_input_files = shared\noutput = out.$(Process)\nqueue {}\n"
    first = parts.submit(text.format("shared", 40))
    assert parts.wait_done(first)["failed"] == 0
    again = parts.submit(text.format("shared shared", 8))
    assert parts.wait_done(again)["failed"] == 0
    assert len({path.read_text().split()[0] for path in parts.cwd.glob("out.*")}) == 1
    assert above.crossings() == [pytest.approx(1, abs=0.1)]
    assert 1 <= len(below.crossings()) <= 4 and below.crossings() == [pytest.approx(1, abs=0.1)] * len(
        below.crossings()
    )
    folders = [folder for folder, _, _ in os.walk(tmp_path) if folder.endswith("/blobs") and "/node" in folder]
    held = [folder for folder in folders if any(path.stat().st_size == SIZE for path in Path(folder).iterdir())]
    assert len(held) == len(below.crossings())
    above.close()
    below.close()
