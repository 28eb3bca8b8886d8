"""Which variants a design leaves out: named as callers name them, kept by key."""

from dataclasses import replace

from control_plane.domain.design import Type
from control_plane.domain.experiment import Experiment
from control_plane.services.factoring import refuse
from shared.ids import parse_id

_FIELD = "analysis.excludedVariantIds"


def named(experiment: Experiment) -> Experiment:
    """The experiment, its excluded variants by key. Raises Invalid for one there is not, or that has to stay."""
    wanted = experiment.design.analysis.excluded_variant_ids
    if not wanted:
        return experiment
    if experiment.type is Type.MULTIVARIATE:
        refuse(_FIELD, "each variant is one of the combinations that are compared", "leave the list empty")
    by_id = {variant.id: variant.key for variant in experiment.variants}
    keys = []
    for name in wanted:
        parsed = parse_id(name)
        key = name if parsed is None else by_id.get(parsed, name)
        if key not in by_id.values():
            known = ", ".join(by_id.values()) or "none"
            refuse(_FIELD, f"there is no variant {name!r}", f"the experiment has {known}")
        keys.append(key)
    return _excluding(experiment, tuple(dict.fromkeys(keys)))


def without(experiment: Experiment, key: str) -> Experiment:
    """The experiment, of whose variants this one is gone."""
    present = experiment.design.analysis.excluded_variant_ids
    return _excluding(experiment, tuple(item for item in present if item != key))


def _excluding(experiment: Experiment, keys: tuple[str, ...]) -> Experiment:
    analysis = experiment.design.analysis.model_copy(update={"excluded_variant_ids": keys})
    return replace(experiment, design=experiment.design.model_copy(update={"analysis": analysis}))
