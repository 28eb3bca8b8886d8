"""Results for people: what is known, and why the rest is not."""

from typing import Any

from control_plane.cli.results import BAR_CELLS, bar
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def result(
    low: float | None = None, rate: float | None = None, high: float | None = None
) -> pb.VariantResult:
    """A variant's numbers."""
    fields: dict[str, Any] = {}
    if low is not None and high is not None:
        fields["credible_interval"] = pb.Interval(low=low, high=high)
    return pb.VariantResult(conversion_rate=rate, **fields)


def test_a_bar_spans_its_interval() -> None:
    """Ends and rate stand where they are on the scale; a bar never leaves it."""
    assert bar(result(0.0, 0.5, 1.0), (0.0, 1.0)) == "├───────────●───────────┤"
    half = bar(result(0.5, 0.75, 1.0), (0.0, 1.0))
    assert half.index("├") == 12
    assert half.index("●") == 18
    assert half.index("┤") == 24
    assert len(half) == BAR_CELLS


def test_a_bar_without_an_interval_is_empty() -> None:
    """Nothing is drawn for what is not known, and an interval without width is one dot."""
    assert bar(result(), (0.0, 1.0)) == ""
    assert bar(result(0.3, 0.3, 0.3), (0.3, 0.3 + 1e-9)).strip() == "●"
    assert bar(result(0.2, None, 0.4), (0.0, 1.0)).count("●") == 0
