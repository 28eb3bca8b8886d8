"""Who met several variants, and what shows that content was met: over a real database, whatever comes first."""

from itertools import permutations
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import deployments, doctor, experiments
from shared.errors import Invalid
from shared.model import Record
from tests.support.builders import World, content_digest, seconds


async def running(world: World, **criteria: Any) -> tuple[bytes, str, str]:
    """(agent, the variant of `p`, the other one) of a running experiment without settle time."""
    uid = await world.agent("p")
    values = {"settleSeconds": 0, **criteria}
    started = await world.start(await world.experiment("p", exposureCriteria=values))
    mine = (await world.assigned(started))["p"]
    return uid, mine, "b" if mine == "a" else "a"


async def counted(world: World) -> tuple[int, dict[str, int]]:
    """(impressions, what does not count and why) of `delivered`; whatever is kept adds up."""
    found = await world.answer(population="delivered")
    checked = await world.do(doctor.check_tallies, requests.ById(id="test"))
    assert checked.differences == ()
    rejected = {item["reason"]: item["count"] for item in found["rejected"]}
    return sum(arm["impressions"] for arm in found["variants"]), rejected


def lived(world: World, now: int, contents: list[str], subject: str = "") -> list[Record]:
    """For each content a view, and an impression on it."""
    return [
        record
        for number, content in enumerate(contents)
        for record in (
            world.view("p", content_digest(content), at=now + seconds(10 * number + 1)),
            world.impression("p", at=now + seconds(10 * number + 2), subject=subject),
        )
    ]


@pytest.mark.parametrize(
    ("rule", "seen", "expected"),
    [
        ("exclude", "mo", (0, {"crossed": 1, "other_variant": 1})),
        ("exclude", "om", (0, {"crossed": 1, "other_variant": 1})),
        ("exclude", "mxm", (2, {"other_content": 1})),
        ("first_seen", "mo", (1, {"other_variant": 1})),
        ("first_seen", "mom", (2, {"other_variant": 1})),
        ("first_seen", "omm", (0, {"crossed": 2, "other_variant": 1})),
    ],
)
async def test_who_met_several_variants(
    world: World, rule: str, seen: str, expected: tuple[int, dict[str, int]]
) -> None:
    """Its own, the other one or something else: in order, and told all at once."""
    uid, mine, other = await running(world, multipleVariants=rule)
    contents = [{"m": mine, "o": other, "x": "x"}[each] for each in seen]
    for record in lived(world, world.clock.now(), contents):
        await world.report(uid, record)
    assert await counted(world) == expected


@pytest.mark.parametrize("rule", ["exclude", "first_seen"])
@pytest.mark.parametrize("order", list(permutations(range(4))))
async def test_every_order_of_arrival_is_the_same(world: World, rule: str, order: tuple[int, ...]) -> None:
    """A late view makes an impression one on another variant, and takes back what was counted before; and back."""
    uid, mine, other = await running(world, multipleVariants=rule)
    now = world.clock.now()
    # A view of the other variant between two impressions on the own one, which is said again after it.
    records = [
        world.view("p", content_digest(mine), at=now + seconds(1)),
        world.impression("p", at=now + seconds(2)),
        world.view("p", content_digest(other), at=now + seconds(3)),
        world.impression("p", at=now + seconds(4)),
    ]
    for place in order:
        await world.report(uid, records[place])
    first = (0, {"crossed": 1, "other_variant": 1})
    assert await counted(world) == (first if rule == "exclude" else (1, {"other_variant": 1}))
    # Now it turns out that the own variant was back before the second impression.
    await world.report(uid, world.view("p", content_digest(mine), at=now + seconds(3) + 1))
    assert await counted(world) == (2, {})


async def test_subjects_are_for_themselves(world: World) -> None:
    """Only the one that met both is out, with its conversions; both populations know it was there."""
    uid, mine, other = await running(world)
    now = world.clock.now()
    await world.report(uid, *lived(world, now, [mine, other, mine], subject="s"))
    await world.report(uid, world.impression("p", at=now + seconds(30), subject="t"))
    await world.report(uid, world.conversion("p", at=now + seconds(31), subject="s"))
    await world.report(uid, world.conversion("p", at=now + seconds(31), subject="t"))
    assert await counted(world) == (1, {"crossed": 3, "other_variant": 1})
    whole = await world.answer()
    assert sum(arm["impressions"] for arm in whole["variants"]) == 4


async def test_who_has_crossed_stays_out_of_what_comes_later(world: World) -> None:
    """Batch by batch, without counting everything again."""
    uid, mine, other = await running(world)
    now = world.clock.now()
    await world.report(uid, *lived(world, now, [other, mine]))
    for number in range(5):
        await world.report(uid, world.impression("p", at=now + seconds(60 + number)))
    assert await counted(world) == (0, {"crossed": 6, "other_variant": 1})


