"""What may be asked of `analyze`: variants in one of three shapes, and everything that cannot be in them.

What stands beside the variants (weights, strata, blocks) may come by key or in their order, and a look is told like
the question itself; the module turns all of it into one form, and names variant and field of whatever is wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from control_plane.domain.fields import Request, parse
from control_plane.domain.metrics import Goal
from control_plane.domain.statistics import multiple
from control_plane.domain.statistics.proportions import Variance
from shared.errors import Fault, Invalid

MOST = 10**12
"""Of a count: beyond it a float cannot tell a rate from its neighbours with as many digits as we promise."""
LARGEST = 1e100
"""Of a value or a number beside it: squares and cubes of it are still numbers."""


def _whole(value: Any) -> int:
    # JSON has one kind of number: 50.0 is the integer 50.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a whole number")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"is {value}, must be a whole number")
    if value < 0:
        raise ValueError(f"is {value}, must not be negative")
    if value > MOST:
        raise ValueError(f"must be at most {MOST:,}")
    return int(value)


def _pair(value: Any) -> tuple[int, int]:
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError("must be [impressions, conversions]")
    m, c = map(_whole, value)
    if c > m:
        raise ValueError(f"has {c} conversions, more than its {m} impressions")
    return m, c


def _moderate(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"is {value}, must be within ±{LARGEST:g}")
    return value


def _effect(value: Any) -> Any:
    if value is None or value in ("shared", "per_arm"):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 1e9:
        raise ValueError("must be a number from 1 to 1e9, shared or per_arm")
    return float(value)


def _weight(value: float) -> float:
    if value and not 1e-9 <= value <= MOST:
        raise ValueError(f"is {value}, must be 0 or between 1e-9 and {MOST:g}")
    return value


def _called(value: Any) -> Any:
    """A stratum or block may be called 1."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _corrected(value: Any) -> Any:
    """Answers say benjaminiHochberg; whoever asks may as well."""
    return "benjamini_hochberg" if value in ("benjaminiHochberg", "benjamini-hochberg") else value


Correction = Annotated[multiple.Correction, BeforeValidator(_corrected)]
Count = Annotated[int, PlainValidator(_whole)]
Pair = Annotated[tuple[int, int], PlainValidator(_pair)]
Text = Annotated[str, Field(min_length=1, max_length=128)]
Label = Annotated[str, BeforeValidator(_called)]
Value = Annotated[float, AfterValidator(_moderate)]
Weight = Annotated[float, AfterValidator(_weight)]
Alpha = Annotated[float, Field(ge=1e-9, lt=1)]
Positive = Annotated[float, Field(ge=1e-9, le=MOST)]


class Numbers(Request):
    """A variant's numbers, in one of three shapes."""

    conversions: Count | None = None
    impressions: Count | None = None
    participants: tuple[Pair, ...] | None = None
    values: tuple[Value, ...] | None = None

    @property
    def shape(self) -> str:
        """`counts`, `participants` or `values`."""
        if self.participants is not None:
            return "participants"
        return "values" if self.values is not None else "counts"

    @property
    def size(self) -> int:
        """How many participants."""
        if self.participants is not None:
            return len(self.participants)
        return len(self.values) if self.values is not None else self.impressions or 0


class Arm(Numbers):
    """A variant; `strata` and `blocks` have an entry for each participant."""

    key: Text
    name: Text | None = None
    is_control: bool = False
    weight: Weight | None = None
    strata: tuple[Label, ...] | None = None
    blocks: tuple[Label, ...] | None = None


class Day(Request):
    """What was known `day` days after the start: cumulative sums of every participant, by variant."""

    day: Annotated[float, Field(gt=0, le=100_000)]
    variants: dict[str, Numbers]


class Prior(Request):
    """A Beta prior."""

    a: Annotated[float, Field(ge=0.1, le=1e9)] = 1.0
    b: Annotated[float, Field(ge=0.1, le=1e9)] = 1.0


