"""What the agent has promised and done, so that a restart goes on from it: one small file per slot.

Hides the format, the atomic replacement, and where the contents of baselines are kept. A journal file that
cannot be read is set aside and reported, never guessed at. Everything here blocks: call it from a thread.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from shared.logs import get
from shared.model import (
    Condition,
    Digest,
    Durations,
    FileOutcome,
    OfferAction,
    Outcome,
    OutcomeKey,
    Reason,
    ReasonCode,
    Result,
    Step,
    digest,
)

MAGIC, VERSION = "variantd-slot", 1
MAX_UNACKNOWLEDGED = 16
"""Outcomes kept per slot until they are acknowledged; beyond that the oldest go."""

_log = get(__name__)

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

    def ended(self, outcome: Outcome) -> "Slot":
        """The slot with `outcome` as its last one, owed until it is acknowledged."""
        others = tuple(o for o in self.unacknowledged if o.key != outcome.key)
        return replace(self, outcome=outcome, unacknowledged=(*others, outcome)[-MAX_UNACKNOWLEDGED:])

    def acknowledged(self, key: OutcomeKey) -> "Slot":
        """The slot without the outcome `key` among the owed."""
        return replace(self, unacknowledged=tuple(o for o in self.unacknowledged if o.key != key))


class Journal:
    """The slots' journal files in `directory`, and the contents they refer to."""

    def __init__(self, directory: Path) -> None:
        self._slots = directory / "slots"
        self._contents = directory / "contents"
        self._conditions: list[Condition] = []
        self._lock = Lock()

    def load(self, *, now: int) -> dict[SlotKey, Slot]:
        """Every slot that can be read; what cannot is renamed `*.quarantined` and becomes a condition."""
        for directory in (self._slots, self._contents):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in directory.glob("*.tmp"):
                leftover.unlink()
        slots: dict[SlotKey, Slot] = {}
        for path in sorted(self._slots.glob("*.json")):
            try:
                slot = _decode(path.read_bytes())
                if _file_name(slot.key) != path.name:
                    raise ValueError("it is another slot's")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._set_aside(path, f"{type(error).__name__}: {error}")
            else:
                slots[slot.key] = slot
        self._conditions = [
            Condition(
                code="JOURNAL_QUARANTINED",
                severity="error",
                since_at=now,
                message=f"{path.name} could not be read and was set aside; its slot's baseline is lost",
            )
            for path in sorted(self._slots.glob("*.quarantined"))
        ]
        if not self._conditions:
            # A file set aside may refer to contents that only a person can still make use of.
            self._forget_contents(keeping=_references(slots.values()))
        return slots

    def conditions(self) -> tuple[Condition, ...]:
        """What was set aside, as of `load`."""
        return tuple(self._conditions)

    def save(self, slot: Slot) -> None:
        """The slot's file holds exactly `slot`, durably. Raises OSError; then it holds what it held."""
        _write(self._slots / _file_name(slot.key), _encode(slot))

    def keep(self, content: bytes) -> Digest:
        """`content` is durable until no slot refers to it and the agent starts again. Idempotent."""
        value = digest(content)
        path = self._contents / value.hex()
        with self._lock:  # two participants may keep the same content at once
            if not path.exists():
                _write(path, content)
        return value

    def content(self, value: Digest) -> bytes | None:
        """What was kept under the digest; None where it is gone or damaged."""
        try:
            content = (self._contents / value.hex()).read_bytes()
        except OSError:
            return None
        return content if digest(content) == value else None

    def _set_aside(self, path: Path, why: str) -> None:
        _log.error("journal.quarantined", file=path.name, why=why[:200])
        target = path.with_suffix(".quarantined")
        number = 1
        while target.exists():
            target = path.with_suffix(f".{number}.quarantined")
            number += 1
        path.rename(target)

    def _forget_contents(self, *, keeping: set[Digest]) -> None:
        for path in self._contents.iterdir():
            with suppress(ValueError):
                if bytes.fromhex(path.name) not in keeping:
                    path.unlink()


def _file_name(key: SlotKey) -> str:
    participant, slot_id = key
    return f"{participant}.{slot_id.hex()}.json"


