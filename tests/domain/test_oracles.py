"""Whole answers of `analyze` beside independent ones: 40 digits of mpmath, or scipy and statsmodels, at 1e-9.

Counts from nothing to all of a million million; what an oracle needs too long for is left to other oracles, of the
parts.
"""

from collections.abc import Callable
from itertools import pairwise
from math import comb
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from control_plane.domain.analyze import analyze

BILLION, MOST = 10**9, 10**12
Counts = tuple[int, int]
"""(conversions, impressions)"""


def asked(*arms: Counts, **more: Any) -> list[dict[str, Any]]:
    """The answer's variants; the first is the control."""
    variants = [
        {"key": f"v{at}", "conversions": hits, "impressions": size} for at, (hits, size) in enumerate(arms)
    ]
    found: list[dict[str, Any]] = analyze({"variants": variants, "control": "v0", **more})["variants"]
    return found


def same(value: float | None, wanted: Any) -> None:
    """To 1e-9 of it."""
    assert value == pytest.approx(float(wanted), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        ((45, 250), (67, 250)), ((11, 31), (23, 57)), ((12, 10**6), (40, 10**6)), ((4990, 5000), (85, 100)),
        ((10**8, BILLION), (100_010_000, BILLION)), ((10**6, MOST), (10**6 + 3000, MOST)),
    ],
)  # fmt: skip
def test_two_counts_by_welch(control: Counts, treatment: Counts) -> None:
    """Difference, error, interval, p and lift."""
    before, b = asked(control, treatment, decision="welch")
    with mp.workdps(40):
        rates = [mp.mpf(hits) / size for hits, size in (control, treatment)]
        spread = [r * (1 - r) / (size - 1) for r, (_, size) in zip(rates, (control, treatment), strict=True)]
        apart, error = rates[1] - rates[0], mp.sqrt(sum(spread))
        freedom = sum(spread) ** 2 / sum(
            v**2 / (size - 1) for v, (_, size) in zip(spread, (control, treatment), strict=True)
        )
        same(before["standardError"], mp.sqrt(spread[0]))
        same(b["difference"], apart)
        same(b["lift"], rates[1] / rates[0] - 1)
        reach = stats.t.ppf(0.975, float(freedom)) * error
        same(b["differenceInterval"]["low"], apart - reach)
        same(b["differenceInterval"]["high"], apart + reach)
        if freedom < 10**7:
            t = apart / error
            p = mp.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
            assert b["pValue"] == pytest.approx(float(p), rel=1e-9)


