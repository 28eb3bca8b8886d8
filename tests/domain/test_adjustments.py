"""Phases, factors, history and winsorised values: each against its definition and against what it is for."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS

from control_plane.domain.effects import main_effects as shown_effects
from control_plane.domain.evidence import Arm, Evidence, Factor, Measure, Settings, Sums
from control_plane.domain.evidence import Member as Drawn
from control_plane.domain.statistics import blocked
from control_plane.domain.statistics.cuped import Adjusted, History, adjusted
from control_plane.domain.statistics.means import mean, moments, winsorised
from control_plane.domain.statistics.multivariate import Member, main_effects
from control_plane.domain.statistics.phases import Phase, pooled
from control_plane.domain.statistics.proportions import Undefined, against_zero, compared
from shared.errors import Invalid

# -- phases


def phase(
    names: list[str], treated: list[bool], rates: list[float], rng: np.random.Generator, m: int = 100
) -> Phase:
    return Phase(
        participants=names,
        treated=treated,
        strata=["all"] * len(names),
        trials=[m] * len(names),
        successes=[int(x) for x in rng.binomial(m, rates)],
    )


def test_one_phase_is_welch_of_its_scores() -> None:
    """Value and variance of the mean difference of scores, nothing else."""
    rng = np.random.default_rng(1)
    one = phase([f"p{n}" for n in range(14)], [n % 2 == 0 for n in range(14)], [0.3] * 14, rng)
    found = pooled("b", [one])
    e, t = blocked.scores(one.trials, one.successes, one.strata), np.asarray(one.treated)
    assert found.value == pytest.approx(e[t].mean() - e[~t].mean())
    assert found.variance == pytest.approx(e[t].var(ddof=1) / 7 + e[~t].var(ddof=1) / 7)
    assert found.degrees_of_freedom == 12


def test_a_phase_told_twice_is_no_more_evidence() -> None:
    """The same participants with the same data: the same error, where as many new ones would halve v."""
    rng = np.random.default_rng(2)
    one = phase([f"p{n}" for n in range(12)], [n < 6 for n in range(12)], [0.3] * 12, rng)
    other = Phase(
        participants=[f"q{n}" for n in range(12)],
        treated=one.treated,
        strata=one.strata,
        trials=one.trials,
        successes=one.successes,
    )
    alone, twice, fresh = (pooled("b", rows) for rows in ([one], [one, one], [one, other]))
    assert alone.variance is not None
    assert twice.variance == pytest.approx(alone.variance)
    assert fresh.variance == pytest.approx(alone.variance / 2)
    assert (alone.degrees_of_freedom, twice.degrees_of_freedom, fresh.degrees_of_freedom) == (10, 10, 20)


def test_phases_without_two_of_an_arm_say_nothing() -> None:
    """Nor does a list that does not fit."""
    rng = np.random.default_rng(2)
    found = pooled("b", [phase(["x", "y", "z"], [True, False, False], [0.3] * 3, rng)])
    assert found.reasons["value"] is Undefined.TOO_FEW_PARTICIPANTS
    with pytest.raises(Invalid, match="twice"):
        phase(["x", "x"], [True, False], [0.3] * 2, rng)


# -- several factors

FACTORS = [("colour", ("red", "blue")), ("size", ("s", "m", "l"))]


@given(st.integers(0, 10**6))
def test_unequal_cells_do_not_leak_into_a_main_effect(seed: int) -> None:
    """Sizes that go with colours by their numbers alone give no effect of the colour; real ones are exact."""
    rng = np.random.default_rng(seed)
    members = [
        Member(
            levels=(colour, size),
            trials=100.0,
            successes=30.0 + 5 * (colour == "blue") + {"s": 0, "m": 20, "l": 40}[size] + spread,
        )
        for colour in ("red", "blue")
        for size in ("s", "m", "l")
        for spread in [-1, 1] * int(rng.integers(1, 6))
    ]
    found = {one.level: one for one in main_effects(members, FACTORS)}
    for level, effect in (("blue", 0.05), ("m", 0.2), ("l", 0.4)):
        assert found[level].effect.value == pytest.approx(effect)
        assert not found[level].additive
        assert against_zero(found[level].effect, alpha=0.05 / 3).p_value is not None


def test_small_cells_without_conversions_find_no_effect() -> None:
    """Two of four cells have two participants, who have hardly converted: of nulls few are ever found, 16 % before."""
    rng, runs, wrong = np.random.default_rng(6), 150, 0
    cells = {("red", "s"): 20, ("red", "l"): 2, ("blue", "s"): 20, ("blue", "l"): 2}
    factors = (Factor(key="colour", levels=("red", "blue")), Factor(key="size", levels=("s", "l")))
    arms = [
        Arm(
            id=f"{a}{b}",
            key=f"{a}{b}",
            name=f"{a}{b}",
            is_control=(a, b) == ("red", "s"),
            weight=25,
            levels={"colour": a, "size": b},
        )
        for a, b in cells
    ]
    drawn = [f"{a}{b}" for (a, b), size in cells.items() for _ in range(size)]
    evidence = Evidence(
        about={},
        measure=Measure(name="m", effect=0.3),
        primary=True,
        population="assigned",
        settings=Settings(alpha=0.05, decision="sequence"),
        seed="00",
        arms=tuple(arms),
        members=tuple(
            Drawn(participant=str(n), arm=arm, block="b", stratum="") for n, arm in enumerate(drawn)
        ),
        sums=Sums(impressions=(), conversions=(), values=(), denominators=()),
        factors=factors,
    )
    for _ in range(runs):
        days = rng.binomial(20, 0.02, (12, len(drawn))).cumsum(axis=0)
        wrong += any(
            one["pValueAdjusted"] is not None and one["pValueAdjusted"] < 0.05
            for day, hits in enumerate(days, start=1)
            for one in shown_effects(evidence.model_copy(update={"sums": _counts(20 * day, hits.tolist())}))
        )
    assert wrong / runs <= 0.05 + 3 * sqrt(0.05 * 0.95 / runs)


def _counts(each: int, hits: list[int]) -> Sums:
    """So many impressions each."""
    nothing = (0,) * len(hits)
    return Sums(
        impressions=(each,) * len(hits), conversions=tuple(hits), values=nothing, denominators=nothing
    )


def test_cells_of_one_participant_are_a_regression() -> None:
    """Against statsmodels' least squares."""
    rng = np.random.default_rng(5)
    members = [
        Member(levels=(colour, size), trials=50.0, successes=float(rng.binomial(50, 0.4)))
        for colour in ("red", "blue")
        for size in ("s", "m", "l")
    ]
    x = [[1, m.levels[0] == "blue", m.levels[1] == "m", m.levels[1] == "l"] for m in members]
    fitted = OLS([m.successes / 50 for m in members], np.array(x, dtype=float)).fit()
    for place, one in enumerate(main_effects(members, FACTORS), start=1):
        assert one.additive
        assert one.effect.value == pytest.approx(fitted.params[place])
        assert one.effect.variance == pytest.approx(fitted.bse[place] ** 2)
        assert one.effect.degrees_of_freedom == fitted.df_resid
    alone = main_effects(members[:3], FACTORS)
    assert alone[0].effect.reasons["value"] is Undefined.TOO_FEW_PARTICIPANTS
    with pytest.raises(Invalid, match=r"members\[0\]"):
        main_effects([Member(levels=("green", "s"), trials=1, successes=0)], FACTORS)


