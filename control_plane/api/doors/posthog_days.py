"""A metric's days for PostHog's clients: computed anew, and a slot for each."""

from typing import Any

from control_plane.api import resources
from control_plane.api.doors import posthog_metrics as typed
from control_plane.api.doors.mapping import Answered, Call, Json, take, wrong
from control_plane.api.doors.posthog_reading import here
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.series import GetRecalculation, RecalculateTimeSeries
from control_plane.services import experiments, recalculation
from control_plane.services.work import Work
from shared.errors import NotFound
from shared.ids import show_id


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
