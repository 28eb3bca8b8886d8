"""How the slots of a host stand, for Hello, for operators and for applications that ask.

Reads what the apply machines know and changes nothing.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest

from agent.apply import Applier
from agent.slots import Slot
from shared.model import Digest, FileState, Loaded, ReasonCode, Result, SlotState, ViewState

WARNINGS = (
    "BASELINE_LOST",
    "PARTICIPANT_UNKNOWN",
    "DRIFT_HELD",
    "DRIFT_EXCLUDED",
    "APPLY_RETRIED",
    "CONTENT_QUARANTINED",
)
"""Conditions that stop nothing."""

CLOSED_TOLD = 1_000
"""Closed slots in a Hello: a database that was put back unnoticed is behind by what was ordered last."""

Appliers = Mapping[str, Applier]
"""The apply machine of each participant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a target holds: `digest` and `state` as last seen on disk, `desired` as the slot put it there.

    `loaded` is what the application said last that it works with, since that came onto the disk.
    """

    slot_id: bytes
    digest: Digest | None
    desired: Digest | None
    state: ViewState
    loaded: Loaded | None


def holding_of(applier: Applier, path: str, *, queued: Loaded | None) -> Holding | None:
    """What a target holds as last seen; None where no slot holds it. `queued`: a receipt not yet with its slot."""
    for slot, file in applier.held():
        view = applier.views.seen.get(file.path)
        if file.path != path or view is None:
            continue
        loaded = queued
        if loaded is None and file.loaded is not None:
            loaded = Loaded(
                participant=slot.participant, path=path, digest=file.loaded, loaded_at=file.loaded_at
            )
        return Holding(
            slot_id=slot.slot_id, digest=view.digest, desired=file.applied, state=view.state, loaded=loaded
        )
    return None


def slot_states(appliers: Appliers) -> tuple[SlotState, ...]:
    """The open slots, with digests as they are on disk this moment, and the CLOSED_TOLD that were closed last.

    Those closed before are told to nobody, so that a Hello stays within what a control plane takes however many
    experiments there were. Reads files.
    """
    slots = [(applier, slot) for applier in tuple(appliers.values()) for slot in list(applier.slots.values())]
    closed = nlargest(
        CLOSED_TOLD, (held for held in slots if held[1].closed), key=lambda held: held[1].ended_at
    )
    return tuple(
        SlotState(
            participant=slot.participant,
            slot_id=slot.slot_id,
            revision=slot.revision,
            # What lies where a closed slot once wrote says nothing of it, and is another's to tell.
            files=() if slot.closed else _on_disk(applier, slot),
            step=slot.step,
            # An attempt that is due again may have lost its offer.
            result=Result.IN_PROGRESS if slot.retrying else slot.result,
            quarantined=bool(slot.quarantined),
            closed=slot.closed,
        )
        for applier, slot in (*(held for held in slots if not held[1].closed), *closed)
    )


def _on_disk(applier: Applier, slot: Slot) -> tuple[FileState, ...]:
    return tuple(FileState(path=file.path, digest=applier.views.on_disk(file)[0]) for file in slot.files)


def wrong_with(
    appliers: Appliers, *, known: Mapping[str, Mapping[bytes, Slot]], applying: Collection[str]
) -> Iterator[tuple[str, str]]:
    """(code, message) of what an operator has to look at; `known` has the slots of former participants too."""
    for participant in sorted(name for name in known.keys() - appliers.keys() if known[name]):
        yield "PARTICIPANT_UNKNOWN", f"{participant} has slots here but is not in agent.toml"
    for participant, applier in appliers.items():
        if applier.endings.unsaved:
            yield "JOURNAL_UNWRITABLE", f"the journal of {participant} could not be written"
        if applier.views.owed:
            yield "VIEWS_OWED", f"views of {participant} wait until the spool takes them"
        yield from applier.repairer.conditions()
        for slot in list(applier.slots.values()):
            lost = [file.path for file in slot.files if file.applied is not None and file.before is None]
            if lost and not slot.closed:
                yield "BASELINE_LOST", f"no baseline is on record for {', '.join(lost)} of {participant}"
            if slot.result is Result.STUCK:
                yield (
                    "SLOT_STUCK",
                    f"slot {slot.slot_id.hex()} of {participant} needs a person: {_why(slot)}",
                )
            if slot.intends and slot.undo is None and participant not in applying:
                where = applier.config.root
                yield "APPLY_INTERRUPTED", f"slot {slot.slot_id.hex()} of {participant} waits for {where}"
            if _is_quarantined(slot):
                yield (
                    "CONTENT_QUARANTINED",
                    f"slot {slot.slot_id.hex()} of {participant} takes no more of what was ordered last, as this host "
                    f"found fault with it ({_why(slot)}); deploy other content, or the same with retry",
                )
            if slot.retrying:
                yield (
                    "APPLY_RETRIED",
                    f"slot {slot.slot_id.hex()} of {participant} failed in passing and is tried again",
                )


def _is_quarantined(slot: Slot) -> bool:
    """What was ordered last stays away until somebody says otherwise."""
    last = slot.outcome
    if last is None or slot.closed:
        return False
    return last.quarantined or (last.reason is not None and last.reason.code is ReasonCode.QUARANTINED)


def _why(slot: Slot) -> str:
    reason = slot.outcome.reason if slot.outcome is not None else None
    return f"{reason.code.value}: {reason.message}" if reason else "neither done nor undone"
