"""Outputs come home whole, to where the user said, and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from scribe_data import House, pack

from pilotq.model import CLUSTER_MARK, PROC_MARK, STDERR, STDOUT, OutputFile
from pilotq.scribe.outputs import OPEN_MAX


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def inline(name: str, data: bytes = b"words", mode: int = 0o644) -> OutputFile:
    return OutputFile(name, len(data), mode, data)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_streams_are_written_where_the_user_said(house: House) -> None:
    number = house.cluster(stdout=f"{house.user}/o.{CLUSTER_MARK}.{PROC_MARK}", stderr=f"{house.user}/e é")
    house.note(number, 0, -1, outputs=[inline(STDOUT, b"out"), inline(STDERR, b"err")])
    assert len(house.write().done) == 1
    assert tree(house.user) == {f"o.{number}.0": b"out", "e é": b"err"}


def test_an_empty_stream_is_a_file_too(house: House) -> None:
    number = house.cluster(stdout=f"{house.user}/o", stderr=f"{house.user}/e")
    house.note(number, 0, -1, outputs=[inline(STDOUT, b""), OutputFile(STDERR, 0, 0o644)])
    house.write()
    assert tree(house.user) == {"o": b"", "e": b""}


def test_a_stream_replaces_what_was_in_the_file_and_keeps_the_file(house: House) -> None:
    (house.user / "o").write_bytes(b"much longer than the new one")
    (house.user / "o").chmod(0o640)
    before = (house.user / "o").stat()
    house.note(house.cluster(stdout=f"{house.user}/o"), 0, -1, outputs=[inline(STDOUT, b"new")])
    house.write()
    after = (house.user / "o").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (house.user / "o").read_bytes() == b"new"


def test_streams_that_go_nowhere_are_dropped(house: House) -> None:
    number = house.cluster(stdout="/dev/null")
    house.note(number, 0, -1, outputs=[inline(STDOUT), inline(STDERR)])
    assert len(house.write().done) == 1
    assert tree(house.user) == {}


def test_a_delta_says_where_the_things_of_one_task_go(house: House) -> None:
    deltas = [pack({"stdout": f"{house.user}/{PROC_MARK}-a"}), pack({"iwd": f"{house.user}/b"})]
    number = house.cluster(2, deltas, stdout=f"{house.user}/shared", log=f"{house.user}/log")
    (house.user / "b").mkdir()
    house.note(number, 0, outputs=[inline(STDOUT, b"0")])
    house.note(number, 1, outputs=[inline(STDOUT, b"1"), inline("f", b"f")])
    house.write()
    assert tree(house.user).keys() == {"0-a", "shared", "b/f", "log"}


def test_files_go_below_the_directory_of_the_task(house: House) -> None:
    old = os.umask(0o022)
    try:
        outputs = [inline("a b"), inline("d/e/ü"), inline("run.sh", mode=0o4775), inline("secret", mode=0o400)]
        house.note(house.cluster(), 0, -1, outputs=outputs)
        house.write()
    finally:
        os.umask(old)
    assert tree(house.user) == dict.fromkeys(["a b", "d/e/ü", "run.sh", "secret"], b"words")
    modes = {name: stat.S_IMODE((house.user / name).stat().st_mode) for name in ("a b", "run.sh", "secret")}
    assert modes == {"a b": 0o644, "run.sh": 0o755, "secret": 0o600}


def test_remaps_of_files_and_directories(house: House, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    remaps = {
        "a": "renamed",
        "b": f"{tmp_path}/far/{PROC_MARK}.b",
        "dir": f"{tmp_path}/far/new",
        "c": f"{tmp_path}/far/",
        "x/deep": "up",
        "n": "/dev/null",
    }
    number = house.cluster(8, remaps=remaps)
    names = ["a", "b", "dir/1", "dir/sub/2", "c", "x/deep/3", "x/other", "n"]
    house.note(number, 7, -1, outputs=[inline(name, name.encode()) for name in names])
    house.write()
    assert tree(house.user) == {"renamed": b"a", "up/3": b"x/deep/3", "x/other": b"x/other"}
    far = {"7.b": b"b", "new/1": b"dir/1", "new/sub/2": b"dir/sub/2", "c": b"c"}
    assert tree(tmp_path / "far") == far


def test_what_was_pulled_comes_from_the_spool(house: House) -> None:
    number = house.cluster(stdout=f"{house.user}/o")
    big = os.urandom(3 << 20)
    house.pulled(number, 0, 0, big)
    house.pulled(number, 0, 2, b"xyz")
    outputs = [OutputFile(STDOUT, len(big), 0o644), inline("a"), OutputFile("b", 3, 0o644)]
    house.note(number, 0, -1, outputs=outputs)
    house.write()
    assert tree(house.user) == {"o": big, "a": b"words", "b": b"xyz"}


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "", ".", "..", "a//b", "a/", "a\0b", "./a", "a/.", "link/x", "file/x"]
)
def test_a_worker_cannot_write_outside_the_directory(house: House, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (house.user / "link").symlink_to(tmp_path / "outside")
    (house.user / "file").write_text("")
    before = sorted(tmp_path.glob("*")), sorted(house.user.glob("*"))
    house.note(house.cluster(), 0, -1, outputs=[inline(name)])
    verdict = house.write()
    ((_, trouble),) = verdict.failed
    assert not trouble.is_transient and not verdict.done
    assert (sorted(tmp_path.glob("*")), sorted(house.user.glob("*"))) == before
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_at_the_destination_is_replaced_not_followed(house: House, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (house.user / "a").symlink_to(tmp_path / "precious")
    house.note(house.cluster(), 0, -1, outputs=[inline("a")])
    house.write()
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (house.user / "a").is_symlink()


def make(kind: str, path: Path) -> None:
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "fifo with a reader":
            os.mkfifo(path)
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fifo", "FIFO"),
        ("fifo with a reader", "not a regular file"),
        ("directory", "Is a directory"),
        ("device", "not a regular file"),
    ],
)
def test_only_regular_files_are_written(house: House, kind: str, reason: str) -> None:
    make(kind, house.user / "o")
    house.note(house.cluster(stdout=f"{house.user}/o"), 0, -1, outputs=[inline(STDOUT)])
    ((_, trouble),) = house.write().failed
    assert trouble.what == "output" and not trouble.is_transient
    assert f"cannot write standard output {house.user}/o: " in str(trouble) and reason in str(trouble)


def test_each_failure_names_its_file_and_reason(house: House) -> None:
    number = house.cluster(4, stderr=f"{house.user}/no/e", iwd=f"{house.user}/gone")
    house.note(number, 0, -1, outputs=[inline(STDERR)])
    house.note(number, 1, -1, outputs=[inline("f")])
    house.note(number, 2, -1, outputs=[OutputFile(STDERR, 5, 0o644)])
    troubles = [(trouble.what, trouble.errno, str(trouble)) for _, trouble in house.write().failed]
    assert troubles == [
        ("error", 2, f"cannot write standard error {house.user}/no/e: No such file or directory (errno 2)"),
        ("f", 2, f"cannot write output file {house.user}/gone/f: No such file or directory (errno 2)"),
        ("error", 2, f"cannot write standard error {house.user}/no/e: No such file or directory (errno 2)"),
    ]


def test_nothing_is_left_of_a_file_that_cannot_take_its_name(house: House) -> None:
    (house.user / "taken").mkdir()
    house.note(house.cluster(), 0, -1, outputs=[inline("taken")])
    ((_, trouble),) = house.write().failed
    assert trouble.errno == 21
    assert os.listdir(house.user) == ["taken"]


def open_below(folder: Path) -> int:
    """How many files and directories there this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
    return count


