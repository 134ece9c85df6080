"""fakecondor/condor against a server of a few lines: what it sends, does, prints and exits with."""

from __future__ import annotations

import os
import pty
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pools import SHIMS, Home, clean_environ

from pilotq.access import REQUESTS
from pilotq.condor.others import ABSENT
from pilotq.condor.request import Reply, Request, read_fields, read_request, write_fields, write_reply

Answer = Callable[[Request], bytes | Reply]
CUT = b"CUT"
TOOLS = {name for name in [*REQUESTS, *ABSENT, "condor_wait"] if name.startswith("condor_")}


class Server:
    """Answers `POST /condor` with what a test wants; keeps what `PUT /blob` and `PUT /blobs` brought."""

    def __init__(self, home: Path, answer: Answer, path: Path | None = None) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.blobs: list[bytes] = []
        self.together: list[list[bytes]] = []
        self.socket = socket.socket(socket.AF_UNIX)
        path = path or home / "api.sock"
        folder = os.open(path.parent, os.O_RDONLY)
        self.socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        self.socket.listen(20)
        (home / "api").write_text(f"{path}\n")
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.socket.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                self._one(peer)

    def _one(self, peer: socket.socket) -> None:
        with peer.makefile("rb") as file:
            line = file.readline()
            size = 0
            while (header := file.readline()) not in (b"\r\n", b""):
                if header.lower().startswith(b"content-length:"):
                    size = int(header[15:])
            body = file.read(size)
        if line.startswith(b"PUT /blob "):
            self.blobs.append(body)
            self._send(peer, b"d%d %d\n" % (len(self.blobs), len(body)))
            return
        if line.startswith(b"PUT /blobs "):
            files = read_fields(body)
            self.together.append(files)
            self._send(peer, b"".join(b"s%d %d\n" % (number, len(data)) for number, data in enumerate(files)))
            return
        assert line == b"POST /condor HTTP/1.0\r\n"
        request = read_request(body)
        self.requests.append(request)
        reply = self.answer(request)
        if isinstance(reply, Reply):
            self._send(peer, write_reply(reply))
        elif reply != CUT:
            peer.sendall(reply)

    def _send(self, peer: socket.socket, body: bytes) -> None:
        peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
def serve(home: Home) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(answer: Answer, path: Path | None = None) -> Server:
        started.append(Server(home.path, answer, path))
        return started[-1]

    yield start
    for server in started:
        server.close()


Serve = Callable[..., Server]


def wanting(*wants: tuple[str, str]) -> Answer:
    """First these wants, then the answers as text."""

    def answer(request: Request) -> Reply:
        if not request.answers:
            return Reply(wants=list(wants))
        lines = []
        for (kind, argument), found in request.answers.items():
            lines.append(f"{kind} {argument} {found.ok} {found.data!r} {found.error}\n")
        return Reply(out="".join(lines))

    return answer


def test_what_it_sends(home: Home, serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda request: Reply(out="out\n", err="err\n", exit=3))
    odd = os.fsdecode(b"caf\xff")
    done = home.condor("condor_q", "-af", "", "a b", odd, cwd=tmp_path, X_ODD=odd, X_EMPTY="")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    (request,) = server.requests
    assert request.tool == "condor_q"
    assert request.argv == ["-af", "", "a b", odd]
    assert request.cwd == str(tmp_path)
    assert request.user == pwd.getpwuid(os.getuid()).pw_name
    assert request.uid == os.getuid()
    assert request.env["X_ODD"] == odd
    assert request.env["X_EMPTY"] == ""
    assert re.fullmatch("[0-9a-f]{32}", request.key)
    assert not request.tty


def test_every_tool_is_a_link_to_the_one_file() -> None:
    tools = sorted(path.name for path in SHIMS.iterdir() if path.name.startswith("condor_"))
    assert tools == sorted([*TOOLS, "condor_submit_dag"])
    own = {"condor_wait", "condor_submit_dag"}
    assert all((SHIMS / tool).readlink() == Path("condor") for tool in tools if tool not in own)


