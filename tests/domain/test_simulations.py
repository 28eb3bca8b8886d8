"""Simulated experiments: without an effect none is found too often, and what is there is found.

Every line is a kind of fleet that has misled an analysis somewhere, decided by the functions that a recorded look and
its verdict come from. Seeded, so a run is the same everywhere; an error rate may exceed its nominal value by three
standard errors of as many runs, and power may fall short of its figure by as many. Lines that must fail with another
analysis say so in the same test: a simulation that has lost what it is about would pass for nothing.

`make simulations` has ten times as many runs, and writes what it finds as a table.
"""

import os
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from control_plane.domain.statistics import blocked, decision, sequence
from control_plane.domain.statistics.bayes import Beliefs, beliefs
from control_plane.domain.statistics.decision import Apart, State
from control_plane.domain.statistics.path import Side, Snapshot
from control_plane.domain.statistics.phases import Phase, pooled
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import (
    ArmSums,
    against_zero,
    compared,
    counted,
    difference,
)
from control_plane.domain.statistics.srm import same_share
from control_plane.domain.statistics.verdict import Guard, Integrity, Status, Verdict, guard, verdict

pytestmark = pytest.mark.timeout(900)  # on a machine with other work

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]

ICC = 0.15
PER_DAY = 20
TIMES = int(os.environ.get("VARIANTD_SIMULATIONS", "1"))
"""By how much every number of runs is multiplied."""
TABLE = os.environ.get("VARIANTD_SIMULATIONS_TABLE", "")
"""A file that every line is written to."""


def at_most(line: str, wrong: int, runs: int, nominal: float = 0.05) -> None:
    """`wrong` of `runs` is no more than nominal and three standard errors."""
    _told(line, wrong, runs, f"at most {100 * nominal:g} %")
    assert wrong / runs <= nominal + 3 * sqrt(nominal * (1 - nominal) / runs)


def at_least(line: str, found: int, runs: int, power: float) -> None:
    """`found` of `runs` is no less than the power short of three standard errors."""
    _told(line, found, runs, f"at least {100 * power:g} %")
    assert found / runs >= power - 3 * sqrt(power * (1 - power) / runs)


def _told(line: str, found: int, runs: int, wanted: str) -> None:
    if TABLE:
        share = found / runs
        error = 100 * sqrt(share * (1 - share) / runs)
        with Path(TABLE).open("a", encoding="utf-8") as table:
            table.write(f"| {line} | {wanted} | {100 * share:.1f} % | {error:.1f} | {runs} |\n")


def alike(rng: np.random.Generator, rates: Sequence[float]) -> Rates:
    """Hosts whose own rates spread about these as an ICC of 0.15 says."""
    scale = (1 - ICC) / ICC
    middle = np.asarray(rates)
    inner = np.clip(middle, 1e-9, 1 - 1e-9)
    return np.where((middle > 0) & (middle < 1), rng.beta(inner * scale, (1 - inner) * scale), middle)


def closed(arms: Sequence[tuple[int, int]], days: float) -> Plan:
    """A closed list in blocks (strata) of so many treated and so many control, in this order."""
    return Plan(
        method="path_test",
        arms=("control", "treatment"),
        control="control",
        units=[
            Unit(arm=arm, block=str(at), stratum=str(at))
            for at, (t, c) in enumerate(arms)
            for arm in ["treatment"] * t + ["control"] * c
        ],
        seed=bytes(32),
        horizon=days,
    )


def open_fleet(hosts: int, *, days: float = 365.0, **more: float) -> Plan:
    """A plan that a sequence decides, in one block: treated first."""
    return Plan(
        method="sequence",
        arms=("control", "treatment"),
        control="control",
        units=[
            Unit(arm=arm, block="x", stratum="x") for arm in ("treatment", "control") for _ in range(hosts)
        ],
        seed=bytes(32),
        horizon=days,
        **more,  # type: ignore[arg-type]
    )


def shots(trials: Counts, hits: Counts) -> list[Snapshot]:
    """Sums as they stood after each day, of (day, host) counts."""
    return [
        Snapshot(day=day + 1, trials=m.tolist(), successes=c.tolist())
        for day, (m, c) in enumerate(zip(trials.cumsum(axis=0), hits.cumsum(axis=0), strict=True))
    ]


def said(plan: Plan, seen: Sequence[Snapshot], **losses: float) -> Verdict:
    """The verdict after these looks; `losses`: p-values of "the arms lost alike"."""
    integrity = Integrity(replays=True, ratio_p_value=None, leaked=False, losses=losses)
    looks = decision.looks(plan, seen) if seen else ()
    return verdict(plan, looks, goal="increase", reachable=None, integrity=integrity)


