"""Who may say what: one table of roles and messages, for every door there is.

A role comes from the key of a connection, or from the account at the other end of the Unix socket; never from what is
said. What is not in the table nobody may say.
"""

from __future__ import annotations

from enum import StrEnum

from pilotq import wire

#: Name of the keys that the master makes by itself at its first start.
FIRST = "site"
#: Name of the key of the worker on the master's own host, which alone runs tasks of universes local and scheduler.
HEAD = "head"


class Role(StrEnum):
    """What a key is good for."""

    #: Runs tasks.
    WORKER = "worker"
    #: Relays.
    FOREMAN = "foreman"
    #: Submits, and looks after tasks.
    SUBMIT = "submit"
    #: Everything on the master's socket.
    ADMIN = "admin"
    #: Looks.
    READ = "read"


_WORKER, _FOREMAN = frozenset({Role.WORKER}), frozenset({Role.FOREMAN})
_LOOK = frozenset({Role.SUBMIT, Role.ADMIN, Role.READ})
_DO = frozenset({Role.SUBMIT, Role.ADMIN})
_RULE = frozenset({Role.ADMIN})

#: What goes up a ZeroMQ link, and who may send it.
MESSAGES: dict[type, frozenset[Role]] = {
    wire.Hello: _WORKER,
    wire.Beat: _WORKER,
    wire.Started: _WORKER,
    wire.Result: _WORKER,
    wire.Refuse: _WORKER,
    wire.Killed: _WORKER,
    wire.Data: _WORKER,
    wire.Goodbye: _WORKER | _FOREMAN,
    wire.Get: _WORKER | _FOREMAN,
    wire.ForemanHello: _FOREMAN,
    wire.ForemanBeat: _FOREMAN,
    wire.Gone: _FOREMAN,
    # What is in it is asked by the same role; see below.
    wire.Flow: _LOOK,
}
#: What can be asked of the master's socket, and who may ask it.
REQUESTS: dict[str, frozenset[Role]] = {
    "condor_q": _LOOK,
    "condor_history": _LOOK,
    "condor_status": _LOOK,
    "condor_version": _LOOK,
    "condor_who": _LOOK,
    "condor_config_val": _LOOK,
    "condor_ping": _LOOK,
    "condor_reschedule": _LOOK,
    "condor_userprio": _LOOK,
    "condor_tail": _DO,
    "condor_transfer_data": _DO,
    "GET /v1/status": _LOOK,
    "GET /v1/clusters": _LOOK,
    "GET /v1/tasks": _LOOK,
    "condor_submit": _DO,
    "POST /condors": _DO,
    "PUT /blob": _DO,
    "PUT /blobs": _DO,
    "condor_rm": _DO,
    "condor_hold": _DO,
    "condor_release": _DO,
    "condor_suspend": _DO,
    "condor_continue": _DO,
    "condor_vacate_job": _DO,
    "condor_qedit": _DO,
    "condor_prio": _DO,
    "condor_drain": _RULE,
    "condor_vacate": _RULE,
    "POST /v1/act": _DO,
    "POST /v1/drain": _RULE,
    "POST /v1/worker": _RULE,
}
#: Roles whose keys a ZeroMQ socket lets in at all.
ON_LINK = frozenset().union(*MESSAGES.values())


def may_send(role: str, message: type) -> bool:
    """May this role send a message of this type?"""
    return role in MESSAGES.get(message, ())


def may_ask(role: str, request: str) -> bool:
    """May this role ask this of the master's socket?"""
    return role in REQUESTS.get(request, ())


def worker_name(told: str, key: str) -> str:
    """The name of a worker in the whole pool: what it calls itself, and its key, so that no key can take another's.

    With the key that every pool begins with, what it calls itself is enough.
    """
    return told if key == FIRST else f"{told}@{key}"
