"""Nodes with names of their own on one machine: one of them is a black hole until somebody mends it."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, wait_for

NODES, SLOTS = 5, 2
pytestmark = pytest.mark.timeout(240)


class Nodes(Parts):
    """Workers in host-name namespaces."""

    def command(self, *words: str) -> list[str]:
        argv = super().command(*words)
        if words[0] != "worker" or "list" in words or "show" in words:
            return argv
        return ["unshare", "--uts", "sh", "-c", 'hostname "$NODE" && exec "$@"', "sh", *argv]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if os.geteuid() or subprocess.run(["unshare", "--uts", "true"], check=False).returncode:
        pytest.skip("needs root and `unshare`, to give nodes names of their own")
    found = Nodes(tmp_path, foremen=1)
    yield found
    found.close()


def started(nodes: Nodes, name: str) -> Counter[str]:
    """Tasks that were started, by node."""
    path = nodes.cwd / name
    return Counter(path.read_text().split() if path.exists() else [])


def test_a_black_hole_is_suspended_and_taken_back_when_it_is_mended(nodes: Nodes) -> None:
    nodes.start_master()
    nodes.start("foreman0")
    for index in range(NODES):
        nodes.start(f"worker{index}", NODE=f"node{index}", WQ_NUM_WORKERS=str(SLOTS))
    wait_for("the nodes", lambda: nodes.status()["slots"]["open"] == NODES * SLOTS)
    broken = nodes.cwd / "node3-is-broken"
    broken.touch()
    script = nodes.cwd / "task.sh"
    script.write_text(
        f'#!/bin/sh\nnode=$(hostname)\necho "$node" >> "{nodes.cwd}/$1"\n'
        f'[ ! -e "{nodes.cwd}/$node-is-broken" ] && sleep "$2"\n'
    )
    script.chmod(0o755)
    text = "executable = task.sh\narguments = {} {}\nqueue {}\n"
    cluster = nodes.submit(text.format("first", 0.1, 400))
    found = nodes.wait_done(cluster, 90)
    by_node = started(nodes, "first")
    assert by_node["node3"] <= 8, by_node
    assert found["failed"] == by_node["node3"] >= 3
    assert sum(by_node.values()) == 400, "none was started twice"
    shown = json.loads(nodes.pilotq("worker", "show", "node3", "--json").stdout)
    assert [worker["state"] for worker in shown["workers"]] == ["suspended"]
    (node,) = shown["nodes"]
    assert node["state"] == "suspended" and "suspended" in node["steps"][0]["what"]
    broken.unlink()
    cluster = nodes.submit(text.format("second", 1, 200))
    wait_for("the node to be tried and taken back", lambda: started(nodes, "second")["node3"] > SLOTS, 60)
    steps = nodes.pilotq("worker", "show", "node3").stdout
    assert "well again" in steps.splitlines()[-1]


def test_a_node_that_turns_bad_amid_short_tasks_touches_few(nodes: Nodes) -> None:
    """Hundreds wait in its slots to begin unasked; all but a few run elsewhere."""
    nodes.start_master()
    nodes.start("foreman0")
    for index in range(3):
        nodes.start(f"worker{index}", NODE=f"node{index}", WQ_NUM_WORKERS=str(SLOTS))
    wait_for("the nodes", lambda: nodes.status()["slots"]["open"] == 3 * SLOTS)
    script = nodes.cwd / "task.sh"
    script.write_text(
        f'#!/bin/sh\nread -r node < /proc/sys/kernel/hostname\n[ ! -e "{nodes.cwd}/$node-is-broken" ] && exit 0\n'
        f'echo "$node" >> "{nodes.cwd}/failed"\nexit 1\n'
    )
    script.chmod(0o755)
    cluster = nodes.submit("executable = task.sh\nqueue 6000\n")
    wait_for("some of them", lambda: nodes.counts(cluster)["done"] > 1500)
    (nodes.cwd / "node1-is-broken").touch()
    found = nodes.wait_done(cluster, 90)
    # The last one may have been called back when it had begun already.
    assert 3 <= found["failed"] <= started(nodes, "failed")["node1"] <= 8
