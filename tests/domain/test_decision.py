"""Looks, guardrails and the verdict: what is decided, what is not, and that it is said why."""

import random
from dataclasses import replace

import pytest

from control_plane.domain.statistics.decision import Look, decided, looks
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import Undefined
from control_plane.domain.statistics.verdict import Guard, Integrity, Status, guard, standing, verdict
from shared.errors import Invalid

SOUND = Integrity(replays=True, ratio_p_value=None, leaked=False, losses={})
ARMS = {"control": 0.25, "b": 0.5}


def plan_of(rates: dict[str, float], hosts: int, **more: object) -> Plan:
    """`hosts` participants an arm in one block."""
    units = [Unit(arm=arm, block="stratum:all", stratum="all") for arm in rates for _ in range(hosts)]
    defaults = {
        "method": "path_test",
        "arms": tuple(rates),
        "control": "control",
        "units": units,
        "seed": b"s",
    }
    return Plan(**{**defaults, **more})  # type: ignore[arg-type]


def days(arms: dict[str, float], hosts: int, count: int, *, each: int = 40, seed: int = 1) -> list[Snapshot]:
    """Cumulative sums of `count` days, each participant with `each` impressions a day."""
    chance = random.Random(seed)
    m = [0] * (len(arms) * hosts)
    c = list(m)
    rates = [rate for rate in arms.values() for _ in range(hosts)]
    found = []
    for day in range(1, count + 1):
        for at, rate in enumerate(rates):
            m[at] += each
            c[at] += sum(chance.random() < rate for _ in range(each))
        found.append(Snapshot(day=day, trials=tuple(m), successes=tuple(c)))
    return found


def judged(plan: Plan, found: tuple[Look, ...], **more: object):
    """The verdict of sound looks, more is better."""
    return verdict(plan, found, **{"goal": "increase", "reachable": 1e-4, "integrity": SOUND, **more})


@pytest.mark.parametrize("method", ["path_test", "sequence"])
def test_a_difference_is_found_and_stands(method: str) -> None:
    """Once it crossed, worse days later change neither the verdict nor the interval that is shown."""
    plan = plan_of(ARMS, 8, method=method)
    shots = days(ARMS, 8, 14)
    found = looks(plan, shots)
    first = next(at for at, look in enumerate(found) if look.comparisons[0].crossed)
    early, late = judged(plan, found[: first + 1]), judged(plan, found)
    assert (early.status, early.arm) == (Status.WINNER, "b")
    assert (late.status, late.arm, late.winners) == (Status.WINNER, "b", ("b",))
    assert standing(found)[0].interval == found[first].comparisons[0].interval
    assert late.reasons[0].inputs["statistic"] > late.reasons[0].inputs["critical"]


@pytest.mark.parametrize("method", ["path_test", "sequence"])
@pytest.mark.parametrize("seed", range(6))
def test_interval_p_and_decision_never_contradict_each_other(method: str, seed: int) -> None:
    """In both methods, for the difference and the lift, at every look and any level."""
    arms = {"control": 0.25, "b": 0.33, "c": 0.25}
    plan = plan_of(arms, 6, method=method, alpha=0.2)
    shots = days(arms, 6, 14, each=30, seed=seed)
    for count in range(1, 15):
        compared = looks(plan, shots[:count])[-1].comparisons
        # What simulations ask is what is recorded.
        assert decided(plan, shots[:count]) == {one.arm for one in compared if one.decided}
        for one in compared:
            if one.interval is None:
                assert not one.crossed
                assert "interval" in one.reasons
                continue
            excludes = one.interval.low > 0 or one.interval.high < 0
            assert excludes == one.crossed
            if one.lift_interval is None:
                assert one.reasons["lift_interval"] is Undefined.NO_BASELINE
            else:
                assert (one.lift_interval.low > 0 or one.lift_interval.high < 0) == one.crossed
            assert one.p_adjusted is not None
            assert (one.p_adjusted <= plan.alpha) == (one.decided if method == "path_test" else one.crossed)


