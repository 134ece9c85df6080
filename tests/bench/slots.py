"""For the plots: rate and latency with 1 to 32 slots, of fewer tasks than row 1 has and only beside some peers."""

from __future__ import annotations

import functools

import latency
import rate
from contestants import WORK_QUEUE
from figures import US, Rounds, is_wanted, new_parser

PEERS = ("executorlib", "ray", WORK_QUEUE)
LIMITS = (rate.SPAWN, rate.FILES)


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--tasks", type=int, default=4_000, help="in one submission (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="tasks for the latency (%(default)s)")
    parser.add_argument("--slots-list", default="1,2,4,8,16,32", help="numbers of slots (%(default)s)")
    parser.add_argument("--workdir", metavar="DIR", help="where sandboxes lie (where the queue lies)")
    parser.add_argument("--description", choices=rate.DESCRIPTIONS, default="outputs", help="(%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks, options.count, options.slots_list = 1, min(options.tasks, 300), 20, "1,4"
    options.side_tasks = options.tasks
    wanted = [name for name in PEERS if is_wanted(options, name)]
    for slots in map(int, options.slots_list.split(",")):
        rounds = Rounds(0, {"tasks": options.tasks, "slots": slots, "foremen": 1})
        contestants = {US: functools.partial(rate.ours, options, slots)}
        contestants |= {kind: functools.partial(rate.limit, options, slots, kind) for kind in LIMITS}
        contestants |= {name: functools.partial(rate.peer, options, slots, name) for name in wanted}
        rounds.run(options.rounds, contestants)
        for name in contestants:
            rounds.show("rate", "tasks_per_s", "tasks/s", who=name)
        options.slots = slots
        waits = Rounds(0, {"count": options.count, "slots": slots, "foremen": 1})
        contestants = {US: functools.partial(latency.ours, options)}
        contestants |= {name: functools.partial(latency.peer, options, name) for name in wanted}
        waits.run(options.rounds, contestants)
        for name in contestants:
            waits.show("latency p50", "p50", "ms", who=name)


if __name__ == "__main__":
    main()
