"""Statistics on numbers somebody already has: JSON in, JSON out, without a server.

The same functions as behind results, so the same sums give the same numbers. Three shapes of a variant: counts
(as many participants as impressions), participants with their impressions and conversions, and one value for each
participant. Impossible numbers are refused by variant and field, never computed on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Annotated, Any, Literal

from pydantic import Field

from control_plane.domain.evidence import Evidence, Json, camel, ends
from control_plane.domain.fields import Request, parse
from control_plane.domain.inference import answer, differing_looks
from control_plane.domain.metrics import Goal
from control_plane.domain.statistics import blocked, decision, multiple, newcombe, sequence, srm
from control_plane.domain.statistics.bayes import Beta, Beliefs, believed, overdispersion
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
    Variance,
    compared,
    compared_by,
    counted,
    icc,
    quantile,
    rate,
)
from shared.errors import Fault, Invalid

Pair = tuple[int, int]
Text = Annotated[str, Field(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=0)]


class Arm(Request):
    """A variant's numbers, in one of three shapes; `strata` and `blocks` have an entry for each participant."""

    key: Text
    is_control: bool = False
    weight: Annotated[float, Field(ge=0)] | None = None
    conversions: Count | None = None
    impressions: Count | None = None
    participants: tuple[Pair, ...] | None = None
    values: tuple[float, ...] | None = None
    strata: tuple[str, ...] | None = None
    blocks: tuple[str, ...] | None = None

    @property
    def shape(self) -> str:
        """`counts`, `participants` or `values`."""
        if self.participants is not None:
            return "participants"
        return "values" if self.values is not None else "counts"

    @property
    def size(self) -> int:
        """How many participants."""
        if self.participants is not None:
            return len(self.participants)
        return len(self.values) if self.values is not None else self.impressions or 0


class Day(Request):
    """What was known `day` days after the start: cumulative sums of every participant, by variant."""

    day: Annotated[float, Field(gt=0)]
    participants: dict[str, tuple[Pair, ...]]


class Prior(Request):
    """A Beta prior."""

    a: Annotated[float, Field(gt=0)] = 1.0
    b: Annotated[float, Field(gt=0)] = 1.0


class Question(Request):
    """What is to be analysed."""

    variants: tuple[Arm, ...]
    control: Text | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    strata: dict[str, tuple[str, ...]] | None = None
    blocks: dict[str, tuple[str, ...]] | None = None
    looks: tuple[Day, ...] = ()
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    goal: Goal = "increase"
    prior: Prior = Prior()
    decision: Literal["welch", "path_test", "sequence"] | None = None
    tuning: Annotated[float, Field(gt=0)] | None = None
    variance: Variance = "jackknife"
    design_effect: Annotated[float, Field(ge=1)] | None = None
    correction: multiple.Correction = "bonferroni"
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    minimum_detectable_effect: Annotated[float, Field(gt=0)] = 0.1
    horizon_days: Annotated[float, Field(gt=0)] = 14.0
    seed: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] = ""


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
    question = _named(parse(Question, given))
    faults = list(_faults(question))
    if faults:
        raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)
    return _answered(question)


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


# -- what is asked


def _named(question: Question) -> Question:
    """With what stands beside the variants in them: control, weights, strata, blocks."""
    keys = {arm.key for arm in question.variants}
    for name in ("weights", "strata", "blocks"):
        strangers = sorted(set(getattr(question, name) or {}) - keys)
        if strangers:
            fault = Fault(field=name, message=f"names {', '.join(strangers)}, which is no variant")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
    arms = [
        arm.model_copy(
            update={
                name: (getattr(question, source) or {}).get(arm.key, getattr(arm, name))
                for name, source in (("weight", "weights"), ("strata", "strata"), ("blocks", "blocks"))
            }
        )
        for arm in question.variants
    ]
    marked = [arm.key for arm in arms if arm.is_control]
    control = question.control or (marked[0] if len(marked) == 1 else None)
    return question.model_copy(update={"variants": tuple(arms), "control": control})


