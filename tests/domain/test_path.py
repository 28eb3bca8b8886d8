"""The path test and the stratified difference: exact on small designs, valid and powerful in simulation."""

from dataclasses import replace
from itertools import combinations
from math import sqrt

import numpy as np
import pytest

from control_plane.domain.statistics import blocked, path
from control_plane.domain.statistics.path import Design, Snapshot, draws, looks
from control_plane.domain.statistics.proportions import ArmSums, Undefined, difference
from shared.errors import Invalid


def design(*groups: tuple[str, int, int], alpha: float = 0.05, horizon: float = 14.0) -> Design:
    """Blocks (name, treated, untreated) that are their own strata, treated first."""
    treated, blocks = [], []
    for name, one, other in groups:
        treated += [True] * one + [False] * other
        blocks += [name] * (one + other)
    return Design(treated=treated, blocks=blocks, strata=blocks, seed=b"s" * 32, alpha=alpha, horizon=horizon)


def snapshot(day: float, trials: int, *successes: int) -> Snapshot:
    """As many trials each."""
    return Snapshot(day=day, trials=[trials] * len(successes), successes=successes)


# -- draws


def test_few_draws_are_all_looked_at_once() -> None:
    """Every way to hand out the labels within blocks is there exactly once, the real one first."""
    d = design(("a", 2, 2), ("b", 1, 2))
    rows = draws(d)
    assert len(rows) == 6 * 3
    assert len({tuple(row) for row in rows}) == len(rows)
    assert tuple(rows[0]) == tuple(d.treated)
    assert all(row[:4].sum() == 2 and row[4:].sum() == 1 for row in rows)


def test_many_draws_are_sampled_within_blocks_and_repeat() -> None:
    """Block counts are kept, the sample follows from the seed, and every label is as likely everywhere."""
    d = design(("a", 15, 15), ("b", 10, 20))
    rows = draws(d)
    assert rows.shape == (path.REDRAWS + 1, 60)
    assert (rows[:, :30].sum(axis=1) == 15).all()
    assert (rows[:, 30:].sum(axis=1) == 10).all()
    assert (rows == draws(d)).all()
    assert (rows != draws(replace(d, seed=b"t" * 32))).any()
    shares = rows[1:].mean(axis=0)
    spread = 4.5 * sqrt(0.25 / path.REDRAWS)
    assert (np.abs(shares[:30] - 0.5) < spread).all()
    assert (np.abs(shares[30:] - 1 / 3) < spread).all()


# -- one look


def test_a_single_look_is_the_textbook_randomisation_test() -> None:
    """p counts the draws with a statistic as large, by plain enumeration with an independent Welch statistic."""
    successes = [9, 8, 7, 9, 6, 3, 4, 2, 5, 4]
    found = looks(design(("x", 5, 5), horizon=1), [snapshot(1, 10, *successes)])[0]
    rates = np.array(successes) / 10

    def welch(chosen: tuple[int, ...]) -> float:
        one = rates[list(chosen)]
        other = np.delete(rates, list(chosen))
        return float(abs(one.mean() - other.mean()) / sqrt(one.var(ddof=1) / 5 + other.var(ddof=1) / 5))

    values = [welch(chosen) for chosen in combinations(range(10), 5)]
    real = welch((0, 1, 2, 3, 4))
    assert found.p_value == pytest.approx(sum(v >= real * (1 - 1e-9) for v in values) / len(values))
    assert found.statistic == pytest.approx(real)
    assert found.estimate == pytest.approx(rates[:5].mean() - rates[5:].mean())


@pytest.mark.parametrize(
    ("groups", "smallest"),
    [((("x", 5, 5),), 2 / 252), (tuple((str(n), 1, 1) for n in range(5)), 2 / 32), ((("x", 4, 4),), 2 / 70)],
)
def test_the_smallest_p_is_what_the_design_can_reach(
    groups: tuple[tuple[str, int, int], ...], smallest: float
) -> None:
    """With a difference as clear as can be, p is what counting the draws says and no less."""
    d = design(*groups, horizon=1)
    successes = [10 if treated else 0 for treated in d.treated]
    found = looks(d, [snapshot(1, 10, *successes)])[0]
    assert found.p_value == pytest.approx(smallest)


