"""Opens of a target are impressions where the host says so: never too many, and what went unseen is told."""

import asyncio
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from asyncinotify import Inotify

from agent.beneath import OWN
from agent.config import AgentConfig
from agent.notices import Notice, What
from agent.opens import Opens
from agent.watch import REHASH_SECONDS, Watch
from shared.errors import ResourceExhausted
from shared.model import Event, EventKind, EventSource, Exposure, Unseen, digest
from tests.agent.test_spool import opened, records
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, Host, make_config, make_offer, make_participant, running_host
from tests.support.waiting import PATIENCE, eventually

Configure = Callable[[AgentConfig], AgentConfig]


class Counted:
    """A host whose opens are counted, and what was recorded of them."""

    def __init__(self, host: Host, clock: FakeClock) -> None:
        self.host, self.clock = host, clock
        self.records: list[Event | Unseen] = []
        self.is_full = False
        participant = make_participant(host.root, exposure=Exposure.ON_OPEN)
        self.opens = Opens(
            config=make_config(host.state_dir, participant),
            append=self._append,
            holding=host.reconciler.view_of,
            alive=host.state_dir / "opens",
            clock=clock,
        )
        self.watch = Watch(reconciler=host.reconciler, clock=clock, opens=self.opens)

    async def _append(self, records: Sequence[Event | Unseen]) -> None:
        if self.is_full:
            raise ResourceExhausted("full", reason="SPOOL_FULL")
        self.records += records

    @property
    def events(self) -> list[Event]:
        return [record for record in self.records if isinstance(record, Event)]

    @property
    def unseen(self) -> list[str]:
        return [record.reason for record in self.records if isinstance(record, Unseen)]

    async def counts(self, number: int) -> None:
        """So many opens were counted, and when all is quiet no more."""
        await eventually(lambda: len(self.events) >= number, what=f"{number} opens")
        await self.quiet()
        assert len(self.events) == number

    async def quiet(self) -> None:
        """Behind everything that the kernel had to say until now: a change of another target, and its view."""
        views = len(self.host.views)
        (self.host.root / "marker.md").write_text(f"{views}")
        await eventually(lambda: len(self.host.views) > views)
        # A view is on record before its look is over: until then a reading may be taken for one of ours.
        await eventually(lambda: not self.opens.waiting and not self.opens.settled())


@asynccontextmanager
async def counted(
    directory: Path, clock: FakeClock | None = None, configure: Configure = lambda config: config
) -> AsyncIterator[Counted]:
    """Opens of soul.md and marker.md are counted, the second of which tests write to as a sign."""
    clock = clock or FakeClock()
    async with running_host(directory, clock=clock, follow_symlinks=True, configure=configure) as host:
        if not host.reconciler.watched():
            await host.apply(make_offer({"soul.md": "A"}))
            await host.apply(make_offer({"marker.md": "0"}, slot_id=OTHER_SLOT))
        count = Counted(host, clock)
        running = asyncio.create_task(count.watch.run())
        try:
            await eventually(lambda: count.opens.following)
            yield count
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_every_reading_is_an_impression(tmp_path: Path) -> None:
    """With what lay there, and when; however it is read, and by the same reader again."""
    async with counted(tmp_path) as count:
        target = count.host.root / "soul.md"
        for _ in range(3):
            assert target.read_text() == "A"
        process = await asyncio.create_subprocess_exec("cat", str(target), stdout=asyncio.subprocess.DEVNULL)
        await process.wait()
        await count.counts(4)
        for event in count.events:
            assert (event.kind, event.source) == (EventKind.IMPRESSION, EventSource.ON_OPEN)
            assert (event.participant, event.path, event.digest) == ("bot-1", "soul.md", digest(b"A"))
            assert event.occurred_at == count.clock.now()
        assert count.opens.counted == Counter({"bot-1": 4})
        assert count.unseen == []


