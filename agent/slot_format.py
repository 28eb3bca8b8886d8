"""A slot as bytes: a line that says what follows and its checksum, then a line of JSON. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any

from agent.slots import Change, Condemned, FileImage, Probation, Slot, SlotFile, Undo
from shared.model import (
    Digest,
    Durations,
    FileOutcome,
    OfferAction,
    Outcome,
    Reason,
    ReasonCode,
    Result,
    Step,
    digest,
)

MAGIC, VERSION = "variantd-slot", 1

_RECORD = re.compile(rb"[^\n]*\n[^\n\0]*")


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


def encode(slot: Slot) -> bytes:
    """The slot as a record; a file holds one, or several with ends of line between and after them."""
    body = json.dumps(_to_json(slot), separators=(",", ":"), allow_nan=False).encode()
    return f"{MAGIC} {VERSION} {digest(body).hex()}\n".encode() + body


def read(data: bytes) -> tuple[Slot, int]:
    """The slot that a file holds, its last record, and where that ends: what is torn after it holds nothing.

    A torn end is what was being added when the power went, so that nobody was told of it. Raises ValueError, KeyError,
    TypeError or AttributeError for any other damage: an earlier record is not what holds.
    """
    last, end = None, 0
    while end < len(data):
        record = _RECORD.match(data, end)
        try:
            if record is None:
                raise ValueError("it breaks off")
            last = _body(record[0])
        except (ValueError, AttributeError):
            if last is None or not _is_torn(data[end:]):
                raise
            break
        end = record.end()
        while data[end : end + 1] == b"\n":
            end += 1
    if last is None:
        raise ValueError("it is empty")
    return _decode(last), end


def _is_torn(rest: bytes) -> bool:
    """It breaks off, or was not filled: whatever is whole ends its line, and JSON has no zeros."""
    return not rest.endswith(b"\n") or b"\0" in rest


def _body(data: bytes) -> bytes:
    """What a record says, by its checksum just as it was written."""
    head, _, body = data.partition(b"\n")
    magic, version, checksum = head.decode().split(" ")
    if (magic, version) != (MAGIC, str(VERSION)):
        raise ValueError(f"{magic!r} of version {version!r}, this agent writes {MAGIC!r} of {VERSION}")
    if digest(body).hex() != checksum:
        raise ValueError("its checksum is wrong")
    return body


def _decode(body: bytes) -> Slot:
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
