"""Blocks of a switchback: drawn at the start, put in place when their time comes, cut where the experiment stops."""

from collections import Counter, defaultdict
from itertools import groupby, pairwise
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import (
    deployments,
    experiments,
    findings,
    fleet,
    lifecycle,
    phases,
    preview,
)
from shared.errors import FailedPrecondition, Invalid
from shared.moment import SECOND
from tests.services.test_timers import moves_to, ticking
from tests.support.builders import World, make_variant
from tests.support.waiting import eventually

HOUR = 3600
BOTS = ("p", "q", "r")


async def drafted(
    world: World, *participants: str, blocks: int = 6, washout: str = "PT0S", **fields: Any
) -> Any:
    """A draft of one-hour blocks."""
    settings = {"blockDuration": "PT1H", "blocks": blocks, "washout": washout}
    return await world.experiment(
        *participants, type="switchback", switchback=settings, **{"settle": 0, **fields}
    )


async def rows(world: World) -> list[dict[str, Any]]:
    """Every turn on record, with moments in hours since the start."""
    found = await world.rows(
        "select p.public_id as who, v.key, a.time_block as block, a.from_at, a.to_at, a.block as cycle,"
        " a.position, f.opened_at from assignment a join participant p on p.id = a.participant_id"
        " join phase f on f.id = a.phase_id left join variant v on v.id = a.variant_id"
        " order by p.public_id, a.from_at"
    )
    for row in found:
        row["from"] = (row["from_at"] - row["opened_at"]) / (HOUR * SECOND)
        row["to"] = None if row["to_at"] is None else (row["to_at"] - row["opened_at"]) / (HOUR * SECOND)
    return found


async def due(world: World, who: str, block: int) -> str:
    """The variant that is drawn for a participant's block."""
    return next(row["key"] for row in await rows(world) if (row["who"], row["block"]) == (who, block))


async def holding(world: World) -> dict[str, str | None]:
    """Variant key that each slot should hold, None where it is restored or closed."""
    found = await world.rows(
        "select p.public_id, v.key from slot s join deployment d on d.id = s.deployment_id"
        " join participant p on p.id = s.participant_id left join variant v on v.id = d.variant_id"
    )
    return {row["public_id"]: row["key"] for row in found}


async def comes_to_hold(world: World, block: int, *who: str) -> None:
    """Slots come to hold what is drawn for the block, as the clock goes on by a few looks."""
    wanted = {name: await due(world, name, block) for name in who}

    async def there() -> bool:
        await world.clock.advance(1.0)
        return await holding(world) == wanted

    await eventually(there, what=f"block {block}")


async def test_every_turn_is_on_record_at_the_start(world: World) -> None:
    """Rows follow one another without a gap, each variant once per cycle; the first is on the files."""
    await world.agent(*BOTS)
    started = await world.start(await drafted(world, *BOTS))
    found = await rows(world)
    assert len(found) == 18
    for name in BOTS:
        mine = [row for row in found if row["who"] == name]
        assert [(row["from"], row["to"]) for row in mine] == [(n, n + 1) for n in range(6)]
        cycles = defaultdict(list)
        for row in mine:
            cycles[row["cycle"]].append(row["key"])
        assert {cycle: sorted(keys) for cycle, keys in cycles.items()} == {
            f"cycle:{n}": ["a", "b"] for n in (1, 2, 3)
        }
    assert await holding(world) == {name: await due(world, name, 1) for name in BOTS}
    assert started.phase.algorithm == "switchback-1"
    view = await world.do(experiments.get, requests.ById(id="test"))
    assert Counter(item.participant for item in view.assignments) == dict.fromkeys(BOTS, 1)
    listed, cursor = [], ""
    while True:
        page = await world.do(
            experiments.list_assignments, requests.PageOf(id="test", limit=5, cursor=cursor)
        )
        listed += [(item.participant, item.time_block) for item in page.items]
        cursor = page.next_cursor
        if not cursor:
            break
    assert listed == [(name, block) for name in BOTS for block in range(1, 7)]


