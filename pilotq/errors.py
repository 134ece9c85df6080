"""The four families of errors.

How a task ended is data (`pilotq.model.Outcome`), never one of these.
"""

from __future__ import annotations


class PilotqError(Exception):
    """Something went wrong that pilotq has a sentence for.

    The message says what happened and with which thing; `hint` says what to do.
    """

    #: What the process exits with when nobody handled it.
    exit_code = 70
    #: True when the same thing may work later without anybody changing anything.
    transient = False

    def __init__(self, message: str, hint: str = "", *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def line(self) -> str:
        """Message and hint as the one line a person reads."""
        text = " ".join(str(self).split())
        return f"{text}: {self.hint}" if self.hint else text


class UserError(PilotqError):
    """What you gave cannot be used."""

    exit_code = 2


class PeerError(PilotqError):
    """The other side broke the protocol; its session ends."""

    exit_code = 4


class UnavailableError(PilotqError):
    """It cannot be done now, but may work later."""

    exit_code = 4
    transient = True


class InternalError(PilotqError):
    """A bug of pilotq; carries the history of what led to it."""

    exit_code = 70
