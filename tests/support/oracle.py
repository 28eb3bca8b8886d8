"""What has to be true after any fault, whatever it was: one judge for all tests that inject some.

It shares no code with what it judges: files are read as bytes, the database as rows. It holds
- P1: every target is at every instant one of the contents that were ordered, or what was there first;
- P3: every report the local API accepted is stored once, counted or kept with a reason, or declared lost;
- P4: once faults have ended, every target holds what was ordered last, within a bound;
- P5: no target goes back to what was ordered before (orders here never repeat a content);
- the operator API answers, but for a bounded share of requests, while it has no fault of its own.
"""

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from tests.support.waiting import PATIENCE, eventually

LOOK_SECONDS = 0.001


class Operator(Protocol):
    """Whoever asks the operator API something."""

    async def __call__(self) -> int:
        """The status of one cheap answer."""


@dataclass
class Oracle:
    """Judges one control plane (by its database) and the targets it is told of."""

    database: Path
    versions: dict[Path, list[bytes]] = field(default_factory=dict)
    """By target: what was there first, then every content ordered, in order."""
    accepted: list[str] = field(default_factory=list)
    """The event ids of reports that were answered 202."""
    uncertain: set[str] = field(default_factory=set)
    """Those that were sent and had no answer: they may be stored, or not."""
    seen: dict[Path, list[int]] = field(default_factory=dict)
    """By target: which versions were on disk, each change once."""
    asked: int = 0
    failed: int = 0
    _excused: int = 0
    _watching: bool = False
    _wrong: list[str] = field(default_factory=list)

    # -- what a test tells

    def target(self, path: Path) -> None:
        """The target is judged from now on; what it holds now is what was there first."""
        self.versions[path] = [path.read_bytes()]
        self.seen[path] = [0]

    def ordered(self, path: Path, content: bytes) -> None:
        """The content may be on disk from now on, and has to be, in the end."""
        assert content not in self.versions[path], "orders do not repeat a content"
        self.versions[path].append(content)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """The operator API has a fault of its own meanwhile: its failures do not count."""
        self._excused += 1
        try:
            yield
        finally:
            self._excused -= 1

    # -- while it goes on

    @asynccontextmanager
    async def watching(self, operator: Operator | None = None) -> AsyncIterator[None]:
        """Targets are read, and the operator API is asked, again and again until the end; then P1 and P5 hold."""
        stop = threading.Event()
        reader = threading.Thread(target=self._read, args=(stop,), daemon=True)
        reader.start()
        self._watching = True
        asking = asyncio.create_task(self._ask(operator)) if operator else None
        try:
            yield
        finally:
            self._watching = False
            stop.set()
            await asyncio.to_thread(reader.join)
            if asking:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        self.whole()

    def _read(self, stop: threading.Event) -> None:
        while not stop.is_set():
            for path in list(self.versions):
                self._look(path)
            time.sleep(LOOK_SECONDS)

    def _look(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self._wrong.append(f"{path}: {error}")
            return
        try:
            version = self.versions[path].index(content)
        except ValueError:
            self._wrong.append(f"{path} held {content[:60]!r}, {len(content)} bytes, which nobody ordered")
            return
        if version != self.seen[path][-1]:
            self.seen[path].append(version)

    async def _ask(self, operator: Operator) -> None:
        while True:
            excused = self._excused
            try:
                async with asyncio.timeout(5):
                    ok = await operator() < 500
            except (aiohttp.ClientError, TimeoutError, OSError):
                ok = False
            if not (excused or self._excused):
                self.asked += 1
                self.failed += not ok
            await asyncio.sleep(0.02)

    # -- what it finds

    def whole(self) -> None:
        """P1 and P5: what was seen on disk, at any moment, was ordered, and in that order."""
        assert self._wrong == [], "\n".join(self._wrong[:5])
        for path, seen in self.seen.items():
            assert seen == sorted(seen), f"{path} went back: versions {seen}"

    async def converged(self, *, within: float = PATIENCE) -> None:
        """P4: every target holds what was ordered last; who watches has seen that."""

        def held() -> bool:
            wrong = [
                path
                for path, versions in self.versions.items()
                if path.read_bytes() != versions[-1]
                or (self._watching and self.seen[path][-1] != len(versions) - 1)
            ]
            assert wrong == [], f"not what was ordered last: {wrong}"
            return True

        await eventually(held, within=within, what="every target holds what was ordered last")

    async def accounted(self, *, within: float = PATIENCE) -> None:
        """P3: every accepted report is stored once, counted or kept with a reason, or declared lost."""
        assert len(set(self.accepted)) == len(self.accepted), "the test used an event id twice"

        def complete() -> bool:
            self._account()
            return True

        await eventually(complete, within=within, what="every accepted report is accounted for")

    def _account(self) -> None:
        stored, bare, lost = self._stored()
        twice = [event for event, times in stored.items() if times > 1]
        assert twice == [], f"counted twice: {twice[:5]}"
        assert bare == [], f"neither counted nor kept with a reason: {bare[:5]}"
        strangers = set(stored) - set(self.accepted) - self.uncertain
        assert strangers == set(), f"nobody reported {sorted(strangers)[:5]}"
        missing = set(self.accepted) - set(stored)
        assert len(missing) <= lost, f"{len(missing)} of {len(self.accepted)} are gone, {lost} declared lost"

    def _stored(self) -> tuple[Counter[str], list[str], int]:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as database:
            rows = database.execute(
                "select event_id, reason, exists (select 1 from attributed_event a where a.event_id = event.id)"
                " from event where reason is null or reason <> 'DUPLICATE_EVENT_ID'"
            ).fetchall()
            lost = database.execute("select coalesce(sum(count), 0) from spool_loss").fetchone()[0]
        stored = Counter(str(row[0]) for row in rows)
        return stored, [str(row[0]) for row in rows if row[1] is None and not row[2]], int(lost)

    def answered(self, *, failing: float = 0.0) -> None:
        """The operator API was asked, and at most that share of requests failed."""
        assert self.asked > 0
        assert self.failed <= failing * self.asked, f"{self.failed} of {self.asked} requests failed"

    # -- reports

    async def report(self, socket: Path | str, participant: str, event: str, **fields: Any) -> bool:
        """One impression under an event id of its own; whether it was accepted."""
        body = {"participantId": participant, "eventId": event, **fields}
        try:
            async with (
                asyncio.timeout(10),
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as client,
                client.post("http://agent/v1/impressions", json=body) as answer,
            ):
                if answer.status == 202:
                    self.accepted.append(event)
                return answer.status == 202
        except aiohttp.ClientConnectorError:
            return False
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.uncertain.add(event)
            return False
