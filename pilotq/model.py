"""The nouns: tasks, attempts, resources, outcomes; the state table as data.

Nothing here does anything. A cluster is described once (`Description` for the worker, `ClusterBody` for the
head); what differs between its procs is a *delta*, a msgpack map of `Description` and `ClusterBody` fields (`ad` in a
delta is merged into the cluster's, every other field replaces it).

Strings of a description may hold two marks, because neither number is known when it is packed:
`CLUSTER_MARK` stands for the cluster id, `PROC_MARK` for the proc. NUL cannot occur in an argument, a variable or a
path, so a mark is never the user's own text.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, NamedTuple

import msgspec

CLUSTER_MARK = "\x00c"
PROC_MARK = "\x00p"


class State(IntEnum):
    """Where a task is; the byte kept for each task in memory and in the store."""

    #: Waits to be assigned. Condor: 1.
    IDLE = 1
    #: Given to a worker, not started there yet. Condor: 1.
    ASSIGNED = 2
    #: The worker said it started. Condor: 2.
    RUNNING = 3
    #: Stopped by SIGSTOP on its worker. Condor: 7.
    SUSPENDED = 4
    #: Its result is recorded; outputs and the last log event are being written. Condor: 6.
    STAGING_OUT = 5
    #: Waits for a person. Condor: 5.
    HELD = 6
    #: Ended by itself (any outcome). Condor: 4.
    DONE = 7
    #: Ended by somebody. Condor: 3.
    CANCELLED = 8


#: HTCondor's JobStatus of each state.
#: Source: HTCondor manual, job ClassAd attributes, JobStatus.
CONDOR_STATUS: dict[State, int] = {
    State.IDLE: 1,
    State.ASSIGNED: 1,
    State.RUNNING: 2,
    State.SUSPENDED: 7,
    State.STAGING_OUT: 6,
    State.HELD: 5,
    State.DONE: 4,
    State.CANCELLED: 3,
}

#: Names a person reads, in the vocabulary of the project (assigned tasks are idle, staging out is running).
STATE_NAMES: dict[State, str] = {
    State.IDLE: "idle",
    State.ASSIGNED: "idle",
    State.RUNNING: "running",
    State.SUSPENDED: "suspended",
    State.STAGING_OUT: "running",
    State.HELD: "held",
    State.DONE: "done",
    State.CANCELLED: "cancelled",
}

ENDED = frozenset({State.DONE, State.CANCELLED})
#: States in which an attempt is on a worker.
ON_WORKER = frozenset({State.ASSIGNED, State.RUNNING, State.SUSPENDED})

#: state -> states it may become. Anything else is a bug.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.IDLE: frozenset({State.ASSIGNED, State.STAGING_OUT, State.HELD, State.CANCELLED}),
    State.ASSIGNED: frozenset({State.IDLE, State.RUNNING, State.STAGING_OUT, State.HELD, State.CANCELLED}),
    State.RUNNING: frozenset({State.IDLE, State.SUSPENDED, State.STAGING_OUT, State.HELD, State.CANCELLED}),
    State.SUSPENDED: frozenset({State.IDLE, State.RUNNING, State.STAGING_OUT, State.HELD, State.CANCELLED}),
    State.STAGING_OUT: frozenset({State.DONE, State.HELD}),
    State.HELD: frozenset({State.IDLE, State.STAGING_OUT, State.CANCELLED}),
    State.DONE: frozenset({State.CANCELLED}),
    State.CANCELLED: frozenset(),
}


class Outcome(IntEnum):
    """How an attempt ended."""

    #: Exit code 0.
    OK = 0
    #: Exit code other than 0.
    EXIT = 1
    #: Killed by a signal that was not ours.
    SIGNAL = 2
    #: Over its wall time.
    TIMEOUT = 3
    #: Over its memory.
    MEMORY = 4
    #: Over its disk, or no space in its scratch directory.
    DISK = 5
    #: An input file or the executable could not be had or started.
    STAGE_IN = 6
    #: An output file that was asked for is not there.
    STAGE_OUT = 7
    #: Its worker is gone.
    LOST = 8
    #: Its worker stopped it to leave.
    EVICTED = 9
    #: Somebody removed or held the task.
    CANCELLED = 10
    #: The worker would not take it.
    REJECTED = 11
    #: Over its number of processes and threads.
    PROCESSES = 12


#: Outcomes that end a task; after the others it is idle again or held.
ENDING = frozenset({Outcome.OK, Outcome.EXIT, Outcome.SIGNAL})
#: Outcomes that the worker chose: nothing of the attempt is wanted.
BY_ORDER = frozenset({Outcome.CANCELLED, Outcome.EVICTED, Outcome.LOST})
#: Outcomes behind which the next attempt in the slot begins unasked; the others may be the node's fault.
HARMLESS = BY_ORDER | {Outcome.OK}
#: Outcomes of tasks on a node that is a black hole, and how long such attempts take at most.
_OF_BAD_NODES = frozenset(
    {Outcome.EXIT, Outcome.SIGNAL, Outcome.STAGE_IN, Outcome.DISK, Outcome.REJECTED, Outcome.STAGE_OUT}
)
QUICK_S = 10.0


class HoldCode(IntEnum):
    """Why a task is held, in HTCondor's numbers.

    Source: HTCondor manual, HoldReasonCode.
    """

    USER = 1
    POLICY = 3
    CANNOT_START = 6
    OUTPUT_FILE = 12
    INPUT_FILE = 13
    SUBMITTED_HELD = 15
    USER_LOG = 22
    RESOURCES = 34
    DURATION = 46
    #: Ours, in the range of vacate reasons: lost too often.
    LOST = 1000


class Resources(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a slot holds, a worker offers or a task needs."""

    cpus: int = 1
    #: 0 means: no limit asked for.
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0
    #: A task of the universes local and scheduler: for the worker on the master's own host.
    on_head: bool = False


