"""Results for people: what is known, and why the rest is not."""

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from rich.console import Console

from control_plane.cli.layout import results_rows
from control_plane.cli.report import page
from control_plane.cli.results import result_fact
from control_plane.cli.session import Session
from control_plane.cli.sheet import BAR_CELLS, bar, differences, factors, print_results, secondary, why
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.cli.conftest import Run
from tests.support.plane import Plane


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


def test_an_interval_without_width_is_one_dot() -> None:
    """Nothing is drawn beside what there is."""
    assert bar(result(0.3, 0.3, 0.3), (0.3, 0.3 + 1e-9)).strip() == "●"
    assert bar(result(0.2, None, 0.4), (0.0, 1.0)).count("●") == 0


def of_values() -> pb.Results:
    """Two means between 2 and 5, whose rates of conversion are elsewhere."""
    return pb.Results(
        key="tone",
        alpha=0.05,
        population="assigned",
        metric=pb.Metric(event_name="paid", kind="mean"),
        variants=[
            pb.VariantResult(
                key=key, name=key.upper(), is_control=key == "a", participants=9, participants_exposed=9,
                impressions=90, conversions=45, conversion_rate=0.5, mean=mean,
                credible_interval=pb.Interval(low=mean - 1, high=mean + 1),
            )
            for key, mean in (("a", 3.0), ("b", 4.0))
        ],
    )  # fmt: skip


def test_values_are_shown_in_their_own_unit() -> None:
    """Means stand on a scale of means, in numbers and not in per cent, with the dot where the mean is."""
    found, drawn = of_values(), io.StringIO()
    print_results(Session(out=Console(file=drawn, width=80, markup=False)), found, beside=found)
    rows = drawn.getvalue().splitlines()
    (head,) = [row for row in rows if row.startswith("95 % CREDIBLE")]
    (control,) = [row for row in rows if row.startswith("A (control)") and "●" in row]
    assert head.split() == ["95", "%", "CREDIBLE", "2", "5"]
    assert control.endswith("2 … 4")
    assert abs((control.index("├") + control.index("┤")) / 2 - control.index("●")) <= 1
    (counts,) = [row for row in rows if row.startswith("A (control)") and "9 of 9" in row]
    assert counts.split()[-3:-1] == ["45", "3"]
    assert (
        "assigned: everything an assigned participant did, whatever was on disk: A 45/90 = 3, B 45/90 = 4"
        in rows
    )
    assert "%" not in "".join(rows).replace("95 % CREDIBLE", "")
    watched = [row.plain for row in results_rows(found, 100)]
    assert watched[1].split()[:2] == ["2", "5"]
    bar_of = next(row for row in watched if row.startswith("B"))
    assert abs((bar_of.index("├") + bar_of.index("┤")) / 2 - bar_of.index("●")) <= 1
    assert " 4 " in bar_of
    assert result_fact(found).text == "tone paid: A 45/90 = 3, B 45/90 = 4"


def test_why_has_every_formula_and_number_in_words() -> None:
    """What p and the probabilities mean, the facts with their inputs, and each test that the variants lost alike."""
    inputs = Struct()
    inputs.update({
        "differences": [{"variant": "b", "difference": 0.125, "interval": {"low": -0.25, "high": 0.5}}],
        "smallestEffectFound": None,
    })  # fmt: skip
    found = pb.Results(
        explanations={"chanceToWin": "not 1 - pValue"},
        verdict=pb.Verdict(reasons=[pb.VerdictReason(code="HORIZON_OVER", formula="f", inputs=inputs)]),
        srm=pb.SampleRatio(with_data_p_value=1, loss_p_values={"without_data": 1, "never_delivered": 0.25}),
    )
    lines = list(why(found))
    assert lines[0] == "chanceToWin: not 1 - pValue"
    assert "  differences = variant b, difference 0.125, interval -0.25 … 0.5" in lines
    assert "  smallestEffectFound = not known" in lines
    assert "comparable: p = 0.250 that it is no matter of the variant who is never delivered" in lines


async def test_results_are_told_on_a_narrow_screen(plane: Plane, ctl: Run, manifest: Path) -> None:
    """Counts, bars, the difference, what is absent and why, and the other population, in 80 columns."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    draft = await ctl("results", "soul-tone")
    assert draft.code == 0
    assert "Concise: no conversionRate" in draft.out
    assert "no impressions yet (NO_IMPRESSIONS)" in draft.out
    assert "delivered: only while the assigned variant was on disk: Friendly 0/0" in draft.out
    tables = draft.out.split("Friendly: no")[0].splitlines()[1:]
    assert tables[0] == "verdict: insufficient data: nobody has had an impression yet"
    assert len(tables) == 7
    assert max(len(line) for line in tables) <= 80
    assert (await ctl("results", "soul-tone", "--population", "nonsense")).code == 2


def numbers(**fields: Any) -> pb.VariantResult:
    """A treatment's numbers."""
    return pb.VariantResult(key="b", name="B", participants=2, impressions=4, conversions=1, **fields)


