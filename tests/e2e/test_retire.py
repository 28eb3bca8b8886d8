"""A host that dies in the middle of an experiment, and the one that takes its place, with real processes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, run, running_fleet
from tests.support.waiting import eventually


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def drafted(fleet: Fleet, key: str) -> None:
    """A running experiment on both participants."""
    variants = [
        {"name": "A", "key": "a", "content": f"{key} a\n", "weight": 50, "isControl": True},
        {"name": "B", "key": "b", "content": f"{key} b\n", "weight": 50},
    ]
    values = {"name": key, "key": key, "targetFile": "soul.md", "variants": variants}
    await fleet.plane.post("/v1/experiments", {**values, "participantIds": ["bot-1", "bot-2"]})
    await fleet.plane.post(f"/v1/experiments/{key}/start")


async def test_a_host_that_is_gone_blocks_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """A completed experiment waits for the dead host until it is retired; the next one runs on its replacement."""
    stays = await fleet.add_host("stays", "bot-1")
    dies = await fleet.add_host("dies", "bot-2")
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
    await drafted(fleet, "tone")
    await run("variantctl", "experiments", "wait", "tone", "--timeout", "30s", **home)
    await dies.process.kill()
    fleet.hosts.remove(dies)
    await run("variantctl", "experiments", "complete", "tone", "--then", "restore", **home)
    wait = ("variantctl", "experiments", "wait", "tone", "--timeout")
    code, _, said = await run(*wait, "1s", ok=False, **home)
    assert (code, "bot-2 is pending" in said) == (5, True), said

    await run("variantctl", "agents", "retire", "dies", **home)
    _, out, _ = await run(*wait, "20s", **home)
    assert "1 of 2 participants hold what they should; 1 withdrawn" in out
    assert stays.file("bot-1").read_bytes() == stays.baseline("bot-1")

    replacement = await fleet.add_host("replacement", "bot-2")

    async def bound() -> bool:
        shown = await fleet.plane.get("/v1/participants/bot-2")
        return (shown["presence"], shown["hostname"] is not None) == ("connected", True)

    await eventually(bound, what="the replacement serves bot-2")
    assert replacement.file("bot-2").read_bytes() == replacement.baseline("bot-2")
    await drafted(fleet, "next")
    await run("variantctl", "experiments", "wait", "next", "--timeout", "30s", **home)
    assert replacement.file("bot-2").read_text().startswith("next ")
