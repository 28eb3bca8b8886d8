"""What the spool took it keeps, in order, through restarts, damage and a full disk."""

import asyncio
import errno
import os
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.segments import FRAME_OVERHEAD, frames
from agent.spool import Spool
from shared import wire
from shared.errors import ResourceExhausted, Unavailable
from shared.ids import new_id
from shared.model import CHAIN_START, Batch, Event, EventKind, Record, View, ViewState, chain
from tests.support.clock import FakeClock
from tests.support.waiting import PATIENCE


def impression(subject: str) -> Event:
    return Event(participant="bot-1", kind=EventKind.IMPRESSION, subject=subject, occurred_at=1)


def view(path: str = "SOUL.md") -> View:
    return View(participant="bot-1", path=path, digest=bytes(32), state=ViewState.APPLIED, from_at=1)


@asynccontextmanager
async def opened(directory: Path, **options: Any) -> AsyncIterator[Spool]:
    spool = Spool(directory, clock=FakeClock(), new_id=new_id, **options)
    try:
        yield spool
    finally:
        await asyncio.to_thread(spool.close)


def records(batch: Batch | None) -> list[Record]:
    assert batch is not None
    return [wire.record_from_bytes(raw) for raw in batch.records]


def told(batch: Batch | None) -> list[str]:
    """Subjects of events; reason and sequence of losses."""
    return [
        body.subject if isinstance(body, Event) else f"{body.reason}@{body.first_seq}x{body.count}"
        for body in (record.body for record in records(batch))
        if not isinstance(body, View)
    ]


async def drained(spool: Spool, *, limit: int = 1000) -> list[Batch]:
    """Every batch, each acknowledged before the next, with the contract of batches checked on the way."""
    batches: list[Batch] = []
    chains: dict[bytes, tuple[int, bytes]] = {}
    while batch := await spool.next_batch(limit, 1 << 20):
        seq, value = chains.get(batch.epoch, (0, CHAIN_START))
        assert (batch.first_seq, batch.chain) == (seq + 1, value)
        for raw in batch.records:
            seq, value = seq + 1, chain(value, raw)
        assert seq <= batch.tail_seq
        chains[batch.epoch] = (seq, value)
        batches.append(batch)
        await spool.acknowledge(batch.epoch, seq)
    return batches


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.segment"))


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def start_of(path: Path, seq: int) -> int:
    """Where in a segment the frame of `seq` begins."""
    frame = next(frame for frame in frames(path.read_bytes()) if frame.seq == seq)
    return frame.end - len(frame.payload) - FRAME_OVERHEAD


async def test_records_survive_restarts_in_the_order_they_came(tmp_path: Path) -> None:
    """Each start is an epoch of its own; the oldest goes first, and sequences begin at 1 in each."""
    for start in range(3):
        async with opened(tmp_path) as spool:
            for number in range(4):
                await spool.append(impression(f"{start}.{number}"))
    async with opened(tmp_path) as spool:
        assert spool.state().depth == 12
        batches = await drained(spool, limit=3)
        assert [s for batch in batches for s in told(batch)] == [
            f"{start}.{number}" for start in range(3) for number in range(4)
        ]
        assert [batch.first_seq for batch in batches] == [1, 4] * 3
        assert len({batch.epoch for batch in batches}) == 3
        assert spool.state().depth == 0


async def test_record_is_returned_as_it_is_sent(tmp_path: Path) -> None:
    """The id given to the application is the id that dedupes."""
    async with opened(tmp_path) as spool:
        kept = [await spool.append(view()), await spool.append(impression("a"))]
        assert records(await spool.next_batch(10, 1 << 20)) == kept


