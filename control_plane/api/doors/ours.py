"""The door for clients of Ours Privacy: on-page experiments, their variants and the settings record, at `/rest/v1`."""

from dataclasses import replace
from functools import partial
from typing import Any

from control_plane.api import resources
from control_plane.api.doors.files import choose_audience, follow_audience
from control_plane.api.doors.mapping import (
    Answered,
    Call,
    Facade,
    Json,
    one_of,
    route,
    take,
    whole_number,
    wrong,
)
from control_plane.api.doors.ours_fields import (
    AS_TYPE,
    EXPERIMENT,
    NAME,
    PAUSE,
    RESUME,
    SETTINGS,
    START,
    STATUSES,
    STOP,
    TYPES,
    VARIANT,
    named,
    own,
    searched,
)
from control_plane.api.doors.ours_publishing import Asked, complete, publish
from control_plane.api.doors.ours_settings import (
    create_settings,
    delete_settings,
    get_settings,
    list_settings,
    update_settings,
)
from control_plane.api.errors import faults_of
from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Status, Verb
from control_plane.domain.series import GetTimeSeries
from control_plane.services import experiments, foreign, phases, results, series
from control_plane.services.experiments import View
from control_plane.services.work import Listing, Scope, Work
from control_plane.store.searches import Keeps, Wanted
from shared.errors import Error, FailedPrecondition, Fault, NotFound
from shared.ids import show_id
from shared.moment import to_rfc3339

_AS_MULTIVARIATE = Keeps(door=NAME, name=AS_TYPE, value="multivariate")
_STOPPED = ("paused", "stopped")  # intake is closed in both; this door has one word for it


# -- experiments


def _here(work: Work, name: str) -> Experiment:
    """The experiment; one that was deleted, which archives what has run, is not there."""
    experiment = experiments.find(work, name)
    if experiment.archived:
        raise NotFound(f"there is no experiment {name!r}", reason="EXPERIMENT_NOT_FOUND")
    return experiment


def _experiment(work: Work, view: View, *, variants: bool = True) -> Json:
    e = view.experiment
    native = (
        resources.experiment(work, view)
        if variants
        else resources.experiments(work, _page(view))["entities"][0]
    )
    since = max((moment for moment in (e.started_at, e.resumed_at) if moment is not None), default=None)
    kept = e.kept.get(NAME, {})
    native["runningSince"] = None if since is None else to_rfc3339(since)
    native["trafficAllocation"] = _allocation(e)
    native["type"] = kept.get(AS_TYPE, native["type"])
    told = EXPERIMENT.show(native, kept)
    return {**told, "variants": _variants(work, view, native)} if variants else told


def _page(view: View) -> Any:
    return Listing(items=[view], next_cursor="")


def _variants(work: Work, view: View, native: Json) -> list[Json]:
    kept = {show_id(item.id): item.kept.get(NAME, {}) for item in view.experiment.variants}
    return [VARIANT.show(item, kept[item["id"]]) for item in native["variants"]]


def _answered(work: Work, view: View, *, variants: bool = True) -> Answered:
    body = _experiment(work, view, variants=variants)
    return Answered(about=show_id(view.experiment.id), body=body)


def _list(work: Work, call: Call) -> Answered:
    query = take(call, ("limit", "cursor", "status", "type", "search"))
    status = one_of(query, "status", STATUSES)
    kind = one_of(query, "type", TYPES)
    limit = min(100, max(1, whole_number(query, "limit", 25)))
    statuses = _STOPPED if status == "paused" else (status,) if status else ()
    wanted = Wanted(
        project_id=work.project_id,
        statuses=statuses,
        archived=False,
        kind=kind,
        counted=_AS_MULTIVARIATE if kind == "multivariate" else None,
        hidden=_AS_MULTIVARIATE if kind == "ab" else None,
        search=searched(query.get("search", "")),
    )
    found = foreign.last_changed(work, wanted, cursor=query.get("cursor", ""), limit=limit)
    entities = [_experiment(work, view, variants=False) for view in found.views]
    pagination = {"nextCursor": found.next_cursor or None, "hasMore": bool(found.next_cursor)}
    return Answered(about="", body={"entities": entities, "pagination": pagination})


