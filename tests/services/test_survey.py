"""What can be tested, what is reported of it, and how many experiments there were."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.metrics import CreateMetric
from control_plane.domain.settings import UpdateSettings
from control_plane.services import experiments, lifecycle, metrics, settings, survey
from shared.model import ParticipantState
from tests.support.builders import World, make_variant, seconds

DAY = 86_400


async def eligible(world: World, **values: Any) -> dict[str, tuple[int, int, tuple[str, ...]]]:
    """(participants, available, held by) of every target on the page."""
    request = requests.parse(requests.ListEligibleTargets, values)
    page = await world.do(survey.list_eligible_targets, request)
    return {item.path: (item.participants, item.available, item.held_by) for item in page.items}


async def declare(world: World, uid: bytes, name: str, *targets: str) -> None:
    """The agent's participant declares these targets from now on."""
    state = ParticipantState(participant=name, targets=targets)

    def bind(store: Any) -> None:
        item = store.fleet.participant(world.caller.project_id, name)
        store.fleet.bind(item.id, uid, state, now=world.clock.now())

    await world.database.write(lambda tx: bind(_store(tx)))


def _store(tx: Any) -> Any:
    from control_plane.store.store import Store

    return Store(tx)


async def test_targets_are_what_hosts_declare_and_nobody_holds(world: World) -> None:
    """Files and globs with their counts; a file held everywhere is gone, held somewhere it names the holder."""
    uid = await world.agent("p", "q", "r")
    for name in ("p", "q"):
        await declare(world, uid, name, "soul.md", "config/*.md")
    await declare(world, uid, "r", "soul.md")
    await world.do(_create_unserved, None)
    assert await eligible(world) == {"config/*.md": (2, 2, ()), "soul.md": (3, 3, ())}
    await world.start(await world.experiment("p", "q"))
    assert await eligible(world) == {"config/*.md": (2, 2, ()), "soul.md": (3, 1, ("test",))}
    other = await world.experiment("p", "q", name="Conf", targetFile="config/a.md")
    assert (await eligible(world))["config/a.md"] == (2, 2, ())
    await world.start(other)
    assert "config/a.md" not in await eligible(world)
    await world.do(lifecycle.complete, requests.Complete(id="conf", then="restore"))
    assert (await eligible(world))["config/a.md"] == (2, 2, ())


def _create_unserved(work: Any, _: None) -> None:
    """A participant that no host has declared has no target."""
    work.store.fleet.add_participant(
        work.new_id(), project_id=work.project_id, public_id="s", labels={}, now=work.now
    )


async def test_targets_that_settings_do_not_allow_are_not_listed(world: World) -> None:
    """Files have to be allowed, of a glob some file has to be."""
    uid = await world.agent("p", "q")
    await declare(world, uid, "p", "soul.md", "config/*.md", "**", "logs/*.txt")
    await world.do(settings.update, requests.parse(UpdateSettings, {"targetAllowList": ["config/**"]}))
    assert set(await eligible(world)) == {"config/*.md", "**"}


async def test_targets_are_searched_and_paged(world: World) -> None:
    """By path, a page after another, each once."""
    uid = await world.agent("p")
    await declare(world, uid, "p", "a.md", "b.md", "config/A.md", "d.txt")
    assert list(await eligible(world, search="a.MD")) == ["a.md", "config/A.md"]
    request = requests.ListEligibleTargets(limit=3)
    first = await world.do(survey.list_eligible_targets, request)
    rest = requests.ListEligibleTargets(limit=3, cursor=first.next_cursor)
    second = await world.do(survey.list_eligible_targets, rest)
    assert [item.path for item in (*first.items, *second.items)] == ["a.md", "b.md", "config/A.md", "d.txt"]
    assert second.next_cursor == ""


async def test_a_retired_host_s_targets_are_none(world: World) -> None:
    """Nothing can be tested where nobody is."""
    uid = await world.agent("p")
    assert set(await eligible(world)) == {"*.md"}
    await world.database.write(lambda tx: _store(tx).fleet.retire(uid, now=world.clock.now()))
    assert await eligible(world) == {}


METRICS = {
    "primary": {"eventName": "done"},
    "secondary": [{"eventName": "liked"}],
    "guardrail": [{"eventName": "failed", "goal": "decrease"}],
}


async def check(world: World) -> survey.Instrumentation:
    """What is reported of the one experiment."""
    found: survey.Instrumentation = await world.do(survey.check_instrumentation, requests.ById(id="test"))
    return found


