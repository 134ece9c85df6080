"""Peers and limits: installs each into an environment of its own, compiles what is in C, runs them.

A program in `peers/` that drives a peer takes `rate`, `latency` and so on with the same options as all others, and
prints one JSON object. Its environment is made once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import SkippedError, say, without_paths

PEERS = Path(__file__).resolve().parent / "peers"
#: Peers of the Python package index, by the name of their requirements and their program.
PYTHON_PEERS = ("executorlib", "ray", "dask", "parsl", "hyperqueue")
WORK_QUEUE = "workqueue"
#: For a program that is told to end before it is killed.
GRACE_S = 20
_LIBRARIES = {"workqueue": ["-lwork_queue", "-ldttools", "-lz", "-lm", "-lpthread", "-ldl"]}
_DEBIAN = ("coop-computing-tools", "coop-computing-tools-dev")


def cache_directory(chosen: str | None) -> Path:
    """Where environments and compiled programs are kept."""
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pilotq-bench"
    base.mkdir(parents=True, exist_ok=True)
    return base


def python_of(peer: str, cache: Path) -> Path:
    """The interpreter of a peer's environment, which is made when it is not there yet.

    Raises: SkippedError when it cannot be installed.
    """
    pins = PEERS / f"{peer}.txt"
    key = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = cache / f"{peer}-{key}"
    python = place / "bin/python"
    stamp = place / "complete"
    if stamp.exists():
        return python
    say(f"installing {peer} into an environment of its own")
    shutil.rmtree(place, ignore_errors=True)
    interpreter = Path(sys.executable).resolve()
    _must([interpreter, "-I", "-m", "venv", place], peer)
    pip: list[str | Path] = [
        python,
        "-I",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
    ]
    _must([*pip, "-r", pins], peer)
    stamp.touch()
    return python


def compiled(program: str, cache: Path) -> Path:
    """A program of `peers/` in C.

    Raises: SkippedError without a compiler or its libraries.
    """
    source = PEERS / f"{program}.c"
    found = cache / f"{program}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not found.exists():
        temporary = found.with_suffix(f".{os.getpid()}")
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-I/usr/include/cctools"]
        _must(["gcc", *flags, "-o", temporary, source, *_LIBRARIES.get(program, [])], program)
        temporary.replace(found)
    return found


def work_queue(cache: Path) -> Path:
    """Our program over the C library of Work Queue; its packages are installed by root on a Debian.

    Raises: SkippedError.
    """
    if not shutil.which("work_queue_worker") or not Path("/usr/include/cctools/work_queue.h").exists():
        if os.geteuid() or not shutil.which("apt-get"):
            raise SkippedError(f"the packages {' and '.join(_DEBIAN)} are not installed")
        say("installing Work Queue")
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *_DEBIAN]
        _must(command, WORK_QUEUE, environ)
    return compiled("workqueue", cache)


def _must(argv: Sequence[str | Path], name: str, environ: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=1200, check=False, env=environ)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SkippedError(f"{name} cannot be installed: {error}") from None
    if done.returncode:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:]
        raise SkippedError(f"{name} cannot be installed: {without_paths(''.join(last))}")


def version_of(peer: str, cache: Path) -> str:
    """Of a peer that is installed; "" when it is not."""
    if peer == WORK_QUEUE:
        command: list[str | Path] = ["dpkg-query", "-W", "-f", "${Version}", _DEBIAN[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    name = {"dask": "distributed"}.get(peer, peer)
    wanted = [line for line in (PEERS / f"{peer}.txt").read_text().splitlines() if line.startswith(f"{name}==")]
    return wanted[0].partition("==")[2] if wanted else ""


# ---- runs ------------------------------------------------------------------------------------------------------


def run_peer(peer: str, cache: Path, *words: Any, timeout_s: float = 3600) -> dict[str, Any]:
    """What a peer measured of itself.

    Raises: SkippedError when it cannot run here or breaks off.
    """
    if peer == WORK_QUEUE:
        python, extra = Path(sys.executable), ["--program", work_queue(cache)]
    else:
        python, extra = python_of(peer, cache), []
    argv = [python, PEERS / f"drive_{peer}.py", *words, *extra]
    # Some start their workers by name: they must find those of their environment.
    environ = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
    # Their workers are processes of their own, and import the functions they are told to call.
    environ["PYTHONPATH"] = str(PEERS)
    return run_json(argv, peer, environ=environ, timeout_s=timeout_s)


def run_limit(program: str, cache: Path, *words: Any) -> dict[str, Any]:
    """What a program in C measured.

    Raises: SkippedError.
    """
    return run_json([compiled(program, cache), *words], program)


def run_json(
    argv: Sequence[Any], name: str, *, environ: dict[str, str] | None = None, timeout_s: float = 3600
) -> dict[str, Any]:
    """Run a program in a session of its own, and give the last line it printed, which is JSON.

    Nothing of it is left afterwards.
    """
    process = subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise SkippedError(f"{name} did not end within {timeout_s:.0f} s") from None
    finally:
        _end(process)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        last = [line for line in err.splitlines() if line.strip()][-1:] or ["it said nothing"]
        raise SkippedError(f"{name} ended with {process.returncode}: {without_paths(last[0])[:300]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _end(process: subprocess.Popen[str]) -> None:
    """With all that it left in its process group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
