"""No name leads out: 200 tricks in every direction files travel, as root and without rights, and with links that move.

The names are in traversal.jsonl, one JSON string a line. Outside lies a secret that must not be read, and nothing there
may change.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pilotq import beneath
from pilotq.core.records import Note
from pilotq.model import Description, FileRef, OutputFile
from pilotq.sandbox import collect, read_output, stage
from pilotq.sandbox.files import exhaust, put
from pilotq.sandbox.spares import Filling, Spares, whole
from pilotq.scribe.lanes import Item
from pilotq.scribe.outputs import Deliveries
from pilotq.scribe.reading import Places

NAMES: list[str] = [json.loads(line) for line in Path(__file__).with_name("traversal.jsonl").read_text().splitlines()]
SECRET = b"the secret of somebody else"
EVIL = b"written where it must not be"
NOBODY = 65534
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class Ground:
    """A directory `home` with every kind of trap in it, and `outside` beside it."""

    def __init__(self, base: Path) -> None:
        self.home, self.outside = base / "home", base / "outside"
        for folder in (self.home / "inner", self.outside / "sub"):
            folder.mkdir(parents=True)
        for name in ("secret", "sub/x", "x"):
            (self.outside / name).write_bytes(SECRET)
        (base / "secret").write_bytes(SECRET)
        for folder, up in ((self.home, ".."), (self.home / "inner", "../..")):
            (folder / "link").symlink_to(f"{up}/outside/secret")
            (folder / "dir").symlink_to(f"{up}/outside")
            (folder / "up").symlink_to(up)
        links = {"abs": self.outside, "loop": "loop", "chain": "dir", "proc": "/proc/self", "fd": "/proc/self/fd"}
        links |= {"dangling": "../outside/new", "made": "../outside/newdir", "self": ".", "device": "/dev/zero"}
        for name, target in links.items():
            (self.home / name).symlink_to(target)
        os.mkfifo(self.home / "fifo")
        listener = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(self.home)
        listener.bind("socket")
        os.chdir(here)
        listener.close()
        self.before = self.seen()

    def seen(self) -> dict[str, tuple[int, bytes]]:
        """Everything outside."""
        return {
            str(path.relative_to(self.home.parent)): (
                path.lstat().st_mode,
                path.read_bytes() if path.is_file() else b"",
            )
            for path in self.home.parent.rglob("*")
            if self.home not in (path, *path.parents)
        }


@pytest.fixture
def base() -> Iterator[Path]:
    """Where an account without rights can go; pytest's own directories are closed to it."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def as_root(what: Callable[[], None]) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    what()


def as_nobody(what: Callable[[], None]) -> None:
    """In a process of its own without root's rights, where the test has them."""
    if os.geteuid():
        what()
        return
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            what()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


both = pytest.mark.parametrize("account", [as_root, as_nobody])


def test_there_are_enough_tricks() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 200


@both
def test_inputs(base: Path, account: Callable[[Callable[[], None]], None]) -> None:
    """Staging into a sandbox, by copy and from memory."""

    def attack() -> None:
        ground = Ground(base)
        cache = base / "home" / "cache"
        cache.mkdir()
        digest = hashlib.sha256(EVIL).hexdigest()
        (cache / digest).write_bytes(EVIL)
        staged = 0
        for name in NAMES:
            for inline in ({}, {digest: EVIL}):
                with suppress(OSError, ValueError):
                    exhaust(stage(str(ground.home), str(cache), [FileRef(name, digest, len(EVIL), 0o644)], [], inline))
                    staged += 1
        assert ground.seen() == ground.before
        assert staged > 50, "names that are only odd are names"

    account(attack)


@both
def test_outputs_that_are_asked_for(base: Path, account: Callable[[Callable[[], None]], None]) -> None:
    """What a description wants from the sandbox, and what the master pulls from it."""

    def attack() -> None:
        ground = Ground(base)
        (ground.home / "good").write_bytes(b"good")
        for name in [*NAMES, "good", "self/good"]:
            found = exhaust(collect(str(ground.home), Description(["x"], outputs=[name]), {}, True))
            for output in found.outputs:
                assert SECRET not in (output.data or b""), name
                assert output.data is not None or "secret" not in output.name
            with suppress(OSError, ValueError):
                assert SECRET not in read_output(str(ground.home), name, 0, 100), name
        assert read_output(str(ground.home), "self/good", 0, 100) == b"good", "a link that stays inside may be followed"
        assert ground.seen() == ground.before

    account(attack)


