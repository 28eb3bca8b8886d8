"""Faults of time: clocks that jump, machines that slept, hosts that were away for days.

The wall clock of one side is moved while both run; the monotonic one goes on, as on a real machine.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.clock import SystemClock
from shared.moment import SECOND, from_rfc3339
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.arena import Arena, arena
from tests.support.builders import World, make_hello, seconds
from tests.support.plane import Plane, running_plane
from tests.support.quick import HEARTBEAT
from tests.support.stream import session
from tests.support.waiting import eventually

DAY = 86_400.0


class SetClock(SystemClock):
    """The machine's clock, whose wall time somebody sets."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> int:
        return super().now() + round(self.offset * SECOND)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: SetClock) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "data", clock=clock) as running:
        yield running


async def assigned(system: Arena) -> list[tuple[str, str]]:
    """Who has been drawn into what."""
    page = await system.get("/v1/experiments/arena/assignments")
    return [(one["id"], one["stratum"]) for one in page["entities"]]


@pytest.mark.fault(43)
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("whose", ["agent", "control plane"])
@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day on", "a day back"])
async def test_a_clock_that_jumps_costs_no_session_and_no_report(
    tmp_path: Path, whose: str, jump: float
) -> None:
    """Nor does one that is set back once more every moment."""
    clock = SetClock()
    async with arena(tmp_path, clock=clock if whose == "control plane" else None) as system:
        [host] = system.hosts
        host.clock = clock if whose == "agent" else SystemClock()
        async with host.running(), system.oracle.watching(system.operator):
            await system.begin()
            await system.oracle.converged()
            await host.connected()
            attempts = host.network.attempts
            before = await assigned(system)
            clock.offset = jump
            await system.report(host, 3)
            await system.order(host)
            await system.oracle.converged()
            for _ in range(8):
                clock.offset -= 3_600.0
                await asyncio.sleep(HEARTBEAT)
            await system.shown(host, "connected")
            await system.report(host, 3)
            await system.order(host)
            await system.settled()
            assert await assigned(system) == before
        assert host.network.attempts == attempts
        system.oracle.answered()


@pytest.mark.fault(43)
async def test_who_left_while_the_clock_was_ahead_is_lost_once_it_is_right(
    plane: Plane, clock: SetClock
) -> None:
    """And not connected until the moment at which it seemed to leave."""
    async with session(await plane.enroll(await plane.token()), make_hello("p")) as stream:
        clock.offset = 365 * DAY
        await stream.send(heartbeat=pb.Heartbeat(sequence=1))
        await stream.receive("heartbeat_ack")
        await stream.send(goodbye=pb.Goodbye(reason="stop"))

        async def is_lost() -> bool:
            [one] = (await plane.rest("GET", "/v1/participants")).body["entities"]
            return bool(one["presence"] == "lost" and one["lastSeenAt"] > "2027")

        await eventually(is_lost)
    clock.offset = 0.0
    assert await is_lost()


@pytest.mark.fault(43)
async def test_after_the_end_of_32_bit_seconds_it_counts_as_before(world: World) -> None:
    """A clock set from 2026 to February 2038: the same experiment goes on, and another begins."""
    for key in ("before", "after"):
        uid = await world.agent(f"{key}-1", f"{key}-2")
        fields = {"key": key, "name": key}
        await world.start(await world.experiment(f"{key}-1", f"{key}-2", **fields))
        at = world.clock.now() + seconds(1)
        await world.report(uid, world.impression(f"{key}-1", at=at), world.conversion(f"{key}-1", at=at))
        await world.clock.advance(5)
        world.clock.jump(max(DAY, (from_rfc3339("2038-02-01T00:00:00Z") - world.clock.now()) / SECOND))
        late = world.clock.now() - seconds(1)
        await world.report(uid, world.impression(f"{key}-2", at=late), world.conversion(f"{key}-2", at=late))
        rows = await world.rows(
            "select sum(assigned_count) as counted from tally t join experiment e on e.phase_id = t.phase_id"
            f" where e.key = '{key}'"
        )
        assert rows[0]["counted"] == 4, key


@pytest.mark.fault(44)
@pytest.mark.usefixtures("quickly")
async def test_a_machine_that_slept_takes_the_newest_order_only(tmp_path: Path) -> None:
    """Eight hours by the wall clock, none by the monotonic one, and the control plane has forgotten the connection."""
    async with arena(tmp_path) as system:
        [host] = system.hosts
        host.clock = clock = SetClock()
        async with host.running(), system.oracle.watching(system.operator):
            await system.begin()
            await system.oracle.converged()
            await host.connected()
            host.network.hold()
            await system.shown(host, "lost")
            await system.order(host)
            await system.order(host)
            clock.offset = DAY / 3
            host.network.half_open()
            host.network.heal()
            await host.connected()
            await system.report(host, 3)
            await system.settled()
            await eventually(lambda: system.oracle.seen[host.file("bot-1")] == [0, 1, 3])


@pytest.mark.fault(60)
@pytest.mark.usefixtures("quickly")
async def test_hosts_that_were_away_for_days_take_the_present_order(tmp_path: Path) -> None:
    """A third of the fleet is off while the others take five orders in three days; it joins at the last."""
    clock = SetClock()
    async with arena(tmp_path, ("bot-1",), ("bot-2",), ("bot-3",), clock=clock) as system:
        one, two, away = system.hosts
        async with one.running(), two.running(), system.oracle.watching():
            async with away.running():
                await system.begin()
                await system.oracle.converged()
                await system.report(away, 3)
            await system.shown(away, "lost")
            for _ in range(5):
                for host in system.hosts:
                    await system.order(host)
                clock.offset += DAY * 0.6
                await asyncio.sleep(HEARTBEAT)
            async with away.running():
                await system.shown(away, "connected")
                await system.settled()
                await eventually(lambda: system.oracle.seen[away.file("bot-3")] == [0, 1, 6])
