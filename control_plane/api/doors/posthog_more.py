"""What PostHog's clients ask besides experiments themselves: days, flags, pace, holdouts, saved metrics."""

from typing import Any

from control_plane.api import resources
from control_plane.api.doors import posthog_metrics as typed
from control_plane.api.doors.mapping import Answered, Call, Json, one_of, take, wrong
from control_plane.api.doors.posthog_fields import HOLDOUT, SAVED
from control_plane.api.doors.posthog_reading import (
    HIDDEN,
    flag,
    here,
    holdout,
    paged,
    saved_metric,
    told,
    window,
)
from control_plane.api.doors.posthog_writing import NAME
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.metrics import CreateMetric, UpdateMetric
from control_plane.domain.series import GetRecalculation, RecalculateTimeSeries
from control_plane.services import arrivals, experiments, foreign, holdouts, metrics, recalculation, survey
from control_plane.services.work import Work
from control_plane.store.searches import Wanted
from shared.errors import NotFound
from shared.ids import show_id
from shared.moment import SECOND, to_rfc3339

_DAY = 86_400 * SECOND

# -- days


def _found(work: Work, call: Call, uuid: Any) -> tuple[Experiment, str]:
    """The experiment, and how our own API names its metric. Raises Invalid where it has none of this uuid."""
    view = experiments.get(work, requests.ById(id=call.id))
    experiment = here(view.experiment)
    if isinstance(uuid, dict):
        uuid = uuid.get("uuid")
    if not isinstance(uuid, str) or not uuid:
        raise wrong("metric", "is required", "send the metric, or its uuid")
    name = typed.named(resources.experiment(work, view), uuid)
    if name is None:
        raise wrong("metric", f"the experiment has no metric {uuid}", "name one of its metrics")
    return experiment, name


def recalculate(work: Work, call: Call) -> Answered:
    """The days of a metric are computed anew; what is under way is answered as it is."""
    strange = sorted(set(call.body) - {"metric", "fingerprint"})
    if strange:
        raise wrong(strange[0], "is not a known field", "send metric and fingerprint")
    experiment, name = _found(work, call, call.body.get("metric"))
    fingerprint = call.body.get("fingerprint")
    if not fingerprint:
        raise wrong("fingerprint", "is required", "send the metric's fingerprint, as the experiment tells it")
    asked = {"id": show_id(experiment.id), "metric": name, "fingerprint": fingerprint}
    accepted = recalculation.begin(work, requests.parse(RecalculateTimeSeries, asked))
    native = resources.recalculation(work, accepted)
    metric = call.body["metric"]
    body = {
        "id": native["id"],
        "experiment_id": experiment.number,
        "metric_uuid": metric["uuid"] if isinstance(metric, dict) else metric,
        "fingerprint": native["fingerprint"],
        "status": _progress(native["status"]),
        "created_at": native["createdAt"],
    }
    return Answered(about=show_id(experiment.id), body=body, status=201 if accepted.accepted else 200)


def _progress(status: str) -> str:
    """A job's state in the four words there are: one that got a part of the way has failed."""
    return "failed" if status == "partial" else status


def timeseries(work: Work, call: Call) -> Answered:
    """A slot for each day since the present phase began."""
    query = take(call, ("metric_uuid", "fingerprint"))
    for name in ("metric_uuid", "fingerprint"):
        if name not in query:
            raise wrong(name, "is required", "take it from the experiment's metric")
    experiment, metric = _found(work, call, query["metric_uuid"])
    at, known = show_id(experiment.id), True
    asked = {"id": at, "metric": metric, "fingerprint": query["fingerprint"]}
    parsed = requests.parse(GetRecalculation, asked)
    try:
        found = recalculation.results(work, parsed)
    except NotFound:  # of another definition: its days are not there, whatever there is of the present one
        found, known = recalculation.results(work, GetRecalculation(id=at, metric=metric)), False
    native = resources.recalculated(work, found)
    job = native["recalculation"] if known else None
    days = [day if known else {**day, "computedAt": None, "error": None} for day in native["days"]]
    errors = {day["date"]: day["error"] for day in days if day["error"]}
    status = native["status"] if known else "pending"
    slots = {day["date"]: _slot(day) if day["computedAt"] else None for day in days}
    ready = sum(1 for slot in slots.values() if slot is not None)
    body = {
        "experiment_id": experiment.number,
        "metric_uuid": query["metric_uuid"],
        "fingerprint": query["fingerprint"],
        "status": status,
        "timeseries": slots,
        "errors": errors or None,
        "computed_at": native["computedAt"] if known else None,
        "created_at": job["createdAt"] if job else None,
        "updated_at": (job["finishedAt"] or job["startedAt"] or job["createdAt"]) if job else None,
        "recalculation_status": _progress(job["status"]) if job else None,
        "recalculation_created_at": job["createdAt"] if job else None,
        "formatted_results": f"{ready} of {len(slots)} days computed, {status}",
    }
    return Answered(about="", body=body)


