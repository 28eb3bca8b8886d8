"""What the resources of Ours Privacy are here, field by field."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field as Kind

from control_plane.api.doors.files import (
    audience_of,
    audience_rule,
    contents,
    other_rules,
    own_labels,
    participants,
    share,
    whole_file,
)
from control_plane.api.doors.mapping import Field, Json, Shape, kept, ours, shown, wrong
from control_plane.domain import requests

NAME = "OursPrivacy"
STATUSES = ("draft", "running", "paused", "completed")
TYPES = ("ab", "multivariate", "personalization")
AS_TYPE = "asType"
"""Under which type this door keeps and tells an experiment that is of another one here."""


def named(text: str) -> str:
    """Our id, of one with this door's prefix."""
    return re.sub(r"^(exp|var|settings)_(?=[0-9a-f]{32}$)", "", text)


def searched(text: str) -> str:
    """What to search for: of the beginning of an id as this door has them without the prefix."""
    return re.sub(r"^exp_(?=[0-9a-f]*$)", "", text.lower())


def own(prefix: str, value: str | None) -> str | None:
    """An id of ours with a prefix of this door's."""
    return None if value is None else f"{prefix}_{value.replace('-', '')}"


def _measured(value: Any) -> Json:
    if value is None:
        return {"metrics": None}
    if not isinstance(value, dict):
        raise wrong("metrics", "is not an object", "send {primary, secondary}")
    said: Json = {name: item for name, item in value.items() if item is not None}
    return {"metrics": {name: _bare(item) for name, item in said.items()}}


def _bare(item: Any) -> Any:
    if isinstance(item, list):
        return [_bare(one) for one in item]
    return (
        {k: v for k, v in item.items() if v is not None and k != "role"} if isinstance(item, dict) else item
    )


def _metrics(experiment: Json) -> Json:
    found = experiment["metrics"]
    told: Json = {
        "primary": found["primary"] and _metric(found["primary"]),
        "secondary": [_metric(item) for item in found["secondary"]],
    }
    return (
        {**told, "guardrail": [_metric(item) for item in found["guardrail"]]} if found["guardrail"] else told
    )


def _metric(item: Json) -> Json:
    return {"eventName": None, "funnelId": None, **_bare(item)}


def _rules(value: Any) -> Json:
    return {"targetingRules": {"labels": value or []}}


class _Query(requests.Request):
    key: str
    operator: Literal["contains", "equals", "exists", "not_equals", "not_exists", "regex"]
    value: str | None = None


TARGETING = Shape(
    kept(
        "urlPatterns",
        "which pages; up to 200 patterns of 2,000 characters",
        Annotated[list[Annotated[str, Kind(max_length=2000)]], Kind(max_length=200)],
        example=["/pricing*"],
        default=[],
    ),
    ours(
        "audienceId",
        "only participants whose label `audience` has this value; where nobody is named they are who takes part",
        native="targetingRules.labels",
        into=audience_rule,
        show=audience_of,
        example="aud-7",
    ),
    kept("visitorProperties", "which visitors", Any, example={"plan": "pro"}),
    kept("visitorStatus", "new or returning visitors", str, example="new"),
    kept(
        "queryParams",
        "conditions on the page's query, as {key, operator, value}",
        list[_Query],
        example=[{"key": "utm_source", "operator": "equals", "value": "mail"}],
        default=[],
    ),
    ours(
        "labels",
        "an addition: conditions on participants' labels, with the same operators",
        native="targetingRules.labels",
        kind=list[Any],
        into=_rules,
        show=other_rules,
        example=[{"key": "tier", "operator": "equals", "value": "gold"}],
    ),
)

