"""What an offer means for each of its files, given what is on disk and what the journal knows.

Here is decided what the baseline of a target is, which slot a target belongs to, and whether somebody else
changed a file. Reads target files, writes nothing; what must not be done is raised as Refused. Blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agent.config import ParticipantConfig
from agent.files import Snapshot, Staged, Workspace
from agent.journal import Journal
from agent.policy import Refused, show
from agent.slots import Change, FileImage, Slot, SlotFile
from shared.model import Digest, DriftPolicy, Offer, OfferAction, OfferedFile, ReasonCode, show_digest

Slots = Mapping[bytes, Slot]
"""The slots of one participant by id.

The thread of an apply may put one among them meanwhile: go through a `list` of them, which is made in one step. A
`tuple` is not: up to Python 3.11 garbage may be collected, and another thread run, between its making and its filling.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What one file shall become: `file.change` says it, `present` is there and `new` shall be (None: absence)."""

    file: SlotFile
    present: Snapshot | None
    new: Snapshot | None
    staged: Staged | None = None


def holders(slots: Slots, real: str) -> list[tuple[Slot, SlotFile]]:
    """The open slots that have content in a real file, in the order in which they took it."""
    found = [
        (slot, file)
        for slot in list(slots.values())
        if not slot.closed
        for file in slot.files
        if file.real == real and file.applied is not None
    ]
    return sorted(found, key=lambda held: held[1].order)


def holder(slots: Slots, real: str) -> tuple[Slot, SlotFile] | None:
    """The slot that holds a real file: the last open one to take it."""
    found = holders(slots, real)
    return found[-1] if found else None


def held(slots: Slots) -> list[tuple[Slot, SlotFile]]:
    """Every target that an open slot holds."""
    found: dict[str, tuple[Slot, SlotFile]] = {}
    for slot in list(slots.values()):
        for file in slot.files if not slot.closed else ():
            other = found.get(file.real)
            if file.applied is not None and (other is None or other[1].order < file.order):
                found[file.real] = (slot, file)
    return list(found.values())


def successor(slots: Slots, slot: Slot, file: SlotFile) -> tuple[Slot, SlotFile] | None:
    """The open slot that took `file` over from `slot`, where one did."""
    later = [held for held in holders(slots, file.real) if held[0].key != slot.key]
    return next((held for held in later if held[1].order > file.order), None)


def image(snapshot: Snapshot | None) -> FileImage:
    """What the journal holds of a file."""
    if snapshot is None:
        return FileImage(digest=None)
    return FileImage(digest=snapshot.digest, mode=snapshot.mode, uid=snapshot.uid, gid=snapshot.gid)


def same(one: FileImage, other: FileImage) -> bool:
    """Both are the same content, mode and owner, or both absence."""
    return replace(one, made=()) == replace(other, made=())


def one_file() -> Refused:
    """The refusal of two paths that lead to one file."""
    return Refused(
        ReasonCode.SYMLINK_REFUSED,
        "two of the offered paths are one file, behind a symbolic link",
        "offer each file once",
    )


def kept(journal: Journal, wanted: FileImage | None) -> Snapshot | None:
    """The file behind an image, from what the journal keeps; None for absence or where it is gone."""
    if wanted is None or wanted.digest is None:
        return None
    content = journal.content(wanted.digest)
    if content is None:
        return None
    return Snapshot(content=content, mode=wanted.mode, uid=wanted.uid, gid=wanted.gid)


class Planner:
    """Plans offers for one participant; `slots` is only read.

    `holds` tells of a real file whether it stays as it is once somebody else changed it.
    """

    def __init__(
        self,
        *,
        config: ParticipantConfig,
        workspace: Workspace,
        journal: Journal,
        slots: Slots,
        holds: Callable[[str], bool],
    ) -> None:
        self._config, self._workspace, self._journal, self._slots = config, workspace, journal, slots
        self._holds = holds

    def plan(self, offer: Offer, slot: Slot, contents: Mapping[str, bytes]) -> list[Planned]:
        """One entry per file that `offer` is about; nothing was written. Raises Refused."""
        if offer.action is OfferAction.RESTORE:
            return self._plan_restore(offer, slot)
        plan = [self._plan_write(offer, slot, file, contents[file.path]) for file in offer.files]
        if len({planned.file.real for planned in plan}) < len(plan):
            raise one_file()
        return plan

    def _plan_write(self, offer: Offer, slot: Slot, file: OfferedFile, content: bytes) -> Planned:
        real = self._workspace.locate(file.path)
        present = self._workspace.read(real, limit=self._config.max_bytes)
        found = None if present is None else present.digest
        if not offer.overwrite_drift and self._holds(real):
            self._refuse_held(file, real, found)
        entry = next((entry for entry in slot.files if entry.path == file.path), None)
        entries = [entry for other in self._slots.values() for entry in other.files]
        order = 1 + max((entry.order for entry in entries), default=0)
        if entry is not None and entry.applied is not None and not slot.closed:
            if successor(self._slots, slot, entry) is not None:
                raise Refused(
                    ReasonCode.SUPERSEDED,
                    f"a later slot took {show(file.path)} over",
                    "end the other experiment or deployment of this target first",
                )
            if entry.real != real:
                raise Refused(
                    ReasonCode.DRIFTED,
                    f"{show(file.path)} leads to {show(real)} now, and to {show(entry.real)} when it was written",
                    "put the link back, or restore the slot first",
                )
            order = entry.order
            self._refuse_drift(offer, entry, found, desired=file.digest)
        before = self._baseline(offer, slot, entry, present)
        original = None if entry is None else entry.original
        if before is not None and not any(known.original for known in entries if known.real == real):
            original = before
        like = present or kept(self._journal, before) or self._workspace.fresh(content)
        new = Snapshot(content=content, mode=like.mode, uid=like.uid, gid=like.gid)
        planned = SlotFile(
            path=file.path,
            real=real,
            before=before,
            original=original,
            applied=None if entry is None else entry.applied,
            order=order,
            change=Change(old=image(present), new=image(new)),
        )
        return Planned(file=planned, present=present, new=new)

    def nothing_to_restore(self, offer: Offer, slot: Slot) -> bool:
        """Whether a RESTORE finds nothing of the slot in place, as where every write was refused."""
        untouched = all(entry.applied is None for entry in slot.files)
        doubt = offer.applied_before or bool(self._journal.conditions())
        return offer.action is OfferAction.RESTORE and untouched and not doubt

    def _plan_restore(self, offer: Offer, slot: Slot) -> list[Planned]:
        known = {entry.path for entry in slot.files}
        for file in offer.files:
            if file.path not in known:
                found = self._workspace.digest(self._workspace.locate(file.path))
                if self._record_lost(offer, slot, found):
                    raise _baseline_lost(file.path)
        plan = []
        for entry in slot.files:
            if entry.applied is None:
                continue  # nothing of this slot was ever there, or it is put back already
            if entry.before is None:
                raise _baseline_lost(entry.path)
            if successor(self._slots, slot, entry) is not None:
                continue  # the file is another slot's now, which gets this baseline in the end
            present = self._workspace.read(entry.real, limit=self._config.max_bytes)
            self._refuse_drift(offer, entry, None if present is None else present.digest, desired=None)
            new = kept(self._journal, entry.before)
            if new is None and entry.before.digest is not None:
                raise _baseline_lost(entry.path)
            plan.append(
                Planned(
                    file=replace(entry, change=Change(old=image(present), new=entry.before)),
                    present=present,
                    new=new,
                )
            )
        return plan

    def _baseline(
        self, offer: Offer, slot: Slot, entry: SlotFile | None, present: Snapshot | None
    ) -> FileImage | None:
        """What RESTORE shall put back; None where that is lost.

        A slot keeps its record while it is open. Once it was closed, or never had anything in place, the
        file is the host's own again, and what is there now counts, unless that is content of the experiment.
        """
        found = None if present is None else present.digest
        if entry is None:
            return None if self._record_lost(offer, slot, found) else image(present)
        if not slot.closed and entry.applied is not None:
            return entry.before
        ours = found in offer.experiment_digests or (entry.applied is not None and found == entry.applied)
        if ours or entry.before is None or same(image(present), entry.before):
            return entry.before
        return image(present)

    def _record_lost(self, offer: Offer, slot: Slot, found: Digest | None) -> bool:
        """Whether variantd wrote here before and nobody knows what was there first.

        A slot whose baselines are on record wrote nothing that its record does not name, as where the experiment is
        about another file by now. Content of the experiment on disk proves nothing by itself: a control is usually
        the very content the host has. It does where a journal of this host was set aside.
        """
        is_whole = bool(slot.files) and all(entry.before is not None for entry in slot.files)
        return (offer.applied_before and not is_whole) or (
            found in offer.experiment_digests and bool(self._journal.conditions())
        )

    def _refuse_held(self, file: OfferedFile, real: str, found: Digest | None) -> None:
        owner = holder(self._slots, real)
        if owner is None or found in (owner[1].applied, file.digest):
            return
        raise Refused(
            ReasonCode.HELD,
            f"{show(file.path)} holds {show_digest(found) or 'no file'}, not {show_digest(owner[1].applied)}: "
            "somebody else changed it, and this host keeps such a file as it is",
            "look at the change, then deploy again with overwriteDrift, or put the file back and deploy again",
        )

    def _refuse_drift(
        self, offer: Offer, entry: SlotFile, found: Digest | None, *, desired: Digest | None
    ) -> None:
        expected = {entry.applied}
        if entry.before is not None:
            expected.add(entry.before.digest)
        if found in expected or (desired is not None and found == desired):
            return
        if offer.overwrite_drift or self._config.drift is DriftPolicy.REPAIR:
            return
        raise Refused(
            ReasonCode.DRIFTED,
            f"{show(entry.path)} holds {show_digest(found) or 'no file'}, not {show_digest(entry.applied)}: "
            "somebody else changed it",
            "look at the change, then deploy again with overwriteDrift",
        )


def _baseline_lost(path: str) -> Refused:
    return Refused(
        ReasonCode.BASELINE_LOST,
        f"what {show(path)} held before variantd wrote it is not on record on this host",
        "put the content back by hand or by a deployment of its own, then close the slot",
    )
