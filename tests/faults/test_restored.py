"""Old copies come back: a host's state directory, a control plane's data. Real processes, judged by the oracle."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.arena import Trial, content, trial_on
from tests.support.fleet import Fleet, Host, run, running_fleet
from tests.support.local import call
from tests.support.waiting import eventually


@asynccontextmanager
async def fleet_of_one(tmp_path: Path) -> AsyncIterator[tuple[Fleet, Host, Trial]]:
    """A control plane, a host that holds the first version, and their trial."""
    async with running_fleet(tmp_path, quick=True) as fleet:
        host = await fleet.add_host("one", "bot-1")
        trial = trial_on(fleet)
        async with trial.oracle.watching():
            await trial.begin()
            await trial.oracle.converged()
            await trial.report(host, 5)
            yield fleet, host, trial


async def found(fleet: Fleet) -> list[str]:
    """What the control plane says is wrong with the one agent."""
    (agent,) = (await fleet.plane.get("/v1/agents"))["entities"]
    return [condition["code"] for condition in agent["conditions"]]


async def session_of(host: Host) -> Any:
    """How the agent stands to its control plane."""
    return (await call(Path(host.socket), "/status")).body["session"]


@pytest.mark.fault(36)
async def test_a_host_that_comes_back_from_an_old_image(tmp_path: Path) -> None:
    """Its state of two sessions ago, with what was reported since gone from it: told, and nothing counts twice."""
    async with fleet_of_one(tmp_path) as (fleet, host, trial):
        await trial.settled()
        await host.process.stop()
        shutil.copytree(host.state, tmp_path / "image")
        await host.start()
        await trial.order(host)
        await trial.report(host, 5)
        await trial.settled()
        await host.process.stop()
        shutil.rmtree(host.state)
        shutil.copytree(tmp_path / "image", host.state)
        await host.start()
        await trial.report(host, 5)
        await trial.settled()
        assert await found(fleet) == ["SESSION_REGRESSED"]
        await trial.order(host)
        await trial.settled()
        assert trial.oracle.seen[host.file("bot-1")] == [0, 1, 2, 3]


@pytest.mark.fault(37)
async def test_a_database_that_is_put_back_without_a_word(tmp_path: Path) -> None:
    """No offer to the host that knows better, until somebody says so; then what it wants is newer than anything."""
    async with fleet_of_one(tmp_path) as (fleet, host, trial):
        await trial.settled()
        await fleet.plane.process.stop()
        shutil.copytree(fleet.plane.data, tmp_path / "old")
        await fleet.plane.start()
        for _ in range(2):
            await trial.order(host)
            await trial.oracle.converged()
        await trial.report(host, 5)
        await trial.settled()
        await fleet.plane.process.stop()
        shutil.rmtree(fleet.plane.data)
        shutil.copytree(tmp_path / "old", fleet.plane.data)
        await fleet.plane.start()

        async def told() -> bool:
            return await found(fleet) == ["HOST_AHEAD"]

        await eventually(told, what="the host is found to be ahead")
        await trial.order(host)
        await trial.report(host, 5)
        assert await trial.presence(host) == "connected"
        assert host.file("bot-1").read_bytes() == content(3), "it keeps what it has"
        before = (await session_of(host))["incarnation"]
        await fleet.plane.process.stop()
        await run("variantd", "admin", "new-incarnation", "--data-dir", str(fleet.plane.data))
        await fleet.plane.start()
        await trial.settled()
        assert (await session_of(host))["incarnation"] != before
        assert await found(fleet) == []
        assert trial.oracle.seen[host.file("bot-1")] == [0, 1, 2, 3, 4]