def test_files_are_read_as_the_user_and_kept_answers_come_again(home: Home, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x00\xff content")
    (tmp_path / "tree" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "x").touch(0o600)
    (tmp_path / "tree" / "a").symlink_to("sub/x")
    os.chmod(tmp_path / "f", 0o640)
    wants = [
        ("read", "f"),
        ("read", "none"),
        ("read", "tree"),
        ("list", "tree"),
        ("glob", "tre*"),
        ("stat", "f"),
        ("home", ""),
        ("run", "echo $0; pwd"),
        ("run", "exit 3"),
        ("strange", "x"),
    ]
    server = serve(wanting(*wants))
    done = home.condor("condor_submit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = server.requests
    assert first.key == second.key
    found = second.answers
    assert found["read", "f"].data == b"\x00\xff content"
    assert (found["read", "none"].ok, found["read", "none"].error, found["read", "none"].errno) == (
        False,
        "No such file or directory",
        2,
    )
    assert found["read", "tree"].error == "Is a directory"
    assert read_fields(found["list", "tree"].data) == [b"a", b"f", b"sub", b"d", b"sub/deep", b"d", b"sub/x", b"f"]
    assert read_fields(found["glob", "tre*"].data) == [b"dtree"]
    assert read_fields(found["stat", "f"].data) == [b"f", b"640", b"10"]
    assert found["home", ""].data.decode() == pwd.getpwuid(os.getuid()).pw_dir
    assert found["run", "echo $0; pwd"].data == f"sh\n{tmp_path}\n".encode()
    assert not found["run", "exit 3"].ok
    assert not found["strange", "x"].ok


def test_answers_of_several_rounds_are_kept(home: Home, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("two")
    (tmp_path / "two").write_text("three")

    def answer(request: Request) -> Reply:
        if not request.answers:
            return Reply(wants=[("read", "one")])
        if len(request.answers) == 1:
            return Reply(wants=[("read", request.answers["read", "one"].data.decode())])
        return Reply(out=" ".join(found.data.decode() for found in request.answers.values()))

    serve(answer)
    assert home.condor("condor_submit", cwd=tmp_path).stdout == "two three"


def test_store_streams_the_file(home: Home, serve: Serve, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "big").write_bytes(content)
    os.chmod(tmp_path / "big", 0o750)
    server = serve(wanting(("store", "big"), ("store", str(tmp_path)), ("store", "none")))
    done = home.condor("condor_submit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.blobs == [content]
    found = server.requests[-1].answers
    assert read_fields(found["store", "big"].data) == [b"d1", b"%d" % len(content), b"750", b"file"]
    assert found["store", str(tmp_path)].error == "Is a directory"
    assert found["store", "none"].errno == 2


def test_small_files_are_sent_together(home: Home, serve: Serve, tmp_path: Path) -> None:
    limit = 32 << 10
    for number in range(300):
        (tmp_path / f"f{number}").write_bytes(os.urandom(limit if number else limit + 1))
    (tmp_path / "f7").chmod(0o754)
    (tmp_path / "none-of-it").write_bytes(b"")
    paths = [*(f"f{number}" for number in range(300)), "none-of-it", "missing", str(tmp_path)]
    server = serve(wanting(*(("store", path) for path in paths)))
    done = home.condor("condor_submit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.blobs == [(tmp_path / "f0").read_bytes()]
    assert [len(files) for files in server.together] == [257, 43]
    assert sum(server.together, []) == [(tmp_path / path).read_bytes() for path in paths[1:301]]  # noqa: RUF017
    found = {path: server.requests[-1].answers["store", path] for path in paths}
    assert read_fields(found["f7"].data) == [b"s6", b"%d" % limit, b"754", b"file"]
    assert read_fields(found["f299"].data)[0] == b"s41" and read_fields(found["none-of-it"].data)[1] == b"0"
    assert (found["missing"].errno, found[str(tmp_path)].errno) == (2, 21)


def test_can_it_be_written(home: Home, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    wants = [("write", path) for path in ("there", "new", "none/new", "/dev/null", ".", "there/x")]
    server = serve(wanting(*wants))
    home.condor("condor_submit", cwd=tmp_path)
    errors = [server.requests[-1].answers[want].error for want in wants]
    assert errors == ["", "", "No such file or directory", "", "Is a directory", "Not a directory"]
    assert not (tmp_path / "new").exists()


def test_stdin_is_read_only_when_it_is_wanted(home: Home, serve: Serve) -> None:
    serve(wanting(("read", "-")))
    done = home.condor("condor_submit", stdin="queue\n")
    assert done.stdout == "read - True b'queue\\n' \n"


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-", "0<&- 2>&1"])
def test_closed_streams(home: Home, serve: Serve, closed: str) -> None:
    """JAliEn closes standard input."""
    serve(wanting(("read", "-")))
    done = home.call(["sh", "-c", f'exec "{SHIMS}/condor_submit" x {closed}'])
    assert done.returncode == 0
    assert done.stdout.startswith("read - True b''")


def test_all_streams_closed(home: Home, serve: Serve) -> None:
    serve(lambda request: Reply(out="x", exit=4))
    assert home.call(["sh", "-c", f'exec "{SHIMS}/condor_q" 0<&- 1>&- 2>&-']).returncode == 4


def test_a_large_answer_comes_whole(home: Home, serve: Serve) -> None:
    text = "0123456789abcdef" * 500_000
    serve(lambda request: Reply(out=text))
    assert home.condor("condor_q").stdout == text


def test_a_reader_that_had_enough(home: Home, serve: Serve) -> None:
    serve(lambda request: Reply(out="line\n" * 500_000))
    done = home.call(["sh", "-c", f'"{SHIMS}/condor_q" | head -n 1'])
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_stdout_that_does_not_block(home: Home, serve: Serve) -> None:
    serve(lambda request: Reply(out="x" * 1_000_000))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([SHIMS / "condor_q"], env=home.environ, stdout=writer, stdin=subprocess.DEVNULL)
    os.close(writer)
    size = 0
    while data := os.read(reader, 1 << 16):
        size += len(data)
    os.close(reader)
    assert (process.wait(), size) == (0, 1_000_000)


def test_a_full_disk_is_told(home: Home, serve: Serve) -> None:
    serve(lambda request: Reply(out="x"))
    done = home.call(["sh", "-c", f'"{SHIMS}/condor_q" >/dev/full'])
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_an_error_is_one_line(home: Home, serve: Serve) -> None:
    serve(lambda request: b"HTTP/1.0 503 Service Unavailable\r\n\r\nthe master drains:\n it takes nothing new\n")
    done = home.condor("condor_submit")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "condor_submit: the master drains: it takes nothing new\n"


@pytest.mark.parametrize(
    "body",
    [
        write_fields([b"out", b"half"]),
        write_fields([b"out", b"half"]) + b"4:exit9:1",
        b"rubbish",
        b"",
        write_fields([b"out", b"x", b"exit", b"zero"]),
    ],
)
def test_a_broken_answer_prints_nothing(home: Home, serve: Serve, body: bytes) -> None:
    serve(lambda request: b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    done = home.condor("condor_q")
    assert (done.stdout, done.returncode) == ("", 1)
    assert len(done.stderr.splitlines()) == 1


def test_an_answer_without_length_is_good_when_it_has_an_end(home: Home, serve: Serve) -> None:
    serve(lambda request: b"HTTP/1.0 200 OK\r\n\r\n" + write_reply(Reply(out="x")))
    assert home.condor("condor_q").stdout == "x"


def test_an_answer_that_was_cut_off_is_asked_for_again_with_the_same_key(home: Home, serve: Serve) -> None:
    def answer(request: Request) -> bytes | Reply:
        if len(server.requests) == 1:
            return CUT
        if len(server.requests) == 2:
            return b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n1:x"
        return Reply(out="1 job(s) submitted to cluster 1.\n")

    server = serve(answer)
    assert home.condor("condor_submit").stdout == "1 job(s) submitted to cluster 1.\n"
    assert len({request.key for request in server.requests}) == 1
    assert len(server.requests) == 3


def test_it_waits_for_a_master_that_is_being_started(home: Home, serve: Serve) -> None:
    process = subprocess.Popen(
        [SHIMS / "condor_q"], env=home.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.3)  # it has looked for the master a few times by then; when not, the test is still right
    serve(lambda request: Reply(out="here\n"))
    assert process.communicate(timeout=20)[0] == "here\n"


def test_nobody_answers(home: Home) -> None:
    began = time.monotonic()
    done = home.condor("condor_q")
    assert 8 < time.monotonic() - began < 20
    assert (done.stdout, done.returncode) == ("", 1)
    assert re.fullmatch(r"condor_q: no answer from the master of .*\n", done.stderr)


def test_another_account(home: Home, serve: Serve) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    serve(lambda request: Reply())
    for folder in (home.path, *home.path.parents[:3]):
        if folder == home.path or "pytest" in folder.name:
            os.chmod(folder, 0o700 if folder == home.path else 0o755)
    began = time.monotonic()
    done = subprocess.run(
        [SHIMS / "condor_q"],
        env=home.environ,
        cwd="/",
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No such file" in done.stderr or "can't open file" in done.stderr:
        pytest.skip("the checkout is not open to others")
    assert (done.stdout, done.returncode, len(done.stderr.splitlines())) == ("", 1, 1)
    assert "another user" in done.stderr
    assert time.monotonic() - began < 5


def test_a_socket_path_that_is_too_long_for_an_address(home: Home, serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    serve(lambda request: Reply(out="far\n"), folder / "api.sock")
    assert home.condor("condor_q").stdout == "far\n"


def test_where_it_looks_for_the_home(home: Home, serve: Serve, tmp_path: Path) -> None:
    serve(lambda request: Reply(out="found\n"))
    environ = {**clean_environ(), "AWQ_WORKDIR": str(home.path), "PILOTQ_HOME": ""}
    tool = SHIMS / "condor_q"
    assert subprocess.run([tool], env=environ, capture_output=True, text=True, check=True).stdout == "found\n"
    # A file beside the shim, however many links lead to it.
    (tmp_path / "shims").mkdir()
    (tmp_path / "shims" / "condor").write_bytes((SHIMS / "condor").read_bytes())
    os.chmod(tmp_path / "shims" / "condor", 0o755)
    (tmp_path / "shims" / "condor_q").symlink_to("condor")
    (tmp_path / "shims" / "home").write_text(f"{home.path}\n")
    (tmp_path / "link").symlink_to("shims/condor_q")
    environ["AWQ_WORKDIR"] = ""
    done = subprocess.run(["./link"], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "found\n"
    environ["PATH"] = f"{tmp_path / 'shims'}:{environ['PATH']}"
    done = subprocess.run(["sh", "-c", "condor_q"], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "found\n"


def test_the_current_directory_is_gone(home: Home, serve: Serve, tmp_path: Path) -> None:
    serve(lambda request: Reply())
    shim = f"'{sys.executable}' -I -S '{SHIMS}/condor_q'"
    done = home.call(["sh", "-c", f"mkdir gone; cd gone; rmdir ../gone; {shim}"], cwd=tmp_path)
    assert done.returncode == 1
    assert "current directory is gone" in done.stderr


def test_on_a_terminal(home: Home, serve: Serve) -> None:
    server = serve(lambda request: Reply(out="x\n"))
    leader, follower = pty.openpty()
    process = subprocess.Popen([SHIMS / "condor_q"], env=home.environ, stdout=follower, stdin=subprocess.DEVNULL)
    process.wait()
    os.close(follower)
    os.close(leader)
    assert server.requests[0].tty


def test_ctrl_c_is_quiet(home: Home, serve: Serve) -> None:
    asked, over = threading.Event(), threading.Event()

    def answer(request: Request) -> bytes:
        asked.set()
        over.wait(20)
        return CUT

    serve(answer)
    process = subprocess.Popen([SHIMS / "condor_q"], env=home.environ, stderr=subprocess.PIPE, text=True)
    assert asked.wait(20)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == ""
    assert process.returncode == 130
    over.set()
