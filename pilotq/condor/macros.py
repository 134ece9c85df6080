"""Macros of the submit language: `$(name)`, `$(name:default)` and the function macros, expanded when a value is used.

While many procs are planned at once the automatic variables stand for marks (`pilotq.model`). Who needs the number
itself gets `NeedsProc`, and is asked again for each proc.

Source: HTCondor manual, submit description, macros and function macros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from pilotq.condor import macro_functions
from pilotq.condor.lexer import BLANKS, SubmitError, shown
from pilotq.condor.macro_functions import known

VALUE_BYTES_MAX = 8 << 20
_DEPTH_MAX = 50
#: References resolved for one value; more is a macro made to explode.
_STEPS_MAX = 100_000

_NAME = re.compile(r"[A-Za-z0-9_.]*")
_FUNCTION = re.compile(r"([A-Z_]+[a-z]*)\(")


class Reference(NamedTuple):
    """`$(name:default)`; a name that itself holds references is a template."""

    name: str | Template
    default: Template | None


class Call(NamedTuple):
    """`$FUNCTION(body)`."""

    function: str
    body: Template


Template = tuple["str | Reference | Call", ...]


class Entry(NamedTuple):
    """A macro as it was defined. `line` 0: not in a file."""

    key: str
    value: str
    line: int


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes what begins at `start`; -1."""
    depth = 1
    for match in _PARENS.finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return -1


_PARENS = re.compile(r"[()]")


def parse(text: str) -> Template:
    """The parts of a value; what is no macro stands for itself."""
    parts: list[str | Reference | Call] = []
    done = position = 0
    while (position := text.find("$", position)) >= 0:
        found: Reference | Call | str | None = None
        end = -1
        if text.startswith("$$(", position):
            end = _closing(text, position + 3)
            found = text[position : end + 1] if end >= 0 else None
        elif text.startswith("$(", position):
            found, end = _reference(text, position + 2)
        else:
            function = _FUNCTION.match(text, position + 1)
            if function and macro_functions.is_function(function[1]):
                end = _closing(text, function.end())
                if end >= 0:
                    found = Call(function[1], parse(text[function.end() : end]))
        if found is None:
            position += 1
            continue
        if position > done:
            parts.append(text[done:position])
        parts.append(found)
        done = position = end + 1
    if done < len(text) or not parts:
        parts.append(text[done:])
    return tuple(parts)


def _reference(text: str, start: int) -> tuple[Reference | None, int]:
    """The reference whose name begins at `start`, and where its parenthesis closes; None when it is none."""
    name: list[str | Reference | Call] = []
    position = start
    while True:
        match = _NAME.match(text, position)
        assert match is not None
        if match[0]:
            name.append(match[0])
        position = match.end()
        if not text.startswith("$(", position):
            break
        inner, end = _reference(text, position + 2)
        if inner is None:
            return None, -1
        name.append(inner)
        position = end + 1
    end = _closing(text, position)
    if not name or end < 0 or (text[position] != ":" and end != position):
        return None, -1
    whole = name[0] if len(name) == 1 and isinstance(name[0], str) else tuple(name)
    return Reference(whole, parse(text[position + 1 : end]) if text[position] == ":" else None), end


class Macros:
    """All definitions, what was used of them, and what automatic variables stand for at the moment."""

    def __init__(self, automatic: Mapping[str, str], env: Mapping[str, str], cwd: str, seed: str) -> None:
        self.table: dict[str, Entry] = {}
        self.automatic = automatic
        self.env = env
        self.cwd = cwd
        #: Of the proc (or procs) being planned, by name in lower case: variables of its queue statement, which go
        #: before definitions, and its numbers, which come after them.
        self.variables: dict[str, str] = {}
        self.numbers: dict[str, str] = {}
        #: Names in lower case that something asked for.
        self.used: set[str] = set()
        #: Names of those two that were used since `begin`.
        self.touched: set[str] = set()
        self._seed = seed
        self._draws = 0
        #: Was there a random macro? Then the same text means something else the next time.
        self.is_random = False
        self._steps = 0
        self._templates: dict[str, Template] = {}

    def define(self, key: str, value: str, line: int = 0) -> None:
        """A later definition replaces an earlier one, which the later may refer to by its own name."""
        name = key.lower()
        value = value.strip(BLANKS)
        if "$(" in value:
            before = self.table.get(name)
            text = before.value if before else ""
            value = re.sub(rf"\$\({re.escape(key)}(?::[^()]*)?\)", lambda _: text, value, flags=re.IGNORECASE)
            if len(value) > VALUE_BYTES_MAX:
                raise SubmitError(f"{shown(key)} becomes longer than {VALUE_BYTES_MAX} bytes")
        self.table[name] = Entry(key, value, line)

    def begin(self) -> None:
        """Before the values of a section are asked for: makes random macros repeatable, forgets what was touched."""
        self._draws = 0
        self.touched = set()

    def expand(self, text: str) -> str:
        """Raises: SubmitError; NeedsProc."""
        if "$" not in text:
            return text
        self._steps = 0
        return self._expand(text, 0)

    def _expand(self, text: str, depth: int) -> str:
        if "$" not in text:
            return text
        template = self._templates.get(text)
        if template is None:
            template = self._templates[text] = parse(text)
        return self._fill(template, depth)

    def _fill(self, template: Template, depth: int) -> str:
        if depth > _DEPTH_MAX:
            raise SubmitError(f"a macro refers to itself: {shown(_written(template))}")
        self._steps += 1
        values: list[str] = []
        for part in template:
            if isinstance(part, str):
                values.append(part)
            elif isinstance(part, Reference):
                values.append(self._resolve(part, depth))
            else:
                values.append(self._call(part, depth))
        value = values[0] if len(values) == 1 else "".join(values)
        if len(value) > VALUE_BYTES_MAX or self._steps > _STEPS_MAX:
            raise SubmitError(f"a value becomes longer than {VALUE_BYTES_MAX} bytes: {shown(_written(template))}")
        return value

    def _resolve(self, reference: Reference, depth: int) -> str:
        name = reference.name if isinstance(reference.name, str) else self._fill(reference.name, depth + 1)
        value = self.find(name, depth + 1)
        if value:
            return value
        return self._fill(reference.default, depth + 1) if reference.default else ""

    def find(self, name: str, depth: int = 0) -> str | None:
        """The expanded value of a macro or an automatic variable; None when there is none of that name."""
        name = name.lower()
        self.used.add(name)
        value = self.variables.get(name)
        if value is not None:
            self.touched.add(name)
        elif entry := self.table.get(name):
            value = entry.value
        else:
            value = self.numbers.get(name)
            if value is None:
                return self.automatic.get(name)
            self.touched.add(name)
        return self._expand(value, depth) if "$" in value else value

    def _call(self, call: Call, depth: int) -> str:
        body = self._fill(call.body, depth + 1)
        if call.function == "ENV":
            name, colon, default = body.partition(":")
            return self.env.get(name, default if colon else "UNDEFINED")
        return macro_functions.call(call.function, body, self, depth)

    def draw(self) -> str:
        """Text that differs for each random macro of each proc, and is the same when it is all done again."""
        self._draws += 1
        self.is_random = True
        proc = known(self.numbers.get("process", "0"), "a random macro")
        self.touched.add("process")
        return f"{self._seed} {proc} {self._draws}"


def _written(template: Template) -> str:
    text = ""
    for part in template:
        if isinstance(part, str):
            text += part
        elif isinstance(part, Reference):
            text += f"$({part.name if isinstance(part.name, str) else _written(part.name)})"
        else:
            text += f"${part.function}({_written(part.body)})"
    return text
