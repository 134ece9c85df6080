"""DAG files: text to a `Dag`.

Each file is read twice: first what defines nodes, then what speaks about them, so that the order does not matter.
Source: HTCondor manual, DAGMan workflows.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pilotq.dag.model import Dag, DagError, Edges, Node, Script, Var

_DEPTH_MAX = 50
_RESERVED = frozenset({"PARENT", "CHILD", "ALL_NODES"})
_DEFINING = frozenset({"JOB", "DATA", "FINAL", "SUBDAG", "SPLICE", "SUBMIT-DESCRIPTION"})
_IGNORED = {
    "CONFIG": "there are no knobs; see the options of the runner",
    "DOT": "no picture is drawn",
    "JOBSTATE_LOG": "it is not written",
    "NODE_STATUS_FILE": "it is not written",
    "SET_JOB_ATTR": "the runner is no job of the queue",
    "SAVE_POINT_FILE": "no save point is written",
    "CONNECT": "pins are not supported",
    "PIN_IN": "pins are not supported",
    "PIN_OUT": "pins are not supported",
}
_REFUSED = frozenset({"PROVISIONER", "SERVICE"})
_VAR = re.compile(r'\s*([+\w.]+)\s*=\s*"((?:[^"\\]|\\.)*)"', re.ASCII)
_ESCAPE = re.compile(r'\\(["\\])')


class Statement(NamedTuple):
    """One statement; `body` is what stands between braces."""

    file: str
    line: int
    text: str
    body: str | None = None

    def fail(self, what: str) -> DagError:
        return DagError(f'"{self.file}" (line {self.line}): {what}')


@dataclass
class _Scope:
    """A file, or a splice with all it holds."""

    #: Put before the names of nodes.
    prefix: str
    directory: str
    names: list[str] = field(default_factory=list)
    splices: dict[str, _Scope] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    edges: list[Edges] = field(default_factory=list)

    def ends(self, *, is_first: bool) -> list[str]:
        """Nodes without a parent, or without a child, in this splice."""
        inner = {name for edge in self.edges for name in (edge.children if is_first else edge.parents)}
        return [name for name in self.names if name not in inner]


def parse(files: list[str], read: Callable[[str], str], use_dag_dir: bool = False) -> Dag:
    """One DAG of one or more files. `read` gives a file's text.

    With several files the number of the file and a dot stand before the names of nodes. With `use_dag_dir` the
    paths of a file are relative to its directory.
    Raises: DagError; what `read` raises.
    """
    parser = _Parser(read)
    for number, file in enumerate(files):
        prefix = f"{number}." if len(files) > 1 else ""
        scope = _Scope(prefix, posixpath.dirname(file) if use_dag_dir else "")
        parser.run(file, scope)
    _check_cycles(parser.dag)
    return parser.dag


def statements(text: str, file: str) -> Iterator[Statement]:
    """Raises: DagError for a brace that is not closed."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        first, line = at + 1, lines[at].strip()
        at += 1
        if not line or line[0] == "#":
            continue
        while line.endswith("\\") and at < len(lines):
            line = line[:-1] + " " + lines[at].strip()
            at += 1
        if line.endswith("{") and line.split(None, 1)[0].upper() in _DEFINING:
            end = next((index for index in range(at, len(lines)) if lines[index].strip() == "}"), None)
            if end is None:
                raise Statement(file, first, line).fail("the { of this line has no line with a } of its own")
            yield Statement(file, first, line[:-1].strip(), "\n".join(lines[at:end]) + "\n")
            at = end + 1
        else:
            yield Statement(file, first, line)


