"""The function macros of the submit language, and its arithmetic.

Source: HTCondor manual, submit description, function macros.
"""

from __future__ import annotations

import ast
import hashlib
import operator
import posixpath
import re
from collections.abc import Callable
from typing import Any, Protocol

from pilotq.condor.expressions import evaluate, unparse
from pilotq.condor.lexer import SubmitError, shown
from pilotq.errors import UserError
from pilotq.model import CLUSTER_MARK

_FILE_LETTERS = frozenset("fpdnxbqawu")
_ARITHMETIC_LONGEST = 200
_ARITHMETIC = re.compile(r"[0-9.eE+\-*/%() ]+")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FORMAT = re.compile(r"(?:[^%]|%%)*%[-+ 0#]*[0-9]{0,3}(?:\.[0-9]{1,3})?(?:l{0,2})([a-zA-Z])(?:[^%]|%%)*")

Number = int | float


class NeedsProc(Exception):  # noqa: N818 - it is no error
    """This needs the number that a mark stands for."""


def known(value: str, what: str) -> str:
    """A value that must be known while the submit file is read.

    Raises: NeedsProc when it holds a mark that stands for more than one value; SubmitError when it holds that of the
        cluster.
    """
    if "\x00" in value:
        if is_open(value):
            raise NeedsProc
        raise SubmitError(f"$(Cluster) cannot be used in {what}: the number is given when the job is accepted")
    return value


def is_open(value: str) -> bool:
    """Whether a value differs between procs: it holds a mark other than that of the cluster."""
    return "\x00" in value.replace(CLUSTER_MARK, "")


class Scope(Protocol):
    """Where functions look names up (`macros.Macros`)."""

    cwd: str

    def find(self, name: str, depth: int = 0) -> str | None: ...
    def draw(self) -> str: ...


# ---- arithmetic ------------------------------------------------------------------------------------------------


def _divide(left: Number, right: Number) -> Number:
    """Towards zero between integers, as ClassAds do."""
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return left / right


def _remainder(left: Number, right: Number) -> Number:
    return left - right * _divide(left, right) if isinstance(left, int) and isinstance(right, int) else left % right


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Mod: _remainder,
}


