"""The one writer of a database: units of work from many callers, committed together.

Writers do not wait for each other's fsync one by one: what queued up while a commit was in progress, and what comes
while the transaction runs, is run together, each unit of work inside its own savepoint, and committed once (group
commit). A caller is answered after that commit, so durable-before-acknowledged holds for each of them; a unit of work
that raises undoes only itself. Hides the thread, the queue and who is answered what.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from control_plane.store.database import Tx

T = TypeVar("T")

GROUP = 256  # units of work in one commit: bounds how long the first of them waits for the last


class Unit:
    """One unit of work in the queue, and what came of it."""

    def __init__(self, work: Callable[[Tx], Any], answer: asyncio.Future[Any]) -> None:
        self._answer = answer
        self._work = work
        self._result: Any = None
        self._failure: BaseException | None = None

    def run(self, tx: Tx, *, lost: tuple[type[Exception], ...]) -> None:
        """The work is done, or undone and its failure kept. Raises one of `lost`: then the whole group is lost."""
        tx.run("savepoint unit")
        try:
            self._result = self._work(tx)
        except lost:
            raise
        except BaseException as error:
            tx.run("rollback to savepoint unit")
            self._failure = error
        tx.run("release savepoint unit")

    @property
    def asker(self) -> asyncio.AbstractEventLoop:
        """Whose thread is told what came of it."""
        return self._answer.get_loop()

    def settle(self, group_failure: Exception | None) -> None:
        """The caller is answered, in its own thread; one that went away wants to know nothing."""
        if self._answer.done():
            return
        failure = group_failure or self._failure
        if failure is not None:
            self._answer.set_exception(failure)
        else:
            self._answer.set_result(self._result)


def _settle(group: Sequence[Unit], failure: Exception | None) -> None:
    for unit in group:
        unit.settle(failure)


class Writer:
    """A thread that takes units of work and hands them, up to `GROUP` at a time, to `commit`.

    `commit` runs every unit and makes them durable together; what it raises is what each of them is answered. It takes
    them one after the other: whatever came while one ran is the next. `at_end` runs in the thread after the last group.
    """

    def __init__(
        self, name: str, commit: Callable[[Iterable[Unit]], None], *, at_end: Callable[[], None]
    ) -> None:
        self._commit, self._at_end = commit, at_end
        self._ends = False
        self._queue: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    async def write(self, work: Callable[[Tx], T]) -> T:
        """What `work` returns, once it is durable. A caller that goes away does not take the work along."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(Unit(work, answer))
        return await answer

    async def close(self) -> None:
        """Everything that was queued is answered, the thread has ended."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _loop(self) -> None:
        while not self._ends and (first := self._queue.get()) is not None:
            self._take(taken := [first])
            failure: Exception | None = None
            try:
                self._commit(self._group(taken))
            except Exception as error:
                failure = error  # everybody is answered, and the thread lives on
            self._answer(taken, failure)
        self._at_end()

    def _group(self, taken: list[Unit]) -> Iterator[Unit]:
        """What is taken, and what is there by the time that has run, which is taken then."""
        at = 0
        while at < len(taken):
            yield taken[at]
            at += 1
            if at == len(taken):
                self._take(taken)

    def _take(self, taken: list[Unit]) -> None:
        """What is in the queue is taken, as far as a group goes."""
        with suppress(queue.Empty):
            while len(taken) < GROUP and not self._ends:
                following = self._queue.get_nowait()
                if following is None:
                    self._ends = True
                else:
                    taken.append(following)

    def _answer(self, group: Sequence[Unit], failure: Exception | None) -> None:
        """Each caller is answered; those of one event loop are told together, because each wake-up costs a turn."""
        for loop in {unit.asker for unit in group}:
            with suppress(RuntimeError):  # it is closed: whoever asked is gone
                loop.call_soon_threadsafe(_settle, [unit for unit in group if unit.asker is loop], failure)
