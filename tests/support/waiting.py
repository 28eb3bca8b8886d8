"""Waiting for what another task, thread or process does, with a bound."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support.clock import FakeClock

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for what is quick by itself: only what hangs takes longer, however busy the machine is."""


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, within: float = PATIENCE, what: str = ""
) -> T:
    """The first truthy value of `condition`, asked again and again; fails the test after `within` seconds.

    For conditions outside this event loop's reach (files, sockets, processes), where nothing can be
    awaited. A condition that raises AssertionError or OSError is not met yet.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    last: object = None
    while True:
        try:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value  # type: ignore[return-value]
            last = value
        except (AssertionError, OSError) as error:
            last = error
        if loop.time() >= end:
            raise AssertionError(f"not within {within} s: {what or condition}; last seen: {last!r}")
        await asyncio.sleep(0.01)


async def ticked(clock: FakeClock, seconds: float, condition: Callable[[], object]) -> None:
    """`clock` was moved on in steps of `seconds` until `condition` held."""

    async def step() -> bool:
        if condition():
            return True
        await clock.advance(seconds)
        return bool(condition())

    await eventually(step)
