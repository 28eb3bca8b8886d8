"""What may be asked of `analyze`: variants in one of three shapes, and everything that cannot be in them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from control_plane.domain.fields import Request, parse
from control_plane.domain.metrics import Goal
from control_plane.domain.statistics import multiple
from control_plane.domain.statistics.proportions import Variance
from shared.errors import Fault, Invalid

Pair = tuple[int, int]
Text = Annotated[str, Field(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=0)]


class Arm(Request):
    """A variant's numbers, in one of three shapes; `strata` and `blocks` have an entry for each participant."""

    key: Text
    is_control: bool = False
    weight: Annotated[float, Field(ge=0)] | None = None
    conversions: Count | None = None
    impressions: Count | None = None
    participants: tuple[Pair, ...] | None = None
    values: tuple[float, ...] | None = None
    strata: tuple[str, ...] | None = None
    blocks: tuple[str, ...] | None = None

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


class Day(Request):
    """What was known `day` days after the start: cumulative sums of every participant, by variant."""

    day: Annotated[float, Field(gt=0)]
    participants: dict[str, tuple[Pair, ...]]


class Prior(Request):
    """A Beta prior."""

    a: Annotated[float, Field(gt=0)] = 1.0
    b: Annotated[float, Field(gt=0)] = 1.0


class Question(Request):
    """What is to be analysed."""

    variants: tuple[Arm, ...]
    control: Text | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    strata: dict[str, tuple[str, ...]] | None = None
    blocks: dict[str, tuple[str, ...]] | None = None
    looks: tuple[Day, ...] = ()
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    goal: Goal = "increase"
    prior: Prior = Prior()
    decision: Literal["welch", "path_test", "sequence"] | None = None
    tuning: Annotated[float, Field(gt=0)] | None = None
    variance: Variance = "jackknife"
    design_effect: Annotated[float, Field(ge=1)] | Literal["shared", "per_arm"] | None = None
    correction: multiple.Correction = "bonferroni"
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    minimum_detectable_effect: Annotated[float, Field(gt=0)] = 0.1
    horizon_days: Annotated[float, Field(gt=0)] = 14.0
    seed: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] = ""


def question(given: dict[str, Any]) -> Question:
    """The question behind JSON, possible in itself. Raises Invalid that names variant and field otherwise."""
    given = {**given, "variants": _listed(given.get("variants"))}
    try:
        asked = _named(parse(Question, given))
    except Invalid as error:
        raise _by_key(error, given["variants"]) from None
    faults = list(_faults(asked))
    if faults:
        raise _refused(faults)
    return asked


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


def _named(asked: Question) -> Question:
    """With what stands beside the variants in them: control, weights, strata, blocks."""
    keys = {arm.key for arm in asked.variants}
    for name in ("weights", "strata", "blocks"):
        strangers = sorted(set(getattr(asked, name) or {}) - keys)
        if strangers:
            raise _refused([Fault(field=name, message=f"names {', '.join(strangers)}, which is no variant")])
    arms = [
        arm.model_copy(
            update={
                name: (getattr(asked, source) or {}).get(arm.key, getattr(arm, name))
                for name, source in (("weight", "weights"), ("strata", "strata"), ("blocks", "blocks"))
            }
        )
        for arm in asked.variants
    ]
    marked = [arm.key for arm in arms if arm.is_control]
    control = asked.control or (marked[0] if len(marked) == 1 else None)
    return asked.model_copy(update={"variants": tuple(arms), "control": control})


def _faults(asked: Question) -> Iterator[Fault]:
    keys = [arm.key for arm in asked.variants]
    if len(keys) < 2:
        yield Fault(field="variants", message="are less than two, so there is nothing to compare")
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield Fault(field="variants", message=f"have the key {key!r} twice")
    if asked.control is None:
        yield Fault(field="control", message="is missing; name the variant that the others are compared with")
    elif asked.control not in keys:
        yield Fault(field="control", message=f"{asked.control!r} is not one of the variants")
    shapes = {arm.shape for arm in asked.variants}
    if len(shapes) > 1:
        yield Fault(
            field="variants", message=f"come as {' and '.join(sorted(shapes))}; give all in one shape"
        )
    weighted = [arm.key for arm in asked.variants if arm.weight is not None]
    if weighted and len(weighted) < len(keys):
        yield Fault(field="weights", message="must be there for every variant or for none")
    for arm in asked.variants:
        yield from _arm_faults(arm, f"variants.{arm.key}")
    for at, day in enumerate(asked.looks):
        for arm in asked.variants:
            rows = day.participants.get(arm.key)
            where = f"looks.{at}.participants.{arm.key}"
            if rows is None or (arm.participants is not None and len(rows) != len(arm.participants)):
                yield Fault(field=where, message="must have the sums of each of the variant's participants")
            else:
                yield from _pair_faults(rows, where)
        for stranger in sorted(set(day.participants) - set(keys)):
            yield Fault(field=f"looks.{at}.participants.{stranger}", message="is no variant")


def _arm_faults(arm: Arm, where: str) -> Iterator[Fault]:
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
        return
    if arm.shape == "counts":
        if arm.conversions is None or arm.impressions is None:
            missing = "conversions" if arm.conversions is None else "impressions"
            yield Fault(field=f"{where}.{missing}", message="is missing")
        elif arm.conversions > arm.impressions:
            message = f"is {arm.conversions}, more than its {arm.impressions} impressions"
            yield Fault(field=f"{where}.conversions", message=message)
        for name in ("strata", "blocks"):
            if getattr(arm, name) is not None:
                yield Fault(field=f"{where}.{name}", message="needs participants or values to belong to")
    elif arm.participants is not None:
        yield from _pair_faults(arm.participants, f"{where}.participants")
    for name in ("strata", "blocks"):
        names = getattr(arm, name)
        if arm.shape != "counts" and names is not None and len(names) != arm.size:
            yield Fault(
                field=f"{where}.{name}", message=f"has {len(names)} entries for {arm.size} participants"
            )


def _pair_faults(rows: Sequence[Pair], where: str) -> Iterator[Fault]:
    for at, (m, c) in enumerate(rows):
        if m < 0 or c < 0:
            yield Fault(field=f"{where}.{at}", message="must not be negative")
        elif c > m:
            yield Fault(field=f"{where}.{at}", message=f"has {c} conversions, more than its {m} impressions")
