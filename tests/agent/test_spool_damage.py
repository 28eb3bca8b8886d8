"""Whatever happens to a spool's files, it goes on by itself, and what is gone is declared, exactly."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from agent.config import WhenFull
from agent.epochs import MAX_KEPT
from agent.segments import FRAME_OVERHEAD, segment_name, to_frame
from agent.spool import Spool
from shared import wire
from shared.errors import Unavailable
from shared.ids import new_id
from shared.model import Record
from tests.agent.test_spool import damage, drained, impression, opened, segments, start_of, told
from tests.support.ledger import Ledger

pytestmark = pytest.mark.fault(45)


def codes(spool: Spool) -> list[str]:
    return [condition.code for condition in spool.conditions()]


async def filled(directory: Path, count: int, *, first: int = 0, **options: int) -> None:
    """One start of the spool that took so many records, one by one."""
    async with opened(directory, **options) as spool:
        for number in range(first, first + count):
            await spool.append(impression(str(number)))


# -- the tail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b"\xf5", to_frame(4, b"x" * 50)[:-7], bytes(100), b"no frame at all"])
async def test_what_nobody_was_answered_for_is_not_declared(tmp_path: Path, rest: bytes) -> None:
    """A write that was cut short by a kill or a power cut lies behind the mark: nothing was lost."""
    await filled(tmp_path, 3)
    (segment,) = segments(tmp_path)
    with segment.open("ab") as file:
        file.write(rest)
    async with opened(tmp_path) as spool:
        assert spool.state().depth == 3
        assert [told(batch) for batch in await drained(spool)] == [["0", "1", "2"]]
        assert (spool.lost(), codes(spool)) == ({}, [])
        assert segments(tmp_path) == []


async def test_a_whole_record_behind_the_mark_is_sent(tmp_path: Path) -> None:
    """Killed between sync and mark: whether somebody was answered is not known, so it counts."""
    await filled(tmp_path, 3)
    (segment,) = segments(tmp_path)
    raw = wire.record_to_bytes(Record(id=new_id(), recorded_at=1, body=impression("behind")))
    with segment.open("ab") as file:
        file.write(to_frame(4, raw))
    async with opened(tmp_path) as spool:
        assert [told(batch) for batch in await drained(spool)] == [["0", "1", "2", "behind"]]


@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_missing_last_segments_are_declared(tmp_path: Path, kept: int) -> None:
    """The mark tells of them, though no file does; all of them may be gone."""
    await filled(tmp_path, 4, segment_bytes=1)
    for path in segments(tmp_path)[kept:]:
        path.unlink()
    async with opened(tmp_path) as spool:
        (batch,) = await drained(spool)
        expected = [str(number) for number in range(kept)]
        assert told(batch) == [*expected, *(f"missing_segment@{seq}x1" for seq in range(kept + 1, 5))]


async def test_without_its_mark_a_torn_tail_is_declared(tmp_path: Path) -> None:
    """Nobody can tell any more whether somebody was answered, so it is called lost rather than passed over."""
    await filled(tmp_path, 3)
    (segment,) = segments(tmp_path)
    damage(segment, lambda data: data.__delitem__(slice(-5, None)))
    (mark,) = tmp_path.glob("*.tail")
    mark.write_bytes(bytes(9000))
    async with opened(tmp_path) as spool:
        assert [told(batch) for batch in await drained(spool)] == [["0", "1", "torn@3x1"]]


async def test_half_a_mark_is_enough(tmp_path: Path) -> None:
    """It is there twice, in two pages."""
    await filled(tmp_path, 3)
    (mark,) = tmp_path.glob("*.tail")
    damage(mark, lambda data: data.__setitem__(slice(0, 4096), bytes(4096)))
    segments(tmp_path)[0].unlink()
    async with opened(tmp_path) as spool:
        (batch,) = await drained(spool)
        assert told(batch) == [f"missing_segment@{seq}x1" for seq in (1, 2, 3)]
        assert list(tmp_path.glob("*.tail")) == []


# -- segments nobody can read ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["directory", "fifo", "link"])
async def test_what_is_no_file_is_put_aside(tmp_path: Path, what: str) -> None:
    """Declared record by record, kept under another name, told as a condition; the rest goes on."""
    await filled(tmp_path, 5, segment_bytes=1)
    victim = segments(tmp_path)[2]
    victim.unlink()
    {
        "directory": victim.mkdir,
        "fifo": lambda: os.mkfifo(victim),
        "link": lambda: victim.symlink_to("/dev/zero"),
    }[what]()
    for _ in range(2):
        async with opened(tmp_path) as spool:
            batch = await spool.next_batch(10, 1 << 20)
            assert told(batch) == ["0", "1", "unreadable@3x1", "3", "4"]
    async with opened(tmp_path) as spool:
        assert len(await drained(spool)) == 1
        assert spool.lost() == {"unreadable": 1}
        assert codes(spool) == ["SPOOL_DAMAGED"]
        assert segments(tmp_path) == []
        (kept,) = tmp_path.glob("*.damaged")
        assert kept.name == victim.name + ".damaged"
    async with opened(tmp_path) as spool:
        await spool.append(impression("later"))
        assert [told(batch) for batch in await drained(spool)] == [["later"]]
        assert codes(spool) == ["SPOOL_DAMAGED"]  # as long as it lies there
    shutil.rmtree(kept) if kept.is_dir() and not kept.is_symlink() else kept.unlink()
    async with opened(tmp_path) as spool:
        assert codes(spool) == []


async def test_a_page_that_the_disk_refuses_costs_its_records_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else is in the segment goes up; the disk is asked once, not at every batch."""
    await filled(tmp_path, 200)
    (segment,) = segments(tmp_path)
    bad = (4096, 8192)
    first, last = seqs_in(segment, *bad)
    real, refused = os.pread, []

    def pread(fd: int, size: int, at: int) -> bytes:
        if at < bad[1] and at + size > bad[0]:
            refused.append(at)
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    async with opened(tmp_path) as spool:
        batches = await drained(spool, limit=50)
        got = [text for batch in batches for text in told(batch)]
        lost = [f"corrupt@{seq}x1" for seq in range(first, last + 1)]
        assert got == [*map(str, range(first - 1)), *lost, *map(str, range(last, 200))]
        assert len(refused) <= 4
        assert len(list(tmp_path.glob("*.damaged"))) == 1