class TaskId(NamedTuple):
    """`cluster.proc`, as people type it."""

    cluster: int
    proc: int

    def __str__(self) -> str:
        return f"{self.cluster}.{self.proc}"


class FileRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file of the submit side, kept by content.

    `name` is its relative path in the sandbox.
    """

    name: str
    #: sha256, hexadecimal.
    digest: str
    size_bytes: int
    #: Permission bits; the worker adds owner read and write.
    mode: int = 0o600


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command run in the sandbox before or after the payload."""

    argv: list[str]
    env: dict[str, str] = {}
    #: Its exit code must be this; None: any will do.
    success_code: int | None = None


class Description(msgspec.Struct, frozen=True, omit_defaults=True):
    """All a worker needs to run one task; marks and a delta fill in what differs between procs."""

    #: argv[0] is a path relative to the sandbox ("condor_exec.exe") or absolute (on the node).
    argv: list[str]
    env: dict[str, str] = {}
    #: Put into the sandbox before the start: executable, inputs, stdin, wrapper.
    files: list[FileRef] = []
    #: File in the sandbox that is standard input; "": /dev/null.
    stdin: str = ""
    #: True: standard output (error) is kept and sent home. Both with `merge`: one file.
    keep_stdout: bool = False
    keep_stderr: bool = False
    #: Standard error goes where standard output goes.
    merge: bool = False
    #: Files or directories of the sandbox to send home; None: every new or changed file on its top level.
    outputs: list[str] | None = []
    pre: Command | None = None
    post: Command | None = None
    #: Put before argv; the words come from the head's setting, the file from `files`.
    wrapper: list[str] = []
    needs: Resources = Resources()
    #: Where the payload runs, absolute; "": in its sandbox.
    directory: str = ""
    #: The memory above which the task is killed; 0: none. (needs.memory_bytes is only for matching.)
    memory_limit_bytes: int = 0
    disk_limit_bytes: int = 0
    #: 0: no limit.
    wall_time_s: float = 0
    #: Sent first when the task is to end, then SIGKILL after the grace.
    kill_signal: int = 15
    #: Instead of that one when a user, or a policy, removes it; 0: none.
    remove_signal: int = 0
    kill_grace_s: float = 10
    #: Words of argv or values of env hold `$$()`, which the slot resolves.
    at_match: bool = False
    #: Old ClassAd text of the job for _CONDOR_JOB_AD.
    job_ad: str = ""


class ClusterBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the head keeps of a cluster besides description and columns: written once, packed, at submit."""

    owner: str
    #: Directory that relative output paths belong to.
    iwd: str
    #: Job ad attributes that do not change: name -> expression in old ClassAd syntax, marks allowed.
    ad: dict[str, str] = {}
    #: User log, absolute path; "": none.
    log: str = ""
    #: It is written as XML.
    log_xml: bool = False
    #: Log of the DAG that it is a node of, absolute path; "": none.
    nodes_log: str = ""
    #: Where standard output and error go, absolute; "": nowhere.
    stdout: str = ""
    stderr: str = ""
    #: File of the sandbox -> destination, for names that do not go to `iwd` (transfer_output_remaps).
    remaps: dict[str, str] = {}
    #: Policy expressions by submit keyword: periodic_hold, periodic_remove, periodic_release, on_exit_hold,
    #: on_exit_remove, leave_in_queue.
    policies: dict[str, str] = {}
    priority: int = 0
    #: Reason when it is submitted on hold; "": it is not.
    hold_reason: str = ""
    lease_s: float = 2400
    batch_name: str = ""
    #: Wall clock, seconds since 1970.
    submitted_at: float = 0


class Submission(msgspec.Struct, frozen=True):
    """One cluster as the submit language gives it, before it has an id."""

    body: ClusterBody
    description: Description
    count: int
    #: Empty, or what differs between procs, fields of `Description` and `ClusterBody`, in blocks (`pilotq.deltas`).
    deltas: list[bytes] = []


#: Bounds on what a worker tells of one attempt.
REASON_CHARS_MAX = 8192
OUTPUTS_MAX = 20_000


class OutputFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file an attempt left for its user.

    `name` is relative to the sandbox, or one of `STDOUT`, `STDERR`.
    """

    name: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 50)]
    mode: int
    #: The content itself when it is small; None: the master pulls it.
    data: bytes | None = None


STDOUT = "\x00stdout"
STDERR = "\x00stderr"


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an attempt used."""

    user_s: float = 0.0
    system_s: float = 0.0
    #: Highest resident set of one process of it.
    memory_bytes: int = 0
    disk_bytes: int = 0
    #: From the start of the payload to its end.
    wall_s: float = 0.0


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The end of one attempt as the worker saw it."""

    outcome: Outcome
    #: Exit code (OK, EXIT), signal (SIGNAL) or errno where there is one.
    code: int = 0
    #: What a person should read; "" when the outcome says it all.
    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)] = ""
    usage: Usage = Usage()
    outputs: Annotated[list[OutputFile], msgspec.Meta(max_length=OUTPUTS_MAX)] = []

    @property
    def is_quick_failure(self) -> bool:
        """It failed at once and by itself: perhaps the node's fault."""
        return self.outcome in _OF_BAD_NODES and self.usage.wall_s < QUICK_S


class Facts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What changes in the life of a task: the detail of its row in the store. Moments are wall clock."""

    #: When it came into its present state.
    entered_at: float = 0.0
    #: Start of its payload: the first, and the last one.
    first_started_at: float = 0.0
    last_started_at: float = 0.0
    ended_at: float = 0.0
    #: Real starts of the payload, times it was lost with its worker, times it was held.
    starts: int = 0
    losses: int = 0
    holds: int = 0
    #: Node (host name) of the present or last attempt, and the worker's name at the master.
    host: str = ""
    worker: str = ""
    #: Sum over all attempts.
    wall_s: float = 0.0
    #: Of the last attempt that ended; while another is on a worker, its outcome is -1.
    usage: Usage = Usage()
    outcome: int = -1
    code: int = 0
    #: Why it is held, was cancelled, or ended as it did; user first ("via condor_rm (by user bob)").
    reason: str = ""
    hold_code: int = 0
    hold_subcode: int = 0
    #: Reason of the last release.
    release_reason: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0
    #: Nodes it was lost on, so that a retry avoids them.
    lost_on: tuple[str, ...] = ()
    #: Times it was suspended.
    suspensions: int = 0
    #: Times its payload ended by itself.
    completions: int = 0


class Edit(NamedTuple):
    """An attribute in the ads of the tasks `first` to `last` of a cluster, as somebody changed it."""

    first: int
    last: int
    name: str
    #: Expression in old ClassAd syntax.
    value: str

    def covers(self, other: Edit) -> bool:
        """Does it say all that the other one said before it?"""
        is_same = self.name.lower() == other.name.lower()
        return is_same and self.first <= other.first and other.last <= self.last


def add_edit(edits: list[Edit], new: Edit) -> None:
    """One more, after all others; the same for the next task makes one of two."""
    same = [old for old in edits if old.name.lower() == new.name.lower()]
    if same and same[-1].last == new.first - 1 and same[-1].value == new.value:
        new = new._replace(first=same[-1].first)
    edits[:] = [old for old in edits if not new.covers(old)]
    edits.append(new)


def fill(value: Any, cluster: int, proc: int) -> Any:
    """Replace the marks in every string of a nested value."""
    if isinstance(value, str):
        if "\x00" in value:
            return value.replace(CLUSTER_MARK, str(cluster)).replace(PROC_MARK, str(proc))
        return value
    if isinstance(value, dict):
        return {fill(key, cluster, proc): fill(item, cluster, proc) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(item, cluster, proc) for item in value]
    return value
