"""The shape of a manifest: which fields there are, of which kind, and what is said of one that is wrong.

`json_schema_extra` says for the published schema what `manifest`, or the control plane, looks at besides.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from shared.errors import Fault
from shared.model import PARTICIPANT_ID

SETTLE_SECONDS, ALPHA = 60, 0.05
"""What holds where neither the manifest nor the project says otherwise."""


_PART = r"([^/\\\x00.]|\.[^/\\\x00.]|\.\.[^/\\\x00])[^/\\\x00]*"
_RFC_3339 = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(Z|[+-][0-9]{2}:[0-9]{2})$"
)
_DURATION = r"^P(?=.)([0-9]{1,5}D)?(T(?=.)([0-9]{1,6}H)?([0-9]{1,7}M)?([0-9]{1,9}S)?)?$"
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

Key = Annotated[
    str,
    Field(
        json_schema_extra={
            "pattern": "^[a-z][a-z0-9-]{0,63}$",
            "not": {"enum": ["eligible-targets", "stats"]},
        }
    ),
]
Target = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": f"^{_PART}(/{_PART})*$"})]
Participant = Annotated[str, Field(json_schema_extra={"pattern": f"^{PARTICIPANT_ID.pattern}$"})]
Moment = Annotated[str, Field(json_schema_extra={"pattern": _RFC_3339})]
Duration = Annotated[str, Field(json_schema_extra={"pattern": _DURATION})]
Content = Annotated[str, Field(json_schema_extra={"maxLength": 1_048_576})]
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64", "pattern": _BASE64})]
DISTINCT: JsonDict = {"uniqueItems": True}


def _text(name: str) -> JsonDict:
    """The field is there, and not null."""
    return {"required": [name], "properties": {name: {"type": "string"}}}


_SOME_LEVELS: JsonDict = {"required": ["levels"], "properties": {"levels": {"minProperties": 1}}}
_SOME_FILES: JsonDict = {"required": ["files"], "properties": {"files": {"minItems": 1}}}
_FOR_TARGET: JsonDict = {"anyOf": [_text("content"), _text("contentFile")], "not": _SOME_LEVELS}
ONE_CONTENT: JsonDict = {"oneOf": [_text("content"), _text("contentFile"), _text("contentBase64")]}


class Part(BaseModel):
    """A part of a manifest: strict, and nothing unknown in it."""

    model_config = ConfigDict(strict=True, extra="forbid", alias_generator=to_camel, allow_inf_nan=False)


class Metric(Part):
    """A metric, or the key of a saved one and nothing else."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                _text("key") | {"maxProperties": 1},
                _text("eventName")
                | {"properties": {"eventName": {"type": "string"}, "key": {"type": "null"}}},
            ]
        }
    )

    key: str | None = None
    event_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    kind: Literal["proportion", "mean", "count", "ratio"] = "proportion"
    of: Literal["impressions", "subjects", "participants"] | None = None
    goal: Literal["increase", "decrease"] = "increase"
    denominator_event_name: str | None = None
    window: Duration | None = None
    margin: Annotated[float, Field(gt=0)] | None = None
    minimum_detectable_effect: Annotated[float, Field(gt=0)] | None = None
    funnel_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Metrics(Part):
    """The metrics, by role."""

    primary: Metric | None = None
    secondary: list[Metric] = []
    guardrail: list[Metric] = []


class Selector(Part):
    """Who is asked to take part: some by name, or all with the labels."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["ids", "labels"],
                "properties": {"ids": {"minItems": 1}, "labels": {"minProperties": 1}},
            }
        }
    )

    ids: Annotated[list[Participant], Field(json_schema_extra=DISTINCT)] = []
    labels: dict[str, str] = {}


class File(Part):
    """A file of a variant."""

    model_config = ConfigDict(json_schema_extra=ONE_CONTENT)

    path: Target
    content: Content | None = None
    content_file: str | None = None
    content_base64: Base64 | None = None


class Rule(Part):
    """What must be so of a label."""

    key: Annotated[str, Field(min_length=1)]
    operator: Literal["equals", "not_equals", "contains", "exists", "not_exists", "regex"]
    value: str | None = None


class Rules(Part):
    """Rules that all have to hold."""

    labels: list[Rule] = []


class Variant(Part):
    """A variant: one content of the experiment's target file, or files, or a level of every factor."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [_SOME_LEVELS, {"oneOf": [_text("content"), _text("contentFile"), _SOME_FILES]}]
        }
    )

    key: Key | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=3000)] = ""
    is_control: bool = False
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    content: Content | None = None
    content_file: str | None = None
    files: list[File] = []
    targeting_rules: Rules = Rules()
    levels: dict[str, str] = {}
    config: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class Level(Part):
    """A content of a factor."""

    model_config = ConfigDict(json_schema_extra=ONE_CONTENT)

    key: Key
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    content: Content | None = None
    content_file: str | None = None
    content_base64: Base64 | None = None


