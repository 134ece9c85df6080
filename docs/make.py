#!/usr/bin/env python3
"""Writes the parts of the manual that are made from the code: settings, states of a task, roles.

Run it after a change to `pilotq.config.TABLE`, `pilotq.model.TRANSITIONS` or `pilotq.access`; tests/test_house.py says
when.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from pilotq import access, config, units  # noqa: E402
from pilotq.model import CONDOR_STATUS, ENDED, TRANSITIONS, State  # noqa: E402

BEGIN = "<!-- made by docs/make.py: {} -->"
END = "<!-- end -->"

SETTINGS = """\
# Settings

*Made by `docs/make.py` from the table in `pilotq/config.py`; change that one.*

Every setting has one name. `master.port` is

- `port` under `[master]` in `pilotq.toml`, which lies in `PILOTQ_HOME`,
- the variable `PILOTQ_MASTER_PORT`,
- `--set master.port=9094` on the command line of a role.

Later wins: default, `pilotq.toml`, the `WQ_*` variable of alien-workqueue, the `PILOTQ_*` variable, `--set`.
`pilotq config` shows the values in force. A name that does not exist is an error, never ignored.

Numbers are 0 or more. Durations are seconds, or like `1h 5m` or `HH:MM:SS`. Sizes are bytes, or like `2.5G` (powers of
1024). Truth values are `1`, `yes`, `true` or `on`, and `0`, `no`, `false` or `off`. Lists have commas.

The `~` of the default of `home` is the directory of the account (passwd), whatever `HOME` says, so that all commands
find one pool. Every other `~`, as that of `worker.workdir`, is `$HOME`.
"""


def settings() -> str:
    """The page docs/settings.md."""
    parts = [SETTINGS]
    for section in ("", *config.SECTIONS):
        rows = [setting for setting in config.TABLE if _section(setting) == section]
        parts += ["", f"## {section or 'The instance'}", "", "| setting | default | variables | meaning |"]
        parts += ["|---|---|---|---|", *map(_row, rows)]
    return "\n".join(parts) + "\n"


def _section(setting: config.Setting) -> str:
    return setting.name.partition(".")[0] if "." in setting.name else ""


def _row(setting: config.Setting) -> str:
    variables = " ".join(f"`{name}`" for name in (*setting.env, setting.variable))
    return f"| `{setting.name}` | {_default(setting)} | {variables} | {setting.help} |"


def _default(setting: config.Setting) -> str:
    value = setting.default
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    if isinstance(value, bool):
        return f"{int(value)}"
    if setting.unit == "s" and isinstance(value, float):
        return f"{value:g} s" + (f" ({units.format_duration(value)})" if value >= 60 else "")
    return f"`{value}`" if isinstance(value, str) and value else str(value)


def states() -> str:
    """The diagram of the states of a task, with Condor's code of each."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> idle"]
    lines += [f"    {_name(state)} : {_name(state).replace('_', ' ')} ({CONDOR_STATUS[state]})" for state in State]
    for state in State:
        lines += [f"    {_name(state)} --> {_name(after)}" for after in sorted(TRANSITIONS[state])]
    lines += [f"    {_name(state)} --> [*]" for state in sorted(ENDED)]
    return "\n".join([*lines, "```"])


def _name(state: State) -> str:
    return state.name.lower()


def roles() -> str:
    """The tables of roles: messages on a link, requests at the socket."""
    links = {kind.__name__: allowed for kind, allowed in access.MESSAGES.items()}
    return "\n\n".join([_roles("message up a link", links), _roles("request at the socket", access.REQUESTS)])


def _roles(title: str, table: Mapping[str, Set[str]]) -> str:
    columns = [role for role in access.Role if any(role in allowed for allowed in table.values())]
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, allowed in table.items():
        cells = " | ".join("yes" if role in allowed else "-" for role in columns)
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines)


def with_part(page: str, name: str, text: str) -> str:
    """The page with the text of one marked part replaced."""
    before, begin, rest = page.partition(BEGIN.format(name))
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"docs/make.py: the page has no part {name!r} between its marks")
    return f"{before}{begin}\n{text}\n{end}{after}"


def pages() -> dict[Path, str]:
    """Every page that has made parts, as it should be."""
    how, security = DOCS / "how-it-works.md", DOCS / "security.md"
    return {
        DOCS / "settings.md": settings(),
        how: with_part(how.read_text("utf-8"), "states", states()),
        security: with_part(security.read_text("utf-8"), "roles", roles()),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")
