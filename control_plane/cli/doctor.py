"""Looking for what should never be."""

from collections.abc import Iterator
from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.session import Exit, Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def tallies(
    session: Session,
    *,
    experiment: Annotated[
        str, typer.Argument(metavar="[EXPERIMENT]", help="Id or key; default: every one of the project.")
    ] = "",
) -> None:
    """Add up once more, from the events that are kept, everything that results read; tell every difference.

    Exit code 1 where there is one. Changes nothing.
    """
    wanted = [experiment] if experiment else list(_all(session))
    found = [
        session.call(session.results.CheckTallies, pb.CheckTalliesRequest(id=identifier))
        for identifier in wanted
    ]
    if session.json:
        show.print_json(session.out, [show.to_json(item) for item in found])
    else:
        for item in found:
            _tell(session, item)
        if not found:
            show.say(session.out, "there are no experiments")
    if any(item.difference_count for item in found):
        raise typer.Exit(Exit.ERROR)


def _all(session: Session) -> Iterator[str]:
    for archived in (False, True):
        request = pb.ListExperimentsRequest(archived=archived)
        for item in session.pages(session.experiments.ListExperiments, request, "experiments"):
            yield item.id


def _tell(session: Session, found: pb.TallyCheck) -> None:
    what = f"{found.event_count} events of {found.participant_count} participants"
    if found.gone_phase_count:
        what += f"; raw events of {found.gone_phase_count} of {found.phase_count} phases are deleted"
    if not found.difference_count:
        show.say(session.out, f"{found.key}: nothing differs ({what})")
        return
    show.say(session.out, f"{found.key}: {found.difference_count} numbers differ ({what})")
    for item in found.differences:
        where = ", ".join(f"{name} {value}" for name, value in _place(item))
        stored = item.stored if item.HasField("stored") else "nothing"
        recomputed = item.recomputed if item.HasField("recomputed") else "nothing"
        show.say(session.out, f"  {item.table}: {where}: {stored}, by the events {recomputed}")
    if found.difference_count > len(found.differences):
        show.say(session.out, f"  and {found.difference_count - len(found.differences)} more")


def _place(item: pb.TallyDifference) -> Iterator[tuple[str, str]]:
    for name, value in (
        ("participant", item.participant_id),
        ("variant", item.variant_id),
        ("block", str(item.time_block or "")),
        ("subject", item.subject),
        ("event", item.event_name or ("" if item.table == "standing" else "impression")),
        ("day", item.date),
        ("standing", item.standing),
        (item.population, item.field),
    ):
        if value:
            yield name, value
