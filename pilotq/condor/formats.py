"""How ads are printed: print masks (-format, -autoformat), -long, -json, -xml.

Source: HTCondor manual, condor_q; reference: HTCondor's print masks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pilotq.condor import expressions
from pilotq.condor.expressions import ERROR, UNDEFINED, Ad, Value, canonical, literal, unparse
from pilotq.errors import UserError

#: Seconds since 1970 -> an object with tm_year ... tm_sec in the local zone (time.localtime of the caller).
Local = Callable[[float], Any]

_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>[0-9]{1,4})?(?:\.(?P<precision>[0-9]{0,4}))?"
    r"(?:hh|h|ll|l|L|q|j|z|t)?(?P<letter>[diouxXceEfFgGaAsvVrTY])"
)
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_INTEGERS = frozenset("diouxXc")
_REALS = frozenset("eEfFgGaA")
_MEMO_MAX = 4096


#: Later moments and longer durations than this are not those of a job; some do not fit a calendar.
SECONDS_MAX = 1 << 36


def days(seconds: float) -> str:
    """A duration as `d+hh:mm:ss`, 12 wide."""
    if not seconds < SECONDS_MAX:
        return f"{'[?????]':>12}"
    whole = max(int(seconds), 0)
    return f"{whole // 86400:3d}+{whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def date(at: float, local: Local) -> str:
    """A moment as ` m/d  hh:mm`, 11 wide."""
    if not 0 <= at < SECONDS_MAX:
        return f"{'???':>11}"
    when = local(at)
    return f"{when.tm_mon:2d}/{when.tm_mday:<2d} {when.tm_hour:02d}:{when.tm_min:02d}"


def stamp(at: float, local: Local) -> str:
    """A moment as `YYYY-MM-DD hh:mm:ss`."""
    if not 0 <= at < SECONDS_MAX:
        return "???"
    when = local(at)
    day = f"{when.tm_year:04d}-{when.tm_mon:02d}-{when.tm_mday:02d}"
    return f"{day} {when.tm_hour:02d}:{when.tm_min:02d}:{when.tm_sec:02d}"


# ---- masks -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Column:
    """One field of a mask: text before, one conversion, text after."""

    #: Attribute or expression; what -format calls ATTR.
    source: str
    before: str = ""
    after: str = ""
    #: Conversion; "": only the text, always; "j": the id of the job.
    letter: str = "v"
    flags: str = ""
    width: int = 0
    precision: str = ""
    heading: str = ""
    #: Attribute in lower case when the source is only a name.
    name: str = ""
    expression: expressions.Expression | None = None
    _memo: dict[str | None, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes it looks up itself, lower case."""
        if self.letter == "j":
            return ("clusterid", "procid")
        if not self.letter:
            return ()
        if self.name:
            return (self.name,)
        return self.expression.names if self.expression else ()

    def render(self, ad: Ad, now: float, local: Local) -> str:
        if not self.letter:
            return self.before
        if self.letter == "j":
            return f"{self.before}{_whole(ad, 'clusterid')}.{_whole(ad, 'procid')}"
        if not self.name:
            value = self.expression.evaluate(ad, now) if self.expression else ERROR
            return self._print(value, None, local)
        text = ad.get(self.name)
        shown = self._memo.get(text)
        if shown is not None:
            return shown
        value = UNDEFINED if text is None else literal(text)
        if value is None:
            # An expression's value may differ between ads with the same text.
            return self._print(expressions.compiled(self.name).evaluate(ad, now), text, local)
        if len(self._memo) >= _MEMO_MAX:
            self._memo.clear()
        shown = self._memo[text] = self._print(value, text, local)
        return shown

    def _print(self, value: Value, text: str | None, local: Local) -> str:
        """`text`: of the attribute; None when there is none by that name."""
        shown = self._convert(value, text, local)
        if shown is None:
            return " " * self.width
        return f"{self.before}{shown}{self.after}"

    def _convert(self, value: Value, text: str | None, local: Local) -> str | None:
        """The value as the conversion wants it; None: it cannot, so nothing of the format is printed."""
        letter = self.letter
        number = isinstance(value, (bool, int, float)) and value is not UNDEFINED and value is not ERROR
        if letter in _INTEGERS:
            if not number or not math.isfinite(value):
                return None
            return self._printf(letter, int(value) & 0x10FFFF if letter == "c" else int(value))
        if letter in _REALS:
            return self._printf(letter if letter not in "aA" else "g", float(value)) if number else None
        if letter == "s":
            shown = value if isinstance(value, str) else None if text is None else canonical(text)
            return None if shown is None else self._printf("s", shown)
        if letter == "r":
            shown = canonical(self.source) if not self.name else "undefined" if text is None else canonical(text)
        elif letter == "T" and number:
            shown = days(value).strip()
        elif letter == "Y" and number:
            shown = stamp(value, local)
        else:
            shown = value if isinstance(value, str) and letter != "V" else unparse(value)
        return self._printf("s", shown)

    def _printf(self, letter: str, value: Any) -> str:
        width = str(self.width) if self.width else ""
        precision = f".{self.precision}" if self.precision else ""
        if letter in "oxX" and value < 0:
            value &= 0xFFFFFFFF
        return str(f"%{self.flags}{width}{precision}{letter}" % value)


