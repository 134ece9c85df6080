"""The systemd units, as systemd's own tools see them. Real starts are not possible without systemd as process 1."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pilotq import config

ROOT = Path(__file__).resolve().parents[1]
UNITS = ROOT / "systemd"
PREFIX = "/opt/pilotq"
NAMES = ["pilotq-master.service", "pilotq-foreman@.service", "pilotq-worker@.service"]

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def run(*command: str | Path) -> str:
    """Everything a command said, on both streams; it must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they would be with pilotq installed: verify looks whether the programs are there."""
    for unit in UNITS.glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PREFIX, str(ROOT)))
    return tmp_path


def test_these_are_all_the_units() -> None:
    assert sorted(NAMES) == sorted(path.name for path in UNITS.glob("*.service"))


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_verify_has_nothing_to_say(units: Path, name: str) -> None:
    assert run("systemd-analyze", "verify", "--man=no", units / name.replace("@", "@0")) == ""


@needs_systemd
def test_verify_would_see_a_mistake(units: Path) -> None:
    """It ends with 0 all the same, so only its silence counts."""
    unit = units / NAMES[0]
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    assert "WatchdogSeconds" in run("systemd-analyze", "verify", "--man=no", unit)


@needs_systemd
@pytest.mark.parametrize("name", NAMES[:2])
def test_master_and_foreman_are_shut_in(units: Path, name: str) -> None:
    report = run("systemd-analyze", "security", "--offline=true", "--no-pager", units / name)
    exposure = re.search(r"Overall exposure level .*: ([0-9.]+)", report)
    assert exposure is not None, report
    assert float(exposure[1]) <= 1.5, report


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_a_setting(name: str) -> None:
    unit = (UNITS / name).read_text()
    role = re.split("[-@.]", name)[1]
    example = (UNITS / "env" / f"{role}.env").read_text()
    variables = dict(re.findall(r"^(?:Environment=|#)((?:WQ|PILOTQ)_[A-Z_]+)=(.*)$", unit + example, re.MULTILINE))
    assert len(variables) >= 3
    settings = config.load({key: value.replace("%i", "0") for key, value in variables.items()})
    known = {variable for setting in config.TABLE for variable in (*setting.env, setting.variable)}
    assert set(variables) <= known
    assert settings.given


@pytest.mark.parametrize("name", NAMES)
def test_everything_the_units_start_is_in_the_checkout(name: str) -> None:
    paths = re.findall(rf"{PREFIX}/(\S+)", (UNITS / name).read_text())
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


@needs_systemd
def test_account_and_directories(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\n")
    run("systemd-sysusers", f"--root={tmp_path}", UNITS / "sysusers.d" / "pilotq.conf")
    assert re.search(r"^pilotq:.*:/var/lib/pilotq:", (tmp_path / "etc" / "passwd").read_text(), re.MULTILINE)
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", UNITS / "tmpfiles.d" / "pilotq.conf")
    assert (tmp_path / "etc" / "pilotq").is_dir()
