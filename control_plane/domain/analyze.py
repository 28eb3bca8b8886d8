"""Statistics on numbers somebody already has: JSON in, JSON out, without a server.

The same functions as behind results, so the same sums give the same numbers. Three shapes of a variant: counts
(as many participants as impressions), participants with their impressions and conversions, and one value for each
participant. Impossible numbers are refused by variant and field, never computed on.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Annotated, Any

from pydantic import Field

from control_plane.domain.comparing import (
    COMPARING,
    Against,
    compare,
    effect_of,
    estimate_of,
    method_of,
    near_control,
    sums_of,
)
from control_plane.domain.evidence import Evidence, Json, camel, ends
from control_plane.domain.exported import exported
from control_plane.domain.fields import Request, parse
from control_plane.domain.inference import answer, differing_looks
from control_plane.domain.question import Arm, Correction, Question, question
from control_plane.domain.statistics import multiple, srm
from control_plane.domain.statistics.bayes import (
    Beliefs,
    DesignEffect,
    beliefs,
    beliefs_of_values,
    believed,
    lift_interval,
)
from control_plane.domain.statistics.posterior import Beta, Normal, credible_interval
from control_plane.domain.statistics.proportions import Interval, Undefined, icc, rate
from control_plane.domain.statistics.summary import EXPLANATIONS
from shared.errors import Fault, Invalid


class Adjusting(Request):
    """p-values to adjust."""

    p_values: tuple[float, ...] = Field(alias="p_values")
    correction: Correction | None = None
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05


def analyze(given: Any) -> Json:
    """The answer to a question, a list of p-values, or the evidence of an exported experiment.

    Raises Invalid that names variant and field for numbers that cannot be, and for evidence whose looks do not follow
    from the sums they saw.
    """
    if not isinstance(given, dict):
        raise Invalid("give a JSON object with variants, p_values, or what `results --inputs` wrote")
    if "p_values" in given:
        return _adjusted(parse(Adjusting, given))
    if "measure" in given and "members" in given:
        return _exported(exported(given))
    return _answered(question(given))


def _adjusted(asked: Adjusting) -> Json:
    corrections: Sequence[multiple.Correction] = (
        [asked.correction] if asked.correction else ["bonferroni", "holm", "benjamini_hochberg"]
    )
    found = {name: multiple.adjusted(asked.p_values, name) for name in corrections}
    return {
        "alpha": asked.alpha,
        "pValues": list(asked.p_values),
        "adjusted": {camel(name): values for name, values in found.items()},
        "rejected": {camel(name): [p <= asked.alpha for p in values] for name, values in found.items()},
    }


def _exported(evidence: Evidence) -> Json:
    if all(item.sums is not None for item in evidence.looks):
        differing = differing_looks(evidence)
        if differing:
            listed = ", ".join(map(str, differing))
            fault = Fault(field="looks", message=f"{listed} do not follow from the sums they saw")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
    return answer(evidence)


def _answered(asked: Question) -> Json:
    arms = asked.variants
    comparisons = len(arms) - 1
    level = asked.alpha / comparisons if asked.correction == "bonferroni" else asked.alpha
    method = method_of(asked)
    found, looked = compare(asked, method, level)
    believes = _beliefs(asked)
    known = {
        arm.key: p for arm in arms if arm.key != asked.control and (p := found[arm.key].p_value) is not None
    }
    given = list(known.values())
    adjusted = dict(
        zip(
            known,
            # Of all comparisons, whether or not each of them has a p.
            [min(1.0, comparisons * p) for p in given]
            if asked.correction == "bonferroni"
            else multiple.adjusted(given, asked.correction),
            strict=True,
        )
    )
    return {
        "alpha": asked.alpha,
        "control": asked.control,
        "goal": asked.goal,
        "method": {
            "decision": method,
            "variance": asked.variance,
            "correction": asked.correction,
            "intervalLevel": 1 - level,
            "strata": len({name for arm in arms for name in arm.strata or ("",)}),
            "designEffect": asked.design_effect,
            "tuning": asked.tuning,
            "prior": {"a": asked.prior.a, "b": asked.prior.b},
        },
        "overdispersion": None if isinstance(believes, Undefined) else believes.overdispersion,
        "variants": [
            _shown(asked, at, found.get(arm.key), adjusted.get(arm.key), believes)
            for at, arm in enumerate(arms)
        ],
        "srm": _srm(asked),
        "looks": looked,
        "explanations": dict(EXPLANATIONS),
    }


def _beliefs(asked: Question) -> Beliefs | Undefined:
    """What is believed of every variant, or why nothing is."""
    arms, control, alpha, goal = asked.variants, asked.control, asked.alpha, asked.goal
    if arms[0].shape == "values":
        near = [near_control(asked, arm) for arm in arms]
        return _where_they_are(asked, beliefs_of_values(near, control=control, alpha=alpha, goal=goal))
    prior = Beta(a=asked.prior.a, b=asked.prior.b)
    if arms[0].shape == "participants" and not isinstance(asked.design_effect, float):
        effect: DesignEffect = "per_arm" if asked.design_effect == "per_arm" else "shared"
        sums = [sums_of(arm.key, arm) for arm in arms]
        return beliefs(sums, control=control, alpha=alpha, goal=goal, prior=prior, design_effect=effect)
    shared = effect_of(asked)
    totals = [_totals(arm) for arm in arms]
    posteriors = [Beta(a=prior.a + c / shared, b=prior.b + (m - c) / shared) for m, c in totals]
    keys = [arm.key for arm in arms]
    found = believed(keys, posteriors, control=control, alpha=alpha, goal=goal)
    return Beliefs(overdispersion=shared, arms=found)


def _where_they_are(asked: Question, found: Beliefs | Undefined) -> Beliefs | Undefined:
    """What is believed of values near the control's, of the values themselves."""
    if isinstance(found, Undefined):
        return found
    arms = []
    for arm, belief in zip(asked.variants, found.arms, strict=True):
        own = estimate_of(asked, arm)
        posterior = Normal(mean=own.value or 0.0, variance=own.variance or 0.0)
        around = credible_interval(posterior, alpha=asked.alpha)
        arms.append(replace(belief, posterior=posterior, credible_interval=around))
    return replace(found, arms=tuple(arms))