TRAPS = [
    "ln -s ../outside/secret input",
    "mkfifo input",
    "mkdir input",
    "ln -s ../outside/secret .job.ad",
    "mkfifo .job.ad",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("trap", TRAPS)
@both
def test_a_spare_in_which_another_task_set_a_trap(
    base: Path, trap: str, account: Callable[[Callable[[], None]], None]
) -> None:
    """It is written over by name: what is there may be another thing than it was when the spare was kept."""

    def attack() -> None:
        ground = Ground(base)
        before, after = b"the file of the task before", b"shorter"
        refs = [FileRef("input", hashlib.sha256(data).hexdigest(), len(data), 0o644) for data in (before, after)]
        sandbox, following = ground.home / "1.0.1", str(ground.home / "1.1.1")
        sandbox.mkdir()
        prints = exhaust(stage(str(sandbox), "", [refs[0]], [], {refs[0].digest: before}))
        prints[".job.ad"] = put(f"{sandbox}/.job.ad", b"before")
        spares, fillings = Spares(), [Filling([ref], [], "", []) for ref in refs]
        assert spares.give(str(sandbox), fillings[0], whole(str(sandbox), prints), {
            entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(sandbox)
        })  # fmt: skip
        ground.outside.joinpath("input").write_bytes(SECRET)
        ground.outside.joinpath(".job.ad").write_bytes(SECRET)
        ground.before = ground.seen()
        (sandbox / trap.rpartition(" ")[2]).unlink()
        subprocess.run(trap.replace("../outside", "../../outside"), shell=True, cwd=sandbox, check=True)
        with pytest.raises(OSError, match="Errno"):
            spares.take(fillings[1], following, b"after", {refs[1].digest: after})
        assert ground.seen() == ground.before

    account(attack)


def deliver(ground: Ground, name: str, remaps: dict[str, str], n: int = 1) -> None:
    """As the scribe does with what a worker said."""
    deliveries = Deliveries(str(ground.home / "spool"))
    note = Note(n, -1, 1, n, 1, 0.0, outputs=[OutputFile(name, len(EVIL), 0o6777, EVIL)], attempt=1)
    deliveries.add(Item(n, 1, n, 1, n), note, Places(str(ground.home), "", "", False, "", "", remaps))
    deliveries.settle()


@both
def test_what_a_worker_says_is_an_output(base: Path, account: Callable[[Callable[[], None]], None]) -> None:
    def attack() -> None:
        ground = Ground(base)
        inside = ground.home / "elsewhere"
        inside.mkdir()
        (inside / "dir").symlink_to(ground.outside)
        (inside / "link").symlink_to(ground.outside / "secret")
        for n, name in enumerate(NAMES):
            deliver(ground, name, {}, n)
            deliver(ground, f"mapped/{name}", {"mapped": "elsewhere"}, n)
        assert ground.seen() == ground.before
        assert (ground.home / "a..b").read_bytes() == EVIL == (inside / "a..b").read_bytes()
        modes = [path.lstat().st_mode for path in ground.home.rglob("*") if path.is_file() and not path.is_symlink()]
        assert not any(mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX) for mode in modes)

    account(attack)


class Swapper:
    """A directory that is a link to the outside every other moment; another process sees to that."""

    def __init__(self, ground: Ground, name: str) -> None:
        self.path, self.link = ground.home / name, ground.home / ".link"
        self.path.mkdir()
        (self.path / "x").write_bytes(b"inside")
        self.link.symlink_to(ground.outside)
        self.swaps = mmap.mmap(-1, 8)

    def __enter__(self) -> Swapper:
        parent = os.getpid()
        self.child = os.fork()
        if not self.child:
            path, link, libc = os.fsencode(self.path), os.fsencode(self.link), ctypes.CDLL(None)
            swaps = 0
            while os.getppid() == parent:
                swaps += libc.renameat2(AT_FDCWD, path, AT_FDCWD, link, RENAME_EXCHANGE) == 0
                self.swaps[:] = swaps.to_bytes(8, "big")
            os._exit(0)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)

    @property
    def count(self) -> int:
        return int.from_bytes(self.swaps[:], "big")


@both
def test_a_directory_that_becomes_a_link_at_any_moment(
    base: Path, account: Callable[[Callable[[], None]], None]
) -> None:
    def attack() -> None:
        ground = Ground(base)
        (ground.home / "empty").mkdir()
        digest = hashlib.sha256(EVIL).hexdigest()
        refused = read = 0
        with Swapper(ground, "moving") as swapper:
            n = 0
            while n < 2000 or not (refused and read and swapper.count > 1000):
                n += 1
                reference = FileRef(f"moving/in{n}", digest, len(EVIL), 0o644)
                try:
                    exhaust(stage(str(ground.home), str(ground.home), [reference], [], {digest: EVIL}))
                except OSError:
                    refused += 1
                with suppress(OSError):
                    data = read_output(str(ground.home), "moving/x", 0, 100)
                    assert data == b"inside"
                    read += 1
                if n % 10 == 0:
                    deliver(ground, f"moving/out{n}", {}, n)
                    deliver(ground, f"mapped/moving/out{n}", {"mapped": "."}, n)
        assert ground.seen() == ground.before

    account(attack)


def test_a_folder_is_made_once_and_never_through_a_link(tmp_path: Path) -> None:
    for _ in range(2):
        os.close(beneath.open_folder(str(tmp_path), "a/b/c", 0o755))
    assert (tmp_path / "a/b/c").is_dir()
    (tmp_path / "l").symlink_to("a")
    before = len(os.listdir("/proc/self/fd"))
    for below in ("l", "l/b", "none/x"):
        with pytest.raises(OSError, match=r"link or no directory|No such file"):
            beneath.open_folder(str(tmp_path), below)
    assert len(os.listdir("/proc/self/fd")) == before