class Question(Request):
    """What is to be analysed."""

    variants: tuple[Arm, ...]
    control: Text | None = None
    looks: Annotated[tuple[Day, ...], Field(max_length=1000)] = ()
    alpha: Alpha = 0.05
    goal: Goal = "increase"
    prior: Prior = Prior()
    decision: Literal["welch", "newcombe", "path_test", "sequence"] | None = None
    tuning: Positive | None = None
    variance: Variance = "jackknife"
    design_effect: Annotated[float | Literal["shared", "per_arm"] | None, PlainValidator(_effect)] = None
    correction: Correction = "bonferroni"
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    minimum_detectable_effect: Positive = 0.1
    horizon_days: Annotated[float, Field(gt=0, le=100_000)] = 14.0
    seed: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] = ""


_BESIDE = {"weights": "weight", "strata": "strata", "blocks": "blocks"}
"""What may stand beside the variants, and what it is called in one."""


def question(given: Mapping[str, Any]) -> Question:
    """The question behind JSON, possible in itself. Raises Invalid that names variant and field otherwise."""
    if given.get("variants") is None:
        raise _refused([Fault(field="variants", message="are missing")])
    variants = _listed(given["variants"])
    shaped = {**given, "variants": variants}
    if isinstance(given.get("prior"), list) and len(given["prior"]) == 2:
        shaped["prior"] = dict(zip("ab", given["prior"], strict=True))
    if isinstance(given.get("looks"), list):
        shaped["looks"] = [_look(look, at) for at, look in enumerate(given["looks"])]
    if isinstance(variants, list):
        shaped = _moved_in(shaped, _last(variants, shaped.get("looks")))
    try:
        asked = _controlled(parse(Question, shaped))
    except Invalid as error:
        raise _by_key(error, variants) from None
    faults = list(_faults(asked))
    if faults:
        raise _refused(faults)
    return asked


# -- one form


def _listed(variants: Any) -> Any:
    """The variants as a list of objects with keys: they may come by key, and call it `name` or `id`."""
    if isinstance(variants, dict):
        variants = [{"key": key, **one} if isinstance(one, dict) else one for key, one in variants.items()]
    if not isinstance(variants, list):
        return variants
    found = []
    for one in variants:
        other = {"name", "id"} & set(one) if isinstance(one, dict) and "key" not in one else set()
        if len(other) == 1:
            (called,) = other
            found.append({"key": one[called], **{name: v for name, v in one.items() if name != called}})
        else:
            found.append(one)
    return found


def _look(look: Any, at: int) -> Any:
    """A look whose numbers are by variant: they may come as variants, or by what they are."""
    if not isinstance(look, dict):
        return look
    found = {"day": at + 1, **look}
    if "variants" in look:
        inner = _listed(look["variants"])
        if isinstance(inner, list) and all(isinstance(one, dict) and "key" in one for one in inner):
            found["variants"] = {
                str(one["key"]): {k: v for k, v in one.items() if k != "key"} for one in inner
            }
        return found
    by_variant: dict[str, dict[str, Any]] = {}
    for name in ("conversions", "impressions", "participants", "values"):
        if isinstance(look.get(name), dict):
            for key, value in found.pop(name).items():
                by_variant.setdefault(key, {})[name] = value
    return {**found, "variants": by_variant}


def _last(variants: list[Any], looks: Any) -> list[Any]:
    """The variants, with the numbers of the last look where they have none of their own."""
    last = (
        looks[-1].get("variants") if isinstance(looks, list) and looks and isinstance(looks[-1], dict) else {}
    )
    shapes = {"conversions", "impressions", "participants", "values"}
    return [
        {**one, **last[one["key"]]}
        if isinstance(one, dict)
        and not shapes & set(one)
        and isinstance(last, dict)
        and isinstance(last.get(one.get("key")), dict)
        else one
        for one in variants
    ]


