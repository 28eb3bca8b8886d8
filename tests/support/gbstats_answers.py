"""What gbstats answers, as a program of its own: cases as JSON on standard input, answers as JSON on standard output.

It needs libraries of older versions than ours, so it runs in an environment that holds nothing else (`make test` makes
it on Python 3.11); nothing of ours is imported here.
"""

import json
import sys

from gbstats.frequentist.tests import (
    FrequentistConfig,
    SequentialConfig,
    SequentialTwoSidedTTest,
    TwoSidedTTest,
)
from gbstats.models.statistics import RatioStatistic, SampleMeanStatistic
from gbstats.utils import check_srm


def sums(values):
    return SampleMeanStatistic(n=len(values), sum=sum(values), sum_squares=sum(v * v for v in values))


def quotient(rows):
    below, above = [row[0] for row in rows], [row[1] for row in rows]
    products = sum(m * c for m, c in rows)
    return RatioStatistic(
        n=len(rows), m_statistic=sums(above), d_statistic=sums(below), m_d_sum_of_products=products
    )


def answer(case):
    if case["kind"] == "srm":
        return {"p": check_srm(case["counts"], case["weights"])}
    make = quotient if case["kind"] == "ratio" else sums
    control, treatment = make(case["control"]), make(case["treatment"])
    if "tuning" in case:
        config = SequentialConfig(
            difference_type="absolute", alpha=case["alpha"], sequential_tuning_parameter=case["tuning"]
        )
        test = SequentialTwoSidedTTest(control, treatment, config)
    else:
        test = TwoSidedTTest(
            control, treatment, FrequentistConfig(difference_type="absolute", alpha=case["alpha"])
        )
    found = test.compute_result()
    return {
        "difference": found.expected,
        "low": found.ci[0],
        "high": found.ci[1],
        "p": found.p_value,
        "error": found.uplift.stddev,
    }


if __name__ == "__main__":
    json.dump([answer(case) for case in json.load(sys.stdin)], sys.stdout)
