"""Looking around: what can be tested, whether anything is reported of it, how many experiments there are."""

from collections.abc import Iterator
from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.experiments import Limit, Name
from control_plane.cli.session import Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def targets(
    session: Session,
    *,
    search: Annotated[str, typer.Option("--search", help="Part of the path.")] = "",
    limit: Limit = None,
) -> None:
    """Target files that can be tested: hosts declare them, settings allow them, somewhere nothing holds them."""
    request = pb.ListEligibleTargetsRequest(search=search)
    found = list(
        session.pages(session.experiments.ListEligibleTargets, request, "eligible_targets", limit=limit)
    )
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("target", "participants", "available", "held by"),
        (
            (item.target, item.participant_count, item.available_count, ", ".join(item.held_by))
            for item in found
        ),
        empty="no host declares a file that could be tested",
        right=("participants", "available"),
    )


def instrumentation(session: Session, *, experiment: Name) -> None:
    """Whether applications report what the experiment needs: exposures, and each metric's conversion."""
    request = pb.CheckInstrumentationRequest(id=experiment)
    found = session.call(session.experiments.CheckInstrumentation, request)
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    show.print_table(
        session.out,
        ("what", "name", "reported by", "last seen"),
        (
            (what, name, f"{signal.reporting_count} of {found.participant_count}", _last(signal))
            for what, name, signal in _signals(found)
        ),
        empty="it needs nothing",
    )
    if found.requires_instrumentation:
        show.say(
            session.out, "something it needs was never reported; `variant-agent report` on a host does it"
        )


def _signals(found: pb.Instrumentation) -> Iterator[tuple[str, str, pb.Signal]]:
    for target in found.targets:
        yield "exposure", target.target, target.signal
    if not found.targets:
        yield "exposure", "", found.exposure
    for metric in found.metrics:
        yield metric.role, metric.event_name, metric.signal


def _last(signal: pb.Signal) -> str:
    return show.moment(signal, "last_seen_at") or "never"


def stats(session: Session) -> None:
    """Experiments launched and completed in the last 30 days against the 30 before, and running now."""
    found = session.call(session.experiments.GetVelocity, pb.GetVelocityRequest())
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    days = found.window_days
    show.print_table(
        session.out,
        ("", f"last {days} days", f"{days} before", "change"),
        (
            (name, pace.current, pace.previous, f"{pace.percent_change:+g} %")
            for name, pace in (("launched", found.launched), ("completed", found.completed))
        ),
        empty="",
        right=("change",),
    )
    show.say(session.out, f"{found.running} running now")
