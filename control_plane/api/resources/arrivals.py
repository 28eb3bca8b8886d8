"""Events as they came in.

Subjects and properties are shown to callers that may read contents; to others they are null.
"""

import json

from control_plane.api.resources.export import status, units
from control_plane.api.resources.shown import Json, at, ident, page
from control_plane.services.arrivals import Arrived
from control_plane.services.work import Listing, Scope, Work
from shared.ids import show_id
from shared.model import show_digest


def events(work: Work, listing: Listing) -> Json:
    """A page of events."""
    private = work.caller.may(Scope.CONTENT_READ)

    def render(item: Arrived) -> Json:
        row = item.event
        return {
            "id": show_id(row["id"]),
            "position": str(row["arrival"]),
            "eventId": row["event_id"] or None,
            "source": row["source"],
            "kind": row["kind"],
            "eventName": row["event_name"] or None,
            "participantId": row["public_id"] or row["participant_name"],
            "agentId": ident(row["agent_uid"]),
            "targetFile": row["path"] or None,
            "digest": show_digest(row["digest"]),
            "subject": (row["subject"] or None) if private else None,
            "value": units(row["value_micros"]),
            "properties": json.loads(row["properties"]) if private and row["properties"] else None,
            "occurredAt": at(row["occurred_at"]),
            "recordedAt": at(row["recorded_at"]),
            "receivedAt": at(row["received_at"]),
            "epoch": row["epoch"].hex() if row["epoch"] else None,
            "seq": row["seq"],
            "reason": row["reason"],
            "attributions": [
                {
                    "experimentId": show_id(found["experiment_id"]),
                    "phaseId": show_id(found["phase_id"]),
                    "variantId": show_id(found["variant_id"]),
                    "assigned": status(found, "assigned"),
                    "delivered": status(found, "delivered"),
                }
                for found in item.attributions
            ],
        }

    return page(listing, render)
