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
from pilotq.condor.request import Reply, Request, text
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
    {"pool", "name", "debug", "dag", "expert", "address", "stream-results", "direct", "cputime"}
    | {"local", "startd", "nocompact", "backwards", "statistics"}
)
_NOT_HERE = frozenset({"print-format", "userlog"})
#: What takes a file of ads.
_FILES = frozenset({"jobads", "file", "ads"})
#: Kinds of ads condor_status shows.
_KINDS = frozenset({"schedd", "submitters", "master", "collector", "negotiator", "any"})
#: Tables of slots, besides the usual one.
_SLOT_TABLES = {"run": "slots-run", "state": "slots-state", "server": "slots-server", "compact": "compact"}
_USAGE = {
    "condor_q": "condor_q [id | cluster | owner]... [-constraint EXPR] [-nobatch | -batch | -run | -hold | -idle | "
    "-totals | -analyze | -long | -json | -jsonl | -xml | -format FMT ATTR | -af[:hjlVrtngTY,] ATTR...] "
    "[-attributes A,B] [-limit N] [-allusers] [-global] [-jobads FILE] [-wide]",
    "condor_history": "condor_history [id | cluster | owner]... [-constraint EXPR] [-forwards] [-limit N] "
    "[-since ID | EXPR] [-completedsince TIME] [-scanlimit N] [-file FILE] "
    "[-long | -json | -jsonl | -xml | -format FMT ATTR | -af[:hjlVrtngTY,] ATTR...] [-attributes A,B]",
    "condor_status": "condor_status [-schedd | -submitters | -master | -collector | -negotiator | -any] [name]... "
    "[-constraint EXPR] [-total] [-claimed | -avail] [-run | -state | -server | -compact] [-sort EXPR] [-limit N] "
    "[-ads FILE] [-long | -json | -jsonl | -xml | -format FMT ATTR | -af[:hjlVrtngTY,] ATTR...] [-attributes A,B]",
}
_BATCH_KNOB, _MINE_KNOB, _OLD_SUMMARY_KNOB = (
    "CONDOR_Q_DASH_BATCH_IS_DEFAULT",
    "CONDOR_Q_ONLY_MY_JOBS",
    "CONDOR_Q_SHOW_OLD_SUMMARY",
)
#: Of files of ads; "": by its first character.
FORMS = frozenset({"", "auto", "long", "json", "xml"})
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
    #: slots-run, slots-state, slots-server, compact.
    output: str = "nobatch"
    #: Of condor_status: which ads; machines, or one of `_KINDS`.
    kind: str = "machines"
    #: Of condor_status: expressions by which the ads are sorted.
    sort: list[str] = field(default_factory=list)
    mask: Mask = field(default_factory=Mask)
    #: Names for -long, -json, -xml; empty: all.
    attributes: list[str] = field(default_factory=list)
    limit: int | None = None
    forwards: bool = False
    cumulative: bool = False
    totals_only: bool = False
    #: Of condor_history: stop before the first job for which this is true; look at so many at most.
    since: str = ""
    scan_limit: int | None = None
    #: Only the asking user's jobs, unless jobs or owners are named.
    is_mine_only: bool = False
    is_global: bool = False
    #: One line of totals, as old versions had it.
    old_summary: bool = False
    #: A file of ads that are looked at instead of the pool's: its name, its form, what is in it.
    file: str = ""
    form: str = ""
    text: str = ""
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
    if request.tool == "condor_q":
        query.output = "batch" if _is_on(request, _BATCH_KNOB) else "nobatch"
        query.is_mine_only = _is_on(request, _MINE_KNOB)
        query.old_summary = _is_on(request, _OLD_SUMMARY_KNOB)
    if request.tty and request.columns > 20:
        query.width = request.columns - 1
    try:
        found = _Parser(request, query).parse()
        return found if isinstance(found, Reply) or not query.file else _with_file(request, query)
    except UserError as error:
        return Reply(err=f"{error}\n", exit=1)


def _with_file(request: Request, query: Query) -> Query | Reply:
    """The query with what is in the file it names, or the wish to be told."""
    want = ("read", query.file)
    answer = request.answers.get(want)
    if answer is None:
        return Reply(wants=[want])
    if not answer.ok:
        raise UserError(f"Error: Can't open file {query.file}: {answer.error}")
    query.text = text(answer.data)
    return query


def needs_workers(request: Request) -> bool:
    """Is the list of all workers needed to answer it?"""
    if request.tool != "condor_q":
        return request.tool == "condor_status"
    words = [word.lstrip("-").lower() for word in request.argv if word.startswith("-")]
    return any(word.startswith(("an", "be")) for word in words)


