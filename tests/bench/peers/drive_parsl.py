"""Parsl's HighThroughputExecutor on this machine, with its bash_app. It keeps nothing on disk but logs."""

from __future__ import annotations

import os
import tempfile

import parsl  # type: ignore[import-not-found,unused-ignore]
from driving import measure, nothing, read_options, results
from parsl.config import Config  # type: ignore[import-not-found,unused-ignore]
from parsl.executors import HighThroughputExecutor  # type: ignore[import-not-found,unused-ignore]
from parsl.providers import LocalProvider  # type: ignore[import-not-found,unused-ignore]


def command() -> str:
    """The command line that its shell runs."""
    return "/bin/true"


def main() -> None:
    options = read_options(__doc__, "rate", "dispatch", "latency")
    # It leaves files of its own where it is started.
    os.chdir(options.scratch or tempfile.gettempdir())
    executor = HighThroughputExecutor(
        label="pool", address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=options.slots,
        cores_per_worker=0.01, encrypted=False, provider=LocalProvider(init_blocks=1, max_blocks=1),
    )  # fmt: skip
    with parsl.load(Config(executors=[executor], run_dir="runs", strategy="none", usage_tracking=0)):
        app = parsl.python_app(nothing) if options.mode == "dispatch" else parsl.bash_app(command)
        measure(options, lambda count: results([app() for _ in range(count)]))


if __name__ == "__main__":
    main()
