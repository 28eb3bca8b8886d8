"""What the doors need of the store: searches in every order, what is kept of what they were sent, numbers."""

from typing import Any, Literal

import pytest

from control_plane.domain import requests
from control_plane.domain.metrics import CreateMetric
from control_plane.services import experiments, foreign, holdouts, lifecycle, metrics
from control_plane.services.work import Work
from control_plane.store import database, searches
from control_plane.store.database import Tx
from control_plane.store.searches import Wanted
from shared.errors import Invalid, NotFound
from shared.ids import show_id
from tests.support.builders import World, make_variant


async def named(world: World, name: str, **fields: Any) -> Any:
    """A draft."""
    values = {"name": name, "variants": [make_variant("control", control=True), make_variant("b")], **fields}
    request = requests.parse(requests.CreateExperiment, {"targetFile": "soul.md", **values})
    view = await world.do(experiments.create, request)
    world.clock.jump(1)
    return view.experiment


async def found(
    world: World, *, order: str = "number", limit: int = 10, offset: int = 0, **wanted: Any
) -> Any:
    """(names, how many there are altogether)."""

    def search(work: Work, request: requests.Nothing) -> foreign.Found:
        asked = Wanted(project_id=work.project_id, **wanted)
        return foreign.search(work, asked, order=order, offset=offset, limit=limit)

    page = await world.do(search, requests.Nothing())
    return [view.experiment.name for view in page.views], page.total


async def test_searches(world: World) -> None:
    """Every condition, and every order there is."""
    await named(world, "First", metrics={"primary": {"eventName": "done_100%"}}, labels={"team": "a"})
    ratio = {"name": "done_100%", "eventName": "a", "kind": "ratio", "denominatorEventName": "ü"}
    second = await named(world, "Second", description="needle", metrics={"primary": ratio})
    await named(world, "third", variants=[make_variant("b", control=True), make_variant("control")])
    assert await found(world) == (["third", "Second", "First"], 3)
    assert await found(world, limit=1, offset=1) == (["Second"], 3)
    for wanted, names in (
        ({"statuses": ("draft", "paused")}, ["third", "Second", "First"]),
        ({"statuses": ("running",)}, []),
        ({"archived": True}, []),
        ({"kind": "ab", "search": "NEEDLE"}, ["Second"]),
        ({"search": show_id(second.id)}, ["Second"]),
        ({"search": show_id(second.id)[20:].upper()}, ["Second"]),
        ({"search": "-"}, []),
        ({"search": "%"}, []),
        ({"event": "done_100%"}, ["First"]),
        ({"event": "doneX100%"}, []),
        ({"event": "ü"}, ["Second"]),
        ({"event": "increase"}, []),
        ({"labels": {"team": "a"}}, ["First"]),
        ({"flags": True}, ["Second", "First"]),
        ({"number": second.number}, ["Second"]),
        ({"key": "second"}, ["Second"]),
        ({"creator": "nobody"}, []),
    ):
        assert await found(world, **wanted) == (names, len(names)), wanted
    for order in searches.ORDERS:
        assert (await found(world, order=order))[1] == 3
    assert (await found(world, order="name"))[0] == ["third", "Second", "First"]


async def test_a_text_is_found_in_every_alphabet(world: World) -> None:
    """As it is written, by our own list and by the doors'; a part of the id is found too."""
    made = await named(world, "Énergie ÄÖ 50%")
    await named(world, "50 more")
    for text in ("Énergie", "ÄÖ", "50%", "nergie ÄÖ", show_id(made.id)[9:]):
        assert await found(world, search=text) == (["Énergie ÄÖ 50%"], 1), text
        page = await world.do(experiments.list_page, requests.ListExperiments(search=text))
        assert [view.experiment.name for view in page.items] == ["Énergie ÄÖ 50%"], text


async def test_two_kinds_of_pause(world: World) -> None:
    """Files that stay and files that are what was there before are told apart, in lists and of one experiment."""
    for name, kind in (("Held", "hold"), ("Reverted", "revert")):
        fields = {"name": name, "targetFile": f"{name}.md"}
        experiment = await world.start(await world.experiment("p", "q", **fields))
        await world.do(lifecycle.pause, requests.Pause(id=experiment.key, onPause=kind))

        def reverted(work: Work, request: requests.ById) -> bool:
            return work.store.searches.reverted(experiments.find(work, request.id).id)

        assert await world.do(reverted, requests.ById(id=experiment.key)) is (kind == "revert")
    for statuses, names in (
        (("held",), ["Held"]),
        (("reverted",), ["Reverted"]),
        (("paused",), ["Reverted", "Held"]),
        (("running", "held"), ["Held"]),
        (("draft", "reverted", "held"), ["Reverted", "Held"]),
    ):
        assert await found(world, statuses=statuses) == (names, len(names)), statuses
    await world.do(lifecycle.resume, requests.ById(id="reverted"))
    assert await found(world, statuses=("reverted",)) == ([], 0)


