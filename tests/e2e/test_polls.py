"""A host that polls instead of holding a stream, through the main job on real processes."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.fleet import LEASE_SECONDS
from tests.support.fleet import Fleet, Host, Ledger, run, running_fleet
from tests.support.waiting import eventually

CONTENT = {"a": b"As agreed.\n", "b": b"The other one.\n"}
BOTS = ("bot-1", "bot-2")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def start(fleet: Fleet) -> dict[str, str]:
    """A running experiment `tone`; variant key by participant."""
    variants = [
        {"name": key, "key": key, "content": body.decode(), "weight": 50, "isControl": key == "a"}
        for key, body in CONTENT.items()
    ]
    values = {"name": "Tone", "targetFile": "soul.md", "variants": variants, "participantIds": BOTS}
    await fleet.plane.post("/v1/experiments", {**values, "exposureCriteria": {"settleSeconds": 0}})
    await fleet.plane.post("/v1/experiments/tone/start")
    return await fleet.assigned("tone")


async def holds(fleet: Fleet, host: Host, wanted: dict[str, bytes]) -> None:
    """The files come to hold this, and the control plane to know it."""
    await eventually(lambda: {bot: host.file(bot).read_bytes() for bot in BOTS} == wanted, what="the files")

    async def reported() -> bool:
        return set((await fleet.states("tone")).values()) == {"applied"}

    await eventually(reported, what="every deployment is reported")


async def link(host: Host) -> Any:
    """What /status says of the link, with the conditions."""
    _, out, _ = await run("variant-agent", "status", "--state-dir", str(host.state), "--json")
    status = json.loads(out)
    return {**status["session"], "conditions": {item["code"] for item in status["conditions"]}}


async def the_agent(fleet: Fleet) -> Any:
    """The only agent."""
    (agent,) = (await fleet.plane.get("/v1/agents"))["entities"]
    return agent


@pytest.mark.fault(3)
async def test_the_main_job_in_polls(fleet: Fleet) -> None:
    """Start, files, reports counted, a control plane killed and back, pause, restore, and a ban at the end."""
    host = await fleet.add_host("one", *BOTS, transport="poll")
    assigned = await start(fleet)
    variants = {bot: CONTENT[key] for bot, key in assigned.items()}
    baselines = {bot: host.baseline(bot) for bot in BOTS}
    await holds(fleet, host, variants)
    assert (await the_agent(fleet))["presence"] == "connected"
    assert {(await link(host))[name] for name in ("state", "transport")} == {"connected", "poll"}

    ledger = Ledger()
    for turn in range(3):
        for bot in BOTS:
            await ledger.report(host, bot, convert=turn == 0)
    await fleet.plane.process.kill()
    for bot in BOTS:
        await ledger.report(host, bot, convert=True)

    async def unreachable() -> bool:
        found = await link(host)
        return found["state"] != "connected" and "UNREACHABLE" in found["conditions"]

    await eventually(unreachable, what="the host says that nobody is there")
    await fleet.plane.start()

    async def counted() -> bool:
        return await fleet.plane.results("tone", "done") == ledger.sums(assigned)

    await eventually(counted, what="results equal the ledger")

    async def connected() -> bool:
        found = await link(host)
        return bool(found["state"] == "connected") and "UNREACHABLE" not in found["conditions"]

    await eventually(connected)
    await fleet.plane.post("/v1/experiments/tone/pause", {"onPause": "revert"})
    await holds(fleet, host, baselines)
    await fleet.plane.post("/v1/experiments/tone/resume")
    await holds(fleet, host, variants)
    await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
    await holds(fleet, host, baselines)

    await fleet.plane.post(f"/v1/agents/{(await the_agent(fleet))['id']}:ban")

    async def refused() -> bool:
        return "REFUSED" in (await link(host))["conditions"]

    await eventually(refused, what="a banned host knows it")


async def test_a_host_that_stops_polling_says_goodbye(fleet: Fleet) -> None:
    """It is lost long before its lease ends, and an agent started over to a stream is the same agent."""
    host = await fleet.add_host("one", *BOTS, transport="poll")

    async def presence(wanted: str) -> bool:
        return bool((await the_agent(fleet))["presence"] == wanted)

    await eventually(lambda: presence("connected"))
    assert await host.process.stop() == 0
    await eventually(lambda: presence("lost"), within=LEASE_SECONDS / 2, what="Goodbye is believed")
    host.transport = "stream"
    host.write_config()
    await host.start()
    await eventually(lambda: presence("connected"))
    assert (await link(host))["transport"] == "stream"