def test_every_absent_number_has_its_reason() -> None:
    """Nothing is null in silence."""
    plan = plan_of(ARMS, 8)
    quiet = Snapshot(day=0.5, trials=(0,) * 16, successes=(0,) * 16)
    for method in ("path_test", "sequence"):
        for look in looks(replace(plan, method=method), [quiet, *days(ARMS, 8, 3)]):
            for one in look.comparisons:
                absent = {name for name in one.__slots__ if getattr(one, name) is None}
                assert absent <= set(one.reasons), absent - set(one.reasons)
                assert absent >= set(one.reasons)


def test_the_horizon_ends_deciding() -> None:
    """Nothing crossed by then: no difference, and what comes later decides nothing."""
    same = {"control": 0.3, "b": 0.3}
    plan = plan_of(same, 8, horizon=3.0)
    shots = days(same, 8, 3, seed=5)
    found = looks(plan, shots)
    assert not found[-1].comparisons[0].decided
    over = judged(plan, found)
    assert over.status is Status.NO_DIFFERENCE
    (why,) = over.reasons
    (told,) = why.inputs["differences"]
    assert told["interval"]["low"] < 0 < told["interval"]["high"]
    assert told["statistic"] < told["critical"]
    assert "redrawn" in why.formula
    assert judged(plan, found, mde=0.12).reasons[0].inputs["smallestEffectFound"] == 0.12
    (wait,) = judged(plan, found[:2]).reasons
    assert (wait.code, wait.inputs["differences"][0]["variant"]) == ("NOT_CROSSED", "b")
    wild = Snapshot(day=4, trials=(400,) * 16, successes=(0,) * 8 + (400,) * 8)
    later = looks(plan, [*shots, wild])
    assert [look.comparisons[0].decided for look in later[:3]] == [False] * 3
    assert later[3].comparisons == ()
    assert judged(plan, later).status is Status.NO_DIFFERENCE


def test_harm_is_a_loser_and_lower_may_be_better() -> None:
    """The direction is the goal's."""
    worse = {"control": 0.5, "b": 0.2}
    plan = plan_of(worse, 8)
    found = looks(plan, days(worse, 8, 14))
    assert (judged(plan, found).status, judged(plan, found).arm) == (Status.LOSER, "b")
    assert judged(plan, found, goal="decrease").status is Status.WINNER


def test_several_winners_are_listed_and_the_best_is_said_to_be_untested() -> None:
    """The largest is recommended, with what was not tested."""
    arms = {"control": 0.2, "b": 0.5, "c": 0.6}
    plan = plan_of(arms, 8)
    found = judged(plan, looks(plan, days(arms, 8, 14)))
    assert (found.status, found.arm, found.winners) == (Status.WINNER, "c", ("c", "b"))
    assert found.reasons[-1].code == "BEST_OF_WINNERS_NOT_TESTED"


def test_what_forbids_a_verdict_comes_before_what_decides_it() -> None:
    """Unequal losses, a changed record, a design too small, a failed guardrail."""
    plan = plan_of(ARMS, 8)
    shots = days(ARMS, 8, 14)
    found = looks(plan, shots)
    lost = replace(SOUND, losses={"without_data": 0.0002})
    assert judged(plan, found, integrity=lost).status is Status.INVALID
    warned = judged(plan, found, integrity=replace(SOUND, losses={"refused": 0.004}))
    assert (warned.status, warned.reasons[-1].code) == (Status.WINNER, "SAMPLE_RATIO_MISMATCH")
    assert judged(plan, found, integrity=replace(SOUND, replays=False)).status is Status.INVALID
    assert judged(plan, found, integrity=replace(SOUND, leaked=True)).status is Status.INVALID
    assert judged(plan, found, reachable=0.06).status is Status.INCONCLUSIVE_DESIGN
    watched = plan_of(ARMS, 8, method="sequence", comparisons=2)
    harmed = guard(watched, shots, metric="escalated", goal="decrease", margin=0.1)
    refused = judged(plan, found, guarded=harmed)
    assert (refused.status, refused.arm) == (Status.GUARDRAIL_FAILED, "b")


