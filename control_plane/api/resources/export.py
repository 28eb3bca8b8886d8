"""What is taken out of an experiment: a row of each kind.

Subjects and properties are shown to callers that may read contents; to others they are null.
"""

import json
from collections.abc import Mapping
from typing import Any

from control_plane.api.resources.shown import Json, at, ident
from control_plane.domain.attribution import Standing, unwindowed
from control_plane.domain.series import date_of
from control_plane.services.export import Page
from control_plane.services.work import Scope, Work
from control_plane.store.export import What
from shared.ids import show_id
from shared.model import show_digest

Row = Mapping[str, Any]


def exported(work: Work, page: Page) -> list[str]:
    """Each row of a page as one line of JSON."""
    render = _RENDER[page.what]
    shared = {"experimentId": show_id(page.experiment.id)}
    if page.what not in (What.VIEWS, What.RECEIPTS):
        shared["phaseId"] = show_id(page.source) if page.source else ""
    private = work.caller.may(Scope.CONTENT_READ)
    lines = []
    for row in page.rows:
        shown = {**shared, **render(row)}
        if not private:
            shown |= {name: None for name in ("subject", "properties") if name in shown}
        lines.append(json.dumps(shown, ensure_ascii=False, separators=(",", ":")))
    return lines


def _event(row: Row) -> Json:
    return {
        "id": show_id(row["event_id"]),
        "eventId": row["own_id"],
        "kind": row["kind"],
        "eventName": row["event_name"],
        "participantId": row["public_id"],
        "variantId": show_id(row["variant_id"]),
        "timeBlock": row["block"],
        "assigned": status(row, "assigned"),
        "delivered": status(row, "delivered"),
        "targetFile": row["path"] or None,
        "digest": show_digest(row["digest"]),
        "subject": row["subject"] or None,
        "value": units(row["value_micros"]),
        "properties": json.loads(row["properties"]) if row["properties"] else None,
        "source": row["source"],
        "agentId": ident(row["agent_uid"]),
        "epoch": row["epoch"].hex() if row["epoch"] else None,
        "seq": row["seq"],
        "occurredAt": at(row["occurred_at"]),
        "recordedAt": at(row["recorded_at"]),
        "receivedAt": at(row["received_at"]),
    }


def status(row: Row, population: str) -> str:
    """`counted`, `pending` (a conversion without an impression before it), or why it does not count."""
    if row[population] != Standing.ELIGIBLE.value:
        return str(row[population])
    first = row[f"first_{population}"]
    waits = row["kind"] == "conversion" and (first is None or row["occurred_at"] < first)
    return "pending" if waits else "counted"


def _view(row: Row) -> Json:
    return {
        "id": show_id(row["id"]),
        "participantId": row["public_id"],
        "targetFile": row["path"],
        "digest": show_digest(row["digest"]),
        "state": row["state"],
        "fromAt": at(row["from_at"]),
        "toAt": at(row["to_at"]),
        "receivedAt": at(row["received_at"]),
    }


def _receipt(row: Row) -> Json:
    return {
        "id": show_id(row["id"]),
        "participantId": row["public_id"],
        "targetFile": row["path"],
        "digest": show_digest(row["digest"]),
        "loadedAt": at(row["at"]),
        "toAt": at(row["to_at"]),
        "receivedAt": at(row["received_at"]),
    }


def _assignment(row: Row) -> Json:
    return {
        "id": show_id(row["id"]),
        "participantId": row["public_id"],
        "variantId": ident(row["variant_id"]),
        "method": "forced" if row["forced_by"] else row["method"],
        "timeBlock": row["time_block"],
        "block": row["block"],
        "stratum": row["stratum"],
        "position": row["position"],
        "labelsUsed": json.loads(row["labels_used"]),
        "fromAt": at(row["from_at"]),
        "toAt": at(row["to_at"]),
        "forcedBy": row["forced_by"],
    }


def _exclusion(row: Row) -> Json:
    return {
        "participantId": row["public_id"],
        "variantId": ident(row["variant_id"] or None),
        "population": row["population"],
        "reason": row["reason"],
        "impressions": row["impressions"],
        "conversions": row["conversions"],
    }


def _tally(row: Row) -> Json:
    name, window = unwindowed(row["event_name"])
    return {
        "variantId": show_id(row["variant_id"]),
        "participantId": row["public_id"],
        "timeBlock": row["block"],
        "eventName": name,
        "windowSeconds": window,
        "date": date_of(row["day"]),
        "assignedCount": row["assigned_count"],
        "assignedUnits": row["assigned_units"],
        "assignedValue": units(row["assigned_value"]),
        "deliveredCount": row["delivered_count"],
        "deliveredUnits": row["delivered_units"],
        "deliveredValue": units(row["delivered_value"]),
    }


def units(micros: int | None) -> float | None:
    """A value as it was reported."""
    return None if micros is None else micros / 1_000_000


_RENDER = {
    What.EVENTS: _event,
    What.VIEWS: _view,
    What.RECEIPTS: _receipt,
    What.ASSIGNMENTS: _assignment,
    What.EXCLUSIONS: _exclusion,
    What.TALLIES: _tally,
}
