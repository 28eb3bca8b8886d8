"""Saved metrics, metrics of experiments by name and by value, and a plan that is frozen at the start."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.metrics import CreateMetric, MetricsSpec, UpdateMetric
from control_plane.services import experiments, findings, lifecycle, metrics
from shared.errors import AlreadyExists, FailedPrecondition, Invalid, NotFound
from shared.ids import show_id
from tests.support.builders import World


async def saved(world: World, **values: Any) -> Any:
    """A saved metric."""
    given = {"name": "Resolved", "key": "resolved-rate", "eventName": "resolved", **values}
    return await world.do(metrics.create, requests.parse(CreateMetric, given))


async def edited(world: World, **values: Any) -> Any:
    """The saved metric, changed."""
    given = {"id": "resolved-rate", **values}
    return await world.do(metrics.update, requests.parse(UpdateMetric, given))


async def measured(world: World) -> dict[str, Any]:
    """The metrics of the experiment, as they are meant."""
    return dict((await world.do(experiments.get, requests.ById(id="test"))).metrics)


async def replanned(world: World, **values: Any) -> Any:
    """The experiment with other metrics."""
    request = requests.parse(requests.UpdateExperiment, {"id": "test", "metrics": values})
    return await world.do(experiments.update, request)


async def test_a_draft_follows_the_saved_metric_and_a_start_copies_it(world: World) -> None:
    """Before the start an edit reaches the draft; afterwards neither an edit nor the deletion does."""
    await saved(world)
    draft = await world.experiment("p", metrics={"primary": {"key": "resolved-rate"}})
    await edited(world, goal="decrease", window="P7D")
    primary = (await measured(world))["primary"]
    assert (primary["eventName"], primary["goal"], primary["window"]) == ("resolved", "decrease", "P7D")
    with pytest.raises(FailedPrecondition, match="cannot be deleted: test") as refused:
        await world.do(metrics.delete, requests.ById(id="resolved-rate"))
    assert refused.value.reason == "METRIC_IN_USE"
    await world.start(draft)
    await edited(world, goal="increase", eventName="closed")
    await world.do(metrics.delete, requests.ById(id="resolved-rate"))
    assert (await measured(world))["primary"] == primary
    metric = (await world.answer())["metric"]
    assert (metric["eventName"], metric["goal"], metric["role"]) == ("resolved", "decrease", "primary")


async def test_what_is_said_beside_a_name_has_to_agree_with_it(world: World) -> None:
    """What was shown may be sent back; a contradiction is refused and names the field."""
    made = await saved(world, minimumDetectableEffect=0.1)
    await world.experiment("p")
    shown = {"id": id_of(made), "eventName": "resolved", "minimumDetectableEffect": 0.1}
    assert (await replanned(world, primary=shown)).metrics["primary"]["key"] == "resolved-rate"
    with pytest.raises(Invalid, match=r"metrics\.secondary\.0\.goal: the saved metric resolved-rate says"):
        await replanned(world, secondary=[{"key": "resolved-rate", "goal": "decrease"}])
    with pytest.raises(NotFound, match="'nothing'"):
        await replanned(world, guardrail=[{"key": "nothing"}])
    with pytest.raises(Invalid, match=r"metrics\.primary\.role: it is in the place of a primary"):
        await replanned(world, primary={"eventName": "e", "role": "guardrail"})


def id_of(view: Any) -> str:
    """The id of a saved metric, as it is shown."""
    return show_id(view.metric.id)


async def test_metrics_by_value_keep_every_field(world: World) -> None:
    """What is written in the experiment is what it measures."""
    ratio = {"eventName": "cost", "kind": "ratio", "denominatorEventName": "chat", "goal": "decrease"}
    margin = {"eventName": "escalated", "goal": "decrease", "margin": 0.05, "window": "PT6H"}
    await world.experiment("p", metrics={"secondary": [ratio], "guardrail": [margin]})
    found = await measured(world)
    assert found["secondary"] == [ratio]
    assert found["guardrail"] == [{**margin, "kind": "proportion"}]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({}, "eventName, or the id or key"),
        ({"eventName": "e", "kind": "ratio"}, "a ratio needs denominatorEventName"),
        ({"eventName": "e", "denominatorEventName": "d"}, "only a ratio has"),
        ({"eventName": "e", "margin": 0}, "greater than 0"),
        ({"eventName": "e", "window": "7 days"}, "ISO 8601"),
        ({"eventName": "e", "kind": "median"}, "proportion"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(metric: dict[str, Any], message: str) -> None:
    """Each fault says what is wrong."""
    with pytest.raises(Invalid, match=message):
        requests.parse(MetricsSpec, {"primary": metric})


async def test_a_saved_metric_stays_whole(world: World) -> None:
    """A key is taken once; an edit is checked with what is there already."""
    await saved(world)
    with pytest.raises(AlreadyExists, match="'resolved-rate'"):
        await saved(world)
    with pytest.raises(Invalid, match="a ratio needs denominatorEventName"):
        await edited(world, kind="ratio")
    changed = await edited(world, kind="ratio", denominatorEventName="chat", name="Per chat")
    assert (changed.metric.name, changed.metric.definition["kind"]) == ("Per chat", "ratio")
    back = await edited(world, kind=None, denominatorEventName=None)
    assert back.metric.definition["kind"] == "proportion"


async def test_a_plan_that_changed_after_the_start_is_told(world: World) -> None:
    """The fingerprint of the start stays; experiment, results and findings say that it is not the plan any more."""
    first = {"eventName": "resolved"}
    draft = await world.experiment("p", metrics={"primary": first})
    assert draft.analysis_fingerprint is None
    await world.start(draft)
    frozen = (await world.do(experiments.get, requests.ById(id="test"))).experiment
    assert len(frozen.analysis_fingerprint or "") == 64
    assert not frozen.plan_changed
    moved = (await replanned(world, primary={"eventName": "resolved", "goal": "decrease"})).experiment
    assert (moved.plan_changed, moved.analysis_fingerprint) == (True, frozen.analysis_fingerprint)
    assert (await world.answer())["planChanged"]
    report = await world.do(findings.get, requests.ById(id="test"))
    assert "PLAN_CHANGED" in {item.code for item in report.findings}
    assert not (await replanned(world, primary=first)).experiment.plan_changed


async def test_metrics_are_locked_once_it_is_not_under_way(world: World) -> None:
    """A paused experiment may be replanned, a stopped one not; a new run has no plan on record yet."""
    await world.start(await world.experiment("p"))
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    assert (await replanned(world, primary={"eventName": "e"})).experiment.plan_changed
    await world.do(lifecycle.stop, requests.ById(id="test"))
    with pytest.raises(FailedPrecondition, match="cannot edit"):
        await replanned(world, primary={"eventName": "f"})
    await world.do(lifecycle.reset, requests.Reset(id="test"))
    assert (await replanned(world, primary={"eventName": "f"})).experiment.analysis_fingerprint is None
