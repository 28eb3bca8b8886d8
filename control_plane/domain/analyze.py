"""Statistics on numbers somebody already has: JSON in, JSON out, without a server.

The same functions as behind results, so the same sums give the same numbers. Three shapes of a variant: counts
(as many participants as impressions), participants with their impressions and conversions, and one value for each
participant. Impossible numbers are refused by variant and field, never computed on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log10, sqrt
from typing import Annotated, Any

from pydantic import Field

from control_plane.domain.evidence import Evidence, Json, camel, ends
from control_plane.domain.fields import Request, parse
from control_plane.domain.inference import answer, differing_looks
from control_plane.domain.question import Arm, Pair, Question, question
from control_plane.domain.statistics import blocked, decision, multiple, newcombe, sequence, srm
from control_plane.domain.statistics.bayes import (
    Beliefs,
    Beta,
    DesignEffect,
    beliefs,
    beliefs_of_values,
    believed,
    lift_interval,
)
from control_plane.domain.statistics.decision import Plan, Unit
from control_plane.domain.statistics.lift import fieller, lift
from control_plane.domain.statistics.means import mean, moments
from control_plane.domain.statistics.newcombe import Counts, Small
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.proportions import (
    ArmSums,
    Difference,
    Estimate,
    Interval,
    Undefined,
    compared,
    compared_by,
    counted,
    icc,
    quantile,
    rate,
)
from shared.errors import Fault, Invalid


class Adjusting(Request):
    """p-values to adjust."""

    p_values: tuple[float, ...] = Field(alias="p_values")
    correction: multiple.Correction | None = None
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
        return _exported(parse(Evidence, given))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Against:
    """A variant against the control by one method; `reasons` by the names of results."""

    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    lift: float | None = None
    lift_interval: Interval | None = None
    sequential: Json | None = None
    reasons: dict[str, str]


def _answered(asked: Question) -> Json:
    arms = asked.variants
    comparisons = max(len(arms) - 1, 1)
    level = asked.alpha / comparisons if asked.correction == "bonferroni" else asked.alpha
    method = asked.decision or ("path_test" if asked.looks or any(arm.blocks for arm in arms) else "welch")
    if method != "welch" and arms[0].shape == "counts":
        fault = Fault(field="decision", message=f"{method} needs participants or values, not counts")
        raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
    found, looked = _compared(asked, method, level)
    believes = _beliefs(asked)
    others = [arm.key for arm in arms if arm.key != asked.control]
    known = [(key, found[key].p_value) for key in others]
    given = [p for _, p in known if p is not None]
    adjusted = dict(
        zip(
            [key for key, p in known if p is not None],
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
    }


def _effect(asked: Question) -> float:
    """By how much counts are too many, as given; 1 unless it is."""
    return asked.design_effect if isinstance(asked.design_effect, float) else 1.0


def _own(asked: Question, arm: Arm) -> Estimate:
    """The variant's value with its error."""
    if arm.values is not None:
        return mean(arm.key, moments(arm.values))
    if arm.participants is not None:
        return rate(_sums(arm), variance=asked.variance).estimate()
    found = counted(arm.key, trials=arm.impressions or 0, successes=arm.conversions or 0).estimate()
    effect = _effect(asked)
    if effect == 1.0 or found.variance is None or found.degrees_of_freedom is None:
        return found
    return Estimate(
        key=found.key,
        value=found.value,
        variance=found.variance * effect,
        degrees_of_freedom=max(found.degrees_of_freedom / effect, 1.0),
        reasons=found.reasons,
    )


def _sums(arm: Arm) -> ArmSums:
    rows = arm.participants or ()
    return ArmSums(key=arm.key, trials=[m for m, _ in rows], successes=[c for _, c in rows])


def _compared(asked: Question, method: str, level: float) -> tuple[dict[str, _Against], list[Json]]:
    control = next(arm for arm in asked.variants if arm.key == asked.control)
    others = [arm for arm in asked.variants if arm is not control]
    if method == "welch":
        return {arm.key: _welch(asked, arm, control, level) for arm in others}, []
    plan = _plan(asked, method, level)
    days = [(day.day, day.participants) for day in asked.looks]
    shots = [_snapshot(asked, day, rows) for day, rows in days]
    if not shots:
        shots = [_snapshot(asked, plan.horizon, None)]
    looks = decision.looks(plan, shots)
    unit = _unit(asked) if asked.variants[0].shape == "values" else 1.0
    found = {
        one.arm: _Against(
            difference=None if one.estimate is None else one.estimate * unit,
            interval=_scaled(one.interval, unit),
            p_value=one.p_value,
            lift=one.lift,
            lift_interval=one.lift_interval,
            reasons=_of_results({name: reason.value for name, reason in one.reasons.items()}),
        )
        for one in next(look for look in reversed(looks) if look.comparisons).comparisons
    }
    shown = [
        {
            "day": look.day,
            "comparisons": [
                {
                    "variant": one.arm,
                    "statistic": one.statistic,
                    "critical": one.critical,
                    "alphaSpent": one.alpha_spent,
                    "difference": None if one.estimate is None else one.estimate * unit,
                    "interval": ends(one.interval, unit),
                    "crossed": one.crossed,
                    "decided": one.decided,
                }
                for one in look.comparisons
            ],
        }
        for look in looks
    ]
    return found, shown


