"""The command line of condor_submit.

Source: HTCondor manual, condor_submit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.options import Table, find_option

#: Option -> (shortest form's length, number of arguments). The first that fits counts.
_OPTIONS: Table = {
    "append": (1, 1),
    "addr": (2, 1),
    "allow-crlf-script": (2, 0),
    "batch-name": (1, 1),
    "disable": (1, 0),
    "debug": (2, 0),
    "dry-run": (2, 1),
    "dump": (2, 1),
    "file": (1, 1),
    "factory": (2, 0),
    "help": (1, 0),
    "interactive": (1, 0),
    "maxjobs": (1, 1),
    "name": (1, 1),
    "pool": (1, 1),
    "password": (2, 1),
    "queue": (1, 0),
    "remote": (1, 1),
    "spool": (1, 0),
    "single-cluster": (2, 0),
    "stm": (2, 1),
    "terse": (1, 0),
    "unused": (1, 0),
    "verbose": (1, 0),
    "version": (4, 0),
}
_IGNORED = frozenset(
    {"addr", "allow-crlf-script", "debug", "factory", "name", "pool", "remote", "spool", "stm", "unused"}
)
_REFUSED = frozenset({"dump", "interactive", "password"})
_DEFINITION = re.compile(r"([+\w.]+)\s*=\s*(.*)", re.DOTALL | re.ASCII)
USAGE = (
    "Usage: condor_submit [-terse | -verbose] [-append 'key = value'] [-batch-name NAME] [-dry-run -] [-maxjobs N]\n"
    "    [-single-cluster] [-disable] [-name X] [-pool X] [-remote X] [-spool] [-debug]\n"
    "    [key=value]... [-file FILE | FILE | -] [-queue ...]\n"
)


@dataclass
class Options:
    """What a command line says."""

    #: "": standard input, without anybody saying so.
    file: str = ""
    #: key and value, to be defined before the file is read.
    definitions: list[tuple[str, str]] = field(default_factory=list)
    appended: list[str] = field(default_factory=list)
    #: Arguments of -queue; None: not given.
    queue: str | None = None
    batch_name: str = ""
    #: Most procs that are accepted; 0: any number.
    max_jobs: int = 0
    terse: bool = False
    verbose: bool = False
    dry_run: bool = False
    #: Files are not checked.
    unchecked: bool = False
    single_cluster: bool = False
    help: bool = False
    version: bool = False


def read_options(argv: list[str]) -> Options:
    """Raises: SubmitError."""
    options = Options()
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if not word.startswith("-") or word == "-":
            _on_word(options, word)
            continue
        name = find_option(_OPTIONS, word.removeprefix("-").removeprefix("-"))
        if name is None:
            raise SubmitError(f"unknown option {shown(word)}\n{USAGE.rstrip()}")
        if name == "queue":
            rest = argv[position:]
            end = next((at for at, other in enumerate(rest) if other.startswith("-") and len(other) > 1), len(rest))
            options.queue = " ".join(rest[:end])
            position += end
            continue
        count = _OPTIONS[name][1]
        if position + count > len(argv):
            raise SubmitError(f"{shown(word)} requires another argument")
        _on_option(options, name, argv[position] if count else "")
        position += count
    if options.terse or options.file == "-":
        options.verbose = not options.terse
    return options


def _on_word(options: Options, word: str) -> None:
    definition = _DEFINITION.fullmatch(word)
    if definition:
        key = definition[1]
        options.definitions.append(("MY." + key[1:] if key.startswith("+") else key, definition[2]))
    else:
        _on_file(options, word)


def _on_file(options: Options, word: str) -> None:
    if options.file:
        raise SubmitError(f"two submit descriptions are given: {shown(options.file)} and {shown(word)}")
    options.file = word


def _on_option(options: Options, name: str, value: str) -> None:
    if name in _REFUSED or (name == "dry-run" and value != "-"):
        what = f"-{name} into a file (use -dry-run -)" if name == "dry-run" else f"-{name}"
        raise SubmitError(f"{what} is not supported by pilotq yet")
    if name in _IGNORED:
        return
    if name == "append":
        options.appended.append(value)
    elif name == "file":
        _on_file(options, value)
    elif name == "batch-name":
        options.batch_name = value
    elif name == "maxjobs":
        if not value.isascii() or not value.isdigit():
            raise SubmitError(f"-maxjobs requires a number, not {shown(value)}")
        options.max_jobs = int(value)
    elif name == "dry-run":
        options.dry_run = True
    elif name == "disable":
        options.unchecked = True
    elif name == "single-cluster":
        options.single_cluster = True
    else:
        setattr(options, name, True)