async def test_blocks_switch_by_themselves_and_the_last_one_stops(world: World) -> None:
    """Each end of a block brings the next variant where it is another; after the last the experiment is stopped."""
    await world.agent(*BOTS)
    await world.start(await drafted(world, *BOTS, blocks=4))
    async with ticking(world):
        for block in (2, 3, 4):
            await world.clock.advance(HOUR - 10)
            await comes_to_hold(world, block, *BOTS)
        await world.clock.advance(HOUR)
        await moves_to(world, "stopped")
    switches = await world.rows("select id from deployment where origin = 'switchback'")
    found = await rows(world)
    changes = sum(a["key"] != b["key"] for a, b in pairwise(found) if a["who"] == b["who"])
    assert len(switches) == changes
    assert await world.rows("select id from timer where done_at is null and kind <> 'look'") == []


async def test_missed_blocks_are_not_made_up_for(world: World) -> None:
    """A process that was away over three blocks brings the current one only, once, also after a second restart."""
    await world.agent(*BOTS)
    await world.start(await drafted(world, *BOTS, blocks=12))
    await world.clock.advance(3 * HOUR + 600)

    async def switched() -> bool:
        return len(await world.rows("select id from audit where operation = 'Timer.switch'")) == 1

    for _ in range(2):
        async with ticking(world):
            # Orders are drawn: files may happen to hold what the fourth block wants already.
            await eventually(switched, what="the one switch is made")
            await comes_to_hold(world, 4, *BOTS)
            await world.clock.advance(5)
    made = await world.rows("select participant_id from deployment where origin = 'switchback'")
    assert len(made) <= len(BOTS)
    audit = await world.rows("select id from audit where operation = 'Timer.switch'")
    assert len(audit) == 1
    async with ticking(world):
        await world.clock.advance(HOUR)
        await comes_to_hold(world, 5, *BOTS)


async def test_a_clock_that_jumps(world: World) -> None:
    """Forward, the block of then is in place; back, nothing is repeated; over the end, it is stopped."""
    await world.agent(*BOTS)
    await world.start(await drafted(world, *BOTS, blocks=6))
    async with ticking(world):
        world.clock.jump(4 * HOUR)
        await comes_to_hold(world, 5, *BOTS)
        before = await deployed(world)
        world.clock.jump(-3 * HOUR)
        # A change puts the timers in order anew; what was done stays done.
        values = {"id": "test", "description": "by a wrong clock"}
        await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))
        await world.clock.advance(2.5 * HOUR)
        assert await deployed(world) == before
        world.clock.jump(20 * HOUR)
        await moves_to(world, "stopped")
    ticks = await world.rows("select operation from audit where actor = 'timer'")
    assert [row["operation"] for row in ticks if row["operation"] != "Timer.look"] == ["Timer.switch"] * 2


async def deployed(world: World) -> list[tuple[str, str | None]]:
    """(participant, variant key) of every deployment, in their order."""
    found = await world.rows(
        "select p.public_id, v.key from deployment d join participant p on p.id = d.participant_id"
        " left join variant v on v.id = d.variant_id order by p.public_id, d.revision"
    )
    return [(row["public_id"], row["key"]) for row in found]


async def runs_of(world: World) -> list[tuple[str, str | None]]:
    """(participant, variant key) as the rows on record say, once for blocks in a row with the same variant."""
    turns = [(row["who"], row["key"]) for row in await rows(world)]
    return [turn for turn, _ in groupby(turns)]


