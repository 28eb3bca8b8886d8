"""What the types of experiments do to the files on a real host."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, Host, running_fleet
from tests.support.waiting import eventually

BOTS = ("bot-1", "bot-2")
PATHS = ("soul.md", "tools.md")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


def read(host: Host) -> dict[tuple[str, str], bytes | None]:
    """What each participant's files hold, None for one that is not there."""
    found = {}
    for bot in BOTS:
        for path in PATHS:
            file = host.file(bot, path)
            found[bot, path] = file.read_bytes() if file.exists() else None
    return found


async def test_two_files_change_together_and_come_back(fleet: Fleet) -> None:
    """One deployment brings both files of a combination; a restore brings back one and takes the other away."""
    host = await fleet.add_host("one", *BOTS)
    before = read(host)
    assert {before[bot, "tools.md"] for bot in BOTS} == {None}
    levels = [{"key": "plain", "content": "plain\n"}, {"key": "fancy", "content": "fancy\n"}]
    factors = [{"key": path.removesuffix(".md"), "targetFile": path, "levels": levels} for path in PATHS]
    mixed = [
        {"name": "A", "weight": 50, "isControl": True, "levels": {"soul": "plain", "tools": "fancy"}},
        {"name": "B", "weight": 50, "levels": {"soul": "fancy", "tools": "plain"}},
    ]
    values = {
        "name": "Mix",
        "type": "multivariate",
        "factors": factors,
        "variants": mixed,
        "participantIds": list(BOTS),
    }
    await fleet.plane.post("/v1/experiments", values)
    await fleet.plane.post("/v1/experiments/mix/start")
    assigned = await fleet.assigned("mix")
    contents = {"a": (b"plain\n", b"fancy\n"), "b": (b"fancy\n", b"plain\n")}
    wanted = {
        (bot, path): body for bot in BOTS for path, body in zip(PATHS, contents[assigned[bot]], strict=True)
    }
    await eventually(lambda: read(host) == wanted, what="both files of each combination")
    deployments = (await fleet.plane.get("/v1/experiments/mix/deployments"))["entities"]
    assert [sorted(file["path"] for file in item["files"]) for item in deployments] == [list(PATHS)] * 2
    await fleet.plane.post("/v1/experiments/mix/complete", {"then": "restore"})
    await eventually(lambda: read(host) == before, what="what was there before")
