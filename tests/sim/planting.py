"""Putting something wrong in place of what is right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple


class Planted(NamedTuple):
    """A bug: what it is, and (owner, attribute, replacement)."""

    name: str
    text: str
    patches: tuple[tuple[Any, str, Any], ...]


@contextlib.contextmanager
def planted(bug: Planted) -> Iterator[None]:
    """With the bug in place."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in bug.patches]
    try:
        for owner, name, wrong in bug.patches:
            setattr(owner, name, wrong)
        yield
    finally:
        for owner, name, right in before:
            setattr(owner, name, right)


BUGS: list[Planted] = []


def bug(name: str, text: str, owner: Any, attribute: str) -> Any:
    """The decorated function takes the place of the attribute; it gets the right one first."""

    def plant(wrong: Any) -> Any:
        right = getattr(owner, attribute)

        def in_place(*arguments: Any, **more: Any) -> Any:
            return wrong(right, *arguments, **more)

        BUGS.append(Planted(name, text, ((owner, attribute, in_place),)))
        return wrong

    return plant
