"""ClassAd expressions: the one place that knows `classad2`.

An *ad* maps attribute names to expression text in old ClassAd syntax, as job ads are written and printed. An
expression is parsed once; evaluating it looks up only the attributes it refers to, and remembers the answer for each
distinct set of their values, so that a constraint on a million tasks costs a dictionary look-up each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

from pilotq.classads import classad2
from pilotq.errors import UserError

#: What an expression can come to. Lists, nested ads and times are python's list, ClassAd and datetime.
Value = Any
UNDEFINED: Value = classad2.Value.Undefined
ERROR: Value = classad2.Value.Error

#: Longer ones are refused unparsed.
EXPRESSION_BYTES_MAX = 64 << 10
_MEMO_MAX = 4096


class Ad(Protocol):
    """What an expression is evaluated against."""

    def get(self, name: str, /) -> str | None:
        """Expression text of an attribute, named in lower case."""


def ad_of(attributes: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """An ad from attributes in any case; numbers and booleans are taken as values, strings as expression text."""
    return {name.lower(): value if isinstance(value, str) else unparse(value) for name, value in attributes.items()}


# ---- text ------------------------------------------------------------------------------------------------------

#: String literals of the old syntax, quoted attribute names, what is rewritten outside of them.
_TOKEN = re.compile(
    r"""(?P<string>"(?:\\"|[^"])*")|(?P<name>'(?:\\.|[^'\\])*')|(?P<my>\bMY\s*\.\s*(?=['A-Za-z_]))|"""
    r"""(?P<time>\btime\s*\(\s*\)|\bCurrentTime\b)""",
    re.IGNORECASE,
)
#: Attribute that stands for CurrentTime and time(); to the library, the former is neither function nor attribute.
_NOW = "PilotqNow"
_LONE_BACKSLASH = re.compile(r'\\(?!")')
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_REAL = re.compile(r"-?[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, Value] = {"true": True, "false": False, "undefined": UNDEFINED, "error": ERROR}


def _new_syntax(text: str, rewrite: bool) -> str:
    """Old syntax (a backslash only ever escapes a quote) as the parser's.

    `rewrite`: also drop `MY.`, and let the moment be an attribute like any other: there is one ad and one moment.
    """

    def replace(match: re.Match[str]) -> str:
        if match["string"]:
            return _LONE_BACKSLASH.sub(r"\\\\", match["string"])
        if match["my"] and rewrite:
            return ""
        if match["time"] and rewrite:
            return _NOW
        return match[0]

    return _TOKEN.sub(replace, printable(text))


def printable(text: str) -> str:
    """Bytes that are not UTF-8 cannot be given to the library."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def quote(value: str) -> str:
    """A string as old ClassAd text."""
    return '"' + value.replace('"', '\\"') + '"'


def unquote(text: str) -> str | None:
    """The string that a text is the literal of; None when it is something else."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return None
    inner = text[1:-1]
    if '"' in inner:
        if '"' in inner.replace('\\"', ""):
            return None
        inner = inner.replace('\\"', '"')
    return inner


def unparse(value: Value) -> str:
    """A value as old ClassAd text."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, classad2.Value):
        return "error" if value == ERROR else "undefined"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value - value == 0:
        text = f"{value:.16G}"
        return text if "." in text or "E" in text else text + ".0"
    return _printed(value)


def _printed(value: Any) -> str:
    """Value or tree by the library's own printer of old syntax."""
    ad = classad2.ClassAd()
    ad["x"] = value
    return str(ad.printOld())[4:-1]


@lru_cache(4096)
def canonical(text: str) -> str:
    """Expression text as HTCondor prints it; unchanged when it cannot be parsed."""
    value = literal(text)
    if value is not None:
        return text if isinstance(value, str | int) and not isinstance(value, bool) else unparse(value)
    try:
        return _printed(classad2.ExprTree(_new_syntax(text, rewrite=False)))
    except (classad2.ClassAdException, ValueError):
        return text


def old_text(text: str) -> str:
    """Expression text of the new syntax in the old one; a string when it cannot be parsed."""
    try:
        return _printed(classad2.ExprTree(text))
    except (classad2.ClassAdException, ValueError):
        return quote(text)


