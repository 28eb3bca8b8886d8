"""What an operator should know about an experiment, from what is on record now."""

from dataclasses import dataclass

from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.experiment import Experiment
from control_plane.domain.findings import Facts, Finding, Seated, findings
from control_plane.services import preflight
from control_plane.services.experiments import find
from control_plane.services.work import Work
from control_plane.store.findings import SeatedRow
from shared.ids import show_id
from shared.moment import SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An experiment's findings at a moment."""

    experiment: Experiment
    computed_at: int
    findings: tuple[Finding, ...]


def get(work: Work, request: requests.ById) -> Report:
    """Every finding of the present phase, what matters most first."""
    experiment = find(work, request.id)
    keys = {variant.id: variant.key for variant in experiment.variants}
    phase = experiment.phase
    rows = work.store.findings.seated(experiment.id, phase.id, now=work.now) if phase else []
    since = phase.opened_at if phase else work.now
    facts = Facts(
        status=experiment.status,
        compared=experiment.type is not Type.PERSONALIZATION,
        alternating=experiment.type is Type.SWITCHBACK,
        has_primary=bool(experiment.metrics.get("primary")),
        plan_changed=experiment.plan_changed,
        running_seconds=(work.now - since) / SECOND,
        seated=[_seated(row, keys) for row in rows],
        schedule_failures=[
            (timer.kind, timer.failure["message"])
            for timer in work.store.timers.failures(experiment.id)
            if timer.failure
        ],
        open_slots=sum(1 for slot in work.store.deployments.slots_of(experiment.id) if slot.open),
        seed=phase.seed if phase else b"",
        kept_out={
            name: [one.code for one in refusals]
            for name, refusals in preflight.kept_out(work, experiment).items()
        },
    )
    return Report(experiment=experiment, computed_at=work.now, findings=findings(facts))


def _seated(row: SeatedRow, keys: dict[bytes, str]) -> Seated:
    return Seated(
        participant=row.participant,
        unit=row.unit,
        arm=keys[row.variant_id],
        agent=None if row.agent_uid is None else show_id(row.agent_uid),
        forced=row.forced,
        retired=row.retired,
        impressions=row.impressions,
        delivered=row.delivered,
        state=row.state,
        deployment=row.deployment,
        contents=frozenset(keys[variant_id] for variant_id in row.contents),
        contested="DRIFT_WAR" in row.conditions,
        unseen=row.unseen,
    )
