"""What is kept of an experiment, out into a file: lines of JSON as they come, or Parquet."""

import enum
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from control_plane.cli.session import Failure, Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


class What(enum.StrEnum):
    """What there is to take out."""

    EVENTS = "events"
    VIEWS = "views"
    RECEIPTS = "receipts"
    ASSIGNMENTS = "assignments"
    EXCLUSIONS = "exclusions"
    TALLIES = "tallies"


class Format(enum.StrEnum):
    """How a file holds it."""

    NDJSON = "ndjson"
    PARQUET = "parquet"


_EVERY = {"experimentId": "text", "phaseId": "text", "participantId": "text", "variantId": "text"}
COLUMNS: dict[What, dict[str, str]] = {
    What.EVENTS: {
        **_EVERY,
        **dict.fromkeys(("id", "eventId", "kind", "eventName", "assigned", "delivered"), "text"),
        **dict.fromkeys(("targetFile", "digest", "subject", "source", "agentId", "epoch"), "text"),
        "timeBlock": "count",
        "seq": "count",
        "value": "number",
        "properties": "json",
        **dict.fromkeys(("occurredAt", "recordedAt", "receivedAt"), "moment"),
    },
    What.VIEWS: {
        **dict.fromkeys(("experimentId", "participantId"), "text"),
        **dict.fromkeys(("id", "targetFile", "digest", "state"), "text"),
        **dict.fromkeys(("fromAt", "toAt", "receivedAt"), "moment"),
    },
    What.RECEIPTS: {
        **dict.fromkeys(("experimentId", "participantId"), "text"),
        **dict.fromkeys(("id", "targetFile", "digest"), "text"),
        **dict.fromkeys(("loadedAt", "toAt", "receivedAt"), "moment"),
    },
    What.ASSIGNMENTS: {
        **_EVERY,
        **dict.fromkeys(("id", "method", "block", "stratum", "forcedBy"), "text"),
        "timeBlock": "count",
        "position": "count",
        "labelsUsed": "json",
        **dict.fromkeys(("fromAt", "toAt"), "moment"),
    },
    What.EXCLUSIONS: {
        **_EVERY,
        **dict.fromkeys(("population", "reason"), "text"),
        **dict.fromkeys(("impressions", "conversions"), "count"),
    },
    What.TALLIES: {
        **_EVERY,
        "timeBlock": "count",
        "eventName": "text",
        "windowSeconds": "number",
        "date": "day",
        **dict.fromkeys(("assignedCount", "assignedUnits", "deliveredCount", "deliveredUnits"), "count"),
        **dict.fromkeys(("assignedValue", "deliveredValue"), "number"),
    },
}
"""What each column of a Parquet file holds; the columns are the fields of the JSON."""

GROUP_ROWS = 10_000
"""So many rows are in memory at once, and in a row group of a Parquet file."""


def export(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    what: Annotated[What, typer.Option("--what", help="Which rows.")] = What.EVENTS,
    form: Annotated[
        Format, typer.Option("--format", help="Parquet needs the extra `analytics`.")
    ] = Format.NDJSON,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Written whole or not at all; default: stdout."),
    ] = None,
) -> None:
    """Take out everything of one kind that is kept of an experiment: every phase of every run.

    Subjects and properties are there for keys with the scope content:read.
    """
    if form is Format.PARQUET:
        if output is None:
            raise typer.BadParameter("a Parquet file needs -o FILE")
        arrow = _arrow()
    if what in (What.EVENTS, What.EXCLUSIONS):
        _tell_gone(session, experiment)
    answers = session.stream(
        session.events.ExportEvents, pb.ExportEventsRequest(id=experiment, what=what.value)
    )
    rows = (row for answer in answers for row in answer.rows)
    if output is None:
        for row in rows:
            print(row)
        return
    with whole(output) as file:
        if form is Format.PARQUET:
            _write_parquet(arrow, file, COLUMNS[what], rows)
        else:
            file.writelines(f"{row}\n".encode() for row in rows)


def _tell_gone(session: Session, experiment: str) -> None:
    """What is not in it, because it is deleted, is told beside it."""
    for item in session.call(session.experiments.ListPhases, pb.ListPhasesRequest(id=experiment)).phases:
        if item.HasField("events_gone_at"):
            gone = item.events_gone_at.ToJsonString()
            print(
                f"phase {item.number}: its raw events are deleted since {gone}; its tallies stay",
                file=sys.stderr,
            )


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there with all of its content, durable, or as it was before."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None


# -- Parquet


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise Failure(
            "Parquet needs the extra `analytics`: pip install 'variantd[analytics]'; --format ndjson needs nothing"
        ) from None
    return pyarrow


def _write_parquet(arrow: Any, file: IO[bytes], columns: dict[str, str], rows: Iterator[str]) -> None:
    kinds = {
        "text": arrow.string(),
        "json": arrow.string(),
        "count": arrow.int64(),
        "number": arrow.float64(),
        "moment": arrow.timestamp("ms", tz="UTC"),
        "day": arrow.date32(),
    }
    schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            table = {
                name: _column(arrow, kind, kinds[kind], [row[name] for row in group])
                for name, kind in columns.items()
            }
            writer.write_table(arrow.table(table, schema=schema))


def _groups(rows: Iterator[str]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(json.loads(row))
        if len(group) == GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


def _column(arrow: Any, kind: str, wanted: Any, values: Sequence[Any]) -> Any:
    if kind == "json":
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    if kind in ("moment", "day"):
        # Dates and moments come as text; Arrow reads both itself, and refuses what is none.
        texts = arrow.array([value and value.removesuffix("Z") for value in values], arrow.string())
        naive = texts.cast(arrow.timestamp("ms") if kind == "moment" else wanted)
        return naive if kind == "day" else arrow.compute.assume_timezone(naive, "UTC")
    return arrow.array(values, wanted)
