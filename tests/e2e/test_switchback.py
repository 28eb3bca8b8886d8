"""A switchback on a real host: its files follow the blocks, also over the death of the control plane."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shared.clock import SystemClock
from shared.moment import from_rfc3339
from tests.support.fleet import Fleet, running_fleet
from tests.support.waiting import eventually

BOTS = ("bot-1", "bot-2", "bot-3")
CONTENT = {"a": b"a\n", "b": b"b\n"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def every(fleet: Fleet, what: str) -> list[dict[str, Any]]:
    """All of the experiment's assignments or deployments."""
    page = await fleet.plane.get(f"/v1/experiments/turns/{what}?limit=100")
    assert not page["pagination"]["hasMore"]
    return list(page["entities"])


@pytest.mark.fault(3)
async def test_files_follow_the_blocks_over_a_kill_9(fleet: Fleet) -> None:
    """Blocks end while the control plane is dead: back, it brings what is current, once, and stops at the end."""
    host = await fleet.add_host("one", *BOTS)
    await fleet.plane.post(
        "/v1/experiments",
        {
            "name": "Turns",
            "type": "switchback",
            "targetFile": "soul.md",
            "switchback": {"blockDuration": "PT3S", "blocks": 4},
            "variants": [
                {"name": "A", "isControl": True, "content": "a\n"},
                {"name": "B", "content": "b\n"},
            ],
            "participantIds": list(BOTS),
        },
    )
    await fleet.plane.post("/v1/experiments/turns/start")
    turns = await every(fleet, "assignments")
    keys = {item["id"]: item["key"] for item in (await fleet.plane.get("/v1/experiments/turns"))["variants"]}
    drawn = {(item["participantId"], item["timeBlock"]): keys[item["variantId"]] for item in turns}
    assert len(drawn) == 4 * len(BOTS)

    def holds(block: int) -> bool:
        return all(host.file(bot).read_bytes() == CONTENT[drawn[bot, block]] for bot in BOTS)

    await eventually(lambda: holds(1), what="the first block's variants")
    await fleet.plane.process.kill()
    over = max(from_rfc3339(item["toAt"]) for item in turns if item["timeBlock"] == 1)
    await eventually(lambda: SystemClock().now() > over, what="the end of the first block")
    await fleet.plane.start()

    async def stopped() -> bool:
        return bool((await fleet.plane.get("/v1/experiments/turns"))["status"] == "stopped")

    await eventually(stopped, what="the end of the last block")
    deployments = await every(fleet, "deployments")
    newest = {
        bot: max(
            (item for item in deployments if item["participantId"] == bot),
            key=lambda item: int(item["revision"]),
        )
        for bot in BOTS
    }
    await eventually(
        lambda: all(host.file(bot).read_bytes() == CONTENT[keys[newest[bot]["variantId"]]] for bot in BOTS),
        what="the variants that were deployed last",
    )
    for bot in BOTS:
        mine = sorted(
            (item for item in deployments if item["participantId"] == bot),
            key=lambda item: int(item["revision"]),
        )
        assert [item["origin"] for item in mine] == ["start"] + ["switchback"] * (len(mine) - 1)
        # One for each change and none beside: a variant never follows itself.
        sequence = [keys[item["variantId"]] for item in mine]
        assert all(before != after for before, after in pairwise(sequence))
        spans = {
            (from_rfc3339(item["fromAt"]), from_rfc3339(item["toAt"])): keys[item["variantId"]]
            for item in turns
            if item["participantId"] == bot
        }
        for item in mine:
            made = from_rfc3339(item["createdAt"])
            [due] = [key for (begins, ends), key in spans.items() if begins <= made < ends]
            assert keys[item["variantId"]] == due
