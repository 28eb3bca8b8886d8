"""What a server reports by itself, without an agent: checked, and turned into events."""

import json
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from control_plane.domain.fields import (
    Json,
    Moment,
    ParticipantId,
    Request,
    Target,
    plain_name,
    plain_text,
)
from shared.model import MAX_VALUE_MICROS, Event, EventKind, EventSource, parse_digest
from shared.moment import from_rfc3339

MAX_EVENTS = 1_000
_MAX_PROPERTIES = 8_192
_MICROS = 1_000_000
_LARGEST = MAX_VALUE_MICROS // _MICROS


def _digest(value: str) -> str:
    try:
        parse_digest(value)
    except ValueError as error:
        raise ValueError(f"is no digest such as sha256:<64 hex>: {error}") from None
    return value


def _small(value: Json) -> Json:
    if len(json.dumps(value, ensure_ascii=False).encode()) > _MAX_PROPERTIES:
        raise ValueError(f"is longer than {_MAX_PROPERTIES} bytes")
    return value


DigestText = Annotated[
    str, AfterValidator(_digest), WithJsonSchema({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"})
]


class ReportedEvent(Request):
    """An impression or a conversion of a participant; `eventId` makes a repeat count once."""

    kind: Literal["impression", "conversion"]
    participant_id: ParticipantId
    event_id: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(plain_text)]
    event_name: Annotated[str, Field(max_length=128), AfterValidator(plain_name)] = ""
    subject: Annotated[str, Field(max_length=256), AfterValidator(plain_text)] = ""
    value: Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)] | None = None
    digest: DigestText | None = None
    target: Target | None = None
    occurred_at: Moment | None = None
    properties: Annotated[Json, AfterValidator(_small)] | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.kind == "conversion" and not self.event_name:
            raise ValueError("a conversion needs an eventName")
        if self.kind == "impression" and self.event_name:
            raise ValueError("an impression has no eventName; did you mean the kind conversion?")
        return self

    def event(self, *, now: int) -> Event:
        """The event; one that does not say when happened `now`."""
        micros: int | None = None
        if self.value is not None:
            # By its shortest decimal text, so that 0.1 is 100000 micro-units and not a little more.
            micros = int((Decimal(repr(self.value)) * _MICROS).to_integral_value(ROUND_HALF_EVEN))
        return Event(
            participant=self.participant_id,
            kind=EventKind(self.kind),
            occurred_at=from_rfc3339(self.occurred_at) if self.occurred_at else now,
            event_name=self.event_name,
            subject=self.subject,
            value_micros=micros,
            digest=parse_digest(self.digest) if self.digest else None,
            path=self.target or "",
            event_id=self.event_id,
            properties_json=json.dumps(self.properties, ensure_ascii=False, separators=(",", ":"))
            if self.properties
            else "",
            source=EventSource.SERVER,
        )


class ReportEvents(Request):
    """A batch of events, taken as a whole or not at all."""

    events: Annotated[tuple[ReportedEvent, ...], Field(min_length=1, max_length=MAX_EVENTS)]

    def on_record(self) -> dict[str, Any]:
        """What the audit log keeps: how many; subjects and properties have a retention of their own."""
        return {"events": len(self.events)}
