#!/usr/bin/env python3
"""Frames as a hostile or broken peer would send them, through decoding and the three cores.

    tests/fuzz/frames.py --frames 1000000 [--seed 1] [--processes 2]

Most are mutations of valid frames whose numbers fit tasks that exist, so that they get far; some are random. A frame
must raise nothing, take no more than 50 ms of the processor, and in decoding no more than ten times its size in memory
(and 4 MiB besides: objects of small frames weigh more than their bytes). Ends with 1 and what was found: run again with
the same seed and number of frames it is found again.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pilotq import wire
from pilotq.core import foreman as f
from pilotq.core import turn as t
from pilotq.core import worker_turn as w
from pilotq.core.master import Limits, MasterCore
from pilotq.core.turn import Now, Route
from pilotq.core.worker import Options, WorkerCore
from pilotq.errors import PeerError
from pilotq.model import Ended, Outcome, OutputFile, Resources, Usage

CPU_S_MAX = 0.050
MEMORY_FOLD_MAX, MEMORY_BYTES = 10, 4 << 20
#: Every so manieth frame is decoded under tracemalloc, which takes its time.
MEMORY_EVERY = 25
#: A core lives for so many frames: long enough to be led astray, short enough to begin anew.
LIFE = 400
SESSIONS = [wire.session_of(b"\0000%d" % number, "site") for number in range(3)]
PEERS = [b"\0peer", b"\0fore"]
#: Values that break arithmetic, lengths and names.
NASTY = [
    b"\xc0", b"\xc2", b"\x00", b"\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7, b"\xce\xff\xff\xff\xff",
    b"\xcb\x7f\xf0" + b"\0" * 6, b"\xcb\x7f\xf8" + b"\0" * 6, b"\xcb\xff\xf0" + b"\0" * 6, b"\xa0", b"\xa1\0",
    b"\xc4\0", b"\x90", b"\x80", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xd4\x01\x00", b"\xa5\n000 ", b"\xa4\x1b[2J", b"\xc1",
]  # fmt: skip


class Finding(NamedTuple):
    """A frame that does what none may."""

    seed: int
    what: str
    frame: str


def numbers(rng: random.Random) -> wire.Token:
    return wire.Token(rng.choice([1, 1, 2, 3, 7]), rng.choice([0, 1, 2, 9, 500]), rng.choice([1, 1, 2, 3]))


def tokens(rng: random.Random) -> list[wire.Token]:
    return [numbers(rng) for _ in range(rng.choice([0, 1, 1, 2, 5]))]


def ended(rng: random.Random) -> Ended:
    outputs = [
        OutputFile(rng.choice(["a", "../x", "d/f"]), rng.choice([0, 5, 1 << 40]), 0o644, rng.choice([None, b"x"]))
    ]
    return Ended(rng.choice(list(Outcome)), rng.choice([0, 1, 28, -1]), rng.choice(["", "why\n000"]), Usage(), outputs)


def valid(rng: random.Random) -> wire.Message:
    """Of any type, with numbers of what may exist."""
    some = tokens(rng)
    offer = wire.Offer(Resources(rng.choice([0, 1, 8, -5]), 1 << 30, 1 << 30), rng.choice([0, 9]))
    make: list[Any] = [
        lambda: wire.Hello(
            wire.PROTOCOL, rng.choice(["w0", "w1", "x"]), rng.randrange(9), "h", 1, "v", offer, some, some[:1], some[1:]
        ),
        lambda: wire.Beat(rng.randrange(9), offer, rng.randrange(9), rng.getrandbits(32)),
        lambda: wire.Started(some),
        lambda: wire.Result(some, [ended(rng) for _ in some]),
        lambda: wire.Refuse(some, rng.choice(["full", "undescribed", "x"])),
        lambda: wire.Killed(some),
        lambda: wire.Goodbye("bye"),
        lambda: wire.Data(numbers(rng), "a", rng.randrange(9), b"data"),
        lambda: wire.Get("0" * 64, 0),
        lambda: wire.Chunk("0" * 64, 0, 1, b"x"),
        lambda: wire.Welcome(100.0, 1.0, rng.randrange(9), some),
        lambda: wire.Reject("no", 1.0),
        lambda: wire.Describe(rng.choice([1, 2, 3]), DESCRIPTION),
        lambda: wire.Assign(rng.choice([1, 2]), [0, 1, 2], [1, 1, rng.choice([1, 2])]),
        lambda: wire.Renew(rng.randrange(9)),
        lambda: wire.Ack(some),
        lambda: wire.Kill(some),
        lambda: wire.Suspend(some, rng.random() < 0.5),
        lambda: wire.Flow(rng.randrange(3), b"GET / HTTP/1.0\r\n\r\n", rng.randrange(99), rng.random() < 0.3),
        lambda: wire.AskInventory(rng.randrange(3)),
        lambda: wire.Pull(numbers(rng), "a", 0),
        wire.DrainPlease,
        wire.Leave,
        lambda: wire.ForemanHello(wire.PROTOCOL, rng.choice(["f:1", "f:2"]), 1, "v"),
        lambda: wire.ForemanBeat(rng.randrange(9), 1, rng.random() < 0.1),
        lambda: wire.ForemanWelcome([wire.AllowedKey("k" * 40, "site", rng.choice([-1.0, 0.5]))], 1.0),
        lambda: wire.ForemanRenew(rng.randrange(9)),
        lambda: wire.Gone([rng.choice(SESSIONS)]),
        lambda: wire.Forget(rng.choice([1, 2])),
    ]  # fmt: skip
    message: wire.Message = rng.choice(make)()
    return message


LARGE = bytes(wire.FRAME_BYTES_MIN)
DESCRIPTION = b"\x81\xa4argv\x91\xa9/bin/true"


def payload(rng: random.Random) -> bytes:
    """One payload: mutated, rarely valid, rarely random."""
    draw = rng.random()
    if draw < 0.05:
        return rng.randbytes(rng.choice([0, 1, 3, 20, 300]))
    data = wire.pack(valid(rng))
    if draw < 0.25:
        return data
    if draw < 0.27:
        # A bomb of one kind of item, with a length that fits, or does not.
        count = rng.choice([10, 20_000, 200_000])
        return data[: rng.randrange(1, len(data) + 1)] + b"\xdd" + count.to_bytes(4, "big") + rng.choice(NASTY) * count
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = mutated(rng, data)
    return data


def mutated(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice([0, 1, 1, 2, 8]))
    draw = rng.randrange(6)
    if draw == 0:
        return data[:at] + bytes([rng.randrange(256)]) + data[end:]
    if draw == 1:
        return data[:at]
    if draw == 2:
        return data[:at] + data[end:]
    if draw == 3:
        other = wire.pack(valid(rng))
        return data[:at] + other[rng.randrange(len(other)) :]
    if draw == 4:
        return data[:at] + data[at:end] * rng.choice([2, 50]) + data[end:]
    return data[:at] + rng.choice(NASTY) + data[end:]


class Victims:
    """A master with tasks, a foreman and a worker; they hear whatever comes."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.now = Now(1000.0, 1_700_000_000.0)
        self.master = MasterCore(Limits(), lambda *_: False, self.now)
        self.master.handle(t.SetKeys([("k" * 40, "site", 0.0)], ["site"]), self.now)
        for reply in (1, 2):
            new = t.NewCluster("u", 10, Resources(1), 0, False, b"", DESCRIPTION, [], [], {}, "", 0.0)
            self.master.handle(t.Submit(reply, str(reply), [new]), self.now)
        offer = wire.Offer(Resources(4, 1 << 30, 1 << 30), 2)
        for number, route in enumerate([Route(PEERS[0], b""), Route(PEERS[1], SESSIONS[0])]):
            hello = wire.Hello(wire.PROTOCOL, f"w{number}", 1, "h", 1, "v", offer, [], [], [])
            self.hear(route, wire.ForemanHello(wire.PROTOCOL, "f:1", 1, "v")) if number else None
            self.hear(route, hello)
        self.foreman = f.ForemanCore("f:1", 1, "v", self.now)
        self.worker = WorkerCore(Options("w0", "h", 1, "v", Resources(4, 1 << 30, 1 << 30)), self.now)
        for core in (self.foreman, self.worker):
            core.handle(f.Tick() if core is self.foreman else w.Tick(), self.now)
        self.rng = rng

    def hear(self, route: Route, message: wire.Message) -> None:
        role = "foreman" if route.peer == PEERS[1] else "worker"
        if isinstance(message, wire.ForemanHello | wire.ForemanBeat | wire.Gone):
            route = Route(route.peer, b"")
        self.master.react(t.FromPeer(route, role, "site", message), self.now)

    def take(self, data: bytes) -> None:
        """One payload, by every way in."""
        rng = self.rng
        self.now = Now(self.now.boot + rng.choice([0.0, 0.001, 0.5]), self.now.wall)
        session = rng.choice([b"", *SESSIONS])
        self.foreman.react(f.FromBelow(rng.choice(SESSIONS), [data]), self.now)
        self.foreman.react(f.FromAbove([session, data]), self.now)
        self.foreman.settle(self.now)
        try:
            message = wire.unpack(data)
        except PeerError:
            return
        if not isinstance(message, wire.Get | wire.Data):
            role, peer = rng.choice([("worker", PEERS[0]), ("foreman", PEERS[1])])
            self.master.react(
                t.FromPeer(Route(peer, session if role == "foreman" else b""), role, "site", message), self.now
            )
            self.master.settle(self.now)
        self.worker.react(w.FromMaster(self.worker.session.link, message), self.now)
        self.worker.settle(self.now)

    def check(self) -> None:
        for core, tick in ((self.master, t.Tick()), (self.foreman, f.Tick()), (self.worker, w.Tick())):
            core.handle(tick, self.now)
            core.check()


