"""Command lines of condor_submit_dag and of the runner, and the submit description between them.

Source: HTCondor manual, condor_submit_dag, condor_dagman.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotq.dag.model import DagError

#: Option -> number of arguments.
_OPTIONS = {
    "no_submit": 0, "force": 0, "verbose": 0, "help": 0, "version": 0, "usedagdir": 0, "update_submit": 0,
    "alwaysrunpost": 0, "dontalwaysrunpost": 0, "import_env": 0, "dumprescue": 0, "dorecovery": 0, "no_recurse": 0,
    "do_recurse": 0, "suppress_notification": 0, "dont_suppress_notification": 0, "noeventchecks": 0,
    "allowlogerror": 0, "allowversionmismatch": 0, "dont_use_default_node_log": 0, "valgrind": 0,
    "maxjobs": 1, "maxidle": 1, "maxpre": 1, "maxpost": 1, "maxhold": 1, "priority": 1, "dorescuefrom": 1,
    "autorescue": 1, "append": 1, "batch-name": 1, "config": 1, "outfile_dir": 1, "dagman": 1, "notification": 1,
    "debug": 1, "insert_sub_file": 1, "insert_env": 1, "include_env": 1, "schedd-daemon-ad-file": 1,
    "schedd-address-file": 1, "remote": 1, "load_save": 1, "submitmethod": 1, "lockfile": 1, "csdversion": 1,
    "dag": 1, "key": 1, "jobid": 1,
}  # fmt: skip
_SHORT = {"f": "force", "r": "remote", "v": "verbose", "h": "help", "a": "append", "batch": "batch-name"}
_NUMBERS = ("maxjobs", "maxidle", "maxpre", "maxpost", "maxhold", "priority", "dorescuefrom", "jobid", "autorescue")
_REFUSED = ("insert_sub_file", "load_save", "dumprescue", "remote", "outfile_dir", "config")
#: What the runner must be told as well.
_PASSED = ("maxjobs", "maxidle", "maxpre", "maxpost", "priority", "dorescuefrom", "autorescue", "batch-name")
_PASSED_FLAGS = ("usedagdir", "alwaysrunpost")
#: For the FINAL node of a DAG that is removed.
_GRACE_S = 600
_GETENV = "CONDOR_CONFIG,_CONDOR_*,PATH,PILOTQ_*,AWQ_*,HOME"
USAGE = """\
Usage: condor_submit_dag [options] dag_file [dag_file_2 ... dag_file_n]
    -help, -version          say this, or the version
    -no_submit               write the submit file, start nothing
    -force                   write files anew, run all nodes
    -maxjobs N, -maxidle N, -maxpre N, -maxpost N
                             most jobs, idle procs, PRE and POST scripts at a time (0: any number)
    -usedagdir               paths of a DAG file are relative to its directory
    -AlwaysRunPost           POST scripts run after a failed PRE script
    -autorescue 0|1, -DoRescueFrom N
                             go on from the last rescue file (1), or from this one
    -priority N, -batch-name NAME, -append LINE, -update_submit, -import_env, -insert_env K=V;..., -include_env K,...
"""


@dataclass
class Options:
    """What a command line says."""

    files: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    appended: list[str] = field(default_factory=list)

    def number(self, name: str, default: int = 0) -> int:
        return int(self.values.get(name, default))

    @property
    def primary(self) -> str:
        """The file after which all others are called."""
        return self.files[0]


def read_options(argv: list[str]) -> Options:
    """Raises: DagError."""
    options = Options()
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            options.files.append(word)
            continue
        name = _find(word.lstrip("-").lower())
        if name in _REFUSED:
            raise DagError(f"{word} is not supported by pilotq")
        if not _OPTIONS[name]:
            options.flags.add(name)
            continue
        if not words:
            raise DagError(f"{word} requires an argument")
        value = words.pop(0)
        if name == "append":
            options.appended.append(value)
        elif name == "dag":
            options.files.append(value)
        elif name in _NUMBERS and not value.removeprefix("-").isdecimal():
            raise DagError(f"{word} requires a number, not {value}")
        else:
            options.values[name] = value
    return options


def _find(word: str) -> str:
    if word in _SHORT or word in _OPTIONS:
        return _SHORT.get(word, word)
    found = [name for name in _OPTIONS if name.startswith(word)]
    if len(found) != 1:
        raise DagError(f"unknown option -{word}" if not found else f"-{word} may be -{found[0]} or -{found[1]}")
    return found[0]


def runner_arguments(options: Options) -> list[str]:
    """What the runner is started with."""
    words = ["-Lockfile", f"{options.primary}.lock"]
    for file in options.files:
        words += ["-Dag", file]
    for name in _PASSED:
        if name in options.values:
            words += [f"-{name}", options.values[name]]
    words += [f"-{name}" for name in _PASSED_FLAGS if name in options.flags]
    return words


def submit_description(options: Options, program: str, environment: str) -> str:
    """The text of `.condor.sub`."""
    file = options.primary

    def quoted(word: str) -> str:
        return "'" + word.replace("'", "''").replace('"', '""') + "'" if set(word) & set(" \t'\"") else word

    arguments = " ".join(map(quoted, ["dag", *runner_arguments(options), "-JobId", "$(cluster)"]))
    lines = [
        f"# Filename: {file}.condor.sub",
        f"# Generated by condor_submit_dag {' '.join(options.files)}",
        "universe\t= scheduler",
        f"executable\t= {program}",
        "transfer_executable\t= false",
        f"getenv\t\t= {'True' if 'import_env' in options.flags else _GETENV}",
        f"output\t\t= {file}.lib.out",
        f"error\t\t= {file}.lib.err",
        f"log\t\t= {file}.dagman.log",
        "remove_kill_sig\t= SIGUSR1",
        f"kill_sig_timeout\t= {_GRACE_S}",
        '+OtherJobRemoveRequirements\t= "DAGManJobId =?= $(cluster)"',
        "on_exit_remove\t= (ExitSignal =?= 11 || (ExitCode =!= UNDEFINED && ExitCode >=0 && ExitCode <= 2))",
        "copy_to_spool\t= False",
        f'arguments\t= "{arguments}"',
        f"environment\t= {environment}",
        *([f"batch_name\t= {options.values['batch-name']}"] if "batch-name" in options.values else []),
        *options.appended,
        "queue",
    ]
    return "\n".join(lines) + "\n"


def submitted_text(options: Options, said: str) -> str:
    """What condor_submit_dag prints around what condor_submit said."""
    file = options.primary
    line = "-" * 71
    pairs = [
        ("File for submitting this DAG to HTCondor", "condor.sub"),
        ("Log of DAGMan debugging messages", "dagman.out"),
        ("Log of HTCondor library output", "lib.out"),
        ("Log of HTCondor library error messages", "lib.err"),
        ("Log of the life of condor_dagman itself", "dagman.log"),
    ]
    named = "".join(f"{what:<51} : {file}.{suffix}\n" for what, suffix in pairs)
    return f"\n{line}\n{named}\n{said}{line}\n"
