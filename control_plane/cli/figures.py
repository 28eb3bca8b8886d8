"""Results as figures: what plotly draws of them, as data.

Hides how variants are told apart without colours, and that names are text where plotly reads tags.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from control_plane.cli import show
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

Figure = dict[str, Any]

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")
"""The palette of Okabe and Ito, which people with any colour vision tell apart; the faintest last."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "8px,2px")
PATTERNS = ("/", "x", ".", "+", "\\", "-", "|")


def rates(found: pb.Results, names: Mapping[str, str]) -> Figure:
    """Rates, or the means of a metric that is no proportion, with the credible interval where there is one."""
    data: list[Figure] = []
    shares = of_shares(found)
    scale = 100 if shares else 1
    for at, item in enumerate(found.variants):
        value = known(item, "conversion_rate" if shares else "mean")
        if value is None:
            continue
        row, span = [_label(names[item.key])], known(item, "credible_interval")
        data += _with_whiskers(
            _trace(at, names[item.key])
            | {"x": [_finite(value * scale)], "y": row, "mode": "markers", "showlegend": False},
            [span],
            scale,
            along="x",
        )
    title = "conversions per impression, %" if shares else "value per participant"
    layout = _layout(title, "", height=140 + 30 * len(data))
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "automargin": True}
    return {"data": data, "layout": layout}


def looks(found: pb.Results, names: Mapping[str, str]) -> Figure:
    """Each variant's difference from control with its interval, at every look."""
    scale, unit = unit_of(found)
    data: list[Figure] = []
    for at, variant in enumerate(found.variants):
        seen = [
            (look, item)
            for look in found.looks
            for item in look.comparisons
            if item.variant == variant.key and item.HasField("difference")
        ]
        if not seen:
            continue
        trace = _trace(at, names[variant.key])
        # A look that crossed is filled, any other is hollow.
        trace["marker"]["symbol"] = [
            SYMBOLS[at % len(SYMBOLS)] + ("" if item.crossed else "-open") for _, item in seen
        ]
        data += _with_whiskers(
            trace
            | {
                "x": [show.moment(look, "cut_off") for look, _ in seen],
                "y": [_finite(item.difference * scale) for _, item in seen],
                "mode": "lines+markers",
            },
            [known(item, "interval") for _, item in seen],
            scale,
            along="y",
        )
    layout = _layout("look, by what it saw up to (UTC)", f"variant minus control{unit and ', points'}")
    layout["xaxis"]["type"] = "date"
    layout["yaxis"] |= {"zeroline": True, "zerolinewidth": 2, "zerolinecolor": "#000000"}
    return {"data": data, "layout": layout}


def days(found: pb.TimeSeries, names: Mapping[str, str]) -> Figure:
    """Each variant's impressions on every day."""
    data = []
    for at, key in enumerate(names):
        counts = [
            (day.date, item.impressions) for day in found.days for item in day.variants if item.key == key
        ]
        if counts:
            data.append(
                _trace(at, names[key])
                | {"x": [day for day, _ in counts], "y": [n for _, n in counts], "mode": "lines+markers"}
            )
    layout = _layout("UTC day", "impressions")
    layout["xaxis"]["type"] = "date"
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def exclusions(found: pb.Results, names: Mapping[str, str]) -> Figure:
    """A bar for each reason and variant; the reason is the pattern, so that no colour has to be told."""
    data = []
    for at, reason in enumerate(sorted({item.reason for item in found.exclusions})):
        of = [item for item in found.exclusions if item.reason == reason]
        data.append(
            {
                "type": "bar",
                "name": _label(words(reason)),
                "x": [_label(names.get(item.variant, item.variant)) for item in of],
                "y": [item.participants for item in of],
                "text": [str(item.participants) for item in of],
                "textposition": "outside",
                "marker": {
                    "color": COLOURS[(at + 1) % len(COLOURS)],
                    "line": {"color": "#000000", "width": 1},
                    "pattern": {
                        "shape": PATTERNS[at % len(PATTERNS)],
                        "fillmode": "overlay",
                        "fgcolor": "#000000",
                        "solidity": 0.2,
                    },
                },
            }
        )
    layout = _layout("", "participants")
    layout["xaxis"] |= {"type": "category"}
    return {"data": data, "layout": layout | {"barmode": "group"}}


def _trace(at: int, name: str) -> Figure:
    """A variant's own look: no two of ten have the same colour, shape and dash."""
    return {
        "type": "scatter",
        "name": _label(name),
        "line": {"color": COLOURS[at % len(COLOURS)], "dash": DASHES[at % len(DASHES)], "width": 2},
        "marker": {
            "color": COLOURS[at % len(COLOURS)],
            "symbol": SYMBOLS[at % len(SYMBOLS)],
            "size": 10,
            "line": {"color": "#000000", "width": 1},
        },
    }


def _with_whiskers(
    trace: Figure, spans: Sequence[pb.Interval | None], scale: float, *, along: str
) -> list[Figure]:
    """The trace, and the intervals of its points on their own: a point may lie outside, as a rate of 0 does."""
    across = "x" if along == "y" else "y"
    whiskers = {
        "type": "scatter",
        "mode": "markers",
        across: trace[across],
        along: [None if span is None else _finite((span.low + span.high) / 2 * scale) for span in spans],
        f"error_{along}": {
            "type": "data",
            "array": [
                None if span is None else _finite((span.high - span.low) / 2 * scale) for span in spans
            ],
            "color": trace["marker"]["color"],
            "thickness": 1.5,
            "width": 6,
        },
        "marker": {"opacity": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": trace["name"],
    }
    said = ["" if span is None else f"{span.low * scale:.4g} … {span.high * scale:.4g}" for span in spans]
    return [whiskers, trace | {"text": said, "legendgroup": trace["name"]}]


def _layout(across: str, up: str, *, height: int = 380) -> Figure:
    axis = {"gridcolor": "#dddddd", "automargin": True}
    return {
        "height": height,
        "margin": {"l": 70, "r": 20, "t": 20, "b": 50},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#111111"},
        "legend": {"orientation": "h", "y": -0.25},
        "showlegend": True,
        "xaxis": {**axis, "title": {"text": across}},
        "yaxis": {**axis, "title": {"text": up}},
    }


def _label(name: str) -> str:
    """Text of a plot, which reads entities, and tags of its own."""
    return html.escape(show.clean(name), quote=False)


def names_of(variants: Iterable[pb.VariantResult]) -> dict[str, str]:
    """What each variant is called, by key; with its key where two are called the same."""
    kept = list(variants)
    called = [item.name for item in kept]
    return {
        item.key: (item.name if called.count(item.name) == 1 else f"{item.name} [{item.key}]")
        + (" (control)" if item.is_control else "")
        for item in kept
    }


def known(message: Any, name: str) -> Any:
    """The field; None where it is absent."""
    return getattr(message, name) if message.HasField(name) else None


def unit_of(found: pb.Results) -> tuple[float, str]:
    """What a difference is multiplied with, and what then stands behind it."""
    return (100, " points") if of_shares(found) else (1, "")


def of_shares(found: pb.Results) -> bool:
    """Whether values are shown in per cent."""
    return found.metric.kind in ("", "proportion")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def words(code: str) -> str:
    """A code as people read it."""
    return code.replace("_", " ")