def memory_of(data: bytes) -> int:
    """Peak of decoding."""
    tracemalloc.start()
    try:
        wire.unpack(data)
    except PeerError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def batch(rng: random.Random, data: bytes) -> None:
    """The frames around payloads, of which large ones travel on their own; mutated, lost, or too many."""
    parts = [rng.choice([b"", *SESSIONS]), data[:2000]]
    if rng.random() < 0.2:
        parts += [rng.choice([b"", *SESSIONS]), LARGE] * rng.choice([1, 2])
    first, *large = next(wire.join(parts))
    if rng.random() < 0.2:
        large = rng.choice([[], [data], [b""] * 20, [LARGE] * 3])
    frames = [bytes(first) if rng.random() < 0.1 else mutated(rng, bytes(first)), *map(memoryview, large)]
    try:
        found = wire.split(frames)
    except PeerError:
        return
    if len(found) % 2 or not all(type(session) is bytes for session in found[::2]) or None in found:
        raise AssertionError("a batch that is none")
    # Only what was named, and all of it, in its order.
    if [one for one in found if type(one) is memoryview] != frames[1:]:
        raise AssertionError("a frame that does not belong to its batch")


def run(seed: int, frames: int) -> list[Finding]:
    """Frames from this seed on; what was found."""
    gc.disable()
    victims, life = Victims(seed), LIFE
    found: list[Finding] = []
    for number in range(frames):
        mine = seed + number
        rng = random.Random(mine)
        if not life:
            # A life begins anew at numbers that the seed alone decides.
            gc.collect()
            victims, life = Victims(mine), LIFE
        life -= 1
        data = payload(rng)
        began = time.thread_time()
        try:
            batch(rng, data)
            victims.take(data)
            if not life:
                victims.check()
        except Exception as error:
            found.append(Finding(mine, f"{type(error).__name__}: {error}", data[:200].hex()))
            victims, life = Victims(mine + 1), LIFE
            continue
        took = time.thread_time() - began
        if took > CPU_S_MAX:
            found.append(Finding(mine, f"{took * 1000:.0f} ms for {len(data)} bytes", data[:200].hex()))
        if number % MEMORY_EVERY == 0:
            peak = memory_of(data)
            if peak > MEMORY_FOLD_MAX * len(data) + MEMORY_BYTES:
                found.append(Finding(mine, f"{peak} bytes of memory for {len(data)}", data[:200].hex()))
    return found[:20]


def run_all(frames: int, seed: int, processes: int) -> list[Finding]:
    """The frames shared among processes."""
    each = frames // processes
    plans = [(seed + index * (1 << 32), each) for index in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [finding for found in pool.starmap(run, plans) for finding in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    found = run_all(options.frames, options.seed, options.processes)
    took = time.monotonic() - began
    print(
        json.dumps(
            {"frames": options.frames, "seed": options.seed, "seconds": round(took, 1), "found": found}, indent=1
        )
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