def _moved_in(given: dict[str, Any], variants: list[Any]) -> dict[str, Any]:
    """With what stands beside the variants in them. Raises Invalid for what belongs to none of them."""
    keys = [one.get("key") if isinstance(one, dict) else None for one in variants]
    found = [dict(one) if isinstance(one, dict) else one for one in variants]
    shaped = {name: value for name, value in given.items() if name not in _BESIDE}
    for source, name in _BESIDE.items():
        beside = given.get(source)
        if beside is None:
            continue
        if isinstance(beside, list):
            if len(beside) != len(variants):
                message = f"has {len(beside)} entries for {len(variants)} variants"
                raise _refused([Fault(field=source, message=message)])
            beside = dict(enumerate(beside))
        elif isinstance(beside, dict):
            strangers = sorted(str(key) for key in set(beside) - set(keys))
            if strangers:
                message = f"names {', '.join(strangers)}, which is no variant"
                raise _refused([Fault(field=source, message=message)])
            beside = {keys.index(key): value for key, value in beside.items()}
        else:
            message = "must be by variant, or a list in their order"
            raise _refused([Fault(field=source, message=message)])
        for at, value in beside.items():
            if isinstance(found[at], dict):
                found[at][name] = value
    return {**shaped, "variants": found}


def _controlled(asked: Question) -> Question:
    """With the control that is marked, where none is named."""
    marked = [arm.key for arm in asked.variants if arm.is_control]
    others = [key for key in marked if asked.control not in (None, key)]
    if len(marked) > 1 or others:
        said = f"{', '.join(marked)} marked isControl"
        message = f"is {asked.control}, and {said}" if others else f"is one variant, and {said}"
        raise _refused([Fault(field="control", message=message)])
    control = asked.control or (marked[0] if marked else None)
    return asked.model_copy(update={"control": control})


# -- what is wrong


def _by_key(error: Invalid, variants: Any) -> Invalid:
    """The error with variants called by their keys instead of their places."""
    keys = {
        str(at): one["key"]
        for at, one in enumerate(variants if isinstance(variants, list) else [])
        if isinstance(one, dict) and isinstance(one.get("key"), str)
    }
    faults = []
    for fault in error.faults:
        parts = fault.field.split(".")
        if parts[0] == "variants" and len(parts) > 1:
            parts[1] = keys.get(parts[1], parts[1])
        faults.append(replace(fault, field=".".join(parts)))
    return _refused(faults) if faults else error


def _refused(faults: Sequence[Fault]) -> Invalid:
    listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
    return Invalid(listed, reason="INVALID_FIELDS", faults=faults)


def _faults(asked: Question) -> Iterator[Fault]:
    keys = [arm.key for arm in asked.variants]
    if len(keys) < 2:
        yield Fault(field="variants", message="are less than two, so there is nothing to compare")
        return
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield Fault(field="variants", message=f"have the key {key!r} twice")
    if asked.control is None:
        yield Fault(field="control", message="is missing; name the variant that the others are compared with")
    elif asked.control not in keys:
        yield Fault(field="control", message=f"{asked.control!r} is not one of the variants")
    for arm in asked.variants:
        yield from _arm_faults(arm, f"variants.{arm.key}")
        for name in ("strata", "blocks"):
            yield from _belonging_faults(arm, name, f"variants.{arm.key}.{name}")
    shapes = sorted({arm.shape for arm in asked.variants})
    if len(shapes) > 1:
        yield Fault(field="variants", message=f"come as {' and '.join(shapes)}; give all in one shape")
        return
    for source, name in _BESIDE.items():
        there = [arm.key for arm in asked.variants if getattr(arm, name) is not None]
        if there and len(there) < len(keys):
            yield Fault(field=source, message="must be there for every variant or for none")
    if any(arm.weight for arm in asked.variants) is False and asked.variants[0].weight is not None:
        yield Fault(field="weights", message="are all 0")
    yield from _method_faults(asked, shapes)
    yield from _look_faults(asked)


