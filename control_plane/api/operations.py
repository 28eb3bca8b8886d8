"""The one table of operations: what each is called on both transports, who may, and what it does.

REST routes, operator gRPC methods and their checks are made from it, so an operation cannot exist on one
transport only.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from control_plane.api import reads, resources
from control_plane.domain import reported, requests
from control_plane.domain.metrics import CreateMetric, UpdateMetric
from control_plane.domain.series import GetRecalculation, GetTimeSeries, RecalculateTimeSeries
from control_plane.domain.settings import UpdateSettings
from control_plane.domain.sizing import SampleSize
from control_plane.services import (
    access,
    arrivals,
    deployments,
    doctor,
    experiments,
    export,
    findings,
    fleet,
    holdouts,
    lifecycle,
    metrics,
    phases,
    preview,
    recalculation,
    reporting,
    results,
    series,
    settings,
    sizing,
    survey,
)
from control_plane.services.work import Scope, Work

_LABELLED = re.compile(
    r"\w+ /v1/(experiments|participants|agents)(/\{id\}.*)?|\w+ /v1/deployments/\{id\}.*"
    r"|POST /v1/events:batch|GET /v1/events|GET /v1/fleet"
)


def _nobody(request: requests.Request) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. `rpc` is Service.Method; `{names}` in `path` are fields of the request.

    `status` is the HTTP status of success; with 201, `location` is the path of what was made. With `asks_host`
    the use case answers a Question, and what is rendered is the Reading that a connected host answers it with.
    Before one that `settles` an experiment (id or key) connected hosts are asked, for seconds at most, what they
    say of its contents.
    REST has it under `alias` as well, where there is one, and answers with `already` where the answer says that
    it was not `accepted`: what is asked for is under way.
    """

    rpc: str
    method: str
    path: str
    scope: Scope
    request: type[requests.Request]
    use_case: Callable[[Work, Any], Any]
    render: Callable[[Work, Any], Any]
    status: int = 200
    location: str = ""
    reads: bool = False
    asks_host: bool = False
    settles: Callable[[Any], str] = _nobody
    alias: str = ""
    already: int = 0

    @property
    def changes(self) -> bool:
        """Whether it may change anything: all but GET, and what only `reads` whatever its method."""
        return self.method != "GET" and not self.reads

    @property
    def labelled(self) -> bool:
        """Whether a key limited to labels may ask it: it names, lists or makes what carries labels.

        Anything else concerns a whole project and is refused to such a key.
        """
        return _LABELLED.fullmatch(f"{self.method} {self.path}") is not None

    @property
    def named(self) -> tuple[str, ...]:
        """The fields of the request that stand in the path."""
        return tuple(re.findall(r"\{(\w+)\}", self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A kind of resource in a stream: its field in the event, and how a page of it is asked for."""

    resource: str
    request: type[requests.Page]
    use_case: Callable[[Work, Any], Any]
    render: Callable[[Work, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A stream of what changes: `name` in `GET /v1/watch?kinds=`, `rpc` a server stream of its own."""

    rpc: str
    name: str
    scope: Scope
    lists: tuple[Listed, ...]


_READ, _WRITE = Scope.EXPERIMENT_READ, Scope.EXPERIMENT_WRITE
_SEE, _MANAGE = Scope.FLEET_READ, Scope.FLEET_WRITE
_DEPLOY, _ADMIN = Scope.DEPLOYMENT_WRITE, Scope.ADMIN


def _whose(request: requests.ById) -> str:
    return request.id


def _to_running(request: requests.Transition) -> str:
    return request.id if request.status == "running" else ""


def _nothing(work: Work, result: object) -> None:
    return None


def _row(
    rpc: str,
    route: str,
    scope: Scope,
    request: type[requests.Request],
    use_case: Callable[[Work, Any], Any],
    render: Callable[[Work, Any], Any],
    *,
    status: int = 200,
    location: str = "",
    reads: bool = False,
    asks_host: bool = False,
    settles: Callable[[Any], str] = _nobody,
    alias: str = "",
    already: int = 0,
) -> Operation:
    method, path = route.split()
    return Operation(
        rpc=rpc,
        method=method,
        path=path,
        scope=scope,
        request=request,
        use_case=use_case,
        render=render,
        status=status,
        location=location,
        reads=reads,
        asks_host=asks_host,
        settles=settles,
        alias=alias,
        already=already,
    )


# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    _row("ExperimentService.ListExperiments", "GET /v1/experiments", _READ,
         requests.ListExperiments, experiments.list_page, resources.experiments),
    _row("ExperimentService.CreateExperiment", "POST /v1/experiments", _WRITE,
         requests.CreateExperiment, experiments.create, resources.experiment,
         status=201, location="/v1/experiments/{id}"),
    _row("ExperimentService.GetExperiment", "GET /v1/experiments/{id}", _READ,
         requests.ById, experiments.get, resources.experiment),
    _row("ExperimentService.UpdateExperiment", "PATCH /v1/experiments/{id}", _WRITE,
         requests.UpdateExperiment, experiments.update, resources.experiment),
    _row("ExperimentService.DeleteExperiment", "DELETE /v1/experiments/{id}", _WRITE,
         requests.ById, experiments.delete, _nothing,
         status=204),
    _row("ExperimentService.TransitionExperiment", "PATCH /v1/experiments/{id}/status", _WRITE,
         requests.Transition, lifecycle.transition, resources.experiment,
         settles=_to_running),
    _row("ExperimentService.StartExperiment", "POST /v1/experiments/{id}/start", _WRITE,
         requests.Start, lifecycle.begin, resources.lifecycle,
         settles=_whose),
    _row("ExperimentService.PauseExperiment", "POST /v1/experiments/{id}/pause", _WRITE,
         requests.Pause, lifecycle.pause, resources.lifecycle),
    _row("ExperimentService.ResumeExperiment", "POST /v1/experiments/{id}/resume", _WRITE,
         requests.ById, lifecycle.resume, resources.lifecycle),
    _row("ExperimentService.StopExperiment", "POST /v1/experiments/{id}/stop", _WRITE,
         requests.ById, lifecycle.stop, resources.lifecycle),
    _row("ExperimentService.CompleteExperiment", "POST /v1/experiments/{id}/complete", _WRITE,
         requests.Complete, lifecycle.complete, resources.lifecycle),
    _row("ExperimentService.ShipExperiment", "POST /v1/experiments/{id}/ship", _WRITE,
         requests.Ship, lifecycle.ship, resources.lifecycle),
    _row("ExperimentService.ResetExperiment", "POST /v1/experiments/{id}/reset", _WRITE,
         requests.Reset, lifecycle.reset, resources.lifecycle),
    _row("ExperimentService.ArchiveExperiment", "POST /v1/experiments/{id}/archive", _WRITE,
         requests.ById, lifecycle.archive, resources.lifecycle),
    _row("ExperimentService.UnarchiveExperiment", "POST /v1/experiments/{id}/unarchive", _WRITE,
         requests.ById, lifecycle.unarchive, resources.lifecycle),
    _row("ExperimentService.DuplicateExperiment", "POST /v1/experiments/{id}/duplicate", _WRITE,
         requests.Duplicate, experiments.duplicate, resources.experiment,
         status=201, location="/v1/experiments/{id}"),
    _row("ExperimentService.OpenPhase", "POST /v1/experiments/{id}/phases", _WRITE,
         requests.OpenPhase, phases.open_phase, resources.opened_phase,
         status=201, location="/v1/experiments/{experimentId}/phases"),
    _row("ExperimentService.ListPhases", "GET /v1/experiments/{id}/phases", _READ,
         requests.ById, phases.list_phases, resources.phases),
    _row("ExperimentService.ListFindings", "GET /v1/experiments/{id}/findings", _READ,
         requests.ById, findings.get, resources.findings,
         alias="/v1/experiments/{id}/health"),
    _row("ExperimentService.CheckInstrumentation", "GET /v1/experiments/{id}/requires-instrumentation", _READ,
         requests.ById, survey.check_instrumentation, resources.instrumentation),
    _row("ExperimentService.ListEligibleTargets", "GET /v1/experiments/eligible-targets", _READ,
         requests.ListEligibleTargets, survey.list_eligible_targets, resources.eligible_targets),
    _row("ExperimentService.GetVelocity", "GET /v1/experiments/stats", _READ,
         requests.Nothing, survey.get_velocity, resources.velocity),
    _row("ExperimentService.ListVariants", "GET /v1/experiments/{id}/variants", _READ,
         requests.ById, experiments.list_variants, resources.variants),
    _row("ExperimentService.AddVariant", "POST /v1/experiments/{id}/variants", _WRITE,
         requests.AddVariant, experiments.add_variant, resources.one_variant,
         status=201, location="/v1/experiments/{experimentId}/variants/{id}"),
    _row("ExperimentService.GetVariant", "GET /v1/experiments/{id}/variants/{variantId}", _READ,
         requests.OfVariant, experiments.get_variant, resources.one_variant),
    _row("ExperimentService.UpdateVariant", "PATCH /v1/experiments/{id}/variants/{variantId}", _WRITE,
         requests.UpdateVariant, experiments.update_variant, resources.one_variant),
    _row("ExperimentService.DeleteVariant", "DELETE /v1/experiments/{id}/variants/{variantId}", _WRITE,
         requests.OfVariant, experiments.delete_variant, _nothing,
         status=204),
    _row("AssignmentService.ListAssignments", "GET /v1/experiments/{id}/assignments", _READ,
         requests.PageOf, experiments.list_assignments, resources.assignments),
    _row("AssignmentService.PreviewAssignments", "POST /v1/experiments/{id}/assignments:preview", _READ,
         requests.ById, preview.preview, resources.preview,
         reads=True, settles=_whose),
    _row("AssignmentService.ForceAssignment",
         "POST /v1/experiments/{id}/assignments/{participantId}:force", _DEPLOY,
         requests.ForceAssignment, deployments.force, resources.one_assignment),
    _row("AssignmentService.UnforceAssignment",
         "POST /v1/experiments/{id}/assignments/{participantId}:unforce", _DEPLOY,
         requests.OfAssignment, phases.unforce, resources.one_assignment),
    _row("DeploymentService.CreateDeployment", "POST /v1/experiments/{id}/deployments", _DEPLOY,
         requests.CreateDeployment, deployments.create, resources.deployment,
         status=201, location="/v1/deployments/{id}"),
    _row("DeploymentService.ListDeployments", "GET /v1/experiments/{id}/deployments", _READ,
         requests.ListDeployments, deployments.list_page, resources.deployments),
    _row("DeploymentService.GetDeployment", "GET /v1/deployments/{id}", _READ,
         requests.ById, deployments.get, resources.deployment),
    _row("DeploymentService.WithdrawDeployment", "POST /v1/deployments/{id}:withdraw", _DEPLOY,
         requests.ById, deployments.withdraw, resources.deployment),
    _row("DeploymentService.ListOutcomes", "GET /v1/deployments/{id}/outcomes", _READ,
         requests.PageOf, deployments.list_outcomes, resources.outcomes),
    _row("ResultsService.EstimateSampleSize", "GET /v1/sample-size", _READ,
         SampleSize, sizing.estimate, resources.sample_size),
    _row("ResultsService.GetResults", "GET /v1/experiments/{id}/results", _READ,
         requests.GetResults, results.get, resources.results),
    _row("ResultsService.GetTimeSeries", "GET /v1/experiments/{id}/results-time-series", _READ,
         GetTimeSeries, series.get, resources.time_series),
    _row("ResultsService.RecalculateTimeSeries", "POST /v1/experiments/{id}/recalculate-timeseries", _WRITE,
         RecalculateTimeSeries, recalculation.begin, resources.recalculation,
         status=202, already=200),
    _row("ResultsService.GetRecalculation", "GET /v1/experiments/{id}/timeseries-results", _READ,
         GetRecalculation, recalculation.results, resources.recalculated),
    _row("ResultsService.ComputeResults", "POST /v1/experiments/{id}/compute-results", _READ,
         requests.GetResults, results.get, resources.results,
         reads=True),
    _row("ResultsService.CheckTallies", "POST /v1/experiments/{id}/tallies:check", _READ,
         requests.ById, doctor.check_tallies, resources.tally_check,
         reads=True),
    _row("EventService.ListEvents", "GET /v1/events", _READ,
         arrivals.ListEvents, arrivals.list_page, resources.events),
    _row("EventService.ReportServerEvents", "POST /v1/events:batch", Scope.EVENT_WRITE,
         reported.ReportEvents, reporting.report, resources.taken),
    _row("MetricService.ListMetrics", "GET /v1/metrics", _READ,
         requests.Page, metrics.list_page, resources.saved_metrics),
    _row("MetricService.CreateMetric", "POST /v1/metrics", _WRITE,
         CreateMetric, metrics.create, resources.saved_metric,
         status=201, location="/v1/metrics/{id}"),
    _row("MetricService.GetMetric", "GET /v1/metrics/{id}", _READ,
         requests.ById, metrics.get, resources.saved_metric),
    _row("MetricService.UpdateMetric", "PATCH /v1/metrics/{id}", _WRITE,
         UpdateMetric, metrics.update, resources.saved_metric),
    _row("MetricService.DeleteMetric", "DELETE /v1/metrics/{id}", _WRITE,
         requests.ById, metrics.delete, _nothing,
         status=204),
    _row("HoldoutService.ListHoldouts", "GET /v1/holdouts", _READ,
         requests.Page, holdouts.list_page, resources.holdouts),
    _row("HoldoutService.CreateHoldout", "POST /v1/holdouts", _WRITE,
         requests.CreateHoldout, holdouts.create, resources.holdout,
         status=201, location="/v1/holdouts/{id}"),
    _row("HoldoutService.GetHoldout", "GET /v1/holdouts/{id}", _READ,
         requests.ById, holdouts.get, resources.holdout),
    _row("HoldoutService.UpdateHoldout", "PATCH /v1/holdouts/{id}", _WRITE,
         requests.UpdateHoldout, holdouts.update, resources.holdout),
    _row("HoldoutService.DeleteHoldout", "DELETE /v1/holdouts/{id}", _WRITE,
         requests.ById, holdouts.delete, _nothing,
         status=204),
    _row("FleetService.ListParticipants", "GET /v1/participants", _SEE,
         requests.ListHosts, fleet.list_participants, resources.participants),
    _row("FleetService.CreateParticipant", "POST /v1/participants", _MANAGE,
         requests.CreateParticipant, fleet.create_participant, resources.participant,
         status=201, location="/v1/participants/{id}"),
    _row("FleetService.GetParticipant", "GET /v1/participants/{id}", _SEE,
         requests.ById, fleet.get_participant, resources.participant),
    _row("FleetService.UpdateParticipant", "PATCH /v1/participants/{id}", _MANAGE,
         requests.UpdateParticipant, fleet.update_participant, resources.participant),
    _row("FleetService.DeleteParticipant", "DELETE /v1/participants/{id}", _MANAGE,
         requests.ById, fleet.delete_participant, _nothing,
         status=204),
    _row("FleetService.MoveParticipant", "POST /v1/participants/{id}:move", _MANAGE,
         requests.MoveParticipant, fleet.move_participant, resources.participant),
    _row("FleetService.ReadFile", "GET /v1/participants/{id}/files/{path}", Scope.CONTENT_READ,
         requests.ReadFile, fleet.read_file, reads.present_file,
         asks_host=True),
    _row("FleetService.GetFleet", "GET /v1/fleet", _SEE,
         requests.Nothing, fleet.get_fleet, resources.whole_fleet),
    _row("FleetService.FreezeFleet", "POST /v1/fleet:freeze", _MANAGE,
         requests.Nothing, fleet.freeze, resources.whole_fleet),
    _row("FleetService.UnfreezeFleet", "POST /v1/fleet:unfreeze", _MANAGE,
         requests.Nothing, fleet.unfreeze, resources.whole_fleet),
    _row("FleetService.ReleaseWithdrawals", "POST /v1/fleet:release", _MANAGE,
         requests.Nothing, fleet.release_withdrawals, resources.whole_fleet),
    _row("FleetService.ListAgents", "GET /v1/agents", _SEE,
         requests.ListHosts, fleet.list_agents, resources.agents),
    _row("FleetService.GetAgent", "GET /v1/agents/{id}", _SEE,
         requests.ById, fleet.get_agent, resources.agent),
    _row("FleetService.BanAgent", "POST /v1/agents/{id}:ban", _MANAGE,
         requests.ById, fleet.ban_agent, resources.agent),
    _row("FleetService.RetireAgent", "POST /v1/agents/{id}:retire", _MANAGE,
         requests.ById, fleet.retire_agent, resources.agent),
    _row("FleetService.ReleaseAgent", "POST /v1/agents/{id}:release", _MANAGE,
         requests.ById, fleet.release_agent, resources.agent),
    _row("FleetService.ListEnrollmentTokens", "GET /v1/enrollment-tokens", _SEE,
         requests.Page, access.list_enrollment_tokens, resources.enrollment_tokens),
    _row("FleetService.CreateEnrollmentToken", "POST /v1/enrollment-tokens", _MANAGE,
         requests.CreateEnrollmentToken, access.create_enrollment_token, resources.enrollment_token,
         status=201),
    _row("SettingsService.GetSettings", "GET /v1/settings", _READ,
         requests.Nothing, settings.get, resources.settings),
    _row("SettingsService.UpdateSettings", "PATCH /v1/settings", _ADMIN,
         UpdateSettings, settings.update, resources.settings),
    _row("AccessService.CreateApiKey", "POST /v1/api-keys", _ADMIN,
         requests.CreateApiKey, access.create_api_key, resources.api_key,
         status=201, location="/v1/api-keys/{id}"),
    _row("AccessService.ListApiKeys", "GET /v1/api-keys", _ADMIN,
         requests.Page, access.list_api_keys, resources.api_keys),
    _row("AccessService.GetApiKey", "GET /v1/api-keys/{id}", _ADMIN,
         requests.ById, access.get_api_key, resources.api_key),
    _row("AccessService.UpdateApiKey", "PATCH /v1/api-keys/{id}", _ADMIN,
         requests.UpdateApiKey, access.update_api_key, resources.api_key),
    _row("AccessService.RevokeApiKey", "DELETE /v1/api-keys/{id}", _ADMIN,
         requests.ById, access.revoke_api_key, _nothing,
         status=204),
    _row("AccessService.ListAuditLog", "GET /v1/audit-log", _ADMIN,
         requests.ListAuditLog, access.list_audit, resources.audit),
)
# fmt: on
"""Every operation."""

