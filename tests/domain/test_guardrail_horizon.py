"""A guardrail is watched for as long as the experiment is measured."""

from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.verdict import Guard, guard


def shot(day: int, *, harm: int, start: int) -> Snapshot:
    """20 + 20 hosts, 100 impressions a day; from day `start` on the treatment's convert `harm` a day, else 10."""
    late = max(day - start, 0)
    trials = [100 * day] * 40
    successes = [10 * day + harm * late * (host < 20) + day * (host % 3) for host in range(40)]
    return Snapshot(day=float(day), trials=trials, successes=successes)


def plan(horizon: float) -> Plan:
    units = [Unit(arm="b" if host < 20 else "a", block="all", stratum="all") for host in range(40)]
    return Plan(
        method="sequence", arms=("a", "b"), control="a", units=units, seed=b"x" * 32, horizon=horizon,
        comparisons=1,
    )  # fmt: skip


def test_harm_after_the_horizon_fails_a_guardrail() -> None:
    """The same looks, the same always-valid interval: that no verdict is to be found any more makes no harm safe."""
    shots = [shot(day, harm=60, start=14) for day in range(1, 31)]
    watched = {
        horizon: guard(plan(horizon), shots, metric="hurt", goal="decrease", margin=None)[0]
        for horizon in (14.0, 366.0)
    }
    assert watched[366.0].state is Guard.FAILED
    assert watched[14.0].state is Guard.FAILED


def test_arms_that_are_exactly_alike_are_not_inferior() -> None:
    """No difference at all, and an interval within the margin."""
    shots = [
        Snapshot(day=1.0, trials=[1000] * 40, successes=[100 + host % 20 for host in range(40)]),
    ]
    (found,) = guard(plan(14.0), shots, metric="hurt", goal="decrease", margin=0.5)
    assert found.interval is not None
    assert found.bound is not None
    assert found.state is Guard.NON_INFERIOR
