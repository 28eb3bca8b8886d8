"""`variantctl watch`: what is on files, how deployments stand, and what the numbers say, as it changes."""

from typing import Annotated

import typer

from control_plane.cli import results, show
from control_plane.cli.live import Fact, Frame, Interval, follow
from control_plane.cli.results import result_fact
from control_plane.cli.session import Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def watch(
    session: Session,
    *,
    experiment: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="Id or key; default: all that are started.")
    ] = None,
    interval: Interval = "2s",
) -> None:
    """Files, drift, deployments and results, live, until interrupted or until the experiment has ended."""
    follow(session, lambda: _everything(session, experiment), interval=interval)


def _everything(session: Session, wanted: str | None) -> Frame:
    if wanted is not None:
        found = [session.call(session.experiments.GetExperiment, pb.GetExperimentRequest(id=wanted))]
    else:
        started = (pb.EXPERIMENT_STATUS_RUNNING, pb.EXPERIMENT_STATUS_PAUSED, pb.EXPERIMENT_STATUS_STOPPED)
        found = [
            item
            for status in started
            for item in session.pages(
                session.experiments.ListExperiments, pb.ListExperimentsRequest(status=status), "experiments"
            )
        ]
    ids = {item.id for item in found}
    participants = list(
        session.pages(session.fleet.ListParticipants, pb.ListParticipantsRequest(), "participants")
    )
    held = [(p, file) for p in participants for file in p.files if file.experiment_id in ids]
    numbers = [
        session.call(session.results.GetResults, pb.GetResultsRequest(id=item.id))
        for item in found
        if item.status != pb.EXPERIMENT_STATUS_DRAFT
    ]
    states = [(item, _newest(session, item)) for item in found]
    names = {variant.id: variant.name for item in found for variant in item.variants}

    def draw(onto: Session) -> None:
        _draw_files(onto, held, names)
        for result in numbers:
            show.say(onto.out, "")
            results.print_results(onto, result)

    facts = (
        *(_file_fact(p, file, names) for p, file in held),
        *(_deployment_fact(item, newest) for item, deployments in states for newest in deployments),
        *(result_fact(result) for result in numbers),
    )
    over = wanted is not None and all(
        item.status == pb.EXPERIMENT_STATUS_COMPLETED and all(_ended(newest) for newest in deployments)
        for item, deployments in states
    )
    return Frame(draw=draw, facts=facts, over=over)


def _newest(session: Session, experiment: pb.Experiment) -> list[pb.Deployment]:
    """The newest deployment of each participant."""
    newest: dict[str, pb.Deployment] = {}
    request = pb.ListDeploymentsRequest(id=experiment.id)
    for item in session.pages(session.deployments.ListDeployments, request, "deployments"):
        newest.setdefault(item.participant_id, item)
    return list(newest.values())


def _ended(deployment: pb.Deployment) -> bool:
    return deployment.state not in ("pending", "offered", "applying")


def _file_fact(participant: pb.Participant, file: pb.ParticipantFile, names: dict[str, str]) -> Fact:
    state = file.state or "nothing reported yet"
    wanted = names.get(file.variant_id, "what was there before")
    value = {
        "kind": "file",
        "participantId": participant.id,
        "path": file.path,
        "state": file.state or None,
        "variantId": file.variant_id or None,
        "runningDigest": file.running_digest or None,
        "presence": participant.presence,
    }
    text = f"{participant.id} {file.path}: {state}; wanted {wanted}; host {participant.presence}"
    return Fact(f"file {participant.id} {file.path}", value, text)


def _deployment_fact(experiment: pb.Experiment, item: pb.Deployment) -> Fact:
    why = f": {item.reason.code}: {item.reason.message}" if item.HasField("reason") else ""
    value = {
        "kind": "deployment",
        "experiment": experiment.key,
        "participantId": item.participant_id,
        "revision": str(item.revision),
        "action": item.action,
        "state": item.state,
        "reason": item.reason.code if item.HasField("reason") else None,
    }
    text = (
        f"{item.participant_id} {experiment.key} revision {item.revision} ({item.action}): {item.state}{why}"
    )
    return Fact(f"deployment {experiment.key} {item.participant_id}", value, text)


def _draw_files(
    session: Session, held: list[tuple[pb.Participant, pb.ParticipantFile]], names: dict[str, str]
) -> None:
    show.print_table(
        session.out,
        ("participant", "file", "wanted", "on disk", "host"),
        (
            (
                participant.id,
                file.path,
                names.get(file.variant_id),
                file.state or "nothing reported yet",
                participant.presence,
            )
            for participant, file in held
        ),
        empty="no experiment holds a file",
    )
