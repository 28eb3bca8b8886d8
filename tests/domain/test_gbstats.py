"""Where gbstats claims the same model, it and we give the same digits.

The same: Welch's test of means, the delta method's variance of a ratio, the asymptotic confidence sequence in
participants, the chi-square of a sample ratio. Not compared, because the models differ: its variance of a proportion
has no n/(n-1), its lift is by the delta method where ours is Fieller's, its Bayesian effects are normal where ours are
Beta, its degrees of freedom of a ratio do not know uneven trials, and its CUPED does not count the estimated slope.
"""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from control_plane.domain.statistics.means import RatioSums, mean, moments, ratio
from control_plane.domain.statistics.proportions import Difference, Estimate, compared
from control_plane.domain.statistics.sequence import always_valid
from control_plane.domain.statistics.srm import sample_ratio

ORACLE = Path(__file__).resolve().parents[1] / "support" / "gbstats_answers.py"
PYTHON = Path(sys.prefix) / "gbstats" / "bin" / "python"
EXACT = 1e-9

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="gbstats needs libraries that only Python 3.11 has wheels of"
)


def asked(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What gbstats answers."""
    done = subprocess.run([str(PYTHON), str(ORACLE)], input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, float]] = json.loads(done.stdout)
    return answers


def values(random: Random, n: int, *, shift: float) -> list[float]:
    return [random.lognormvariate(shift, 0.7) for _ in range(n)]


def rows(random: Random, n: int, *, share: float, even: bool) -> list[tuple[int, int]]:
    """(trials, successes) of n participants."""
    sizes = [40 if even else random.randint(5, 90) for _ in range(n)]
    return [(m, sum(random.random() < share for _ in range(m))) for m in sizes]


def ours(case: dict[str, Any]) -> Difference:
    """The difference by our functions."""

    def estimate(key: str) -> Estimate:
        if case["kind"] == "mean":
            return mean(key, moments(case[key]))
        trials, successes = zip(*case[key], strict=True)
        return ratio(RatioSums(key=key, trials=trials, successes=successes), variance="delta")

    return compared(estimate("treatment"), estimate("control"), alpha=case["alpha"])


def test_means_by_welch() -> None:
    """Difference, error, interval and p, from 3 participants an arm to 400, equal arms and unequal ones."""
    random = Random(1)
    cases = [
        {
            "kind": "mean",
            "alpha": alpha,
            "control": values(random, n, shift=0.0),
            "treatment": values(random, m, shift=shift),
        }
        for n, m in ((3, 3), (8, 8), (30, 12), (400, 380))
        for alpha, shift in ((0.05, 0.1), (0.01, 0.5))
    ]
    for case, answer in zip(cases, asked(cases), strict=True):
        found = ours(case)
        assert found.interval is not None
        assert found.estimate == pytest.approx(answer["difference"], rel=EXACT)
        assert found.standard_error == pytest.approx(answer["error"], rel=EXACT)
        assert found.interval.low == pytest.approx(answer["low"], rel=EXACT, abs=1e-12)
        assert found.interval.high == pytest.approx(answer["high"], rel=EXACT, abs=1e-12)
        assert found.p_value == pytest.approx(answer["p"], rel=EXACT)


def test_ratios_by_the_delta_method() -> None:
    """Difference and error always; interval and p where every participant has as many trials."""
    random = Random(2)
    cases = [
        {
            "kind": "ratio",
            "alpha": 0.05,
            "even": even,
            "control": rows(random, n, share=0.2, even=even),
            "treatment": rows(random, m, share=0.3, even=even),
        }
        for even in (True, False)
        for n, m in ((5, 5), (30, 20), (200, 150))
    ]
    for case, answer in zip(cases, asked(cases), strict=True):
        found = ours(case)
        assert found.interval is not None
        assert found.estimate == pytest.approx(answer["difference"], rel=EXACT)
        assert found.standard_error == pytest.approx(answer["error"], rel=EXACT)
        if case["even"]:
            assert found.interval.low == pytest.approx(answer["low"], rel=EXACT, abs=1e-12)
            assert found.interval.high == pytest.approx(answer["high"], rel=EXACT, abs=1e-12)
            assert found.p_value == pytest.approx(answer["p"], rel=EXACT)


def test_the_sequence_in_participants() -> None:
    """Interval and p of the asymptotic confidence sequence, with a tuning in participants."""
    random = Random(3)
    cases = [
        {
            "kind": "mean",
            "alpha": alpha,
            "tuning": tuning,
            "control": values(random, n, shift=0.0),
            "treatment": values(random, n, shift=shift),
        }
        for n in (50, 500)
        for tuning in (100.0, 5000.0)
        for alpha, shift in ((0.05, 0.05), (0.1, 0.4))
    ]
    for case, answer in zip(cases, asked(cases), strict=True):
        plain = ours(case)
        assert plain.estimate is not None
        assert plain.standard_error is not None
        found = always_valid(
            estimate=plain.estimate,
            standard_error=plain.standard_error,
            share=(len(case["control"]) + len(case["treatment"])) / case["tuning"],
            alpha=case["alpha"],
        )
        assert found.interval.low == pytest.approx(answer["low"], rel=EXACT, abs=1e-12)
        assert found.interval.high == pytest.approx(answer["high"], rel=EXACT, abs=1e-12)
        assert found.p_value == pytest.approx(answer["p"], rel=EXACT)


def test_the_sample_ratio() -> None:
    """The chi-square of counts against weights."""
    tables = [
        ([480, 520], [50, 50]),
        ([940, 60], [95, 5]),
        ([300, 330, 370], [1, 1, 1]),
        ([7, 1], [50, 50]),
        ([1_000_000, 1_002_000], [1, 1]),
    ]
    cases = [{"kind": "srm", "counts": counts, "weights": weights} for counts, weights in tables]
    for (counts, weights), answer in zip(tables, asked(cases), strict=True):
        assert sample_ratio(counts, weights).p_value == pytest.approx(answer["p"], rel=EXACT)