class Syncs:
    """What was synced and renamed, in order; the calls themselves are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, user: Path) -> None:
        self._user = user
        self.seen: list[tuple[str, str]] = []
        self.open_max = 0
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        rename = os.rename

        def renamed(part: str, base: str, **folders: int) -> None:
            self.seen.append(("rename", base))
            rename(part, base, **folders)

        monkeypatch.setattr(os, "rename", renamed)

    def _watched(self, name: str, call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            self.seen.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
            self.open_max = max(self.open_max, open_below(self._user))
            call(descriptor)

        return sync

    def of(self, call: str) -> list[str]:
        return [name for seen, name in self.seen if seen == call]


def test_files_of_many_tasks_are_synced_together_before_they_are_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = house.cluster(200, stdout=f"{house.user}/o.{PROC_MARK}", stderr=f"{house.user}/e.{PROC_MARK}")
    procs = range(200)
    for proc in procs:
        outputs = [inline(STDOUT, b"out"), inline(STDERR, b""), inline(f"f{proc}"), inline(f"z{proc}", b"")]
        house.note(number, proc, -1, outputs=outputs)
    syncs = Syncs(monkeypatch, house.user)
    assert len(house.write().done) == 200
    assert len(tree(house.user)) == 800
    assert sorted(syncs.of("fdatasync")) == sorted([*(f"o.{p}" for p in procs), *_parts(number, "f", procs)])
    assert sorted(syncs.of("rename")) == sorted([*(f"f{p}" for p in procs), *(f"z{p}" for p in procs)])
    assert set(syncs.of("fsync")) == {"user"} and len(syncs.of("fsync")) <= 400 // (OPEN_MAX - 3) + 1
    assert OPEN_MAX // 2 < syncs.open_max <= OPEN_MAX + 4
    for name in ("f0", "f199"):
        data = syncs.seen.index(("fdatasync", _parts(number, "f", [int(name[1:])])[0]))
        there = syncs.seen.index(("rename", name))
        assert data < there and ("fsync", "user") in syncs.seen[there:]
    assert not open_below(house.user)


def _parts(cluster: int, letter: str, procs: Iterable[int]) -> list[str]:
    return [f".{letter}{proc}.{cluster}.{proc}.2.part" for proc in procs]


def test_a_file_that_becomes_empty_is_synced_as_well(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (house.user / "o").write_bytes(b"of an earlier run")
    number = house.cluster(stdout=f"{house.user}/o", stderr=f"{house.user}/e")
    house.note(number, 0, -1, outputs=[inline(STDOUT, b""), inline(STDERR, b"")])
    syncs = Syncs(monkeypatch, house.user)
    house.write()
    assert tree(house.user) == {"o": b"", "e": b""}
    assert syncs.seen == [("fdatasync", "o"), ("fsync", "user")]


def test_of_two_files_with_one_destination_the_last_stays(house: House) -> None:
    number = house.cluster(remaps={"a": "x", "b": "x"})
    house.note(number, 0, -1, outputs=[inline("a", b"1"), inline("b", b"2")])
    assert not house.write().failed
    assert tree(house.user) == {"x": b"2"}


def test_a_file_that_cannot_be_synced_takes_no_name_and_is_no_trouble_of_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = house.cluster(5)
    for proc in (0, 4):
        house.note(number, proc, -1, outputs=[inline(f"f{proc}")])
    real = os.fdatasync

    def failing(descriptor: int) -> None:
        if ".f0." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    verdict = house.write()
    assert [item.proc for item in verdict.done] == [4] and [item.proc for item, _ in verdict.failed] == [0]
    assert os.listdir(house.user) == ["f4"]


def test_a_directory_that_only_takes_files_is_good_enough_for_streams(house: House) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every directory")
    (house.user / "box").mkdir(mode=0o300)
    house.note(house.cluster(stdout=f"{house.user}/box/o"), 0, -1, outputs=[inline(STDOUT)])
    assert house.write().done
