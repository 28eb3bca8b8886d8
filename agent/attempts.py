"""What becomes of a slot's record: begun, in place, undone, refused before there was one.

Pure. The apply machine does things; here is what is on record of a slot once they are done.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from agent.plan import Planned
from agent.slots import FileImage, Probation, Slot, SlotFile, Undo
from shared.model import (
    Digest,
    Durations,
    FileOutcome,
    Loaded,
    Offer,
    OfferAction,
    Outcome,
    Reason,
    Result,
    Step,
)

_ENDED: Any = {"reload_owed": False, "undo": None, "probation": None, "resumed": 0}
"""What no slot has once nothing of it is under way."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """Where one attempt got to, and how long its parts took, in seconds.

    `suspects` are the (path, digest) at fault if it fails now. `of`: the (revision, attempt) it is told for, where
    that is not its slot's.
    """

    slot: Slot
    offer: Offer | None = None
    step: Step = Step.RECEIVED
    took: dict[str, float] = field(default_factory=dict)
    suspects: list[tuple[str, Digest]] = field(default_factory=list)
    of: tuple[int, int] | None = None

    @property
    def told_for(self) -> tuple[int, int]:
        """(revision, attempt)."""
        return self.of or (self.slot.revision, self.slot.attempt)

    @property
    def durations(self) -> Durations:
        return Durations(**{part: round(seconds * 1000) for part, seconds in self.took.items()})


def loaded(slot: Slot, receipt: Loaded) -> Slot:
    """The slot once the application said so; what it said before the content came onto the disk is not of it."""
    if receipt.loaded_at < slot.swapped_at or slot.closed:
        return slot
    files = tuple(
        replace(file, loaded=receipt.digest, loaded_at=receipt.loaded_at)
        if file.path == receipt.path and file.applied is not None
        else file
        for file in slot.files
    )
    return replace(slot, files=files)


def is_loaded(slot: Slot) -> bool:
    """The application works with every file of the slot as it was written."""
    held = [file for file in slot.files if file.applied is not None]
    return bool(held) and all(file.loaded == file.applied for file in held)


def loaded_digests(slot: Slot) -> list[Digest | None]:
    """What the application works with, file by file."""
    return [file.loaded for file in slot.files]


def outcome_of(attempt: Attempt, result: Result, *, now: int) -> Outcome:
    """How the attempt stands, before anything is known of its files."""
    revision, number = attempt.told_for
    return Outcome(
        participant=attempt.slot.participant,
        slot_id=attempt.slot.slot_id,
        revision=revision,
        attempt=number,
        step=attempt.step,
        result=result,
        files=(),
        occurred_at=now,
        durations=attempt.durations,
    )


def refused_unseen(offer: Offer, reason: Reason, *, now: int) -> Outcome:
    """The outcome of an offer that never got as far as a slot's journal."""
    return Outcome(
        participant=offer.participant,
        slot_id=offer.slot_id,
        revision=offer.revision,
        attempt=1,
        step=Step.RECEIVED,
        result=Result.REFUSED,
        files=tuple(
            FileOutcome(path=file.path, desired=file.digest, running=None, previous=None)
            for file in offer.files
            if file.path
        ),
        occurred_at=now,
        reason=reason,
    )


def begun(offer: Offer, slot: Slot | None) -> Slot:
    """The slot as it takes the offer up: the next attempt at its revision."""
    if slot is None:
        return Slot(
            participant=offer.participant,
            slot_id=offer.slot_id,
            revision=offer.revision,
            attempt=1,
            action=offer.action,
            step=Step.RECEIVED,
            result=Result.REFUSED,
        )
    attempt = slot.attempt + 1 if slot.revision == offer.revision else 1
    return replace(slot, revision=offer.revision, attempt=attempt, action=offer.action, retrying=False)


def is_done(slot: Slot, offer: Offer) -> bool:
    """The very same offer was applied; somebody who wants it written over a drift says so."""
    same_offer = slot.revision == offer.revision and slot.action is offer.action
    return same_offer and slot.result.holds and not offer.overwrite_drift


def in_place(intent: Slot) -> Slot:
    """The slot once everything it intends is in place."""
    if intent.action is OfferAction.RESTORE:
        files = tuple(replace(file, change=None, applied=None) for file in intent.files)
        return replace(intent, files=files, closed=True, **_ENDED)
    files = tuple(_in_place(file) for file in intent.files)
    return replace(intent, files=files, closed=False, **_ENDED)


def _in_place(file: SlotFile) -> SlotFile:
    if file.change is None:
        return file
    new = file.change.new.digest
    # What was loaded was loaded of the content before, unless that stays.
    loaded = file.loaded if file.change.old.digest == new else None
    return replace(file, change=None, applied=new, loaded=loaded)


def suspects(files: Iterable[SlotFile]) -> list[tuple[str, Digest]]:
    """(path, digest) of whatever these files have that is new."""
    return [
        (file.path, file.change.new.digest)
        for file in files
        if file.change is not None and file.change.new.digest not in (None, file.change.old.digest)
    ]


def taken_back(slot: Slot, probation: Probation, undo: Undo, *, reload_owed: bool) -> Slot:
    """The slot as it intends what was there before its health window."""
    tried = {file.path: file for file in probation.files}
    files = tuple(
        replace(file, change=tried[file.path].change, applied=tried[file.path].applied)
        if file.path in tried
        else file
        for file in slot.files
    )
    return replace(
        slot,
        files=files,
        action=OfferAction.WRITE,
        result=Result.IN_PROGRESS,
        reload_owed=reload_owed,
        undo=undo,
        probation=None,
    )


def put_back(intent: Slot, *, but: Iterable[SlotFile], touched: bool) -> Slot:
    """The slot once nothing it intended is in place `but` what could not be undone: that it holds.

    `touched`: something of it had been in place, so that what was loaded before may not be any more.
    """
    stuck = {file.path for file in but}
    done = in_place(intent)
    files = tuple(
        done_file
        if file.path in stuck
        else replace(file, change=None, loaded=None if touched and file.change else file.loaded)
        for file, done_file in zip(intent.files, done.files, strict=True)
    )
    return replace(intent, files=files, closed=intent.closed and not stuck, **_ENDED)


def merged(slot: Slot, plan: Iterable[Planned]) -> tuple[SlotFile, ...]:
    """The slot's files with those of the plan; what a closed slot does not write again stays the host's own."""
    let_go = slot.closed and slot.action is OfferAction.WRITE
    files = {file.path: replace(file, applied=None) if let_go else file for file in slot.files}
    return tuple((files | {planned.file.path: planned.file for planned in plan}).values())


def with_baseline(slot: Slot, file: SlotFile, before: FileImage | None) -> Slot:
    """The slot with another baseline of one of its files."""
    files = tuple(replace(entry, before=before) if entry is file else entry for entry in slot.files)
    return replace(slot, files=files)
