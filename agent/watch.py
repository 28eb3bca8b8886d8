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
        self._targets: dict[Path, Target] = {}

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
            await self._reconciler.catch_up()
            overflowed, self._overflowed = self._overflowed, False
            await self._look_at_all()
            # A directory came, went or was replaced above the ones that are watched; or a watch that could
            # not be had can be now; or no notice was dropped for so long.
            stale = self._directories() != self._wanted
            if stale or self._degraded is not None:
                if stale:
                    self._opens.unseen("replaced", REHASH_SECONDS)
                if not overflowed:
                    self._changed.set()

    async def _look_at_all(self) -> None:
        for participant, path in self._reconciler.watched():
            await self._reconciler.observed(participant, path)

    async def _listen(self) -> None:
        while True:
            try:
                with Notices() as notices:
                    await self._follow(notices)
            except OSError as error:
                self._wanted = {}
                self._opens.unseen("unwatched")
                self._degrade(error.strerror or str(error))
            self._changed.clear()
            await self._changed.wait()  # set by the next periodic look too, while it is degraded

    async def _follow(self, notices: Notices) -> None:
        """Follows what the kernel says. Raises OSError where it does not say anything."""
        self._changed.set()
        arriving: asyncio.Future[list[Notice]] | None = None
        try:
            while True:
                arriving = arriving or asyncio.ensure_future(notices.next())
                asked = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((arriving, asked), return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()
                if self._changed.is_set():
                    self._changed.clear()
                    await self._watch_targets(notices)
                if arriving.done():
                    told, arriving = arriving.result(), None
                    await self._take(told, notices)
        finally:
            if arriving is not None:
                arriving.cancel()

    async def _watch_targets(self, notices: Notices) -> None:
        """Every target's directory is watched; what happened to a new one before is seen."""
        self._wanted = self._directories()
        targets = dict(self._reconciler.watched())
        self._targets = {real: target for target, real in targets.items()}
        failed = notices.watch(self._wanted)
        fresh = [target for target in targets if target not in self._known]
        self._known = frozenset(targets)
        self._opens.follow({real: self._targets[real] for real in self._targets if self._counts(real)})
        for path, error in failed.items():
            self._opens.unseen("unwatched", directory=path)
            self._degrade(f"{path}: {error.strerror}")
        if not failed and not self._overflowed:
            self._restored()
        for participant, path in fresh:
            await self._reconciler.observed(participant, path)

    def _directories(self) -> dict[Path, tuple[Identity, bool]]:
        targets = self._reconciler.watched()
        read = {real.parent for (name, _), real in targets.items() if self._opens.counts(name)}
        return {path: (identity, path in read) for path, identity in _identities(targets.values()).items()}

    def _counts(self, real: Path) -> bool:
        return self._opens.counts(self._targets[real][0]) and real.parent in self._wanted

    async def _take(self, told: list[Notice], notices: Notices) -> None:
        """What was told is looked at: changes once for each target, after a moment for what belongs together."""
        changed = self._sort(told)
        if changed:
            await asyncio.sleep(DEBOUNCE_SECONDS)
            changed |= self._sort(notices.waiting())
        for real in changed:
            await self._reconciler.observed(*self._targets[real])
        if changed or self._opens.waiting:
            # In the order of events: what was looked at is what lay there if no change came until now.
            changed = self._sort(notices.waiting())
            await self._opens.settle(changed)
            for real in changed:
                await self._reconciler.observed(*self._targets[real])

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
        self._degraded = Condition(
            code="WATCH_DEGRADED", severity="warning", since_at=since, message=message
        )

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
