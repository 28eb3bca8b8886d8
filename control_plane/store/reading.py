"""The readers of a database: a few threads over as many connections, or over as few as there are.

Hides which thread runs what, and which connection is whose. A connection is made when there is none to spare, and
again where one has been lost; where the database lets in no more, its readers share those that they have.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Generic, Protocol, TypeVar

from shared.errors import Unavailable

T = TypeVar("T")

READERS = 4
TURN_SECONDS = 5.0
"""So long a reader waits for one of the others' connections where it cannot have its own."""


class Closing(Protocol):
    """What both drivers' connections have."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closing)


class Readers(Generic[C]):
    """Threads that `connect`; a connection that `is_lost` is not used again."""

    def __init__(
        self, name: str, connect: Callable[[], C], *, is_lost: Callable[[C], bool] = lambda _: False
    ) -> None:
        self._connect, self._is_lost = connect, is_lost
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix=name)
        self._changed = Condition()
        self._free: list[C] = []
        self._taken = 0

    async def run(self, work: Callable[[C], T]) -> T:
        """What `work` returns of a connection that nobody else uses meanwhile; in a thread.

        Raises Unavailable, as `connect` does, where the database lets in nobody, or everybody is busy for too long.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def _run(self, work: Callable[[C], T]) -> T:
        connection = self._take()
        try:
            return work(connection)
        finally:
            with self._changed:
                self._taken -= 1
                if not self._is_lost(connection):
                    self._free.append(connection)
                self._changed.notify_all()

    def _take(self) -> C:
        with self._changed:
            if (spare := self._spare()) is not None:
                return spare
        try:
            made = self._connect()
        except Unavailable:
            with self._changed:
                self._changed.wait_for(lambda: self._free or not self._taken, TURN_SECONDS)
                if (spare := self._spare()) is not None:
                    return spare
            raise
        with self._changed:
            self._taken += 1
        return made

    def _spare(self) -> C | None:
        """One that nobody used, taken; it is not lost."""
        while self._free:
            connection = self._free.pop()
            if not self._is_lost(connection):
                self._taken += 1
                return connection
        return None

    def close(self) -> None:
        """What was begun has ended, and so has every connection. Blocks."""
        self._threads.shutdown(wait=True)
        while self._free:
            self._free.pop().close()