DECIDED = (Status.WINNER, Status.LOSER)


def decided(plan: Plan, runs: int, one: Callable[[], list[Snapshot]]) -> int:
    """How many of the runs are decided, for or against any arm."""
    return sum(bool(decision.decided(plan, one())) for _ in range(runs))


# -- closed fleets, by the path test


@pytest.mark.parametrize(("hosts", "runs"), [(4, 300), (5, 250), (8, 100), (30, 100)])
def test_thirty_daily_looks_at_a_fixed_fleet(hosts: int, runs: int) -> None:
    """A/A with correlated hosts."""
    rng, trials, runs = np.random.default_rng(hosts), np.full((30, 2 * hosts), PER_DAY), runs * TIMES
    plan = closed([(hosts, hosts)], 30)
    wrong = decided(plan, runs, lambda: shots(trials, rng.binomial(trials, alike(rng, [0.3] * (2 * hosts)))))
    at_most(f"{hosts} + {hosts} hosts, 30 daily looks", wrong, runs)


@pytest.mark.parametrize(("hosts", "looks", "runs"), [(4, 365, 60), (5, 365, 60), (8, 52, 60), (30, 52, 60)])
def test_a_year_of_looks_at_a_closed_fleet(hosts: int, looks: int, runs: int) -> None:
    """A/A with correlated hosts, looked at daily, the larger ones weekly."""
    rng, runs = np.random.default_rng(100 + hosts), runs * TIMES
    trials = np.full((looks, 2 * hosts), PER_DAY * 365 // looks)
    plan = closed([(hosts, hosts)], looks)
    wrong = decided(plan, runs, lambda: shots(trials, rng.binomial(trials, alike(rng, [0.3] * (2 * hosts)))))
    at_most(f"{hosts} + {hosts} hosts, {looks} looks over a year", wrong, runs)


def test_hosts_that_drift() -> None:
    """Every host wanders off on its own, a little each day."""
    rng, trials, runs = np.random.default_rng(21), np.full((14, 16), PER_DAY), 80 * TIMES

    def one() -> list[Snapshot]:
        walk = alike(rng, [0.3] * 16) + rng.normal(0, 0.04, (14, 16)).cumsum(axis=0)
        return shots(trials, rng.binomial(trials, np.clip(walk, 0.01, 0.99)))

    at_most("hosts that drift, 8 + 8, 14 looks", decided(closed([(8, 8)], 14), runs, one), runs)


def test_skewed_traffic() -> None:
    """A few hosts have most of the impressions (lognormal, sigma 1.5)."""
    rng, runs = np.random.default_rng(22), 80 * TIMES

    def one() -> list[Snapshot]:
        sizes = np.maximum(1, np.rint(rng.lognormal(2.5, 1.5, 16))).astype(int)
        trials = np.tile(sizes, (14, 1))
        return shots(trials, rng.binomial(trials, alike(rng, [0.25] * 16)))

    at_most("skewed traffic, 8 + 8, 14 looks", decided(closed([(8, 8)], 14), runs, one), runs)


@pytest.mark.parametrize("effect", [0.0, 0.08])
def test_three_strata(effect: float) -> None:
    """At 20, 40 and 60 %, four of each arm: level without, at least 45 % with 8 points more; fewer unblocked."""
    rng, runs, blocks = np.random.default_rng(23), 120 * TIMES, [(4, 4)] * 3
    base = np.repeat([0.2, 0.4, 0.6], 8)
    plan = closed(blocks, 1)
    treated, trials = np.array([unit.arm == "treatment" for unit in plan.units]), np.full((1, 24), 100)
    seen = [
        shots(trials, rng.binomial(trials, np.clip(base + effect * treated + rng.normal(0, 0.07, 24), 0, 1)))
        for _ in range(runs)
    ]
    found = sum(said(plan, one).status in DECIDED for one in seen)
    if not effect:
        at_most("three strata of 4 + 4", found, runs)
        return
    at_least("+8 points in three strata of 4 + 4", found, runs, 0.45)
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


@pytest.mark.parametrize("hosts", [8, 30])
def test_two_strata_of_skewed_traffic_analysed_once(hosts: int) -> None:
    """`analyze` with strata and Welch's error, where a few hosts have most of the impressions (sigma 1.5)."""
    rng, runs = np.random.default_rng(41), 150 * TIMES
    found = 0
    for _ in range(runs):
        sides = {}
        for key in ("treatment", "control"):
            strata = np.arange(hosts) % 2
            trials = np.maximum(1, rng.poisson(200 * rng.lognormal(0, 1.5, hosts)))
            rates = np.clip(0.2 + 0.1 * strata + rng.normal(0, 0.05, hosts), 0.01, 0.99)
            sums = ArmSums(key=key, trials=trials.tolist(), successes=rng.binomial(trials, rates).tolist())
            sides[key] = blocked.StratifiedArm(sums=sums, strata=[str(name) for name in strata])
        said = blocked.difference(sides["treatment"], sides["control"], variance="jackknife")
        assert isinstance(said, blocked.Blocked)
        p = 2 * stats.t.sf(abs(said.estimate) / sqrt(said.variance), said.degrees_of_freedom)
        found += bool(p < 0.05)
    at_most(f"two strata of skewed traffic, {hosts} + {hosts}, once", found, runs)


@pytest.mark.parametrize("arms", [(80, 20), (20, 80)])
def test_equal_means_that_spread_unequally(arms: tuple[int, int]) -> None:
    """The weak null: one arm's hosts spread twice as much, and the arms are of unequal size."""
    rng, runs = np.random.default_rng(24), 150 * TIMES
    trials = np.full((1, 100), 200)
    spread = np.where(np.arange(100) < arms[0], 0.05, 0.10)

    def one() -> list[Snapshot]:
        return shots(trials, rng.binomial(trials, np.clip(0.4 + spread * rng.standard_normal(100), 0, 1)))

    line = f"equal means, spread {'of the small arm' if arms[0] > arms[1] else 'of the large arm'} doubled, 80 + 20"
    at_most(line, decided(closed([arms], 1), runs, one), runs)


def test_four_arms() -> None:
    """Any of three comparisons decided counts as one error."""
    rng, runs, arms = np.random.default_rng(25), 40 * TIMES, ("a", "b", "c", "d")
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
        wrong += bool(decision.decided(plan, shots(trials, rng.binomial(trials, alike(rng, [0.3] * 32)))))
    at_most("four arms of 8, 7 looks, any decided", wrong, runs)


@pytest.mark.parametrize(
    ("hosts", "rates", "runs", "power"),
    [
        (30, (0.25, 0.5), 40, 0.95),
        (30, (0.25, 0.4), 60, 0.75),
        (8, (0.25, 0.5), 100, 0.6),
        (30, (0.7, 1.0), 40, 0.95),
    ],
)
def test_fourteen_looks_find_what_is_there(
    hosts: int, rates: tuple[float, float], runs: int, power: float
) -> None:
    """Power of the path test with correlated hosts; all converting, too."""
    rng, trials, runs = np.random.default_rng(26), np.full((14, 2 * hosts), PER_DAY), runs * TIMES
    own = [rates[1]] * hosts + [rates[0]] * hosts
    plan = closed([(hosts, hosts)], 14)
    won = sum(
        said(plan, shots(trials, rng.binomial(trials, alike(rng, own)))).status is Status.WINNER
        for _ in range(runs)
    )
    line = f"{100 * rates[0]:g} against {100 * rates[1]:g} %, {hosts} + {hosts} hosts, 14 looks"
    at_least(line, won, runs, power)


# -- open and large populations, by the sequence


@pytest.mark.parametrize("hosts", [30, 8, 5])
def test_a_year_of_looks_at_a_fixed_fleet(hosts: int) -> None:
    """In information time the end of what hosts can tell is no drift into a decision."""
    rng, runs, weeks = np.random.default_rng(30 + hosts), 100 * TIMES, 52
    plan = open_fleet(hosts, effect=0.3)
    trials = np.full((weeks, 2 * hosts), 7 * PER_DAY)
    wrong = decided(plan, runs, lambda: shots(trials, rng.binomial(trials, alike(rng, [0.3] * (2 * hosts)))))
    at_most(f"sequence, {hosts} + {hosts} hosts, 52 looks over a year", wrong, runs)


@pytest.mark.parametrize(("share", "base"), [(0.5, 0.1), (0.5, 0.01), (0.9, 0.1)])
def test_growing_fleets_of_one_impression_each(share: float, base: float) -> None:
    """10 %, 1 %, and 90/10: looked at 40 times."""
    rng, runs = np.random.default_rng(40), 150 * TIMES
    plan, daily, wrong = open_fleet(0, effect=0.3), int(50 / base), 0
    for _ in range(runs):
        n = rng.binomial(daily, share, 40)
        sizes = np.stack([n, daily - n])
        hits = rng.binomial(sizes, base).cumsum(axis=1)
        sizes = sizes.cumsum(axis=1)
        states = [_state(sizes[:, day].tolist(), hits[:, day].tolist()) for day in range(40)]
        wrong += decision.sequenced(plan, "treatment", states)[-1].decided
    at_most(
        f"growing, one impression each at {100 * base:g} %, {100 * share:g}/{100 - 100 * share:g}",
        wrong,
        runs,
    )


@pytest.mark.parametrize(("share", "base"), [(0.1, 0.1), (0.1, 0.01), (0.05, 0.1), (0.25, 0.1)])
def test_a_small_arm_that_has_hardly_converted_yet(share: float, base: float) -> None:
    """Looked at from four conversions over both arms on, as a guardrail of rare errors is.

    Where ten of them are enough, 8 to 57 % are decided: the small arm has none, and so no error of its own.
    """
    rng, runs = np.random.default_rng(46), 150 * TIMES
    plan, wrong = open_fleet(0, effect=0.5), 0
    sizes = np.rint(4 / base * 1.12 ** np.arange(60)[:, None] * np.array([share, 1 - share])).astype(int)
    joined = np.diff(sizes, axis=0, prepend=0)
    for _ in range(runs):
        hits = rng.binomial(joined, base).cumsum(axis=0)
        states = [_state(sizes[at].tolist(), hits[at].tolist()) for at in range(60) if sizes[at].min() > 1]
        wrong += decision.sequenced(plan, "treatment", states)[-1].decided
    at_most(f"small arm of {100 * share:g} %, few conversions at {100 * base:g} %", wrong, runs)


def _state(sizes: Sequence[int], hits: Sequence[int]) -> State:
    """What a sequence sees of two counts."""
    t, c = (counted(str(k), trials=sizes[k], successes=hits[k]).estimate() for k in (0, 1))
    plain = compared(t, c, alpha=0.05)
    assert plain.estimate is not None
    return State(
        apart=Apart(
            plain.estimate,
            plain.standard_error or 1.0,
            plain.degrees_of_freedom,
            Side(rate=t.value or 0.0, variance=t.variance or 0.0),
            Side(rate=c.value or 0.0, variance=c.variance or 0.0),
        ),
        participants=sum(sizes),
        enough=sequence.enough(sizes, sizes, hits, shares=True),
    )


def test_lognormal_values() -> None:
    """Skewed values of growing arms of equal size, looked at 10 times."""
    rng, runs, wrong = np.random.default_rng(41), 60 * TIMES, 0
    plan = open_fleet(300, effect=0.2, shares=False)
    joined = np.tile(np.arange(300) // 30, 2)
    for _ in range(runs):
        values = np.rint(rng.lognormal(0, 1, 600) * 1e6).astype(int)
        seen = [
            Snapshot(
                day=day + 1,
                trials=(joined <= day).astype(int).tolist(),
                successes=np.where(joined <= day, values, 0).tolist(),
            )
            for day in range(10)
        ]
        wrong += said(plan, seen).status in DECIDED
    at_most("growing, lognormal values, 10 looks", wrong, runs)


def test_growing_clusters() -> None:
    """More hosts join every day, and those there have ever more impressions."""
    rng, runs, wrong = np.random.default_rng(42), 100 * TIMES, 0
    plan = open_fleet(60, effect=0.3)
    for _ in range(runs):
        joined = rng.integers(0, 20, 120)
        joined[:5] = joined[60:65] = 0
        trials = np.where(joined <= np.arange(20)[:, None], PER_DAY, 0)
        wrong += said(plan, shots(trials, rng.binomial(trials, alike(rng, [0.3] * 120)))).status in DECIDED
    at_most("growing clusters, 20 looks", wrong, runs)


def test_nine_guardrails_watched_every_day_rarely_halt_what_is_harmless() -> None:
    """Any of nine failed counts as one halt."""
    rng, runs, hosts, wrong = np.random.default_rng(43), 60 * TIMES, 20, 0
    plan = open_fleet(hosts, days=14.0, comparisons=9)
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
    at_most("nine guardrails, 20 + 20 hosts, 14 looks, any failed", wrong, runs)


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
    rng, runs, won, dropped = np.random.default_rng(50), 300 * TIMES, 0, 0
    plan = closed([(30, 30)], 1)
    for _ in range(runs):
        own = alike(rng, [0.3] * 60).reshape(2, 30)
        hits = rng.binomial(100, own)
        trials = np.full((2, 30), 100)
        control = arm("a", trials[1], hits[1])
        kept = np.argsort(own[0])[5:]
        won += said(plan, shots(trials.reshape(1, 60), hits.reshape(1, 60))).status is Status.WINNER
        dropped += wins(arm("b", trials[0, kept], hits[0, kept]), control)
    at_most("reload fails on weak hosts, treatment wins", won, runs, 0.025)
    assert dropped / runs > 0.1


def test_drift_on_bad_days_wins_nothing() -> None:
    """Edits that take treated hosts out of what was delivered, on days when everything goes badly."""
    rng, runs, won, dropped = np.random.default_rng(51), 60 * TIMES, 0, 0
    plan = closed([(30, 30)], 14)
    for _ in range(runs):
        own = alike(rng, [0.4] * 60).reshape(2, 30)
        bad = rng.random((14, 2, 30)) < 0.25
        hits = rng.binomial(PER_DAY, np.where(bad, 0.4 * own, own))
        trials = np.full(hits.shape, PER_DAY)
        control = arm("a", trials[:, 1].sum(axis=0), hits[:, 1].sum(axis=0))
        won += said(plan, shots(trials.reshape(14, 60), hits.reshape(14, 60))).status is Status.WINNER
        edited = bad[:, 0] & (rng.random((14, 30)) < 0.8)
        left = [np.where(edited, 0, part[:, 0]).sum(axis=0) for part in (trials, hits)]
        dropped += wins(arm("b", *left), control)
    at_most("drift on bad days, 14 looks, treatment wins", won, runs, 0.025)
    assert dropped / runs > 0.1


@pytest.mark.parametrize(("lost", "enough"), [((0.1, 0.1), None), ((0.0, 0.2), 0.9)])
def test_exclusions_alarm_where_they_differ(lost: tuple[float, float], enough: float | None) -> None:
    """100 hosts an arm: equal losses alarm in half a per cent at most, a fifth of one arm nearly always."""
    rng, runs = np.random.default_rng(52), 600 * TIMES
    plan, alarms = closed([(100, 100)], 1), 0
    for _ in range(runs):
        having = [100 - int(gone) for gone in rng.binomial(100, lost)]
        alarms += said(plan, [], without_data=same_share(having, [100, 100])).status is Status.INVALID
    if enough is None:
        at_most("a tenth of both arms lost, verdict suppressed", alarms, runs, 0.005)
    else:
        at_least("a fifth of one arm lost, verdict suppressed", alarms, runs, enough)


def test_what_a_variant_silences_is_no_win() -> None:
    """The weak fifth of the treatment's hosts falls silent: no verdict, where what is left looks better."""
    rng, runs, won, without = np.random.default_rng(55), 60 * TIMES, 0, 0
    plan, trials = closed([(100, 100)], 1), np.full((1, 200), 100)
    for _ in range(runs):
        own = alike(rng, [0.3] * 200)
        heard = trials.copy()
        heard[0, np.argsort(own[:100])[:20]] = 0
        seen = shots(heard, rng.binomial(heard, own))
        without += said(plan, seen).status is Status.WINNER
        won += said(plan, seen, without_data=same_share([80, 100], [100, 100])).status is Status.WINNER
    at_most("a fifth of the treatment silenced, treatment wins", won, runs, 0.025)
    assert without / runs > 0.1


def test_phases_whose_hosts_stay() -> None:
    """Sixteen hosts in three phases, the same arms throughout: one witness each."""
    rng, runs, wrong, naive = np.random.default_rng(53), 500 * TIMES, 0, 0
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
    at_most("three phases, the same 8 + 8 hosts", wrong, runs)
    assert naive / runs > 0.12


def test_chance_to_win_of_few_hosts_is_seldom_extreme() -> None:
    """Eight alike hosts an arm at 3 %: outside 5 to 95 % in at most 12 % of experiments."""
    rng, runs, extreme = np.random.default_rng(54), 200 * TIMES, 0
    for _ in range(runs):
        hits = rng.binomial(500, alike(rng, [0.03] * 16)).reshape(2, 8)
        found = beliefs(
            [arm(key, np.full(8, 500), hits[k]) for k, key in enumerate("ab")], control="a", alpha=0.05
        )
        assert isinstance(found, Beliefs)
        won = found.arms[1].chance_to_win
        assert won is not None
        extreme += not 0.05 <= won <= 0.95
    at_most("chance to win outside 5 to 95 %, 8 + 8 hosts at 3 %", extreme, runs, 0.12)
