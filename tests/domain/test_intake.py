"""Who comes in and where: allocation, holdouts, late joiners, further phases, large populations."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.assignment import ALGORITHM, Arm
from control_plane.domain.intake import (
    HASHED,
    MAX_BALANCED,
    TARGETED,
    Applicant,
    Holdout,
    Method,
    Rules,
    Seat,
    algorithm_for,
    late_seat,
    late_turns,
    reseat,
    seats,
)
from control_plane.domain.targeting import LabelRule


def seed(number: int) -> bytes:
    """A seed of its own."""
    return hashlib.sha256(f"seed {number}".encode()).digest()


def people(count: int, *, strata: int = 1) -> list[Applicant]:
    """Applicants spread over strata."""
    return [Applicant(participant=f"p-{n}", stratum=f"s-{n % strata}") for n in range(count)]


def rules(number: int = 0, *, allocation: int = 100, **weights: int) -> Rules:
    """Rules over arms; half and half by default."""
    arms = [Arm(key=key, weight=weight) for key, weight in (weights or {"a": 50, "b": 50}).items()]
    return Rules(arms=arms, seed=seed(number), allocation=allocation)


def within(count: int, trials: int, chance: float) -> bool:
    """Whether a binomial count is within 4.5 standard errors: once in 150,000 that is wrong by chance."""
    return abs(count - trials * chance) <= 4.5 * math.sqrt(trials * chance * (1 - chance)) + 1e-9


def arms_of(found: Sequence[Seat]) -> Counter[str | None]:
    """How many are where."""
    return Counter(seat.arm for seat in found)


# -- allocation


@given(st.integers(0, 60), st.integers(0, 100), st.integers(0, 1000))
def test_the_allocation_is_exact_on_a_list(count: int, share: int, number: int) -> None:
    """Of n, the share comes in, to within one; everybody is on record."""
    found = seats(people(count, strata=3), rules(number, allocation=share))
    inside = sum(1 for seat in found if seat.arm is not None)
    assert len(found) == count
    assert count * share // 100 <= inside <= -(-count * share // 100)
    assert {seat.method for seat in found} <= {Method.RANDOMIZED}


@given(st.integers(0, 40), st.integers(0, 100), st.integers(0, 100), st.integers(0, 1000))
def test_raising_the_allocation_keeps_who_was_in(count: int, one: int, other: int, number: int) -> None:
    """Under one seed the smaller share is a part of the larger."""
    low, high = sorted((one, other))
    inside = [
        {seat.participant for seat in seats(people(count), rules(number, allocation=share)) if seat.arm}
        for share in (low, high)
    ]
    assert inside[0] <= inside[1]


def test_everybody_has_the_same_chance_to_come_in() -> None:
    """Over seeds, each of ten comes in as often as the allocation says, wherever it stands in the list."""
    counts: Counter[str] = Counter()
    trials = 3_000
    for number in range(trials):
        found = seats(people(10), rules(number, allocation=35))
        counts.update(seat.participant for seat in found if seat.arm)
    assert all(within(counts[f"p-{n}"], trials, 0.35) for n in range(10)), counts


# -- holdouts


def test_a_holdout_is_the_same_everywhere_and_of_its_share() -> None:
    """Who is held out has no variant in any experiment that names it, and every draw leaves the others alone."""
    holdout = Holdout(seed=seed(99), share=12.5)
    applicants = people(4_000)
    held = {item.participant for item in applicants if holdout.holds_out(item.participant)}
    assert within(len(held), 4_000, 0.125)
    for number in (1, 2):
        given_rules = Rules(arms=rules().arms, seed=seed(number), holdout=holdout)
        found = seats(applicants[:900], given_rules)
        out = {seat.participant for seat in found if seat.method is Method.HOLDOUT}
        assert out == held & {item.participant for item in applicants[:900]}
        assert all(seat.arm is None for seat in found if seat.method is Method.HOLDOUT)
        counts = arms_of(found)
        assert abs(counts["a"] - counts["b"]) <= 1


# -- large populations


def test_large_populations_are_hashed_as_documented() -> None:
    """A second hand at the documented procedure comes to the same arm for each of 3,000."""
    given_rules = rules(7, a=20, b=30, c=50)
    applicants = people(3_000)
    assert algorithm_for(len(applicants), given_rules) == HASHED
    found = {seat.participant: seat for seat in seats(applicants, given_rules)}
    for item in applicants:
        raw = hashlib.sha256(seed(7) + b"\x11" + item.participant.encode()).digest()
        bucket = int.from_bytes(raw, "big") % 10_000
        expected = "a" if bucket < 2_000 else "b" if bucket < 5_000 else "c"
        assert (found[item.participant].arm, found[item.participant].position) == (expected, bucket)
    counts = arms_of(list(found.values()))
    assert all(within(counts[key], 3_000, share) for key, share in (("a", 0.2), ("b", 0.3), ("c", 0.5)))


def test_hashed_entry_and_arm_are_independent() -> None:
    """With half of them let in, the arms still hold their shares of those."""
    found = seats(people(20_000), rules(3, allocation=50, a=30, b=70))
    counts = arms_of(found)
    inside = 20_000 - counts[None]
    assert within(inside, 20_000, 0.5)
    assert within(counts["a"], inside, 0.3)


def test_the_hash_draw_of_one_does_not_depend_on_the_others() -> None:
    """A population that grows leaves everybody where they were."""
    whole = {seat.participant: seat for seat in seats(people(2_000), rules(5))}
    more = {seat.participant: seat for seat in seats(people(2_500), rules(5))}
    assert all(more[name] == seat for name, seat in whole.items())


@pytest.mark.parametrize(("count", "expected"), [(MAX_BALANCED, ALGORITHM), (MAX_BALANCED + 1, HASHED)])
def test_the_procedure_follows_the_size(count: int, expected: str) -> None:
    """Up to a thousand are balanced."""
    assert algorithm_for(count, rules()) == expected


# -- late joiners


def late(given_rules: Rules, count: int, stratum: str = "s") -> list[Seat]:
    """Late joiners of one stratum, one after another."""
    return [
        late_seat(
            Applicant(participant=f"late-{n}", stratum=stratum),
            given_rules,
            algorithm=ALGORITHM,
            phase=1,
            earlier=n,
        )
        for n in range(count)
    ]


@given(st.integers(0, 1000), st.sampled_from([(50, 50), (20, 80), (25, 75), (10, 40, 50)]))
def test_late_joiners_come_in_whole_sets(number: int, weights: tuple[int, ...]) -> None:
    """After every set each arm has exactly its share, and a longer queue begins like a shorter one."""
    given_rules = rules(number, **{f"arm-{n}": weight for n, weight in enumerate(weights)})
    size = 100 // math.gcd(*weights)
    found = late(given_rules, 3 * size)
    assert found[:size] == late(given_rules, size)
    for block in range(3):
        part = found[block * size : (block + 1) * size]
        assert {seat.block for seat in part} == {f"late:1:s:{block}"}
        counts = arms_of(part)
        assert [counts[f"arm-{n}"] for n in range(len(weights))] == [w * size // 100 for w in weights]


def test_a_late_joiner_s_chance_is_the_arm_s_weight() -> None:
    """Over seeds, the first and the second of a stratum get each arm as often as its weight says."""
    trials = 4_000
    counts = [Counter(late(rules(n, a=25, b=75), 2)[place].arm for n in range(trials)) for place in (0, 1)]
    assert all(within(count["a"], trials, 0.25) for count in counts), counts


# -- targeting


def test_the_first_variant_whose_rules_fit_is_it() -> None:
    """Nothing is random: order decides, and whom nothing fits has no variant."""
    fits = {
        "gold": [LabelRule(key="tier", operator="equals", value="gold")],
        "support": [LabelRule(key="role", operator="exists")],
    }
    given_rules = Rules(arms=rules().arms, seed=seed(0), targeted=fits)
    labels = [{"tier": "gold", "role": "x"}, {"role": "x"}, {}]
    applicants = [Applicant(participant=f"p-{n}", stratum="s", labels=each) for n, each in enumerate(labels)]
    found = {seat.participant: seat.arm for seat in seats(applicants, given_rules)}
    assert found == {"p-0": "gold", "p-1": "support", "p-2": None}
    assert algorithm_for(3, given_rules) == TARGETED


# -- further phases


@given(
    st.integers(1, 60),
    st.integers(0, 500),
    st.sampled_from([(50, 50), (20, 80), (0, 100), (10, 90)]),
    st.sampled_from([(50, 50), (80, 20), (100, 0), (30, 70)]),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_only_who_has_to_moves(
    count: int, number: int, before: tuple[int, int], after: tuple[int, int], share: int, then: int
) -> None:
    """Nobody is put out, arms get their shares to within one, and no more move than the shares need."""
    first = seats(people(count, strata=2), rules(number, allocation=share, a=before[0], b=before[1]))
    second = reseat(first, rules(number, allocation=then, a=after[0], b=after[1]), number=2)
    old = {seat.participant: seat for seat in first}
    new = {seat.participant: seat for seat in second}
    assert set(new) == set(old)
    assert all(new[name].arm is not None for name, seat in old.items() if seat.arm is not None)
    inside = [seat for seat in second if seat.arm is not None]
    was_in = sum(1 for seat in first if seat.arm is not None)
    assert len(inside) in {was_in, *range(count * then // 100, -(-count * then // 100) + 1)}
    counts = arms_of(inside)
    for key, weight in zip("ab", after, strict=True):
        assert abs(counts[key] - len(inside) * weight / 100) < 1
    moved = sum(1 for name, seat in old.items() if seat.arm and new[name].arm != seat.arm)
    surplus = sum(max(0, sum(1 for seat in first if seat.arm == key) - counts[key]) for key in "ab")
    assert moved == surplus
    stayed = [name for name, seat in old.items() if seat.arm and new[name].arm == seat.arm]
    assert all(new[name] == old[name] for name in stayed)


def test_who_moves_is_drawn_by_lot() -> None:
    """Over seeds, every member of a shrinking arm is as likely to move as another."""
    moved: Counter[str] = Counter()
    trials = 2_000
    for number in range(trials):
        first = [
            Seat(
                participant=f"p-{n}",
                arm="a" if n < 8 else "b",
                method=Method.RANDOMIZED,
                stratum="s",
                block="rest",
                position=n,
            )
            for n in range(16)
        ]
        Random(number).shuffle(first)
        second = reseat(first, rules(number, a=25, b=75), number=2)
        moved.update(seat.participant for seat in second if seat.block == "phase:2")
    assert all(within(moved[f"p-{n}"], trials, 0.5) for n in range(8)), moved
    assert set(moved) == {f"p-{n}" for n in range(8)}


# -- clusters


def clustered(sizes: Sequence[int]) -> list[Applicant]:
    """Clusters of so many members."""
    return [
        Applicant(participant=f"p-{n}-{m}", stratum="all", cluster=f"c-{n}")
        for n, size in enumerate(sizes)
        for m in range(size)
    ]


def by_cluster(found: Sequence[Seat]) -> dict[str, set[tuple[str | None, str, int, str]]]:
    """What the members of each cluster have."""
    had: dict[str, set[tuple[str | None, str, int, str]]] = {}
    for seat in found:
        had.setdefault(seat.cluster, set()).add((seat.arm, seat.block, seat.position, seat.stratum))
    return had


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 500), st.integers(0, 100))
def test_clusters_are_drawn_as_participants_would_be(sizes: list[int], number: int, share: int) -> None:
    """Every member has what its cluster has, and that is what a participant of the cluster's name would have."""
    given_rules = rules(number, allocation=share, a=40, b=60)
    found = seats(clustered(sizes), given_rules)
    had = by_cluster(found)
    assert len(found) == sum(sizes)
    alone = seats([Applicant(participant=f"c-{n}", stratum="all") for n in range(len(sizes))], given_rules)
    assert had == {s.participant: {(s.arm, s.block, s.position, s.stratum)} for s in alone}


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=20),
    st.integers(0, 200),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_clusters_move_as_a_whole(sizes: list[int], number: int, share: int, weight: int) -> None:
    """A further phase puts no cluster asunder, and brings in who could not come in with its cluster before."""
    first = list(seats(clustered(sizes), rules(number, allocation=share)))
    second = reseat(first, rules(number, allocation=share, a=weight, b=100 - weight), number=2)
    assert len(second) == len(first)
    assert all(len(had) == 1 for had in by_cluster(second).values())
    kept_out = [replace(first[0], arm=None, block="outside"), *first[1:]]
    again = reseat(kept_out, rules(number, allocation=share), number=2)
    assert all(len(had) == 1 for had in by_cluster(again).values())


