"""Dask distributed on this machine: a worker process a slot, each with one thread. It keeps nothing on disk."""

from __future__ import annotations

import logging

from dask.distributed import Client, LocalCluster  # type: ignore[import-not-found,unused-ignore]
from driving import measure, nothing, read_options, true


def main() -> None:
    options = read_options(__doc__, "rate", "dispatch", "latency")
    function = nothing if options.mode == "dispatch" else true

    def work(count: int) -> None:
        client.gather([client.submit(function, pure=False) for _ in range(count)])

    with (
        LocalCluster(
            n_workers=options.slots, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None,
            silence_logs=logging.ERROR, local_directory=options.scratch, memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.wait_for_workers(options.slots)
        measure(options, work)


if __name__ == "__main__":
    main()
