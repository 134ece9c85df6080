"""What others wrote does no harm in a log, a table or on a terminal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilotq.condor import userlog
from pilotq.daemon import LogFormatter, Sparing
from pilotq.model import Facts
from pilotq.units import printable

ROOT = Path(__file__).resolve().parents[2]
EVIL = (
    "a\n2026-01-01 00:00:00 info    master: all is well\r\x1b[2J\x1b]0;title\x07\u202eb\u2066c\x85d\u2028e\x00f\udc80g"
)


def test_what_is_shown_has_no_effect() -> None:
    shown = printable(EVIL)
    assert shown.isprintable() and "\\x1b[2J" in shown and "\\u202e" in shown and "\\udc80" in shown
    assert printable("é ü 漢字 🙂") == "é ü 漢字 🙂"


def test_a_log_line_is_one_line() -> None:
    record = logging.LogRecord("pilotq.x", logging.INFO, "", 1, f"said {EVIL}", (), None)
    record.facts = {"name": EVIL, "long": "x" * 100_000}
    line = LogFormatter().format(record)
    assert line.isprintable() and len(line) < 9000
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = logging.LogRecord("pilotq.x", logging.ERROR, "", 1, "failed", (), sys.exc_info())
    first, *rest = LogFormatter().format(record).split("\n")
    assert first.isprintable() and rest and all(line.startswith("  | ") and line.isprintable() for line in rest)


def test_what_is_said_again_and_again_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    sparing = Sparing(most=3, window_s=0.0)
    sparing._window_s = 1000.0
    records = [logging.LogRecord("x", logging.WARNING, "", 1, "not a message of ours", (), None) for _ in range(10)]
    assert [sparing.filter(record) for record in records] == [True] * 3 + [False] * 7
    assert sparing.filter(logging.LogRecord("x", logging.ERROR, "", 1, "not a message of ours", (), None))
    sparing._window_s = 0.0
    with caplog.at_level(logging.WARNING):
        assert sparing.filter(records[0])
    assert caplog.records[0].facts == {"count": 8, "of": "not a message of ours"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("event", [4, 9, 12, 13, 22, 24])
def test_no_reason_makes_an_event_in_a_users_log(event: int) -> None:
    forged = "x\n...\n005 (001.000.000) 2026-01-01 00:00:00 Job terminated.\n\x1b[2J\n...\n"
    facts = Facts(host="h", reason=forged, release_reason=forged)
    text = userlog.format_event(event, 1, 0, 0.0, facts, address="h:1", local=str)
    assert text.count("\n...\n") == 1 and "\n005 " not in text and "\x1b" not in text


def on_a_terminal(*argv: str, env: dict[str, str]) -> str:
    """What a command shows where its output is a terminal."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    data = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        data += piece
    process.wait(20)
    os.close(ours)
    return data.decode("utf-8", "surrogateescape")


def test_the_shim_shows_a_terminal_nothing_that_acts(tmp_path: Path) -> None:
    """Its home is what an error line names."""
    home = tmp_path / "a\x1b[2J\u202eb"
    home.mkdir()
    shim = str(ROOT / "fakecondor" / "condor_q")
    env = {**os.environ, "PILOTQ_HOME": str(home)}
    (home / "api").write_text("/nowhere\n")
    shown = on_a_terminal(shim, env=env)
    assert "no answer from the master" in shown
    assert "\x1b" not in shown and "\u202e" not in shown and "\\x1b[2J\\u202eb" in shown
    piped = subprocess.run([shim], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert "\x1b[2J" in piped.stderr, "for programs it stays as it is"