_BELIEVED = ("liftCredibleInterval", "probabilityToBeBest", "expectedLoss", "credibleInterval", "chanceToWin")


def _shown(
    asked: Question, at: int, against: Against | None, adjusted: float | None, believes: Beliefs | Undefined
) -> Json:
    arm = asked.variants[at]
    reasons: dict[str, str] = {}
    found: Json = {
        "key": arm.key,
        "name": arm.name or arm.key,
        "isControl": arm.key == asked.control,
        "weight": arm.weight,
        "participants": arm.size,
        **_own(asked, arm, reasons),
        **_belief(asked, at, believes, reasons),
    }
    if arm.weight is None:
        reasons["weight"] = Undefined.NOT_GIVEN.value
    if against is None:
        found |= dict.fromkeys((*COMPARING, "sequential"))
        reasons |= dict.fromkeys((*COMPARING, "sequential"), Undefined.IS_CONTROL.value)
    else:
        found |= {
            "difference": against.difference,
            "differenceInterval": ends(against.interval, 1.0),
            "lift": against.lift,
            "liftInterval": ends(against.lift_interval, 1.0),
            "pValue": against.p_value,
            "pValueAdjusted": adjusted,
            "sequential": against.sequential,
        }
        for name in (*COMPARING, "sequential"):
            if found[name] is None:
                known = against.reasons.get(name) or against.reasons.get("pValue")
                reasons[name] = known or Undefined.NOT_OF_THIS_KIND.value
    return {**found, "reasons": dict(sorted(reasons.items()))}


