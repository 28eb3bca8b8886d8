"""Results for people: counts, rates with their intervals as bars, and why a number is absent."""

import enum
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from control_plane.cli import series, show
from control_plane.cli.live import Fact, Frame, Interval, Shape, follow
from control_plane.cli.session import Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

BAR_CELLS = 25


class Population(enum.StrEnum):
    """Whose events count."""

    ASSIGNED = "assigned"
    DELIVERED = "delivered"


_MEANING = {
    "assigned": "everything an assigned participant did, whatever was on disk",
    "delivered": "only while the assigned variant was on disk",
}
_REASONS = {
    "NO_IMPRESSIONS": "no impressions yet",
    "TOO_FEW_PARTICIPANTS": "fewer than two participants with impressions",
    "NO_VARIATION": "its participants do not differ",
    "ONE_IMPRESSION_EACH": "every participant has one impression",
    "CONVERSIONS_EXCEED_IMPRESSIONS": "more conversions than impressions",
    "NO_CONTROL": "there is no control to compare with",
}
_UNCOMPARED = {
    "SWITCHBACK_NOT_COMPUTED": "blocks of a switchback are not analysed yet, and summed up they prove nothing",
    "NOT_RANDOMIZED": "rules chose the variants, so they are not compared: who has which differs in more than it",
}


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
    if by_day:
        if watch:
            raise typer.BadParameter("--by-day and --watch do not go together")
        series.by_day(
            session,
            pb.GetTimeSeriesRequest(
                id=experiment,
                event_name=event,
                population=population.value,
                start_date=start,
                end_date=end,
            ),
        )
        return
    if start or end:
        raise typer.BadParameter("--from and --to are for --by-day")
    if watch:
        follow(session, lambda: _frame(session, experiment, event, population), interval=interval)
        return
    found = _ask(session, experiment, event, population)
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    other = next(item for item in Population if item is not population)
    print_results(session, found, beside=_ask(session, experiment, event, other))


def print_results(session: Session, found: pb.Results, *, beside: pb.Results | None = None) -> None:
    """Everything that is known, for a person; `beside`: the other population."""
    _headline(session, found)
    _counts(session, found)
    _bars(session, found)
    for line in differences(found):
        show.say(session.out, line)
    _absent(session, found)
    if beside is not None:
        _beside(session, beside)
    _not_counted(session, found)


def _frame(session: Session, experiment: str, event: str, population: Population) -> Frame:
    found = _ask(session, experiment, event, population)
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
        + (f" = {percent(item.conversion_rate)}" if item.HasField("conversion_rate") else "")
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


def _ask(session: Session, experiment: str, event: str, population: Population) -> pb.Results:
    request = pb.GetResultsRequest(id=experiment, event_name=event, population=population.value)
    return session.call(session.results.GetResults, request)


def _headline(session: Session, found: pb.Results) -> None:
    metric = f"{found.metric.event_name} ({show.word(found.metric, 'goal')})"
    show.say(session.out, f"{found.key} is {show.word(found, 'status')}; {metric}; {_population(found)}")


def _population(found: pb.Results) -> str:
    return f"{found.population}: {_MEANING.get(found.population, '')}".rstrip(": ")


def _counts(session: Session, found: pb.Results) -> None:
    show.print_table(
        session.out,
        ("variant", "exposed", "impressions", "conversions", "rate", "P(best)"),
        (
            (
                _name(item),
                f"{item.participants_exposed} of {item.participants}",
                item.impressions,
                item.conversions,
                percent(item.conversion_rate) if item.HasField("conversion_rate") else None,
                chance(item.probability_to_be_best) if item.HasField("probability_to_be_best") else None,
            )
            for item in found.variants
        ),
        empty="there are no variants yet",
        right=("exposed", "impressions", "conversions", "rate", "P(best)"),
    )


def _bars(session: Session, found: pb.Results) -> None:
    scale = scale_of(found.variants)
    if scale is None:
        return
    show.print_table(
        session.out,
        (f"{_level(found)} credible", _axis(scale), ""),
        (
            (_name(item), Text(bar(item, scale)), _interval(item.credible_interval))
            for item in found.variants
            if item.HasField("credible_interval")
        ),
        empty="",
    )