class _Parser:
    def __init__(self, read: Callable[[str], str]) -> None:
        self.dag = Dag()
        self._read = read

    def run(self, file: str, scope: _Scope, depth: int = 0) -> None:
        found = list(self._included(file, scope, depth))
        for word, statement in found:
            if word in _DEFINING:
                self._define(word, statement, scope, depth)
        handlers: dict[str, Callable[[Statement, list[str], _Scope], None]] = {
            "PARENT": self._parent,
            "SCRIPT": self._script,
            "RETRY": self._retry,
            "VARS": self._vars,
            "ABORT-DAG-ON": self._abort,
            "PRE_SKIP": self._pre_skip,
            "PRIORITY": self._priority,
            "CATEGORY": self._category,
            "MAXJOBS": self._max_jobs,
            "DONE": self._done,
            "ENV": self._env,
        }
        for word, statement in found:
            if word in _DEFINING:
                continue
            if word == "REJECT":
                raise statement.fail("REJECT: this DAG is not meant to be run")
            if word in _REFUSED:
                raise statement.fail(f"{word} is not supported by pilotq")
            if word in _IGNORED:
                self.dag.warnings.append(f'"{file}" (line {statement.line}): {word} is ignored: {_IGNORED[word]}')
                continue
            handler = handlers.get(word)
            if handler is None:
                raise statement.fail(f"{statement.text.split()[0]} is not a keyword of DAG files")
            handler(statement, statement.text.split()[1:], scope)

    def _included(self, file: str, scope: _Scope, depth: int) -> Iterator[tuple[str, Statement]]:
        if depth > _DEPTH_MAX:
            raise DagError(f'"{file}": files are nested too deep')
        for statement in statements(self._read(file), file):
            word = statement.text.split(None, 1)[0].upper()
            if word == "INCLUDE":
                path = _exactly(statement, statement.text.split()[1:], 1, "INCLUDE FILE")[0]
                yield from self._included(posixpath.join(scope.directory, path), scope, depth + 1)
            else:
                yield word, statement

    # ---- what defines nodes

    def _define(self, word: str, statement: Statement, scope: _Scope, depth: int) -> None:
        words = statement.text.split()[1:]
        if word == "SUBMIT-DESCRIPTION":
            if len(words) != 1 or statement.body is None:
                raise statement.fail("SUBMIT-DESCRIPTION takes a name and a description in braces")
            scope.descriptions[words[0]] = statement.body
        elif word == "SPLICE":
            self._splice(statement, words, scope, depth)
        else:
            if word == "SUBDAG":
                if not words or words[0].upper() != "EXTERNAL":
                    raise statement.fail("only SUBDAG EXTERNAL is supported")
                words = words[1:]
            self._job(word, statement, words, scope)

    def _job(self, word: str, statement: Statement, words: list[str], scope: _Scope) -> None:
        inline = statement.body
        if len(words) < (1 if inline is not None else 2):
            raise statement.fail(f"{word} takes a name and a file")
        name = self._new_name(statement, words[0], scope)
        node = Node(name, "" if inline is not None else words[1], inline or "", scope.directory)
        rest = words[1:] if inline is not None else words[2:]
        if inline is None and not node.inline and node.file in scope.descriptions:
            node.inline = scope.descriptions[node.file]
        while rest:
            option = rest.pop(0).upper()
            if option == "DIR" and rest:
                node.directory = posixpath.join(scope.directory, rest.pop(0))
            elif option == "NOOP":
                node.is_noop = True
            elif option == "DONE" and word != "FINAL":
                node.is_done = True
            else:
                raise statement.fail(f"{option} is not an option of {word}")
        node.is_subdag = word == "SUBDAG"
        if word == "FINAL":
            if self.dag.final:
                raise statement.fail(f"there is a FINAL node already: {self.dag.final}")
            if "+" in scope.prefix:
                raise statement.fail("a splice cannot have a FINAL node")
            node.is_final = True
            self.dag.final = name
        else:
            scope.names.append(name)
        self.dag.nodes[name] = node

    def _new_name(self, statement: Statement, name: str, scope: _Scope) -> str:
        if name.upper() in _RESERVED:
            raise statement.fail(f"a node cannot be called {name}")
        if "+" in name:
            raise statement.fail(f"the name of a node cannot have a + in it: {name}")
        full = scope.prefix + name
        if full in self.dag.nodes or name in scope.splices:
            raise statement.fail(f"node {full} is defined twice")
        return full

    def _splice(self, statement: Statement, words: list[str], scope: _Scope, depth: int) -> None:
        if len(words) not in (2, 4) or (len(words) == 4 and words[2].upper() != "DIR"):
            raise statement.fail("SPLICE takes a name, a file, and perhaps DIR and a directory")
        name = self._new_name(statement, words[0], scope).removeprefix(scope.prefix)
        directory = posixpath.join(scope.directory, words[3]) if len(words) == 4 else scope.directory
        inner = _Scope(f"{scope.prefix}{name}+", directory)
        self.run(posixpath.join(directory, words[1]), inner, depth + 1)
        scope.splices[name] = inner
        scope.names += inner.names
        scope.edges += inner.edges

    # ---- what speaks about them

    def _nodes(self, statement: Statement, name: str, scope: _Scope) -> list[Node]:
        if name.upper() == "ALL_NODES":
            return [self.dag.nodes[one] for one in scope.names]
        found = self.dag.nodes.get(scope.prefix + name)
        if found is None:
            raise statement.fail(f"there is no node {name}")
        return [found]

    def _of(self, statement: Statement, words: list[str], scope: _Scope, least: int, usage: str) -> list[Node]:
        if len(words) < least:
            raise statement.fail(f"it should be {usage}")
        return self._nodes(statement, words[0], scope)

    def _parent(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        at = next((index for index, word in enumerate(words) if word.upper() == "CHILD"), 0)
        if not at or at + 1 == len(words):
            raise statement.fail("it should be PARENT P ... CHILD C ...")
        sides = []
        for some, is_first in ((words[:at], False), (words[at + 1 :], True)):
            found: dict[str, None] = {}
            for name in some:
                splice = scope.splices.get(name)
                if splice is not None:
                    found.update(dict.fromkeys(splice.ends(is_first=is_first)))
                    continue
                node = self._nodes(statement, name, scope)[0]
                if node.is_final:
                    raise statement.fail(f"the FINAL node {name} cannot be a parent or a child")
                found[node.name] = None
            sides.append(list(found))
        edges = Edges(*sides)
        if edges.parents and edges.children:
            scope.edges.append(edges)
            self.dag.edges.append(edges)

    def _script(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        usage = "SCRIPT [DEFER STATUS SECONDS] [DEBUG FILE STDOUT|STDERR|ALL] PRE|POST|HOLD NODE PROGRAM [ARGUMENT ...]"
        defer, debug = None, None
        while words and words[0].upper() in ("DEFER", "DEBUG"):
            if len(words) < 4:
                raise statement.fail(f"it should be {usage}")
            if words[0].upper() == "DEFER":
                defer = (_number(statement, words[1]), _number(statement, words[2]))
            elif words[2].upper() in ("STDOUT", "STDERR", "ALL"):
                debug = (words[1], words[2].upper())
            else:
                raise statement.fail(f"it should be {usage}")
            words = words[3:]
        if len(words) < 3 or words[0].upper() not in ("PRE", "POST", "HOLD"):
            raise statement.fail(f"it should be {usage}")
        for node in self._nodes(statement, words[1], scope):
            node.scripts[words[0].upper()] = Script(words[2:], defer, debug)

    def _retry(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        usage = "RETRY NODE TIMES [UNLESS-EXIT VALUE]"
        nodes = self._of(statement, words, scope, 2, usage)
        if len(words) not in (2, 4) or (len(words) == 4 and words[2].upper() != "UNLESS-EXIT"):
            raise statement.fail(f"it should be {usage}")
        for node in nodes:
            node.retries = _number(statement, words[1], least=0)
            node.unless_exit = _number(statement, words[3]) if len(words) == 4 else None

    def _vars(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        nodes = self._of(statement, words, scope, 2, 'VARS NODE [PREPEND|APPEND] NAME="VALUE" ...')
        rest = statement.text.split(None, 2)[2]
        is_appended = None
        if words[1].upper() in ("PREPEND", "APPEND"):
            is_appended = words[1].upper() == "APPEND"
            rest = rest.split(None, 1)[1] if len(words) > 2 else ""
        found = []
        while rest:
            match = _VAR.match(rest)
            if match is None:
                raise statement.fail(f'this is not NAME="VALUE": {rest}')
            if match[1].lower() == "queue":
                raise statement.fail("a macro of VARS cannot be called queue")
            found.append(Var(match[1], _ESCAPE.sub(r"\1", match[2]), is_appended))
            rest = rest[match.end() :].strip()
        for node in nodes:
            new = {var.key.lower() for var in found}
            node.vars = [var for var in node.vars if var.key.lower() not in new] + found

    def _abort(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        usage = "ABORT-DAG-ON NODE VALUE [RETURN VALUE]"
        nodes = self._of(statement, words, scope, 2, usage)
        if len(words) not in (2, 4) or (len(words) == 4 and words[2].upper() != "RETURN"):
            raise statement.fail(f"it should be {usage}")
        returned = _number(statement, words[3], least=0, most=255) if len(words) == 4 else None
        for node in nodes:
            if node.is_final:
                raise statement.fail("ABORT-DAG-ON cannot be said of the FINAL node")
            node.abort_on = (_number(statement, words[1]), returned)

    def _pre_skip(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        for node in self._of(statement, words, scope, 2, "PRE_SKIP NODE VALUE"):
            node.pre_skip = _number(statement, _exactly(statement, words, 2, "PRE_SKIP NODE VALUE")[1])

    def _priority(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        for node in self._of(statement, words, scope, 2, "PRIORITY NODE VALUE"):
            node.priority = _number(statement, _exactly(statement, words, 2, "PRIORITY NODE VALUE")[1])

    def _category(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        for node in self._of(statement, words, scope, 2, "CATEGORY NODE NAME"):
            node.category = _category_name(_exactly(statement, words, 2, "CATEGORY NODE NAME")[1], scope)

    def _max_jobs(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        name, number = _exactly(statement, words, 2, "MAXJOBS CATEGORY NUMBER")
        self.dag.categories[_category_name(name, scope)] = _number(statement, number, least=0)

    def _done(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        for node in self._nodes(statement, _exactly(statement, words, 1, "DONE NODE")[0], scope):
            node.is_done = not node.is_final

    def _env(self, statement: Statement, words: list[str], scope: _Scope) -> None:
        rest = statement.text.split(None, 2)[2:]
        if not rest or words[0].upper() not in ("GET", "SET"):
            raise statement.fail("it should be ENV GET NAME,... or ENV SET NAME=VALUE;...")
        if words[0].upper() == "GET":
            self.dag.env_get += [name for name in re.split(r"[,\s]+", rest[0]) if name]
            return
        for item in filter(None, rest[0].strip('"').split(";")):
            name, equals, value = item.partition("=")
            if not equals:
                raise statement.fail(f"ENV SET takes NAME=VALUE, not {item}")
            self.dag.env_set.append((name.strip(), value))


def _category_name(name: str, scope: _Scope) -> str:
    """A category of a splice is its own, but with a + before its name one for all."""
    return name[1:] if name.startswith("+") else scope.prefix + name


def _exactly(statement: Statement, words: list[str], count: int, usage: str) -> list[str]:
    if len(words) != count:
        raise statement.fail(f"it should be {usage}")
    return words


def _number(statement: Statement, word: str, least: int | None = None, most: int | None = None) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", word):
        raise statement.fail(f"{word} is not a number")
    value = int(word)
    if (least is not None and value < least) or (most is not None and value > most):
        raise statement.fail(f"{word} is not a number from {least}" + ("" if most is None else f" to {most}"))
    return value


def _check_cycles(dag: Dag) -> None:
    """Raises: DagError with a node of a cycle."""
    waits = dict.fromkeys(dag.nodes, 0)
    before = [len(edges.parents) for edges in dag.edges]
    after: dict[str, list[int]] = {}
    for index, edges in enumerate(dag.edges):
        for name in edges.children:
            waits[name] += 1
        for name in edges.parents:
            after.setdefault(name, []).append(index)
    ready = [name for name, count in waits.items() if not count]
    for name in ready:
        for index in after.get(name, ()):
            before[index] -= 1
            for child in dag.edges[index].children if not before[index] else ():
                waits[child] -= 1
                if not waits[child]:
                    ready.append(child)
    if len(ready) < len(dag.nodes):
        stuck = next(name for name, count in waits.items() if count)
        raise DagError(f"there is a cycle in the DAG: node {stuck} waits for itself, by way of its parents")
