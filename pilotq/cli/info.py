"""`env`, `config`: what somebody needs to know to use or extend a pool."""

from __future__ import annotations

import argparse
import json
import os
import shlex

from pilotq.cli.context import ROOT, SHIMS, read_settings
from pilotq.config import SECTIONS, TABLE, Setting, Value


def env(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    ours = [SHIMS, f"{ROOT}/bin"]
    others = [entry for entry in os.environ.get("PATH", os.defpath).split(":") if entry not in ours]
    print(f"export PILOTQ_HOME={shlex.quote(settings.home)}")
    print(f"export PATH={shlex.quote(':'.join(ours + others))}")
    return 0


def config(options: argparse.Namespace) -> int:
    if options.defaults:
        print(to_toml(), end="")
        return 0
    settings = read_settings(options.overrides)
    if options.json:
        print(json.dumps({setting.name: getattr(settings, setting.attribute) for setting in TABLE}, indent=1))
        return 0
    for setting in TABLE:
        mark = "" if setting.name in settings.given else "   # default"
        print(f"{setting.name} = {_literal(getattr(settings, setting.attribute))}{mark}")
    return 0


def to_toml() -> str:
    """A pilotq.toml with every setting at its default, commented out.

    `home` is missing: the file lies in it.
    """
    lines = [
        "# Settings of a pilotq pool. Copy this to PILOTQ_HOME/pilotq.toml and take the # away where you change one.",
        "# Every setting can also be given as PILOTQ_<SECTION>_<NAME> or as --set section.name=value; both win over",
        '# this file, and so do the WQ_* variables. Times are seconds or like "1h 5m"; sizes are bytes or like "2.5G".',
    ]
    for section in ("", *SECTIONS):
        lines += ["", f"[{section}]"] if section else []
        for setting in TABLE:
            own, _, name = setting.name.rpartition(".")
            if own == section and setting.name != "home":
                lines += ["", *_entry(setting, name)]
    return "\n".join(lines) + "\n"


def _entry(setting: Setting, name: str) -> list[str]:
    also = f" Also {' and '.join(setting.env)}." if setting.env else ""
    return [f"# {setting.help}{also}", f"#{name} = {_literal(setting.default)}"]


def _literal(value: Value) -> str:
    """A value as TOML writes it; JSON is the same for these types."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
