"""CURVE keys, tokens and the authenticator: who may speak to whom.

Layout below the home: `keys/master.json` and `keys/foreman.json` (server pairs), `keys/authorized/ROLE/NAME.pub`
(whom the master lets in), and the tokens `worker.token` and `foreman.token` that an operator copies to other hosts. A
token is a JSON file: role, name, its own pair, the public keys of master and foremen. Secrets are only ever in files of
mode 0600.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.utils import z85

from pilotq.errors import UserError

#: ZAP domain of every socket of ours.
DOMAIN = b"pilotq"
#: Questions of ZAP that are answered in a row.
ANSWERS_MAX = 50
ROLES = ("worker", "foreman")


class Token(msgspec.Struct, frozen=True):
    """What a process needs to be let in. Never printed."""

    role: str
    name: str
    public: str
    secret: str
    #: Public keys of the servers it may connect to.
    master: str
    foreman: str

    def __repr__(self) -> str:
        return f"Token({self.role} {self.name})"


class KeyPair(msgspec.Struct, frozen=True):
    """The pair of a server. Never printed."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


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


def _pair_at(path: Path) -> KeyPair:
    if not path.exists():
        write_secret(path, new_pair())
    return msgspec.json.decode(path.read_bytes(), type=KeyPair)


def make_keys(home: Path) -> KeyPair:
    """Make what is missing of keys and tokens; the master's pair."""
    keys = home / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    master, foreman = _pair_at(keys / "master.json"), _pair_at(keys / "foreman.json")
    for role in ROLES:
        path = home / f"{role}.token"
        if path.exists():
            continue
        pair = foreman if role == "foreman" else new_pair()
        authorize(home, role, "site", pair.public)
        write_secret(path, Token(role, "site", pair.public, pair.secret, master.public, foreman.public))
    return master


def authorize(home: Path, role: str, name: str, public: str) -> None:
    """Let a key in under this role and name."""
    folder = home / "keys" / "authorized" / role
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / f"{name}.pub").write_text(public + "\n")


def authorized(home: Path) -> dict[str, tuple[str, str]]:
    """Public key -> (role, name) of all that may come in."""
    known = {}
    for role in ROLES:
        for path in sorted((home / "keys" / "authorized" / role).glob("*.pub")):
            try:
                known[path.read_text().strip()] = (role, path.stem)
            except (OSError, UnicodeDecodeError):
                # Removed just now, or no key: nobody comes in by it.
                continue
    return known


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


class Authenticator:
    """Answers libzmq's question whether a key may come in (ZAP); also what `User-Id` a connection gets.

    Fails closed: with ZAP_ENFORCE_DOMAIN on every socket, nobody gets in while this is not running.

    Source: ZeroMQ RFC 27/ZAP.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        #: Public key (Z85) -> (role, name).
        self.allowed: dict[str, tuple[str, str]] = {}
        self.refused = 0
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> bool:
        """Answer waiting questions; True when there may be more, and others should have a turn first."""
        for _ in range(ANSWERS_MAX):
            if not int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return False
            frames = self.socket.recv_multipart()
            status, user = b"400", ""
            if len(frames) >= 7 and frames[2] == DOMAIN and frames[5] == b"CURVE":
                known = self.allowed.get(z85.encode(frames[6]).decode())
                if known is not None:
                    status, user = b"200", f"{known[0]}:{known[1]}"
            if status != b"200":
                self.refused += 1
            request = frames[1] if len(frames) > 1 else b""
            self.socket.send_multipart([b"1.0", request, status, b"", user.encode(), b""])
        return True

    def close(self) -> None:
        self.socket.close()
