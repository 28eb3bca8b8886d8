"""Sums against events: whatever happened in whatever order, nothing differs; what was changed by hand is named."""

from random import Random

import pytest

from control_plane.domain import requests
from control_plane.services import doctor, lifecycle, phases
from tests.support.builders import World, content_digest, seconds

PEOPLE = ("p", "q", "r", "s")


async def check(world: World) -> doctor.Checked:
    """What is found."""
    found: doctor.Checked = await world.do(doctor.check_tallies, requests.ById(id="test"))
    return found


async def lived(world: World, chance: Random) -> None:
    """An experiment with late views and events in any order, over two phases, a reset and a second run."""
    uid = await world.agent(*PEOPLE)
    metrics = {"primary": {"eventName": "done", "window": "PT40S"}, "secondary": [{"eventName": "done"}]}
    experiment = await world.start(await world.experiment(*PEOPLE, settle=5, metrics=metrics))
    for stretch in range(3):
        begun = world.clock.now()
        held = await world.assigned(experiment)
        records = []
        for person in PEOPLE:
            for _ in range(6):
                at = begun + seconds(chance.uniform(0, 200_000))
                subject = chance.choice(["", "s1", "s2"])
                records += [
                    world.view(person, content_digest(chance.choice([held[person], "x"])), at=at),
                    world.impression(person, at=at + seconds(chance.choice([1, 60])), subject=subject),
                    world.conversion(
                        person,
                        at=at + seconds(chance.uniform(-50, 90)),
                        subject=subject,
                        name=chance.choice(["done", "other"]),
                        value_micros=chance.randrange(10**7),
                    ),
                ]
        await world.clock.advance(200_100)
        chance.shuffle(records)
        for number in range(0, len(records), 7):
            await world.report(uid, *records[number : number + 7])
        if stretch == 0:
            await world.do(
                phases.open_phase,
                requests.OpenPhase.model_validate({"id": "test", "weights": {"a": 25, "b": 75}}),
            )
        elif stretch == 1:
            await world.do(lifecycle.reset, requests.Reset(id="test"))
            await world.start(experiment)
        experiment = await world.ask(lambda store: store.experiments.find(world.caller.project_id, "test"))


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_differs_whatever_happened(world: World, seed: int) -> None:
    """Both populations, units with and without subjects, late views, phases and runs."""
    await lived(world, Random(seed))
    found = await check(world)
    assert (found.phases, found.count, found.differences) == (3, 0, ())
    assert found.events > 100


@pytest.mark.parametrize(
    ("sql", "table", "field"),
    [
        ("update tally set assigned_count = assigned_count + 1", "tally", "count"),
        ("update tally set delivered_value = delivered_value - 5", "tally", "value"),
        ("delete from tally", "tally", "count"),
        ("update unit set first_assigned = first_assigned + 1", "unit", "first"),
        ("delete from unit", "unit", "first"),
        ("update standing set count = 0", "standing", "count"),
    ],
)
async def test_what_was_changed_is_named(world: World, sql: str, table: str, field: str) -> None:
    """One row of one table: its place, what is kept and what the events say."""
    uid = await world.agent("p")
    experiment = await world.start(await world.experiment("p"))
    variant, now = (await world.assigned(experiment))["p"], world.clock.now()
    await world.report(
        uid,
        world.view("p", content_digest(variant), at=now + seconds(1)),
        world.impression("p", at=now + seconds(2), subject="s", value_micros=7),
    )
    assert (await check(world)).count == 0
    await world.database.write(lambda tx: tx.run(sql))
    found = await check(world)
    assert found.count == len(found.differences) > 0
    assert {item.table for item in found.differences} == {table}
    assert field in {item.field for item in found.differences}
    if sql.startswith("update tally"):
        (only,) = found.differences
        assert (only.participant, only.event_name, only.day) == ("p", "", now // seconds(86_400))
        assert only.variant_id in {item.id for item in experiment.variants if item.key == variant}
        assert only.stored != only.recomputed


async def test_sums_of_nobody_are_told(world: World) -> None:
    """A row that no event stands behind is a difference, not overlooked."""
    experiment = await world.start(await world.experiment("p"))
    phase, nobody = experiment.phase.id, bytes(16)
    await world.database.write(
        lambda tx: tx.run(
            "insert into tally (phase_id, variant_id, participant_id, event_name, day, assigned_count)"
            " values (?, ?, ?, '', 1, 3)",
            (phase, nobody, nobody),
        )
    )
    (only,) = (await check(world)).differences
    assert (only.participant, only.stored, only.recomputed) == ("", 3, 0)
