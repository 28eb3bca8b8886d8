"""Simulated experiments: without an effect none is found too often, and what is there is found.

Every line is a kind of fleet that has misled an analysis somewhere. Seeded, so a run is the same everywhere; an
error rate may exceed its nominal value by three standard errors of as many runs, and power may fall short of its
figure by as many. Lines that must fail with another analysis say so in the same test: a simulation that has lost
what it is about would pass for nothing.
"""

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.domain.statistics import decision, path
from control_plane.domain.statistics.bayes import Beliefs, beliefs
from control_plane.domain.statistics.means import Moments, mean, merged, moments
from control_plane.domain.statistics.path import Design, Snapshot
from control_plane.domain.statistics.phases import Phase, pooled
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import (
    ArmSums,
    Estimate,
    against_zero,
    compared,
    counted,
    difference,
    rate,
)
from control_plane.domain.statistics.sequence import always_valid, information_target
from control_plane.domain.statistics.srm import SUPPRESS, same_share
from control_plane.domain.statistics.verdict import Guard, guard

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]

ICC = 0.15
PER_DAY = 20


def at_most(wrong: int, runs: int, nominal: float = 0.05) -> None:
    """`wrong` of `runs` is no more than nominal and three standard errors."""
    assert wrong / runs <= nominal + 3 * sqrt(nominal * (1 - nominal) / runs)


def at_least(found: int, runs: int, power: float) -> None:
    """`found` of `runs` is no less than the power short of three standard errors."""
    assert found / runs >= power - 3 * sqrt(power * (1 - power) / runs)


def alike(rng: np.random.Generator, rates: Sequence[float]) -> Rates:
    """Hosts whose own rates spread about these as an ICC of 0.15 says."""
    scale = (1 - ICC) / ICC
    middle = np.asarray(rates)
    inner = np.clip(middle, 1e-9, 1 - 1e-9)
    return np.where((middle > 0) & (middle < 1), rng.beta(inner * scale, (1 - inner) * scale), middle)


def design(arms: Sequence[tuple[int, int]], days: float) -> Design:
    """Blocks (strata) of so many treated and so many control, in this order."""
    return Design(
        treated=[side for t, c in arms for side in [True] * t + [False] * c],
        blocks=[str(at) for at, (t, c) in enumerate(arms) for _ in range(t + c)],
        strata=[str(at) for at, (t, c) in enumerate(arms) for _ in range(t + c)],
        seed=bytes(32),
        alpha=0.05,
        horizon=days,
    )


def shots(trials: Counts, hits: Counts) -> list[Snapshot]:
    """Sums as they stood after each day, of (day, host) counts."""
    return [
        Snapshot(day=day + 1, trials=m.tolist(), successes=c.tolist())
        for day, (m, c) in enumerate(zip(trials.cumsum(axis=0), hits.cumsum(axis=0), strict=True))
    ]


def decided(plan: Design, runs: int, one: Callable[[], list[Snapshot]]) -> int:
    """How many of the runs the path test decides at any look."""
    return sum(path.looks(plan, one())[-1].decided for _ in range(runs))


# -- the path test on fixed fleets


@pytest.mark.parametrize(("hosts", "runs"), [(4, 300), (5, 300), (8, 80), (30, 30)])
def test_thirty_daily_looks_at_a_fixed_fleet(hosts: int, runs: int) -> None:
    """A/A with correlated hosts."""
    rng, trials = np.random.default_rng(hosts), np.full((30, 2 * hosts), PER_DAY)
    found = decided(
        design([(hosts, hosts)], 30),
        runs,
        lambda: shots(trials, rng.binomial(trials, alike(rng, [0.3] * (2 * hosts)))),
    )
    at_most(found, runs)


def test_hosts_that_drift() -> None:
    """Every host wanders off on its own, a little each day."""
    rng, trials, runs = np.random.default_rng(21), np.full((14, 16), PER_DAY), 80

    def one() -> list[Snapshot]:
        walk = alike(rng, [0.3] * 16) + rng.normal(0, 0.04, (14, 16)).cumsum(axis=0)
        return shots(trials, rng.binomial(trials, np.clip(walk, 0.01, 0.99)))

    at_most(decided(design([(8, 8)], 14), runs, one), runs)


def test_skewed_traffic() -> None:
    """A few hosts have most of the impressions (lognormal, sigma 1.5)."""
    rng, runs = np.random.default_rng(22), 80

    def one() -> list[Snapshot]:
        sizes = np.maximum(1, np.rint(rng.lognormal(2.5, 1.5, 16))).astype(int)
        trials = np.tile(sizes, (14, 1))
        return shots(trials, rng.binomial(trials, alike(rng, [0.25] * 16)))

    at_most(decided(design([(8, 8)], 14), runs, one), runs)


