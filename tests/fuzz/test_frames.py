"""Fuzzed frames in the time of a test run; `tests/fuzz/frames.py` takes a million and more."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from frames import CPU_S_MAX, Victims, run_all

from pilotq import wire
from pilotq.errors import PeerError

FRAMES = 200_000
TOKEN = b"\x93\x01\x01\x01"


@pytest.mark.timeout(300)
def test_no_frame_raises_takes_long_or_grows() -> None:
    assert not run_all(FRAMES, 1, 2)


def listed(count: int, item: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


#: As many small items as fit, or far more than are allowed.
DENSE = {
    "tokens": b"\x92\xa3Ack" + listed(wire.ITEMS_MAX, TOKEN),
    "results": b"\x93\xa6Result" + listed(wire.ITEMS_MAX, TOKEN) + listed(wire.ITEMS_MAX, b"\x91\x00"),
    "sessions": b"\x92\xa4Gone" + listed(wire.ITEMS_MAX, b"\xc4\x00"),
    "too many tokens": b"\x92\xa3Ack" + listed(1_000_000, TOKEN),
    "too many sessions": b"\x92\xa4Gone" + listed(1_500_000, b"\xc4\x00"),
    "empty maps": b"\x92\xa3Ack" + listed(4_000_000, b"\x80"),
    "a deep nest": b"\x92\xa3Ack" + b"\x91" * 4_000_000,
    "a deep nest that is skipped": b"\x93\xa5Renew\x01" + b"\x91" * 4_000_000,
    "a length of 2**32": b"\x92\xa3Ack\xdd\xff\xff\xff\xff",
    "a long text": b"\x92\xa7Goodbye\xdb" + (4_000_000).to_bytes(4, "big") + b"x" * 4_000_000,
    "text that is not UTF-8": b"\x92\xa7Goodbye\xa2\xff\xfe",
    "a tag that is not UTF-8": b"\x92\xa2\xff\xfe\x01",
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_frames(name: str) -> None:
    frame = DENSE[name]
    victims = Victims(1)
    began = time.thread_time()
    victims.take(frame)
    assert time.thread_time() - began < 4 * CPU_S_MAX, "four decodings of it"
    victims.check()
    tracemalloc.start()
    try:
        wire.unpack(frame)
    except PeerError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(10 * len(frame), 4 << 20), peak


@pytest.mark.parametrize(
    "frame", [b"\xdd\xff\xff\xff\xff", b"\xdd\x00\x3f\xff\xff" + b"\xc4\x00" * 2_000_000, b"\x91" * 2_000]
)
def test_batches_that_are_bombs(frame: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(PeerError):
        wire.split([frame])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(frame) + 4096
