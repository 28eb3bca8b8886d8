"""Work that blocks, done in a thread without ever being left half done.

Hides what cancellation would do otherwise: the awaiting task would go on while the thread still writes.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def blocking(work: Callable[[], T]) -> T:
    """What `work` returns, having run in a thread to its end, even where the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # seen; the cancellation is what counts now
        raise