@lru_cache(4096)
def json_text(text: str) -> str:
    """Expression text as the value of a JSON object indented by two blanks."""
    ad = classad2.ClassAd()
    try:
        ad["x"] = classad2.ExprTree(_new_syntax(text, rewrite=False))
    except (classad2.ClassAdException, ValueError):
        ad["x"] = printable(text)
    printed = str(ad.printJson())
    return printed[printed.index(":") + 2 : printed.rindex("}")].rstrip("\n")


@lru_cache(16384)
def literal(text: str) -> Value | None:
    """The value of a text that needs no evaluation; None when it needs some."""
    if _INTEGER.fullmatch(text):
        return int(text)
    string = unquote(text)
    if string is not None:
        return string
    if _REAL.fullmatch(text):
        return float(text)
    return _WORDS.get(text.lower()) if len(text) < 10 else None


# ---- expressions -----------------------------------------------------------------------------------------------


class Expression:
    """A parsed expression.

    Raises: UserError when the text is none.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > EXPRESSION_BYTES_MAX:
            raise UserError(f"an expression of {len(text)} bytes", f"at most {EXPRESSION_BYTES_MAX} are taken")
        try:
            self._tree = classad2.ExprTree(_new_syntax(text, rewrite=True))
            found = classad2.ClassAd().externalRefs(self._tree)
        except (classad2.ClassAdException, ValueError):
            raise UserError(f"not an expression: {text[:200]}") from None
        #: Attributes it refers to, lower case; the moment is `currenttime`.
        self.names: tuple[str, ...] = tuple(sorted({_attribute(name) for name in found} - {""}))
        self._memo: dict[tuple[str | None, ...], Value] | None = {} if "random" not in text.lower() else None

    def evaluate(self, ad: Ad, now: float = 0) -> Value:
        """Its value in an ad; attributes that are expressions themselves are evaluated there too.

        Units: now in seconds since 1970, for CurrentTime and time().
        """
        texts = tuple([str(int(now)) if name == "currenttime" else ad.get(name) for name in self.names])
        if self._memo is None or any(text is not None and literal(text) is None for text in texts):
            return self._compute(ad, now)
        try:
            return self._memo[texts]
        except KeyError:
            if len(self._memo) >= _MEMO_MAX:
                self._memo.clear()
            value = self._memo[texts] = self._compute(ad, now)
            return value

    def each(
        self, ad: Ad, differing: Mapping[str, Callable[[int], Value]], numbers: Iterable[int], now: float = 0
    ) -> Iterator[Value]:
        """Its value for each number, in ads that are this one but for what differs by number.

        Cost: that of the library's own evaluation, as the ad is made once.
        """
        context = classad2.ClassAd(self._values(ad, now))
        evaluate, own = self._tree.eval, list(differing.items())
        for number in numbers:
            for name, value in own:
                context[name] = value(number)
            try:
                yield evaluate(context)
            except classad2.ClassAdException:
                yield ERROR

    def _compute(self, ad: Ad, now: float) -> Value:
        try:
            return self._tree.eval(classad2.ClassAd(self._values(ad, now)))
        except classad2.ClassAdException:
            return ERROR

    def _values(self, ad: Ad, now: float) -> dict[str, Value]:
        """All that it and what it refers to look up."""
        values: dict[str, Value] = {_NOW: int(now)}
        wanted = list(self.names)
        while wanted:
            name = wanted.pop()
            text = None if name in values or name == "currenttime" else ad.get(name)
            if text is None:
                continue
            value = literal(text)
            if value is None:
                inner = find(text)
                values[name] = ERROR if inner is None else inner._tree
                wanted += inner.names if inner is not None else ()
            else:
                values[name] = printable(value) if isinstance(value, str) else value
        return values


def _attribute(name: str) -> str:
    """The attribute of the ad that a reference needs; "" for another ad's."""
    scope, _, _ = name.lower().partition(".")
    return {"target": "", _NOW.lower(): "currenttime"}.get(scope, scope)


@lru_cache(4096)
def compiled(text: str) -> Expression:
    """Raises: UserError when the text is not an expression."""
    return Expression(text)


def find(text: str) -> Expression | None:
    try:
        return compiled(text)
    except UserError:
        return None


def valid(text: str) -> bool:
    return find(text) is not None


def truth(value: Value) -> bool | None:
    """True, false or neither: a number counts as true when it is not 0, everything else is neither."""
    if isinstance(value, classad2.Value) or not isinstance(value, (bool, int, float)):
        return None
    return bool(value)


