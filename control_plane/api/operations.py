"""The one table of operations: what each is called on both transports, who may, and what it does.

REST routes, operator gRPC methods and their checks are made from it, so an operation cannot exist on one
transport only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from control_plane.api import resources
from control_plane.domain import requests
from control_plane.services import access, deployments, experiments, fleet, lifecycle, results
from control_plane.services.work import Scope, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. `rpc` is Service.Method; `{names}` in `path` are fields of the request.

    `status` is the HTTP status of success; with 201, `location` is the path of what was made.
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

    @property
    def changes(self) -> bool:
        """Whether it may change anything."""
        return self.method != "GET"


def _nothing(work: Work, result: object) -> None:
    return None


def operations(enrollment_token: Callable[[Work, Any], Any]) -> tuple[Operation, ...]:
    """Every operation; `enrollment_token` renders fresh tokens, which name this server's addresses."""
    read, write = Scope.EXPERIMENT_READ, Scope.EXPERIMENT_WRITE
    see, manage = Scope.FLEET_READ, Scope.FLEET_WRITE
    deploy, admin = Scope.DEPLOYMENT_WRITE, Scope.ADMIN
    e, one, many = experiments, resources.experiment, resources.experiments
    at, of = "/v1/experiments", "/v1/experiments/{id}"

    def op(rpc: str, method: str, path: str, scope: Scope, *rest: Any, **options: Any) -> Operation:
        request, use_case, render = rest
        return Operation(
            rpc=rpc,
            method=method,
            path=path,
            scope=scope,
            request=request,
            use_case=use_case,
            render=render,
            **options,
        )

    def verb(name: str, use_case: Callable[[Work, Any], Any], request: type[requests.Request]) -> Operation:
        rpc = f"ExperimentService.{name.capitalize()}Experiment"
        return op(rpc, "POST", f"{of}/{name}", write, request, use_case, resources.lifecycle)

    return (
        op("ExperimentService.ListExperiments", "GET", at, read, requests.ListExperiments, e.list_page, many),
        op(
            "ExperimentService.CreateExperiment",
            "POST",
            at,
            write,
            requests.CreateExperiment,
            e.create,
            one,
            status=201,
            location=at + "/{id}",
        ),
        op("ExperimentService.GetExperiment", "GET", of, read, requests.ById, e.get, one),
        op(
            "ExperimentService.UpdateExperiment", "PATCH", of, write, requests.UpdateExperiment, e.update, one
        ),
        op(
            "ExperimentService.DeleteExperiment",
            "DELETE",
            of,
            write,
            requests.ById,
            e.delete,
            _nothing,
            status=204,
        ),
        op(
            "ExperimentService.TransitionExperiment",
            "PATCH",
            of + "/status",
            write,
            requests.Transition,
            lifecycle.transition,
            one,
        ),
        verb("start", lifecycle.start, requests.ById),
        verb("pause", lifecycle.pause, requests.ById),
        verb("resume", lifecycle.resume, requests.ById),
        verb("stop", lifecycle.stop, requests.ById),
        verb("complete", lifecycle.complete, requests.Complete),
        op(
            "ExperimentService.ListVariants",
            "GET",
            of + "/variants",
            read,
            requests.ById,
            e.list_variants,
            resources.variants,
        ),
        op(
            "ExperimentService.AddVariant",
            "POST",
            of + "/variants",
            write,
            requests.AddVariant,
            e.add_variant,
            resources.one_variant,
            status=201,
            location=at + "/{experimentId}/variants/{id}",
        ),
        op(
            "ExperimentService.GetVariant",
            "GET",
            of + "/variants/{variantId}",
            read,
            requests.OfVariant,
            e.get_variant,
            resources.one_variant,
        ),
        op(
            "ExperimentService.UpdateVariant",
            "PATCH",
            of + "/variants/{variantId}",
            write,
            requests.UpdateVariant,
            e.update_variant,
            resources.one_variant,
        ),
        op(
            "ExperimentService.DeleteVariant",
            "DELETE",
            of + "/variants/{variantId}",
            write,
            requests.OfVariant,
            e.delete_variant,
            _nothing,
            status=204,
        ),
        op(
            "AssignmentService.ListAssignments",
            "GET",
            of + "/assignments",
            read,
            requests.PageOf,
            e.list_assignments,
            resources.assignments,
        ),
        op(
            "DeploymentService.CreateDeployment",
            "POST",
            of + "/deployments",
            deploy,
            requests.CreateDeployment,
            deployments.create,
            resources.deployment,
            status=201,
            location="/v1/deployments/{id}",
        ),
        op(
            "DeploymentService.ListDeployments",
            "GET",
            of + "/deployments",
            read,
            requests.PageOf,
            deployments.list_page,
            resources.deployments,
        ),
        op(
            "DeploymentService.GetDeployment",
            "GET",
            "/v1/deployments/{id}",
            read,
            requests.ById,
            deployments.get,
            resources.deployment,
        ),
        op(
            "DeploymentService.ListOutcomes",
            "GET",
            "/v1/deployments/{id}/outcomes",
            read,
            requests.PageOf,
            deployments.list_outcomes,
            resources.outcomes,
        ),
        op(
            "ResultsService.GetResults",
            "GET",
            of + "/results",
            read,
            requests.GetResults,
            results.get,
            resources.results,
        ),
        op(
            "FleetService.ListParticipants",
            "GET",
            "/v1/participants",
            see,
            requests.Page,
            fleet.list_participants,
            resources.participants,
        ),
        op(
            "FleetService.CreateParticipant",
            "POST",
            "/v1/participants",
            manage,
            requests.CreateParticipant,
            fleet.create_participant,
            resources.participant,
            status=201,
            location="/v1/participants/{id}",
        ),
        op(
            "FleetService.GetParticipant",
            "GET",
            "/v1/participants/{id}",
            see,
            requests.ById,
            fleet.get_participant,
            resources.participant,
        ),
        op(
            "FleetService.UpdateParticipant",
            "PATCH",
            "/v1/participants/{id}",
            manage,
            requests.CreateParticipant,
            fleet.update_participant,
            resources.participant,
        ),
        op(
            "FleetService.DeleteParticipant",
            "DELETE",
            "/v1/participants/{id}",
            manage,
            requests.ById,
            fleet.delete_participant,
            _nothing,
            status=204,
        ),
        op(
            "FleetService.ListAgents",
            "GET",
            "/v1/agents",
            see,
            requests.Page,
            fleet.list_agents,
            resources.agents,
        ),
        op(
            "FleetService.GetAgent",
            "GET",
            "/v1/agents/{id}",
            see,
            requests.ById,
            fleet.get_agent,
            resources.agent,
        ),
        op(
            "FleetService.BanAgent",
            "POST",
            "/v1/agents/{id}:ban",
            manage,
            requests.ById,
            fleet.ban_agent,
            resources.agent,
        ),
        op(
            "FleetService.ListEnrollmentTokens",
            "GET",
            "/v1/enrollment-tokens",
            see,
            requests.Page,
            access.list_enrollment_tokens,
            resources.enrollment_tokens,
        ),
        op(
            "FleetService.CreateEnrollmentToken",
            "POST",
            "/v1/enrollment-tokens",
            manage,
            requests.CreateEnrollmentToken,
            access.create_enrollment_token,
            enrollment_token,
            status=201,
        ),
        op(
            "AccessService.CreateApiKey",
            "POST",
            "/v1/api-keys",
            admin,
            requests.CreateApiKey,
            access.create_api_key,
            resources.api_key,
            status=201,
        ),
        op(
            "AccessService.ListAuditLog",
            "GET",
            "/v1/audit-log",
            admin,
            requests.Page,
            access.list_audit,
            resources.audit,
        ),
    )
