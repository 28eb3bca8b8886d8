"""Tells how far attempts are that take longer than a moment, ever more seldom.

Hides that one task looks at all that is under way: a task and a timer for each would cost every attempt more than
most of its steps, and hardly one lives long enough to be told of.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.attempts import Attempt, outcome_of
from shared.clock import Clock
from shared.model import Outcome, Result, Step

MOMENT_SECONDS = 5.0
"""What takes longer is told while it is under way: on a busy machine half of all that is quick takes more than one."""


@dataclass(slots=True, kw_only=True)
class _Under:
    """An attempt under way: what was told of it last, and when it is looked at next."""

    attempt: Attempt
    due: float
    pause: float = MOMENT_SECONDS
    told: Step | None = None


class Progress:
    """Attempts under way; `run` it to have `tell` called of each that takes long, once for each step it is at."""

    def __init__(self, *, clock: Clock, tell: Callable[[Outcome], None]) -> None:
        self._clock, self._tell = clock, tell
        self._under: list[_Under] = []
        self._some = asyncio.Event()

    @contextmanager
    def of(self, attempt: Attempt) -> Iterator[None]:
        """The attempt is under way within."""
        under = _Under(attempt=attempt, due=self._clock.monotonic() + MOMENT_SECONDS)
        self._under.append(under)
        self._some.set()
        try:
            yield
        finally:
            self._under = [other for other in self._under if other is not under]

    async def run(self) -> None:
        """Tells until cancelled; an attempt is told of at most a moment late."""
        while True:
            await self._some.wait()
            while self._under:
                now = self._clock.monotonic()
                for under in self._under:
                    if now >= under.due:
                        self._look(under, now)
                next_due = min(under.due for under in self._under)
                await self._clock.sleep(min(MOMENT_SECONDS, next_due - now))
            self._some.clear()

    def _look(self, under: _Under, now: float) -> None:
        under.pause *= 2
        under.due = now + under.pause
        if under.attempt.step is not under.told:
            under.told = under.attempt.step
            self._tell(outcome_of(under.attempt, Result.IN_PROGRESS, now=self._clock.now()))