# -- history


def arms_of(rng: np.random.Generator, n: int, *, effect: float, tie: float) -> list[History]:
    found = []
    for key, plus in (("b", effect), ("a", 0.0)):
        before = rng.normal(10, 2, n)
        now = tie * before + rng.normal(0, 1, n) + plus
        found.append(
            History(
                key=key,
                strata=["all"] * n,
                trials=[1.0] * n,
                successes=list(now),
                trials_before=[1.0] * n,
                successes_before=list(before),
            )
        )
    return found


def test_history_takes_out_what_it_predicts() -> None:
    """θ is the pooled slope, the adjusted mean its formula, and the error that of the residuals."""
    arms = arms_of(np.random.default_rng(3), 40, effect=0.5, tie=0.9)
    found = adjusted(arms)
    assert isinstance(found, Adjusted)
    y, x = (
        [np.array(rows) for rows in each]
        for each in zip(*((a.successes, a.successes_before) for a in arms), strict=True)
    )
    slope = sum(np.cov(a, b)[0, 1] for a, b in zip(y, x, strict=True)) / sum(b.var(ddof=1) for b in x)
    assert found.theta == pytest.approx(slope)
    for own, a, b in zip(found.arms, y, x, strict=True):
        assert own.value == pytest.approx(a.mean() - slope * (b.mean() - np.mean(x)))
        assert own.variance == pytest.approx((a - slope * b).var(ddof=1) / 40 * 79 / 77)
    plain = [mean(arm.key, moments(arm.successes)) for arm in arms]
    assert (
        compared(*found.arms, alpha=0.05).standard_error < 0.6 * compared(*plain, alpha=0.05).standard_error
    )  # type: ignore[operator]


