"""CURVE keys, tokens and the authenticator: who may speak to whom.

Layout below the home: `keys/master.json` and `keys/foreman.json` (server pairs, `.next.json` while they are being
replaced), `keys/authorized/ROLE/NAME.pub` (whom the master lets in, and until when), the tokens `worker.token` and
`foreman.token` of the first start, and in `keys/tokens` those that were made later. A token is a JSON file that an
operator copies to other hosts: role, name, its own pair, the public keys of master and foremen. Secrets are only ever
in files of mode 0600.
"""

from __future__ import annotations

import calendar
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zmq
from zmq.utils import z85

from pilotq.access import FIRST, ON_LINK, Role
from pilotq.errors import UserError

#: ZAP domain of every socket of ours.
DOMAIN = b"pilotq"
#: Roles that have a token from the first start on.
FIRST_ROLES = (Role.WORKER, Role.FOREMAN)
SERVERS = ("master", "foreman")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_PUBLIC = re.compile(r"[!-~]{40}")
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
#: Questions of ZAP that are answered in a row.
ANSWERS_MAX = 50


class KeyPair(msgspec.Struct, frozen=True):
    """The pair of a server. Never printed."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


class Token(msgspec.Struct, frozen=True):
    """What a process needs to be let in. Never printed."""

    role: str
    name: str
    public: str
    secret: str
    #: Public keys of the servers it may connect to, and of those they will have soon ("": none).
    master: str
    foreman: str
    master_next: str = ""
    foreman_next: str = ""
    #: Pairs a foreman serves its workers with, that of now first. None: its own.
    serves: list[KeyPair] = []
    #: Seconds since 1970 on the head, for people; the master's list decides. 0: no end.
    expires_at: float = 0.0

    def __repr__(self) -> str:
        return f"Token({self.role} {self.name})"

    def servers(self, is_master: bool) -> list[str]:
        """Public keys that a server of this kind may have."""
        found = (self.master, self.master_next) if is_master else (self.foreman, self.foreman_next)
        return [public for public in found if public]

    def pairs(self) -> list[KeyPair]:
        """Of a foreman: what it serves with."""
        return self.serves or [KeyPair(self.public, self.secret)]


class Key(NamedTuple):
    """A public key that is let in."""

    role: str
    name: str
    #: Seconds since 1970; 0: no end.
    expires_at: float = 0.0


def new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def write_secret(path: Path, value: Any) -> None:
    """Write a file of mode 0600, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(msgspec.to_builtins(value), indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# ---- pairs of the servers ----------------------------------------------------------------------------------------


def _pair_path(home: Path, server: str, is_next: bool = False) -> Path:
    return home / "keys" / (f"{server}.next.json" if is_next else f"{server}.json")


def server_pair(home: Path, server: str) -> KeyPair:
    """The pair that master or foremen serve with now; made when there is none.

    Raises: UserError when its file is damaged.
    """
    path = _pair_path(home, server)
    if not path.exists():
        write_secret(path, new_pair())
    return _read_pair(path)


def next_pair(home: Path, server: str) -> KeyPair | None:
    """The pair that takes over soon."""
    path = _pair_path(home, server, True)
    return _read_pair(path) if path.exists() else None


def _read_pair(path: Path) -> KeyPair:
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeyPair)
    except (OSError, msgspec.MsgspecError):
        raise UserError(f"{path} cannot be read, or is no pair of keys", "restore it from a backup") from None


def make_keys(home: Path) -> KeyPair:
    """Make what is missing: the servers' pairs and, at the first start, a token for workers and one for foremen.

    Returns: the master's pair.
    """
    (home / "keys").mkdir(mode=0o700, exist_ok=True)
    for server in SERVERS:
        server_pair(home, server)
    for role in FIRST_ROLES:
        # Later it is missing because somebody took it away.
        if not token_path(home, role, FIRST).exists() and not _folder(home, role).exists():
            new_token(home, role, FIRST)
    return server_pair(home, "master")


def begin_rotation(home: Path) -> None:
    """Make the pairs that master and foremen will have, and tell all tokens of this home.

    Order: `finish_rotation` when every node and foreman has its new token.
    Raises: UserError when that was done before.
    """
    if next_pair(home, "master") is not None:
        raise UserError("the servers have their next keys already", "copy the tokens, then rotate-server --finish")
    for server in SERVERS:
        write_secret(_pair_path(home, server, True), new_pair())
    _refresh_tokens(home)


def finish_rotation(home: Path) -> None:
    """From now on the servers have the next keys only; running ones notice.

    Raises: UserError when there are none.
    """
    if next_pair(home, "master") is None:
        raise UserError("the servers have no next keys", "begin with `pilotq token rotate-server`")
    # The foremen's first: when this is cut short it can be said again.
    for server in reversed(SERVERS):
        path = _pair_path(home, server, True)
        if path.exists():
            os.replace(path, _pair_path(home, server))
    _refresh_tokens(home)


def _server_facts(home: Path, role: str) -> dict[str, Any]:
    """What a token says of the servers."""
    facts: dict[str, Any] = {}
    for server in SERVERS:
        pairs = [server_pair(home, server), *filter(None, [next_pair(home, server)])]
        facts[server] = pairs[0].public
        facts[f"{server}_next"] = pairs[1].public if len(pairs) > 1 else ""
        if server == role:
            facts["serves"] = pairs
    return facts


def _refresh_tokens(home: Path) -> None:
    for public, key in every_key(home):
        path = token_path(home, key.role, key.name)
        if path.exists():
            token = read_token(path, key.role)
            if token.public == public:
                write_secret(path, msgspec.structs.replace(token, **_server_facts(home, key.role)))


