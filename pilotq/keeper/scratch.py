"""The sandboxes of a keeper: made, filled, collected and removed, or kept for the next attempt."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator

from pilotq.keeper.agenda import Agenda, Chore
from pilotq.keeper.attempt import Attempt
from pilotq.model import Outcome
from pilotq.sandbox import files
from pilotq.sandbox.removal import removing
from pilotq.sandbox.spares import Spares, whole

#: Spares that nobody took for this long are removed.
SPARE_S = 1.0
log = logging.getLogger(__name__)


class Scratch:
    """All sandboxes of a keeper."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._spares = Spares()
        #: Spares were taken or left since the timer was set; there is one.
        self._in_use = False
        self._watching = False

    def reuse(self, attempt: Attempt) -> bool:
        """Give it a spare, if there is one that fits."""
        try:
            attempt.prints = self._spares.take(
                attempt.filling, attempt.sandbox, _job_ad(attempt), attempt.launch.inline
            )
        except OSError as error:
            # Whatever there is now is removed by `furnish`.
            log.warning("a spare sandbox is of no use", extra={"sandbox": attempt.sandbox, "error": str(error)})
        if attempt.prints is None:
            return False
        self._in_use = attempt.is_frugal = True
        return True

    def furnish(self, attempt: Attempt) -> Generator[None, None, bool]:
        """Make and fill the sandbox; False when there is none. What failed is the attempt's verdict."""
        sandbox, filling = attempt.sandbox, attempt.filling
        try:
            yield from _make(sandbox)
            ad = filling.machine_ad.encode()
            prints = {
                files.JOB_AD_FILE: files.put(f"{sandbox}/{files.JOB_AD_FILE}", _job_ad(attempt)),
                files.MACHINE_AD_FILE: files.put(f"{sandbox}/{files.MACHINE_AD_FILE}", ad, is_old=True),
            }
            for name in filling.streams:
                prints[name] = files.put(f"{sandbox}/{name}", b"")
        except OSError as error:
            attempt.fail_with(error, "Cannot make the scratch directory", Outcome.REJECTED)
            return False
        try:
            launch = attempt.launch
            if filling.files:
                prints |= yield from files.stage(
                    sandbox, launch.cache, filling.files, filling.executables, launch.inline
                )
            attempt.is_frugal = filling.is_small
            if attempt.is_frugal or attempt.description.outputs is None:
                attempt.prints = whole(sandbox, prints)
        except OSError as error:
            attempt.fail_with(error, f"Cannot put input file {error.filename!r} into place", Outcome.STAGE_IN)
        return True

    def leave(self, attempt: Attempt, found: files.Collected) -> None:
        """Nothing of the attempt is wanted any more: its sandbox becomes a spare, or is removed soon."""
        may = attempt.is_frugal and attempt.verdict is None and attempt.prints is not None
        if may and self._spares.give(attempt.sandbox, attempt.filling, attempt.prints or {}, found.top):
            self._in_use = True
            self._watch()
        else:
            self.remove(attempt.sandbox)

    def remove(self, sandbox: str) -> None:
        """Soon."""
        self._agenda.later(self._removing(sandbox))

    def end(self) -> None:
        """Remove what is to be removed now."""
        for sandbox in self._spares.drop():
            self.remove(sandbox)
        self._agenda.finish()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._agenda.at(SPARE_S, None, self._tidy)

    def _tidy(self) -> None:
        """Remove the spares, when none was used since it was looked last."""
        self._watching = False
        if self._in_use:
            self._in_use = False
            self._watch()
            return
        for sandbox in self._spares.drop():
            self.remove(sandbox)

    def _removing(self, sandbox: str) -> Chore:
        try:
            yield from removing(sandbox)
        except OSError as error:
            log.warning("a sandbox cannot be removed", extra={"sandbox": sandbox, "error": str(error)})


def _job_ad(attempt: Attempt) -> bytes:
    return attempt.description.job_ad.encode(errors="surrogateescape")


def _make(sandbox: str) -> Chore:
    """An empty directory, whatever there was."""
    try:
        os.mkdir(sandbox, 0o700)
    except FileExistsError:
        yield from removing(sandbox)
        os.mkdir(sandbox, 0o700)
