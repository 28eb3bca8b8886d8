"""`variantctl events tail`: what comes in, a line each."""

import asyncio
import json
import signal

import pytest

from tests.cli.conftest import Run
from tests.cli.test_watch import ended, watching
from tests.support.plane import Plane
from tests.support.waiting import PATIENCE


async def reported(plane: Plane, *keys: str, **more: object) -> None:
    """Impressions with these ids."""
    events = [{"kind": "impression", "participantId": "bot-1", "eventId": key, **more} for key in keys]
    await plane.made("/v1/events:batch", {"events": events})


async def test_what_is_there_already(plane: Plane, running: Run) -> None:
    """The last ones, the oldest first, a line each; filters and --json hold; an experiment nobody has is told."""
    assert (await running("events", "tail", "--no-follow")).out == ""
    await reported(plane, "a", "b", "c", subject="Jane\n")
    lines = (await running("events", "tail", "--last", "2", "--no-follow")).out.splitlines()
    assert len(lines) == 2
    assert all("  bot-1  impression  subject=Jane�  " in line for line in lines), lines
    said = await running("events", "tail", "--last", "2", "--no-follow", "--json", "-e", "soul-tone")
    assert [json.loads(line)["eventId"] for line in said.out.splitlines()] == ["b", "c"]
    assert (await running("events", "tail", "--no-follow", "--kind", "conversion")).out == ""
    assert (await running("events", "tail", "--no-follow", "-e", "nothing")).code == 1


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
async def test_what_comes_in_is_followed_until_ctrl_c(plane: Plane, running: Run, told: int) -> None:
    """Each event once, as it comes, filtered ones not; the interruption, by a person or a manager, is no error."""
    await reported(plane, "before")
    words = ("events", "tail", "--last", "1", "--participant", "bot-1", "--json")
    async with watching(*words) as process:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert json.loads(await process.stdout.readline())["eventId"] == "before"
            await plane.made(
                "/v1/events:batch",
                {"events": [{"kind": "impression", "participantId": "bot-2", "eventId": "another"}]},
            )
            await reported(plane, "late", occurredAt="2026-01-31T12:00:00Z")
            assert json.loads(await process.stdout.readline())["eventId"] == "late"
            await reported(plane, "next", "last")
            for wanted in ("next", "last"):
                assert json.loads(await process.stdout.readline())["eventId"] == wanted
        process.send_signal(told)
        assert await ended(process) == []