def _slot(day: Json) -> Json:
    """Of each variant what is counted up to the end of the day."""
    return {
        "variants": [
            {
                "key": arm["key"],
                "exposures": arm["impressions"],
                "conversions": arm["conversions"],
                "conversion_rate": arm["conversionRate"],
                "participants": arm["participants"],
            }
            for arm in day["variants"]
        ]
    }


# -- flags and pace

_FLAG_ORDERS = {"created_at": "created", "updated_at": "updated", "key": "key", "name": "name"}


def eligible_flags(work: Work, call: Call) -> Answered:
    """Keys that an experiment can stand on: two variants and more, the first of them `control`."""
    query = take(
        call,
        (
            "limit", "offset", "search", "active", "created_by", "order", "evaluation_runtime",
            "has_evaluation_tags",
        ),
    )  # fmt: skip
    limit, offset = window(query, default=20)
    order = query.get("order", "-created_at")
    if order.removeprefix("-") not in _FLAG_ORDERS:
        raise wrong(
            "order", f"{order!r} is none of {', '.join(_FLAG_ORDERS)}, with or without -", "choose one"
        )
    runtime = one_of(query, "evaluation_runtime", ("all", "server", "client"))
    active, tagged = flag(query, "active"), flag(query, "has_evaluation_tags")
    alive = ("running", "stopped", "completed")
    wanted = Wanted(
        project_id=work.project_id,
        archived=False,
        statuses=() if active is None else alive if active else ("draft", "paused"),
        search=query.get("search", ""),
        creator=query.get("created_by", ""),
        hidden=HIDDEN,
        flags=True,
    )
    if runtime == "client" or tagged:  # nothing here is evaluated in a browser, and nothing is tagged
        return Answered(about="", body={"results": [], "count": 0})
    found = foreign.search(
        work,
        wanted,
        order=_FLAG_ORDERS[order.removeprefix("-")],
        descending=order.startswith("-"),
        offset=offset,
        limit=limit,
    )
    flags = [told(work, view)["feature_flag"] for view in found.views]
    return Answered(about="", body={"results": flags, "count": found.total})


def needs_reports(work: Work, call: Call) -> Answered:
    """Whether nothing at all was reported in the last 7 days."""
    take(call, ())
    asked = {"limit": 1, "fromAt": to_rfc3339(max(0, work.now - 7 * _DAY))}
    found = arrivals.list_page(work, requests.parse(arrivals.ListEvents, asked))
    return Answered(about="", body={"result": not found.items})


def stats(work: Work, call: Call) -> Answered:
    """The pace of the project."""
    take(call, ())
    found = survey.get_velocity(work, requests.Nothing())
    body = {
        "launched_last_30d": found.launched.current,
        "launched_previous_30d": found.launched.previous,
        "percent_change": found.launched.percent_change,
        "active_experiments": found.running,
        "completed_last_30d": found.completed.current,
    }
    return Answered(about="", body=body)


# -- holdouts


def _every(work: Work, use_case: Any) -> list[Any]:
    """Every resource of a list that pages by a cursor."""
    found: list[Any] = []
    cursor = ""
    while True:
        page = use_case(work, requests.Page(limit=100, cursor=cursor))
        found += page.items
        cursor = page.next_cursor
        if not cursor:
            return found


def list_holdouts(work: Work, call: Call) -> Answered:
    """A page of holdouts."""
    query = take(call, ("limit", "offset"))
    limit, offset = window(query, default=100)
    every = _every(work, holdouts.list_page)
    page = [holdout(work, item) for item in every[offset : offset + limit]]
    return Answered(about="", body=paged(call, query, len(every), limit, offset, page))


