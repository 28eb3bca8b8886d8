"""What keeps an experiment from starting: everything at once, each with its field and its remedy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from control_plane.domain import factors as combining
from control_plane.domain import switchback as switching
from control_plane.domain.design import Type
from control_plane.domain.experiment import Conflict, Experiment
from shared.errors import Fault

_NOBODY = "nobody takes part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What a start needs to know besides the experiment."""

    participants: int
    conflicts: Sequence[Conflict] = field(default_factory=tuple)
    unclustered: Sequence[str] = ()
    """Whose cluster nobody knows, where it is drawn by clusters."""
    kept_out: int = 0
    """Whose host does not take every variant."""
    end_missed: bool = False
    """Its scheduled end is past, and nothing is to come that would bring it about."""


def faults_at_start(experiment: Experiment, readiness: Readiness) -> list[Fault]:
    """Everything that keeps the experiment from starting, by field."""
    faults = [
        *_variant_faults(experiment),
        *_exclusion_faults(experiment),
        *_cluster_faults(experiment, readiness.unclustered),
        *_file_faults(experiment),
    ]
    if experiment.type is Type.SWITCHBACK:
        faults += switching.faults(
            experiment.design.switchback,
            variants=len(experiment.arms),
            participants=readiness.participants,
        )
    if not readiness.participants:
        faults.append(
            Fault(
                field="participants",
                message=_NOBODY + (f"; hosts keep {readiness.kept_out} out" if readiness.kept_out else ""),
                remedy="look at what their hosts refuse with a preview, and mend it"
                if readiness.kept_out
                else "set participantIds, or labels that some participant carries",
            )
        )
    if readiness.end_missed:
        faults.append(
            Fault(
                field="schedule.endAt",
                message=f"{experiment.design.schedule.end_at} is past, so nothing would stop it",
                remedy="choose a moment ahead, or leave it out",
            )
        )
    faults += [
        Fault(
            field="targetFile",
            message=f"{conflict.path} of {conflict.participant} is held by experiment {conflict.holder}",
            remedy=f"complete {conflict.holder}, or leave {conflict.participant} out",
        )
        for conflict in readiness.conflicts
    ]
    return faults


def _variant_faults(experiment: Experiment) -> Iterable[Fault]:
    variants, personal = experiment.arms, experiment.type is Type.PERSONALIZATION
    needed = 1 if personal else 2
    if len(variants) < needed:
        besides = len(experiment.variants) - len(variants)
        message = f"has {len(variants)}" + (f" besides {besides} excluded" if besides else "")
        remedy = "add a variant" + (", or exclude fewer" if besides else "")
        yield Fault(field="variants", message=f"{message}, needs at least {needed}", remedy=remedy)
    if personal:
        if experiment.design.traffic_allocation != 100:
            yield Fault(
                field="trafficAllocation",
                message="a share of the participants would be chosen at random; here rules choose",
                remedy="set it to 100, and say in targetingRules who takes part",
            )
        return
    controls = [variant.key for variant in experiment.variants if variant.is_control]
    if len(controls) != 1:
        found = f"{len(controls)} ({', '.join(controls)})" if controls else "none"
        yield Fault(
            field="variants.isControl",
            message=f"needs exactly one control, has {found}",
            remedy="set isControl on one variant",
        )
    total = sum(variant.weight for variant in variants)
    if experiment.type.weighted and total != 100:
        yield Fault(
            field="variants.weight",
            message=f"weights sum to {total}, not to 100",
            remedy="change the weights so that they sum to 100",
        )


def _exclusion_faults(experiment: Experiment) -> Iterable[Fault]:
    analysis, control = experiment.design.analysis, experiment.control
    if control is not None and control not in experiment.arms:
        yield Fault(
            field="analysis.excludedVariantIds",
            message=f"{control.key} is the control, which the others are compared with",
            remedy="take it out of the list, or set isControl on another variant",
        )
    asked = experiment.selector.get("ids", ())
    unknown = [name for name in analysis.excluded_participant_ids if name not in asked] if asked else []
    if unknown:
        yield Fault(
            field="analysis.excludedParticipantIds",
            message=f"{', '.join(unknown)} would not take part anyway: not among the participants",
            remedy="write ids as participants has them, or leave them out",
        )


def _cluster_faults(experiment: Experiment, unclustered: Sequence[str]) -> Iterable[Fault]:
    field, by = "analysis.clusterBy", experiment.design.analysis.cluster_by
    if experiment.type is Type.PERSONALIZATION and by != "participant":
        message = "nothing is drawn: rules choose for each participant"
        yield Fault(field=field, message=message, remedy="leave it out")
    elif unclustered:
        listed = ", ".join(unclustered[:10])
        more = f" and {len(unclustered) - 10} more" if len(unclustered) > 10 else ""
        yield Fault(
            field=field,
            message=f"the {by.removeprefix('label:')} of {listed}{more} is not known",
            remedy="wait until an agent has declared it, or exclude it"
            if by == "host"
            else "give each the label, or exclude it",
        )


def _file_faults(experiment: Experiment) -> Iterable[Fault]:
    if experiment.type is Type.MULTIVARIATE:
        levels = [(variant.key, variant.levels) for variant in experiment.variants]
        yield from combining.faults(experiment.factors, levels)
        return
    paths = experiment.target_files
    if not paths:
        yield Fault(field="targetFile", message="there is no target file", remedy="set targetFile")
    for variant in experiment.variants:
        missing = sorted(set(paths) - set(variant.digests()))
        if missing:
            yield Fault(
                field=f"variants.{variant.key}.files",
                message=f"has no content for {', '.join(missing)}",
                remedy="every variant writes every target file",
            )
