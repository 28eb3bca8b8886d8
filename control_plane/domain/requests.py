"""What a caller may ask, field by field; REST and gRPC are checked by these same models.

Strict: a text is no number and an unknown field is refused, so a typo never changes nothing silently.
Wire names are camelCase.
"""

import json
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from shared.errors import Fault, Invalid
from shared.model import PARTICIPANT_ID

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


def _whole(value: object) -> object:
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


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 64 or any(len(k) > 128 or len(v) > 256 or not k for k, v in value.items()):
        raise ValueError("at most 64 labels, names to 128 and values to 256 characters")
    if any(name.startswith("host.") for name in value):
        raise ValueError("labels under host. are the host's own")
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a participant is listed twice")
    return value


Weight = Annotated[int, Field(ge=0, le=100), BeforeValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Text = Annotated[str, Field(max_length=3000)]
Target = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_target)]
ParticipantId = Annotated[str, AfterValidator(_participant)]
ParticipantIds = Annotated[tuple[ParticipantId, ...], Field(max_length=10_000), AfterValidator(_distinct)]
Key = Annotated[str, AfterValidator(_key)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Limit = Annotated[int | None, Field(), BeforeValidator(_whole)]
Json = dict[str, Any]


class FileSpec(Request):
    """A file: its path and its content, as text or as base64."""

    path: Target
    content: str | None = None
    content_base64: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.content is None) == (self.content_base64 is None):
            raise ValueError(f"{self.path} needs either content or contentBase64")
        self.body()
        return self

    def body(self) -> bytes:
        """The exact bytes."""
        if self.content is not None:
            return self.content.encode()
        try:
            return b64decode(self.content_base64 or "", validate=True)
        except ValueError:
            raise ValueError(f"contentBase64 of {self.path} is not base64") from None


class VariantSpec(Request):
    """A variant as a caller writes it."""

    key: Key | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Text = ""
    is_control: bool = False
    weight: Weight = 0
    content: str | None = None
    files: tuple[FileSpec, ...] = Field(default=(), max_length=64)
    config: Json | None = None
    metadata: Json | None = None

    @model_validator(mode="after")
    def _content_or_files(self) -> Self:
        if self.content is not None and self.files:
            raise ValueError("a variant has content (for the experiment's targetFile) or files, not both")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("two files of a variant have the same path")
        return self


class MetricSpec(Request):
    """A metric: a conversion's name and which way it should move."""

    event_name: Annotated[str, Field(min_length=1, max_length=128)]
    goal: Literal["increase", "decrease"] = "increase"


class MetricsSpec(Request):
    """The metrics of an experiment."""

    primary: MetricSpec | None = None
    secondary: tuple[MetricSpec, ...] = ()
    guardrail: tuple[MetricSpec, ...] = ()


class Selector(Request):
    """Which participants: a list of ids, or all that carry the labels."""

    ids: ParticipantIds = ()
    labels: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.ids and self.labels:
            raise ValueError("participants are chosen by ids or by labels, not both")
        return self


class Exposure(Request):
    """Which events count."""

    settle_seconds: Annotated[int, Field(ge=0, le=86_400), BeforeValidator(_whole)] = 60


class AnalysisSpec(Request):
    """How results are computed."""

    alpha: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05


class _Structure(Request):
    @model_validator(mode="after")
    def _participants_once(self) -> Self:
        if self.given("participant_ids") and self.given("participants"):
            raise ValueError("send participantIds or participants, not both")
        return self

    @property
    def selector(self) -> Selector | None:
        """The participants asked for, either way; None where neither was sent."""
        ids: tuple[str, ...] | None = getattr(self, "participant_ids", None)
        chosen: Selector | None = getattr(self, "participants", None)
        return Selector(ids=ids) if ids is not None else chosen


class CreateExperiment(_Structure):
    """A new draft."""

    name: Name
    key: Key | None = None
    description: Text = ""
    type: Literal["ab"] = "ab"
    target_file: Target | None = None
    variants: tuple[VariantSpec, ...] = Field(default=(), max_length=200)
    participant_ids: ParticipantIds | None = None
    participants: Selector | None = None
    metrics: MetricsSpec = MetricsSpec()
    exposure_criteria: Exposure = Exposure()
    analysis: AnalysisSpec = AnalysisSpec()
    labels: Labels = Field(default_factory=dict)
    metadata: Json | None = None


