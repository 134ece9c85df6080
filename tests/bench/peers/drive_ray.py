"""Ray on this machine, one CPU a slot. Its tasks are kept in memory only."""

from __future__ import annotations

import logging

import ray  # type: ignore[import-not-found,unused-ignore]
from driving import measure, nothing, read_options, true

#: More CPUs than any node has.
NEVER = 100_000


def main() -> None:
    options = read_options(__doc__, "rate", "dispatch", "latency")
    ray.init(
        num_cpus=options.slots, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False,
        _node_ip_address="127.0.0.1", _temp_dir=options.scratch,
    )  # fmt: skip
    try:
        task = ray.remote(num_cpus=1)(nothing if options.mode == "dispatch" else true)
        # Kept here, or Ray would cancel them.
        behind = [task.options(num_cpus=NEVER).remote() for _ in range(options.queued)]
        measure(options, lambda count: ray.get([task.remote() for _ in range(count)]))
        del behind
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
