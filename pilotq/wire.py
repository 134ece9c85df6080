"""Every message between master, foreman and worker.

A ZeroMQ message is a batch: a msgpack array of byte strings, session and payload in turn. On a link that a worker
opened the session is empty; a foreman puts the session it gave to the worker there, which ends in the name of the
worker's key (`session_of`), and passes payloads of workers on without opening them. A payload is one msgpack array: the
tag, then the fields in order. A large payload follows the batch as a frame of its own, which nobody copies on its way;
where it belongs, the batch has nil.

Only durations cross the wire, never moments: no clock of another host is ever compared. An attempt is named by
(cluster, proc, attempt) everywhere; the attempt number is the fence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pilotq.errors import PeerError
from pilotq.model import REASON_CHARS_MAX, Ended, Resources

#: 3: attempts can be suspended.
PROTOCOL = 3
#: Bounds on one payload and on one batch; checked before anything is unpacked.
PAYLOAD_BYTES_MAX = 4 << 20
BATCH_PARTS_MAX = 20_000
#: A batch of several payloads is not larger than this.
BATCH_BYTES_MAX = 1 << 20
#: A payload from this size on is a frame of its own.
FRAME_BYTES_MIN = 64 << 10
#: Frames of one message: the batch and its large payloads.
FRAMES_MAX = 1 + BATCH_BYTES_MAX // FRAME_BYTES_MIN
#: Bytes of a file that one message carries.
CHUNK_BYTES = 256 << 10
#: Instead of the size of a file: nobody has it any more; it cannot be had now, as a disk on the way is full.
NOT_KEPT, NOT_NOW = -1, -2
#: A file up to this size travels inside the message that names it.
INLINE_BYTES_MAX = 32 << 10
#: Content, where it is not copied needlessly.
Buffer = bytes | memoryview
#: Session (bytes) and payload (Buffer) in turn.
Parts = list[Any]


class Token(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """One attempt; the bounds are checked where a message is unpacked."""

    cluster: Annotated[int, Meta(ge=1, lt=1 << 62)]
    proc: Annotated[int, Meta(ge=0, lt=1 << 32)]
    attempt: Annotated[int, Meta(ge=1, lt=1 << 32)]


#: Items of a list in one message: bounds what a small payload can become in memory.
ITEMS_MAX = 20_000
_Items = Meta(max_length=ITEMS_MAX)
Tokens = Annotated[list[Token], _Items]
Numbers = Annotated[list[int], _Items]
Reason = Annotated[str, Meta(max_length=REASON_CHARS_MAX)]
#: Small files by digest.
Inline = Annotated[dict[str, bytes], _Items]


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# ---- worker to master ------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True):
    """First message of a session, and the answer to `AskInventory`: who I am and all I hold."""

    protocol: int
    #: Its name, of its own making: host, pid and a nonce, so that it is known to its successor before anybody else.
    worker: str
    #: Counts this worker's sessions; an older route is never believed over a newer one.
    generation: int
    host: str
    pid: int
    version: str
    offer: Offer
    #: Attempts held that have not ended yet.
    live: Tokens
    #: Of `live`, those whose payload was started.
    started: Tokens
    #: Ended attempts whose result was not acknowledged (their `Result` follows).
    unacked: Tokens
    #: Names under which earlier processes in this scratch directory were known; nothing of them is left.
    predecessors: Annotated[list[str], _Items] = []
    #: Of the `AskInventory` it answers; 0: none.
    answers: int = 0
    #: Which control groups hold its tasks, for people.
    containment: Annotated[str, Meta(max_length=200)] = ""
    #: Of `live`, those that are suspended, or will be once they run.
    suspended: Tokens = []


class Offer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a worker can hold: absolute, so that a lost or repeated one does no harm."""

    #: Of open slots: shrinks when a slot closes.
    capacity: Resources
    #: Attempts it takes beyond its capacity, to start at once when one ends.
    ahead: int = 0
    draining: bool = False


class Beat(_Message, frozen=True):
    """I am alive; renews the lease of every attempt held when the answer comes."""

    seq: int
    offer: Offer
    #: Number of live attempts and xor of their hashes (`checksum`, and of suspended ones also `suspended_checksum`): a
    #: mismatch that lasts makes the master ask.
    count: int
    checksum: int


class Started(_Message, frozen=True):
    """These payloads run."""

    tokens: Tokens


class Result(_Message, frozen=True):
    """These attempts ended; kept and sent again until `Ack`."""

    tokens: Tokens
    ends: Annotated[list[Ended], _Items]
    #: What ended well here began before tasks whose failure was told already: it says nothing about the node since.
    row_stands: bool = False


