"""Results for people: counts, rates with their intervals as bars, and why a number is absent."""

import enum
import io
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from control_plane.cli import report, series, show
from control_plane.cli.live import Fact, Frame, Interval, Shape, follow
from control_plane.cli.session import Session
from control_plane.cli.sheet import chance, outcome, print_groups, print_results, why
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


class Population(enum.StrEnum):
    """Whose events count."""

    ASSIGNED = "assigned"
    DELIVERED = "delivered"


def results(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")],
    event: Annotated[
        str, typer.Option("--event", help="The conversion; default: the primary metric's.")
    ] = "",
    population: Annotated[
        Population, typer.Option("--population", help="Whose events count.")
    ] = Population.ASSIGNED,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing them as they change.")] = False,
    interval: Interval = "2s",
    metric: Annotated[
        str,
        typer.Option("--metric", metavar="METRIC", help="Id, key or name of a metric instead of an event."),
    ] = "",
    phase: Annotated[
        str,
        typer.Option("--phase", metavar="PHASE", help="Number or id of a phase of this run, or `pooled`."),
    ] = "",
    as_of: Annotated[
        str, typer.Option("--as-of", metavar="DATE", help="As the look of that UTC date saw it.")
    ] = "",
    group_by: Annotated[
        str, typer.Option("--group-by", metavar="LABEL", help="Counts by a label, for description only.")
    ] = "",
    explain: Annotated[
        bool, typer.Option("--why", help="Every formula and number behind the verdict.")
    ] = False,
    inputs: Annotated[
        bool,
        typer.Option("--inputs", help="What the answer is computed from, as JSON for `variantctl analyze`."),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Written as one page with plots that needs no network; needs the extra `report`.",
        ),
    ] = None,
    by_day: Annotated[
        bool, typer.Option("--by-day", help="What is counted on each UTC day instead.")
    ] = False,
    start: Annotated[
        str, typer.Option("--from", metavar="DATE", help="With --by-day: the first day, as 2026-01-31.")
    ] = "",
    end: Annotated[str, typer.Option("--to", metavar="DATE", help="With --by-day: the last day.")] = "",
) -> None:
    """What the numbers say: rates, the difference from control, who is probably best.

    Intervals and p-values treat the participant as the unit, however many impressions it has.
    """
    said = {"--why": explain, "--group-by": group_by, "--phase": phase, "--as-of": as_of}
    views = {"--html": html is not None, "--by-day": by_day, "--watch": watch, "--inputs": inputs}
    _refuse_unheard({name for name, given in {**said, **views}.items() if given})
    if by_day:
        series.by_day(
            session,
            pb.GetTimeSeriesRequest(
                id=experiment,
                event_name=event,
                metric=metric,
                population=population.value,
                start_date=start,
                end_date=end,
            ),
        )
        return
    if start or end:
        raise typer.BadParameter("--from and --to are for --by-day")
    asked = pb.GetResultsRequest(
        id=experiment,
        event_name=event,
        metric=metric,
        phase=phase,
        population=population.value,
        as_of=as_of or None,
        group_by=group_by,
        include="inputs" if inputs else "",
    )
    if html is not None:
        report.write(session, html, asked)
        return
    if watch:
        follow(session, lambda: _frame(session, asked), interval=interval)
        return
    found = session.call(session.results.GetResults, asked)
    if inputs:
        print(found.inputs, file=session.out.file)
        return
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    _print_beside_the_other_population(session, found, asked)
    for line in why(found) if explain else ():
        show.say(session.out, line)
    if group_by:
        print_groups(session, found)


_VIEWS = {
    "--html": {"--by-day", "--watch", "--inputs"},
    "--by-day": {"--watch", "--inputs", "--why", "--group-by", "--phase", "--as-of"},
    "--watch": {"--inputs", "--why", "--group-by"},
    "--inputs": {"--why", "--group-by"},
}
"""What each other way of showing results has no place for."""


def _refuse_unheard(given: set[str]) -> None:
    for view, unheard in _VIEWS.items():
        if view in given and unheard & given:
            names = ", ".join(sorted(unheard & given))
            raise typer.BadParameter(f"{view} has no place for {names}; leave one of them out")


def _print_beside_the_other_population(
    session: Session, found: pb.Results, asked: pb.GetResultsRequest
) -> None:
    other = pb.GetResultsRequest()
    other.CopyFrom(asked)
    other.population = next(item.value for item in Population if item.value != asked.population)
    print_results(session, found, beside=session.call(session.results.GetResults, other))


def _frame(session: Session, asked: pb.GetResultsRequest) -> Frame:
    found = session.call(session.results.GetResults, asked)
    over = found.status == pb.EXPERIMENT_STATUS_COMPLETED

    def draw(shape: Shape) -> list[Text]:
        drawn = io.StringIO()
        console = Console(file=drawn, force_terminal=True, width=shape.width, markup=False)
        if shape.away:
            show.say(console, "the control plane does not answer; this is what it said last")
        print_results(replace(session, out=console), found)
        said = Text.from_ansi(drawn.getvalue())
        return [row for line in said.split("\n") for row in line.wrap(console, shape.width)]

    return Frame(draw=draw, facts=(result_fact(found),), over=over)


def result_fact(found: pb.Results) -> Fact:
    """The numbers of an experiment as one fact."""
    rates = [
        f"{item.name} {item.conversions}/{item.impressions}"
        + (f" = {came_to}" if (came_to := outcome(found, item)) is not None else "")
        + (
            f" (P(best) {chance(item.probability_to_be_best)})"
            if item.HasField("probability_to_be_best") and item.impressions
            else ""
        )
        for item in found.variants
    ]
    value = {
        "kind": "results",
        "experiment": found.key,
        "status": show.word(found, "status"),
        "eventName": found.metric.event_name,
        "population": found.population,
        "variants": [
            {"key": item.key, "impressions": item.impressions, "conversions": item.conversions}
            for item in found.variants
        ],
    }
    return Fact(f"results {found.key}", value, f"{found.key} {found.metric.event_name}: {', '.join(rates)}")