def seqs_in(segment: Path, begin: int, end: int) -> tuple[int, int]:
    """The first and last sequence with a byte in a part of a segment."""
    starts = {seq: start_of(segment, seq) for seq in range(1, 201)}
    ends = {seq: starts.get(seq + 1, segment.stat().st_size) for seq in starts}
    inside = [seq for seq in starts if starts[seq] < end and ends[seq] > begin]
    return inside[0], inside[-1]


@pytest.mark.fault(17)
async def test_a_disk_that_gives_nothing_of_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record of it is declared, with how the disk failed as the reason."""
    await filled(tmp_path, 4, segment_bytes=1)
    victim = segments(tmp_path)[1].stat().st_ino
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        if os.fstat(fd).st_ino == victim:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    async with opened(tmp_path) as spool:
        assert [told(batch) for batch in await drained(spool)] == [["0", "unreadable@2x1", "2", "3"]]


@pytest.mark.fault(54)
async def test_no_free_descriptor_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That passes: nothing is declared lost for it."""
    await filled(tmp_path, 3)
    real = os.open

    def none_left(path: object, flags: int, *rest: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with opened(tmp_path) as spool:
        monkeypatch.setattr(os, "open", none_left)
        with pytest.raises(Unavailable):
            await spool.next_batch(10, 1 << 20)
        monkeypatch.setattr(os, "open", real)
        assert [told(batch) for batch in await drained(spool)] == [["0", "1", "2"]]
        assert spool.lost() == {}


async def test_damaged_segments_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    """The newest of them; a disk that rots cannot fill itself with what it spoiled."""
    count = MAX_KEPT + 3
    await filled(tmp_path, count, segment_bytes=1)
    names = [path.name for path in segments(tmp_path)]
    for path in segments(tmp_path):
        damage(path, lambda data: data.__setitem__(FRAME_OVERHEAD + 3, data[FRAME_OVERHEAD + 3] ^ 1))
    async with opened(tmp_path) as spool:
        await drained(spool)
        assert spool.lost() == {"corrupt": count - 1, "torn": 0} or sum(spool.lost().values()) == count
    kept = sorted(path.name.removesuffix(".damaged") for path in tmp_path.glob("*.damaged"))
    assert kept == names[-MAX_KEPT:]


async def test_segments_from_the_future_wait_for_their_version(tmp_path: Path) -> None:
    """After a downgrade: left as they are, told as a condition, and nothing of them is declared lost."""
    future = tmp_path / segment_name(new_id(), 1).replace(".v1.", ".v2.")
    await filled(tmp_path, 1)
    future.write_bytes(b"whatever the next version writes")
    async with opened(tmp_path) as spool:
        assert codes(spool) == ["SPOOL_NEWER"]
        assert [told(batch) for batch in await drained(spool)] == [["0"]]
        assert spool.lost() == {}
    assert future.read_bytes() == b"whatever the next version writes"


async def test_a_segment_in_a_place_it_cannot_have_is_foreign(tmp_path: Path) -> None:
    """A name alone makes no endless losses."""
    await filled(tmp_path, 2)
    epoch = segments(tmp_path)[0].name[:32]
    odd = tmp_path / segment_name(bytes.fromhex(epoch), 10**19)
    odd.write_bytes(b"?")
    async with opened(tmp_path) as spool:
        assert spool.state().depth == 2
        assert [told(batch) for batch in await drained(spool)] == [["0", "1"]]
    assert odd.exists()


# -- the cursor --------------------------------------------------------------------------------------


@pytest.mark.fault(47)
@pytest.mark.parametrize("how", ["empty", "zeroed", "gone", "rubbish"])
async def test_without_any_cursor_nothing_is_called_lost(tmp_path: Path, how: str) -> None:
    """What was acknowledged and deleted is not missed, what was not deleted is sent again and recognised."""
    ledger = Ledger()
    async with opened(tmp_path, segment_bytes=200) as spool:
        for number in range(20):
            await spool.append(impression(str(number)))
        batch = await spool.next_batch(11, 1 << 20)
        assert batch is not None
        await spool.acknowledge(batch.epoch, ledger.take(batch).through_seq)
    for path in tmp_path.glob("cursor.*"):
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "zeroed": bytes(4096), "rubbish": b"{" * 300}[how])
    async with opened(tmp_path) as spool:
        await spool.append(impression("20"))
        await ledger.drain(spool)
        assert spool.state().depth == 0
    assert sorted(ledger.records.values(), key=int) == [str(number) for number in range(21)]
    assert ledger.lost == {}


