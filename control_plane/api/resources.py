"""Domain → the JSON shape of each resource (design: "resources, field by field"); gRPC shows the same.

`null` stands for unknown or not applicable, never a missing key. Content is shown only to callers that may
read it, and never in lists.
"""

from collections.abc import Callable, Iterable
from typing import Any

from control_plane.api import contents
from control_plane.domain.deployment import Deployment
from control_plane.domain.experiment import Assignment, Experiment, Phase, Variant
from control_plane.domain.fleet import Agent
from control_plane.domain.statistics.summary import ArmSummary
from control_plane.services.access import NewKey, NewToken, token_text
from control_plane.services.experiments import View
from control_plane.services.findings import Report
from control_plane.services.fleet import ParticipantView
from control_plane.services.preview import Preview
from control_plane.services.results import Results
from control_plane.services.work import Listing, Scope, Work
from control_plane.store.access import AuditEntry
from control_plane.store.deployments import StoredOutcome
from shared.ids import show_id
from shared.model import show_digest
from shared.moment import SECOND, to_rfc3339

Json = dict[str, Any]


def _at(moment: int | None) -> str | None:
    return None if moment is None else to_rfc3339(moment)


def _id(value: bytes | None) -> str | None:
    return None if value is None else show_id(value)


def page(listing: Listing, render: Callable[[Any], Json]) -> Json:
    """A page as REST shows it."""
    return {
        "entities": [render(item) for item in listing.items],
        "pagination": {"nextCursor": listing.next_cursor or None, "hasMore": bool(listing.next_cursor)},
    }


# -- experiments


def experiment(work: Work, view: View) -> Json:
    """An experiment whole, with content where the caller may read it."""
    shown = _experiment(view)
    shown["variants"] = [variant(work, view, item) for item in view.experiment.variants]
    shown["factors"] = contents.factors(work, view.experiment.factors)
    if view.created:
        shown["assignments"] = [assignment(item) for item in view.assignments]
    shown["warnings"] = [{"code": code, "message": message} for code, message in view.warnings]
    return shown


def experiments(work: Work, listing: Listing) -> Json:
    """A page of experiments, without content."""

    def render(view: View) -> Json:
        variants = [_variant(view, item) for item in view.experiment.variants]
        return {**_experiment(view), "variants": variants}

    return page(listing, render)


def lifecycle(work: Work, view: View) -> Json:
    """The answer of a lifecycle verb: the desired state is committed, so it is published."""
    return {"publishStatus": "published", "concurrentVersionChanges": 0, "experiment": experiment(work, view)}


def _experiment(view: View) -> Json:
    e: Experiment = view.experiment
    return {
        "id": show_id(e.id),
        "number": e.number,
        "key": e.key,
        "name": e.name,
        "description": e.description,
        "type": e.type.value,
        "status": e.status.value,
        "archived": e.archived,
        "labels": e.labels,
        "targetFile": e.target_file,
        "targetFiles": e.target_files,
        "factors": [contents.factor(item) for item in e.factors],
        "participants": e.selector,
        "metrics": e.metrics,
        **e.design.model_dump(mode="json", by_alias=True),
        "trafficAllocation": e.phase.traffic_allocation if e.phase else e.design.traffic_allocation,
        "run": e.run,
        "currentPhase": _phase(e, e.phase) if e.phase else None,
        "participantCount": sum(1 for item in view.assignments if item.variant_id is not None),
        "assignmentCounts": {show_id(item.id): _count(view, item.id) for item in e.variants},
        "winnerVariantId": _id(e.winner_variant_id),
        "conclusion": e.conclusion,
        "conclusionComment": e.conclusion_comment,
        "createdBy": e.created_by,
        "version": e.version,
        "createdAt": _at(e.created_at),
        "updatedAt": _at(e.updated_at),
        "startedAt": _at(e.started_at),
        "pausedAt": _at(e.paused_at),
        "stoppedAt": _at(e.stopped_at),
        "completedAt": _at(e.completed_at),
        "metadata": e.metadata,
    }


def _count(view: View, variant_id: bytes) -> int:
    return sum(1 for item in view.assignments if item.variant_id == variant_id)


def _phase(owner: Experiment, phase: Phase) -> Json:
    return {
        "id": show_id(phase.id),
        "experimentId": show_id(owner.id),
        "run": owner.run,
        "number": phase.number,
        "openedAt": _at(phase.opened_at),
        "closedAt": _at(phase.closed_at),
        "seed": phase.seed.hex(),
        "algorithm": phase.algorithm,
        "strata": list(owner.design.strata),
        "weights": {show_id(key): weight for key, weight in phase.weights.items()},
        "trafficAllocation": phase.traffic_allocation,
    }


def opened_phase(work: Work, opened: tuple[View, Phase]) -> Json:
    """The phase that was opened, and what the caller may not have meant."""
    view, item = opened
    warnings = [{"code": code, "message": message} for code, message in view.warnings]
    return {**_phase(view.experiment, item), "warnings": warnings}


