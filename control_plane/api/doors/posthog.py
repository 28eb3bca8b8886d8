"""The door for clients of PostHog's experiments, at `/api/projects/{project_id}/experiments`."""

from collections.abc import Callable
from typing import Any

from control_plane.api.doors import posthog_writing as writing
from control_plane.api.doors.mapping import (
    Answered,
    Call,
    Facade,
    Json,
    Route,
    Shape,
    as_json,
    ours,
    take,
    wrong,
)
from control_plane.api.doors.posthog_fields import (
    CONCLUSIONS,
    EXPERIMENT,
    HOLDOUT,
    SAVED,
    slug,
    status_of,
)
from control_plane.api.doors.posthog_more import (
    add_holdout,
    add_saved_metric,
    change_holdout,
    change_saved_metric,
    drop_holdout,
    drop_saved_metric,
    eligible_flags,
    get_holdout,
    get_saved_metric,
    list_holdouts,
    list_saved_metrics,
    needs_reports,
    recalculate,
    stats,
    timeseries,
)
from control_plane.api.doors.posthog_reading import answered, here, list_page
from control_plane.api.doors.posthog_writing import NAME, is_draft, kept_of
from control_plane.api.errors import faults_of
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Status
from control_plane.services import experiments, foreign, lifecycle
from control_plane.services.experiments import View
from control_plane.services.work import Scope, Work
from shared.errors import Code, Error, FailedPrecondition, NotFound, PermissionDenied
from shared.ids import show_id
from shared.moment import from_rfc3339

_SOON = 300_000_000  # a client's clock may be ahead of ours by so many microseconds


def named(text: str) -> str:
    """A name in a path, as it is."""
    return text


def _experiment(work: Work, call: Call) -> Experiment:
    _own_project(work, call)
    return here(experiments.find(work, call.id))


def _own_project(work: Work, call: Call) -> None:
    """The project is the key's: by its id, as `@current`, or by any number, which no project here has."""
    if call.project in ("@current", show_id(work.project_id)) or call.project.isdecimal():
        return
    raise NotFound("there is no such project for this key")


def _in_project(use_case: Callable[[Work, Call], Answered]) -> Callable[[Work, Call], Answered]:
    def run(work: Work, call: Call) -> Answered:
        _own_project(work, call)
        return use_case(work, call)

    return run


# -- reading and writing


def _get(work: Work, call: Call) -> Answered:
    take(call, ())
    experiment = _experiment(work, call)
    return answered(work, experiments.get(work, requests.ById(id=show_id(experiment.id))))


def _create(work: Work, call: Call) -> Answered:
    _own_project(work, call)
    body = call.body
    sent = EXPERIMENT.read(body, verb="create")
    values = {name: value for name, value in sent.values.items() if name not in ("variants", "analysis")}
    for name in ("archived", "deleted", "conclusion", "conclusion_comment"):
        if body.get(name):
            raise wrong(name, "is nothing that a new experiment has", "leave it out")
    found = writing.variants(body, new=True) or []
    writing.one_target(found, values)
    control = writing.baseline([item.values["key"] for item in found], body)
    values["variants"] = [{**item.values, "isControl": item.values["key"] == control} for item in found]
    measured, kept_metrics = writing.metrics(work, body, {})
    analysis, kept_stats = writing.analysis(None, body)
    criteria, kept_criteria = writing.exposure(None, body, values)
    for name, value in (("metrics", measured), ("analysis", analysis), ("exposureCriteria", criteria)):
        if value is not None:
            values[name] = value
    values |= writing.holdout(work, None, body)
    with EXPERIMENT.told():
        view = experiments.create(work, requests.parse(requests.CreateExperiment, values))
    for made, item in zip(view.experiment.variants, found, strict=True):
        foreign.keep_of_variant(work, made, NAME, item.kept)
    flag_key = body.get("feature_flag_key")
    other = {"feature_flag_key": flag_key} if flag_key and flag_key != view.experiment.key else {}
    keep = {**sent.kept, **kept_metrics, **kept_stats, **kept_criteria, **other}
    view = foreign.keep(work, view.experiment.id, NAME, keep)
    _move_dates(work, view.experiment, body)
    return _now(work, view.experiment)


