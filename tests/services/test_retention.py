"""Raw events go when what they count in is long over; no number follows them, and none is counted twice after."""

from functools import partial
from typing import Any

from control_plane.domain import inference, requests
from control_plane.services import access, arrivals, doctor, lifecycle, phases, results, retention
from control_plane.store.database import Tx
from control_plane.store.store import Store
from tests.support.builders import World, content_digest, seconds

DAY = 86_400
KEEP = 10


async def reported(world: World, uid: bytes, experiment: Any, *, event_id: str = "") -> list[Any]:
    """Everybody has an impression and a conversion on the assigned content; the records."""
    now = world.clock.now()
    records = []
    for person, variant in (await world.assigned(experiment)).items():
        records += [
            world.view(person, content_digest(variant), at=now),
            world.impression(
                person, at=now + seconds(1), subject="s", event_id=event_id and event_id + person
            ),
            world.conversion(person, at=now + seconds(2), subject="s"),
        ]
    await world.clock.advance(5)
    await world.report(uid, *records)
    return records


async def forget(world: World, *, keep: int = KEEP) -> int:
    """Everything that is old enough is gone; in how many steps."""
    steps = 0
    while True:
        now = world.clock.now()
        done = await world.database.write(partial(retention.step, now=now, keep_days=keep))
        if not done.rows:
            return steps
        steps += 1


async def told(world: World) -> dict[str, Any]:
    """Results, as they are answered."""
    found = await world.do(
        results.get, requests.parse(requests.GetResults, {"id": "test", "eventName": "done"})
    )
    answered = inference.answer(found.evidence)
    return {key: value for key, value in answered.items() if key not in ("asOf", "computedAt")}


async def kept(world: World) -> dict[str, list[dict[str, Any]]]:
    """What is there beside raw events."""
    tables = ("tally", "unit", "standing", "activity", "view", "spool_epoch")
    found = {}
    for table in tables:
        rows = await world.rows(f"select * from {table}")
        found[table] = sorted(rows, key=str)
    return found


async def complete(world: World) -> None:
    await world.do(lifecycle.complete, requests.parse(requests.Complete, {"id": "test", "then": "keep"}))


async def test_events_of_what_is_long_over_go_and_no_number_does(world: World) -> None:
    """Until the last day they stay; then they go in steps, sums and results stay, and doctor says what it left."""
    uid = await world.agent("p", "q")
    experiment = await world.start(await world.experiment("p", "q"))
    await reported(world, uid, experiment)
    await complete(world)
    await world.clock.advance(KEEP * DAY)
    assert await forget(world) == 0
    before, numbers = await kept(world), await told(world)
    assert len(await world.rows("select id from event")) == 4
    await world.clock.advance(2)
    assert await forget(world) > 1
    assert await world.rows("select id from event") == []
    assert await world.rows("select event_id from attributed_event") == []
    assert await kept(world) == before
    assert await told(world) == numbers
    checked = await world.do(doctor.check_tallies, requests.ById(id="test"))
    assert (checked.phases, checked.gone, checked.count, checked.events) == (1, 1, 0, 0)


async def test_what_runs_keeps_its_events_however_old(world: World) -> None:
    """An open phase keeps them all; one closed long ago loses its own, and late reports of it count nowhere."""
    uid = await world.agent("p", "q")
    experiment = await world.start(await world.experiment("p", "q"))
    early = world.clock.now() + seconds(3)
    await reported(world, uid, experiment)
    await world.do(
        phases.open_phase, requests.OpenPhase.model_validate({"id": "test", "weights": {"a": 25, "b": 75}})
    )
    experiment = await world.ask(lambda store: store.experiments.find(world.caller.project_id, "test"))
    await reported(world, uid, experiment)
    await world.clock.advance(KEEP * DAY + 1)
    await forget(world)
    assert len(await world.rows("select id from event")) == 4
    checked = await world.do(doctor.check_tallies, requests.ById(id="test"))
    assert (checked.phases, checked.gone, checked.count, checked.events) == (2, 1, 0, 4)
    before = await kept(world)
    await world.report(uid, world.impression("p", at=early, subject="late"))
    (late,) = await world.rows("select reason from event where subject = 'late'")
    assert late == {"reason": "CAME_TOO_LATE"}
    after = await kept(world)
    assert {name for name in before if after[name] != before[name]} == {"activity", "spool_epoch"}
    await reported(world, uid, experiment)
    assert (await world.do(doctor.check_tallies, requests.ById(id="test"))).count == 0


