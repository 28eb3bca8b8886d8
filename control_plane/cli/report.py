"""Results as one page that a browser shows without a network: plots, the verdict and why, and every number.

Hides how figures get into a page so that nothing an experiment is called, or a host says, is anything but text:
figures are data, the page's policy lets only its own two scripts run, and it can load nothing. Whoever cannot see
colours, or runs no scripts, has shapes, dashes and tables.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from control_plane.cli import figures, show
from control_plane.cli.export import whole
from control_plane.cli.figures import Figure, known, names_of, unit_of, words
from control_plane.cli.session import Failure, Session
from control_plane.cli.sheet import (
    CORRECTIONS,
    absent,
    carried_over,
    differences,
    guardrails,
    level,
    not_counted,
    pooled,
    population,
    spelled,
    verdict_lines,
    why,
)
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

_DRAW = """
for (const place of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  place.textContent = "";
  Plotly.newPlot(place, figure.data, figure.layout, {displaylogo: false, responsive: true});
}
"""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 64rem; margin: 2rem auto; }
body { padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { border-top: 1px solid #bbb; margin-top: 2.5rem; padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .75rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
code { background: #f2f2f2; padding: 0 .25rem; overflow-wrap: anywhere; }
.plot { width: 100%; min-height: 2rem; } .verdict { font-size: 1.25rem; font-weight: 600; }
"""


_EXPLAINED = {"pValue": "p", "probabilityToBeBest": "P(best)", "chanceToWin": "P(better than control)"}
"""Columns that the answer itself explains, by their names in it."""
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?( …| %| points|$)")


def write(session: Session, path: Path, asked: pb.GetResultsRequest) -> None:
    """The report of these results is at `path`, whole; a file that was there is replaced.

    With --json the results that it shows are on standard output. Raises Failure where plotly is not installed, and
    where the file cannot be written; then what was there is as it was.
    """
    script = _plotly()
    found = session.call(session.results.GetResults, asked)
    days = session.call(
        session.results.GetTimeSeries,
        pb.GetTimeSeriesRequest(
            id=asked.id,
            event_name=asked.event_name,
            metric=asked.metric,
            population=asked.population,
            end_date=asked.as_of,
            fill_gaps=True,
        ),
    )
    text = page(found, days, script=script)
    with whole(path) as file:
        file.write(text.encode())
    if session.json:
        show.print_json(session.out, show.to_json(found))
    else:
        show.say(session.out, f"wrote {path}")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise Failure("--html needs the extra `report`: pip install 'variantd[report]'") from None
    return str(get_plotlyjs())


def page(found: pb.Results, days: pb.TimeSeries, *, script: str) -> str:
    """The whole page; `script` is plotly's. Days of another phase than the results' are not shown."""
    names = names_of(found.variants)
    same = days.phase_id == found.phase_id
    body = "".join(
        (
            _head(found),
            _verdict(found),
            _rates(found, names),
            _looks(found, names),
            _factors(found),
            _secondary(found, names),
            _by_day(found, days if same else None, names),
            _exclusions(found, names),
            _trust(found),
            _groups(found, names),
        )
    )
    # A browser reads carriage returns as line ends before it compares the digest.
    scripts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (script, _DRAW)]
    digests = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts)
    policy = (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )
    # The policy stands first: it binds what comes after it.
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(found.key)}: results</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}"
        + "".join(f"<script>{text}</script>\n" for text in scripts)
        + "</body>\n</html>\n"
    )


# -- sections


def _head(found: pb.Results) -> str:
    metric = found.metric
    facts = {
        "metric": _metric(metric),
        "population": population(found),
        "phase": _phase(found),
        "status": show.word(found, "status"),
        "as of": found.as_of if found.HasField("as_of") else None,
        "computed": show.moment(found, "computed_at"),
        "compared as of": show.moment(found.method, "compared_at"),
        "level of intervals": level(found),
        "analysis fingerprint": found.analysis_fingerprint or None,
        "metrics since the start": "changed" if found.plan_changed else None,
    }
    rows = [(name, value) for name, value in facts.items() if value is not None]
    return f"<h1>{_text(found.key)}</h1>\n{_table(('', ''), rows)}"


