"""What stands beside a switchback's comparison: blocks without data, and what its cycles can find."""

from typing import Any

import pytest

from control_plane.domain import alternation
from control_plane.domain.evidence import Alternation, Arm, Evidence, Measure, Settings, Sums, Turn
from control_plane.domain.statistics import srm


def evidence(turns: list[tuple[str, str, int, int, int]], *, cycles: int, day: float = 100.0) -> Evidence:
    """Of (participant, arm, block, impressions, conversions), blocks of a day in cycles of two."""
    m, c = tuple(row[3] for row in turns), tuple(row[4] for row in turns)
    sums = Sums(impressions=m, conversions=c, values=c, denominators=m)
    return Evidence(
        about={},
        measure=Measure(name="done"),
        primary=True,
        population="assigned",
        settings=Settings(alpha=0.05, decision="path_test"),
        seed="00" * 32,
        arms=tuple(Arm(id=key, key=key, name=key, is_control=key == "a", weight=50) for key in "ab"),
        members=(),
        sums=Sums(impressions=(), conversions=(), values=(), denominators=()),
        alternation=Alternation(
            cycles=cycles,
            block_days=1.0,
            day=day,
            turns=tuple(
                Turn(participant=who, arm=arm, cycle=(block + 1) // 2, block=block, over=float(block))
                for who, arm, block, _, _ in turns
            ),
            sums=sums,
        ),
    )


def turns_of(evidence: Evidence) -> Alternation:
    """Its turns."""
    assert evidence.alternation is not None
    return evidence.alternation


def one_silent(pairs: int, silent: str) -> list[tuple[str, str, int, int, int]]:
    """Cycles of one participant in which the blocks of an arm are silent."""
    return [
        ("p", arm, 2 * cycle + place + 1, 0 if arm == silent else 10, 0 if arm == silent else 3)
        for cycle in range(pairs)
        for place, arm in enumerate("ab")
    ]


def test_blocks_that_are_silent_in_one_variant_only_are_told() -> None:
    """Twelve of twelve pairs: 2/2^12. Silent in both, or not over, says nothing."""
    found = evidence(one_silent(12, "b"), cycles=12)
    assert alternation.silent_alike(found, turns_of(found)) == pytest.approx(2 / 2**12)
    both = evidence([(who, arm, block, 0, 0) for who, arm, block, _, _ in one_silent(12, "b")], cycles=12)
    assert alternation.silent_alike(both, turns_of(both)) == 1.0
    early = evidence(one_silent(12, "b"), cycles=12, day=2.0)
    assert alternation.silent_alike(early, turns_of(early)) == 1.0
    assert srm.same_share_of_pairs((3, 3)) == 1.0
    assert srm.same_share_of_pairs((0, 0)) == 1.0


def told(cycles: int, planned: int) -> dict[str, Any]:
    """The power of so many cycles of which some are over, of two participants with differences of 1 and 3 in 10."""
    rows = [
        (who, arm, 2 * cycle + place + 1, 10, 2 + (arm == "b") * (1 + 2 * ((cycle + int(who)) % 2)))
        for who in "01"
        for cycle in range(cycles)
        for place, arm in enumerate("ab")
    ]
    given = evidence(rows, cycles=planned)
    found = alternation.power(given, turns_of(given))
    assert found is not None
    return found


def test_power_is_of_all_cycles_that_are_planned() -> None:
    """Four times the cycles find half the effect, and need a quarter of the participants."""
    few, many = told(8, 8), told(8, 32)
    assert many["mde"] == pytest.approx(few["mde"] / 2)
    assert few["participantsNeeded"] == pytest.approx(4 * many["participantsNeeded"], abs=4)
    assert few["assumes"]["baseline"] == pytest.approx(0.2)
    # Differences of 1 and 3 in 10 in turn: 0.1 to either side of their mean, by 16 witnesses.
    assert few["assumes"]["spreadOfOneWitness"] == pytest.approx(0.1 * (16 / 15) ** 0.5)
    assert few["mde"] == pytest.approx((1.959964 + 0.841621) * 0.1 * (16 / 15) ** 0.5 / 4, rel=1e-5)


def test_before_anything_is_over_nothing_is_said() -> None:
    """No power, no carry-over, and no witness."""
    found = evidence(one_silent(3, ""), cycles=3, day=0.5)
    assert alternation.power(found, turns_of(found)) is None
    assert alternation.carried_over(found) == []
    assert alternation.said(found, turns_of(found))["witnessesOver"] == 0
    one = evidence(one_silent(3, ""), cycles=3)
    (after,) = alternation.carried_over(one)[:1]
    assert (after["variant"], after["previous"], after["reason"]) == ("b", "a", "NO_IMPRESSIONS")
