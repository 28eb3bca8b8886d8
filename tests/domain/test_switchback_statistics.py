"""Switchback results: the test that flips what the lot could have flipped, and what a calendar cannot fake."""

from dataclasses import replace
from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.statistics import path
from control_plane.domain.statistics.switchback import (
    Block,
    Design,
    Estimate,
    Snapshot,
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


def rejected(plan: Design, runs: int, rng: np.random.Generator, **how: float) -> float:
    """In what share of experiments any look decides."""
    return float(
        np.mean([looks(plan, by_day(plan, drawn(plan, rng, **how)))[-1].look.decided for _ in range(runs)])  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("together", [False, True])
def test_a_weekday_that_hits_everybody_is_no_effect(together: bool) -> None:
    """At most 5 % (and 3 standard errors) of A/A runs are decided at any look, and a real effect is found."""
    plan = design(8, 8, together=together)
    bound = 0.05 + 3 * sqrt(0.05 * 0.95 / 120)
    assert rejected(plan, 120, np.random.default_rng(1), weekend=0.15) <= bound
    assert rejected(plan, 20, np.random.default_rng(2), effect=0.06 if not together else 0.1) >= 0.8


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
