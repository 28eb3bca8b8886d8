"""Notices that somebody else changed a target file, soon if the kernel tells and in any case in the end.

Whatever the kernel says of changes is only a hint to look; a look at every target in turn is the authority.
What it says of readings goes to whoever counts them.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from agent.notices import Identity, Notice, Notices, What
from agent.opens import Opens
from agent.reconciler import Reconciler
from agent.threads import blocking
from shared.clock import Clock
from shared.logs import get
from shared.model import Condition

REHASH_SECONDS = 30.0
DEBOUNCE_SECONDS = 0.05
"""A change is looked at after so long, once for all that came meanwhile."""

Target = tuple[str, str]
"""(participant, path)."""

_log = get(__name__)


class Watch:
    """Tells `reconciler` of every target that may have changed, and `opens` of every reading."""

    def __init__(self, *, reconciler: Reconciler, clock: Clock, opens: Opens) -> None:
        self._reconciler, self._clock, self._opens = reconciler, clock, opens
        self._changed = asyncio.Event()
        self._degraded: Condition | None = None
        self._overflowed = False
        self._wanted: dict[Path, tuple[Identity, bool]] = {}
        self._known: frozenset[Target] = frozenset()
        self._targets: dict[Path, list[Target]] = {}

    def changed(self) -> None:
        """The set of watched targets is another now; it is read again soon. Never waits."""
        self._changed.set()

    def conditions(self) -> tuple[Condition, ...]:
        """WATCH_DEGRADED while the kernel's watch does not tell everything and the periodic look has to."""
        return () if self._degraded is None else (self._degraded,)

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rehash())
            group.create_task(self._listen())

    async def _rehash(self) -> None:
        while True:
            await self._clock.sleep(REHASH_SECONDS)
            overflowed, self._overflowed = self._overflowed, False
            await self._reconciler.look_around()
            # A directory came, went or was replaced above the ones that are watched; or a watch that could
            # not be had can be now; or no notice was dropped for so long.
            stale = self._directories() != self._wanted
            if stale:
                self._opens.unseen("replaced", seconds=REHASH_SECONDS)
            if stale or (self._degraded is not None and not overflowed):
                self._changed.set()
            await blocking(self._opens.still)
            await self._opens.settle()

    async def _listen(self) -> None:
        while True:
            try:
                with Notices() as notices:
                    await self._follow(notices)
            except OSError as error:
                self._wanted = {}
                self._opens.follow(
                    {}, {}, blind=[participant for participant, _ in self._reconciler.watched()]
                )
                self._degrade(error.strerror or str(error))
            self._changed.clear()
            await self._changed.wait()  # set by the next periodic look too, while it is degraded

    async def _follow(self, notices: Notices) -> None:
        """Follows what the kernel says. Raises OSError where it does not say anything."""
        self._changed.set()
        arriving = asyncio.ensure_future(notices.next())
        asked = asyncio.ensure_future(self._changed.wait())
        try:
            while True:
                await asyncio.wait((arriving, asked), return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    self._changed.clear()
                    await self._watch_targets(notices)
                    asked = asyncio.ensure_future(self._changed.wait())
                if arriving.done():
                    await self._take(arriving.result(), notices)
                    arriving = asyncio.ensure_future(notices.next())
        finally:
            # Before the instance is closed: its reader must be gone from the event loop by then.
            arriving.cancel()
            asked.cancel()
            await asyncio.wait((arriving, asked))

    async def _watch_targets(self, notices: Notices) -> None:
        """Every target's directory is watched; what happened to a new one before is seen."""
        self._wanted = self._directories()
        targets = dict(self._reconciler.watched())
        self._targets = {}
        for target, real in targets.items():
            self._targets.setdefault(real, []).append(target)
        failed = notices.watch(self._wanted)
        fresh = [target for target in targets if target not in self._known]
        self._known = frozenset(targets)
        for directory, error in failed.items():
            self._wanted.pop(directory)
            self._degrade(f"{directory}: {error.strerror}")
        self._opens.follow(
            {real: whose[0] for real, whose in self._targets.items() if real.parent in self._wanted},
            {directory: identity for directory, (identity, _) in self._wanted.items()},
            blind=[who for (who, _), real in targets.items() if real.parent in failed],
        )
        if not failed and not self._overflowed:
            self._restored()
        for participant, path in fresh:
            await self._reconciler.observed(participant, path)

    def _directories(self) -> dict[Path, tuple[Identity, bool]]:
        targets = self._reconciler.watched()
        read = {real.parent for (name, _), real in targets.items() if self._opens.counts(name)}
        return {path: (identity, path in read) for path, identity in _identities(targets.values()).items()}

    async def _take(self, told: list[Notice], notices: Notices) -> None:
        """What was told is looked at: changes once for each target, after a moment for what belongs together."""
        changed = self._sort(told)
        if changed:
            await asyncio.sleep(DEBOUNCE_SECONDS)
            changed |= self._sort(notices.waiting())
        await self._look(changed)
        if changed or self._opens.waiting:
            # What was looked at is what lay there, where no change has come until now.
            over = self._opens.settled()
            changed = self._sort(notices.waiting())
            await self._opens.settle(over if notices.is_empty else ())
            await self._look(changed)

    async def _look(self, changed: Iterable[Path]) -> None:
        for real in changed:
            for participant, path in self._targets.get(real, ()):
                await self._reconciler.observed(participant, path)

    def _sort(self, told: Iterable[Notice]) -> set[Path]:
        """The targets that may have changed; readings and what was not seen are told on."""
        changed: set[Path] = set()
        for notice in told:
            if notice.what is What.OVERFLOW:
                self._overflow()
                changed |= self._targets.keys()
            elif notice.what is What.LOST:
                _log.info("watch.lost", directory=str(notice.path))
                self._opens.unseen("replaced", directory=notice.path)
                self._wanted.pop(notice.path, None)
                self._changed.set()
                changed |= {real for real in self._targets if real.parent == notice.path}
            elif notice.path in self._targets:
                if notice.what is What.CHANGED:
                    changed.add(notice.path)
                self._opens.take(notice)
        return changed

    # -- how well it works ---------------------------------------------------------------------------

    def _overflow(self) -> None:
        self._overflowed = True
        self._opens.unseen("overflow")
        self._degrade("the kernel dropped notices because there were too many at once")

    def _degrade(self, why: str) -> None:
        message = f"target files are only looked at every {REHASH_SECONDS:g} s: {why}"
        if self._degraded is None:
            _log.warning("watch.degraded", error=why)
        since = self._degraded.since_at if self._degraded else self._clock.now()
        self._degraded = Condition(code="WATCH_DEGRADED", severity="warning", since_at=since, message=message)

    def _restored(self) -> None:
        if self._degraded is not None:
            _log.info("watch.restored")
            self._degraded = None


def _identities(targets: Iterable[Path]) -> Mapping[Path, Identity]:
    """The existing parent directories, and what tells one from another put in its place."""
    found = {}
    for directory in {target.parent for target in targets}:
        with suppress(OSError):
            status = directory.stat()
            found[directory] = (status.st_dev, status.st_ino)
    return found