@pytest.mark.parametrize(
    ("control", "treatment"),
    [((0, 20), (8, 20)), ((20, 20), (8, 20)), ((3, 50), (0, 70)), ((10, 10), (0, 10)), ((0, 1), (1, 1)),
     ((1, 300), (BILLION // 2, BILLION))],
)  # fmt: skip
def test_small_counts_by_newcombe(control: Counts, treatment: Counts) -> None:
    """The interval statsmodels gives."""
    b = asked(control, treatment, decision="newcombe")[1]
    wanted = confint_proportions_2indep(*treatment, *control, method="newcomb", compare="diff")
    same(b["differenceInterval"]["low"], wanted[0])
    same(b["differenceInterval"]["high"], wanted[1])


@pytest.mark.parametrize("size", [2, 3, 8, 40])
def test_participants_by_the_delta_method_and_the_jackknife(size: int) -> None:
    """The error by either; the p of their Welch, delta with n - 1 degrees of freedom, jackknife with Kish's."""
    chance = np.random.default_rng(size)
    arms = [
        (m, chance.binomial(m, 0.3)) for m in (chance.integers(1, 200, size), chance.integers(1, 200, size))
    ]
    variants = [
        {"key": key, "participants": np.column_stack(arm).tolist()}
        for key, arm in zip("ab", arms, strict=True)
    ]
    for variance in ("delta", "jackknife"):
        given = {"variants": variants, "control": "a", "decision": "welch", "variance": variance}
        found = analyze(given)["variants"]
        rates, spreads, freedoms = [], [], []
        for told, (m, c) in zip(found, arms, strict=True):
            total, r = m.sum(), c.sum() / m.sum()
            without = (c.sum() - c) / (total - m)
            spread = (
                size / (size - 1) * ((c - r * m) ** 2).sum() / total**2
                if variance == "delta"
                else (size - 1) / size * ((without - r) ** 2).sum()
            )
            same(told["standardError"], np.sqrt(spread))
            same(told["designEffect"], spread / (r * (1 - r) / total))
            rates.append(r)
            spreads.append(spread)
            freedoms.append((size if variance == "delta" else total**2 / (m**2).sum()) - 1)
        freedom = sum(spreads) ** 2 / sum(v**2 / f for v, f in zip(spreads, freedoms, strict=True))
        statistic = abs(rates[1] - rates[0]) / np.sqrt(sum(spreads))
        same(found[1]["pValue"], 2 * stats.t.sf(statistic, freedom))


@pytest.mark.parametrize("seed", range(4))
def test_corrections_of_any_p_values(seed: int) -> None:
    """Those of statsmodels, with what is rejected."""
    values = np.random.default_rng(seed).random(3 * seed + 1) ** 4
    found = analyze({"p_values": values.tolist()})
    names = {"bonferroni": "bonferroni", "holm": "holm", "benjaminiHochberg": "fdr_bh"}
    for ours, theirs in names.items():
        rejected, wanted, _, _ = multipletests(values, method=theirs)
        assert found["adjusted"][ours] == pytest.approx(wanted, rel=1e-9)
        assert found["rejected"][ours] == rejected.tolist()


@pytest.mark.parametrize(
    ("control", "treatment"),
    [((45, 250), (67, 250)), ((0, 20), (8, 20)), ((10, 10), (0, 10)), ((50, 10**6), (70, 10**6)),
     ((0, BILLION), (3, BILLION)), ((20, BILLION), (9, BILLION)), ((5, MOST), (9, MOST)), ((0, 0), (3, 10))],
)  # fmt: skip
def test_the_chance_to_win_of_two(control: Counts, treatment: Counts) -> None:
    """Miller's sum, Σ B(a + i, b' + b)/((b' + i) B(1 + i, b') B(a, b)), which is exact."""
    b = asked(control, treatment)[1]
    with mp.workdps(40):
        (a_c, b_c), (a_t, b_t) = (
            (mp.mpf(1 + hits), mp.mpf(1 + size - hits)) for hits, size in (control, treatment)
        )
        wanted = mp.fsum(
            mp.beta(a_c + i, b_t + b_c) / (b_t + i) / mp.beta(1 + i, b_t) / mp.beta(a_c, b_c)
            for i in range(int(a_t))
        )
    assert b["chanceToWin"] == pytest.approx(float(wanted), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("arms", [[(0, 5), (7, 7), (4, 9)], [(100, 1000), (120, 900), (130, 1100)]])
def test_the_best_of_three_and_what_another_costs(arms: list[Counts]) -> None:
    """∫ f Π F and ∫ F (1 - Π F) by scipy's adaptive quadrature between quantiles."""
    beliefs = [stats.beta(1 + hits, 1 + size - hits) for hits, size in arms]
    levels = (1e-15, 1e-9, 1e-6, 1e-3, 0.05, 0.5, 0.95, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9)
    points = sorted({0.0, 1.0, *(float(one.ppf(q)) for one in beliefs for q in levels)})

    def whole(function: Callable[[float], float]) -> float:
        parts = [
            integrate.quad(function, *ends, epsabs=1e-16, epsrel=1e-11, limit=200)[0]
            for ends in pairwise(points)
        ]
        return float(sum(parts))

    for told, own in zip(asked(*arms), beliefs, strict=True):
        one, other = (belief for belief in beliefs if belief is not own)
        best = whole(lambda x, own=own, one=one, other=other: own.pdf(x) * one.cdf(x) * other.cdf(x))
        loss = whole(lambda x, own=own, one=one, other=other: own.cdf(x) * (1 - one.cdf(x) * other.cdf(x)))
        assert told["probabilityToBeBest"] == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert told["expectedLoss"] == pytest.approx(loss, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("counts", [(0, BILLION), (BILLION // 10, BILLION)])
def test_ten_equal_arms_are_a_tenth_each(counts: Counts) -> None:
    """By symmetry."""
    assert [one["probabilityToBeBest"] for one in asked(*[counts] * 10)] == pytest.approx(
        [0.1] * 10, rel=1e-9
    )


@pytest.mark.parametrize("size", [10, 10**6, BILLION, MOST])
@pytest.mark.parametrize("place", ["none", "few", "third", "but few", "all"])
def test_credible_intervals_keep_their_digits(size: int, place: str) -> None:
    """Up to a million million impressions a 40th lies below the lower end and above the upper one.

    Exactly for nothing and all; of few by the binomial sum, which ends there; else by the integral of the density.
    """
    hits = {"none": 0, "few": 3, "third": size // 3, "but few": size - 3, "all": size}[place]
    told = asked((hits, size), (5, 10))[0]
    assert told["conversionRate"] == hits / size
    low, high = told["credibleInterval"].values()
    with mp.workdps(40):
        tail = mp.mpf("0.025")
        if place in ("none", "all"):
            # 1 - x is Beta(1, n + 1) of all, as x is of nothing: its quantiles have a closed form.
            ends = sorted(mp.exp(mp.log(q) / (size + 1)) for q in (tail, 1 - tail))
            ends = ends if place == "all" else [1 - end for end in reversed(ends)]
            same(low, ends[0])
            same(high, ends[1])
        elif place in ("few", "but few"):
            # Of a miss rate as near to 0 as a float can tell it from 1.
            for end, wanted in ((low, tail), (high, 1 - tail)):
                x, below = (mp.mpf(end), wanted) if place == "few" else (1 - mp.mpf(end), 1 - wanted)
                n = size + 1
                reached = 1 - mp.fsum(comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(4))
                digits = 1e-9 if place == "few" else max(1e-9, 1e-15 * size)
                assert float(reached) == pytest.approx(float(below), rel=digits)
        else:
            middle = mp.mpf(hits) / size
            width = mp.sqrt(middle * (1 - middle) / size)

            def density(x: Any) -> Any:
                return mp.exp(hits * mp.log(x / middle) + (size - hits) * mp.log((1 - x) / (1 - middle)))

            far = [max(mp.mpf(0), middle - 14 * width), min(mp.mpf(1), middle + 14 * width)]
            whole = mp.quad(density, mp.linspace(*far, 15))
            for start, end in ((far[0], mp.mpf(low)), (mp.mpf(high), far[1])):
                part = mp.quad(density, mp.linspace(start, end, 8)) / whole
                # An end is a float: of 10¹² it has about nine digits of its distance to the rate.
                assert float(part) == pytest.approx(0.025, rel=1e-8)