@pytest.mark.parametrize("effect", [0.0, 0.08])
def test_three_strata(effect: float) -> None:
    """At 20, 40 and 60 %, four of each arm: level without, at least 45 % with 8 points more; fewer unblocked."""
    rng, runs, blocks = np.random.default_rng(23), 120, [(4, 4)] * 3
    base = np.repeat([0.2, 0.4, 0.6], 8)
    plan = design(blocks, 1)
    treated, trials = np.asarray(plan.treated), np.full((1, 24), 100)
    seen = [
        shots(trials, rng.binomial(trials, np.clip(base + effect * treated + rng.normal(0, 0.07, 24), 0, 1)))
        for _ in range(runs)
    ]
    found = sum(path.looks(plan, one)[-1].decided for one in seen)
    if not effect:
        at_most(found, runs)
        return
    at_least(found, runs, 0.45)
    unblocked = 0
    for one in seen:
        sides = [
            ArmSums(
                key=str(side),
                trials=[m for m, t in zip(one[-1].trials, treated, strict=True) if t == side],
                successes=[c for c, t in zip(one[-1].successes, treated, strict=True) if t == side],
            )
            for side in (True, False)
        ]
        unblocked += (difference(*sides, alpha=0.05).p_value or 1) < 0.05
    assert unblocked / runs < 0.15


@pytest.mark.parametrize("arms", [(80, 20), (20, 80)])
def test_equal_means_that_spread_unequally(arms: tuple[int, int]) -> None:
    """The weak null: one arm's hosts spread twice as much, and the arms are of unequal size."""
    rng, runs = np.random.default_rng(24), 80
    trials = np.full((1, 100), 200)
    spread = np.where(np.arange(100) < arms[0], 0.05, 0.10)

    def one() -> list[Snapshot]:
        return shots(trials, rng.binomial(trials, np.clip(0.4 + spread * rng.standard_normal(100), 0, 1)))

    at_most(decided(design([arms], 1), runs, one), runs)


def test_four_arms() -> None:
    """Any of three comparisons decided counts as one error."""
    rng, runs, arms = np.random.default_rng(25), 30, ("a", "b", "c", "d")
    plan = Plan(
        method="path_test",
        arms=arms,
        control="a",
        units=[Unit(arm=arm, block="x", stratum="x") for arm in arms for _ in range(8)],
        seed=bytes(32),
        horizon=7.0,
    )
    trials, wrong = np.full((7, 32), PER_DAY), 0
    for _ in range(runs):
        found = decision.looks(plan, shots(trials, rng.binomial(trials, alike(rng, [0.3] * 32))))
        wrong += any(one.decided for one in found[-1].comparisons)
    at_most(wrong, runs)


@pytest.mark.parametrize(
    ("hosts", "rates", "runs", "power"),
    [
        (30, (0.25, 0.5), 25, 0.95),
        (30, (0.25, 0.4), 40, 0.75),
        (8, (0.25, 0.5), 60, 0.6),
        (30, (0.7, 1.0), 25, 0.95),
    ],
)
def test_fourteen_looks_find_what_is_there(
    hosts: int, rates: tuple[float, float], runs: int, power: float
) -> None:
    """Power of the path test with correlated hosts; all converting, too."""
    rng, trials = np.random.default_rng(26), np.full((14, 2 * hosts), PER_DAY)
    own = [rates[1]] * hosts + [rates[0]] * hosts
    plan = design([(hosts, hosts)], 14)
    at_least(decided(plan, runs, lambda: shots(trials, rng.binomial(trials, alike(rng, own)))), runs, power)


# -- the sequence


@pytest.mark.parametrize("hosts", [30, 8])
def test_a_year_of_looks_at_a_fixed_fleet(hosts: int) -> None:
    """In information time the end of what hosts can tell is no drift into a decision."""
    rng, runs, weeks = np.random.default_rng(30 + hosts), 100, 52
    plan = Plan(
        method="sequence",
        arms=("a", "b"),
        control="a",
        units=[Unit(arm=arm, block="x", stratum="x") for arm in "ab" for _ in range(hosts)],
        seed=bytes(32),
        horizon=365.0,
        effect=0.3,
    )
    trials, wrong = np.full((weeks, 2 * hosts), 7 * PER_DAY), 0
    for _ in range(runs):
        found = decision.looks(plan, shots(trials, rng.binomial(trials, alike(rng, [0.3] * (2 * hosts)))))
        wrong += found[-1].comparisons[0].decided
    at_most(wrong, runs)


