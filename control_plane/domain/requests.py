"""What a caller may ask, operation by operation; REST and gRPC are checked by these same models."""

from base64 import b64decode
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from control_plane.domain.deployment import State
from control_plane.domain.design import DesignFields, Selector, Type
from control_plane.domain.fields import RESERVED_KEYS as RESERVED_KEYS
from control_plane.domain.fields import (
    Date,
    Json,
    Key,
    Labels,
    Limit,
    Moment,
    Name,
    ParticipantId,
    ParticipantIds,
    Percent,
    Share,
    Target,
    Text,
    Weight,
    duration,
    whole,
    without_nul,
)
from control_plane.domain.fields import Request as Request
from control_plane.domain.fields import parse as parse
from control_plane.domain.fleet import Presence
from control_plane.domain.metrics import MetricsSpec
from control_plane.domain.targeting import TargetingRules
from shared.moment import SECOND


class FileSpec(Request):
    """A file: its path and its content, as text or as base64."""

    path: Target
    content: str | None = None
    content_base64: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        _body(self.content, self.content_base64, self.path)
        return self

    def body(self) -> bytes:
        """The exact bytes."""
        return _body(self.content, self.content_base64, self.path)


def _body(content: str | None, encoded: str | None, name: str) -> bytes:
    if (content is None) == (encoded is None):
        raise ValueError(f"{name} needs either content or contentBase64")
    if content is not None:
        return content.encode()
    try:
        return b64decode(encoded or "", validate=True)
    except ValueError:
        raise ValueError(f"contentBase64 of {name} is not base64") from None


class LevelSpec(Request):
    """A level of a factor: its content, as text or as base64."""

    key: Key
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    content: str | None = None
    content_base64: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        _body(self.content, self.content_base64, self.key)
        return self

    def body(self) -> bytes:
        """The exact bytes."""
        return _body(self.content, self.content_base64, self.key)


