"""One job as its submit file describes it: values of keywords, and the parts of a description made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pilotq.condor.jobad import CONDOR_VERSION
from pilotq.condor.lexer import SubmitError, shown
from pilotq.condor.macro_functions import calculate, known
from pilotq.condor.macros import Macros
from pilotq.condor.submit_options import Options
from pilotq.condor.user_side import UserSide
from pilotq.model import CLUSTER_MARK, PROC_MARK, FileRef, Resources

#: Keywords in which `$$()` stands for what the slot says.
_AT_MATCH = frozenset({"arguments", "arguments2", "environment", "environment2"})
_TRUE = frozenset({"true", "t", "yes", "1"})
_FALSE = frozenset({"false", "f", "no", "0"})
#: Expressions that need no parser to be seen to be right.
_SIMPLE = re.compile(r'-?[0-9]+|[A-Za-z_]\w*|"[^"\\]*"', re.ASCII)
_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class Universe(IntEnum):
    """Where a job runs. Those of the head run there, in the master's care; grid is run as if it were vanilla."""

    VANILLA = 5
    SCHEDULER = 7
    GRID = 9
    LOCAL = 12


_UNIVERSES = {**{one.name.lower(): one for one in Universe}, **{str(int(one)): one for one in Universe}}
_OTHER_UNIVERSES = frozenset(["8", "10", "11", "13", "container", "docker", "java", "parallel", "vm"])


@dataclass(frozen=True)
class Site:
    """What the submit language must know of the pool."""

    host: str
    schedd_name: str
    arch: str = "X86_64"
    opsys: str = "LINUX"
    #: Of tasks that do not say what they need.
    needs: Resources = field(default_factory=Resources)
    #: Of tasks that name none; 0: no limit.
    wall_time_s: float = 0
    #: Put before every payload, and its file.
    wrapper: list[str] = field(default_factory=list)
    wrapper_file: FileRef | None = None
    version: str = CONDOR_VERSION
    #: Whether a text is a ClassAd expression.
    valid: Callable[[str], bool] = bool


@dataclass(eq=False)
class Parts:
    """Fields of `Description` and `ClusterBody` that one section gives, and attributes of the ad.

    `decides`: of those fields that the master looks at by cluster, the ones that this section may give.
    """

    description: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    ad: dict[str, str] = field(default_factory=dict)
    decides: tuple[str, ...] = ()


class Job:
    """The values of one proc, or with marks in them of many."""

    def __init__(self, macros: Macros, side: UserSide, site: Site, options: Options, now: float) -> None:
        self.macros = macros
        self.side = side
        self.site = site
        self.options = options
        self.now = now
        #: The proc planned at the moment, also where values hold its mark.
        self.proc = 0
        self.warnings: dict[str, None] = {}
        #: Directories and roles whose writability was asked.
        self.asked: set[tuple[str, str]] = set()
        self.imported: dict[str, dict[str, str]] = {}
        #: Values without macros, by the names they were asked for.
        self._constant: dict[tuple[str, ...], str] = {}

    def warn(self, sentence: str) -> None:
        """Once, however many procs it is true of."""
        self.warnings[sentence] = None

    def get(self, *names: str) -> str:
        """The first of these keywords, in lower case, that has a value; ""."""
        found = self._constant.get(names)
        if found is not None:
            return found
        table = self.macros.table
        constant = True
        value = ""
        for name in names:
            entry = table.get(name)
            if entry is not None and entry.value:
                value = entry.value
                if "$" in value:
                    constant = False
                    value = self.macros.expand(value).strip()
                if value:
                    break
        if constant:
            self._constant[names] = value
        elif "$$(" in value and not _AT_MATCH.intersection(names):
            self.warn(f"$$() is resolved in arguments and environment only: {names[0]} = {shown(value)}")
        return value

    def begin(self) -> None:
        """Before the jobs of a queue statement: definitions may have changed."""
        self._constant = {}

    def known(self, *names: str) -> str:
        """Like `get`, for what must be known now.

        Raises: NeedsProc.
        """
        value = self.get(*names)
        return known(value, names[0]) if "\x00" in value else value

    def flag(self, default: bool, *names: str) -> bool:
        value = self.known(*names)
        if not value:
            return default
        lower = value.lower()
        if lower in _TRUE or lower in _FALSE:
            return lower in _TRUE
        number = calculate(value)
        if number is None:
            raise SubmitError(f"{names[0]}={shown(value)} is invalid, must eval to a boolean.")
        return bool(number)

    def integer(self, *names: str) -> int | None:
        """None: not given."""
        value = self.known(*names)
        if not value:
            return None
        number = calculate(value)
        if number is None:
            raise SubmitError(f"{names[0]}={shown(value)} is invalid, must eval to an integer.")
        return int(number)

    def expression(self, attribute: str, text: str) -> str:
        """The text, once it is known to be an expression."""
        if not _ATTRIBUTE.fullmatch(attribute):
            raise SubmitError(f"{shown(attribute)} cannot be the name of an attribute")
        if not _SIMPLE.fullmatch(text):
            plain = text.replace(CLUSTER_MARK, "1").replace(PROC_MARK, "1") if "\x00" in text else text
            if not self.site.valid(plain):
                raise SubmitError(f"Parse error in expression: {attribute} = {shown(text)}")
        return text

    def literal(self, name: str) -> str | None:
        """The string that an attribute given as `+Name` is; None when it is not given.

        Raises: SubmitError when it is no string.
        """
        value = self.get("my." + name.lower())
        if not value or value.lower() == "undefined":
            return None
        if len(value) < 2 or value[0] != '"' or value[-1] != '"':
            raise SubmitError(f'{name} must be a quoted string: +{name} = "{shown(value)}"')
        return value[1:-1].replace('\\"', '"')

    @property
    def universe(self) -> Universe:
        """Raises: SubmitError for one that pilotq does not have."""
        name = self.known("universe", "jobuniverse").lower() or "vanilla"
        universe = _UNIVERSES.get(name)
        if universe is None:
            if name in ("standard", "1"):
                raise SubmitError("'Standard' is not a supported universe.")
            if name in _OTHER_UNIVERSES:
                raise SubmitError(
                    f"the universe {name} is not supported by pilotq: use vanilla, local, scheduler or grid"
                )
            raise SubmitError(f"I don't know about the '{shown(name)}' universe.")
        return universe

    @property
    def is_grid(self) -> bool:
        return self.universe == Universe.GRID

    @property
    def is_on_head(self) -> bool:
        return self.universe in (Universe.LOCAL, Universe.SCHEDULER)

    @property
    def iwd(self) -> str:
        """Absolute."""
        return self.side.path(self.known("initialdir", "initial_dir", "job_iwd", "iwd"))

    def sample(self, path: str) -> str:
        """A path as it will be for the present proc, but for the number of the cluster."""
        return path.replace(PROC_MARK, str(self.proc)) if PROC_MARK in path else path


def is_null(path: str) -> bool:
    return path in ("", "/dev/null")
