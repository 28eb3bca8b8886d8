"""The door for clients of PostHog's experiments, at `/api/projects/{project_id}/experiments`."""

from collections.abc import Callable
from typing import Any

from control_plane.api.doors.mapping import Answered, Call, Facade, Route, route
from control_plane.api.doors.posthog_changes import create, get, update
from control_plane.api.doors.posthog_days import recalculate, timeseries
from control_plane.api.doors.posthog_fields import EXPERIMENT, HOLDOUT, SAVED
from control_plane.api.doors.posthog_flags import eligible_flags, needs_reports, stats
from control_plane.api.doors.posthog_metrics import METRIC
from control_plane.api.doors.posthog_named import (
    add_holdout,
    add_saved_metric,
    change_holdout,
    change_saved_metric,
    drop_holdout,
    drop_saved_metric,
    get_holdout,
    get_saved_metric,
    list_holdouts,
    list_saved_metrics,
)
from control_plane.api.doors.posthog_reading import list_page
from control_plane.api.doors.posthog_verbs import (
    DUPLICATE,
    ENDING,
    SHIPPING,
    VERBS,
    copy_to_project,
    duplicate,
)
from control_plane.api.doors.posthog_writing import NAME
from control_plane.api.errors import faults_of
from control_plane.services.work import Scope, Work
from shared.errors import Code, Error, NotFound
from shared.ids import show_id


def _in_project(use_case: Callable[[Work, Call], Answered]) -> Callable[[Work, Call], Answered]:
    """The same of the key's project, which is meant by its id, as `@current`, or by any number: none here has one."""

    def run(work: Work, call: Call) -> Answered:
        if call.project not in ("@current", show_id(work.project_id)) and not call.project.isdecimal():
            raise NotFound("there is no such project for this key")
        return use_case(work, call)

    return run


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
    name: str, at: str, scope: Scope, use_case: Callable[[Work, Call], Answered], says: str, **more: Any
) -> Route:
    method, path = at.split()
    family, alias = "/api/projects/{project}", "/api/environments/{project}"
    done = _in_project(use_case)
    return route(NAME, name, f"{method} {family}{path}", scope, done, says, alias=alias + path, **more)


def _dated(call: Call) -> str:
    """The experiment that a change may launch."""
    return call.id if call.body.get("start_date") else ""


def _verbs() -> tuple[Route, ...]:
    return tuple(
        _route(
            verb.rpc,
            f"POST {_ONE}/{verb.name}",
            _WRITE,
            verb,
            verb.says,
            starts=verb.starts,
        )
        for verb in VERBS
    )


_READ, _WRITE = Scope.EXPERIMENT_READ, Scope.EXPERIMENT_WRITE
_ALL, _ONE = "/experiments", "/experiments/{id}"
_HOLD, _SAVE = "/experiment_holdouts", "/experiment_saved_metrics"
_HOLDOUT, _METRIC = "/v1/holdouts/{}", "/v1/metrics/{}"

# fmt: off
DOOR = Facade(
    name=NAME,
    title="PostHog",
    prefixes=("/api/projects", "/api/environments"),
    named=str,
    told=_tell,
    shapes={
        "Experiment": EXPERIMENT, "Metric": METRIC, "End": ENDING, "Ship": SHIPPING, "Duplicate": DUPLICATE,
        "Holdout": HOLDOUT, "Saved metric": SAVED,
    },
    routes=(
        _route("ListExperiments", f"GET {_ALL}", _READ, list_page,
               "`limit` (100), `offset`, `status` (draft, running, paused, exposure_frozen, stopped, complete, all;"
               " running excludes paused), `archived`, `search`, `order`, `created_by`, `feature_flag_id`, `event`;"
               " `created_by_id` and `prompt_name` are refused: users have no numbers here, and there are no prompts"),
        _route("CreateExperiment", f"POST {_ALL}", _WRITE, create,
               "a draft, or launched by its start_date", status=201),
        _route("ListEligibleFlags", f"GET {_ALL}/eligible_feature_flags", Scope.FEATURE_FLAG_READ, eligible_flags,
               "keys of experiments with two variants and more, the first of them `control`; `limit` (20, at most 100),"
               " `offset`, `search`, `active`, `created_by`, `order`, `evaluation_runtime`, `has_evaluation_tags`"),
        _route("RequiresFlagImplementation", f"GET {_ALL}/requires_flag_implementation", _READ, needs_reports,
               "whether nothing was reported in the last 7 days"),
        _route("GetStats", f"GET {_ALL}/stats", _READ, stats, "the pace of 30 days against the 30 before"),
        _route("GetExperiment", f"GET {_ONE}", _READ, get, "one experiment"),
        _route("UpdateExperiment", f"PATCH {_ONE}", _WRITE, update,
               "what was not sent stays; a start date launches, an end date ends", settles=_dated),
        *_verbs(),
        _route("DuplicateExperiment", f"POST {_ONE}/duplicate", _WRITE, duplicate,
               "a draft with new metric uuids and a key of its own; of the body `name` and `feature_flag_key` are used"
               " and every other field is not, as there", status=201),
        _route("CopyToProject", f"POST {_ONE}/copy_to_project", _WRITE, copy_to_project,
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
