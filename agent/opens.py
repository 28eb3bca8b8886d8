"""Counts who read a target file, where a participant's impressions are its opens.

Hides what makes that a lower bound that says so: the kernel tells of two readings at once as of one, our own
looks are taken out, and what was not seen at all (notices dropped, no watch, no agent) is a record of its own.
An open counts once it is closed without having been written through; its moment is that of the open, its digest
what lay there, or none where that changed meanwhile, or between it and a look of ours that it may be taken for.
Whoever writes in place or replaces the file reads nothing.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

from agent.beneath import OWN, Key, Reading
from agent.config import AgentConfig
from agent.notices import Notice, What
from agent.room import Bucket
from agent.standing import Holding
from shared.clock import Clock
from shared.errors import ResourceExhausted, Unavailable
from shared.logs import get
from shared.model import Digest, Event, EventKind, EventSource, Exposure, Unseen
from shared.moment import SECOND

RATE, BURST = 1_000.0, 5_000.0
"""Opens per second and participant, as of reports."""

MAX_OWED = 10_000
"""Opens that wait for the spool; those beyond are told as not seen."""

REASONS = ("overflow", "replaced", "unwatched", "too_many", "not_running")
"""Why opens go unseen."""

Target = tuple[str, str]
"""(participant, path)."""

_log = get(__name__)


class _File:
    """One followed target: opens that were not closed yet, and how often it changed."""

    def __init__(self, target: Target, key: Key) -> None:
        self.target, self.key = target, key
        self.changes = 0
        self.open: deque[tuple[int, int]] = deque(maxlen=1024)  # (moment, changes before)
        self.ours: list[tuple[Reading, int]] = []
        """Of late, what was taken for ours, and the changes before: it may have been another's, and theirs ours."""

    def holds_since(self, changes: int) -> bool:
        """What lay there after so many changes lies there now, and at all that may be taken for one another."""
        return {changes} == {self.changes, *(before for _, before in self.ours)}