def test_without_history_everybody_is_their_stratum() -> None:
    """Counted; and where nobody has any, or it does not vary, there is nothing to adjust by."""
    arms = arms_of(np.random.default_rng(3), 20, effect=0, tie=0.9)
    part = [
        History(
            key=arm.key,
            strata=arm.strata,
            trials=arm.trials,
            successes=arm.successes,
            trials_before=[0.0, *arm.trials_before[1:]],
            successes_before=[0.0, *arm.successes_before[1:]],
        )
        for arm in arms
    ]
    found = adjusted(part)
    assert isinstance(found, Adjusted)
    assert found.without_history == 2
    none = [
        History(
            key=arm.key,
            strata=arm.strata,
            trials=arm.trials,
            successes=arm.successes,
            trials_before=[0.0] * 20,
            successes_before=[0.0] * 20,
        )
        for arm in arms
    ]
    assert adjusted(none) is Undefined.NO_VARIATION
    with pytest.raises(Invalid, match="every list"):
        History(
            key="a", strata=[], trials=[1.0], successes=[1.0], trials_before=[1.0], successes_before=[1.0]
        )


def test_adjusted_comparisons_keep_their_level() -> None:
    """1,000 A/A runs of 15 + 15 with history: 5 % and 3 standard errors at most."""
    rng, hits = np.random.default_rng(9), 0
    for _ in range(1000):
        found = adjusted(arms_of(rng, 15, effect=0.0, tie=0.9))
        assert isinstance(found, Adjusted)
        p_value = compared(*found.arms, alpha=0.05).p_value
        hits += p_value is not None and p_value < 0.05
    assert hits / 1000 <= 0.05 + 3 * sqrt(0.05 * 0.95 / 1000)


# -- winsorised


@given(st.lists(st.lists(st.floats(-1e9, 1e9), max_size=30), min_size=1, max_size=4), st.floats(50, 100))
def test_values_above_the_percentile_of_all_are_set_to_it(arms: list[list[float]], percentile: float) -> None:
    """The limit is a value that occurred, with at least so many at or below it; nothing else changes."""
    found = winsorised(arms, percentile=percentile)
    everything = [value for arm in arms for value in arm]
    assert [len(arm) for arm in found] == [len(arm) for arm in arms]
    if not everything:
        return
    limit = max(value for arm in found for value in arm)
    assert limit in everything
    assert sum(value <= limit for value in everything) >= percentile / 100 * len(everything) * (1 - 1e-12)
    for before, after in zip(arms, found, strict=True):
        assert after == [min(value, limit) for value in before]


def test_a_percentile_is_between_half_and_all() -> None:
    """Below half it would cut what is ordinary."""
    with pytest.raises(Invalid, match="percentile"):
        winsorised([[1.0]], percentile=40)