EXPORT = _row(
    "EventService.ExportEvents",
    "GET /v1/experiments/{id}/export",
    _READ,
    export.ExportEvents,
    export.page,
    resources.exported,
)
"""The one operation whose answer is a stream that ends."""
EXPORT_TYPE = "application/x-ndjson"


def _listed(
    resource: str,
    request: type[requests.Page],
    use_case: Callable[[Work, Any], Any],
    render: Callable[[Work, Any], Any],
) -> Listed:
    return Listed(resource=resource, request=request, use_case=use_case, render=render)


WATCH_PATH = "/v1/watch"
WATCHES: tuple[Watch, ...] = (
    Watch(
        rpc="ExperimentService.WatchExperiments",
        name="experiments",
        scope=_READ,
        lists=(
            _listed("experiment", requests.ListExperiments, experiments.list_page, resources.experiments),
        ),
    ),
    Watch(
        rpc="DeploymentService.WatchDeployments",
        name="deployments",
        scope=_READ,
        lists=(_listed("deployment", requests.Page, deployments.list_current, resources.deployments),),
    ),
    Watch(
        rpc="FleetService.WatchFleet",
        name="fleet",
        scope=_SEE,
        lists=(
            _listed("participant", requests.ListHosts, fleet.list_participants, resources.participants),
            _listed("agent", requests.ListHosts, fleet.list_agents, resources.agents),
        ),
    ),
)
"""Every stream."""
