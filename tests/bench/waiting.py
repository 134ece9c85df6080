"""A client that waits for the end of a cluster, over the API."""

from __future__ import annotations

import json
import time

from pool import Pool

#: The master answers when all is over and committed, or after so long.
WAIT_S = 30
#: A master that does not wait is asked again after this.
PAUSE_S = 0.0003


class Waiter:
    """Waits on a connection of its own."""

    def __init__(self, pool: Pool) -> None:
        self._door = pool.door()

    def wait(self, cluster: int) -> None:
        """Until all tasks of a cluster have ended."""
        while True:
            found = json.loads(self._door.call("GET", f"/v1/clusters?ids={cluster}&wait_s={WAIT_S}"))[0]
            if found["done"] + found["cancelled"] + found["held"] >= found["count"]:
                return
            time.sleep(PAUSE_S)
