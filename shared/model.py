"""The nouns that cross the wire between agent and control plane, as frozen values.

Pure and light: the agent imports this at rest. Digests are the 32 bytes of SHA-256 over exact content,
`None` means "no file"; moments are microseconds since 1970-01-01 UTC; ids are UUIDv7 in 16 bytes;
`participant` is the public id (a UUID or a name).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Digest = bytes

_HEX_DIGEST = re.compile("[0-9a-f]{64}")


def digest(content: bytes) -> Digest:
    """SHA-256 of exact bytes."""
    return hashlib.sha256(content).digest()


def show_digest(value: Digest | None) -> str | None:
    """`sha256:<64 hex>`; None for no file."""
    return None if value is None else f"sha256:{value.hex()}"


def parse_digest(text: str) -> Digest:
    """The 32 bytes behind `sha256:<64 hex>`. Raises ValueError for anything else."""
    scheme, _, rest = text.partition(":")
    if scheme != "sha256" or not _HEX_DIGEST.fullmatch(rest):
        raise ValueError("a digest is written sha256:<64 lower-case hex digits>")
    return bytes.fromhex(rest)


class Step(StrEnum):
    """Where the apply machine is, in order."""

    RECEIVED = "received"
    FETCHED = "fetched"
    ALLOWED = "allowed"
    STAGED = "staged"
    CHECKED = "checked"
    SWAPPED = "swapped"
    RELOAD_OWED = "reload_owed"
    RELOADED = "reloaded"
    LOADED = "loaded"
    CONFIRMED = "confirmed"


class Result(StrEnum):
    """How an attempt stands or ended."""

    IN_PROGRESS = "in_progress"
    APPLIED = "applied"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    STUCK = "stuck"

    @property
    def holds(self) -> bool:
        """What was offered is on disk, durable."""
        return self in (Result.APPLIED, Result.CONFIRMED)


class OfferAction(StrEnum):
    """What to do with a slot."""

    WRITE = "write"
    RESTORE = "restore"
    CLOSE = "close"


class DriftPolicy(StrEnum):
    """What the host wants when somebody else changes a target file."""

    REPAIR = "repair"
    REPORT = "report"
    HOLD = "hold"
    EXCLUDE = "exclude"


class Exposure(StrEnum):
    """How impressions come about."""

    REPORTED = "reported"
    ON_OPEN = "on_open"


class ViewState(StrEnum):
    """How what is on disk stands to what should be there."""

    APPLIED = "applied"
    DRIFTED = "drifted"
    MISSING = "missing"
    UNMANAGED = "unmanaged"


class EventKind(StrEnum):
    """What kind of event."""

    IMPRESSION = "impression"
    CONVERSION = "conversion"


class EventSource(StrEnum):
    """How a report came about."""

    AGENT = "agent"
    ON_OPEN = "on_open"
    SERVER = "server"


class ReasonCode(StrEnum):
    """Why a host refused or failed an offer, or to show a file; the whole list."""

    TARGET_NOT_ALLOWED = "TARGET_NOT_ALLOWED"
    PATH_ESCAPES_ROOT = "PATH_ESCAPES_ROOT"
    SYMLINK_REFUSED = "SYMLINK_REFUSED"
    NOT_A_REGULAR_FILE = "NOT_A_REGULAR_FILE"
    TOO_LARGE = "TOO_LARGE"
    NO_SPACE = "NO_SPACE"
    READ_ONLY = "READ_ONLY"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    IMMUTABLE = "IMMUTABLE"
    BUSY_MOUNT = "BUSY_MOUNT"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    CHECK_FAILED = "CHECK_FAILED"
    RELOAD_FAILED = "RELOAD_FAILED"
    PROBE_FAILED = "PROBE_FAILED"
    QUARANTINED = "QUARANTINED"
    REGRESSION = "REGRESSION"
    INCARNATION_CHANGED = "INCARNATION_CHANGED"
    DRIFTED = "DRIFTED"
    BASELINE_LOST = "BASELINE_LOST"
    PARTICIPANT_TAKEN = "PARTICIPANT_TAKEN"
    SUPERSEDED = "SUPERSEDED"
    HELD = "HELD"
    NOT_SHARED = "NOT_SHARED"
    IO_ERROR = "IO_ERROR"

    @property
    def meaning(self) -> str:
        """What happened, in half a sentence."""
        return _MEANINGS[self]


_MEANINGS: Mapping[ReasonCode, str] = {
    ReasonCode.TARGET_NOT_ALLOWED: "no glob of `agent.toml` allows the path, or the participant is not this agent's",
    ReasonCode.PATH_ESCAPES_ROOT: "the path is absolute, has `..`, or leads out of the root",
    ReasonCode.SYMLINK_REFUSED: (
        'the target or a folder on the way is a symbolic link (`symlinks = "follow-within-root"` allows it)'
    ),
    ReasonCode.NOT_A_REGULAR_FILE: "a directory, FIFO, socket or device is there",
    ReasonCode.TOO_LARGE: "larger than `max_bytes`",
    ReasonCode.NO_SPACE: "the disk, its inodes or the quota are used up",
    ReasonCode.READ_ONLY: "the file system is read-only",
    ReasonCode.PERMISSION_DENIED: "the agent's user may not write there",
    ReasonCode.IMMUTABLE: "the file or folder has the immutable or append-only attribute",
    ReasonCode.BUSY_MOUNT: "the file is a mount point",
    ReasonCode.DIGEST_MISMATCH: "the content that arrived is not the content announced",
    ReasonCode.CHECK_FAILED: "the host's check command refused the staged file",
    ReasonCode.RELOAD_FAILED: "the reload hook failed; the previous content is back",
    ReasonCode.PROBE_FAILED: "the health probe failed within its window; the previous content is back",
    ReasonCode.QUARANTINED: (
        "this content failed on the host before, and is not tried again until `retry` or a reload of"
        " agent.toml says so"
    ),
    ReasonCode.REGRESSION: "a lower revision than the host has taken up",
    ReasonCode.INCARNATION_CHANGED: "the control plane is another one, and its signature does not prove it a successor",
    ReasonCode.DRIFTED: "somebody changed the file; `overwriteDrift` applies over it",
    ReasonCode.BASELINE_LOST: "nobody knows what was there before",
    ReasonCode.PARTICIPANT_TAKEN: "another agent serves this participant",
    ReasonCode.SUPERSEDED: "a newer revision came first",
    ReasonCode.NOT_SHARED: "the host shows no content of this participant; `share_content` in agent.toml allows it",
    ReasonCode.HELD: (
        "the host is on hold, and applies the offer when that ends (attempt 0: it was not "
        "tried); or somebody changed the file and the host's `drift` policy leaves it so, and"
        " `overwriteDrift` applies over it"
    ),
    ReasonCode.IO_ERROR: "anything else the system said; the message has it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something was refused: a stable code, what happened, what to do. Never content."""

    code: ReasonCode
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedFile:
    """One file of an offer; `content` is None where it must be fetched, or with restore and close."""

    path: str
    digest: Digest | None = None
    size: int = 0
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a slot should hold, as of `revision`."""

    deployment_id: bytes
    participant: str
    slot_id: bytes
    revision: int
    action: OfferAction
    files: tuple[OfferedFile, ...]
    retry: bool = False
    overwrite_drift: bool = False
    applied_before: bool = False
    experiment_digests: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Files of every variant, which a host is asked to judge before any of them is assigned."""

    request_id: bytes
    participant: str
    files: tuple[OfferedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a host says of one file's content; `refused` is None where it would take it."""

    path: str
    digest: Digest
    refused: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightResult:
    """The verdicts of a preflight, by the policy of this fingerprint; what could not be judged is left out."""

    request_id: bytes
    verdicts: tuple[Verdict, ...]
    policy: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """One file of an outcome: what was wanted, what is there, what was there before."""

    path: str
    desired: Digest | None
    running: Digest | None
    previous: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long the parts of an attempt took, milliseconds."""

    fetch: int = 0
    check: int = 0
    write: int = 0
    reload: int = 0
    probe: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Progress or end of one attempt; idempotent by (participant, slot, revision, attempt, step).

    Progress may be lost, and an end at the same step takes its place. `confirming`: a health window runs.
    """

    participant: str
    slot_id: bytes
    revision: int
    attempt: int
    step: Step
    result: Result
    files: tuple[FileOutcome, ...]
    occurred_at: int
    reason: Reason | None = None
    quarantined: bool = False
    durations: Durations = Durations()
    confirming: bool = False

    @property
    def key(self) -> "OutcomeKey":
        """What an acknowledgement names."""
        return OutcomeKey(
            participant=self.participant,
            slot_id=self.slot_id,
            revision=self.revision,
            attempt=self.attempt,
            step=self.step,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeKey:
    """The identity of an outcome."""

    participant: str
    slot_id: bytes
    revision: int
    attempt: int
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """A target file as it is on disk."""

    path: str
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """What a slot holds on a host, as Hello says it; `closed`: nothing any more."""

    participant: str
    slot_id: bytes
    revision: int
    files: tuple[FileState, ...]
    step: Step
    result: Result
    quarantined: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantState:
    """A workspace an agent serves, as Hello says it."""

    participant: str
    labels: dict[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    drift: DriftPolicy = DriftPolicy.REPORT
    exposure: Exposure = Exposure.REPORTED
    policy: bytes = b""
    """Fingerprint of what decides about content here; empty: the agent judges none beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What a spool holds: `depth` unacknowledged records over all epochs, `size` bytes on disk."""

    epoch: bytes
    depth: int = 0
    size: int = 0
    oldest_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a host runs on."""

    os: str
    kernel: str
    arch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The whole truth about a host, enough to go on from nothing."""

    agent_version: str
    boot_id: str
    session_epoch: int
    incarnation: bytes
    hostname: str
    platform: Platform
    participants: tuple[ParticipantState, ...]
    slots: tuple[SlotState, ...]
    spool: SpoolState
    labels: dict[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    resumes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something wrong on a host; severity is info, warning or error."""

    code: str
    severity: str
    since_at: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """From `from_at` on, a participant's target held a digest."""

    participant: str
    path: str
    digest: Digest | None
    state: ViewState
    from_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An application said that from `loaded_at` on it works with this content of a target, whatever is on disk."""

    participant: str
    path: str
    digest: Digest
    loaded_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A report that was accepted. `event_name` is empty for an impression, `subject` for none."""

    participant: str
    kind: EventKind
    occurred_at: int
    event_name: str = ""
    subject: str = ""
    value_micros: int | None = None
    digest: Digest | None = None
    path: str = ""
    event_id: str = ""
    properties_json: str = ""
    source: EventSource = EventSource.AGENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """Between two moments opens of a participant's targets may have gone uncounted."""

    participant: str
    reason: str
    from_at: int
    to_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Records that were accepted and are gone, with the exact count."""

    reason: str
    count: int
    epoch: bytes = b""
    first_seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a spool."""

    id: bytes
    recorded_at: int
    body: View | Loaded | Event | Unseen | Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive records of one epoch, as the very bytes that were spooled.

    `chain` is the chain hash before the first record; `records` are serialized, see `shared.wire`.
    """

    epoch: bytes
    first_seq: int
    chain: bytes
    records: tuple[bytes, ...]
    tail_seq: int


CHAIN_START = bytes(32)
"""The chain hash before the first record of an epoch."""


def chain(previous: bytes, record: bytes) -> bytes:
    """The chain hash after `record`: SHA-256(previous ‖ record)."""
    return hashlib.sha256(previous + record).digest()


def is_text(value: str) -> bool:
    """Whether any database and any wire takes it: UTF-8 without NUL."""
    try:
        return "\0" not in value and bool(value.isascii() or value.encode())
    except UnicodeEncodeError:
        return False


NAME_ENDS = "\x1f"
"""Between an event's name and a window within which it counts; in no name that is reported."""

MAX_VALUE_MICROS = 2**50
"""Of one event, about ±1.1e9: thousands of them in one sum do not overflow a database's integer."""
MAX_PATH_BYTES = 2_048
"""Of a target: PostgreSQL has no room in an index for much more."""
MAX_INLINE_BYTES = 32 * 1024
"""Content above this does not travel inside an offer."""

MAX_PREFLIGHT_FILES = 64
"""A preflight asks about no more files."""

PREFLIGHT = "preflight"
"""The capability of an agent that answers preflights."""

KEEP_OLD = "keep_old"
"""The capability of an agent that opens its next session before it leaves the one that drains."""

ACKS_RIDE = "acks_ride"
"""The capability of an agent that takes acknowledgements with whatever it is told next."""

PARTICIPANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a participant's public id looks like: a UUID or a name."""