async def test_what_counts_as_a_type(world: World) -> None:
    """Besides those of the type, those of which a door keeps that they are."""
    await named(world, "Plain")
    other, plain = await named(world, "Other"), (await named(world, "Deep"))

    def keep(work: Work, request: requests.Nothing) -> Any:
        foreign.keep(work, other.id, "A", {"as": "odd", "gone": True})
        foreign.keep(work, plain.id, "B", {"as": "odd", "gone": True})
        return foreign.keep(work, plain.id, "A", {"free": {"as": "odd", "gone": True}, "as": '"as": "odd"'})

    await world.do(keep, requests.Nothing())
    odd = searches.Keeps(door="A", name="as", value="odd")
    gone = searches.Keeps(door="A", name="gone", value=True)
    assert await found(world, kind="switchback", counted=odd) == (["Other"], 1)
    assert await found(world, kind="ab", hidden=odd) == (["Deep", "Plain"], 2)
    assert await found(world, hidden=gone) == (["Deep", "Plain"], 2)


async def test_deleting_for_whoever_knows_no_completing(world: World) -> None:
    """A draft is gone; what is under way has ended and is archived, and its files stay."""
    draft = await world.experiment("p", "q")
    await world.do(foreign.delete, requests.ById(id=draft.key))
    with pytest.raises(NotFound):
        await world.do(experiments.get, requests.ById(id=draft.key))
    started = await world.start(await world.experiment("p", "q"))
    await world.do(foreign.delete, requests.ById(id=started.key))
    ended = (await world.do(experiments.get, requests.ById(id=started.key))).experiment
    assert (ended.status.value, ended.archived) == ("completed", True)
    actions = await world.rows("select distinct action from deployment")
    assert {row["action"] for row in actions} == {"write", "close"}


@pytest.mark.parametrize("kind", ["revert", "hold"])
async def test_another_allocation_with_the_resume(world: World, kind: Literal["hold", "revert"]) -> None:
    """While it is paused nobody comes in; its resume opens the phase, and everybody holds the variant drawn."""
    experiment = await world.start(await world.experiment(*"pqrs", trafficAllocation=50))
    await world.do(lifecycle.pause, requests.Pause(id=experiment.key, onPause=kind))

    def reallocate(work: Work, request: requests.OpenPhase) -> None:
        foreign.reallocate(work, experiments.find(work, request.id), request)

    await world.do(reallocate, requests.OpenPhase(id=experiment.key, trafficAllocation=100))
    present = (await world.do(experiments.get, requests.ById(id=experiment.key))).experiment
    assert (present.phase.number, present.phase.traffic_allocation) == (1, 50)
    resumed = (await world.do(lifecycle.resume, requests.ById(id=experiment.key))).experiment
    assert (resumed.phase.number, resumed.phase.traffic_allocation) == (2, 100)
    held = await world.rows(
        "select p.public_id, v.key from slot s join deployment d on d.id = s.deployment_id"
        " join participant p on p.id = s.participant_id join variant v on v.id = d.variant_id"
        " where d.action = 'write'"
    )
    assert {row["public_id"]: row["key"] for row in held} == await world.assigned(resumed)
    assert len(held) == 4


async def test_the_last_changed_first(world: World) -> None:
    """Pages follow each other by a cursor, whatever is equal; one that was made up is refused."""
    first = await named(world, "First")
    for name in ("Second", "Third"):
        await named(world, name)
    await world.do(
        experiments.update, requests.parse(requests.UpdateExperiment, {"id": first.key, "description": "x"})
    )
    seen: list[str] = []
    cursor = ""

    def page(work: Work, request: requests.Page) -> foreign.Found:
        wanted = Wanted(project_id=work.project_id)
        return foreign.last_changed(work, wanted, cursor=request.cursor, limit=1)

    while True:
        answer = await world.do(page, requests.Page(cursor=cursor))
        seen += [view.experiment.name for view in answer.views]
        cursor = answer.next_cursor
        if not cursor:
            break
    assert seen == ["First", "Third", "Second"]
    with pytest.raises(Invalid, match="cursor"):
        await world.do(page, requests.Page(cursor="6d616465"))


