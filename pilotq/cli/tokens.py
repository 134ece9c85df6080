"""`token`: keys for other hosts, made, listed, revoked and replaced in the home of the master."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilotq.access import FIRST, Role
from pilotq.cli.context import make_directories, read_settings
from pilotq.config import Settings
from pilotq.errors import UserError

if TYPE_CHECKING:
    from pilotq import keys

_NOT_FOUND = 3
#: A running master looks this often.
_LOOKS_S = 5


def main(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    verb = options.verb
    if verb in (None, Role.WORKER, Role.FOREMAN):
        return _first(settings, options)
    if options.role not in (None, *Role):
        raise UserError(f"{options.role} is no role", "one of " + ", ".join(Role))
    home = Path(settings.home)
    if verb == "new":
        from pilotq import keys

        make_directories(settings)
        keys.make_keys(home)
    elif not (home / "keys").is_dir():
        hint = "run this on the head, with the master's PILOTQ_HOME"
        raise UserError(f"there are no keys in {home}", hint, exit_code=_NOT_FOUND)
    todo = {"new": _new, "list": _list, "show": _show, "revoke": _revoke, "rotate-server": _rotate}[verb]
    return todo(home, options)


def _first(settings: Settings, options: argparse.Namespace) -> int:
    """The tokens that the master made at its first start."""
    paths = {"worker": settings.worker_token, "foreman": settings.foreman_token}
    for role, path in paths.items():
        if options.verb in (None, role) and not os.path.isfile(path):
            raise UserError(
                f"there is no {role} token at {path}", "the master makes it at its first start", exit_code=_NOT_FOUND
            )
    if options.out:
        if options.verb is None:
            raise UserError("which token is to be copied?", "pilotq token worker --out FILE")
        _copy(paths[options.verb], options.out)
    elif options.verb:
        print(paths[options.verb])
    else:
        for role, path in paths.items():
            print(f"{role}\t{path}")
    return 0


def _new(home: Path, options: argparse.Namespace) -> int:
    from pilotq import keys

    name = options.site or options.name
    if not name:
        raise UserError("a new token needs a name", "pilotq token new --role worker --site NAME --expires 30d")
    role = options.role or Role.WORKER.value
    path = keys.new_token(home, role, name, time.time() + options.expires if options.expires else 0.0)
    if options.out:
        _copy(str(path), options.out)
    print(path)
    return 0


def _list(home: Path, options: argparse.Namespace) -> int:
    from pilotq import keys

    found = [_facts(home, public, key) for public, key in keys.every_key(home)]
    is_rotating = keys.next_pair(home, "master") is not None
    if options.json:
        print(json.dumps({"tokens": found, "server_keys": "rotating" if is_rotating else "in force"}))
        return 0
    rows = [("name", "role", "good until", "state", "file")]
    rows += [(one["name"], one["role"], one["expires"] or "-", one["state"], one["file"] or "-") for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
    if is_rotating:
        _say("the servers get new keys: copy the tokens again, then `pilotq token rotate-server --finish`")
    return 0


def _show(home: Path, options: argparse.Namespace) -> int:
    facts = _facts(home, *_find(home, options))
    if options.out:
        if not facts["file"]:
            raise UserError(f"the token {facts['name']} is not kept here", "make a new one")
        _copy(facts["file"], options.out)
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:8}{value}")
    return 0


def _revoke(home: Path, options: argparse.Namespace) -> int:
    from pilotq import keys

    _, key = _find(home, options)
    keys.revoke(home, key.role, key.name)
    _say(f"revoked the {key.role} token {key.name}; a running master knows it within {_LOOKS_S} s")
    if key.role == Role.FOREMAN:
        _say("whoever has that token can still pose as a foreman to workers until `pilotq token rotate-server`")
    return 0


def _rotate(home: Path, options: argparse.Namespace) -> int:
    from pilotq import keys

    if options.finish:
        keys.finish_rotation(home)
        _say(f"the new keys are in force; running servers change within {_LOOKS_S} s, tokens not copied are of no use")
    else:
        keys.begin_rotation(home)
        _say("tokens have the new keys beside the old ones: copy them to nodes and hosts of foremen (`token list`),")
        _say("then `pilotq token rotate-server --finish`")
    return 0


def _find(home: Path, options: argparse.Namespace) -> tuple[str, keys.Key]:
    """Raises: UserError when there is no such token, or more than one."""
    from pilotq import keys

    name = options.name or options.site
    if not name:
        raise UserError(f"which token is to {options.verb}?", "pilotq token list")
    found = [(p, k) for p, k in keys.every_key(home) if k.name == name and options.role in (None, k.role)]
    if not found:
        raise UserError(f"there is no token {name}", "pilotq token list", exit_code=_NOT_FOUND)
    if len(found) > 1:
        roles = ", ".join(key.role for _, key in found)
        raise UserError(f"there are tokens {name} of the roles {roles}", "say which one with --role")
    return found[0]


def _facts(home: Path, public: str, key: keys.Key) -> dict[str, Any]:
    """Nothing secret."""
    from pilotq import keys

    path = keys.token_path(home, key.role, key.name)
    is_over = bool(key.expires_at) and key.expires_at <= time.time()
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(key.expires_at)) if key.expires_at else ""
    return {
        "name": key.name,
        "role": key.role,
        "expires": until,
        "state": "expired" if is_over else "allowed",
        "key": public,
        "file": str(path) if key.name == FIRST or path.exists() else "",
    }


def _copy(source: str, target: str) -> None:
    try:
        with open(source, "rb") as file:
            content = file.read()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{error.filename or target} cannot be copied ({error.strerror})", "choose another file"
        ) from None


def _say(text: str) -> None:
    print(f"pilotq: {text}", file=sys.stderr)
