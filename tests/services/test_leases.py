"""What is written of sessions while they last: as much as operators are told, and no more."""

import asyncio
from dataclasses import dataclass
from functools import partial

import pytest

from control_plane.api.leases import LOOK_SECONDS, WRITTEN_SECONDS, Leases
from control_plane.domain.fleet import LEASE_SECONDS, Presence, Telemetry
from control_plane.services.sessions import LEASE
from control_plane.store.store import Store
from shared.model import SpoolState
from tests.support.builders import World
from tests.support.waiting import eventually


@dataclass(eq=False)
class Live:
    """A session, as far as presence goes."""

    id: bytes
    agent_uid: bytes
    last_seen: int
    clock_skew: int | None = None
    observation: Telemetry | None = None

    def take_observation(self) -> Telemetry | None:
        """What was heard last, once."""
        taken, self.observation = self.observation, None
        return taken


async def test_a_session_that_says_nothing_new_is_written_just_often_enough(world: World) -> None:
    """It stays connected for as long as its server says so, at a third of what a lease lasts; then it is lost."""
    uid, leases = await world.agent("p"), Leases(clock=world.clock)
    opened = await world.session(uid, "p")
    live = Live(opened.id, uid, world.clock.now())
    ends = []
    for _ in range(13):
        await leases.write(world.database, [live])
        agent = await world.ask(lambda store: store.fleet.agent(uid))
        assert agent.presence(world.clock.now()) is Presence.CONNECTED
        assert agent.last_seen_at == live.last_seen
        ends.append(agent.lease_until)
        await world.clock.advance(WRITTEN_SECONDS / 2)
    assert len(set(ends)) == 7
    await world.clock.advance(LEASE_SECONDS)
    assert agent.presence(world.clock.now()) is Presence.LOST


async def test_what_is_heard_is_written_at_once(world: World) -> None:
    """Whoever was heard since is written with what he observed, however new his lease is; nobody else is."""
    leases = Leases(clock=world.clock)
    first, second = await world.agent("p"), await world.agent("q")
    lives = [
        Live((await world.session(uid, name)).id, uid, world.clock.now())
        for uid, name in ((first, "p"), (second, "q"))
    ]
    await leases.write(world.database, lives)
    before = {uid: await world.ask(lambda store, uid=uid: store.fleet.agent(uid)) for uid in (first, second)}
    await world.clock.advance(1)
    lives[0].last_seen = world.clock.now()
    lives[0].observation = Telemetry(spool=SpoolState(epoch=bytes(16), depth=7))
    await leases.write(world.database, lives)
    heard, silent = [
        await world.ask(lambda store, uid=uid: store.fleet.agent(uid)) for uid in (first, second)
    ]
    assert (heard.last_seen_at, heard.spool["depth"]) == (lives[0].last_seen, 7)
    assert silent == before[second]


async def test_many_are_looked_at_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once in a while, and none of them with all the others."""
    monkeypatch.setattr("control_plane.api.leases.AT_ONCE", 2)
    lives = []
    for name in "pqrst":
        uid = await world.agent(name)
        lives.append(Live((await world.session(uid, name)).id, uid, world.clock.now()))

    begun = world.clock.now()

    async def are_written(there: list[int]) -> bool:
        agents = [await world.ask(lambda store, uid=one.agent_uid: store.fleet.agent(uid)) for one in lives]
        return [at for at, agent in enumerate(agents) if agent.lease_until > begun + LEASE] == there

    keeping = asyncio.create_task(Leases(clock=world.clock).keep(world.database, lambda: lives))
    try:
        for part, there in ((1, [0, 3]), (1 / 3, [0, 1, 3, 4]), (1 / 3, [0, 1, 2, 3, 4])):
            await world.clock.advance(part * LOOK_SECONDS)
            await eventually(partial(are_written, there))
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_an_older_session_of_an_agent_is_not_written(world: World) -> None:
    """Whom a newer session took over does not keep it alive."""
    uid, leases = await world.agent("p"), Leases(clock=world.clock)
    older = Live((await world.session(uid, "p")).id, uid, world.clock.now())
    await world.session(uid, "p", session_epoch=2)
    before = await world.ask(lambda store: store.fleet.agent(uid))
    await world.clock.advance(1)
    await leases.write(world.database, [older])
    assert await world.ask(lambda store: store.fleet.agent(uid)) == before


async def test_what_could_not_be_written_is_due_the_next_time(world: World) -> None:
    """A write that the database refuses ends nothing, and is not taken for one that was made."""
    uid, leases = await world.agent("p"), Leases(clock=world.clock)
    live = Live((await world.session(uid, "p")).id, uid, world.clock.now() + 1)
    refused = Live(world.new_id(), uid, 1 << 70)
    await leases.write(world.database, [live, refused])
    agent = await world.ask(lambda store: store.fleet.agent(uid))
    assert agent.last_seen_at != live.last_seen
    await leases.write(world.database, [live])
    agent = await world.ask(lambda store: store.fleet.agent(uid))
    assert agent.last_seen_at == live.last_seen


async def test_a_session_that_ended_between_two_parts_stays_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who left after the list was made and before its part came is lost, not connected for a lease more."""
    monkeypatch.setattr("control_plane.api.leases.AT_ONCE", 1)
    lives = []
    for name in "pq":
        uid = await world.agent(name)
        lives.append(Live((await world.session(uid, name)).id, uid, world.clock.now()))
    first, second = lives

    async def lease(one: Live) -> int:
        found = await world.ask(lambda store: store.fleet.agent(one.agent_uid))
        assert isinstance(found.lease_until, int)
        return found.lease_until

    begun = await lease(first)
    keeping = asyncio.create_task(Leases(clock=world.clock).keep(world.database, lambda: list(lives)))
    try:
        await world.clock.advance(LOOK_SECONDS)

        async def first_is_written() -> bool:
            return await lease(first) > begun

        await eventually(first_is_written, what="the first part")
        lives.remove(second)
        now = world.clock.now()
        await world.database.write(
            lambda tx: Store(tx).fleet.end_session(second.agent_uid, second.id, now=now)
        )
        before = await lease(first)

        async def first_is_written_again() -> bool:
            await world.clock.advance(LOOK_SECONDS / 2)
            return await lease(first) > before

        await eventually(first_is_written_again, what="the round after that")
        assert await lease(second) == 0
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