def _create(work: Work, call: Call) -> Answered:
    sent = EXPERIMENT.read(call.body, verb="create")
    if named(str(call.body["experimentSettingsId"])) not in (show_id(work.project_id), work.project_id.hex()):
        raise wrong(
            "experimentSettingsId",
            "is not the settings record",
            f"send {own('settings', show_id(work.project_id))}",
        )
    choose_audience(sent)
    values = sent.values
    weight = 100 if call.body.get("controlWeight") is None else call.body["controlWeight"]
    if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= 100:
        raise wrong("controlWeight", "is not a whole number from 1 to 100", "send one, or leave it out")
    bare: Json = {}
    if not values.get("factors"):  # of factors the first combination is the control
        if (
            values.get("type") == "multivariate"
        ):  # a page's elements at once are one file's content: several variants
            values["type"], bare = "ab", {AS_TYPE: "multivariate"}
        values["variants"] = [{"key": "control", "name": "Control", "isControl": True, "weight": weight}]
    if values.get("type") not in (None, *TYPES):
        raise wrong("type", f"is none of {', '.join(TYPES)}", "choose one of them")
    with EXPERIMENT.told():
        view = experiments.create(work, requests.parse(requests.CreateExperiment, values))
    return _answered(work, foreign.keep(work, view.experiment.id, NAME, {**sent.kept, **bare}))


def _get(work: Work, call: Call) -> Answered:
    take(call, ())
    return _answered(work, experiments.view_of(work, _here(work, call.id)))


def _update(work: Work, call: Call) -> Answered:
    experiment = _here(work, call.id)
    foreign.require_not(experiment, foreign.is_over, "a completed experiment cannot be edited")
    shown = _experiment(work, experiments.view_of(work, experiment), variants=False)
    body = EXPERIMENT.unechoed(call.body, shown)
    sent = EXPERIMENT.read(body, verb="update")
    if "targetingRules" in sent.values:
        present = experiment.design.targeting_rules.model_dump(mode="json", by_alias=True)
        follow_audience(sent, rules=present, selector=experiment.selector)
    values = _changed(experiment, sent.values)
    with EXPERIMENT.told():
        if "key" in values:
            parsed = requests.parse(requests.Duplicate, {"id": call.id, "key": values.pop("key")})
            foreign.rekey(work, experiment, parsed.key or experiment.key)
        if experiment.status is Status.RUNNING and "trafficAllocation" in values:
            share = {"id": show_id(experiment.id), "trafficAllocation": values.pop("trafficAllocation")}
            phases.open_phase(work, requests.parse(requests.OpenPhase, share))
        if experiment.status is Status.PAUSED and "trafficAllocation" in values:
            share = {"id": show_id(experiment.id), "trafficAllocation": values.pop("trafficAllocation")}
            foreign.reallocate(work, experiment, requests.parse(requests.OpenPhase, share))
        if "targetingRules" in values and experiment.status is not Status.DRAFT:
            who = {"id": show_id(experiment.id), "targetingRules": values.pop("targetingRules")}
            if not {"participants", "participantIds"} & set(call.body) and "participants" in values:
                who["participants"] = values.pop("participants")
            foreign.retarget(work, experiment, requests.parse(requests.UpdateExperiment, who))
        if values:
            asked = {"id": show_id(experiment.id), **values}
            experiments.update(work, requests.parse(requests.UpdateExperiment, asked))
    return _answered(work, foreign.keep(work, experiment.id, NAME, sent.kept), variants=False)


def _changed(experiment: Experiment, values: Json) -> Json:
    """What was sent and is not so already: an echo changes nothing, and needs no draft."""
    design = experiment.design
    present = {
        "key": experiment.key,
        "trafficAllocation": _allocation(experiment),
        "targetingRules": design.targeting_rules.model_dump(mode="json", by_alias=True),
        "targetFile": experiment.target_file,
        "participants": experiment.selector,
    }
    whole: Json = {"labels": []}
    return {
        name: value
        for name, value in values.items()
        if name not in present or (value or whole if name == "targetingRules" else value) != present[name]
    }


def _allocation(experiment: Experiment) -> int:
    """The allocation: of a paused one that with which it goes on."""
    if experiment.phase is None or experiment.status is Status.PAUSED:
        return experiment.design.traffic_allocation
    return experiment.phase.traffic_allocation


