"""The rules of the house: sizes, purity, names, what may not be in the repository, pages that are current."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pilotq import config
from pilotq.cli.info import to_toml

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
#: What decides: facts, files and time come in as arguments.
PURE = ["core", "condor", "dag", "model.py", "wire.py", "access.py", "config.py", "units.py", "errors.py"]
#: Of the standard library, what pure code may use. Shorter than a list of all it may not.
PURE_MODULES = {
    "__future__", "array", "ast", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "difflib",
    "enum", "fnmatch", "functools", "hashlib", "heapq", "html", "itertools", "json", "math", "operator", "posixpath",
    "re", "shlex", "string", "struct", "textwrap", "tomllib", "types", "typing", "zlib", "xml.sax.saxutils",
    "msgspec", "classad2", "pilotq",
}  # fmt: skip
#: Names that other systems use for what DESIGN calls master, worker, attempt, drone ...; or that say nothing.
STRANGE = {
    "agent", "broker", "dispatcher", "executor", "glidein", "helper", "helpers", "manager", "managers", "mgr", "minion",
    "misc", "pilot", "pilots", "scheduler", "slave", "supervisor", "util", "utils",
}  # fmt: skip


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the repository, with those that will be: everything git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in sorted(filter(None, done.stdout.split("\0"))))
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def sources(*folders: str) -> list[Path]:
    """Python files, of these top folders only when some are named."""
    found = [path for path in tracked() if path.suffix == ".py" or path == ROOT / "fakecondor" / "condor"]
    return [path for path in found if not folders or path.relative_to(ROOT).parts[0] in folders]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


# ---- sizes -------------------------------------------------------------------------------------------------------


def test_no_file_is_too_long() -> None:
    long = {name(path): len(path.read_text("utf-8").splitlines()) for path in sources()}
    assert not {path: lines for path, lines in long.items() if lines > FILE_LINES_MAX}


def test_no_function_is_too_long() -> None:
    long = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long


# ---- rooms -------------------------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def pure_sources() -> list[Path]:
    rooms = [ROOT / "pilotq" / room for room in PURE]
    return [path for path in sources("pilotq") if any(path == room or room in path.parents for room in rooms)]


def test_pure_code_imports_nothing_that_touches_the_world() -> None:
    strangers = [
        f"{name(path)}:{line} {module}"
        for path in pure_sources()
        for line, module in imports(path)
        if module not in PURE_MODULES and module.partition(".")[0] not in PURE_MODULES
    ]
    assert not strangers


def test_pure_code_opens_no_file_prints_nothing_and_asks_no_clock() -> None:
    calls = [
        f"{name(path)}:{node.lineno}"
        for path in pure_sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (
            (
                isinstance(node.func, ast.Name)
                and node.func.id in {"open", "print", "input", "eval", "exec", "__import__"}
            )
            or (isinstance(node.func, ast.Attribute) and node.func.attr in {"now", "utcnow", "today"})
        )
    ]
    assert not calls


def test_every_module_has_its_place_among_the_layers() -> None:
    """import-linter says nothing about a module that no layer names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = " ".join(project["tool"]["importlinter"]["contracts"][0]["layers"])
    named = set(re.findall(r"pilotq\.(\w+)", layers))
    there = {path.relative_to(ROOT / "pilotq").parts[0].removesuffix(".py") for path in sources("pilotq")}
    assert there - named - {"__init__", "__main__"} == set()


# ---- names -------------------------------------------------------------------------------------------------------


def defined_names(path: Path) -> Iterator[tuple[int, str]]:
    yield 0, path.stem
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words(identifier: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().split("_"))


def test_names_are_those_of_the_vocabulary() -> None:
    """Except in `condor`, which speaks Condor's language."""
    strange = [
        f"{name(path)}:{line} {found}"
        for path in sources("pilotq")
        if "condor" not in path.parts
        for line, found in defined_names(path)
        if words(found) & STRANGE
    ]
    assert not strange


def test_every_module_says_what_it_is_for() -> None:
    silent = [name(path) for path in sources("pilotq") if tree(path).body and not ast.get_docstring(tree(path))]
    assert not silent


# ---- what may not be in here -------------------------------------------------------------------------------------