async def test_what_is_kept(world: World) -> None:
    """It lasts through changes by others, goes into copies, and each door has its own."""
    experiment = await named(world, "First")

    def keep(door: str, **fields: Any) -> Any:
        def run(work: Work, request: requests.Nothing) -> Any:
            foreign.keep_of_variant(work, work.store.experiments.get(experiment.id).variants[0], door, fields)
            return foreign.keep(work, experiment.id, door, fields)

        return run

    await world.do(keep("A", one=1, two=2), requests.Nothing())
    await world.do(keep("A", two=3), requests.Nothing())
    await world.do(keep("B", one={"deep": [None]}), requests.Nothing())
    renamed = requests.parse(requests.UpdateExperiment, {"id": experiment.key, "name": "Else"})
    await world.do(experiments.update, renamed)
    copy = await world.do(experiments.duplicate, requests.Duplicate(id=experiment.key))
    for name in (experiment.key, copy.experiment.key):
        view = await world.do(experiments.get, requests.ById(id=name))
        wanted = {"A": {"one": 1, "two": 3}, "B": {"one": {"deep": [None]}}}
        assert (view.experiment.kept, view.experiment.variants[0].kept) == (wanted, wanted)

    def others(work: Work, request: requests.Nothing) -> Any:
        at = (work.project_id, "A", "settings", work.project_id)
        store = work.store.kept
        assert store.get(*at) is None
        store.put(*at, {"x": 1}, actor="me", now=5)
        store.put(*at, {"y": 2}, actor="you", now=6)
        kept = store.get(*at)
        store.drop(*at)
        assert store.get(*at) is None
        return kept

    kept = await world.do(others, requests.Nothing())
    assert (kept.fields, kept.created_at, kept.updated_at, kept.updated_by) == ({"y": 2}, 5, 6, "you")


async def test_numbers(world: World) -> None:
    """Experiments, holdouts and saved metrics are found by the number that each has, which is never used again."""
    experiment = await named(world, "First")
    view = await world.do(experiments.get, requests.ById(id=str(experiment.number)))
    assert view.experiment.id == experiment.id
    held = await world.do(holdouts.create, requests.CreateHoldout(name="Quiet", share=5))
    saved = await world.do(
        metrics.create, requests.parse(CreateMetric, {"name": "Done", "eventName": "done"})
    )
    number = held.holdout.number
    assert (await world.do(holdouts.get, requests.ById(id=str(number)))).holdout.key == "quiet"
    assert (await world.do(metrics.get, requests.ById(id=str(saved.metric.number)))).metric.key == "done"
    await world.do(holdouts.delete, requests.ById(id=str(number)))
    again = await world.do(holdouts.create, requests.CreateHoldout(name="Quiet", share=5))
    assert again.holdout.number > saved.metric.number > number


async def test_what_was_there_before_numbers_gets_them(world: World) -> None:
    """The migration gives each its own, in the order they were made, and what comes next is none of them."""
    names = ["A", "B", "C"]
    for name in names:
        await world.do(holdouts.create, requests.CreateHoldout(name=name, share=5))
    await named(world, "First")
    [text] = [text for name, text in database._migrations() if name.startswith("0038")]

    def again(tx: Tx) -> list[Any]:
        tx.run("update project set last_number = 7")
        for statement in database._statements(text):
            if not statement.startswith("alter"):
                tx.run(statement)
        return tx.all("select key, number from holdout order by key")

    rows = await world.database.write(again)
    assert [(row["key"], row["number"]) for row in rows] == [("a", 8), ("b", 9), ("c", 10)]
    following = await world.do(holdouts.create, requests.CreateHoldout(name="D", share=5))
    assert following.holdout.number == 11


async def test_another_key(world: World) -> None:
    """An experiment goes by another key from then on, if nobody has it."""
    await named(world, "First")
    second = await named(world, "Second")

    def rekeyed(key: str) -> Any:
        def run(work: Work, request: requests.Nothing) -> None:
            foreign.rekey(work, experiments.find(work, "second"), key)

        return run

    with pytest.raises(Exception, match="exists already"):
        await world.do(rekeyed("first"), requests.Nothing())
    await world.do(rekeyed("second"), requests.Nothing())
    await world.do(rekeyed("other"), requests.Nothing())
    view = await world.do(experiments.get, requests.ById(id="other"))
    assert view.experiment.id == second.id
