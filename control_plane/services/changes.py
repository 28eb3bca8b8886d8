"""That something was committed: the hint that lets a watcher look again.

Hides where hints come from. Here every unit of work of this process gives one after its commit, so none can be
forgotten. Of other replicas over one database only what wakes agents is a hint here; the rest a watcher sees at its
next unhinted look. Nothing is lost either way, because a look compares with what is stored.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from control_plane.store.database import Database, Tx

T = TypeVar("T")


class Changes:
    """Who wants to know."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Event] = set()
        self.ended = asyncio.Event()

    def happened(self) -> None:
        """Everybody who listens is told; a hint that was not taken yet stays one."""
        for listener in self._listeners:
            listener.set()

    def end(self) -> None:
        """The process stops: everybody who listens is told, and finds `ended` set."""
        self.ended.set()
        self.happened()

    @contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        """An event that is set from now on whenever something was committed."""
        listener = asyncio.Event()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    @property
    def listening(self) -> int:
        """How many listen."""
        return len(self._listeners)


class Announcing:
    """A database whose every commit is a hint."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes
        self.hints = database.hints

    async def read(self, work: Callable[[Tx], T]) -> T:
        return await self._database.read(work)

    async def write(self, work: Callable[[Tx], T]) -> T:
        result = await self._database.write(work)
        self._changes.happened()
        return result

    async def close(self) -> None:
        await self._database.close()