async def test_what_was_never_reported_is_known_before_and_after_the_start(world: World) -> None:
    """Exposures by file and each metric's conversion: by how many, and when last; others' reports do not count."""
    uid = await world.agent("p", "q", "other")
    files = [{"path": "a.md", "content": "a"}, {"path": "b.md", "content": "b"}]
    variants = [{"name": key, "files": files, "isControl": key == "x", "weight": 50} for key in ("x", "y")]
    draft = await world.experiment("p", "q", targetFile=None, variants=variants, metrics=METRICS)
    before = await check(world)
    assert before.required
    assert before.participants == 2
    assert [(item.name, item.role) for item in before.metrics] == [
        ("done", "primary"),
        ("liked", "secondary"),
        ("failed", "guardrail"),
    ]
    assert {item.last_seen_at for item in (before.exposure, *before.metrics, *before.targets)} == {None}
    now = world.clock.now()
    await world.report(
        uid,
        world.impression("p", at=now - seconds(2 * DAY), path="a.md"),
        world.impression("q", at=now - seconds(3 * DAY), path="a.md"),
        world.impression("p", at=now - seconds(5), path="elsewhere.md"),
        world.impression("other", at=now - seconds(1), path="b.md"),
        world.conversion("p", at=now - seconds(20)),
        world.conversion("p", at=now - seconds(10)),
        world.conversion("q", at=now - seconds(15), path="b.md"),
        world.conversion("p", at=now - seconds(1), name="unrelated"),
    )
    for started in (False, True):
        if started:
            await world.start(draft)
        seen = await check(world)
        by_name = {item.name: (item.reporting, item.last_seen_at) for item in (*seen.metrics, *seen.targets)}
        assert by_name == {
            "done": (2, now - seconds(10)),
            "liked": (0, None),
            "failed": (0, None),
            "a.md": (2, now - seconds(2 * DAY)),
            "b.md": (0, None),
        }
        assert (seen.exposure.reporting, seen.exposure.last_seen_at) == (2, now - seconds(2 * DAY))
        assert seen.required
    await world.report(
        uid,
        world.impression("q", at=now - seconds(1)),
        world.conversion("q", at=now, name="liked"),
        world.conversion("q", at=now, name="failed"),
    )
    whole = await check(world)
    assert not whole.required
    assert [item.last_seen_at for item in whole.targets] == [now - seconds(1)] * 2


async def test_a_draft_s_saved_metric_is_asked_for(world: World) -> None:
    """Which it only names until it starts."""
    await world.agent("p", "q")
    given = {"name": "Resolved", "key": "rate", "eventName": "resolved"}
    await world.do(metrics.create, requests.parse(CreateMetric, given))
    draft = await world.experiment("p", "q", metrics={"primary": {"key": "rate"}})
    for started in (False, True):
        if started:
            await world.start(draft)
        assert [(item.name, item.role) for item in (await check(world)).metrics] == [("resolved", "primary")]


async def test_a_ratio_needs_what_it_is_divided_by(world: World) -> None:
    """Each of the two conversions is asked for, one that is both of them once."""
    uid = await world.agent("p", "q")
    ratio = {"eventName": "paid", "kind": "ratio", "denominatorEventName": "order"}
    per_own = {"eventName": "order", "kind": "ratio", "denominatorEventName": "order"}
    await world.experiment("p", "q", metrics={"primary": ratio, "secondary": [per_own]})
    now = world.clock.now()
    await world.report(uid, world.impression("p", at=now - 1), world.conversion("p", at=now, name="paid"))
    seen = await check(world)
    assert [(item.name, item.role, item.reporting) for item in seen.metrics] == [
        ("paid", "primary", 1),
        ("order", "primary", 0),
        ("order", "secondary", 0),
    ]
    assert seen.required
    await world.report(uid, world.conversion("q", at=now, name="order"))
    assert not (await check(world)).required


async def test_what_is_reported_of_who_takes_no_part_is_not_what_is_needed(world: World) -> None:
    """Whoever is outside the allocation, before and after the start; whoever is on record without a variant."""
    people = [f"p{number}" for number in range(8)]
    uid = await world.agent(*people)
    draft = await world.experiment(*people, trafficAllocation=50, metrics={"primary": {"eventName": "done"}})
    page = await world.do(experiments.list_assignments, requests.PageOf(id="test"))
    inside = {item.participant for item in page.items if item.variant_id is not None}
    now = world.clock.now()
    for name in set(people) - inside:
        await world.report(uid, world.impression(name, at=now - 1), world.conversion(name, at=now - 1))
    for started in (False, True):
        if started:
            await world.start(draft)
        found = await check(world)
        assert (found.participants, found.required, found.exposure.reporting) == (4, True, 0)
    name = min(inside)
    await world.report(uid, world.impression(name, at=now), world.conversion(name, at=now))
    assert not (await check(world)).required


@pytest.mark.parametrize(
    ("current", "previous", "expected"),
    [(0, 0, 0.0), (3, 0, 100.0), (0, 4, -100.0), (3, 2, 50.0), (2, 3, -33.3), (4, 3, 33.3), (2, 2, 0.0)],
)
def test_percent_change(current: int, previous: int, expected: float) -> None:
    """To one decimal; from nothing to nothing is 0, from nothing to something 100."""
    assert survey.Pace(current=current, previous=previous).percent_change == expected


async def test_velocity_counts_two_windows(world: World) -> None:
    """Launched and completed in the last 30 days and in the 30 before; archived ones and older ones are not."""

    async def velocity() -> tuple[tuple[int, int], tuple[int, int], int]:
        found = await world.do(survey.get_velocity, requests.Nothing())
        pairs = [(item.current, item.previous) for item in (found.launched, found.completed)]
        return pairs[0], pairs[1], found.running

    names = ("one", "two", "three")
    await world.agent(*names)
    assert await velocity() == ((0, 0), (0, 0), 0)
    for name in names:
        draft = await world.experiment(
            participants={"ids": [name]},
            name=name,
            type="personalization",
            variants=[{**make_variant("a"), "weight": 0}],
        )
        await world.start(draft)
        await world.clock.advance(10 * DAY)
    await world.do(lifecycle.complete, requests.Complete(id="one"))
    assert await velocity() == ((2, 1), (1, 0), 2)  # the first one is 30 days ago to the microsecond
    await world.clock.advance(5 * DAY)
    assert await velocity() == ((2, 1), (1, 0), 2)
    await world.clock.advance(20 * DAY)
    assert await velocity() == ((0, 3), (1, 0), 2)
    await world.do(lifecycle.archive, requests.ById(id="one"))
    assert await velocity() == ((0, 2), (0, 0), 2)
    await world.clock.advance(30 * DAY)
    assert await velocity() == ((0, 0), (0, 0), 2)
