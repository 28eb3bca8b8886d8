"""Deployments and what became of each; events that were reported."""

from control_plane.api.resources.shown import Json, at, ident, page
from control_plane.domain.deployment import Deployment
from control_plane.services.reporting import Taken
from control_plane.services.work import Listing, Work
from control_plane.store.deployments import StoredOutcome
from shared.ids import show_id
from shared.model import show_digest


def deployment(work: Work, item: Deployment) -> Json:
    """A deployment."""
    return _deployment(item)


def deployments(work: Work, listing: Listing) -> Json:
    """A page of deployments."""
    return page(listing, _deployment)


def _deployment(item: Deployment) -> Json:
    return {
        "id": show_id(item.id),
        "experimentId": show_id(item.experiment_id),
        "variantId": ident(item.variant_id),
        "phaseId": ident(item.phase_id),
        "participantId": item.participant,
        "slotId": show_id(item.slot_id),
        "revision": str(item.revision),
        "agentId": ident(item.agent_uid),
        "origin": item.origin.value,
        "action": item.action,
        "state": item.state.value,
        "files": [
            {
                "path": file.path,
                "desiredDigest": show_digest(file.desired),
                "runningDigest": show_digest(file.running),
                "lastAttemptedDigest": show_digest(file.attempted),
            }
            for file in item.files
        ],
        "attempts": item.attempts,
        "reason": item.reason,
        "connected": item.connected,
        "requestedBy": item.requested_by,
        "createdAt": at(item.created_at),
        "offeredAt": at(item.offered_at),
        "appliedAt": at(item.applied_at),
        "confirmedAt": at(item.confirmed_at),
        "updatedAt": at(item.updated_at),
        "confirming": item.confirming,
    }


def outcomes(work: Work, listing: Listing) -> Json:
    """A page of outcomes."""
    return page(listing, _outcome)


def _outcome(item: StoredOutcome) -> Json:
    return {
        "id": show_id(item.id),
        "deploymentId": show_id(item.deployment_id),
        "participantId": item.participant,
        "slotId": show_id(item.slot_id),
        "agentId": show_id(item.agent_uid),
        "revision": str(item.revision),
        "attempt": item.attempt,
        "step": item.step,
        "result": item.result,
        "files": item.files,
        "reason": item.reason,
        "quarantined": item.quarantined,
        "durationsMs": item.durations,
        "occurredAt": at(item.occurred_at),
        "receivedAt": at(item.received_at),
    }


def taken(work: Work, items: list[Taken]) -> Json:
    """What became of a batch of reported events, in its order."""
    return {
        "events": [
            {
                "eventId": item.event_id,
                "id": show_id(item.id),
                "status": "duplicate" if item.duplicate else "accepted",
                "reason": item.reason,
            }
            for item in items
        ]
    }