def test_many_clusters_and_large_ones_are_hashed_together() -> None:
    """Above the size that is balanced, members still share their cluster's bucket."""
    found = seats(clustered([3] * 500), rules(1))
    assert {seat.block for seat in found} == {"hash"}
    assert all(len(had) == 1 for had in by_cluster(found).values())


def test_members_of_several_strata_are_of_a_stratum_of_all() -> None:
    """In whatever order they come."""
    mixed = [Applicant(participant=f"p-{n}", stratum=stratum, cluster="c") for n, stratum in enumerate("bab")]
    assert {seat.stratum for seat in seats(mixed, rules())} == {"a|b"}
    assert seats(mixed, rules()) == seats(mixed[::-1], rules())


def test_who_joins_a_cluster_late_has_its_seat() -> None:
    """Though the draw would give it another; a cluster of nobody is drawn."""
    cluster = Seat(
        participant="p", arm="b", method=Method.RANDOMIZED, stratum="t", block="rest", position=4, cluster="c"
    )
    joiner = Applicant(participant="q", stratum="all", cluster="c")
    for number in range(8):
        given_rules = rules(number)
        found = late_seat(joiner, given_rules, algorithm=ALGORITHM, phase=1, earlier=0, cluster=cluster)
        assert found == replace(cluster, participant="q")
        drawn = late_seat(joiner, given_rules, algorithm=ALGORITHM, phase=1, earlier=0)
        assert (drawn.cluster, drawn.block) == ("c", "late:1:all:0")
        outside = late_turns(
            joiner,
            replace(given_rules, time_blocks=2),
            first=1,
            cluster=replace(cluster, arm=None, block="outside"),
        )
        assert [seat.arm for seat in outside] == [None]


