"""Reports the master to a Work Queue catalog server, so that `work_queue_status` and provisioners find it.

A report is one UDP datagram with a JSON object. The server keeps it under the sender's address, port and name for
`lifetime` seconds, shows it on its pages and answers `/query.text` with one `key value` line for each field; a
provisioner reads `tasks_waiting` there. Nobody acknowledges a report, so nothing here is allowed to matter: a catalog
that cannot be reached costs one line of the log.

Source: CCTools 9.9, catalog_server(1) and work_queue_status(1), tried against those programs; the names of the fields
are the ones a Work Queue manager of that version sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from pilotq import __version__

log = logging.getLogger(__name__)

#: Between two reports; as often as a Work Queue manager sends them, so a lost one does no harm.
EVERY_S = 30.0
#: How long a report is believed without a newer one.
LIFETIME_S = 120
#: Looking up the catalog's name takes no longer than this.
PATIENCE_S = 10.0
#: The same when the master leaves.
FAREWELL_S = 2.0


class Report(
    msgspec.Struct,
    frozen=True,
    tag_field="type",
    tag="wq_master",
    rename={"started_at": "starttime", "lifetime_s": "lifetime", "host": "name"},
):
    """What the catalog shows of one pool."""

    #: What the pool is called; the column PROJECT.
    project: str
    #: Login name the master runs as.
    owner: str
    #: Shown as HOST unless the catalog finds a name for the sender's address itself.
    host: str
    #: Where workers connect.
    port: int
    #: Wall clock, seconds since 1970.
    started_at: int
    #: Tasks by state: idle, running, and ended since the start of the master.
    tasks_waiting: int = 0
    tasks_running: int = 0
    tasks_complete: int = 0
    #: Workers in contact; those with and without a running task.
    workers: int = 0
    workers_busy: int = 0
    workers_idle: int = 0
    #: Cores of all workers, and those held by slots.
    cores_total: int = 0
    cores_inuse: int = 0
    lifetime_s: int = LIFETIME_S
    version: str = f"pilotq {__version__}"


_encoder = msgspec.json.Encoder()


def encode(report: Report) -> bytes:
    """The datagram of a report.

    The server reads no \\u escapes and its text format knows no escapes at all, so control characters become blanks
    and everything else goes out as UTF-8.
    """
    return _encoder.encode(
        msgspec.structs.replace(
            report, project=_plain(report.project), owner=_plain(report.owner), host=_plain(report.host)
        )
    )


def _plain(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text)


class Catalog(asyncio.DatagramProtocol):
    """Sends a report at the start, then every 30 s, and one that is forgotten at once at the end.

    No method raises because of the network.
    """

    def __init__(self, host: str, port: int, report: Callable[[], Report], *, every_s: float = EVERY_S) -> None:
        self._address = (host, port)
        self._report = report
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.DatagramTransport | None = None
        #: Of the last report; and whether the log says so.
        self._failed = False
        self._complained = False

    def start(self) -> None:
        """Begin to report, in a task of the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="catalog")

    async def close(self) -> None:
        """Send the last report and stop; takes at most about 2 s."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        await self._send(msgspec.structs.replace(self._report(), lifetime_s=1), FAREWELL_S)
        self._hang_up()

    async def _run(self) -> None:
        while True:
            await self._send(self._report(), PATIENCE_S)
            await asyncio.sleep(self._every_s)
            self._complained &= self._failed

    async def _send(self, report: Report, patience_s: float) -> None:
        """Send one report from a new socket: the name may mean another machine by now."""
        self._hang_up()
        self._failed = False
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=self._address)
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one, a port out of range
            self.error_received(error)
        else:
            self._transport.sendto(encode(report))

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def error_received(self, exc: Exception) -> None:
        """The network said that a report did not arrive; it does not always say so."""
        self._failed = True
        if not self._complained:
            self._complained = True
            facts = {"catalog": "{}:{}".format(*self._address), "error": str(exc) or type(exc).__name__}
            log.warning("the catalog cannot be reached, and is tried again every 30 s", extra={"facts": facts})