@pytest.mark.parametrize(
    ("item", "line"),
    [
        (numbers(difference=-0.021), "B against A: -2.1 points"),
        (
            numbers(
                difference=0.1, difference_interval=pb.Interval(low=-0.05, high=0.25), p_value_adjusted=0.0421
            ),
            "B against A: +10.0 points (90 %: -5.0 … +25.0), p = 0.042",
        ),
        (numbers(difference=0.1, p_value_adjusted=0.00001), "B against A: +10.0 points, p < 0.001"),
        (numbers(), None),
    ],
)
def test_a_difference_is_one_sentence(item: pb.VariantResult, line: str | None) -> None:
    """As much of it as is known, and none where it is not."""
    control = pb.VariantResult(key="a", name="A", is_control=True)
    assert list(differences(pb.Results(alpha=0.1, variants=[control, item]))) == ([line] if line else [])


async def test_bars_have_characters_where_there_is_no_unicode(plane: Plane, running: Run) -> None:
    """Where standard output is latin-1 a bar is drawn in ASCII; nothing becomes a question mark."""
    events = [
        {"kind": kind, "participantId": bot, "eventId": f"{bot}{kind}", "eventName": name}
        for bot in ("bot-1", "bot-2")
        for kind, name in (("impression", ""), ("conversion", "resolved"))
    ]
    await plane.made("/v1/events:batch", {"events": [{k: v for k, v in one.items() if v} for one in events]})
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "from control_plane.cli import main; main()", "results", "soul-tone"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    said = done.stdout.decode("latin-1")
    (bar_of,) = [row for row in said.splitlines() if row.startswith("Concise") and "|-" in row]
    assert "*" in bar_of.split("|-")[1]
    assert "?" not in said


async def test_results_by_day(plane: Plane, running: Run) -> None:
    """A row per day and variant, what it comes to so far beside it; JSON as REST has it; the window is told."""
    await plane.made(
        "/v1/events:batch",
        {
            "events": [
                {"kind": "impression", "participantId": "bot-1", "eventId": "1"},
                {"kind": "impression", "participantId": "bot-1", "eventId": "2"},
                {"kind": "conversion", "eventName": "resolved", "participantId": "bot-1", "eventId": "3"},
            ]
        },
    )
    said = await running("results", "soul-tone", "--by-day")
    assert said.code == 0, said.err
    assert "soul-tone; resolved; assigned; 20" in said.out
    assert next(line for line in said.out.splitlines() if "50.0 %" in line).split()[-7:] == [
        "2", "1", "50.0", "%", "1", "50.0", "%"
    ]  # fmt: skip
    told = await running("results", "soul-tone", "--by-day", "--json")
    assert told.json == (await plane.rest("GET", "/v1/experiments/soul-tone/results-time-series")).body
    none = await running("results", "soul-tone", "--by-day", "--to", "2020-01-01")
    assert "no day was measured" in none.out
    assert (await running("results", "soul-tone", "--from", "2020-01-01")).code == 2
    assert "startDate" in (await running("results", "soul-tone", "--by-day", "--from", "yesterday")).err


@pytest.mark.parametrize(
    ("view", "unheard"),
    [
        ("--by-day", "--watch"),
        ("--by-day", "--inputs"),
        ("--by-day", "--why"),
        ("--by-day", "--group-by=team"),
        ("--by-day", "--phase=1"),
        ("--by-day", "--as-of=2026-01-31"),
        ("--watch", "--inputs"),
        ("--watch", "--why"),
        ("--watch", "--group-by=team"),
        ("--inputs", "--why"),
        ("--inputs", "--group-by=team"),
    ],
)
async def test_no_option_goes_unheard(running: Run, view: str, unheard: str) -> None:
    """What a view has no place for is refused by name, and the order does not matter."""
    for options in ((view, unheard), (unheard, view)):
        said = await running("results", "soul-tone", *options)
        assert said.code == 2
        told = " ".join(said.err.replace("│", " ").split())
        assert f"{view} has no place for {unheard.partition('=')[0]}" in told


async def test_days_are_computed_anew_on_demand(plane: Plane, running: Run) -> None:
    """The job is waited for, is the one REST tells of, and a metric that is not there is refused."""
    said = await running("recalculate", "soul-tone", "--wait", "--timeout", "30s")
    assert said.code == 0, said.err
    assert "soul-tone; resolved; 20" in said.out
    assert said.out.strip().endswith("1 days computed, completed")
    told = await running("recalculate", "soul-tone", "--wait", "--json")
    assert told.json["status"] == "completed"
    there = (await plane.rest("GET", "/v1/experiments/soul-tone/timeseries-results")).body
    assert there["fingerprint"] == told.json["fingerprint"]
    assert (await running("recalculate", "soul-tone", "--metric", "nonsense")).code == 1


