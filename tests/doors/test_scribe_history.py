"""The history as files: each job once, whatever happens in between; the queue shows a job until it is in its file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import classad2
import pytest
from query_store import QUEUED_AT, Builder, body, fill, query_process

from pilotq.model import Outcome, State
from pilotq.scribe.history import History, Plan
from pilotq.store.written import NAME, Mark, begin, read_mark, write_mark

BANNER = re.compile(
    r"\*\*\* Offset = (\d+) ClusterId = (\d+) ProcId = (\d+) "
    r'Owner = "(\w+)" CompletionDate = (\d+) CurrentTime = (\d+)\n'
)


class Pool:
    """A store with ended jobs of which none is written yet, and who writes them."""

    def __init__(self, where: Path, **plan: object) -> None:
        self.where, self.queue = where, where / "queue.db"
        self.file = where / "files" / "history"
        self.file.parent.mkdir()
        self.plan = Plan(**{"file": str(self.file), "schedd_name": "head.example", **plan})  # type: ignore[arg-type]
        self.builder = Builder(self.queue)
        begin(self.queue, True)
        fill(self.builder)

    def write(self) -> None:
        """As a scribe that has just been started."""
        History(self.queue, self.plan).write_new()

    @property
    def mark(self) -> Mark:
        found = read_mark(self.where / NAME)
        assert found is not None
        return found


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def ads(text: str) -> list[classad2.ClassAd]:
    """By HTCondor's own reader: what is between the banners."""
    parts = re.split(r"^\*\*\* .*\n", text, flags=re.MULTILINE)
    assert parts.pop() == ""
    return [classad2.parseOne(part, classad2.ParserType.Old) for part in parts]


def test_what_is_written(pool: Pool) -> None:
    pool.write()
    text = pool.file.read_text()
    found = ads(text)
    assert [(ad["ClusterId"], ad["ProcId"], ad["JobStatus"]) for ad in found] == [
        (1, 5, 4), (1, 6, 3), (5, 1, 4), (5, 0, 4)
    ]  # fmt: skip
    assert found[0]["ExitCode"] == 3 and found[1]["RemoveReason"] == "via condor_rm (by user alice)"
    assert found[0]["GlobalJobId"] == f"head.example#1.5#{int(QUEUED_AT)}"
    assert "ServerTime" not in found[0]
    begins = 0
    for match in BANNER.finditer(text):
        offset, cluster, proc, _, completed, _ = match.groups()
        assert int(offset) == begins
        ad = found.pop(0)
        assert (int(cluster), int(proc), int(completed)) == (ad["ClusterId"], ad["ProcId"], ad.get("CompletionDate", 0))
        begins = match.end()
    assert begins == len(text) and not found
    assert pool.file.stat().st_mode & 0o777 == 0o644


def test_nothing_is_written_twice(pool: Pool) -> None:
    history = History(pool.queue, pool.plan)
    history.write_new()
    first = pool.file.read_bytes()
    history.write_new()
    pool.write()
    assert pool.file.read_bytes() == first
    pool.builder.ended(2, 0, State.DONE, outcome=int(Outcome.OK))
    history.write_new()
    assert pool.file.read_bytes().startswith(first)
    assert [ad["ClusterId"] for ad in ads(pool.file.read_text())] == [1, 1, 5, 5, 2]


@pytest.mark.parametrize("before", [b"", b"A = 1\n*** Offset = 0\n"])
def test_a_crash_in_the_middle(pool: Pool, before: bytes) -> None:
    pool.file.write_bytes(before)
    pool.write()
    whole = pool.file.read_bytes()
    assert whole.startswith(before) and len(ads(pool.file.read_text())) == 4 + bool(before)
    done = pool.mark
    assert done.done == done.until > 0
    facts = pool.file.stat()
    for cut in range(len(before), len(whole) + 1, 61):
        os.truncate(pool.file, cut)
        write_mark(pool.where / NAME, Mark(0, done.until, facts.st_dev, facts.st_ino, len(before)), sync=False)
        pool.write()
        assert pool.file.read_bytes() == whole, cut
        assert pool.mark == done


