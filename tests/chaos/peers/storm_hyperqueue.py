"""An application on HyperQueue's wheel, where server and worker are threads of this process.

Prints the number of each task that is reported as done; it is told the end of a job only, so each task is a job.
"""

from __future__ import annotations

import os
import sys

from hyperqueue import Job, LocalCluster  # type: ignore[import-not-found,unused-ignore]
from hyperqueue.cluster import WorkerConfig  # type: ignore[import-not-found,unused-ignore]

#: Jobs that are asked for in one question.
BATCH = 100


def main() -> None:
    commands = sys.stdin.read().splitlines()
    os.chdir(sys.argv[2])
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=int(sys.argv[1])))
        client = cluster.client()
        jobs = []
        for command in commands:
            job = Job()
            job.program(["/bin/sh", "-c", command], stdout=None, stderr=None)
            jobs.append(client.submit(job))
        for first in range(0, len(jobs), BATCH):
            client.wait_for_jobs(jobs[first : first + BATCH], raise_on_error=False)
            for number in range(first, min(first + BATCH, len(jobs))):
                print(number, 0, flush=True)


if __name__ == "__main__":
    main()
