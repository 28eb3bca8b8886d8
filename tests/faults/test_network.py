"""Faults of the network between agents and the control plane, each injected by a proxy in the way.

Both sides run whole, in this process, with their waits shortened; the network is TCP and TLS. After each fault the
one oracle of `tests.support.oracle` says whether everything is as it has to be.
"""

import asyncio
import itertools
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.arena import Arena, ArenaHost, arena
from tests.support.builders import make_hello
from tests.support.control_plane import in_background
from tests.support.network import DOWN, UP
from tests.support.quick import HEARTBEAT, LEASE
from tests.support.stream import Stream, session
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("quickly")

NOTICED = PATIENCE
"""What a fault is noticed within, seconds: the lease, and patience with a machine that is busy otherwise."""


async def away(arena: Arena, host: ArenaHost) -> None:
    """Both sides know that there is no session; reports are taken and orders given meanwhile."""
    await host.disconnected(within=NOTICED)
    await arena.shown(host, "lost", within=NOTICED)
    await arena.report(host, 5)
    await arena.order(host)
    await arena.order(host)
    assert "UNREACHABLE" in [found["code"] for found in (await host.status())["conditions"]]


async def back(arena: Arena, host: ArenaHost) -> None:
    """The session is there again, and with it everything that was meant to be."""
    await host.connected()
    await arena.shown(host, "connected")
    await arena.settled()
    arena.oracle.answered()


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param((UP, DOWN), id="both", marks=pytest.mark.fault(26)),
        pytest.param((UP,), id="up", marks=pytest.mark.fault(27)),
        pytest.param((DOWN,), id="down", marks=pytest.mark.fault(27)),
    ],
)
async def test_a_direction_without_a_network_is_noticed_by_both(
    tmp_path: Path, ways: tuple[str, ...]
) -> None:
    """Within the lease; files and reports are looked after meanwhile, and both go on by themselves."""
    async with arena(tmp_path) as system, system.hosts[0].running():
        [host] = system.hosts
        async with system.oracle.watching(system.operator):
            await system.begin()
            await system.oracle.converged()
            await system.report(host, 5)
            host.network.hold(*ways)
            await away(system, host)
            host.network.let_go()
            await back(system, host)


@pytest.mark.fault(28)
async def test_a_connection_open_at_one_end_only_is_noticed(tmp_path: Path) -> None:
    """The server's end is gone and nobody told the agent: its heartbeats find out."""
    async with arena(tmp_path) as system, system.hosts[0].running():
        [host] = system.hosts
        async with system.oracle.watching(system.operator):
            await system.begin()
            await system.oracle.converged()
            await system.report(host, 5)
            host.network.refusing = True
            host.network.half_open()
            await away(system, host)
            host.network.heal()
            await back(system, host)
        seen = system.oracle.seen[host.file("bot-1")]
        assert seen == [0, 1, 3], "an order that a newer one had replaced was applied"


@pytest.mark.fault(29)
async def test_a_slow_network_loses_nobody(tmp_path: Path) -> None:
    """Each packet is late, and few fit into a second: never shown lost, no session given up, all arrives."""
    async with arena(tmp_path, size=2_000) as system, system.hosts[0].running():
        [host] = system.hosts
        await host.connected()
        host.network.delay, host.network.rate = HEARTBEAT / 3, 100_000.0
        sessions = host.network.attempts
        async with system.oracle.watching(system.operator):
            await system.begin()
            for _ in range(3):
                await system.order(host)
                await system.report(host, 10)
                await asyncio.sleep(LEASE / 2)
                assert await system.presence(host) == "connected"
            await system.settled()
        assert host.network.attempts == sessions, "the session was given up"