async def test_every_switch_is_one_deployment_across_restarts(world: World) -> None:
    """A runner that ends before, at and after every block's end leaves exactly the deployments of the plan."""
    await world.agent(*BOTS)
    await world.start(await drafted(world, *BOTS, blocks=6))
    for block in (2, 3, 4, 5, 6):
        async with ticking(world):
            await world.clock.advance(HOUR / 2)
        # The block ends while nobody looks, and two look at once when they are back.
        await world.clock.advance(HOUR / 2)
        async with ticking(world), ticking(world):
            await comes_to_hold(world, block, *BOTS)
            await world.clock.advance(3)
        # How long that took is taken back, so that blocks end where this test says.
        [phase] = await world.rows("select opened_at from phase")
        world.clock.jump((phase["opened_at"] - world.clock.now()) / SECOND + (block - 1) * HOUR + 5)
    assert await deployed(world) == await runs_of(world)
    ticks = await world.rows("select id from audit where operation = 'Timer.switch'")
    assert len(ticks) == 5


async def test_a_clock_that_swings_about_the_end_of_a_block(world: World) -> None:
    """Set back by seconds over and over, as time servers do, the clock brings each switch once."""
    await world.agent(*BOTS)
    await world.start(await drafted(world, *BOTS, blocks=4))
    async with ticking(world):
        for block in (2, 3, 4):
            await world.clock.advance(HOUR - 30)
            await comes_to_hold(world, block, *BOTS)
            for _ in range(3):
                world.clock.jump(-20)
                await world.clock.advance(20)
            [phase] = await world.rows("select opened_at from phase")
            world.clock.jump((phase["opened_at"] - world.clock.now()) / SECOND + (block - 1) * HOUR + 1)
    assert await deployed(world) == await runs_of(world)


@pytest.mark.parametrize("back", [0, 600, 2.5 * HOUR])
async def test_a_resume_by_a_clock_that_was_set_back(world: World, back: float) -> None:
    """What a pause cut stays cut: blocks go on where they were cut, and no moment is in two of them."""
    await world.agent("p")
    await world.start(await drafted(world, "p", blocks=6))
    await world.clock.advance(2.5 * HOUR)
    await world.do(lifecycle.pause, requests.parse(requests.Pause, {"id": "test", "onPause": "revert"}))
    world.clock.jump(-back)
    await world.do(lifecycle.resume, requests.ById(id="test"))
    found = await rows(world)
    assert [(row["block"], row["from"], row["to"]) for row in found] == [
        (1, 0, 1), (2, 1, 2), (3, 2, 2.5), (3, 2.5, 3), (4, 3, 4), (5, 4, 5), (6, 5, 6),
    ]  # fmt: skip
    assert await holding(world) == {"p": await due(world, "p", 3)}


async def test_a_pause_at_the_very_start_takes_nobody_out(world: World) -> None:
    """Cut to nothing and resumed in the same moment, everything is as it was drawn."""
    await world.agent("p")
    await world.start(await drafted(world, "p", blocks=4))
    drawn = await rows(world)
    for _ in range(2):
        await world.do(lifecycle.pause, requests.Pause(id="test"))
        await world.do(lifecycle.resume, requests.ById(id="test"))
    assert await rows(world) == drawn


async def test_a_change_while_a_switch_is_due_loses_nothing(world: World) -> None:
    """Timers are put in order anew by every change; what is due stays due."""
    await world.agent("p")
    await world.start(await drafted(world, "p", blocks=4))
    await world.clock.advance(HOUR)
    values = {"id": "test", "description": "in between"}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))
    async with ticking(world):
        await comes_to_hold(world, 2, "p")


@pytest.mark.parametrize("on_pause", ["hold", "revert"])
async def test_a_pause_cuts_and_a_resume_goes_on_with_what_is_current(world: World, on_pause: str) -> None:
    """Nothing switches or counts meanwhile; the block that is current at the resume lasts from then on."""
    uid = await world.agent("p")
    await world.start(await drafted(world, "p", blocks=6))
    await world.clock.advance(HOUR / 2)
    await world.do(lifecycle.pause, requests.parse(requests.Pause, {"id": "test", "onPause": on_pause}))
    assert [(row["from"], row["to"]) for row in await rows(world)] == [(0, 0.5)]
    async with ticking(world):
        await world.clock.advance(2 * HOUR)
    assert await world.rows("select id from deployment where origin = 'switchback'") == []
    await world.report(uid, world.impression("p", at=world.clock.now()))
    await world.do(lifecycle.resume, requests.ById(id="test"))
    found = await rows(world)
    assert [row["block"] for row in found] == [1, 3, 4, 5, 6]
    assert found[1]["to"] == 3
    assert round(found[1]["from"], 3) == 2.5
    assert await holding(world) == {"p": await due(world, "p", 3)}
    assert (await world.rows("select sum(assigned_count) as n from tally"))[0]["n"] is None
    async with ticking(world):
        await world.clock.advance(HOUR / 2)
        await comes_to_hold(world, 4, "p")