def phases(work: Work, found: tuple[Experiment, list[Phase]]) -> Json:
    """The phases of the present run, in one page."""
    shown = [_phase(found[0], item) for item in found[1]]
    return {"entities": shown, "pagination": {"nextCursor": None, "hasMore": False}}


def variant(work: Work, view: View, item: Variant) -> Json:
    """A variant with its content, where the caller may read it."""
    shown = _variant(view, item)
    if not work.caller.may(Scope.CONTENT_READ):
        return shown
    for file in shown["files"]:
        body = next(f for f in item.files if f.path == file["path"])
        contents.fill(work, body.digest, file)
        if file["path"] == view.experiment.target_file:
            shown["content"] = file["content"]
    return shown


def one_variant(work: Work, found: tuple[View, Variant]) -> Json:
    """One variant of an experiment."""
    return variant(work, *found)


def variants(work: Work, view: View) -> Json:
    """Every variant of an experiment, in one page."""
    shown = [variant(work, view, item) for item in view.experiment.variants]
    return {"entities": shown, "pagination": {"nextCursor": None, "hasMore": False}}


def _variant(view: View, item: Variant) -> Json:
    return {
        "id": show_id(item.id),
        "experimentId": show_id(item.experiment_id),
        "key": item.key,
        "name": item.name,
        "description": item.description,
        "isControl": item.is_control,
        "weight": item.weight,
        "content": None,
        "files": [
            {
                "path": file.path,
                "content": None,
                "contentBase64": None,
                "digest": show_digest(file.digest),
                "size": file.size,
            }
            for file in item.files
        ],
        "levels": dict(item.levels),
        "targetingRules": item.targeting_rules.model_dump(mode="json", by_alias=True),
        "config": item.config,
        "metadata": item.metadata,
        "assignmentCount": _count(view, item.id),
        "createdAt": _at(item.created_at),
        "updatedAt": _at(item.updated_at),
    }


def assignments(work: Work, listing: Listing) -> Json:
    """A page of assignments."""
    return page(listing, assignment)


def preview(work: Work, found: Preview) -> Json:
    """What a start would do."""
    decision = found.decision
    return {
        "experimentId": show_id(found.experiment.id),
        "assignments": [assignment(item) for item in found.assignments],
        "balance": [
            {"stratum": stratum, "variantId": show_id(variant_id), "count": count}
            for stratum, variant_id, count in found.balance
        ],
        "findings": [
            {
                "participantId": item.participant,
                "code": item.code,
                "severity": item.severity,
                "message": item.message,
            }
            for item in found.findings
        ],
        "smallestReachableP": decision.reachable if decision else None,
        "neededP": decision.needed if decision else None,
        "canDecide": decision is not None and decision.possible,
        "warnings": [{"code": code, "message": message} for code, message in found.warnings],
    }


def one_assignment(work: Work, item: Assignment) -> Json:
    """One assignment."""
    return assignment(item)


def assignment(item: Assignment) -> Json:
    """Which variant a participant has."""
    return {
        "id": _id(item.id),
        "experimentId": show_id(item.experiment_id),
        "phaseId": _id(item.phase_id),
        "participantId": item.participant,
        "variantId": _id(item.variant_id),
        "method": item.method.value,
        "planned": item.planned,
        "block": item.block,
        "stratum": item.stratum,
        "position": item.position,
        "labelsUsed": dict(item.labels_used),
        "fromAt": None if item.planned else _at(item.from_at),
        "toAt": _at(item.to_at),
        "forcedBy": item.forced_by,
        "retired": item.retired,
    }


def findings(work: Work, report: Report) -> Json:
    """An experiment's findings."""
    return {
        "experimentId": show_id(report.experiment.id),
        "key": report.experiment.key,
        "computedAt": _at(report.computed_at),
        "findings": [
            {
                "code": item.code,
                "severity": item.severity.value,
                "message": item.message,
                "evidence": dict(item.evidence),
                "advice": item.advice,
            }
            for item in report.findings
        ],
    }


# -- deployments


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
        "variantId": _id(item.variant_id),
        "phaseId": _id(item.phase_id),
        "participantId": item.participant,
        "slotId": show_id(item.slot_id),
        "revision": str(item.revision),
        "agentId": _id(item.agent_uid),
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
        "createdAt": _at(item.created_at),
        "offeredAt": _at(item.offered_at),
        "appliedAt": _at(item.applied_at),
        "confirmedAt": _at(item.confirmed_at),
        "updatedAt": _at(item.updated_at),
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
        "occurredAt": _at(item.occurred_at),
        "receivedAt": _at(item.received_at),
    }


# -- fleet


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
        "agentId": _id(p.agent_uid),
        "bindingGeneration": p.binding_generation,
        "hostname": p.hostname,
        "presence": p.presence(work.now).value,
        "lastSeenAt": _at(p.last_seen_at),
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
                "variantId": _id(file.variant_id),
            }
            for file in view.files
        ],
        "createdAt": _at(p.created_at),
        "updatedAt": _at(p.updated_at),
    }