async def test_a_record_that_is_sent_again_after_its_event_is_gone_counts_no_more(world: World) -> None:
    """Under another epoch nothing but the record's id would recognise it; its phase counts nothing any more."""
    uid = await world.agent("p")
    experiment = await world.start(await world.experiment("p"))
    records = await reported(world, uid, experiment)
    await complete(world)
    await world.clock.advance(KEEP * DAY + 1)
    await forget(world)
    before = (await kept(world))["tally"]
    world.spools.clear()
    await world.report(uid, *records)
    assert (await kept(world))["tally"] == before
    assert {row["reason"] for row in await world.rows("select reason from event")} == {"CAME_TOO_LATE"}


async def test_what_counts_nowhere_goes_by_its_age_and_numbers_of_arrival_go_on(world: World) -> None:
    """Also where no event is left at all: whoever follows events by number misses none."""
    uid = await world.agent("p")
    for _ in range(2):
        await world.report(uid, world.impression("p", at=world.clock.now()))
    assert await forget(world) == 0
    await world.clock.advance(KEEP * DAY + 1)
    await forget(world)
    assert await world.rows("select id from event") == []
    await world.report(uid, world.impression("p", at=world.clock.now()))
    assert await world.rows("select arrival from event") == [{"arrival": 3}]
    request = requests.parse(arrivals.ListEvents, {"after": "2"})
    page = await world.do(arrivals.list_page, request)
    assert [item.event["arrival"] for item in page.items] == [3]


async def test_a_restored_life_gives_no_number_of_arrival_that_one_before_gave(world: World) -> None:
    """Also where one backup is restored twice: whoever noted a number that was given after it misses nothing."""
    uid = await world.agent("p")
    backed_up = world.impression("p", at=world.clock.now())
    await world.report(uid, backed_up)
    noted = 0
    for lost in (3, 1, 0):
        for _ in range(lost):
            await world.report(uid, world.impression("p", at=world.clock.now()))
        (given,) = await world.rows("select max(arrival) as last from event")
        noted = max(noted, given["last"])
        await world.database.write(
            lambda tx: [
                tx.run("delete from event where id <> ?", (backed_up.id,)),
                tx.run("update project set last_arrival = 0"),
            ]
        )
        await world.clock.advance(1)
        await world.database.write(
            lambda tx: access.succeed(Store(tx), new_id=world.new_id, now=world.clock.now())
        )
    await world.report(uid, world.impression("p", at=world.clock.now()))
    page = await world.do(arrivals.list_page, requests.parse(arrivals.ListEvents, {"after": str(noted)}))
    assert len(page.items) == 1


async def test_an_applications_own_ids_are_known_for_thirty_days(world: World) -> None:
    """Until then a repeat is told as one; where every event is kept, they are forgotten all the same."""
    uid = await world.agent("p")
    experiment = await world.start(await world.experiment("p"))
    await reported(world, uid, experiment, event_id="mine")
    await world.clock.advance(29 * DAY)
    assert await forget(world, keep=0) == 0
    await world.report(uid, world.impression("p", at=world.clock.now(), event_id="minep"))
    assert await world.rows("select reason from event where reason is not null") == [
        {"reason": "DUPLICATE_EVENT_ID"}
    ]
    await world.clock.advance(2 * DAY)
    await forget(world, keep=0)
    assert await world.rows("select key from event_key") == []
    assert len(await world.rows("select id from event")) == 3


async def test_an_answer_is_known_by_its_key_for_thirty_days(world: World) -> None:
    """Until then it is given again; after that the key is as good as new, and nothing of the answer is left."""
    project = world.caller.project_id

    def answer(tx: Tx) -> Any:
        return Store(tx).access.answer(project, "CreateExperiment", "k")

    def keep(tx: Tx) -> None:
        Store(tx).access.keep_answer(
            project, "CreateExperiment", "k", fingerprint=b"f", answer={"content": "a"}, now=world.clock.now()
        )

    await world.database.write(keep)
    await world.clock.advance(29 * DAY)
    assert await forget(world, keep=0) == 0
    assert await world.database.read(answer) == (b"f", {"content": "a"})
    await world.clock.advance(2 * DAY)
    assert await forget(world, keep=0) == 1
    assert await world.database.read(answer) is None
    assert await world.rows("select * from idempotency") == []
    await world.database.write(keep)


async def test_a_step_is_small(world: World) -> None:
    """However much there is to delete, other writers wait for 500 rows of it at most."""
    uid = await world.agent("p")
    now = world.clock.now()
    for _ in range(3):
        await world.report(uid, *(world.impression("p", at=now) for _ in range(400)))
    await world.clock.advance(KEEP * DAY + 1)
    assert await forget(world) == 3
