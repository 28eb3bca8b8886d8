"""Switchback results: the test that flips what the lot could have flipped, and what a calendar cannot fake."""

from dataclasses import replace
from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.statistics import decision, path
from control_plane.domain.statistics.plan import Method, Plan, Unit
from control_plane.domain.statistics.switchback import (
    FEWEST_FOR_CALENDAR,
    Block,
    Design,
    Estimate,
    Snapshot,
    Turn,
    by_previous,
    estimate,
    looks,
    witnesses,
)
from shared.errors import Invalid

SEED = bytes(range(32))


def design(participants: int, cycles: int, *, together: bool = False) -> Design:
    """Two variants, a horizon of as many days as there are blocks."""
    return Design(
        treatment="b",
        control="a",
        participants=[f"p{n:02}" for n in range(participants)],
        cycles=cycles,
        together=together,
        seed=SEED,
        alpha=0.05,
        horizon=2.0 * cycles,
    )


def drawn(
    plan: Design, rng: np.random.Generator, *, effect: float = 0.0, weekend: float = 0.0, trials: int = 200
) -> list[Block]:
    """Everybody's blocks: hosts differ, every seventh block is worse for all, b has its effect."""
    hosts = {who: 0.3 + 0.1 * rng.standard_normal() for who in plan.participants}
    shared: dict[int, list[str]] = {}
    found = []
    for who, cycle in product(plan.participants, range(1, plan.cycles + 1)):
        order = [str(arm) for arm in rng.permutation(["a", "b"])]
        order = shared.setdefault(cycle, order) if plan.together else order
        for place, arm in enumerate(order):
            block = 2 * (cycle - 1) + place + 1
            rate = hosts[who] + effect * (arm == "b") - weekend * (block % 7 == 0)
            hits = int(rng.binomial(trials, min(max(rate, 0.01), 0.99)))
            found.append(
                Block(participant=who, cycle=cycle, time_block=block, arm=arm, trials=trials, successes=hits)
            )
    return found


def by_day(plan: Design, blocks: list[Block]) -> list[Snapshot]:
    """A look at the end of every cycle."""
    return [
        Snapshot(day=2.0 * cycle, blocks=[one for one in blocks if one.cycle <= cycle])
        for cycle in range(1, plan.cycles + 1)
    ]


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 10**6), st.booleans())
def test_an_effect_of_one_size_is_told_exactly(
    participants: int, cycles: int, seed: int, together: bool
) -> None:
    """What is subtracted for the calendar takes away from an effect, and the estimate gives it back."""
    plan, rng = design(participants, cycles, together=together), np.random.default_rng(seed)
    blocks = [
        Block(
            participant=one.participant,
            cycle=one.cycle,
            time_block=one.time_block,
            arm=one.arm,
            trials=100,
            # A calendar for everybody, but none that nothing is subtracted for.
            successes=20
            + 10 * (one.arm == "b")
            + (one.time_block % 7 if participants > 2 and not together else 0),
        )
        for one in drawn(plan, rng)
    ]
    seen = witnesses(plan, blocks)
    told, found = estimate(seen), looks(plan, [Snapshot(day=1, blocks=blocks)])[0]
    if isinstance(told, Estimate):
        assert told.difference == found.look.estimate == pytest.approx(0.1, abs=1e-9)
        assert told.treatment.rate - told.control.rate == pytest.approx(0.1, abs=1e-9)
    else:
        assert participants > 2  # all of them happened to switch alike


def test_the_p_value_is_the_share_of_sign_flips() -> None:
    """Against every flip of four witnesses written out."""
    plan = design(2, 2)
    blocks = drawn(plan, np.random.default_rng(3), effect=0.2)
    d = witnesses(plan, blocks).differences
    values = []
    for signs in product([1, -1], repeat=4):
        own = d * signs
        values.append(abs(own.mean()) / (own.std(ddof=1) / 2))
    found = looks(plan, [Snapshot(day=4, blocks=blocks)])[0].look
    assert found.statistic == pytest.approx(values[0])
    assert found.p_value == np.mean(np.array(values) >= values[0] * (1 - path.TIE))


def test_looks_stand_and_are_the_same_everywhere() -> None:
    """Two calls give the same; a look does not change by those after it; the interval says what it decided."""
    plan = design(6, 7)
    shots = by_day(plan, drawn(plan, np.random.default_rng(5), effect=0.03))
    found = looks(plan, shots)
    assert found == looks(plan, shots)
    # But for the p of all looks, which only the last one has.
    assert found[:3] == looks(plan, shots[:4])[:3]
    assert found[3] == replace(looks(plan, shots[:4])[3], over_looks=None)
    assert found[-1].over_looks is not None
    assert (found[-1].over_looks <= plan.alpha) == found[-1].look.decided
    for look in (seen.look for seen in found):
        if look.interval is not None:
            assert look.crossed == (look.interval.low > 0 or look.interval.high < 0)
    with pytest.raises(Invalid, match=r"looks\[1\].day"):
        looks(plan, [shots[1], shots[0]])


