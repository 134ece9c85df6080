"""Runs the statements of a submit file: definitions, conditions, includes; queue statements go to whoever plans them.

Source: HTCondor manual, submit description, if, include.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from pilotq.condor.lexer import Assign, Directive, ParseError, Queue, Statement, SubmitError, shown, statements
from pilotq.condor.macro_functions import calculate
from pilotq.condor.macros import Macros
from pilotq.condor.queue import Rows, read_queue
from pilotq.condor.request import text
from pilotq.condor.user_side import UserSide

_INCLUDE_DEPTH_MAX = 20
_VERSION = re.compile(r"version\s*(==|!=|<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)*)", re.IGNORECASE)
_INCLUDE = re.compile(r"(ifexist|command)?\s*(into\s+\S+\s*)?:\s*(.*)", re.IGNORECASE | re.DOTALL)
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "==": lambda ours, theirs: ours == theirs,
    "!=": lambda ours, theirs: ours != theirs,
    "<=": lambda ours, theirs: ours <= theirs,
    ">=": lambda ours, theirs: ours >= theirs,
    "<": lambda ours, theirs: ours < theirs,
    ">": lambda ours, theirs: ours > theirs,
}


class Script:
    """One submit description being run. `version` is HTCondor's that conditions see."""

    def __init__(
        self, macros: Macros, side: UserSide, version: str, on_queue: Callable[[Rows], None], appended: list[str]
    ) -> None:
        self.macros = macros
        self.side = side
        self.version = version
        self.on_queue = on_queue
        #: Lines of -append: they stand before every queue statement.
        self.appended = appended
        self.warnings: list[str] = []
        self.queues = 0

    def run(self, content: str, name: str, depth: int = 0) -> None:
        """Raises: SubmitError; Waiting."""
        if depth > _INCLUDE_DEPTH_MAX:
            raise SubmitError(f"includes are nested too deep: {shown(name)}")
        #: Of each open if: whether its present branch is taken, and whether any was.
        branches: list[list[bool]] = []
        for statement in statements(content, name):
            rows = None
            try:
                if isinstance(statement, Directive) and statement.word in ("if", "elif", "else", "endif"):
                    self._branch(statement, branches)
                elif all(taken for taken, _ in branches):
                    rows = self._run(statement, depth)
            except ParseError:
                raise
            except SubmitError as error:
                raise ParseError(str(error), name, statement.line) from None
            if rows is not None:
                self.on_queue(rows)

    def _run(self, statement: Statement, depth: int) -> Rows | None:
        """The rows of a queue statement."""
        if isinstance(statement, Assign):
            key = self.macros.expand(statement.key)
            if key.lower() == "queue":
                raise SubmitError("invalid queue statement.")
            self.macros.define(key, statement.value, statement.line)
        elif isinstance(statement, Queue):
            self.queues += 1
            self.append()
            return read_queue(statement, self.macros, self.side)
        elif isinstance(statement, Directive):
            self._directive(statement, depth)
        else:
            raise SubmitError(f"this is neither 'key = value' nor a statement: {shown(statement.text)}")
        return None

    def append(self) -> None:
        """Define what -append says; a queue statement there counts only when there is no other."""
        for statement in statements("\n".join(self.appended), "-append"):
            if isinstance(statement, Assign):
                self.macros.define(statement.key, statement.value)
            elif not isinstance(statement, Queue):
                raise SubmitError(f"-append takes lines of the form key = value, not {shown(str(statement[1]))}")

    def _directive(self, statement: Directive, depth: int) -> None:
        rest = self.macros.expand(statement.rest)
        if statement.word == "warning":
            self.warnings.append(shown(rest.removeprefix(":").strip()))
        elif statement.word == "error":
            raise SubmitError(shown(rest.removeprefix(":").strip()))
        elif statement.word == "include":
            self._include(rest, depth)
        else:
            raise SubmitError("'use' is not supported by pilotq yet")

    def _include(self, rest: str, depth: int) -> None:
        match = _INCLUDE.fullmatch(rest)
        if match is None or not match[3]:
            raise SubmitError("include takes ': file' or ': command |'")
        option, into, source = (match[1] or "").lower(), match[2], match[3].strip()
        is_command = option == "command" or source.endswith("|")
        source = source.removesuffix("|").strip()
        if is_command and into:
            # What the command says is kept in a file, and the command not run again while that is there.
            file = shlex.quote(into.split()[1])
            source = f"if ! [ -f {file} ]; then {{ {source}\n}} > {file}.new && mv {file}.new {file}; fi && cat {file}"
        answer = self.side.must("run" if is_command else "read", source)
        if answer.ok:
            self.run(text(answer.data), source, depth + 1)
        elif option != "ifexist":
            raise SubmitError(f"cannot include {shown(source)} ({answer.error})")

    # ---- conditions

    def _branch(self, statement: Directive, branches: list[list[bool]]) -> None:
        word = statement.word
        if word == "if":
            outer = all(taken for taken, _ in branches)
            taken = outer and self._holds(statement.rest)
            # Below a branch that is not taken no branch ever is.
            branches.append([taken, taken or not outer])
            return
        if not branches:
            raise SubmitError(f"{word} without matching if")
        if word == "endif":
            branches.pop()
            return
        taken, any_taken = branches[-1]
        now = not any_taken and (word == "else" or self._holds(statement.rest))
        branches[-1] = [now, any_taken or now]

    def _holds(self, condition: str) -> bool:
        value = self.macros.expand(condition).strip()
        negated = value.startswith("!")
        value = value.removeprefix("!").strip()
        if value[:7].lower() == "defined" and value[7:8] in ("", " ", "\t"):
            name = value[7:].strip()
            if not re.fullmatch(r"[\w.]*", name):
                raise SubmitError(f"{shown(condition)} is not a valid if condition: defined takes one name")
            return (bool(name) and self.macros.find(name) not in (None, "")) != negated
        version = _VERSION.fullmatch(value)
        if version:
            theirs = [int(part) for part in version[2].split(".")]
            ours = [int(part) for part in self.version.split(".")[: len(theirs)]]
            return _COMPARE[version[1]](tuple(ours), tuple(theirs)) != negated
        if value.lower() in ("true", "t", "yes"):
            return not negated
        if value.lower() in ("", "false", "f", "no"):
            return negated
        number = calculate(value)
        if number is None:
            raise SubmitError(
                f"{shown(condition)} is not a valid if condition because complex conditionals are not supported"
            )
        return bool(number) != negated
