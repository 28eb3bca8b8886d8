"""Events that a server reports without an agent: the same attribution, deduplicated by their own ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain.reported import ReportEvents
from control_plane.services import events, limits
from control_plane.services.events import Incoming
from control_plane.services.work import Work
from control_plane.store.events import Origin
from shared.errors import Fault, Invalid
from shared.model import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of one reported event: its record, and why it counts nowhere, if it does not."""

    event_id: str
    id: bytes
    duplicate: bool
    reason: str | None


def report(work: Work, request: ReportEvents) -> list[Taken]:
    """Every event is durable and counted, or kept with a reason; one whose id was seen before changes nothing.

    Counts are as of one that an agent reports: by when it happened and what was on disk then. The batch is refused
    as a whole where a participant is not known or a moment lies over five minutes ahead. `eventId` is what makes a
    repeat safe, whoever repeats it.
    """
    store = work.store.events
    named = store.participants_named(
        work.project_id, sorted({item.participant_id for item in request.events})
    )
    unseen = limits.unseen(work, sorted({item.participant_id for item in request.events}))
    made = [item.event(now=work.now) for item in request.events]
    faults = [
        Fault(field=f"events.{n}.participantId", message=f"there is no participant {item.participant!r}")
        for n, item in enumerate(made)
        if item.participant not in named or item.participant in unseen
    ] + [
        Fault(
            field=f"events.{n}.occurredAt",
            message="is more than 5 minutes ahead",
            remedy="leave it out, or set the clock right",
        )
        for n, item in enumerate(made)
        if item.occurred_at > work.now + events.FUTURE
    ]
    if faults:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:20])
        raise Invalid(listed, reason="INVALID_FIELDS", faults=faults[:100])
    known = store.taken_keys([(work.project_id, item.event_id) for item in made])
    seen = {key: record_id for (_, key), record_id in known.items()}
    fresh: dict[str, Record] = {}
    for item in made:
        if item.event_id not in seen and item.event_id not in fresh:
            fresh[item.event_id] = Record(id=work.new_id(), recorded_at=work.now, body=item)
    origin = Origin(work.project_id)
    incoming = [Incoming(origin, None, record) for record in fresh.values()]
    reasons = events.take(store, incoming, {None: named}, now=work.now)
    return _told([item.event_id for item in made], fresh, seen, reasons)


def _told(
    ids: Sequence[str], fresh: dict[str, Record], seen: dict[str, bytes], reasons: dict[bytes, str | None]
) -> list[Taken]:
    told: list[Taken] = []
    for event_id in ids:
        record = fresh.pop(event_id, None)
        if record is None:
            told.append(Taken(event_id=event_id, id=seen[event_id], duplicate=True, reason=None))
        else:
            seen[event_id] = record.id
            told.append(Taken(event_id=event_id, id=record.id, duplicate=False, reason=reasons[record.id]))
    return told