class Opens:
    """Counts for the participants of `config` that say `exposure = "on_open"`.

    `append` makes records durable; `holding` tells what a target was last seen to hold; `alive` is a file that
    says until when opens were seen.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        append: Callable[[Sequence[Event | Unseen]], Awaitable[object]],
        holding: Callable[[str, str], Holding | None],
        alive: Path,
        clock: Clock,
    ) -> None:
        self._append, self._holding, self._alive, self._clock = append, holding, alive, clock
        self._files: dict[Path, _File] = {}
        self._read: list[tuple[_File, int, int]] = []  # (file, moment, changes before)
        self._owed: deque[Event | Unseen] = deque()
        self._unseen: dict[tuple[str, str], Unseen] = {}
        self._blind: dict[str, int] = {}  # participants whose targets cannot be watched, since when
        self._buckets: dict[str, Bucket] = {}
        self._heard_at = clock.now()
        self._recording = asyncio.Lock()
        self._counting: frozenset[str] = frozenset()
        self.counted: Counter[str] = Counter()
        """Impressions by participant."""
        self.declared: Counter[str] = Counter()
        """How often it was declared that opens went unseen, by reason."""
        self.reconfigure(config)
        self._after_a_stop()

    def reconfigure(self, config: AgentConfig) -> None:
        """Those are counted that `config` says."""
        self._counting = frozenset(p.id for p in config.participants if p.exposure is Exposure.ON_OPEN)

    def counts(self, participant: str) -> bool:
        """Whether the participant's opens are its impressions."""
        return participant in self._counting

    @property
    def waiting(self) -> bool:
        """There is something that `settle` would record, or be sure of."""
        return bool(self._read or self._owed or self._unseen or any(f.ours for f in self._files.values()))

    @property
    def following(self) -> int:
        """How many files' readings count."""
        return len(self._files)

    # -- what is told --------------------------------------------------------------------------------

    def follow(
        self,
        targets: Mapping[Path, Target],
        directories: Mapping[Path, tuple[int, int]],
        *,
        blind: Collection[str] = (),
    ) -> None:
        """Readings of those of `targets` count whose participants say so, and of no others.

        `directories` are theirs, by device and inode. Files of the participants `blind` cannot be watched.
        """
        files = {}
        for real, target in targets.items():
            if target[0] in self._counting:
                key = (*directories[real.parent], real.name)
                known = self._files.get(real)
                is_same = known is not None and (known.target, known.key) == (target, key)
                files[real] = known if known is not None and is_same else _File(target, key)
        self._files = files
        OWN.watch(file.key for file in files.values())
        now = self._clock.now()
        for participant in self._blind.keys() - set(blind):
            self._miss(participant, "unwatched", self._blind.pop(participant), now)
        for participant in self._counting.intersection(blind) - self._blind.keys():
            self._blind[participant] = now
            self._miss(participant, "unwatched", now, now)

    def take(self, notice: Notice) -> None:
        """The notice is of a target; it may be of nobody's interest."""
        self._heard_at = self._clock.now()
        file = self._files.get(notice.path)
        if file is None:
            return
        if notice.what is What.CHANGED:
            file.changes += 1
        elif notice.what is What.OPENED:
            file.open.append((self._heard_at, file.changes))
        elif notice.what is What.WRITTEN and file.open:
            file.open.pop()
        elif notice.what is What.READ:
            moment, changes = file.open.popleft() if file.open else (self._heard_at, file.changes)
            if reading := OWN.consume(file.key):
                file.ours.append((reading, changes))
            else:
                self._read.append((file, moment, changes))

    def unseen(self, reason: str, *, directory: Path | None = None, seconds: float = 0.0) -> None:
        """Opens of files in `directory`, or of any, went unseen just now, since the last notice at least."""
        now = self._clock.now()
        since = min(self._heard_at, now - round(seconds * SECOND))
        whose = {f.target[0] for real, f in self._files.items() if directory in (None, real.parent)}
        for participant in whose & self._counting:
            self._miss(participant, reason, since, now)

    def _miss(self, participant: str, reason: str, since: int, until: int) -> None:
        known = self._unseen.get((participant, reason))
        since = min(since, known.from_at) if known else since
        self._unseen[participant, reason] = Unseen(
            participant=participant, reason=reason, from_at=since, to_at=until
        )

    # -- what is recorded ----------------------------------------------------------------------------

    def settled(self) -> list[Reading]:
        """Our own readings that are over: once every notice up to now was taken, none of them is one of these."""
        told = [reading for file in self._files.values() for reading, _ in file.ours if reading.is_over]
        return [*told, *OWN.over()]

    async def settle(self, over: Sequence[Reading] = ()) -> None:
        """What was read is durable, each with what lay there as last seen, or waits until the spool takes it.

        Call it when every change told of was looked at; `over` as `settled` said before the last notices
        were taken.
        """
        OWN.forget(over)
        read, self._read = self._read, []
        now = self._clock.monotonic()
        for file, moment, changes in read:
            participant = file.target[0]
            bucket = self._buckets.setdefault(participant, Bucket(rate=RATE, burst=BURST))
            if not bucket.take(1, now) or len(self._owed) >= MAX_OWED:
                self._miss(participant, "too_many", moment, self._clock.now())
                continue
            self._owed.append(self._impression(file, moment, is_known=file.holds_since(changes)))
        for file in self._files.values():
            file.ours = [one for one in file.ours if one[0] not in over]
        self._owed.extend(self._unseen.values())
        self._unseen.clear()
        async with self._recording:  # the periodic look settles too: what is recorded twice counts twice
            await self._record()

    async def _record(self) -> None:
        while self._owed:
            some = [self._owed[index] for index in range(min(500, len(self._owed)))]
            try:
                await self._append(some)
            except (ResourceExhausted, Unavailable) as error:
                _log.warning("opens.owed", records=len(self._owed), reason=error.reason)
                return
            for record in some:
                self._owed.popleft()
                if isinstance(record, Event):
                    self.counted[record.participant] += 1
                else:
                    self.declared[record.reason] += 1

    def _impression(self, file: _File, moment: int, *, is_known: bool) -> Event:
        participant, path = file.target
        digest: Digest | None = None
        if is_known and (held := self._holding(participant, path)) is not None:
            digest = held.digest
        return Event(
            participant=participant,
            kind=EventKind.IMPRESSION,
            occurred_at=moment,
            path=path,
            digest=digest,
            source=EventSource.ON_OPEN,
        )

    # -- what an agent that does not run cannot see --------------------------------------------------

    def still(self) -> None:
        """Opens were seen until now; call it now and then. What a crash loses of it is called unseen. Blocks."""
        try:
            if self._counting:
                self._alive.write_text(str(self._clock.now()))
        except OSError as error:
            _log.warning("opens.not_noted", error=error.strerror)

    def _after_a_stop(self) -> None:
        try:
            since = int(self._alive.read_text())
        except ValueError:  # cut short by a full disk or a power cut
            since = self._alive.stat().st_mtime_ns // 1000
        except OSError:
            return
        now = self._clock.now()
        for participant in self._counting:
            self._miss(participant, "not_running", min(since, now), now)
