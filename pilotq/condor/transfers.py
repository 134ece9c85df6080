"""What goes in and comes back: directories, executable, input files, standard streams, log, output files.

Each function is a section of the description of a job (`procs.SECTIONS`).
"""

from __future__ import annotations

import posixpath
import re

from pilotq.condor.expressions import quote
from pilotq.condor.job import Job, Parts, is_null
from pilotq.condor.lexer import BLANKS, SubmitError, shown, shown_path
from pilotq.condor.macro_functions import NeedsProc, is_open
from pilotq.condor.payload import EXECUTABLE, is_transferred
from pilotq.condor.request import Answer, read_fields
from pilotq.condor.user_side import Kept, cannot_open
from pilotq.model import CLUSTER_MARK, FileRef

#: Files of one directory named in transfer_input_files.
DIRECTORY_FILES_MAX = 10_000
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_REMAP = re.compile(r"((?:\\.|[^\\=;])*)=((?:\\.|[^\\;])*)(?:;|$)", re.DOTALL)
_ESCAPED = re.compile(r"\\([=;\\])")
#: open(2): O_WRONLY | O_CREAT with O_TRUNC, with O_APPEND.
_WRITE_FLAGS, _APPEND_FLAGS = 0o1101, 0o2101
#: Logs of events: field of the body, attribute, keywords.
_LOGS = (("log", "UserLog", "log", "userlog"), ("nodes_log", "DAGManNodesLog", "dagman_log", "dagmannodeslog"))
_SHOULD = {"YES": True, "NO": False, "IF_NEEDED": None}
_WHEN_KEYS = ("when_to_transfer_output", "whentotransferoutput")
_WHEN = ("ON_EXIT", "ON_EXIT_OR_EVICT", "ON_SUCCESS")


def _no_url(path: str, keyword: str) -> None:
    if _URL.match(path):
        raise SubmitError(f"{keyword}: URLs are not supported by pilotq yet: {shown(path)}")


def _names(text: str) -> list[str]:
    return [name for name in (part.strip(BLANKS) for part in text.split(",")) if name]


def on_place(job: Job, parts: Parts) -> None:
    """The directory that relative paths belong to."""
    iwd = job.iwd
    if iwd != job.side.request.cwd:
        answer = job.side.ask("stat", iwd)
        if answer and not (answer.ok and read_fields(answer.data)[0] == b"d"):
            raise SubmitError(f"No such directory: {shown_path(iwd)}")
    parts.body["iwd"] = iwd
    parts.ad["Iwd"] = quote(iwd)
    if job.is_on_head:
        parts.description["directory"] = iwd


# ---- in --------------------------------------------------------------------------------------------------------


def on_files(job: Job, parts: Parts) -> None:
    """Files that are put into the sandbox: executable, inputs, standard input, wrapper."""
    found: dict[str, FileRef] = {}
    executable = _executable(job, parts)
    kib = 0 if executable is None else _kib(executable.size_bytes)
    inputs = _inputs(job, parts)
    # A job of the head runs where they are.
    for path in inputs if not job.is_on_head else ():
        kib += _kib(_add_input(job, path, found))
    kib += _kib(_standard_input(job, parts, found))
    parts.ad["DiskUsage"] = str(kib)
    if executable is not None:
        found[EXECUTABLE] = executable
    if job.site.wrapper_file is not None:
        found[job.site.wrapper_file.name] = job.site.wrapper_file
        parts.description["wrapper"] = job.site.wrapper
    if found:
        parts.description["files"] = list(found.values())
    if not job.get("disk_usage", "diskusage"):
        # Who says how large it is does not want it to be counted.
        size = sum(file.size_bytes for file in found.values())
        parts.ad["TransferInputSizeMB"] = str(size >> 20)


def _executable(job: Job, parts: Parts) -> FileRef | None:
    name = job.known("executable", "cmd")
    if not name:
        raise SubmitError("No 'executable' parameter was provided")
    if not is_transferred(job):
        _image(parts, 0)
        parts.ad["Cmd"] = quote(name)
        parts.ad["TransferExecutable"] = "false"
        return None
    _no_url(name, "executable")
    path = job.side.path(name)
    parts.ad["Cmd"] = quote(path)
    kept = job.side.keep(path)
    if isinstance(kept, Answer):
        raise SubmitError(f"Can't access executable file {shown_path(path)}: {kept.error}")
    if kept.is_directory:
        raise SubmitError(f"Can't access executable file {shown_path(path)}: Is a directory")
    if not kept.size_bytes:
        raise SubmitError(f"Executable file {shown_path(path)} has zero length")
    _image(parts, kept.size_bytes)
    return FileRef(EXECUTABLE, kept.digest, kept.size_bytes, 0o755)


def _kib(size_bytes: int) -> int:
    return (size_bytes + 1023) >> 10


