"""The shape of a manifest: which fields there are, of which kind, and what is said of one that is wrong."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from shared.errors import Fault

SETTLE_SECONDS, ALPHA = 60, 0.05
"""What holds where neither the manifest nor the project says otherwise."""


class Part(BaseModel):
    """A part of a manifest: strict, and nothing unknown in it."""

    model_config = ConfigDict(strict=True, extra="forbid", alias_generator=to_camel, allow_inf_nan=False)


class Metric(Part):
    """A metric."""

    key: str | None = None
    event_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    kind: Literal["proportion", "mean", "count", "ratio"] = "proportion"
    goal: Literal["increase", "decrease"] = "increase"
    denominator_event_name: str | None = None
    window: str | None = None
    margin: float | None = None
    minimum_detectable_effect: float | None = None
    funnel_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Metrics(Part):
    """The metrics, by role."""

    primary: Metric | None = None
    secondary: list[Metric] = []
    guardrail: list[Metric] = []


class Selector(Part):
    """Who is asked to take part."""

    ids: list[str] = []
    labels: dict[str, str] = {}


class File(Part):
    """A file of a variant."""

    path: Annotated[str, Field(min_length=1)]
    content: str | None = None
    content_file: str | None = None
    content_base64: str | None = None


class Rule(Part):
    """What must be so of a label."""

    key: Annotated[str, Field(min_length=1)]
    operator: Literal["equals", "not_equals", "contains", "exists", "not_exists", "regex"]
    value: str | None = None


class Rules(Part):
    """Rules that all have to hold."""

    labels: list[Rule] = []


class Variant(Part):
    """A variant."""

    key: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=3000)] = ""
    is_control: bool = False
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    content: str | None = None
    content_file: str | None = None
    files: list[File] = []
    targeting_rules: Rules = Rules()
    levels: dict[str, str] = {}
    config: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class Level(Part):
    """A content of a factor."""

    key: str
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    content: str | None = None
    content_file: str | None = None
    content_base64: str | None = None


class Factor(Part):
    """A target file with its contents."""

    key: str
    target_file: Annotated[str, Field(min_length=1)]
    levels: list[Level]


class Switchback(Part):
    """Blocks of time."""

    block_duration: str
    blocks: Annotated[int, Field(ge=2, le=1000)]
    washout: str = "PT0S"


class Exposure(Part):
    """Which events count."""

    settle_seconds: Annotated[int, Field(ge=0, le=86_400)] = SETTLE_SECONDS


class Prior(Part):
    """A Beta distribution."""

    a: Annotated[float, Field(gt=0)] = 1.0
    b: Annotated[float, Field(gt=0)] = 1.0


class Analysis(Part):
    """How results are computed, and who is left out of them; variants by their keys."""

    alpha: Annotated[float, Field(ge=0.001, le=0.5)] = ALPHA
    decision: Literal["path_test", "sequence"] | None = None
    horizon_days: Annotated[int, Field(ge=1, le=366)] = 14
    tuning: Annotated[float, Field(gt=0)] | None = None
    variance: Literal["jackknife", "delta"] = "jackknife"
    prior: Prior = Prior()
    power: Annotated[float, Field(ge=0.5, le=0.999)] = 0.8
    minimum_detectable_effect: Annotated[float, Field(gt=0, le=10)] = 0.1
    cluster_by: Annotated[str, Field(pattern=r"^(participant|host|label:.{1,128})$")] = "participant"
    excluded_variant_ids: list[str] = []
    excluded_participant_ids: list[str] = []


class Schedule(Part):
    """When it begins and ends by itself."""

    start_at: str | None = None
    end_at: str | None = None


class Document(Part):
    """A manifest, whole."""

    api_version: Literal["variantd/v1"]
    kind: Literal["Experiment"]
    key: str
    name: Annotated[str, Field(min_length=1, max_length=400)]
    description: Annotated[str, Field(max_length=3000)] = ""
    type: Literal["ab", "multivariate", "personalization", "switchback"] = "ab"
    labels: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    target_file: Annotated[str, Field(min_length=1)] | None = None
    participants: Selector = Selector()
    metrics: Metrics = Metrics()
    exposure_criteria: Exposure = Exposure()
    analysis: Analysis = Analysis()
    traffic_allocation: Annotated[int, Field(ge=0, le=100)] = 100
    targeting_rules: Rules = Rules()
    allow_host_labels: bool = False
    strata: list[str] = []
    holdout_id: Annotated[str, Field(min_length=1)] | None = None
    schedule: Schedule | None = None
    switchback: Switchback | None = None
    factors: list[Factor] = []
    variants: list[Variant] = []


NOT_YET = frozenset((*("rollout", "requires", "multipleVariants", "role"),))
"""Words of an experiment that this release does not act on; accepting them would be a promise."""


def place_of(path: Sequence[object]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


_MESSAGES = {
    "missing": "is missing",
    "string_type": "is not a text; put it in quotes",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
}


def fault_of(path: Sequence[object], kind: str, message: str, value: object) -> Fault:
    where, last = place_of(path), str(path[-1])
    if kind == "extra_forbidden":
        if last in NOT_YET:
            return Fault(
                field=where, message="this control plane does not have it yet", remedy="leave it out"
            )
        close = difflib.get_close_matches(last, sorted(_known(path[:-1])), n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(_known(path[:-1])))}"
        return Fault(field=where, message="is not a known field", remedy=remedy)
    if where == "participants":
        return Fault(field=where, message="is neither a list of ids nor {labels: …}")
    if kind == "literal_error":
        return Fault(field=where, message=f"is {value!r}: {message[0].lower()}{message[1:]}")
    return Fault(field=where, message=_MESSAGES.get(kind, message[:1].lower() + message[1:]))


def _known(path: Sequence[object]) -> set[str]:
    """The fields there are at a place in the manifest."""
    model: Any = Document
    steps = {
        "metrics": Metrics,
        "participants": Selector,
        "exposureCriteria": Exposure,
        "analysis": Analysis,
        "prior": Prior,
    }
    steps |= {
        "variants": Variant,
        "files": File,
        "targetingRules": Rules,
        "factors": Factor,
        "switchback": Switchback,
        "schedule": Schedule,
        "levels": Level,
        "primary": Metric,
        "secondary": Metric,
        "guardrail": Metric,
    }
    for part in path:
        model = steps.get(str(part), model)
    return {item.alias for item in model.model_fields.values()}
