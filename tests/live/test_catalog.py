"""The master in a real catalog server, as the real `work_queue_status` shows it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop

from pilotq.catalog import Catalog, Report, encode

PROGRAMS = ("catalog_server", "work_queue_status")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
needs_cctools = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed (Debian package coop-computing-tools)"
)

REPORT = Report(
    project="alien_jobs",
    owner="alice",
    host="head.example.org",
    port=9094,
    started_at=1_700_000_000,
    tasks_waiting=17,
    tasks_running=5,
    tasks_complete=123,
    workers=4,
    workers_busy=3,
    workers_idle=1,
    cores_total=16,
    cores_inuse=5,
)
LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])


# ---- without a server --------------------------------------------------------------------------------------------


def test_a_report_has_the_fields_a_work_queue_manager_sends() -> None:
    fields = json.loads(encode(REPORT))
    assert fields["type"] == "wq_master"
    assert {name: fields[name] for name in ("project", "name", "port", "starttime", "lifetime")} == {
        "project": "alien_jobs",
        "name": "head.example.org",
        "port": 9094,
        "starttime": 1_700_000_000,
        "lifetime": 120,
    }
    assert all(isinstance(value, (str, int)) for value in fields.values())


def test_a_report_breaks_no_line_and_has_no_escape_the_server_cannot_read() -> None:
    data = encode(msgspec.structs.replace(REPORT, project="a\nb\x00c\x7f é\ud800"))
    assert b"\\u" not in data and b"\n" not in data
    assert json.loads(data)["project"] == "a b c  é?"


@LOOPS
def test_reports_at_the_start_then_regularly_and_a_last_one_that_is_forgotten(loop_factory) -> None:  # type: ignore[no-untyped-def]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)

        async def scenario() -> list[dict[str, object]]:
            catalog = Catalog("127.0.0.1", server.getsockname()[1], lambda: REPORT, every_s=0.02)
            catalog.start()
            seen = [json.loads(await asyncio.to_thread(server.recv, 65536)) for _ in range(3)]
            await catalog.close()
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    seen.append(json.loads(server.recv(65536)))
            return seen

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            seen = runner.run(scenario())
    assert {report["lifetime"] for report in seen[:-1]} == {120}
    assert seen[-1]["lifetime"] == 1


@LOOPS
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "not..a..name", "\x00"])
def test_a_catalog_that_is_not_there_costs_one_line(loop_factory, host, caplog) -> None:  # type: ignore[no-untyped-def]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:  # bound and closed: a port nobody has
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    enough = asyncio.Event()
    reports = 0

    def report() -> Report:
        nonlocal reports
        reports += 1
        if reports == 5:
            enough.set()
        return REPORT

    async def scenario() -> None:
        catalog = Catalog(host, port, report, every_s=0.01)
        catalog.start()
        await asyncio.wait_for(enough.wait(), 30)
        await catalog.close()

    with caplog.at_level(logging.DEBUG, logger="pilotq.catalog"), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())
    assert len([record for record in caplog.records if record.name == "pilotq.catalog"]) == 1


# ---- with the real programs --------------------------------------------------------------------------------------


@pytest.fixture
def catalog_port(tmp_path: Path) -> Iterator[int]:
    port_file = tmp_path / "port"
    # -u: it would tell the public catalog about itself; here it tells nobody
    command = ["catalog_server", "-I", "127.0.0.1", "-Z", str(port_file), "-u", "127.0.0.1", "-l", "2"]
    command += ["-n", "localhost", "-H", str(tmp_path / "history")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            text = _until(lambda: port_file.exists() and port_file.read_text().strip(), "the server's port file")
            yield int(text)
        finally:
            server.kill()


def _until(probe, what: str, patience_s: float = 20.0):  # type: ignore[no-untyped-def]
    end = time.monotonic() + patience_s
    while not (value := probe()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
    return value


def status(port: int) -> dict[str, list[str]]:
    """Project -> the words of its line, as `work_queue_status` prints them."""
    command = ["work_queue_status", "-C", f"127.0.0.1:{port}", "-t", "10"]
    environment = {**os.environ, "CATALOG_HOST": "127.0.0.1", "CATALOG_PORT": str(port)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    head, *rows = done.stdout.splitlines() or [""]
    assert not rows or head.split() == ["PROJECT", "HOST", "PORT", "WAITING", "RUNNING", "COMPLETE", "WORKERS"]
    return {words[0]: words for words in map(str.split, rows)}


@needs_cctools
def test_work_queue_status_lists_the_pool(catalog_port: int) -> None:
    now = REPORT

    async def scenario() -> None:
        nonlocal now
        catalog = Catalog("127.0.0.1", catalog_port, lambda: now, every_s=0.2)
        catalog.start()
        row = (await asyncio.to_thread(_until, lambda: status(catalog_port), "the first report"))["alien_jobs"]
        assert row[2:] == ["9094", "17", "5", "123", "4"]
        assert row[1] in ("localhost", "head.example.org", "127.0.0.1")

        now = msgspec.structs.replace(REPORT, tasks_waiting=0, tasks_running=22, workers=40)
        moved = lambda: status(catalog_port).get("alien_jobs", [])[2:] == ["9094", "0", "22", "123", "40"]  # noqa: E731
        await asyncio.to_thread(_until, moved, "the new numbers")
        await catalog.close()

    asyncio.run(scenario())
    # The server forgets what is over when it cleans up, once a minute at worst.
    _until(lambda: "alien_jobs" not in status(catalog_port), "the end of the last report's lifetime", 90.0)


@needs_cctools
def test_a_provisioner_reads_the_waiting_tasks_from_the_text_page(catalog_port: int) -> None:
    name = "pool of \u00e9t\u00e9\nlifetime 9"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(encode(msgspec.structs.replace(REPORT, project=name)), ("127.0.0.1", catalog_port))

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{catalog_port}/query.text", timeout=10) as answer:
            return str(answer.read().decode())

    text = _until(lambda: page() if "wq_master" in page() else "", "the report on the page")
    lines = text.splitlines()
    for line in ("project pool of \u00e9t\u00e9 lifetime 9", "tasks_waiting 17", "tasks_running 5", "workers_idle 1"):
        assert line in lines
    assert "lifetime 9" not in lines
