"""What a start would do now: who gets which variant, who does not and why, and whether it could decide.

It is the start's own procedure with the draft's own seed, so a start right after it assigns exactly this.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.experiment import Assignment, Decision, Experiment, decision
from control_plane.domain.fleet import Participant, Presence
from control_plane.domain.lifecycle import Verb
from control_plane.domain.preflight import Judgement
from control_plane.services.experiments import design_warnings, find, view_of
from control_plane.services.limits import require_confined
from control_plane.services.seating import eligible, meant, unclustered
from control_plane.services.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a participant: `error` refuses the start, `warning` leaves it out, `info` does neither."""

    participant: str
    code: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A start that did not happen; `balance` counts participants by stratum and variant."""

    experiment: Experiment
    assignments: tuple[Assignment, ...]
    balance: tuple[tuple[str, bytes, int], ...]
    findings: tuple[Finding, ...]
    decision: Decision | None
    warnings: tuple[tuple[str, str], ...]


def preview(work: Work, request: requests.ById) -> Preview:
    """What a start would assign now; changes nothing. Raises FailedPrecondition where it is not a draft."""
    experiment = find(work, request.id)
    require_confined(work, experiment)
    experiment.after(Verb.START)
    view = view_of(work, experiment)
    counted = Counter(
        (item.stratum, item.variant_id) for item in view.assignments if item.variant_id is not None
    )
    return Preview(
        experiment=experiment,
        assignments=view.assignments,
        balance=tuple((stratum, variant, count) for (stratum, variant), count in sorted(counted.items())),
        findings=tuple(_findings(work, experiment, view.assignments)),
        decision=decision(experiment, view.assignments),
        warnings=design_warnings(view),
    )


def _findings(work: Work, experiment: Experiment, assignments: tuple[Assignment, ...]) -> Iterator[Finding]:
    everyone = meant(work, experiment.selector)
    present = [item for item in everyone if item.retired_at is None]
    may = eligible(work, experiment, present)
    targeted = {item.participant for item in may.applying} | set(may.kept_out)
    alone = set(unclustered(experiment, may.applying))
    seated = {item.participant for item in assignments if item.variant_id is not None}
    ids = [item.id for item in present if item.public_id in seated]
    for conflict in work.store.experiments.conflicts(experiment.id, ids, experiment.target_files):
        yield Finding(
            participant=conflict.participant,
            code="CLAIM_CONFLICT",
            severity="error",
            message=f"{conflict.path} is held by experiment {conflict.holder}",
        )
    for participant in everyone:
        found = _of(work, participant, targeted=participant.public_id in targeted)
        if participant.public_id in experiment.design.analysis.excluded_participant_ids:
            found = ("EXCLUDED", "info", "analysis.excludedParticipantIds names it")
        elif participant.public_id in alone:
            by = experiment.design.analysis.cluster_by.removeprefix("label:")
            found = ("NO_CLUSTER", "error", f"its {by} is not known, and analysis.clusterBy draws by that")
        elif participant.public_id in targeted:
            found = _of_host(experiment, may.judgements[participant.public_id], found)
        if found is None and participant.public_id not in seated and experiment.arms:
            personal = experiment.type is Type.PERSONALIZATION
            why = "no variant's rules fit it" if personal else "outside the traffic allocation"
            found = ("NO_VARIANT", "warning", f"is on record without a variant: {why}")
        if found is None and may.judgements[participant.public_id].unknown:
            found = ("PREFLIGHT_UNKNOWN", "info", "its host has not said that it takes every variant")
        if found is not None:
            code, severity, message = found
            yield Finding(participant=participant.public_id, code=code, severity=severity, message=message)


_Found = tuple[str, str, str]


def _of_host(experiment: Experiment, judgement: Judgement, found: _Found | None) -> _Found | None:
    """What its host says of the contents, where that matters more than what was found."""
    if judgement.refusals:
        refused = "; ".join(str(refusal) for refusal in judgement.refusals)
        return "PREFLIGHT_REFUSED", "warning", f"takes part in no variant: its host refuses {refused}"
    if judgement.keeps_out(experiment):
        why = "its host has not said that it takes every variant, which requirePreflight asks for"
        return "PREFLIGHT_UNKNOWN", "warning", why
    return found


def _of(work: Work, participant: Participant, *, targeted: bool) -> _Found | None:
    """(code, severity, message) of what there is to say of a participant by itself."""
    presence = participant.presence(work.now)
    if presence is Presence.RETIRED:
        return "RETIRED", "warning", "its host is retired and no other agent has declared it"
    if not targeted:
        return "NOT_TARGETED", "warning", "the targeting rules do not mean it"
    if presence is Presence.NEVER_SEEN:
        return "NEVER_SEEN", "info", "no agent has declared it yet; its deployment waits until one does"
    if presence is Presence.LOST:
        return "OFFLINE", "info", "its agent is not connected; its deployment waits until it is"
    return None