def _delete(work: Work, call: Call) -> Answered:
    experiment = _here(work, call.id)
    foreign.delete(work, requests.ById(id=call.id))
    return Answered(about=show_id(experiment.id), body=True)


def _enveloped(work: Work, asked: Asked) -> Answered:
    body = {
        "publishStatus": "published" if asked.live else "pending_publish",
        "concurrentVersionChanges": asked.changes,
        "experiment": _experiment(work, asked.view),
    }
    return Answered(about=show_id(asked.view.experiment.id), body=body)


def _start(work: Work, call: Call) -> Answered:
    experiment = _here(work, call.id)
    now = START.read(call.body, verb="update").values.get("live", True)
    if (
        experiment.status is Status.DRAFT
        and experiment.type.weighted
        and not experiment.metrics.get("primary")
    ):
        fault = Fault(
            field="metrics.primary",
            message="there is no primary metric",
            remedy="set metrics.primary.eventName",
        )
        raise FailedPrecondition(
            f"the experiment is not ready: {fault.message}", reason="NOT_READY", faults=[fault]
        )
    with EXPERIMENT.told():
        return _enveloped(work, publish(work, experiment, Verb.START, now=now))


def _pause(work: Work, call: Call) -> Answered:
    experiment = _here(work, call.id)
    now = PAUSE.read(call.body, verb="update").values.get("live", True)
    with EXPERIMENT.told():
        return _enveloped(work, publish(work, experiment, Verb.PAUSE, now=now))


def _resume(work: Work, call: Call) -> Answered:
    experiment = _here(work, call.id)
    now = RESUME.read(call.body, verb="update").values.get("live", True)
    with EXPERIMENT.told():
        return _enveloped(work, publish(work, experiment, Verb.RESUME, now=now))


def _stop(work: Work, call: Call) -> Answered:
    experiment = _here(work, call.id)
    values = STOP.read(call.body, verb="update").values
    asked = requests.parse(requests.Complete, {"id": call.id, **values})
    return _enveloped(work, complete(work, experiment, asked))


# -- results


def _rate(value: float | None) -> float:
    return round(value or 0.0, 4)


def _results(work: Work, call: Call) -> Answered:
    query = take(call, ("eventName",))
    _here(work, call.id)
    asked = requests.parse(requests.GetResults, {"id": call.id, **query})
    found = resources.results(work, results.get(work, asked))
    body = {
        "variants": [
            {
                "id": own("var", arm["id"]),
                "name": arm["name"],
                "isControl": arm["isControl"],
                "impressions": arm["impressions"],
                "conversions": arm["conversions"],
                "conversionRate": _rate(arm["conversionRate"]),
                "probabilityToBeBest": arm["probabilityToBeBest"],
            }
            for arm in found["variants"]
        ]
    }
    return Answered(about="", body=body)


def _series(work: Work, call: Call) -> Answered:
    query = take(call, ("eventName", "startDate", "endDate"))
    _here(work, call.id)
    found = resources.time_series(
        work, series.get(work, requests.parse(GetTimeSeries, {"id": call.id, **query}))
    )
    names = ("impressions", "conversions")
    body = {
        "days": [
            {
                "date": day["date"],
                "variants": [
                    {
                        "id": own("var", arm["id"]),
                        **{name: arm[name] for name in names},
                        "conversionRate": _rate(arm["conversionRate"]),
                    }
                    for arm in day["variants"]
                ],
            }
            for day in found["days"]
        ]
    }
    return Answered(about="", body=body)


# -- variants


def _variant(work: Work, experiment: Experiment, variant_id: str) -> Answered:
    view = experiments.view_of(work, work.store.experiments.get(experiment.id))
    item = experiments.find_variant(view.experiment, variant_id)
    body = VARIANT.show(resources.variant(work, view, item), item.kept.get(NAME, {}))
    return Answered(about=show_id(experiment.id), body=body)


