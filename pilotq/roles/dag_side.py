"""The runner of a DAG as a client of the master: submissions in batches, each with a key, and removals."""

from __future__ import annotations

import glob
import os
import stat
import subprocess
from typing import NamedTuple

from pilotq.client import Client
from pilotq.condor.request import Reply, Want, raw, read_fields, read_reply, write_fields

_Answer = list[bytes]
#: An answer that a batch does not need again.
_ERRNO_UNKNOWN = 38


class Job(NamedTuple):
    """One condor_submit. The same key never submits twice."""

    key: str
    cwd: str
    argv: list[str]
    #: Instead of a file.
    description: str = ""


class Side:
    """Blocks; for one thread."""

    def __init__(self, client: Client, environ: dict[str, str]) -> None:
        self._client = client
        pairs = [b"tool", b"condor_submit", b"uid", b"%d" % os.getuid()]
        for item in environ.items():
            pairs += [b"env", raw("=".join(item))]
        self._shared = write_fields(pairs)
        #: What was asked when this file was submitted in this directory: answered at once the next time.
        self._asked: dict[tuple[str, str], list[Want]] = {}

    def submit(self, jobs: list[Job]) -> list[Reply]:
        """Raises: UnavailableError; then all may be submitted again, with the same keys."""
        known: dict[tuple[str, Want], _Answer] = {}
        wants: list[dict[Want, None]] = [dict.fromkeys(self._asked.get(_kind(job), [])) for job in jobs]
        replies = [Reply() for _ in jobs]
        todo = list(range(len(jobs)))
        while todo:
            body = [self._shared, *[self._request(jobs[at], wants[at], known) for at in todo]]
            answers = read_fields(self._client.send("POST", "/condors", write_fields(body)))
            rest = []
            for at, data in zip(todo, answers, strict=True):
                replies[at] = read_reply(data)
                if replies[at].wants:
                    wants[at].update(dict.fromkeys(replies[at].wants))
                    self._asked[_kind(jobs[at])] = list(wants[at])
                    rest.append(at)
            todo = rest
        return replies

    def remove(self, clusters: list[int]) -> None:
        """Raises: UnavailableError."""
        selection = [{"cluster": cluster} for cluster in clusters]
        self._client.post("/v1/act", {"verb": "cancel", "selection": selection, "reason": "removed by its DAG"})

    def _request(self, job: Job, wants: dict[Want, None], known: dict[tuple[str, Want], _Answer]) -> bytes:
        fields = [b"key", raw(job.key), b"cwd", raw(job.cwd)]
        for word in job.argv:
            fields += [b"arg", raw(word)]
        for want in wants:
            answer = [b"ok", raw(job.description)] if want == ("read", "-") else known.get((job.cwd, want))
            if answer is None:
                answer = known[job.cwd, want] = self._look(job.cwd, *want)
            fields += [b"have", write_fields([raw(want[0]), raw(want[1]), *answer])]
        return write_fields(fields)

    def _look(self, cwd: str, kind: str, argument: str) -> _Answer:
        try:
            return [b"ok", self._found(cwd, kind, argument)]
        except OSError as error:
            return [b"error", raw(error.strerror or str(error)), b"%d" % (error.errno or 5)]

    def _found(self, cwd: str, kind: str, argument: str) -> bytes:
        path = os.path.join(cwd, argument)
        if kind == "read":
            with open(path, "rb") as file:
                return file.read()
        if kind == "store":
            return self._store(path)
        if kind == "list":
            return write_fields(_below(path))
        if kind == "glob":
            names = sorted(glob.glob(argument, root_dir=cwd))
            return write_fields([_sort(os.path.join(cwd, name)) + raw(name) for name in names])
        if kind == "run":
            done = subprocess.run(["sh", "-c", argument], cwd=cwd, stdout=subprocess.PIPE, check=False)
            if done.returncode:
                raise OSError(abs(done.returncode), f"it ended with {done.returncode}")
            return done.stdout
        if kind == "stat":
            facts = os.stat(path)
            return write_fields([_sort(path), b"%o" % stat.S_IMODE(facts.st_mode), b"%d" % facts.st_size])
        if kind == "write":
            return _writable(path)
        if kind == "home":
            return raw(os.path.expanduser("~"))
        raise OSError(_ERRNO_UNKNOWN, "this runner is older than the master")

    def _store(self, path: str) -> bytes:
        with open(path, "rb") as file:
            facts = os.fstat(file.fileno())
            digest, size = self._client.send("PUT", "/blob", file.read()).split()
        return write_fields([digest, size, b"%o" % stat.S_IMODE(facts.st_mode), b"file"])


def _kind(job: Job) -> tuple[str, str]:
    return job.cwd, job.description or job.argv[-1]


def _sort(path: str) -> bytes:
    mode = os.stat(path).st_mode
    return b"f" if stat.S_ISREG(mode) else b"d" if stat.S_ISDIR(mode) else b"o"


def _below(top: str, inner: str = "") -> list[bytes]:
    found = []
    for name in sorted(os.listdir(os.path.join(top, inner))):
        path = inner + name
        sort = _sort(os.path.join(top, path))
        found += [raw(path), sort]
        if sort == b"d" and len(path) < 4000:
            found += _below(top, path + "/")
    return found


def _writable(path: str) -> bytes:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        if _sort(folder) != b"d":
            raise NotADirectoryError(20, "Not a directory") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied") from None
    return b""