def _scaled(interval: Interval | None, unit: float) -> Interval | None:
    return None if interval is None else Interval(low=interval.low * unit, high=interval.high * unit)


def _of_results(reasons: dict[str, str]) -> dict[str, str]:
    names = {
        "estimate": "difference",
        "interval": "differenceInterval",
        "p_value": "pValue",
        "lift": "lift",
        "lift_interval": "liftInterval",
    }
    return {names[name]: reason for name, reason in reasons.items() if name in names}


def _plan(asked: Question, method: str, level: float) -> Plan:
    units = [
        Unit(
            arm=arm.key,
            block=arm.blocks[at] if arm.blocks else (arm.strata[at] if arm.strata else "all"),
            stratum=arm.strata[at] if arm.strata else "all",
        )
        for arm in asked.variants
        for at in range(arm.size)
    ]
    return Plan(
        method="path_test" if method == "path_test" else "sequence",
        arms=[arm.key for arm in asked.variants],
        control=asked.control or "",
        units=units,
        seed=bytes.fromhex(asked.seed),
        alpha=level,
        horizon=asked.horizon_days,
        power=asked.power,
        effect=asked.minimum_detectable_effect,
        tuning=asked.tuning,
        variance=asked.variance,
        shares=asked.variants[0].shape == "participants",
        comparisons=1,  # the level is divided already, or is not to be
    )


def _snapshot(asked: Question, day: float, rows: dict[str, tuple[Pair, ...]] | None) -> Snapshot:
    pairs: list[Pair] = []
    unit = _unit(asked)
    for arm in asked.variants:
        if rows is not None:
            pairs += rows[arm.key]
        elif arm.participants is not None:
            pairs += arm.participants
        else:
            pairs += [(1, round(value / unit)) for value in arm.values or ()]
    return Snapshot(day=day, trials=[m for m, _ in pairs], successes=[c for _, c in pairs])


def _unit(asked: Question) -> float:
    """What one of a snapshot's whole numbers is worth: of values, the largest has fifteen digits."""
    largest = max((abs(value) for arm in asked.variants for value in arm.values or ()), default=0.0)
    return 1.0 if not largest else 10.0 ** (ceil(log10(largest)) - 15)


def _welch(asked: Question, arm: Arm, control: Arm, level: float) -> _Against:
    """Two values with their errors; strata taken out where they are given; counts by Newcombe's interval."""
    t, c = _own(asked, arm), _own(asked, control)
    effect = _effect(asked)
    if arm.shape == "counts" and effect == 1.0:
        small = newcombe.difference(_counts(arm), _counts(control), alpha=level)
        if isinstance(small, Small):
            relative = lift(t.value or 0.0, c.value or 0.0)
            found = _against(small.estimate, small.interval, small.p_value, relative, small.lift_interval)
            return _sequenced(asked, arm, control, found, level)
    plain = _blocked(asked, arm, control, level) or compared(t, c, alpha=level)
    if plain.estimate is None or t.value is None or c.value is None:
        why = next(iter(plain.reasons.values())).value
        return _Against(reasons=dict.fromkeys((*_COMPARING, "sequential"), why))
    around: Interval | Undefined = plain.reasons.get("interval", Undefined.NO_VARIATION)
    if plain.interval is not None and plain.degrees_of_freedom is not None:
        around = fieller(
            t.value,
            c.value,
            treatment_variance=t.variance or 0.0,
            control_variance=c.variance or 0.0,
            quantile=quantile(plain.degrees_of_freedom, level),
        )
    found = _against(plain.estimate, plain.interval, plain.p_value, lift(t.value, c.value), around)
    for ours, theirs in (("differenceInterval", "interval"), ("pValue", "p_value")):
        if theirs in plain.reasons:
            found.reasons[ours] = plain.reasons[theirs].value
    return _sequenced(asked, arm, control, found, level)


def _counts(arm: Arm) -> Counts:
    return Counts(trials=arm.impressions or 0, successes=arm.conversions or 0)


def _blocked(asked: Question, arm: Arm, control: Arm, level: float) -> Difference | None:
    """The stratified difference of participants; None where no strata are given or they cannot be told apart."""
    if not (arm.strata and control.strata and arm.shape == "participants"):
        return None
    found = blocked.difference(
        *(blocked.StratifiedArm(sums=_sums(one), strata=one.strata or ()) for one in (arm, control))
    )
    if isinstance(found, Undefined):
        return None
    return compared_by(
        arm.key,
        control.key,
        estimate=found.estimate,
        error=sqrt(found.variance),
        freedom=found.degrees_of_freedom,
        alpha=level,
    )


