"""What earlier phases spent of alpha is spent: looking on in another phase decides no more nulls than alpha."""

import random
from dataclasses import replace
from math import log, sqrt

import pytest

from control_plane.domain.statistics.decision import looks
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan
from control_plane.domain.statistics.proportions import Undefined
from control_plane.domain.statistics.sequence import always_valid
from control_plane.domain.statistics.verdict import Status
from shared.errors import Invalid
from tests.domain.test_decision import ARMS, days, judged, plan_of


def left(found) -> float:
    """The share of the level that the last look left."""
    return found[-1].comparisons[0].unspent


@pytest.mark.parametrize("method", ["path_test", "sequence"])
def test_a_further_phase_decides_at_what_is_left(method: str) -> None:
    """Every look is that of a plan whose alpha is as much smaller; adjusted p still says what crosses at alpha."""
    plan = plan_of({**ARMS, "c": 0.3}, 6, method=method, unspent=0.6, alpha=0.2)
    same = replace(plan, unspent=1.0, alpha=0.6 * plan.alpha)
    shots = days({**ARMS, "c": 0.3}, 6, 6)
    for count in (2, 4, 6):
        for one, other in zip(
            looks(plan, shots[:count])[-1].comparisons,
            looks(same, shots[:count])[-1].comparisons,
            strict=True,
        ):
            assert (one.interval, one.critical, one.decided) == (
                other.interval,
                other.critical,
                other.decided,
            )
            if one.p_adjusted is not None:
                assert one.p_adjusted == pytest.approx(min(1.0, one.p_value / 0.6 * 2), rel=1e-12)
                if method == "path_test":
                    assert (one.p_adjusted <= plan.alpha) == one.decided


def test_the_path_test_leaves_what_its_rows_did_not_use() -> None:
    """Rows that crossed by the last look are spent, exactly; at the horizon next to nothing is left."""
    arms = {"control": 0.25, "b": 0.25}
    found = looks(plan_of(arms, 8), days(arms, 8, 14))
    for look in found:
        one = look.comparisons[0]
        assert one.unspent == pytest.approx(1 - one.alpha_spent / 0.05, abs=1e-12)
    shares = [look.comparisons[0].unspent for look in found]
    assert shares == sorted(shares, reverse=True)
    assert shares[6] == pytest.approx(0.5, abs=0.02)
    assert shares[-1] < 0.01


def test_a_sequence_leaves_the_capital_of_its_bet() -> None:
    """min(1, E), of which 1/E is p."""
    found = always_valid(estimate=0.1, standard_error=1.0, share=2.0, alpha=0.05)
    x = 2.0 * (-2 * log(0.05) + log(1 - 2 * log(0.05)))
    assert found.unspent == pytest.approx(
        sqrt(1 / (1 + x)) * 2.718281828459045 ** (x * 0.005 / (x + 1)), rel=1e-9
    )
    assert found.p_value == 1
    strong = always_valid(estimate=4.0, standard_error=1.0, share=2.0, alpha=0.05)
    assert (strong.unspent, strong.p_value < 0.05) == (1.0, True)


def test_what_rounding_leaves_of_alpha_is_nothing() -> None:
    """4 of 560 rows are all of a seventh of 5 %; no quantile of the 10⁻¹⁶ that a float has left is a number."""
    rest = 1 - (4 / 560) / (0.05 / 7)
    assert 0 < rest < 1e-15
    plan = plan_of(ARMS, 8, method="sequence", unspent=rest)
    one = looks(plan, days(ARMS, 8, 2))[-1].comparisons[0]
    assert (plan.level, one.decided, one.unspent) == (0.0, False, 0.0)
    assert one.reasons["interval"] is Undefined.ALPHA_SPENT


@pytest.mark.parametrize("method", ["path_test", "sequence"])
def test_with_nothing_left_nothing_is_decided(method: str) -> None:
    """The difference is told, and why it has no interval; the verdict names the earlier phases."""
    plan = plan_of(ARMS, 8, method=method, unspent=0.0)
    found = looks(plan, days(ARMS, 8, 3))
    one = found[-1].comparisons[0]
    assert one.estimate == pytest.approx(0.25, abs=0.05)
    assert (one.interval, one.decided, one.p_adjusted, one.unspent) == (None, False, None, 0.0)
    assert one.reasons["interval"] is one.reasons["p_adjusted"] is Undefined.ALPHA_SPENT
    said = judged(plan, found)
    assert said.status is Status.INCONCLUSIVE_DESIGN
    assert "earlier phases have spent alpha" in said.reasons[0].message
    with pytest.raises(Invalid, match="unspent"):
        replace(plan, unspent=1.5)


@pytest.mark.parametrize("method", ["path_test", "sequence"])
def test_three_phases_of_nothing_are_decided_no_more_often_than_alpha(method: str) -> None:
    """60 experiments without a difference (5 + 5 hosts that keep their rate), each phase looked at on five days.

    alpha 0.2, so that few runs tell: with all of it anew in each phase the path test decides half as many again.
    """
    alpha, runs, decided, anew = 0.2, 60, 0, 0
    for run in range(runs):
        chance = random.Random(run)
        rates = [chance.uniform(0.1, 0.5) for _ in range(10)]
        share, crossed, free = 1.0, False, False
        for phase in range(3):
            plan = plan_of(
                {"control": 0, "b": 0}, 5, method=method, alpha=alpha, horizon=7.0, unspent=share,
                seed=bytes([phase]),
            )  # fmt: skip
            shots = measured(plan, rates, chance)
            found = looks(plan, shots)
            crossed |= found[-1].comparisons[0].decided
            free |= looks(replace(plan, unspent=1.0), shots)[-1].comparisons[0].decided
            share *= left(found)
        decided, anew = decided + crossed, anew + free
    assert decided / runs <= alpha + 3 * sqrt(alpha * (1 - alpha) / runs)
    if method == "path_test":
        assert anew > 1.3 * decided


def measured(plan: Plan, rates: list[float], chance: random.Random) -> list[Snapshot]:
    """Five days of a phase that deals the same hosts out anew."""
    order = chance.sample(rates, len(rates))
    m, c, found = [0] * len(order), [0] * len(order), []
    for day in range(1, 6):
        for at, rate in enumerate(order):
            m[at] += 20
            c[at] += sum(chance.random() < rate for _ in range(20))
        found.append(Snapshot(day=day, trials=tuple(m), successes=tuple(c)))
    assert len(plan.units) == len(order)
    return found