async def test_our_own_looks_are_no_impressions(tmp_path: Path) -> None:
    """Looks, offers that replace the file and their read-back; and none of them hides another's."""
    async with counted(tmp_path) as count:
        for revision in range(2, 6):
            await count.host.reconciler.observed("bot-1", "soul.md")
            await count.host.apply(make_offer({"soul.md": f"version {revision}"}, revision=revision))
        await eventually(lambda: count.clock.sleeping)
        await count.clock.advance(REHASH_SECONDS)
        await count.counts(0)
        await count.quiet()  # of our looks at earlier versions none may be taken for this reading any more
        (count.host.root / "soul.md").read_text()
        await count.counts(1)
        assert count.events[0].digest == digest(b"version 5")


async def test_writing_and_replacing_read_nothing(tmp_path: Path) -> None:
    """In place, by a rename, by an editor's own file beside it; a tool that reads before it writes counts once."""
    async with counted(tmp_path) as count:
        root = count.host.root
        (root / "soul.md").write_text("in place")
        with (root / "soul.md").open("a") as file:
            file.write(" more")
        (root / "soul.md~").write_text("replaced")
        (root / "soul.md~").rename(root / "soul.md")
        (root / "neighbour.md").write_text("x")
        (root / "neighbour.md").read_text()
        await count.counts(0)
        process = await asyncio.create_subprocess_exec("sed", "-i", "s/r/R/", str(root / "soul.md"))
        await process.wait()
        await count.counts(1)
        (root / "soul.md").read_text()
        await count.counts(2)
        assert count.events[1].digest == digest(b"Replaced")


async def test_what_changed_meanwhile_has_no_digest(tmp_path: Path) -> None:
    """Rather than the wrong one: the control plane goes by what lay there at that moment, or not."""
    async with counted(tmp_path) as count:
        await count.quiet()  # the first look of our own is over: it is not told from others, only counted
        target = count.host.root / "soul.md"
        target.read_text()
        (count.host.root / "new").write_text("B")
        (count.host.root / "new").rename(target)
        await count.counts(1)
        await count.quiet()  # nor may our looks at what lay there before be taken for what comes
        target.read_text()
        await count.counts(2)
        assert [event.digest for event in count.events] == [None, digest(b"B")]


async def test_a_link_s_reader_reads_the_file_behind_it(tmp_path: Path) -> None:
    """Once, as a reading of the target that a slot holds, by either name."""
    (tmp_path / "root" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "deep" / "real.md").write_text("old")
    (tmp_path / "root" / "link.md").symlink_to("deep/real.md")
    async with counted(tmp_path) as count:
        await count.host.apply(make_offer({"link.md": "A"}, slot_id=bytes(15) + b"\3"))
        count.watch.changed()
        await eventually(lambda: count.opens.following == 3)
        (count.host.root / "link.md").read_text()
        (count.host.root / "deep" / "real.md").read_text()
        await count.counts(2)
        assert {(event.path, event.digest) for event in count.events} == {("link.md", digest(b"A"))}


async def test_a_directory_that_another_participant_knows_by_another_name_is_read_all_the_same(
    tmp_path: Path,
) -> None:
    """Also where the other one's readings are of nobody's interest."""
    (tmp_path / "name").symlink_to("root")

    def with_another(config: AgentConfig) -> AgentConfig:
        other = make_participant(tmp_path / "name", "bot-2", root_is_made=False)
        return replace(config, participants=(*config.participants, other))

    async with counted(tmp_path, configure=with_another) as count:
        await count.host.apply(make_offer({"other.md": "B"}, participant="bot-2"))
        count.watch.changed()
        await count.quiet()
        (count.host.root / "other.md").read_text()
        (count.host.root / "soul.md").read_text()
        (count.host.root / "soul.md").read_text()
        await count.counts(2)
        assert {event.path for event in count.events} == {"soul.md"}