def test_four_hosts_an_arm_are_enough() -> None:
    """4 + 4 all apart crosses at 5 %; 3 + 3, where the smallest p is 0.1, never does."""
    assert looks(design(("x", 4, 4), horizon=1), [snapshot(1, 9, 9, 8, 9, 7, 0, 1, 0, 2)])[0].decided
    assert not looks(design(("x", 3, 3), horizon=1), [snapshot(1, 9, 9, 8, 9, 0, 1, 0)])[0].decided


def test_nothing_and_no_variation_decide_nothing() -> None:
    """Without data, or with everybody alike, the statistic is 0 and p is 1."""
    for trials, each in ((0, 0), (10, 5)):
        found = looks(design(("x", 6, 6), horizon=1), [snapshot(1, trials, *[each] * 12)])[0]
        assert (found.statistic, found.p_value, found.decided) == (0.0, 1.0, False)


# -- looks over time


def simulated(
    rng: np.random.Generator,
    hosts: int,
    rates: tuple[float, float],
    *,
    looks_: int,
    per_look: int,
    icc: float,
) -> list[Snapshot]:
    """Snapshots of `hosts` per arm with beta-binomial hosts; treated first."""
    own = np.concatenate(
        [rng.beta(p * (1 - icc) / icc, (1 - p) * (1 - icc) / icc, hosts) for p in (rates[1], rates[0])]
    )
    done = rng.binomial(per_look, own, size=(looks_, 2 * hosts)).cumsum(axis=0)
    return [snapshot(day + 1, per_look * (day + 1), *(int(c) for c in done[day])) for day in range(looks_)]


def share_decided(hosts: int, rates: tuple[float, float], runs: int, *, seed: int, count: int = 14) -> float:
    """The share of simulated experiments that decide within their looks."""
    rng = np.random.default_rng(seed)
    d = design(("x", hosts, hosts), horizon=count)
    decided = 0
    for _ in range(runs):
        shots = simulated(rng, hosts, rates, looks_=count, per_look=10, icc=0.15)
        decided += looks(d, shots)[-1].decided
    return decided / runs


@pytest.mark.parametrize("hosts", [4, 5, 8])
def test_looking_every_day_decides_no_more_nulls_than_alpha(hosts: int) -> None:
    """A/A with correlated hosts and 14 looks: at most 5 % and three standard errors."""
    runs = 240
    assert share_decided(hosts, (0.3, 0.3), runs, seed=hosts) <= 0.05 + 3 * sqrt(0.05 * 0.95 / runs)


def test_it_finds_what_is_there() -> None:
    """8 + 8 hosts, 25 against 50 %, ICC 0.15: 14 daily looks find it in at least 60 %."""
    assert share_decided(8, (0.25, 0.5), 150, seed=5) >= 0.60


def test_a_crossing_stands_and_earlier_looks_never_change() -> None:
    """Later data, however contrary, leave what was decided; a longer series begins like the shorter one."""
    shots = [snapshot(1, 10, 9, 9, 8, 9, 9, 1, 0, 1, 2, 1), snapshot(2, 20, *[10] * 5, *[10] * 5)]
    d = design(("x", 5, 5), horizon=1)
    both = looks(d, shots)
    assert both[0].decided
    assert both[1].decided
    assert not both[1].crossed
    assert looks(d, shots[:1]) == both[:1]


def test_the_interval_excludes_zero_exactly_when_a_look_crosses() -> None:
    """On every look of every experiment, whatever its size."""
    rng = np.random.default_rng(8)
    met = set()
    for hosts in (4, 6, 8):
        d = design(("x", hosts, hosts), horizon=6)
        for _ in range(25):
            for look in looks(d, simulated(rng, hosts, (0.25, 0.55), looks_=6, per_look=8, icc=0.1)):
                if look.critical is None or look.interval is None:
                    continue
                excludes = look.interval.low > 0 or look.interval.high < 0
                assert excludes == look.crossed
                met.add(excludes)
    assert met == {True, False}


