"""Of several replicas one leads, and what one writes that leads no more is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from control_plane.api.reads import Reads
from control_plane.api.witness import witness
from control_plane.services.due import Timers
from control_plane.services.replicas import (
    ABANDONED_SECONDS,
    BEAT_SECONDS,
    FORGOTTEN_SECONDS,
    LEASE_SECONDS,
    Fenced,
    Replica,
)
from control_plane.services.work import Joining, Services
from control_plane.store.access import Incarnation
from control_plane.store.questions import Asked
from control_plane.store.store import Store
from shared.errors import FailedPrecondition
from shared.moment import SECOND, to_rfc3339
from tests.support.builders import World, make_world
from tests.support.clock import FakeClock
from tests.support.waiting import eventually


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
        yield made


async def replica(world: World, *, clock: FakeClock | None = None) -> Replica:
    """One more process over the world's database."""
    known = await world.ask(lambda store: store.access.incarnation())
    return Replica(
        world.database,
        clock=clock or world.clock,
        replica_id=world.new_id(),
        name="replica",
        incarnation=known.id,
    )


async def live(world: World, seconds: float, *replicas: Replica) -> None:
    """So much time goes by, in which these give their signs of life."""
    for _ in range(round(seconds / BEAT_SECONDS)):
        await world.clock.advance(BEAT_SECONDS)
        for one in replicas:
            await one.beat()


async def test_one_leads_and_the_next_one_only_once_it_is_gone(world: World) -> None:
    """Whoever comes first leads as long as it lives; who leaves is followed at once, who is silent after the lease."""
    a, b, c = [await replica(world) for _ in range(3)]
    await live(world, 3 * LEASE_SECONDS, a, b, c)
    assert [one.leads for one in (a, b, c)] == [True, False, False]
    assert [one.others for one in (a, b, c)] == [2, 2, 2]
    await a.leave()
    await b.beat()
    assert (a.leads, b.leads) == (False, True)
    await live(world, LEASE_SECONDS - 2 * BEAT_SECONDS, c)
    assert not c.leads
    await live(world, 2 * LEASE_SECONDS, c)
    assert (c.leads, c.others, b.cut_off, b.leads) == (True, 0, True, False)
    await b.beat()
    assert not b.leads
    tokens = await world.rows("select token from leader")
    assert tokens == [{"token": 3}]


async def test_clocks_that_disagree_make_no_second_leader(world: World) -> None:
    """A replica whose wall clock is a day ahead takes nobody for gone who is not."""
    ahead = FakeClock(now=world.clock.now() + 86_400 * SECOND)
    a, b = await replica(world), await replica(world, clock=ahead)
    for _ in range(10):
        await a.beat()
        await b.beat()
        await world.clock.advance(BEAT_SECONDS)
        await ahead.advance(BEAT_SECONDS)
    assert (a.leads, b.leads) == (True, False)


async def test_clocks_that_disagree_forget_nobody_and_no_question(world: World) -> None:
    """What counts is for how long nothing changed, by one's own clock: a wall clock a day ahead deletes nothing."""
    ahead = FakeClock(now=world.clock.now() + 2 * 86_400 * SECOND)
    a, b = await replica(world), await replica(world, clock=ahead)
    gone = await replica(world)
    await gone.beat()
    asked = Asked(id=bytes(16), agent_uid=b"u" * 16, participant="p", path="soul.md", seal_for=b"k")
    await world.database.write(lambda tx: Store(tx).questions.ask(asked, now=world.clock.now()))

    async def lives(seconds: float) -> None:
        for _ in range(round(seconds / BEAT_SECONDS)):
            await a.beat()
            await b.beat()
            await world.clock.advance(BEAT_SECONDS)
            await ahead.advance(BEAT_SECONDS)

    await lives(2 * BEAT_SECONDS)
    assert [one.others for one in (a, b)] == [2, 2]
    assert await world.ask(lambda store: store.questions.open()) == [asked]
    await lives(ABANDONED_SECONDS + 2 * BEAT_SECONDS)
    assert await world.ask(lambda store: store.questions.open()) == []
    assert [one.others for one in (a, b)] == [1, 1]
    assert gone.id in await world.ask(lambda store: store.replicas.beats())
    await world.clock.advance(FORGOTTEN_SECONDS)
    await a.beat()
    assert set(await world.ask(lambda store: store.replicas.beats())) == {a.id, b.id}, "b has beaten since"


async def test_a_database_that_became_another_ends_the_process(world: World) -> None:
    """What sessions were opened under is not true any more."""
    a = await replica(world)
    await a.beat()
    another = Incarnation(id=b"another incarnat")
    await world.database.write(lambda tx: Store(tx).access.set_incarnation(another))
    with pytest.raises(FailedPrecondition, match="another incarnation"):
        await a.beat()


@pytest.mark.fault(59)
async def test_what_a_former_leader_writes_is_refused(world: World) -> None:
    """It looked, stood still past its lease, and goes on: its write changes nothing, and its successor's is the one."""
    a, b = await replica(world), await replica(world)
    await live(world, BEAT_SECONDS, a, b)
    held = a.fence()
    assert held is not None
    await world.agent("p", "q")
    start = to_rfc3339(world.clock.now() + 60 * SECOND)
    await world.experiment("p", "q", schedule={"startAt": start})
    await live(world, 2 * LEASE_SECONDS, b)
    assert b.leads
    with pytest.raises(Fenced):
        await world.database.write(lambda tx: held(Store(tx)))
    await live(world, 60, b)

    async def refused() -> bool:
        await world.clock.advance(1)
        return a.refused > 0

    async def runs() -> bool:
        await world.clock.advance(1)
        return (await world.rows("select status from experiment"))[0]["status"] == "running"

    async with timers(world, a):
        await eventually(refused, what="the former leader tries")
        assert not await runs()
        async with timers(world, b):
            await eventually(runs, what="the successor starts it")
    assert (a.refused, b.refused) == (1, 0)
    done = await world.rows("select count(*) as n from audit where operation = 'Timer.start'")
    assert done == [{"n": 1}]


@asynccontextmanager
async def timers(world: World, lead: Replica) -> AsyncIterator[None]:
    """The replica's runner runs."""
    services = Services(
        database=world.database,
        clock=world.clock,
        new_id=world.new_id,
        wake=lambda _: None,
        joining=Joining(addresses=(), ca_certificate=b""),
        hosts=Reads(new_id=world.new_id, reach=lambda _: False),
        witness=witness,
    )
    task = asyncio.create_task(Timers(services, world.clock, lead).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
