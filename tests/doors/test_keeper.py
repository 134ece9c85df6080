"""The life of one attempt in a keeper: what it sees, what it leaves, how it is said to have ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pwd
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from keeping import Bench, data, is_root, output, until

from pilotq.model import CLUSTER_MARK, PROC_MARK, STDERR, STDOUT, Command, Outcome
from pilotq.sandbox import read_output

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    before = dict(os.environ)
    os.environ |= {"PILOTQ_TEST_SECRET": "1", "LD_PRELOAD_NOT": "1", "LC_TIME": "C", "HOME": "/somewhere"}
    bench = Bench(tmp_path_factory.mktemp("bench"))
    try:
        await bench.keepers.start()
    finally:
        os.environ.clear()
        os.environ |= before
    yield bench
    await bench.keepers.close(0)


# ---- how it ended


@pytest.mark.parametrize(
    ("script", "outcome", "code"),
    [
        ("exit 0", Outcome.OK, 0),
        ("exit 7", Outcome.EXIT, 7),
        ("kill -9 $$", Outcome.SIGNAL, 9),
        ("kill -15 $$", Outcome.SIGNAL, 15),
        # The keeper ignores or catches these; its tasks must not.
        ("kill -PIPE $$; exit 3", Outcome.SIGNAL, 13),
        ("kill -HUP $$; exit 3", Outcome.SIGNAL, 1),
    ],
)
async def test_end(bench: Bench, script: str, outcome: Outcome, code: int) -> None:
    ended = await bench.sh(script)
    assert (ended.outcome, ended.code, ended.reason) == (outcome, code, "")


async def test_no_signal_is_blocked_and_no_file_is_open(bench: Bench) -> None:
    ended = await bench.sh("grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd | wc -l", keep_stdout=True)
    blocked, ignored, count = data(ended, STDOUT).decode().splitlines()
    # 32 and 33 are the C library's own.
    assert int(blocked.split()[1], 16) == int(ignored.split()[1], 16) & ~(3 << 31) == 0
    assert int(count) == 4, "three standard streams, and the directory being read"


async def test_usage(bench: Bench) -> None:
    script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; head -c 300000 /dev/zero > f; sleep 0.05"
    usage = (await bench.sh(script)).usage
    assert usage.user_s > 0.01
    assert usage.wall_s >= 0.05
    assert usage.memory_bytes > 100_000
    assert 300_000 <= usage.disk_bytes < 400_000


# ---- what it sees


async def test_environment(bench: Bench) -> None:
    token = bench.launch(
        "/usr/bin/env", env={"A": "x y=z", "HOME": "/h"}, extra={"_CONDOR_SLOT": "slot1_3"}, keep_stdout=True
    )
    ended = await bench.end(token)
    seen = dict(line.split("=", 1) for line in data(ended, STDOUT).decode().splitlines())
    sandbox = str(bench.sandbox(token))
    assert seen["A"] == "x y=z"
    assert seen["HOME"] == "/h"
    assert seen["PATH"] == os.environ["PATH"]
    assert seen["LC_TIME"] == "C"
    assert seen["USER"]
    assert seen["TMPDIR"] == seen["_CONDOR_SCRATCH_DIR"] == sandbox
    assert seen["_CONDOR_JOB_AD"] == f"{sandbox}/.job.ad"
    assert seen["_CONDOR_MACHINE_AD"] == f"{sandbox}/.machine.ad"
    assert seen["_CONDOR_SLOT"] == "slot1_3"
    assert seen["BATCH_SYSTEM"] == "HTCondor"
    assert not {"PILOTQ_TEST_SECRET", "LD_PRELOAD_NOT", "PYTHONPATH"} & set(seen)


async def test_home_is_the_accounts(bench: Bench) -> None:
    ended = await bench.sh("echo $HOME", keep_stdout=True)
    assert data(ended, STDOUT).decode().strip() == pwd.getpwuid(os.geteuid()).pw_dir


async def test_sandbox_and_ads(bench: Bench) -> None:
    token = bench.launch_sh(
        "pwd; stat -c %a .; cat $_CONDOR_JOB_AD $_CONDOR_MACHINE_AD", keep_stdout=True, job_ad='Owner = "bob"\n'
    )
    ended = await bench.end(token)
    sandbox = bench.sandbox(token)
    assert data(ended, STDOUT).decode() == f'{sandbox}\n700\nOwner = "bob"\nCpus = 1\n'
    assert not bench.kept[token]
    await until(lambda: not sandbox.exists())


async def test_discarded_while_it_runs(bench: Bench) -> None:
    token = bench.launch("/bin/sleep", "100")
    await bench.pid(token)
    bench.keepers.discard(token)
    assert bench.sandbox(token).exists()
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    await bench.end(token)
    await until(lambda: not bench.sandbox(token).exists())


async def test_marks_and_delta(bench: Bench) -> None:
    token = bench.launch(
        "/bin/echo",
        f"{CLUSTER_MARK}.{PROC_MARK}",
        "old",
        delta={"argv": ["/bin/echo", f"{CLUSTER_MARK}.{PROC_MARK}", "new"], "priority": 3},
        keep_stdout=True,
    )
    assert data(await bench.end(token), STDOUT).decode() == f"{token.cluster}.{token.proc} new\n"


async def test_streams(bench: Bench) -> None:
    script = "echo out; echo err >&2; echo more"
    both = await bench.sh(script, keep_stdout=True, keep_stderr=True)
    assert (data(both, STDOUT), data(both, STDERR)) == (b"out\nmore\n", b"err\n")
    merged = await bench.sh(script, keep_stdout=True, keep_stderr=True, merge=True)
    assert [file.name for file in merged.outputs] == [STDOUT]
    assert data(merged, STDOUT) == b"out\nerr\nmore\n"
    only = await bench.sh(script, keep_stderr=True)
    assert [(file.name, file.data) for file in only.outputs] == [(STDERR, b"err\n")]
    none = await bench.sh("for n in 0 1 2; do [ /proc/self/fd/$n -ef /dev/null ] || exit 1; done")
    assert (none.outcome, none.outputs) == (Outcome.OK, [])


async def test_stdin(bench: Bench) -> None:
    ended = await bench.run("/bin/cat", stdin="in", files=[bench.keep("in", "hello")], keep_stdout=True)
    assert data(ended, STDOUT) == b"hello"


# ---- files


async def test_files(bench: Bench) -> None:
    big = os.urandom(200_000)
    ended = await bench.run(
        "run.sh",
        files=[
            bench.keep(
                "run.sh", "#!/bin/sh\nstat -c '%a %n' run.sh dir/sub/plain s; cat dir/sub/plain; cmp big copy\n", 0o600
            ),
            bench.keep("dir/sub/plain", "text\n", 0o400),
            bench.keep("s", "x", 0o6755),
            bench.keep("big", big),
            bench.keep("copy", big),
        ],
        keep_stdout=True,
    )
    assert ended.outcome == Outcome.OK
    assert data(ended, STDOUT).decode() == "755 run.sh\n600 dir/sub/plain\n755 s\ntext\n"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "", "."])
async def test_files_stay_inside(bench: Bench, name: str) -> None:
    ended = await bench.run("/bin/true", files=[bench.keep(name, "x")])
    assert ended.outcome == Outcome.STAGE_IN
    assert repr(name) in ended.reason


async def test_kept_file_is_gone_or_damaged(bench: Bench) -> None:
    ref = bench.keep("f", "something")
    (bench.cache / ref.digest).write_bytes(b"some")
    assert (await bench.run("/bin/true", files=[ref])).code == errno.EIO
    (bench.cache / ref.digest).unlink()
    ended = await bench.run("/bin/true", files=[ref])
    assert (ended.outcome, ended.code) == (Outcome.STAGE_IN, errno.ENOENT)


# ---- before, around, after


async def test_pre_and_post(bench: Bench) -> None:
    ended = await bench.sh(
        "echo payload >> log",
        files=[bench.keep("pre.sh", '#!/bin/sh\necho "pre $1 $A $B" >> log\nexit 9\n')],
        env={"A": "task", "B": "task"},
        pre=Command(["pre.sh", "one"], {"B": "own"}),
        post=Command(["/bin/sh", "-c", "echo post >> log; exit 9"]),
        outputs=["log"],
    )
    assert ended.outcome == Outcome.OK
    assert data(ended, "log") == b"pre one task own\npayload\npost\n"


async def test_pre_must_succeed(bench: Bench) -> None:
    token = bench.launch_sh("touch ran", pre=Command(["/bin/sh", "-c", "exit 3"], success_code=0), outputs=["ran"])
    ended = await bench.end(token)
    assert (ended.outcome, ended.code) == (Outcome.STAGE_IN, 3)
    assert ended.reason == "PreCmd '/bin/sh' ended with exit code 3 instead of 0"
    assert not (bench.sandbox(token) / "ran").exists()
    assert not bench.pids[token].done()


async def test_post_must_succeed(bench: Bench) -> None:
    ended = await bench.sh("exit 0", post=Command(["/bin/sh", "-c", "kill -9 $$"], success_code=0))
    assert (ended.outcome, ended.reason) == (
        Outcome.STAGE_OUT,
        "PostCmd '/bin/sh' was killed by signal 9 instead of 0",
    )


async def test_pre_cannot_start(bench: Bench) -> None:
    ended = await bench.sh("exit 0", pre=Command(["nothing"]))
    assert ended.outcome == Outcome.STAGE_IN
    assert ended.reason == "Failed to execute 'nothing': (errno=2: 'No such file or directory')"


async def test_wrapper_has_the_payloads_pid(bench: Bench) -> None:
    token = bench.launch(
        "payload",
        "an argument",
        wrapper=["wrapper", "word"],
        files=[
            bench.keep("wrapper", '#!/bin/sh\necho wrapper $$ $1\nshift\nexec "$@"\n'),
            bench.keep("payload", '#!/bin/sh\necho payload $$ "$1"\nsleep 0.1\n'),
        ],
        keep_stdout=True,
    )
    pid = await bench.pid(token)
    assert data(await bench.end(token), STDOUT).decode() == f"wrapper {pid} word\npayload {pid} an argument\n"


# ---- what it leaves


async def test_listed_outputs(bench: Bench) -> None:
    script = "mkdir -p d/e; echo 1 > d/one; echo 2 > d/e/two; mkfifo d/fifo; ln -s /etc/passwd d/link\n"
    script += "echo 3 > 'a b'; chmod 4755 'a b'"
    ended = await bench.sh(script, outputs=["d/", "./a b"])
    assert ended.outcome == Outcome.OK
    assert {file.name: file.data for file in ended.outputs} == {"d/one": b"1\n", "d/e/two": b"2\n", "a b": b"3\n"}
    assert output(ended, "a b").mode == 0o755


async def test_new_and_changed_outputs(bench: Bench) -> None:
    files = [bench.keep("same", "1"), bench.keep("changed", "1"), bench.keep("replaced", "1")]
    script = "echo x >> changed; cp replaced r; mv r replaced; echo n > new; mkdir d; echo n > d/below; ln -s new link"
    ended = await bench.sh(script, files=files, outputs=None, keep_stdout=True)
    assert sorted(file.name for file in ended.outputs) == [STDOUT, "changed", "new", "replaced"]


async def test_missing_output(bench: Bench) -> None:
    ended = await bench.sh("echo 1 > there; exit 4", outputs=["there", "gone"])
    assert (ended.outcome, ended.code) == (Outcome.STAGE_OUT, errno.ENOENT)
    assert "'gone'" in ended.reason
    assert data(ended, "there") == b"1\n"
    assert (await bench.sh("kill -9 $$", outputs=["gone"])).outcome == Outcome.SIGNAL


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "out", "deep/passwd", "fifo"])
async def test_outputs_stay_inside(bench: Bench, name: str) -> None:
    ended = await bench.sh("ln -s /etc/passwd out; ln -s /etc deep; mkfifo fifo", outputs=[name])
    assert ended.outcome == Outcome.STAGE_OUT
    assert ended.outputs == []


async def test_link_inside_is_followed(bench: Bench) -> None:
    ended = await bench.sh("mkdir d; echo 1 > d/v1; ln -s d/v1 latest", outputs=["latest"])
    assert data(ended, "latest") == b"1\n"


async def test_large_output_is_pulled(bench: Bench) -> None:
    token = bench.launch_sh("head -c 100000 /dev/zero > big; echo hi", outputs=["big"], keep_stdout=True)
    ended = await bench.end(token)
    assert (output(ended, "big").size_bytes, output(ended, "big").data) == (100_000, None)
    assert bench.kept[token]
    sandbox = str(bench.sandbox(token))
    assert read_output(sandbox, "big", 99_990, 1000) == b"\0" * 10
    assert read_output(sandbox, STDOUT, 1, 10) == b"i\n"
    for name in ("../x", "/etc/passwd", "none"):
        with pytest.raises(OSError):
            read_output(sandbox, name, 0, 10)
    bench.keepers.discard(token)
    await until(lambda: not bench.sandbox(token).exists())


async def test_many_outputs_keep_the_result_small(bench: Bench) -> None:
    script = "i=0; while [ $i -lt 12 ]; do head -c 30000 /dev/zero > f$i; i=$((i+1)); done"
    ended = await bench.sh(script, outputs=None)
    assert len(ended.outputs) == 12
    assert sum(len(file.data or b"") for file in ended.outputs) == 8 * 30_000


async def test_name_that_no_message_can_carry(bench: Bench) -> None:
    ended = await bench.sh("touch \"$(printf 'a\\377')\" ok", outputs=None)
    assert (ended.outcome, ended.code) == (Outcome.STAGE_OUT, errno.EILSEQ)
    assert [file.name for file in ended.outputs] == ["ok"]


async def test_removed_its_own_sandbox(bench: Bench) -> None:
    ended = await bench.sh('echo x; rm -rf "$TMPDIR"', keep_stdout=True)
    assert ended.outcome == Outcome.OK
    assert data(ended, STDOUT) == b""


# ---- cannot be started


@pytest.mark.parametrize(
    ("argv0", "content", "code", "text"),
    [
        ("/no/such/program", None, errno.ENOENT, "No such file or directory'"),
        ("nothing", None, errno.ENOENT, "No such file or directory'"),
        ("/etc", None, errno.EACCES, "Permission denied"),
        ("/etc/passwd", None, errno.EACCES, "Permission denied"),
        ("prog", b"echo no first line\n", errno.ENOEXEC, "begins with #!"),
        ("prog", b"\x7fELFrubbish", errno.ENOEXEC, "neither a program for this machine"),
        ("prog", b"", errno.ENOEXEC, "Exec format error"),
        ("prog", b"#!/no/interpreter -x\n", errno.ENOENT, "its interpreter '/no/interpreter' is not there"),
        ("prog", b"#!/bin/sh\r\necho\r\n", errno.ENOENT, "its interpreter '/bin/sh\\r' is not there"),
    ],
)
async def test_cannot_start(bench: Bench, argv0: str, content: bytes | None, code: int, text: str) -> None:
    files = [] if content is None else [bench.keep(argv0, content)]
    token = bench.launch(argv0, files=files, keep_stdout=True)
    ended = await bench.end(token)
    assert (ended.outcome, ended.code) == (Outcome.STAGE_IN, code)
    assert ended.reason.startswith(f"Failed to execute '{argv0}': (errno={code}: '")
    assert text in ended.reason
    assert not bench.pids[token].done()


async def test_arguments_that_cannot_be(bench: Bench) -> None:
    assert (await bench.run("/bin/true", "x" * 1_000_000)).code == errno.E2BIG
    for fields in ({"env": {"A": "x\0y"}}, {"env": {"A=B": "x"}}, {"env": {"": "x"}}):
        ended = await bench.run("/bin/true", **fields)
        assert (ended.outcome, ended.code) == (Outcome.STAGE_IN, errno.EINVAL)
    assert (await bench.run("/bin/true", stdin="none")).reason.startswith("Cannot open 'none'")
    assert (await bench.run()).outcome == Outcome.STAGE_IN


async def test_description_that_cannot_be_read(bench: Bench) -> None:
    assert (await bench.run("/bin/true", delta={"argv": 7})).outcome == Outcome.REJECTED


async def test_no_place_for_sandboxes(bench: Bench) -> None:
    away = bench.tasks.rename(bench.path / "away")
    try:
        ended = await bench.run("/bin/true")
    finally:
        away.rename(bench.tasks)
    assert (ended.outcome, ended.code) == (Outcome.REJECTED, errno.ENOENT)


async def test_full_disk(bench: Bench) -> None:
    """Wherever the space ends: at an input, or already at the ads."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=9", "none", str(bench.tasks)]
    if not is_root() or await (await asyncio.create_subprocess_exec(*mount)).wait():
        pytest.skip("needs the right to mount a small file system")
    try:
        ended = await bench.run("/bin/true", files=[bench.keep("big", bytes(200_000))])
        assert (ended.outcome, ended.code) == (Outcome.DISK, errno.ENOSPC)
        assert ended.reason == "Cannot put input file 'big' into place: (errno=28: 'No space left on device')"
        with contextlib.suppress(OSError):
            (bench.tasks / "other").write_bytes(bytes(60_000))
        ended = await bench.run("/bin/true", job_ad="x" * 10_000)
        assert (ended.outcome, ended.code) == (Outcome.DISK, errno.ENOSPC)
    finally:
        # What the keeper is in is busy: the next attempt takes it elsewhere.
        await (await asyncio.create_subprocess_exec("umount", "--lazy", str(bench.tasks))).wait()
    assert (await bench.run("/bin/true")).outcome == Outcome.OK