def _image(parts: Parts, size_bytes: int) -> None:
    for attribute in ("ExecutableSize", "ImageSize"):
        parts.ad[attribute] = str(_kib(size_bytes))


def _inputs(job: Job, parts: Parts) -> list[str]:
    text = job.known("transfer_input_files", "transferinputfiles", "transferinput")
    names = _names(text)
    if names and should_transfer(job) is False:
        raise SubmitError(
            "you specified files you want Condor to transfer via \n"
            '"transfer_input_files", but you disabled should_transfer_files.'
        )
    if names:
        parts.ad["TransferInput"] = quote(",".join(names))
    return names


def _add_input(job: Job, name: str, found: dict[str, FileRef]) -> int:
    """Take a file or a directory in; its bytes."""
    _no_url(name, "transfer_input_files")
    path = job.side.path(name, job.iwd)
    # Of a directory with a slash at its end only what is in it is taken.
    opened = posixpath.basename(path) in ("", ".", "..")
    kept = Kept("", 0, 0o755, True) if opened else job.side.keep(path)
    if isinstance(kept, Answer):
        raise SubmitError(cannot_open(path, 0, kept))
    target = "" if opened else posixpath.basename(path)
    if not name.startswith("/") and job.flag(False, "preserve_relative_paths", "preserverelativepaths"):
        relative = posixpath.normpath(name)
        target = relative if not relative.startswith("..") and relative != "." else target
    if not kept.is_directory:
        found[target] = FileRef(target, kept.digest, kept.size_bytes, kept.mode)
        return kept.size_bytes
    size = 0
    below = job.side.files_below(path.rstrip("/") or "/") or []
    if len(below) > DIRECTORY_FILES_MAX:
        raise SubmitError(
            f"transfer_input_files: {shown(path)} holds {len(below)} files, the limit is {DIRECTORY_FILES_MAX}; "
            "transfer a tar file"
        )
    for inner in below:
        source, place = posixpath.join(path, inner), posixpath.join(target, inner)
        file = job.side.keep(source)
        if isinstance(file, Answer):
            raise SubmitError(cannot_open(source, 0, file))
        found[place] = FileRef(place, file.digest, file.size_bytes, file.mode)
        size += file.size_bytes
    return size


def _standard_input(job: Job, parts: Parts, found: dict[str, FileRef]) -> int:
    """Take the file of standard input in; its bytes."""
    name = job.known("input", "stdin")
    if is_null(name):
        parts.ad["In"] = '"/dev/null"'
        parts.ad["TransferIn"] = "false"
        return 0
    if not job.flag(True, "transfer_input", "transferin"):
        # It lies on the machine.
        parts.description["stdin"] = name
        parts.ad["In"] = quote(name)
        parts.ad["TransferIn"] = "false"
        return 0
    _no_url(name, "input")
    path = job.side.path(name, job.iwd)
    kept = job.side.keep(path)
    if isinstance(kept, Answer) or kept.is_directory:
        answer = kept if isinstance(kept, Answer) else Answer(False, error="Is a directory")
        raise SubmitError(cannot_open(path, 0, answer))
    target = posixpath.basename(path)
    other = found.get(target)
    if (other is not None and other.digest != kept.digest) or target == EXECUTABLE:
        target = "_condor_stdin"
    found[target] = FileRef(target, kept.digest, kept.size_bytes, kept.mode)
    parts.description["stdin"] = target
    parts.ad["In"] = quote(name)
    parts.ad["StreamIn"] = "true" if job.flag(False, "stream_input", "streamin") else "false"
    return kept.size_bytes


# ---- out -------------------------------------------------------------------------------------------------------


def on_streams(job: Job, parts: Parts) -> None:
    """Standard output, standard error, and the user log."""
    out = _stream(job, parts, "output", "stdout", "Out")
    err = _stream(job, parts, "error", "stderr", "Err")
    if out:
        parts.description["keep_stdout"] = True
        parts.body["stdout"] = out
    if err:
        parts.description["keep_stderr"] = True
        parts.body["stderr"] = err
    if out and posixpath.normpath(out) == posixpath.normpath(err):
        parts.description["merge"] = True
    for field, attribute, *keywords in _LOGS:
        log = job.get(*keywords)
        if is_null(log):
            continue
        _no_url(log, keywords[0])
        path = job.side.path(log, job.iwd)
        _check_writable(job, path, keywords[0], _APPEND_FLAGS)
        parts.body[field] = path
        parts.ad[attribute] = quote(path)
    if job.flag(False, "log_xml", "userlogusexml"):
        parts.body["log_xml"] = True