def test_alpha_is_spent_as_time_passes_and_never_more() -> None:
    """After every look, the rows used up are at most the share of alpha that time has released."""
    rng = np.random.default_rng(4)
    d = design(("x", 8, 8), horizon=10)
    for look in looks(d, simulated(rng, 8, (0.3, 0.3), looks_=20, per_look=5, icc=0.2)):
        assert look.alpha_spent <= 0.05 * min(look.day / 10, 1) + 1e-12


def test_exchanging_the_arms_turns_the_sign_only() -> None:
    """Statistic, critical value and p are the same; the estimate and the interval are mirrored."""
    shot = snapshot(1, 10, 9, 8, 7, 9, 6, 3, 4, 2, 5, 4)
    d = design(("x", 5, 5), horizon=1)
    other = replace(d, treated=[not treated for treated in d.treated])
    (one,), (two,) = looks(d, [shot]), looks(other, [shot])
    assert (one.statistic, one.critical, one.p_value) == pytest.approx(
        (two.statistic, two.critical, two.p_value)
    )
    assert one.estimate == pytest.approx(-two.estimate)
    assert one.interval is not None
    assert two.interval is not None
    assert (one.interval.low, one.interval.high) == pytest.approx((-two.interval.high, -two.interval.low))


@pytest.mark.parametrize(
    ("shots", "where"),
    [
        ([snapshot(1, 1, 0, 0)], r"looks\[0\] must have the sums"),
        ([snapshot(0, 1, 0, 0, 0, 0)], r"looks\[0\].day must be after"),
        ([snapshot(2, 1, 0, 0, 0, 0), snapshot(1, 1, 0, 0, 0, 0)], r"looks\[1\].day must be after"),
    ],
)
def test_looks_that_cannot_be_are_refused(shots: list[Snapshot], where: str) -> None:
    """The look is named."""
    with pytest.raises(Invalid, match=where):
        looks(design(("x", 2, 2)), shots)


# -- strata


def arm(key: str, *rows: tuple[str, int, int]) -> blocked.StratifiedArm:
    """(stratum, trials, successes) of each participant."""
    return blocked.StratifiedArm(
        sums=ArmSums(key=key, trials=[m for _, m, _ in rows], successes=[c for _, _, c in rows]),
        strata=[name for name, _, _ in rows],
    )


def test_one_stratum_is_the_plain_difference() -> None:
    """Without strata the estimate, its variance and degrees of freedom are those of the delta method."""
    t = [("s", 40, 20), ("s", 35, 11), ("s", 60, 30), ("s", 10, 2)]
    c = [("s", 50, 10), ("s", 20, 7), ("s", 44, 9)]
    found = blocked.difference(arm("t", *t), arm("c", *c))
    plain = difference(arm("t", *t).sums, arm("c", *c).sums, alpha=0.05, variance="delta")
    assert isinstance(found, blocked.Blocked)
    assert found.estimate == pytest.approx(plain.estimate)
    assert sqrt(found.variance) == pytest.approx(plain.standard_error)
    assert found.degrees_of_freedom == pytest.approx(plain.degrees_of_freedom)


def test_strata_take_the_spread_between_them_out() -> None:
    """Three strata at 20, 40 and 60 %: the same difference, a fraction of the variance."""
    rates = {"a": 20, "b": 40, "c": 60}
    wobble = [-2, 2, -1, 1]
    t = [(name, 100, rate + 8 + w) for name, rate in rates.items() for w in wobble]
    c = [(name, 100, rate + w) for name, rate in rates.items() for w in wobble]
    found = blocked.difference(arm("t", *t), arm("c", *c))
    plain = difference(arm("t", *t).sums, arm("c", *c).sums, alpha=0.05)
    assert isinstance(found, blocked.Blocked)
    assert found.estimate == pytest.approx(0.08)
    assert plain.standard_error is not None
    assert found.variance < plain.standard_error**2 / 50
    assert found.strata == 3