async def test_append_returns_only_after_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk has not said that it is safe, nobody is told that it is."""
    reached, release = asyncio.Event(), threading.Event()
    loop, real = asyncio.get_running_loop(), os.fdatasync

    def slow(fd: int) -> None:
        loop.call_soon_threadsafe(reached.set)
        release.wait(PATIENCE)
        real(fd)

    async with opened(tmp_path) as spool:
        monkeypatch.setattr(os, "fdatasync", slow)
        pending = asyncio.create_task(spool.append(impression("a")))
        await reached.wait()
        assert not pending.done()
        assert spool.state().depth == 0
        release.set()
        await pending
        assert spool.state().depth == 1


async def test_waiting_reporters_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred reports that arrive during one fsync cost one more, and keep their order."""
    reached, release = asyncio.Event(), threading.Event()
    loop, real = asyncio.get_running_loop(), os.fdatasync
    syncs: list[int] = []

    def counted(fd: int) -> None:
        syncs.append(fd)
        loop.call_soon_threadsafe(reached.set)
        release.wait(PATIENCE)
        real(fd)

    async with opened(tmp_path) as spool:
        monkeypatch.setattr(os, "fdatasync", counted)
        first = asyncio.create_task(spool.append(impression("first")))
        await reached.wait()
        others = [asyncio.create_task(spool.append(impression(str(n)))) for n in range(100)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(first, *others)
        assert len(syncs) == 2
        assert told(await spool.next_batch(1000, 1 << 20)) == ["first", *(str(n) for n in range(100))]


async def test_acknowledged_segments_are_deleted_and_never_sent_again(tmp_path: Path) -> None:
    """The cursor is durable before a segment goes, so a restart in between sends nothing twice."""
    async with opened(tmp_path, segment_bytes=200) as spool:
        for number in range(20):
            await spool.append(impression(str(number)))
        before = segments(tmp_path)
        assert len(before) > 4
        batch = await spool.next_batch(11, 1 << 20)
        assert batch is not None
        await spool.acknowledge(batch.epoch, 11)
        after = segments(tmp_path)
        assert after == before[-len(after) :]
        assert len(after) < len(before)
        again = await spool.next_batch(100, 1 << 20)
        assert again is not None
        assert again.first_seq == 12
    async with opened(tmp_path) as spool:
        batches = await drained_from(spool, again.first_seq)
        assert [s for batch in batches for s in told(batch)] == [str(number) for number in range(11, 20)]
        assert segments(tmp_path) == []


async def drained_from(spool: Spool, first: int) -> list[Batch]:
    batches = []
    while batch := await spool.next_batch(1000, 1 << 20):
        assert batch.first_seq == first
        first += len(batch.records)
        batches.append(batch)
        await spool.acknowledge(batch.epoch, first - 1)
    return batches


async def test_chain_goes_on_where_the_cursor_stands(tmp_path: Path) -> None:
    """After a restart the hash before the next record is the hash of everything acknowledged."""
    async with opened(tmp_path) as spool:
        for number in range(6):
            await spool.append(impression(str(number)))
        whole = await spool.next_batch(100, 1 << 20)
        assert whole is not None
        await spool.acknowledge(whole.epoch, 2)
    async with opened(tmp_path) as spool:
        rest = await spool.next_batch(100, 1 << 20)
        assert rest is not None
        assert rest.chain == chain(chain(CHAIN_START, whole.records[0]), whole.records[1])
        assert rest.records == whole.records[2:]


async def test_acknowledging_twice_or_too_much_is_harmless(tmp_path: Path) -> None:
    """A sequence above the tail means the tail; an epoch nobody knows means nothing."""
    async with opened(tmp_path) as spool:
        await spool.append(impression("a"))
        batch = await spool.next_batch(1, 1 << 20)
        assert batch is not None
        await spool.acknowledge(new_id(), 5)
        assert spool.state().depth == 1
        await spool.acknowledge(batch.epoch, 99)
        await spool.acknowledge(batch.epoch, 1)
        assert spool.state().depth == 0
        await spool.append(impression("b"))
        following = await spool.next_batch(1, 1 << 20)
        assert following is not None
        assert following.first_seq == 2


@pytest.mark.fault(45)
@pytest.mark.parametrize("cut", [1, 5, FRAME_OVERHEAD + 3])
async def test_torn_tail_costs_that_record_only(tmp_path: Path, cut: int) -> None:
    """A write that did not finish is declared, once, in its place; the next start goes on behind it."""
    async with opened(tmp_path) as spool:
        for number in range(5):
            await spool.append(impression(str(number)))
    (segment,) = segments(tmp_path)
    damage(segment, lambda data: data.__delitem__(slice(len(data) - cut, None)))
    async with opened(tmp_path) as spool:
        await spool.append(impression("later"))
        first, second = await drained(spool)
        assert told(first) == ["0", "1", "2", "3", "torn@5x1"]
        assert told(second) == ["later"]
        assert spool.lost() == {"torn": 1}
        assert [condition.code for condition in spool.conditions()] == ["SPOOL_DAMAGED"]


@pytest.mark.fault(45)
@pytest.mark.parametrize("where", ["marker", "length", "crc", "seq", "payload"])
@pytest.mark.parametrize("seq", [1, 3, 5])
async def test_flipped_bit_costs_that_record_only(tmp_path: Path, where: str, seq: int) -> None:
    """Wherever in its frame the bit is: neighbours go up, the loss stands at the record's own sequence."""
    async with opened(tmp_path) as spool:
        for number in range(1, 6):
            await spool.append(impression(str(number)))
    (segment,) = segments(tmp_path)
    offset = start_of(segment, seq) + {"marker": 1, "length": 5, "crc": 9, "seq": 12, "payload": 30}[where]
    damage(segment, lambda data: data.__setitem__(offset, data[offset] ^ 0x10))
    async with opened(tmp_path) as spool:
        (batch,) = await drained(spool)
        expected = [str(number) for number in range(1, 6)]
        got = told(batch)
        assert got[: seq - 1] + got[seq:] == expected[: seq - 1] + expected[seq:]
        assert got[seq - 1] in (f"corrupt@{seq}x1", f"torn@{seq}x1")
        assert sum(spool.lost().values()) == 1


@pytest.mark.fault(45)
async def test_zeroed_page_costs_exactly_the_records_in_it(tmp_path: Path) -> None:
    """The sequence in the next intact frame says how many are gone."""
    async with opened(tmp_path) as spool:
        for number in range(1, 101):
            await spool.append(impression(f"{number:03d}"))
    (segment,) = segments(tmp_path)
    begin, end = start_of(segment, 40) + 3, start_of(segment, 61) - 3
    damage(segment, lambda data: data.__setitem__(slice(begin, end), bytes(end - begin)))
    async with opened(tmp_path) as spool:
        (batch,) = await drained(spool)
        got = told(batch)
        assert got[:39] == [f"{number:03d}" for number in range(1, 40)]
        assert got[39:60] == [f"corrupt@{seq}x1" for seq in range(40, 61)]
        assert got[60:] == [f"{number:03d}" for number in range(61, 101)]


@pytest.mark.fault(45)
async def test_missing_segment_is_declared_record_by_record(tmp_path: Path) -> None:
    """Names of segments say which sequences stood between them."""
    async with opened(tmp_path, segment_bytes=1) as spool:
        for number in range(1, 6):
            await spool.append(impression(str(number)))
    segments(tmp_path)[2].unlink()
    async with opened(tmp_path) as spool:
        (batch,) = await drained(spool)
        assert told(batch) == ["1", "2", "missing_segment@3x1", "4", "5"]


async def test_declared_loss_is_the_same_at_every_re_send(tmp_path: Path) -> None:
    """A batch sent before a restart and again after it has the same bytes, so its chain hash fits."""
    async with opened(tmp_path) as spool:
        for number in range(3):
            await spool.append(impression(str(number)))
    (segment,) = segments(tmp_path)
    damage(segment, lambda data: data.__setitem__(start_of(segment, 2) + 25, 0))
    sent = []
    for _ in range(2):
        async with opened(tmp_path) as spool:
            sent.append(await spool.next_batch(10, 1 << 20))
    assert sent[0] == sent[1]


@pytest.mark.fault(45)
async def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """What another version or person put there is neither read nor deleted."""
    foreign = [tmp_path / "notes.txt", tmp_path / f"{new_id().hex()}-{1:020d}.v2.segment"]
    for path in foreign:
        path.write_text("not ours")
    async with opened(tmp_path) as spool:
        await spool.append(impression("a"))
        assert [told(batch) for batch in await drained(spool)] == [["a"]]
    assert all(path.read_text() == "not ours" for path in foreign)


@pytest.mark.fault(45)
async def test_damaged_cursor_loses_and_declares_nothing(tmp_path: Path) -> None:
    """One of its two files rots: what was acknowledged may be sent again, nothing is called missing."""
    async with opened(tmp_path, segment_bytes=1) as spool:
        for number in range(6):
            await spool.append(impression(str(number)))
        epoch = spool.state().epoch
        for through in (1, 2, 3):
            await spool.acknowledge(epoch, through)
    for newest in sorted(tmp_path.glob("cursor.*"), key=lambda path: path.stat().st_mtime_ns)[-1:]:
        damage(newest, lambda data: data.__setitem__(20, data[20] ^ 1))
    async with opened(tmp_path) as spool:
        batch = await spool.next_batch(10, 1 << 20)
        assert told(batch) == ["3", "4", "5"]


async def test_diverged_epoch_is_sent_again_under_a_new_one(tmp_path: Path) -> None:
    """Same record ids, sequences from 1, and what came meanwhile stays behind it."""
    async with opened(tmp_path) as spool:
        kept = [await spool.append(impression(str(number))) for number in range(4)]
        before = await spool.next_batch(10, 1 << 20)
        assert before is not None
        await spool.acknowledge(before.epoch, 1)
        await spool.diverged(before.epoch)
        kept.append(await spool.append(impression("after")))
        again = await spool.next_batch(10, 1 << 20)
        assert again is not None
        assert again.epoch not in (before.epoch, bytes(16))
        assert (again.first_seq, again.chain, again.tail_seq) == (1, CHAIN_START, 3)
        assert records(again) == kept[1:4]
        assert spool.state().epoch != again.epoch
    async with opened(tmp_path) as spool:
        assert [records(batch) for batch in await drained(spool)] == [kept[1:4], kept[4:]]


async def test_divergence_needs_no_space_and_may_come_again(tmp_path: Path) -> None:
    """The files stay as they are; only the name and the place they are sent under are others."""
    async with opened(tmp_path, segment_bytes=200) as spool:
        for number in range(6):
            await spool.append(impression(str(number)))
        files = {path: path.read_bytes() for path in segments(tmp_path)}
        epoch = spool.state().epoch
        await spool.acknowledge(epoch, 1)
        for _ in range(2):
            await spool.diverged(epoch)
            batch = await spool.next_batch(2, 1 << 20)
            assert batch is not None
            epoch = batch.epoch
            assert (batch.first_seq, batch.tail_seq, told(batch)) == (1, 5, ["1", "2"])
        assert {path: path.read_bytes() for path in segments(tmp_path)} == files
        await spool.acknowledge(epoch, 2)
        await spool.diverged(epoch)
        assert [told(batch) for batch in await drained(spool)] == [["3", "4", "5"]]
        assert segments(tmp_path) == []


async def test_diverged_older_epoch_does_not_starve_behind_the_present_one(tmp_path: Path) -> None:
    """What is appended from then on is an epoch behind it, so the one that was present empties first."""
    async with opened(tmp_path) as spool:
        await spool.append(impression("old"))
        old = spool.state().epoch
    async with opened(tmp_path) as spool:
        await spool.append(impression("present"))
        await spool.diverged(old)
        await spool.append(impression("new"))
        assert [told(batch) for batch in await drained(spool)] == [["present"], ["old"], ["new"]]


@pytest.mark.fault(12)
async def test_full_spool_refuses_events_and_still_takes_views(tmp_path: Path) -> None:
    """The application hears it at once; what was on disk stays known; room comes back by itself."""
    async with opened(tmp_path, max_bytes=2000, segment_bytes=500) as spool:
        taken = 0
        while spool.state().size < 1950:
            await spool.append(impression(str(taken)))
            taken += 1
        with pytest.raises(ResourceExhausted) as refused:
            await spool.append(impression("x" * 50))
        assert refused.value.reason == "SPOOL_FULL"
        assert not spool.writable
        await spool.append(view())
        assert spool.state().depth == taken + 1
        batches = await drained(spool)
        assert len([s for batch in batches for s in told(batch)]) == taken
        await spool.append(impression("again"))
        assert spool.writable
        assert spool.conditions() == ()


async def test_acknowledged_open_segment_makes_room(tmp_path: Path) -> None:
    """A spool that is full of what is done with is not full."""
    async with opened(tmp_path, max_bytes=300) as spool:
        for number in range(30):
            await spool.append(impression(str(number)))
            await drained_quietly(spool)
        assert spool.state().size <= 300


async def drained_quietly(spool: Spool) -> None:
    while batch := await spool.next_batch(10, 1 << 20):
        await spool.acknowledge(batch.epoch, batch.first_seq + len(batch.records) - 1)


async def test_batch_of_events_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    """What was refused leaves nothing behind."""
    async with opened(tmp_path, max_bytes=1000) as spool:
        with pytest.raises(ResourceExhausted):
            await spool.append_all([impression("x" * 200) for _ in range(10)])
        assert await spool.next_batch(10, 1 << 20) is None
        assert len(await spool.append_all([impression("a"), impression("b")])) == 2


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    ("number", "refusal"),
    [(errno.EIO, Unavailable), (errno.ENOSPC, ResourceExhausted), (errno.EROFS, Unavailable)],
)
async def test_failed_sync_is_never_taken_for_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refusal: type[Exception]
) -> None:
    """The reporter is refused, nothing of it is sent, and the spool goes on when the disk does."""
    real = os.fdatasync

    def failing(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    async with opened(tmp_path) as spool:
        await spool.append(impression("before"))
        monkeypatch.setattr(os, "fdatasync", failing)
        with pytest.raises(refusal):
            await spool.append(impression("refused"))
        assert not spool.writable
        monkeypatch.setattr(os, "fdatasync", real)
        await spool.append(impression("after"))
        assert spool.writable
        assert [told(batch) for batch in await drained(spool)] == [["before", "after"]]


@pytest.mark.fault(17)
async def test_one_failed_sync_is_made_good_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is written again to a fresh file, since the page cache cannot be trusted any more."""
    real, fails = os.fdatasync, [OSError(errno.EIO, "Input/output error")]

    def once(fd: int) -> None:
        if fails:
            raise fails.pop()
        real(fd)

    async with opened(tmp_path) as spool:
        await spool.append(impression("before"))
        monkeypatch.setattr(os, "fdatasync", once)
        await spool.append(impression("again"))
    async with opened(tmp_path) as spool:
        assert [told(batch) for batch in await drained(spool)] == [["before", "again"]]


async def test_waiting_ends_with_the_first_record(tmp_path: Path) -> None:
    """`wait` is what wakes the uplink: at once where something is there, later by an append."""
    async with opened(tmp_path) as spool:
        waiting = asyncio.create_task(spool.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        await spool.append(impression("a"))
        await asyncio.wait_for(waiting, PATIENCE)
        await asyncio.wait_for(spool.wait(), PATIENCE)


async def test_closed_spool_says_so(tmp_path: Path) -> None:
    """A report after the end is refused, not forgotten."""
    async with opened(tmp_path) as spool:
        pass
    with pytest.raises(Unavailable):
        await spool.append(impression("late"))


WRITER = """
import asyncio, sys
from pathlib import Path
from agent.spool import Spool
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import Event, EventKind

async def main():
    spool = Spool(Path(sys.argv[1]), clock=SystemClock(), new_id=new_id)
    async def reporter(name):
        number = 0
        while True:
            subject = f"{name}.{number}"
            await spool.append(Event(participant="p", kind=EventKind.IMPRESSION, subject=subject, occurred_at=1))
            print(f"{name}.{number}", flush=True)
            number += 1
    await asyncio.gather(*(reporter(name) for name in "abcdefgh"))

asyncio.run(main())
"""


async def test_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """kill -9 in the middle of many reporters: every answered record is read back, in each one's order."""
    directory = tmp_path / "spool"
    command = [sys.executable, "-c", WRITER, str(directory)]
    writer = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert writer.stdout is not None
    answered = [(await writer.stdout.readline()).decode().strip() for _ in range(200)]
    writer.kill()
    answered += (await writer.stdout.read()).decode().split()
    await writer.wait()
    async with opened(directory) as spool:
        kept = [s for batch in await drained(spool) for s in told(batch)]
    assert set(answered) <= set(kept)
    assert not [s for s in kept if "@" in s and not s.startswith("torn")]
    for name in "abcdefgh":
        mine = [s for s in kept if s.startswith(name + ".")]
        assert mine == [f"{name}.{number}" for number in range(len(mine))]


async def test_backlog_costs_no_memory(tmp_path: Path) -> None:
    """Opening and asking for a batch reads at most one segment, however many there are."""
    async with opened(tmp_path, segment_bytes=64 * 1024) as spool:
        for _ in range(40):
            await spool.append_all([impression("x" * 200) for _ in range(500)])
    tracemalloc.start()
    try:
        async with opened(tmp_path) as spool:
            assert spool.state().depth == 20_000
            assert spool.state().size > 4_000_000
            assert await spool.next_batch(1000, 256 * 1024) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
