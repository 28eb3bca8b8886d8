"""What experiments of PostHog's clients name: holdouts and saved metrics, by their numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

from control_plane.api.doors import posthog_metrics as typed
from control_plane.api.doors.mapping import Answered, Call, Json, take
from control_plane.api.doors.posthog_fields import HOLDOUT, SAVED
from control_plane.api.doors.posthog_reading import holdout, paged, saved_metric, window
from control_plane.api.doors.posthog_writing import NAME
from control_plane.domain import requests
from control_plane.domain.metrics import CreateMetric, UpdateMetric
from control_plane.services import experiments, holdouts, metrics
from control_plane.services.work import Listing, Work
from shared.ids import show_id


def _page(
    list_page: Callable[[Work, requests.Page], Listing],
    show: Callable[[Work, Any], Json],
    work: Work,
    call: Call,
) -> Answered:
    """A page by limit and offset of what is listed by a cursor."""
    query = take(call, ("limit", "offset"))
    limit, offset = window(query, default=100)
    every: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = list_page(work, requests.Page(limit=100, cursor=cursor))
        every += page.items
        cursor = page.next_cursor or None
    shown = [show(work, item) for item in every[offset : offset + limit]]
    return Answered(about="", body=paged(call, query, len(every), limit, offset, shown))


list_holdouts = partial(_page, holdouts.list_page, holdout)
list_saved_metrics = partial(_page, metrics.list_page, saved_metric)


# -- holdouts


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