def _list_variants(work: Work, call: Call) -> Answered:
    query = take(call, ("experimentId", "limit", "cursor"))
    if "experimentId" not in query:
        raise wrong("experimentId", "is required", "send the id of the experiment whose variants you want")
    view = experiments.view_of(work, _here(work, named(query["experimentId"])))
    native = resources.experiment(work, view)
    limit = min(200, max(1, whole_number(query, "limit", 200)))
    first = whole_number(query, "cursor", 0)
    if first < 0:
        raise wrong("cursor", "is not one that a list answered", "leave it out")
    every = _variants(work, view, native)
    more = first + limit < len(every)
    pagination = {"nextCursor": str(first + limit) if more else None, "hasMore": more}
    return Answered(about="", body={"entities": every[first : first + limit], "pagination": pagination})


def _add_variant(work: Work, call: Call) -> Answered:
    sent = VARIANT.read(call.body, verb="create")
    experiment = _here(work, named(str(call.body["experimentId"])))
    _one_control(sent.values, {"isControl": False})
    with VARIANT.told(under="variant."):
        asked = {"id": show_id(experiment.id), **sent.values}
        _, added = experiments.add_variant(work, requests.parse(requests.AddVariant, asked))
    foreign.keep_of_variant(work, added, NAME, sent.kept)
    _leave_the_rest(work, experiment.id)
    return _variant(work, experiment, show_id(added.id))


def _get_variant(work: Work, call: Call) -> Answered:
    take(call, ())
    experiment, variant = foreign.of_variant(work, call.id)
    _here(work, show_id(experiment.id))
    return _variant(work, experiment, show_id(variant.id))


def _update_variant(work: Work, call: Call) -> Answered:
    experiment, variant = foreign.of_variant(work, call.id)
    _here(work, show_id(experiment.id))
    body = VARIANT.unechoed(call.body, _variant(work, experiment, call.id).body)
    sent = VARIANT.read(body, verb="update")
    same = {"isControl": variant.is_control, "weight": variant.weight}
    _one_control(sent.values, same)
    values = {name: value for name, value in sent.values.items() if name not in same or same[name] != value}
    with VARIANT.told(under="variant."):
        asked = {"id": show_id(experiment.id), "variantId": call.id, **values}
        _, changed = experiments.update_variant(work, requests.parse(requests.UpdateVariant, asked))
    foreign.keep_of_variant(work, changed, NAME, sent.kept)
    if "weight" in values:
        _leave_the_rest(work, experiment.id, wanted=values.get("weight") if changed.is_control else None)
    return _variant(work, experiment, call.id)


def _delete_variant(work: Work, call: Call) -> Answered:
    experiment, variant = foreign.of_variant(work, call.id)
    _here(work, show_id(experiment.id))
    answer = _variant(work, experiment, call.id)
    if variant.is_control and len(experiment.variants) > 1:
        raise FailedPrecondition(
            "the control goes with its experiment; delete the other variants first", reason="WRONG_STATE"
        )
    asked = requests.OfVariant(id=show_id(experiment.id), variantId=call.id)
    experiments.delete_variant(work, asked)
    _leave_the_rest(work, experiment.id)
    return answer


def _one_control(values: Json, present: Json) -> None:
    """Raises Invalid where another than the one made with the experiment would be its control."""
    if values.get("isControl") not in (None, present["isControl"]):
        raise wrong("isControl", "the control is the variant made with the experiment", "leave it out")


def _leave_the_rest(work: Work, experiment_id: bytes, *, wanted: int | None = None) -> None:
    """The control has what the other variants leave of 100. Raises Invalid where that is nothing."""
    experiment = work.store.experiments.get(experiment_id)
    control = experiment.control
    if control is None:
        return
    rest = 100 - sum(item.weight for item in experiment.variants if item.id != control.id)
    if rest < 1:
        raise wrong("weight", f"would leave the control {rest} of 100", "leave it at least 1")
    if wanted is not None and wanted != rest:
        raise wrong("weight", f"the control has what the others leave, {rest}", "change the others' weights")
    last = max(item.position for item in experiment.variants)
    behind = experiment.type is Type.PERSONALIZATION and control.position < last
    place = last + 1 if behind else control.position  # the first rules that fit win; the control has none
    if (rest, place) != (control.weight, control.position):
        changed = replace(control, weight=rest, position=place, updated_at=work.now)
        work.store.experiments.put_variant(changed)


# -- the door


