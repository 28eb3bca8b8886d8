"""Results: numbers of each arm, with the reason where there is none."""

from collections.abc import Iterable
from typing import Any

from control_plane.api.resources.plans import metric
from control_plane.api.resources.shown import Json, at, ident
from control_plane.domain.experiment import Variant
from control_plane.domain.statistics.summary import ArmSummary
from control_plane.services.results import Results
from control_plane.services.work import Work
from shared.ids import show_id


def results(work: Work, found: Results) -> Json:
    """What the numbers say."""
    e = found.experiment
    return {
        "experimentId": show_id(e.id),
        "key": e.key,
        "status": e.status.value,
        "phaseId": ident(e.phase.id if e.phase else None),
        "computedAt": at(found.computed_at),
        "metric": metric(found.metric),
        "alpha": e.alpha,
        "analysisFingerprint": e.analysis_fingerprint,
        "planChanged": e.plan_changed,
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
