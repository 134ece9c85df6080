"""Arguments and environment as submit files write them, and as job ads keep them.

Three syntaxes: *old* (`a b \\"c\\"`, `A=1;B=2`), *raw new* (blanks separate, single quotes group, two of them inside
of a group stand for one), and *new* (raw new inside of double quotes, two of them stand for one).

Source: HTCondor manual, condor_submit, `arguments` and `environment`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pilotq.condor.lexer import SubmitError, shown

_BLANKS = " \t\r\n"
_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"')
#: Bare text, a group with its quotes, a quote that opens a group that never ends, blanks.
_PIECE = re.compile(r"([^ \t\r\n']+)|'((?:[^']++|'')*+)'|(')|([ \t\r\n]+)")
_WORD = re.compile(r"[^ \t\r\n]+")
_SPECIAL = re.compile(r"[ \t\r\n']+")


def is_new(text: str) -> bool:
    """Whether a value is in the new syntax: it begins with a double quote."""
    return text[:1] == '"'


def unquoted(text: str) -> str:
    """The raw new syntax within the double quotes of the new one.

    Raises: SubmitError.
    """
    match = _QUOTED.match(text)
    if match is None:
        raise SubmitError("Unterminated double-quote.")
    if text[match.end() :].strip(_BLANKS):
        raise SubmitError(
            "Unexpected characters following double-quote.  Did you forget to escape the double-quote by repeating it?"
            f"  Here is the quote and trailing characters: {shown(text[match.end() - 1 :])}"
        )
    return match[1].replace('""', '"')


def split_new(raw: str) -> list[str]:
    """Words of the raw new syntax.

    Raises: SubmitError when a quote is not closed.
    """
    words: list[str] = []
    word: str | None = None
    for piece in _PIECE.finditer(raw):
        bare, group, lone, blank = piece.groups()
        if blank:
            if word is not None:
                words.append(word)
            word = None
        elif lone:
            raise SubmitError(f"Unbalanced quote starting here: {shown(raw[piece.start() :])}")
        else:
            word = (word or "") + (bare if bare is not None else group.replace("''", "'"))
    if word is not None:
        words.append(word)
    return words


def join_new(words: Iterable[str]) -> str:
    """Words as raw new syntax, in HTCondor's own spelling."""
    return " ".join([_SPECIAL.sub(_grouped, word) if word else "''" for word in words])


def _grouped(match: re.Match[str]) -> str:
    return "'" + match[0].replace("'", "''") + "'"


def split_old(text: str) -> list[str]:
    """Words of the old syntax of arguments.

    Raises: SubmitError for a double quote without its backslash.
    """
    plain = text.replace('\\"', "")
    if '"' in plain:
        raise SubmitError(
            f"Found illegal unescaped double-quote: {shown(plain[plain.index(chr(34)) :])}\n"
            f"The full arguments you specified were: {shown(text)}"
        )
    return _WORD.findall(text.replace('\\"', '"'))


def parse_arguments(text: str) -> list[str]:
    """Words of `arguments`, in either syntax."""
    if not is_new(text):
        return split_old(text)
    try:
        return split_new(unquoted(text))
    except SubmitError as error:
        raise SubmitError(f"{error}\nThe full arguments you specified were: {shown(text)}") from None


def parse_environment(text: str) -> dict[str, str]:
    """Variables of `environment`, in either syntax; of equal names the last counts.

    Raises: SubmitError, also for an entry without "=".
    """
    try:
        if is_new(text):
            return _variables(split_new(unquoted(text)))
        return _variables(entry.lstrip(_BLANKS) for entry in text.split(";"))
    except SubmitError as error:
        raise SubmitError(f"{error}\nThe environment you specified was: '{shown(text)}'") from None


def _variables(entries: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            if not entry:
                continue
            raise SubmitError(f"Missing '=' after environment variable '{shown(entry)}'.")
        if not name:
            raise SubmitError(f"missing variable in '{shown(entry)}'.")
        found[name] = value
    return found


def join_environment(variables: Mapping[str, str]) -> str:
    """Variables as the raw new syntax that job ads keep."""
    return join_new([f"{name}={value}" for name, value in variables.items()])
