"""What is taken out: every row once, whatever the size of a page, and in agreement with the sums."""

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from control_plane.api.resources import exported
from control_plane.domain import requests
from control_plane.services import export, phases
from control_plane.services.export import Asked, ExportEvents, Page, Place
from control_plane.services.work import Work
from control_plane.store.export import What
from shared.model import show_digest
from tests.support.builders import World, content_digest, seconds

PEOPLE = tuple("pqrstuvw")


async def lived(world: World) -> Any:
    """An experiment of two phases with views, events with and without subjects, and half of them left out of it.

    Whoever is in it holds either content at the end, and what happened then is pending, of another content or in
    transition, whatever was drawn.
    """
    chance = Random(5)
    uid = await world.agent(*PEOPLE)
    experiment = await world.start(await world.experiment(*PEOPLE, settle=5, trafficAllocation=50))
    for stretch in range(2):
        begun = world.clock.now()
        records = []
        for person in PEOPLE:
            for _ in range(8):
                at = begun + seconds(chance.uniform(0, 200_000))
                subject = chance.choice(["", "s1", "s2"])
                content = content_digest(chance.choice(["a", "b", "x"]))
                records += [
                    world.view(person, content, at=at),
                    world.loaded(person, content, at=at + seconds(1)),
                    world.impression(person, at=at + seconds(chance.choice([1, 60])), subject=subject),
                    world.conversion(person, at=at + seconds(chance.uniform(-50, 90)), subject=subject),
                ]
        await world.clock.advance(200_100)
        await world.report(uid, *records)
        if not stretch:
            weights = {"id": "test", "weights": {"a": 25, "b": 75}}
            await world.do(phases.open_phase, requests.OpenPhase.model_validate(weights))
    records = []
    for turn, content in enumerate("ab"):
        at = world.clock.now() + seconds(100 * turn)
        for person in PEOPLE:
            records += [
                world.view(person, content_digest(content), at=at),
                world.loaded(person, content_digest(content), at=at + seconds(1)),
                world.conversion(person, at=at + seconds(2), subject="unexposed"),
                world.conversion(person, at=at + seconds(60), subject="unexposed"),
            ]
    await world.clock.advance(200)
    await world.report(uid, *records)
    return experiment


async def taken(world: World, what: What) -> list[dict[str, Any]]:
    """Every row."""
    rows: list[dict[str, Any]] = []
    place: Place | None = Place()
    while place is not None:
        asked = Asked(request=ExportEvents(id="test", what=what), at=place)

        def one(work: Work, asked: Asked) -> tuple[list[str], Page]:
            found = export.page(work, asked)
            return exported(work, found), found

        lines, page = await world.do(one, asked)
        rows += [json.loads(line) for line in lines]
        place = page.then
    return rows


@pytest.mark.every_engine
@pytest.mark.parametrize("what", list(What))
@pytest.mark.parametrize("size", [1, 2, 7])
async def test_pages_of_any_size_hold_every_row_once(
    world: World, monkeypatch: pytest.MonkeyPatch, what: What, size: int
) -> None:
    """The rows of small pages, one after the other, are those of a large one."""
    await lived(world)
    whole = await taken(world, what)
    monkeypatch.setattr(export, "PAGE_ROWS", size)
    assert await taken(world, what) == whole
    assert len(whole) > 2
    assert len({json.dumps(row, sort_keys=True) for row in whole}) == len(whole)


async def test_events_add_up_to_the_tallies(world: World) -> None:
    """What is `counted` of the events is what the tallies hold, by phase, variant, participant, name and population."""
    await lived(world)
    events, tallies = await taken(world, What.EVENTS), await taken(world, What.TALLIES)
    for population in ("assigned", "delivered"):
        key = ("phaseId", "variantId", "participantId", "timeBlock", "eventName")
        counted = Counter(tuple(row[k] for k in key) for row in events if row[population] == "counted")
        kept = Counter[Any]()
        for row in tallies:
            kept[tuple(row[k] for k in key)] += row[f"{population}Count"]
        assert +kept == counted
    words = Counter(row["delivered"] for row in events)
    assert {"counted", "pending", "other_content", "in_transition"} <= set(words)


async def test_exclusions_say_who_does_not_count_and_why(world: World) -> None:
    """Those without a variant, and events that do not count, by reason, as the standings have them."""
    await lived(world)
    rows = await taken(world, What.EXCLUSIONS)
    nobody = [row for row in rows if row["variantId"] is None]
    assert len(nobody) == 8  # four in each phase
    assert {row["reason"] for row in nobody} == {"not_allocated"}
    told = Counter[Any]()
    for row in rows:
        told[row["population"], row["reason"]] += row["impressions"] + row["conversions"]
    stand = await world.rows("select population, standing, sum(count) as n from standing group by 1, 2")
    kept = {(r["population"], r["standing"]): r["n"] for r in stand if r["standing"] != "eligible" and r["n"]}
    assert dict(+told) == kept


async def test_views_are_those_of_the_experiments_files(world: World) -> None:
    """Each lasts until the next one; other files, and those who have no variant, are left out."""
    await lived(world)
    uid = await world.agent("other")
    await world.report(uid, world.view("other", content_digest("a"), at=world.clock.now()))
    rows = await taken(world, What.VIEWS)
    ones = [row for row in rows if row["participantId"] == rows[0]["participantId"]]
    assert [row["toAt"] for row in ones] == [*(row["fromAt"] for row in ones[1:]), None]
    seated = {r["participantId"] for r in await taken(world, What.ASSIGNMENTS) if r["variantId"]}
    assert {row["participantId"] for row in rows} == seated & set(PEOPLE)


async def test_receipts_are_what_was_loaded_of_the_experiments_files(world: World) -> None:
    """Of whoever had a variant, in order, each until the next one; the digests are those that were said."""
    await lived(world)
    uid = await world.agent("other")
    await world.report(uid, world.loaded("other", content_digest("a"), at=world.clock.now()))
    rows = await taken(world, What.RECEIPTS)
    seated = {r["participantId"] for r in await taken(world, What.ASSIGNMENTS) if r["variantId"]}
    assert {row["participantId"] for row in rows} == seated
    ones = [row for row in rows if row["participantId"] == rows[0]["participantId"]]
    assert [row["toAt"] for row in ones] == [*(row["loadedAt"] for row in ones[1:]), None]
    assert {row["digest"] for row in rows} == {show_digest(content_digest(text)) for text in "abx"}


async def test_a_draft_has_nothing_to_take_out(world: World) -> None:
    """No row, and no error."""
    await world.experiment("p")
    for what in What:
        assert await taken(world, what) == []
