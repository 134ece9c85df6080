"""condor_rm, hold, release, suspend, continue and vacate_job: one program whose name decides.

`parse` says what to do to which tasks, `acted` what to print when it was done.
Source: HTCondor manual, condor_rm, condor_hold, condor_release, condor_suspend, condor_continue, condor_vacate_job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pilotq.condor import expressions
from pilotq.condor.options import Table, find_option, job_id, version
from pilotq.condor.request import Reply, Request
from pilotq.errors import UserError

#: (cluster, proc), or what the query process is to be asked for ({"select": this}). Proc -1: all of the cluster.
Selection = tuple[int, int] | dict[str, str]
#: What became of one task: ok, not_found, already, bad_state, denied.
Result = tuple[int, int, str]


class _Words(NamedTuple):
    """How a command speaks."""

    #: Of `core.acts`.
    verb: str
    do: str
    done: str
    #: Sentence for a task that is so already, or cannot become so.
    already: str
    bad_state: str
    #: The option that is for this command alone and changes its words.
    option: str = ""


_WORDS = {
    "condor_rm": _Words(
        "cancel", "remove", "marked for removal", "already marked for removal", "is ending already", "forcex"
    ),
    "condor_hold": _Words("hold", "hold", "held", "already held", "not in a state to be held", "subcode"),
    "condor_release": _Words("release", "release", "released", "not held to be released", "not held to be released"),
    "condor_suspend": _Words("suspend", "suspend", "suspended", "already suspended", "not running to be suspended"),
    "condor_continue": _Words("continue", "continue", "continued", "already running", "not running to be continued"),
    "condor_vacate_job": _Words(
        "vacate", "vacate", "vacated", "not running to be vacated", "not running to be vacated", "fast"
    ),
}
_BAD_FAST = "not running to be fast-vacated"
_FORCED = {
    "forcex": _Words(
        "drop",
        "force removal of",
        "removed locally (remote state unknown)",
        "already marked for forced removal",
        "not in `X' state to be forcibly removed",
    ),
    "fast": _Words("vacate_fast", "fast-vacate", "fast-vacated", _BAD_FAST, _BAD_FAST),
}
TOOLS = frozenset(_WORDS)
_WORDS["condor_transfer_data"] = _Words("find", "transfer data for", "", "", "")
_TABLE: Table = {
    "constraint": (1, 1),
    "all": (1, 0),
    "reason": (1, 1),
    "subcode": (1, 1),
    "totals": (1, 0),
    "long": (1, 0),
    "forcex": (2, 0),
    "fast": (2, 0),
    "name": (1, 1),
    "pool": (1, 1),
    "address": (2, 1),
    "debug": (1, 0),
    "version": (1, 0),
    "help": (1, 0),
}
_IGNORED = frozenset({"name", "pool", "address", "debug", "long"})
_TOTALS = {"ok": "Succeeded", "failed": "Failed", "not_found": "Not Found", "bad_state": "Bad Status"}
_TOTALS |= {"already": "Already Done", "denied": "Permission Denied"}


@dataclass
class Action:
    """What one invocation asks."""

    tool: str
    words: _Words
    #: Tasks given by their whole id, in order; acted on as a list.
    tasks: list[tuple[int, int]] = field(default_factory=list)
    #: All that is acted on, `tasks` first.
    selections: list[Selection] = field(default_factory=list)
    #: The group besides `tasks`, as it is told: " in cluster 5", "" for all; None: there is none.
    group: str | None = None
    reason: str = ""
    subcode: int = 0
    totals: bool = False
    #: What was skipped on the command line.
    warnings: str = ""


def parse(request: Request) -> Action | Reply:
    """The action of a command line, or the reply when there is none."""
    try:
        return _Parser(request).parse()
    except UserError as error:
        return Reply(err=f"{error}\n", exit=1)


class _Parser:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.tool = request.tool
        self.action = Action(request.tool, _WORDS[request.tool])
        self.clusters: list[int] = []
        self.owners: list[str] = []
        self.constraints: list[str] = []
        self.everything = False

    def usage(self) -> str:
        option = _WORDS[self.tool].option
        options = f"-{option}{' N' if option == 'subcode' else ''} | " if option else ""
        return f"Usage: {self.tool} [{options}-reason TEXT | -totals]... id | cluster | owner | -constraint EXPR | -all"

    def parse(self) -> Action | Reply:
        words = list(self.request.argv)
        while words:
            word = words.pop(0)
            if not word.startswith("-"):
                self.on_word(word)
                continue
            option = self.option(word)
            if option == "version":
                return version()
            if option == "help":
                return Reply(out=self.usage() + "\n")
            if _TABLE[option][1] and not words:
                raise UserError(f"{self.tool}: {word} requires another argument")
            self.on_option(option, words.pop(0) if _TABLE[option][1] else "")
        self.finish()
        return self.action

    def option(self, word: str) -> str:
        name = word.removeprefix("-").removeprefix("-").partition(":")[0].lower()
        own = _WORDS[self.tool].option
        if own and name and own.startswith(name):
            return own
        found = find_option(_TABLE, name)
        if found in _FORCED:
            tool = next(tool for tool, words in _WORDS.items() if words.option == found)
            raise UserError(f"-{found} is only valid with {tool}\n{self.usage()}")
        if found is None:
            raise UserError(f"Unrecognized option: {word}\n{self.usage()}")
        return found

    def on_word(self, word: str) -> None:
        found = job_id(word)
        if found is None and word[:1].isdigit():
            self.action.warnings += f'Warning: unrecognized "{word}" skipped.\n'
        elif found is None:
            self.owners.append(word)
        elif found[0] <= 0:
            raise UserError(f"Invalid cluster # from {word}.")
        elif found[1] is None:
            self.clusters.append(found[0])
        else:
            self.action.tasks.append((found[0], found[1]))

    def on_option(self, option: str, argument: str) -> None:
        if option == "constraint":
            if not expressions.valid(argument):
                raise UserError(f"{self.tool}: {argument} is not a valid constraint")
            self.constraints.append(argument)
        elif option == "all":
            self.everything = True
        elif option == "reason":
            self.action.reason = argument
        elif option == "subcode":
            if not argument.isascii() or not argument.removeprefix("-").isdigit():
                raise UserError(f"Invalid -subcode {argument}!")
            self.action.subcode = int(argument)
        elif option == "totals":
            self.action.totals = True
        elif option in _FORCED:
            self.action.words = _FORCED[option]

    def finish(self) -> None:
        action = self.action
        named = bool(self.clusters or self.owners or self.constraints)
        if self.everything and (named or action.tasks):
            raise UserError(f"{self.tool}: can't mix -all with other constraints")
        if not (named or action.tasks or self.everything):
            raise UserError(f"{action.warnings}You did not specify any jobs\n{self.usage()}")
        if action.tasks and self.constraints:
            action.warnings += "Warning, -constraint is ignored for fully qualified job ids\n"
        said = action.reason or f"via {self.tool}{' -forcex' if action.words.verb == 'drop' else ''}"
        action.reason = f"{said} (by user {self.request.user})"
        action.selections = list(action.tasks)
        if named or self.everything:
            self.select()

    def select(self) -> None:
        """The group: clusters and owners are alternatives, and all constraints must hold besides."""
        action = self.action
        if self.clusters and not self.owners and not self.constraints:
            action.selections += [(cluster, -1) for cluster in dict.fromkeys(self.clusters)]
        parts = [f"ClusterId == {cluster}" for cluster in self.clusters]
        parts += [f"Owner == {expressions.quote(owner)}" for owner in self.owners]
        constraint = " || ".join(parts)
        if self.constraints:
            every = [constraint, *self.constraints] if constraint else self.constraints
            constraint = every[0] if len(every) == 1 else " && ".join([f"({part})" for part in every])
        if self.everything:
            action.group = ""
        elif len(parts) == 1 and not self.constraints:
            action.group = f" in cluster {self.clusters[0]}" if self.clusters else f' of user "{self.owners[0]}"'
        else:
            action.group = f" matching constraint ({constraint})"
        if len(action.selections) == len(action.tasks):
            action.selections.append({"constraint": constraint or "true"})


def acted(action: Action, results: Iterable[Result], queue_empty: bool = False) -> Reply:
    """What the command says of what was done.

    `queue_empty`: there was nothing in the queue at all, which makes an empty group no failure.
    Order: results may come in any order.
    """
    words = action.words
    of_tasks: dict[tuple[int, int], str] = {}
    of_group: Counter[str] = Counter()
    listed = set(action.tasks)
    for cluster, proc, result in results:
        if (cluster, proc) in listed and (cluster, proc) not in of_tasks:
            of_tasks[cluster, proc] = result
        else:
            of_group[result] += 1
    reply = Reply(err=action.warnings)
    if action.tasks:
        if action.totals:
            reply.out += _totals(Counter(of_tasks.values()))
        for task in action.tasks:
            _say(words, task, of_tasks.get(task, "not_found"), reply)
        if "ok" not in of_tasks.values():
            reply.exit = 1
    if action.group is not None:
        if action.totals:
            reply.out += _totals(of_group)
        if of_group["ok"]:
            reply.out += f"All jobs{action.group} have been {words.done}\n"
        elif queue_empty:
            reply.err += f"{action.tool}:0:There are no jobs in the queue\n"
        else:
            do = _WORDS[action.tool].do if words.verb == "drop" else words.do
            reply.err += f"\nCouldn't find/{do} all jobs{action.group}\n"
            reply.exit = 1
    return reply


def _say(words: _Words, task: tuple[int, int], result: str, reply: Reply) -> None:
    name = f"{task[0]}.{task[1]}"
    if result == "ok":
        reply.out += f"Job {name} {words.done}\n"
    elif result == "denied":
        reply.err += f"Permission denied to {words.do} job {name}\n"
    elif result == "already":
        reply.err += f"Job {name} {words.already}\n"
    elif result == "bad_state":
        reply.err += f"Job {name} {words.bad_state}\n"
    else:
        reply.err += f"Job {name} not found\n"


def _totals(counts: Counter[str]) -> str:
    return ", ".join([f"{counts[result]} {word}" for result, word in _TOTALS.items()]) + "\n"