def _against(
    estimate: float,
    interval: Interval | None,
    p: float | None,
    relative: float | Undefined,
    around: Interval | Undefined,
) -> _Against:
    reasons = {}
    if isinstance(relative, Undefined):
        reasons["lift"] = relative.value
    if isinstance(around, Undefined):
        reasons["liftInterval"] = around.value
    return _Against(
        difference=estimate,
        interval=interval,
        p_value=p,
        lift=None if isinstance(relative, Undefined) else relative,
        lift_interval=None if isinstance(around, Undefined) else around,
        reasons=reasons,
    )


def _sequenced(asked: Question, arm: Arm, control: Arm, found: _Against, level: float) -> _Against:
    """With what may be said at any moment, in participants, where a tuning was given."""
    if asked.tuning is None:
        found.reasons["sequential"] = Undefined.NO_TUNING.value
        return found
    plain = compared(_own(asked, arm), _own(asked, control), alpha=level)
    if plain.estimate is None or not plain.standard_error:
        found.reasons["sequential"] = Undefined.NO_VARIATION.value
        return found
    always = sequence.always_valid(
        estimate=plain.estimate,
        standard_error=plain.standard_error,
        share=(arm.size + control.size) / asked.tuning,
        alpha=level,
    )
    told = {"pValue": always.p_value, "differenceInterval": ends(always.interval, 1.0)}
    return replace(found, sequential=told)


def _beliefs(asked: Question) -> Beliefs | Undefined:
    """What is believed of every variant, or why nothing is."""
    arms, control, alpha, goal = asked.variants, asked.control, asked.alpha, asked.goal
    if arms[0].shape == "values":
        own = [_own(asked, arm) for arm in arms]
        return beliefs_of_values(own, control=control, alpha=alpha, goal=goal)
    prior = Beta(a=asked.prior.a, b=asked.prior.b)
    if arms[0].shape == "participants" and not isinstance(asked.design_effect, float):
        effect: DesignEffect = "per_arm" if asked.design_effect == "per_arm" else "shared"
        sums = [_sums(arm) for arm in arms]
        return beliefs(sums, control=control, alpha=alpha, goal=goal, prior=prior, design_effect=effect)
    shared = _effect(asked)
    totals = [_totals(arm) for arm in arms]
    posteriors = [Beta(a=prior.a + c / shared, b=prior.b + (m - c) / shared) for m, c in totals]
    keys = [arm.key for arm in arms]
    found = believed(keys, posteriors, control=control, alpha=alpha, goal=goal)
    return Beliefs(overdispersion=shared, arms=found)


_COMPARING = ("difference", "differenceInterval", "lift", "liftInterval", "pValue", "pValueAdjusted")
_BELIEVED = ("liftCredibleInterval", "probabilityToBeBest", "expectedLoss", "credibleInterval", "chanceToWin")


def _shown(
    asked: Question, at: int, against: _Against | None, adjusted: float | None, believes: Beliefs | Undefined
) -> Json:
    arm = asked.variants[at]
    own = _own(asked, arm)
    reasons: dict[str, str] = {}
    found: Json = {"key": arm.key, "isControl": arm.key == asked.control, "participants": arm.size}
    if arm.shape == "values":
        found |= {"mean": own.value}
        if own.value is None:
            reasons["mean"] = own.reasons["value"].value
    else:
        m, c = _totals(arm)
        found |= {"impressions": m, "conversions": c, "conversionRate": own.value}
        if own.value is None:
            reasons["conversionRate"] = own.reasons["value"].value
        if arm.shape == "participants":
            alike = icc([_sums(arm)])
            effect = rate(_sums(arm), variance=asked.variance).design_effect
            found |= {"designEffect": effect, "icc": None if isinstance(alike, Undefined) else alike}
            if isinstance(alike, Undefined):
                reasons["icc"] = alike.value
            if effect is None:
                why = rate(_sums(arm), variance=asked.variance).reasons["design_effect"]
                reasons["designEffect"] = why.value
    found["standardError"] = None if own.variance is None else sqrt(own.variance)
    if own.variance is None:
        reasons["standardError"] = own.reasons["variance"].value
    found |= _belief(asked, at, believes, reasons)
    if against is None:
        found |= dict.fromkeys((*_COMPARING, "sequential"))
        reasons |= dict.fromkeys((*_COMPARING, "sequential"), Undefined.IS_CONTROL.value)
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
        for name in (*_COMPARING, "sequential"):
            if found[name] is None:
                known = against.reasons.get(name) or against.reasons.get("pValue")
                reasons[name] = known or Undefined.NOT_OF_THIS_KIND.value
    return {**found, "reasons": dict(sorted(reasons.items()))}


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
    """The plain chi-square of what was assigned against the weights; None without weights."""
    weights = [arm.weight for arm in asked.variants]
    known = [weight for weight in weights if weight is not None]
    if len(known) < len(weights):
        return None
    found = srm.sample_ratio([arm.size for arm in asked.variants], known)
    keys = [arm.key for arm in asked.variants]
    return {
        "pValue": found.p_value,
        "detected": found.leaked or found.p_value < srm.SUPPRESS,
        "expected": dict(zip(keys, found.expected, strict=True)),
        "observed": {arm.key: arm.size for arm in asked.variants},
        "largestDeviation": found.largest_deviation,
    }