def test_no_registry_and_no_path_of_a_machine() -> None:
    hosts = ["pypi" + ".org", "python" + "hosted.org", "deb.debian" + ".org", "registry.npmjs" + ".org"]
    hosts += ["github" + "usercontent.com", "download.py" + "torch.org"]
    machine = r"(?:^|[^A-Za-z0-9_./-])/(?:" + "|".join(["wo" + "rk", "fa" + "rm"]) + r")/[a-z.]"
    forbidden = re.compile("|".join([*map(re.escape, hosts), machine]), re.MULTILINE)
    found = [
        f"{name(path)}: {match[0]!r}"
        for path in tracked()
        if b"\0" not in (data := path.read_bytes())
        for match in forbidden.finditer(data.decode("utf-8", "replace"))
    ]
    assert not found


def test_nothing_is_left_to_do_in_the_code() -> None:
    marks = re.compile("|".join(["NotImplemented" + "Error", r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bX" + r"XX\b"]))
    left = [name(path) for path in sources() if marks.search(path.read_text("utf-8"))]
    assert not left


# ---- shims and programs ------------------------------------------------------------------------------------------


def test_every_condor_command_is_a_link_to_the_one_shim() -> None:
    shims = sorted((ROOT / "fakecondor").iterdir())
    assert {"condor_submit", "condor_q", "condor_rm", "condor_hold", "condor_release"} <= {shim.name for shim in shims}
    assert {"condor_history", "condor_status", "condor_version"} <= {shim.name for shim in shims}
    for shim in shims:
        if shim.name in ("condor", "condor_wait", "condor_submit_dag"):
            assert not shim.is_symlink() and os.access(shim, os.X_OK)
        elif shim.name.startswith("condor_"):
            assert os.readlink(shim) == "condor"


@pytest.mark.parametrize("name", ["condor", "condor_wait"])
def test_the_shim_runs_on_old_pythons(name: str) -> None:
    shim = ROOT / "fakecondor" / name
    ast.parse(shim.read_text("utf-8"), feature_version=(3, 6))
    vermin = Path(sys.executable).with_name("vermin")
    if not vermin.exists():
        pytest.skip("vermin is not installed")
    command = [vermin, "--no-tips", "--target=3.6-", "--violations", shim]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["condor", "condor_wait"])
def test_the_shim_needs_the_standard_library_only(name: str) -> None:
    strangers = {module for _, module in imports(ROOT / "fakecondor" / name)} - sys.stdlib_module_names
    assert not strangers


def test_bin_has_nothing_else() -> None:
    """It comes first on users' PATH."""
    assert {path.name for path in (ROOT / "bin").iterdir()} == {"pilotq", "alien_work_queue", "alien_wq_worker.sh"}


@pytest.mark.parametrize("path", ["bin/pilotq", "tests/run", "tests/check", ".ci/run", "fakecondor/condor"])
def test_programs_can_be_started(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    assert (ROOT / path).read_bytes().startswith(b"#!/")


# ---- pages -------------------------------------------------------------------------------------------------------


def test_made_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    old = [name(path) for path, text in make.pages().items() if path.read_text("utf-8") != text]
    assert not old, "run docs/make.py"


def test_every_setting_is_on_its_page() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    missing = [setting.name for setting in config.TABLE if f"| `{setting.name}` |" not in page or not setting.help]
    assert not missing


def test_the_example_settings_are_current() -> None:
    text = (ROOT / "etc" / "pilotq.toml").read_text("utf-8")
    assert text == to_toml(), "bin/pilotq config --defaults > etc/pilotq.toml"
    in_force = config.load({}, re.sub(r"(?m)^#(?=\w+ = )", "", text))
    assert in_force.given == set(config.BY_NAME) - {"home"}
    assert dataclasses.replace(in_force, given=frozenset()) == config.load({})


def anchors(page: Path) -> set[str]:
    """What a link may point to, as the usual renderers name headings."""
    headings = re.findall(r"^#+ +(.+?) *$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            if not other.exists() or (anchor and anchor not in anchors(other)):
                broken.append(f"{name(page)}: {target}")
    assert not broken


def test_the_readme_fits_on_a_screen_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 60
    first = "\n".join(text.splitlines()[:30])
    for command in ("bin/pilotq run etc/examples/pilots.sub", "tests/run"):
        assert command in first
        for path in (word for word in command.split() if "/" in word):
            assert (ROOT / path).exists(), path
