"""Deployments by hand, and waiting until hosts hold what they should."""

from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.connection import Unreachable
from control_plane.cli.session import Exit, Failure, Session, Timeout, request_id, wait_until
from control_plane.domain.deployment import State
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

HOLDS = frozenset({"applied", "confirmed"})
FAILED = frozenset({"refused", "rolled_back", "stuck", "superseded"})
GONE = frozenset({"withdrawn"})
"""Nobody is asked for it any more: somebody took it back, or its host was retired."""


def deploy(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    participant: Annotated[str, typer.Option("--participant", "-p", help="Whose file.")],
    variant: Annotated[str, typer.Option("--variant", "-v", help="Id or key of the variant.")],
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Until the host holds it (its health probe too, if any), or refuses."),
    ] = False,
    timeout: Timeout = 120.0,
    require_connected: Annotated[
        bool, typer.Option("--require-connected", help="Fail at once unless its agent is connected.")
    ] = False,
    overwrite_drift: Annotated[
        bool, typer.Option("--overwrite-drift", help="Apply over a file that somebody else changed.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again although the host has quarantined this content.")
    ] = False,
) -> None:
    """Put a variant onto one participant now.

    Without an agent connected the deployment is pending until one is. Deploying another variant than the
    assigned one makes the assignment `forced`. With --wait: exit code 3 where the host refused or was given something
    newer first, 5 where it took too long.
    """
    deployment = session.call(
        session.deployments.CreateDeployment,
        pb.CreateDeploymentRequest(
            id=experiment,
            participant_id=participant,
            variant_id=variant,
            require_connected=require_connected,
            overwrite_drift=overwrite_drift,
            retry=retry,
            request_id=request_id(),
        ),
    )
    unknown: Unreachable | None = None
    probed = False
    if wait:
        deployment, probed, unknown = _settled(session, deployment, timeout)
    offline = "" if deployment.connected or deployment.state in HOLDS else "; its agent is not connected"
    window = "; its health window runs" if deployment.confirming else ""
    session.show(deployment, f"{variant} on {participant}: {deployment.state}{offline}{window}")
    if unknown is not None:
        raise unknown
    if wait and deployment.state in FAILED | GONE:
        raise Failure(f"{participant} {_why(deployment)}", exit_code=Exit.NOT_CONVERGED)
    if probed and deployment.state == "applied" and not deployment.confirming:
        message = f"{participant} was given something newer, or is not asked for it, before its health window was over"
        raise Failure(message, exit_code=Exit.NOT_CONVERGED)
    if wait and not is_settled(deployment):
        raise Failure(
            f"{participant} is still {deployment.state} after {timeout:g} s{offline}{window}",
            exit_code=Exit.TIMED_OUT,
        )


def withdraw(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    participant: Annotated[str, typer.Option("--participant", "-p", help="Whose file.")],
) -> None:
    """Take back what was last deployed by hand onto a participant, while its host is not done with it.

    The file is to hold what it should have held before, by a newer revision; an assignment that this forced is as it
    was drawn. What the host has applied already is undone by another `deploy`, or by `experiments unforce`.
    """
    newest = [item for item in current(session, experiment) if item.participant_id == participant]
    if not newest:
        raise Failure(f"nothing was deployed onto {participant} for {experiment}")
    request = pb.WithdrawDeploymentRequest(id=newest[0].id, request_id=request_id())
    deployment = session.call(session.deployments.WithdrawDeployment, request)
    session.show(deployment, f"{participant}: {deployment.state}")


def is_settled(deployment: pb.Deployment) -> bool:
    """The host is done with it: its health window too, where it has one."""
    return deployment.state in HOLDS | FAILED | GONE and not deployment.confirming


def _settled(
    session: Session, deployment: pb.Deployment, timeout: float
) -> tuple[pb.Deployment, bool, Unreachable | None]:
    """The deployment as last heard of, whether its health window was seen to run, and who kept us from hearing more."""
    latest, probed, away = deployment, False, None

    def ended() -> bool:
        nonlocal latest, probed
        request = pb.GetDeploymentRequest(id=deployment.id)
        latest = session.call(session.deployments.GetDeployment, request)
        probed = probed or latest.confirming
        return is_settled(latest)

    try:
        wait_until(session, ended, seconds=timeout, doing=f"waiting for {deployment.participant_id}")
    except Unreachable as failure:
        away = failure
    return latest, probed, away


