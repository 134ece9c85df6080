"""User logs: every event once, whatever is killed when, and whoever else has his hands in the file."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from scribe_data import House, Office, plain

from pilotq.model import PROC_MARK, STDOUT, OutputFile
from pilotq.scribe.logs import overlap

HEAD = b"earlier words of somebody\n"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def event(number: int, proc: int, event: int = 5) -> bytes:
    return b"%03d (%d.%d)\n...\n" % (event, number, proc)


def test_events_are_appended_in_order(house: House) -> None:
    log = house.user / "log"
    log.write_bytes(HEAD)
    number = house.cluster(3, log=str(log))
    house.note(number, 0, 0, count=3)
    house.note(number, 1, 1)
    house.note(number, 1, 5)
    assert [item.n for item in house.write().done] == [1, 2, 3]
    expected = b"".join([*(event(number, proc, 0) for proc in range(3)), event(number, 1, 1), event(number, 1, 5)])
    assert log.read_bytes() == HEAD + expected


def test_a_new_log_has_the_mode_of_condor(house: House) -> None:
    old = os.umask(0o027)
    try:
        house.note(house.cluster(log=f"{house.user}/log"))
        house.write()
    finally:
        os.umask(old)
    assert (house.user / "log").stat().st_mode & 0o777 == 0o640


def test_a_note_for_many_tasks_reaches_the_log_of_each(house: House) -> None:
    number = house.cluster(3, log=f"{house.user}/{PROC_MARK}.log")
    house.note(number, 0, 0, count=3)
    lanes = house.items()
    assert list(lanes) == [f"{house.user}/{proc}.log" for proc in range(3)]
    for lane, items in lanes.items():
        house.writer().write(lane, items)
    assert [(house.user / f"{proc}.log").read_bytes() for proc in range(3)] == [
        event(number, proc, 0) for proc in range(3)
    ]


def test_a_note_for_very_many_tasks_is_written_in_parts(house: House) -> None:
    number = house.cluster(3500, log=f"{house.user}/log")
    house.note(number, 250, 0, count=3100)
    ((_, items),) = house.items().items()
    assert [(item.proc, item.count) for item in items] == [(250, 1000), (1250, 1000), (2250, 1000), (3250, 100)]
    house.write()
    assert (house.user / "log").read_bytes() == b"".join(event(number, proc, 0) for proc in range(250, 3350))


def test_a_log_may_be_a_link_or_nothing(house: House) -> None:
    (house.user / "link").symlink_to(house.user / "real")
    house.note(house.cluster(log=f"{house.user}/link"))
    assert len(house.write().done) == 1
    assert (house.user / "real").read_bytes() == event(1, 0)
    house.done([1])
    house.note(house.cluster(log="/dev/null"))
    assert len(house.write().done) == 1


@pytest.mark.parametrize(("kind", "code"), [("fifo", errno.EINVAL), ("directory", errno.EISDIR), ("missing", 2)])
def test_a_log_that_cannot_be_written_keeps_its_notes(house: House, kind: str, code: int) -> None:
    path = house.user / ("no/log" if kind == "missing" else "log")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    house.note(house.cluster(log=str(path), stdout=f"{house.user}/o"), outputs=[OutputFile(STDOUT, 1, 0o644, b"x")])
    verdict = house.write()
    assert [item.n for item in verdict.rest] == [1] and not verdict.done and not verdict.failed
    assert verdict.trouble is not None
    assert (verdict.trouble.what, verdict.trouble.errno) == ("log", code)
    assert str(path) in str(verdict.trouble)


def test_an_output_that_fails_does_not_stop_the_events_of_others(house: House) -> None:
    number = house.cluster(3, log=f"{house.user}/log", stdout=f"{house.user}/{PROC_MARK}/o")
    (house.user / "2").mkdir()
    for proc in range(3):
        house.note(number, proc, outputs=[OutputFile(STDOUT, 1, 0o644, b"x")] if proc else [])
    verdict = house.write()
    assert [item.n for item in verdict.done] == [1, 3]
    assert [item.n for item, _ in verdict.failed] == [2]
    assert (house.user / "log").read_bytes() == event(number, 0) + event(number, 2)


# ---- kills

#: Every way the scribe touches the world while it writes a batch: what is called, and on whose behalf.
CALLS = ("write", "fdatasync", "ftruncate", "rename", "fsync", "open", "mkdir")


def die_at(moment: int, way: str, run: Callable[[], object]) -> bool:
    """Run in a child that is killed at its n-th call to the world. True when it was; False when it came to the end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    calls = [0]

    def wrapped(name: str) -> Callable[..., object]:
        original = getattr(os, name)

        def call(*arguments: object, **keywords: object) -> object:
            calls[0] += 1
            if calls[0] == moment:
                try:
                    if way == "half" and name == "write":
                        original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])  # type: ignore[call-overload, arg-type]
                    elif way != "before":
                        original(*arguments, **keywords)
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        run()
    finally:
        os._exit(0)


