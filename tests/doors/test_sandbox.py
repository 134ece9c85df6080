"""One attempt's directory: what cannot lead out of it, and that nothing of it stays."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilotq.model import Description, FileRef
from pilotq.sandbox import collect, read_output, remove, removing, stage
from pilotq.sandbox.files import confined, exhaust

NOBODY = 65534


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that an account without rights can reach, which it cannot where pytest makes its own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def as_nobody(what: Callable[[], object]) -> None:
    """Do it without root's rights, where the test runs as root."""
    if os.geteuid():
        what()
        return
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            what()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def give(path: Path) -> None:
    """Make it nobody's, so that the one without rights owns it."""
    if os.geteuid() == 0:
        for directory, _, names in os.walk(path):
            os.chown(directory, NOBODY, NOBODY)
            for name in names:
                os.lchown(os.path.join(directory, name), NOBODY, NOBODY)


@pytest.mark.parametrize("name", ["a", "./a", "a//b/./c", "a b", "ä", "..a", "a\nb", "a\\b"])
def test_names_inside(name: str) -> None:
    assert not confined(name).startswith(("/", ".")) or name == "..a"


@pytest.mark.parametrize("name", ["", ".", "/", "/a", "..", "a/..", "../a", "a/../../b", "a\0b", "./.."])
def test_names_outside(name: str) -> None:
    with pytest.raises(OSError):
        confined(name)


def test_stage_does_not_leave(tmp_path: Path) -> None:
    sandbox, cache = tmp_path / "s", tmp_path / "c"
    sandbox.mkdir()
    cache.mkdir()
    (cache / "d").write_text("x")
    with pytest.raises(PermissionError):
        exhaust(stage(str(sandbox), str(cache), [FileRef("../out", "d", 1)], [], {}))
    assert not (tmp_path / "out").exists()


def test_stage_large_file_in_steps(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with open(tmp_path / "big", "wb") as file:
        file.truncate(40 << 20)
    steps = sum(1 for _ in stage(str(tmp_path / "s"), str(tmp_path), [FileRef("big", "big", 40 << 20)], [], {}))
    assert steps >= 4
    assert (tmp_path / "s" / "big").stat().st_size == 40 << 20


def test_collect_bounds_the_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotq.sandbox.files.OUTPUT_FILES_MAX", 5)
    for n in range(9):
        (tmp_path / str(n)).touch()
    found = exhaust(collect(str(tmp_path), Description(["x"], outputs=None), {}, wanted=True))
    assert len(found.outputs) == 5
    assert "pack them" in found.problem


def test_read_output_of_what_became_a_link(tmp_path: Path) -> None:
    sandbox = tmp_path / "s"
    sandbox.mkdir()
    (tmp_path / "secret").write_text("s")
    (sandbox / "out").symlink_to("../secret")
    (sandbox / "dir").symlink_to("..")
    (sandbox / "loop").symlink_to("loop")
    os.mkfifo(sandbox / "fifo")
    for name in ("out", "dir/secret", "loop", "fifo", "."):
        with pytest.raises(OSError):
            read_output(str(sandbox), name, 0, 10)


# ---- gone


def test_remove_strange_names(tmp_path: Path) -> None:
    top = tmp_path / "s"
    strange = [b"new\nline", b" ", b"-rf", b"\xff\xfe", b"*", b"\x7fpilotq.1.1"]
    for name in strange:
        os.makedirs(os.fsencode(top) + b"/" + name + b"/" + name)
        Path(os.fsdecode(os.fsencode(top) + b"/" + name + b"/f\n")).touch()
    os.mkfifo(top / "fifo")
    remove(str(top))
    assert not top.exists()


def test_remove_follows_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "s"
    (top / "d").mkdir(parents=True)
    (top / "link").symlink_to(kept)
    (top / "d" / "link").symlink_to("../../kept")
    remove(str(top))
    assert not top.exists()
    assert (kept / "file").exists()
    (tmp_path / "alias").symlink_to(kept)
    remove(str(tmp_path / "alias"))
    assert not (tmp_path / "alias").is_symlink()
    assert (kept / "file").exists()


def test_remove_without_rights(open_path: Path) -> None:
    """Modes of an owner who is not root: nothing may be read, entered or written."""
    top = open_path / "s"
    for mode in (0o000, 0o100, 0o200, 0o400, 0o500, 0o600):
        (top / f"{mode:o}" / "sub" / "sub").mkdir(parents=True)
        (top / f"{mode:o}" / "sub" / "f").touch()
        (top / f"{mode:o}" / "f").touch(0)
    give(top)
    for mode in (0o000, 0o100, 0o200, 0o400, 0o500, 0o600):
        (top / f"{mode:o}" / "sub").chmod(mode)
        (top / f"{mode:o}").chmod(mode)
    top.chmod(0)
    as_nobody(lambda: remove(str(top)))
    assert not top.exists()


def test_remove_deep(tmp_path: Path) -> None:
    """Deeper than any path may be long, or files may be open."""
    top = tmp_path / "s"
    top.mkdir()
    code = "import os, sys\nos.chdir(sys.argv[1])\n"
    code += "for n in range(3000):\n os.mkdir('deeper'); os.chdir('deeper')\nopen('f', 'w')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(top)], check=True)
    remove(str(top))
    assert not top.exists()


def test_remove_wide_in_steps(tmp_path: Path) -> None:
    top = tmp_path / "s"
    for d in range(3):
        (top / str(d)).mkdir(parents=True)
        for n in range(1000):
            (top / str(d) / str(n)).touch()
    assert sum(1 for _ in removing(str(top))) >= 3
    assert not top.exists()


def test_remove_twice(tmp_path: Path) -> None:
    remove(str(tmp_path / "never"))


def test_remove_says_what_it_could_not(open_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make a file of somebody else's")
    top = open_path / "s"
    (top / "theirs").mkdir(parents=True)
    (top / "theirs" / "f").touch()
    (top / "own").touch()
    give(top)
    os.chown(top / "theirs", 0, 0)
    with pytest.raises(AssertionError):
        as_nobody(lambda: remove(str(top)))
    assert not (top / "own").exists()
    assert stat.S_ISREG((top / "theirs" / "f").stat().st_mode)