def crossed(arms: Sequence[tuple[Estimate, Estimate]], target: float, *, small: bool) -> bool:
    """Whether any look's interval excludes 0; looks at next to nothing do not count."""
    for treatment, control in arms:
        plain = compared(treatment, control, alpha=0.05)
        if plain.estimate is None or not plain.standard_error:
            continue
        found = always_valid(
            estimate=plain.estimate,
            standard_error=plain.standard_error,
            share=1 / plain.standard_error**2 / target,
            alpha=0.05,
            degrees_of_freedom=plain.degrees_of_freedom if small else None,
        )
        if not found.interval.low <= 0 <= found.interval.high:
            return True
    return False


@pytest.mark.parametrize(("share", "base"), [(0.5, 0.1), (0.5, 0.01), (0.9, 0.1)])
def test_growing_fleets_of_one_impression_each(share: float, base: float) -> None:
    """10 %, 1 %, and 90/10: looked at 40 times from ten conversions on."""
    rng, runs = np.random.default_rng(40), 200
    target = information_target(alpha=0.05, power=0.8, effect=0.3 * base)
    daily, wrong = int(50 / base), 0
    for _ in range(runs):
        n = rng.binomial(daily, share, 40)
        sizes = np.stack([n, daily - n])
        hits = rng.binomial(sizes, base).cumsum(axis=1)
        sizes = sizes.cumsum(axis=1)
        arms = [
            tuple(
                counted(str(k), trials=int(sizes[k, day]), successes=int(hits[k, day])).estimate()
                for k in (0, 1)
            )
            for day in range(40)
            if hits[:, day].sum() >= 10 and sizes[:, day].min() >= 5
        ]
        wrong += crossed(arms, target, small=False)  # type: ignore[arg-type]
    at_most(wrong, runs)


def test_lognormal_values() -> None:
    """Skewed values of growing arms of equal size, looked at 12 times."""
    rng, runs, wrong = np.random.default_rng(41), 150, 0
    target = information_target(alpha=0.05, power=0.8, effect=0.3)
    nothing = Moments(count=0, mean=0.0, squares=0.0)
    for _ in range(runs):
        so_far, arms = [nothing, nothing], []
        for _ in range(12):
            so_far = [merged([one, moments(rng.lognormal(0, 1, 60).tolist())]) for one in so_far]
            arms.append((mean("b", so_far[0]), mean("a", so_far[1])))
        wrong += crossed(arms, target, small=True)
    at_most(wrong, runs)


def test_growing_clusters() -> None:
    """More hosts join every day, and those there have ever more impressions."""
    rng, runs, wrong = np.random.default_rng(42), 150, 0
    target = information_target(alpha=0.05, power=0.8, effect=0.1)
    for _ in range(runs):
        joined = np.sort(rng.integers(0, 20, (2, 60)), axis=1)
        joined[:, :5] = 0
        own, arms = alike(rng, [[0.3] * 60] * 2), []  # type: ignore[list-item]
        trials = np.zeros((2, 60), dtype=np.int64)
        hits = trials.copy()
        for day in range(20):
            new = np.where(joined <= day, PER_DAY, 0)
            trials, hits = trials + new, hits + rng.binomial(new, own)
            arms.append(
                tuple(
                    rate(ArmSums(key=str(k), trials=trials[k], successes=hits[k])).estimate() for k in (0, 1)
                )  # type: ignore[arg-type]
            )
        wrong += crossed(arms, target, small=True)  # type: ignore[arg-type]
    at_most(wrong, runs)


def test_nine_guardrails_watched_every_day_rarely_halt_what_is_harmless() -> None:
    """Any of nine failed counts as one halt."""
    rng, runs, hosts, wrong = np.random.default_rng(43), 60, 20, 0
    plan = Plan(
        method="sequence",
        arms=("a", "b"),
        control="a",
        units=[Unit(arm=arm, block="x", stratum="x") for arm in "ab" for _ in range(hosts)],
        seed=bytes(32),
        comparisons=9,
    )
    trials = np.full((14, 2 * hosts), PER_DAY)
    for _ in range(runs):
        states = [
            guard(
                plan,
                shots(trials, rng.binomial(trials, alike(rng, [0.2] * (2 * hosts)))),
                metric=f"m{n}",
                goal="decrease",
                margin=None,
            )[0].state
            for n in range(9)
        ]
        wrong += Guard.FAILED in states
    at_most(wrong, runs)


# -- what is analysed


def arm(key: str, trials: Counts, hits: Counts) -> ArmSums:
    """Sums of whoever has any."""
    return ArmSums(key=key, trials=trials.tolist(), successes=hits.tolist())