class Refuse(_Message, frozen=True):
    """These attempts were not and will not be started here; nothing is charged."""

    tokens: Tokens
    reason: Reason


class Killed(_Message, frozen=True):
    """Nothing of these attempts is left (also the answer for unknown ones)."""

    tokens: Tokens


class Goodbye(_Message, frozen=True):
    """I leave and hold nothing any more."""

    reason: Reason


class Data(_Message, frozen=True):
    """The answer to `Pull`: bytes of an output file; `missing` when it cannot be read."""

    token: Token
    name: str
    offset: int
    data: bytes
    missing: bool = False


# ---- between gateway and master --------------------------------------------------------------------------------------


class Flow(_Message, frozen=True):
    """Bytes of a stream, in either direction: a connection to the API that comes over a link (`pilotq.tunnel`)."""

    #: The gateway counts them, and opens them in order; a number is used once.
    stream: Annotated[int, Meta(ge=0, lt=1 << 62)]
    data: bytes
    #: Bytes of the other direction that were passed on, in all.
    got: Annotated[int, Meta(ge=0)]
    #: Nothing follows in this direction.
    end: bool = False


# ---- worker or foreman to the one above ------------------------------------------------------------------------


class Get(_Message, frozen=True):
    """Bytes of a kept file, please."""

    digest: str
    offset: int
    length: int = CHUNK_BYTES


class Chunk(_Message, frozen=True):
    """The answer to `Get`; `size` is of the whole file, or one of the two below."""

    digest: str
    offset: int
    size: int
    data: bytes


# ---- master to worker ------------------------------------------------------------------------------------------


class Welcome(_Message, frozen=True):
    """The answer to `Hello`."""

    lease_s: float
    beat_s: float
    #: Generation this answers.
    generation: int
    #: Attempts the worker must end and forget; everything else it told stays.
    kill: Tokens
    #: The first try after this session breaks is made somewhere in this time, because others lose theirs as well.
    spread_s: float = 0.0


class Reject(_Message, frozen=True):
    """No session for you."""

    reason: Reason
    retry_after_s: float


class Describe(_Message, frozen=True):
    """A cluster's packed `Description`; sent before the first attempt of it, once a session."""

    cluster: int
    body: bytes
    #: Small files of it, by digest.
    inline: Inline = {}


class Assign(_Message, frozen=True):
    """Run these. Duplicates of held attempts are answered with where they are."""

    cluster: int
    procs: Numbers
    attempts: Numbers
    #: Empty, or one packed delta per proc.
    deltas: Annotated[list[bytes], _Items] = []
    #: Small files that the deltas name, by digest.
    inline: Annotated[dict[str, memoryview], _Items] = {}


class Renew(_Message, frozen=True):
    """The answer to `Beat`: the lease counts from when the worker sent that one."""

    seq: int


class Ack(_Message, frozen=True):
    """These results are committed (or not wanted): forget them."""

    tokens: Tokens


class Kill(_Message, frozen=True):
    """End these attempts and say `Killed`."""

    tokens: Tokens
    #: At once, without the grace of their description.
    fast: bool = False
    #: For good: they may be told so by another signal.
    removed: bool = False


class Suspend(_Message, frozen=True):
    """Stop all processes of these attempts; or let them go on. It may be said again, and is then of no effect."""

    tokens: Tokens
    on: bool


class AskInventory(_Message, frozen=True):
    """Say `Hello` again, with this number: it then tells all that was said before this.

    From a foreman, or to a session the master does not know, the number is 0.
    """

    number: int = 0


class Pull(_Message, frozen=True):
    """Bytes of an output file, please."""

    token: Token
    name: str
    #: Negative: so far from its end, or from its beginning when it is shorter.
    offset: int
    length: int = CHUNK_BYTES


class DrainPlease(_Message, frozen=True):
    """An operator wants this worker to leave when its tasks have ended."""


# ---- between foreman and worker, foreman and master --------------------------------------------------------------


class Leave(_Message, frozen=True):
    """From a foreman to its workers: find another foreman if you can; I leave."""


class ForemanHello(_Message, frozen=True):
    """First message of a foreman's session."""

    protocol: int
    #: host:port its workers connect to; its name.
    name: str
    pid: int
    version: str


class ForemanBeat(_Message, frozen=True):
    seq: int
    workers: int
    draining: bool


class AllowedKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key that workers may come with."""

    #: Public, Z85.
    public: str
    name: str
    #: Seconds it is still good for; negative: no end.
    left_s: float = -1.0


class ForemanWelcome(_Message, frozen=True):
    """Whom to let in, and no others. Sent again when that changes."""

    keys: Annotated[list[AllowedKey], _Items]
    beat_s: float
    #: Public key (Z85) of the pair to serve workers with.
    serve: str = ""


class ForemanRenew(_Message, frozen=True):
    seq: int


class Gone(_Message, frozen=True):
    """From a foreman: these sessions ended; it says nothing about their tasks."""

    sessions: Annotated[list[bytes], _Items]


class Forget(_Message, frozen=True):
    """From the master to a foreman: this cluster's description is not needed any more."""

    cluster: int


FromWorker = Hello | Beat | Started | Result | Refuse | Killed | Goodbye | Data | Get
FromForeman = ForemanHello | ForemanBeat | Gone | Get | Goodbye
ToWorker = (
    Welcome
    | Reject
    | Describe
    | Assign
    | Renew
    | Ack
    | Kill
    | Suspend
    | AskInventory
    | Pull
    | DrainPlease
    | Leave
    | Chunk
)
ToForeman = ForemanWelcome | ForemanRenew | Reject | Describe | Forget | Chunk | AskInventory
Message = FromWorker | FromForeman | ToWorker | ToForeman | Flow

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> bytes:
    return _encoder.encode(message)


def unpack(payload: Buffer) -> Message:
    """The message in a payload.

    Raises: PeerError when it is too large, or is not one.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise PeerError(f"a payload of {len(payload)} bytes")
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # ValueError: text that is not UTF-8.
        raise PeerError(f"not a message: {error}") from None


_Part = Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)] | None
_Batch = Annotated[list[_Part], Meta(max_length=BATCH_PARTS_MAX)]
_batch_decoder: msgspec.msgpack.Decoder[list[bytes | None]] = msgspec.msgpack.Decoder(_Batch)


def join(parts: Parts) -> Iterator[list[Buffer]]:
    """The messages (frames) that carry these parts, session and payload in turn: one, unless they are many or large."""
    if len(parts) <= BATCH_PARTS_MAX and sum(map(len, parts)) <= BATCH_BYTES_MAX:
        yield _framed(parts)
        return
    start = size = 0
    for at in range(0, len(parts), 2):
        more = len(parts[at]) + len(parts[at + 1])
        if at > start and (size + more > BATCH_BYTES_MAX or at - start >= BATCH_PARTS_MAX):
            yield _framed(parts[start:at])
            start, size = at, 0
        size += more
    yield _framed(parts[start:])


def _framed(parts: Parts) -> list[Buffer]:
    large = [part for part in parts if len(part) >= FRAME_BYTES_MIN]
    small = [None if len(part) >= FRAME_BYTES_MIN else part for part in parts] if large else parts
    return [_encoder.encode(small), *large]


def split(frames: Sequence[Buffer]) -> Parts:
    """The parts of a message, session and payload in turn.

    Raises: PeerError when it is not a batch, or something in it is too large.
    """
    large = iter(frames[1:])
    try:
        parts = _batch_decoder.decode(frames[0])
        found = [next(large) if part is None else part for part in parts] if len(frames) > 1 else parts
    except (msgspec.MsgspecError, ValueError, RecursionError, StopIteration) as error:
        raise PeerError(f"not a batch: {error}") from None
    if len(parts) % 2 or None in parts[::2] or parts.count(None) != len(frames) - 1:
        raise PeerError("not a batch: a session without a payload, or a payload that is missing")
    return found


#: Bytes of an id that ZeroMQ makes for a connection.
PEER_BYTES = 5


def session_of(peer: bytes, key: str) -> bytes:
    """What a foreman calls a worker's connection: its id, and the name of the key it came with."""
    return peer + key.encode()


def key_of(session: bytes) -> str:
    """The name of the key of a session; "" when there is none in it."""
    return session[PEER_BYTES:].decode(errors="replace")


def checksum(token: Token) -> int:
    """A 32-bit hash of a token, the same on both sides."""
    value = (token.cluster * 0x9E3779B1 + token.proc * 0x85EBCA6B + token.attempt * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 15)


def suspended_checksum(token: Token) -> int:
    """What a suspended attempt adds to the checksum of all."""
    return (checksum(token) * 0x9E3779B1 + 1) & 0xFFFFFFFF


def checksum_of_all(cluster: int, procs: Iterable[int], attempts: Iterable[int]) -> int:
    """The xor of the hashes of many tokens of a cluster."""
    base, every = cluster * 0x9E3779B1, 0
    for proc, attempt in zip(procs, attempts):  # noqa: B905 this is the hot line of master and worker
        value = (base + proc * 0x85EBCA6B + attempt * 0xC2B2AE35) & 0xFFFFFFFF
        every ^= value ^ (value >> 15)
    return every