@pytest.mark.fault(31)
@pytest.mark.parametrize("how", ["cut down", "cut up", "corrupt"])
async def test_a_stream_cut_or_changed_anywhere_delivers_whole_content_or_none(
    tmp_path: Path, how: str
) -> None:
    """At points spread over what an order and its report put on the wire; each time what is ordered arrives."""
    async with arena(tmp_path, size=30_000) as system, system.hosts[0].running():
        [host] = system.hosts
        async with system.oracle.watching():
            await system.begin()
            await system.oracle.converged()
            await host.connected()
            for after in (1, 40, 500, 5_000, 20_000, 29_000):
                if how == "corrupt":
                    host.network.corrupt_present(after)
                else:
                    host.network.cut_present(
                        how.removeprefix("cut "), after if "down" in how else after % 600
                    )
                await system.order(host)
                assert await system.oracle.report(host.socket, "bot-1", f"after-{after}")
                await system.settled()
                await host.connected()
        assert host.network.attempts > 3, "nothing was cut"


@pytest.mark.fault(31)
async def test_a_fetch_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    """A connection ends in the middle of a large content: taken up on another, whole, and not fetched anew."""
    size = 500_000  # the server sends 256 KiB in a piece
    async with arena(tmp_path, size=size, versions=2) as system, system.hosts[0].running():
        [host] = system.hosts
        async with system.oracle.watching():
            await system.begin()
            await system.oracle.converged()
            await host.connected()
            before = host.network.forwarded[DOWN]
            host.network.cut_present(DOWN, 400_000)
            await system.order(host)
            await system.settled()
        assert size < host.network.forwarded[DOWN] - before < 1.5 * size


@pytest.mark.fault(33)
@pytest.mark.parametrize("how", ["at once", "after the first bytes"])
async def test_connections_refused_at_once_are_not_hammered(tmp_path: Path, how: str) -> None:
    """Attempts are counted: as many as the back-off allows, far fewer than a loop would make; then it goes on."""
    async with arena(tmp_path) as system, system.hosts[0].running():
        [host] = system.hosts
        async with system.oracle.watching(system.operator):
            await system.begin()
            await system.oracle.converged()
            if how == "at once":
                host.network.refusing = True
            else:
                host.network.reset_after = 100
            host.network.reset()
            await host.disconnected()
            before = host.network.attempts
            await system.report(host, 5)
            await system.order(host)
            await asyncio.sleep(3)
            # Sessions: on average one in 0.25 s by the shortened back-off. The channel beneath adds its own, which
            # wait from 0.1 s on, doubling to 1 s.
            assert host.network.attempts - before <= 40
            await eventually(lambda: host.network.attempts > before)
            host.network.heal()
            await host.connected()
            await system.settled()


async def read_out(stream: Stream) -> None:
    """What waited on a stream that has ended was read, its status last."""
    with suppress(grpc.aio.AioRpcError):
        while await stream.call.read() is not grpc.aio.EOF:
            pass


@pytest.mark.fault(30)
async def test_a_peer_that_does_not_read_is_cut(tmp_path: Path) -> None:
    """It goes on sending heartbeats and reads nothing: the write deadline ends its session, others notice nothing."""
    async with arena(tmp_path, size=30_000) as system, system.hosts[0].running():
        [host] = system.hosts
        identity = await system.plane.enroll(await system.plane.token(name="deaf"), name="deaf")
        async with system.oracle.watching(system.operator), session(identity, make_hello("deaf")) as stream:
            await system.begin("deaf")
            await system.oracle.converged()

            async def beat() -> None:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it was cut meanwhile
                    while True:
                        await stream.send(heartbeat=pb.Heartbeat(sequence=1, sent_at_us=1))
                        await asyncio.sleep(HEARTBEAT / 2)

            async with in_background(beat()) as beating:
                async with asyncio.timeout(PATIENCE):
                    for number in itertools.count():
                        await system.deploy("deaf", 2 + number % 14)
                        answer = await system.plane.rest("GET", "/v1/participants/deaf")
                        if answer.body["presence"] == "lost":
                            break
                await system.order(host)
                await system.oracle.converged()
                beating.cancel()
            await read_out(stream)
            assert await stream.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "too slow" in await stream.call.details()
            await system.report(host, 5)
            await system.settled()
        system.oracle.answered()
