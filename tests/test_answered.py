"""What a thread answers, to whoever waits for it and to whoever does not any more."""

import asyncio
import gc
from concurrent.futures import Future

import pytest

from shared.lifecycle import answered


async def _left_before_the_answer(future: Future[int]) -> None:
    asking = asyncio.create_task(answered(future))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not future.cancelled(), "the thread's work goes on"
    future.set_exception(ValueError("nobody's"))
    await asyncio.sleep(0)


async def test_a_failure_that_concerns_nobody_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio tells of failures that nobody asked for when they are collected."""
    await _left_before_the_answer(Future())
    await asyncio.sleep(0)
    gc.collect()
    assert caplog.records == []


async def test_who_waits_is_told() -> None:
    """A failure is raised where it is waited for."""
    future: Future[int] = Future()
    asking = asyncio.create_task(answered(future))
    await asyncio.sleep(0)
    future.set_exception(ValueError("mine"))
    with pytest.raises(ValueError, match="mine"):
        await asking
