"""Bytes that went over each TCP connection of this machine, as the kernel counts them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import NamedTuple

from figures import SkippedError


class Link(NamedTuple):
    """One end of an open connection."""

    local_port: int
    peer_port: int
    sent_bytes: int
    received_bytes: int


def read_links() -> list[Link]:
    """All that are open; what was closed is not counted any more.

    Raises: SkippedError without ss of iproute2.
    Source: ss(8), `bytes_sent` and `bytes_received` of tcp_info.
    """
    if not shutil.which("ss"):
        raise SkippedError("ss (iproute2) is not installed")
    done = subprocess.run(["ss", "-Htin", "state", "established"], capture_output=True, text=True, check=True)
    found = []
    # Addresses are on one line, counters on the next, which begins with white space.
    for match in re.finditer(r"^\S.*?:(\d+)\s+\S*?:(\d+)\b[^\n]*\n\s+([^\n]*)", done.stdout, re.MULTILINE):
        sent = re.search(r"bytes_sent:(\d+)", match[3])
        received = re.search(r"bytes_received:(\d+)", match[3])
        found.append(
            Link(int(match[1]), int(match[2]), int(sent[1]) if sent else 0, int(received[1]) if received else 0)
        )
    return found


def sent_from(port: int) -> list[int]:
    """Bytes that the listener at this port has sent over each of its connections."""
    return [link.sent_bytes for link in read_links() if link.local_port == port]