def _write(path: Path, data: bytes) -> None:
    temp = path.with_name(path.name + ".tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _references(slots: Iterable[Slot]) -> set[Digest]:
    found: set[Digest] = set()
    for slot in slots:
        for file in (*slot.files, *(slot.probation.files if slot.probation else ())):
            images = [file.before, file.original, FileImage(digest=file.applied)]
            if file.change is not None:
                images += [file.change.old, file.change.new]
            found |= {image.digest for image in images if image is not None and image.digest is not None}
    return found


# -- format ------------------------------------------------------------------------------------------


def _to_json(slot: Slot) -> dict[str, Any]:
    return {
        "participant": slot.participant,
        "slot": slot.slot_id.hex(),
        "revision": slot.revision,
        "attempt": slot.attempt,
        "action": slot.action,
        "step": slot.step,
        "result": slot.result,
        "reloadOwed": slot.reload_owed,
        "swappedAt": slot.swapped_at,
        "closed": slot.closed,
        "quarantined": [[one.path, one.digest.hex(), one.code] for one in slot.quarantined],
        "probation": slot.probation and _probation_to_json(slot.probation),
        "undo": slot.undo and _undo_to_json(slot.undo),
        "retrying": slot.retrying,
        "resumed": slot.resumed,
        "files": [_file_to_json(file) for file in slot.files],
        "outcome": slot.outcome and _outcome_to_json(slot.outcome),
        "unacknowledged": [_outcome_to_json(outcome) for outcome in slot.unacknowledged],
    }


def _file_to_json(file: SlotFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "real": file.real,
        "before": _image_to_json(file.before),
        "original": _image_to_json(file.original),
        "applied": _hex(file.applied),
        "order": file.order,
        "change": file.change
        and {
            "old": _image_to_json(file.change.old),
            "new": _image_to_json(file.change.new),
            "temp": file.change.temp,
        },
        "loaded": _hex(file.loaded),
        "loadedAt": file.loaded_at,
    }


def _probation_to_json(probation: Probation) -> dict[str, Any]:
    return {
        "revision": probation.revision,
        "attempt": probation.attempt,
        "since": probation.since,
        "until": probation.until,
        "files": [_file_to_json(file) for file in probation.files],
    }


def _undo_to_json(undo: Undo) -> dict[str, Any]:
    return {
        "reason": _reason_to_json(undo.reason),
        "revision": undo.revision,
        "attempt": undo.attempt,
        "inconclusive": undo.inconclusive,
    }


def _encode(slot: Slot) -> bytes:
    body = json.dumps(_to_json(slot), separators=(",", ":"), allow_nan=False).encode()
    return f"{MAGIC} {VERSION} {digest(body).hex()}\n".encode() + body


def _decode(data: bytes) -> Slot:
    head, _, body = data.partition(b"\n")
    magic, version, checksum = head.decode().split(" ")
    if (magic, version) != (MAGIC, str(VERSION)):
        raise ValueError(f"{magic!r} of version {version!r}, this agent writes {MAGIC!r} of {VERSION}")
    if digest(body).hex() != checksum:
        raise ValueError("its checksum is wrong")
    table = json.loads(body)
    participant, slot_id = str(table["participant"]), bytes.fromhex(table["slot"])

    def outcome(entry: Mapping[str, Any]) -> Outcome:
        return _outcome_from_json(entry, participant, slot_id)

    return Slot(
        participant=participant,
        slot_id=slot_id,
        revision=int(table["revision"]),
        attempt=int(table["attempt"]),
        action=OfferAction(table["action"]),
        step=Step(table["step"]),
        result=Result(table["result"]),
        reload_owed=table["reloadOwed"] is True,
        swapped_at=int(table["swappedAt"]),
        closed=table["closed"] is True,
        quarantined=tuple(
            Condemned(path=str(path), digest=bytes.fromhex(value), code=ReasonCode(code))
            for path, value, code in table["quarantined"]
        ),
        # What this version added: an older agent's journal has none of it.
        probation=_probation_from_json(table.get("probation")),
        undo=_undo_from_json(table.get("undo")),
        retrying=table.get("retrying") is True,
        resumed=int(table.get("resumed", 0)),
        files=tuple(_file_from_json(entry) for entry in table["files"]),
        outcome=table["outcome"] and outcome(table["outcome"]),
        unacknowledged=tuple(outcome(entry) for entry in table["unacknowledged"]),
    )


def _probation_from_json(entry: Mapping[str, Any] | None) -> Probation | None:
    if entry is None:
        return None
    return Probation(
        revision=int(entry["revision"]),
        attempt=int(entry["attempt"]),
        since=int(entry["since"]),
        until=int(entry["until"]),
        files=tuple(_file_from_json(file) for file in entry["files"]),
    )


def _undo_from_json(entry: Mapping[str, Any] | None) -> Undo | None:
    if entry is None:
        return None
    return Undo(
        reason=_reason_from_json(entry["reason"]),
        revision=int(entry["revision"]),
        attempt=int(entry["attempt"]),
        inconclusive=entry["inconclusive"] is True,
    )


def _reason_to_json(reason: Reason) -> list[str]:
    return [reason.code, reason.message, reason.remedy]


def _reason_from_json(entry: list[str]) -> Reason:
    return Reason(code=ReasonCode(entry[0]), message=entry[1], remedy=entry[2])


def _file_from_json(entry: Mapping[str, Any]) -> SlotFile:
    change = entry["change"]
    if change is not None:
        old, new = _image_from_json(change["old"]), _image_from_json(change["new"])
        if old is None or new is None:
            raise ValueError("a change has an old and a new image")
        change = Change(old=old, new=new, temp=change["temp"])
    return SlotFile(
        path=str(entry["path"]),
        real=str(entry["real"]),
        before=_image_from_json(entry["before"]),
        original=_image_from_json(entry["original"]),
        applied=_unhex(entry["applied"]),
        order=int(entry["order"]),
        change=change,
        # What this version added: an older agent's journal has none of it.
        loaded=_unhex(entry.get("loaded")),
        loaded_at=int(entry.get("loadedAt", 0)),
    )


def _hex(value: Digest | None) -> str | None:
    return None if value is None else value.hex()


def _unhex(text: str | None) -> Digest | None:
    return None if text is None else bytes.fromhex(text)


def _image_to_json(image: FileImage | None) -> dict[str, Any] | None:
    if image is None:
        return None
    return {
        "digest": _hex(image.digest),
        "mode": image.mode,
        "uid": image.uid,
        "gid": image.gid,
        "made": list(image.made),
    }


def _image_from_json(entry: Mapping[str, Any] | None) -> FileImage | None:
    if entry is None:
        return None
    return FileImage(
        digest=_unhex(entry["digest"]),
        mode=int(entry["mode"]),
        uid=int(entry["uid"]),
        gid=int(entry["gid"]),
        made=tuple(str(path) for path in entry["made"]),
    )


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    reason, took = outcome.reason, outcome.durations
    return {
        "revision": outcome.revision,
        "attempt": outcome.attempt,
        "step": outcome.step,
        "result": outcome.result,
        "files": [[f.path, _hex(f.desired), _hex(f.running), _hex(f.previous)] for f in outcome.files],
        "occurredAt": outcome.occurred_at,
        "reason": reason and _reason_to_json(reason),
        "quarantined": outcome.quarantined,
        "confirming": outcome.confirming,
        "durations": [took.fetch, took.check, took.write, took.reload, took.probe],
    }


def _outcome_from_json(entry: Mapping[str, Any], participant: str, slot_id: bytes) -> Outcome:
    reason = entry["reason"]
    fetch, check, write, reload, probe = map(int, entry["durations"])
    return Outcome(
        participant=participant,
        slot_id=slot_id,
        revision=int(entry["revision"]),
        attempt=int(entry["attempt"]),
        step=Step(entry["step"]),
        result=Result(entry["result"]),
        files=tuple(
            FileOutcome(
                path=path, desired=_unhex(desired), running=_unhex(running), previous=_unhex(previous)
            )
            for path, desired, running, previous in entry["files"]
        ),
        occurred_at=int(entry["occurredAt"]),
        reason=reason and _reason_from_json(reason),
        quarantined=entry["quarantined"] is True,
        confirming=entry.get("confirming") is True,
        durations=Durations(fetch=fetch, check=check, write=write, reload=reload, probe=probe),
    )
