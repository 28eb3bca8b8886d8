"""The whole answer for one metric: every arm's numbers, and each arm against the control.

One call for `results`, `compute-results` and `analyze`, so that they cannot disagree; it decides only
which method answers which field, and which reason stands beside a None.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from control_plane.domain.statistics.bayes import Belief, Goal, beliefs
from control_plane.domain.statistics.posterior import Beta
from control_plane.domain.statistics.proportions import (
    ArmSums,
    Difference,
    Interval,
    Undefined,
    Variance,
    difference,
    icc,
    rate,
)
from shared.errors import Fault, Invalid

EXPLANATIONS: Mapping[str, str] = {
    "pValue": "how often a variant that changes nothing would differ from the control at least as much as this one;"
    " small ones speak against chance, and it is not the probability that the variant changes nothing",
    "probabilityToBeBest": "how probable it is, by the counts and the prior alone, that this variant is the best of"
    " all; shown, and no rule to stop by: who stops at 95 % is wrong about half of the time where nothing differs",
    "chanceToWin": "how probable it is, by the counts and the prior alone, that this variant is better than the"
    " control; it is not 1 - pValue, and no rule to stop by",
}
"""What is to be said beside numbers that are often taken for one another, by their names in an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm; `reasons` names every field that is None, by its name here.

    Counts and rates are of the arm itself; `difference`, its interval, `p_value` and `chance_to_win` are
    against the control and None for it.
    """

    key: str
    participants: int
    participants_exposed: int
    impressions: int
    conversions: int
    conversion_rate: float | None
    probability_to_be_best: float | None
    expected_loss: float | None
    credible_interval: Interval | None
    design_effect: float | None
    icc: float | None
    difference: float | None
    difference_interval: Interval | None
    p_value: float | None
    chance_to_win: float | None
    reasons: Mapping[str, Undefined] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All arms in the order given, at one level; `overdispersion` is None where nothing is believed."""

    alpha: float
    control: str | None
    variance: Variance
    overdispersion: float | None
    arms: tuple[ArmSummary, ...]


def summarise(
    arms: Sequence[ArmSums],
    *,
    control: str | None,
    alpha: float = 0.05,
    variance: Variance = "jackknife",
    prior: Beta | None = None,
    goal: Goal = "increase",
    idle: Collection[str] = (),
) -> Summary:
    """Every number of every arm is there, or the reason why it is not.

    Nobody is drawn into `idle` arms: nothing is believed of them, and of the others as if they were not there, where
    the prior alone would have made them the best about as often as any. Unadjusted for several arms: nothing here is
    a verdict. Raises Invalid, by field, for two arms of one key, a control that is none of them, an `alpha` outside
    (0, 1) or a prior that is not positive.
    """
    keys = [arm.key for arm in arms]
    faults = []
    if len(set(keys)) < len(keys):
        faults.append(Fault(field="arms", message="have a key that is there twice"))
    if control is not None and control not in keys:
        faults.append(Fault(field="control", message=f"{control!r} is not one of the arms"))
    if faults:
        raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)
    drawn = [arm for arm in arms if arm.key not in idle]
    found = beliefs(drawn, control=control, alpha=alpha, prior=prior, goal=goal)
    believed = {} if isinstance(found, Undefined) else {one.key: one for one in found.arms}
    why = found if isinstance(found, Undefined) else Undefined.NO_IMPRESSIONS
    reference = next((arm for arm in arms if arm.key == control), None)
    return Summary(
        alpha=alpha,
        control=control,
        variance=variance,
        overdispersion=None if isinstance(found, Undefined) else found.overdispersion,
        arms=tuple(
            _arm(
                arm,
                believed.get(arm.key, why),
                _against(arm, reference, alpha=alpha, variance=variance),
                variance=variance,
            )
            for arm in arms
        ),
    )


def counts_only(arms: Sequence[ArmSums], *, alpha: float, reason: Undefined) -> Summary:
    """Counts and rates of the arms; every number that would compare them is None for this reason."""
    found = []
    for arm in arms:
        own = rate(arm)
        reasons = _renamed(own.reasons, {"rate": "conversion_rate"}) | dict.fromkeys(_COMPARING, reason)
        found.append(
            ArmSummary(
                key=arm.key,
                participants=len(arm.trials),
                participants_exposed=sum(1 for m in arm.trials if m),
                impressions=own.trials,
                conversions=own.successes,
                conversion_rate=own.rate,
                probability_to_be_best=None,
                expected_loss=None,
                credible_interval=None,
                design_effect=None,
                icc=None,
                difference=None,
                difference_interval=None,
                p_value=None,
                chance_to_win=None,
                reasons=reasons,
            )
        )
    return Summary(alpha=alpha, control=None, variance="jackknife", overdispersion=None, arms=tuple(found))


def _against(
    arm: ArmSums, reference: ArmSums | None, *, alpha: float, variance: Variance
) -> Difference | Undefined:
    if reference is None:
        return Undefined.NO_CONTROL
    if arm.key == reference.key:
        return Undefined.IS_CONTROL
    return difference(arm, reference, alpha=alpha, variance=variance)


def _arm(
    arm: ArmSums, belief: Belief | Undefined, against: Difference | Undefined, *, variance: Variance
) -> ArmSummary:
    own, alike = rate(arm, variance=variance), icc([arm])
    reasons = _renamed(own.reasons, {"rate": "conversion_rate", "design_effect": "design_effect"})
    if isinstance(alike, Undefined):
        reasons["icc"] = alike
    if isinstance(belief, Undefined):
        reasons |= dict.fromkeys(_OF_BELIEF, belief)
    if isinstance(against, Undefined):
        reasons |= dict.fromkeys(_AGAINST_CONTROL, against)
    else:
        reasons |= _renamed(
            against.reasons,
            {"estimate": "difference", "interval": "difference_interval", "p_value": "p_value"},
        )
    believed = None if isinstance(belief, Undefined) else belief
    if believed is not None and believed.chance_to_win is None:
        reasons.setdefault("chance_to_win", Undefined.NO_IMPRESSIONS)  # of a control that nobody gets
    compared = None if isinstance(against, Undefined) else against
    return ArmSummary(
        key=arm.key,
        participants=len(arm.trials),
        participants_exposed=sum(1 for m in arm.trials if m),
        impressions=own.trials,
        conversions=own.successes,
        conversion_rate=own.rate,
        probability_to_be_best=believed.probability_to_be_best if believed else None,
        expected_loss=believed.expected_loss if believed else None,
        credible_interval=believed.credible_interval if believed else None,
        design_effect=own.design_effect,
        icc=None if isinstance(alike, Undefined) else alike,
        difference=compared.estimate if compared else None,
        difference_interval=compared.interval if compared else None,
        p_value=compared.p_value if compared else None,
        chance_to_win=believed.chance_to_win if believed else None,
        reasons=reasons,
    )


_OF_BELIEF = ("probability_to_be_best", "expected_loss", "credible_interval", "chance_to_win")
_AGAINST_CONTROL = ("difference", "difference_interval", "p_value", "chance_to_win")
_COMPARING = (*_OF_BELIEF, "design_effect", "icc", *_AGAINST_CONTROL)


def _renamed(reasons: Mapping[str, Undefined], names: Mapping[str, str]) -> dict[str, Undefined]:
    return {ours: reasons[theirs] for theirs, ours in names.items() if theirs in reasons}