class Factor(Part):
    """A target file with its contents."""

    key: Key
    target_file: Target
    levels: Annotated[list[Level], Field(json_schema_extra={"minItems": 1})]


class Switchback(Part):
    """Blocks of time."""

    block_duration: Duration
    blocks: Annotated[int, Field(ge=2, le=1000)]
    washout: Duration = "PT0S"


class Exposure(Part):
    """Which events count."""

    settle_seconds: Annotated[int, Field(ge=0, le=86_400)] = SETTLE_SECONDS
    requires: Literal["written", "loaded"] = "written"
    multiple_variants: Literal["exclude", "first_seen"] = "exclude"


class Prior(Part):
    """A Beta distribution."""

    a: Annotated[float, Field(gt=0)] = 1.0
    b: Annotated[float, Field(gt=0)] = 1.0


class Analysis(Part):
    """How results are computed, and who is left out of them; variants by their keys."""

    alpha: Annotated[float, Field(ge=0.001, le=0.5)] = ALPHA
    decision: Literal["path_test", "sequence"] | None = None
    horizon_days: Annotated[int, Field(ge=1, le=366)] | None = None
    tuning: Annotated[float, Field(gt=0)] | None = None
    variance: Literal["jackknife", "delta", "cuped"] = "jackknife"
    history_days: Annotated[int, Field(ge=1, le=366)] = 14
    winsorize_at: Annotated[float, Field(ge=50, lt=100)] | None = None
    prior: Prior = Prior()
    secondary_correction: Literal["holm", "benjamini_hochberg"] = "holm"
    power: Annotated[float, Field(ge=0.5, le=0.999)] = 0.8
    minimum_detectable_effect: Annotated[float, Field(gt=0, le=10)] = 0.1
    cluster_by: Annotated[str, Field(pattern=r"^(participant|host|label:.{1,128})$")] = "participant"
    excluded_variant_ids: Annotated[list[str], Field(json_schema_extra=DISTINCT)] = []
    excluded_participant_ids: Annotated[list[Participant], Field(json_schema_extra=DISTINCT)] = []


class Schedule(Part):
    """When it begins and ends by itself."""

    start_at: Moment | None = None
    end_at: Moment | None = None


class Document(Part):
    """An experiment as `variantctl apply` takes it. Contents of variants are for its `targetFile`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"required": ["variants"], "properties": {"variants": {"contains": _FOR_TARGET}}},
            "then": _text("targetFile"),
        }
    )

    api_version: Literal["variantd/v1"]
    kind: Literal["Experiment"]
    key: Key
    name: Annotated[str, Field(min_length=1, max_length=400)]
    description: Annotated[str, Field(max_length=3000)] = ""
    type: Literal["ab", "multivariate", "personalization", "switchback"] = "ab"
    labels: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    target_file: Target | None = None
    participants: Selector = Selector()
    metrics: Metrics = Metrics()
    exposure_criteria: Exposure = Exposure()
    analysis: Analysis = Analysis()
    traffic_allocation: Annotated[int, Field(ge=0, le=100)] = 100
    targeting_rules: Rules = Rules()
    allow_host_labels: bool = False
    strata: Annotated[list[str], Field(json_schema_extra=DISTINCT)] = []
    holdout_id: Annotated[str, Field(min_length=1)] | None = None
    require_preflight: bool = False
    schedule: Schedule | None = None
    switchback: Switchback | None = None
    factors: list[Factor] = []
    variants: list[Variant] = []


NOT_YET = frozenset({"rollout", "role"})
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
