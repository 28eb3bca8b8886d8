"""How an experiment of ours is told to PostHog's clients, and how their lists ask for it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from control_plane.api import resources
from control_plane.api.doors import posthog_metrics as typed
from control_plane.api.doors.mapping import Answered, Call, Json, one_of, take, whole_number, wrong
from control_plane.api.doors.posthog_fields import EXPERIMENT, HOLDOUT, SAVED, VARIANT, payload, slug
from control_plane.api.doors.posthog_writing import NAME, ORDERS, kept_of
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Status
from control_plane.domain.series import fingerprint
from control_plane.services import asked, foreign, holdouts, metrics
from control_plane.services.experiments import View
from control_plane.services.work import Work
from control_plane.store.searches import Keeps, Wanted
from shared.errors import NotFound
from shared.ids import show_id

HIDDEN = Keeps(door=NAME, name="deleted", value=True)
"""How an experiment that this door hides keeps that."""
_FROZEN = ("stopped", "held")
ACTIVE = ("running", *_FROZEN, "completed")
"""Our statuses whose files are in place (of a pause: `held`): the flag is active."""
_STATUSES = {
    "draft": ("draft",),
    "running": ("running", *_FROZEN),
    "paused": ("reverted",),
    "exposure_frozen": _FROZEN,
    "stopped": ("completed",),
    "complete": ("completed",),
    "all": (),
}
_ORDERS = {
    "created_at": "created",
    "updated_at": "updated",
    "name": "name",
    "start_date": "started",
    "end_date": "ended",
    "duration": "duration",
    "status": "status",
}


def here(experiment: Experiment) -> Experiment:
    """The experiment. Raises NotFound for one that was deleted through this door."""
    if kept_of(experiment).get("deleted"):
        raise NotFound(f"there is no experiment {experiment.number}", reason="EXPERIMENT_NOT_FOUND")
    return experiment


def state_of(work: Work, experiment: Experiment) -> str:
    """The status as this door has it, or `archived`."""
    return "archived" if experiment.archived else _status(work, experiment)


def _status(work: Work, experiment: Experiment) -> str:
    status = experiment.status
    if status is Status.PAUSED:
        return "paused" if work.store.searches.reverted(experiment.id) else "exposure_frozen"
    return {Status.STOPPED: "exposure_frozen", Status.COMPLETED: "stopped"}.get(status, status.value)


def told(work: Work, view: View) -> Json:
    """The experiment as this door answers it."""
    e = view.experiment
    native, kept = resources.experiment(work, view), kept_of(e)
    native["told"] = _told(work, view, native, kept)
    answer = EXPERIMENT.show(native, kept)
    answer["feature_flag_key"] = kept.get("feature_flag_key", e.key)
    by_id = {show_id(item.id): item.kept.get(NAME, {}) for item in e.variants}
    variants = [{**VARIANT.show(item, {}), **by_id[item["id"]]} for item in native["variants"]]
    weights = e.phase.weights if e.phase else {}
    for shown, item in zip(variants, e.variants, strict=True):
        shown["split_percent"] = shown["rollout_percentage"] = weights.get(item.id, item.weight)
    keys = {item.key: shown["key"] for item, shown in zip(e.variants, variants, strict=True)}
    excluded = [keys[key] for key in e.design.analysis.excluded_variant_ids if key in keys]
    answer["parameters"] |= {"feature_flag_variants": variants, "excluded_variants": excluded}
    answer["feature_flag"] = _flag(e, native, answer, variants)
    return answer


def _told(work: Work, view: View, native: Json, kept: Json) -> Json:
    """What takes more than one field of ours to say."""
    e = view.experiment
    lists = typed.told(native, kept)
    if e.phase is not None:
        lists = {
            name: [_fingerprinted(work, e, native, item) for item in listed] for name, listed in lists.items()
        }
    saved = _saved(work, native, e)
    alpha = round(1 - e.alpha, 10)
    said = dict(kept.get("stats_config") or {})
    named = said.get("baseline_variant_key")
    if named is not None and e.control is not None and slug(named) != e.control.key:
        said["baseline_variant_key"] = e.control.key  # our own API has chosen another since
    method = said.get("method") or "bayesian"
    level = {"ci_level": alpha} if method == "bayesian" else {"alpha": e.alpha}
    held = work.store.holdouts.find(work.project_id, e.design.holdout_id) if e.design.holdout_id else None
    criteria = {"filterTestAccounts": True, **(kept.get("exposure_criteria") or {})}
    plan = e.design.schedule
    ahead = {name: at for name, at in (("start", plan.start), ("end", plan.end)) if at and at > work.now}
    return {
        **lists,
        "status": _status(work, e),
        "start_date": native["startedAt"] or (plan.start_at if "start" in ahead else None),
        "end_date": native["completedAt"] or (plan.end_at if "end" in ahead else None),
        **{
            order: typed.ordered(None, lists[name], kept.get(order) or [], "")
            for name, order in ORDERS.items()
        },
        "saved_metrics": saved,
        "saved_metrics_ids": [{"id": item["saved_metric"], "metadata": item["metadata"]} for item in saved],
        "exposure_criteria": {
            **criteria,
            "multiple_variant_handling": e.design.exposure_criteria.multiple_variants,
        },
        "stats_config": {**said, "method": method, method: {**(said.get(method) or {}), **level}},
        "holdout_id": held.number if held else None,
        "holdout": holdout(work, holdouts.View(holdout=held, experiments=())) if held else None,
        "deleted": bool(kept.get("deleted")),
        "feature_flag": None,
    }


def _fingerprinted(work: Work, e: Experiment, native: Json, item: Json) -> Json:
    name = typed.named(native, item["uuid"])
    metric, _ = asked.metric(work, e, named=name or "", event_name="")
    return {**item, "fingerprint": fingerprint(e, metric)}


def _saved(work: Work, native: Json, e: Experiment) -> list[Json]:
    own = native["metrics"]
    listed = [("primary", own["primary"])] if own["primary"] else []
    listed += [("secondary", item) for item in (*own["secondary"], *own["guardrail"])]
    found = []
    for kind, metric in listed:
        item = work.store.metrics.find(work.project_id, metric["id"]) if metric["id"] else None
        if item is not None:
            shown = saved_metric(work, metrics.View(metric=item, experiments=()))
            found.append(
                {
                    "id": item.number,
                    "experiment": e.number,
                    "saved_metric": item.number,
                    "metadata": {"type": kind},
                    "query": shown["query"],
                    "name": item.name,
                }
            )
    return found


def _flag(e: Experiment, native: Json, answer: Json, variants: list[Json]) -> Json:
    """The experiment's key with its variants as the values."""
    winner = native["winnerVariantId"]
    shares = {
        item["id"]: (100 if item["id"] == winner else 0) if winner else shown["split_percent"]
        for item, shown in zip(native["variants"], variants, strict=True)
    }
    values = [
        {"key": shown["key"], "name": shown["name"], "rollout_percentage": shares[item["id"]]}
        for item, shown in zip(native["variants"], variants, strict=True)
    ]
    payloads = {
        shown["key"]: payload(item)
        for item, shown in zip(native["variants"], variants, strict=True)
        if payload(item) is not None
    }
    return {
        "id": e.number,
        "key": answer["feature_flag_key"],
        "name": e.name,
        "active": answer["status"] not in ("draft", "paused"),
        "deleted": False,
        "filters": {
            "groups": [{"properties": [], "rollout_percentage": native["trafficAllocation"]}],
            "multivariate": {"variants": values},
            "payloads": payloads,
        },
        "tags": [],
    }


