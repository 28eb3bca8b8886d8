"""Experiments as they are designed: variants, phases, assignments, a preview, findings."""

from control_plane.api import contents
from control_plane.api.resources.plans import metrics
from control_plane.api.resources.shown import Json, at, ident, page
from control_plane.domain.experiment import Assignment, Experiment, Phase, Variant
from control_plane.services.experiments import View
from control_plane.services.findings import Report
from control_plane.services.preview import Preview
from control_plane.services.work import Listing, Scope, Work
from shared.ids import show_id
from shared.model import show_digest


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
        "metrics": metrics(view.metrics),
        "analysisFingerprint": e.analysis_fingerprint,
        "planChanged": e.plan_changed,
        **e.design.model_dump(mode="json", by_alias=True),
        "analysis": _analysis(e),
        "trafficAllocation": e.phase.traffic_allocation if e.phase else e.design.traffic_allocation,
        "run": e.run,
        "currentPhase": _phase(e, e.phase) if e.phase else None,
        "participantCount": sum(1 for item in view.assignments if item.variant_id is not None),
        "assignmentCounts": {show_id(item.id): _count(view, item.id) for item in e.variants},
        "winnerVariantId": ident(e.winner_variant_id),
        "conclusion": e.conclusion,
        "conclusionComment": e.conclusion_comment,
        "createdBy": e.created_by,
        "version": e.version,
        "createdAt": at(e.created_at),
        "updatedAt": at(e.updated_at),
        "startedAt": at(e.started_at),
        "pausedAt": at(e.paused_at),
        "stoppedAt": at(e.stopped_at),
        "completedAt": at(e.completed_at),
        "intakeClosedAt": at(_intake_closed_at(e)),
        "archivedAt": at(e.archived_at),
        "metadata": e.metadata,
    }


def _analysis(e: Experiment) -> Json:
    arms = {variant.id for variant in e.arms}
    excluded = [show_id(variant.id) for variant in e.variants if variant.id not in arms]
    return {
        **e.design.analysis.model_dump(mode="json", by_alias=True),
        "excludedVariantIds": excluded,
    }


def _intake_closed_at(e: Experiment) -> int | None:
    """Since when nobody further comes in: while it is paused, or from its stop or end on."""
    return e.stopped_at or e.completed_at or e.paused_at


def _count(view: View, variant_id: bytes) -> int:
    return sum(1 for item in view.assignments if item.variant_id == variant_id)


def _phase(owner: Experiment, phase: Phase) -> Json:
    return {
        "id": show_id(phase.id),
        "experimentId": show_id(owner.id),
        "run": owner.run,
        "number": phase.number,
        "openedAt": at(phase.opened_at),
        "closedAt": at(phase.closed_at),
        "eventsGoneAt": at(phase.events_gone_at),
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
    return {"entities": shown, "pagination": {"nextCursor": None, "hasMore": False, "limit": None}}


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
    return {"entities": shown, "pagination": {"nextCursor": None, "hasMore": False, "limit": None}}


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
        "createdAt": at(item.created_at),
        "updatedAt": at(item.updated_at),
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
        "id": ident(item.id),
        "experimentId": show_id(item.experiment_id),
        "phaseId": ident(item.phase_id),
        "participantId": item.participant,
        "variantId": ident(item.variant_id),
        "method": item.method.value,
        "planned": item.planned,
        "block": item.block,
        "stratum": item.stratum,
        "position": item.position,
        "timeBlock": item.time_block or None,
        "labelsUsed": dict(item.labels_used),
        "cluster": item.cluster or None,
        "fromAt": None if item.planned else at(item.from_at),
        "toAt": at(item.to_at),
        "forcedBy": item.forced_by,
        "retired": item.retired,
    }


def findings(work: Work, report: Report) -> Json:
    """An experiment's findings."""
    return {
        "experimentId": show_id(report.experiment.id),
        "key": report.experiment.key,
        "computedAt": at(report.computed_at),
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
