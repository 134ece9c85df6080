"""What runs: executable, arguments, environment, and the commands before and after it.

Each function is a section of the description of a job (`procs.SECTIONS`).
"""

from __future__ import annotations

import fnmatch
import re

from pilotq.condor.expressions import quote
from pilotq.condor.job import Job, Parts
from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.matching import shielded
from pilotq.condor.quoting import is_new, join_environment, join_new, parse_arguments, parse_environment, split_new
from pilotq.condor.request import raw
from pilotq.model import Command

#: What one argument or one variable may take, its end included. Source: execve(2), MAX_ARG_STRLEN.
ARGUMENT_BYTES_MAX = 131072
EXECUTABLE = "condor_exec.exe"

_SEPARATOR = re.compile(r"[\s,]+", re.ASCII)


def _check_length(what: str, text: str) -> None:
    if len(text) * 4 >= ARGUMENT_BYTES_MAX and len(raw(text)) >= ARGUMENT_BYTES_MAX:
        raise SubmitError(
            f"{what} takes {len(raw(text))} bytes: Linux starts no program with one of more than "
            f"{ARGUMENT_BYTES_MAX - 1} (MAX_ARG_STRLEN); put it into an input file"
        )


def is_transferred(job: Job) -> bool:
    """Whether the executable comes from the submit side."""
    return job.flag(True, "transfer_executable", "transferexecutable")


def on_arguments(job: Job, parts: Parts) -> None:
    """argv, and the attribute Arguments (new syntax) or Args (old)."""
    text = _new_only(job, "arguments2") or job.get("arguments", "args")
    text, restore = shielded(text)
    words = [restore(word) for word in parse_arguments(text)]
    for word in words:
        _check_length("an argument", word)
    if is_transferred(job):
        program = f"./{EXECUTABLE}"
    else:
        program = job.known("executable", "cmd")
        program = program if "/" in program else f"./{program}"
        program = job.side.path(program, job.iwd) if job.is_on_head else program
    parts.description["argv"] = [program, *words]
    if any("$$(" in word for word in words):
        parts.description["at_match"] = True
    if text and not is_new(text):
        parts.ad["Args"] = quote(" ".join(words))
    else:
        parts.ad["Arguments"] = quote(join_new(words))


def on_environment(job: Job, parts: Parts) -> None:
    """Variables that getenv takes over, and those of `environment`, which win."""
    variables = _imported(job, job.known("getenv", "get_env"))
    text = _new_only(job, "environment2") or job.get("environment", "env")
    if text:
        text, restore = shielded(text)
        own = parse_environment(text)
        variables = {**variables, **{name: restore(value) for name, value in own.items()}}
    for name, value in variables.items():
        _check_length(f"the variable {shown(name)}", f"{name}={value}")
    if variables:
        parts.description["env"] = variables
        if any("$$(" in value for value in variables.values()):
            parts.description["at_match"] = True
    parts.ad["Environment"] = quote(join_environment(dict(sorted(variables.items()))))


def _new_only(job: Job, keyword: str) -> str:
    """The value of a keyword that is in the new syntax always."""
    text = job.get(keyword)
    if text and not is_new(text):
        raise SubmitError(
            f"Expecting double-quoted input string (V2 format).\nThe full {keyword} you specified were: {shown(text)}"
        )
    return text


def _imported(job: Job, wanted: str) -> dict[str, str]:
    if not wanted or wanted.lower() in ("false", "f", "no", "0"):
        return {}
    if wanted not in job.imported:
        patterns = ["*"] if wanted.lower() in ("true", "t", "yes", "1") else _SEPARATOR.split(wanted)
        found: dict[str, str] = {}
        for name, value in job.side.request.env.items():
            chosen = False
            for pattern in patterns:
                if fnmatch.fnmatchcase(name, pattern.removeprefix("!")):
                    chosen = not pattern.startswith("!")
            # Functions of bash, lines, and bytes that are no text are not for the world outside.
            if chosen and name and "\n" not in value and not name.startswith("BASH_FUNC") and _is_text(name + value):
                found[name] = value
        job.imported[wanted] = found
    return job.imported[wanted]


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


def on_commands(job: Job, parts: Parts) -> None:
    """+PreCmd and +PostCmd with their arguments, variables and the exit code they must have."""
    for when in ("Pre", "Post"):
        command = job.literal(f"{when}Cmd")
        if not command:
            continue
        new, old = job.literal(f"{when}Arguments"), job.literal(f"{when}Args")
        words = split_new(new) if new is not None else parse_arguments(old or "")
        new, old = job.literal(f"{when}Environment"), job.literal(f"{when}Env")
        variables = parse_environment('"' + new.replace('"', '""') + '"' if new else old or "")
        for word in words:
            _check_length(f"an argument of {when}Cmd", word)
        parts.description[when.lower()] = Command(
            argv=[command if command.startswith("/") else "./" + command.removeprefix("./"), *words],
            env=variables,
            success_code=job.integer(f"my.success{when.lower()}exitcode"),
        )
