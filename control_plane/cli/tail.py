"""`variantctl events tail`: what applications report, as it comes in."""

import asyncio
import enum
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from control_plane.cli import show
from control_plane.cli.connection import Unreachable
from control_plane.cli.live import Interval, until_interrupted
from control_plane.cli.session import Session, duration
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


class Kind(enum.StrEnum):
    """What kind of event."""

    IMPRESSION = "impression"
    CONVERSION = "conversion"


def tail(
    session: Session,
    *,
    experiment: Annotated[
        str, typer.Option("--experiment", "-e", help="Only what counts, or would, for this one: id or key.")
    ] = "",
    participant: Annotated[str, typer.Option("--participant", "-p", help="Only of this one.")] = "",
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only these.")] = None,
    event_name: Annotated[str, typer.Option("--event", help="Only conversions of this name.")] = "",
    last: Annotated[
        int, typer.Option("--last", min=0, max=100, help="Begin with so many that are there.")
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Whether to go on until interrupted.")
    ] = True,
    interval: Interval = "2s",
) -> None:
    """Events as they come in, one line each, until Ctrl-C or SIGTERM; --json prints each as one line of JSON.

    Shown is what this control plane has stored. Not shown: what still waits in a host's spool (it comes when the host
    is back, however old), what a host declared lost (see `agents list` and `results`), what the local API refused
    because the spool was full, and repeats. What an event counts for is as of the moment it is shown: a pending
    conversion may count later.
    """
    pause = max(0.1, duration(interval))
    wanted = pb.ListEventsRequest(
        experiment_id=experiment, participant_id=participant, kind=kind or "", event_name=event_name
    )
    with until_interrupted() if follow else suppress(KeyboardInterrupt):
        seen = _newest(session)
        for event in _last(session, wanted, last):
            _print(session, event)
            seen = max(seen, int(event.position))
        while follow:
            asyncio.run(session.clock.sleep(pause))
            with suppress(Unreachable):  # it restarts; nothing is missed, for the position stays
                # Asked before: a filter that nothing fits must not be looked through from the start again and again.
                newest = _newest(session)
                for event in _since(session, wanted, seen):
                    _print(session, event)
                    seen = int(event.position)
                seen = max(seen, newest)


def _newest(session: Session) -> int:
    """The position of the newest event of all; 0 where there is none."""
    found = session.call(session.events.ListEvents, pb.ListEventsRequest(page_size=1)).events
    return int(found[0].position) if found else 0


def _last(session: Session, wanted: pb.ListEventsRequest, count: int) -> list[pb.Event]:
    """The last ones that are there, the oldest first."""
    if not count:
        return []
    request = _copy(wanted)
    request.page_size = count
    return list(reversed(session.call(session.events.ListEvents, request).events))


def _since(session: Session, wanted: pb.ListEventsRequest, position: int) -> Iterator[pb.Event]:
    request = _copy(wanted)
    request.after = str(position)
    return session.pages(session.events.ListEvents, request, "events")


def _copy(wanted: pb.ListEventsRequest) -> pb.ListEventsRequest:
    request = pb.ListEventsRequest()
    request.CopyFrom(wanted)
    return request


def _print(session: Session, event: pb.Event) -> None:
    if session.json:
        line = json.dumps(show.to_json(event), ensure_ascii=False)
    else:
        line = show.clean("  ".join(part for part in _parts(event) if part))
    print(line, file=session.out.file, flush=True)


def _parts(event: Any) -> tuple[str, ...]:
    value = f"value={event.value:g}" if event.HasField("value") else ""
    subject = f"subject={event.subject}" if event.subject else ""
    counts = sorted({f"{item.assigned}/{item.delivered}" for item in event.attributions})
    return (
        show.moment(event, "occurred_at") or "",
        event.participant_id,
        event.kind,
        event.event_name,
        value,
        subject,
        ", ".join(counts) or event.reason or "in no experiment",
    )