def test_a_crash_and_somebody_put_the_file_aside(pool: Pool) -> None:
    pool.write()
    whole, done, facts = pool.file.read_bytes(), pool.mark, pool.file.stat()
    os.truncate(pool.file, 100)
    pool.file.rename(pool.file.with_name("aside"))
    write_mark(pool.where / NAME, Mark(0, done.until, facts.st_dev, facts.st_ino, 0), sync=False)
    pool.write()
    assert pool.file.with_name("aside").read_bytes() == whole and not pool.file.exists()


def test_what_cannot_be_written_is_tried_again(pool: Pool) -> None:
    pool.file.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        pool.write()
    assert pool.mark.done == 0
    pool.file.parent.mkdir()
    pool.write()
    assert len(ads(pool.file.read_text())) == 4


def test_rotation(tmp_path: Path) -> None:
    pool = Pool(tmp_path, max_bytes=1000, rotations=2)
    pool.write()
    assert sorted(os.listdir(pool.file.parent)) == ["history"]
    pool.builder.cluster(7, 6)
    for proc in range(6):
        pool.builder.ended(7, proc, State.DONE, outcome=int(Outcome.OK))
        pool.write()
    names = sorted(os.listdir(pool.file.parent))
    assert len(names) == 3 and names[0] == "history"
    assert all(re.fullmatch(r"history\.\d{8}T\d{6}", name) for name in names[1:])
    found = [ad["ProcId"] for name in [*names[1:], "history"] for ad in ads((pool.file.parent / name).read_text())]
    assert found == [3, 4, 5]


def test_a_file_of_each_job(tmp_path: Path) -> None:
    folder = tmp_path / "each"
    folder.mkdir()
    pool = Pool(tmp_path, file="", per_job_dir=str(folder))
    pool.write()
    assert sorted(os.listdir(folder)) == ["history.1.5", "history.1.6", "history.5.0", "history.5.1"]
    ad = classad2.parseOne((folder / "history.1.5").read_text(), classad2.ParserType.Old)
    assert (ad["ProcId"], ad["ExitCode"]) == (5, 3)
    assert not pool.file.exists()


def test_it_begins_where_the_queue_is(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "queue.db")
    fill(builder)
    begin(tmp_path / "queue.db", True)
    before = read_mark(tmp_path / NAME)
    assert before is not None and before.done > 0
    builder.ended(2, 0)
    begin(tmp_path / "queue.db", True)
    assert read_mark(tmp_path / NAME) == before, "what left meanwhile is still to be written"
    write_mark(tmp_path / NAME, Mark(1000, 1000), sync=False)
    begin(tmp_path / "queue.db", True)
    restored = read_mark(tmp_path / NAME)
    assert restored is not None and restored.done == before.done + 1, "a restored queue is not ahead of itself"
    begin(tmp_path / "queue.db", False)
    assert read_mark(tmp_path / NAME) is None


def test_a_job_is_in_the_queue_until_it_is_in_its_file(pool: Pool) -> None:
    everything = ["1.0 2", "1.1 7", "1.2 1", "1.3 5", "1.4 6", "1.5 4", "1.6 3", "1.7 4", "1.8 1", "1.9 1"]
    pool.builder.cluster(9, 1, body("bob"), live=False).ended(9, 0)
    with query_process(pool.queue, pool.where) as (ask, _):

        def jobs(*words: str) -> list[str]:
            return ask("condor_q", "-af:j", "JobStatus", *words).lines

        def total(*words: str) -> str:
            found = re.search("Total for query: [0-9]+ jobs", ask("condor_q", "-totals", *words).out)
            return found[0] if found else ""

        assert jobs("-", "1") == everything
        assert jobs("-", "1.6") == ["1.6 3"] and jobs("-", "5") == ["5.0 4", "5.1 4"]
        assert jobs("-constraint", "ClusterId == 9") == ["9.0 4"]
        assert [line.split()[0] for line in jobs()][-5:] == ["4.1", "5.0", "5.1", "6.0", "9.0"]
        assert (total(), total("1"), total("bob")) == tuple(f"Total for query: {n} jobs" for n in (24, 10, 6))
        assert ask("condor_history", "-af", "ClusterId").out == ""
        pool.write()
        assert jobs("-", "1") == [job for job in everything if job not in ("1.5 4", "1.6 3")]
        assert jobs("-", "5") == [] and total() == "Total for query: 19 jobs"
        assert len(ask("condor_history", "-af", "ClusterId").lines) == 5
