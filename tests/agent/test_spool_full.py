"""A full spool says so or counts, exactly, and nobody can fill it for the others."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import WhenFull
from agent.spool import Spool
from shared.errors import ResourceExhausted, Unavailable
from shared.ids import new_id
from shared.model import Event, EventKind, View, ViewState
from tests.agent.test_spool import damage, impression, opened, records, segments, told
from tests.support.clock import FakeClock
from tests.support.ledger import Ledger
from tests.support.privileged import mounted

DROP = WhenFull.DROP_NEWEST


def codes(spool: Spool) -> list[str]:
    return [condition.code for condition in spool.conditions()]


async def fill(spool: Spool) -> int:
    """Reports until the first that found no space, which was one of them; how many were kept."""
    before, kept = spool.dropped, 0
    while True:
        try:
            await spool.append(impression(f"kept {kept}"))
        except ResourceExhausted:
            return kept
        if spool.dropped > before:
            return kept
        kept += 1


# -- dropping ----------------------------------------------------------------------------------------


@pytest.mark.fault(12)
async def test_dropped_reports_go_up_as_one_exact_count(tmp_path: Path) -> None:
    """In their place among the others, and counted again from one once there was room in between."""
    ledger = Ledger()
    async with opened(tmp_path, max_bytes=2000, segment_bytes=300, when_full=DROP) as spool:
        kept = await fill(spool)
        await spool.append_all([impression("x"), impression("y")])
        assert (spool.dropped, codes(spool)) == (3, ["SPOOL_FULL"])
        assert "dropped and counted" in spool.conditions()[0].message
        assert spool.state().depth == kept + 1
        await ledger.drain(spool)
        assert (ledger.lost, spool.lost()) == ({"spool_full": 3}, {"spool_full": 3})
        kept += await fill(spool)
        await ledger.drain(spool)
    assert len(ledger.records) == kept
    assert ledger.lost == {"spool_full": 4}
    assert len(ledger.losses) == 2
    assert {loss.first_seq for loss in ledger.losses.values()} == {0}


@pytest.mark.fault(12)
async def test_the_count_is_durable_before_anybody_is_answered(tmp_path: Path) -> None:
    """It outlives restarts, and one of the cursor's files; each start counts for itself."""
    ledger = Ledger()
    for start in range(3):
        async with opened(tmp_path, max_bytes=1000, when_full=DROP) as spool:
            await fill(spool)
            assert spool.dropped == start + 1
        newest = max(tmp_path.glob("cursor.*"), key=lambda path: path.stat().st_mtime_ns)
        damage(newest, lambda data: data.__setitem__(30, data[30] ^ 1))
    async with opened(tmp_path) as spool:
        await ledger.drain(spool)
        assert (spool.dropped, ledger.lost) == (3, {"spool_full": 3})


async def test_a_count_that_was_sent_is_not_added_to(tmp_path: Path) -> None:
    """Its bytes are hashed by now; what is dropped meanwhile is a count of its own behind it."""
    ledger = Ledger()
    async with opened(tmp_path, max_bytes=300, when_full=DROP) as spool:
        kept = await fill(spool)
        sent = await spool.next_batch(100, 1 << 20)
        await spool.append(impression("x"))
        await spool.append(impression("y"))
        again = await spool.next_batch(100, 1 << 20)
        assert again is not None
        assert sent is not None
        assert again.records == sent.records
        assert told(sent)[kept:] == ["spool_full@0x1"]
        assert sent is not None
        await spool.acknowledge(sent.epoch, ledger.take(sent).through_seq)
        behind = await spool.next_batch(100, 1 << 20)
        assert told(behind) == ["spool_full@0x2"]
        await ledger.drain(spool)
    assert (len(ledger.records), ledger.lost) == (kept, {"spool_full": 3})


async def test_views_are_never_dropped(tmp_path: Path) -> None:
    """What was on disk has a reserve, and behind it is refused, so that whoever saw it keeps it."""
    view = View(participant="p", path="f", digest=bytes(32), state=ViewState.APPLIED, from_at=1)
    async with opened(tmp_path, max_bytes=1000, when_full=DROP) as spool:
        await fill(spool)
        await spool.append(view)
        with pytest.raises(ResourceExhausted):
            for _ in range(100):
                await spool.append(view)
        assert spool.dropped == 1