@pytest.mark.fault(17)
async def test_an_acknowledgement_that_could_not_be_kept_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeating it tries the disk again, rather than say that it is done."""
    real = os.fsync

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with opened(tmp_path) as spool:
        for number in range(3):
            await spool.append(impression(str(number)))
        epoch = spool.state().epoch
        monkeypatch.setattr(os, "fsync", failing)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await spool.acknowledge(epoch, 2)
        assert (spool.state().depth, codes(spool)) == (3, ["SPOOL_UNWRITABLE"])
        monkeypatch.setattr(os, "fsync", real)
        await spool.acknowledge(epoch, 2)
        assert (spool.state().depth, codes(spool)) == (1, [])
    async with opened(tmp_path) as spool:
        batch = await spool.next_batch(10, 1 << 20)
        assert told(batch) == ["2"]


# -- anything ----------------------------------------------------------------------------------------

SEEDS = int(os.environ.get("VARIANTD_SPOOL_SEEDS", "40"))


@pytest.mark.parametrize("block", range(4))
async def test_random_edits_lose_exactly_what_is_declared(tmp_path: Path, block: int) -> None:
    """Bits, pages, ends and whole files of a real spool: accepted = delivered + declared lost, every time."""
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        chance = random.Random(seed)
        directory = tmp_path / str(seed)
        ledger, accepted, dropped = await _lived(directory, chance)
        done = [_edit(directory, chance) for _ in range(chance.randint(1, 8))]
        async with opened(directory) as spool:
            await spool.append(impression("after"))
            await ledger.drain(spool, limit=chance.choice((1, 7, 100)))
            assert spool.state().depth == 0, (seed, done)
        delivered = set(ledger.records.values())
        assert delivered <= accepted | {"after"}, (seed, done)
        declared = sum(ledger.lost.values())
        assert len(accepted) + 1 + dropped == len(delivered) + declared, (seed, done, ledger.lost)
        async with opened(directory) as spool:
            assert (spool.state().depth, segments(directory)) == (0, []), (seed, done)
        shutil.rmtree(directory)


async def _lived(directory: Path, chance: random.Random) -> tuple[Ledger, set[str], int]:
    """A spool after a few starts, of which a part was sent: (what arrived, what was accepted, what was dropped)."""
    ledger, accepted, number = Ledger(), set[str](), 0
    dropped = 0
    for _ in range(chance.randint(1, 4)):
        options = {
            "segment_bytes": chance.choice((150, 600, 3000, 1 << 20)),
            "when_full": WhenFull.DROP_NEWEST,
        }
        async with opened(directory, max_bytes=chance.choice((2500, 9000, 1 << 20)), **options) as spool:
            for _ in range(chance.randint(1, 6)):
                names = [
                    f"{number + more} {'x' * chance.randint(0, 90)}" for more in range(chance.randint(1, 8))
                ]
                number += len(names)
                before = spool.dropped
                await spool.append_all([impression(name) for name in names])
                if spool.dropped == before:
                    accepted |= set(names)
                if chance.random() < 0.3 and (
                    batch := await spool.next_batch(chance.randint(1, 20), 1 << 20)
                ):
                    await spool.acknowledge(batch.epoch, ledger.take(batch).through_seq)
            dropped = spool.dropped
    return ledger, accepted, dropped


def _edit(directory: Path, chance: random.Random) -> str:
    """One change to the segments, or to one of two copies of anything else."""
    mine = segments(directory)
    kind = chance.choice(("flip", "flip", "zero", "cut", "unlink", "foreign", "append", "mark", "swap"))
    if kind == "mark" and (marks := sorted(directory.glob("*.tail"))):
        path, at = chance.choice(marks), chance.choice((0, 8))
        damage(path, lambda data: data.__setitem__(at, data[at] ^ (1 << chance.randrange(8))))
        return f"{kind} {path.name}"
    if kind == "foreign" or not mine:
        (directory / f"foreign-{chance.randrange(100)}").write_bytes(chance.randbytes(30))
        return "foreign"
    path = chance.choice(mine)
    if path.is_dir():
        return "nothing"
    size = path.stat().st_size
    at = chance.randrange(size) if size else 0
    if kind == "unlink":
        path.unlink()
    elif kind == "swap":
        path.unlink()
        path.mkdir()
    elif kind == "append":
        with path.open("ab") as file:
            file.write(chance.randbytes(chance.randint(1, 60)))
    elif kind == "cut":
        os.truncate(path, at)
    elif kind == "zero":
        damage(path, lambda data: data.__setitem__(slice(at, at + 300), bytes(len(data[at : at + 300]))))
    elif size:
        damage(path, lambda data: data.__setitem__(at, data[at] ^ (1 << chance.randrange(8))))
    return f"{kind} {path.name} {at}"


@pytest.mark.parametrize("seed", range(6))
async def test_one_damaged_cursor_file_costs_nothing(tmp_path: Path, seed: int) -> None:
    """Of acknowledgements and of drops there are two copies, one of which may rot in any way."""
    chance = random.Random(seed)
    ledger, accepted, dropped = await _lived(tmp_path, chance)
    victim = tmp_path / chance.choice(("cursor.0", "cursor.1"))
    how = chance.choice(("flip", "cut", "unlink"))
    if how == "unlink":
        victim.unlink()
    elif how == "cut":
        os.truncate(victim, chance.randrange(300))
    else:
        at = chance.randrange(60)
        damage(victim, lambda data: data.__setitem__(at, data[at] ^ 1))
    async with opened(tmp_path) as spool:
        await ledger.drain(spool)
        assert spool.state().depth == 0
    assert set(ledger.records.values()) == accepted
    assert ledger.lost == ({"spool_full": dropped} if dropped else {})
