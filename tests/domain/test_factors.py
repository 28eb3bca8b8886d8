"""Combinations of factors: every one once, composed from exactly its levels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.factors import (
    MAX_COMBINATIONS,
    Factor,
    Level,
    combinations,
    compose,
    faults,
    is_full,
)
from shared.errors import Invalid
from shared.model import digest


def make_factor(key: str, *levels: str) -> Factor:
    """A factor on `KEY.md` whose contents are named after it."""
    made = [Level(key=name, name=name, digest=digest(f"{key}{name}".encode()), size=1) for name in levels]
    return Factor(key=key, target_file=f"{key}.md", levels=tuple(made))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_every_combination_is_there_once(sizes: list[int]) -> None:
    """As many as the product of the levels, all apart, the first of first levels, each with one file per factor."""
    factors = [make_factor(f"f{n}", *(f"l{n}x{m}" for m in range(size))) for n, size in enumerate(sizes)]
    found = combinations(factors)
    count = 1
    for size in sizes:
        count *= size
    assert len({item.key for item in found}) == len(found) == count
    assert dict(found[0].levels) == {factor.key: factor.levels[0].key for factor in factors}
    assert is_full(factors, [item.levels for item in found])
    assert not is_full(factors, [item.levels for item in found][1:])
    assert not list(faults(factors, [(item.key, item.levels) for item in found]))
    for item in found:
        files = compose(factors, item.levels)
        assert [path for path, _ in files] == sorted(factor.target_file for factor in factors)
        for path, level in files:
            factor = path.removesuffix(".md")
            assert level.digest == digest(f"{factor}{item.levels[factor]}".encode())


@pytest.mark.parametrize(
    ("factors", "why"),
    [
        (
            [make_factor(f"f{n}", "a", "b", "c") for n in range(4)],
            f"81 combinations; at most {MAX_COMBINATIONS}",
        ),
        ([make_factor("f", "a", "a-b"), make_factor("g", "b-c", "c")], "both be called 'a-b-c'"),
        ([make_factor("f", "a" * 40), make_factor("g", "b" * 40)], "longer than 64"),
    ],
)
def test_what_cannot_be_combined_is_refused(factors: list[Factor], why: str) -> None:
    """Too many, ambiguous and too long each say so."""
    with pytest.raises(Invalid, match=why):
        combinations(factors)


def test_faults_name_variant_factor_and_level() -> None:
    """Unknown and missing factors, unknown levels and a combination that is there twice."""
    factors = [make_factor("tone", "warm", "terse"), make_factor("model", "small")]
    variants = [
        ("a", {"tone": "warm", "model": "small"}),
        ("b", {"tone": "loud", "model": "small", "hue": "red"}),
        ("c", {"tone": "terse"}),
        ("d", {"model": "small", "tone": "warm"}),
    ]
    found = [(fault.field, fault.message) for fault in faults(factors, variants)]
    assert found == [
        ("variants.b.levels", "there is no factor 'hue'"),
        ("variants.b.levels", "'tone' has no level 'loud'"),
        ("variants.c.levels", "says nothing of the factor 'model'"),
        ("variants.d.levels", "is the same combination as a"),
    ]
    assert [fault.field for fault in faults([], [])] == ["factors"]