def test_a_guardrail_is_failed_unproven_or_not_inferior() -> None:
    """By where the interval lies; failed is for good."""

    def states(arms: dict[str, float], goal: str, margin: float | None, count: int = 14) -> list[Guard]:
        plan = plan_of(arms, 30, method="sequence", comparisons=1)
        found = guard(plan, days(arms, 30, count), metric="m", goal=goal, margin=margin)  # type: ignore[arg-type]
        return [item.state for item in found]

    assert states(ARMS, "decrease", 0.1) == [Guard.FAILED]
    assert states(ARMS, "increase", 0.1) == [Guard.NON_INFERIOR]
    assert states({"control": 0.4, "b": 0.4}, "increase", 0.2) == [Guard.NON_INFERIOR]
    assert states({"control": 0.4, "b": 0.4}, "increase", None) == [Guard.UNPROVEN]
    assert states({"control": 0.4, "b": 0.4}, "increase", 0.02) == [Guard.UNPROVEN]
    plan = plan_of(ARMS, 30, method="sequence")
    shots = days(ARMS, 30, 5)
    m = tuple(10 * value for value in shots[-1].trials)
    back = Snapshot(day=6, trials=m, successes=tuple(value // 3 for value in m))
    assert guard(plan, [*shots, back], metric="m", goal="decrease", margin=None)[0].state is Guard.FAILED


def test_a_sequence_does_not_decide_on_next_to_nothing() -> None:
    """Fewer than ten conversions, or four participants an arm: no interval, and it is said why."""
    rare = Snapshot(day=1, trials=(100,) * 20, successes=(0,) * 10 + (1,) * 9 + (0,))
    plan = plan_of(ARMS, 10, method="sequence")
    one = looks(plan, [rare])[0].comparisons[0]
    assert (one.interval, one.reasons["interval"]) == (None, Undefined.TOO_FEW_DATA)
    few = plan_of(ARMS, 4, method="sequence")
    two = looks(few, days(ARMS, 4, 5))[-1].comparisons[0]
    assert (two.interval, two.decided) == (None, False)


@pytest.mark.parametrize("shares", [True, False])
def test_a_sequence_wants_more_conversions_where_an_arm_is_small(shares: bool) -> None:
    """A small arm without any has no error either: no loser of 5 % of the participants, and no guardrail failed."""
    units = [Unit(arm=arm, block="hash", stratum="") for arm in ("b",) * 60 + ("control",) * 1140]
    plan = plan_of(ARMS, 0, method="sequence", units=units, effect=0.5, shares=shares)

    def look(*hits: int) -> Snapshot:
        """So many conversions in b and in control, one each; a proportion is of ten impressions each."""
        hit = [*([1] * hits[0] + [0] * (60 - hits[0])), *([1] * hits[1] + [0] * (1140 - hits[1]))]
        return Snapshot(day=1, trials=(10 if shares else 1,) * 1200, successes=tuple(hit))

    early = look(0, 20)
    one = looks(plan, [early])[0].comparisons[0]
    assert (one.interval, one.reasons["interval"]) == (None, Undefined.TOO_FEW_DATA)
    assert guard(plan, [early], metric="m", goal="increase", margin=None)[0].state is Guard.UNPROVEN
    assert guard(plan, [early], metric="m", goal="decrease", margin=0.5)[0].state is Guard.UNPROVEN
    assert looks(plan, [look(10, 190)])[0].comparisons[0].interval is not None


@pytest.mark.parametrize(
    "more", [{"control": "x"}, {"arms": ("control",)}, {"arms": ("control", "b", "b")}, {"alpha": 0}]
)
def test_a_plan_that_makes_no_sense_is_refused(more: dict[str, object]) -> None:
    """By field."""
    with pytest.raises(Invalid):
        plan_of(ARMS, 4, **more)