def test_a_cluster_alternates_as_one() -> None:
    """Every member has the cluster's order of variants; who joins it later has what is left of that."""
    given_rules = replace(rules(2), time_blocks=6)
    found = seats(clustered([2, 3]), given_rules)
    order: dict[str, set[tuple[str | None, ...]]] = {}
    for name in {seat.participant for seat in found}:
        mine = sorted((s for s in found if s.participant == name), key=lambda seat: seat.time_block)
        order.setdefault(mine[0].cluster, set()).add(tuple(seat.arm for seat in mine))
    assert [len(had) for had in order.values()] == [1, 1]
    joiner = Applicant(participant="late", stratum="all", cluster="c-1")
    (whole,) = order["c-1"]
    assert tuple(seat.arm for seat in late_turns(joiner, given_rules, first=3)) == whole[2:]


def test_a_holdout_means_participants_also_of_clusters() -> None:
    """Whoever is held out is out of its cluster, and the others are drawn without it."""
    holdout = Holdout(seed=seed(9), share=50)
    given_rules = replace(rules(1), holdout=holdout)
    found = {seat.participant: seat for seat in seats(clustered([4] * 10), given_rules)}
    for name, seat in found.items():
        assert (seat.method is Method.HOLDOUT) == holdout.holds_out(name)
        assert (seat.arm is None) == holdout.holds_out(name)