async def test_a_pause_within_a_block_is_a_gap_in_it(world: World) -> None:
    """Paused and resumed in one block: two intervals of it, one unit."""
    uid = await world.agent("p")
    await world.start(await drafted(world, "p", blocks=2))
    first = world.clock.now()
    await world.clock.advance(600)
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    await world.clock.advance(600)
    await world.do(lifecycle.resume, requests.ById(id="test"))
    await world.clock.advance(600)
    now = world.clock.now()
    await world.report(uid, *(world.impression("p", at=at) for at in (now, first + 700 * SECOND, first + 5)))
    assert [(row["block"], row["key"]) for row in await rows(world)][:2] == [
        (1, await due(world, "p", 1))
    ] * 2
    [tally] = await world.rows("select block, assigned_count, assigned_units from tally")
    assert tally == {"block": 1, "assigned_count": 2, "assigned_units": 1}


@pytest.mark.parametrize("verb", ["stop", "complete", "reset", "ship"])
async def test_an_end_cuts_what_was_to_come(world: World, verb: str) -> None:
    """The current block ends now, and no later one is on record or deployed."""
    await world.agent("p", "q")
    await world.start(await drafted(world, "p", "q", blocks=6))
    await world.clock.advance(1.5 * HOUR)
    use_case, request = {
        "stop": (lifecycle.stop, requests.ById(id="test")),
        "complete": (lifecycle.complete, requests.Complete(id="test")),
        "reset": (lifecycle.reset, requests.Reset(id="test")),
        "ship": (lifecycle.ship, requests.parse(requests.Ship, {"id": "test", "variantId": "b"})),
    }[verb]
    await world.do(use_case, request)
    found = await rows(world)
    assert [(row["block"], row["to"]) for row in found if row["who"] == "p"] == [(1, 1), (2, 1.5)]
    async with ticking(world):
        await world.clock.advance(10 * HOUR)
    assert await world.rows("select id from deployment where origin = 'switchback'") == []


async def test_after_the_last_block_there_is_no_resume(world: World) -> None:
    """The calendar knows no pause: what is over is over."""
    await world.agent("p")
    await world.start(await drafted(world, "p", blocks=2))
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    await world.clock.advance(3 * HOUR)
    with pytest.raises(FailedPrecondition, match="last block ended") as refused:
        await world.do(lifecycle.resume, requests.ById(id="test"))
    assert refused.value.reason == "BLOCKS_OVER"
    async with ticking(world):
        await moves_to(world, "stopped")


async def test_whoever_comes_late_joins_the_next_cycle(world: World) -> None:
    """On record from the beginning of a cycle, deployed to then; after the last cycle has begun nobody comes in."""
    for name in ("p", "q", "r"):
        await world.agent(name)
    await world.do(fleet.update_participant, requests.CreateParticipant(id="p", labels={"tier": "gold"}))
    await world.start(await drafted(world, blocks=6, participants={"labels": {"tier": "gold"}}))
    await world.clock.advance(HOUR / 2)
    await world.do(fleet.update_participant, requests.CreateParticipant(id="q", labels={"tier": "gold"}))
    assert await world.do(phases.admit, requests.ById(id="test")) == ["q"]
    assert await world.do(phases.admit, requests.ById(id="test")) == []
    assert [row["block"] for row in await rows(world) if row["who"] == "q"] == [3, 4, 5, 6]
    assert set(await holding(world)) == {"p"}
    async with ticking(world):
        await world.clock.advance(1.5 * HOUR)
        await comes_to_hold(world, 3, "p", "q")
    await world.clock.advance(2 * HOUR)
    await world.do(fleet.update_participant, requests.CreateParticipant(id="r", labels={"tier": "gold"}))
    assert await world.do(phases.admit, requests.ById(id="test")) == []


