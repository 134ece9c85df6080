"""`$$(attribute)`, `$$(attribute:default)` and `$$([expression])`: what only the slot that runs a job knows.

Source: HTCondor manual, condor_submit, substitution at match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from pilotq.errors import UserError
from pilotq.model import Description

_REFERENCE = re.compile(
    r"\$\$\((?:\[(?P<expression>.*?)\]|(?P<name>[A-Za-z_]\w*)(?::(?P<default>[^()]*))?)\)", re.DOTALL
)
_HIDDEN = re.compile("\x01([0-9]+)\x01")
_TARGET = re.compile(r"\bTARGET\s*\.\s*", re.IGNORECASE)


def shielded(text: str) -> tuple[str, Callable[[str], str]]:
    """A text whose references nothing in them can be split at, and what puts them back into its parts."""
    found: list[str] = []

    def hide(match: re.Match[str]) -> str:
        found.append(match[0])
        return f"\x01{len(found) - 1}\x01"

    def restore(part: str) -> str:
        return _HIDDEN.sub(lambda match: found[int(match[1])], part) if found else part

    return (_REFERENCE.sub(hide, text), restore) if "$$(" in text else (text, restore)


def matched(d: Description, machine_ad: str) -> Description:
    """A description with the words of its command and environment that were left open until the match.

    Raises: ValueError when the slot does not say what is asked for.
    """
    attributes = {**_attributes(machine_ad), **_attributes(d.job_ad)}

    def resolve(text: str) -> str:
        return _REFERENCE.sub(lambda match: _value(match, attributes), text) if "$$(" in text else text

    return msgspec.structs.replace(
        d, argv=[resolve(word) for word in d.argv], env={name: resolve(value) for name, value in d.env.items()}
    )


def _attributes(ad: str) -> dict[str, str]:
    lines = (line.partition(" = ") for line in ad.split("\n"))
    return {name: text for name, _, text in lines if text}


def _value(match: re.Match[str], attributes: Mapping[str, str]) -> str:
    # Workers load the ClassAd engine for this alone.
    from pilotq.condor.expressions import ERROR, UNDEFINED, evaluate, unparse

    try:
        value = evaluate(_TARGET.sub("", match["expression"] or match["name"]), attributes, 0)
    except UserError as error:
        raise ValueError(f"Cannot expand {match[0]}: {error}") from None
    # By identity: to the library, an integer may equal one of them.
    if value is UNDEFINED and match["default"] is not None:
        return match["default"]
    if value is UNDEFINED or value is ERROR:
        raise ValueError(f"Cannot expand {match[0]}: the machine does not say")
    return value if isinstance(value, str) else unparse(value)
