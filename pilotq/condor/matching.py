"""`$$(attribute)`, `$$(attribute:default)` and `$$([expression])`: what only the slot that runs a job knows.

Source: HTCondor manual, condor_submit, substitution at match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from pilotq.model import Description

_REFERENCE = re.compile(
    r"\$\$\((?:\[(?P<expression>.*?)\]|(?P<name>[A-Za-z_]\w*)(?::(?P<default>[^()]*))?)\)", re.DOTALL
)
_TARGET = re.compile(r"\bTARGET\s*\.\s*", re.IGNORECASE)


def is_matched_later(text: str) -> bool:
    return "$$(" in text


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

    value = evaluate(_TARGET.sub("", match["expression"] or match["name"]), attributes, 0)
    if value == UNDEFINED and match["default"] is not None:
        return match["default"]
    if value in (UNDEFINED, ERROR):
        raise ValueError(f"Cannot expand {match[0]}: the machine does not say")
    return value if isinstance(value, str) else unparse(value)
