"""Whether an experiment's arms can be compared: who came to be in them, and who was lost on the way.

What was drawn is what is tested, a participant or a cluster of them: the participants of a host fall silent together,
and counted one by one a single broken host would forbid every verdict.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from control_plane.domain import alternation
from control_plane.domain.evidence import Evidence, Json
from control_plane.domain.statistics import srm
from control_plane.domain.statistics.verdict import Integrity


def integrity(evidence: Evidence) -> Integrity:
    """Whether the draw gives the record, the arms are as large as their weights, and lost alike; by what was lost.

    Without data is a cluster of which nobody has an impression; left out for a reason is one of which anybody is.
    """
    if evidence.uncompared is not None:
        return Integrity(replays=None, ratio_p_value=None, leaked=False, losses={})
    heard = _heard(evidence)
    sizes = Counter(arm for arm, _ in heard)
    by_reason: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in evidence.exclusions:
        by_reason[item.reason][item.arm] = item.participants if item.units is None else item.units
    by_reason["without_data"] = Counter(arm for (arm, _), spoke in heard.items() if not spoke)
    losses = {reason: _alike(evidence, lost, sizes) for reason, lost in sorted(by_reason.items())}
    if evidence.alternation is not None:
        losses["without_data"] = alternation.silent_alike(evidence, evidence.alternation)
    ratio = _ratio(evidence, sizes)
    return Integrity(
        replays=evidence.replays,
        ratio_p_value=None if ratio is None or not evidence.hashed else ratio.p_value,
        leaked=any(sizes[arm.key] and not arm.weight for arm in evidence.arms),
        losses=losses,
    )


def _alike(evidence: Evidence, lost: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    keys = [arm.key for arm in evidence.arms]
    return srm.same_share(
        [min(lost.get(key, 0), sizes.get(key, 0)) for key in keys],
        [sizes.get(key, 0) for key in keys],
        seed=bytes.fromhex(evidence.seed),
    )


def _ratio(evidence: Evidence, sizes: Mapping[str, int]) -> srm.Ratio | None:
    if not (any(sizes.values()) and any(arm.weight for arm in evidence.arms)):
        return None
    return srm.sample_ratio(
        [sizes.get(arm.key, 0) for arm in evidence.arms], [arm.weight for arm in evidence.arms]
    )


def shown(evidence: Evidence, found: Integrity) -> Json | None:
    """The same as results tell it; None where nothing is compared. Counts are of participants."""
    if evidence.uncompared is not None:
        return None
    sizes = Counter(member.arm for member in evidence.members)
    ratio = _ratio(evidence, Counter(arm for arm, _ in _heard(evidence)))
    return {
        "kind": "chi_square" if evidence.hashed else "replay",
        "replays": found.replays,
        "pValue": found.ratio_p_value,
        "detected": bool(found.broken),
        "expected": {arm.key: sizes.total() * arm.weight / 100 for arm in evidence.arms},
        "observed": {arm.key: sizes[arm.key] for arm in evidence.arms},
        "largestDeviation": None if ratio is None else ratio.largest_deviation,
        "withDataPValue": found.losses.get("without_data"),
        "lossPValues": dict(found.losses),
    }


def _heard(evidence: Evidence) -> dict[tuple[str, str], bool]:
    """Whether anybody of it has an impression, by (arm, name) of what was drawn."""
    found: dict[tuple[str, str], bool] = {}
    for member, m in zip(evidence.members, evidence.sums.impressions, strict=True):
        unit = (member.arm, member.cluster or member.participant)
        found[unit] = found.get(unit, False) or m > 0
    return found