def _held(work: Work, view: holdouts.View) -> Answered:
    return Answered(about=show_id(view.holdout.id), body=holdout(work, view))


def get_holdout(work: Work, call: Call) -> Answered:
    """One holdout."""
    take(call, ())
    return _held(work, holdouts.get(work, requests.ById(id=call.id)))


def add_holdout(work: Work, call: Call) -> Answered:
    """A holdout exists."""
    values = HOLDOUT.read(call.body, verb="create").values
    with HOLDOUT.told():
        return _held(work, holdouts.create(work, requests.parse(requests.CreateHoldout, values)))


def change_holdout(work: Work, call: Call) -> Answered:
    """The holdout is as asked."""
    values = HOLDOUT.read(call.body, verb="update").values
    with HOLDOUT.told():
        asked = {"id": call.id, **values}
        return _held(work, holdouts.update(work, requests.parse(requests.UpdateHoldout, asked)))


def drop_holdout(work: Work, call: Call) -> Answered:
    """The holdout is gone, and drafts name it no more."""
    view = holdouts.get(work, requests.ById(id=call.id))
    for key in view.experiments:
        experiment = experiments.find(work, key)
        if experiment.status.value == "draft":
            asked = {"id": show_id(experiment.id), "holdoutId": None}
            experiments.update(work, requests.parse(requests.UpdateExperiment, asked))
    holdouts.delete(work, requests.ById(id=call.id))
    return Answered(about=show_id(view.holdout.id), body=None)


# -- saved metrics


def list_saved_metrics(work: Work, call: Call) -> Answered:
    """A page of saved metrics."""
    query = take(call, ("limit", "offset"))
    limit, offset = window(query, default=100)
    every = _every(work, metrics.list_page)
    page = [saved_metric(work, item) for item in every[offset : offset + limit]]
    return Answered(about="", body=paged(call, query, len(every), limit, offset, page))


def _saved(work: Work, view: metrics.View) -> Answered:
    return Answered(about=show_id(view.metric.id), body=saved_metric(work, view))


def get_saved_metric(work: Work, call: Call) -> Answered:
    """One saved metric."""
    take(call, ())
    return _saved(work, metrics.get(work, requests.ById(id=call.id)))


def _measures(work: Work, body: Json) -> tuple[Json, Json]:
    """What a query measures in our words, and the query as it is kept."""
    if "query" not in body:
        return {}, {}
    (query,) = typed.with_uuids(work, [body["query"]], "query")
    found = typed.native(query, "query")
    return {name: value for name, value in found.items() if name not in ("key", "name")}, {"query": query}


def _keep(work: Work, view: metrics.View, fields: Json) -> None:
    found = work.store.kept.get(work.project_id, NAME, "metric", view.metric.id)
    merged = {**({} if found is None else found.fields), **fields}
    work.store.kept.put(
        work.project_id, NAME, "metric", view.metric.id, merged, actor=work.caller.actor, now=work.now
    )


def add_saved_metric(work: Work, call: Call) -> Answered:
    """A metric exists that experiments can name."""
    sent = SAVED.read(call.body, verb="create")
    values, query = _measures(work, call.body)
    with SAVED.told():
        view = metrics.create(work, requests.parse(CreateMetric, {**sent.values, **values}))
    _keep(work, view, {**sent.kept, **query})
    return _saved(work, view)


def change_saved_metric(work: Work, call: Call) -> Answered:
    """The metric is as asked, in drafts that name it too."""
    sent = SAVED.read(call.body, verb="update")
    values, query = _measures(work, call.body)
    cleared: Json = dict.fromkeys(("of", "denominatorEventName", "window")) if values else {}
    with SAVED.told():
        asked = {"id": call.id, **sent.values, **cleared, **values}
        view = metrics.update(work, requests.parse(UpdateMetric, asked))
    _keep(work, view, {**sent.kept, **query})
    return _saved(work, view)


def drop_saved_metric(work: Work, call: Call) -> Answered:
    """The metric is gone."""
    view = metrics.get(work, requests.ById(id=call.id))
    metrics.delete(work, requests.ById(id=call.id))
    work.store.kept.drop(work.project_id, NAME, "metric", view.metric.id)
    return Answered(about=show_id(view.metric.id), body=None)
