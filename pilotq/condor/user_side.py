"""The user's side of condor_submit: what was found out there, and what must be asked yet."""

from __future__ import annotations

from typing import NamedTuple

from pilotq.condor.lexer import SubmitError, shown_path
from pilotq.condor.request import Answer, Request, Want, read_fields, text

WANTS_MAX = 300_000


class Waiting(Exception):  # noqa: N818 - it is no error
    """It cannot go on without an answer."""


class Kept(NamedTuple):
    """A file of the user, kept by content."""

    digest: str
    size_bytes: int
    mode: int
    is_directory: bool


#: Stands for a file whose answer has not come yet.
PENDING = Kept("", 1, 0o600, False)


class UserSide:
    """Answers from a request; collects wants. What is not known yet is taken to be in order."""

    def __init__(self, request: Request, *, store: bool = True) -> None:
        self.request = request
        self.wants: dict[Want, None] = {}
        self._store = store
        self._kept: dict[str, Kept] = {}

    def path(self, path: str, base: str = "") -> str:
        """A path of the user as an absolute one."""
        base = base or self.request.cwd
        if path[:1] == "/":
            return path
        return f"{base.rstrip('/')}/{path}" if path else base

    def ask(self, kind: str, argument: str) -> Answer | None:
        """The answer; None: not known yet."""
        want = (kind, argument)
        answer = self.request.answers.get(want)
        if answer is None:
            if len(self.wants) >= WANTS_MAX:
                raise SubmitError(f"the jobs name more than {WANTS_MAX} files, directories and outputs")
            self.wants[want] = None
        return answer

    def must(self, kind: str, argument: str) -> Answer:
        """The answer.

        Raises: Waiting when it is not known yet.
        """
        answer = self.ask(kind, argument)
        if answer is None:
            raise Waiting
        return answer

    def keep(self, path: str) -> Kept | Answer:
        """A file, kept; PENDING while it is not known yet; what went wrong when it cannot be had."""
        found = self._kept.get(path)
        if found is not None:
            return found
        answer = self.ask("store" if self._store else "stat", path)
        if answer is None:
            return PENDING
        if not answer.ok:
            if answer.errno == 21:
                return self._kept.setdefault(path, Kept("", 0, 0o755, True))
            return answer
        fields = [text(field) for field in read_fields(answer.data)]
        if self._store:
            kept = Kept(fields[0], int(fields[1]), int(fields[2], 8), fields[3][:1] == "d")
        else:
            kept = Kept("", int(fields[2]), int(fields[1], 8), fields[0] == "d")
        self._kept[path] = kept
        return kept

    def files_below(self, path: str) -> list[str] | None:
        """Relative names of all files below a directory; None: not known yet."""
        answer = self.ask("list", path)
        if answer is None:
            return None
        if not answer.ok:
            raise SubmitError(cannot_open(path, 0, answer))
        fields = [text(field) for field in read_fields(answer.data)]
        return [name for name, kind in zip(fields[::2], fields[1::2], strict=False) if kind == "f"]


def cannot_open(path: str, flags: int, answer: Answer) -> str:
    """HTCondor's sentence; `flags` are those of open(2)."""
    return f'Can\'t open "{shown_path(path)}"  with flags 0{flags:o} ({answer.error})'