class UpdateExperiment(_Structure):
    """Changes to an experiment; what was not sent stays."""

    id: str
    name: Name | None = None
    description: Text | None = None
    target_file: Target | None = None
    participant_ids: ParticipantIds | None = None
    participants: Selector | None = None
    metrics: MetricsSpec | None = None
    exposure_criteria: Exposure | None = None
    analysis: AnalysisSpec | None = None
    labels: Labels | None = None
    metadata: Json | None = None


class ById(Request):
    """Names one resource by id, and an experiment also by key."""

    id: str


class Page(Request):
    """Asks for a page: `limit` is clamped to 1 … 100, `cursor` is where the last page ended."""

    limit: Limit = None
    cursor: str = ""


class PageOf(Page):
    """Asks for a page of what belongs to a resource."""

    id: str


class ListExperiments(Page):
    """Asks for experiments."""

    status: Literal["draft", "running", "paused", "stopped", "completed"] | None = None
    search: str = ""


class Pause(ById):
    """Closes intake for a while."""

    on_pause: Literal["hold", "revert"] = "hold"


class _Conclude(ById):
    conclusion: Literal["won", "lost", "inconclusive", "stopped_early", "invalid"] | None = None
    conclusion_comment: Text | None = None


class Complete(_Conclude):
    """Ends an experiment."""

    winner_variant_id: str | None = None
    then: Literal["keep", "restore", "ship"] = "keep"


class Ship(_Conclude):
    """Ends an experiment with one variant everywhere."""

    variant_id: str | None = None


class Reset(ById):
    """Makes a draft of an experiment again."""

    then: Literal["keep", "restore"] = "keep"


class Duplicate(ById):
    """A new draft like an experiment."""

    name: Name | None = None
    key: Key | None = None


class Transition(ById):
    """Asks for a status."""

    status: Literal["running", "paused", "completed"]


class OfVariant(ById):
    """Names a variant of an experiment."""

    variant_id: str


class AddVariant(VariantSpec):
    """A new variant of a draft."""

    id: str


class UpdateVariant(OfVariant):
    """Changes to a variant; what was not sent stays."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    description: Text | None = None
    is_control: bool | None = None
    weight: Weight | None = None
    content: str | None = None
    files: Annotated[tuple[FileSpec, ...], Field(max_length=64)] | None = None
    config: Json | None = None
    metadata: Json | None = None


class CreateDeployment(ById):
    """Asks for a variant on one participant."""

    participant_id: ParticipantId
    variant_id: str
    require_connected: bool = False
    overwrite_drift: bool = False
    retry: bool = False


class GetResults(ById):
    """Asks for results."""

    event_name: str = ""
    population: Literal["assigned", "delivered"] = "assigned"


class CreateParticipant(Request):
    """A new participant."""

    id: ParticipantId
    labels: Labels = Field(default_factory=dict)


class MoveParticipant(Request):
    """Moves a participant to another agent."""

    id: str
    agent_id: str


class Nothing(Request):
    """Asks without saying anything more."""


class CreateEnrollmentToken(Request):
    """A new enrollment token."""

    name: Annotated[str, Field(min_length=1, max_length=128)] = "token"
    labels: Labels = Field(default_factory=dict)
    ttl: str = "PT1H"
    max_uses: Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_whole)] = 1
    name_pattern: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    participants: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = ()

    @model_validator(mode="after")
    def _ttl_in_range(self) -> Self:
        self.ttl_seconds()
        return self

    def ttl_seconds(self) -> int:
        """How long the token lasts, seconds, 1 to 30 days."""
        match = re.fullmatch(r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,7})M)?(?:(\d{1,9})S)?)?", self.ttl)
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        if not 1 <= total <= 30 * 86_400:
            raise ValueError("ttl is an ISO 8601 duration from PT1S to P30D, such as PT1H")
        return total


class CreateApiKey(Request):
    """A new API key."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    scopes: tuple[str, ...] = ()
