"""Certificates that live on, with real processes: nobody is asked for a token."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import identity as identities
from control_plane.data import DataDir
from shared import tls
from shared.clock import SystemClock
from shared.ids import parse_id
from shared.moment import SECOND, to_rfc3339
from tests.support.fleet import Fleet, Host, run, running_fleet
from tests.support.waiting import eventually

DAY = 86_400 * SECOND


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def aged(fleet: Fleet, host: Host, *, days: int) -> identities.Identity:
    """The stopped host holds a certificate of the real authority, issued so many days ago."""
    identity = identities.load(host.state)
    assert identity is not None
    known = tls.identity(identity.certificate)
    assert known is not None
    assert known.agent_uid == parse_id(identity.uid)
    certificate = (
        DataDir(fleet.plane.data)
        .authority(SystemClock())
        .issue_agent(
            tls.new_signing_request(tls.key_from_pem(identity.key), host.name),
            project_id=known.project_id,
            agent_uid=known.agent_uid,
            now=SystemClock().now() - days * DAY,
        )
    )
    old = replace(
        identity,
        certificate=certificate,
        not_before=tls.not_before(certificate),
        not_after=tls.not_after(certificate),
    )
    identities.store(host.state, old)
    return old


async def status(host: Host) -> Any:
    """What `variant-agent status --json` says."""
    _, out, _ = await run("variant-agent", "status", "--state-dir", str(host.state), "--json")
    return json.loads(out)


async def written(fleet: Fleet, host: Host) -> None:
    """An experiment that starts now is on this host's files, and reported."""
    values = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": [
            {"name": "A", "key": "a", "content": "a", "weight": 50, "isControl": True},
            {"name": "B", "key": "b", "content": "b", "weight": 50},
        ],
        "participantIds": host.participants,
    }
    await fleet.plane.post("/v1/experiments", values)
    await fleet.plane.post("/v1/experiments/tone/start")
    assigned = await fleet.assigned("tone")

    async def applied() -> bool:
        assert {p: host.file(p).read_text() for p in host.participants} == assigned
        return set((await fleet.states("tone")).values()) == {"applied"}

    await eventually(applied, what="the offers are applied")


@pytest.mark.fault(39)
async def test_an_agent_whose_certificate_has_ended_recovers_by_itself(fleet: Fleet) -> None:
    """It starts with a certificate of yesterday, gets another where it enrolled, and takes up its work."""
    host = await fleet.add_host("one", "a1", "a2")
    await host.process.stop()
    old = await aged(fleet, host, days=31)
    await host.start()
    await written(fleet, host)
    new = identities.load(host.state)
    assert new is not None
    assert (new.uid, new.key) == (old.uid, old.key)
    assert new.not_after > SystemClock().now() + 29 * DAY
    (agent,) = (await fleet.plane.get("/v1/agents"))["entities"]
    assert agent["id"] == old.uid
    assert agent["certificate"]["daysLeft"] in (29, 30)
    assert (await status(host))["conditions"] == []


async def test_a_running_agent_renews_and_goes_on(fleet: Fleet) -> None:
    """Past two thirds of its certificate's life it has a fresh key and certificate, and the next offer is applied."""
    host = await fleet.add_host("one", "a1", "a2")
    await host.process.stop()
    old = await aged(fleet, host, days=25)
    await host.start()

    async def renewed() -> bool:
        # Asked, not read: the agent puts the new one in place meanwhile.
        shown = (await status(host))["identity"]["certificate"]["notAfterAt"]
        return bool(shown != to_rfc3339(old.not_after))

    await eventually(renewed, what="the certificate is renewed")
    new = identities.load(host.state)
    assert new is not None
    assert new.key != old.key
    assert new.not_after > old.not_after
    await written(fleet, host)

    async def back() -> bool:
        (agent,) = (await fleet.plane.get("/v1/agents"))["entities"]
        return (agent["id"], agent["presence"]) == (old.uid, "connected") and "left to renew" in host_log()

    def host_log() -> str:
        return host.process.log.read_text()

    await eventually(back, what="the agent is connected again")
    assert (await status(host))["conditions"] == []
