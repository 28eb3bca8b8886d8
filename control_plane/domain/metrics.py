"""Metrics: what is measured and which way it should move, written in an experiment or saved for several.

A draft may name a saved metric, and follows its edits; at the start every metric is copied by value, so that
no later edit changes what a running experiment measures.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from control_plane.domain.attribution import windowed
from control_plane.domain.fields import Duration, Key, Request, duration, plain_name

Kind = Literal["proportion", "mean", "count", "ratio"]
Of = Literal["impressions", "subjects", "participants"]
"""What a proportion is a share of."""
Goal = Literal["increase", "decrease"]
Role = Literal["primary", "secondary", "guardrail"]
EventName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(plain_name)]
MetricName = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(gt=0, le=10)]
"""A relative change: 0.1 is 10 %."""


class Definition(Request):
    """What is measured, whole."""

    event_name: EventName
    kind: Kind = "proportion"
    of: Of | None = None
    goal: Goal = "increase"
    role: Role | None = None
    denominator_event_name: EventName | None = None
    window: Duration | None = None
    margin: Share | None = None
    minimum_detectable_effect: Share | None = None
    funnel_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _denominator(self) -> Self:
        if self.kind == "ratio" and self.denominator_event_name is None:
            raise ValueError("a ratio needs denominatorEventName")
        if self.kind != "ratio" and self.denominator_event_name is not None:
            raise ValueError("only a ratio has a denominatorEventName")
        if self.kind != "proportion" and self.of is not None:
            raise ValueError("only a proportion is of impressions, subjects or participants")
        return self

    def document(self) -> dict[str, Any]:
        """The definition as JSON, every field of it."""
        own = set(Definition.model_fields)
        return self.model_dump(mode="json", by_alias=True, include=own)


FIELDS = [field.alias or name for name, field in Definition.model_fields.items()]
"""Names of a definition's fields in JSON."""


def shown(item: dict[str, Any], role: str | None = None) -> dict[str, Any]:
    """A metric of an experiment, every field of it."""
    return {
        **{name: item.get(name) for name in ("id", "key", "name", *FIELDS)},
        "kind": item.get("kind", "proportion"),
        "goal": item.get("goal", "increase"),
        "role": role,
    }


def counted_as(item: dict[str, Any]) -> str:
    """The name under which tallies have the conversions that a metric counts."""
    return _within(item["eventName"], item.get("window"))


def counted_below(item: dict[str, Any]) -> str | None:
    """The same of the events that a ratio divides by; None where it is none."""
    name = item.get("denominatorEventName")
    return None if name is None else _within(name, item.get(BELOW))


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """A definition as an experiment keeps it: what it says, and for how long what a ratio divides by counts."""
    said = {name: value for name, value in document.items() if value is not None and name != "role"}
    is_whole = "window" in said and "denominatorEventName" in said
    return {**said, BELOW: said["window"]} if is_whole else said


def _within(name: str, window: str | None) -> str:
    return windowed(name, None if window is None else duration(window))


BELOW = "denominatorWindow"
"""The window of what a ratio divides by, in what is stored; it is missing where a running experiment was begun by a
version that let all of it count."""


class MetricSpec(Request):
    """A metric of an experiment: a definition, or the id or key of a saved one."""

    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    key: Key | None = None
    name: MetricName | None = None
    event_name: EventName | None = None
    kind: Kind | None = None
    of: Of | None = None
    goal: Goal | None = None
    role: Role | None = None
    denominator_event_name: EventName | None = None
    window: Duration | None = None
    margin: Share | None = None
    minimum_detectable_effect: Share | None = None
    funnel_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.event_name is None and self.id is None and self.key is None:
            raise ValueError("a metric needs eventName, or the id or key of a saved metric")
        if self.event_name is not None:
            self.definition()
        return self

    def said(self) -> dict[str, Any]:
        """What was sent of a definition, as JSON; neither what it is called nor its place."""
        own = set(Definition.model_fields) - {"role"}
        return self.model_dump(mode="json", by_alias=True, include=own, exclude_none=True)

    def definition(self) -> Definition:
        """The definition that was sent; `eventName` has to be there."""
        sent = self.said()
        rest = {name: value for name, value in sent.items() if name != "eventName"}
        if self.event_name is None:
            raise ValueError("a metric by value needs eventName")
        kind: Kind = self.kind or "proportion"
        if kind == "ratio" and "denominatorEventName" not in rest:
            raise ValueError("a ratio needs denominatorEventName")
        if kind != "ratio" and "denominatorEventName" in rest:
            raise ValueError("only a ratio has a denominatorEventName")
        if kind != "proportion" and "of" in rest:
            raise ValueError("only a proportion is of impressions, subjects or participants")
        return Definition.model_validate({"eventName": self.event_name, **rest})


class MetricsSpec(Request):
    """The metrics of an experiment."""

    primary: MetricSpec | None = None
    secondary: Annotated[tuple[MetricSpec, ...], Field(max_length=50)] = ()
    guardrail: Annotated[tuple[MetricSpec, ...], Field(max_length=50)] = ()


class CreateMetric(Definition):
    """A new saved metric."""

    name: MetricName
    key: Key | None = None


class UpdateMetric(Request):
    """Changes to a saved metric; what was not sent stays, null is none or the default again."""

    id: str
    name: MetricName = ""  # never looked at: a name cannot be taken away
    event_name: EventName = ""  # nor can the event
    kind: Kind | None = None
    of: Of | None = None
    goal: Goal | None = None
    role: Role | None = None
    denominator_event_name: EventName | None = None
    window: Duration | None = None
    margin: Share | None = None
    minimum_detectable_effect: Share | None = None
    funnel_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    def onto(self, present: dict[str, Any]) -> dict[str, Any]:
        """The definition with what was sent, not yet checked as a whole."""
        own = set(Definition.model_fields) & self.model_fields_set
        sent = self.model_dump(mode="json", by_alias=True, include=own)
        merged = {**present, **sent}
        return {name: value for name, value in merged.items() if value is not None}
