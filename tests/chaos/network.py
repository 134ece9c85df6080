"""Nodes with host names and addresses of their own: network namespaces joined by a bridge in one of them.

Nothing leaves these namespaces. Without root, or without `ip`, there are none, and nodes share loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess

#: All addresses are 10.77.0.N, of namespaces only.
PREFIX = "10.77.0."
_HUB = 254


def why_not() -> str:
    """Why there can be no namespaces here; "" when there can."""
    if os.geteuid():
        return "only root can make network namespaces"
    missing = [tool for tool in ("ip", "unshare") if not shutil.which(tool)]
    if missing:
        return f"{' and '.join(missing)} is not installed"
    name = f"pilotq-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces cannot be made: {done.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Network:
    """Namespaces by the name of their node."""

    def __init__(self, nodes: list[str]) -> None:
        self._base = f"pq{os.getpid()}"
        self.addresses = {node: f"{PREFIX}{number}" for number, node in enumerate(nodes, 1)}
        self._made: list[str] = []
        try:
            self._make("hub")
            _ip("-n", self.space("hub"), "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.space("hub"), "link", "set", "bridge", "up")
            for node in nodes:
                self._join(node)
        except BaseException:
            self.close()
            raise

    def space(self, node: str) -> str:
        return f"{self._base}-{node}"

    def _make(self, node: str) -> None:
        _ip("netns", "add", self.space(node))
        self._made.append(node)
        _ip("-n", self.space(node), "link", "set", "lo", "up")

    def _join(self, node: str) -> None:
        hub, space = self.space("hub"), self.space(node)
        self._make(node)
        _ip("-n", hub, "link", "add", f"to-{node}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", hub, "link", "set", f"to-{node}", "master", "bridge", "up")
        _ip("-n", space, "address", "add", f"{self.addresses[node]}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")

    def wrap(self, node: str, argv: list[str]) -> list[str]:
        """A command on a node, with its name."""
        name = f'hostname {node} && exec "$@"'
        return ["ip", "netns", "exec", self.space(node), "unshare", "--uts", "sh", "-c", name, "sh", *argv]

    def cut(self, node: str, *, is_cut: bool) -> None:
        """Nothing goes to and from a node any more; or again."""
        _ip("-n", self.space("hub"), "link", "set", f"to-{node}", "down" if is_cut else "up")

    def mute(self, node: str, other: str, *, is_mute: bool) -> None:
        """What a node sends to another is lost, what it is sent is not; or all is well again."""
        verb = "add" if is_mute else "del"
        _ip("-n", self.space(node), "route", verb, "blackhole", f"{self.addresses[other]}/32")

    def close(self) -> None:
        for node in reversed(self._made):
            subprocess.run(["ip", "netns", "del", self.space(node)], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
