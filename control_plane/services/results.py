"""Use cases of results: tallies in, the numbers of an experiment's present phase out."""

from dataclasses import dataclass
from typing import Any

from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.experiment import Experiment, Variant
from control_plane.domain.statistics.proportions import ArmSums, Undefined
from control_plane.domain.statistics.summary import ArmSummary, Summary, counts_only, summarise
from control_plane.services import metrics
from control_plane.services.work import Work
from control_plane.store.events import ParticipantSums
from shared.errors import Fault, Invalid, NotFound
from shared.ids import show_id

POPULATIONS = ("assigned", "delivered")

_COUNTS_ONLY = {
    Type.PERSONALIZATION: Undefined.NOT_RANDOMIZED,
    Type.SWITCHBACK: Undefined.SWITCHBACK_NOT_COMPUTED,
}
"""Types whose variants are not compared, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What the numbers say of an experiment, for one conversion and one population.

    `uncompared`: why variants are not compared, where they are not.
    """

    experiment: Experiment
    metric: dict[str, Any]
    population: str
    computed_at: int
    arms: tuple[tuple[Variant, ArmSummary], ...]
    not_counted: dict[str, int]
    lost: int
    uncompared: str | None = None


def get(work: Work, request: requests.GetResults) -> Results:
    """Results of the present phase, from tallies only. Raises Invalid where it is unclear which conversion."""
    experiment = work.store.experiments.find(work.project_id, request.id)
    if experiment is None or not work.caller.sees(experiment.labels):
        raise NotFound(f"there is no experiment {request.id!r}", reason="EXPERIMENT_NOT_FOUND")
    metric = _metric(work, experiment, request.event_name)
    event_name = metric["eventName"]
    phase = experiment.phase
    sums = work.store.events.sums(phase.id, event_name, population=request.population) if phase else []
    arms = [_arm(variant, sums) for variant in experiment.arms]
    uncompared = _COUNTS_ONLY.get(experiment.type)
    summary = (
        counts_only(arms, alpha=experiment.alpha, reason=uncompared)
        if uncompared
        else _compared(experiment, arms, metric["goal"])
    )
    return Results(
        experiment=experiment,
        metric=metric,
        population=request.population,
        computed_at=work.now,
        arms=tuple(zip(experiment.arms, summary.arms, strict=True)),
        not_counted=work.store.events.not_counted(phase.id, population=request.population) if phase else {},
        lost=work.store.events.lost(experiment.id),
        uncompared=uncompared,
    )


def _compared(experiment: Experiment, arms: list[ArmSums], goal: str) -> Summary:
    control = experiment.control
    return summarise(
        arms,
        control=control.key if control else None,
        alpha=experiment.alpha,
        goal="decrease" if goal == "decrease" else "increase",
    )


def _arm(variant: Variant, sums: list[ParticipantSums]) -> ArmSums:
    mine = [item for item in sums if item.variant_id == variant.id]
    return ArmSums(
        key=variant.key,
        trials=[item.impressions for item in mine],
        successes=[item.conversions for item in mine],
    )


def _metric(work: Work, experiment: Experiment, event_name: str) -> dict[str, Any]:
    """The metric as declared: of the event that is asked for, else the primary, else the only one ever reported."""
    measured = metrics.by_value(work, experiment.metrics)
    primary = measured.get("primary")
    declared = [*([primary] if primary else []), *measured["secondary"], *measured["guardrail"]]
    if event_name:
        of_event = [item for item in declared if item["eventName"] == event_name]
        return of_event[0] if of_event else {"eventName": event_name, "goal": "increase"}
    if primary:
        return dict(primary)
    seen = work.store.events.event_names(experiment.phase.id) if experiment.phase else []
    if len(seen) > 1:
        fault = Fault(
            field="eventName",
            message=f"several conversions were reported: {', '.join(seen)}",
            remedy="name one, or set metrics.primary",
        )
        raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
    return {"eventName": seen[0] if seen else "conversion", "goal": "increase"}


def summarise_phase(work: Work, experiment: Experiment) -> list[dict[str, Any]]:
    """Every participant's sums in the present phase, as they stand now, JSON-shaped."""
    if experiment.phase is None:
        return []
    phase_id = experiment.phase.id
    return [
        {
            "eventName": name,
            "population": population,
            "variantId": show_id(item.variant_id),
            "participantId": item.participant,
            "impressions": item.impressions,
            "conversions": item.conversions,
        }
        for name in work.store.events.event_names(phase_id) or [""]
        for population in POPULATIONS
        for item in work.store.events.sums(phase_id, name, population=population)
    ]