def _faults(question: Question) -> Iterator[Fault]:
    keys = [arm.key for arm in question.variants]
    if len(keys) < 2:
        yield Fault(field="variants", message="are less than two, so there is nothing to compare")
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield Fault(field="variants", message=f"have the key {key!r} twice")
    if question.control is None:
        yield Fault(field="control", message="is missing; name the variant that the others are compared with")
    elif question.control not in keys:
        yield Fault(field="control", message=f"{question.control!r} is not one of the variants")
    shapes = {arm.shape for arm in question.variants}
    if len(shapes) > 1:
        yield Fault(field="variants", message=f"come as {' and '.join(sorted(shapes))}; give all in one shape")
    weighted = [arm.key for arm in question.variants if arm.weight is not None]
    if weighted and len(weighted) < len(keys):
        yield Fault(field="weights", message="must be there for every variant or for none")
    for arm in question.variants:
        yield from _arm_faults(arm, f"variants.{arm.key}")
    for at, day in enumerate(question.looks):
        for arm in question.variants:
            rows = day.participants.get(arm.key)
            where = f"looks.{at}.participants.{arm.key}"
            if rows is None or (arm.participants is not None and len(rows) != len(arm.participants)):
                yield Fault(field=where, message="must have the sums of each of the variant's participants")
            else:
                yield from _pair_faults(rows, where)
        for stranger in sorted(set(day.participants) - set(keys)):
            yield Fault(field=f"looks.{at}.participants.{stranger}", message="is no variant")


def _arm_faults(arm: Arm, where: str) -> Iterator[Fault]:
    given = [
        name
        for name, there in (
            ("counts", arm.conversions is not None or arm.impressions is not None),
            ("participants", arm.participants is not None),
            ("values", arm.values is not None),
        )
        if there
    ]
    if len(given) != 1:
        said = " and ".join(given) or "nothing"
        yield Fault(field=where, message=f"has {said}; give conversions and impressions, participants, or values")
        return
    if arm.shape == "counts":
        if arm.conversions is None or arm.impressions is None:
            missing = "conversions" if arm.conversions is None else "impressions"
            yield Fault(field=f"{where}.{missing}", message="is missing")
        elif arm.conversions > arm.impressions:
            message = f"is {arm.conversions}, more than its {arm.impressions} impressions"
            yield Fault(field=f"{where}.conversions", message=message)
        for name in ("strata", "blocks"):
            if getattr(arm, name) is not None:
                yield Fault(field=f"{where}.{name}", message="needs participants or values to belong to")
    elif arm.participants is not None:
        yield from _pair_faults(arm.participants, f"{where}.participants")
    for name in ("strata", "blocks"):
        names = getattr(arm, name)
        if arm.shape != "counts" and names is not None and len(names) != arm.size:
            yield Fault(field=f"{where}.{name}", message=f"has {len(names)} entries for {arm.size} participants")


def _pair_faults(rows: Sequence[Pair], where: str) -> Iterator[Fault]:
    for at, (m, c) in enumerate(rows):
        if m < 0 or c < 0:
            yield Fault(field=f"{where}.{at}", message="must not be negative")
        elif c > m:
            yield Fault(field=f"{where}.{at}", message=f"has {c} conversions, more than its {m} impressions")


# -- what is answered


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


def _answered(question: Question) -> Json:
    arms = question.variants
    comparisons = max(len(arms) - 1, 1)
    level = question.alpha / comparisons if question.correction == "bonferroni" else question.alpha
    method = question.decision or ("path_test" if question.looks or any(arm.blocks for arm in arms) else "welch")
    if method != "welch" and arms[0].shape == "counts":
        fault = Fault(field="decision", message=f"{method} needs participants or values, not counts")
        raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
    found, looked = _compared(question, method, level)
    believes = _beliefs(question)
    others = [arm.key for arm in arms if arm.key != question.control]
    known = [(key, found[key].p_value) for key in others]
    given = [p for _, p in known if p is not None]
    adjusted = dict(
        zip(
            [key for key, p in known if p is not None],
            [min(1.0, comparisons * p) for p in given]
            if question.correction == "bonferroni"
            else multiple.adjusted(given, question.correction),
            strict=True,
        )
    )
    return {
        "alpha": question.alpha,
        "control": question.control,
        "goal": question.goal,
        "method": {
            "decision": method,
            "variance": question.variance,
            "correction": question.correction,
            "intervalLevel": 1 - level,
            "designEffect": question.design_effect,
            "tuning": question.tuning,
            "prior": {"a": question.prior.a, "b": question.prior.b},
        },
        "overdispersion": None if believes is None else believes.overdispersion,
        "variants": [
            _shown(question, at, found.get(arm.key), adjusted.get(arm.key), believes)
            for at, arm in enumerate(arms)
        ],
        "srm": _srm(question),
        "looks": looked,
    }