async def test_a_switchback_is_made_of_several_variants(world: World) -> None:
    """What is late to swap is on other content, and its block counts from then on."""
    uid = await world.agent("p", "q")
    draft = await world.experiment(
        "p", "q", type="switchback", switchback={"blockDuration": "PT1H", "blocks": 8}
    )
    started = await world.start(draft)
    page = await world.do(experiments.list_assignments, requests.PageOf(id="test", limit=100))
    keys = {variant.id: variant.key for variant in started.variants}
    (mine,) = {keys[i.variant_id] for i in page.items if i.participant == "p" and i.time_block == 1}
    await world.report(uid, *lived(world, world.clock.now(), ["b" if mine == "a" else "a", mine]))
    assert await counted(world) == (1, {"other_content": 1})


async def test_loaded_asks_for_the_event_s_own_word(world: World) -> None:
    """The digest that the application says it used; what lies on disk is not enough."""
    uid, mine, other = await running(world, requires="loaded")
    now = world.clock.now()
    await world.report(uid, *lived(world, now, [mine]))
    assert await counted(world) == (0, {"not_loaded": 1})
    assert (await world.answer())["exposureEvidence"] == "loaded"
    used = content_digest(mine)
    await world.report(uid, world.impression("p", at=now + seconds(4), digest=used, subject="s"))
    assert await counted(world) == (1, {"not_loaded": 1})
    await world.report(uid, world.impression("p", at=now + seconds(5), digest=content_digest(other)))
    assert await counted(world) == (1, {"not_loaded": 1, "other_variant": 1})


@pytest.mark.parametrize("order", list(permutations(range(5))))
async def test_receipts_in_any_order_of_arrival(world: World, order: tuple[int, ...]) -> None:
    """What counts follows from what was loaded when, not from when that was heard."""
    uid, mine, other = await running(world, requires="loaded")
    now = world.clock.now()
    records = [
        world.view("p", content_digest(mine), at=now + seconds(1)),
        world.impression("p", at=now + seconds(2), subject="early"),
        world.loaded("p", content_digest(mine), at=now + seconds(3)),
        world.impression("p", at=now + seconds(4), subject="late"),
        world.view("p", content_digest(mine), at=now + seconds(100)),  # a restart says it again
    ]
    for place in order:
        await world.report(uid, records[place])
    assert await counted(world) == (1, {"not_loaded": 1})
    await world.report(uid, world.impression("p", at=now + seconds(300), subject="much later"))
    assert await counted(world) == (2, {"not_loaded": 1})
    # Something else was on disk in between, as is heard only now: the receipt is none of what came back.
    await world.report(uid, world.view("p", content_digest("x"), at=now + seconds(50)))
    assert await counted(world) == (1, {"not_loaded": 2})
    await world.report(uid, world.loaded("p", content_digest(other), at=now + seconds(110)))
    assert await counted(world) == (1, {"not_loaded": 1, "other_variant": 1})
    await world.report(uid, world.loaded("p", content_digest(mine), at=now + seconds(111)))
    assert await counted(world) == (2, {"not_loaded": 1})


async def test_receipts_are_facts_of_their_own(world: World) -> None:
    """Stored once, of whoever the agent serves; no experiment that goes by the disk asks for them."""
    uid, mine, _ = await running(world)
    now = world.clock.now()
    receipt = world.loaded("p", content_digest("x"), at=now + seconds(2))
    await world.report(uid, receipt, world.loaded("q", content_digest("x"), at=now))
    await world.report(uid, receipt)
    assert len(await world.rows("select * from receipt")) == 1
    await world.report(uid, *lived(world, now, [mine]))
    assert await counted(world) == (1, {})


async def test_a_variant_by_hand_is_another_variant(world: World) -> None:
    """Whoever was forced met it, and is out of `delivered` from then on; in `assigned` nothing changes."""
    uid, mine, other = await running(world)
    now = world.clock.now()
    await world.report(uid, *lived(world, now, [mine]))
    assert await counted(world) == (1, {})
    request = requests.CreateDeployment(id="test", participantId="p", variantId=other)
    await world.do(deployments.create, request)
    await world.report(uid, *lived(world, now + seconds(20), [other]))
    assert await counted(world) == (0, {"crossed": 1, "other_variant": 1})


@pytest.mark.parametrize(
    "criteria", [{"requires": "seen"}, {"multipleVariants": "last"}, {"multipleVariants": 1}]
)
async def test_criteria_are_named_right(world: World, criteria: dict[str, Any]) -> None:
    """With the field that is wrong."""
    with pytest.raises(Invalid) as caught:
        await world.experiment("p", exposureCriteria=criteria)
    assert [fault.field for fault in caught.value.faults] == [f"exposureCriteria.{next(iter(criteria))}"]