@pytest.mark.parametrize("way", ["before", "half", "after"])
def test_a_kill_at_any_moment_leaves_each_event_once(tmp_path: Path, way: str) -> None:
    moment = 0
    while True:
        moment += 1
        (tmp_path / str(moment)).mkdir()
        house = House(tmp_path / str(moment))
        log = house.user / "log"
        log.write_bytes(HEAD)
        number = house.cluster(2, log=str(log), stdout=f"{house.user}/o.{PROC_MARK}")
        outputs = [OutputFile(STDOUT, 2, 0o644, b"hi"), OutputFile("d/f", 4, 0o600, b"file")]
        for proc in range(2):
            house.note(number, proc, outputs=outputs)
        was_killed = die_at(moment, way, house.write)
        verdict = house.write()
        assert len(verdict.done) == 2 and not verdict.failed and verdict.trouble is None
        assert log.read_bytes() == HEAD + b"".join(event(number, proc) for proc in range(2))
        assert [(house.user / f"o.{proc}").read_bytes() for proc in range(2)] == [b"hi"] * 2
        assert os.listdir(house.user / "d") == ["f"]
        # And a scribe after that, when the master did not hear of it, finds that all is done.
        assert len(house.write().done) == 2
        assert log.stat().st_size == len(HEAD) + 2 * len(event(number, 0))
        house.store.close()
        if not was_killed:
            break
    assert moment > 12


def crashed(house: House, written: int) -> tuple[Path, bytes]:
    """A log for which the journal has an intention, and of whose events so many bytes were written."""
    log = house.user / "log"
    log.write_bytes(HEAD)
    number = house.cluster(3, log=str(log))
    for proc in range(3):
        house.note(number, proc)
    whole = b"".join(event(number, proc) for proc in range(3))

    def run() -> None:
        original = os.write

        def half(descriptor: int, data: bytes) -> int:
            original(descriptor, bytes(data)[:written])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.write = half  # type: ignore[assignment]
        house.write()

    assert die_at(10**9, "before", run)
    assert log.read_bytes() == HEAD + whole[:written]
    return log, whole


@pytest.mark.parametrize("written", [0, 1, 5, 11, 12, 16, 17, 30, 47, 48])
def test_an_append_that_was_cut_short_anywhere_is_finished(house: House, written: int) -> None:
    log, whole = crashed(house, written)
    house.write()
    assert log.read_bytes() == HEAD + whole


@pytest.mark.parametrize("written", [0, 20, 48])
def test_words_of_others_between_do_no_harm(house: House, written: int) -> None:
    log, whole = crashed(house, written)
    if written in (0, len(whole)):
        with log.open("ab") as file:
            file.write(b"somebody else\n")
    house.write()
    assert log.read_bytes().count(whole) == 1
    assert log.read_bytes().replace(whole, b"") in (HEAD, HEAD + b"somebody else\n")


@pytest.mark.parametrize("written", [0, 20, 48])
def test_a_log_that_was_rotated_meanwhile_gets_its_events_once(house: House, written: int) -> None:
    log, whole = crashed(house, written)
    rotated = log.with_name("log.1")
    log.rename(rotated)
    log.write_bytes(b"fresh\n")
    house.write()
    both = rotated.read_bytes() + log.read_bytes()
    assert both.count(whole) == 1
    assert both.replace(whole, b"") == HEAD + b"fresh\n"