EXPERIMENT = Shape(
    shown(
        "id",
        "`exp_` and our id in 32 digits; our id and the key name it too",
        show=lambda e: own("exp", e["id"]),
    ),
    ours("key", "made of the name unless it is sent", example="soul-tone"),
    ours("name", "its name", required=True, example="Soul tone"),
    ours("description", "the hypothesis", example="A friendly tone resolves more"),
    ours(
        "type",
        f"one of {', '.join(TYPES)}; ab unless it is sent; a multivariate one without `factors` has several variants,"
        " and is ab in our own API",
        only="create",
        example="ab",
    ),
    shown(
        "status",
        f"one of {', '.join(STATUSES)}; what our own API calls stopped is told as paused",
        show=lambda e: "paused" if e["status"] == "stopped" else e["status"],
    ),
    shown("createdAt", "when it was created"),
    shown("updatedAt", "when it last changed"),
    shown("startedAt", "when it last began to run, by a start or a resume", native="runningSince"),
    shown("stoppedAt", "when it was completed", native="completedAt"),
    ours(
        "trafficAllocation",
        "per cent of the eligible that take part; once started, a phase is opened, while it is paused with its resume",
        into=lambda value: {"trafficAllocation": 100 if value is None else value},
        example=80,
    ),
    kept("includeQueryString", "whether redirects keep the page's query", bool, example=True),
    shown(
        "winnerVariantId",
        "the winner named when it was stopped",
        show=lambda e: own("var", e["winnerVariantId"]),
    ),
    Field(
        name="targetingRules",
        says="who is eligible; replaced as a whole. Once it is started they say who may come in from now on",
        inside=TARGETING,
    ),
    ours(
        "metrics",
        "{primary, secondary}, each {eventName, funnelId}; replaced as a whole; whatever our own API says of a metric"
        " may be said besides",
        into=_measured,
        show=_metrics,
        example={
            "primary": {"eventName": "resolved"},
            "secondary": [{"eventName": "rated", "funnelId": "f1"}],
        },
    ),
    Field(
        name="experimentSettingsId",
        says="has to be the id of the one settings record",
        native="",
        required=True,
        only="create",
        unshown=True,
        into=lambda value: {},
    ),
    Field(
        name="controlWeight",
        says="per cent of the control, 1 to 100, until there are other variants: then it has what they leave",
        native="variants.0.weight",
        only="create",
        unshown=True,
        into=lambda value: {},
    ),
    whole_file(),
    *participants(),
    own_labels(),
    ours(
        "factors",
        "an addition: what a multivariate one combines, as in our own API, instead of variants one by one",
        only="create",
    ),
)

VARIANT = Shape(
    shown("id", "`var_` and our id in 32 digits", show=lambda v: own("var", v["id"])),
    Field(
        name="experimentId",
        says="whose it is",
        native="experimentId",
        required=True,
        only="create",
        into=lambda value: {},
        show=lambda v: own("exp", v["experimentId"]),
    ),
    ours("name", "its name", required=True, example="Friendly"),
    ours(
        "isControl",
        "whether it is what the others are compared with: the one made with the experiment",
    ),
    share("weight", "whole per cent; the control has what the others leave, at least 1", example=40),
    kept(
        "variantType",
        "how it changes the page: dom_modifications or redirect",
        Literal["dom_modifications", "redirect"],
        example="redirect",
        default="dom_modifications",
    ),
    kept("redirectUrl", "where it leads", str, example="/pricing-v2"),
    kept(
        "domModifications",
        "what it changes on the page, in order",
        list[dict[str, Any]],
        example=[{"action": "setText", "selector": "h1", "value": "Hello"}],
        default=[],
    ),
    *contents(),
    ours("targetingRules", "an addition: of a personalization, whom it is for, as `{labels}` in our own API"),
    ours("levels", "an addition: of a multivariate one, the level of each factor", native="levels"),
)

SETTINGS = Shape(
    shown("id", "`settings_` and the project's id", show=lambda s: own("settings", s["projectId"])),
    shown("accountId", "the project's id", native="projectId"),
    kept("name", "its name", str, example="Main", default="Experiment Settings"),
    shown("pixel", "the pixel's token: there is none", show=lambda s: ""),
    kept("cookieName", "the cookie that keeps assignments", str, example="_tone", default="_cord_exp"),
    kept(
        "whitelistDomains",
        "domains that may ask for experiments",
        list[str],
        example=["example.com"],
        default=[],
    ),
    shown("createdAt", "when something was first sent of it"),
    shown("createdByUserId", "nobody: users have no ids here", show=lambda s: None),
    shown("updatedAt", "when something was last sent of it"),
    shown("updatedByUserId", "who sent it"),
    ours(
        "targetAllowList",
        "an addition: the files that experiments may be on, as globs",
        example=["config/*.md"],
    ),
)


def _publishing(name: str) -> Shape:
    def into(value: Any) -> Json:
        if value is not None and not isinstance(value, bool):
            raise wrong(name, "is neither true nor false", "send one, or leave it out")
        return {} if value is None else {"live": value}

    says = (
        "true unless it is sent; with false the verb is only noted (`pending_publish`), and done before the next one"
        " that is published"
    )
    return Shape(Field(name=name, says=says, native=name, unshown=True, into=into, example=True))


STOP = Shape(
    ours(
        "winnerVariantId",
        "which variant won; files stay as they are",
        into=lambda value: {"winnerVariantId": named(value) if isinstance(value, str) else value},
        unshown=True,
    )
)

START, PAUSE, RESUME = (_publishing(f"publishAfter{verb}") for verb in ("Start", "Pause", "Resume"))