def _stream(job: Job, parts: Parts, keyword: str, other: str, attribute: str) -> str:
    """The absolute path of a stream; "" when it goes nowhere."""
    name = job.get(keyword, other)
    if is_null(name):
        parts.ad[attribute] = '"/dev/null"'
        parts.ad["Transfer" + attribute] = "false"
        return ""
    if not job.flag(True, f"transfer_{keyword}"):
        job.warn(f"transfer_{keyword} = false: {keyword} stays with the machine and is gone with the job")
        parts.ad[attribute] = quote(name)
        parts.ad["Transfer" + attribute] = "false"
        return ""
    _no_url(name, keyword)
    path = job.side.path(name, job.iwd)
    _check_writable(job, path, keyword, _WRITE_FLAGS)
    parts.ad[attribute] = quote(name)
    parts.ad["Stream" + attribute] = "true" if job.flag(False, f"stream_{keyword}") else "false"
    return path


def _check_writable(job: Job, path: str, role: str, flags: int) -> None:
    """Of each directory the first file of a role is tried: what the others are is seen when they are written."""
    directory = path[: path.rfind("/")]
    if is_open(directory):
        raise NeedsProc
    if CLUSTER_MARK in directory or (directory, role) in job.asked:
        return
    job.asked.add((directory, role))
    if job.options.unchecked or job.flag(False, "skip_filechecks"):
        return
    sample = job.sample(path).replace(CLUSTER_MARK, "0")
    answer = job.side.ask("write", sample)
    if answer and not answer.ok:
        raise SubmitError(cannot_open(sample, flags, answer))


def should_transfer(job: Job) -> bool | None:
    """None: if needed."""
    value = job.known("should_transfer_files", "shouldtransferfiles").upper()
    if value and value not in _SHOULD:
        raise SubmitError(
            f"invalid value ({shown(value)}) for ShouldTransferFiles. Please either specify \n"
            "YES, NO, or IF_NEEDED and try again."
        )
    when = job.known(*_WHEN_KEYS).upper()
    if when and value == "NO":
        raise SubmitError("you specified a value for when_to_transfer_output,\nbut you disabled should_transfer_files.")
    if when == "ON_EXIT_OR_EVICT":
        if value == "IF_NEEDED":
            raise SubmitError("when_to_transfer_output = ON_EXIT_OR_EVICT needs should_transfer_files = YES")
        return True
    return _SHOULD[value or "IF_NEEDED"]


def needs_paths(job: Job) -> bool:
    """Whether it asks for something that old machines do not have."""
    is_relative = job.flag(False, "preserve_relative_paths", "preserverelativepaths")
    return is_relative or job.known(*_WHEN_KEYS).upper() == "ON_SUCCESS"


def on_outputs(job: Job, parts: Parts) -> None:
    """Which files come home, and where to."""
    should = should_transfer(job)
    when = job.known(*_WHEN_KEYS).upper()
    if when and when not in _WHEN:
        raise SubmitError(
            f"invalid value ({shown(when)}) for WhenToTransferOutput. Please either specify \n"
            "ON_EXIT, or ON_EXIT_OR_EVICT and try again."
        )
    if should is False:
        job.warn("should_transfer_files = NO: the job runs in a scratch directory, not in its initial directory")
    else:
        parts.ad["WhenToTransferOutput"] = quote(when or "ON_EXIT")
    parts.ad["ShouldTransferFiles"] = quote({True: "YES", False: "NO", None: "IF_NEEDED"}[should])
    parts.description["outputs"] = _outputs(job, parts, should)
    remaps = job.get("transfer_output_remaps", "transferoutputremaps")
    if remaps:
        parts.body["remaps"] = _remaps(remaps)
        parts.ad["TransferOutputRemaps"] = remaps
    if job.flag(False, "preserve_relative_paths", "preserverelativepaths"):
        parts.ad["PreserveRelativePaths"] = "true"


def _outputs(job: Job, parts: Parts, should: bool | None) -> list[str] | None:
    """None: every new file on the top level of the sandbox, as HTCondor does where no file system is shared."""
    if job.is_on_head:
        return []
    text = job.literal("TransferOutput")
    if text is None:
        text = job.get("transfer_output_files", "transferoutputfiles", "transferoutput")
        if not text:
            return [] if should is False else None
        if text == '""':
            text = ""
    names = _names(text)
    parts.ad["TransferOutput"] = quote(",".join(names))
    return names


def _remaps(text: str) -> dict[str, str]:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise SubmitError(f"transfer_output_remaps must be a quoted string, not: {shown(text)}")
    found: dict[str, str] = {}
    inner = text[1:-1].strip()
    position = 0
    while position < len(inner):
        match = _REMAP.match(inner, position)
        if match is None:
            raise SubmitError(f"transfer_output_remaps takes name=path pairs with ; between, not: {shown(text)}")
        name, path = (_ESCAPED.sub(r"\1", part).strip() for part in match.groups())
        _no_url(path, "transfer_output_remaps")
        found[name] = path
        position = match.end()
    return found