def _why(deployment: pb.Deployment) -> str:
    reason = deployment.reason
    text = f"has {deployment.state.replace('_', ' ')} it"
    if deployment.state == "superseded":
        text = "was given something newer meanwhile: superseded"
    if deployment.state in GONE:
        text = "is not asked for it any more"
    if not reason.code:
        return text
    return f"{text}: {reason.code}: {reason.message}" + (f"; {reason.remedy}" if reason.remedy else "")


def wait_for(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    timeout: Timeout = 120.0,
) -> None:
    """Wait until every host has done what it was last told for this experiment.

    A host that was retired is not waited for. Exit code 3 where one has refused or undone it, 5 where one has not
    answered in time.
    """
    found: list[pb.Deployment] = []

    def ended() -> bool:
        request = pb.ListDeploymentsRequest(id=experiment, current=True, settled=False)
        if any(session.pages(session.deployments.ListDeployments, request, "deployments", limit=1)):
            return False  # of a large fleet one page is asked for, not all of them every second
        found[:] = current(session, experiment)
        return all(is_settled(item) for item in found)

    in_time = wait_until(session, ended, seconds=timeout, doing=f"waiting for the hosts of {experiment}")
    if not in_time:
        found = current(session, experiment)
    if session.json:
        show.print_json(session.out, show.page(found))
    else:
        holding = sum(item.state in HOLDS for item in found)
        gone = sum(item.state in GONE for item in found)
        also = f"; {gone} withdrawn" if gone else ""
        text = f"{holding} of {len(found)} participants hold what they should{also}"
        show.say(session.out, f"{experiment}: {text if found else 'nothing was deployed for it yet'}")
    failed = [item for item in found if item.state in FAILED]
    for item in failed[: show.LISTED]:
        show.say(session.err, f"  {item.participant_id} {_why(item)}")
    if len(failed) > show.LISTED:
        command = f"variantctl experiments deployments {experiment} --current"
        show.say(session.err, f"  and {len(failed) - show.LISTED} more; all: {command}")
    waiting = [item for item in found if not is_settled(item)]
    for item in waiting[: show.LISTED]:
        probed = "; its health window runs" if item.confirming else ""
        show.say(session.err, f"  {item.participant_id} is {item.state}{_offline(item)}{probed}")
    if len(waiting) > show.LISTED:
        command = f"variantctl experiments deployments {experiment} --current --unsettled"
        show.say(session.err, f"  and {len(waiting) - show.LISTED} more; all: {command}")
    if failed:
        raise Failure(f"{len(failed)} did not take what they were told", exit_code=Exit.NOT_CONVERGED)
    if not in_time:
        raise Failure(f"{len(waiting)} have not ended after {timeout:g} s", exit_code=Exit.TIMED_OUT)


def _offline(deployment: pb.Deployment) -> str:
    return "" if deployment.connected else "; its agent is not connected"


def current(session: Session, experiment: str) -> list[pb.Deployment]:
    """The newest deployment of each participant's slot, by participant."""
    request = pb.ListDeploymentsRequest(id=experiment, current=True)
    found = session.pages(session.deployments.ListDeployments, request, "deployments")
    return sorted(found, key=lambda item: (item.participant_id, item.slot_id))


def show_deployments(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many, newest first.")
    ] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only those that are so.")] = None,
    only_current: Annotated[
        bool, typer.Option("--current", help="Only the newest of each participant's slot.")
    ] = False,
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Only those whose hosts are not done with them.")
    ] = False,
) -> None:
    """What was deployed for an experiment, newest first, and what became of it."""
    request = pb.ListDeploymentsRequest(
        id=experiment, state=state, current=only_current, settled=False if unsettled else None
    )
    found = list(session.pages(session.deployments.ListDeployments, request, "deployments", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    keys = {variant.id: variant.key for variant in session.experiment(experiment).variants}
    show.print_table(
        session.out,
        ("id", "participant", "action", "variant", "origin", "state", "attempts", "reason", "updated"),
        (
            (
                item.id,
                item.participant_id,
                item.action,
                keys.get(item.variant_id, item.variant_id),
                item.origin,
                item.state,
                item.attempts,
                item.reason.code,
                show.moment(item, "updated_at"),
            )
            for item in found
        ),
        empty="none is so" if state or unsettled else f"nothing was deployed for {experiment} yet",
        right=("attempts",),
    )