def _own(question: Question, arm: Arm) -> Estimate:
    """The variant's value with its error."""
    if arm.values is not None:
        return mean(arm.key, moments(arm.values))
    if arm.participants is not None:
        return rate(_sums(arm), variance=question.variance).estimate()
    found = counted(arm.key, trials=arm.impressions or 0, successes=arm.conversions or 0).estimate()
    effect = question.design_effect or 1.0
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


def _compared(question: Question, method: str, level: float) -> tuple[dict[str, _Against], list[Json]]:
    control = next(arm for arm in question.variants if arm.key == question.control)
    others = [arm for arm in question.variants if arm is not control]
    if method == "welch":
        return {arm.key: _welch(question, arm, control, level) for arm in others}, []
    plan = _plan(question, method, level)
    days = [(day.day, day.participants) for day in question.looks]
    shots = [_snapshot(question, day, rows) for day, rows in days]
    if not shots:
        shots = [_snapshot(question, plan.horizon, None)]
    looks = decision.looks(plan, shots)
    found = {
        one.arm: _Against(
            difference=one.estimate,
            interval=one.interval,
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
                    "difference": one.estimate,
                    "interval": ends(one.interval, 1.0),
                    "crossed": one.crossed,
                    "decided": one.decided,
                }
                for one in look.comparisons
            ],
        }
        for look in looks
    ]
    return found, shown


def _of_results(reasons: dict[str, str]) -> dict[str, str]:
    names = {
        "estimate": "difference",
        "interval": "differenceInterval",
        "p_value": "pValue",
        "lift": "lift",
        "lift_interval": "liftInterval",
    }
    return {names[name]: reason for name, reason in reasons.items() if name in names}


def _plan(question: Question, method: str, level: float) -> Plan:
    units = [
        Unit(
            arm=arm.key,
            block=arm.blocks[at] if arm.blocks else (arm.strata[at] if arm.strata else "all"),
            stratum=arm.strata[at] if arm.strata else "all",
        )
        for arm in question.variants
        for at in range(arm.size)
    ]
    return Plan(
        method="path_test" if method == "path_test" else "sequence",
        arms=[arm.key for arm in question.variants],
        control=question.control or "",
        units=units,
        seed=bytes.fromhex(question.seed),
        alpha=level,
        horizon=question.horizon_days,
        power=question.power,
        effect=question.minimum_detectable_effect,
        tuning=question.tuning,
        variance=question.variance,
        shares=question.variants[0].shape == "participants",
        comparisons=1,  # the level is divided already, or is not to be
    )


def _snapshot(question: Question, day: float, rows: dict[str, tuple[Pair, ...]] | None) -> Snapshot:
    pairs: list[tuple[float, float]] = []
    for arm in question.variants:
        if rows is not None:
            pairs += rows[arm.key]
        elif arm.participants is not None:
            pairs += arm.participants
        else:
            pairs += [(1, value) for value in arm.values or ()]
    return Snapshot(day=day, trials=[m for m, _ in pairs], successes=[c for _, c in pairs])


def _welch(question: Question, arm: Arm, control: Arm, level: float) -> _Against:
    """Two values with their errors; strata taken out where they are given; counts by Newcombe's interval."""
    t, c = _own(question, arm), _own(question, control)
    effect = question.design_effect or 1.0
    if arm.shape == "counts" and effect == 1.0:
        small = newcombe.difference(_counts(arm), _counts(control), alpha=level)
        if isinstance(small, Small):
            relative = lift(t.value or 0.0, c.value or 0.0)
            found = _against(small.estimate, small.interval, small.p_value, relative, small.lift_interval)
            return _sequenced(question, arm, control, found, level)
    plain = _blocked(question, arm, control, level) or compared(t, c, alpha=level)
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
    return _sequenced(question, arm, control, found, level)


def _counts(arm: Arm) -> Counts:
    return Counts(trials=arm.impressions or 0, successes=arm.conversions or 0)


def _blocked(question: Question, arm: Arm, control: Arm, level: float) -> Difference | None:
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


