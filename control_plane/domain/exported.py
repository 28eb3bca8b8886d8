"""What an exported experiment has to be before anything is computed of it.

The server makes evidence that holds together; a file may have been edited. The module hides what holds it together:
every list of sums has an entry for each member (or turn), everything named is there, and no number is one that could
not have been. What is possible in itself and was never so is found by the looks (`inference.differing_looks`).
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from control_plane.domain.evidence import (
    Alternation,
    Evidence,
    Ledgered,
    Measure,
    Member,
    Part,
    Settings,
    Sums,
)
from control_plane.domain.fields import parse
from control_plane.domain.statistics.proportions import Undefined
from control_plane.domain.statistics.verdict import Guard
from shared.errors import Fault, Invalid

MOST = 10**15
"""Of a count, and a thousandth of it of a value: sums of as many as there may be are still whole numbers of a float."""
LARGEST_VALUE = 10**18
MOST_CYCLES = 100_000


class _Ends(Part):
    low: float
    high: float


class _Compared(Part):
    """A comparison as a look recorded it; `unspent` is not in older records."""

    variant: str
    statistic: float | None
    critical: float | None
    alpha_spent: float | None
    unspent: float | None = None
    difference: float | None
    interval: _Ends | None
    lift: float | None
    lift_interval: _Ends | None
    p_value: float | None
    p_value_adjusted: float | None
    crossed: bool
    decided: bool
    reasons: dict[str, Undefined]


class _Guarded(Part):
    """A guardrail as a look recorded it."""

    metric: str
    variant: str
    state: Guard
    interval: _Ends | None
    bound: float | None


class _Looks(Part):
    """What a look recorded."""

    comparisons: tuple[_Compared, ...]
    guardrails: tuple[_Guarded, ...]


def exported(given: Mapping[str, Any]) -> Evidence:
    """The evidence behind JSON, whole in itself. Raises Invalid that names every field that is not."""
    _finite(given)
    evidence = parse(Evidence, given)
    faults = list(_faults(evidence))
    if faults:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise Invalid(listed, reason="INVALID_FIELDS", faults=faults)
    return evidence


def _faults(evidence: Evidence) -> Iterator[Fault]:
    yield from _numbers(evidence)
    yield from _settings(evidence.settings)
    yield from _measure(evidence.measure, "measure")
    keys = [arm.key for arm in evidence.arms]
    yield from _arms(evidence, keys)
    yield from _members(evidence.members, "members", keys)
    turns = evidence.alternation
    size, drawn = len(evidence.members), len(turns.turns) if turns else len(evidence.members)
    yield from _sums(evidence.sums, "sums", size)
    yield from _sums(evidence.first, "first", drawn)
    yield from _sums(evidence.history, "history", size)
    if turns is not None:
        yield from _alternation(turns, keys)
    yield from _looks(evidence.looks, "looks", keys, drawn)
    yield from _looks(evidence.former_looks, "formerLooks", keys, drawn)
    yield from _looks(evidence.other_looks, "otherLooks", keys, drawn)
    days = {item.day for item in evidence.looks}
    for at, item in enumerate(evidence.former_looks):
        if item.day in days:
            yield Fault(field=f"formerLooks.{at}.day", message=f"is {item.day:g}, which one of looks has")
    for at, beside in enumerate(evidence.secondary):
        where = f"secondary.{at}"
        yield from _measure(beside.measure, f"{where}.measure")
        yield from _sums(beside.sums, f"{where}.sums", size)
        yield from _sums(beside.first, f"{where}.first", drawn)
        yield from _sums(beside.history, f"{where}.history", size)
    for at, stretch in enumerate(evidence.pooled):
        where = f"pooled.{at}"
        yield from _members(stretch.members, f"{where}.members", keys)
        yield from _sums(stretch.sums, f"{where}.sums", len(stretch.members))
        yield from _sums(stretch.first, f"{where}.first", len(stretch.members))
        if [item.number for item in evidence.pooled].count(stretch.number) > 1:
            yield Fault(field=f"{where}.number", message=f"is {stretch.number}, which another phase has")


def _numbers(evidence: Evidence) -> Iterator[Fault]:
    """What stands beside sums and looks."""
    try:
        bytes.fromhex(evidence.seed)
    except ValueError:
        yield Fault(field="seed", message="must be bytes in hexadecimal")
    if not 0 <= evidence.unspent <= 1:
        yield Fault(field="unspent", message=f"is {evidence.unspent:g}, must be between 0 and 1")
    if evidence.reachable is not None and not 0 < evidence.reachable <= 1:
        yield Fault(field="reachable", message=f"is {evidence.reachable:g}, must be above 0 and at most 1")
    for at, item in enumerate(evidence.exclusions):
        counts = (
            ("participants", item.participants), ("impressions", item.impressions), ("units", item.units or 0),
        )  # fmt: skip
        for name, count in counts:
            if not 0 <= count <= MOST:
                yield Fault(field=f"exclusions.{at}.{name}", message=f"must be between 0 and {MOST:g}")


def _settings(settings: Settings) -> Iterator[Fault]:
    bounds = [
        ("alpha", settings.alpha, 1e-9, 1 - 1e-9),
        ("horizonDays", settings.horizon_days, 1e-9, 1e5),
        ("power", settings.power, 1e-9, 1 - 1e-9),
        ("effect", settings.effect, 1e-9, 1e9),
        ("tuning", settings.tuning, 1e-9, 1e12),
        ("prior.0", settings.prior[0], 0.1, 1e9),
        ("prior.1", settings.prior[1], 0.1, 1e9),
    ]
    for name, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            message = f"is {value:g}, must be between {low:g} and {high:g}"
            yield Fault(field=f"settings.{name}", message=message)


def _measure(measure: Measure, where: str) -> Iterator[Fault]:
    for name, value in (("margin", measure.margin), ("effect", measure.effect)):
        if value is not None and not 1e-9 <= value <= 1e9:
            yield Fault(field=f"{where}.{name}", message=f"is {value:g}, must be between 1e-9 and 1e9")
    if measure.winsorize_at is not None and not 50 <= measure.winsorize_at <= 100:
        message = f"is {measure.winsorize_at:g}, must be between 50 and 100"
        yield Fault(field=f"{where}.winsorizeAt", message=message)


def _arms(evidence: Evidence, keys: Sequence[str]) -> Iterator[Fault]:
    for at, arm in enumerate(evidence.arms):
        if keys.count(arm.key) > 1:
            yield Fault(field=f"arms.{at}.key", message=f"{arm.key!r} is there twice")
        if not 0 <= arm.weight <= 100:
            yield Fault(field=f"arms.{at}.weight", message=f"is {arm.weight}, must be between 0 and 100")
        for factor in evidence.factors:
            if arm.levels.get(factor.key) not in factor.levels:
                yield Fault(field=f"arms.{at}.levels", message=f"has no level of the factor {factor.key!r}")
    named = [factor.key for factor in evidence.factors]
    for at, factor in enumerate(evidence.factors):
        if named.count(factor.key) > 1 or len(set(factor.levels)) < max(len(factor.levels), 2):
            yield Fault(field=f"factors.{at}", message="must be there once, with two levels or more")
    try:
        why = None if evidence.uncompared is None else Undefined(evidence.uncompared)
    except ValueError:
        yield Fault(field="uncompared", message=f"{evidence.uncompared!r} is no reason")
        return
    # Where the control gets nobody there is nothing to compare, and no look compared anything.
    compared = bool(evidence.looks) or evidence.alternation is not None
    if why is None and compared and evidence.control and not evidence.comparable:
        yield Fault(field="arms", message=f"give the control {evidence.control!r} no weight")
    if evidence.alternation is not None and evidence.control is None:
        yield Fault(field="arms", message="have no one control, which a switchback needs")


def _members(members: Sequence[Member], where: str, keys: Sequence[str]) -> Iterator[Fault]:
    for at, member in enumerate(members):
        if member.arm not in keys:
            yield Fault(field=f"{where}.{at}.arm", message=f"{member.arm!r} is no variant")


def _sums(sums: Sums | None, where: str, size: int) -> Iterator[Fault]:
    if sums is None:
        return
    for name in Sums.model_fields:
        numbers: Sequence[int] = getattr(sums, name)
        # Who has no subjects of their own has none to tell.
        if len(numbers) != size and not (
            name in ("units", "converted") and not (sums.units or sums.converted)
        ):
            yield Fault(field=f"{where}.{name}", message=f"has {len(numbers)} entries for {size}")
        low, high = (-LARGEST_VALUE, LARGEST_VALUE) if name == "values" else (0, MOST)
        for at, number in enumerate(numbers):
            if not low <= number <= high:
                said = (
                    f"is {number}, must be between {low:g} and {high:g}"
                    if abs(number) < 10**40
                    else "is too large"
                )
                yield Fault(field=f"{where}.{name}.{at}", message=said)


def _alternation(turns: Alternation, keys: Sequence[str]) -> Iterator[Fault]:
    people = len({turn.cluster or turn.participant for turn in turns.turns})
    if not 1 <= turns.cycles * max(people, 1) <= MOST_CYCLES * 10 or turns.cycles > MOST_CYCLES:
        yield Fault(
            field="alternation.cycles", message=f"is {turns.cycles}, must be between 1 and {MOST_CYCLES}"
        )
    for name, value in (("blockDays", turns.block_days), ("washout", turns.washout), ("day", turns.day)):
        if not 0 <= value <= 1e9:
            yield Fault(field=f"alternation.{name}", message=f"is {value:g}, must be between 0 and 1e9")
    if turns.first_day is not None and not 0 < turns.first_day <= 1e9:
        yield Fault(field="alternation.firstDay", message="must be above 0")
    for at, turn in enumerate(turns.turns):
        where = f"alternation.turns.{at}"
        if turn.arm not in keys:
            yield Fault(field=f"{where}.arm", message=f"{turn.arm!r} is no variant")
        if not 1 <= turn.cycle <= turns.cycles:
            yield Fault(field=f"{where}.cycle", message=f"is {turn.cycle}, there are {turns.cycles}")
    yield from _sums(turns.sums, "alternation.sums", len(turns.turns))


def _looks(looks: Sequence[Ledgered], where: str, keys: Sequence[str], size: int) -> Iterator[Fault]:
    before = 0.0
    for at, item in enumerate(looks):
        here = f"{where}.{at}"
        if not before < item.day <= 1e9:
            yield Fault(field=f"{here}.day", message=f"is {item.day:g}, must be after the look before")
        before = item.day
        yield from _sums(item.sums, f"{here}.sums", size)
        if (item.sums is None) != (looks[0].sums is None):
            yield Fault(field=f"{here}.sums", message="must be there for all looks or for none")
        yield from _recorded(item, here, keys)


def _recorded(item: Ledgered, here: str, keys: Sequence[str]) -> Iterator[Fault]:
    try:
        found = parse(_Looks, {"comparisons": list(item.comparisons), "guardrails": list(item.guardrails)})
    except Invalid as error:
        for fault in error.faults:
            yield Fault(field=f"{here}.{fault.field}", message=fault.message)
        return
    for at, one in enumerate(found.comparisons):
        if one.variant not in keys:
            yield Fault(field=f"{here}.comparisons.{at}.variant", message=f"{one.variant!r} is no variant")
        if one.crossed and one.difference is None:
            yield Fault(
                field=f"{here}.comparisons.{at}.difference", message="is missing of a look that crossed"
            )
    for at, guarded in enumerate(found.guardrails):
        if guarded.variant not in keys:
            yield Fault(field=f"{here}.guardrails.{at}.variant", message=f"{guarded.variant!r} is no variant")


def _finite(given: Any) -> None:
    """Raises Invalid that names a number that is not finite, wherever it is handed through."""
    parts: list[tuple[str, Any]] = [("", given)]
    while parts:
        name, value = parts.pop()
        if isinstance(value, dict):
            parts += [(f"{name}.{key}", one) for key, one in value.items()]
        elif isinstance(value, list):
            parts += [(f"{name}.{at}", one) for at, one in enumerate(value)]
        elif isinstance(value, float) and not isfinite(value):
            fault = Fault(field=name.removeprefix("."), message=f"is {value}, must be a finite number")
            raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
