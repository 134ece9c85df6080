"""condor_submit: what a submit file becomes, and what is refused."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from submitting import HOME, NOW, SCRIPT, User, argvs, proc, site

from pilotq.condor.request import Reply, Request
from pilotq.condor.submit import Plan, plan_submit, submitted
from pilotq.model import FileRef, Resources

EXE = "executable = job.sh\n"


def plain(text: str = "", tail: str = "queue\n") -> str:
    return EXE + text + tail


# ---- the whole of a small job ------------------------------------------------------------------------------------


def test_a_job_becomes_a_description_for_the_worker_and_a_body_for_the_head() -> None:
    user = User()
    user.files |= {f"{HOME}/data/in.txt": b"in", f"{HOME}/a.txt": b"a", f"{HOME}/log": None}
    text = plain(
        "arguments = \"one 'two words' ''\"\nenvironment = \"A=1 B='x y'\"\n"
        "input = data/in.txt\noutput = out.$(Process)\n"
        "error = err\nlog = log/$(Cluster).log\ntransfer_input_files = a.txt\ntransfer_output_files = r1, sub/r2\n"
        "request_cpus = 2\nrequest_memory = 1.5G\nrequest_disk = 3M\npriority = 4\n"
    )
    submission = user.one(text)
    assert (submission.count, submission.deltas) == (1, [])
    description, body = proc(submission, 0)
    assert description.argv == ["./condor_exec.exe", "one", "two words", ""]
    assert description.env == {"A": "1", "B": "x y"}
    files = {file.name: file for file in description.files}
    assert files["condor_exec.exe"] == FileRef(
        "condor_exec.exe", hashlib.sha256(SCRIPT).hexdigest(), len(SCRIPT), 0o755
    )
    assert set(files) == {"condor_exec.exe", "a.txt", "in.txt"}
    assert description.stdin == "in.txt"
    assert (description.keep_stdout, description.keep_stderr, description.merge) == (True, True, False)
    assert description.outputs == ["r1", "sub/r2"]
    assert description.needs == Resources(2, 1536 << 20, 3072 << 10, 0)
    assert (description.memory_limit_bytes, description.disk_limit_bytes) == (1536 << 20, 3072 << 10)
    assert (body.owner, body.iwd, body.priority, body.submitted_at) == ("bob", HOME, 4, NOW)
    assert (body.stdout, body.stderr, body.log) == (f"{HOME}/out.0", f"{HOME}/err", f"{HOME}/log/7.log")
    assert body.ad["Cmd"] == f'"{HOME}/job.sh"'
    assert body.ad["Arguments"] == "\"one two' 'words ''\""
    assert body.ad["Environment"] == "\"A=1 B=x' 'y\""
    assert (body.ad["In"], body.ad["Out"], body.ad["TransferOutput"]) == ('"data/in.txt"', '"out.0"', '"r1,sub/r2"')
    assert (body.ad["RequestMemory"], body.ad["RequestDisk"], body.ad["RequestCpus"]) == ("1536", "3072", "2")
    assert not {"ClusterId", "ProcId", "Owner", "JobStatus"} & set(body.ad)
    assert user.rounds == 3
    assert ("write", f"{HOME}/out.0") in user.wants and ("store", f"{HOME}/data/in.txt") in user.wants


def test_the_job_ad_file_is_sorted_old_text_with_the_numbers_as_marks() -> None:
    submission = User().one(plain('+Flavour = "a \\"b\\""\nlog = l.$(Process)\n'))
    lines = proc(submission, 0, 12)[0].job_ad.splitlines()
    assert lines == sorted(lines, key=str.lower)
    for line in ("ClusterId = 12", "ProcId = 0", 'Owner = "bob"', 'Flavour = "a \\"b\\""', f'UserLog = "{HOME}/l.0"'):
        assert line in lines
    assert f'GlobalJobId = "head.example.org#12.0#{int(NOW)}"' in lines


def test_what_admission_packs_can_be_packed() -> None:
    submission = User().one(plain('+PreCmd = "x"\nlog = l\n'))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(submission.description), type=type(submission.description))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(submission.body), type=type(submission.body))


def test_defaults_of_the_site() -> None:
    wrapper = FileRef("condor_wrapper", "ab", 3, 0o755)
    user = User(site=site(needs=Resources(2, 5 << 20, 0, 0), wall_time_s=60.0, wrapper=["./w"], wrapper_file=wrapper))
    description = user.one(plain()).description
    assert description.needs == Resources(2, 5 << 20, 0, 0)
    assert (description.memory_limit_bytes, description.wall_time_s) == (0, 60.0)
    assert description.wrapper == ["./w"] and wrapper in description.files


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        ("", None),
        ("should_transfer_files = YES\n", None),
        ("when_to_transfer_output = ON_EXIT\n", None),
        ("transfer_output_files =\n", None),
        ('transfer_output_files = ""\n', []),
        ('+TransferOutput = ""\n', []),
        ('transfer_output_files = a\n+TransferOutput = "b, c"\n', ["b", "c"]),
        ("should_transfer_files = NO\n", []),
        ("transfer_output_files = a b, c/d,\n", ["a b", "c/d"]),
    ],
)
def test_which_files_come_home(text: str, outputs: list[str] | None) -> None:
    assert User().one(plain(text)).description.outputs == outputs


def test_remaps() -> None:
    remaps = User().one(plain('transfer_output_remaps = " a = /x/y z ; b\\;c=d "\n')).body.remaps
    assert remaps == {"a": "/x/y z", "b;c": "d"}
    assert "must be a quoted string" in User().refused(plain("transfer_output_remaps = a=b\n"))


def test_output_and_error_may_be_one_file() -> None:
    description = User().one(plain("output = both\nerror = ./both\n")).description
    assert (description.keep_stdout, description.keep_stderr, description.merge) == (True, True, True)


@pytest.mark.parametrize("name", ["output", "error", "log", "input"])
def test_the_null_device_is_nowhere(name: str) -> None:
    user = User()
    submission = user.one(plain(f"{name} = /dev/null\n"))
    assert user.wants == [("read", "job.sub"), ("store", f"{HOME}/job.sh")]
    assert not submission.description.keep_stdout and not submission.body.log and not submission.description.stdin


def test_logs_besides_the_user_log() -> None:
    body = User().one(plain("log = a.log\nlog_xml = true\ndagman_log = x.nodes.log\n")).body
    assert (body.log, body.log_xml, body.nodes_log) == (f"{HOME}/a.log", True, f"{HOME}/x.nodes.log")
    assert body.ad["DAGManNodesLog"] == f'"{HOME}/x.nodes.log"'
    assert not User().one(plain("log = a.log\n")).body.log_xml


def test_a_directory_is_transferred_with_its_files() -> None:
    user = User()
    user.files |= {f"{HOME}/d/x": b"x", f"{HOME}/d/e/y": b"y", f"{HOME}/d/empty": None}
    names = {file.name for file in user.one(plain("transfer_input_files = d\n")).description.files}
    assert names == {"condor_exec.exe", "d/x", "d/e/y"}
    names = {file.name for file in user.one(plain("transfer_input_files = d/\n")).description.files}
    assert names == {"condor_exec.exe", "x", "e/y"}


def test_relative_paths_may_be_kept() -> None:
    user = User()
    user.files |= {f"{HOME}/d/x": b"x", "/data/y": b"y"}
    text = plain("transfer_input_files = d/x, /data/y\npreserve_relative_paths = true\n")
    assert {file.name for file in user.one(text).description.files} == {"condor_exec.exe", "d/x", "y"}


def test_an_initial_directory_is_where_all_but_the_executable_is() -> None:
    user = User()
    user.files |= {f"{HOME}/sub/in": b"x"}
    submission = user.one(plain("initialdir = sub\ninput = in\noutput = out\nlog = log\n"))
    assert submission.body.iwd == f"{HOME}/sub"
    assert (submission.body.stdout, submission.body.log) == (f"{HOME}/sub/out", f"{HOME}/sub/log")
    assert ("store", f"{HOME}/job.sh") in user.wants and ("store", f"{HOME}/sub/in") in user.wants


def test_paths_with_blanks_and_beyond_ascii() -> None:
    user = User()
    odd = "größe 粒子 x"
    user.files |= {f"{HOME}/{odd}/a b": b"x", f"{HOME}/{odd}/run me": SCRIPT}
    text = f"executable = {odd}/run me\ninitialdir = {odd}\ntransfer_input_files = a b\noutput = o ü\nqueue\n"
    submission = user.one(text)
    assert submission.body.stdout == f"{HOME}/{odd}/o ü"
    assert {file.name for file in submission.description.files} == {"condor_exec.exe", "a b"}
    assert ("store", f"{HOME}/{odd}/run me") in user.wants


def test_bytes_that_are_no_text_are_refused_where_they_count_and_nowhere_else() -> None:
    user = User(env={"BAD": "\udcff", "GOOD": "ä"})
    assert user.one(b"# gr\xf6\xdfe\nexecutable = job.sh\ngetenv = true\nqueue\n").description.env == {"GOOD": "ä"}
    assert "not UTF-8" in user.refused(b"executable = job.sh\noutput = gr\xf6\xdfe\nqueue\n")
    assert "not UTF-8" in user.refused(b"executable = job.sh\narguments = $(x)\nqueue x in (a \xf6)\n")


@pytest.mark.parametrize(("program", "argv0"), [("/bin/sh", "/bin/sh"), ("bin/x", "bin/x"), ("x", "./x")])
def test_an_executable_on_the_node(program: str, argv0: str) -> None:
    user = User()
    submission = user.one(f"executable = {program}\ntransfer_executable = false\nqueue\n")
    assert submission.description.argv == [argv0] and submission.description.files == []
    assert submission.body.ad["Cmd"] == f'"{program}"'
    assert user.wants == [("read", "job.sub")]


def test_commands_before_and_after() -> None:
    description = (
        User()
        .one(
            plain(
                '+PreCmd = "pre.sh"\n+PreArguments = "a \'b c\'"\n+PreEnvironment = "X=1 Y=\'2 3\'"\n'
                '+PostCmd = "/bin/post"\n+PostArgs = "old style"\n+SuccessPostExitCode = 3\n'
            )
        )
        .description
    )
    assert description.pre is not None and description.post is not None
    assert (description.pre.argv, description.pre.env) == (["./pre.sh", "a", "b c"], {"X": "1", "Y": "2 3"})
    assert description.pre.success_code is None
    assert (description.post.argv, description.post.success_code) == (["/bin/post", "old", "style"], 3)
    assert "must be a quoted string" in User().refused(plain("+PreCmd = pre.sh\n"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("allowed_job_duration = 5*60\n", 300),
        ("+MaxWallTime = 3\n", 180),
        ("+JobMaxRuntime = 90\n", 90),
        ("request_walltime = 1h\n", 3600),
        ("allowed_execute_duration = 50\n+MaxWallTime = 3\n", 50),
        ("allowed_job_duration = 60 * NumJobStarts\n", 0),
    ],
)
def test_wall_times(text: str, seconds: float) -> None:
    assert User().one(plain(text)).description.wall_time_s == seconds


def test_signals_and_grace() -> None:
    description = User().one(plain("kill_sig = SIGUSR1\nkill_sig_timeout = 30\n")).description
    assert (description.kill_signal, description.kill_grace_s) == (10, 30.0)
    assert "invalid signal" in User().refused(plain("kill_sig = SIGFOO\n"))


def test_policies_are_kept_as_they_are_written() -> None:
    body = (
        User()
        .one(
            plain(
                "periodic_hold = JobStatus==2 && (CurrentTime-QDate)>60\n"
                "periodic_remove = false\non_exit_remove = TRUE\n"
                'on_exit_hold = ExitCode > 3\nleave_in_queue = JobStatus == 4\nperiodic_hold_reason = "why"\n'
            )
        )
        .body
    )
    assert body.policies == {
        "periodic_hold": "JobStatus==2 && (CurrentTime-QDate)>60",
        "periodic_hold_reason": '"why"',
        "on_exit_hold": "ExitCode > 3",
        "leave_in_queue": "JobStatus == 4",
    }
    assert (body.ad["PeriodicRemove"], body.ad["OnExitRemove"], body.ad["PeriodicHoldReason"]) == (
        "false",
        "TRUE",
        '"why"',
    )


def test_retries_are_a_policy() -> None:
    body = User().one(plain("max_retries = 3\nretry_until = 7\n")).body
    expected = "NumJobCompletions > JobMaxRetries || ExitCode =?= 0 || ExitCode =?= 7"
    assert body.policies == {"on_exit_remove": expected}
    assert body.ad["JobMaxRetries"] == "3"


def test_hold_lease_and_batch_name() -> None:
    body = User().one(plain('hold = true\njob_lease_duration = 7200\nbatch_name = "my batch"\n')).body
    assert body.hold_reason == "submitted on hold at user's request"
    assert (body.lease_s, body.ad["JobLeaseDuration"], body.batch_name) == (7200.0, "7200", "my batch")
    assert User().one(plain("batch_name = a\n"), "-batch-name", "b", "job.sub").body.batch_name == "b"
    assert User().one(plain("job_lease_duration = 5\n")).body.lease_s == 20.0


def test_grid_universe_runs_like_vanilla_and_keeps_its_resource() -> None:
    body = User().one(plain("universe = grid\ngrid_resource = condor  ce1   ce1:9619 \n")).body
    assert (body.ad["JobUniverse"], body.ad["GridResource"]) == ("9", '"condor  ce1   ce1:9619"')
    assert "JobLeaseDuration" not in body.ad
    assert "grid_resource attribute not defined" in User().refused(plain("universe = grid\n"))


def test_getenv() -> None:
    user = User(env={"PATH": "/bin", "A1": "x y", "A2": "z", "BASH_FUNC_f%%": "() {}", "NL": "a\nb"})
    assert user.one(plain("getenv = true\n")).description.env == {"PATH": "/bin", "A1": "x y", "A2": "z"}
    assert user.one(plain("getenv = A*, !A2\n")).description.env == {"A1": "x y"}
    assert user.one(plain("getenv = A*\nenvironment = A1=mine\n")).description.env == {"A1": "mine", "A2": "z"}
    assert user.one(plain("getenv = false\n")).description.env == {}


def test_keywords_may_be_named_by_their_attribute() -> None:
    submission = User().one(plain("RequestMemory = 5\nShouldTransferFiles = YES\nJobPrio = 3\nAcctGroup = g\n"))
    assert submission.description.needs.memory_bytes == 5 << 20
    assert (submission.body.priority, submission.body.ad["AcctGroup"]) == (3, '"g"')


# ---- warnings ----------------------------------------------------------------------------------------------------


def warnings(text: str) -> str:
    plan = User().submit(text)
    assert isinstance(plan, Plan)
    return plan.stderr


def test_unused_keys_are_named() -> None:
    said = warnings(plain("argumnets = 5\nmine = 1\narguments = $(mine)\n"))
    assert said == "\nWARNING: the line 'argumnets = 5' was unused by condor_submit. Is it a typo?\n"


def test_usual_files_give_no_warning() -> None:
    text = "universe = vanilla\nnotification = never\nstream_output = true\n+X = 1\nrequirements = True\nrank = 0\n"
    assert warnings(plain(text)) == ""


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('requirements = OpSys == "LINUX"', "requirements"),
        ("rank = Memory", "rank"),
        ("use_x509userproxy = true", "use_x509userproxy"),
        ("notification = always", "notification"),
        ("request_foo = 3", "request_foo"),
        ("concurrency_limits = a", "concurrency_limits"),
        ("should_transfer_files = NO", "should_transfer_files"),
    ],
)
def test_what_is_kept_but_not_done_is_said(line: str, word: str) -> None:
    said = warnings(plain(line + "\n"))
    assert said.startswith(f"\nWARNING: {word}") and said.count("\n") == 2
    # Balsam takes the word after the first "cluster" for the job's id.
    assert "cluster" not in said


def test_requirements_are_kept_with_what_condor_adds() -> None:
    ad = User().one(plain('requirements = Arch == "ARM"\nrequest_gpus = 1\nrank = Memory\n')).body.ad
    assert ad["Requirements"].startswith('(Arch == "ARM") && (TARGET.OpSys == "LINUX") && ')
    assert "(TARGET.GPUs >= RequestGPUs)" in ad["Requirements"] and ad["Rank"] == "Memory"


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("executable = none\nqueue\n", f"ERROR: Can't access executable file {HOME}/none: No such file or directory"),
        ("executable = empty\nqueue\n", f"ERROR: Executable file {HOME}/empty has zero length"),
        ("executable = dir\nqueue\n", f"ERROR: Can't access executable file {HOME}/dir: Is a directory"),
        ("queue\n", "ERROR: No 'executable' parameter was provided"),
        (EXE, 'ERROR: "job.sub" doesn\'t contain any "queue" commands -- no jobs queued'),
        ("", 'ERROR: "job.sub" doesn\'t contain any "queue" commands -- no jobs queued'),
        (plain("initialdir = none\n"), f"ERROR: No such directory: {HOME}/none"),
        (plain("initialdir = job.sh\n"), f"ERROR: No such directory: {HOME}/job.sh"),
        (plain("input = none\n"), f'ERROR: Can\'t open "{HOME}/none"  with flags 00 (No such file or directory)'),
        (
            plain("transfer_input_files = job.sh, none\n"),
            f'ERROR: Can\'t open "{HOME}/none"  with flags 00 (No such file or directory)',
        ),
        (plain("output = no/o\n"), f'ERROR: Can\'t open "{HOME}/no/o"  with flags 01101 (No such file or directory)'),
        (plain("error = ro\n"), f'ERROR: Can\'t open "{HOME}/ro"  with flags 01101 (Permission denied)'),
        (plain("log = no/l\n"), f'ERROR: Can\'t open "{HOME}/no/l"  with flags 02101 (No such file or directory)'),
        (plain("output = dir\n"), f'ERROR: Can\'t open "{HOME}/dir"  with flags 01101 (Is a directory)'),
        (plain("environment = A=1;B;C=3\n"), "ERROR: Missing '=' after environment variable 'B'."),
        (plain('environment = "A=1 B"\n'), "ERROR: Missing '=' after environment variable 'B'."),
        (plain("request_cpus = foo bar\n"), "ERROR: Parse error in expression: RequestCpus = foo bar"),
        (plain("periodic_hold = JobStatus ==\n"), "ERROR: Parse error in expression: PeriodicHold = JobStatus =="),
        (plain("+A = 1 +\n"), "ERROR: Parse error in expression: A = 1 +"),
        (plain('arguments = "a\n'), "ERROR: Unterminated double-quote."),
        (plain('arguments = a "b\n'), "ERROR: Found illegal unescaped double-quote:"),
        (plain("hold = maybe\n"), "ERROR: hold=maybe is invalid, must eval to a boolean."),
        (plain("priority = high\n"), "ERROR: priority=high is invalid, must eval to an integer."),
        (plain("notification = daily\n"), "ERROR: Notification must be 'Never', 'Always', 'Complete', or 'Error'"),
        (plain("universe = parallel\n"), "ERROR: the universe parallel is not supported by pilotq"),
        (plain("machine_count = 2\n"), "ERROR: machine_count above 1 is not supported by pilotq"),
        (plain("universe = foo\n"), "ERROR: I don't know about the 'foo' universe."),
        (plain("universe = standard\n"), "ERROR: 'Standard' is not a supported universe."),
        (plain("container_image = x.sif\n"), "ERROR: container_image is not supported by pilotq yet"),
        (plain("transfer_input_files = http://a/b\n"), "ERROR: transfer_input_files: URLs are not supported"),
        (plain("output = $(Cluster)/x\ninitialdir = $(Cluster)\n"), "ERROR: $(Cluster) cannot be used in initialdir"),
        (plain("request_memory = 99999999999999G\n"), "ERROR: request_memory is too large"),
        (plain("this is no line\n"), "ERROR: on Line 2 of job.sub: this is neither 'key = value' nor a statement"),
        (plain("should_transfer_files = NO\ntransfer_input_files = job.sh\n"), "ERROR: you specified files you want"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    user = User(readonly={f"{HOME}/ro"})
    user.files |= {f"{HOME}/empty": b"", f"{HOME}/dir": None}
    assert said in user.refused(text)


def test_a_missing_description() -> None:
    said = User().refused("", "none.sub")
    assert said == "\nERROR: Failed to open command file (none.sub) (No such file or directory)\n"


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\x00\x00\x00\n", bytes(range(1, 256)) * 20])
def test_binary_rubbish_gets_one_clear_line(content: bytes) -> None:
    first, *rest = User().refused(content).strip().split("\n\n")
    assert len(first) < 250 and first.isprintable() and "job.sub" in first and len(rest) <= 1


def test_an_argument_that_no_program_can_be_given() -> None:
    said = User().refused(plain(f"arguments = {'x' * 131072}\n"))
    assert "131072 bytes" in said and "MAX_ARG_STRLEN" in said
    assert "the variable V takes" in User().refused(plain(f"environment = V={'ä' * 70000}\n"))


def test_a_megabyte_of_arguments_is_taken_and_sent_once() -> None:
    words = ["w" * 99] * 10_000
    description = User().one(plain(f"arguments = {' '.join(words)}\n")).description
    assert description.argv[1:] == words
    assert len(description.job_ad) < 10_000


def test_queue_0_is_a_warning() -> None:
    plan = User().submit(plain(tail="queue 0\n"))
    assert isinstance(plan, Plan) and plan.submissions == []
    reply = submitted(plan, [])
    assert (reply.out, reply.exit) == ("", 0)
    assert reply.err == '\nWARNING: "job.sub" has only empty "queue" commands -- no jobs queued\n'


def test_files_are_not_checked_when_nobody_wants_it() -> None:
    for text, argv in (
        (plain("output = no/o\nskip_filechecks = true\n"), []),
        (plain("output = no/o\n"), ["-disable"]),
    ):
        assert isinstance(User().submit(text, *argv, "job.sub"), Plan)


# ---- command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["-terse"], ["-name", "x", "-pool", "y", "-spool"], ["-t", "-n", "x", "--debug"]])
def test_the_description_may_come_on_standard_input(argv: list[str]) -> None:
    user = User()
    assert isinstance(user.submit(plain(), *argv), Plan)
    assert user.wants[0] == ("read", "-")


def test_a_dash_is_standard_input_and_verbose_as_in_condor() -> None:
    plan = User().submit(plain(), "-")
    assert isinstance(plan, Plan) and plan.verbose


@pytest.mark.parametrize("option", ["-append", "-a", "--app", "-APPEND"])
def test_appended_lines_stand_before_the_queue_statement(option: str) -> None:
    submission = User().one(plain("arguments = old\n"), option, "arguments = new", "-a", "+X=1", "job.sub")
    assert argvs(submission) == [["new"]] and submission.body.ad["X"] == "1"


def test_definitions_come_before_the_file() -> None:
    submission = User().one(plain("arguments = $(x) $(y:0)\ny = 2\n"), "x=a b", "y=1", "job.sub")
    assert argvs(submission) == [["a", "b", "2"]]


def test_a_queue_statement_on_the_command_line() -> None:
    assert argvs(User().one(EXE + "arguments = $(x)\n", "job.sub", "-queue", "x", "in", "(a", "b)")) == [["a"], ["b"]]
    assert User().one("", "executable=job.sh", "-queue", "3", "-terse").count == 3
    assert "-queue is given" in User().refused(plain(), "job.sub", "-queue", "2")
    assert User().one(EXE, "job.sub", "-a", "queue 2").count == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-frobnicate"], "unknown option -frobnicate"),
        (["-append"], "-append requires another argument"),
        (["a.sub", "b.sub"], "two submit descriptions are given"),
        (["-interactive"], "-interactive is not supported by pilotq yet"),
        (["-dry-run", "out.ads", "job.sub"], "-dry-run into a file (use -dry-run -) is not supported"),
        (["-maxjobs", "2", "job.sub"], "3 jobs are more than -maxjobs 2 allows"),
    ],
)
def test_command_lines_that_are_refused(argv: list[str], said: str) -> None:
    assert said in User().refused(plain(tail="queue 3\n"), *argv)


def test_help_and_version_ask_for_nothing() -> None:
    for option, begins in (("-help", "Usage: condor_submit"), ("-version", "$CondorVersion: ")):
        reply = plan_submit(Request("condor_submit", argv=[option]), NOW, site())
        assert isinstance(reply, Reply) and reply.out.startswith(begins) and reply.exit == 0


def test_a_dry_run_prints_the_ads_and_keeps_nothing() -> None:
    user = User()
    reply = user.submit(plain("arguments = $(x)\n", "queue x in (a b)\n"), "-dry-run", "-", "job.sub")
    assert isinstance(reply, Reply) and reply.exit == 0
    assert 'Args = "a"\n' in reply.out and 'Args = "b"\n' in reply.out and "ProcId = 1\n" in reply.out
    assert not any(kind == "store" for kind, _ in user.wants)


# ---- what is printed ---------------------------------------------------------------------------------------------


def printed(text: str, *argv: str) -> str:
    plan = User().submit(text, *argv)
    assert isinstance(plan, Plan)
    reply = submitted(plan, [42 + index for index in range(len(plan.submissions))])
    assert (reply.exit, reply.err) == (0, "")
    return reply.out


def test_what_is_printed() -> None:
    assert printed(plain()) == "Submitting job(s).\n1 job(s) submitted to cluster 42.\n"
    assert printed(plain(tail="queue 3\n")) == "Submitting job(s)...\n3 job(s) submitted to cluster 42.\n"
    assert printed(plain(tail="queue 3\n"), "-terse", "job.sub") == "42.0 - 42.2\n"
    many = printed(plain(tail="queue 5000\n"))
    assert many == f"Submitting job(s){'.' * 1000}\n5000 job(s) submitted to cluster 42.\n"


def test_verbose_prints_the_ads() -> None:
    out = printed(plain("arguments = $(Process)\n", "queue 2\n"), "-verbose", "job.sub")
    assert out.startswith("** Proc 42.0:\n") and "** Proc 42.1:\n" in out
    assert 'Args = "1"\n' in out and "ClusterId = 42\n" in out