def _name(item: pb.VariantResult) -> str:
    return f"{item.name} (control)" if item.is_control else item.name


def _level(found: pb.Results) -> str:
    return f"{100 * (1 - found.alpha):g} %"


def differences(found: pb.Results) -> Iterator[str]:
    """Each variant against control, in a sentence with as much as is known."""
    control = next((item.name for item in found.variants if item.is_control), "control")
    for item in found.variants:
        if item.is_control or not item.HasField("difference"):
            continue
        text = f"{item.name} against {control}: {_points(item.difference)} points"
        if item.HasField("difference_interval"):
            interval = item.difference_interval
            text += f" ({_level(found)}: {_points(interval.low)} … {_points(interval.high)})"
        if item.HasField("p_value"):
            text += ", p < 0.001" if item.p_value < 0.001 else f", p = {item.p_value:.3f}"
        yield text


def percent(rate: float) -> str:
    """A rate to a tenth of a per cent."""
    return f"{100 * rate:.1f} %"


def chance(probability: float) -> str:
    """A probability, never rounded into a certainty."""
    if 0.0 < probability < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < probability < 1.0 else percent(probability)


def _points(rate: float) -> str:
    return f"{100 * rate:+.1f}"


def _interval(interval: pb.Interval) -> str:
    return f"{100 * interval.low:.1f} … {100 * interval.high:.1f} %"


def scale_of(variants: Sequence[pb.VariantResult]) -> tuple[float, float] | None:
    """What the bars span: from the lowest to the highest end of any interval."""
    given = [item.credible_interval for item in variants if item.HasField("credible_interval")]
    if not given:
        return None
    low, high = min(interval.low for interval in given), max(interval.high for interval in given)
    return (low, high) if low < high else (low, low + 1e-9)


def _axis(scale: tuple[float, float]) -> str:
    low, high = f"{100 * scale[0]:.1f}", f"{100 * scale[1]:.1f}"
    return f"{low}{high:>{BAR_CELLS - len(low)}}"


def bar(item: pb.VariantResult, scale: tuple[float, float], width: int = BAR_CELLS) -> str:
    """The credible interval as a bar on `scale`, the rate as a dot on it."""
    cells = [" "] * width
    low = _cell(item.credible_interval.low, scale, width)
    high = _cell(item.credible_interval.high, scale, width)
    cells[low : high + 1] = "─" * (high - low + 1)
    cells[low], cells[high] = "├", "┤"
    if item.HasField("conversion_rate"):
        cells[_cell(item.conversion_rate, scale, width)] = "●"
    return "".join(cells)


def _cell(value: float, scale: tuple[float, float], width: int) -> int:
    share = (value - scale[0]) / (scale[1] - scale[0])
    return min(width - 1, max(0, round(share * (width - 1))))


def _absent(session: Session, found: pb.Results) -> None:
    codes = {code for item in found.variants for code in item.reasons.values()}
    for code in sorted(codes & _UNCOMPARED.keys()):
        show.say(session.out, f"counts only: {_UNCOMPARED[code]} ({code})")
    for item in found.variants:
        by_reason: dict[str, list[str]] = {}
        for name, code in sorted(item.reasons.items()):
            if code != "IS_CONTROL" and code not in _UNCOMPARED:
                by_reason.setdefault(code, []).append(name)
        for code, names in sorted(by_reason.items()):
            why = _REASONS.get(code, "not defined")
            show.say(session.out, f"{item.name}: no {', '.join(names)}: {why} ({code})")


def _beside(session: Session, beside: pb.Results) -> None:
    rates = [
        f"{item.name} {item.conversions}/{item.impressions}"
        + (f" = {percent(item.conversion_rate)}" if item.HasField("conversion_rate") else "")
        for item in beside.variants
    ]
    show.say(session.out, f"{_population(beside)}: {', '.join(rates)}")


def _not_counted(session: Session, found: pb.Results) -> None:
    if found.rejected:
        counts = ", ".join(f"{item.count} {item.reason}" for item in found.rejected)
        show.say(session.out, f"not counted: {counts}")
    if found.lost.count:
        show.say(session.out, f"lost on hosts: {found.lost.count} records")
