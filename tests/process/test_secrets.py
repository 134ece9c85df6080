"""Keys are in their files and nowhere else; what a user sets reaches his task and nobody before it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, marked, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


def secrets_of(home: Path) -> set[bytes]:
    """Every secret that any file of keys holds."""
    found: set[bytes] = set()

    def look(value: object) -> None:
        if isinstance(value, dict):
            found.update(str(text).encode() for name, text in value.items() if name == "secret")
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    for path in [*home.glob("*.token"), *home.glob("keys/**/*")]:
        if path.is_file() and path.suffix in (".json", ".token"):
            assert path.stat().st_mode & 0o077 == 0, path
            look(json.loads(path.read_text()))
    return found


def test_no_secret_is_anywhere_but_in_its_file(parts: Parts) -> None:
    parts.start_all(slots=1, foremen=1)
    said = [parts.pilotq("token", "new", "--site", "cern", "--expires", "1h")]
    said += [parts.pilotq("token", "rotate-server")]
    cluster = parts.submit(
        "executable = /bin/sh\ntransfer_executable = false\noutput = out\ngetenv = true\n"
        "arguments = \"-c 'env; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; cat *; ulimit -c; sleep 5'\"\nqueue\n"
    )
    wait_for("it to run", lambda: parts.counts(cluster)["running"] == 1)
    keys = secrets_of(parts.path)
    assert len(keys) >= 6
    places: dict[str, bytes] = {}
    for pid in marked(parts.path):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                places[f"{pid} {name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    assert len(places) >= 10, "master, query, scribe, foreman, worker, keeper"
    said += [
        parts.pilotq(*words) for words in (("status", "--json"), ("token", "list", "--json"), ("config", "--json"))
    ]
    said += [parts.pilotq(*words) for words in (("token", "show", "cern"), ("doctor",), ("token",))]
    for done in said:
        places[" ".join(done.args)] = (done.stdout + done.stderr).encode()
    parts.wait_done(cluster)
    assert (parts.cwd / "out").read_bytes().endswith(b"0\n"), "tasks leave no core files either, unless they ask"
    for path in [*parts.path.rglob("*"), *parts.path.parent.glob("*.log"), *parts.cwd.rglob("*")]:
        is_key = path.suffix == ".token" or (path.parent.name == "keys" and path.suffix == ".json")
        if path.is_file() and not is_key:
            places[str(path)] = path.read_bytes()
    assert any(name.endswith("queue.db") for name in places)
    leaks = {name for name, data in places.items() for key in keys if key in data}
    assert not leaks


def test_who_holds_keys_leaves_no_core_and_shows_nobody_its_memory(parts: Parts) -> None:
    parts.start_all(slots=1, foremen=1)
    for name in ("master", "foreman0", "worker0"):
        pid = parts.processes[name].pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4] == "0"
    code = "import ctypes; from pilotq.proc import hide_memory; l = ctypes.CDLL(None); a = l.prctl(3, 0, 0, 0, 0); "
    code += "hide_memory(); print(a, l.prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=parts.environ)
    assert done.stdout == "1 0\n"
    assert "hide_memory()" in (Path(__file__).resolve().parents[2] / "pilotq" / "daemon.py").read_text()


#: Variables that would make a program do something before its own first line.
HOOKS = {
    "BASH_ENV": "{folder}/hook",
    "ENV": "{folder}/hook",
    "LD_PRELOAD": "{folder}/none.so",
    "BASH_FUNC_echo%%": "() {{ touch {folder}/hooked; }}",
    "PS4": "`touch {folder}/hooked`",
    "SHELLOPTS": "xtrace",
    "PYTHONSTARTUP": "{folder}/hook",
}


def submit_env(parts: Parts, values: dict[str, str]) -> None:
    """A task that shows its environment."""
    listed = " ".join(f"'{name}={value}'" for name, value in values.items())
    parts.submit(
        f'executable = /usr/bin/env\ntransfer_executable = false\noutput = out\nenvironment = "{listed}"\nqueue\n'
    )


def test_what_a_user_sets_reaches_his_task_and_nobody_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir()
    (folder / "hook").write_text(f"touch {folder}/hooked\n")
    wrapper = folder / "wrapper"
    wrapper.write_text('#!/bin/bash\necho wrapped\nexec "$@"\n')
    wrapper.chmod(0o755)
    parts = Parts(tmp_path, foremen=1, settings=[f"master.job_wrapper={wrapper}"])
    try:
        parts.start_all(slots=1, foremen=1)
        values = {name: value.format(folder=folder) for name, value in HOOKS.items()}
        values |= {"LD_LIBRARY_PATH": "/own/lib", "PYTHONPATH": "/own/python", "MINE": "yes"}
        submit_env(parts, values)
        parts.wait_done(1)
        lines = (parts.cwd / "out").read_text().splitlines()
        assert lines[0] == "wrapped" and not (folder / "hooked").exists()
        seen = dict(line.partition("=")[::2] for line in lines if "=" in line)
        assert {"LD_LIBRARY_PATH": "/own/lib", "PYTHONPATH": "/own/python", "MINE": "yes"}.items() <= seen.items()
        assert not set(HOOKS) & set(seen)
        for pid in marked(parts.path):
            with contextlib.suppress(OSError):
                assert b"/own/lib" not in Path(f"/proc/{pid}/environ").read_bytes()
    finally:
        parts.close()


def test_without_a_wrapper_a_task_gets_all_it_asked_for(parts: Parts) -> None:
    parts.start_all(slots=1, foremen=1)
    values = {name: value.format(folder=parts.cwd) for name, value in HOOKS.items()}
    submit_env(parts, {**values, "LD_LIBRARY_PATH": "/own/lib"})
    parts.wait_done(1)
    text = (parts.cwd / "out").read_text()
    assert "LD_LIBRARY_PATH=/own/lib\n" in text and all(f"{name}={value}" in text for name, value in values.items())
