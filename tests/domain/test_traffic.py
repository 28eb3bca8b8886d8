"""Findings about who was measured how often: there when it is so, and not when it comes near."""

from typing import Any

import pytest

from control_plane.domain.evidence import Arm, Evidence, Measure, Member, Settings, Sums
from control_plane.domain.findings import OF_RESULTS
from control_plane.domain.inference import answer
from control_plane.domain.traffic import uneven

Rows = list[tuple[int, int]]


def evidence(control: Rows, treatment: Rows, **measure: Any) -> Evidence:
    """Of (impressions, conversions) of each participant; every conversion is worth one."""
    rows = [*control, *treatment]
    conversions = tuple(c for _, c in rows)
    impressions = tuple(m for m, _ in rows)
    return Evidence(
        about={},
        measure=Measure(name="done", **measure),
        primary=True,
        population="assigned",
        settings=Settings(alpha=0.05, decision="path_test"),
        seed="00",
        arms=tuple(Arm(id=key, key=key, name=key, is_control=key == "a", weight=50) for key in "ab"),
        members=tuple(
            Member(participant=f"p{at}", arm="a" if at < len(control) else "b", block="x", stratum="x")
            for at in range(len(rows))
        ),
        sums=Sums(
            impressions=impressions, conversions=conversions, values=conversions, denominators=impressions
        ),
    )


PLAIN: Rows = [(40 + at % 3, 9) for at in range(12)]


@pytest.mark.parametrize(
    ("code", "so", "nearly"),
    [
        ("ONE_PARTICIPANT_DOMINATES", [*PLAIN[1:], (400, 90)], [*PLAIN[1:], (140, 30)]),
        ("ONE_PARTICIPANT_DOMINATES", [(10, 2), (10, 2), (81, 20)], [(10, 2), (20, 2), (50, 20)]),
        ("IMPRESSIONS_DIFFER_BY_ARM", [(44 + at % 3, 9) for at in range(12)], [(41 + at % 3, 9) for at in range(12)]),
        ("CONVERSIONS_EXCEED_IMPRESSIONS", [(40 + at % 3, 44) for at in range(12)], [(42, 42)] * 12),
    ],
)  # fmt: skip
def test_it_is_there_when_it_is_so(code: str, so: Rows, nearly: Rows) -> None:
    """In the answer, with evidence and advice; every one has its line on the page of codes."""
    (found,) = [one for one in answer(evidence(PLAIN, so))["findings"] if one["code"] == code]
    assert found["evidence"]
    assert found["message"]
    assert found["advice"]
    assert code in OF_RESULTS
    assert code not in {one["code"] for one in uneven(evidence(PLAIN, nearly))}


def test_of_participants_everybody_counts_once() -> None:
    """However many impressions one has, and however unlike the arms are measured; of means likewise."""
    more = [(90 + at % 3, 9) for at in range(11)]
    for measure in ({"of": "participants"}, {"kind": "mean"}, {"kind": "count"}):
        assert uneven(evidence(PLAIN, [*more, (4000, 90)], **measure)) == []
    assert {one["code"] for one in uneven(evidence(PLAIN, [*more, (4000, 90)], kind="ratio"))} == {
        "ONE_PARTICIPANT_DOMINATES"
    }


def test_what_compares_nobody_has_no_findings() -> None:
    """A personalization, and an experiment in which nobody was seen."""
    so = evidence(PLAIN, [(4, 44)] * 12)
    assert uneven(so.model_copy(update={"uncompared": "NOT_RANDOMIZED"})) == []
    assert uneven(evidence([(0, 0)] * 4, [(0, 0)] * 4)) == []