@pytest.mark.parametrize(("hours", "blocks"), [(1.25, [3, 4, 5, 6]), (3.5, [4, 5, 6])])
async def test_who_waits_for_a_first_block_outlasts_a_pause(
    world: World, hours: float, blocks: list[int]
) -> None:
    """It joins with its block, or with the one that is current where that has begun; stopping ends the wait."""
    await world.agent("p")
    await world.agent("q")
    await world.do(fleet.update_participant, requests.CreateParticipant(id="p", labels={"tier": "gold"}))
    await world.start(await drafted(world, blocks=6, participants={"labels": {"tier": "gold"}}))
    await world.do(fleet.update_participant, requests.CreateParticipant(id="q", labels={"tier": "gold"}))
    assert await world.do(phases.admit, requests.ById(id="test")) == ["q"]
    await world.clock.advance(HOUR)
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    assert [(row["from"], row["to"]) for row in await rows(world) if row["who"] == "q"] == [(2, 2)]
    await world.clock.advance((hours - 1) * HOUR)
    await world.do(lifecycle.resume, requests.ById(id="test"))
    assert [row["block"] for row in await rows(world) if row["who"] == "q"] == blocks
    assert ("q" in await holding(world)) == (hours > 2)
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    await world.do(lifecycle.stop, requests.ById(id="test"))
    assert [row for row in await rows(world) if row["from"] > hours] == []


async def test_findings_know_that_everybody_has_every_variant(world: World) -> None:
    """Several variants on one host and one participant are what a switchback is; silence is told once each."""
    uid = await world.agent(*BOTS)
    started = await world.start(await drafted(world, *BOTS, blocks=4))
    bodies = {variant.key: variant.digests()["soul.md"] for variant in started.variants}
    start = world.clock.now()
    await world.clock.advance(2.5 * HOUR)
    found = await world.do(findings.get, requests.ById(id="test"))
    told = {item.code: item.evidence for item in found.findings}
    assert set(told) == {"NO_PRIMARY_METRIC", "ZERO_EXPOSURES"}
    assert told["ZERO_EXPOSURES"]["participants"] == len(BOTS)
    views = [
        world.view(row["who"], bodies[row["key"]], at=row["from_at"] + 1)
        for row in await rows(world)
        if row["block"] < 4
    ]
    await world.report(uid, *views, *(world.impression(name, at=start + 5) for name in BOTS))
    found = await world.do(findings.get, requests.ById(id="test"))
    assert [item.code for item in found.findings] == ["NO_PRIMARY_METRIC"]


async def test_events_count_in_their_block_after_its_washout(world: World) -> None:
    """By the moment they happened, whenever they arrive; in every block the washout has to be over."""
    uid = await world.agent("p")
    await world.start(await drafted(world, "p", blocks=4, washout="PT10M", settle=60))
    start = world.clock.now()
    await world.clock.advance(4 * HOUR - 60)
    minutes = [5, 11, 59, 60 + 9, 60 + 10, 60 + 30, 120 + 9, 180 + 20]
    for minute in reversed(minutes):
        await world.report(uid, world.impression("p", at=start + minute * 60 * SECOND))
    found = await world.rows(
        "select t.block, v.key, sum(assigned_count) as n, sum(assigned_units) as units from tally t"
        " join variant v on v.id = t.variant_id group by t.block, v.key order by t.block"
    )
    expected = {1: 2, 2: 2, 4: 1}
    assert [(row["block"], row["n"], row["units"]) for row in found] == [
        (b, n, 1) for b, n in expected.items()
    ]
    assert [row["key"] for row in found] == [await due(world, "p", block) for block in expected]
    summary = await world.answer()
    assert sum(arm["impressions"] for arm in summary["variants"]) == 5
    assert [arm["participants"] for arm in summary["variants"]] == [1, 1]
    assert summary["variants"][1]["reasons"]["pValue"] == "TOO_FEW_CYCLES"
    assert {"reason": "settling", "count": 3} in summary["rejected"]


