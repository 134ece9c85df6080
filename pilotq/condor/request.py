"""What a `condor_*` shim sends and gets back, and how both are written.

*Fields* are byte strings, each as its decimal length, a colon and its bytes, one after the other. A request and a
reply are fields read as pairs of name and value. The form is this plain because the shim must write and read it
without importing anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotq.errors import UserError

#: A want: what the shim is asked to do as the user: kind ("read", "store", "glob", ...) and its argument.
Want = tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """What came of a want."""

    ok: bool
    #: Content when ok.
    data: bytes = b""
    #: strerror text and errno when not.
    error: str = ""
    errno: int = 0


@dataclass(frozen=True)
class Request:
    """One invocation of a shim."""

    tool: str
    key: str = ""
    argv: list[str] = field(default_factory=list)
    cwd: str = "/"
    env: dict[str, str] = field(default_factory=dict)
    user: str = ""
    uid: int = 0
    tty: bool = False
    columns: int = 0
    answers: dict[Want, Answer] = field(default_factory=dict)


@dataclass
class Reply:
    """What the shim prints and exits with; or, when `wants` is not empty, what it must find out first."""

    out: str = ""
    err: str = ""
    exit: int = 0
    wants: list[Want] = field(default_factory=list)


def write_fields(values: Iterable[bytes]) -> bytes:
    return b"".join(b"%d:%b" % (len(value), value) for value in values)


def read_fields(data: bytes) -> list[bytes]:
    """Raises: UserError when the bytes are not fields."""
    values = []
    position = 0
    while position < len(data):
        colon = data.find(b":", position, position + 20)
        digits = data[position:colon]
        if colon < 0 or not digits.isdigit():
            raise UserError("a broken request", "use the condor_* commands of this pilotq")
        end = colon + 1 + int(digits)
        if end > len(data):
            raise UserError("a request that was cut off", "try again")
        values.append(data[colon + 1 : end])
        position = end
    return values


def text(value: bytes) -> str:
    """Bytes of the user's world (arguments, paths, files) as text that gives the same bytes back."""
    return value.decode("utf-8", "surrogateescape")


def raw(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def read_request(data: bytes) -> Request:
    """Raises: UserError when the bytes are not a request."""
    values = read_fields(data)
    if len(values) % 2:
        raise UserError("a broken request", "use the condor_* commands of this pilotq")
    one: dict[str, str] = {}
    argv: list[str] = []
    env: dict[str, str] = {}
    answers: dict[Want, Answer] = {}
    for name, value in zip(values[::2], values[1::2], strict=True):
        if name == b"arg":
            argv.append(text(value))
        elif name == b"env":
            key, _, content = text(value).partition("=")
            env[key] = content
        elif name == b"have":
            parts = read_fields(value)
            kind, argument, status = (text(part) for part in parts[:3])
            if status == "ok":
                answers[kind, argument] = Answer(True, data=parts[3])
            else:
                answers[kind, argument] = Answer(False, error=text(parts[3]), errno=int(parts[4] or b"0"))
        else:
            one[text(name)] = text(value)
    return Request(
        tool=one.get("tool", ""),
        key=one.get("key", ""),
        argv=argv,
        cwd=one.get("cwd", "/"),
        env=env,
        user=one.get("user", ""),
        uid=int(one.get("uid") or 0),
        tty=one.get("tty") == "1",
        columns=int(one.get("columns") or 0),
        answers=answers,
    )


def read_reply(data: bytes) -> Reply:
    """Raises: UserError when the bytes are not fields."""
    values = read_fields(data)
    reply = Reply()
    for name, value in zip(values[::2], values[1::2], strict=True):
        if name == b"want":
            kind, argument = read_fields(value)
            reply.wants.append((text(kind), text(argument)))
        elif name == b"exit":
            reply.exit = int(value)
        elif name == b"out":
            reply.out += text(value)
        elif name == b"err":
            reply.err += text(value)
    return reply


def write_reply(reply: Reply) -> bytes:
    pairs: list[bytes] = []
    if reply.out:
        pairs += [b"out", raw(reply.out)]
    if reply.err:
        pairs += [b"err", raw(reply.err)]
    for kind, argument in reply.wants:
        pairs += [b"want", write_fields([raw(kind), raw(argument)])]
    if not reply.wants:
        pairs += [b"exit", b"%d" % reply.exit]
    return write_fields(pairs)