def answered(work: Work, view: View) -> Answered:
    """The experiment as the body of an answer."""
    return Answered(about=show_id(view.experiment.id), body=told(work, view))


# -- lists


def paged(call: Call, query: dict[str, str], total: int, limit: int, offset: int, results: list[Any]) -> Json:
    """A page with the addresses of its neighbours."""

    def at(place: int | None) -> str | None:
        if place is None:
            return None
        return f"{call.at}?{urlencode({**query, 'limit': limit, 'offset': place})}"

    after = offset + limit if offset + limit < total else None
    before = max(0, offset - limit) if offset > 0 else None
    return {"count": total, "next": at(after), "previous": at(before), "results": results}


def window(query: dict[str, str], *, default: int) -> tuple[int, int]:
    """(limit, offset): at most 100 at once. Raises Invalid for what is no number, or below 0."""
    limit, offset = whole_number(query, "limit", default), whole_number(query, "offset", 0)
    for name, value in (("limit", limit), ("offset", offset)):
        if value < 0:
            raise wrong(name, "is below 0", "send 0 or more")
    return min(100, limit) or default, offset


def ordered_by(query: dict[str, str], orders: Mapping[str, str]) -> tuple[str, bool]:
    """How we call the order that is asked for, and whether it descends. Raises Invalid for any other."""
    asked = query.get("order", "-created_at")
    if asked.removeprefix("-") not in orders:
        raise wrong("order", f"{asked!r} is none of {', '.join(orders)}, with or without -", "choose one")
    return orders[asked.removeprefix("-")], asked.startswith("-")


