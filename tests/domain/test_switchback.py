"""Switchback: every variant once per cycle, every order equally likely, and a calendar that knows no pause."""

from collections import Counter
from itertools import pairwise, permutations, product
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.design import Switchback
from control_plane.domain.fields import parse
from control_plane.domain.switchback import Calendar, faults, order, smallest_reachable_p, turns
from shared.moment import SECOND

SEED = bytes(range(32))


def test_the_procedure_gives_these_orders() -> None:
    """switchback-1 to the byte: a changed procedure needs another name."""
    keys = ["a", "b", "c"]
    found = {
        (participant, cycle): "".join(order(participant, cycle, keys, seed=SEED))
        for participant in ("bot-1", "bot-2")
        for cycle in (1, 2, 3)
    }
    assert found == VECTORS


VECTORS = {
    ("bot-1", 1): "bca",
    ("bot-1", 2): "cba",
    ("bot-1", 3): "acb",
    ("bot-2", 1): "bac",
    ("bot-2", 2): "acb",
    ("bot-2", 3): "cba",
}
"""Computed with SHA-256 over seed, 0x20 and the text, apart from the code."""


@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=6, unique=True),
    st.integers(1, 40),
    st.integers(0, 45),
    st.binary(min_size=32, max_size=32),
)
def test_every_variant_is_there_once_per_cycle(keys: list[str], cycles: int, skip: int, seed: bytes) -> None:
    """Whatever the order of the variants, and wherever one begins, the turns are the same."""
    blocks = cycles * len(keys)
    found = list(turns("p", keys, seed=seed, blocks=blocks))
    assert [turn.time_block for turn in found] == list(range(1, blocks + 1))
    for cycle in range(1, cycles + 1):
        inside = [turn for turn in found if turn.cycle == cycle]
        assert sorted(turn.arm for turn in inside) == sorted(keys)
        assert [turn.place for turn in inside] == list(range(len(keys)))
    first = skip % blocks + 1
    assert list(turns("p", keys[::-1], seed=seed, blocks=blocks, first=first)) == found[first - 1 :]


@pytest.mark.parametrize("keys", [["a", "b"], ["a", "b", "c"]])
def test_every_order_is_equally_likely(keys: list[str]) -> None:
    """Over participants and cycles each order comes up as often as any, within five standard errors."""
    drawn = [
        tuple(order(f"bot-{n}", cycle, keys, seed=SEED)) for n, cycle in product(range(600), range(1, 11))
    ]
    counts, chance = Counter(drawn), 1 / len(list(permutations(keys)))
    bound = 5 * sqrt(len(drawn) * chance * (1 - chance))
    for each in permutations(keys):
        assert abs(counts[each] - len(drawn) * chance) < bound
    # Cycles of one participant are drawn apart: the next order is the same as often as chance says.
    pairs = list(pairwise(drawn))
    same = sum(before == after for before, after in pairs)
    assert abs(same - len(pairs) * chance) < 5 * sqrt(len(pairs) * chance * (1 - chance))


@given(st.integers(-100, 700), st.integers(2, 4))
def test_the_calendar(moment: int, size: int) -> None:
    """Exactly one block is current from the first to the last; the next cycle begins after now, whole."""
    calendar = Calendar(begins=0, length=50, blocks=12)
    block = calendar.at(moment)
    if 0 <= moment < 600:
        assert block is not None
        start, end = calendar.span(block)
        assert start <= moment < end
    else:
        assert block is None
    ahead = calendar.next_cycle(moment, size)
    if ahead is not None:
        assert ahead % size == 1
        assert calendar.span(ahead)[0] > moment or moment < 0
        assert calendar.span(ahead + size - 1)[1] <= calendar.end
    else:
        assert moment >= calendar.span(12 - 12 % size - size + 1)[0]
    assert calendar.switches() == [50 * n for n in range(1, 13)]


@pytest.mark.parametrize(
    ("participants", "cycles", "p"), [(1, 1, 1.0), (1, 6, 1 / 32), (2, 3, 1 / 32), (5, 1, 1 / 16)]
)
def test_the_smallest_reachable_p(participants: int, cycles: int, p: float) -> None:
    """Two of all the ways to give the differences their signs are as extreme as can be."""
    assert smallest_reachable_p(participants, cycles) == p
    assert smallest_reachable_p(10_000, 500) > 0


def test_faults_name_their_fields() -> None:
    """No settings, half a cycle, a washout that fills its block, and more turns than are kept."""

    def settings(**values: object) -> Switchback:
        return parse(Switchback, {"blockDuration": "PT1H", "blocks": 12, **values})

    def fields(found: Switchback | None, participants: int = 5) -> list[str]:
        return [fault.field for fault in faults(found, variants=3, participants=participants)]

    assert fields(None) == ["switchback"]
    assert fields(settings()) == []
    assert fields(settings(blocks=13)) == ["switchback.blocks"]
    assert fields(settings(washout="PT60M")) == ["switchback.washout"]
    assert fields(settings(blocks=999), participants=101) == ["switchback.blocks"]
    assert settings(washout="PT5M").settling == 300 * SECOND
