"""Findings from what is really on record."""

from typing import Any

from control_plane.domain import requests
from control_plane.services import deployments, findings
from shared.model import digest
from tests.support.builders import World


async def found(world: World) -> dict[str, Any]:
    """Findings of the one experiment by code."""
    report = await world.do(findings.get, requests.ById(id="test"))
    return {item.code: item for item in report.findings}


async def test_the_record_tells_drift_force_and_crossing(world: World) -> None:
    """A drifted file, a variant by hand and content of two variants on one file are seen in what was reported."""
    uid = await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    assigned = await world.assigned(started)
    assert set(await found(world)) == {"NO_PRIMARY_METRIC", "SEVERAL_ARMS_ON_ONE_HOST"}
    bodies = {variant.key: next(iter(variant.files)).digest for variant in started.variants}
    other = "a" if assigned["p"] == "b" else "b"
    request = {"id": "test", "participantId": "p", "variantId": other}
    await world.do(deployments.create, requests.parse(requests.CreateDeployment, request))
    now = world.clock.now()
    await world.report(
        uid,
        world.view("p", bodies[assigned["p"]], at=now + 1),
        world.view("p", bodies[other], at=now + 2),
        world.view("q", digest(b"somebody else's"), at=now + 3),
        world.impression("p", at=now + 4),
    )
    seen = await found(world)
    assert seen["FORCED_PARTICIPANTS"].evidence == {"participants": ["p"]}
    assert seen["SEVERAL_EXPOSURES"].evidence["participants"] == ["p"]


async def test_a_draft_has_no_findings_but_its_schedule_s(world: World) -> None:
    """Nothing is computed of a phase that is not there."""
    await world.experiment("p", metrics={"primary": {"eventName": "done", "goal": "increase"}})
    assert await found(world) == {}
