"""The days of an experiment: which of them are asked for, and what is counted on each and up to it.

Days are UTC calendar days of the moments events happened at, as numbers since 1970-01-01; callers write them as
dates.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from control_plane.domain.experiment import Experiment
from control_plane.domain.requests import ById
from shared.errors import Fault, Invalid

MAX_DAYS = 366
_EPOCH = date(1970, 1, 1)


def _date(value: str) -> str:
    if value:
        day_of(value)
    return value


def _fingerprint(value: str) -> str:
    if value and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("is not a fingerprint: 64 hexadecimal digits")
    return value


def day_of(text: str) -> int:
    """The day of a date such as 2026-01-31. Raises ValueError."""
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.isoformat() != text:
        raise ValueError(f"{text!r} is not a date such as 2026-01-31")
    return (found - _EPOCH).days


def date_of(day: int) -> str:
    """The date of a day."""
    return (_EPOCH + timedelta(days=day)).isoformat()


Date = Annotated[
    str,
    AfterValidator(_date),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"maxLength": 0}]}),
]
"""A UTC calendar day; empty: not said."""


class GetTimeSeries(ById):
    """Asks for the days of an experiment, both ends included; `metric` is one by its id or key."""

    event_name: str = ""
    metric: str = ""
    population: Literal["assigned", "delivered"] = "assigned"
    start_date: Date = ""
    end_date: Date = ""
    fill_gaps: bool = False


Fingerprint = Annotated[
    str,
    AfterValidator(_fingerprint),
    WithJsonSchema({"type": "string", "pattern": "^([0-9a-f]{64})?$"}),
]
"""What a metric is, in short; empty: as it is now."""
MetricId = Annotated[str, Field(min_length=1, max_length=128)]


class RecalculateTimeSeries(ById):
    """Asks for the days of a metric (by id, key or event) to be computed anew."""

    metric: MetricId
    fingerprint: Fingerprint = ""


class GetRecalculation(ById):
    """Asks for the days of a metric (by id, key or event; default: the primary) as they were computed."""

    metric: str = ""
    fingerprint: Fingerprint = ""


def fingerprint(experiment: Experiment, metric: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a metric's definition, the analysis and the present phase; what it is called is no part."""
    phase = experiment.phase
    assert phase is not None, "what has not started has no phase"
    called = ("id", "key", "name", "role")
    definition = {"kind": "proportion", "goal": "increase"} | {
        name: value for name, value in metric.items() if value is not None and name not in called
    }
    return experiment.fingerprint_of({"metric": definition}, number=phase.number, seed=phase.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Days, both ends included."""

    first: int
    last: int

    def __contains__(self, day: int) -> bool:
        return self.first <= day <= self.last


def window(measured: Window, start: str, end: str) -> Window | None:
    """The measured days within those asked for (empty: no bound); None where there is none.

    Never more than 366: a bound that was not said gives way. Raises Invalid where those said are further apart,
    or the wrong way round.
    """
    first = day_of(start) if start else None
    last = day_of(end) if end else None
    if first is not None and last is not None:
        if first > last:
            raise _refusal("is after endDate", "startDate is the earlier of the two")
        if last - first >= MAX_DAYS:
            raise _refusal(f"is {last - first + 1} days from endDate", f"ask for at most {MAX_DAYS} days")
    low = measured.first if first is None else max(first, measured.first)
    high = measured.last if last is None else min(last, measured.last)
    if first is None:
        low = max(low, high - MAX_DAYS + 1)
    high = min(high, low + MAX_DAYS - 1)
    return Window(first=low, last=high) if low <= high else None


def _refusal(message: str, remedy: str) -> Invalid:
    fault = Fault(field="startDate", message=message, remedy=remedy)
    return Invalid(f"{fault.field}: {message}", reason="INVALID_FIELDS", faults=[fault])


@dataclass(frozen=True, slots=True)
class Counts:
    """What is counted of a variant; `participants` are those whose first impression it holds.

    `share`: of a proportion of subjects or participants, so many were met and so many converted for the first time.
    """

    impressions: int = 0
    conversions: int = 0
    participants: int = 0
    share: tuple[int, int] | None = None

    def __add__(self, other: "Counts") -> "Counts":
        shares = [one.share for one in (self, other) if one.share is not None]
        return Counts(
            self.impressions + other.impressions,
            self.conversions + other.conversions,
            self.participants + other.participants,
            (sum(met for met, _ in shares), sum(done for _, done in shares)) if shares else None,
        )

    @property
    def rate(self) -> float | None:
        """Conversions per impression, or the share that converted; None without an impression."""
        met, done = self.share or (self.impressions, self.conversions)
        return done / met if met else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDay:
    """A day: of each variant what is counted on it, and since the phase began up to its end."""

    day: int
    counts: Mapping[bytes, Counts]
    so_far: Mapping[bytes, Counts]


def days(
    counted: Mapping[int, Mapping[bytes, Counts]], variants: tuple[bytes, ...], within: Window
) -> Iterator[OnDay]:
    """Every day of the window, the oldest first, out of what is `counted` by day and variant."""
    so_far = dict.fromkeys(variants, Counts())
    for day in sorted(day for day in counted if day < within.first):
        so_far = _added(so_far, counted[day])
    for day in range(within.first, within.last + 1):
        own = {variant: counted.get(day, {}).get(variant, Counts()) for variant in variants}
        so_far = _added(so_far, own)
        yield OnDay(day=day, counts=own, so_far=so_far)


def _added(so_far: Mapping[bytes, Counts], more: Mapping[bytes, Counts]) -> dict[bytes, Counts]:
    return {variant: counts + more.get(variant, Counts()) for variant, counts in so_far.items()}
