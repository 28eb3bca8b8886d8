"""Whether participants came to be in the arms as the design says, and whether losing data hit all arms alike.

A chi-square on assigned counts is blind where assignment is balanced: there the record is replayed. What can
differ in any design is who has data: a variant that breaks its host loses exactly the participants it hurts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, lgamma

import numpy as np
import scipy

from shared.errors import Fault, Invalid

SUPPRESS = 0.001
"""Below it no verdict is given."""
WARN = 0.01
MAX_TABLES = 2_000_000
DRAWS = 99_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How counts compare with their weights. `leaked`: somebody is in an arm of weight 0."""

    p_value: float
    expected: tuple[float, ...]
    largest_deviation: float
    """Of a share from its weight, in shares of 1: tiny ones are found in huge populations and mean nothing."""
    leaked: bool


def sample_ratio(counts: Sequence[int], weights: Sequence[float]) -> Ratio:
    """Pearson's chi-square of counts against weights (any positive scale); weight-0 arms are checked apart.

    For assignment by hash. Raises Invalid for negative or missing numbers, or no arm with a weight.
    """
    faults = []
    if len(counts) != len(weights):
        faults.append(Fault(field="weights", message="must have one entry for each arm"))
    if any(count < 0 for count in counts):
        faults.append(Fault(field="counts", message="must not be negative"))
    if any(not weight >= 0 for weight in weights) or not sum(weights) > 0:
        faults.append(Fault(field="weights", message="must not be negative, and one must be above 0"))
    if faults:
        raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)
    whole = sum(weights)
    drawn = [(count, weight / whole) for count, weight in zip(counts, weights, strict=True) if weight]
    leaked = any(count for count, weight in zip(counts, weights, strict=True) if not weight)
    total = sum(count for count, _ in drawn)
    expected = tuple(total * weight / whole for weight in weights)
    value = sum((count - total * share) ** 2 / (total * share) for count, share in drawn) if total else 0.0
    deviation = max(abs(count / total - share) for count, share in drawn) if total else 0.0
    return Ratio(
        p_value=float(scipy.special.chdtrc(len(drawn) - 1, value)) if len(drawn) > 1 else 1.0,
        expected=expected,
        largest_deviation=deviation,
        leaked=leaked,
    )


def same_share(having: Sequence[int], sizes: Sequence[int], *, seed: bytes = b"") -> float:
    """The exact p that arms of these sizes lost alike: Fisher's test, Freeman-Halton (1951) for more arms.

    The sum of the probabilities of all tables, margins fixed, that are no more likely than the one seen. With
    more than two million tables it is estimated from 99,999 draws seeded by `seed`, (1 + hits)/(1 + draws).
    Raises Invalid where an arm has more than its size.
    """
    bad = [index for index, (h, n) in enumerate(zip(having, sizes, strict=True)) if not 0 <= h <= n]
    if bad:
        where = f"having[{bad[0]}]"
        raise Invalid(
            f"{where} must be between 0 and the arm's size", faults=[Fault(field=where, message="")]
        )
    total = sum(having)
    if total in (0, sum(sizes)) or len(sizes) < 2:
        return 1.0
    observed = _log_weight(having, sizes)
    tables = 1
    for size in sorted(sizes)[:-1]:
        tables *= min(size, total) + 1
    if tables > MAX_TABLES:
        return _drawn(observed, sizes, total, seed)
    norm = _log_choose(sum(sizes), total)
    weights = np.array(_all_log_weights(tuple(sizes), total))
    return min(1.0, float(np.exp(weights[weights <= observed + 1e-7] - norm).sum()))


def same_share_of_pairs(only: tuple[int, int]) -> float:
    """The exact p that of two who were compared as pairs neither is lost more often (McNemar 1947).

    `only` are the pairs that lost just the first, or just the second: each is either with a half.
    """
    return min(1.0, 2 * float(scipy.special.bdtr(min(only), sum(only), 0.5)))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _log_weight(having: Sequence[int], sizes: Sequence[int]) -> float:
    return sum(_log_choose(size, count) for count, size in zip(having, sizes, strict=True))


def _all_log_weights(sizes: tuple[int, ...], total: int) -> list[float]:
    if len(sizes) == 1:
        return [_log_choose(sizes[0], total)] if 0 <= total <= sizes[0] else []
    rest = sum(sizes[1:])
    found: list[float] = []
    for count in range(max(0, total - rest), min(sizes[0], total) + 1):
        own = _log_choose(sizes[0], count)
        found += [own + further for further in _all_log_weights(sizes[1:], total - count)]
    return found


def _drawn(observed: float, sizes: Sequence[int], total: int, seed: bytes) -> float:
    chance = np.random.Generator(np.random.PCG64(int.from_bytes(seed or b"\x00", "big")))
    tables = chance.multivariate_hypergeometric(list(sizes), total, size=DRAWS)
    terms = [[_log_choose(size, count) for count in range(size + 1)] for size in sizes]
    weights = np.zeros(DRAWS)
    for index, term in enumerate(terms):
        weights += np.asarray(term)[tables[:, index]]
    return float((1 + int((weights <= observed + 1e-7).sum())) / (1 + DRAWS))


def worst_case(
    rates: tuple[float, float], silent: tuple[int, int], sizes: tuple[int, int]
) -> tuple[float, float]:
    """(lowest, highest) difference treatment - control if silent participants had done their worst or best.

    `rates` are of participants with data, shares of 1; the bounds count a silent participant as one that
    never or always converted (Manski 1990).
    """
    bounds = []
    for rate, quiet, size in zip(rates, silent, sizes, strict=True):
        if not size:
            return -inf, inf
        spoken = (size - quiet) / size
        bounds.append((rate * spoken, rate * spoken + quiet / size))
    (t_low, t_high), (c_low, c_high) = bounds
    return t_low - c_high, t_high - c_low
