"""Notices that somebody else changed a target file, soon if the kernel tells and in any case in the end.

Watches the parent directories of targets, never the files: a watch on a file dies at the first atomic
replace. Whatever the kernel says is only a hint to look; a look at every target in turn is the authority.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from watchfiles import awatch

from agent.reconciler import Reconciler
from shared.clock import Clock
from shared.logs import get
from shared.model import Condition

REHASH_SECONDS = 30.0
DEBOUNCE_MS = 50
SETTLE_MS = 1000
"""After this a watch that was asked for is surely in place."""

Target = tuple[str, str]
"""(participant, path)."""

_log = get(__name__)


class Watch:
    """Tells `reconciler` of every target that may have changed."""

    def __init__(self, *, reconciler: Reconciler, clock: Clock) -> None:
        self._reconciler, self._clock = reconciler, clock
        self._changed = asyncio.Event()
        self._degraded: Condition | None = None
        self._watching: dict[Path, tuple[int, int]] = {}

    def changed(self) -> None:
        """The set of watched targets is another now; it is read again soon. Never waits."""
        self._changed.set()

    def conditions(self) -> tuple[Condition, ...]:
        """WATCH_DEGRADED while the kernel's watch does not work and only the periodic look is left."""
        return () if self._degraded is None else (self._degraded,)

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rehash())
            group.create_task(self._listen())

    async def _rehash(self) -> None:
        while True:
            await self._clock.sleep(REHASH_SECONDS)
            await self._reconciler.catch_up()
            targets = self._reconciler.watched()
            for participant, path in targets:
                await self._reconciler.observed(participant, path)
            if _identities(targets.values()) != self._watching:
                self._changed.set()  # a directory came, went or was replaced: a watch stays with the old one

    async def _listen(self) -> None:
        known: frozenset[Target] = frozenset()
        while True:
            self._changed.clear()
            targets = dict(self._reconciler.watched())
            self._watching = _identities(targets.values())
            if self._watching:
                await self._follow(targets, fresh=frozenset(targets) - known)
            else:
                await self._changed.wait()
            known = frozenset(targets)

    async def _follow(self, targets: dict[Target, Path], *, fresh: frozenset[Target]) -> None:
        """Looks at what the kernel says changed, until the targets are others or the watch fails."""
        unsure = targets.keys()
        try:
            async for changes in awatch(
                *self._watching,
                watch_filter=None,
                debounce=DEBOUNCE_MS,
                step=DEBOUNCE_MS,
                rust_timeout=SETTLE_MS,
                yield_on_timeout=True,
                stop_event=self._changed,
                recursive=False,
            ):
                self._degraded = None
                touched = {path for _, path in changes}
                for target, real in targets.items():
                    # What happened to a fresh target before its watch began, no event will tell.
                    # Nor what happened to the others between two watches; that can wait for a quiet moment,
                    # so that a burst of offers does not have every target read again for each of them.
                    if str(real) in touched or target in fresh or (target in unsure and not touched):
                        await self._reconciler.observed(*target)
                fresh, unsure = frozenset(), unsure if touched else {}.keys()
        except (OSError, RuntimeError) as error:
            self._degrade(error)
            await self._changed.wait()  # set by the next periodic look too, while directories are not watched

    def _degrade(self, error: Exception) -> None:
        self._watching = {}
        if self._degraded is None:
            _log.warning("watch.degraded", error=str(error))
            self._degraded = Condition(
                code="WATCH_DEGRADED",
                severity="warning",
                since_at=self._clock.now(),
                message=f"target files are only looked at every {REHASH_SECONDS:g} s: {error}",
            )


def _identities(targets: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """The existing parent directories, and what tells one from another put in its place."""
    found = {}
    for directory in {target.parent for target in targets}:
        with suppress(OSError):
            status = directory.stat()
            found[directory] = (status.st_dev, status.st_ino)
    return found
