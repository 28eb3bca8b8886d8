"""Everything in the spool goes up once, in order, whatever the way there does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from agent.spool import Receipt, Spool
from agent.uplink import Uplink
from shared.clock import Clock, SystemClock
from shared.errors import Invalid, Unavailable
from shared.ids import new_id
from shared.model import Batch, Event, EventKind
from tests.support.clock import FakeClock
from tests.support.control_plane import in_background
from tests.support.ledger import Ledger
from tests.support.waiting import PATIENCE, eventually, ticked


def impression(subject: str) -> Event:
    return Event(participant="bot-1", kind=EventKind.IMPRESSION, subject=subject, occurred_at=1)


@asynccontextmanager
async def uplinked(
    directory: Path,
    report: Callable[[Batch], Awaitable[Receipt]],
    *,
    clock: Clock | None = None,
    limits: tuple[int, int] = (500, 1 << 20),
) -> AsyncIterator[tuple[Spool, Uplink]]:
    clock = clock or SystemClock()
    spool = Spool(directory, clock=clock, new_id=new_id)
    uplink = Uplink(spool=spool, report=report, clock=clock, random=Random(1), limits=lambda: limits)
    try:
        async with in_background(uplink.run()):
            yield spool, uplink
    finally:
        await asyncio.to_thread(spool.close)


async def test_records_go_up_in_order_and_are_forgotten(tmp_path: Path) -> None:
    """Whatever the batches, the order is that of the reports."""
    ledger, clock = Ledger(), FakeClock()
    async with uplinked(tmp_path, ledger, clock=clock, limits=(7, 1 << 20)) as (spool, uplink):
        for number in range(50):
            await spool.append(impression(str(number)))
        # The spool is empty a moment before the uplink hears of it: what is waited for is the last thing that happens.
        await ticked(clock, 0.02, lambda: uplink.acknowledged == 50)
        assert list(ledger.records.values()) == [str(number) for number in range(50)]
        assert max(len(batch.records) for batch in ledger.batches) == 7
        assert not spool.state().depth


async def test_what_arrives_together_goes_up_together(tmp_path: Path) -> None:
    """One batch for a burst, because the first record waits a moment for the others."""
    ledger, clock = Ledger(), FakeClock()
    async with uplinked(tmp_path, ledger, clock=clock) as (spool, _):
        await asyncio.gather(*(spool.append(impression(str(number))) for number in range(20)))
        await eventually(lambda: clock.sleeping)
        assert ledger.batches == []
        await clock.advance(0.02)
        await eventually(lambda: not spool.state().depth)
        assert len(ledger.batches) == 1


async def test_one_batch_is_in_flight(tmp_path: Path) -> None:
    """While an answer is awaited nothing else is sent, however much arrives."""
    ledger, answer, in_flight = Ledger(), asyncio.Event(), []

    async def slow(batch: Batch) -> Receipt:
        in_flight.append(batch)
        await answer.wait()
        in_flight.remove(batch)
        return await ledger(batch)

    async with uplinked(tmp_path, slow, limits=(2, 1 << 20)) as (spool, _):
        for number in range(6):
            await spool.append(impression(str(number)))
        await eventually(lambda: in_flight)
        assert len(in_flight) == 1
        assert spool.state().depth == 6
        answer.set()
        await eventually(lambda: not spool.state().depth)
        assert len(ledger.records) == 6


async def test_lost_answer_counts_nothing_twice(tmp_path: Path) -> None:
    """The same bytes go again, and are recognised by position."""
    ledger, clock = Ledger(), FakeClock()
    ledger.faults = ["answer lost", Unavailable()]
    async with uplinked(tmp_path, ledger, clock=clock) as (spool, _):
        for number in range(3):
            await spool.append(impression(str(number)))
        await ticked(clock, 0.5, lambda: not spool.state().depth)
        assert list(ledger.records.values()) == ["0", "1", "2"]
        assert ledger.batches[0] == ledger.batches[1] == ledger.batches[2]


async def test_refusal_is_told_and_tried_again(tmp_path: Path) -> None:
    """Nothing is dropped because the control plane does not like it."""
    ledger, clock = Ledger(), FakeClock()
    ledger.faults = [Invalid("not today")]
    async with uplinked(tmp_path, ledger, clock=clock) as (spool, uplink):
        await spool.append(impression("a"))
        await ticked(clock, 0.02, uplink.conditions)
        assert uplink.conditions()[0].code == "REPORTS_REFUSED"
        await ticked(clock, 0.5, lambda: not spool.state().depth)
        await eventually(lambda: uplink.conditions() == ())


async def test_diverged_epoch_goes_up_under_another(tmp_path: Path) -> None:
    """Each record counts once although the control plane has another history of the epoch."""
    ledger, clock = Ledger(), FakeClock()
    async with uplinked(tmp_path, ledger, clock=clock, limits=(2, 1 << 20)) as (spool, _):
        ledger.marks[spool.state().epoch] = (0, bytes([1]) * 32)
        for number in range(5):
            await spool.append(impression(str(number)))
        await ticked(clock, 0.02, lambda: not spool.state().depth)
        assert list(ledger.records.values()) == ["0", "1", "2", "3", "4"]
        assert len({batch.epoch for batch in ledger.batches}) == 2


@pytest.mark.fault(36)
async def test_mark_beyond_the_tail_is_a_divergence(tmp_path: Path) -> None:
    """A restored host's reports do not disappear below a mark that another life of it has reached."""
    ledger = Ledger()
    async with uplinked(tmp_path, ledger) as (spool, _):
        ledger.marks[spool.state().epoch] = (1000, bytes(32))
        for number in range(3):
            await spool.append(impression(str(number)))
        await eventually(lambda: not spool.state().depth)
        assert list(ledger.records.values()) == ["0", "1", "2"]


async def test_stop_and_start_lose_nothing(tmp_path: Path) -> None:
    """Cancelled between sending and acknowledging, the next start sends it again."""
    ledger, stuck = Ledger(), asyncio.Event()

    async def never_answers(batch: Batch) -> Receipt:
        await ledger(batch)
        stuck.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with uplinked(tmp_path, never_answers) as (spool, _):
        await spool.append(impression("a"))
        await asyncio.wait_for(stuck.wait(), PATIENCE)
    async with uplinked(tmp_path, ledger) as (spool, _):
        await spool.append(impression("b"))
        await eventually(lambda: not spool.state().depth)
    assert list(ledger.records.values()) == ["a", "b"]
