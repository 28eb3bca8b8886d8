"""The door for clients of BreakGround: experiments on flows and audiences, at `/api/experiments`."""

from functools import partial
from http import HTTPStatus
from typing import Any

from control_plane.api import resources
from control_plane.api.doors.files import (
    audience_of,
    audience_rule,
    choose_audience,
    configuration,
    configured,
    follow_audience,
    one_target,
    other_rules,
    own_labels,
    participants,
    share,
    whole_file,
)
from control_plane.api.doors.mapping import (
    Answered,
    Call,
    Facade,
    Field,
    Json,
    Sent,
    Shape,
    kept,
    nothing,
    one_of,
    ours,
    route,
    shown,
    take,
    whole_number,
    wrong,
)
from control_plane.api.errors import faults_of
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Verb
from control_plane.services import experiments, foreign, lifecycle, results
from control_plane.services.experiments import View
from control_plane.services.work import Scope, Work
from control_plane.store.searches import Wanted
from shared.errors import Error
from shared.ids import show_id

NAME = "BreakGround"
STATUSES = ("draft", "running", "stopped", "completed", "paused", "archived")
_MEASURED: Json = {"primary": {"eventName": "conversion", "of": "subjects"}}
"""What is measured where nobody says: users who convert, of those who were met."""


# -- resources


def _configured(value: Any) -> Json:
    """A variant's file out of its configuration; the rest stays configuration."""
    if value is None:
        return {"config": None}
    if not isinstance(value, dict):
        raise wrong("config", "is not an object", "send an object")
    return configured(value, "config")


def _type_of(kind: str) -> str:
    return "ab_test" if kind == "ab" else kind


def _type(value: Any) -> Json:
    if value != "ab_test":
        raise wrong(
            "type", f"{value!r} is not ab_test, the one type there is", "send ab_test, or leave it out"
        )
    return {"type": "ab"}


VARIANT = Shape(
    Field(
        name="id",
        says="its id; sent in a change it says which variant is meant",
        native="id",
        only="update",
        kind=str,
    ),
    ours("name", "its name", required=True, example="Friendly"),
    ours("description", "what it tries", example="Warm words"),
    share("splitPercentage", "whole per cent; all together are 100", required=True, example=50),
    kept("flowId", "the flow it shows", str, example="flow-1"),
    ours(
        "config",
        "free; of it `content` and `targetFile`, or `files`, are what it writes",
        holds=("content", "files"),
        into=_configured,
        show=configuration,
        example={"targetFile": "config/soul.md", "content": "You are friendly.", "colour": "green"},
    ),
)

EXPERIMENT = Shape(
    shown("id", "its id"),
    ours("name", "its name", required=True, example="Onboarding tone"),
    ours("description", "what it is about", example="Friendly against plain"),
    kept("hypothesis", "what is expected", str, example="Friendly resolves more"),
    ours(
        "type",
        "ab_test; experiments of other types, made elsewhere, are shown with ours",
        only="create",
        into=_type,
        show=lambda e: _type_of(e["type"]),
        example="ab_test",
    ),
    shown("status", "ours, or archived", show=lambda e: "archived" if e["archived"] else e["status"]),
    ours(
        "audienceId",
        "only participants whose label `audience` has this value; where nobody is named they are who takes part",
        native="targetingRules.labels",
        into=audience_rule,
        show=audience_of,
        example="aud-7",
    ),
    Field(
        name="variants",
        says="at least one; the first is the control. Sent in a change they are the whole set: those with an id stay,"
        " those without are new, those left out go",
        native="variants",
        required=True,
        each=VARIANT,
    ),
    shown(
        "_count",
        "`assignments`: how many take part",
        show=lambda e: {"assignments": e["participantCount"] if e["currentPhase"] else 0},
    ),
    shown("startDate", "when it was started", native="startedAt"),
    shown("endDate", "when it was stopped or completed", show=lambda e: e["stoppedAt"] or e["completedAt"]),
    shown("createdAt", "when it was created"),
    shown("updatedAt", "when it last changed"),
    whole_file(),
    *participants(),
    own_labels(),
    ours(
        "metrics",
        "an addition: what is measured, as in our own API; unless it is sent, users (`subject`) with the event"
        " `conversion`",
        show=lambda e: e["metrics"],
        example={"primary": {"eventName": "resolved", "of": "subjects"}},
    ),
)


def _shown(work: Work, view: View) -> Json:
    native, e = resources.experiment(work, view), view.experiment
    told = EXPERIMENT.show(native, e.kept.get(NAME, {}))
    by_id = {show_id(item.id): item.kept.get(NAME, {}) for item in e.variants}
    told["variants"] = [VARIANT.show(item, by_id[item["id"]]) for item in native["variants"]]
    return told


def _answered(work: Work, view: View) -> Answered:
    return Answered(about=show_id(view.experiment.id), body={"data": _shown(work, view)})


# -- writing