def as_planned(
    plan: Design, blocks: list[Block], *, method: Method = "path_test"
) -> tuple[Plan, list[path.Snapshot]]:
    """The same as the one decision procedure takes it: turns as units, a look at the end of every cycle."""
    turns = [
        Turn(
            participant=one.participant,
            cycle=one.cycle,
            time_block=one.time_block,
            over=float(one.time_block),
        )
        for one in blocks
    ]
    units = [
        Unit(arm=one.arm, block=f"{one.cycle}/{one.participant}", stratum="", turn=turn)
        for one, turn in zip(blocks, turns, strict=True)
    ]
    whole = Plan(
        method=method,
        arms=("a", "b"),
        control="a",
        units=units,
        seed=SEED,
        horizon=plan.horizon,
        cycles=plan.cycles,
    )
    trials, successes = [one.trials for one in blocks], [one.successes for one in blocks]
    days = [2.0 * cycle for cycle in range(1, plan.cycles + 1)]
    return whole, [path.Snapshot(day=day, trials=trials, successes=successes) for day in days]


def rejected(
    plan: Design, runs: int, rng: np.random.Generator, *, method: Method = "path_test", **how: float
) -> float:
    """In what share of experiments any look decides."""
    found = 0
    for _ in range(runs):
        last = decision.looks(*as_planned(plan, drawn(plan, rng, **how), method=method))[-1]  # type: ignore[arg-type]
        found += last.comparisons[0].decided
        (one,) = last.comparisons
        if one.p_adjusted is not None and method == "path_test":
            assert (one.p_adjusted <= plan.alpha) == one.decided
    return found / runs


@pytest.mark.parametrize(("participants", "cycles"), [(8, 5), (3, 7), (1, 9)])
def test_a_weekday_that_hits_everybody_is_no_effect(participants: int, cycles: int) -> None:
    """A/A at looks after every cycle: decided in at most 5 % (and 3 standard errors) of 50 experiments."""
    plan = design(participants, cycles)
    bound = 0.05 + 3 * sqrt(0.05 * 0.95 / 50)
    weekend = 0.15 if participants >= FEWEST_FOR_CALENDAR else 0.05
    assert rejected(plan, 50, np.random.default_rng(participants), weekend=weekend) <= bound


@pytest.mark.parametrize(
    ("participants", "cycles", "effect", "power"), [(8, 6, 0.06, 0.9), (3, 7, 0.08, 0.7)]
)
def test_what_is_there_is_found_by_few_participants(
    participants: int, cycles: int, effect: float, power: float
) -> None:
    """With the weekday in it, by 20 experiments each: three hosts in seven cycles find 8 points at 70 %."""
    plan = design(participants, cycles)
    found = rejected(plan, 20, np.random.default_rng(7), effect=effect, weekend=0.05)
    assert found >= power - 3 * sqrt(power * (1 - power) / 20)


@pytest.mark.parametrize(("participants", "cycles"), [(8, 7), (3, 14)])
def test_a_guardrail_is_seldom_said_to_fail_by_a_weekday(participants: int, cycles: int) -> None:
    """The sequence on cycles, looked at after each: at most 5 % (and 3 standard errors) of 60 experiments."""
    plan = design(participants, cycles)
    bound = 0.05 + 3 * sqrt(0.05 * 0.95 / 60)
    assert rejected(plan, 60, np.random.default_rng(3), method="sequence", weekend=0.15) <= bound


@pytest.mark.parametrize("together", [False, True])
def test_a_fleet_that_switches_together_is_flipped_by_cycle(together: bool) -> None:
    """One witness for each cycle, however many participants, and still a real effect is found."""
    plan = design(8, 8, together=together)
    rng = np.random.default_rng(2)
    runs = [looks(plan, by_day(plan, drawn(plan, rng, effect=0.1))) for _ in range(15)]
    assert sum(found[-1].look.decided for found in runs) >= 12
    assert len(witnesses(plan, drawn(plan, rng)).names) == (8 if together else 64)


def test_rates_are_told_by_the_arm_before() -> None:
    """What b does after a and after b, from the very next block of the same participant."""
    rows = [("a", 10), ("b", 30), ("b", 40), ("a", 20)]
    blocks = [
        Block(participant="p", cycle=1 + n // 2, time_block=1 + n, arm=arm, trials=100, successes=hits)
        for n, (arm, hits) in enumerate(rows)
    ]
    found = by_previous(design(1, 2), blocks)
    assert (found["a"].treatment, found["a"].control, found["a"].blocks) == (0.3, None, 1)
    assert (found["b"].treatment, found["b"].control, found["b"].blocks) == (0.4, 0.2, 2)
