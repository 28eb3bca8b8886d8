"""Results day by day, for people."""

from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.connection import Exit, Failure
from control_plane.cli.session import Session, duration, wait_until
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def by_day(session: Session, request: pb.GetTimeSeriesRequest) -> None:
    """The days are shown."""
    found = session.call(session.results.GetTimeSeries, request)
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    over = f"{found.start_date} … {found.end_date} UTC" if found.start_date else "no day was measured"
    show.say(session.out, f"{found.key}; {found.event_name}; {found.population}; {over}")
    show.print_table(
        session.out,
        ("day", "variant", "impressions", "conversions", "rate", "new", "rate so far"),
        (
            (
                day.date if not place else "",
                item.key,
                item.impressions,
                item.conversions,
                _rate(item),
                item.new_participants,
                _rate(item.cumulative),
            )
            for day in found.days
            for place, item in enumerate(day.variants)
        ),
        empty="no impressions on any day",
        right=("impressions", "conversions", "rate", "new", "rate so far"),
    )


def recalculate(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    metric: Annotated[
        str, typer.Option("--metric", metavar="METRIC", help="Id, key, name or event; default: the primary.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Come back when every day is computed.")] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="With --wait: at most so long.")
    ] = "5m",
) -> None:
    """Have the days of the present phase computed anew for a metric, and show how far that is.

    It is done in the background and goes on after a restart; asking again while it is under way begins nothing.
    """
    if not metric:
        found = session.call(session.experiments.GetExperiment, pb.GetExperimentRequest(id=experiment))
        metric = found.metrics.primary.event_name
        if not metric:
            raise Failure(f"{found.key} has no primary metric; name one with --metric")
    job = session.call(
        session.results.RecalculateTimeSeries, pb.RecalculateTimeSeriesRequest(id=experiment, metric=metric)
    )
    asked = pb.GetRecalculationRequest(id=experiment, metric=metric, fingerprint=job.fingerprint)
    found_days = session.call(session.results.GetRecalculation, asked)
    if wait:

        def ended() -> bool:
            nonlocal found_days
            found_days = session.call(session.results.GetRecalculation, asked)
            return found_days.status not in ("pending", "in_progress")

        if not wait_until(session, ended, seconds=duration(timeout), doing=f"computing {metric} by day"):
            raise Failure(f"it is {found_days.status} after {timeout}", exit_code=Exit.TIMED_OUT)
    if session.json:
        show.print_json(session.out, show.to_json(found_days))
    else:
        done = sum(1 for day in found_days.days if day.HasField("computed_at"))
        over = f"{found_days.start_date} … {found_days.end_date} UTC"
        show.say(
            session.out, f"{found_days.key}; {metric}; {over}: {done} days computed, {found_days.status}"
        )
    if found_days.status == "failed":
        raise Failure(found_days.recalculation.failure or "no day could be computed")


def _rate(counted: pb.TimeSeriesVariant | pb.CumulativeCounts) -> str | None:
    return f"{100 * counted.conversion_rate:.1f} %" if counted.HasField("conversion_rate") else None