def _told(error: Error, status: int) -> tuple[int, Any]:
    """`{error, details}`."""
    details: Any = faults_of(error) or [{"reason": error.reason}]
    if error.details:
        details = [*details, error.details] if error.faults else [{"reason": error.reason, **error.details}]
    return status, {"error": error.message, "details": details}


_route = partial(route, NAME)
_READ, _WRITE, _ADMIN = Scope.EXPERIMENT_READ, Scope.EXPERIMENT_WRITE, Scope.ADMIN
_ONE = "/rest/v1/experiments/{id}"
_VARIANT = "/rest/v1/experiment-variants"
_SET = "/rest/v1/experiment-settings"
_NO_SETTINGS = "/v1/settings"

# fmt: off
DOOR = Facade(
    name=NAME,
    title="Ours Privacy",
    prefixes=("/rest/v1",),
    named=named,
    told=_told,
    shapes={
        "Experiment": EXPERIMENT, "Variant": VARIANT, "Settings": SETTINGS,
        "Start": START, "Pause": PAUSE, "Resume": RESUME, "Stop": STOP,
    },
    routes=(
        _route("ListExperiments", "GET /rest/v1/experiments", _READ, _list,
               "`limit` (25, clamped to 1 … 100), `cursor`, `status`, `type`, `search`; the last changed first"),
        _route("CreateExperiment", "POST /rest/v1/experiments", _WRITE, _create,
               "a draft with its control", status=201),
        _route("GetExperiment", f"GET {_ONE}", _READ, _get, "with its variants"),
        _route("UpdateExperiment", f"PATCH {_ONE}", _WRITE, _update,
               "until it is completed, then 409; answers it without its variants"),
        _route("DeleteExperiment", f"DELETE {_ONE}", _WRITE, _delete,
               "answers `true`; one that has run is archived, one under way completed before; files stay as they are"),
        _route("StartExperiment", f"POST {_ONE}/start", _WRITE, _start,
               "needs a primary metric, besides what every start needs", starts=True),
        _route("StopExperiment", f"POST {_ONE}/stop", _WRITE, _stop, "completes it; files stay as they are"),
        _route("PauseExperiment", f"POST {_ONE}/pause", _WRITE, _pause, "nobody further takes part; files stay"),
        _route("ResumeExperiment", f"POST {_ONE}/resume", _WRITE, _resume, "intake is open again"),
        _route("GetResults", f"GET {_ONE}/results", _READ, _results,
               "`eventName` instead of the primary metric's; rates to 4 decimals"),
        _route("GetTimeSeries", f"GET {_ONE}/results-time-series", _READ, _series,
               "`eventName`, `startDate`, `endDate`: UTC days, both included, at most 366, clamped; no empty days"),
        _route("ListVariants", f"GET {_VARIANT}", _READ, _list_variants,
               "`experimentId` (required), `limit` (200, clamped to 1 … 200), `cursor`"),
        _route("AddVariant", f"POST {_VARIANT}", _WRITE, _add_variant, "to a draft", status=201),
        _route("GetVariant", f"GET {_VARIANT}/{{id}}", _READ, _get_variant, "one variant"),
        _route("UpdateVariant", f"PATCH {_VARIANT}/{{id}}", _WRITE, _update_variant,
               "of a draft; afterwards only its name and what is kept"),
        _route("DeleteVariant", f"DELETE {_VARIANT}/{{id}}", _WRITE, _delete_variant,
               "of a draft; answers the variant that was"),
        _route("ListSettings", f"GET {_SET}", _READ, list_settings, "the one record", about=_NO_SETTINGS),
        _route("CreateSettings", f"POST {_SET}", _ADMIN, create_settings,
               "409 where it was written before", status=201, about=_NO_SETTINGS),
        _route("GetSettings", f"GET {_SET}/{{id}}", _READ, get_settings, "the one record", about=_NO_SETTINGS),
        _route("UpdateSettings", f"PATCH {_SET}/{{id}}", _ADMIN, update_settings,
               "what was not sent stays", about=_NO_SETTINGS),
        _route("DeleteSettings", f"DELETE {_SET}/{{id}}", _ADMIN, delete_settings,
               "what was kept of it is gone; refused while there are experiments", about=_NO_SETTINGS),
    ),
)
# fmt: on
