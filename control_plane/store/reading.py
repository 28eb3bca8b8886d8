"""The readers of a database: a few threads, each with a connection of its own.

Hides which thread runs what, and which connection is whose. A connection is made when its thread first needs one, and
again where it has been lost.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

READERS = 4


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
        self._own = local()
        self._made: list[C] = []

    async def run(self, work: Callable[[C], T]) -> T:
        """What `work` returns of a connection that nobody else uses meanwhile; in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def _run(self, work: Callable[[C], T]) -> T:
        connection: C | None = getattr(self._own, "connection", None)
        if connection is None or self._is_lost(connection):
            connection = self._own.connection = self._connect()
            self._made.append(connection)
        return work(connection)

    def close(self) -> None:
        """What was begun has ended, and so has every connection. Blocks."""
        self._threads.shutdown(wait=True)
        for connection in self._made:
            connection.close()
