"""What the resources of PostHog's experiments are here, field by field."""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from control_plane.api.doors.files import (
    configuration,
    configured,
    own_labels,
    participants,
    share,
    whole_file,
)
from control_plane.api.doors.mapping import Field, Json, Shape, kept, ours, refused, shown, wrong
from control_plane.api.doors.posthog_metrics import METRIC
from control_plane.domain.fields import KEY

STATUSES = ("draft", "running", "paused", "exposure_frozen", "stopped")
CONCLUSIONS = ("won", "lost", "inconclusive", "stopped_early", "invalid")
DEFAULT_VARIANTS = [
    {"key": "control", "name": "Control", "split_percent": 50},
    {"key": "test", "name": "Test", "split_percent": 50},
]


def slug(key: Any) -> Any:
    """Our key for one of theirs, which may have capitals and underscores."""
    if not isinstance(key, str) or KEY.fullmatch(key):
        return key
    made = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:64]
    return made if made[:1].isalpha() else f"x-{made}"[:64]


def _nothing(value: Any) -> Json:
    return {}


def _told(name: str, says: str, *, native: str = "", **more: Any) -> Field:
    """A field that is written with others, and told as the reading made it (`told`, by the field's name)."""
    return Field(name=name, says=says, native=native, into=_nothing, show=lambda e: e["told"][name], **more)


