"""condor_qedit and condor_prio: what a command line changes of which tasks, and what is said when that is done.

Source: HTCondor manual, condor_qedit, condor_prio.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pilotq.condor import expressions
from pilotq.condor.actions import Result, Selection
from pilotq.condor.jobrules import LOOKUP
from pilotq.condor.lexer import shown
from pilotq.condor.options import Table, find_option, job_id, version
from pilotq.condor.request import Reply, Request
from pilotq.errors import UserError

TOOLS = frozenset({"condor_qedit", "condor_prio"})
_QEDIT: Table = {
    "constraint": (1, 1),
    "name": (1, 1),
    "pool": (1, 1),
    "owner": (1, 1),
    "debug": (1, 0),
    "dry-run": (2, 0),
    "forward": (3, 0),
    "help": (1, 0),
    "version": (1, 0),
}
_QEDIT_USAGE = "Usage: condor_qedit [-dry-run] {id | cluster | owner | -constraint EXPR} {ATTR VALUE | ATTR=VALUE}...\n"
_PRIO_USAGE = "Usage: condor_prio [{+|-}PRIORITY | -p PRIORITY] [id | cluster | owner | -a]...\n"
#: Fixed by the submission: what the task is made of was packed then, and its worker may have it.
_FIXED = frozenset(
    {"cmd", "args", "arguments", "env", "environment", "in", "out", "err", "iwd", "userlog", "jobuniverse", "killsig"}
    | {"transferinput", "transferoutput", "transferoutputremaps"}
    | {"requestcpus", "requestmemory", "requestdisk", "requestgpus"}
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NOTHING = "Queue transaction failed.  No attributes were set.\n"
_CANCELLED = "Transaction failed.  No attributes were set.\n"


@dataclass
class Editing:
    """What one invocation asks."""

    tool: str
    #: Attribute as written -> expression.
    changes: dict[str, str] = field(default_factory=dict)
    #: JobPrio grows by what `changes` has for it.
    adjust: bool = False
    selections: list[Selection] = field(default_factory=list)
    #: The tasks as they are told; "": they were all given by their whole id.
    constraint: str = ""
    #: Nothing is to be changed.
    is_trial: bool = False
    warnings: str = ""


def parse(request: Request) -> Editing | Reply:
    """What a condor_qedit or condor_prio command line asks, or the reply when there is nothing to be done."""
    try:
        return _prio(request) if request.tool == "condor_prio" else _Qedit(request).parse()
    except UserError as error:
        return Reply(err=f"{error}\n", exit=1)


def _select(editing: Editing, ids: list[tuple[int, int | None]], constraints: list[str]) -> None:
    """Whole ids alone are a list; anything else is a constraint."""
    if not constraints and all(proc is not None for _, proc in ids):
        editing.selections = [(cluster, proc) for cluster, proc in ids if proc is not None]
        return
    named = [f"ClusterId == {number}" + ("" if proc is None else f" && ProcId == {proc}") for number, proc in ids]
    every = [" || ".join(f"({one})" for one in named), *constraints] if named else constraints
    editing.constraint = " && ".join(f"({one})" for one in every) if len(every) > 1 else every[0]
    if not constraints and all(proc is None for _, proc in ids):
        editing.selections = [(cluster, -1) for cluster, _ in ids]
    else:
        editing.selections = [{"constraint": editing.constraint}]


class _Qedit:
    def __init__(self, request: Request) -> None:
        self.words = list(request.argv)
        self.editing = Editing(request.tool)
        self.ids: list[tuple[int, int | None]] = []
        self.constraints: list[str] = []
        self.has_jobs = False

    def parse(self) -> Editing | Reply:
        while self.words:
            word = self.words.pop(0)
            if word.startswith("-"):
                reply = self.on_option(word)
                if reply is not None:
                    return reply
            elif not self.has_jobs:
                self.on_jobs(word)
            else:
                self.on_change(word)
        if not self.has_jobs:
            hint = "condor_qedit : Error - there were no jobs specified.\n" if self.editing.changes else ""
            raise UserError(f"{hint}{_QEDIT_USAGE}".rstrip())
        if not self.editing.changes:
            raise UserError(f"condor_qedit : Error - no attributes specifed.\n{_QEDIT_USAGE}".rstrip())
        self.editing.changes = dict(sorted(self.editing.changes.items()))
        _select(self.editing, self.ids, self.constraints)
        return self.editing

    def on_option(self, word: str) -> Reply | None:
        option = find_option(_QEDIT, word.removeprefix("-").removeprefix("-"))
        if option is None:
            raise UserError(f"condor_qedit: {word} is not a valid option\n{_QEDIT_USAGE}".rstrip())
        if option == "version":
            return version()
        if option == "help":
            return Reply(out=_QEDIT_USAGE)
        if _QEDIT[option][1]:
            if not self.words:
                raise UserError(f"condor_qedit: {word} requires another argument")
            argument = self.words.pop(0)
            if option == "constraint" and not expressions.valid(argument):
                raise UserError(f"condor_qedit: {argument} is not a valid constraint")
            if option in ("constraint", "owner"):
                is_owner = option == "owner"
                self.constraints.append(f"Owner == {expressions.quote(argument)}" if is_owner else argument)
                self.has_jobs = True
        self.editing.is_trial |= option == "dry-run"
        return None

    def on_jobs(self, word: str) -> None:
        self.has_jobs = True
        found = job_id(word)
        if found is None and word[:1].isdigit():
            raise UserError(f"Invalid cluster # from {word}.")
        if found is None:
            self.constraints.append(f"Owner == {expressions.quote(word)}")
            return
        self.ids.append(found)
        while self.words and (more := job_id(self.words[0])) is not None:
            self.ids.append(more)
            self.words.pop(0)

    def on_change(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if not equals:
            if not self.words:
                raise UserError(f"condor_qedit : expression required after attribute {word}\n{_QEDIT_USAGE}".rstrip())
            value = self.words.pop(0)
        name, value = name.strip(), value.strip()
        if not _NAME.fullmatch(name):
            text = f'Update aborted, illegal attribute-name specified for attribute "{shown(name)}".'
            raise UserError(f"{text}\n{_CANCELLED}".rstrip())
        is_number = name.lower() != "jobprio" or re.fullmatch(r"[+-]?[0-9]{1,9}", value, re.ASCII)
        if not value or "\n" in value or not expressions.valid(value) or not is_number:
            raise UserError(f"Update aborted, illegal value for : {name}\n{_CANCELLED}".rstrip())
        if name.lower() in LOOKUP or name.lower() in ("mytype", "targettype"):
            raise UserError(f'Update of immutable attribute "{name}" is not allowed.\n{_CANCELLED}'.rstrip())
        if name.lower() in _FIXED:
            why = "pilotq fixes it when the job is submitted: remove the job and submit it again"
            raise UserError(f'Update of attribute "{name}" is not allowed: {why}\n{_CANCELLED}'.rstrip())
        self.editing.changes[name] = value


def _prio(request: Request) -> Editing | Reply:
    """-p N, +N or -N, and whom it concerns; words that are nothing are told and skipped."""
    editing = Editing(request.tool)
    words, ids, owners, everybody = list(request.argv), list[tuple[int, int | None]](), list[str](), False
    if not words:
        raise UserError(_PRIO_USAGE.rstrip())
    while words:
        word = words.pop(0)
        if re.fullmatch(r"[+-][0-9]{1,9}", word, re.ASCII):
            if "JobPrio" not in editing.changes:
                editing.changes, editing.adjust = {"JobPrio": str(int(word))}, True
        elif word in ("-p", "-n", "-name", "-pool"):
            if not words:
                raise UserError(f"condor_prio: {word} requires another argument")
            argument = words.pop(0)
            if word == "-p":
                if not re.fullmatch(r"[+-]?[0-9]{1,9}", argument, re.ASCII):
                    raise UserError(f"condor_prio: -p requires a number, not {argument}")
                editing.changes, editing.adjust = {"JobPrio": str(int(argument))}, False
        elif word in ("-version", "-help"):
            return version() if word == "-version" else Reply(out=_PRIO_USAGE)
        elif word.startswith("-a"):
            everybody = True
        elif (found := job_id(word)) is not None and found[0] > 0:
            ids.append(found)
        elif word[:1].isalpha():
            owners.append(word)
        else:
            editing.warnings += f'Warning: unrecognized "{word}" skipped\n'
    if not editing.changes:
        raise UserError(f"You must specify a new priority or priority adjustment.\n{_PRIO_USAGE}".rstrip())
    editing.selections = [(cluster, -1 if proc is None else proc) for cluster, proc in ids]
    if everybody or owners:
        named = " || ".join(f"Owner == {expressions.quote(owner)}" for owner in owners)
        editing.selections.append({"constraint": "true" if everybody else named})
    return editing


def edited(editing: Editing, results: list[Result]) -> Reply:
    """What the command says of what was done; of condor_qedit either all was done or nothing."""
    missing = [(cluster, proc) for cluster, proc, result in results if result != "ok"]
    reply = Reply(err=editing.warnings)
    if editing.tool == "condor_prio":
        for cluster, proc in missing:
            if proc >= 0:
                reply.err += f"Couldn't retrieve current priority for {cluster}.{proc}.\n"
        return reply
    count = 0 if editing.constraint else len(editing.selections)
    for name in editing.changes:
        if missing or not (count or results):
            where = f"by constraint: {editing.constraint}"
            if not editing.constraint:
                where = f"for job {missing[0][0]}.{missing[0][1]}."
            reply.err += f'Failed to set attribute "{name}" {where}\n{_NOTHING}'
            reply.exit = 1
            return reply
        whom = f"{count or 'all'} matching jobs"
        reply.out += f'{"Can " if editing.is_trial else ""}Set attribute "{name}" for {whom}.\n'
    return reply