@pytest.mark.fault(24)
async def test_a_replaced_directory_is_watched_again_and_the_time_between_is_told(tmp_path: Path) -> None:
    """At the next look; what was opened until then is called unseen."""
    async with counted(tmp_path) as count:
        await count.host.apply(make_offer({"config/soul.md": "A"}, slot_id=bytes(15) + b"\3"))
        count.watch.changed()
        await eventually(lambda: count.opens.following == 3)
        config = count.host.root / "config"
        config.rename(count.host.root / "aside")
        config.mkdir()
        (config / "soul.md").write_text("A")
        await eventually(lambda: "replaced" in count.unseen)
        await eventually(lambda: count.clock.sleeping)
        await count.clock.advance(REHASH_SECONDS)
        await eventually(lambda: count.opens.following == 3)
        (config / "soul.md").read_text()
        await count.counts(1)


@pytest.mark.fault(24)
async def test_dropped_notices_make_a_declared_lower_bound(tmp_path: Path) -> None:
    """The kernel says that it dropped some: so many were there at least."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 100_000:
        pytest.skip("this host queues too many notices to fill the queue in a test")
    async with counted(tmp_path) as count:
        target = count.host.root / "soul.md"
        for _ in range(most // 2 + 100):
            os.close(os.open(target, os.O_RDONLY))
        await eventually(lambda: "overflow" in count.unseen)
        assert 0 < len(count.events) <= most // 2 + 100


@pytest.mark.fault(24)
async def test_without_a_watch_nothing_is_counted_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From when to when, once it works again."""

    def none_left(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    clock = FakeClock()
    async with counted(tmp_path, clock):
        pass
    monkeypatch.setattr(Inotify, "add_watch", none_left)
    async with running_host(tmp_path, clock=clock) as host:
        count = Counted(host, clock)
        began = clock.now()
        running = asyncio.create_task(count.watch.run())
        await eventually(count.watch.conditions)
        (host.root / "soul.md").read_text()
        monkeypatch.undo()
        await eventually(lambda: clock.sleeping)
        await clock.advance(REHASH_SECONDS)
        await eventually(lambda: count.opens.following == 2)
        (host.root / "soul.md").read_text()
        await count.counts(1)
        told = [record for record in count.records if isinstance(record, Unseen)]
        assert {record.reason for record in told} == {"unwatched"}
        assert (min(t.from_at for t in told), max(t.to_at for t in told)) == (began, clock.now())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_while_the_agent_does_not_run_opens_go_unseen(tmp_path: Path) -> None:
    """The next start tells since when, within a look of it."""
    clock = FakeClock()
    async with counted(tmp_path, clock) as count:
        assert count.unseen == []  # before the first start nothing was to be counted
        await eventually(lambda: clock.sleeping)
        await clock.advance(REHASH_SECONDS)
        await eventually((tmp_path / "state" / "opens").exists)
        stopped = clock.now()
    await clock.advance(1000)
    async with counted(tmp_path, clock) as count:
        await count.quiet()  # the kernel tells of a reading during our first look as of one with it
        (count.host.root / "soul.md").read_text()
        await count.counts(1)
        [record] = [record for record in count.records if isinstance(record, Unseen)]
        assert (record.reason, record.from_at, record.to_at) == ("not_running", stopped, clock.now())


async def test_opens_wait_for_a_full_spool(tmp_path: Path) -> None:
    """There is nobody to refuse them to; they go in, in order, once there is room."""
    async with counted(tmp_path) as count:
        count.is_full = True
        (count.host.root / "soul.md").read_text()
        await eventually(lambda: count.opens.waiting)
        count.is_full = False
        (count.host.root / "soul.md").read_text()
        await count.counts(2)


@pytest.mark.parametrize("is_changed", [True, False])
async def test_a_look_of_our_own_beside_another_s_gives_it_no_wrong_digest(
    tmp_path: Path, *, is_changed: bool
) -> None:
    """Which of two readings was ours is not known: with a change between them neither has a digest."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        count = Counted(host, FakeClock())
        real, status = host.root / "soul.md", host.root.stat()
        count.opens.follow({real: ("bot-1", "soul.md")}, {host.root: (status.st_dev, status.st_ino)})
        directory = os.open(host.root, os.O_PATH)
        between = [What.CHANGED] if is_changed else []
        with OWN.reading(directory, "soul.md"):
            for what in (What.OPENED, What.READ, *between, What.OPENED, What.READ):
                count.opens.take(Notice(what, real))
            await count.opens.settle(count.opens.settled())
        over = count.opens.settled()
        await count.opens.settle(over)
        for what in (What.OPENED, What.READ):
            count.opens.take(Notice(what, real))
        await count.opens.settle()
        os.close(directory)
        first = None if is_changed else digest(b"A")
        assert [event.digest for event in count.events] == [first, digest(b"A")]


def on_open(host: Host, append: Callable[..., object], clock: FakeClock) -> Opens:
    return Opens(
        config=make_config(host.state_dir, make_participant(host.root, exposure=Exposure.ON_OPEN)),
        append=append,  # type: ignore[arg-type]
        holding=host.reconciler.view_of,
        alive=host.state_dir / "opens",
        clock=clock,
    )


async def test_who_settles_at_the_same_time_records_nothing_twice(tmp_path: Path) -> None:
    """On a real spool: one open, one record, and neither of the two fails."""
    async with running_host(tmp_path / "host") as host, opened(tmp_path / "spool") as spool:
        await host.apply(make_offer({"soul.md": "A"}))
        opens = on_open(host, spool.append_all, FakeClock())
        real, status = host.root / "soul.md", host.root.stat()
        opens.follow({real: ("bot-1", "soul.md")}, {host.root: (status.st_dev, status.st_ino)})
        for what in (What.OPENED, What.READ):
            opens.take(Notice(what, real))
        told = await asyncio.gather(opens.settle(), opens.settle(), return_exceptions=True)
        batch = await spool.next_batch(100, 1 << 20)
        assert (told, len(records(batch)), dict(opens.counted)) == ([None, None], 1, {"bot-1": 1})


async def test_the_periodic_look_during_an_fsync_ends_no_watch(tmp_path: Path) -> None:
    """The same by the watch's own two tasks: it lives, and one open is one impression."""
    clock, durable, begun = FakeClock(), asyncio.Event(), asyncio.Event()
    recorded: list[Event | Unseen] = []

    async def append(some: Sequence[Event | Unseen]) -> None:
        begun.set()
        await durable.wait()
        recorded.extend(some)

    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        opens = on_open(host, append, clock)
        watching = asyncio.create_task(Watch(reconciler=host.reconciler, clock=clock, opens=opens).run())
        try:
            await eventually(lambda: opens.following and clock.sleeping)
            (host.root / "soul.md").read_text()
            await asyncio.wait_for(begun.wait(), PATIENCE)
            alive = host.state_dir / "opens"
            await clock.advance(REHASH_SECONDS)
            await eventually(alive.exists)  # right before the periodic look settles
            await clock.advance(0)  # and now it does
            durable.set()
            (host.root / "soul.md").write_text("edited")  # a sign behind everything else
            await eventually(lambda: watching.done() or len(host.views) > 1)
            await eventually(lambda: watching.done() or not opens.waiting)
            assert not watching.done() or watching.exception() is None
            assert sum(isinstance(one, Event) for one in recorded) == 1
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_note_that_was_cut_short_is_a_stop(tmp_path: Path) -> None:
    """A full disk or a power cut leaves the file empty: that opens went unseen is told all the same."""
    async with running_host(tmp_path) as host:
        (host.state_dir / "opens").write_text("")
        told: list[Event | Unseen] = []

        async def append(some: Sequence[Event | Unseen]) -> None:
            told.extend(some)

        await on_open(host, append, FakeClock()).settle()
        assert [one.reason for one in told if isinstance(one, Unseen)] == ["not_running"]