def _payload(value: Any) -> Json:
    """What a variant writes, out of its payload; the rest stays configuration."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            return {"config": {"payload": value}}
    if found is None:
        return {"config": None}
    if not isinstance(found, dict):
        return {"config": {"payload": found}}
    return configured(found, "payload")


def payload(variant: Json) -> Any:
    """The payload with the file in it; None where there is nothing."""
    found = configuration(variant)
    return found["payload"] if set(found) == {"payload"} else (found or None)


VARIANT = Shape(
    ours(
        "key",
        "its key; ours has small letters, digits and - in it",
        required=True,
        kind=str,
        into=lambda k: {"key": slug(k)},
    ),
    ours(
        "name", "its name; the key unless it is sent", example="Bold", into=lambda n: {"name": n} if n else {}
    ),
    share("split_percent", "whole per cent; all together are 100", example=50),
    share("rollout_percentage", "the same by its former name"),
    ours(
        "payload",
        "a JSON object, as such or as a text: of it `content` and `targetFile`, or `files`, are what it writes",
        native="config",
        holds=("content", "files"),
        into=_payload,
        show=payload,
        example={"targetFile": "config/soul.md", "content": "You are bold.", "tone": 2},
    ),
)

PARAMETERS = Shape(
    Field(
        name="feature_flag_variants",
        says="2 to 20; the baseline is the one that `stats_config.baseline_variant_key` names, else `control`, else the"
        " first; half `control` and half `test` unless they are sent. Keys and payloads are"
        " for good once it is launched",
        native="variants",
        each=VARIANT,
        into=_nothing,
    ),
    Field(
        name="feature_flag_payloads",
        says="payloads by variant key, where variants do not carry them",
        native="variants",
        kind=dict[str, Any],
        into=_nothing,
        unshown=True,
    ),
    ours(
        "rollout_percentage",
        "per cent that take part; once launched only with `update_feature_flag_params`, as a phase",
        native="trafficAllocation",
        into=lambda value: {} if value is None else {"trafficAllocation": value},
        example=80,
    ),
    kept("minimum_detectable_effect", "planning only", float, example=30),
    kept("recommended_running_time", "planning only", float, example=14),
    kept("recommended_sample_size", "planning only", float, example=900),
    kept("running_time_calculation", "planning only", dict[str, Any], example={"exposure_estimate": 10}),
    Field(
        name="excluded_variants",
        says="variants left out of analysis, never the baseline; until it is launched",
        native="analysis.excludedVariantIds",
        into=_nothing,
    ),
    kept("variant_screenshot_media_ids", "pictures of variants", dict[str, Any], example={"control": ["1"]}),
    refused(
        "aggregation_group_type_index", "participants are what is assigned, there are no groups", example=1
    ),
    refused(
        "custom_exposure_filter", "exposure is the impression that is reported of a file", example={"a": 1}
    ),
)


def _exposure(value: Any) -> Json:
    if value is None:
        return {"exposureCriteria": None}
    if not isinstance(value, dict):
        raise wrong("exposure_criteria", "is not an object", "send an object")
    strange = sorted(set(value) - {"filterTestAccounts", "exposure_config", "multiple_variant_handling"})
    if strange:
        raise wrong(f"exposure_criteria.{strange[0]}", "is not a known field", "leave it out")
    config = value.get("exposure_config") or {}
    if not isinstance(config, dict):
        raise wrong("exposure_criteria.exposure_config", "is not an object", "leave it out")
    if config.get("event", "$feature_flag_called") != "$feature_flag_called" or config.get("properties"):
        raise wrong(
            "exposure_criteria.exposure_config",
            "exposure is the impression that is reported of a file, no other event",
            "leave it out",
        )
    handling = value.get("multiple_variant_handling")
    return {"exposureCriteria": {"multipleVariants": handling}} if handling else {}


def _description(value: Any) -> Json:
    return {"description": value or ""}


EXPERIMENT = Shape(
    shown("id", "its number; our id and the key name it too", native="number"),
    ours("name", "its name, up to 400 characters", required=True, example="Tone of voice"),
    ours("description", "the hypothesis, up to 3,000 characters", into=_description, example="Bold resolves more"),
    ours(
        "feature_flag_key",
        "the key; ours has small letters, digits and - in it, and this door shows what was sent",
        native="key",
        only="create",
        into=lambda value: {"key": slug(value)} if value else {},
        example="tone_of_Voice",
    ),
    _told(
        "start_date",
        "null: a draft, and nothing scheduled. A moment that is not ahead launches it now, one ahead schedules the"
        " launch",
        native="startedAt",
    ),
    _told(
        "end_date",
        "a moment that is not ahead ends it now, one ahead schedules that intake is closed; null: nothing is",
        native="completedAt",
    ),
    shown(
        "status",
        f"one of {', '.join(STATUSES)}; paused where files are what they were before, exposure_frozen where they stay",
        show=lambda e: e["told"]["status"],
    ),
    Field(name="parameters", says="replaced as a whole", inside=PARAMETERS),
    _told("metrics", "typed metrics; the first is our primary", native="metrics.primary", each=METRIC),
    _told("metrics_secondary", "further ones, as in `metrics`", native="metrics.secondary"),
    _told(
        "primary_metrics_ordered_uuids",
        "in which order metrics are shown; has to name each, and follows them otherwise",
        kind=list[str],
    ),
    _told("secondary_metrics_ordered_uuids", "the same of further metrics", kind=list[str]),
    _told("saved_metrics_ids", "saved metrics by number, as {id, metadata: {type}}", native="metrics"),
    shown("saved_metrics", "the same with what they measure", show=lambda e: e["told"]["saved_metrics"]),
    kept("allow_unknown_events", "true, as it is anyway: no event has to have been seen", bool, example=True),
    ours(
        "exposure_criteria",
        "`multiple_variant_handling` (exclude, first_seen) is ours, until it is launched; `filterTestAccounts` is kept;"
        " an event of its own in `exposure_config` is refused",
        native="exposureCriteria",
        into=_exposure,
        show=lambda e: e["told"]["exposure_criteria"],
    ),
    _told(
        "stats_config",
        "kept; of it `bayesian.ci_level`, or `frequentist.alpha` with that method, is our level alpha, and"
        " `baseline_variant_key` the control; both until it is launched",
        native="analysis.alpha",
        kind=dict[str, Any],
    ),
    kept("scheduling_config", "when it is recomputed: days are ready whenever they are asked for", dict[str, Any],
         example={"timeseries": True}),
    _told("holdout_id", "a holdout by its number; until it is launched", native="holdoutId"),
    shown("holdout", "the holdout", show=lambda e: e["told"]["holdout"]),
    Field(name="conclusion", says=f"of an ended one: {', '.join(CONCLUSIONS)}", native="conclusion", into=_nothing),
    Field(
        name="conclusion_comment", says="what was learnt", native="conclusionComment", into=_nothing
    ),
    Field(name="archived", says="whether it is put away", native="archived", kind=bool, into=_nothing),
    _told("deleted", "true hides it, and archives it: one under way is ended first; false brings it back", kind=bool),
    kept("type", "product or web", Literal["product", "web"], example="web", default="product"),
    kept("filters", "legacy", dict[str, Any], example={"insight": "TRENDS"}, default={}),
    kept("secondary_metrics", "legacy", list[Any], example=[{"name": "old"}], default=[]),
    kept("_create_in_folder", "where lists file it", str, example="Tests", unshown=True),
    Field(
        name="update_feature_flag_params",
        says="true lets a change of weights or share take effect after the launch, as a phase",
        kind=bool,
        into=_nothing,
        unshown=True,
    ),
    shown("feature_flag", "the key with the variants as its values", show=lambda e: e["told"]["feature_flag"]),
    shown("exposure_cohort", "none", show=lambda e: None),
    shown("created_by", "who made it", show=lambda e: {"first_name": e["createdBy"]}),
    shown("created_at", "when it was created", native="createdAt"),
    shown("updated_at", "when it last changed", native="updatedAt"),
    whole_file("target_file"),
    *participants("participant_ids", "participants"),
    own_labels(),
)  # fmt: skip

HOLDOUT = Shape(
    shown("id", "its number; our id and the key name it too", native="number"),
    ours("name", "its name", required=True, example="Never"),
    ours("description", "what it is for", into=_description, example="Kept out of everything"),
    Field(
        name="filters",
        says="one group: [{rollout_percentage, properties: []}]; who is in it is drawn, so properties are refused",
        native="share",
        required=True,
        into=lambda value: {"share": _share(value)},
        show=lambda h: [
            {"properties": [], "rollout_percentage": h["share"], "variant": f"holdout-{h['number']}"}
        ],
        example=[{"properties": [], "rollout_percentage": 10}],
    ),
    shown("created_by", "nobody is on record", show=lambda h: None),
    shown("created_at", "when it was created", native="createdAt"),
    shown("updated_at", "when it last changed", native="updatedAt"),
)


def _share(value: Any) -> Any:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], Mapping):
        raise wrong("filters", "is not one group", "send [{rollout_percentage}]")
    if value[0].get("properties"):
        raise wrong("filters.0.properties", "who is in a holdout is drawn, not chosen", "leave it out")
    return value[0].get("rollout_percentage")


SAVED = Shape(
    shown("id", "its number; our id and the key name it too", native="number"),
    ours("name", "its name", required=True, example="Resolved"),
    kept("description", "what it is", str, example="Tickets that were closed"),
    Field(
        name="query",
        says="a metric, as in `metrics`",
        native="eventName",
        required=True,
        into=_nothing,
        show=lambda m: m["query"],
    ),
    kept("tags", "words to find it by", list[str], example=["support"], default=[]),
    shown("created_by", "nobody is on record", show=lambda m: None),
    shown("created_at", "when it was created", native="createdAt"),
    shown("updated_at", "when it last changed", native="updatedAt"),
)
