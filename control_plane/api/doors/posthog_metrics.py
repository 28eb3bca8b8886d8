"""Typed metrics of PostHog as ours and back: which event counts, how, and under which uuid.

A metric keeps its uuid as the key of ours (`m-UUID`), so each is found again by the other whatever happens in between.
Metrics that were made elsewhere are told as if they had been made here, under a uuid that follows from them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.doors.mapping import Json, wrong
from control_plane.services.work import Work
from shared.ids import parse_id, show_id

PREFIX = "m-"
_SECONDS = {"second": "S", "minute": "M", "hour": "H"}
_TYPES = ("mean", "funnel", "ratio")
_SUMS = ("sum", "avg", "min", "max", "median")


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
    kind = item.get("metric_type")
    if item.get("kind", "ExperimentMetric") != "ExperimentMetric":
        raise wrong(f"{at}.kind", "legacy metrics cannot be measured", "send an ExperimentMetric")
    if kind not in _TYPES:
        raise wrong(
            f"{at}.metric_type", f"{kind!r} cannot be measured here", f"choose one of {', '.join(_TYPES)}"
        )
    found: Json = {"key": PREFIX + item["uuid"], "goal": item.get("goal") or "increase"}
    if item.get("name"):
        found["name"] = item["name"]
    if kind == "ratio":
        found["eventName"] = _event(item.get("numerator"), f"{at}.numerator")
        found["denominatorEventName"] = _event(item.get("denominator"), f"{at}.denominator")
        found["kind"] = "ratio"
    elif kind == "mean":
        source = item.get("source")
        found["eventName"] = _event(source, f"{at}.source")
        math = source.get("math") if isinstance(source, dict) else None
        found["kind"] = "mean" if math in _SUMS else "count"
    else:
        series = item.get("series")
        if not isinstance(series, list) or not series:
            raise wrong(f"{at}.series", "has no step", "send its steps; the last one is what counts")
        found["eventName"] = [_event(step, f"{at}.series.{n}") for n, step in enumerate(series)][-1]
        found |= {"kind": "proportion", "of": "subjects"}
    window = _window(item, at)
    return {**found, "window": window} if window else found


def _event(node: Any, at: str) -> str:
    if not isinstance(node, dict) or node.get("kind", "EventsNode") != "EventsNode":
        raise wrong(at, "is no event; actions and tables are not known here", "send an EventsNode")
    if node.get("properties"):
        raise wrong(f"{at}.properties", "events are counted by their name only", "leave it out")
    if not isinstance(node.get("event"), str) or not node["event"]:
        raise wrong(f"{at}.event", "names no event", "name one")
    return str(node["event"])


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
