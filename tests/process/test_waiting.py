"""Waiting for the end of clusters over the API: told at once, and only what is on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import Parts, wait_for

from pilotq.client import Client

pytestmark = pytest.mark.timeout(120)
SLEEPER = "executable = /bin/sleep\ntransfer_executable = false\narguments = {}\nqueue {}\n"
TRUE = "executable = /bin/true\ntransfer_executable = false\nqueue {}\n"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path, foremen=1)
    yield found
    found.close()


def wait(client: Client, clusters: list[int], wait_s: float = 25) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/clusters?ids={','.join(map(str, clusters))}&wait_s={wait_s}")
    return sorted(found, key=lambda view: int(view["cluster"]))


def test_who_waits_is_told_when_all_is_over_and_kept(parts: Parts) -> None:
    parts.start_all(foremen=1)
    clusters = [parts.submit(TRUE.format(count)) for count in (1, 3)]
    assert [view["done"] for view in wait(parts.client, clusters)] == [1, 3]
    parts.kill9("master")
    parts.start_master()
    assert [sorted(parts.history(cluster)) for cluster in clusters] == [[0], [0, 1, 2]]
    assert [view["done"] for view in wait(parts.client, clusters)] == [1, 3], "also when it was over before"
    assert parts.status()["loop"]["longest_turn_ms"] > 0


def test_a_wait_is_over_in_time_and_others_are_served_meanwhile(parts: Parts) -> None:
    parts.start_all(foremen=1)
    cluster = parts.submit(SLEEPER.format(600, 1))
    began = time.monotonic()
    (view,) = wait(parts.client, [cluster], 0.5)
    assert time.monotonic() - began >= 0.5
    assert view["done"] == 0
    answers: list[list[dict[str, Any]]] = []
    waiters = [
        threading.Thread(target=lambda: answers.append(wait(Client(str(parts.path)), [cluster]))) for _ in range(20)
    ]
    for thread in waiters:
        thread.start()
    wait_for("it to run", lambda: parts.counts(cluster)["running"] == 1)
    assert parts.condor("condor_rm", str(cluster)).returncode == 0
    for thread in waiters:
        thread.join()
    assert [view["cancelled"] for (view,) in answers] == [1] * 20


def test_a_held_cluster_is_over_until_it_is_released(parts: Parts) -> None:
    parts.start_master()
    cluster = parts.submit(SLEEPER.format(0, 2))
    assert parts.condor("condor_hold", str(cluster)).returncode == 0
    (view,) = wait(parts.client, [cluster])
    assert view["held"] == 2
    assert parts.condor("condor_release", str(cluster)).returncode == 0
    (view,) = wait(parts.client, [cluster], 0.2)
    assert view["idle"] == 2


def test_a_client_that_stays_survives_a_restart_of_the_master(parts: Parts) -> None:
    parts.start_master()
    before = parts.status()["master"]["pid"]
    parts.kill9("master")
    parts.start("master")
    after = wait_for("the new master", parts.status_or_none)["master"]["pid"]
    assert before != after
