"""Runs in the judge's own Python, where HTCondor's parser of submit files is: a line of JSON in, a line of JSON out.

In: `text`, `files` (relative name -> content), `env`, `moment`. Out: `ads`, a list of [cluster, proc, printed ad], and
`error`, "" when the description was accepted. The library reads one queue statement only, so each is given to it with
all that stands before, but for the queue statements there.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import sys
import tempfile
from typing import Any

os.environ["CONDOR_CONFIG"] = "ONLY_ENV"
import htcondor

QUEUE = re.compile(r"\s*queue(?=[\s(]|$)(?!\s*=)", re.IGNORECASE)
FIRST_CLUSTER = 7
PATIENCE_S = 5
USER = pwd.getpwuid(os.getuid()).pw_name


def pieces(text: str) -> list[str]:
    """For each queue statement the description that ends with it and has no other."""
    found, kept = [], []
    lines = iter(text.split("\n"))
    for line in lines:
        if not QUEUE.match(line):
            kept.append(line)
            continue
        statement = [line]
        if line.count("(") > line.count(")"):
            for inner in lines:
                statement.append(inner)
                if inner.lstrip().startswith(")"):
                    break
        found.append("\n".join([*kept, *statement, ""]))
    return found


def judged(question: dict[str, Any]) -> dict[str, Any]:
    ads: list[list[Any]] = []
    cluster, proc, cmd = FIRST_CLUSTER, 0, ""
    try:
        statements = pieces(question["text"])
        if not statements:
            return {"ads": [], "error": "no queue statement"}
        for statement in statements:
            found = jobs(statement, cluster, proc, question["moment"])
            if cmd and found[0].get("Cmd") != cmd:
                cluster, proc = cluster + 1, 0
                found = jobs(statement, cluster, proc, question["moment"])
            cmd = found[0].get("Cmd")
            ads += [[cluster, proc + number, ad.printOld()] for number, ad in enumerate(found)]
            proc += len(found)
    except Exception as error:
        return {"ads": [], "error": str(error) or type(error).__name__}
    return {"ads": ads, "error": ""}


def jobs(statement: str, cluster: int, proc: int, moment: int) -> list[Any]:
    return list(htcondor.Submit(statement).jobs(clusterid=cluster, procid=proc, qdate=moment))


def answer(question: dict[str, Any], place: str) -> dict[str, Any]:
    """In a process of its own: some mistakes make the library end the process, or go on for ever."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(PATIENCE_S)
        os.environ.update(question["env"])
        os.chdir(place)
        with open(into, "w") as file:
            json.dump(judged(question), file)
        os._exit(0)
    os.close(into)
    with open(out) as file:
        said = file.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else {"ads": [], "error": "the library ended the process"}


def main() -> None:
    for name in set(os.environ):
        del os.environ[name]
    for line in sys.stdin:
        question = json.loads(line)
        with tempfile.TemporaryDirectory(prefix="judge-") as place:
            for name, content in question["files"].items():
                os.makedirs(os.path.join(place, os.path.dirname(name)), exist_ok=True)
                with open(os.path.join(place, name), "w") as file:
                    file.write(content)
            said = answer(question, place) | {"place": place, "user": USER}
        print(json.dumps(said), flush=True)


main()
