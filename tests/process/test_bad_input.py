"""Bad input and missing places: what is refused is refused whole, what was accepted is never lost."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import Parts, wait_for
from troubles import TRUE, events, new_pool, queue, refused, script, small_disk, unmount, wait_held, wait_until_it_runs

pytestmark = pytest.mark.timeout(120)
#: What Linux takes for one argument, its end included.
ARGUMENT_BYTES_MAX = 131072


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    found = new_pool(tmp_path_factory.mktemp("bad"))
    try:
        found.start_all(slots=2, foremen=1)
        (found.cwd / "file").write_text("a file\n")
        (found.cwd / "folder").mkdir()
        (found.cwd / "empty").touch(0o755)
        yield found
    finally:
        found.close()


# ---- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("executable = nowhere\nqueue\n", ["nowhere", "No such file"], id="no-executable"),
        pytest.param("executable = folder\nqueue\n", ["folder", "Is a directory"], id="executable-directory"),
        pytest.param("executable = empty\nqueue\n", ["empty", "zero length"], id="executable-empty"),
        pytest.param("executable = file/prog\nqueue\n", ["file/prog", "Not a directory"], id="executable-below-file"),
        pytest.param("queue\n", ["No 'executable'"], id="executable-not-named"),
        pytest.param("", ["queue"], id="empty"),
        pytest.param("\n \n# nothing\n", ["queue"], id="only-comments"),
        pytest.param("executable = prog\n", ["queue"], id="no-queue"),
        pytest.param("executable = prog\nqueue -1\n", ["-1"], id="queue-negative"),
        pytest.param("executable = prog\nqueue 99999999999\n", ["99999999999"], id="queue-too-many"),
        pytest.param("executable = prog\nqueue many\n", ["many"], id="queue-word"),
        pytest.param("executable = prog\nqueue a, b from nowhere\n", ["nowhere"], id="queue-from-nowhere"),
        pytest.param("executable = prog\nnonsense\nqueue\n", ["Line 2", "nonsense"], id="nonsense"),
        pytest.param("executable = prog\nenvironment = A=1;B\nqueue\n", ["'='", "'B'"], id="environment-old"),
        pytest.param('executable = prog\nenvironment = "A=1 B"\nqueue\n', ["'='", "'B'"], id="environment-new"),
        pytest.param('executable = prog\narguments = "it\'s"\nqueue\n', ["nbalanced", "'s"], id="quote"),
        pytest.param("executable = prog\ninput = nowhere\nqueue\n", ["nowhere", "No such file"], id="input"),
        pytest.param("executable = prog\ninput = folder\nqueue\n", ["folder", "Is a directory"], id="input-directory"),
        pytest.param(
            "executable = prog\ntransfer_input_files = file, nowhere\nqueue\n", ["nowhere", "No such file"], id="files"
        ),
        pytest.param("executable = prog\ninitialdir = nowhere\nqueue\n", ["No such directory", "nowhere"], id="iwd"),
        pytest.param("executable = prog\noutput = no/out\nqueue\n", ["no/out", "No such file"], id="output-nowhere"),
        pytest.param(
            "executable = prog\noutput = file/out\nqueue\n", ["file/out", "Not a dir"], id="output-below-file"
        ),
        pytest.param("executable = prog\noutput = folder\nqueue\n", ["folder", "Is a dir"], id="output-directory"),
        pytest.param("executable = prog\nerror = no/err\nqueue\n", ["no/err", "No such file"], id="error-nowhere"),
        pytest.param("executable = prog\nlog = no/log\nqueue\n", ["no/log", "No such file"], id="log-nowhere"),
        pytest.param("executable = prog\nlog = folder\nqueue\n", ["folder", "Is a dir"], id="log-directory"),
        # The first task is in order: it is not accepted either.
        pytest.param("executable = prog\nqueue 1\noutput = no/out\nqueue 1\n", ["no/out"], id="second-queue"),
        pytest.param("executable = prog\nqueue 3\nexecutable = nowhere\nqueue 1\n", ["nowhere"], id="second-cluster"),
    ],
)
def test_refused_whole_in_a_line(pool: Parts, text: str, said: list[str]) -> None:
    refused(pool, text, *said)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(random.Random(1).randbytes(5000), id="random"),
        pytest.param(bytes(5000), id="zeros"),
        pytest.param(bytes(range(1, 256)) * 20, id="all-but-zero"),
        pytest.param(Path("/bin/true").read_bytes(), id="program"),
        pytest.param(b"\xff\xfeq\0u\0e\0u\0e\0", id="utf-16"),
        pytest.param(b"executable = prog\n\xff\xfe\xfd\nqueue\n", id="a-line"),
        pytest.param(b"executable = pr\xff\nqueue\n", id="a-name"),
        pytest.param(b"executable = prog\narguments = \xff\nqueue\n", id="a-value"),
    ],
)
def test_binary_rubbish(pool: Parts, content: bytes) -> None:
    refused(pool, content)
    assert pool.condor("condor_submit", stdin="", cwd=pool.cwd).returncode == 1


def test_a_description_that_is_not_there(pool: Parts) -> None:
    refused(pool, "", "nowhere.sub", "No such file", words=("nowhere.sub",))
    refused(pool, "", "folder", "Is a directory", words=("folder",))


def test_a_place_that_cannot_be_written(pool: Parts) -> None:
    folder = pool.cwd / "locked"
    if os.geteuid():
        folder.mkdir(mode=0o500)
    else:
        small_disk(folder, "size=64k,ro")
    try:
        for key in ("output", "error", "log"):
            refused(pool, f"executable = prog\n{key} = locked/it\nqueue\n", "locked/it", "Permission denied")
    finally:
        unmount(folder)


def test_an_argument_of_a_megabyte_is_more_than_linux_takes(pool: Parts) -> None:
    limit = str(ARGUMENT_BYTES_MAX - 1)
    refused(pool, f"executable = prog\narguments = {'x' * (1 << 20)}\nqueue\n", "1048576", limit)
    refused(pool, f"executable = prog\narguments = {'x' * ARGUMENT_BYTES_MAX}\nqueue\n", limit)
    refused(pool, f'executable = prog\nenvironment = "BIG={"x" * (1 << 20)}"\nqueue\n', "BIG", limit)
    total = " ".join(["x" * 100_000] * 40)
    refused(pool, f"executable = prog\narguments = {total}\nqueue\n", "the limit is")


# ---- accepted ----------------------------------------------------------------------------------------------------


def test_a_large_sum_of_arguments_arrives_whole(pool: Parts) -> None:
    script(pool.cwd / "lengths", 'for word in "$@"; do echo ${#word}; done; printf %s "$BIG" | wc -c')
    words = [letter * (ARGUMENT_BYTES_MAX - 1) for letter in "abcdefgh"]
    cluster = pool.submit(
        f'executable = lengths\narguments = {" ".join(words)}\nenvironment = "BIG={"x" * 100_000}"\n'
        "output = lengths.out\nqueue\n"
    )
    pool.wait_done(cluster)
    assert (pool.cwd / "lengths.out").read_text().split() == [str(ARGUMENT_BYTES_MAX - 1)] * 8 + ["100000"]


def test_an_unknown_key_is_kept_and_named(pool: Parts) -> None:
    (pool.cwd / "key.sub").write_text("executable = prog\nfrobnicate = 17\n+Weight = 3.5\nhold = true\nqueue\n")
    done = pool.condor("condor_submit", "key.sub", cwd=pool.cwd)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if line] == [
        "WARNING: the line 'frobnicate = 17' was unused by condor_submit. Is it a typo?"
    ]
    cluster = done.stdout.split("cluster ")[1].rstrip(".\n")
    assert pool.condor("condor_q", cluster, "-af", "Weight").stdout == "3.5\n"
    assert pool.condor("condor_rm", cluster).returncode == 0


def test_queue_0_is_nothing_and_said_to_be(pool: Parts) -> None:
    before = queue(pool)
    (pool.cwd / "none.sub").write_text(TRUE + "queue 0\n")
    done = pool.condor("condor_submit", "none.sub", cwd=pool.cwd)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.strip() == 'WARNING: "none.sub" has only empty "queue" commands -- no jobs queued'
    assert queue(pool) == before


def test_paths_with_blanks_and_beyond_ascii(pool: Parts) -> None:
    folder = pool.cwd / "mit Leerzeichen — ünïcödé 数"
    (folder / "inner dir").mkdir(parents=True)
    script(folder / "prög ram", 'cat "dätä file"; cat; echo "$1|$GREETING"; echo left > \'ergebnis ä\'')
    (folder / "dätä file").write_text("data\n")
    (folder / "in put ß").write_text("stdin\n")
    (folder / "job ñ.sub").write_text(
        "executable = prög ram\ninput = in put ß\ntransfer_input_files = dätä file\n"
        "output = inner dir/aus gabe.$(Process)\nlog = inner dir/log ü\n"
        "arguments = \"'zwei Wörter 数'\"\nenvironment = \"GREETING='an alle 数'\"\nqueue 2\n"
    )
    done = pool.condor("condor_submit", "job ñ.sub", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    pool.wait_done(int(done.stdout.split("cluster ")[1].rstrip(".\n")))
    for proc in range(2):
        text = (folder / "inner dir" / f"aus gabe.{proc}").read_text()
        assert text == "data\nstdin\nzwei Wörter 数|an alle 数\n"
    assert (folder / "ergebnis ä").read_text() == "left\n"
    assert sorted(events(folder / "inner dir" / "log ü")) == ["000"] * 2 + ["001"] * 2 + ["005"] * 2
    refused(pool, "executable = kein prög ram\nqueue\n", "kein prög ram: No such file")


@pytest.mark.parametrize(
    ("how", "said", "subcode"),
    [
        pytest.param("broken", ["/nowhere/interpreter"], 2, id="broken-interpreter"),
        pytest.param("junk", ["Exec format error"], 8, id="no-program"),
        pytest.param("folder", ["Permission denied"], 13, id="directory-on-the-node"),
        pytest.param("plain", ["Permission denied"], 13, id="not-executable-on-the-node"),
        pytest.param("missing", ["No such file"], 2, id="not-there-on-the-node"),
    ],
)
def test_what_cannot_be_executed_is_held_with_the_reason(
    pool: Parts, tmp_path: Path, how: str, said: list[str], subcode: int
) -> None:
    path = tmp_path / how
    if how == "broken":
        script(path, "echo never", "/nowhere/interpreter")
    elif how == "junk":
        path.write_bytes(random.Random(2).randbytes(5000))
        path.chmod(0o755)
    elif how == "folder":
        path.mkdir()
    elif how == "plain":
        path.write_text("#!/bin/sh\necho never\n")
    transfer = how in ("broken", "junk")
    cluster = pool.submit(f"executable = {path}\ntransfer_executable = {transfer}\nlog = {tmp_path}/log\nqueue\n")
    code, found, reason = wait_held(pool, cluster)
    assert (code, found) == (6, subcode)
    assert reason.startswith("Failed to execute") and all(text in reason for text in said)
    assert pool.condor("condor_rm", str(cluster)).returncode == 0
    wait_for("its last event", lambda: events(tmp_path / "log") == ["000", "012", "009"])


def test_an_executable_without_its_x_bit_is_made_one_as_in_condor(pool: Parts) -> None:
    (pool.cwd / "plain").write_text("#!/bin/sh\necho ran\n")
    pool.wait_done(pool.submit("executable = plain\noutput = plain.out\nqueue\n"))
    assert (pool.cwd / "plain.out").read_text() == "ran\n"


# ---- accepted, and then the place is gone ------------------------------------------------------------------------


def test_an_output_directory_that_vanishes_loses_nothing(pool: Parts, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    cluster = pool.submit(
        "executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'echo start >> {tmp_path}/starts; until test -e {tmp_path}/go; do sleep 0.05; done;"
        f" echo precious; echo more > file'\"\noutput = {tmp_path}/out/o\nlog = {tmp_path}/log\n"
        f'transfer_output_files = file\ntransfer_output_remaps = "file={tmp_path}/out/file"\nqueue\n'
    )
    wait_until_it_runs(pool, cluster)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "go").touch()
    code, subcode, reason = wait_held(pool, cluster)
    assert (code, subcode) == (12, 2)
    assert f"{tmp_path}/out/o: No such file or directory" in reason
    assert pool.condor("condor_release", str(cluster)).returncode == 0
    wait_for("it to be held again", lambda: events(tmp_path / "log").count("012") == 2)
    (tmp_path / "out").mkdir()
    wait_held(pool, cluster)
    assert pool.condor("condor_release", str(cluster)).returncode == 0
    pool.wait_done(cluster)
    assert ((tmp_path / "out/o").read_text(), (tmp_path / "out/file").read_text()) == ("precious\n", "more\n")
    assert (tmp_path / "starts").read_text() == "start\n", "it was not run again"
    wait_for("its last event", lambda: "005" in events(tmp_path / "log"))
    assert events(tmp_path / "log") == ["000", "001", "012", "013", "012", "013", "005"]
    done = pool.condor("condor_history", str(cluster), "-af", "ExitCode", "NumJobStarts", "JobStatus")
    assert done.stdout == "0 1 4\n"


def test_a_log_that_cannot_be_opened_any_more_loses_nothing(pool: Parts, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    cluster = pool.submit(
        "executable = /bin/sh\ntransfer_executable = false\n"
        f"arguments = \"-c 'echo start >> {tmp_path}/starts; until test -e {tmp_path}/go; do sleep 0.05; done;"
        f" echo precious'\"\noutput = {tmp_path}/o\nlog = {tmp_path}/logs/log\nqueue\n"
    )
    wait_until_it_runs(pool, cluster)
    wait_for("the first events", lambda: events(tmp_path / "logs/log") == ["000", "001"])
    shutil.rmtree(tmp_path / "logs")
    (tmp_path / "go").touch()
    _, subcode, reason = wait_held(pool, cluster)
    assert subcode == 2 and f"the user log {tmp_path}/logs/log: No such file" in reason
    (tmp_path / "logs").mkdir()
    assert pool.condor("condor_release", str(cluster)).returncode == 0
    pool.wait_done(cluster)
    assert (tmp_path / "o").read_text() == "precious\n"
    assert (tmp_path / "starts").read_text() == "start\n", "it was not run again"
    wait_for("its last event", lambda: "005" in events(tmp_path / "logs/log"))
    assert events(tmp_path / "logs/log").count("005") == 1


def test_files_that_change_after_submit_do_not_matter(pool: Parts) -> None:
    blocker = pool.submit(f"executable = /bin/sleep\narguments = 1\ntransfer_executable = false\nqueue {2}\n")
    script(pool.cwd / "fleeting", "cat fleeting.txt")
    (pool.cwd / "fleeting.txt").write_text("as submitted\n")
    cluster = pool.submit("executable = fleeting\ntransfer_input_files = fleeting.txt\noutput = fleeting.out\nqueue\n")
    (pool.cwd / "fleeting").unlink()
    (pool.cwd / "fleeting.txt").write_text("changed\n")
    pool.wait_done(cluster)
    assert (pool.cwd / "fleeting.out").read_text() == "as submitted\n"
    pool.wait_done(blocker)


# ---- very many ---------------------------------------------------------------------------------------------------


def memory_mib(pid: int, what: str = "VmRSS") -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what + ":")]
    return int(line.split()[1]) >> 10


def test_a_million_tasks_are_taken_and_removed_again(pool: Parts) -> None:
    pid = pool.processes["master"].pid
    before = memory_mib(pid)
    (pool.cwd / "many.sub").write_text(
        "executable = /bin/sleep\ntransfer_executable = false\narguments = 1000 $(Process)\n"
        "output = many.$(Process)\nqueue 1000000\n"
    )
    began = time.monotonic()
    done = pool.condor("condor_submit", "many.sub", cwd=pool.cwd)
    took_s = time.monotonic() - began
    assert done.returncode == 0
    assert "1000000 job(s) submitted to cluster" in done.stdout and len(done.stdout) < 2000
    assert took_s < 5, "0.2 s measured"
    cluster = int(done.stdout.split("cluster ")[1].rstrip(".\n"))
    wait_for("two to run", lambda: pool.counts(cluster)["running"] == 2)
    assert memory_mib(pid) - before < 64, "3 MiB measured"
    totals = pool.condor("condor_q", "-totals").stdout
    assert "1000000 jobs; 0 completed, 0 removed, 999998 idle, 2 running" in totals

    # The pool goes on working meanwhile.
    slowest = [0.0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            asked = time.monotonic()
            pool.status()
            slowest[0] = max(slowest[0], time.monotonic() - asked)

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = pool.condor("condor_rm", str(cluster))
    ended.set()
    watcher.join()
    assert (done.returncode, done.stdout) == (0, f"All jobs in cluster {cluster} have been marked for removal\n")
    assert slowest[0] < 5
    assert pool.counts(cluster)["cancelled"] == 1_000_000
    assert not queue(pool)
    assert memory_mib(pid, "VmHWM") - before < 512, "250 MiB measured"
    pool.wait_done(pool.submit("executable = prog\noutput = after\nqueue\n"))