def _phase(found: pb.Results) -> str:
    if found.phases:
        return "pooled: " + ", ".join(str(item.number) for item in found.phases)
    return f"{found.phase}, {found.phase_id}" if found.HasField("phase") else "none yet"


def _metric(metric: pb.Metric) -> str:
    named = f"{metric.name}: " if metric.name else ""
    per = f" by {metric.denominator_event_name}" if metric.denominator_event_name else ""
    role = f", {metric.role}" if metric.role else ""
    of = f" of {metric.of}" if metric.of else ""
    return f"{named}{metric.event_name}{per} ({metric.kind or 'proportion'}{of}, {show.word(metric, 'goal')}{role})"


def _verdict(found: pb.Results) -> str:
    first, *rest = (
        *verdict_lines(found), *differences(found), *carried_over(found), *pooled(found), *guardrails(found), ""
    )  # fmt: skip
    rows = [
        (
            reason.code,
            reason.message,
            _Code(reason.formula),
            "; ".join(
                f"{key} = {spelled(value)}" for key, value in sorted(show.to_json(reason)["inputs"].items())
            ),
        )
        for reason in found.verdict.reasons
    ]
    return _section(
        "Verdict",
        f'<p class="verdict">{_text(first)}</p>' if first else "",
        _list(line for line in rest if line),
        _table(("reason", "in words", "formula", "from"), rows),
        _folded("How it was decided, look by look", _list(why(found))),
    )


def _rates(found: pb.Results, names: Mapping[str, str]) -> str:
    columns = (
        "variant", "weight", "participants", "exposed", "impressions", "conversions", "converted", "rate",
        "credible interval",
        "mean", "P(best)", "P(better than control)", "expected loss", "design effect", "difference", "its interval",
        "relative", "p", "p corrected",
    )  # fmt: skip
    share = (100, " %") if figures.of_shares(found) else (1, "")
    rows = [
        (
            names[item.key],
            f"{item.weight} %",
            item.participants,
            item.participants_exposed,
            item.impressions,
            item.conversions,
            f"{item.converted_units} of {item.units}" if found.metric.of not in ("", "impressions") else None,
            _percent(known(item, "conversion_rate")),
            _span(known(item, "credible_interval"), *share),
            _number(known(item, "mean")),
            _percent(known(item, "probability_to_be_best")),
            _percent(known(item, "chance_to_win")),
            _number(known(item, "expected_loss")),
            _number(known(item, "design_effect")),
            _scaled(known(item, "difference"), found),
            _span(known(item, "difference_interval"), *unit_of(found)),
            _percent(known(item, "lift")),
            _number(known(item, "p_value")),
            _number(known(item, "p_value_adjusted")),
        )
        for item in found.variants
    ]
    return _section(
        "Rates",
        _plot("rates", figures.rates(found, names), "Each variant's rate with its credible interval"),
        _table(columns, rows),
        _list(
            f"{column}: {found.explanations[key]}"
            for key, column in _EXPLAINED.items()
            if key in found.explanations
        ),
        _list(absent(found)),
    )


def _looks(found: pb.Results, names: Mapping[str, str]) -> str:
    rows = [
        (
            look.number,
            show.moment(look, "cut_off"),
            f"{look.day:.2f}",
            names.get(item.variant, item.variant),
            _scaled(known(item, "difference"), found),
            _span(known(item, "interval"), *unit_of(found)),
            _number(known(item, "statistic")),
            _number(known(item, "critical")),
            _number(known(item, "alpha_spent")),
            _number(known(item, "p_value_adjusted")),
            "crossed" if item.crossed else "decided before" if item.decided else "no",
        )
        for look in found.looks
        for item in look.comparisons
    ]
    columns = (
        "look", "up to", "day", "variant", "difference", "interval", "statistic", "critical", "alpha spent",
        "p corrected", "crossed",
    )  # fmt: skip
    return _section(
        "Difference from control, look by look",
        "" if rows else "<p>No look compares the variants yet.</p>",
        _plot("looks", figures.looks(found, names), "Difference from control with its interval, by look"),
        _folded("Looks as a table", _table(columns, rows)) if rows else "",
    )