class FactorSpec(Request):
    """A factor as a caller writes it: a target file and the contents it may have."""

    key: Key
    target_file: Target
    levels: Annotated[tuple[LevelSpec, ...], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _levels_apart(self) -> Self:
        if len({level.key for level in self.levels}) != len(self.levels):
            raise ValueError(f"two levels of {self.key} have the same key")
        return self


def _factors_apart(value: tuple[FactorSpec, ...]) -> tuple[FactorSpec, ...]:
    if len({factor.key for factor in value}) != len(value):
        raise ValueError("two factors have the same key")
    if len({factor.target_file for factor in value}) != len(value):
        raise ValueError("two factors have the same targetFile")
    return value


Factors = Annotated[tuple[FactorSpec, ...], Field(max_length=16), AfterValidator(_factors_apart)]
Levels = Annotated[dict[Key, Key], Field(max_length=16)]
"""Level by factor."""


class VariantSpec(Request):
    """A variant as a caller writes it."""

    key: Key | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Text = ""
    is_control: bool = False
    weight: Weight = 0
    content: str | None = None
    files: tuple[FileSpec, ...] = Field(default=(), max_length=64)
    targeting_rules: TargetingRules = TargetingRules()
    levels: Levels = Field(default_factory=dict)
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


class _Structure(DesignFields):
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
    """A new draft; with `validate_only`, what it would be."""

    name: Name
    key: Key | None = None
    description: Text = ""
    type: Type = Type.AB
    target_file: Target | None = None
    factors: Factors = ()
    variants: tuple[VariantSpec, ...] = Field(default=(), max_length=200)
    participant_ids: ParticipantIds | None = None
    participants: Selector | None = None
    metrics: MetricsSpec = MetricsSpec()
    labels: Labels = Field(default_factory=dict)
    metadata: Json | None = None
    validate_only: bool = False


class UpdateExperiment(_Structure):
    """Changes to an experiment; what was not sent stays, null is none or the default again."""

    id: str
    name: Name = ""  # the default is never looked at: a name cannot be taken away
    description: Text | None = None
    target_file: Target | None = None
    factors: Factors | None = None
    participant_ids: ParticipantIds | None = None
    participants: Selector | None = None
    metrics: MetricsSpec | None = None
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


class _Labelled(Page):
    """Asks for what carries all of these labels."""

    labels: Annotated[dict[str, str], Field(max_length=64), AfterValidator(without_nul)] = Field(
        default_factory=dict
    )


class ListExperiments(_Labelled):
    """Asks for experiments; every condition has to hold."""

    status: Literal["draft", "running", "paused", "stopped", "completed"] | None = None
    type: Literal["ab", "multivariate", "personalization", "switchback"] | None = None
    search: Text = ""
    archived: bool = False


class ListDeployments(PageOf):
    """Asks for deployments of an experiment; every condition has to hold."""

    state: State | None = None
    current: bool = False
    settled: bool | None = None


class ListEligibleTargets(Page):
    """Asks for target files that can be tested, with this in their path."""

    search: str = ""


class ListHosts(_Labelled):
    """Asks for participants or agents; every condition has to hold."""

    presence: Presence | None = None


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


class CreateHoldout(Request):
    """A new holdout."""

    name: Name
    key: Key | None = None
    description: Text = ""
    share: Share


class UpdateHoldout(ById):
    """Changes to a holdout; what was not sent stays."""

    name: Name | None = None
    description: Text | None = None
    share: Share | None = None


class OpenPhase(ById):
    """Other weights, another allocation or another seed, from now on."""

    weights: dict[str, Weight] | None = None
    traffic_allocation: Percent | None = None
    seed: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Start(ById):
    """Starts an experiment; with `normalize`, weights that do not sum to 100 are made to, in their proportion."""

    normalize: bool = False


class OfAssignment(ById):
    """Names a participant's assignment in an experiment."""

    participant_id: ParticipantId


class ForceAssignment(OfAssignment):
    """Puts a participant onto a variant, whatever was drawn."""

    variant_id: str


class ReadFile(ById):
    """Names a target file of a participant."""

    path: Target


class OfVariant(ById):
    """Names a variant of an experiment."""

    variant_id: str


class AddVariant(VariantSpec):
    """A new variant of a draft."""

    id: str


class UpdateVariant(OfVariant):
    """Changes to a variant; what was not sent stays, null is none or the default again."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = ""  # as an experiment's
    description: Text | None = None
    is_control: bool | None = None
    weight: Weight | None = None
    content: str | None = None
    files: Annotated[tuple[FileSpec, ...], Field(max_length=64)] | None = None
    targeting_rules: TargetingRules | None = None
    levels: Levels | None = None
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
    metric: str = ""
    phase: str = ""
    population: Literal["assigned", "delivered"] = "assigned"
    as_of: Date | None = None
    group_by: str = ""
    include: Literal["", "inputs"] = ""


class CreateParticipant(Request):
    """A new participant."""

    id: ParticipantId
    labels: Labels = Field(default_factory=dict)


class UpdateParticipant(ById):
    """Changes to a participant; what was not sent stays, null is none."""

    labels: Labels | None = None


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
    max_uses: Annotated[int, Field(ge=1, le=10_000), BeforeValidator(whole)] = 1
    name_pattern: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    participants: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = ()

    @model_validator(mode="after")
    def _ttl_in_range(self) -> Self:
        self.ttl_seconds()
        return self

    def ttl_seconds(self) -> int:
        """How long the token lasts, seconds, 1 to 30 days."""
        total = (duration(self.ttl) or 0) // SECOND
        if not 1 <= total <= 30 * 86_400:
            raise ValueError("ttl is an ISO 8601 duration from PT1S to P30D, such as PT1H")
        return total


class CreateProject(Request):
    """A new project."""

    name: Key


KeyName = Annotated[str, Field(min_length=1, max_length=128)]


class CreateApiKey(Request):
    """A new API key."""

    name: KeyName
    scopes: tuple[str, ...] = ()
    labels: Labels = Field(default_factory=dict)
    expires_at: Moment | None = None


class ListAuditLog(Page):
    """Asks for changes; every condition has to hold."""

    operation: str = ""
    resource_id: str = ""
    actor: str = ""
    api_key_id: str = ""
    from_at: Moment | None = None
    to_at: Moment | None = None


class UpdateApiKey(ById):
    """Another name for an API key."""

    name: KeyName
