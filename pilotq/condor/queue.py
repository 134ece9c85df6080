"""Queue statements: how many jobs, and which values their variables have.

Source: HTCondor manual, submit description, queue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pilotq.condor.lexer import BLANKS, Queue, SubmitError, shown
from pilotq.condor.macro_functions import calculate
from pilotq.condor.macros import Macros
from pilotq.condor.request import read_fields, text
from pilotq.condor.user_side import UserSide

PROCS_MAX = 10_000_000
_HEAD_LONGEST = 1000

_MODE = re.compile(r"(?:^|[\s)])(in|from|matching)(?=[\s(\[]|$)\s*", re.IGNORECASE | re.ASCII)
_COUNT_AND_NAMES = re.compile(r"(.*?)\s*((?:[A-Za-z_][\w.]*(?:\s*,\s*|\s+|$))*)", re.DOTALL | re.ASCII)
_KINDS = re.compile(r"(files|dirs|any)(?=[\s(\[]|$)\s*", re.IGNORECASE | re.ASCII)
_SLICE = re.compile(r"\[\s*(-?[0-9]{1,9})?\s*(?::\s*(-?[0-9]{1,9})?\s*(?::\s*([1-9][0-9]{0,8})?\s*)?)?\]\s*")
_LINE = re.compile(rb"[^\n]+")
_SEPARATOR = re.compile(r"[\s,]+", re.ASCII)
_WORD = r"([^\s,]*)(?:\s*,\s*|\s+|$)"


@dataclass
class Rows:
    """`count` jobs for each row; each row gives the names their values."""

    count: int = 1
    names: list[str] = field(default_factory=list)
    #: The rows as text, and the number of each in the whole list.
    rows: list[str] = field(default_factory=lambda: [""])
    numbers: range = range(1)
    #: False: some rows of the list were left out.
    whole: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.count * len(self.rows)

    @cached_property
    def _form(self) -> re.Pattern[str]:
        return re.compile(_WORD * (len(self.names) - 1) + "(.*)", re.ASCII | re.DOTALL)

    def values(self, row: str) -> Sequence[str]:
        """Of the names, in their order: a word each, the rest of the row for the last."""
        if "\x1f" in row:
            words = [word.strip() for word in row.split("\x1f")]
            return (words + [""] * len(self.names))[: len(self.names)]
        if len(self.names) < 2:
            return [row] if self.names else []
        match = self._form.fullmatch(row)
        assert match is not None
        return match.groups()


def read_queue(statement: Queue, macros: Macros, side: UserSide) -> Rows:
    """The rows of a queue statement.

    Raises: SubmitError; Waiting for a file, a command's output or names of files.
    """
    line = macros.expand(statement.text).strip()
    mode = _MODE.search(line)
    if mode is None:
        if statement.items is not None:
            raise SubmitError("invalid queue statement.")
        return Rows(_count(line))
    head = line[: mode.start(1)].strip()
    before = _COUNT_AND_NAMES.fullmatch(head) if len(head) < _HEAD_LONGEST else None
    if before is None:
        raise SubmitError("invalid queue statement.")
    names = [name.lower() for name in _SEPARATOR.split(before[2]) if name]
    rows = Rows(_count(before[1]), names or ["item"])
    word, rest = mode[1].lower(), line[mode.end() :]
    kinds = ""
    if word == "matching":
        found = _KINDS.match(rest)
        kinds, rest = (found[1].lower(), rest[found.end() :]) if found else ("any", rest)
    cut = _SLICE.match(rest)
    items = _items(word, kinds, rest[cut.end() if cut else 0 :].strip(), statement.items, side, rows)
    rows.numbers = range(len(items))[_slice(cut)] if cut else range(len(items))
    rows.rows = [items[number] for number in rows.numbers] if cut else items
    rows.whole = cut is None
    if rows.total > PROCS_MAX:
        raise SubmitError(f"{rows.total} jobs are more than pilotq takes at once ({PROCS_MAX})")
    return rows


def _count(expression: str) -> int:
    value = calculate(expression or "1")
    if value is None:
        raise SubmitError(f"Invalid Queue count expression: {shown(expression)}")
    if not 0 <= value <= PROCS_MAX:
        raise SubmitError(f"Queue count out of range: {shown(expression)} (at most {PROCS_MAX} at once)")
    return int(value)


def _slice(match: re.Match[str]) -> slice:
    return slice(*[int(number) if number else None for number in match.groups()])


def _items(word: str, kinds: str, rest: str, lines: list[str] | None, side: UserSide, rows: Rows) -> list[str]:
    if lines is None and rest[:1] == "(":
        if rest[-1:] != ")":
            raise SubmitError("invalid queue statement: something follows the closing parenthesis")
        lines = [line for line in [rest[1:-1].strip()] if line]
        rest = ""
    if lines is not None and rest:
        raise SubmitError(f"invalid queue statement: {shown(rest)} before the parenthesis")
    if word == "from":
        return lines if lines is not None else _read(rest, side)
    words = [found for line in lines or [rest] for found in _SEPARATOR.split(line) if found]
    return words if word == "in" else _matching(words, kinds, side, rows)


def _read(source: str, side: UserSide) -> list[str]:
    if not source or source == "-":
        raise SubmitError("queue from: name a file, or a command with | after it")
    is_command = source.endswith("|")
    source = source.removesuffix("|").strip()
    answer = side.must("run" if is_command else "read", source)
    if not answer.ok:
        what = "run command" if is_command else "open file"
        raise SubmitError(f"queue from: cannot {what} {shown(source)} ({answer.error})")
    if b"\x00" in answer.data:
        raise SubmitError(f"queue from: {shown(source)} holds binary data")
    # Line by line: one call for all of a million would let no other thread go on before it is done.
    lines = (text(match[0]).strip(BLANKS) for match in _LINE.finditer(answer.data))
    return [line for line in lines if line]


def _matching(patterns: list[str], kinds: str, side: UserSide, rows: Rows) -> list[str]:
    answers = [(pattern, side.ask("glob", pattern)) for pattern in patterns]
    if not patterns:
        raise SubmitError("queue matching: no pattern is given")
    found: dict[str, None] = {}
    for pattern, _ in answers:
        answer = side.must("glob", pattern)
        if not answer.ok:
            raise SubmitError(f"queue matching: {shown(pattern)}: {answer.error}")
        for entry in map(text, read_fields(answer.data)):
            kind, name = entry[:1], entry[1:]
            if (kinds == "files" and kind == "d") or (kinds == "dirs" and kind != "d"):
                continue
            name = name.rstrip("/") + "/" if kind == "d" else name
            if name in found:
                rows.warnings.append(f"'{shown(name)}' matching pattern '{shown(pattern)}' is a duplicate, skipping")
            found[name] = None
    if not found:
        rows.warnings.append(f"no files match {shown(' '.join(patterns))}")
    return list(found)
