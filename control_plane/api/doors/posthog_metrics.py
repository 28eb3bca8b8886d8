"""Typed metrics of PostHog as ours and back: which event counts, how, and under which uuid.

A metric keeps its uuid as the key of ours (`m-UUID`), so each is found again by the other whatever happens in between.
Metrics that were made elsewhere are told as if they had been made here, under a uuid that follows from them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from control_plane.api.doors.mapping import Field, Json, Shape, kept, ours, refused, shown, wrong
from control_plane.services.work import Work
from shared.ids import parse_id, show_id

PREFIX = "m-"
_SECONDS = {"second": "S", "minute": "M", "hour": "H"}
_EVENTS = {"mean": ("source",), "funnel": ("series",), "ratio": ("numerator", "denominator")}
"""Which fields of a metric name its events, by its type."""


def _refusing(name: str, allowed: Sequence[str], why: Mapping[str, str]) -> Callable[[Any], Json]:
    """A field that may be absent or one of these; others are refused, some with a reason of their own."""

    def into(value: Any) -> Json:
        if value is not None and value not in allowed:
            reason = why.get(value) if isinstance(value, str) else None
            raise wrong(name, reason or f"{value!r} is not known here", f"choose {' or '.join(allowed)}")
        return {}

    return into


def _event(value: Any) -> Json:
    if not isinstance(value, str) or not value:
        raise wrong("event", "names no event", "name one")
    return {}


def _steps(value: Any) -> Json:
    if not isinstance(value, list) or not value:
        raise wrong("series", "has no step", "send its steps; the last one is what counts")
    for place, step in enumerate(value):
        if not isinstance(step, dict):
            raise wrong(f"series.{place}", "is not an object", "send an event")
        EVENT.read({"event": None, **step}, verb="update", at=f"series.{place}.")
    return {}


def _any(value: Any) -> Json:
    return {}


_ADDED = "of each participant the last, the largest, or the like of its values cannot be measured: they are added up"
_PEOPLE = "how many people do it is a funnel's question"
EVENT = Shape(
    ours(
        "kind",
        "EventsNode; actions are put together in PostHog, and there are no tables here: both are refused",
        native="",
        into=_refusing(
            "kind",
            ("EventsNode",),
            {
                "ActionsNode": "actions are put together in PostHog and not known here; name the event that counts",
                "ExperimentDataWarehouseNode": "there are no tables here; report what counts as an event",
            },
        ),
    ),
    ours("event", "the event's name", native="eventName", into=_event),
    kept("name", "how it is shown", str, example="Resolved"),
    kept("custom_name", "how it is shown", str, example="Done"),
    ours(
        "math",
        "total counts, `sum` adds up values; anything else is refused",
        native="kind",
        into=_refusing(
            "math",
            ("total", "sum"),
            {
                **dict.fromkeys(("avg", "min", "max", "median", "p75", "p90", "p95", "p99"), _ADDED),
                **dict.fromkeys(("dau", "unique_group", "unique_session"), _PEOPLE),
                "hogql": "there are no queries here",
            },
        ),
    ),
    kept("math_property", "which property is added up: here an event's `value`", str, example="amount"),
    kept("math_property_type", "whose property it is", str, example="event_properties"),
    refused(
        "properties",
        "events are counted by their names, not by their properties; report those that count under a name of their own",
        example=[{"key": "plan", "value": "pro"}],
    ),
    refused(
        "fixedProperties",
        "events are counted by their names, not by their properties",
        example=[{"key": "a"}],
    ),
)

METRIC = Shape(
    ours(
        "kind",
        "ExperimentMetric; legacy ones are refused",
        native="",
        into=_refusing(
            "kind",
            ("ExperimentMetric",),
            dict.fromkeys(
                ("ExperimentTrendsQuery", "ExperimentFunnelsQuery"), "legacy metrics cannot be measured"
            ),
        ),
    ),
    ours("uuid", "its own; made unless it is sent", native="key", into=_any),
    ours(
        "metric_type",
        "mean, funnel or ratio; of a funnel the last step counts. Who comes back (retention) is refused",
        native="kind",
        into=_refusing(
            "metric_type",
            tuple(_EVENTS),
            {"retention": "who comes back is not measured: a conversion counts once, whenever it is"},
        ),
    ),
    ours("name", "its name", into=_any),
    ours("goal", "increase or decrease", into=_refusing("goal", ("increase", "decrease"), {})),
    Field(name="source", says="of a mean: its event", inside=EVENT),
    Field(name="series", says="of a funnel: its steps", native="eventName", each=EVENT, into=_steps),
    Field(name="numerator", says="of a ratio: what is above", inside=EVENT),
    Field(name="denominator", says="of a ratio: what is below", native="denominatorEventName", inside=EVENT),
    ours(
        "conversion_window",
        "how long after exposure conversions count",
        native="window",
        into=_any,
    ),
    ours(
        "conversion_window_unit",
        "second, minute, hour, day (the default) or week",
        native="window",
        kind=str,
        into=_any,
    ),
    kept("funnel_order_type", "in which order steps are taken: the last one counts", str, example="ordered"),
    kept("isSharedMetric", "whether it is a saved one", bool, example=False),
    kept("sharedMetricId", "of which saved one it is a copy", int, example=3),
    kept("version", "of its shape", int, example=1),
    refused("breakdownFilter", "results are told by variant, not by a property", example={"breakdowns": []}),
    refused(
        "lower_bound_percentile",
        "values are cut by `analysis.winsorizeAt` of the experiment in our own API, for all its metrics",
        example=0.05,
    ),
    refused(
        "upper_bound_percentile",
        "values are cut by `analysis.winsorizeAt` of the experiment in our own API, for all its metrics",
        example=0.95,
    ),
    refused("ignore_zeros", "who has no conversion counts with 0", example=True),
    shown("fingerprint", "of a launched one's; may be sent back"),
)


def with_uuids(work: Work, listed: Any, field: str) -> list[Json]:
    """The metrics, each with a uuid. Raises Invalid where one cannot be measured here."""
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise wrong(field, "is not a list of metrics", "send a list of objects")
    found = [{**item, "uuid": item.get("uuid") or show_id(work.new_id())} for item in listed]
    for index, item in enumerate(found):
        if not isinstance(item["uuid"], str) or parse_id(item["uuid"]) is None:
            raise wrong(f"{field}.{index}.uuid", "is not a UUID", "send one, or leave it out")
        item["uuid"] = str(item["uuid"]).lower()
        item.pop("fingerprint", None)
    return found


def native(item: Json, at: str) -> Json:
    """Our metric of one of theirs. Raises Invalid naming what cannot be measured here."""
    METRIC.read(
        {name: value for name, value in item.items() if name != "fingerprint"}, verb="update", at=f"{at}."
    )
    kind = item.get("metric_type")
    for name in _EVENTS.get(str(kind), ("metric_type",)):
        if not item.get(name):
            raise wrong(f"{at}.{name}", "is required", f"send it; types are {', '.join(_EVENTS)}")
        if isinstance(item[name], dict) and "event" not in item[name]:
            raise wrong(f"{at}.{name}.event", "is required", "name an event")
    found: Json = {"key": PREFIX + item["uuid"], "goal": item.get("goal") or "increase"}
    if item.get("name"):
        found["name"] = item["name"]
    if kind == "ratio":
        found |= {"kind": "ratio", "eventName": item["numerator"]["event"]}
        found["denominatorEventName"] = item["denominator"]["event"]
    elif kind == "mean":
        summed = item["source"].get("math") == "sum"
        found |= {"kind": "mean" if summed else "count", "eventName": item["source"]["event"]}
    else:
        found |= {"kind": "proportion", "of": "subjects", "eventName": item["series"][-1]["event"]}
    window = _window(item, at)
    return {**found, "window": window} if window else found


def _window(item: Json, at: str) -> str | None:
    size, unit = item.get("conversion_window"), item.get("conversion_window_unit") or "day"
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise wrong(f"{at}.conversion_window", "is no whole number from 1 on", "send one, or leave it out")
    if unit in _SECONDS:
        return f"PT{size}{_SECONDS[unit]}"
    days = {"day": 1, "week": 7}.get(unit)
    if days is None:
        raise wrong(f"{at}.conversion_window_unit", f"{unit!r} has no fixed length", "send second … week")
    return f"P{size * days}D"


def told(experiment: Json, kept: Mapping[str, Any]) -> dict[str, list[Json]]:
    """Metrics as this door tells them, by the list they are in; saved ones are told elsewhere."""
    sent = {item["uuid"]: (name, item) for name in LISTS for item in kept.get(name) or []}
    found: dict[str, list[Json]] = {name: [] for name in LISTS}
    own = experiment["metrics"]
    for role, metrics in (
        ("primary", [own["primary"]] if own["primary"] else []),
        ("secondary", own["secondary"]),
        ("guardrail", own["guardrail"]),
    ):
        for place, metric in enumerate(metrics):
            if metric["id"] is not None:
                continue
            uuid = uuid_of(experiment, metric, f"{role} {place}")
            name, item = sent.get(uuid, ("metrics" if role == "primary" else "metrics_secondary", None))
            found[name].append(item or made_of(metric, uuid))
    order = [item["uuid"] for name in LISTS for item in kept.get(name) or []]
    for name in LISTS:
        found[name].sort(key=lambda item: order.index(item["uuid"]) if item["uuid"] in order else len(order))
    return found


LISTS = ("metrics", "metrics_secondary")


def uuid_of(experiment: Json, metric: Json, place: str) -> str:
    """The uuid of a metric of ours."""
    key = metric["key"] or ""
    if key.startswith(PREFIX) and parse_id(key[len(PREFIX) :]) is not None:
        return str(key[len(PREFIX) :])
    text = f"{experiment['id']} {place} {key} {metric['eventName']}"
    return show_id(hashlib.sha256(text.encode()).digest()[:16])


def made_of(metric: Json, uuid: str) -> Json:
    """A metric that was made elsewhere, as if it had been made here."""
    node = {"kind": "EventsNode", "event": metric["eventName"]}
    found: Json = {"kind": "ExperimentMetric", "uuid": uuid, "name": metric["name"], "goal": metric["goal"]}
    if metric["kind"] == "ratio":
        below = {"kind": "EventsNode", "event": metric["denominatorEventName"]}
        return {**found, "metric_type": "ratio", "numerator": node, "denominator": below}
    if metric["kind"] == "proportion":
        return {**found, "metric_type": "funnel", "series": [node]}
    math = {"math": "sum"} if metric["kind"] == "mean" else {}
    return {**found, "metric_type": "mean", "source": {**node, **math}}


def named(experiment: Json, uuid: str) -> str | None:
    """How our own API names the metric that has this uuid here; None where there is none."""
    own = experiment["metrics"]
    for role, metrics in (
        ("primary", [own["primary"]] if own["primary"] else []),
        ("secondary", own["secondary"]),
        ("guardrail", own["guardrail"]),
    ):
        for place, metric in enumerate(metrics):
            if uuid.lower() in (metric["id"], uuid_of(experiment, metric, f"{role} {place}")):
                return str(metric["id"] or metric["key"] or metric["eventName"])
    return None


def ordered(uuids: Any, metrics: Sequence[Json], before: Sequence[str], field: str) -> list[str]:
    """The order in which metrics are shown: as sent, if it names each, else as before with the new ones last."""
    there = [item["uuid"] for item in metrics]
    if uuids is None:
        return [uuid for uuid in before if uuid in there] + [uuid for uuid in there if uuid not in before]
    missing = sorted(set(there) - set(uuids if isinstance(uuids, list) else ()))
    if not isinstance(uuids, list) or missing:
        raise wrong(
            field, f"does not name {', '.join(missing) or 'anything'}", "name the uuid of every metric"
        )
    return [uuid for uuid in uuids if uuid in there]
