"""Participants, agents and the fleet as a whole."""

from control_plane.api.resources.shown import Json, at, ident, page
from control_plane.domain.fleet import Agent, ParticipantFile
from control_plane.services.fleet import ParticipantView, WholeFleet
from control_plane.services.work import Listing, Work
from shared.ids import show_id
from shared.model import show_digest
from shared.moment import SECOND

_DRIFTS = {"drifted": "changed", "missing": "missing"}
"""What a view says of a target, in the words of a drift."""


def participant(work: Work, view: ParticipantView) -> Json:
    """A participant."""
    return _participant(work, view)


def participants(work: Work, listing: Listing) -> Json:
    """A page of participants."""
    return page(listing, lambda view: _participant(work, view))


def _participant(work: Work, view: ParticipantView) -> Json:
    p = view.participant
    return {
        "id": p.public_id,
        "labels": {**p.labels, **p.host_labels},
        "agentId": ident(p.agent_uid),
        "bindingGeneration": p.binding_generation,
        "hostname": p.hostname,
        "presence": p.presence(work.now).value,
        "lastSeenAt": at(p.last_seen_at),
        "targets": list(p.targets),
        "driftPolicy": p.drift_policy,
        "exposure": p.exposure,
        "files": [
            {
                "path": file.path,
                "desiredDigest": show_digest(file.desired),
                "runningDigest": show_digest(file.running),
                "revision": str(file.revision),
                "state": file.state,
                "experimentId": show_id(file.experiment_id),
                "variantId": ident(file.variant_id),
                "drift": _drift(file),
                "lastAttemptedDigest": show_digest(file.attempted),
                "reason": file.reason,
            }
            for file in view.files
        ],
        "holdoutIds": [show_id(item) for item in view.holdout_ids],
        "createdAt": at(p.created_at),
        "updatedAt": at(p.updated_at),
    }


def _drift(file: ParticipantFile) -> Json | None:
    """How the file differs from what was put there, as the host saw it last; None where it does not."""
    kind = _DRIFTS.get(file.state or "")
    if kind is None:
        return None
    return {"kind": kind, "observedDigest": show_digest(file.running), "sinceAt": at(file.seen_at)}


def whole_fleet(work: Work, fleet: WholeFleet) -> Json:
    """The hosts of a project as a whole."""
    return {"frozenAt": at(fleet.frozen_at), "withdrawalsHeld": fleet.withdrawals_held}


def agent(work: Work, item: Agent) -> Json:
    """An agent."""
    return _agent(work, item)


def agents(work: Work, listing: Listing) -> Json:
    """A page of agents."""
    return page(listing, lambda item: _agent(work, item))


def _agent(work: Work, a: Agent) -> Json:
    spool: Json | None = a.spool and {
        "depth": a.spool["depth"],
        "bytes": a.spool["bytes"],
        "oldestAt": at(a.spool["oldestAt"] or None),
        "lost": a.lost,
    }
    measured = a.spool or {}
    return {
        "id": show_id(a.uid),
        "name": a.name,
        "hostname": a.hostname,
        "labels": {**a.labels, **a.host_labels},
        "version": a.version,
        "capabilities": list(a.capabilities),
        "platform": a.platform,
        "presence": a.presence(work.now).value,
        "connectedAt": at(a.connected_at),
        "lastSeenAt": at(a.last_seen_at),
        "bootId": a.boot_id,
        "sessionEpoch": a.session_epoch,
        "participantIds": list(a.participants),
        "certificate": {
            "serial": a.certificate_serial,
            "notAfterAt": at(a.certificate_not_after),
            "daysLeft": (a.certificate_not_after - work.now) // (86_400 * SECOND),
            "hostDaysLeft": measured.get("certificateDaysLeft"),
        },
        "spool": spool,
        "stateFreeBytes": measured.get("stateFreeBytes"),
        "clockSkewMs": None if a.clock_skew is None else round(a.clock_skew / 1000),
        "conditions": [
            {**condition, "sinceAt": at(condition["sinceAt"])} for condition in (*a.findings, *a.conditions)
        ],
        "bannedAt": at(a.banned_at),
        "retiredAt": at(a.retired_at),
        "quarantinedAt": at(a.quarantined_at),
        "enrolledAt": at(a.enrolled_at),
    }