def _whole(ad: Ad, name: str) -> int:
    """A part of a job's id; 0 in an ad that has none."""
    value = literal(ad.get(name) or "")
    return value if isinstance(value, int) and value is not UNDEFINED and value is not ERROR else 0


def _resolve(column: Column, source: str) -> Column:
    if _NAME.fullmatch(source) and source.lower() not in ("true", "false", "undefined", "error"):
        column.name = source.lower()
        if column.name == "currenttime":
            column.name, column.expression = "", expressions.find("CurrentTime")
    else:
        column.expression = expressions.find(source)
    return column


def unescaped(text: str) -> str:
    r"""A format with \n, \t and their like turned into what they stand for."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 8) & 255)
        if match[2]:
            return chr(int(match[2], 16))
        return _ESCAPES.get(match[3], match[3])

    return _ESCAPE.sub(replace, text)


def format_column(fmt: str, source: str) -> Column:
    """The column of `-format FMT ATTR`."""
    text = unescaped(fmt)
    position = 0
    while True:
        start = text.find("%", position)
        if start < 0:
            return Column(source, before=text.replace("%%", "%"), letter="")
        if text.startswith("%%", start):
            position = start + 2
            continue
        match = _CONVERSION.match(text, start)
        if match is None:
            return Column(source, before=text, letter="")
        column = Column(
            source,
            before=text[:start].replace("%%", "%"),
            after=text[match.end() :].replace("%%", "%"),
            letter=match["letter"],
            flags=match["flags"],
            width=int(match["width"] or 0),
            precision="" if match["precision"] is None else match["precision"] or "0",
        )
        return _resolve(column, source)


@dataclass
class Mask:
    """What -format and -autoformat options ask for; the separators of -autoformat are for all columns."""

    columns: list[Column] = field(default_factory=list)
    row_prefix: str = ""
    column_prefix: str = ""
    column_suffix: str = ""
    row_suffix: str = ""
    headings: bool = False

    @property
    def names(self) -> set[str]:
        return {name for column in self.columns for name in column.names}

    def add_format(self, fmt: str, source: str) -> None:
        self.columns.append(format_column(fmt, source))

    def add_autoformat(self, options: str, sources: list[str]) -> None:
        """Raises: UserError when an option letter is unknown."""
        unknown = set(options) - set("hjlVrtnogTY,")
        if unknown:
            raise UserError(f"Error: unknown -autoformat option {''.join(sorted(unknown))}", exit_code=1)
        letter = next((found for found in "rVTY" if found in options.replace("o", "r")), "v")
        labels = "l" in options
        self.headings = self.headings or "h" in options
        self.column_prefix, self.column_suffix, self.row_prefix, self.row_suffix = " ", "", "", "\n"
        for option in options:
            if option == "t":
                self.column_prefix = "\t"
            elif option == "g":
                self.column_prefix, self.row_prefix = "", "\n"
            elif option in ",n":
                self.column_suffix = "," if option == "," else "\n"
        if "j" in options:
            self.columns.append(Column("", letter="j", heading=" ID", before="ID = " if labels else ""))
        for source in sources:
            column = Column(source, letter=letter, heading=source, before=f"{source} = " if labels else "")
            self.columns.append(_resolve(column, source))

    def fields(self, ad: Ad, now: float, local: Local) -> list[str]:
        return [
            self._id(ad) if self.headings and column.letter == "j" else column.render(ad, now, local)
            for column in self.columns
        ]

    def _id(self, ad: Ad) -> str:
        return f"{_whole(ad, 'clusterid'):4d}.{_whole(ad, 'procid'):<3d}"

    def row(self, fields: list[str], widths: list[int] | None = None) -> str:
        if widths is not None:
            fields = [shown.ljust(width) for shown, width in zip(fields, widths, strict=True)]
        glue = self.column_suffix + self.column_prefix
        return f"{self.row_prefix}{glue.join(fields)}{self.row_suffix}"

    def heading_fields(self) -> list[str]:
        return [column.heading for column in self.columns]


# ---- whole ads -------------------------------------------------------------------------------------------------


def long_text(attributes: Mapping[str, str]) -> str:
    """An ad as -long prints it, blank line after it included; the attributes come sorted."""
    return "".join([f"{name} = {canonical(text)}\n" for name, text in attributes.items()]) + "\n"


def json_object(attributes: Mapping[str, str]) -> str:
    """An ad as a JSON object, indented."""
    lines = [f"  {_json_name(name)}: {_json(text)}" for name, text in attributes.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def json_line(attributes: Mapping[str, str]) -> str:
    """An ad as a JSON object on one line."""
    return json.dumps(json.loads(json_object(attributes)), ensure_ascii=False)


@lru_cache(4096)
def _json_name(name: str) -> str:
    return json.dumps(name)


@lru_cache(16384)
def _json(text: str) -> str:
    value = literal(text)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is UNDEFINED:
        return "null"
    if isinstance(value, str):
        return json.dumps(expressions.printable(value), ensure_ascii=False)
    if isinstance(value, int) and value is not ERROR:
        return text
    return expressions.json_text(text)


XML_HEAD = '<?xml version="1.0"?>\n<!DOCTYPE classads SYSTEM "classads.dtd">\n<classads>\n'
XML_FOOT = "</classads>\n"
_XML_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})
#: Characters that XML 1.0 has no way to write.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def xml_text(attributes: Mapping[str, str]) -> str:
    """An ad as a `<c>` element."""
    lines = [f'    <a n="{_escaped(name)}">{_xml(text)}</a>\n' for name, text in attributes.items()]
    return "<c>\n" + "".join(lines) + "</c>\n"


def _escaped(text: str) -> str:
    return _NOT_XML.sub("?", expressions.printable(text)).translate(_XML_ESCAPES)


def _xml(text: str) -> str:
    value = literal(text)
    if value is None:
        if text.startswith("{"):
            found = expressions.find(text)
            items = found.evaluate({}) if found is not None and not found.names else None
            if isinstance(items, list):
                return "<l>" + "".join([_xml(unparse(item)) for item in items]) + "</l>"
        return f"<e>{_escaped(canonical(text))}</e>"
    if value is UNDEFINED:
        return "<un/>"
    if value is ERROR:
        return "<er/>"
    if isinstance(value, bool):
        return f'<b v="{"t" if value else "f"}"/>'
    if isinstance(value, int):
        return f"<i>{value}</i>"
    if isinstance(value, float):
        return f"<r>{value:.15E}</r>"
    return f"<s>{_escaped(value)}</s>"