def _now(work: Work, experiment: Experiment) -> Answered:
    return answered(work, experiments.view_of(work, work.store.experiments.get(experiment.id)))


def _update(work: Work, call: Call) -> Answered:
    _own_project(work, call)
    body = call.body
    experiment = experiments.find(work, call.id)
    if kept_of(experiment).get("deleted"):
        experiment = _brought_back(work, experiment, body)
    if experiment.archived and body.get("archived") is False:
        experiment = lifecycle.unarchive(work, requests.ById(id=show_id(experiment.id))).experiment
    sent = EXPERIMENT.read(body, verb="update")
    _write(work, experiment, body, sent.values, sent.kept)
    experiment = work.store.experiments.get(experiment.id)
    _move_dates(work, experiment, body)
    _conclude(work, work.store.experiments.get(experiment.id), body)
    if body.get("archived") is True and not experiment.archived:
        lifecycle.archive(work, requests.ById(id=show_id(experiment.id)))
    if body.get("deleted") is True:
        _delete(work, work.store.experiments.get(experiment.id))
    return _now(work, experiment)


def _write(work: Work, experiment: Experiment, body: Json, sent: Json, keep: Json) -> None:
    """Everything but the life of it is as sent."""
    draft, before = is_draft(experiment), kept_of(experiment)
    values = {name: value for name, value in sent.items() if name not in ("variants", "analysis")}
    found = writing.variants(body, new=False)
    if found is not None:
        writing.one_target(found, values)
    measured, kept_metrics = writing.metrics(work, body, before)
    analysis, kept_stats = writing.analysis(experiment, body)
    criteria, kept_criteria = writing.exposure(experiment, body, values)
    for name, value in (("metrics", measured), ("analysis", analysis), ("exposureCriteria", criteria)):
        if value is not None:
            values[name] = value
    values |= writing.holdout(work, experiment, body)
    share = values.pop("trafficAllocation", None)
    if draft and "parameters" in body:
        values["trafficAllocation"] = 100 if share is None else share
    writing.update(work, experiment, values)
    if draft and found is not None:
        with EXPERIMENT.told():
            writing.write_variants(work, work.store.experiments.get(experiment.id), found, body)
    if not draft:
        allowed = body.get("update_feature_flag_params") is True
        writing.write_split(work, experiment, found, share, allowed=allowed)
    foreign.keep(work, experiment.id, NAME, {**keep, **kept_metrics, **kept_stats, **kept_criteria})