# ---- limits


async def test_wall_time(bench: Bench) -> None:
    ended = await bench.sh("trap 'echo bye; exit 0' TERM; echo hi; sleep 100", wall_time_s=0.2, keep_stdout=True)
    assert ended.outcome == Outcome.TIMEOUT
    assert ended.reason == "It ran longer than its wall time of 0.2 s"
    assert data(ended, STDOUT) == b"hi\nbye\n", "the shell's child got the signal too"
    assert 0.2 <= ended.usage.wall_s < 5


async def test_memory_limit(bench: Bench) -> None:
    hog = "import time; x = bytearray(60 << 20); time.sleep(100)"
    small = bench.launch_sh("sleep 2.2", memory_limit_bytes=40 << 20)
    # The hog is a grandchild; its parent is small.
    ended = await bench.sh(
        'python3 -I -S -c "$1"; exit 3', hog, env={"PATH": os.environ["PATH"]}, memory_limit_bytes=40 << 20
    )
    assert ended.outcome == Outcome.MEMORY
    assert ended.reason.endswith("its limit is 40 MiB")
    assert ended.usage.memory_bytes > 60 << 20
    assert (await bench.end(small)).outcome == Outcome.OK


async def test_disk_limit(bench: Bench) -> None:
    ended = await bench.sh("mkdir d; head -c 3000000 /dev/zero > d/f; sleep 100", disk_limit_bytes=2 << 20)
    assert (ended.outcome, ended.reason) == (Outcome.DISK, "Its scratch directory holds 2 MiB, its limit is 2 MiB")


