"""HTCondor's own parser as a judge of ours: both read a description, their job ads are compared."""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitting import HOME, NOW, SCRIPT, User
from submitting import proc as proc_of

from pilotq.condor.expressions import canonical
from pilotq.condor.jobad import job_ad
from pilotq.condor.request import Answer, raw, write_fields
from pilotq.condor.submit import Plan
from pilotq.model import Facts, State

HERE = Path(__file__).parent
#: Made by tests/judge.
PYTHON = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "pilotq/judge/bin/python"

FILES = {
    "job.sh": SCRIPT.decode(),
    "other.sh": "#!/bin/sh\nexit 1\n",
    "in.txt": "input\n",
    "a.dat": "a\n",
    "b.dat": "b\n",
    "c.dat": "c\n",
    "data/one.txt": "1\n",
    "data/two.txt": "2\n",
    "data/deep/three.txt": "3\n",
    "items.txt": "p 1\nq 2\n\n# r\nr 3 4\n",
    "table.csv": "x, 1, one\ny, 2, two words\n",
    "common.inc": "arguments = from-include\nshared = yes\n",
    "more.inc": "include : common.inc\n+More = 1\n",
    "my.env": "A=1\n",
}
ENV = {
    "HOME": "/home/bob",
    "PATH": "/usr/bin:/bin",
    "LANG": "C",
    "A_ONE": "1",
    "A_TWO": "two words",
    "B_QUOTE": "it's",
    "SEMI": "a;b",
}

#: Attributes that are not compared, and why.
EXPLAINED = {
    "CondorVersion": "it names who made the ad",
    "CondorPlatform": "it names who made the ad",
    "JobSubmitMethod": "the library says 2 (bindings); condor_submit says 0",
    "JobSubmitFile": "the library was given a text, not a file",
    "JobMaterializeLimit": "the library makes all jobs at once and says nothing of it",
    "FileSystemDomain": "it is the name of the host",
    "GridJobId": "a schedd sets it later; ours are jobs of a grid from the start",
    "GridJobStatus": "a schedd sets it later; policies of computing elements must not see it undefined",
    "GlobalJobId": "the schedd gives it, not the parser",
    "TotalSubmitProcs": "the schedd gives it, not the parser",
    "ServerTime": "condor_q adds it",
    "Owner": "the library leaves it to the schedd",
    "User": "the library leaves it to the schedd",
}


@dataclass
class Verdict:
    """What one of the two made of a description: (cluster, proc) -> attributes; or why it refused."""

    ads: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    error: str = ""


class Judge:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(PYTHON), "-I", str(HERE / "judge.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, text: str) -> Verdict:
        question = {"text": text, "files": FILES, "env": ENV, "moment": int(NOW)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the judge died of {text!r}"
        answer: dict[str, Any] = json.loads(line)
        ads = {}
        user = re.compile(rf'([."]){answer["user"]}"')
        for cluster, proc, printed in answer["ads"]:
            ads[cluster, proc] = _attributes(user.sub(r'\1bob"', printed.replace(answer["place"], HOME)))
        return Verdict(ads, answer["error"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


_LINE = re.compile(r"^([A-Za-z_]\w*) = ", re.MULTILINE)


def _attributes(printed: str) -> dict[str, str]:
    """A printed ad; values may have lines."""
    starts = [*_LINE.finditer(printed)]
    ends = [*[start.start() for start in starts[1:]], len(printed)]
    return {start[1]: printed[start.end() : end].rstrip("\n") for start, end in zip(starts, ends, strict=True)}


@dataclass
class OnDisk(User):
    """A user whose commands run, where his files are."""

    place: Path = Path()

    def __post_init__(self) -> None:
        for name, content in FILES.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def on_glob(self, pattern: str) -> Answer:
        found = sorted(glob.glob(pattern, root_dir=self.place))
        return Answer(True, data=write_fields([(b"d" if (self.place / n).is_dir() else b"f") + raw(n) for n in found]))

    def on_run(self, command: str) -> Answer:
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, cwd=self.place, check=False)
        return Answer(True, data=done.stdout) if not done.returncode else Answer(False, error="it failed", errno=1)


def ours(text: str, place: Path) -> Verdict:
    user = OnDisk(place=place, files={f"{HOME}/{name}": content.encode() for name, content in FILES.items()}, env=ENV)
    plan = user.submit(text)
    if not isinstance(plan, Plan):
        return Verdict(error=plan.err or plan.out)
    if not plan.submissions:
        return Verdict(error=plan.stderr)
    found = {}
    for number, submission in enumerate(plan.submissions):
        state = State.HELD if submission.body.hold_reason else State.IDLE
        for one in range(submission.count):
            _, body = proc_of(submission, one, 7 + number)
            ad = job_ad(body, 7 + number, one, state, 0, Facts(), NOW, "head.example.org", submission.count)
            found[7 + number, one] = ad
    return Verdict(found)


def differences(mine: Verdict, theirs: Verdict) -> list[str]:
    """What is not the same, a line each."""
    if bool(mine.error) != bool(theirs.error):
        return [f"ours {mine.error or 'accepts it'!r}, theirs {theirs.error or 'accepts it'!r}"]
    if mine.ads.keys() != theirs.ads.keys():
        return [f"ours has the jobs {sorted(mine.ads)}, theirs {sorted(theirs.ads)}"]
    found = []
    for number, their_ad in theirs.ads.items():
        one, other = _comparable(mine.ads[number]), _comparable(their_ad)
        names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        found += [f"{number} {name}: ours {one.get(name)}, theirs {other.get(name)}" for name in names]
    return found


_SKIPPED = {name.lower() for name in EXPLAINED}


def _comparable(ad: dict[str, str]) -> dict[str, str]:
    return {name.lower(): canonical(text) for name, text in ad.items() if name.lower() not in _SKIPPED}