def _factors(found: pb.Results) -> str:
    effects = [
        (
            item.factor,
            f"{item.level} against {item.baseline}",
            _scaled(known(item, "difference"), found),
            _span(known(item, "interval"), *unit_of(found)),
            _number(known(item, "p_value")),
            _number(known(item, "p_value_adjusted")),
            "least squares, as if effects added up" if item.additive else "mean over the cells of the others",
        )
        for item in found.main_effects
    ]
    if not effects:
        return ""
    together = [
        (
            " with ".join(f"{factor} {name}" for factor, name in zip(item.factors, item.levels, strict=True)),
            _scaled(item.difference, found),
            _scaled(item.standard_error, found),
        )
        for item in found.interactions
    ]
    return _section(
        "Factors",
        "<p>Shown, not decided: the verdict compares whole variants with the control.</p>",
        _table(("factor", "level", "difference", "its interval", "p", "p corrected", "how"), effects),
        _table(("together", "beyond the sum of both", "standard error"), together),
    )


def _secondary(found: pb.Results, names: Mapping[str, str]) -> str:
    rows = [
        (
            metric.name or metric.metric,
            names.get(item.variant, item.variant),
            _number(known(item, "difference")),
            _percent(known(item, "lift")),
            _number(known(item, "p_value")),
            _number(known(item, "p_value_adjusted")),
            _number(known(item, "p_value_corrected")),
        )
        for metric in found.secondary.metrics
        for item in metric.variants
    ]
    named = CORRECTIONS.get(found.secondary.correction, "")
    columns = (
        "metric",
        "variant",
        "difference",
        "relative",
        "p",
        "p for the variants",
        f"and metrics ({named})",
    )
    said = "<p>Shown, not decided. p is valid at any moment.</p>"
    return _section("Secondary metrics", said, _table(columns, rows)) if rows else ""


def _by_day(found: pb.Results, days: pb.TimeSeries | None, names: Mapping[str, str]) -> str:
    if days is None:
        said = "Days are kept of the present phase; " + (
            "this is all of them." if found.phases else "this is an earlier one."
        )
        return _section("Impressions by day", f"<p>{said}</p>")
    rows = [
        (
            day.date,
            names.get(item.key, item.key),
            item.impressions,
            item.conversions,
            _percent(known(item, "conversion_rate")),
            item.new_participants,
            _percent(known(item.cumulative, "conversion_rate")),
        )
        for day in days.days
        for item in day.variants
    ]
    columns = ("day", "variant", "impressions", "conversions", "rate", "new participants", "rate so far")
    late = " They are counted as of now, late events included." if found.HasField("as_of") else ""
    return _section(
        "Impressions by day",
        f"<p>UTC days.{late}</p>" if rows else "<p>No day was measured.</p>",
        _plot("days", figures.days(days, names), "Impressions of each variant by day"),
        _folded("Days as a table", _table(columns, rows)) if rows else "",
    )


def _exclusions(found: pb.Results, names: Mapping[str, str]) -> str:
    rows = [
        (names.get(item.variant, item.variant), words(item.reason), item.participants, item.impressions)
        for item in found.exclusions
    ]
    return _section(
        "Left out of delivered",
        "" if rows else "<p>Nobody.</p>",
        _plot("exclusions", figures.exclusions(found, names), "Participants left out, by variant and reason"),
        _table(("variant", "reason", "participants", "their impressions"), rows),
        _list(not_counted(found)),
    )