async def test_a_view_that_comes_late_is_judged_in_its_block(world: World) -> None:
    """What was on disk decides about delivered events of its block, and of no other."""
    uid = await world.agent("p")
    started = await world.start(await drafted(world, "p", blocks=2))
    start = world.clock.now()
    await world.clock.advance(2 * HOUR - 60)
    at = [start + 600 * SECOND, start + (HOUR + 600) * SECOND]
    await world.report(uid, *(world.impression("p", at=moment) for moment in at))
    digests = {variant.key: variant.digests()["soul.md"] for variant in started.variants}
    wanted = digests[await due(world, "p", 1)]
    await world.report(uid, world.view("p", wanted, at=start + 1))
    found = await world.rows(
        "select block, assigned_count as a, delivered_count as d from tally order by block"
    )
    assert found == [{"block": 1, "a": 1, "d": 1}, {"block": 2, "a": 1, "d": 0}]


async def test_a_manual_deployment_lasts_for_its_block(world: World) -> None:
    """Forced is the block in force; the next one brings what is drawn."""
    await world.agent("p")
    await world.start(await drafted(world, "p", blocks=4))
    other = {"a": "b", "b": "a"}[await due(world, "p", 1)]
    values = {"id": "test", "participantId": "p", "variantId": other}
    await world.do(deployments.create, requests.parse(requests.CreateDeployment, values))
    forced = await world.rows("select time_block from assignment where forced_by is not null")
    assert [row["time_block"] for row in forced] == [1]
    async with ticking(world):
        await world.clock.advance(HOUR)
        await comes_to_hold(world, 2, "p")


async def test_what_a_start_asks_for(world: World) -> None:
    """Blocks in whole cycles and longer than their washout; the design says what it could decide."""
    await world.agent("p")
    draft = await drafted(
        world,
        "p",
        blocks=5,
        washout="PT2H",
        variants=[
            make_variant("a", control=True, weight=0),
            make_variant("b", weight=0),
        ],
    )
    with pytest.raises(FailedPrecondition) as refused:
        await world.start(draft)
    assert [fault.field for fault in refused.value.faults] == ["switchback.blocks", "switchback.washout"]

    async def change(**settings: Any) -> Any:
        values = {"id": "test", "switchback": {"blockDuration": "PT1H", **settings}}
        return await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))

    view = await change(blocks=4)
    assert [code for code, _ in view.warnings] == ["DESIGN_CANNOT_DECIDE"]
    assert "1 participants in 2 cycles" in view.warnings[0][1]
    assert (await change(blocks=12)).warnings == ()
    ahead = await world.do(preview.preview, requests.ById(id="test"))
    assert ahead.decision is not None
    assert ahead.decision.reachable == 1 / 32
    await world.do(lifecycle.start, requests.ById(id="test"))
    with pytest.raises(FailedPrecondition, match="drawn at its start"):
        await world.do(
            phases.open_phase, requests.parse(requests.OpenPhase, {"id": "test", "seed": "ab" * 32})
        )


async def test_blocks_belong_to_a_switchback(world: World) -> None:
    """Another type has none, and a switchback cannot start without."""
    with pytest.raises(Invalid, match="switchback: an experiment of type ab has no blocks"):
        await world.experiment("p", switchback={"blockDuration": "PT1H", "blocks": 2})
    await world.agent("p")
    draft = await world.experiment("p", type="switchback")
    with pytest.raises(FailedPrecondition, match="says nothing of the blocks"):
        await world.start(draft)
