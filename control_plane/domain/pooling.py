"""Several phases of a run as one answer, which has to be asked for: pooled differences, and never a verdict.

Raw counts of phases with different splits must not be added up (Simpson's paradox), so no rate is told; the difference
is `statistics.phases.pooled`, and what is said of its error is valid at any moment, because nobody knows beforehand
how many phases there will be.
"""

from math import sqrt

from control_plane.domain.evidence import Arm, Evidence, Json, Stretch, camel, ends
from control_plane.domain.statistics import phases, sequence
from control_plane.domain.statistics.proportions import Undefined
from control_plane.domain.statistics.summary import EXPLANATIONS
from shared.errors import Fault, Invalid

_OF_PHASES = (
    "conversion_rate", "mean", "probability_to_be_best", "expected_loss", "credible_interval", "design_effect",
    "icc", "chance_to_win", "lift", "lift_interval", "worst_case",
)  # fmt: skip
"""What is told of single phases only."""
_COMPARING = ("difference", "differenceInterval", "pValue", "pValueAdjusted", "sequential")


def answer(evidence: Evidence) -> Json:
    """The whole answer over all phases, JSON-shaped; every number that is null has its reason beside it."""
    compared = evidence.uncompared is None and evidence.control is not None
    others = [arm for arm in evidence.arms if not arm.is_control] if compared else []
    used = [arm for arm in others if any(_sides(evidence, arm, stretch) for stretch in evidence.pooled)]
    level = evidence.settings.alpha / max(len(used), 1)
    return {
        **evidence.about,
        "alpha": evidence.settings.alpha,
        "population": evidence.population,
        "method": _method(evidence) if compared else None,
        "variants": [_variant(evidence, arm, level, comparisons=len(used)) for arm in evidence.arms],
        "looks": [],
        "guardrails": [],
        "exclusions": [],
        "srm": None,
        "verdict": None,
        "power": None,
        "findings": list(evidence.findings),
        "phases": [_phase(evidence, stretch, others) for stretch in evidence.pooled],
        "secondary": None,
        "mainEffects": [],
        "interactions": [],
        "explanations": {"pValue": EXPLANATIONS["pValue"]},
        "inputs": None,
    }


def _method(evidence: Evidence) -> Json:
    settings = evidence.settings
    return {
        "decision": "sequence",
        "variance": "sums over phases",
        "horizonDays": settings.horizon_days,
        "power": settings.power,
        "minimumDetectableEffect": evidence.measure.effect or settings.effect,
        "tuning": None,
        "prior": {"a": settings.prior[0], "b": settings.prior[1]},
        "correction": "bonferroni",
        "alphaUnspent": 1.0,
        "historyDays": None,
        "withoutHistory": None,
        "winsorizeAt": evidence.measure.winsorize_at,
        "strata": len({member.stratum for stretch in evidence.pooled for member in stretch.members}),
        "comparedAt": None,
    }


def _variant(evidence: Evidence, arm: Arm, level: float, *, comparisons: int) -> Json:
    people: set[str] = set()
    exposed: set[str] = set()
    counts = [0, 0, 0, 0]
    for stretch in evidence.pooled:
        shares = stretch.sums.shares(evidence.measure)
        rows = zip(stretch.members, stretch.sums.impressions, stretch.sums.conversions, *shares, strict=True)
        for member, *numbers in rows:
            if member.arm == arm.key:
                people.add(member.participant)
                if numbers[0]:
                    exposed.add(member.participant)
                counts = [had + more for had, more in zip(counts, numbers, strict=True)]
    reasons = {camel(name): Undefined.OF_ONE_PHASE.value for name in _OF_PHASES}
    told = _against(evidence, arm, level, comparisons, reasons)
    return {
        "id": arm.id,
        "key": arm.key,
        "name": arm.name,
        "isControl": arm.is_control,
        "weight": arm.weight,
        "participants": len(people),
        "participantsExposed": len(exposed),
        "impressions": counts[0],
        "conversions": counts[1],
        "units": counts[2],
        "convertedUnits": counts[3],
        **{camel(name): None for name in _OF_PHASES},
        **told,
        "reasons": dict(sorted(reasons.items())),
    }


