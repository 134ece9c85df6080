"""Clients of the master: they ask until they are answered, with the same key, and remember what they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pilotq.core import turn as t
from pilotq.model import ClusterBody, Description, Resources
from tests.sim.things import Spec

if TYPE_CHECKING:
    from tests.sim.world import World

#: When no answer came, and when nobody was there.
PATIENCE_S = 10.0
RETRY_S = 1.0
_POLICIES = {"": {}, "again": {"on_exit_remove": "ok"}, "periodic": {"periodic_hold": "lost", "periodic_release": "ok"}}


class Clients:
    """All of them."""

    def __init__(self, world: World) -> None:
        self.world, self.time = world, world.time
        #: Submission -> what was printed: ids.
        self.printed: dict[int, list[int]] = {}
        self.open = 0
        self.specs: dict[int, Spec] = {}

    def _ask(self, event_of: Any, take: Any) -> None:
        """Until somebody answers."""
        self.open += 1
        state = {"done": False, "tries": 0}

        def answered(number: int, value: Any) -> None:
            if not state["done"] and number == state["tries"]:
                state["done"] = True
                self.open -= 1
                take(value)

        def ask() -> None:
            if state["done"]:
                return
            state["tries"] += 1
            number, master = state["tries"], self.world.master
            if master is None or master.is_dead:
                self.time.after(RETRY_S, ask)
                return
            master.ask(event_of, lambda value: answered(number, value))
            self.time.after(PATIENCE_S, again, number, master)
            state["master"] = master

        def again(number: int, master: Any) -> None:
            """The connection is gone with the master; as long as it lives the client waits."""
            if state["done"] or number != state["tries"]:
                return
            if master.is_dead:
                ask()
            else:
                self.time.after(RETRY_S, again, number, master)

        ask()

    # ---- what they want

    def submit(self, spec: Spec) -> None:
        """Accepted once, however often it is asked for."""
        self.specs[spec.number] = spec
        needs = Resources(spec.cpus)
        description = msgspec.msgpack.encode(Description(["payload", str(spec.number)], needs=needs))
        self.world.ledger.wanted[description] = spec
        policies = _POLICIES[spec.policy]
        body = ClusterBody("alice", "dir", log="log" if spec.has_log else "", policies=policies)
        new = t.NewCluster(
            owner="alice",
            count=spec.count,
            needs=needs,
            priority=0,
            has_log=spec.has_log,
            body=msgspec.msgpack.encode(body),
            description=description,
            deltas=[],
            digests=[],
            policies=policies,
            hold_reason="",
            submitted_at=1_700_000_000.0 + self.time.t,
        )

        def take(value: Any) -> None:
            if not isinstance(value, list):
                # Refused: the shim says so, and its caller comes again with a new key or the same one.
                self.time.after(5.0, self.submit, spec)
                return
            self.world.ledger.on_submit_answer(spec, value)
            before = self.printed.setdefault(spec.number, value)
            if before != value:
                self.world.ledger.fail("I7", f"submission {spec.number} is cluster {before}, and then {value}")
            self.time.tell(f"submission {spec.number} is told: cluster {value}")

        def event_of(reply: int) -> t.Event:
            key, master = f"key{spec.number}", self.world.master
            may_be_old = master is not None and master.core.queue.has_forgotten_keys
            return t.Submit(reply, key, [new], self.world.disk.find_key("alice", key) if may_be_old else [])

        self._ask(event_of, take)

    def again(self, number: int) -> None:
        spec = self.specs.get(number)
        if spec is not None:
            self.submit(spec)

    def act(self, verb: str, number: int, proc: int) -> None:
        """Cancel, hold, release, suspend, continue or vacate what the client was told of."""
        ids = self.printed.get(number)
        if ids is None:
            return
        spec, ledger = self.specs[number], self.world.ledger
        proc = proc if proc < spec.count else -1
        if verb == "cancel":
            procs = range(spec.count) if proc < 0 else [proc]
            ledger.cancel_wanted.update((ids[0], one) for one in procs)

        elif verb == "release":
            ledger.release_asked.add(ids[0])

        def take(value: Any) -> None:
            ledger.on_act_answer(verb, value)
            self.time.tell(f"{verb} {ids[0]}.{proc} is answered: {[one[2] for one in value]}")

        self._ask(lambda reply: t.Act(reply, verb, [(ids[0], proc)], f"via {verb}"), take)

    def release_all(self) -> None:
        """And let go on what was suspended."""
        self.world.ledger.release_asked.update(self.world.disk.clusters)
        for verb in ("release", "continue"):
            self._all(verb)

    def _all(self, verb: str) -> None:
        self._ask(lambda reply: t.Act(reply, verb, [], f"via {verb}"), lambda value: None)

    def wait(self, number: int) -> None:
        ids = self.printed.get(number)
        if ids is not None:
            self._ask(
                lambda reply: t.Wait(reply, ids[0]),
                lambda value: self.world.ledger.on_wait_answer(ids[0]),
            )

    def worker_verb(self, worker: str, verb: str) -> None:
        def event_of(reply: int) -> t.Event:
            return t.WorkerVerb(reply, worker, verb)

        self._ask(event_of, lambda value: self.world.ledger.on_verb_answer(worker, verb, value))