@pytest.mark.fault(17)
async def test_a_disk_that_fails_is_no_reason_to_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is full is counted; a broken disk is told to whoever reports."""

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    async with opened(tmp_path, when_full=DROP) as spool:
        monkeypatch.setattr(os, "fdatasync", failing)
        with pytest.raises(Unavailable):
            await spool.append(impression("a"))
        assert spool.dropped == 0
        monkeypatch.undo()
        await spool.append(impression("b"))


# -- a disk ------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    at = tmp_path / "disk"
    at.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs", at=at):
        yield at


def occupy(disk: Path) -> Path:
    """Nothing more fits, because of somebody else."""
    other = disk / "other"
    with other.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return other


@pytest.mark.fault(12)
@pytest.mark.parametrize("when_full", WhenFull)
async def test_a_full_disk_keeps_its_accounts(disk: Path, when_full: WhenFull) -> None:
    """Acknowledging and counting need no space; there is room again once something was acknowledged."""
    ledger, total = Ledger(), 0
    async with opened(disk / "spool", segment_bytes=8192, when_full=when_full) as spool:
        for _ in range(3):
            total += len(await spool.append_all([impression("x" * 80) for _ in range(100)]))
        other = occupy(disk)
        kept = await fill(spool)
        total += kept
        assert not spool.writable
        batch = await spool.next_batch(250, 1 << 20)
        assert batch is not None
        await spool.acknowledge(batch.epoch, ledger.take(batch).through_seq)
        total += len(await spool.append_all([impression("room")]))
        assert spool.writable
        dropped = spool.dropped
        assert dropped == (1 if when_full is DROP else 0)
    occupy(disk)
    async with opened(disk / "spool", when_full=when_full) as spool:  # a start on a full disk
        await ledger.drain(spool)
        other.unlink()
        total += len(await spool.append_all([impression("after")]))
        await ledger.drain(spool)
        assert (spool.state().depth, spool.conditions()) == (0, ())
    assert len(ledger.records) == total
    assert sum(ledger.lost.values()) == dropped


@pytest.mark.fault(14)
async def test_without_inodes_reports_are_refused_until_there_are(disk: Path) -> None:
    """A segment that cannot be made is a full disk; what was open goes on."""
    async with opened(disk / "spool", segment_bytes=100) as spool:
        await spool.append(impression("a"))
        others = disk / "others"
        others.mkdir()
        with pytest.raises(OSError, match="No space"):
            for number in range(100):
                (others / str(number)).touch()
        with pytest.raises(ResourceExhausted):
            for number in range(5):
                await spool.append(impression(str(number)))
        for path in others.iterdir():
            path.unlink()
        await spool.append(impression("b"))
        assert spool.writable


# -- shares ------------------------------------------------------------------------------------------


def of(participant: str) -> Event:
    return Event(participant=participant, kind=EventKind.IMPRESSION, occurred_at=1)


async def flood(spool: Spool, participant: str) -> int:
    """How many reports of one participant were taken before one was refused."""
    for taken in range(10_000):
        try:
            await spool.append(of(participant))
        except ResourceExhausted as refused:
            assert refused.reason == "SPOOL_FULL"
            return taken
    raise AssertionError("nobody stopped it")


async def test_one_of_several_participants_cannot_fill_the_spool(tmp_path: Path) -> None:
    """It has half of what was free at the start; what it had acknowledged it may take again."""
    async with opened(tmp_path, max_bytes=20_000, segment_bytes=1000) as spool:
        spool.room.share = 0.5
        taken = await flood(spool, "loud")
        assert 9_000 < spool.state().size <= 10_000
        assert codes(spool) == ["SPOOL_SHARE"]
        assert "loud" in spool.conditions()[0].message
        assert spool.writable
        await spool.append(of("quiet"))
        batch = await spool.next_batch(taken // 2, 1 << 20)
        assert batch is not None
        await spool.acknowledge(batch.epoch, batch.first_seq + len(batch.records) - 1)
        assert codes(spool) == []
        assert abs(await flood(spool, "loud") - taken // 2) <= 1
    async with opened(tmp_path, max_bytes=20_000, segment_bytes=1000) as spool:
        spool.room.share = 0.5
        assert await flood(spool, "loud") < taken * 0.8  # of what the backlog leaves
        await spool.append(of("quiet"))


async def test_a_participant_by_itself_has_all_of_the_spool(tmp_path: Path) -> None:
    """There is nobody to leave room for."""
    async with opened(tmp_path, max_bytes=5_000) as spool:
        await flood(spool, "only")
        assert spool.state().size > 4_900
        assert codes(spool) == ["SPOOL_FULL"]
        assert len(segments(tmp_path)) == 1
        assert len(records(await spool.next_batch(10, 1 << 20))) == 10


async def test_what_was_reported_alone_is_no_share_later(tmp_path: Path) -> None:
    """All of it was acknowledged, the spool is empty: a second participant in agent.toml silences nobody."""
    async with opened(tmp_path, max_bytes=20_000, segment_bytes=1000) as spool:
        for _ in range(300):
            await spool.append(of("first"))
            batch = await spool.next_batch(10, 1 << 20)
            assert batch is not None
            await spool.acknowledge(batch.epoch, batch.first_seq)
        assert spool.state().depth == 0
        spool.room.share = 0.5
        await spool.append(of("first"))


async def test_drops_are_one_count_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """A start whose epoch sorts before the last one's (no battery behind the clock) keeps its accounts small."""
    async with opened(tmp_path, max_bytes=5_000) as spool:
        for number in range(5):
            await spool.append(impression(str(number)))
    ids = [bytes([1]) * 16]
    spool = Spool(
        tmp_path,
        clock=FakeClock(),
        new_id=lambda: ids.pop() if ids else new_id(),
        max_bytes=400,
        when_full=WhenFull.DROP_NEWEST,
    )
    try:
        await spool.next_batch(10, 1 << 20)  # the uplink has it, and nobody to tell
        for _ in range(500):
            await spool.append(impression("dropped"))
        assert spool.dropped > 400
        assert spool.state().depth < 10
        assert max((tmp_path / f"cursor.{number}").stat().st_size for number in (0, 1)) == 16 * 1024
    finally:
        await asyncio.to_thread(spool.close)