def _own(asked: Question, arm: Arm, reasons: dict[str, str]) -> Json:
    """The variant's counts and its value with the error."""
    own = estimate_of(asked, arm)
    value, other = ("mean", "conversionRate") if arm.shape == "values" else ("conversionRate", "mean")
    found: Json = {
        "participantsExposed": arm.size,
        "impressions": None,
        "conversions": None,
        other: None,
        value: own.value,
        "standardError": None if own.variance is None else sqrt(own.variance),
        "designEffect": None,
        "icc": None,
    }
    reasons[other] = (
        Undefined.NOT_OF_THIS_KIND.value if arm.shape == "values" else Undefined.IS_A_PROPORTION.value
    )
    if own.value is None:
        reasons[value] = own.reasons["value"].value
    if own.variance is None:
        reasons["standardError"] = own.reasons["variance"].value
    if arm.shape == "values":
        reasons |= dict.fromkeys(
            ("impressions", "conversions", "designEffect", "icc"), Undefined.NOT_OF_THIS_KIND.value
        )
        return found
    found["impressions"], found["conversions"] = _totals(arm)
    if arm.shape == "counts":
        reasons |= dict.fromkeys(("designEffect", "icc"), Undefined.ONE_IMPRESSION_EACH.value)
        return found
    found["participantsExposed"] = sum(1 for m, _ in arm.participants or () if m)
    sums = sums_of(arm.key, arm)
    alike, spread = icc([sums]), rate(sums, variance=asked.variance)
    found["designEffect"] = spread.design_effect
    found["icc"] = None if isinstance(alike, Undefined) else alike
    if isinstance(alike, Undefined):
        reasons["icc"] = alike.value
    if spread.design_effect is None:
        reasons["designEffect"] = spread.reasons["design_effect"].value
    return found


def _totals(arm: Arm) -> tuple[int, int]:
    if arm.participants is not None:
        return sum(m for m, _ in arm.participants), sum(c for _, c in arm.participants)
    return arm.impressions or 0, arm.conversions or 0


def _belief(asked: Question, at: int, believes: Beliefs | Undefined, reasons: dict[str, str]) -> Json:
    if isinstance(believes, Undefined):
        reasons |= dict.fromkeys(_BELIEVED, believes.value)
        return dict.fromkeys(_BELIEVED)
    one = believes.arms[at]
    if one.chance_to_win is None:
        reasons |= dict.fromkeys(("chanceToWin", "liftCredibleInterval"), Undefined.IS_CONTROL.value)
    control = next((item for item in believes.arms if item.key == asked.control), one)
    around: Interval | Undefined | None = None
    if one.chance_to_win is not None:
        around = lift_interval(one.posterior, control.posterior, alpha=asked.alpha)
        if isinstance(around, Undefined):
            reasons["liftCredibleInterval"] = around.value
    return {
        "liftCredibleInterval": None if isinstance(around, Undefined) else ends(around, 1.0),
        "probabilityToBeBest": one.probability_to_be_best,
        "expectedLoss": one.expected_loss,
        "credibleInterval": ends(one.credible_interval, 1.0),
        "chanceToWin": one.chance_to_win,
    }


def _srm(asked: Question) -> Json | None:
    """The plain chi-square of what was assigned against the weights, and whether all lost alike.

    None without weights.
    """
    known = [arm.weight for arm in asked.variants if arm.weight is not None]
    if not known:
        return None
    sizes = [arm.size for arm in asked.variants]
    found = srm.sample_ratio(sizes, known)
    keys = [arm.key for arm in asked.variants]
    told: Json = {
        "kind": "chi_square",
        "pValue": found.p_value,
        "detected": found.leaked or found.p_value < srm.SUPPRESS,
        "leaked": found.leaked,
        "expected": dict(zip(keys, found.expected, strict=True)),
        "observed": dict(zip(keys, sizes, strict=True)),
        "largestDeviation": found.largest_deviation,
        "withDataPValue": None,
    }
    if asked.variants[0].shape == "participants":
        having = [sum(1 for m, _ in arm.participants or () if m) for arm in asked.variants]
        told["withDataPValue"] = srm.same_share(having, sizes, seed=bytes.fromhex(asked.seed))
        told["detected"] = told["detected"] or told["withDataPValue"] < srm.SUPPRESS
    return told
