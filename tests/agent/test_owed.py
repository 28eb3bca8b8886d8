"""What was seen on a disk that takes no more is recorded when it does, in its order, and nobody waits for it."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from agent.owed import Owed
from agent.spool import Spool
from shared.errors import ResourceExhausted
from shared.model import View, ViewState
from tests.agent.test_spool import impression, opened, records
from tests.support.clock import FakeClock
from tests.support.waiting import ticked


def view(number: int) -> View:
    return View(participant="p", path="f", digest=bytes(32), state=ViewState.APPLIED, from_at=number)


async def fill(spool: Spool) -> None:
    """Not even a view fits."""
    for record in (impression("x" * 100), view(0)):
        with suppress(ResourceExhausted):
            while True:
                await spool.append(record)


async def seen(spool: Spool) -> list[int]:
    """When the views began that the spool holds, after those that filled it; all of it is acknowledged."""
    found: list[int] = []
    while batch := await spool.next_batch(1000, 1 << 20):
        bodies = [record.body for record in records(batch)]
        found += [body.from_at for body in bodies if isinstance(body, View) and body.from_at]
        await spool.acknowledge(batch.epoch, batch.first_seq + len(batch.records) - 1)
    return found


@pytest.mark.fault(12)
async def test_views_wait_until_the_spool_takes_them(tmp_path: Path) -> None:
    """Recording one returns at once; later ones do not overtake those that wait."""
    clock = FakeClock()
    async with opened(tmp_path, max_bytes=2000, segment_bytes=300) as spool:
        owed = Owed(spool, clock=clock)
        running = asyncio.create_task(owed.run())
        await asyncio.to_thread(owed.record, view(1))
        assert await seen(spool) == [1]
        await fill(spool)
        for number in (2, 3, 4):
            await asyncio.to_thread(owed.record, view(number))
        await ticked(clock, 1.0, lambda: clock.sleeping)
        assert await seen(spool) == []
        await asyncio.to_thread(owed.record, view(5))
        await ticked(clock, 1.0, lambda: spool.state().depth == 4)
        assert await seen(spool) == [2, 3, 4, 5]
        await asyncio.to_thread(owed.record, view(6))
        assert await seen(spool) == [6]
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_what_is_forgotten_is_the_oldest(tmp_path: Path) -> None:
    """Of more than are kept, while the oldest of them is on its way."""
    clock = FakeClock()
    async with opened(tmp_path, max_bytes=2000, segment_bytes=300) as spool:
        owed = Owed(spool, clock=clock, most=2)
        await fill(spool)
        for number in (1, 2, 3):
            await asyncio.to_thread(owed.record, view(number))
        running = asyncio.create_task(owed.run())
        await ticked(clock, 1.0, lambda: clock.sleeping)
        assert await seen(spool) == []
        await ticked(clock, 1.0, lambda: spool.state().depth == 2)
        assert await seen(spool) == [2, 3]
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