def calculate(text: str) -> Number | None:
    """The value of an arithmetic expression of numbers; None when it is not one."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    if len(text) > _ARITHMETIC_LONGEST or not _ARITHMETIC.fullmatch(text):
        return None
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError, TypeError):
        return None
    return value if abs(value) < 1 << 63 else None


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))  # type: ignore[no-any-return]
    raise ValueError


# ---- functions -------------------------------------------------------------------------------------------------


def is_function(name: str) -> bool:
    return name in _FUNCTIONS or name == "ENV" or (name[0] == "F" and set(name[1:]) <= _FILE_LETTERS)


def call(name: str, body: str, scope: Scope, depth: int) -> str:
    """The value of a function macro whose body is expanded already.

    Raises: SubmitError; NeedsProc.
    """
    function = _FUNCTIONS.get(name)
    if function is None:
        value = _named(body, scope, depth, "$F()")
        return _path(name[1:], posixpath.join(scope.cwd, value) if "f" in name else value)
    return function(name, body, scope, depth)


def _named(body: str, scope: Scope, depth: int, what: str) -> str:
    """The macro that is named, or the text itself."""
    value = scope.find(body.strip(), depth + 1)
    return known(body.strip() if value is None else value, what)


def _path(letters: str, value: str) -> str:
    """Parts of a path: p directory, d last directory (each d one more), n name, x extension; b, q, a, w change how."""
    if not set("pdnx") & set(letters):
        found = value
    else:
        directory, name = value[: value.rfind("/") + 1], value[value.rfind("/") + 1 :]
        stem, extension = posixpath.splitext(name)
        found = ""
        bare = "b" in letters
        has_place = not {"p", "d"}.isdisjoint(letters)
        if "p" in letters and "d" not in letters:
            found += directory.rstrip("/") if bare else directory
        elif "d" in letters:
            last = "/".join(directory.rstrip("/").split("/")[-letters.count("d") :]).lstrip("/")
            found += last + ("" if bare or not last else "/")
        # What lies between two parts belongs to them.
        if "n" in letters or ("x" in letters and has_place):
            found += stem
        if "x" in letters:
            found += extension.removeprefix(".") if bare else extension
    if "w" in letters:
        found = found.replace("/", "\\")
    if "q" in letters:
        quote = "'" if "a" in letters else '"'
        found = quote + found + quote
    return found


def _basename(name: str, body: str, scope: Scope, depth: int) -> str:
    return _path("nx", _named(body, scope, depth, "$BASENAME()"))


def _dirname(name: str, body: str, scope: Scope, depth: int) -> str:
    return _path("p", _named(body, scope, depth, "$DIRNAME()"))


def _number(name: str, body: str, scope: Scope, depth: int) -> str:
    source, comma, form = body.partition(",")
    text = _named(source, scope, depth, f"${name}()")
    value = calculate(text)
    if value is None:
        kind = "an integer" if name == "INT" else "a real"
        raise SubmitError(f"${name}() macro: {shown(text)} does not evaluate to {kind}!")
    value = int(value) if name == "INT" else float(value)
    if comma:
        return _formatted(name, form.strip(), value, "diouxXc" if name == "INT" else "eEfFgG")
    return str(value) if name == "INT" else f"{value:.16G}"


def _formatted(name: str, form: str, value: Number | str, letters: str) -> str:
    match = _FORMAT.fullmatch(form)
    if match is None or match[1] not in letters:
        raise SubmitError(f"${name}() macro: '{shown(form)}' is not a valid format specifier!")
    try:
        return form % (value,)
    except (ValueError, TypeError, OverflowError):
        raise SubmitError(f"${name}() macro: '{shown(form)}' is not a valid format specifier!") from None


def _string(name: str, body: str, scope: Scope, depth: int) -> str:
    source, comma, form = body.partition(",")
    value = _named(source, scope, depth, "$STRING()")
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\"', '"')
    return _formatted(name, form.strip(), value, "s") if comma else value


def _substr(name: str, body: str, scope: Scope, depth: int) -> str:
    words = [word.strip() for word in body.split(",")]
    value = _named(words[0], scope, depth, "$SUBSTR()")
    numbers = [calculate(_named(word, scope, depth, "$SUBSTR()")) for word in words[1:]]
    if not 1 <= len(numbers) <= 2 or None in numbers:
        raise SubmitError(f"$SUBSTR() macro: {shown(body)} is not a name, a start and perhaps a length")
    start, *length = [int(number or 0) for number in numbers]
    rest = value[max(start + len(value), 0) if start < 0 else start :]
    return rest[: length[0]] if length else rest


def _words(words: list[str], scope: Scope, depth: int) -> list[str]:
    """Items given one by one, or the name of the macro that holds them."""
    if len(words) == 1:
        value = scope.find(words[0], depth + 1)
        if value is not None:
            return [word for word in re.split(r"[\s,]+", value) if word]
    return words


def _choice(name: str, body: str, scope: Scope, depth: int) -> str:
    words = [word.strip() for word in body.split(",")]
    index = calculate(_named(words[0], scope, depth, "$CHOICE()"))
    items = _words(words[1:], scope, depth)
    if not isinstance(index, int) or not 0 <= index < len(items):
        raise SubmitError(f"$CHOICE() macro: {shown(words[0])} is not a number from 0 to {len(items) - 1}")
    return items[index]


def _random(scope: Scope, choices: int) -> int:
    digest = hashlib.blake2b(scope.draw().encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % choices


def _random_choice(name: str, body: str, scope: Scope, depth: int) -> str:
    items = _words([word.strip() for word in body.split(",")], scope, depth)
    return items[_random(scope, len(items))] if items else ""


def _random_integer(name: str, body: str, scope: Scope, depth: int) -> str:
    numbers = [calculate(_named(word, scope, depth, "$RANDOM_INTEGER()")) for word in body.split(",")]
    bounds = [int(number) for number in numbers if number is not None]
    first, last, step = (*bounds, 1)[:3] if len(bounds) >= 2 else (0, -1, 1)
    if len(bounds) != len(numbers) or len(numbers) > 3 or last < first or step < 1:
        raise SubmitError(f"$RANDOM_INTEGER() macro: {shown(body)} is not a lowest, a highest and perhaps a step")
    return str(first + step * _random(scope, (last - first) // step + 1))


def _eval(name: str, body: str, scope: Scope, depth: int) -> str:
    """The value of a ClassAd expression, as text."""
    text = _named(body, scope, depth, "$EVAL()")
    try:
        value = evaluate(text, {}, 0)
    except UserError:
        raise SubmitError(f"$EVAL() macro: {shown(text)} is not an expression") from None
    return f"{value:.15E}" if isinstance(value, float) else value if isinstance(value, str) else unparse(value)


_FUNCTIONS: dict[str, Callable[[str, str, Scope, int], str]] = {
    "BASENAME": _basename,
    "DIRNAME": _dirname,
    "INT": _number,
    "REAL": _number,
    "STRING": _string,
    "SUBSTR": _substr,
    "CHOICE": _choice,
    "RANDOM_CHOICE": _random_choice,
    "RANDOM_INTEGER": _random_integer,
    "EVAL": _eval,
}
