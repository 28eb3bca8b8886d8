"""What `analyze` says of a variant against the control, by whichever method was asked for.

Hides what each method needs: two estimates, two counts, or every participant's sums look by look. The last is the
very function behind recorded looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, log10, sqrt

from control_plane.domain.evidence import Json, ends
from control_plane.domain.question import Arm, Numbers, Question
from control_plane.domain.statistics import blocked, decision, newcombe, sequence
from control_plane.domain.statistics.decision import Apart, Comparison, State
from control_plane.domain.statistics.lift import fieller, lift
from control_plane.domain.statistics.means import mean, moments
from control_plane.domain.statistics.newcombe import Counts, Small
from control_plane.domain.statistics.path import Side, Snapshot
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import (
    ArmSums,
    Difference,
    Estimate,
    Interval,
    Undefined,
    compared,
    compared_by,
    counted,
    in_range,
    quantile,
    rate,
)

SMALL = 10
"""Conversions, or impressions without one, below which an arm of counts is small (method `newcombe`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A variant against the control by one method; `reasons` by the names of results."""

    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    lift: float | None = None
    lift_interval: Interval | None = None
    sequential: Json | None = None
    reasons: dict[str, str]


def method_of(asked: Question) -> str:
    """The method: the one asked for, else the path test where there are looks or blocks.

    Of counts alone it is Newcombe's where an arm is small, Welch's otherwise, and of their looks the sequence.
    """
    if asked.decision is not None:
        return asked.decision
    counts = asked.variants[0].shape == "counts"
    if asked.looks:
        return "sequence" if counts else "path_test"
    if any(arm.blocks for arm in asked.variants):
        return "path_test"
    return "newcombe" if counts and effect_of(asked) == 1.0 and any(map(_small, asked.variants)) else "welch"


def _small(arm: Arm) -> bool:
    hits = arm.conversions or 0
    return min(hits, (arm.impressions or 0) - hits) < SMALL


def effect_of(asked: Question) -> float:
    """By how much counts are too many, as given; 1 unless it is."""
    return asked.design_effect if isinstance(asked.design_effect, float) else 1.0


def estimate_of(asked: Question, arm: Arm, numbers: Numbers | None = None) -> Estimate:
    """The variant's value with its error; of other numbers than its own where they are given."""
    given = numbers or arm
    if given.values is not None:
        return mean(arm.key, moments(given.values))
    if given.participants is not None:
        return rate(sums_of(arm.key, given), variance=asked.variance).estimate()
    found = counted(arm.key, trials=given.impressions or 0, successes=given.conversions or 0).estimate()
    effect = effect_of(asked)
    if effect == 1.0 or found.variance is None or found.degrees_of_freedom is None:
        return found
    return Estimate(
        key=found.key,
        value=found.value,
        variance=found.variance * effect,
        degrees_of_freedom=max(found.degrees_of_freedom / effect, 1.0),
        reasons=found.reasons,
    )


def near_control(asked: Question, arm: Arm) -> Estimate:
    """The variant's value, of values less one of the control's: a large offset costs a difference no digits."""
    control = next(other for other in asked.variants if other.key == asked.control)
    if not (arm.values and control.values):
        return estimate_of(asked, arm)
    origin = control.values[0]
    return mean(arm.key, moments([value - origin for value in arm.values]))


def sums_of(key: str, numbers: Numbers) -> ArmSums:
    """The sums of participants."""
    rows = numbers.participants or ()
    return ArmSums(key=key, trials=[m for m, _ in rows], successes=[c for _, c in rows])


def compare(asked: Question, method: str, level: float) -> tuple[dict[str, Against], list[Json]]:
    """Every variant but the control, and the looks one by one. Raises Invalid for what the method cannot do."""
    control = next(arm for arm in asked.variants if arm.key == asked.control)
    others = [arm for arm in asked.variants if arm is not control]
    if method in ("welch", "newcombe"):
        once = _newcombe if method == "newcombe" else _welch
        return {
            arm.key: _sequenced(asked, arm, control, once(asked, arm, control, level), level)
            for arm in others
        }, []
    plan = _plan(asked, method, level)
    unit = 1.0
    if asked.variants[0].shape == "counts":
        days = [*((day.day, day.variants) for day in asked.looks)] or [(plan.horizon, _own(asked))]
        by_arm = {
            arm.key: decision.sequenced(plan, arm.key, _states(asked, arm, control, level, days))
            for arm in others
        }
        told = [(day, [by_arm[arm.key][at] for arm in others]) for at, (day, _) in enumerate(days)]
    else:
        unit = _unit(asked)
        shots = [_snapshot(asked, unit, day.day, day.variants) for day in asked.looks]
        found = decision.looks(plan, shots or [_snapshot(asked, unit, plan.horizon, _own(asked))])
        told = [(look.day, list(look.comparisons)) for look in found]
    last = next(comparisons for _, comparisons in reversed(told) if comparisons)
    return {one.arm: _of_look(one, unit) for one in last}, [
        _look_shown(day, each, unit) for day, each in told
    ]


def _own(asked: Question) -> dict[str, Numbers]:
    return {arm.key: arm for arm in asked.variants}


# -- looks


def _plan(asked: Question, method: str, level: float) -> Plan:
    counts = asked.variants[0].shape == "counts"
    units = [
        Unit(
            arm=arm.key,
            block=arm.blocks[at] if arm.blocks else (arm.strata[at] if arm.strata else "all"),
            stratum=arm.strata[at] if arm.strata else "all",
        )
        for arm in ([] if counts else asked.variants)
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
        shares=asked.variants[0].shape != "values",
        comparisons=1,  # the level is divided already, or is not to be
    )


def _snapshot(asked: Question, unit: float, day: float, numbers: Mapping[str, Numbers]) -> Snapshot:
    trials: list[int] = []
    successes: list[int] = []
    for arm in asked.variants:
        found = numbers[arm.key]
        if found.participants is not None:
            trials += [m for m, _ in found.participants]
            successes += [c for _, c in found.participants]
        else:
            trials += [1] * found.size
            successes += [round(Fraction(value) / Fraction(unit)) for value in found.values or ()]
    return Snapshot(day=day, trials=trials, successes=successes)


def _unit(asked: Question) -> float:
    """What one of a snapshot's whole numbers is worth: of values, the largest has fifteen digits."""
    looked = [numbers for day in asked.looks for numbers in day.variants.values()]
    values = [abs(value) for numbers in (*asked.variants, *looked) for value in numbers.values or ()]
    largest = max(values, default=0.0)
    if asked.variants[0].shape != "values" or not largest:
        return 1.0
    return 10.0 ** max(ceil(log10(largest)) - 15, -300)


def _states(
    asked: Question, arm: Arm, control: Arm, level: float, days: Sequence[tuple[float, Mapping[str, Numbers]]]
) -> list[State]:
    """What a sequence sees of counts."""
    found = []
    for _, numbers in days:
        sides = [numbers[arm.key], numbers[control.key]]
        hits = [one.conversions or 0 for one in sides]
        sizes = [one.impressions or 0 for one in sides]
        t, c = (estimate_of(asked, of, one) for of, one in zip((arm, control), sides, strict=True))
        plain = compared(t, c, alpha=level)
        apart: Apart | Undefined
        if plain.estimate is None or not plain.standard_error or t.value is None or c.value is None:
            apart = plain.reasons.get("standard_error", Undefined.NO_VARIATION)
        else:
            apart = Apart(
                plain.estimate,
                plain.standard_error,
                plain.degrees_of_freedom,
                Side(rate=t.value, variance=t.variance or 0.0),
                Side(rate=c.value, variance=c.variance or 0.0),
            )
        enough = sequence.enough(sizes, sizes, hits, shares=True)
        found.append(State(apart=apart, participants=sum(sizes), enough=enough))
    return found


def _of_look(one: Comparison, unit: float) -> Against:
    names = {
        "estimate": "difference",
        "interval": "differenceInterval",
        "p_value": "pValue",
        "lift": "lift",
        "lift_interval": "liftInterval",
    }
    return Against(
        difference=None if one.estimate is None else one.estimate * unit,
        interval=_scaled(one.interval, unit),
        p_value=one.p_value,
        lift=one.lift,
        lift_interval=one.lift_interval,
        reasons={names[name]: reason.value for name, reason in one.reasons.items() if name in names},
    )


def _scaled(interval: Interval | None, unit: float) -> Interval | None:
    return None if interval is None else Interval(low=interval.low * unit, high=interval.high * unit)


def _look_shown(day: float, comparisons: Sequence[Comparison], unit: float) -> Json:
    return {
        "day": day,
        "comparisons": [
            {
                "variant": one.arm,
                "statistic": one.statistic,
                "critical": one.critical,
                "alphaSpent": one.alpha_spent,
                "difference": None if one.estimate is None else one.estimate * unit,
                "differenceInterval": ends(one.interval, unit),
                "pValue": one.p_value,
                "crossed": one.crossed,
                "decided": one.decided,
            }
            for one in comparisons
        ],
    }


# -- once


def _newcombe(asked: Question, arm: Arm, control: Arm, level: float) -> Against:
    """Two counts of which one may be empty."""
    small = newcombe.difference(_counts(arm), _counts(control), alpha=level)
    if not isinstance(small, Small):
        return _welch(asked, arm, control, level)
    t, c = estimate_of(asked, arm), estimate_of(asked, control)
    relative = lift(t.value or 0.0, c.value or 0.0)
    return _against(small.estimate, small.interval, small.p_value, relative, small.lift_interval)


def _counts(arm: Arm) -> Counts:
    return Counts(trials=arm.impressions or 0, successes=arm.conversions or 0)


def _welch(asked: Question, arm: Arm, control: Arm, level: float) -> Against:
    """Two values with their errors; strata taken out where they are given."""
    t, c = estimate_of(asked, arm), estimate_of(asked, control)
    found = _blocked(asked, arm, control, level)
    near = near_control(asked, arm), near_control(asked, control)
    plain, t, c = found or (compared(*near, alpha=level), t, c)
    if plain.estimate is None or t.value is None or c.value is None:
        why = next(iter(plain.reasons.values())).value
        return Against(reasons=dict.fromkeys((*COMPARING, "sequential"), why))
    around: Interval | Undefined = plain.reasons.get("interval", Undefined.NO_VARIATION)
    if plain.interval is not None and plain.degrees_of_freedom is not None:
        around = fieller(
            t.value,
            c.value,
            treatment_variance=t.variance or 0.0,
            control_variance=c.variance or 0.0,
            quantile=quantile(plain.degrees_of_freedom, level),
        )
    shown = _against(plain.estimate, plain.interval, plain.p_value, lift(t.value, c.value), around)
    for ours, theirs in (("differenceInterval", "interval"), ("pValue", "p_value")):
        if theirs in plain.reasons:
            shown.reasons[ours] = plain.reasons[theirs].value
    return shown


def _blocked(
    asked: Question, arm: Arm, control: Arm, level: float
) -> tuple[Difference, Estimate, Estimate] | None:
    """The stratified difference with its two rates; None where no strata are given or they cannot be told apart."""
    if not (arm.strata and control.strata) or len({*arm.strata, *control.strata}) < 2:
        return None
    unit = _unit(asked)
    sides = []
    for one in (arm, control):
        shot = _snapshot(asked.model_copy(update={"variants": (one,)}), unit, 1.0, {one.key: one})
        sums = ArmSums(key=one.key, trials=shot.trials, successes=shot.successes, signed=True)
        sides.append(blocked.StratifiedArm(sums=sums, strata=one.strata or ()))
    found = blocked.difference(*sides, variance=asked.variance)
    if isinstance(found, Undefined) or not in_range(found.variance * unit**2):
        return None
    variances = (found.treatment_variance, found.variance - found.treatment_variance)
    t, c = (
        Estimate(key=one.key, value=value * unit, variance=variance * unit**2, degrees_of_freedom=None)
        for one, value, variance in zip(
            (arm, control), (found.treatment_rate, found.control_rate), variances, strict=True
        )
    )
    plain = compared_by(
        arm.key,
        control.key,
        estimate=found.estimate * unit,
        error=sqrt(found.variance) * unit,
        freedom=found.degrees_of_freedom,
        alpha=level,
    )
    return plain, t, c


COMPARING = ("difference", "differenceInterval", "lift", "liftInterval", "pValue", "pValueAdjusted")


def _against(
    estimate: float,
    interval: Interval | None,
    p: float | None,
    relative: float | Undefined,
    around: Interval | Undefined,
) -> Against:
    reasons = {}
    if isinstance(relative, Undefined):
        reasons["lift"] = relative.value
    if isinstance(around, Undefined):
        reasons["liftInterval"] = around.value
    return Against(
        difference=estimate,
        interval=interval,
        p_value=p,
        lift=None if isinstance(relative, Undefined) else relative,
        lift_interval=None if isinstance(around, Undefined) else around,
        reasons=reasons,
    )


def _sequenced(asked: Question, arm: Arm, control: Arm, found: Against, level: float) -> Against:
    """With what may be said at any moment, in participants, where a tuning was given."""
    if asked.tuning is None:
        found.reasons.setdefault("sequential", Undefined.NO_TUNING.value)
        return found
    plain = compared(near_control(asked, arm), near_control(asked, control), alpha=level)
    if plain.estimate is None or not plain.standard_error:
        found.reasons.setdefault("sequential", Undefined.NO_VARIATION.value)
        return found
    always = sequence.always_valid(
        estimate=plain.estimate,
        standard_error=plain.standard_error,
        share=(arm.size + control.size) / asked.tuning,
        alpha=level,
        degrees_of_freedom=plain.degrees_of_freedom,
    )
    if not always.finite:
        found.reasons.setdefault("sequential", Undefined.OUT_OF_RANGE.value)
        return found
    told = {"pValue": always.p_value, "differenceInterval": ends(always.interval, 1.0)}
    return replace(found, sequential=told)
