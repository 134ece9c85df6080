"""The text of a submit file as statements.

Lines are trimmed, comments and empty lines dropped, continued lines joined. What a line means is told by its shape
alone; whether it makes sense is for whoever runs it, as it may stand in a branch that is not taken.

Source: HTCondor manual, submit file syntax, and its behaviour where the manual is silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pilotq.errors import UserError
from pilotq.model import CLUSTER_MARK, PROC_MARK

BLANKS = " \t\r\v\f"


class SubmitError(UserError):
    """condor_submit says no, with exit code 1; the message is HTCondor's where it has one."""

    exit_code = 1


class ParseError(SubmitError):
    """A line cannot be understood."""

    def __init__(self, message: str, name: str, line: int) -> None:
        super().__init__(
            f"on Line {line} of {shown(name)}: {message}\n\nERROR: Failed to parse command file (line {line})."
        )


class Assign(NamedTuple):
    """`key = value`; `+Attr` has become `MY.Attr`."""

    line: int
    key: str
    value: str


class Directive(NamedTuple):
    """if, elif, else, endif, include, use, warning, error."""

    line: int
    word: str
    rest: str


class Queue(NamedTuple):
    """A queue statement; `items` are the lines between parentheses that stand on lines of their own."""

    line: int
    text: str
    items: list[str] | None


class Unknown(NamedTuple):
    """None of the above."""

    line: int
    text: str


Statement = Assign | Directive | Queue | Unknown

_QUEUE = re.compile(r"queue(?=[\s(]|$)\s*", re.IGNORECASE | re.ASCII)
_DIRECTIVE = re.compile(
    r"@?(?:(if|elif|else|endif)(?=[\s!(]|$)(?!\s*=)|(include|use|warning|error)(?=\s|:)(?!\s*=)(?=[^=]*:))",
    re.IGNORECASE | re.ASCII,
)
_KEY = r"(\+?)((?:[\w.]|\$\([\w.]+\))+)"
_ASSIGN = re.compile(_KEY + r"\s*=\s*(.*)", re.ASCII | re.DOTALL)
_COMPARISON = re.compile(r"[\w.]+\s*=[=?!]", re.ASCII)
_BLOCK = re.compile(_KEY + r"\s*@=\s*(\w+)", re.ASCII)
_PARENS = re.compile(r"[()]")
_LONGEST_SHOWN = 80


def shown(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """User's text as it may stand in a message: one line, printable, not too long."""
    text = text.replace(PROC_MARK, "$(Process)").replace(CLUSTER_MARK, "$(Cluster)")
    clean = "".join(c if c.isprintable() else "?" for c in text[: longest + 1])
    return clean if len(clean) <= longest else clean[: longest - 3] + "..."


def shown_path(path: str) -> str:
    return shown(path, 4096)


def statements(text: str, name: str) -> Iterator[Statement]:
    """The statements of a file, in order.

    Raises: SubmitError when it is no text; ParseError at the end of a block that is not closed.
    """
    if "\x00" in text:
        raise SubmitError(f"{shown(name)} is not a submit description: it holds binary data")
    lines = _Lines(text.removeprefix("\ufeff").split("\n"))
    for number, line in lines:
        assign = _ASSIGN.fullmatch(line)
        if assign:
            yield Assign(number, "MY." + assign[2] if assign[1] else assign[2], assign[3])
            continue
        queue = _QUEUE.match(line)
        if queue:
            yield _queue(line[queue.end() :], lines, name, number)
            continue
        directive = _DIRECTIVE.match(line)
        if directive:
            yield Directive(number, (directive[1] or directive[2]).lower(), line[directive.end() :].strip(BLANKS))
            continue
        block = _BLOCK.fullmatch(line)
        if block:
            value = "\n".join(lines.until("@" + block[3], name, number))
            yield Assign(number, "MY." + block[2] if block[1] else block[2], value)
            continue
        yield Unknown(number, line)


def _queue(text: str, lines: _Lines, name: str, number: int) -> Queue:
    opened: list[int] = []
    for match in _PARENS.finditer(text):
        if match[0] == "(":
            opened.append(match.start())
        elif opened:
            opened.pop()
    if not opened:
        return Queue(number, text, None)
    before, first = text[: opened[0]], text[opened[0] + 1 :]
    items = [first.strip(BLANKS)] if first.strip(BLANKS) else []
    return Queue(number, before, items + [item for item in lines.until(")", name, number) if item and item[0] != "#"])


class _Lines:
    """Iterates over the logical lines with the number of the first physical one each."""

    def __init__(self, physical: list[str]) -> None:
        self.physical = physical
        self.position = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while self.position < len(self.physical):
            line = self.physical[self.position].strip(BLANKS)
            self.position += 1
            if not line or line[0] == "#":
                continue
            number = self.position
            while line[-1:] == "\\" and self.position < len(self.physical):
                line = line[:-1]
                following = self.physical[self.position].strip(BLANKS)
                self.position += 1
                if not following:
                    following = self.after_gap(line)
                line += following
            yield number, line.rstrip("\\") if line[-1:] == "\\" else line

    def after_gap(self, line: str) -> str:
        """What continues a line whose continuation is empty; "" when the statement ends there, as in HTCondor.

        JAliEn writes what it continues after an empty line.
        """
        position = self.position
        while position < len(self.physical) and not self.physical[position].strip(BLANKS):
            position += 1
        if position == len(self.physical):
            return ""
        following = self.physical[position].strip(BLANKS)
        if line.count('"') % 2 == 0 and _is_statement(following):
            return ""
        self.position = position + 1
        return following

    def until(self, end: str, name: str, number: int) -> list[str]:
        """Trimmed lines up to the one that begins with `end`."""
        for position in range(self.position, len(self.physical)):
            if self.physical[position].lstrip(BLANKS).startswith(end):
                found = [line.strip(BLANKS) for line in self.physical[self.position : position]]
                self.position = position + 1
                return found
        raise ParseError(f"there is no closing {shown(end)}", name, number)


def _is_statement(line: str) -> bool:
    if line[0] == "#" or _QUEUE.match(line) or _DIRECTIVE.match(line) or _BLOCK.match(line):
        return True
    return bool(_ASSIGN.match(line)) and not _COMPARISON.match(line)
