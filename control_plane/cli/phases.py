"""Phases of an experiment, and forced participants."""

from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.experiments import Name
from control_plane.cli.session import Session, request_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def open_phase(
    session: Session,
    *,
    experiment: Name,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", "-w", help="VARIANT=PERCENT, once for every variant; they sum to 100."),
    ] = None,
    allocation: Annotated[
        int | None,
        typer.Option("--allocation", min=0, max=100, help="Per cent of participants that take part."),
    ] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", help="64 hex digits: deal everything out again with this seed.")
    ] = None,
) -> None:
    """Split participants otherwise from now on; only who has to moves, and results are counted anew."""
    request = pb.OpenPhaseRequest(
        id=experiment,
        weights=dict(_weight(text) for text in weight or ()),
        traffic_allocation=allocation,
        seed=seed,
        request_id=request_id(),
    )
    opened = session.call(session.experiments.OpenPhase, request)
    for warning in opened.warnings:
        show.say(session.err, f"variantctl: warning: {warning.message} ({warning.code})")
    session.show(opened, f"phase {opened.number} of {experiment} is open")


def _weight(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name or not value.isdecimal():
        raise typer.BadParameter(f"{text!r} is not VARIANT=PERCENT, such as concise=80")
    return name, int(value)


def list_phases(session: Session, *, experiment: Name) -> None:
    """Phases of the present run, in order."""
    found = session.call(session.experiments.ListPhases, pb.ListPhasesRequest(id=experiment)).phases
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    keys = {variant.id: variant.key for variant in session.experiment(experiment).variants}
    show.print_table(
        session.out,
        ("phase", "opened", "closed", "weights", "allocation", "procedure"),
        (
            (
                item.number,
                show.moment(item, "opened_at"),
                show.moment(item, "closed_at"),
                ", ".join(f"{keys.get(key, key)} {value}" for key, value in sorted(item.weights.items())),
                f"{item.traffic_allocation} %",
                item.algorithm,
            )
            for item in found
        ),
        empty=f"{experiment} has not started",
        right=("phase", "allocation"),
    )


def force(
    session: Session,
    *,
    experiment: Name,
    participant: Annotated[str, typer.Option("--participant", "-p", help="Who should hold it.")],
    variant: Annotated[str, typer.Option("--variant", "-v", help="Key or id of the variant.")],
) -> None:
    """Put a participant onto a variant, whatever was drawn.

    It stays in its arm for the assigned population and leaves the delivered one; `unforce` takes it back.
    """
    request = pb.ForceAssignmentRequest(
        id=experiment, participant_id=participant, variant_id=variant, request_id=request_id()
    )
    found = session.call(session.assignments.ForceAssignment, request)
    session.show(found, f"{participant} should hold {variant}, whatever was drawn")


def unforce(
    session: Session,
    *,
    experiment: Name,
    participant: Annotated[
        str, typer.Option("--participant", "-p", help="Whose assigned variant comes back.")
    ],
) -> None:
    """Give a participant its assigned variant back, after another one was deployed by hand."""
    request = pb.UnforceAssignmentRequest(id=experiment, participant_id=participant, request_id=request_id())
    found = session.call(session.assignments.UnforceAssignment, request)
    session.show(found, f"{participant} should hold its assigned variant again")
