"""What was reported, in the order in which it came in: to look back, and to follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from control_plane.domain.fields import Moment
from control_plane.domain.requests import Page
from control_plane.services.experiments import find
from control_plane.services.work import Listing, Work, cursor_text, hex_of, listing, page_size
from control_plane.store.arrivals import EventFilter
from shared.errors import Fault, Invalid
from shared.moment import from_rfc3339

_LARGEST = 2**63 - 1


class ListEvents(Page):
    """Asks for events; every condition has to hold. With `after`, those that came in since, the oldest first."""

    experiment_id: str = ""
    participant_id: str = ""
    kind: Literal["impression", "conversion"] | None = None
    event_name: str = ""
    from_at: Moment | None = None
    to_at: Moment | None = None
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An event as it is stored, and what it counts for."""

    event: Mapping[str, Any]
    attributions: Sequence[Mapping[str, Any]]


def list_page(work: Work, request: ListEvents) -> Listing:
    """A page of events, the newest first; with `after` those that came in since that position, the oldest first.

    Of a key that is limited to labels, what happened to participants that carry them, and what that counts for in
    experiments that do. Raises NotFound for an experiment that is not there.
    """
    wanted = EventFilter(
        participant=request.participant_id or None,
        kind=request.kind,
        event_name=request.event_name or None,
        from_at=None if request.from_at is None else from_rfc3339(request.from_at),
        to_at=None if request.to_at is None else from_rfc3339(request.to_at),
        experiment_id=find(work, request.experiment_id).id if request.experiment_id else None,
        labels=work.caller.labels,
    )
    size = page_size(request.limit)
    cursor = None if not request.cursor else _number(cursor_text(request.cursor))
    if request.cursor and cursor is None:
        raise Invalid("cursor: is not one that a list answered", reason="INVALID_CURSOR")
    store = work.store.arrivals
    if request.after:
        above = _number(request.after)
        if above is None:
            fault = Fault(
                field="after", message="is no position", remedy="take it from an event; 0: all of them"
            )
            raise Invalid("after: is no position", reason="INVALID_FIELDS", faults=[fault])
        found = store.after(work.project_id, wanted, above=max(above, cursor or 0), limit=size + 1)
    else:
        found = store.before(work.project_id, wanted, below=cursor, limit=size + 1)
    page = listing(found, size, lambda row: hex_of(str(row["arrival"])))
    told = store.attributions([row["id"] for row in page.items], work.caller.labels)
    items = [Arrived(event=row, attributions=told.get(row["id"], ())) for row in page.items]
    return Listing(items=items, next_cursor=page.next_cursor, limit=page.limit)


def _number(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else _LARGEST + 1
    return number if number <= _LARGEST else None