def whole_fleet(work: Work, frozen_at: int | None) -> Json:
    """The hosts of a project as a whole."""
    return {"frozenAt": _at(frozen_at)}


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
        "oldestAt": _at(a.spool["oldestAt"] or None),
        "lost": a.lost,
    }
    return {
        "id": show_id(a.uid),
        "name": a.name,
        "hostname": a.hostname,
        "labels": {**a.labels, **a.host_labels},
        "version": a.version,
        "capabilities": list(a.capabilities),
        "platform": a.platform,
        "presence": a.presence(work.now).value,
        "connectedAt": _at(a.connected_at),
        "lastSeenAt": _at(a.last_seen_at),
        "bootId": a.boot_id,
        "sessionEpoch": a.session_epoch,
        "participantIds": list(a.participants),
        "certificate": {
            "serial": a.certificate_serial,
            "notAfterAt": _at(a.certificate_not_after),
            "daysLeft": (a.certificate_not_after - work.now) // (86_400 * SECOND),
        },
        "spool": spool,
        "conditions": [{**condition, "sinceAt": _at(condition["sinceAt"])} for condition in a.conditions],
        "bannedAt": _at(a.banned_at),
        "retiredAt": _at(a.retired_at),
        "enrolledAt": _at(a.enrolled_at),
    }


# -- access


def enrollment_token(work: Work, new: NewToken) -> Json:
    """A fresh enrollment token, with its text."""
    return {**_token(new), "token": token_text(new.secret, work.joining) if new.secret else None}


def enrollment_tokens(work: Work, listing: Listing) -> Json:
    """A page of enrollment tokens, without their secrets."""
    return page(listing, _token)


def _token(new: NewToken) -> Json:
    token = new.token
    return {
        "id": show_id(token.id),
        "name": token.name,
        "labels": token.labels,
        "maxUses": token.max_uses,
        "uses": token.uses,
        "namePattern": token.name_pattern,
        "participants": list(token.participants),
        "expiresAt": _at(token.expires_at),
        "createdAt": _at(token.created_at),
    }


def api_key(work: Work, new: NewKey) -> Json:
    """An API key; its secret only when it is fresh."""
    return {**_api_key(new), "secret": new.secret}


def api_keys(work: Work, listing: Listing) -> Json:
    """A page of API keys, without their secrets."""
    return page(listing, _api_key)


def _api_key(new: NewKey) -> Json:
    return {
        "id": show_id(new.key.id),
        "name": new.key.name,
        "prefix": new.key.prefix,
        "scopes": list(new.key.scopes),
        "createdAt": _at(new.key.created_at),
        "expiresAt": _at(new.key.expires_at),
        "revokedAt": _at(new.key.revoked_at),
        "lastUsedAt": _at(new.key.last_used_at),
    }


def audit(work: Work, listing: Listing) -> Json:
    """A page of the audit log."""

    def render(entry: AuditEntry) -> Json:
        return {
            "id": show_id(entry.id),
            "actor": entry.actor,
            "operation": entry.operation,
            "resourceId": entry.resource_id,
            "at": _at(entry.at),
        }

    return page(listing, render)


# -- results


def results(work: Work, found: Results) -> Json:
    """What the numbers say."""
    e = found.experiment
    return {
        "experimentId": show_id(e.id),
        "key": e.key,
        "status": e.status.value,
        "phaseId": _id(e.phase.id if e.phase else None),
        "computedAt": _at(found.computed_at),
        "metric": {"eventName": found.event_name, "goal": found.goal},
        "alpha": e.alpha,
        "population": found.population,
        "method": None if found.uncompared else {"variance": "jackknife", "interval": "welch"},
        "variants": [_arm(item, arm) for item, arm in found.arms],
        "rejected": [
            {"reason": reason, "count": count} for reason, count in sorted(found.not_counted.items())
        ],
        "lost": {"count": found.lost},
    }


_COUNTS = ("participants", "participants_exposed")
_NUMBERS = (
    "conversion_rate",
    "probability_to_be_best",
    "expected_loss",
    "design_effect",
    "icc",
    "difference",
    "p_value",
    "chance_to_win",
)
_INTERVALS = ("credible_interval", "difference_interval")


def _arm(item: Variant, arm: ArmSummary) -> Json:
    intervals = {name: getattr(arm, name) for name in _INTERVALS}
    return {
        "id": show_id(item.id),
        "key": item.key,
        "name": item.name,
        "isControl": item.is_control,
        "weight": item.weight,
        **_camel((name, getattr(arm, name)) for name in (*_COUNTS, *_NUMBERS)),
        "impressions": arm.impressions,
        "conversions": arm.conversions,
        **_camel(
            (name, value and {"low": value.low, "high": value.high}) for name, value in intervals.items()
        ),
        "reasons": _camel((name, reason.value) for name, reason in arm.reasons.items()),
    }


def _camel(pairs: Iterable[tuple[str, Any]]) -> Json:
    return {
        "".join([name.split("_")[0], *map(str.title, name.split("_")[1:])]): value for name, value in pairs
    }
