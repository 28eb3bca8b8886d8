"""The draw: fair in every participant, balanced, the same for everybody who repeats it."""

import json
from collections import Counter
from dataclasses import replace
from math import comb, sqrt
from pathlib import Path
from random import Random

import pytest

from control_plane.domain.assignment import (
    ALGORITHM,
    REST,
    Arm,
    Candidate,
    Placement,
    assign,
    replay,
    smallest_reachable_p,
)
from shared.errors import Invalid

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "assignment.json").read_text(encoding="utf-8")
)


def arms(**weights: int) -> list[Arm]:
    return [Arm(key=key, weight=weight) for key, weight in weights.items()]


def candidates(**strata: int) -> list[Candidate]:
    return [
        Candidate(participant=f"{name}-{number}", stratum=name)
        for name, size in strata.items()
        for number in range(size)
    ]


def seeds(count: int) -> list[bytes]:
    chance = Random(4711)
    return [chance.randbytes(32) for _ in range(count)]


def division(placements: tuple[Placement, ...]) -> dict[str, str]:
    return {placed.participant: placed.arm for placed in placements}


def two_arms(*blocks: tuple[int, int]) -> list[Placement]:
    labels = [
        (str(number), label)
        for number, (treated, untreated) in enumerate(blocks)
        for label in "t" * treated + "c" * untreated
    ]
    return [
        Placement(participant=str(number), arm=label, stratum=block, block=block, position=number)
        for number, (block, label) in enumerate(labels)
    ]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vectors_are_reproduced(case: dict) -> None:
    """The recorded vectors, which a reading of the docstring in another language reproduced too, come out."""
    assert VECTORS["algorithm"] == ALGORITHM
    drawn = assign(
        [Candidate(**candidate) for candidate in case["candidates"]],
        [Arm(**arm) for arm in case["arms"]],
        seed=bytes.fromhex(case["seed"]),
    )
    assert drawn == tuple(Placement(**placed) for placed in case["placements"])


@pytest.mark.parametrize(
    ("weights", "strata"),
    [
        ({"a": 50, "b": 50}, {"x": 4, "y": 3, "z": 1}),
        ({"a": 70, "b": 30}, {"x": 4, "y": 4}),
        ({"a": 70, "b": 30}, {"x": 13}),
        ({"a": 33, "b": 33, "c": 34}, {"x": 5, "y": 2}),
        ({"a": 90, "b": 10}, {"x": 3, "y": 11}),
        ({"a": 40, "b": 40, "c": 20, "d": 0}, {"x": 7, "y": 4}),
    ],
)
def test_every_propensity_is_the_weight(weights: dict[str, int], strata: dict[str, int]) -> None:
    """Over 2,000 seeds, each participant meets each arm as often as its weight says, within 4.5 errors."""
    runs = 2_000
    met: Counter[tuple[str, str]] = Counter()
    for seed in seeds(runs):
        met.update(division(assign(candidates(**strata), arms(**weights), seed=seed)).items())
    for candidate in candidates(**strata):
        for key, weight in weights.items():
            share = weight / 100
            allowed = 4.5 * sqrt(share * (1 - share) / runs)
            assert abs(met[candidate.participant, key] / runs - share) <= allowed, (candidate, key)


def test_remainders_are_dealt_with_exactly_their_chance() -> None:
    """With one participant all is remainder: seeds that give each value of the draw give exact shares."""
    weights = arms(a=33, b=33, c=34)
    runs = 5_000
    met = Counter(
        assign([Candidate(participant="p", stratum="")], weights, seed=seed)[0].arm for seed in seeds(runs)
    )
    for arm in weights:
        share = arm.weight / 100
        assert abs(met[arm.key] / runs - share) <= 4.5 * sqrt(share * (1 - share) / runs)


def test_labels_are_exchangeable_within_a_block() -> None:
    """Given its counts, every division of a block is equally likely, whoever of which stratum is in it."""
    odd = candidates(x=1, y=1, z=1, v=1)
    runs = 3_000
    met = Counter(
        frozenset(
            name for name, arm in division(assign(odd, arms(a=50, b=50), seed=seed)).items() if arm == "a"
        )
        for seed in seeds(runs)
    )
    divisions = comb(4, 2)
    assert len(met) == divisions
    expected = runs / divisions
    chi_square = sum((count - expected) ** 2 / expected for count in met.values())
    assert chi_square < 20.5  # the 99.9th percentile with 5 degrees of freedom


@pytest.mark.parametrize(
    ("weights", "set_size"),
    [
        ({"a": 50, "b": 50}, 2),
        ({"a": 70, "b": 30}, 10),
        ({"a": 25, "b": 50, "c": 25}, 4),
        ({"a": 33, "b": 67}, 100),
    ],
)
def test_blocks_hold_whole_sets_and_rest_is_within_one(weights: dict[str, int], set_size: int) -> None:
    """A stratum's block has each arm's exact share; `rest` has it rounded down or up."""
    strata = {"x": 23, "y": 110, "z": 1}
    for seed in seeds(50):
        placements = assign(candidates(**strata), arms(**weights), seed=seed)
        blocks = Counter(placed.block for placed in placements)
        met = Counter((placed.block, placed.arm) for placed in placements)
        for stratum, size in strata.items():
            assert blocks[f"stratum:{stratum}"] == size // set_size * set_size
        for block, size in blocks.items():
            for key, weight in weights.items():
                exact = size * weight / 100
                assert met[block, key] == exact if block != REST else abs(met[block, key] - exact) < 1


