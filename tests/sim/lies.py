"""What a worker with a valid key may say that is not so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotq import wire
from pilotq.model import Ended, Outcome, Resources
from tests.sim.network import Dialer

if TYPE_CHECKING:
    from tests.sim.node import Worker
    from tests.sim.world import World


def lie(world: World, worker: Worker, what: int, noise: float) -> None:
    """Say one of them."""
    ledger = world.ledger
    if worker.name not in ledger.liars:
        ledger.liars.add(worker.name)
        ledger.lied_of.update(
            (token.cluster, token.proc) for token, name in ledger.holders.items() if name == worker.name
        )
    issued = [wire.Token(*task, max(1, attempt)) for task, attempt in ledger.attempts.items()] or [wire.Token(1, 0, 1)]
    token = issued[int(noise * 0.999 * len(issued))]
    own = [one for one in ledger.holders if ledger.holders[one] == worker.name] or [token]
    mine = own[int(noise * 0.999 * len(own))]
    later = wire.Token(token.cluster, token.proc, token.attempt + 1)
    ok = Ended(Outcome.OK)
    core = worker.core
    hello = wire.Hello(
        protocol=wire.PROTOCOL,
        worker=worker.name,
        generation=core.session.generation + 1,
        host=worker.node.name,
        pid=1,
        version="sim",
        offer=core.offer(),
        live=[*core.attempts, token, later],
        started=[token],
        unacked=list(core.results),
    )
    lies: list[wire.Message] = [
        wire.Result([token], [ok]),
        wire.Result([later], [ok]),
        wire.Result([wire.Token(10**9, 0, 1), wire.Token(token.cluster, 10**6, 1)], [ok, ok]),
        wire.Killed([token, mine, later]),
        wire.Refuse([token, mine], "full"),
        wire.Started([token, later, mine]),
        hello,
        wire.Beat(10**6, wire.Offer(Resources(3), 2), 77, 12345),
        wire.Result([mine, mine], [ok, Ended(Outcome.EXIT, 1)]),
        wire.Goodbye("I leave"),
    ]
    message = lies[what % len(lies)]
    world.time.tell(f"{worker.name} lies: {message}")
    if isinstance(message, wire.Hello):
        # On a connection of its own: on the present one it would have to answer a question.
        target = worker.up.target if worker.up is not None else "master"
        Dialer(world.net, worker, worker.host, target, lambda parts: None, lambda: None).send([b"", wire.pack(message)])
    else:
        worker.say(message)
        worker.flush()
