"""How an experiment is designed: who takes part, what counts, how it is decided. Checked field by field.

A design is stored as the JSON its caller wrote, with every default in it, so that what was agreed can be read
years later.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from control_plane.domain.attribution import Several
from control_plane.domain.fields import (
    Duration,
    Labels,
    Moment,
    ParticipantIds,
    Percent,
    Request,
    duration,
    whole,
)
from control_plane.domain.targeting import TargetingRules
from shared.moment import SECOND, from_rfc3339


class Type(StrEnum):
    """What kind of experiment it is: how participants come to their variants."""

    AB = "ab"
    MULTIVARIATE = "multivariate"
    PERSONALIZATION = "personalization"
    SWITCHBACK = "switchback"

    @property
    def weighted(self) -> bool:
        """Whether variants get participants in proportion to their weights."""
        return self in (Type.AB, Type.MULTIVARIATE)


HORIZON_DAYS = 14
"""How long alpha is spent where nobody says so; a switchback has its blocks."""


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
    """Which events count, and on what word they are of the `delivered` population."""

    settle_seconds: Annotated[int, Field(ge=0, le=86_400), BeforeValidator(whole)] = 60
    requires: Literal["written", "loaded"] = "written"
    multiple_variants: Several = Several.EXCLUDE


class Prior(Request):
    """What rates are believed to be before anything is measured: Beta(a, b)."""

    a: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    b: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0


def _once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a variant is listed twice")
    return value


class AnalysisSpec(Request):
    """How results are computed, and who is left out of them.

    `decision` absent: the path test for a closed list of participants that it can deal with and for a switchback, else
    the sequence. `horizon_days` absent: 14, of a switchback all its blocks.
    `excluded_variant_ids` are ids or keys as callers write them, and keys once they are in a design
    (`services.excluding`): a key lasts as long as its variant, and a copy of the experiment has the same.
    `variance` cuped: what participants did in the `history_days` before the first start is taken out. `winsorize_at`
    is the percentile of all participants' values that none counts more than, of metrics that are means.
    `secondary_correction` is for the p-values of the secondary metrics together.
    `cluster_by` is what is drawn, and compared: each participant, each host, or each value of a label.
    """

    alpha: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05
    decision: Literal["path_test", "sequence"] | None = None
    horizon_days: Annotated[int, Field(ge=1, le=366), BeforeValidator(whole)] | None = None
    tuning: Annotated[float, Field(gt=0, le=1e12)] | None = None
    variance: Literal["jackknife", "delta", "cuped"] = "jackknife"
    history_days: Annotated[int, Field(ge=1, le=366), BeforeValidator(whole)] = 14
    winsorize_at: Annotated[float, Field(ge=50, lt=100)] | None = None
    prior: Prior = Prior()
    secondary_correction: Literal["holm", "benjamini_hochberg"] = "holm"
    power: Annotated[float, Field(ge=0.5, le=0.999)] = 0.8
    minimum_detectable_effect: Annotated[float, Field(gt=0, le=10)] = 0.1
    cluster_by: Annotated[str, Field(pattern=r"^(participant|host|label:.{1,128})$")] = "participant"
    excluded_variant_ids: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...],
        Field(max_length=100, json_schema_extra={"uniqueItems": True}),
        AfterValidator(_once),
    ] = ()
    excluded_participant_ids: ParticipantIds = ()

    def said(self) -> dict[str, Any]:
        """What differs from the defaults, and the level: the same whatever fields later versions know besides."""
        kept = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {"alpha": self.alpha, **kept}


def _apart(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a label is listed twice")
    return value


class Schedule(Request):
    """When the experiment is started and stopped by itself."""

    start_at: Moment | None = None
    end_at: Moment | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        start, end = self.start, self.end
        if start is not None and end is not None and end <= start:
            raise ValueError("endAt must be after startAt")
        return self

    @property
    def start(self) -> int | None:
        """When to start, microseconds."""
        return None if self.start_at is None else from_rfc3339(self.start_at)

    @property
    def end(self) -> int | None:
        """When to stop, microseconds."""
        return None if self.end_at is None else from_rfc3339(self.end_at)


class Switchback(Request):
    """Blocks of time, in which each participant alternates between the variants."""

    block_duration: Duration
    blocks: Annotated[int, Field(ge=2, le=1000), BeforeValidator(whole)]
    washout: Duration = "PT0S"

    @model_validator(mode="after")
    def _some_length(self) -> Self:
        if self.length < SECOND:
            raise ValueError("blockDuration must be a second at least")
        return self

    @property
    def length(self) -> int:
        """How long a block is, microseconds."""
        return duration(self.block_duration) or 0

    @property
    def settling(self) -> int:
        """How long after the start of a block nothing counts, microseconds."""
        return duration(self.washout) or 0


Strata = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
    Field(max_length=8),
    AfterValidator(_apart),
]
"""Names of the labels whose values make the strata; none: each agent is a stratum."""


class DesignFields(Request):
    """The parts of a design as callers send them; what was not sent stays, null is the default again."""

    traffic_allocation: Percent | None = None
    targeting_rules: TargetingRules | None = None
    allow_host_labels: bool | None = None
    strata: Strata | None = None
    holdout_id: str | None = None
    require_preflight: bool | None = None
    exposure_criteria: Exposure | None = None
    analysis: AnalysisSpec | None = None
    schedule: Schedule | None = None
    switchback: Switchback | None = None


class Design(Request):
    """A design, whole."""

    traffic_allocation: Percent = 100
    targeting_rules: TargetingRules = TargetingRules()
    allow_host_labels: bool = False
    strata: Strata = ()
    holdout_id: str | None = None
    require_preflight: bool = False
    exposure_criteria: Exposure = Exposure()
    analysis: AnalysisSpec = AnalysisSpec()
    schedule: Schedule = Schedule()
    switchback: Switchback | None = None

    def changed(self, sent: DesignFields) -> "Design":
        """The design with what was sent."""
        fields = {name: field for name, field in Design.model_fields.items() if sent.given(name)}
        given = {name: getattr(sent, name) for name in fields}
        return self.model_copy(
            update={
                name: field.get_default(call_default_factory=True) if given[name] is None else given[name]
                for name, field in fields.items()
            }
        )