def test_twelve_participants_on_three_agents_are_balanced_on_each() -> None:
    """At 50/50 every agent with an even number of participants has as many of one arm as of the other."""
    for seed in seeds(100):
        placements = assign(candidates(alpha=4, beta=4, gamma=4), arms(control=50, b=50), seed=seed)
        assert set(Counter((placed.stratum, placed.arm) for placed in placements).values()) == {2}
        assert REST not in {placed.block for placed in placements}


def test_order_of_arguments_does_not_matter() -> None:
    """Shuffled candidates and arms give the same placements in the same order."""
    members, weights = candidates(x=7, y=12, z=1), arms(a=40, b=40, c=20)
    chance = Random(7)
    expected = assign(members, weights, seed=b"seed")
    for _ in range(50):
        chance.shuffle(members)
        chance.shuffle(weights)
        assert assign(members, weights, seed=b"seed") == expected
        assert replay(chance.sample(expected, len(expected)), weights, seed=b"seed")


def test_an_arm_of_weight_zero_changes_nothing() -> None:
    """It gets nobody, and the others are placed as if it were not there."""
    members = candidates(x=7, y=12)
    with_idle = assign(members, arms(a=70, idle=0, b=30), seed=b"seed")
    assert with_idle == assign(members, arms(a=70, b=30), seed=b"seed")


def test_seeds_matter() -> None:
    """Different seeds give different divisions; nobody can know an arm from the ids alone."""
    members = candidates(x=20)
    assert len({assign(members, arms(a=50, b=50), seed=seed) for seed in seeds(20)}) == 20


def test_replay_finds_any_change_of_the_record() -> None:
    """Every single change of an arm, block, position, seed or weight makes the record irreproducible."""
    weights, seed = arms(a=50, b=50), b"seed"
    placements = list(assign(candidates(x=7, y=4), weights, seed=seed))
    assert replay(placements, weights, seed=seed)
    assert not replay(placements, weights, seed=b"seeds")
    assert not replay(placements, arms(a=40, b=60), seed=seed)
    assert not replay(placements, arms(a=50, c=50), seed=seed)
    for index, placed in enumerate(placements):
        others = placements[:index] + placements[index + 1 :]
        for changed in (
            replace(placed, arm="b" if placed.arm == "a" else "a"),
            replace(placed, block="stratum:z"),
            replace(placed, position=placed.position + 1),
        ):
            assert not replay([*others, changed], weights, seed=seed), changed
        assert not replay([*placements, placed], weights, seed=seed)


def test_replay_finds_two_participants_exchanged() -> None:
    """Exchanging the arms of two participants keeps every count, and is found all the same."""
    weights = arms(a=50, b=50)
    placements = list(assign(candidates(x=8), weights, seed=b"seed"))
    first, last = placements[0], placements[-1]
    assert first.arm != last.arm
    exchanged = [replace(first, arm=last.arm), *placements[1:-1], replace(last, arm=first.arm)]
    assert not replay(exchanged, weights, seed=b"seed")


def test_nobody_is_placed_without_trouble() -> None:
    """No candidates give no placements, and that replays."""
    assert assign([], arms(a=50, b=50), seed=b"seed") == ()
    assert replay([], arms(a=50, b=50), seed=b"seed")


@pytest.mark.parametrize(
    ("members", "weights", "seed", "fields"),
    [
        ([], [], b"s", ["arms"]),
        ([], arms(a=50, b=49), b"s", ["arms"]),
        ([], arms(a=110, b=-10), b"s", ["arms[0].weight", "arms[1].weight"]),
        ([], [*arms(a=50), *arms(a=50)], b"s", ["arms[1].key"]),
        (candidates(x=1) * 2, arms(a=100), b"s", ["candidates[1].participant"]),
        (candidates(x=1) * 2, arms(a=50), b"", ["seed", "arms", "candidates[1].participant"]),
    ],
)
def test_bad_input_is_refused_by_field(
    members: list[Candidate], weights: list[Arm], seed: bytes, fields: list[str]
) -> None:
    """One refusal lists every fault with the field it is in."""
    with pytest.raises(Invalid) as refused:
        assign(members, weights, seed=seed)
    assert [fault.field for fault in refused.value.faults] == fields


@pytest.mark.parametrize(
    ("blocks", "smallest"),
    [
        ([(5, 5)], 2 / 252),
        ([(1, 1)] * 5, 0.0625),
        ([(4, 4)], 2 / 70),
        ([(3, 2)], 0.1),
        ([(2, 2), (1, 0)], 1 / 6),
        ([(1, 1)], 1.0),
        ([(3, 0)], 1.0),
        ([], 1.0),
        ([(600, 600)] * 3, 0.0),
    ],
)
def test_smallest_reachable_p(blocks: list[tuple[int, int]], smallest: float) -> None:
    """The bound is the share of the real draw, and of its twin where there is one, among all draws."""
    found = smallest_reachable_p(two_arms(*blocks), treatment="t", control="c")
    assert found == pytest.approx(smallest, rel=1e-12)


def test_smallest_reachable_p_ignores_other_arms() -> None:
    """A third arm in the same blocks takes no part in a comparison of two."""
    placements = assign(candidates(x=20), arms(t=25, c=25, other=50), seed=b"seed")
    assert smallest_reachable_p(placements, treatment="t", control="c") == 2 / 252
