"""Simulated workers speak as real ones do: a process of them against a socket that plays the master."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from pilotq import keys, wire
from pilotq.link import Listener, serving
from pilotq.model import Description, Outcome, Resources
from pilotq.roles.simulated import Plan, Report

ROOT = Path(__file__).resolve().parents[2]
TOKENS = [wire.Token(7, proc, 1) for proc in range(3)]


class Head:
    """What stands above the workers, and the process of the workers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.context: Any = zmq.Context()
        self.pair = keys.make_keys(home)
        self.gate = keys.Authenticator(self.context)
        self.gate.allow(keys.authorized(home).items())
        self.listener = Listener(self.context, self.pair, self.gate, self._on_batch, lambda peer: None)
        self.port = self.listener.bind("127.0.0.1", 0)
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(serving(self.gate, self._fail))
        self.listener.start()
        #: (peer, message) in the order they came, heartbeats apart.
        self.got: asyncio.Queue[tuple[bytes, wire.Message]] = asyncio.Queue()
        self.beats: asyncio.Queue[tuple[bytes, wire.Beat]] = asyncio.Queue()
        self.process: asyncio.subprocess.Process | None = None

    def _fail(self, error: Exception) -> None:
        raise error

    def _on_batch(self, peer: bytes, key: keys.Key, parts: list[bytes]) -> None:
        assert key == keys.Key("worker", "site")
        for payload in parts[1::2]:
            message = wire.unpack(payload)
            if isinstance(message, wire.Beat):
                self.beats.put_nowait((peer, message))
            else:
                self.got.put_nowait((peer, message))

    async def start(self, **more: Any) -> None:
        values: dict[str, Any] = {"workers": 1, "slots": 2, "ahead": 4, "task_s": 0.0, "spread": False, **more}
        token, endpoint = str(self.home / "worker.token"), f"tcp://127.0.0.1:{self.port}"
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pilotq", "simulated"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdin is not None
        plan = Plan(token=token, endpoints=[endpoint], is_direct=True, **values)
        self.process.stdin.write(msgspec.json.encode(plan) + b"\n")

    async def next(self, kind: type) -> tuple[bytes, Any]:
        peer, message = await asyncio.wait_for(self.got.get(), 20)
        assert type(message) is kind, message
        return peer, message

    def say(self, peer: bytes, *messages: wire.Message) -> None:
        for message in messages:
            self.listener.send(peer, b"", wire.pack(message))
        self.listener.flush()

    async def welcome(self, beat_s: float = 5.0) -> bytes:
        """Let one worker in and describe a cluster to it."""
        peer, hello = await self.next(wire.Hello)
        self.say(peer, wire.Welcome(60.0, beat_s, hello.generation, []), described())
        return peer

    async def report(self, name: str, count: int) -> Report:
        assert self.process is not None
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(self.process.stdout.readline(), 20)
            report = msgspec.json.decode(line, type=Report)
            if getattr(report, name) >= count:
                return report

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert await asyncio.wait_for(self.process.wait(), 10) == 0
        self.listener.close()
        self.stack.close()
        self.context.destroy(linger=0)


def described() -> wire.Describe:
    return wire.Describe(7, msgspec.msgpack.encode(Description(["/bin/true"])))


def assigned(tokens: list[wire.Token]) -> wire.Assign:
    return wire.Assign(7, [token.proc for token in tokens], [token.attempt for token in tokens])


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[Head]:
    found = Head(tmp_path)
    yield found
    await found.close()


async def test_hello_offers_slots_and_what_is_taken_ahead(head: Head) -> None:
    await head.start(workers=3, slots=5, ahead=2)
    hellos = [(await head.next(wire.Hello))[1] for _ in range(3)]
    assert len({hello.worker for hello in hellos}) == 3
    assert {hello.offer for hello in hellos} == {wire.Offer(Resources(5), 2)}
    assert not any(hello.live or hello.unacked for hello in hellos)


