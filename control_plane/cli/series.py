"""Results day by day, for people."""

from control_plane.cli import show
from control_plane.cli.session import Session
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


def _rate(counted: pb.TimeSeriesVariant | pb.CumulativeCounts) -> str | None:
    return f"{100 * counted.conversion_rate:.1f} %" if counted.HasField("conversion_rate") else None