@pytest.mark.parametrize("traffic", [[10] * 12, [1, 90, 7, 3, 200, 15, 40, 2, 66, 8, 5, 31]])
def test_the_jackknife_leaves_out_one_at_a_time(traffic: list[int]) -> None:
    """Worked out anew without each of them, the others of its stratum in its place; as delta where traffic is alike."""
    names = ["a", "a", "a", "b", "b", "b"]
    sides = [
        [(name, m, m * hits // 9) for name, m, hits in zip(names, part, (2, 4, 3, 6, 5, 7), strict=True)]
        for part in (traffic[:6], traffic[6:])
    ]
    found = blocked.difference(arm("t", *sides[0]), arm("c", *sides[1]), variance="jackknife")

    def rate(rows: list[tuple[str, int, int]]) -> float:
        weight = {name: 6 / sum(of == name for of, _, _ in rows) for name in names}
        return sum(weight[s] * c for s, _, c in rows) / sum(weight[s] * m for s, m, _ in rows)

    wanted = sum(
        2 / 3 * (rate(side[:at] + side[at + 1 :]) - rate(side)) ** 2 for side in sides for at in range(6)
    )
    assert isinstance(found, blocked.Blocked)
    assert found.variance == pytest.approx(wanted)
    plain = blocked.difference(arm("t", *sides[0]), arm("c", *sides[1]))
    assert isinstance(plain, blocked.Blocked)
    assert found.estimate == plain.estimate
    assert (found.variance == pytest.approx(plain.variance)) is (len(set(traffic)) == 1)


def test_the_jackknife_needs_data_of_two() -> None:
    """Where one has all there is, nothing is known without it."""
    t = [("a", 10, 5), ("a", 0, 0), ("b", 0, 0), ("b", 0, 0)]
    c = [("a", 10, 3), ("a", 10, 1), ("b", 10, 4), ("b", 10, 4)]
    found = blocked.difference(arm("t", *t), arm("c", *c), variance="jackknife")
    assert found is Undefined.TOO_FEW_PARTICIPANTS


def test_unequal_shares_within_strata_are_weighed() -> None:
    """A stratum that one arm has more of does not pull its rate: weights make both arms the same mix."""
    t = [("low", 100, 10)] * 6 + [("high", 100, 50)] * 2
    c = [("low", 100, 10)] * 2 + [("high", 100, 50)] * 6
    found = blocked.difference(
        arm("t", *t[:5], ("low", 100, 11), *t[6:]), arm("c", *c[:-1], ("high", 100, 51))
    )
    assert isinstance(found, blocked.Blocked)
    assert abs(found.estimate) < 0.005


def test_strata_too_small_are_put_together() -> None:
    """Singletons and one-sided strata are not lost; one alone joins the smallest of the others."""
    t = [("a", 10, 5), ("a", 10, 6), ("x", 10, 2)]
    c = [("a", 10, 3), ("a", 10, 1), ("y", 10, 4)]
    found = blocked.difference(arm("t", *t), arm("c", *c))
    assert isinstance(found, blocked.Blocked)
    assert found.strata == 1
    assert blocked.difference(arm("t", ("a", 1, 0)), arm("c", *c)) is Undefined.TOO_FEW_PARTICIPANTS


def test_scores_sum_to_nothing_in_every_stratum() -> None:
    """What a stratum has in common is taken out; singletons are one stratum together."""
    strata = ["a", "a", "a", "b", "b", "x", "y"]
    e = blocked.scores([10, 20, 5, 7, 9, 3, 8], [2, 9, 1, 6, 6, 0, 8], strata)
    for members in ([0, 1, 2], [3, 4], [5, 6]):
        assert e[members].sum() == pytest.approx(0, abs=1e-12)
