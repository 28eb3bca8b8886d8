"""The secondary metrics beside the one that decides: their p-values together, corrected for being several.

Shown and never decided on. Each is what may be said of its metric at any moment, corrected for the arms (Bonferroni) as
everything is, and then over the metrics as the plan says: Holm, or Benjamini-Hochberg.
"""

from control_plane.domain.evidence import Evidence, Json, now
from control_plane.domain.statistics import multiple
from control_plane.domain.statistics.decision import Comparison


def secondary(evidence: Evidence) -> Json | None:
    """Every secondary metric, each arm against the control; None where there is nothing to compare.

    Within an arm the correction is over the metrics that have a p; those that have none say why.
    """
    if not evidence.secondary or evidence.uncompared is not None or evidence.control is None:
        return None
    found = [
        now(
            evidence.model_copy(
                update={
                    "measure": item.measure,
                    "sums": item.sums,
                    "first": item.first,
                    "history": item.history,
                    "unspent": 1.0,
                }
            )
        )
        for item in evidence.secondary
    ]
    correction = evidence.settings.secondary_correction
    corrected: dict[str, list[float | None]] = {}
    for arm in evidence.arms:
        known = [(at, one[arm.key].p_adjusted) for at, one in enumerate(found) if arm.key in one]
        given = [(at, p) for at, p in known if p is not None]
        values: list[float | None] = [None] * len(found)
        for (at, _), p in zip(given, multiple.adjusted([p for _, p in given], correction), strict=True):
            values[at] = p
        corrected[arm.key] = values
    metrics = []
    for at, (item, arms) in enumerate(zip(evidence.secondary, found, strict=True)):
        scale = evidence.model_copy(update={"measure": item.measure}).scale
        metrics.append(
            {
                "metric": item.measure.name,
                "key": item.key,
                "name": item.name,
                "kind": item.measure.kind,
                "goal": item.measure.goal,
                "variants": [
                    _variant(one, corrected[arm.key][at], scale)
                    for arm in evidence.arms
                    if (one := arms.get(arm.key)) is not None
                ],
            }
        )
    return {"correction": correction, "metrics": metrics}


def _variant(one: Comparison, corrected: float | None, scale: float) -> Json:
    names = {"difference": "estimate", "lift": "lift", "pValue": "p_value", "pValueAdjusted": "p_adjusted"}
    told: Json = {
        "difference": None if one.estimate is None else one.estimate * scale,
        "lift": one.lift,
        "pValue": one.p_value,
        "pValueAdjusted": one.p_adjusted,
    }
    reasons = {name: one.reasons[names[name]].value for name, value in told.items() if value is None}
    if corrected is None:
        reasons["pValueCorrected"] = reasons["pValueAdjusted"]
    return {
        "variant": one.arm,
        **told,
        "pValueCorrected": corrected,
        "reasons": dict(sorted(reasons.items())),
    }