def _moment(body: Json, name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    try:
        return from_rfc3339(value)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise wrong(
            name, f"{value!r} is not a moment such as 2026-01-31T12:00:00Z", "send one, or null"
        ) from None


def _move_dates(work: Work, experiment: Experiment, body: Json) -> None:
    """A start date launches or schedules, an end date ends or schedules; those that it has change nothing."""
    start, end = _moment(body, "start_date"), _moment(body, "end_date")
    if start is not None and end is not None and end <= start:
        raise wrong("end_date", "is not after start_date", "send a later one")
    at = show_id(experiment.id)
    if "start_date" in body and start is None and not is_draft(experiment):
        raise wrong("start_date", "what was launched has a start date", "reset the experiment")
    _unschedule(work, experiment, body)
    experiment = work.store.experiments.get(experiment.id)
    if start is not None and start != experiment.started_at and is_draft(experiment):
        if start > work.now + _SOON:
            _schedule(work, experiment, "startAt", body["start_date"])
        else:
            _begin(work, at)
    elif start is not None and not _is_at(start, experiment.started_at):
        raise wrong("start_date", "it was launched already", "reset the experiment to launch it again")
    experiment = work.store.experiments.get(experiment.id)
    if "end_date" in body and end is None and experiment.status is Status.COMPLETED:
        raise wrong("end_date", "what has ended is not opened again", "reset the experiment, or duplicate it")
    if end is None or _is_at(end, experiment.completed_at):
        return
    if is_draft(experiment) and not experiment.design.schedule.start:
        raise wrong("end_date", "a draft has none", "launch it first")
    if end > work.now + _SOON:
        _schedule(work, experiment, "endAt", body["end_date"])
    else:
        lifecycle.complete(work, requests.parse(requests.Complete, {"id": at, **_conclusion(body)}))


def _is_at(moment: int, present: int | None) -> bool:
    """Whether it is the moment there is, as it was shown: in milliseconds."""
    return present is not None and abs(moment - present) < 1_000


def _unschedule(work: Work, experiment: Experiment, body: Json) -> None:
    """What is scheduled and sent as null is scheduled no more."""
    plan = experiment.design.schedule
    if is_draft(experiment) and plan.start and "start_date" in body and body["start_date"] is None:
        _schedule(work, experiment, "startAt", None)
    if (plan.end or 0) > work.now and "end_date" in body and body["end_date"] is None:
        _schedule(work, work.store.experiments.get(experiment.id), "endAt", None)


def _schedule(work: Work, experiment: Experiment, name: str, value: str | None) -> None:
    present = experiment.design.schedule.model_dump(mode="json", by_alias=True)
    writing.update(work, experiment, {"schedule": {**present, name: value}})


def _conclusion(body: Json) -> Json:
    names = {"conclusion": "conclusion", "conclusion_comment": "conclusionComment"}
    return {native: body[name] for name, native in names.items() if body.get(name) is not None}


def _conclude(work: Work, experiment: Experiment, body: Json) -> None:
    said = _conclusion(body)
    present = {"conclusion": experiment.conclusion, "conclusionComment": experiment.conclusion_comment}
    if all(present[name] == value for name, value in said.items()):
        return
    if experiment.status is not Status.COMPLETED:
        raise wrong("conclusion", "only what has ended has one", "end it, with its conclusion")
    checked = requests.parse(requests.Complete, {"id": show_id(experiment.id), **present, **said})
    foreign.conclude(work, experiment, checked.conclusion, checked.conclusion_comment)


def _delete(work: Work, experiment: Experiment) -> None:
    """Hidden from this door, and archived; files stay as they are."""
    at = show_id(experiment.id)
    if not experiment.archived:
        foreign.end(work, experiment)
        lifecycle.archive(work, requests.ById(id=at))
    foreign.keep(work, experiment.id, NAME, {"deleted": True})


def _brought_back(work: Work, experiment: Experiment, body: Json) -> Experiment:
    if body.get("deleted") is not False:
        raise NotFound(f"there is no experiment {experiment.number}", reason="EXPERIMENT_NOT_FOUND")
    if experiment.archived:
        lifecycle.unarchive(work, requests.ById(id=show_id(experiment.id)))
    return foreign.keep(work, experiment.id, NAME, {"deleted": False}).experiment


# -- verbs

ENDING = Shape(
    ours("conclusion", f"one of {', '.join(CONCLUSIONS)}", example="won"),
    ours("conclusion_comment", "what was learnt", native="conclusionComment", example="Bold it is"),
)


def _everyone(value: Any) -> Json:
    if value:
        raise wrong(
            "release_to_everyone", "only participants of the experiment have its file", "leave it out"
        )
    return {}


SHIPPING = ENDING.and_(
    ours("variant_key", "which variant everybody gets", native="variantId", required=True, into=lambda k: {
        "variantId": slug(k)}, example="test"),
    ours("release_to_everyone", "false, as it is anyway: participants of the experiment get it", into=_everyone),
)  # fmt: skip
DUPLICATE = Shape(
    ours("name", "its name; `X (Copy)` unless it is sent", example="Second try"),
    ours("feature_flag_key", "a key of its own; made of the name unless it is sent", native="key",
         into=lambda value: {"key": slug(value)} if value else {}, example="second-try"),
)  # fmt: skip


def _bare(call: Call) -> None:
    Shape().read(call.body, verb="update")


def _begin(work: Work, at: str) -> View:
    with EXPERIMENT.told():
        return lifecycle.begin(work, requests.Start(id=at))


def _launch(work: Work, call: Call) -> Answered:
    _bare(call)
    return answered(work, _begin(work, show_id(_experiment(work, call).id)))


def _pause(work: Work, call: Call) -> Answered:
    _bare(call)
    at = show_id(_experiment(work, call).id)
    return answered(work, lifecycle.pause(work, requests.Pause(id=at, onPause="revert")))


def _resume(work: Work, call: Call) -> Answered:
    _bare(call)
    return answered(work, lifecycle.resume(work, requests.ById(id=show_id(_experiment(work, call).id))))


def _freeze(work: Work, call: Call) -> Answered:
    _bare(call)
    return answered(work, lifecycle.stop(work, requests.ById(id=show_id(_experiment(work, call).id))))


def _unfreeze(work: Work, call: Call) -> Answered:
    _bare(call)
    experiment = _experiment(work, call)
    raise FailedPrecondition(
        f"a {status_of({'status': experiment.status.value})} experiment lets nobody in again; duplicate it",
        reason="WRONG_STATE",
        details={"state": experiment.status.value},
    )


def _end(work: Work, call: Call) -> Answered:
    values = ENDING.read(call.body, verb="create").values
    at = show_id(_experiment(work, call).id)
    with ENDING.told():
        return answered(
            work, lifecycle.complete(work, requests.parse(requests.Complete, {"id": at, **values}))
        )


def _ship(work: Work, call: Call) -> Answered:
    values = SHIPPING.read(call.body, verb="create").values
    at = show_id(_experiment(work, call).id)
    with SHIPPING.told():
        return answered(work, lifecycle.ship(work, requests.parse(requests.Ship, {"id": at, **values})))


def _archive(work: Work, call: Call) -> Answered:
    _bare(call)
    experiment = _experiment(work, call)
    foreign.require_not(
        experiment,
        lambda e: e.status is not Status.COMPLETED,
        f"a {status_of({'status': experiment.status.value})} experiment cannot be archived; end it first",
    )
    return answered(work, lifecycle.archive(work, requests.ById(id=show_id(experiment.id))))


def _unarchive(work: Work, call: Call) -> Answered:
    _bare(call)
    return answered(work, lifecycle.unarchive(work, requests.ById(id=show_id(_experiment(work, call).id))))


def _reset(work: Work, call: Call) -> Answered:
    _bare(call)
    return answered(work, lifecycle.reset(work, requests.Reset(id=show_id(_experiment(work, call).id))))


def _duplicate(work: Work, call: Call) -> Answered:
    source = _experiment(work, call)
    before = kept_of(source)
    if before.get("filters"):
        raise FailedPrecondition(
            "an experiment with legacy metrics cannot be duplicated", reason="WRONG_STATE"
        )
    used = {name: value for name, value in call.body.items() if name in ("name", "feature_flag_key")}
    EXPERIMENT.read({k: v for k, v in call.body.items() if k not in used}, verb="update")
    values = DUPLICATE.read(used, verb="create").values
    with DUPLICATE.told():
        copy = experiments.duplicate(
            work, requests.parse(requests.Duplicate, {"id": show_id(source.id), **values})
        ).experiment
    lists = answered(work, experiments.view_of(work, source)).body
    body: Json = {}
    for name, order in writing.ORDERS.items():
        fresh = {uuid: show_id(work.new_id()) for uuid in lists[order]}
        body[name] = [{**item, "uuid": fresh[item["uuid"]]} for item in lists[name]]
        body[order] = [fresh[uuid] for uuid in lists[order]]
    measured, kept_metrics = writing.metrics(
        work, {**body, "saved_metrics_ids": lists["saved_metrics_ids"]}, {}
    )
    writing.update(
        work, copy, {"metrics": measured, **({"holdoutId": None} if copy.design.holdout_id else {})}
    )
    flag_key = call.body.get("feature_flag_key")
    other = flag_key if flag_key and flag_key != copy.key else copy.key
    keep = {**kept_metrics, "feature_flag_key": other, "deleted": False}
    return answered(work, foreign.keep(work, copy.id, NAME, keep))


def _copy_to_project(work: Work, call: Call) -> Answered:
    """Refused: whatever the target is, the key is not of it."""
    _experiment(work, call)
    if call.body.get("target_team_id") is None:
        raise wrong(
            "target_team_id", "is required", "duplicate the experiment to have a copy in this project"
        )
    raise PermissionDenied(
        "a key is of one project and reaches no other; make the copy there, with a key of that project"
    )


# -- the door

_TYPES = {
    Code.INVALID: ("validation_error", "invalid_input"),
    Code.ALREADY_EXISTS: ("validation_error", "unique"),
    Code.FAILED_PRECONDITION: ("validation_error", "invalid_input"),
    Code.CONFLICT: ("invalid_request", "conflict"),
    Code.UNAUTHENTICATED: ("authentication_error", "authentication_failed"),
    Code.PERMISSION_DENIED: ("authentication_error", "permission_denied"),
    Code.NOT_FOUND: ("invalid_request", "not_found"),
    Code.RESOURCE_EXHAUSTED: ("throttled_error", "throttled"),
}


def _tell(error: Error, status: int) -> tuple[int, Any]:
    """`{type, code, detail, attr}`; whatever does not fit the state is a 400."""
    kind, code = _TYPES.get(error.code, ("server_error", "error"))
    if error.reason.startswith("HTTP_4"):
        kind, code = "invalid_request", "method_not_allowed" if status == 405 else "not_found"
    if error.code in (Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS):
        status = 400
    attr = error.faults[0].field if error.faults else None
    body = {"type": kind, "code": code, "detail": error.message, "attr": attr}
    return status, {**body, "extra": {"errors": faults_of(error)}} if error.faults else body


def _route(
    name: str,
    route: str,
    scope: Scope,
    use_case: Any,
    says: str,
    *,
    status: int = 200,
    already: int = 0,
    starts: bool = False,
    about: str = "/v1/experiments/{}",
) -> Route:
    method, path = route.split()
    family = "/api/projects/{project}"
    return Route(
        rpc=f"{NAME}.{name}",
        method=method,
        path=family + path,
        alias="/api/environments/{project}" + path,
        scope=scope,
        request=Call,
        use_case=_in_project(use_case),
        render=as_json,
        status=status,
        already=already,
        settles=_launched if starts else (lambda call: ""),
        says=says,
        shown_as=about,
    )


def _launched(call: Call) -> str:
    """The experiment that a call may launch; connected hosts are asked about it before."""
    return call.id if call.body.get("start_date") or not call.body else ""


_READ, _WRITE = Scope.EXPERIMENT_READ, Scope.EXPERIMENT_WRITE
_ALL, _ONE = "/experiments", "/experiments/{id}"
_HOLD, _SAVE = "/experiment_holdouts", "/experiment_saved_metrics"
_HOLDOUT, _METRIC = "/v1/holdouts/{}", "/v1/metrics/{}"

# fmt: off
DOOR = Facade(
    name=NAME,
    title="PostHog",
    prefixes=("/api/projects", "/api/environments"),
    named=named,
    told=_tell,
    shapes={
        "Experiment": EXPERIMENT, "End": ENDING, "Ship": SHIPPING, "Duplicate": DUPLICATE,
        "Holdout": HOLDOUT, "Saved metric": SAVED,
    },
    routes=(
        _route("ListExperiments", f"GET {_ALL}", _READ, list_page,
               "`limit` (100), `offset`, `status` (draft, running, paused, exposure_frozen, stopped, complete, all;"
               " running excludes paused), `archived`, `search`, `order`, `created_by`, `feature_flag_id`, `event`;"
               " `created_by_id` and `prompt_name` are refused: users have no numbers here, and there are no prompts"),
        _route("CreateExperiment", f"POST {_ALL}", _WRITE, _create,
               "a draft, or launched by its start_date", status=201),
        _route("ListEligibleFlags", f"GET {_ALL}/eligible_feature_flags", Scope.FEATURE_FLAG_READ, eligible_flags,
               "keys of experiments with two variants and more, the first of them `control`; `limit` (20, at most 100),"
               " `offset`, `search`, `active`, `created_by`, `order`, `evaluation_runtime`, `has_evaluation_tags`"),
        _route("RequiresFlagImplementation", f"GET {_ALL}/requires_flag_implementation", _READ, needs_reports,
               "whether nothing was reported in the last 7 days"),
        _route("GetStats", f"GET {_ALL}/stats", _READ, stats, "the pace of 30 days against the 30 before"),
        _route("GetExperiment", f"GET {_ONE}", _READ, _get, "one experiment"),
        _route("UpdateExperiment", f"PATCH {_ONE}", _WRITE, _update,
               "what was not sent stays; a start date launches, an end date ends", starts=True),
        _route("LaunchExperiment", f"POST {_ONE}/launch", _WRITE, _launch, "a draft", starts=True),
        _route("PauseExperiment", f"POST {_ONE}/pause", _WRITE, _pause,
               "a running one; files are what they were before, until it is resumed"),
        _route("ResumeExperiment", f"POST {_ONE}/resume", _WRITE, _resume, "a paused one; with the same variants"),
        _route("FreezeExposure", f"POST {_ONE}/freeze_exposure", _WRITE, _freeze,
               "nobody further takes part, for good; it is measured on"),
        _route("UnfreezeExposure", f"POST {_ONE}/unfreeze_exposure", _WRITE, _unfreeze,
               "refused: intake that was closed stays closed"),
        _route("EndExperiment", f"POST {_ONE}/end", _WRITE, _end, "files stay as they are"),
        _route("ShipVariant", f"POST {_ONE}/ship_variant", _WRITE, _ship,
               "every participant gets the variant; one under way ends"),
        _route("ArchiveExperiment", f"POST {_ONE}/archive", _WRITE, _archive, "one that has ended"),
        _route("UnarchiveExperiment", f"POST {_ONE}/unarchive", _WRITE, _unarchive, "an archived one"),
        _route("ResetExperiment", f"POST {_ONE}/reset", _WRITE, _reset,
               "any but a draft is a draft again; files stay, what was measured counts no more"),
        _route("DuplicateExperiment", f"POST {_ONE}/duplicate", _WRITE, _duplicate,
               "a draft with new metric uuids and a key of its own; of the body `name` and `feature_flag_key` are used"
               " and every other field is not, as there", status=201),
        _route("CopyToProject", f"POST {_ONE}/copy_to_project", _WRITE, _copy_to_project,
               "refused: a key is of one project, and reaches no other", status=201),
        _route("RecalculateTimeseries", f"POST {_ONE}/recalculate_timeseries", _WRITE, recalculate,
               "`metric` and `fingerprint`; 200 where it is under way", status=201, already=200),
        _route("GetTimeseriesResults", f"GET {_ONE}/timeseries_results", _READ, timeseries,
               "`metric_uuid` and `fingerprint`; a slot for each UTC day"),
        _route("ListHoldouts", f"GET {_HOLD}", _READ, list_holdouts, "`limit`, `offset`", about=""),
        _route("CreateHoldout", f"POST {_HOLD}", _WRITE, add_holdout, "a holdout", status=201, about=_HOLDOUT),
        _route("GetHoldout", f"GET {_HOLD}/{{id}}", _READ, get_holdout, "one holdout", about=_HOLDOUT),
        _route("UpdateHoldout", f"PATCH {_HOLD}/{{id}}", _WRITE, change_holdout,
               "its share stays while an experiment that names it is under way", about=_HOLDOUT),
        _route("DeleteHoldout", f"DELETE {_HOLD}/{{id}}", _WRITE, drop_holdout,
               "drafts name it no more; refused while anything else does", status=204, about=_HOLDOUT),
        _route("ListSavedMetrics", f"GET {_SAVE}", _READ, list_saved_metrics, "`limit`, `offset`", about=""),
        _route("CreateSavedMetric", f"POST {_SAVE}", _WRITE, add_saved_metric, "a metric to name", status=201,
               about=_METRIC),
        _route("GetSavedMetric", f"GET {_SAVE}/{{id}}", _READ, get_saved_metric, "one saved metric", about=_METRIC),
        _route("UpdateSavedMetric", f"PATCH {_SAVE}/{{id}}", _WRITE, change_saved_metric,
               "what has started keeps its copy", about=_METRIC),
        _route("DeleteSavedMetric", f"DELETE {_SAVE}/{{id}}", _WRITE, drop_saved_metric,
               "refused while drafts name it", status=204, about=_METRIC),
    ),
)
# fmt: on