def _is_on(request: Request, knob: str) -> bool:
    """A knob by its name or, in any case, with `_CONDOR_` before it."""
    values = [value for name, value in request.env.items() if name == knob or name.upper() == f"_CONDOR_{knob}"]
    return any(value.strip().lower() in ("true", "1", "yes", "t") for value in values)


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
                # Scripts leave variables empty.
                if word:
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
        if option in _NOT_HERE:
            raise UserError(f"Error: -{option} is not supported by pilotq")
        if option == "constraint":
            if found[0] and not expressions.valid(found[0]):
                raise UserError(f"Error: Argument {self.position} ({found[0]}) is not a valid constraint")
            query.constraints += found if found[0] else []
        elif option in ("format", "autoformat", "af"):
            self.on_mask(option, colon, found)
        elif option == "attributes":
            query.attributes += [name.strip() for name in found[0].replace(",", " ").split()]
        elif option in ("limit", "match"):
            query.limit = self.number(option, found[0])
        elif option == "scanlimit":
            query.scan_limit = self.number(option, found[0])
        elif option == "completedsince":
            query.constraints.append(f"CompletionDate >= {self.number(option, found[0])}")
        elif option == "since":
            query.since = self.since(found[0])
        elif option == "sort":
            if not expressions.valid(found[0]):
                raise UserError(f"Error: -sort: {found[0]} is not an expression")
            query.sort.append(found[0])
        elif option == "submitter":
            query.owners.append(found[0].partition("@")[0])
        elif option in _FILES:
            if colon not in FORMS:
                raise UserError(f"Error: -{option}: pilotq does not read ads in the form {colon}")
            query.file, query.form = found[0], colon
        else:
            self.on_flag(option)

    def since(self, word: str) -> str:
        """A job id, or an expression."""
        found = job_id(word)
        if found is not None:
            cluster, proc = found
            return f"ClusterId == {cluster}" + ("" if proc is None else f" && ProcId == {proc}")
        if not expressions.valid(word):
            raise UserError(f"Error: invalid -since constraint: {word}\n\tconstraint must be a job-id, or expression")
        return word

    def on_flag(self, option: str) -> None:
        query = self.query
        if option == "wide":
            query.width = 0
        elif option == "forwards":
            query.forwards = True
        elif option == "cumulative-time":
            query.cumulative = True
        elif option == "global":
            query.is_global = True
        elif option == "allusers":
            query.is_mine_only = False
        elif option in ("claimed", "avail"):
            query.constraints.append(f'State == "{"Claimed" if option == "claimed" else "Unclaimed"}"')
        elif option == "total":
            query.totals_only = True
        elif self.tool == "condor_status" and option in _KINDS:
            query.kind = option
        elif self.tool == "condor_status" and option in _SLOT_TABLES:
            query.constraints += ['State == "Claimed"'] if option == "run" else []
            if query.output == "nobatch":
                query.output = _SLOT_TABLES[option]
        elif option == "totals":
            query.totals_only = True
            if query.output not in _WHOLE:
                query.output = "totals"
        elif option in ("nobatch", "currentrun"):
            if query.output == "batch":
                query.output = "nobatch"
        else:
            self.on_output(option)

    def on_output(self, option: str) -> None:
        """What is printed; -hold and the like also choose jobs, whatever else says how these are printed."""
        query = self.query
        query.constraints += _NARROW.get(option, [])
        if query.output not in _WHOLE or option in _WHOLE:
            query.output = _OUTPUTS.get(option, option)

    def on_mask(self, option: str, colon: str, found: list[str]) -> None:
        self.query.output = "mask"
        if option == "format":
            self.query.mask.add_format(found[0], found[1])
            return
        sources = []
        while self.position < len(self.words) and not self.words[self.position].startswith("-"):
            sources += [self.words[self.position]] if self.words[self.position] else []
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


#: What prints ads, and is not replaced by a table.
_WHOLE = frozenset({"mask", "long", "json", "jsonl", "xml"})
_OUTPUTS = {"held": "hold", "analyse": "analyze", "better-analyze": "analyze", "better-analyse": "analyze"}
#: What the tables for one state select.
_NARROW = {
    "run": ["JobStatus == 2 || JobStatus == 6 || JobStatus == 7"],
    "hold": ["JobStatus == 5"],
    "held": ["JobStatus == 5"],
    "idle": ["JobStatus == 1"],
}
