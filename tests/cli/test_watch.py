"""Live views: a line per change where there is no terminal, drawn in place where there is one."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from shared import wire
from shared.model import Result
from tests.cli.conftest import Run
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import make_outcome, session
from tests.support.terminal import Screen, Terminal, on_a_terminal
from tests.support.waiting import PATIENCE, eventually

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
    async with asyncio.timeout(PATIENCE):
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


async def test_whoever_reads_the_lines_may_end_them(plane: Plane, running: Run) -> None:
    """SIGTERM, as a manager of processes sends it, is no error where no terminal is either."""
    async with watching("watch", "soul-tone", "--json") as process:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert all(map(json.loads, await ended(process)))


async def test_results_are_watched_to_their_end(plane: Plane, running: Run) -> None:
    """`results --watch` prints a line per change and ends once the experiment is completed."""
    async with watching("results", "soul-tone", "--watch") as process:
        await plane.made("/v1/experiments/soul-tone/complete", {"then": "keep"})
        assert (await ended(process))[-1].startswith("soul-tone ")


def watch(*words: str, width: int, height: int, **env: str) -> AbstractAsyncContextManager[Terminal]:
    """`variantctl watch` on a terminal of that size."""
    command = (str(BIN / "variantctl"), "watch", *words, "--interval", "200ms")
    return on_a_terminal(*command, width=width, height=height, env=env)


def complete(screen: Screen) -> bool:
    """Every section is there."""
    return all(word in screen.text for word in ("hosts", "FILE", "soul-tone", "EVENTS", "bot-2"))


def status(terminal: Terminal, name: str) -> str:
    """What the kernel says of the program."""
    told = Path(f"/proc/{terminal.process.pid}/status").read_text()
    return told.partition(f"{name}:")[2].partition("\n")[0].strip()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
async def test_a_terminal_is_filled_and_drawn_in_place(
    plane: Plane, running: Run, width: int, height: int
) -> None:
    """Nothing runs over an edge, every picture is drawn onto the one before, and Ctrl-C leaves the last one."""
    async with watch(width=width, height=height) as terminal:
        await terminal.until(complete, what="the view is drawn")
        screen = await terminal.until(lambda screen: screen.drawn > 4, what="it is drawn again")
        assert screen.alternate
        assert (screen.wrapped, screen.scrolled) == (0, 0)
        assert not screen.cursor
        terminal.type("\x03")
        assert await terminal.ended() == 0
        assert not screen.alternate
        assert screen.cursor
        assert screen.wrapped == 0
        assert "bot-2" in screen.text
    assert "Traceback" not in terminal.written


async def test_told_twice_to_end_it_gives_the_terminal_back(plane: Plane, running: Run) -> None:
    """Ctrl-C and SIGTERM at one moment, as from a terminal and a parent: the second does not interrupt the end."""
    async with watch(width=80, height=24) as terminal:
        await terminal.until(complete, what="the view is drawn")
        terminal.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: status(terminal, "State").startswith("T"), what="it stands still")
        terminal.type("\x03")
        await eventually(
            lambda: int(status(terminal, "ShdPnd"), 16) & 1 << signal.SIGINT - 1, what="Ctrl-C is there"
        )
        terminal.process.send_signal(signal.SIGTERM)
        terminal.process.send_signal(signal.SIGCONT)
        assert await terminal.ended() == 0
        assert not terminal.screen.alternate
        assert terminal.screen.cursor
    assert "Traceback" not in terminal.written


async def test_a_terminal_that_changes_its_size_is_drawn_for_the_new_one(plane: Plane, running: Run) -> None:
    """At once, not with the next answer, and again without a cell over an edge."""
    async with on_a_terminal(
        str(BIN / "variantctl"), "watch", "--interval", "1h", width=120, height=40
    ) as terminal:
        # Whole, each time: the rest of a picture that comes after the change runs over the new edge.
        screen = await terminal.until(
            lambda screen: complete(screen) and screen.whole, what="the view is drawn"
        )
        for width, height in ((60, 16), (30, 6), (100, 30)):
            before = screen.drawn
            terminal.resize(width, height)
            screen = await terminal.until(
                lambda screen: screen.drawn > before and screen.whole,  # noqa: B023
                what="drawn again",
            )
            assert (screen.wrapped, screen.scrolled) == (0, 0), screen.text
            assert "1 started" in screen.text
        assert complete(screen), screen.text
        terminal.process.send_signal(signal.SIGTERM)
        assert await terminal.ended() == 0
        assert not terminal.screen.alternate


async def test_what_happens_meanwhile_is_listed(plane: Plane, running: Run) -> None:
    """A host that connects, applies and is gone: each is an event, and the host's row says how it is."""
    identity = await plane.enroll(await plane.token(), name="host-1")
    async with watch("soul-tone", width=100, height=30) as terminal:
        await terminal.until(complete, what="the view is drawn")
        async with session(identity, make_hello("bot-1", "bot-2")) as stream:
            offers = [await stream.offer() for _ in range(2)]
            for offer in offers:
                await stream.send(outcome=wire.outcome_to_pb(make_outcome(offer, Result.APPLIED)))
            for _ in range(2):
                await stream.receive("outcome_ack")
            await terminal.until(
                lambda screen: "bot-1, bot-2 soul-tone: write applied" in screen.text,
                what="what was applied is an event",
            )
            screen = await terminal.until(
                lambda screen: "● host-1 connected" in screen.text, what="the host is there"
            )
            assert screen.text.count("✓ ") == 2
        await terminal.until(
            lambda screen: "host-1: connected → lost" in screen.text, what="the host that is gone is an event"
        )
        assert "○ host-1 lost" in terminal.screen.text
        assert (terminal.screen.wrapped, terminal.screen.scrolled) == (0, 0)


async def test_a_terminal_without_unicode_gets_ascii(plane: Plane, running: Run) -> None:
    """Marks and bars have characters of their own there; nothing becomes a question mark."""
    async with watch(width=80, height=24, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") as terminal:
        screen = await terminal.until(complete, what="the view is drawn")
        assert terminal.written.isascii()
        assert "?" not in screen.text


async def test_an_unknown_experiment_leaves_the_terminal_as_it_was(plane: Plane, ctl: Run) -> None:
    """The error is there to read, on the screen of before."""
    async with watch("nothing", width=80, height=24) as terminal:
        assert await terminal.ended() == 1
        assert "EXPERIMENT_NOT_FOUND" in terminal.screen.text
        assert terminal.screen.cursor
        assert not terminal.screen.alternate


async def test_results_on_a_terminal_stay_inside_it(plane: Plane, running: Run) -> None:
    """Long sentences are wrapped, what does not fit is counted in the last row, and the numbers come first."""
    command = (str(BIN / "variantctl"), "results", "soul-tone", "--watch", "--interval", "200ms")
    async with on_a_terminal(*command, width=60, height=9) as terminal:
        screen = await terminal.until(lambda screen: screen.drawn > 3, what="the view is drawn again")
        shown = screen.text.splitlines()
        assert shown[0].startswith("soul-tone is running; resolved (increase)")
        assert shown[-1].startswith("… ")
        assert shown[-1].endswith(" more rows")
        assert (screen.wrapped, screen.scrolled) == (0, 0)
        terminal.resize(100, 30)
        screen = await terminal.until(
            lambda screen: "(NO_IMPRESSIONS)" in screen.text, what="everything is there"
        )
        assert "more rows" not in screen.text
        terminal.type("\x03")
        assert await terminal.ended() == 0
