"""An application on Dask distributed: runs the commands it reads, and prints the number of each reported as done."""

from __future__ import annotations

import subprocess
import sys

from dask.distributed import Client, as_completed  # type: ignore[import-not-found,unused-ignore]


def run(command: str) -> int:
    return subprocess.run(["/bin/sh", "-c", command], check=False).returncode


def main() -> None:
    commands = sys.stdin.read().splitlines()
    client = Client(sys.argv[1], timeout=30)
    # Many short tasks on few workers: those that were taken by a worker that died are tried again.
    futures = {client.submit(run, command, pure=False, retries=5): n for n, command in enumerate(commands)}
    for future in as_completed(futures):
        said = future.result() if future.status == "finished" else future.status
        print(futures[future], said, flush=True)


if __name__ == "__main__":
    main()