def _method_faults(asked: Question, shapes: Sequence[str]) -> Iterator[Fault]:
    """What a method cannot do with numbers of this shape, and what it would leave aside in silence."""
    if asked.decision == "path_test" and shapes == ["counts"]:
        yield Fault(field="decision", message="path_test needs participants or values, not counts")
    if asked.decision == "newcombe" and shapes != ["counts"]:
        yield Fault(field="decision", message="newcombe needs counts: it takes each impression for a witness")
    if asked.decision == "newcombe" and isinstance(asked.design_effect, float) and asked.design_effect > 1:
        yield Fault(field="decision", message="newcombe is of one impression each, so without a designEffect")
    if asked.decision in ("welch", "newcombe") and asked.looks:
        message = f"{asked.decision} may be looked at once; give path_test or sequence for looks"
        yield Fault(field="decision", message=message)
    if asked.decision in ("welch", "sequence") and any(arm.blocks for arm in asked.variants):
        yield Fault(field="decision", message=f"{asked.decision} knows strata, not blocks")


def _arm_faults(arm: Numbers, where: str) -> Iterator[Fault]:
    given = [
        name
        for name, there in (
            ("counts", arm.conversions is not None or arm.impressions is not None),
            ("participants", arm.participants is not None),
            ("values", arm.values is not None),
        )
        if there
    ]
    if len(given) != 1:
        said = " and ".join(given) or "nothing"
        yield Fault(
            field=where, message=f"has {said}; give conversions and impressions, participants, or values"
        )
    elif arm.shape == "counts":
        if arm.conversions is None or arm.impressions is None:
            missing = "conversions" if arm.conversions is None else "impressions"
            yield Fault(field=f"{where}.{missing}", message="is missing")
        elif arm.conversions > arm.impressions:
            message = f"is {arm.conversions}, more than its {arm.impressions} impressions"
            yield Fault(field=f"{where}.conversions", message=message)


def _belonging_faults(arm: Arm, name: str, where: str) -> Iterator[Fault]:
    names = getattr(arm, name)
    if names is None:
        return
    if arm.shape == "counts":
        yield Fault(field=where, message="needs participants or values to belong to")
    elif len(names) != arm.size:
        yield Fault(field=where, message=f"has {len(names)} entries for {arm.size} participants")


def _look_faults(asked: Question) -> Iterator[Fault]:
    """Looks are of the same participants, in order, and only grow, up to what the variants have."""
    before: Mapping[str, Numbers] = {}
    day = 0.0
    for at, look in enumerate(asked.looks):
        if look.day <= day:
            yield Fault(field=f"looks.{at}.day", message=f"is {look.day:g}, must be after the look before")
        day = look.day
        for stranger in sorted(set(look.variants) - {arm.key for arm in asked.variants}):
            yield Fault(field=f"looks.{at}.{stranger}", message="is no variant")
        for arm in asked.variants:
            where = f"looks.{at}.{arm.key}"
            found = look.variants.get(arm.key)
            if found is None:
                yield Fault(field=where, message="is missing")
                continue
            faults = list(_arm_faults(found, where))
            yield from faults
            if not faults:
                yield from _growth_faults(arm, before.get(arm.key), found, where)
        before = look.variants


def _growth_faults(arm: Arm, before: Numbers | None, found: Numbers, where: str) -> Iterator[Fault]:
    if found.shape != arm.shape:
        yield Fault(field=where, message=f"comes as {found.shape}, the variant as {arm.shape}")
    elif arm.shape != "counts" and found.size != arm.size:
        yield Fault(field=where, message=f"has {found.size} participants, the variant {arm.size}")
    elif not (_within(before, found) and _within(found, arm)):
        yield Fault(field=where, message="has more than what comes after it; looks are cumulative")


def _within(less: Numbers | None, more: Numbers) -> bool:
    """Whether no count of the first is above the second's; values may fall."""
    if less is None or less.shape != more.shape:
        return True
    if more.shape == "counts":
        rows = [
            (less.impressions or 0, more.impressions or 0),
            (less.conversions or 0, more.conversions or 0),
        ]
        return all(a <= b for a, b in rows)
    pairs = zip(less.participants or (), more.participants or (), strict=False)
    return all(m <= n and c <= d for (m, c), (n, d) in pairs)
