"""Holdouts: shares of participants that stay out of every experiment that names them."""

from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.session import Session, request_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

Name = Annotated[str, typer.Argument(metavar="HOLDOUT", help="Its key or id.")]
Share = Annotated[float, typer.Option("--share", min=0, max=100, help="Per cent of participants.")]


def list_holdouts(
    session: Session, *, limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100
) -> None:
    """Holdouts by key, with the experiments that name each."""
    request = pb.ListHoldoutsRequest()
    found = list(session.pages(session.holdouts.ListHoldouts, request, "holdouts", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("holdout", "name", "share", "experiments"),
        ((item.key, item.name, f"{item.share:g} %", ", ".join(item.experiments)) for item in found),
        empty="there is no holdout",
    )


def get(session: Session, holdout: Name) -> None:
    """One holdout."""
    found = session.call(session.holdouts.GetHoldout, pb.GetHoldoutRequest(id=holdout))
    session.show(found, _said(found))


def create(
    session: Session,
    *,
    name: Annotated[str, typer.Option("--name", help="What people call it.")],
    share: Share,
    key: Annotated[str | None, typer.Option("--key", help="Default: made from the name.")] = None,
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
) -> None:
    """Make a holdout; a manifest names it as `holdoutId: KEY`.

    Who is in it is drawn once and is the same in every experiment that names it.
    """
    request = pb.CreateHoldoutRequest(
        name=name, key=key, share=share, description=description, request_id=request_id()
    )
    made = session.call(session.holdouts.CreateHoldout, request)
    session.show(made, _said(made))


def update(
    session: Session,
    holdout: Name,
    *,
    name: Annotated[str | None, typer.Option("--name", help="Its new name.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="What it is for.")] = None,
    share: Annotated[
        float | None, typer.Option("--share", min=0, max=100, help="Per cent of participants.")
    ] = None,
) -> None:
    """Change a holdout; its share only while no experiment that names it is under way."""
    request = pb.UpdateHoldoutRequest(
        id=holdout, name=name, description=description, share=share, request_id=request_id()
    )
    changed = session.call(session.holdouts.UpdateHoldout, request)
    session.show(changed, _said(changed))


def delete(session: Session, holdout: Name) -> None:
    """Remove a holdout that no experiment names."""
    session.call(session.holdouts.DeleteHoldout, pb.DeleteHoldoutRequest(id=holdout, request_id=request_id()))
    if not session.json:
        show.say(session.out, f"{holdout} is gone")


def _said(item: pb.Holdout) -> str:
    used = f"; named by {', '.join(item.experiments)}" if item.experiments else "; no experiment names it yet"
    return f"{item.key} keeps {item.share:g} % of participants out{used}"