def flag(query: dict[str, str], name: str) -> bool | None:
    """A yes or no of the query, None where it is not there."""
    value = one_of(query, name, ("true", "false"))
    return None if value is None else value == "true"


LIST = (
    "limit", "offset", "status", "archived", "search", "order", "created_by", "feature_flag_id", "event",
)  # fmt: skip


NOT_ASKED = {
    "created_by_id": "users have no numbers here; created_by takes who made it as it is shown",
    "prompt_name": "there are no prompts here",
}
"""What lists are asked for there and cannot be here, and why."""


def refuse_unasked(call: Call) -> None:
    """Raises Invalid with the reason for what no list can be asked for."""
    for name, why in NOT_ASKED.items():
        if name in call.query:
            raise wrong(name, why, "leave it out")


def list_page(work: Work, call: Call) -> Answered:
    """A page of experiments: not archived ones unless they are asked for, the newest first."""
    refuse_unasked(call)
    query = take(call, LIST)
    limit, offset = window(query, default=100)
    status = one_of(query, "status", tuple(_STATUSES)) or "all"
    order, descending = ordered_by(query, _ORDERS)
    wanted = Wanted(
        project_id=work.project_id,
        statuses=_STATUSES[status],
        archived=flag(query, "archived") or False,
        search=query.get("search", ""),
        creator=query.get("created_by", ""),
        number=whole_number(query, "feature_flag_id", 0) if "feature_flag_id" in query else None,
        event=query.get("event", ""),
        hidden=HIDDEN,
    )
    found = foreign.search(
        work,
        wanted,
        order=order,
        descending=descending,
        offset=offset,
        limit=limit,
    )
    listed = [told(work, view) for view in found.views]
    return Answered(about="", body=paged(call, query, found.total, limit, offset, listed))


# -- what experiments name


def holdout(work: Work, view: holdouts.View) -> Json:
    """A holdout as this door answers it."""
    native = {**resources.holdout(work, view), "number": view.holdout.number}
    return HOLDOUT.show(native, {})


def saved_metric(work: Work, view: metrics.View) -> Json:
    """A saved metric as this door answers it."""
    item = view.metric
    found = work.store.kept.get(work.project_id, NAME, "metric", item.id)
    kept = {} if found is None else found.fields
    native = {**resources.saved_metric(work, view), "number": item.number}
    sent = kept.get("query")
    same = sent is not None and typed.native(sent, "query").get("eventName") == native["eventName"]
    native["query"] = sent if same else typed.made_of(native, show_id(item.id))
    return SAVED.show(native, kept)
