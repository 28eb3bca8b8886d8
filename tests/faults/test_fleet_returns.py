"""The whole fleet comes back at once, after the control plane was killed: it is let in, and operators do not notice.

Every host is a connection and a session of its own, over TLS with its own certificate, driven by hand: a process for
each would measure the machine. FAULTS_FLEET says how many there are.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from shared import wire
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.builders import make_hello
from tests.support.fleet import Fleet, running_fleet
from tests.support.plane import Identity, Plane
from tests.support.schedule import size
from tests.support.waiting import eventually

HOSTS = size("FLEET", small=60, large=1_000)
BACK_SECONDS = 30.0 + HOSTS / 20
"""Within so long everybody has a session again: three times what one core needs for the handshakes, and jitter."""


@dataclass
class Herd:
    """Hosts that keep a session open, and open another as soon as they lose it, within half a second."""

    open: set[int] = field(default_factory=set)
    busy: int = 0
    attempts: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(32))

    async def live(self, number: int, identity: Identity) -> None:
        """One host, for ever."""
        hello = make_hello(f"bot-{number}", boot_id=f"boot-{number}")
        for epoch in range(1, 10_000):
            self.attempts += 1
            async with identity.channel() as channel:
                stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
                call = stub.Sync()
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(
                        pb.SyncRequest(hello=wire.hello_to_pb(replace(hello, session_epoch=epoch)))
                    )
                    while (message := await call.read()) is not grpc.aio.EOF:
                        if message.HasField("welcome"):
                            self.open.add(number)
                        self.busy += message.HasField("busy")
            self.open.discard(number)
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))


@asynccontextmanager
async def herd_of(fleet: Fleet) -> AsyncIterator[Herd]:
    """So many enrolled hosts, which live until the end."""
    ca = (fleet.plane.data / "ca" / "ca.pem").read_bytes()
    async with grpc.aio.secure_channel(
        fleet.plane.addresses["operator"], grpc.ssl_channel_credentials(ca)
    ) as operator:
        plane = Plane(
            data=fleet.plane.data,
            addresses=fleet.plane.addresses,
            key=(fleet.plane.data / "operator.api-key").read_text().strip(),
            http=fleet.plane.http,
            operator=operator,
        )
        token = await plane.token(name="herd", maxUses=HOSTS)
        identities = []
        while len(identities) < HOSTS:
            try:
                identities.append(await plane.enroll(token, name=f"host-{len(identities)}"))
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # the rate limit of enrollment
                await asyncio.sleep(0.2)
    herd = Herd()
    tasks = [asyncio.create_task(herd.live(number, one)) for number, one in enumerate(identities)]
    try:
        yield herd
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.fault(32)
@pytest.mark.timeout(size("TIMEOUT", small=240, large=7_200))
async def test_the_fleet_returns_and_operators_do_not_notice(tmp_path: Path) -> None:
    """Everybody has a session again in time; each question of an operator meanwhile is answered, none slowly."""
    async with running_fleet(tmp_path) as fleet, herd_of(fleet) as herd:
        await eventually(lambda: len(herd.open) == HOSTS, within=BACK_SECONDS)
        await fleet.plane.process.kill()
        await eventually(lambda: not herd.open)
        before = herd.attempts
        await fleet.plane.start()
        started, waits = time.monotonic(), []
        while len(herd.open) < HOSTS:
            asked = time.monotonic()
            status, _ = await fleet.plane.rest("GET", "/v1/experiments?limit=5")
            assert status == 200
            waits.append(time.monotonic() - asked)
            assert time.monotonic() - started < BACK_SECONDS, f"{len(herd.open)} of {HOSTS} are back"
            await asyncio.sleep(0.02)
        assert max(waits, default=0.0) < 5.0
        assert herd.attempts - before < 60 * HOSTS

        async def all_shown() -> bool:
            found, cursor = 0, ""
            while True:
                page = await fleet.plane.get(f"/v1/participants?limit=100&presence=connected&cursor={cursor}")
                found += len(page["entities"])
                cursor = page["pagination"]["nextCursor"]
                if cursor is None:
                    return found == HOSTS

        await eventually(all_shown, what="everybody is shown connected")
