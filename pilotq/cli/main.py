"""The parser and what all commands have in common: settings, errors, exit codes."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from pilotq import __version__
from pilotq.errors import PilotqError, UserError
from pilotq.units import parse_duration, printable

INTERRUPTED = 130
EXAMPLES = """\
examples:
  pilotq run etc/examples/pilots.sub     a pool on this machine, for this one file
  pilotq up                              a pool that stays; eval "$(pilotq env)" for condor_submit and its kin
  pilotq status                          what runs, waits and failed
"""


class Command(NamedTuple):
    """One command: its help, module and function, arguments. Without help it is not listed."""

    help: str
    where: str
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things, 0 or more")
    return int(text)


def _slots(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("a worker has 1 slot or more")
    return int(text)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 999999999")
    return int(text)


def _positive(text: str) -> int:
    if _number(text) == 0:
        raise argparse.ArgumentTypeError("0 is too few, it must be 1 or more")
    return int(text)


def _argument(*names: str, **words: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, words


_FOREMEN = _argument("--foremen", type=_count, metavar="N", help="foremen to start (default: foreman.count)")
_SLOTS = _argument("--slots", type=_slots, metavar="N", help="cores of the worker, 1 or more (default: the CPUs)")
_JSON = _argument("--json", action="store_true", help="one JSON document")
_WORKER_VERB = _argument(
    "verb", nargs="?", choices=["list", "show", "drain", "forget", "resume"], help="ask or tell the master instead"
)
_WORKER_NAME = _argument("name", nargs="?", help="which worker the verb is about")
#: `worker` and `foreman` name the tokens of the first start.
_TOKEN_VERBS = ["new", "list", "show", "revoke", "rotate-server", "worker", "foreman"]
_OUT = _argument("--out", metavar="FILE", help="copy the token to this file, mode 0600")

COMMANDS: dict[str, Command] = {
    "run": Command(
        "a pool for the given submit files: submit, show progress, wait, take it down",
        "run:main",
        (
            _argument("files", nargs="+", metavar="FILE.sub", help="submit description, as for condor_submit"),
            _FOREMEN,
            _SLOTS,
            _argument("--keep", action="store_true", help="leave the pool and its directory"),
        ),
    ),
    "up": Command("start what is missing of a pool on this machine", "pool:up", (_FOREMEN, _SLOTS)),
    "down": Command("stop what `up` started; tasks stay in the queue", "pool:down"),
    "env": Command("print shell lines that put condor_* and pilotq on PATH", "info:env"),
    "status": Command("processes, tasks, slots", "status:main", (_JSON,)),
    "drain": Command(
        "master: accept nothing new, finish what is there",
        "status:drain",
        (_argument("--off", action="store_true", help="accept again"),),
    ),
    "master": Command("be the master, in the foreground", "daemons:master"),
    "foreman": Command("be a foreman, in the foreground", "daemons:foreman"),
    "worker": Command(
        "be a worker, in the foreground; or `worker list`, `worker show|drain|forget|resume NAME`",
        "workers:main",
        (_WORKER_VERB, _WORKER_NAME, _JSON),
    ),
    "gateway": Command("on a host without a master: let its condor_* commands reach one", "daemons:gateway"),
    "token": Command(
        "keys for foremen and workers on other hosts",
        "tokens:main",
        (
            _argument("verb", nargs="?", choices=_TOKEN_VERBS, metavar="VERB", help="|".join(_TOKEN_VERBS)),
            _argument("name", nargs="?", help="of a token, for show and revoke"),
            _argument("--role", help="worker (default), foreman, submit (for a gateway), admin, read"),
            _argument("--site", metavar="NAME", help="name of a new token"),
            _argument("--expires", type=parse_duration, metavar="T", help="a new token is good for so long, as 30d"),
            _argument("--finish", action="store_true", help="with rotate-server: take the new keys into force"),
            _OUT,
            _JSON,
        ),
    ),
    "config": Command(
        "the settings in force",
        "info:config",
        (_argument("--defaults", action="store_true", help="a pilotq.toml with all settings"), _JSON),
    ),
    "store": Command(
        "look the durable queue through, copy it while the master works, put a copy back",
        "store:main",
        (
            _argument("verb", choices=["check", "backup", "restore"], help="what to do with it"),
            _argument("dir", nargs="?", metavar="DIR", help="where the backup goes, or is"),
            _JSON,
        ),
    ),
    "doctor": Command("look for what could go wrong here", "doctor:main", (_JSON,)),
    "bench": Command(
        "measure master and foremen of a temporary pool, with workers that start no process",
        "bench:main",
        (
            _argument("--tasks", type=_positive, metavar="N", help="tasks to run (default: 200000)"),
            _argument("--workers", type=_positive, default=50, metavar="N", help="simulated workers (default: 50)"),
            _argument("--slots", type=_positive, default=8, metavar="N", help="slots of each (default: 8)"),
            _argument("--ahead", type=_count, metavar="N", help="tasks each takes beyond its slots (as a real one)"),
            _argument("--foremen", type=_count, default=2, metavar="N", help="foremen; 0: workers at the master (2)"),
            _argument("--task-s", type=parse_duration, default=0.0, metavar="T", help="how long a task takes (0)"),
            _argument("--queued", type=_number, default=0, metavar="N", help="idle tasks besides, that fit nowhere"),
            _argument("--fill", action="store_true", help="measure how fast all slots are filled, then watch"),
            _argument("--watch", type=parse_duration, default=30.0, metavar="T", help="with --fill: how long (30)"),
            _argument("--dir", metavar="DIR", help="local directory for the temporary home, so for the queue"),
            _JSON,
        ),
    ),
    "dag": Command("run a DAG in the foreground, with the options of condor_dagman", "dag:main"),
    "dag-submit": Command("", "dag:submit"),
    "site": Command("", "site:main"),
    "simulated": Command("", "bench:simulated"),
}


#: Commands whose words are not ours.
_FOREIGN = ("site", "dag", "dag-submit")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see `{self.prog} --help`")


def new_parser() -> Parser:
    parser = Parser(
        prog="pilotq",
        description=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="pilotq [--set NAME=VALUE] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"pilotq {__version__}")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="first", help="see `config`")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="pilotq", parser_class=Parser
    )
    for name, command in COMMANDS.items():
        words: dict[str, Any] = {"help": command.help} if command.help else {}
        sub = commands.add_parser(name, description=command.help, allow_abbrev=False, **words)
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="then", help="a setting")
        for names, options in command.arguments:
            sub.add_argument(*names, **options)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: UserError."""
    if not argv:
        raise UserError("no command was given", "see `pilotq --help`")
    first = argv[0]
    if not first.startswith("-") and first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, 1)
        raise UserError(f"there is no command {first!r}", f"did you mean {near[0]}?" if near else "see `pilotq --help`")
    ours, words = _split_site(argv)
    options = new_parser().parse_args(ours)
    if options.command is None:
        raise UserError("no command was given", "see `pilotq --help`")
    options.words = words
    options.overrides = {}
    for text in [*options.first, *getattr(options, "then", [])]:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: there is no =", "write --set NAME=VALUE")
        options.overrides[name.strip()] = value
    return options


def _split_site(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows `site` is in the words of alien-workqueue, and `dag` in those of HTCondor, not ours."""
    words = list(argv)
    at = next((at for at, word in enumerate(words) if word in _FOREIGN), len(words))
    is_command = all(word == "--set" or "=" in word for word in words[:at])
    return (words[: at + 1], words[at + 1 :]) if is_command else (words, [])


def main(argv: Sequence[str]) -> int:
    """The exit code; nothing but a bug comes out as an exception."""
    try:
        options = parse(argv)
        module, _, function = COMMANDS[options.command].where.partition(":")
        todo: Callable[[argparse.Namespace], int]
        todo = getattr(importlib.import_module(f"pilotq.cli.{module}"), function)
        code = todo(options)
        sys.stdout.flush()
        return code
    except PilotqError as error:
        _say(f"pilotq: {error.line()}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output had enough. Python must not find that out once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _say(text: str) -> None:
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        pass


def run() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        # Paths of users may hold any bytes.
        if stream is not None:
            stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
