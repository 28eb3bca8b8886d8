"""What is on record of a slot: where it stands, what it holds, what is owed of it. Values, without any disk."""

from dataclasses import dataclass, replace

from shared.model import Digest, OfferAction, Outcome, OutcomeKey, Reason, ReasonCode, Result, Step

MAX_UNACKNOWLEDGED = 16
"""Outcomes kept per slot until they are acknowledged; beyond that the oldest go."""

SlotKey = tuple[str, bytes]
"""(participant, slot id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileImage:
    """A target as it was or shall be: content by digest, permission bits, owner; digest None: absence.

    `made` are directories that exist only for the file's sake: putting its absence back removes them too.
    """

    digest: Digest | None
    mode: int = 0
    uid: int = 0
    gid: int = 0
    made: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an apply does to one file: `temp` holds the new content until the swap."""

    old: FileImage
    new: FileImage
    temp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFile:
    """One target of a slot.

    `real` is the file behind `path`; `before` is None where the baseline is lost; `original` is set only in
    the slot that wrote the target first. `applied` is what the slot last put there, None: nothing yet;
    `loaded` what the application said since then that it works with, and `loaded_at` when. Among open slots
    over one real file the highest `order` holds it. `change` is set from intent to final.
    """

    path: str
    real: str
    before: FileImage | None
    original: FileImage | None = None
    applied: Digest | None = None
    order: int = 0
    change: Change | None = None
    loaded: Digest | None = None
    loaded_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Condemned:
    """Content that is not tried again at this path by itself, and why."""

    path: str
    digest: Digest
    code: ReasonCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Probation:
    """A health window that runs until `until`, for the attempt that began it; `files` know what to go back to."""

    revision: int
    attempt: int
    since: int
    until: int
    files: tuple[SlotFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """What a slot intends is taken back, not brought about: why, and for which attempt it is told."""

    reason: Reason
    revision: int
    attempt: int
    inconclusive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Everything known of one slot; `result` IN_PROGRESS means an intent without its final.

    `retrying`: the last attempt failed in passing and another one is due; its offer has to come again after a
    restart. `probation`: what is in place has yet to prove itself. `resumed`: how many restarts found the
    intent, or how often the reload that a repair owes was begun.
    """

    participant: str
    slot_id: bytes
    revision: int
    attempt: int
    action: OfferAction
    step: Step
    result: Result
    files: tuple[SlotFile, ...] = ()
    reload_owed: bool = False
    swapped_at: int = 0
    closed: bool = False
    outcome: Outcome | None = None
    unacknowledged: tuple[Outcome, ...] = ()
    quarantined: tuple[Condemned, ...] = ()
    probation: Probation | None = None
    undo: Undo | None = None
    retrying: bool = False
    resumed: int = 0

    @property
    def key(self) -> SlotKey:
        """What names the slot on this host."""
        return (self.participant, self.slot_id)

    @property
    def intends(self) -> bool:
        """An apply was begun and its end is not journalled."""
        return self.result is Result.IN_PROGRESS

    @property
    def ended_at(self) -> int:
        """When its last attempt ended; of a closed slot, when it was closed."""
        return self.outcome.occurred_at if self.outcome is not None else self.swapped_at

    def ended(self, outcome: Outcome) -> "Slot":
        """The slot with `outcome` as its last one, owed until it is acknowledged."""
        others = tuple(o for o in self.unacknowledged if o.key != outcome.key)
        return replace(self, outcome=outcome, unacknowledged=(*others, outcome)[-MAX_UNACKNOWLEDGED:])

    def acknowledged(self, key: OutcomeKey) -> "Slot":
        """The slot without the outcome `key` among the owed."""
        return replace(self, unacknowledged=tuple(o for o in self.unacknowledged if o.key != key))
