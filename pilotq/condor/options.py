"""The command lines of condor_q, condor_history and condor_status: argv -> `Query`, or what is said at once.

Options may be given with one dash or two, in any case, and cut short as far as the tables say.
Source: HTCondor manual, condor_q, condor_history, condor_status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pilotq.condor import expressions
from pilotq.condor.formats import Mask
from pilotq.condor.jobad import CONDOR_PLATFORM, CONDOR_VERSION
from pilotq.condor.request import Reply, Request
from pilotq.errors import UserError

#: Option -> (shortest form's length, number of arguments). The first that fits counts.
Table = Mapping[str, tuple[int, int]]

_OUTPUT: Table = {
    "constraint": (1, 1),
    "format": (1, 2),
    "autoformat": (5, 0),
    "af": (2, 0),
    "long": (1, 0),
    "xml": (3, 0),
    "json": (2, 0),
    "jsonl": (5, 0),
    "attributes": (2, 1),
    "print-format": (2, 1),
    "pool": (1, 1),
    "name": (1, 1),
    "help": (1, 0),
    "version": (1, 0),
    "wide": (1, 0),
    "debug": (3, 0),
    "limit": (2, 1),
}
Q_OPTIONS: Table = {
    **_OUTPUT,
    "match": (1, 1),
    "totals": (1, 0),
    "nobatch": (3, 0),
    "batch": (1, 0),
    "run": (1, 0),
    "hold": (2, 0),
    "held": (2, 0),
    "idle": (1, 0),
    "global": (1, 0),
    "allusers": (2, 0),
    "submitter": (1, 1),
    "analyze": (2, 0),
    "analyse": (2, 0),
    "better-analyze": (2, 0),
    "better-analyse": (2, 0),
    "cumulative-time": (2, 0),
    "currentrun": (2, 0),
    "cputime": (2, 0),
    "dag": (2, 0),
    "expert": (1, 0),
    "address": (1, 1),
    "stream-results": (2, 0),
    "direct": (3, 1),
    "jobads": (4, 1),
    "userlog": (1, 1),
}
HISTORY_OPTIONS: Table = {
    **_OUTPUT,
    "match": (1, 1),
    "backwards": (1, 0),
    "forwards": (3, 0),
    "since": (1, 1),
    "completedsince": (3, 1),
    "scanlimit": (4, 1),
    "file": (2, 1),
    "userlog": (1, 1),
    "local": (3, 0),
    "allusers": (2, 0),
}
STATUS_OPTIONS: Table = {
    **_OUTPUT,
    "schedd": (3, 0),
    "submitters": (5, 0),
    "startd": (5, 0),
    "master": (1, 0),
    "collector": (3, 0),
    "negotiator": (2, 0),
    "any": (3, 0),
    "total": (1, 0),
    "claimed": (2, 0),
    "avail": (2, 0),
    "run": (1, 0),
    "state": (4, 0),
    "server": (2, 0),
    "compact": (3, 0),
    "nocompact": (3, 0),
    "sort": (3, 1),
    "direct": (3, 1),
    "statistics": (5, 1),
    "ads": (3, 1),
}
_TABLES = {"condor_q": Q_OPTIONS, "condor_history": HISTORY_OPTIONS, "condor_status": STATUS_OPTIONS}
#: What they take and ignore: there is one queue, and it answers everybody alike.
_IGNORED = frozenset(
    {"pool", "name", "debug", "global", "allusers", "dag", "expert", "address", "stream-results", "direct", "cputime"}
    | {"local", "startd", "nocompact", "compact", "backwards", "scanlimit", "sort", "statistics", "server"}
)
_FILES = frozenset({"print-format", "jobads", "userlog", "file", "ads"})
_USAGE = {
    "condor_q": "condor_q [id | cluster | owner]... [-constraint EXPR] [-nobatch | -batch | -run | -hold | -idle | "
    "-totals | -analyze | -long | -json | -jsonl | -xml | -format FMT ATTR | -af[:hjlVrtngTY,] ATTR...] "
    "[-attributes A,B] [-limit N] [-wide]",
    "condor_history": "condor_history [id | cluster | owner]... [-constraint EXPR] [-forwards] [-limit N] "
    "[-since ID] [-long | -json | -jsonl | -xml | -format FMT ATTR | -af[:hjlVrtngTY,] ATTR...] [-attributes A,B]",
    "condor_status": "condor_status [-schedd | -submitters] [machine]... [-constraint EXPR] [-total] [-claimed | "
    "-avail] [-long | -json | -jsonl | -xml | -format FMT ATTR | -af[:hjlVrtngTY,] ATTR...] [-attributes A,B]",
}
_BATCH_KNOBS = ("_CONDOR_CONDOR_Q_DASH_BATCH_IS_DEFAULT", "CONDOR_Q_DASH_BATCH_IS_DEFAULT")
_ID = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,10}))?", re.ASCII)
_GLUED = re.compile(r"--?((?:better-)?analy[sz]e)([0-9].*)", re.IGNORECASE)


@dataclass
class Query:
    """What one invocation asks."""

    tool: str
    #: (cluster, proc); proc None: the whole cluster.
    ids: list[tuple[int, int | None]] = field(default_factory=list)
    #: Of condor_status: names of slots or machines.
    owners: list[str] = field(default_factory=list)
    #: All must be true.
    constraints: list[str] = field(default_factory=list)
    #: nobatch, batch, run, hold, idle, totals, analyze, long, json, jsonl, xml, mask; history; and of condor_status:
    #: machines, schedd, submitters, none.
    output: str = "nobatch"
    #: Of condor_status: which ads.
    kind: str = "machines"
    mask: Mask = field(default_factory=Mask)
    #: Names for -long, -json, -xml; empty: all.
    attributes: list[str] = field(default_factory=list)
    limit: int | None = None
    forwards: bool = False
    cumulative: bool = False
    totals_only: bool = False
    #: Stop before this job.
    since: tuple[int, int | None] | None = None
    #: Longest line of a table; 0: any.
    width: int = 0

    @property
    def constraint(self) -> str:
        """All of it as one expression; "" when there is none."""
        if len(self.constraints) < 2:
            return "".join(self.constraints)
        return " && ".join([f"({part})" for part in self.constraints])


def find_option(table: Table, word: str) -> str | None:
    """The option that a dash word (without dashes and colon) is or abbreviates."""
    word = word.lower()
    if word in table:
        return word
    for name, (shortest, _) in table.items():
        if len(word) >= shortest and name.startswith(word):
            return name
    return None


def job_id(word: str) -> tuple[int, int | None] | None:
    """`cluster` or `cluster.proc`; None when it is neither."""
    match = _ID.fullmatch(word)
    if match is None:
        return None
    return int(match[1]), int(match[2]) if match[2] else None


def version() -> Reply:
    return Reply(out=f"{CONDOR_VERSION}\n{CONDOR_PLATFORM}\n")


def parse(request: Request) -> Query | Reply:
    """The query of a condor_q, condor_history or condor_status command line, or the reply when there is none."""
    query = Query(request.tool, output="history" if request.tool == "condor_history" else "nobatch")
    if request.tool == "condor_q" and any(_is_on(request.env.get(knob, "")) for knob in _BATCH_KNOBS):
        query.output = "batch"
    if request.tty and request.columns > 20:
        query.width = request.columns - 1
    try:
        return _Parser(request, query).parse()
    except UserError as error:
        return Reply(err=f"{error}\n", exit=1)


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "yes", "t")


class _Parser:
    def __init__(self, request: Request, query: Query) -> None:
        self.tool = request.tool
        self.table = _TABLES[request.tool]
        self.words = request.argv
        self.position = 0
        self.query = query

    def usage(self) -> str:
        return f"Usage: {_USAGE[self.tool]}"

    def parse(self) -> Query | Reply:
        while self.position < len(self.words):
            word = self.words[self.position]
            self.position += 1
            if not word.startswith("-") or word == "-":
                self.on_word(word)
                continue
            glued = _GLUED.fullmatch(word)
            if glued and self.tool == "condor_q":
                self.on_option("analyze", "", [])
                self.on_word(glued[2])
                continue
            name, _, colon = word.removeprefix("-").removeprefix("-").partition(":")
            option = find_option(self.table, name)
            if option is None:
                raise UserError(f"Error: unrecognized argument {word}\n{self.usage()}")
            if option == "version":
                return version()
            if option == "help":
                return Reply(out=self.usage() + "\n")
            self.on_option(option, colon, self.arguments(word, self.table[option][1]))
        return self.query

    def arguments(self, word: str, count: int) -> list[str]:
        found = self.words[self.position : self.position + count]
        if len(found) < count:
            needs = "another parameter" if count == 1 else "format and attribute parameters"
            raise UserError(f"Error: {word} requires {needs}")
        self.position += count
        return found

    def on_word(self, word: str) -> None:
        found = job_id(word)
        if found is not None and self.tool != "condor_status":
            self.query.ids.append(found)
        else:
            self.query.owners.append(word)

    def on_option(self, option: str, colon: str, found: list[str]) -> None:
        query = self.query
        if option in _IGNORED:
            return
        if option in _FILES:
            raise UserError(f"Error: -{option} is not supported by pilotq")
        if option == "constraint":
            if not expressions.valid(found[0]):
                raise UserError(f"Error: Argument {self.position} ({found[0]}) is not a valid constraint")
            query.constraints.append(found[0])
        elif option in ("format", "autoformat", "af"):
            self.on_mask(option, colon, found)
        elif option == "attributes":
            query.attributes += [name.strip() for name in found[0].replace(",", " ").split()]
        elif option in ("limit", "match"):
            query.limit = self.number(option, found[0])
        elif option == "completedsince":
            query.constraints.append(f"CompletionDate >= {self.number(option, found[0])}")
        elif option == "since":
            query.since = job_id(found[0])
            if query.since is None:
                raise UserError(f"Error: -since {found[0]}: pilotq takes a job id there")
        elif option == "submitter":
            query.owners.append(found[0].partition("@")[0])
        else:
            self.on_flag(option)

    def on_flag(self, option: str) -> None:
        query = self.query
        if option == "wide":
            query.width = 0
        elif option == "forwards":
            query.forwards = True
        elif option == "cumulative-time":
            query.cumulative = True
        elif option in ("schedd", "submitters"):
            query.kind = option
        elif option in ("master", "collector", "negotiator"):
            query.kind = "none"
        elif option == "any":
            query.kind = "any"
        elif option == "claimed":
            query.constraints.append('State == "Claimed"')
        elif option == "avail":
            query.constraints.append('State == "Unclaimed"')
        elif self.tool == "condor_status" and option in ("total", "run", "state"):
            if option == "run":
                query.constraints.append('State == "Claimed"')
            query.totals_only = query.totals_only or option == "total"
        elif option == "totals":
            query.totals_only = True
            if query.output not in ("mask", "long", "json", "jsonl", "xml"):
                query.output = "totals"
        elif option in ("nobatch", "currentrun"):
            if query.output == "batch":
                query.output = "nobatch"
        else:
            query.output = _OUTPUTS.get(option, option)
            query.constraints += _NARROW.get(option, [])

    def on_mask(self, option: str, colon: str, found: list[str]) -> None:
        self.query.output = "mask"
        if option == "format":
            self.query.mask.add_format(found[0], found[1])
            return
        sources = []
        while self.position < len(self.words) and not self.words[self.position].startswith("-"):
            sources.append(self.words[self.position])
            self.position += 1
        if not sources and "j" not in colon:
            raise UserError("Error: -autoformat requires at least one attribute parameter")
        if self.position < len(self.words) and self.words[self.position] == "-":
            self.position += 1
        self.query.mask.add_autoformat(colon, sources)

    def number(self, option: str, word: str) -> int:
        if not word.isascii() or not word.isdigit():
            raise UserError(f"Error: -{option} requires a number, not {word}")
        return int(word)


_OUTPUTS = {"held": "hold", "analyse": "analyze", "better-analyze": "analyze", "better-analyse": "analyze"}
#: What the tables for one state select.
_NARROW = {
    "run": ["JobStatus == 2 || JobStatus == 6 || JobStatus == 7"],
    "hold": ["JobStatus == 5"],
    "held": ["JobStatus == 5"],
    "idle": ["JobStatus == 1"],
}
