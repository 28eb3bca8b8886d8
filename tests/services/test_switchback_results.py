"""What a switchback says: cycles are its witnesses, looks keep what they saw by block, and what is decided stands."""

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from control_plane.domain import inference, requests, sham
from control_plane.domain.analyze import analyze
from control_plane.domain.evidence import Evidence
from control_plane.services import doctor, export, fleet, lifecycle, phases, results, series
from control_plane.store import database
from control_plane.store.database import Tx
from control_plane.store.store import Store
from shared.model import Record
from shared.moment import to_rfc3339
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.services.test_looks import close_day, looked
from tests.services.test_timers import moves_to, ticking
from tests.support.builders import World, make_variant, seconds

DAY = 86_400
PEOPLE = ("p0", "p1", "p2", "p3", "p4")


async def begun(
    world: World, *people: str, blocks: int = 8, length: str = "PT12H", agent: bytes = b"", **fields: Any
) -> tuple[bytes, dict[tuple[str, int], str]]:
    """Started with a UTC day, in blocks of half a day: (agent, variant by participant and block)."""
    world.clock.jump(DAY - world.clock.now() // 1_000_000 % DAY)
    uid = agent or await world.agent(*people)
    draft = await world.experiment(
        *people,
        **{
            "type": "switchback",
            "switchback": {"blockDuration": length, "blocks": blocks, "washout": "PT30M"},
            "metrics": {"primary": {"eventName": "done"}},
            **fields,
        },
    )
    # Orders are drawn; these are such that no cycle has everybody switch alike.
    await world.database.write(lambda tx: tx.run("update experiment set seed = ?", (bytes(range(2, 34)),)))
    started = await world.start(draft)
    keys = {variant.id: variant.key for variant in started.variants}
    found = await world.ask(lambda store: store.experiments.assignments(started.phase.id))
    return uid, {(item.participant, item.time_block): keys[item.variant_id] for item in found}


def block_of(
    world: World,
    drawn: dict[tuple[str, int], str],
    block: int,
    rates: dict[str, int],
    *,
    at: int,
    each: int = 20,
) -> list[Record]:
    """What everybody did at the moment, in this block: of `each` impressions as many convert as the variant's rate."""
    found = []
    people = sorted(who for who, of in drawn if of == block)
    for index, who in enumerate(people):
        for number in range(each):
            subject = f"{who}-{block}-{number}"
            found.append(world.impression(who, at=at, subject=subject))
            # Hosts differ, and every third block is bad for everybody.
            if number < rates[drawn[who, block]] + index - 2 * (block % 3 == 0):
                found.append(world.conversion(who, at=at + 1, subject=subject))
    return found


async def days(
    world: World, uid: bytes, drawn: dict[tuple[str, int], str], rates: dict[str, int], *numbers: int
) -> None:
    """Days of two blocks each pass, every one with its look; numbers from 1."""
    for number in numbers:
        for block in (2 * number - 1, 2 * number):
            world.clock.jump(3 * 3600)
            at = world.clock.now() - seconds(10)
            await world.report(uid, *block_of(world, drawn, block, rates, at=at))
            world.clock.jump(8 * 3600)
        await close_day(world)
        await looked(world, number)


async def inputs(world: World, **asked: Any) -> Evidence:
    """The evidence, as it is exported."""
    request = requests.parse(requests.GetResults, {"id": "test", "include": "inputs", **asked})
    found: Evidence = (await world.do(results.get, request)).evidence
    return found


async def test_a_difference_within_cycles_is_found_and_stands(world: World) -> None:
    """Undecided before a cycle is over, then a winner whose numbers no later day changes."""
    uid, drawn = await begun(world, *PEOPLE)
    before = await world.answer()
    assert before["verdict"]["status"] == "insufficient_data"
    assert before["verdict"]["smallestReachablePValue"] == 2.0**-19
    assert before["method"]["horizonDays"] == 4
    assert before["method"]["switchback"] == {
        "cycles": 4,
        "blockDays": 0.5,
        "washoutSeconds": 1800,
        "participants": 5,
        "witnesses": 20,
        "witnessesOver": 0,
        "calendarMeans": True,
        "flips": "participant and cycle",
    }
    b = before["variants"][1]
    assert {b["reasons"][name] for name in ("difference", "lift", "sequential")} == {"NO_CYCLE_YET"}
    better, worse = {"a": 4, "b": 10}, {"a": 10, "b": 4}
    async with ticking(world):
        await days(world, uid, drawn, better, 1, 2)
        middle = await world.answer()
        await days(world, uid, drawn, worse, 3, 4)
    found = await world.answer()
    b = found["variants"][1]
    looks = [look["comparisons"][0] for look in found["looks"]]
    assert [look["day"] for look in found["looks"]] == pytest.approx([1, 2, 3, 4], abs=0.001)
    assert found["looks"][-1]["day"] >= 4
    crossing = next(item for item in looks if item["crossed"])
    assert (found["verdict"]["status"], found["verdict"]["variant"]) == ("winner", "b")
    assert b["difference"] == crossing["difference"] == pytest.approx(0.3, abs=0.05)
    assert b["differenceInterval"] == crossing["interval"]
    assert b["differenceInterval"]["low"] > 0
    assert b["liftInterval"]["low"] > 0
    assert b["pValueAdjusted"] <= 0.05
    assert found["looks"][:2] == middle["looks"]
    for item in looks:
        if item["interval"] is not None:
            assert item["crossed"] == (not item["interval"]["low"] <= 0 <= item["interval"]["high"])
    assert found["method"]["switchback"]["witnessesOver"] == 20
    assert found["srm"]["replays"] is True
    assert (found["srm"]["kind"], found["srm"]["withDataPValue"]) == ("replay", 1.0)
    assert found["power"]["mde"] > 0
    formula = found["verdict"]["reasons"][0]["formula"]
    assert "signs" in formula
    a = found["variants"][0]
    assert (a["participants"], a["impressions"], a["worstCase"]) == (5, 400, None)
    assert b["reasons"]["worstCase"] == "ALTERNATING"
    ParseDict({**found, "status": "EXPERIMENT_STATUS_RUNNING", "metric": {}}, pb.Results())
    by_day = await world.do(series.get, requests.parse(series.GetTimeSeries, {"id": "test"}))
    assert [sum(counts.impressions for counts in day.counts.values()) for day in by_day.days] == [200] * 4
    page = await world.do(
        export.page,
        export.Asked(
            request=requests.parse(export.ExportEvents, {"id": "test", "what": "tallies"}), at=export.Place()
        ),
    )
    assert {row["block"] for row in page.rows} == set(range(1, 9))


async def test_nothing_is_found_where_nothing_is(world: World) -> None:
    """A calendar that is bad for everybody is no effect; the horizon is the end of the blocks."""
    uid, drawn = await begun(world, *PEOPLE)
    async with ticking(world):
        await days(world, uid, drawn, {"a": 6, "b": 6}, 1, 2, 3)
        waiting = await world.answer()
        await days(world, uid, drawn, {"a": 6, "b": 6}, 4)
        await close_day(world)
        await looked(world, 5)
    assert waiting["verdict"]["status"] == "undecided"
    found = await world.answer()
    assert found["verdict"]["status"] == "no_difference"
    assert found["verdict"]["reasons"][0]["inputs"]["horizonDays"] == 4
    assert found["looks"][-1]["comparisons"] == []
    assert abs(found["variants"][1]["difference"]) < 0.02


async def test_what_arrives_late_is_in_the_next_look_only(world: World) -> None:
    """Late events go to their block; recorded looks and `asOf` stay as they were, to the byte."""
    uid, drawn = await begun(world, *PEOPLE)
    async with ticking(world):
        begins = world.clock.now()
        await days(world, uid, drawn, {"a": 4, "b": 5}, 1)
        date = to_rfc3339(begins)[:10]
        then = json.dumps(await world.answer(asOf=date))
        late = [
            world.impression("p0", at=begins + seconds(4 * 3600), subject=f"late-{number}")
            for number in range(30)
        ]
        washout = [world.impression("p0", at=begins + seconds(12 * 3600 + 60), subject="washout")]
        await world.report(uid, *late, *washout)
        assert json.dumps(await world.answer(asOf=date)) == then
        await days(world, uid, drawn, {"a": 4, "b": 5}, 2)
    assert json.dumps(await world.answer(asOf=date)) == then
    now = await world.answer()
    assert sum(arm["impressions"] for arm in now["variants"]) == 2 * 2 * 5 * 20 + 30
    assert {"reason": "settling", "count": 1} in now["rejected"]
    own = [
        turn.block
        for turn, m in zip(
            (await inputs(world)).alternation.turns,  # type: ignore[union-attr]
            (await inputs(world)).alternation.sums.impressions,  # type: ignore[union-attr]
            strict=True,
        )
        if turn.participant == "p0" and m > 20
    ]
    assert own == [1]
    checked = await world.do(doctor.check_tallies, requests.ById(id="test"))
    assert (checked.count, checked.participants) == (0, 5)


async def test_a_block_that_goes_on_is_not_compared(world: World) -> None:
    """Blocks longer than a day: a look in the middle of one leaves it out, and counts show it nevertheless."""
    uid, drawn = await begun(world, "p0", "p1", "p2", blocks=4, length="P1DT12H")
    async with ticking(world):
        for number in range(1, 4):
            world.clock.jump(6 * 3600)
            block = 1 if number == 1 else 2
            records = block_of(world, drawn, block, {"a": 4, "b": 8}, at=world.clock.now() - seconds(10))
            if number != 2:
                await world.report(uid, *records)
            await close_day(world)
            await looked(world, number)
    found = await world.answer()
    first, second, third = (look["comparisons"][0] for look in found["looks"])
    assert (
        first["reasons"]["difference" if "difference" in first["reasons"] else "estimate"] == "NO_CYCLE_YET"
    )
    assert second["difference"] is None
    assert third["difference"] is not None
    assert sum(arm["impressions"] for arm in found["variants"]) == 120


async def test_blocks_that_took_no_time_compare_nothing(world: World) -> None:
    """The clock was set back between the start and the pause that cut them: results are answered after a look, too."""
    await begun(world, *PEOPLE)
    world.clock.jump(-2)
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    world.clock.jump(2)
    async with ticking(world):
        await close_day(world)
        await looked(world, 1)
    text = (await inputs(world)).model_dump_json(by_alias=True)
    found = await world.answer()
    assert (found["verdict"]["status"], found["looks"]) == ("insufficient_data", [])
    assert json.dumps(analyze(json.loads(text))) == json.dumps(found)


async def test_whoever_has_the_inputs_has_the_answer(world: World) -> None:
    """Analyzed without a server the export gives the very bytes, and a look that was changed is told."""
    metrics = {"primary": {"eventName": "done"}, "guardrail": [{"eventName": "hurt", "goal": "decrease"}]}
    uid, drawn = await begun(world, *PEOPLE, metrics=metrics)
    async with ticking(world):
        await days(world, uid, drawn, {"a": 4, "b": 8}, 1, 2, 3)
    for asked in ({}, {"eventName": "hurt"}, {"population": "delivered"}):
        text = (await inputs(world, **asked)).model_dump_json(by_alias=True)
        assert json.dumps(analyze(json.loads(text))) == json.dumps(await world.answer(**asked))
    read = await inputs(world)
    changed = json.loads(read.model_dump_json(by_alias=True))
    changed["looks"][1]["comparisons"][0]["statistic"] = 9.0
    assert inference.differing_looks(Evidence.model_validate_json(json.dumps(changed))) == [2]
    played = sham.replay(read, runs=20)
    assert (played.runs, played.looks) == (20, 3)
    assert played.decided <= 5


async def test_a_guardrail_is_watched_within_cycles_too(world: World) -> None:
    """However good the primary metric looks, harm that is beyond its bound is the verdict."""
    metrics = {"primary": {"eventName": "done"}, "guardrail": [{"eventName": "hurt", "goal": "decrease"}]}
    uid, drawn = await begun(world, *PEOPLE, metrics=metrics)
    async with ticking(world):
        for number in range(1, 5):
            for block in (2 * number - 1, 2 * number):
                world.clock.jump(3 * 3600)
                at = world.clock.now() - seconds(10)
                records = block_of(world, drawn, block, {"a": 4, "b": 8}, at=at)
                for index, who in enumerate(PEOPLE):
                    for place in range((14 if drawn[who, block] == "b" else 3) + index % 2):
                        subject = f"{who}-{block}-{place}"
                        records.append(world.conversion(who, name="hurt", at=at + 1, subject=subject))
                await world.report(uid, *records)
                world.clock.jump(8 * 3600)
            await close_day(world)
            await looked(world, number)
    found = await world.answer()
    assert (found["verdict"]["status"], found["verdict"]["variant"]) == ("guardrail_failed", "b")
    assert [(item["metric"], item["state"]) for item in found["guardrails"]] == [("hurt", "failed")]
    other = await world.answer(eventName="hurt")
    assert other["verdict"] is None
    assert other["variants"][1]["sequential"]["differenceInterval"]["low"] > 0.3


async def test_carry_over_is_told(world: World) -> None:
    """What lasts beyond its block makes the effect smaller after itself, and that is shown."""
    uid, drawn = await begun(world, *PEOPLE)
    async with ticking(world):
        for number in range(1, 5):
            for block in (2 * number - 1, 2 * number):
                world.clock.jump(3 * 3600)
                at = world.clock.now() - seconds(10)
                records = []
                for who in PEOPLE:
                    lasting = "b" in (drawn[who, block], drawn.get((who, block - 1)))
                    for place in range(20):
                        subject = f"{who}-{block}-{place}"
                        records.append(world.impression(who, at=at, subject=subject))
                        if place < (10 if lasting else 4):
                            records.append(world.conversion(who, at=at + 1, subject=subject))
                await world.report(uid, *records)
                world.clock.jump(8 * 3600)
            await close_day(world)
            await looked(world, number)
    after = {item["previous"]: item for item in (await world.answer())["carryOver"]}
    assert after["a"]["difference"] == pytest.approx(0.3)
    assert after["b"]["difference"] == pytest.approx(0.0)
    assert after["a"]["blocks"] + after["b"]["blocks"] == 7 * 5


async def test_too_few_cycles_say_so(world: World) -> None:
    """One participant in three cycles can decide nothing, and knows it from the start."""
    uid, drawn = await begun(world, "p0", blocks=6)
    async with ticking(world):
        await days(world, uid, drawn, {"a": 4, "b": 8}, 1, 2)
    found = await world.answer()
    assert found["verdict"]["status"] == "inconclusive_design"
    assert found["verdict"]["smallestReachablePValue"] == 0.25
    reason = found["verdict"]["reasons"][0]
    assert reason["code"] == "DESIGN_CANNOT_DECIDE"
    assert "2" in reason["formula"]
    first = found["looks"][0]["comparisons"][0]
    assert first["difference"] is not None
    assert first["reasons"]["interval"] == "TOO_FEW_CYCLES"
    assert found["method"]["switchback"]["flips"] == "cycle"


async def test_three_variants_are_compared_within_their_cycles(world: World) -> None:
    """Each with the control, at a level that is divided among them."""
    variants = [make_variant("a", control=True), make_variant("b"), make_variant("c")]
    uid, drawn = await begun(world, *PEOPLE, blocks=12, variants=variants)
    async with ticking(world):
        await days(world, uid, drawn, {"a": 4, "b": 10, "c": 4}, *range(1, 7))
    found = await world.answer()
    assert found["verdict"]["winners"] == ["b"]
    assert [arm["weight"] for arm in found["variants"]] == [34, 33, 33]
    by_key = {arm["key"]: arm for arm in found["variants"]}
    assert by_key["b"]["differenceInterval"]["low"] > 0
    assert abs(by_key["c"]["difference"]) < 0.12
    assert len(found["carryOver"]) == 6


async def test_a_pause_and_late_joiners_leave_looks_as_they_were(world: World) -> None:
    """What a pause cut is compared as far as it went; who comes later is counted and not compared."""
    agent = await world.agent("x", *PEOPLE)
    for name in PEOPLE:
        await label(world, name)
    uid, drawn = await begun(
        world, *PEOPLE, blocks=12, participants={"labels": {"tier": "gold"}}, agent=agent
    )
    async with ticking(world):
        await days(world, uid, drawn, {"a": 4, "b": 8}, 1, 2)
        before = (await world.answer())["looks"]
        await label(world, "x")
        assert await world.do(phases.admit, requests.ById(id="test")) == ["x"]
        await world.do(lifecycle.pause, requests.Pause(id="test"))
        world.clock.jump(14 * 3600)
        await world.do(lifecycle.resume, requests.ById(id="test"))
        await close_day(world)
        await looked(world, 3)
        late = await world.ask(lambda store: store.experiments.assignments(found_phase(store)))
        drawn |= {(item.participant, item.time_block): "?" for item in late if item.participant == "x"}
        await days(
            world, uid, {turn: key for turn, key in drawn.items() if key != "?"}, {"a": 4, "b": 8}, 4, 5
        )
        await world.report(uid, world.impression("x", at=world.clock.now() - seconds(7200)))
        await days(world, uid, {turn: key for turn, key in drawn.items() if key != "?"}, {"a": 4, "b": 8}, 6)
        await moves_to(world, "stopped")
    found = await world.answer()
    assert found["looks"][:2] == before
    # Cycle 3 was cut: what is left of it is compared with nothing that would speak for a variant.
    assert found["method"]["switchback"]["witnessesOver"] == 30
    assert [arm["participants"] for arm in found["variants"]] == [6, 6]
    assert sum(arm["impressions"] for arm in found["variants"]) == 10 * 5 * 20 + 1
    assert found["verdict"]["status"] == "winner"
    assert inference.differing_looks(await inputs(world)) == []


def found_phase(store: Any) -> bytes:
    """The one phase there is."""
    return bytes(store.experiments._tx.one("select id from phase")["id"])


async def label(world: World, name: str) -> None:
    """The participant is one of those that the experiment is for."""
    await world.do(fleet.update_participant, requests.CreateParticipant(id=name, labels={"tier": "gold"}))


async def test_clusters_switch_together_and_are_one_witness(world: World) -> None:
    """All on one host have the same turns: so many differences as hosts and cycles."""
    world.clock.jump(DAY - world.clock.now() // 1_000_000 % DAY)
    hosts = [await world.agent(f"h{n}-1", f"h{n}-2") for n in range(3)]
    people = [f"h{n}-{place}" for n in range(3) for place in (1, 2)]
    draft = await world.experiment(
        *people,
        type="switchback",
        switchback={"blockDuration": "PT12H", "blocks": 4},
        metrics={"primary": {"eventName": "done"}},
        analysis={"clusterBy": "host", "horizonDays": 9},
    )
    started = await world.start(draft)
    keys = {variant.id: variant.key for variant in started.variants}
    rows = await world.ask(lambda store: store.experiments.assignments(started.phase.id))
    drawn = {(item.participant, item.time_block): keys[item.variant_id] for item in rows}
    by_host = defaultdict(set)
    for (who, block), key in drawn.items():
        by_host[who[:2], block].add(key)
    assert all(len(variants) == 1 for variants in by_host.values())
    async with ticking(world):
        for block in (1, 2):
            world.clock.jump(3 * 3600)
            at = world.clock.now() - seconds(10)
            for n, uid in enumerate(hosts):
                own = {turn: key for turn, key in drawn.items() if turn[0].startswith(f"h{n}")}
                await world.report(uid, *block_of(world, own, block, {"a": 4, "b": 8}, at=at))
            world.clock.jump(8 * 3600)
        await close_day(world)
        await looked(world, 1)
    found = await world.answer()
    assert found["method"]["switchback"]["participants"] == 3
    assert found["method"]["horizonDays"] == 9
    assert found["method"]["switchback"]["witnessesOver"] == 3
    assert [arm["participants"] for arm in found["variants"]] == [6, 6]


async def test_what_was_designed_before_spends_alpha_as_now(world: World) -> None:
    """Fourteen days that nobody asked for are not said any more, other numbers stay; blocks are part of the plan."""
    draft = await world.experiment(
        *PEOPLE, type="switchback", switchback={"blockDuration": "PT12H", "blocks": 8}
    )
    [text] = [text for name, text in database._migrations() if name.startswith("0020")]

    async def migrated(days: int) -> Any:
        def again(tx: Tx) -> Any:
            # As it was written then: in a design's form, with a number in its place.
            written = draft.design.model_dump(mode="json", by_alias=True)
            written["analysis"]["horizonDays"] = days
            text_then = json.dumps(written, separators=(",", ":"))
            tx.run("update experiment set design = ?", (text_then,))
            for statement in database._statements(text):
                tx.run(statement)
            return Store(tx).experiments.find(world.caller.project_id, "test")

        return await world.database.write(again)

    assert (await migrated(14)).horizon_days == 4
    assert (await migrated(15)).horizon_days == 15
    longer = draft.design.switchback.model_copy(update={"blocks": 10})
    changed = replace(draft, design=draft.design.model_copy(update={"switchback": longer}))
    assert changed.fingerprint() != draft.fingerprint()