def is_true(value: Value) -> bool:
    """True, or a number other than 0; undefined, error and all else are not."""
    return value is True or (value is not False and truth(value) is True)


def evaluate(text: str, attributes: Mapping[str, str | int | float | bool], now: float) -> Value:
    """The value of an expression in attributes of any case.

    Raises: UserError when the text is not an expression.
    """
    return compiled(text).evaluate(ad_of(attributes), now)


def closure(names: Iterable[str], get: Callable[[str], str | None]) -> set[str]:
    """These attributes and all that their expressions refer to."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        text = get(name)
        if text is not None and literal(text) is None:
            inner = find(text)
            wanted += inner.names if inner is not None else ()
    return found


#: (cluster, proc) of the tasks an expression is about; None: any.
Ids = list[tuple[int | None, int | None]]
_EVERYTHING: Ids = [(None, None)]
_STRING = re.compile(r'"(?:\\"|[^"])*"')
_CLAUSE = re.compile(r"(ClusterId|ProcId)\s*==\s*([0-9]{1,15})\s*(?=&&|\|\||\)|$)", re.ASCII | re.IGNORECASE)
_BLANK = re.compile(r"\s*")
_IDS_MAX = 10_000


def id_bounds(text: str) -> Ids:
    """Ids such that every job for which the expression is true has one of them, so that a reader looks at no others.

    It understands plain comparisons of ClusterId and ProcId, `&&`, `||` and parentheses around them; of what else is
    joined to them by `&&` it says nothing.
    """
    text = _STRING.sub("0", text).replace("=?=", "==")
    if not set("?[]{}/'").isdisjoint(text):
        return _EVERYTHING
    scan = _IdScan(text)
    found = scan.read()
    return found if len(found) <= _IDS_MAX else _EVERYTHING


class _IdScan:
    """One pass over the text; a parenthesis puts what came before it aside."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        #: Of the innermost parenthesis: complete alternatives, the present one, and its last operand.
        self.found: Ids = []
        self.present: Ids = _EVERYTHING
        self.operand: Ids = _EVERYTHING

    def read(self) -> Ids:
        text, aside = self.text, list[tuple[Ids, Ids]]()
        is_operand_next = True
        while (at := self._skip()) < len(text):
            two = text[at : at + 2]
            if is_operand_next and text[at] == "(":
                aside.append((self.found, self.present))
                self.found, self.present, self.operand = [], _EVERYTHING, _EVERYTHING
                self.at += 1
                continue
            if is_operand_next and (match := _CLAUSE.match(text, at)):
                number = int(match[2])
                self.operand = [(number, None) if match[1].lower() == "clusterid" else (None, number)]
                self.at = match.end()
            elif not is_operand_next and two in ("&&", "||"):
                self._end_operand()
                if two == "||":
                    self.found, self.present = self.found + self.present, _EVERYTHING
                self.at += 2
                is_operand_next = True
                continue
            elif not is_operand_next and text[at] == ")" and aside:
                self._end_operand()
                self.operand = self.found + self.present
                self.found, self.present = aside.pop()
                self.at += 1
            else:
                # Something else, or an operand that goes on as something else.
                self.operand = _EVERYTHING
                if not self._pass_over():
                    return _EVERYTHING
            is_operand_next = False
            if len(self.operand) + len(self.found) > _IDS_MAX:
                return _EVERYTHING
        self._end_operand()
        return _EVERYTHING if aside or is_operand_next else self.found + self.present

    def _skip(self) -> int:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _pass_over(self) -> bool:
        """To the end of an operand of another kind; False when there is nothing to pass over."""
        start, depth = self.at, 0
        while self.at < len(self.text):
            one = self.text[self.at]
            if depth == 0 and (one == ")" or self.text.startswith(("&&", "||"), self.at)):
                break
            depth += {"(": 1, ")": -1}.get(one, 0)
            self.at += 1
        return self.at > start

    def _end_operand(self) -> None:
        """What both say: the present alternative and its next operand."""
        if self.present is _EVERYTHING:
            self.present = self.operand
        elif self.operand is not _EVERYTHING and len(self.present) * len(self.operand) <= _IDS_MAX:
            both = [(_meet(a, c), _meet(b, d)) for a, b in self.present for c, d in self.operand]
            self.present = [(a, b) for a, b in both if _NEVER not in (a, b)]
        self.operand = _EVERYTHING


_NEVER = -1


def _meet(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return one if one == other else _NEVER
