"""The folder of a host: one worker's, and swept of what a dead one left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from keeping import alive, numbers

from pilotq.errors import UnavailableError, UserError
from pilotq.sandbox import host as host_folder
from pilotq.sandbox import marks, sweep, take_folder


def test_first_folder(tmp_path: Path) -> None:
    folder = take_folder(str(tmp_path / "deep" / "work"), "node1")
    assert folder.path == str(tmp_path / "deep" / "work" / "node1")
    for directory in (folder.path, folder.tasks, folder.blobs):
        assert Path(directory).stat().st_mode & 0o777 == 0o700
    assert sweep(folder) == []
    folder.release()


def test_sandboxes_are_spread_over_the_disk(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    if kind.strip() != "ext2/ext3" or not shutil.which("lsattr"):
        pytest.skip("needs a file system of the ext family, and lsattr")
    folder = take_folder(str(tmp_path), "node1")
    told = subprocess.run(
        ["lsattr", "-d", folder.tasks, folder.blobs], capture_output=True, text=True, check=True
    ).stdout
    tasks, blobs = (line.split()[0] for line in told.splitlines())
    assert "T" in tasks
    assert "T" not in blobs


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a tmpfs")
def test_a_file_system_without_a_word_for_it_will_do() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        assert Path(take_folder(base, "node1").tasks).is_dir()


def test_second_worker_has_its_own(tmp_path: Path) -> None:
    first, second = take_folder(str(tmp_path), "node1"), take_folder(str(tmp_path), "node1")
    assert Path(second.path).name == "node1.2"
    assert first.nonce != second.nonce
    assert Path(take_folder(str(tmp_path), "node2").path).name == "node2"
    first.release()
    assert take_folder(str(tmp_path), "node1").path == first.path


def test_all_folders_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_folder, "FOLDERS_MAX", 2)
    held = [take_folder(str(tmp_path), "n") for _ in range(2)]
    with pytest.raises(UnavailableError, match="2 workers use"):
        take_folder(str(tmp_path), "n")
    assert len({folder.path for folder in held}) == 2


def test_names_are_told_until_the_master_heard_them(tmp_path: Path) -> None:
    first = take_folder(str(tmp_path), "n")
    first.remember("worker-1")
    first.release()
    second = take_folder(str(tmp_path), "n")
    assert sweep(second) == ["worker-1"]
    second.release()
    third = take_folder(str(tmp_path), "n")
    assert sweep(third) == ["worker-1"], "the second was never known under a name of its own"
    third.remember("worker-3")
    third.release()
    assert sweep(take_folder(str(tmp_path), "n")) == ["worker-3"]


def test_other_folders_of_the_host_are_swept_too(tmp_path: Path) -> None:
    first, second = take_folder(str(tmp_path), "n"), take_folder(str(tmp_path), "n")
    for folder in (first, second):
        folder.remember(Path(folder.path).name)
        (Path(folder.tasks) / "1.0.1").mkdir()
        (Path(folder.tasks) / "1.0.1" / "f").touch()
        folder.release()
    third = take_folder(str(tmp_path), "n")
    assert sweep(third) == ["n", "n.2"]
    assert not list(Path(second.tasks).iterdir())
    assert not list(Path(third.tasks).iterdir())
    assert take_folder(str(tmp_path), "n").path == second.path


def test_a_living_workers_folder_is_left_alone(tmp_path: Path) -> None:
    first, second = take_folder(str(tmp_path), "n"), take_folder(str(tmp_path), "n")
    (Path(second.tasks) / "1.0.1").mkdir()
    assert sweep(first) == []
    assert (Path(second.tasks) / "1.0.1").exists()


LEFT = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from pilotq.sandbox import marks, take_folder
folder = take_folder(sys.argv[2], "n")
os.makedirs(folder.tasks + "/1.0.1/sub")
os.makedirs(folder.blobs, exist_ok=True)
open(folder.blobs + "/kept", "w").close()
for env in {marks.VARIABLE: marks.prefix(folder.nonce, 1) + "1.0.1"}, {}:
    if not env:
        marks.wear(marks.number(folder.nonce, 1, 1))
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], env, setsid=True)
    print(pid, file=open(sys.argv[2] + "/pids", "a"))
os.kill(os.getpid(), 9)
"""


def test_processes_of_a_dead_worker(tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent.parent)
    subprocess.run([sys.executable, "-c", LEFT, root, str(tmp_path)], check=False)
    pids = numbers(tmp_path / "pids")
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    folder = take_folder(str(tmp_path), "n")
    sweep(folder)
    assert not any(alive(pid) for pid in pids)
    assert not list(Path(folder.tasks).iterdir())
    assert (Path(folder.blobs) / "kept").exists()
    nonces = json.loads((Path(folder.path) / "worker.json").read_text())["nonces"]
    assert nonces == [folder.nonce]


def test_damaged_worker_json(tmp_path: Path) -> None:
    folder = take_folder(str(tmp_path), "n")
    folder.release()
    for text in ("", "[]", "{}", '{"nonces": ["zz"], "names": []}', '{"nonces": 3, "names": []}'):
        (Path(folder.path) / "worker.json").write_text(text)
        again = take_folder(str(tmp_path), "n")
        assert sweep(again) == []
        again.release()


def test_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used: Not a directory") as caught:
        take_folder(str(tmp_path / "file"), "n")
    assert "WQ_WORKDIR" in caught.value.hint
    with pytest.raises(UserError):
        take_folder("/proc/nothing", "n")


def test_folder_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make a directory of somebody else's")
    (tmp_path / "n").mkdir()
    os.chown(tmp_path / "n", 65534, 65534)
    with pytest.raises(UserError, match="belongs to another user"):
        take_folder(str(tmp_path), "n")


def test_full_disk(tmp_path: Path) -> None:
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=4", "none", str(tmp_path)], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(UnavailableError, match="No space left"):
            take_folder(str(tmp_path), "n")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_marks_do_not_meet() -> None:
    seen = {marks.number(nonce, serial, n) for nonce in ("00000000", "00000001") for serial in (0, 1) for n in (1, 2)}
    assert len(seen) == 8
    assert marks.number("ffffffff", 2047, (1 << 20) - 1) < 1 << 63