def _against(evidence: Evidence, arm: Arm, level: float, comparisons: int, reasons: dict[str, str]) -> Json:
    """The pooled difference from the control with what may be said of it at any moment."""
    absent: Json = dict.fromkeys(_COMPARING)
    if evidence.uncompared is not None or evidence.control is None or arm.is_control:
        why = evidence.uncompared or (Undefined.IS_CONTROL if arm.is_control else Undefined.NO_CONTROL).value
        reasons |= dict.fromkeys(absent, why)
        return absent
    sides = [side for stretch in evidence.pooled if (side := _sides(evidence, arm, stretch)) is not None]
    found = phases.pooled(arm.key, sides)
    if found.value is None or found.variance is None:
        reasons |= dict.fromkeys(absent, found.reasons["value"].value)
        return absent
    told = absent | {"difference": found.value * evidence.scale}
    target = _target(evidence, arm, level)
    if not found.variance or not _enough(evidence, sides) or target is None:
        why = (
            Undefined.NO_VARIATION
            if not found.variance
            else Undefined.NO_BASELINE
            if target is None
            else Undefined.TOO_FEW_DATA
        )
        reasons |= dict.fromkeys(_COMPARING[1:], why.value)
        return told
    always = sequence.always_valid(
        estimate=found.value,
        standard_error=sqrt(found.variance),
        share=1 / found.variance / target,
        alpha=level,
        degrees_of_freedom=found.degrees_of_freedom,
    )
    if not always.finite:
        reasons |= dict.fromkeys(_COMPARING[1:], Undefined.OUT_OF_RANGE.value)
        return told
    interval = ends(always.interval, evidence.scale)
    return {
        "difference": told["difference"],
        "differenceInterval": interval,
        "pValue": always.p_value,
        "pValueAdjusted": min(1.0, comparisons * always.p_value),
        "sequential": {"pValue": always.p_value, "differenceInterval": interval},
    }


def _target(evidence: Evidence, arm: Arm, level: float) -> float | None:
    """I* for the control's rate in the first phase, as its first look saw it; None where it has none."""
    for stretch in evidence.pooled:
        if _sides(evidence, arm, stretch) is None:
            continue
        sums = stretch.first or stretch.sums
        rows = zip(stretch.members, *sums.pair(evidence.measure), strict=True)
        own = [(m, c) for member, m, c in rows if member.arm == evidence.control]
        total = sum(m for m, _ in own)
        rate = sum(c for _, c in own) / total if total else 0.0
        if rate:
            wanted = evidence.measure.effect or evidence.settings.effect
            return sequence.information_target(
                alpha=level, power=evidence.settings.power, effect=wanted * abs(rate)
            )
    return None


def _enough(evidence: Evidence, sides: list[phases.Phase]) -> bool:
    """What a sequence needs before its normal approximation may say anything, over all phases."""
    speaking = [
        {
            who
            for side in sides
            for who, own, m in zip(side.participants, side.treated, side.trials, strict=True)
            if own is treated and m
        }
        for treated in (True, False)
    ]
    return sequence.enough(
        [len(people) for people in speaking],
        [m for side in sides for m in side.trials],
        [c for side in sides for c in side.successes],
        shares=evidence.measure.kind == "proportion",
    )


def _sides(evidence: Evidence, arm: Arm, stretch: Stretch) -> phases.Phase | None:
    """Who takes part of the arm and of the control, clusters summed up; None without both."""
    found: dict[tuple[str, bool], list[int]] = {}
    strata: dict[tuple[str, bool], str] = {}
    keys = (arm.key, evidence.control)
    for member, m, c in zip(stretch.members, *stretch.sums.pair(evidence.measure), strict=True):
        if member.compared and member.arm in keys:
            who = (member.cluster or member.participant, member.arm == arm.key)
            strata.setdefault(who, member.stratum)
            sums = found.setdefault(who, [0, 0])
            sums[0] += m
            sums[1] += c
    # Whoever changed sides within a phase, by its rules, is no witness of it.
    names = [name for name, _ in found]
    once = [who for who in found if names.count(who[0]) == 1] if len(set(names)) < len(names) else list(found)
    if len({treated for _, treated in once}) < 2:
        return None
    return phases.Phase(
        participants=[name for name, _ in once],
        treated=[treated for _, treated in once],
        strata=[strata[who] for who in once],
        trials=[found[who][0] for who in once],
        successes=[found[who][1] for who in once],
    )


def _phase(evidence: Evidence, stretch: Stretch, others: list[Arm]) -> Json:
    """A phase's part in it: its weight in each comparison, and what it says by itself."""
    told = []
    for arm in others:
        sides = {item.number: _sides(evidence, arm, item) for item in evidence.pooled}
        weights = {number: phases.weight_of(side) for number, side in sides.items() if side is not None}
        whole = sum(weights.values())
        own = sides[stretch.number]
        value = None if own is None else phases.pooled(arm.key, [own]).value
        share = weights.get(stretch.number, 0.0) / whole if whole else 0.0
        told.append(
            {
                "variant": arm.key,
                "share": share,
                "difference": None if value is None else value * evidence.scale,
            }
        )
    return {"id": stretch.id, "number": stretch.number, "variants": told}


def refuse_groups(group_by: str) -> None:
    """Raises Invalid: groups are of one phase."""
    if group_by:
        fault = Fault(
            field="groupBy",
            message="is told of one phase",
            remedy="ask for a phase by its number, or leave it out",
        )
        raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
