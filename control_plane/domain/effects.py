"""What each factor of a multivariate experiment does by itself, and which factors do not simply add up.

Main effects have what may be said at any moment, at alpha over the number of level contrasts; the verdict compares
whole variants with the control. Interactions are shown with their error and nothing is decided on them.
"""

from collections import Counter
from collections.abc import Sequence
from math import sqrt

from control_plane.domain.evidence import Evidence, Json, Sums, ends
from control_plane.domain.statistics import multivariate, sequence
from control_plane.domain.statistics.multivariate import MainEffect, Member
from control_plane.domain.statistics.proportions import Undefined

Factors = list[tuple[str, tuple[str, ...]]]


def main_effects(evidence: Evidence) -> list[Json]:
    """Every level of every factor against the factor's first one; empty where there are no factors."""
    factors = _factors(evidence)
    if not factors or evidence.uncompared is not None:
        return []
    members = _members(evidence, evidence.sums)
    opening = members if evidence.first is None else _members(evidence, evidence.first)
    found = multivariate.main_effects(members, factors)
    level = evidence.settings.alpha / max(len(found), 1)
    return [
        _told(evidence, one, members, opening, level=level, contrasts=len(found), factors=factors)
        for one in found
    ]


def interactions(evidence: Evidence) -> list[Json]:
    """By how much two levels together do more than the sum of both; empty where cells are too small to tell."""
    factors = _factors(evidence)
    if not factors or evidence.uncompared is not None:
        return []
    return [
        {
            "factors": list(one.factors),
            "levels": list(one.levels),
            "difference": one.effect.value * evidence.scale,
            "standardError": sqrt(one.effect.variance) * evidence.scale,
        }
        for one in multivariate.interactions(_members(evidence, evidence.sums), factors)
        if one.effect.value is not None and one.effect.variance is not None
    ]


def _factors(evidence: Evidence) -> Factors:
    return [(item.key, item.levels) for item in evidence.factors]


def _members(evidence: Evidence, sums: Sums) -> list[Member]:
    """Who takes part, clusters summed up, with the levels of its variant."""
    levels = {arm.key: tuple(arm.levels[item.key] for item in evidence.factors) for arm in evidence.arms}
    found: dict[tuple[str, str], list[int]] = {}
    for member, m, c in zip(evidence.members, *sums.pair(evidence.measure), strict=True):
        if member.compared:
            own = found.setdefault((member.cluster or member.participant, member.arm), [0, 0])
            own[0] += m
            own[1] += c
    return [Member(levels=levels[arm], trials=m, successes=c) for (_, arm), (m, c) in found.items()]


def _told(
    evidence: Evidence,
    one: MainEffect,
    members: Sequence[Member],
    opening: Sequence[Member],
    *,
    level: float,
    contrasts: int,
    factors: Factors,
) -> Json:
    at = [key for key, _ in factors].index(one.factor)
    told: Json = {
        "factor": one.factor,
        "level": one.level,
        "baseline": one.baseline,
        "additive": one.additive,
        "difference": None if one.effect.value is None else one.effect.value * evidence.scale,
        "interval": None,
        "pValue": None,
        "pValueAdjusted": None,
        "reasons": {},
    }
    base = [row for row in opening if row.levels[at] == one.baseline]
    trials = sum(row.trials for row in base)
    rate = sum(row.successes for row in base) / trials if trials else 0.0
    why = _why_not(evidence, one, [row for row in members if row.levels[at] in (one.level, one.baseline)], at)
    if why is None and not rate:
        why = Undefined.NO_BASELINE
    if why is not None or one.effect.value is None or not one.effect.variance:
        names = [
            "interval",
            "pValue",
            "pValueAdjusted",
            *(["difference"] if told["difference"] is None else []),
        ]
        told["reasons"] = dict.fromkeys(sorted(names), (why or Undefined.NO_VARIATION).value)
        return told
    wanted = evidence.measure.effect or evidence.settings.effect
    target = sequence.information_target(
        alpha=level, power=evidence.settings.power, effect=wanted * abs(rate)
    )
    always = sequence.always_valid(
        estimate=one.effect.value,
        standard_error=sqrt(one.effect.variance),
        share=1 / one.effect.variance / target,
        alpha=level,
        degrees_of_freedom=one.effect.degrees_of_freedom,
    )
    if not always.finite:
        lacking = sorted(("interval", "pValue", "pValueAdjusted"))
        return told | {"reasons": dict.fromkeys(lacking, Undefined.OUT_OF_RANGE.value)}
    return told | {
        "interval": ends(always.interval, evidence.scale),
        "pValue": always.p_value,
        "pValueAdjusted": min(1.0, contrasts * always.p_value),
    }


def _why_not(evidence: Evidence, one: MainEffect, rows: Sequence[Member], at: int) -> Undefined | None:
    """What a sequence lacks before its normal approximation may say anything of the contrast."""
    if one.effect.value is None:
        return one.effect.reasons["value"]
    if not one.effect.variance:
        return Undefined.NO_VARIATION
    speaking = [
        sum(1 for row in rows if row.levels[at] == name and row.trials) for name in (one.level, one.baseline)
    ]
    enough = sequence.enough(
        speaking,
        [row.trials for row in rows],
        [row.successes for row in rows],
        shares=evidence.measure.kind == "proportion",
        cells=() if one.additive else list(Counter(row.levels for row in rows if row.trials).values()),
    )
    return None if enough else Undefined.TOO_FEW_DATA
