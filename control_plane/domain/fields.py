"""What values callers may write: the base of every request, and the kinds of its fields.

Strict: a text is no number and an unknown field is refused, so a typo never changes nothing silently.
Wire names are camelCase.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from shared.errors import Fault, Invalid
from shared.model import MAX_PATH_BYTES, NAME_ENDS, PARTICIPANT_ID, is_text
from shared.moment import SECOND, from_rfc3339, to_rfc3339

R = TypeVar("R", bound="Request")

KEY = re.compile(r"[a-z][a-z0-9-]{0,63}")
RESERVED_KEYS = frozenset({"eligible-targets", "stats"})
"""Words that follow `/v1/experiments/` in routes of their own."""


class Request(BaseModel):
    """A request or a part of one."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", alias_generator=to_camel, allow_inf_nan=False
    )

    def given(self, name: str) -> bool:
        """Whether the caller sent the field at all."""
        return name in self.model_fields_set


def parse(model: type[R], values: Mapping[str, Any]) -> R:
    """The request behind JSON-shaped values. Raises Invalid with every fault by field."""
    try:
        return model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        faults = [
            Fault(
                field=".".join(str(part) for part in item["loc"]) or "body",
                message=_sentence(item["msg"]),
                remedy=_remedy(model, item["type"]),
            )
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise Invalid(listed, reason="INVALID_FIELDS", faults=faults) from None


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").replace(
        "Extra inputs are not permitted", "is not a known field"
    )


def _remedy(model: type[Request], kind: str) -> str:
    if kind != "extra_forbidden":
        return ""
    names = sorted(field.alias or name for name, field in model.model_fields.items())
    return f"known at the top level are {', '.join(names)}"


def whole(value: object) -> object:
    """The integer behind 50.0, anything else as it is."""
    # JSON has one kind of number: 50.0 is the integer 50.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _target(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        raise ValueError(
            f"PATH_ESCAPES_ROOT: {path!r} must be relative to the participant's root, without .."
        )
    if "" in parts or "." in parts or "\0" in path or "\\" in path:
        raise ValueError(f"{path!r} is not a plain relative path such as config/soul.md")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise ValueError(f"is longer than {MAX_PATH_BYTES} bytes")
    return path


def _participant(value: str) -> str:
    if not PARTICIPANT_ID.fullmatch(value):
        raise ValueError(f"{value!r} is not a participant id: letters, digits, . _ - and at most 128 of them")
    return value


def _key(value: str) -> str:
    if not KEY.fullmatch(value) or value in RESERVED_KEYS or re.fullmatch(r"[0-9a-f-]{36}", value):
        raise ValueError(
            f"{value!r} is not a key: lower-case letters, digits and -, from a letter on, at most 64"
        )
    return value


def without_nul(value: dict[str, str]) -> dict[str, str]:
    """Labels, or what they are filtered by: PostgreSQL reads no JSON with U+0000. Raises ValueError."""
    if any("\0" in text for item in value.items() for text in item):
        raise ValueError("labels hold no U+0000")
    return value


def plain_text(value: str) -> str:
    """Text that every database and every wire takes. Raises ValueError for any other."""
    if not is_text(value):
        raise ValueError("holds characters that are no text")
    return value


def plain_name(value: str) -> str:
    """A name that an event can be reported under. Raises ValueError for any other."""
    if NAME_ENDS in value:
        raise ValueError("holds a character that no name has")
    return plain_text(value)


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 64 or any(len(k) > 128 or len(v) > 256 or not k for k, v in value.items()):
        raise ValueError("at most 64 labels, names to 128 and values to 256 characters")
    without_nul(value)
    if any(name.startswith("host.") for name in value):
        raise ValueError("labels under host. are the host's own")
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a participant is listed twice")
    return value


def _moment(value: str) -> str:
    try:
        return to_rfc3339(from_rfc3339(value))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{value!r} is not a moment such as 2026-01-31T12:00:00Z: {error}") from None


def _date(value: str) -> str:
    try:
        date = datetime.date.fromisoformat(value)
    except ValueError:
        date = None
    if date is None or date.isoformat() != value or not 1970 <= date.year <= 9999:
        raise ValueError(f"{value!r} is not a UTC date such as 2026-01-31")
    return value


def _duration(value: str) -> str:
    if duration(value) is None:
        raise ValueError(f"{value!r} is not an ISO 8601 duration such as P1D, PT6H or PT30M")
    return value


def duration(text: str) -> int | None:
    """Microseconds of an ISO 8601 duration in days, hours, minutes and seconds; None where it is not one."""
    match = re.fullmatch(
        r"P(?=.)(?:(\d{1,5})D)?(?:T(?=.)(?:(\d{1,6})H)?(?:(\d{1,7})M)?(?:(\d{1,9})S)?)?", text
    )
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * SECOND


Share = Annotated[float, Field(ge=0, le=100)]
Percent = Annotated[int, Field(ge=0, le=100), BeforeValidator(whole)]
Weight = Annotated[int, Field(ge=0, le=100), BeforeValidator(whole)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Text = Annotated[str, Field(max_length=3000)]
# What each validator says, in the words of JSON Schema, for whoever reads the OpenAPI document.
_PART = r"([^/\\\x00.]|\.[^/\\\x00.]|\.\.[^/\\\x00])[^/\\\x00]*"
_TARGET = {"minLength": 1, "maxLength": 1024, "pattern": f"^{_PART}(/{_PART})*$"}
_LABELS = {
    "maxProperties": 64,
    "propertyNames": {"minLength": 1, "maxLength": 128, "not": {"pattern": r"^host\."}},
    "additionalProperties": {"type": "string", "maxLength": 256},
}

Target = Annotated[
    str,
    Field(min_length=1, max_length=1024),
    AfterValidator(_target),
    WithJsonSchema({"type": "string", **_TARGET}),
]
ParticipantId = Annotated[
    str,
    AfterValidator(_participant),
    WithJsonSchema({"type": "string", "pattern": f"^{PARTICIPANT_ID.pattern}$"}),
]
ParticipantIds = Annotated[
    tuple[ParticipantId, ...],
    Field(max_length=10_000, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]
Key = Annotated[
    str,
    AfterValidator(_key),
    WithJsonSchema({"type": "string", "pattern": f"^{KEY.pattern}$", "not": {"enum": sorted(RESERVED_KEYS)}}),
]
Labels = Annotated[dict[str, str], AfterValidator(_labels), WithJsonSchema({"type": "object", **_LABELS})]
Limit = Annotated[int | None, Field(), BeforeValidator(whole)]
Json = dict[str, Any]
Moment = Annotated[str, AfterValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Date = Annotated[str, AfterValidator(_date), WithJsonSchema({"type": "string", "format": "date"})]
"""A UTC calendar day, as 2026-01-31."""
Duration = Annotated[str, AfterValidator(_duration)]
