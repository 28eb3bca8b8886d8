"""Findings from what is really on record."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.fleet import Telemetry
from control_plane.services import deployments, findings
from control_plane.store.store import Store
from shared.model import Condition, Record, SpoolState, Unseen, View, ViewState, digest
from tests.support.builders import Spooled, World, seconds


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


async def test_a_level_that_several_variants_share_is_no_other_s_content(world: World) -> None:
    """Whoever holds its own combination met one variant; whoever has another one's level on a file met two."""
    uid = await world.agent("p", "q", "r", "s")
    factors = [
        {
            "key": key,
            "targetFile": f"{key}.md",
            "levels": [{"key": level, "content": key + level} for level in "xy"],
        }
        for key in ("one", "two")
    ]
    started = await world.start(
        await world.experiment(
            "p", "q", "r", "s", type="multivariate", factors=factors, targetFile=None, variants=[]
        )
    )
    bodies = {variant.key: variant.files for variant in started.variants}
    now = world.clock.now()
    assigned = await world.assigned(started)
    await world.report(
        uid,
        *(
            world.view(name, file.digest, path=file.path, at=now + 1)
            for name, key in assigned.items()
            for file in bodies[key]
        ),
    )
    assert "SEVERAL_EXPOSURES" not in await found(world)
    await world.report(uid, world.view("p", digest(b"z"), path="one.md", at=now + 2))
    assert "SEVERAL_EXPOSURES" not in await found(world), "nobody's content"
    own = {file.digest for file in bodies[assigned["p"]]}
    other = next(file for files in bodies.values() for file in files if file.digest not in own)
    await world.report(uid, world.view("p", other.digest, path=other.path, at=now + 3))
    assert (await found(world))["SEVERAL_EXPOSURES"].evidence["participants"] == ["p"]


@pytest.mark.parametrize("drifted", ["one.md", "two.md"])
async def test_a_file_that_drifted_is_told_though_another_one_is_as_it_should_be(
    world: World, drifted: str
) -> None:
    """Of a variant of two files each is looked at as it was seen last, whichever was seen last of all."""
    uid = await world.agent("p", "q")
    variants = [
        {
            "name": key,
            "key": key,
            "isControl": key == "a",
            "weight": 50,
            "files": [{"path": f"{path}.md", "content": key} for path in ("one", "two")],
        }
        for key in "ab"
    ]
    await world.start(await world.experiment("p", "q", targetFile=None, variants=variants))
    now = world.clock.now()
    gone = View(participant="p", path=drifted, digest=None, state=ViewState.MISSING, from_at=now + 2)
    await world.report(
        uid,
        *(world.view("p", digest(b"a"), path=path, at=now + 1) for path in ("one.md", "two.md")),
        Record(id=world.new_id(), recorded_at=now + 2, body=gone),
        world.view("p", digest(b"a"), path="two.md" if drifted == "one.md" else "one.md", at=now + 3),
    )
    assert (await found(world))["DRIFT"].evidence["participants"] == ["p"]
    await world.report(uid, world.view("p", digest(b"a"), path=drifted, at=now + 4))
    assert "DRIFT" not in await found(world)


@pytest.mark.parametrize("other", ["bot-1", "bot", "soul.md"])
async def test_another_tool_is_told_of_the_participant_whose_file_it_rewrites(
    world: World, other: str
) -> None:
    """Not of one on the same host whose id is a part of that one's, or of the path."""
    uid = await world.agent("bot-10", other)
    await world.start(await world.experiment("bot-10", other))
    condition = Condition(
        code="DRIFT_WAR",
        severity="warning",
        since_at=world.clock.now(),
        message="'soul.md' of bot-10 was repaired 3 times in 10 minutes and changed again",
    )
    telemetry = Telemetry(spool=SpoolState(epoch=bytes(16)), conditions=(condition,))
    await world.database.write(lambda tx: Store(tx).fleet.observe(uid, telemetry))
    assert (await found(world))["REWRITTEN_BY_ANOTHER_TOOL"].evidence == {"participants": ["bot-10"]}


async def test_opens_that_went_unseen_are_told_where_the_participant_was_assigned(world: World) -> None:
    """For as long as it took part; however often the host says so, and from whichever epoch."""
    uid = await world.agent("p", "q")
    before = world.clock.now() - seconds(100)
    await world.start(await world.experiment("p", "q"))
    now = world.clock.now()

    def unseen(participant: str, reason: str, from_at: int, to_at: int) -> Record:
        body = Unseen(participant=participant, reason=reason, from_at=from_at, to_at=to_at)
        return Record(id=world.new_id(), recorded_at=now, body=body)

    await world.report(uid, unseen("q", "not_running", before, before + 1))
    assert "OPENS_UNSEEN" not in await found(world)
    told = [unseen("p", "overflow", now + 5, now + 6), unseen("p", "not_running", before, now + 1)]
    await world.report(uid, *told)
    await world.send(uid, Spooled(epoch=world.new_id()).batch(*told))
    assert (await found(world))["OPENS_UNSEEN"].evidence == {
        "participants": ["p"],
        "reasons": {"not_running": 1, "overflow": 1},
    }


async def test_a_draft_has_no_findings_but_its_schedule_s(world: World) -> None:
    """Nothing is computed of a phase that is not there."""
    await world.experiment("p", metrics={"primary": {"eventName": "done", "goal": "increase"}})
    assert await found(world) == {}
