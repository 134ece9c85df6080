"""Tokens of a running pool: made, revoked, expired, and the servers' keys replaced, with tasks that go on."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import Parts, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


def worker(parts: Parts, name: str) -> dict[str, Any]:
    found = [one for one in parts.status()["workers"] if one["name"].endswith(name)]
    return found[0] if found else {}


def test_a_token_of_a_site_is_made_and_revoked_without_touching_others(parts: Parts) -> None:
    parts.start_all(slots=1, foremen=1)
    done = parts.pilotq("token", "new", "--role", "worker", "--site", "cern", "--expires", "30d")
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    assert Path(token).stat().st_mode & 0o777 == 0o600
    assert parts.pilotq("token", "new", "--site", "cern").returncode == 2, "there is one"
    listed = json.loads(parts.pilotq("token", "list", "--json").stdout)["tokens"]
    assert {(one["name"], one["role"], one["state"]) for one in listed} == {
        ("site", "worker", "allowed"),
        ("site", "foreman", "allowed"),
        ("cern", "worker", "allowed"),
    }
    shown = parts.pilotq("token", "show", "cern")
    assert "worker" in shown.stdout and json.loads(Path(token).read_text())["secret"] not in shown.stdout
    parts.start("worker1", PILOTQ_WORKER_TOKEN=token, WQ_NUM_WORKERS="1")
    wait_for("the worker of the other site", lambda: worker(parts, "@cern").get("state") == "ready")
    cluster = parts.submit("executable = /bin/sleep\narguments = 600\ntransfer_executable = false\nqueue 2\n")
    wait_for("both to run", lambda: parts.counts(cluster)["running"] == 2)
    assert parts.pilotq("token", "revoke", "cern").returncode == 0
    wait_for("it to be unreachable", lambda: worker(parts, "@cern").get("state") == "lost")
    wait_for("the foreman to have one worker", lambda: parts.status()["foremen"][0]["workers"] == 1)
    assert [one["state"] for one in parts.status()["workers"] if "@" not in one["name"]] == ["ready"]
    assert parts.counts(cluster)["running"] == 2, "the lease decides, not the key"
    assert parts.pilotq("token", "revoke", "cern").returncode == 3
    assert parts.pilotq("token", "list").stdout.count("\n") == 3


def test_the_servers_keys_are_replaced_while_tasks_run(parts: Parts) -> None:
    parts.start_all(slots=1, foremen=1)
    cluster = parts.submit(
        "executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'cd {parts.cwd}; echo start >> starts; while [ ! -e go ]; do sleep 0.1; done'\"\nqueue\n"
    )
    wait_for("it to run", lambda: parts.counts(cluster)["running"] == 1)
    stale = parts.path.parent / "stale.token"
    assert parts.pilotq("token", "worker", "--out", str(stale)).returncode == 0
    assert parts.pilotq("token", "rotate-server").returncode == 0
    assert parts.pilotq("token", "rotate-server").returncode == 2
    assert "rotating" in parts.pilotq("token", "list", "--json").stdout
    assert parts.status()["workers"][0]["state"] == "ready", "nothing changed yet"
    assert parts.pilotq("token", "rotate-server", "--finish").returncode == 0
    wait_for("the master", lambda: "serving with its next key" in parts.log("master"))
    wait_for("the foreman", lambda: "serving with the next key" in parts.log("foreman0"))
    (parts.cwd / "go").touch()
    parts.wait_done(cluster)
    assert (parts.cwd / "starts").read_text() == "start\n"
    parts.start("worker1", PILOTQ_WORKER_TOKEN=str(stale), WQ_NUM_WORKERS="1")
    wait_for("a word", lambda: "waiting for the master" in parts.log("worker1"), 60)
    assert len(parts.status()["workers"]) == 1, "who only knows the old keys stays outside"


def test_who_submits_is_known_by_the_socket(parts: Parts) -> None:
    parts.start_master()
    assert b"submitted to cluster 1" in parts.submit_with_key("k" * 32, b"user", b"mallory", b"uid", b"4711")
    owner = parts.condor("condor_q", "1", "-af", "Owner")
    assert owner.stdout.strip() == pwd.getpwuid(os.getuid()).pw_name
