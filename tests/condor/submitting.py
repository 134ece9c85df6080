"""A user with files in memory who runs condor_submit: answers wants until there is a plan or a refusal."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import posixpath
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotq.condor.expressions import valid
from pilotq.condor.request import Answer, Reply, Request, Want, raw, write_fields
from pilotq.condor.submit import Plan, Site, plan_submit
from pilotq.deltas import find_delta
from pilotq.model import ClusterBody, Description, Submission, fill

NOW = 1_700_000_000.0
HOME = "/home/bob/run"
SCRIPT = b"#!/bin/sh\nexit 0\n"


def site(**changes: Any) -> Site:
    return Site(**{"host": "head.example.org", "schedd_name": "head.example.org", "valid": valid, **changes})


def failed(number: int) -> Answer:
    return Answer(False, error=os.strerror(number), errno=number)


@dataclass
class User:
    """Files by absolute path; None: a directory. The directories of files are there."""

    files: dict[str, bytes | None] = field(default_factory=lambda: {f"{HOME}/job.sh": SCRIPT})
    #: Output of commands.
    commands: dict[str, bytes] = field(default_factory=dict)
    readonly: set[str] = field(default_factory=set)
    env: dict[str, str] = field(default_factory=lambda: {"HOME": "/home/bob", "PATH": "/bin", "LANG": "C"})
    site: Site = field(default_factory=site)
    #: All that was ever wanted, and how often the request was sent.
    wants: list[Want] = field(default_factory=list)
    rounds: int = 0

    def submit(self, text: str | bytes, *argv: str) -> Plan | Reply:
        """Of a file job.sub in HOME, unless argv says otherwise."""
        self.files[f"{HOME}/job.sub"] = raw(text) if isinstance(text, str) else text
        words = list(argv) or ["job.sub"]
        answers: dict[Want, Answer] = {}
        self.wants, self.rounds = [], 0
        while self.rounds < 10:
            self.rounds += 1
            request = Request("condor_submit", "00ff" * 8, words, HOME, self.env, "bob", 1000, answers=answers)
            result = plan_submit(request, NOW, self.site)
            if isinstance(result, Plan) or not result.wants:
                return result
            assert not set(result.wants) & set(answers), "it asked again for what it was told"
            assert not result.out and not result.err
            self.wants += result.wants
            answers = answers | {want: self.answer(*want) for want in result.wants}
        raise AssertionError("it never has enough")

    def one(self, text: str | bytes, *argv: str) -> Submission:
        """The only cluster of a plan."""
        plan = self.submit(text, *argv)
        assert isinstance(plan, Plan), plan.err
        assert len(plan.submissions) == 1
        return plan.submissions[0]

    def refused(self, text: str | bytes, *argv: str) -> str:
        """What is said on stderr."""
        reply = self.submit(text, *argv)
        assert isinstance(reply, Reply), "it was accepted"
        assert (reply.exit, reply.out) == (1, "")
        assert reply.err.startswith("\nERROR: ") and reply.err.endswith("\n")
        return reply.err

    # ---- the user's side

    def answer(self, kind: str, argument: str) -> Answer:
        path = posixpath.join(HOME, argument)
        answer: Answer = getattr(self, "on_" + kind)(path if kind not in ("run", "glob") else argument)
        return answer

    def is_dir(self, path: str) -> bool:
        path = posixpath.normpath(path)
        return self.files.get(path, b"") is None or any(name.startswith(path.rstrip("/") + "/") for name in self.files)

    def on_read(self, path: str) -> Answer:
        path = f"{HOME}/job.sub" if path == f"{HOME}/-" else path
        content = self.files.get(posixpath.normpath(path))
        if content is None:
            return failed(errno.EISDIR if self.is_dir(path) else errno.ENOENT)
        return Answer(True, data=content)

    def on_store(self, path: str) -> Answer:
        answer = self.on_read(path)
        if not answer.ok:
            return answer
        digest = hashlib.sha256(answer.data).hexdigest().encode()
        return Answer(True, data=write_fields([digest, b"%d" % len(answer.data), b"644", b"file"]))

    def on_stat(self, path: str) -> Answer:
        if self.is_dir(path):
            return Answer(True, data=write_fields([b"d", b"755", b"4096"]))
        answer = self.on_read(path)
        return Answer(True, data=write_fields([b"f", b"644", b"%d" % len(answer.data)])) if answer.ok else answer

    def on_write(self, path: str) -> Answer:
        if self.is_dir(path):
            return failed(errno.EISDIR)
        if path in self.readonly:
            return failed(errno.EACCES)
        return Answer(True) if self.is_dir(posixpath.dirname(path)) else failed(errno.ENOENT)

    def on_list(self, path: str) -> Answer:
        inner = [name for name in sorted(self.files) if name.startswith(path + "/")]
        fields: list[bytes] = []
        for name in inner:
            fields += [raw(name[len(path) + 1 :]), b"d" if self.files[name] is None else b"f"]
        return Answer(True, data=write_fields(fields))

    def on_glob(self, pattern: str) -> Answer:
        found = [name[len(HOME) + 1 :] for name in sorted(self.files) if name.startswith(HOME + "/")]
        found = [name for name in found if fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")]
        return Answer(True, data=write_fields([(b"d" if self.is_dir(f"{HOME}/{n}") else b"f") + raw(n) for n in found]))

    def on_run(self, command: str) -> Answer:
        if command not in self.commands:
            return Answer(False, error="it ended with 1", errno=1)
        return Answer(True, data=self.commands[command])


def proc(submission: Submission, number: int, cluster: int = 7) -> tuple[Description, ClusterBody]:
    """One proc with its delta and its numbers filled in, as head and worker see it."""
    description = msgspec.to_builtins(submission.description)
    body = msgspec.to_builtins(submission.body)
    packed = find_delta(submission.deltas, number)
    delta = msgspec.msgpack.decode(packed) if packed else {}
    for name, value in delta.items():
        if name == "ad":
            body["ad"] = {**body.get("ad", {}), **value}
        else:
            assert name in Description.__struct_fields__ or name in ClusterBody.__struct_fields__
            (description if name in Description.__struct_fields__ else body)[name] = value
    return (
        msgspec.convert(fill(description, cluster, number), Description),
        msgspec.convert(fill(body, cluster, number), ClusterBody),
    )


def argvs(submission: Submission) -> list[list[str]]:
    """The arguments of each proc."""
    return [proc(submission, number)[0].argv[1:] for number in range(submission.count)]