def wins(treatment: ArmSums, control: ArmSums) -> bool:
    """Significantly better, at 5 % on both sides."""
    found = difference(treatment, control, alpha=0.05)
    return found.p_value is not None and found.p_value < 0.05 and (found.estimate or 0) > 0


def test_a_reload_that_fails_on_weak_hosts_wins_nothing() -> None:
    """All of the assigned are counted; leaving those out on which it failed would make the treatment win."""
    rng, runs, counted_, dropped = np.random.default_rng(50), 600, 0, 0
    for _ in range(runs):
        own = alike(rng, [0.3] * 60).reshape(2, 30)
        hits = rng.binomial(100, own)
        trials = np.full((2, 30), 100)
        control = arm("a", trials[1], hits[1])
        kept = np.argsort(own[0])[5:]
        counted_ += wins(arm("b", trials[0], hits[0]), control)
        dropped += wins(arm("b", trials[0, kept], hits[0, kept]), control)
    at_most(counted_, runs, 0.025)
    assert dropped / runs > 0.1


def test_drift_on_bad_days_wins_nothing() -> None:
    """Edits that take treated hosts out of what was delivered, on days when everything goes badly."""
    rng, runs, counted_, dropped = np.random.default_rng(51), 600, 0, 0
    for _ in range(runs):
        own = alike(rng, [0.4] * 60).reshape(2, 30)
        bad = rng.random((14, 2, 30)) < 0.25
        hits = rng.binomial(PER_DAY, np.where(bad, 0.4 * own, own))
        trials = np.full(hits.shape, PER_DAY)
        control = arm("a", trials[:, 1].sum(axis=0), hits[:, 1].sum(axis=0))
        counted_ += wins(arm("b", trials[:, 0].sum(axis=0), hits[:, 0].sum(axis=0)), control)
        edited = bad[:, 0] & (rng.random((14, 30)) < 0.8)
        left = [np.where(edited, 0, part[:, 0]).sum(axis=0) for part in (trials, hits)]
        dropped += wins(arm("b", *left), control)
    at_most(counted_, runs, 0.025)
    assert dropped / runs > 0.1


@pytest.mark.parametrize(("lost", "enough"), [((0.1, 0.1), None), ((0.0, 0.2), 0.9)])
def test_exclusions_alarm_where_they_differ(lost: tuple[float, float], enough: float | None) -> None:
    """100 hosts an arm: equal losses alarm in half a per cent at most, a fifth of one arm nearly always."""
    rng, runs = np.random.default_rng(52), 600
    having = 100 - rng.binomial(100, np.tile(lost, (runs, 1)))
    alarms = sum(same_share([int(x) for x in row], [100, 100]) < SUPPRESS for row in having)
    if enough is None:
        at_most(alarms, runs, 0.005)
    else:
        at_least(alarms, runs, enough)


def test_phases_whose_hosts_stay() -> None:
    """Sixteen hosts in three phases, the same arms throughout: one witness each."""
    rng, runs, wrong, naive = np.random.default_rng(53), 600, 0, 0
    names, treated = [f"h{n}" for n in range(16)], [n < 8 for n in range(16)]
    for _ in range(runs):
        own = alike(rng, [0.3] * 16)
        phases = [
            Phase(
                participants=names,
                treated=treated,
                strata=["x"] * 16,
                trials=[100] * 16,
                successes=rng.binomial(100, own).tolist(),
            )
            for _ in range(3)
        ]
        p_value = against_zero(pooled("b", phases), alpha=0.05).p_value
        wrong += p_value is not None and p_value < 0.05
        apart = [
            Phase(
                participants=[f"{name}/{at}" for name in names],
                treated=treated,
                strata=one.strata,
                trials=one.trials,
                successes=one.successes,
            )
            for at, one in enumerate(phases)
        ]
        p_value = against_zero(pooled("b", apart), alpha=0.05).p_value
        naive += p_value is not None and p_value < 0.05
    at_most(wrong, runs)
    assert naive / runs > 0.12


def test_chance_to_win_of_few_hosts_is_seldom_extreme() -> None:
    """Eight alike hosts an arm at 3 %: outside 5 to 95 % in at most 12 % of experiments."""
    rng, runs, extreme = np.random.default_rng(54), 120, 0
    for _ in range(runs):
        hits = rng.binomial(500, alike(rng, [0.03] * 16)).reshape(2, 8)
        found = beliefs(
            [arm(key, np.full(8, 500), hits[k]) for k, key in enumerate("ab")], control="a", alpha=0.05
        )
        assert isinstance(found, Beliefs)
        won = found.arms[1].chance_to_win
        assert won is not None
        extreme += not 0.05 <= won <= 0.95
    at_most(extreme, runs, 0.12)
