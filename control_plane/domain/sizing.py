"""Planning, asked and answered: how many participants a change needs, and what those there are can find."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from control_plane.domain.fields import Request, whole
from control_plane.domain.statistics import planning
from shared.errors import Fault, Invalid


def _told_apart(value: float) -> float:
    if abs(value) < 1e-6:
        raise ValueError(f"is {value:g}, must not be 0, nor nearer to it than 0.000001")
    return value


class SampleSize(Request):
    """What is planned: a proportion at `baseline`, and the relative change worth finding, up or down."""

    baseline: Annotated[float, Field(ge=1e-9, lt=1)]
    minimum_detectable_effect: Annotated[float, Field(ge=-1, le=10), AfterValidator(_told_apart)] = 0.1
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    alpha: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05
    variants: Annotated[int, Field(ge=2, le=100), BeforeValidator(whole)] = 2
    impressions_each: Annotated[float, Field(ge=1, le=1e9)] = 1.0
    icc: Annotated[float, Field(ge=0, le=1)] = 0.0
    participants: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(whole)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """The plan's answer. `participants` and `impressions` are what each variant needs.

    `detectable` is the smallest absolute increase found with as many participants per variant as were named, and
    `detectable_at_most` what infinitely many impressions would find; None where none were named or nothing is.
    """

    asked: SampleSize
    level: float
    design_effect: float
    impressions: int
    participants: int
    detectable: float | None
    detectable_at_most: float | None


def size(asked: SampleSize) -> Sized:
    """What each variant needs for the change worth finding; raises Invalid where that leaves 0 … 1."""
    effect = asked.baseline * asked.minimum_detectable_effect
    if not 0 <= asked.baseline + effect <= 1:
        message = f"of {asked.minimum_detectable_effect:g} takes a rate of {asked.baseline:g} out of 0 … 1"
        fault = Fault(field="minimumDetectableEffect", message=message, remedy="choose a smaller change")
        raise Invalid(f"{fault.field} {fault.message}", reason="INVALID_FIELDS", faults=[fault])
    comparisons = asked.variants - 1
    deff = planning.design_effect(impressions_each=asked.impressions_each, icc=asked.icc)
    trials = planning.trials_per_arm(
        baseline=asked.baseline, effect=effect, wanted=asked.power, alpha=asked.alpha, comparisons=comparisons
    )
    found: list[float | None] = [None, None]
    if asked.participants is not None:
        found = [
            planning.detectable(
                baseline=asked.baseline,
                participants=asked.participants,
                impressions_each=each,
                icc=asked.icc,
                wanted=asked.power,
                alpha=asked.alpha,
                comparisons=comparisons,
            )
            for each in (asked.impressions_each, inf)
        ]
    return Sized(
        asked=asked,
        level=asked.alpha / comparisons,
        design_effect=deff,
        impressions=ceil(trials * deff),
        participants=ceil(trials * deff / asked.impressions_each),
        detectable=found[0],
        detectable_at_most=found[1],
    )
