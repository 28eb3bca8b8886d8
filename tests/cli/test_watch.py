"""Live views: a line per change where there is no terminal, drawn in place where there is one."""

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

from shared import wire
from shared.model import Result
from tests.cli.conftest import Run
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import make_outcome, session
from tests.support.waiting import eventually

BIN = Path(sys.executable).parent


@asynccontextmanager
async def watching(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The view in a process of its own, ended if it does not end by itself."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "variantctl"), *words, "--interval", "100ms",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> list[str]:
    """Every line it printed, once it has ended without an error."""
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_each_change_is_one_json_line(plane: Plane, running: Run) -> None:
    """`watch --json` says what is and what becomes, once each, and ends with the experiment."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("bot-1", "bot-2")) as stream:
        for _ in range(2):
            offer = await stream.offer()
            await stream.send(outcome=wire.outcome_to_pb(make_outcome(offer, Result.APPLIED)))
        for _ in range(2):
            await stream.receive("outcome_ack")
        async with watching("watch", "soul-tone", "--json") as process:
            await plane.made("/v1/experiments/soul-tone/complete", {"then": "restore"})
            for _ in range(2):
                offer = await stream.offer()
                await stream.send(outcome=wire.outcome_to_pb(make_outcome(offer, Result.APPLIED)))
            for _ in range(2):
                await stream.receive("outcome_ack")
            lines = [json.loads(line) for line in await ended(process)]
    last = {line["participantId"]: line for line in lines if line["kind"] == "deployment"}
    assert {key: (line["action"], line["state"]) for key, line in last.items()} == {
        "bot-1": ("restore", "applied"),
        "bot-2": ("restore", "applied"),
    }
    assert [line["status"] for line in lines if line["kind"] == "results"][-1] == "completed"
    assert all(one != two for one, two in pairwise(lines))


async def test_results_are_watched_to_their_end(plane: Plane, running: Run) -> None:
    """`results --watch` prints a line per change and ends once the experiment is completed."""
    async with watching("results", "soul-tone", "--watch") as process:
        await plane.made("/v1/experiments/soul-tone/complete", {"then": "keep"})
        assert (await ended(process))[-1].startswith("soul-tone ")


async def test_a_terminal_is_drawn_in_place(plane: Plane, running: Run) -> None:
    """On a terminal the tables are there, and an interrupt ends the view without an error."""
    parent, child = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        str(BIN / "variantctl"), "watch", "--interval", "200ms",
        stdin=child, stdout=child, stderr=child, env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
        start_new_session=True,
    )  # fmt: skip
    os.close(child)
    os.set_blocking(parent, False)
    shown = bytearray()

    def drawn() -> bool:
        with suppress(BlockingIOError):
            shown.extend(os.read(parent, 65536))
        return b"PARTICIPANT" in shown and b"IMPRESSIONS" in shown and b"bot-2" in shown

    try:
        await eventually(drawn, within=20, what="the view is drawn")
    finally:
        process.send_signal(2)
        async with asyncio.timeout(10):
            code = await process.wait()
        os.close(parent)
    assert code == 0
    assert b"Traceback" not in shown
