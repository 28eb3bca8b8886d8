"""Faults in random order, many at once: whatever was drawn, the oracle has to be content afterwards.

A failure tells its seed and the smallest schedule that still failed. FAULTS_SEED, FAULTS_SCHEDULES, FAULTS_EVENTS and
FAULTS_TRIES (runs spent on making a failure smaller) say how much is done; `make faults` does more of it.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.schedule import KINDS, Event, drawn, played, size, smaller

SEED = size("SEED", small=20_261, large=int(time.time()))


@pytest.mark.fault(3, 4, 5, 26, 27, 28, 31)
@pytest.mark.timeout(size("TIMEOUT", small=240, large=7_200))
@pytest.mark.parametrize("number", range(size("SCHEDULES", small=1, large=20)))
async def test_whatever_happens_the_oracle_is_content(tmp_path: Path, number: int) -> None:
    """Agents and the control plane killed and stopped, networks cut in every way, orders and reports all the while."""
    seed, runs = SEED + number, itertools.count()
    events = drawn(seed, size("EVENTS", small=10, large=40))
    print(f"seed {seed}: FAULTS_SEED={seed} FAULTS_SCHEDULES=1 FAULTS_EVENTS={len(events)}")

    async def failure(some: Sequence[Event]) -> BaseException | None:
        try:
            await played(tmp_path / str(next(runs)), some)
        except (Exception, BaseExceptionGroup) as error:
            return error
        return None

    async def fails(some: Sequence[Event]) -> bool:
        return await failure(some) is not None

    error = await failure(events)
    if error is not None:
        least = await smaller(events, fails, tries=size("TRIES", small=0, large=30))
        told = "\n".join(map(str, least))
        raise AssertionError(f"seed {seed}, {len(events)} events; this is left of them:\n{told}") from error


async def test_a_schedule_that_fails_is_made_smaller() -> None:
    """Down to the events that it takes, in their order, within the runs that are allowed."""
    events = drawn(1, 40)
    needed = (events[7], events[31])
    runs = 0

    async def fails(some: Sequence[Event]) -> bool:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return set(needed) <= set(some)

    assert tuple(await smaller(events, fails, tries=200)) == needed
    assert runs <= 200
    assert len(await smaller(events, fails, tries=0)) == 40


def test_a_seed_is_a_schedule() -> None:
    """The same seed draws the same events, every kind comes up, and another seed draws others."""
    assert drawn(5, 300) == drawn(5, 300) != drawn(6, 300)
    assert {event.kind for event in drawn(5, 300)} == set(KINDS)
