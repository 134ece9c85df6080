"""An application on Parsl: runs the commands it reads, and prints the number of each reported as done."""

from __future__ import annotations

import sys
from concurrent.futures import as_completed

import parsl  # type: ignore[import-not-found,unused-ignore]
from parsl.config import Config  # type: ignore[import-not-found,unused-ignore]
from parsl.executors import HighThroughputExecutor  # type: ignore[import-not-found,unused-ignore]
from parsl.providers import LocalProvider  # type: ignore[import-not-found,unused-ignore]


def shell(command: str) -> str:
    return command


def main() -> None:
    commands = sys.stdin.read().splitlines()
    workers, slots = int(sys.argv[1]), int(sys.argv[2])
    executor = HighThroughputExecutor(
        label="pool", address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=slots,
        cores_per_worker=0.01, block_error_handler=False,
        provider=LocalProvider(init_blocks=workers, min_blocks=workers, max_blocks=workers),
    )  # fmt: skip
    # Its manual advises retries where workers come and go, and that lost blocks be no reason to give up.
    with parsl.load(Config(executors=[executor], run_dir="runs", retries=5, usage_tracking=0)):
        app = parsl.bash_app(shell)
        futures = {app(command): n for n, command in enumerate(commands)}
        for future in as_completed(futures):
            error = future.exception()
            print(futures[future], 0 if error is None else type(error).__name__, flush=True)


if __name__ == "__main__":
    main()
