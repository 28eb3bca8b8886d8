"""Factors: files that vary independently of one another, and the variants that combine their levels.

A variant of a multivariate experiment is one level of every factor; its files are those levels' contents, so
they are put in place, and taken back, as one set. Contents are known here by their digests only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from shared.errors import Fault, Invalid
from shared.model import Digest

MAX_COMBINATIONS = 64
"""So many variants are generated at most; with more, list those to be tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One content of a factor."""

    key: str
    name: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A target file and the contents it may have; the first is what the control has."""

    key: str
    target_file: str
    levels: tuple[Level, ...]

    def level(self, key: str | None) -> Level | None:
        """The level of this key."""
        return next((level for level in self.levels if level.key == key), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One level of every factor, as a variant."""

    key: str
    name: str
    levels: Mapping[str, str]


def combinations(factors: Sequence[Factor]) -> tuple[Combination, ...]:
    """Every combination, the last factor changing fastest: the first one has the first level of every factor.

    A key is the levels' keys joined by `-`. Raises Invalid where there are too many, or where a key would be
    longer than 64 characters or there twice.
    """
    if not factors:
        return ()
    count = 1
    for factor in factors:
        count *= len(factor.levels)
    if count > MAX_COMBINATIONS:
        sizes = " x ".join(str(len(factor.levels)) for factor in factors)
        _refuse(
            f"{sizes} levels make {count} combinations; at most {MAX_COMBINATIONS} are generated",
            "list the variants to be tried, each with its levels",
        )
    found = []
    for levels in product(*(factor.levels for factor in factors)):
        chosen = {factor.key: level.key for factor, level in zip(factors, levels, strict=True)}
        key = "-".join(level.key for level in levels)
        name = " / ".join(level.name for level in levels)[:200]
        found.append(Combination(key=key, name=name, levels=chosen))
    keys = [item.key for item in found]
    for key in keys:
        if len(key) > 64:
            _refuse(f"the variant key {key!r} would be longer than 64", "give the levels shorter keys")
        if keys.count(key) > 1:
            _refuse(f"two combinations would both be called {key!r}", "give the levels other keys")
    return tuple(found)


def _refuse(message: str, remedy: str) -> None:
    fault = Fault(field="factors", message=message, remedy=remedy)
    raise Invalid(f"factors: {message}", reason="INVALID_FIELDS", faults=[fault])


def compose(factors: Sequence[Factor], levels: Mapping[str, str]) -> list[tuple[str, Level]]:
    """(path, level) of each file of the variant that has these levels; what is unknown or missing is left out."""
    chosen = ((factor, factor.level(levels.get(factor.key))) for factor in factors)
    return sorted(
        ((factor.target_file, level) for factor, level in chosen if level is not None),
        key=lambda item: item[0],
    )


def is_full(factors: Sequence[Factor], variants: Sequence[Mapping[str, str]]) -> bool:
    """Whether these variants are the whole of the factors' combinations, each once."""
    if not factors:
        return not variants
    every = product(*([(factor.key, level.key) for level in factor.levels] for factor in factors))
    return sorted(sorted(item) for item in every) == sorted(sorted(levels.items()) for levels in variants)


def faults(factors: Sequence[Factor], variants: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[Fault]:
    """What keeps the variants, (key, levels), from being combinations of the factors."""
    if not factors:
        yield Fault(field="factors", message="there are none", remedy="set factors, each with its levels")
        return
    known = {factor.key for factor in factors}
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for key, levels in variants:
        where = f"variants.{key}.levels"
        for name in sorted(set(levels) - known):
            listed = ", ".join(factor.key for factor in factors)
            yield Fault(field=where, message=f"there is no factor {name!r}", remedy=f"factors are {listed}")
        for factor in factors:
            listed = ", ".join(level.key for level in factor.levels)
            if factor.key not in levels:
                message = f"says nothing of the factor {factor.key!r}"
                yield Fault(field=where, message=message, remedy=f"choose one of {listed}")
            elif factor.level(levels[factor.key]) is None:
                message = f"{factor.key!r} has no level {levels[factor.key]!r}"
                yield Fault(field=where, message=message, remedy=f"choose one of {listed}")
        combination = tuple(sorted(levels.items()))
        if combination in seen:
            message = f"is the same combination as {seen[combination]}"
            yield Fault(field=where, message=message, remedy="remove one of the two")
        seen.setdefault(combination, key)