async def test_phases_are_pooled_where_that_is_asked_for(plane: Plane, running: Run, tmp_path: Path) -> None:
    """Each phase's weight in words, no rate over them; REST has the same, and the page says what it is of."""
    variants = (await plane.rest("GET", "/v1/experiments/soul-tone")).body["variants"]
    weights = {item["key"]: weight for item, weight in zip(variants, (40, 60), strict=True)}
    await plane.made("/v1/experiments/soul-tone/phases", {"weights": weights})
    said = await running("results", "soul-tone", "--phase", "pooled")
    assert said.code == 0, said.err
    assert "phases pooled: no rates and no verdict" in said.out
    assert "phase 2, 0 % of the weight: concise nothing to say" in said.out
    told = (await running("results", "soul-tone", "--phase", "pooled", "--json")).json
    there = (await plane.rest("GET", "/v1/experiments/soul-tone/results?phase=pooled")).body
    assert told["phases"] == there["phases"]
    assert [item["number"] for item in there["phases"]] == [1, 2]
    assert there["phases"][0]["variants"] == [{"variant": "concise", "share": 0.0, "difference": None}]
    page = tmp_path / "pooled.html"
    written = await running("results", "soul-tone", "--phase", "pooled", "--html", str(page))
    assert written.code == 0, written.err
    assert "pooled: 1, 2" in page.read_text()
    assert (await running("results", "soul-tone", "--phase", "pooled", "--group-by", "team")).code == 1


def beside() -> pb.Results:
    """An answer with secondary metrics and factors."""
    return pb.Results(
        alpha=0.05,
        metric=pb.Metric(event_name="done", kind="proportion"),
        secondary=pb.SecondaryResults(
            correction="holm",
            metrics=[
                pb.SecondaryMetric(
                    metric="clicked",
                    name="Clicks",
                    kind="proportion",
                    variants=[pb.SecondaryComparison(variant="b", difference=0.02, p_value_corrected=0.043)],
                ),
                pb.SecondaryMetric(
                    metric="bought", kind="mean", variants=[pb.SecondaryComparison(variant="b", difference=1.5)]
                ),
                pb.SecondaryMetric(metric="never", kind="mean", variants=[pb.SecondaryComparison(variant="b")]),
            ],
        ),
        main_effects=[
            pb.MainEffect(
                factor="tone", level="terse", baseline="warm", difference=0.03, p_value_adjusted=0.012,
                interval=pb.Interval(low=0.01, high=0.05),
            ),
            pb.MainEffect(factor="model", level="large", baseline="small", difference=-0.01, additive=True),
            pb.MainEffect(factor="model", level="huge", baseline="small"),
        ],
        interactions=[
            pb.FactorInteraction(
                factors=["tone", "model"], levels=["terse", "large"], difference=0.02, standard_error=0.01
            )
        ],
    )  # fmt: skip


def test_secondary_metrics_and_factors_are_sentences_and_rows() -> None:
    """What is corrected for what is said; what is not known is left out; the page has the same in tables."""
    assert list(secondary(beside())) == [
        "secondary Clicks: b +2.0 points, p = 0.043 (Holm over 3 metrics)",
        "secondary bought: b +1.5",
    ]
    assert list(factors(beside())) == [
        "factor tone: terse against warm +3.0 points (at any moment, 95 %: +1.0 … +5.0), p = 0.012",
        "factor model: large against small -1.0 points, as far as effects add up",
        "together tone terse with model large: +2.0 points beyond the sum of both (error 1.0 points; not decided)",
    ]
    text = page(beside(), pb.TimeSeries(), script="")
    assert "and metrics (Holm)" in text
    assert "mean over the cells of the others" in text
    assert "tone terse with model large" in text


async def test_what_stands_beside_the_primary_metric_is_the_same_everywhere(plane: Plane, ctl: Run) -> None:
    """Secondary metrics and factors over REST and gRPC; the plan says how the former are corrected."""
    levels = {
        key: [{"key": f"{key}-{name}", "content": name} for name in ("x", "y")] for key in ("tone", "model")
    }
    await plane.made(
        "/v1/experiments",
        {
            "name": "Both",
            "type": "multivariate",
            "factors": [{"key": key, "targetFile": f"{key}.md", "levels": of} for key, of in levels.items()],
            "participantIds": [f"p{number}" for number in range(8)],
            "metrics": {"primary": {"eventName": "done"}, "secondary": [{"eventName": "clicked"}]},
            "analysis": {"secondaryCorrection": "benjamini_hochberg"},
        },
    )
    there = (await plane.rest("GET", "/v1/experiments/both/results")).body
    told = await ctl("results", "both", "--json")
    assert told.code == 0, told.err
    for name in ("secondary", "mainEffects", "interactions"):
        assert told.json[name] == there[name]
    assert there["secondary"]["correction"] == "benjamini_hochberg"
    assert [item["level"] for item in there["mainEffects"]] == ["tone-y", "model-y"]
    assert (await ctl("results", "both")).code == 0