def _read_variants(value: Any, *, verb: str) -> list[Sent]:
    """What is sent of each variant. Raises Invalid with every fault by field, and unless splits sum to 100."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise wrong("variants", "is not a list of variants", "send [{name, splitPercentage}, …]")
    found = [
        VARIANT.read(
            item,
            verb="update" if item.get("id") is not None and verb == "update" else "create",
            at=f"variants.{index}.",
        )
        for index, item in enumerate(value)
    ]
    splits = [item.values.get("weight") for item in found]
    whole = [split for split in splits if isinstance(split, int | float) and not isinstance(split, bool)]
    if len(whole) == len(splits) and sum(whole) != 100:
        raise wrong("variants", f"split percentages sum to {sum(whole)}, not to 100", "change them")
    return found


def _create(work: Work, call: Call) -> Answered:
    sent = EXPERIMENT.read(call.body, verb="create")
    variants = _read_variants(call.body["variants"], verb="create")
    if not variants:
        raise wrong("variants", "is empty", "send at least one")
    one_target(variants, sent.values, "variants")
    choose_audience(sent)
    listed = [{**item.values, "isControl": not index} for index, item in enumerate(variants)]
    values = {"metrics": _MEASURED, **sent.values, "variants": listed}
    with EXPERIMENT.told():
        view = experiments.create(work, requests.parse(requests.CreateExperiment, values))
    for made, item in zip(view.experiment.variants, variants, strict=True):
        foreign.keep_of_variant(work, made, NAME, item.kept)
    return _answered(work, foreign.keep(work, view.experiment.id, NAME, sent.kept))


def _update(work: Work, call: Call) -> Answered:
    experiment = experiments.find(work, call.id)
    experiment.after(Verb.EDIT)
    body = EXPERIMENT.unechoed(call.body, _shown(work, experiments.view_of(work, experiment)))
    sent = EXPERIMENT.read(body, verb="update")
    variants = _read_variants(body["variants"], verb="update") if "variants" in body else None
    one_target(variants or [], sent.values, "variants")
    if "audienceId" in body:
        _change_audience(experiment, sent)
    sent.values.pop("variants", None)
    with EXPERIMENT.told():
        if sent.values:
            asked = {"id": show_id(experiment.id), **sent.values}
            experiments.update(work, requests.parse(requests.UpdateExperiment, asked))
        if variants is not None:
            _write_variants(work, experiment, variants)
    return _answered(work, foreign.keep(work, experiment.id, NAME, sent.kept))


def _change_audience(experiment: Experiment, sent: Sent) -> None:
    """The audience is another or none: other rules stay, and so does who takes part unless the audience did."""
    present = experiment.design.targeting_rules.model_dump(mode="json", by_alias=True)
    asked = sent.values.get("targetingRules") or {"labels": []}
    sent.values["targetingRules"] = {"labels": [*asked["labels"], *other_rules({"targetingRules": present})]}
    follow_audience(sent, rules=present, selector=experiment.selector)


def _write_variants(work: Work, experiment: Experiment, variants: list[Sent]) -> None:
    """The set is as listed, with one control: the one there is, or the first."""
    at = {"id": show_id(experiment.id)}
    named = {
        experiments.find_variant(experiment, item.values["id"]).id for item in variants if "id" in item.values
    }
    for variant in experiment.variants:
        if variant.id not in named:
            gone = requests.OfVariant(id=at["id"], variantId=show_id(variant.id))
            experiments.delete_variant(work, gone)
    control = any(variant.is_control and variant.id in named for variant in experiment.variants)
    for index, item in enumerate(variants):
        first = {"isControl": True} if not control and not index else {}
        asked = {**item.values, **first, "id": at["id"]}
        if "id" in item.values:
            asked["variantId"] = item.values["id"]
            _, changed = experiments.update_variant(work, requests.parse(requests.UpdateVariant, asked))
        else:
            _, changed = experiments.add_variant(work, requests.parse(requests.AddVariant, asked))
        foreign.keep_of_variant(work, changed, NAME, item.kept)


# -- reading, and a life


def _list(work: Work, call: Call) -> Answered:
    query = take(call, ("page", "limit", "status"))
    status = one_of(query, "status", STATUSES)
    limit = min(100, max(1, whole_number(query, "limit", 20)))
    page = max(1, whole_number(query, "page", 1))
    archived = status == "archived"
    statuses = () if archived or status is None else (status,)
    wanted = Wanted(project_id=work.project_id, statuses=statuses, archived=archived)
    found = foreign.search(work, wanted, offset=(page - 1) * limit, limit=limit)
    pages = -(-found.total // limit)
    meta = {"total": found.total, "page": page, "limit": limit, "totalPages": pages}
    return Answered(about="", body={"data": [_listed(work, view) for view in found.views], "meta": meta})


def _listed(work: Work, view: View) -> Json:
    return _shown(work, view)


def _get(work: Work, call: Call) -> Answered:
    take(call, ())
    return _answered(work, experiments.get(work, requests.ById(id=call.id)))


def _archive(work: Work, call: Call) -> Answered:
    experiment = experiments.find(work, call.id)
    if not experiment.archived:
        foreign.end(work, experiment)
    return _answered(work, lifecycle.archive(work, requests.ById(id=call.id)))


def _start(work: Work, call: Call) -> Answered:
    nothing(call)
    with EXPERIMENT.told():
        return _answered(work, lifecycle.begin(work, requests.Start(id=call.id)))


def _stop(work: Work, call: Call) -> Answered:
    nothing(call)
    return _answered(work, lifecycle.stop(work, requests.ById(id=call.id)))


# -- results


def _results(work: Work, call: Call) -> Answered:
    take(call, ())
    view = experiments.get(work, requests.ById(id=call.id))
    found = [(role, _of_metric(work, call.id, metric)) for role, metric in _measured(view)]

    def raw(index: int) -> list[Json]:
        return [
            {
                "eventName": answer["metric"]["eventName"],
                "role": role,
                "impressions": answer["variants"][index]["impressions"],
                "participants": answer["variants"][index]["units"],
                "conversions": answer["variants"][index]["convertedUnits"],
                "conversionEvents": answer["variants"][index]["conversions"],
            }
            for role, answer in found
        ]

    arms = [
        {
            "variantId": arm["id"],
            "variantName": arm["name"],
            "splitPercentage": arm["weight"],
            "participants": arm["units"],
            "results": raw(index),
        }
        for index, arm in enumerate(found[0][1]["variants"])
    ]
    return Answered(about="", body={"data": {**_headed(work, view), "variants": arms}})


def _compute(work: Work, call: Call) -> Answered:
    nothing(call)
    view = experiments.get(work, requests.ById(id=call.id))
    answer = _of_metric(work, call.id, _measured(view)[0][1])
    arms = [
        {
            "variantId": arm["id"],
            "variantName": arm["name"],
            "sampleSize": arm["units"],
            "conversions": arm["convertedUnits"],
            "conversionRate": arm["convertedUnits"] / arm["units"] if arm["units"] else 0.0,
        }
        for arm in answer["variants"]
    ]
    return Answered(about="", body={"data": {"variants": arms}})


def _headed(work: Work, view: View) -> Json:
    told = _shown(work, view)
    return {
        "experimentId": told["id"],
        **{name: told[name] for name in ("name", "status", "startDate", "endDate")},
    }


def _measured(view: View) -> list[tuple[str, Json]]:
    """(role, metric) of what is measured, the primary first; an empty metric is whatever was reported."""
    rest = [(role, item) for role in ("secondary", "guardrail") for item in view.metrics.get(role, [])]
    return [("primary", view.metrics.get("primary") or {}), *rest]


def _of_metric(work: Work, name: str, metric: Json) -> Json:
    """Its results, by its own name where it has one: several may count the same event, each in its way."""
    own = metric.get("key") or metric.get("id") or metric.get("name")
    asked = {"metric": own} if own else {"eventName": metric.get("eventName", "")}
    return resources.results(
        work, results.get(work, requests.parse(requests.GetResults, {"id": name, **asked}))
    )


# -- the door


def _told(error: Error, status: int) -> tuple[int, Any]:
    """`{statusCode, error, message, details}`."""
    return status, {
        "statusCode": status,
        "error": HTTPStatus(status).phrase,
        "message": error.message,
        "details": faults_of(error) or [{"reason": error.reason, **error.details}],
    }


_route = partial(route, NAME)
_READ, _WRITE = Scope.EXPERIMENT_READ, Scope.EXPERIMENT_WRITE
_ONE = "/api/experiments/{id}"

# fmt: off
DOOR = Facade(
    name=NAME,
    title="BreakGround",
    prefixes=("/api/experiments",),
    named=lambda text: text,
    told=_told,
    shapes={"Experiment": EXPERIMENT, "Variant": VARIANT},
    routes=(
        _route("ListExperiments", "GET /api/experiments", _READ, _list,
               "`page` (1), `limit` (20, clamped to 1 … 100), `status`; the newest first, archived ones if asked for"),
        _route("CreateExperiment", "POST /api/experiments", _WRITE, _create,
               "a draft; splits have to sum to 100", status=201),
        _route("GetExperiment", f"GET {_ONE}", _READ, _get, "with all its variants; an id, a key or a number"),
        _route("UpdateExperiment", f"PATCH {_ONE}", _WRITE, _update, "of a draft only, variants too"),
        _route("ArchiveExperiment", f"DELETE {_ONE}", _WRITE, _archive,
               "archives it; one under way is completed first, and files stay as they are"),
        _route("StartExperiment", f"POST {_ONE}/start", _WRITE, _start,
               "the audience is assigned by split", starts=True),
        _route("StopExperiment", f"POST {_ONE}/stop", _WRITE, _stop,
               "nobody further takes part; assignments and files stay, and are measured"),
        _route("GetResults", f"GET {_ONE}/results", _READ, _results, "what was assigned and counted, for every metric"),
        _route("ComputeResults", f"POST {_ONE}/compute-results", _READ, _compute,
               "sample sizes and rates of the primary metric", reads=True),
    ),
)
# fmt: on
