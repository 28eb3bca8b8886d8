"""A session that has lasted is followed by another before it ends, and nobody notices."""

import asyncio
from pathlib import Path

import pytest

from agent import identity as identities
from agent.enrollment import enroll
from tests.support.builders import make_hello
from tests.support.control_plane import in_background
from tests.support.link import Host
from tests.support.plane import Plane
from tests.support.stream import session
from tests.support.waiting import eventually

VARIANTS = [
    {"name": "Friendly", "content": "You are friendly.\n", "weight": 50, "isControl": True},
    {"name": "Concise", "content": "You are concise.\n", "weight": 50},
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions grow old within a moment."""
    monkeypatch.setattr("control_plane.api.admission.SESSION_SECONDS", 0.2)
    monkeypatch.setattr("control_plane.api.sessions.TURN_WINDOW_MS", 20)
    monkeypatch.setattr("control_plane.api.spacing.HEARTBEAT_SECONDS", 0.5)


@pytest.mark.fault(34)
async def test_an_old_session_is_followed_by_the_next_before_it_ends(
    tmp_path: Path, plane: Plane, short: None
) -> None:
    """Turn after turn the host is never away, is taken for no copy of itself, and what is offered meanwhile arrives."""
    with identities.hold(tmp_path / "state"):
        await enroll(await plane.token(), tmp_path / "state", name="host-1")
    host = Host(tmp_path)
    await host.reconciler.start()
    away = 0

    async def watch() -> None:
        nonlocal away
        while True:
            away += not (host.link.connected and host.link.trusted)
            await asyncio.sleep(0.001)  # a moment's absence is told by nobody: it has to be looked for

    def turns() -> int:
        return int(str(host.link.status()["sessionEpoch"]))

    async with in_background(host.reconciler.run()), in_background(host.link.run()):
        await eventually(lambda: host.link.trusted)
        async with in_background(watch()):
            await eventually(lambda: turns() >= 3)
            draft = {"name": "Tone", "key": "tone", "targetFile": "SOUL.md", "variants": VARIANTS}
            await plane.made("/v1/experiments", {**draft, "participantIds": ["bot-1"]})
            await plane.made("/v1/experiments/tone/start", None)
            contents = [variant["content"] for variant in VARIANTS]
            await eventually(lambda: (host.root / "SOUL.md").read_text() in contents)
            later = turns() + 2
            await eventually(lambda: turns() >= later)
            [agent] = (await plane.rest("GET", "/v1/agents")).body["entities"]
            assert (agent["presence"], agent["conditions"]) == ("connected", [])
        assert away == 0
        assert host.link.status()["attempt"] == 0
        [deployment] = (await plane.rest("GET", "/v1/experiments/tone/deployments")).body["entities"]
        assert deployment["state"] == "applied"


async def test_an_old_session_is_asked_once(plane: Plane, short: None) -> None:
    """An agent that stays is not asked again, and keeps its session."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        drain = await stream.receive("drain")
        assert (drain.keep_old, drain.window_ms) == (True, 20)
        await stream.send(heartbeat={"sequence": 1})
        assert (await stream.receive("heartbeat_ack")).sequence == 1