# ---- ended by somebody


async def test_end_with_grace(bench: Bench) -> None:
    saved = bench.path / "saved"
    script = "trap 'echo saved > $1; exit 0' TERM; sh -c 'echo > ready; exec sleep 100'"
    token = bench.launch_sh(script, str(saved), outputs=["f"])
    await until((bench.sandbox(token) / "ready").exists)
    bench.keepers.end(token, Outcome.EVICTED, 10)
    ended = await bench.end(token)
    assert (ended.outcome, ended.outputs) == (Outcome.EVICTED, [])
    assert saved.read_text() == "saved\n"
    await until(lambda: not bench.sandbox(token).exists())


async def test_own_signal(bench: Bench) -> None:
    told = bench.path / "told"
    script = "trap 'echo > $1; exit 0' USR2; sh -c 'echo > ready; exec sleep 100'"
    token = bench.launch_sh(script, str(told), kill_signal=int(signal.SIGUSR2))
    await until((bench.sandbox(token) / "ready").exists)
    bench.keepers.end(token, Outcome.CANCELLED)
    assert (await bench.end(token)).outcome == Outcome.CANCELLED
    assert told.exists()


async def test_ignores_its_signal(bench: Bench) -> None:
    token = bench.launch_sh("trap '' TERM; echo > ready; while :; do sleep 1; done", kill_grace_s=0.2)
    await until((bench.sandbox(token) / "ready").exists)
    bench.keepers.end(token, Outcome.CANCELLED)
    ended = await bench.end(token)
    assert ended.outcome == Outcome.CANCELLED
    assert ended.usage.wall_s > 0.2