@pytest.mark.parametrize("written", [0, 48])
def test_a_log_that_was_edited_meanwhile_gets_its_events_once(house: House, written: int) -> None:
    log, whole = crashed(house, written)
    content = log.read_bytes()
    log.unlink()
    log.write_bytes(b"# a comment\n" + content)
    house.write()
    assert log.read_bytes() == b"# a comment\n" + HEAD + whole


def test_a_log_that_was_removed_or_emptied_meanwhile_gets_them_again(house: House) -> None:
    log, whole = crashed(house, 48)
    log.unlink()
    house.write()
    assert log.read_bytes() == whole


def test_the_journal_forgets_what_the_master_knows(house: House) -> None:
    number = house.cluster(2, log=f"{house.user}/log")
    house.note(number, 0)
    house.note(number, 1)
    house.write()
    house.done([1])
    written, doubts = house.writer()._journal.load()
    assert {key for entries in doubts.values() for key in [(entry.n, entry.proc) for entry in entries]} == {(2, 1)}
    assert not written
    house.done([2])
    assert house.writer()._journal.load() == (set(), {})


@pytest.mark.parametrize(
    ("tail", "there"),
    [
        (b"", 0),
        (b"abc\ndef\n", 8),
        (b"xx abc\ndef\n yy", 8),
        (b"xx\nabc\nde", 6),
        (b"xx\nab", 2),
        (b"abc\nabc\nd", 5),
        (b"abc\nxyz\n", 0),
        (b"def\n", 0),
    ],
)
def test_how_much_of_an_append_is_there(tail: bytes, there: int) -> None:
    assert overlap(tail, b"abc\ndef\n") == there


def test_text_of_an_unknown_event_is_a_failure_of_that_note_alone(house: House) -> None:
    from pilotq.scribe.events import EventTexts
    from pilotq.scribe.reading import Reader

    number = house.cluster(2, log=f"{house.user}/log")
    house.note(number, 0, 777)
    house.note(number, 1, 5)
    verdict = house.write(EventTexts(Reader(house.state / "queue.db"), "head:9094"))
    assert [item.n for item, _ in verdict.failed] == [1] and [item.n for item in verdict.done] == [2]
    text = (house.user / "log").read_text()
    assert text.startswith(f"005 (00{number}.001.000) ") and text.endswith("\n...\n")


def test_plain_is_what_the_other_tests_compare_with(house: House) -> None:
    number = house.cluster(log=f"{house.user}/log")
    house.note(number)
    assert house.write(plain).done
    assert (house.user / "log").read_bytes() == event(number, 0)


def test_events_go_to_the_log_of_the_dag_as_well_once_each(house: House) -> None:
    user, nodes = house.user / "log", house.user / "x.nodes.log"
    both = house.cluster(3, log=str(user), nodes_log=str(nodes))
    only = house.cluster(1, nodes_log=str(nodes))
    for event in (0, 1, 6, 5):
        house.note(both, event=event, count=3)
    house.note(only, event=5)
    office = Office(house)
    office.desk.wake()
    office.wait(done=5)
    heads = [line[:12] for line in user.read_text().splitlines() if line[3:5] == " ("]
    assert heads == [f"{event:03} (001.00{proc}" for event in (0, 1, 6, 5) for proc in range(3)]
    copied = [line[:12] for line in nodes.read_text().splitlines() if line[3:5] == " ("]
    assert sorted(copied) == sorted([head for head in heads if not head.startswith("006")] + ["005 (002.000"])
    again = Office(house)
    again.desk.wake()
    again.wait(done=5)
    assert [line[:12] for line in nodes.read_text().splitlines() if line[3:5] == " ("] == copied


def test_a_log_may_be_xml_and_that_of_the_dag_is_classic(house: House) -> None:
    user, nodes = house.user / "log", house.user / "x.nodes.log"
    cluster = house.cluster(2, log=str(user), log_xml=True, nodes_log=str(nodes))
    house.note(cluster, event=5, count=2)
    office = Office(house)
    office.desk.wake()
    office.wait(done=1)
    assert user.read_text().count("<c>\n") == user.read_text().count('<a n="MyType"><s>JobTerminatedEvent</s></a>') == 2
    assert nodes.read_text().count("Job terminated.") == 2
