"""The nouns of a DAG: nodes, scripts, edges."""

from __future__ import annotations

from dataclasses import dataclass, field


class DagError(Exception):
    """What is wrong with a DAG file, in one sentence that says where."""


@dataclass(slots=True)
class Script:
    """A PRE, POST or HOLD script."""

    argv: list[str]
    #: Exit code that means "not yet", and after how many seconds it is asked again.
    defer: tuple[int, int] | None = None
    #: File that takes what it prints, and which streams: STDOUT, STDERR or ALL.
    debug: tuple[str, str] | None = None


@dataclass(slots=True)
class Var:
    """A macro for the submit description of a node; `is_appended`: it comes after the file, so it wins."""

    key: str
    value: str
    is_appended: bool | None = None


@dataclass(slots=True)
class Node:
    """One node as the files describe it."""

    name: str
    #: Submit description, or DAG file of a SUBDAG.
    file: str
    #: The description itself, when it stands in the DAG file.
    inline: str = ""
    #: Where its files are, and its scripts run; "": where the runner was started.
    directory: str = ""
    is_noop: bool = False
    is_done: bool = False
    is_subdag: bool = False
    is_final: bool = False
    scripts: dict[str, Script] = field(default_factory=dict)
    retries: int = 0
    #: Result after which there is no retry.
    unless_exit: int | None = None
    vars: list[Var] = field(default_factory=list)
    #: Result that ends the whole DAG, and what the DAG then returns (None: the same).
    abort_on: tuple[int, int | None] | None = None
    #: Exit code of the PRE script that means: the node is done.
    pre_skip: int | None = None
    priority: int = 0
    category: str = ""


@dataclass(slots=True)
class Edges:
    """One PARENT ... CHILD ... statement: each of these before each of those."""

    parents: list[str]
    children: list[str]


@dataclass(slots=True)
class Dag:
    """All that the files of one run say."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edges] = field(default_factory=list)
    final: str = ""
    #: Category -> most nodes of it in the queue at a time.
    categories: dict[str, int] = field(default_factory=dict)
    #: ENV statements: names taken over, and (name, value) set.
    env_get: list[str] = field(default_factory=list)
    env_set: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