def _trust(found: pb.Results) -> str:
    parts = []
    if found.HasField("srm"):
        srm = found.srm
        rows = [(key, f"{srm.expected[key]:g}", srm.observed[key]) for key in sorted(srm.observed)]
        parts.append(_table(("variant", "participants by weight", "participants"), rows))
        if srm.HasField("largest_deviation"):
            off = f"at most {100 * srm.largest_deviation:.2g} points off a variant's weight"
            p = f", p = {_number(srm.p_value)}" if srm.HasField("p_value") else ""
            parts.append(f"<p>What was drawn is {off}{p}.</p>")
        losses = [(words(reason), _number(p)) for reason, p in sorted(srm.loss_p_values.items())]
        parts.append(_table(("lost for", "p that it is no matter of the variant"), losses))
        if srm.detected:
            parts.append("<p>The variants did not lose alike, so they cannot be compared.</p>")
    if found.guardrails:
        rows_of = [
            (item.metric, item.variant, words(item.state), _span(known(item, "interval"), 1, ""))
            for item in found.guardrails
        ]
        parts.append(_table(("guardrail", "variant", "state", "interval"), rows_of))
    findings = [(item.severity, item.code, item.message, item.advice) for item in found.findings]
    parts.append(_table(("severity", "finding", "what was seen", "what to do"), findings))
    if not findings:
        parts.append("<p>No findings.</p>")
    return _section("Can it be trusted", *parts)


def _groups(found: pb.Results, names: Mapping[str, str]) -> str:
    rows = [
        (
            group.value if group.HasField("value") else "(none)",
            names.get(item.key, item.key),
            item.participants,
            item.impressions,
            item.conversions,
            _percent(known(item, "conversion_rate")),
        )
        for group in found.groups
        for item in group.variants
    ]
    columns = (found.group_by, "variant", "participants", "impressions", "conversions", "rate")
    return _section(f"By {found.group_by}, for description only", _table(columns, rows)) if rows else ""


# -- text


class _Code(str):
    """Text that is shown as code."""


def _text(value: object) -> str:
    """Anything as text of a page, in attributes too."""
    return html.escape(show.clean(value))


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{''.join(parts)}</section>\n"


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{inner}</details>\n" if inner else ""


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>\n" if items else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The rows without the columns that say nothing; no table where there is no row, no head where it is empty."""
    kept = list(rows)
    if not kept:
        return ""
    shown = [at for at in range(len(columns)) if any(row[at] not in (None, "") for row in kept)]
    heads = "".join(f'<th scope="col">{_text(columns[at])}</th>' for at in shown)
    head = f"<thead><tr>{heads}</tr></thead>" if any(columns) else ""
    lines = "".join(f"<tr>{''.join(_cells(row, shown))}</tr>\n" for row in kept)
    return f"<table>{head}<tbody>\n{lines}</tbody></table>\n"


def _cells(row: Sequence[object], shown: Sequence[int]) -> Iterator[str]:
    for at in shown:
        value = row[at]
        text = "–" if value is None or value == "" else _text(value)
        if at == shown[0]:
            yield f'<th scope="row">{text}</th>'
        elif isinstance(value, _Code) and value:
            yield f"<td><code>{text}</code></td>"
        elif isinstance(value, int) or _NUMBER.match(text):
            yield f'<td class="number">{text}</td>'
        else:
            yield f"<td>{text}</td>"


def _plot(name: str, figure: Figure, says: str) -> str:
    """Where a figure is drawn, and its data; nothing where there is nothing on it."""
    if not figure["data"]:
        return ""
    data = json.dumps(figure, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="plot" role="img" aria-label="{_text(says)}" data-figure="figure-{name}">'
        "The plot needs scripts; its numbers are in the table.</div>\n"
        f'<script type="application/json" id="figure-{name}">{data}</script>\n'
    )


def _scaled(value: float | None, found: pb.Results) -> str | None:
    scale, unit = unit_of(found)
    return None if value is None else f"{value * scale:+.4g}{unit}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _span(interval: pb.Interval | None, scale: float, unit: str) -> str | None:
    return None if interval is None else f"{interval.low * scale:.4g} … {interval.high * scale:.4g}{unit}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