async def test_second_end_shortens_the_grace(bench: Bench) -> None:
    token = bench.launch_sh("trap '' TERM; echo > ready; while :; do sleep 1; done")
    await until((bench.sandbox(token) / "ready").exists)
    bench.keepers.end(token, Outcome.CANCELLED, 100)
    bench.keepers.end(token, Outcome.EVICTED, 0)
    assert (await bench.end(token)).outcome == Outcome.CANCELLED


async def test_stops_itself_until_its_wall_time_is_over(bench: Bench) -> None:
    ended = await bench.sh("kill -STOP $$; echo no", wall_time_s=0.3, keep_stdout=True)
    assert (ended.outcome, data(ended, STDOUT)) == (Outcome.TIMEOUT, b"")


async def test_stops_itself(bench: Bench) -> None:
    token = bench.launch_sh("kill -STOP $$; echo no")
    pid = await bench.pid(token)
    await until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    bench.keepers.end(token, Outcome.CANCELLED, 10)
    assert (await bench.end(token)).outcome == Outcome.CANCELLED


async def test_ended_before_it_ran(bench: Bench) -> None:
    token = bench.launch("/bin/true", pre=Command(["/bin/sleep", "100"]))
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    assert (await bench.end(token)).outcome == Outcome.CANCELLED
    assert not bench.pids[token].done(), "no payload was started"


async def test_end_that_comes_too_late(bench: Bench) -> None:
    token = bench.launch("/bin/true")
    await bench.end(token)
    bench.keepers.end(token, Outcome.CANCELLED, 0)
    assert (await bench.run("/bin/true")).outcome == Outcome.OK