async def test_a_result_is_kept_and_told_again_until_it_is_acknowledged(head: Head) -> None:
    await head.start()
    peer = await head.welcome()
    head.say(peer, assigned(TOKENS))
    _, result = await head.next(wire.Result)
    assert result.tokens == TOKENS, "all of a turn in one message"
    assert [end.outcome for end in result.ends] == [Outcome.OK] * 3
    head.say(peer, wire.Ack(TOKENS[:1]), wire.AskInventory(4))
    _, hello = await head.next(wire.Hello)
    assert (hello.answers, hello.live, sorted(hello.unacked)) == (4, [], TOKENS[1:])
    head.say(peer, wire.Welcome(60.0, 5.0, hello.generation, []))
    _, result = await head.next(wire.Result)
    assert sorted(result.tokens) == TOKENS[1:]
    # Twice acknowledged is counted once.
    head.say(peer, wire.Ack(TOKENS))
    assert (await head.report("acked", 3)).acked == 3


async def test_an_assignment_told_twice_starts_nothing_twice(head: Head) -> None:
    await head.start(task_s=3600.0)
    peer = await head.welcome()
    head.say(peer, assigned(TOKENS), assigned(TOKENS))
    _, started = await head.next(wire.Started)
    assert started.tokens == TOKENS[:2], "the third waits for a slot"
    head.say(peer, wire.AskInventory(1))
    _, hello = await head.next(wire.Hello)
    assert sorted(hello.live) == TOKENS
    assert sorted(hello.started) == TOKENS[:2]


async def test_what_was_not_described_is_refused(head: Head) -> None:
    await head.start()
    peer = await head.welcome()
    head.say(peer, wire.Assign(8, [0], [1]))
    _, refuse = await head.next(wire.Refuse)
    assert refuse.tokens == [wire.Token(8, 0, 1)]
    assert refuse.reason == "undescribed"


async def test_what_is_killed_ends_and_makes_room(head: Head) -> None:
    await head.start(task_s=3600.0)
    peer = await head.welcome()
    head.say(peer, assigned(TOKENS))
    await head.next(wire.Started)
    unknown = wire.Token(9, 9, 9)
    head.say(peer, wire.Kill([TOKENS[0], unknown]))
    _, killed = await head.next(wire.Killed)
    assert killed.tokens == [TOKENS[0], unknown], "of an unknown one nothing is left either"
    _, started = await head.next(wire.Started)
    assert started.tokens == TOKENS[2:]


async def test_a_task_takes_its_time_and_what_waits_follows(head: Head) -> None:
    await head.start(task_s=0.2)
    peer = await head.welcome()
    head.say(peer, assigned(TOKENS))
    _, first = await head.next(wire.Started)
    told = [(await head.next(kind))[1] for kind in (wire.Started, wire.Result, wire.Result)]
    assert (first.tokens, told[0].tokens) == (TOKENS[:2], TOKENS[2:])
    assert sorted(told[1].tokens + told[2].tokens) == TOKENS
    assert told[1].ends[0].usage.wall_s == 0.2


async def test_heartbeats_tell_what_is_held(head: Head) -> None:
    await head.start(task_s=3600.0)
    peer = await head.welcome(beat_s=0.05)
    _, empty = await asyncio.wait_for(head.beats.get(), 20)
    assert (empty.count, empty.checksum) == (0, 0)
    head.say(peer, assigned(TOKENS))
    await head.next(wire.Started)
    beat = empty
    while not beat.count:
        _, beat = await asyncio.wait_for(head.beats.get(), 20)
    assert beat.seq > empty.seq
    assert (beat.count, beat.checksum) == (3, wire.checksum_of_all(7, [0, 1, 2], [1, 1, 1]))


async def test_the_first_tasks_end_one_by_one_when_they_are_spread(head: Head) -> None:
    await head.start(slots=3, task_s=0.6, spread=True)
    peer = await head.welcome()
    head.say(peer, assigned(TOKENS))
    await head.next(wire.Started)
    results = [(await head.next(wire.Result))[1] for _ in range(3)]
    assert sorted(token for result in results for token in result.tokens) == TOKENS
    assert (await head.report("filled", 3)).filled == 3


async def test_a_master_that_does_not_want_them_is_an_error(head: Head) -> None:
    await head.start()
    peer, _ = await head.next(wire.Hello)
    head.say(peer, wire.Reject("another protocol", 60.0))
    assert head.process is not None
    assert head.process.stdout is not None
    lines = (await asyncio.wait_for(head.process.stdout.read(), 20)).splitlines()
    assert "another protocol" in msgspec.json.decode(lines[-1], type=Report).error
    assert await head.process.wait() == 1