def _sequenced(question: Question, arm: Arm, control: Arm, found: _Against, level: float) -> _Against:
    """With what may be said at any moment, in participants, where a tuning was given."""
    if question.tuning is None:
        found.reasons["sequential"] = Undefined.NO_TUNING.value
        return found
    plain = compared(_own(question, arm), _own(question, control), alpha=level)
    if plain.estimate is None or not plain.standard_error:
        found.reasons["sequential"] = Undefined.NO_VARIATION.value
        return found
    always = sequence.always_valid(
        estimate=plain.estimate,
        standard_error=plain.standard_error,
        share=(arm.size + control.size) / question.tuning,
        alpha=level,
    )
    told = {"pValue": always.p_value, "differenceInterval": ends(always.interval, 1.0)}
    return replace(found, sequential=told)


def _beliefs(question: Question) -> Beliefs | None:
    """The posteriors' answer for counts and participants; None for values, and where nothing can be believed."""
    arms = question.variants
    if arms[0].shape == "values":
        return None
    if arms[0].shape == "counts":
        sums = [(arm.impressions or 0, arm.conversions or 0) for arm in arms]
        shared = question.design_effect or 1.0
    else:
        sums = [(sum(m for m, _ in rows), sum(c for _, c in rows)) for rows in (arm.participants or () for arm in arms)]
        if not any(m for m, _ in sums):
            return None
        shared = question.design_effect or overdispersion([_sums(arm) for arm in arms])
    prior = question.prior
    return believed(
        [arm.key for arm in arms],
        [Beta(a=prior.a + c / shared, b=prior.b + (m - c) / shared) for m, c in sums],
        control=question.control,
        alpha=question.alpha,
        goal=question.goal,
        overdispersion=shared,
    )


_COMPARING = ("difference", "differenceInterval", "lift", "liftInterval", "pValue", "pValueAdjusted")
_BELIEVED = ("probabilityToBeBest", "expectedLoss", "credibleInterval", "chanceToWin")


def _shown(
    question: Question, at: int, against: _Against | None, adjusted: float | None, believes: Beliefs | None
) -> Json:
    arm = question.variants[at]
    own = _own(question, arm)
    reasons: dict[str, str] = {}
    found: Json = {"key": arm.key, "isControl": arm.key == question.control, "participants": arm.size}
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
            effect = rate(_sums(arm), variance=question.variance).design_effect
            found |= {"designEffect": effect, "icc": None if isinstance(alike, Undefined) else alike}
            if isinstance(alike, Undefined):
                reasons["icc"] = alike.value
            if effect is None:
                why = rate(_sums(arm), variance=question.variance).reasons["design_effect"]
                reasons["designEffect"] = why.value
    found["standardError"] = None if own.variance is None else sqrt(own.variance)
    if own.variance is None:
        reasons["standardError"] = own.reasons["variance"].value
    found |= _belief(question, at, believes, reasons)
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


def _belief(question: Question, at: int, believes: Beliefs | None, reasons: dict[str, str]) -> Json:
    if believes is None:
        values = question.variants[0].shape == "values"
        why = Undefined.NOT_OF_THIS_KIND if values else Undefined.NO_IMPRESSIONS
        reasons |= dict.fromkeys(_BELIEVED, why.value)
        return dict.fromkeys(_BELIEVED)
    one = believes.arms[at]
    if one.chance_to_win is None:
        reasons["chanceToWin"] = Undefined.IS_CONTROL.value
    return {
        "probabilityToBeBest": one.probability_to_be_best,
        "expectedLoss": one.expected_loss,
        "credibleInterval": ends(one.credible_interval, 1.0),
        "chanceToWin": one.chance_to_win,
    }


def _srm(question: Question) -> Json | None:
    """The plain chi-square of what was assigned against the weights; None without weights."""
    weights = [arm.weight for arm in question.variants]
    known = [weight for weight in weights if weight is not None]
    if len(known) < len(weights):
        return None
    found = srm.sample_ratio([arm.size for arm in question.variants], known)
    keys = [arm.key for arm in question.variants]
    return {
        "pValue": found.p_value,
        "detected": found.leaked or found.p_value < srm.SUPPRESS,
        "expected": dict(zip(keys, found.expected, strict=True)),
        "observed": {arm.key: arm.size for arm in question.variants},
        "largestDeviation": found.largest_deviation,
    }