# ---- tokens ------------------------------------------------------------------------------------------------------


def _folder(home: Path, role: str) -> Path:
    return home / "keys" / "authorized" / role


def _key_path(home: Path, role: str, name: str) -> Path:
    return _folder(home, role) / f"{name}.pub"


def token_path(home: Path, role: str, name: str) -> Path:
    """Where the head keeps a token, to be copied to other hosts."""
    return home / f"{role}.token" if name == FIRST else home / "keys" / "tokens" / f"{role}.{name}.token"


def new_token(home: Path, role: str, name: str, expires_at: float = 0.0) -> Path:
    """Make a token and let its key in.

    Raises: UserError when the name cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a token", "use letters, digits, - . and _, at most 63")
    path = token_path(home, role, name)
    if path.exists() or _key_path(home, role, name).exists():
        raise UserError(f"there is a {role} token {name} already", f"another name, or `pilotq token revoke {name}`")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair = new_pair()
    token = Token(role, name, pair.public, pair.secret, expires_at=expires_at, **_server_facts(home, role))
    authorize(home, role, name, pair.public, expires_at)
    write_secret(path, token)
    return path


def authorize(home: Path, role: str, name: str, public: str, expires_at: float = 0.0) -> None:
    """Let a key in under this role and name, until a moment (seconds since 1970; 0: for good)."""
    path = _key_path(home, role, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    until = " " + time.strftime(_MOMENT, time.gmtime(expires_at)) if expires_at else ""
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.write_text(f"{public}{until}\n")
    os.replace(temporary, path)


def revoke(home: Path, role: str, name: str) -> None:
    """Let a key in no more, and forget its token."""
    _key_path(home, role, name).unlink(missing_ok=True)
    token_path(home, role, name).unlink(missing_ok=True)


def every_key(home: Path) -> Iterator[tuple[str, Key]]:
    """Public key and facts of all that were let in and not revoked, expired ones too."""
    for role in Role:
        for path in sorted(_folder(home, role).glob("*.pub")):
            try:
                public, _, until = path.read_text("ascii").strip().partition(" ")
                expires_at = _seconds(until) if until else 0.0
            except (OSError, ValueError):
                # Removed just now, or no key: nobody comes in by it.
                continue
            if _PUBLIC.fullmatch(public):
                yield public, Key(role.value, path.stem, expires_at)


def _seconds(text: str) -> float:
    """A moment in UTC, whatever zone this process is in.

    Raises: ValueError.
    """
    return float(calendar.timegm(time.strptime(text, _MOMENT)))


def authorized(home: Path, now: float | None = None) -> dict[str, Key]:
    """Those that may come in now, by public key."""
    moment = time.time() if now is None else now
    return {public: key for public, key in every_key(home) if not key.expires_at or key.expires_at > moment}


def read_token(path: Path, role: str) -> Token:
    """Raises: UserError when it is missing, unreadable, open to others or for another role."""
    hint = f"copy {role}.token from the PILOTQ_HOME of the master, mode 0600, or set PILOTQ_{role.upper()}_TOKEN"
    try:
        mode = path.stat().st_mode
        token = msgspec.json.decode(path.read_bytes(), type=Token)
    except OSError as error:
        raise UserError(f"no {role} token: {path}: {error.strerror}", hint) from None
    except msgspec.MsgspecError:
        raise UserError(f"{path} is not a token", hint) from None
    if mode & 0o077:
        raise UserError(f"{path} can be read by others", "chmod 600 it") from None
    if token.role != role:
        raise UserError(f"{path} is a token for a {token.role}, not for a {role}", hint)
    return token


def warn_of_end(token: Token, role: str) -> None:
    """Say it when a token is over by our clock: its server says nothing, it only does not answer."""
    if token.expires_at and token.expires_at <= time.time():
        when = time.strftime(_MOMENT, time.gmtime(token.expires_at))
        facts = {"name": token.name, "since": when, "make a new one": "pilotq token new"}
        logging.getLogger(f"pilotq.{role}").warning("the token has expired", extra={"facts": facts})


# ---- letting in --------------------------------------------------------------------------------------------------


class Authenticator:
    """Answers libzmq's question whether a key may come in (ZAP): the `User-Id` of a connection is its public key.

    Fails closed: with ZAP_ENFORCE_DOMAIN on every socket, nobody gets in while this is not running.

    Source: ZeroMQ RFC 27/ZAP.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        #: By public key (Z85). Who is not in it is not let in, and not listened to any more.
        self.allowed: dict[str, Key] = {}
        self.refused = 0
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def allow(self, known: Iterable[tuple[str, Key]]) -> None:
        """These and no others; of them those whose role speaks over ZeroMQ."""
        self.allowed = {public: key for public, key in known if key.role in ON_LINK}

    def answer(self) -> bool:
        """Answer waiting questions; True when there may be more, and others should have a turn first."""
        for _ in range(ANSWERS_MAX):
            if not int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return False
            frames = self.socket.recv_multipart()
            status, user = b"400", b""
            if len(frames) >= 7 and frames[2] == DOMAIN and frames[5] == b"CURVE":
                public = z85.encode(frames[6])
                if public.decode() in self.allowed:
                    status, user = b"200", public
            if status != b"200":
                self.refused += 1
            request = frames[1] if len(frames) > 1 else b""
            self.socket.send_multipart([b"1.0", request, status, b"", user, b""])
        return True

    def close(self) -> None:
        self.socket.close()
