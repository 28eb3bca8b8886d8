"""Killed at random under load, again and again: no report is lost, no file torn, and each start goes on by itself.

200 kills; `VARIANTD_KILLS=10000` is the size for a night. The seed is printed when it fails.
"""

import asyncio
import os
import random
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.spool import Spool
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import OfferAction, Result
from tests.support.forking import forking
from tests.support.host import make_end, running_host
from tests.support.killed import TARGETS, is_version, parse_batch
from tests.support.ledger import Ledger
from tests.support.waiting import PATIENCE

KILLS = int(os.environ.get("VARIANTD_KILLS", "200"))
LONGEST = 0.06
"""Seconds that a child lives after it was connected, or after it applied something."""
OLD = "what was there before\n"


class Listener:
    """The control plane, and the applications' memory of what was answered; survives every child."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.accepted: set[str] = set()
        self.connected, self.applied = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One child's life; a line that its end cut short was not said."""
        self.connected.set()
        with suppress(ConnectionError):
            while (line := await reader.readline()).endswith(b"\n"):
                text = line.decode()
                if text.startswith("accepted "):
                    self.accepted.add(text.split()[1])
                elif text == "applied\n":
                    self.applied.set()
                else:
                    receipt = self.ledger.take(parse_batch(text))
                    self.ledger.batches.clear()
                    writer.write(f"{receipt.through_seq} {receipt.diverged}\n".encode())
                    await writer.drain()
        writer.close()


@pytest.fixture
async def parent() -> AsyncIterator[Process]:
    """The process that forks the ones that are killed."""
    async with forking("tests.support.killed") as process:
        yield process


async def number(process: Process) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return int(await process.stdout.readline())


def whole(directory: Path) -> None:
    """Every target is what was there before or one whole version."""
    for path in TARGETS:
        target = directory / "root" / path
        if target.exists():
            text = target.read_text()
            assert text == OLD or is_version(text), (
                f"{path} is torn: {text[:60]!r} and so on, {len(text)} long"
            )


@pytest.mark.fault(1, 45)
@pytest.mark.timeout(60 + KILLS)
async def test_random_kills_under_load_lose_and_tear_nothing(tmp_path: Path, parent: Process) -> None:
    """accepted ⊆ counted, nothing declared lost, files whole after every kill, the baseline back at the end."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "soul.md").write_text(OLD)
    (tmp_path / "state").mkdir(mode=0o700)
    listener = Listener()
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, limit=1 << 22)
    port = server.sockets[0].getsockname()[1]
    assert parent.stdin is not None
    async with server:
        for _ in range(KILLS):
            listener.connected.clear()
            listener.applied.clear()
            parent.stdin.write(f"{tmp_path} {port}\n".encode())
            pid = await number(parent)
            async with asyncio.timeout(PATIENCE):
                await listener.connected.wait()
                if chance.random() < 0.5:
                    await listener.applied.wait()
            await asyncio.sleep(chance.random() * LONGEST)  # the moment is the fault, not a wait for anything
            os.kill(pid, signal.SIGKILL)
            assert await number(parent) == -signal.SIGKILL
            whole(tmp_path)
    spool = Spool(tmp_path / "spool", clock=SystemClock(), new_id=new_id)
    await listener.ledger.drain(spool)
    assert spool.conditions() == ()
    await asyncio.to_thread(spool.close)
    counted = list(listener.ledger.records.values())
    print(f"{len(listener.accepted)} accepted, {len(counted)} counted")
    assert len(counted) == len(set(counted))
    assert listener.accepted <= set(counted)
    assert len(listener.accepted) > KILLS
    assert listener.ledger.lost == {}
    async with running_host(tmp_path) as host:
        assert host.leftovers() == []
        revision = max(slot.revision for slot in host.reconciler.slots())
        assert revision > KILLS // 4
        ended = await host.apply(make_end(OfferAction.RESTORE, *TARGETS, revision=revision + 1))
        assert ended.result is Result.APPLIED
        assert host.text("soul.md") == OLD
        assert host.text(TARGETS[1]) is None
